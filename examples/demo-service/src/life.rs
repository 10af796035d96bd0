//! One life from start to end: fail or wait, listen, be ready, tick until told to end. SIGTERM ends it by the default action.
//! What is answered on the ports is `http.rs`'s.

use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::failure;
use crate::http::{self, Service};
use crate::options::Options;

/// How often the break file and the clocks are looked at: a person who touches the file sees the effect at once, and 77 idle
/// services cost nothing that shows.
const TICK: Duration = Duration::from_millis(100);

/// Lives as asked; returns when it has to end.
pub(crate) fn live(options: Options) -> ExitCode {
    match run(options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            complain(&format!("OSError: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Starts the same program again with SIGTERM ignored: an ignored signal stays ignored across exec, and the standard library
/// alone cannot ignore one. Returns only when that failed.
pub(crate) fn start_again_deaf_to_term(args: &[String]) -> ExitCode {
    let myself = match std::env::current_exe() {
        Ok(path) => path,
        Err(error) => {
            complain(&format!("OSError: cannot find my own program: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let error = Command::new("/bin/sh")
        .args(["-c", "trap '' TERM; exec \"$0\" \"$@\""])
        .arg(myself)
        .args(args.iter().filter(|arg| *arg != "--ignore-term"))
        .exec();
    complain(&format!("OSError: cannot start again through /bin/sh: {error}"));
    ExitCode::FAILURE
}

/// Prints one line for `razar logs`. A closed standard output is nobody's trouble here.
pub(crate) fn say(line: &str) {
    drop(writeln!(io::stdout().lock(), "{line}"));
}

/// Prints one line of complaint, the last of which is the error that the mesh shows.
pub(crate) fn complain(line: &str) {
    drop(writeln!(io::stderr().lock(), "{line}"));
}

fn run(options: Options) -> io::Result<u8> {
    if failure::is_asked_for(&options) {
        return Ok(fail(&options.name, &options.break_error));
    }
    if let Some(error) = failure::of_this_start(&options)? {
        thread::sleep(options.fail_delay);
        return Ok(fail(&options.name, &error));
    }
    let service = Arc::new(Service::new(options));
    let options = &service.options;
    if options.listen_early {
        http::listen(&service)?;
    }
    thread::sleep(options.start_delay);
    if options.one_shot {
        say(&format!("{} done", options.name));
        return Ok(options.exit_code);
    }
    if !options.listen_early {
        http::listen(&service)?;
    }
    become_ready(&service)?;
    Ok(stay(&service))
}

fn fail(name: &str, error: &str) -> u8 {
    complain(&format!("Traceback (most recent call last): {name}"));
    complain(error);
    1
}

fn become_ready(service: &Service) -> io::Result<()> {
    let options = &service.options;
    service.set_ready();
    if options.notify {
        notify("READY=1\n")?;
    }
    if let Some(line) = &options.print_ready {
        say(line);
    }
    if options.cpu_spin {
        thread::Builder::new().stack_size(http::STACK_BYTES).spawn(spin)?;
    }
    Ok(())
}

fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

/// Ticks until the service has to end; the exit code.
fn stay(service: &Service) -> u8 {
    let options = &service.options;
    let ready_at = Instant::now();
    let ticks = options.break_file.is_some() || options.exit_after.is_some() || options.log_every.is_some();
    let mut line_at = options.log_every.map(|every| ready_at + every);
    loop {
        if !ticks {
            thread::park();
            continue;
        }
        if failure::is_asked_for(options) {
            return fail(&options.name, &options.break_error);
        }
        let now = Instant::now();
        if options.exit_after.is_some_and(|after| now >= ready_at + after) {
            if options.exit_code != 0 {
                complain(&options.error);
            }
            return options.exit_code;
        }
        if let (Some(at), Some(every)) = (line_at, options.log_every)
            && now >= at
        {
            say(&format!("{} alive for {:.1}s", options.name, ready_at.elapsed().as_secs_f64()));
            line_at = Some(now + every);
        }
        let wakes = [line_at, options.exit_after.map(|after| ready_at + after)];
        let until_next = wakes.into_iter().flatten().map(|at| at.saturating_duration_since(now)).min();
        thread::sleep(until_next.map_or(TICK, |next| next.min(TICK)));
    }
}

/// Tells the supervisor, as sd_notify(3) does. Without NOTIFY_SOCKET nobody wants to know.
fn notify(message: &str) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}
