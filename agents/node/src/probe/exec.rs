//! A command that must exit 0: in a session of its own, with the component's environment, killed with its whole tree when its time is over
//! or nobody waits for it any more.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::time::Duration;

use razar_bus_schema::v1::ExecCheck;
use razar_os::{Process, Signal, Spawn, Tree};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Finding, Outcome, ProbeContext};

/// Most bytes of output that are kept; the rest is read and dropped, so that a talkative command does not hang on a full pipe.
const OUTPUT_BYTES_MAX: usize = 4096;
/// How long the kill of a tree is waited for.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// Holds the slot until the process has gone, not only until the answer.
pub(super) async fn ask(check: &ExecCheck, context: &ProbeContext, timeout: Duration, slot: Option<OwnedSemaphorePermit>) -> Finding {
    let (process, output) = match start(check, context) {
        Ok(started) => started,
        Err(why) => return Finding::new(Outcome::Failed, format!("exec: {why}")),
    };
    let (answer, answered) = oneshot::channel();
    // A task of its own, so that the process is ended and reaped even when nobody waits for the answer any more.
    tokio::spawn(async move {
        let _slot = slot;
        attend(process, output, timeout, answer).await;
    });
    answered.await.unwrap_or_else(|_| Finding::new(Outcome::Failed, "exec: the probe ended early"))
}

fn start(check: &ExecCheck, context: &ProbeContext) -> Result<(Process, pipe::Receiver), String> {
    let program = check.command.first().ok_or("no command")?;
    let argv: Vec<OsString> = check.command.iter().map(OsString::from).collect();
    let (output, input) = std::io::pipe().map_err(|error| error.to_string())?;
    let output = pipe::Receiver::from_owned_fd(output.into()).map_err(|error| error.to_string())?;
    let mut order = Spawn::new(program.as_ref(), &argv, &context.working_dir, input.as_fd());
    order.env = &context.env;
    let process = razar_os::spawn(&order).map_err(|error| error.to_string())?.into_process().map_err(|error| error.to_string())?;
    Ok((process, output))
}

async fn attend(process: Process, mut output: pipe::Receiver, timeout: Duration, mut answer: oneshot::Sender<Finding>) {
    let mut said = Vec::new();
    let ended = tokio::select! {
        biased;
        waited = process.wait_exit() => Some(waited),
        () = tokio::time::sleep(timeout) => None,
        () = answer.closed() => None,
        // Never waited for to end: a child that was left behind may keep it open.
        () = drain(&mut output, &mut said) => None,
    };
    let finding = match ended {
        Some(Ok(())) => {
            take_rest(&output, &mut said);
            // What it left in its group, while the group's number is certain.
            let _ = process.signal_group(Signal::KILL);
            match process.reap() {
                Ok(Some(status)) if status.is_success() => Finding::new(Outcome::Passed, "exec 0"),
                Ok(Some(status)) => Finding::new(Outcome::Failed, format!("exec: {status}{}", last_words(&said))),
                Ok(None) => Finding::new(Outcome::Failed, "exec: exit status unknown"),
                Err(error) => Finding::new(Outcome::Failed, format!("exec: {error}")),
            }
        }
        Some(Err(ref error)) => Finding::new(Outcome::Failed, format!("exec: {error}")),
        None => Finding::new(Outcome::TimedOut, format!("exec: no end{}", last_words(&said))),
    };
    // The answer first: killing may take longer than the policy can wait.
    let _ = answer.send(finding);
    if !matches!(ended, Some(Ok(()))) {
        end(process).await;
    }
}

async fn end(process: Process) {
    let killed = tokio::task::spawn_blocking(move || {
        let report = Tree::new(&process, None, None).and_then(|mut tree| tree.kill(KILL_WAIT));
        (process, report)
    });
    let Ok((process, report)) = killed.await else { return };
    if let Err(error) = report {
        tracing::warn!(pid = %process.pid(), %error, "cannot kill the tree of an exec probe");
        let _ = process.signal(Signal::KILL);
    }
    // An unkillable one holds its slot, so that not more and more of them gather.
    if process.wait_exit().await.is_ok() {
        let _ = process.reap();
    }
}

/// Reads for ever, keeping the first bytes.
async fn drain(output: &mut pipe::Receiver, said: &mut Vec<u8>) {
    let mut bytes = [0; 1024];
    while let Ok(n @ 1..) = output.read(&mut bytes).await {
        keep(said, bytes.get(..n).unwrap_or_default());
    }
    std::future::pending().await
}

fn take_rest(output: &pipe::Receiver, said: &mut Vec<u8>) {
    let mut bytes = [0; 1024];
    while said.len() < OUTPUT_BYTES_MAX
        && let Ok(n @ 1..) = output.try_read(&mut bytes)
    {
        keep(said, bytes.get(..n).unwrap_or_default());
    }
}

fn keep(said: &mut Vec<u8>, bytes: &[u8]) {
    let room = OUTPUT_BYTES_MAX.saturating_sub(said.len());
    said.extend_from_slice(bytes.get(..bytes.len().min(room)).unwrap_or_default());
}

/// The last line of output that is not empty, to be put behind a colon.
fn last_words(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map_or_else(String::new, |line| format!(": {line}"))
}
