//! The command line: what a demo service may be asked to do. Reading only; `life.rs` and `http.rs` do it.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What `--help` prints.
pub(crate) const USAGE: &str = "\
razar-demo-service: a small service for examples and tests
  --name NAME            its name in answers and lines (demo)
  --port N               listens on 127.0.0.1:N
  --health-port N        answers health here; equal to --port or left out: on --port
  --path PATH            where health is asked (/health); /alive answers whenever anything does
  --start-delay D        works this long before it is ready (0s), e.g. 300ms, 1.5s, 2m
  --listen-early         listens at once and answers 503 until ready
  --notify               tells READY=1 to NOTIFY_SOCKET when ready
  --print-ready TEXT     prints this line when ready
  --log-every D          prints a line each D
  --depends URL          asked by GET /work, which fails when it fails; may be repeated
  --one-shot             ends with --exit-code when it would be ready
  --exit-after D         ends with --exit-code this long after it was ready
  --exit-code N          for the two above (0)
  --fail-first N         its first N starts end in exit 1; needs --state
  --fail-again           after a start that worked, --fail-first counts from the beginning
  --fail-delay D         how long a start that fails takes (0s)
  --state FILE           where --fail-first counts
  --error TEXT           the last line of what fails
  --break-file PATH      exit 1 at once while this file exists, also later
  --break-error TEXT     the last line then
  --ignore-term          SIGTERM does nothing
  --lie                  health says 200, but nothing listens on --port
  --cpu-spin             uses a whole core, and answers
  --hang-on PATH         after a GET of PATH nothing is answered any more";

/// A checked command line.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) help: bool,
    pub(crate) name: String,
    pub(crate) port: Option<u16>,
    pub(crate) health_port: Option<u16>,
    pub(crate) path: String,
    pub(crate) start_delay: Duration,
    pub(crate) listen_early: bool,
    pub(crate) notify: bool,
    pub(crate) print_ready: Option<String>,
    pub(crate) log_every: Option<Duration>,
    pub(crate) depends: Vec<String>,
    pub(crate) one_shot: bool,
    pub(crate) exit_after: Option<Duration>,
    pub(crate) exit_code: u8,
    pub(crate) fail_first: u32,
    pub(crate) fail_again: bool,
    pub(crate) fail_delay: Duration,
    pub(crate) state: Option<PathBuf>,
    pub(crate) error: String,
    pub(crate) break_file: Option<PathBuf>,
    pub(crate) break_error: String,
    pub(crate) ignore_term: bool,
    pub(crate) lie: bool,
    pub(crate) cpu_spin: bool,
    pub(crate) hang_on: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            help: false,
            name: "demo".to_owned(),
            port: None,
            health_port: None,
            path: "/health".to_owned(),
            start_delay: Duration::ZERO,
            listen_early: false,
            notify: false,
            print_ready: None,
            log_every: None,
            depends: Vec::new(),
            one_shot: false,
            exit_after: None,
            exit_code: 0,
            fail_first: 0,
            fail_again: false,
            fail_delay: Duration::ZERO,
            state: None,
            error: "RuntimeError: told to fail".to_owned(),
            break_file: None,
            break_error: "ModuleNotFoundError: No module named 'torch'".to_owned(),
            ignore_term: false,
            lie: false,
            cpu_spin: false,
            hang_on: None,
        }
    }
}

impl Options {
    /// Reads `--flag value` and `--flag=value`.
    ///
    /// # Errors
    /// A sentence that names the flag and what is wrong with it.
    pub(crate) fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let (flag, inline) = match arg.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (arg.as_str(), None),
            };
            if inline.is_none() && options.set_switch(flag) {
                continue;
            }
            let value = inline.or_else(|| rest.next().cloned()).ok_or_else(|| format!("{flag} is not known, or lacks its value"))?;
            options.set_value(flag, value)?;
        }
        options.check()
    }

    /// Sets what needs no value; false when `flag` is not one of these.
    fn set_switch(&mut self, flag: &str) -> bool {
        let switch = match flag {
            "--help" | "-h" => &mut self.help,
            "--listen-early" => &mut self.listen_early,
            "--notify" => &mut self.notify,
            "--one-shot" => &mut self.one_shot,
            "--fail-again" => &mut self.fail_again,
            "--ignore-term" => &mut self.ignore_term,
            "--lie" => &mut self.lie,
            "--cpu-spin" => &mut self.cpu_spin,
            _ => return false,
        };
        *switch = true;
        true
    }

    fn set_value(&mut self, flag: &str, value: String) -> Result<(), String> {
        match flag {
            "--name" => self.name = value,
            "--port" => self.port = Some(number(flag, &value)?),
            "--health-port" => self.health_port = Some(number(flag, &value)?),
            "--path" => self.path = value,
            "--start-delay" => self.start_delay = duration(flag, &value)?,
            "--print-ready" => self.print_ready = Some(value),
            "--log-every" => self.log_every = Some(duration(flag, &value)?),
            "--depends" => self.depends.push(value),
            "--exit-after" => self.exit_after = Some(duration(flag, &value)?),
            "--exit-code" => self.exit_code = number(flag, &value)?,
            "--fail-first" => self.fail_first = number(flag, &value)?,
            "--fail-delay" => self.fail_delay = duration(flag, &value)?,
            "--state" => self.state = Some(value.into()),
            "--error" => self.error = value,
            "--break-file" => self.break_file = Some(value.into()),
            "--break-error" => self.break_error = value,
            "--hang-on" => self.hang_on = Some(value),
            _ => return Err(format!("{flag} is not known")),
        }
        Ok(())
    }

    fn check(self) -> Result<Self, String> {
        if self.fail_first > 0 && self.state.is_none() {
            return Err("--fail-first needs --state FILE, where it counts".to_owned());
        }
        if self.lie && (self.health_port.is_none() || self.health_port == self.port) {
            return Err("--lie needs a --health-port that is not --port".to_owned());
        }
        if let Some(url) = self.depends.iter().find(|url| !url.starts_with("http://")) {
            return Err(format!("--depends {url} must begin with http://"));
        }
        Ok(self)
    }
}

fn number<N: FromStr>(flag: &str, value: &str) -> Result<N, String> {
    value.parse().map_err(|_| format!("{flag} {value} is not a number that fits"))
}

/// Reads `300ms`, `1.5s`, `2m` or `1h`; a number alone has no unit and is refused.
fn duration(flag: &str, value: &str) -> Result<Duration, String> {
    let wrong = || format!("{flag} {value} is not a duration such as 300ms, 1.5s or 2m");
    let unit_at = value.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (amount, unit) = value.split_at_checked(unit_at).ok_or_else(wrong)?;
    let amount: f64 = amount.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => amount / 1e3,
        "s" => amount,
        "m" => amount * 60.0,
        "h" => amount * 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Options::parse(&args)
    }

    #[test]
    fn values_come_after_the_flag_or_after_an_equals_sign() {
        let options = parse("--name api --port=18001 --start-delay 1.5s --lie --health-port 18002").unwrap();
        assert_eq!(options.name, "api");
        assert_eq!(options.port, Some(18001));
        assert_eq!(options.start_delay, Duration::from_millis(1500));
        assert!(options.lie);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, names) in [
            ("--prot 1", "--prot"),
            ("--port 70000", "--port 70000"),
            ("--start-delay 3", "--start-delay 3"),
            ("--start-delay -3s", "--start-delay -3s"),
            ("--port", "--port"),
            ("--fail-first 1", "--state"),
            ("--lie --port 1", "--health-port"),
            ("--depends https://127.0.0.1/", "http://"),
        ] {
            let wrong = parse(line).unwrap_err();
            assert!(wrong.contains(names), "{line}: {wrong}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, millis) in [("300ms", 300), ("2s", 2_000), ("0.25s", 250), ("1m", 60_000), ("1h", 3_600_000)] {
            assert_eq!(duration("--d", text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }
}
