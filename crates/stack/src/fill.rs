//! The file's types to resolved specifications: every default filled in, every path absolute.
//! The defaults of the format are the constants of this module and nowhere else.

use std::{
    path::{Component as Part, Path, PathBuf},
    time::Duration,
};

use razar_bus_schema::{time::duration, v1};

use crate::file::{Backoff, Component, Condition, DependsOn, Logs, Policy, Probe, Readiness, Restart, Rung, StackFile, Stop, Timing};

/// `priority` of a component that says none: in the middle, so that others can go before and after it.
pub const PRIORITY_DEFAULT: u32 = 5;
/// Start slots of a node.
pub const PARALLEL_STARTS_DEFAULT: u32 = 4;
/// Time after which a boot is called incomplete.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);
/// Failed boots in a row after which a component is no longer started.
pub const FAILED_BOOTS_DEFAULT: u32 = 3;
/// Local restarts of the budget.
pub const BUDGET_MAX_DEFAULT: u32 = 3;
/// Period of the budget.
pub const BUDGET_WITHIN_DEFAULT: Duration = Duration::from_secs(90);
/// Delay before the first restart in a row.
pub const BACKOFF_FIRST_DEFAULT: Duration = Duration::ZERO;
/// Delay before the second.
pub const BACKOFF_BASE_DEFAULT: Duration = Duration::from_secs(1);
/// Growth of the delay.
pub const BACKOFF_FACTOR_DEFAULT: f64 = 2.0;
/// Longest delay.
pub const BACKOFF_MAX_DEFAULT: Duration = Duration::from_secs(60);
/// Random share of the delay.
pub const BACKOFF_JITTER_DEFAULT: f64 = 0.2;
/// Time of being ready after which the delay begins anew.
pub const RESET_AFTER_DEFAULT: Duration = Duration::from_secs(1);
/// Signal that asks a component to end: SIGTERM.
pub const STOP_SIGNAL_DEFAULT: i32 = 15;
/// Time between that and SIGKILL.
pub const STOP_GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// Size at which a log file is rotated: 20 MiB.
pub const LOG_BYTES_DEFAULT: u64 = 20 << 20;
/// Rotated log files kept.
pub const LOG_KEEP_DEFAULT: u32 = 3;
/// A probe slower than this counts as degraded.
pub const SLOW_PROBE_DEFAULT: Duration = Duration::from_millis(500);
/// Time of a hook.
pub const HOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Period of startup and liveness probes. A readiness probe that names none is left without: the node then asks it each 5 s while it passes,
/// each 1 s while it does not.
pub const PROBE_PERIOD_DEFAULT: Duration = Duration::from_secs(1);
/// Time to answer a startup or liveness probe.
pub const PROBE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
/// Time to answer a readiness probe: being slow for a moment is not being away.
pub const READINESS_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// Failures in a row of a readiness or liveness probe.
pub const FAILURE_THRESHOLD_DEFAULT: u32 = 3;
/// Failures in a row of a startup probe: with the period they make the 30 s that a start may take.
pub const STARTUP_THRESHOLD_DEFAULT: u32 = 30;
/// Missed heartbeats.
pub const HEARTBEAT_MISSES_DEFAULT: u32 = 3;
/// The ladder of a component that names none.
pub const HEAL_DEFAULT: [Rung; 4] = [Rung::Restart, Rung::ClearState, Rung::Dependencies, Rung::ChakraHook];

/// Role of a probe, for its defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Startup,
    Readiness,
    Liveness,
}

/// The specification of `component`, called `name`, in a file that lies in `dir` (absolute).
pub(crate) fn component(name: &str, component: &Component, stack: &StackFile, dir: &Path) -> v1::ComponentSpec {
    let one_shot = component.one_shot.unwrap_or(false);
    let probe = |role, probe: &Probe| self::probe(probe, role, stack, dir);
    // A one-shot's success is its readiness; nothing is asked of it.
    let asked = |role, of: &Option<Probe>| of.as_ref().filter(|_| !one_shot).map(|p| probe(role, p));
    let readiness_none = component.readiness == Some(Readiness::None) && !one_shot;
    let readiness = match (&component.readiness, one_shot) {
        (_, true) | (Some(Readiness::None), false) => None,
        (Some(Readiness::Probe(p)), false) => Some(probe(Role::Readiness, p)),
        (None, false) => component.startup.as_ref().or(component.liveness.as_ref()).map(|p| probe(Role::Readiness, p)),
    };
    v1::ComponentSpec {
        name: name.to_owned(),
        chakra: component.chakra.clone(),
        priority: component.priority.unwrap_or(PRIORITY_DEFAULT),
        command: command(&component.command, dir),
        working_dir: component.working_dir.as_deref().map_or_else(|| text(dir), |p| text(&absolute(p, dir))),
        env: component.env.iter().map(|(name, value)| v1::EnvVar { name: name.clone(), value: value.clone() }).collect(),
        secrets: component
            .secrets
            .iter()
            .map(|(name, secret)| v1::SecretFile { name: name.clone(), file: text(&absolute(&secret.file, dir)) })
            .collect(),
        ports: component.ports.iter().copied().map(u32::from).collect(),
        startup: asked(Role::Startup, &component.startup),
        readiness,
        liveness: asked(Role::Liveness, &component.liveness),
        readiness_none,
        stop: Some(stop(&component.stop, &stack.defaults.stop)),
        required: component.required.unwrap_or(true),
        state: component.state.iter().map(|p| text(&absolute(p, dir))).collect(),
        resources: component.resources.as_ref().map(|r| v1::ResourceLimits {
            memory_bytes: r.memory.unwrap_or(0),
            cpu_millis: r.cpu.unwrap_or(0),
            open_files: r.open_files.unwrap_or(0),
            restart: r.restart.unwrap_or(false),
        }),
        depends_on: component.depends_on.iter().map(|(name, on)| dependency(name, on)).collect(),
        restart: Some(restart(&component.restart, stack)),
        heal: component.heal.as_deref().unwrap_or(&HEAL_DEFAULT).iter().map(|r| rung(*r).to_owned()).collect(),
        provides: component.provides.clone(),
        replicas: component.replicas.unwrap_or(1),
        node_labels: labels(&component.node.labels),
        one_shot,
        metadata: labels(&component.metadata),
        logs: Some(logs(&component.logs, &stack.defaults.logs)),
        slow_probe: Some(duration(component.slow_probe.or(stack.defaults.slow_probe).unwrap_or(SLOW_PROBE_DEFAULT))),
    }
}

/// The program of a command: with a slash made absolute, a bare name left for PATH.
pub(crate) fn command(command: &[String], dir: &Path) -> Vec<String> {
    let mut command = command.to_vec();
    if let Some(program) = command.first_mut().filter(|p| p.contains('/')) {
        *program = text(&absolute(Path::new(program.as_str()), dir));
    }
    command
}

/// `path` seen from `dir`. Leading `..` climb `dir`; later ones stay, since what they climb may be a link.
pub(crate) fn absolute(path: &Path, dir: &Path) -> PathBuf {
    let mut out = if path.is_absolute() { PathBuf::new() } else { dir.to_path_buf() };
    let mut leading = !path.is_absolute();
    for part in path.components() {
        match part {
            Part::CurDir => {}
            Part::ParentDir if leading => {
                out.pop();
            }
            Part::ParentDir | Part::Normal(_) | Part::RootDir | Part::Prefix(_) => {
                leading = false;
                out.push(part);
            }
        }
    }
    out
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn labels(map: &std::collections::BTreeMap<String, String>) -> Vec<v1::Label> {
    map.iter().map(|(key, value)| v1::Label { key: key.clone(), value: value.clone() }).collect()
}

fn dependency(name: &str, on: &DependsOn) -> v1::Dependency {
    use v1::DependencyCondition as To;
    let condition = match on.condition.unwrap_or_default() {
        Condition::Started | Condition::ServiceStarted => To::Started,
        Condition::Ready | Condition::ServiceHealthy => To::Ready,
        Condition::Completed | Condition::ServiceCompletedSuccessfully => To::Completed,
    };
    v1::Dependency {
        component: name.to_owned(),
        condition: condition.into(),
        required: on.required.unwrap_or(true),
        restart: on.restart.unwrap_or(false),
    }
}

fn probe(probe: &Probe, role: Role, stack: &StackFile, dir: &Path) -> v1::Probe {
    use v1::probe::Check;
    let host = |host: &Option<String>| host.clone().unwrap_or_default();
    let check = if let Some(http) = &probe.http {
        let headers = labels(&http.headers);
        Some(Check::Http(v1::HttpCheck {
            host: host(&http.host),
            port: http.port.into(),
            path: http.path.clone().unwrap_or_else(|| "/".to_owned()),
            headers,
        }))
    } else if let Some(tcp) = &probe.tcp {
        Some(Check::Tcp(v1::TcpCheck { host: host(&tcp.host), port: tcp.port.into() }))
    } else if let Some(exec) = &probe.exec {
        Some(Check::Exec(v1::ExecCheck { command: command(exec, dir) }))
    } else if let Some(grpc) = &probe.grpc {
        let service = grpc.service.clone().unwrap_or_default();
        Some(Check::Grpc(v1::GrpcCheck { host: host(&grpc.host), port: grpc.port.into(), service }))
    } else if let Some(log) = &probe.log {
        Some(Check::Log(v1::LogCheck { pattern: log.pattern.clone() }))
    } else if let Some(heartbeat) = &probe.heartbeat {
        Some(Check::Heartbeat(v1::HeartbeatCheck {
            interval: Some(duration(heartbeat.interval.unwrap_or(PROBE_PERIOD_DEFAULT))),
            misses: heartbeat.misses.unwrap_or(HEARTBEAT_MISSES_DEFAULT),
        }))
    } else {
        probe.notify.map(|()| Check::Notify(v1::NotifyCheck {}))
    };
    let timing = timing(&probe.timing, role, stack);
    v1::Probe { check, ..timing }
}

fn timing(own: &Timing, role: Role, stack: &StackFile) -> v1::Probe {
    let probes = &stack.defaults.probes;
    let each = Some(PROBE_PERIOD_DEFAULT);
    let (given, period, timeout, failures) = match role {
        Role::Startup => (&probes.startup, each, PROBE_TIMEOUT_DEFAULT, STARTUP_THRESHOLD_DEFAULT),
        Role::Readiness => (&probes.readiness, None, READINESS_TIMEOUT_DEFAULT, FAILURE_THRESHOLD_DEFAULT),
        Role::Liveness => (&probes.liveness, each, PROBE_TIMEOUT_DEFAULT, FAILURE_THRESHOLD_DEFAULT),
    };
    v1::Probe {
        check: None,
        period: own.period.or(given.period).or(period).map(duration),
        timeout: Some(duration(own.timeout.or(given.timeout).unwrap_or(timeout))),
        failure_threshold: own.failure_threshold.or(given.failure_threshold).unwrap_or(failures),
        success_threshold: own.success_threshold.or(given.success_threshold).unwrap_or(1),
        initial_delay: Some(duration(own.initial_delay.or(given.initial_delay).unwrap_or_default())),
    }
}

fn stop(own: &Stop, given: &Stop) -> v1::StopSpec {
    v1::StopSpec {
        signal: own.signal.or(given.signal).unwrap_or(STOP_SIGNAL_DEFAULT),
        grace: Some(duration(own.grace.or(given.grace).unwrap_or(STOP_GRACE_DEFAULT))),
    }
}

fn logs(own: &Logs, given: &Logs) -> v1::LogSpec {
    v1::LogSpec {
        max_size_bytes: own.max_size.or(given.max_size).unwrap_or(LOG_BYTES_DEFAULT),
        keep: own.keep.or(given.keep).unwrap_or(LOG_KEEP_DEFAULT),
    }
}

/// Restart figures of a component, its own before the defaults before the mesh's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) policy: Policy,
    pub(crate) first: Duration,
    pub(crate) base: Duration,
    pub(crate) factor: f64,
    pub(crate) max: Duration,
    pub(crate) jitter: f64,
    pub(crate) reset_after: Duration,
    pub(crate) budget_max: u32,
    pub(crate) budget_within: Duration,
}

impl Figures {
    pub(crate) fn of(own: &Restart, stack: &StackFile) -> Self {
        let given = &stack.defaults.restart;
        let budget = &stack.mesh.local_restarts;
        let pick = |of: fn(&Backoff) -> Option<Duration>, default| of(&own.backoff).or(of(&given.backoff)).unwrap_or(default);
        Self {
            policy: own.policy.or(given.policy).unwrap_or(Policy::OnFailure),
            first: pick(|b| b.first, BACKOFF_FIRST_DEFAULT),
            base: pick(|b| b.base, BACKOFF_BASE_DEFAULT),
            factor: own.backoff.factor.or(given.backoff.factor).unwrap_or(BACKOFF_FACTOR_DEFAULT),
            max: pick(|b| b.max, BACKOFF_MAX_DEFAULT),
            jitter: own.backoff.jitter.or(given.backoff.jitter).unwrap_or(BACKOFF_JITTER_DEFAULT),
            reset_after: own.reset_after.or(given.reset_after).unwrap_or(RESET_AFTER_DEFAULT),
            budget_max: own.max.or(given.max).or(budget.max).unwrap_or(BUDGET_MAX_DEFAULT),
            budget_within: own.within.or(given.within).or(budget.within).unwrap_or(BUDGET_WITHIN_DEFAULT),
        }
    }

    /// Delay before restart `n` in a row, from 1, without its random share.
    pub(crate) fn delay(&self, n: u32) -> Duration {
        if n <= 1 {
            return self.first.min(self.max);
        }
        let seconds = self.base.as_secs_f64() * self.factor.powi(i32::try_from(n - 2).unwrap_or(i32::MAX));
        // An overflow to infinity is simply more than the longest delay.
        if seconds < self.max.as_secs_f64() { Duration::from_secs_f64(seconds) } else { self.max }
    }
}

pub(crate) fn restart(own: &Restart, stack: &StackFile) -> v1::RestartSpec {
    let figures = Figures::of(own, stack);
    let policy = match figures.policy {
        Policy::Always => v1::RestartPolicy::Always,
        Policy::OnFailure => v1::RestartPolicy::OnFailure,
        Policy::Never => v1::RestartPolicy::Never,
    };
    v1::RestartSpec {
        policy: policy.into(),
        first: Some(duration(figures.first)),
        base: Some(duration(figures.base)),
        factor: figures.factor,
        max: Some(duration(figures.max)),
        jitter: figures.jitter,
        reset_after: Some(duration(figures.reset_after)),
        budget_max: figures.budget_max,
        budget_within: Some(duration(figures.budget_within)),
        endless: false,
    }
}

fn rung(rung: Rung) -> &'static str {
    match rung {
        Rung::Restart => "restart",
        Rung::ClearState => "clear_state",
        Rung::Dependencies => "dependencies",
        Rung::ChakraHook => "chakra_hook",
    }
}
