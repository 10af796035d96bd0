//! Simulated processes: each draws its fate when it is born (how long it takes to be ready, whether it dies, hangs, lies, ignores signals),
//! answers probes accordingly, and shows the kernel's view that goes with it.

use std::time::Duration;

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1::{self, probe::Check},
};
use razar_node::policy::{
    evidence::{Sample, Task, Window},
    probing::{Answer, Role},
};

use super::{
    faults::{Fault, Faults},
    random::Rng,
};

/// How a process that does not answer looks to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hang {
    /// SIGSTOP.
    Stopped,
    /// Waits for something for ever.
    Asleep,
    /// Spins.
    Busy,
    /// Waits for the disk.
    Disk,
    /// Wants to run and does not get the CPU: healthy.
    Starved,
    /// A debugger holds it: healthy.
    Traced,
}

/// What will become of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fate {
    /// From birth to serving; a one-shot's whole life.
    pub ready_after: Duration,
    /// It dies by itself.
    pub dies: Option<(Duration, i32)>,
    /// It dies so long after its birth of what ails its component, and would whenever it was born.
    pub fails: Option<Duration>,
    /// It dies when what it needs does not serve.
    pub leans: bool,
    /// It hangs, and may come back by itself.
    pub hangs: Option<(Duration, Hang, Option<Duration>)>,
    /// It ignores the polite signal.
    pub deaf: bool,
    /// From SIGKILL to death.
    pub kill_takes: Duration,
    /// It says ready at once and is not.
    pub liar: bool,
    /// From the polite signal to death.
    pub stop_takes: Duration,
}

impl Fate {
    /// A fate; without faults a good one.
    pub fn random(rng: &mut Rng, spec: &v1::ComponentSpec, faults: &Faults) -> Self {
        let mut fate = Self {
            ready_after: rng.millis(2, 3_000),
            dies: None,
            fails: None,
            leans: false,
            hangs: None,
            deaf: false,
            kill_takes: rng.millis(0, 5),
            liar: false,
            stop_takes: rng.millis(1, 400),
        };
        if faults.on(Fault::BootCrash) && rng.per_mille(120) {
            fate.dies = Some((rng.millis(0, 1_500), 1 + i32::try_from(rng.below(3)).unwrap_or(0)));
        } else if faults.on(Fault::Crash) && rng.per_mille(250) {
            let code = *rng.pick(&[0, 1, 1, 137]);
            fate.dies = Some((rng.millis(500, 60_000), code));
        }
        if spec.one_shot {
            return fate;
        }
        if faults.on(Fault::SlowStart) && rng.per_mille(60) {
            fate.ready_after = rng.millis(5_000, 45_000);
        }
        if faults.on(Fault::Hang) && rng.per_mille(250) {
            let kind = *rng.pick(&[Hang::Stopped, Hang::Asleep, Hang::Busy, Hang::Disk, Hang::Starved, Hang::Traced]);
            let back = rng.per_mille(400).then(|| rng.millis(200, 20_000));
            fate.hangs = Some((fate.ready_after + rng.millis(100, 60_000), kind, back));
        }
        fate.deaf = faults.on(Fault::DeafToTerm) && rng.per_mille(120);
        fate.liar = faults.on(Fault::Liar) && rng.per_mille(60);
        if fate.liar && rng.per_mille(500) {
            fate.dies = Some((rng.millis(200, 6_000), 1));
        }
        if faults.on(Fault::Unkillable) && rng.per_mille(30) {
            fate.kill_takes = rng.millis(1_000, 30_000);
        }
        // A hang that nothing asks about stays unseen: that is what a component without a liveness probe gets.
        if spec.liveness.is_none() {
            fate.hangs = None;
        }
        fate
    }
}

/// A living process.
#[derive(Debug, Clone)]
pub struct Proc {
    /// Its pid.
    pub pid: u32,
    /// Instance that its tag names.
    pub instance: Instance,
    /// Incarnation that its tag names.
    pub incarnation: Incarnation,
    /// Node epoch that its tag names.
    pub node_epoch: String,
    /// Specification that it runs by.
    pub spec: v1::ComponentSpec,
    /// When it was born, true time.
    pub born: Duration,
    /// Its fate.
    pub fate: Fate,
    /// Not answering at this moment.
    pub hang: Option<Hang>,
    /// Got SIGKILL.
    pub killed: bool,
    /// Got the polite signal.
    pub signalled: bool,
}

impl Proc {
    /// Whether it serves at `now`, as far as it is concerned.
    #[must_use]
    pub fn serves(&self, now: Duration) -> bool {
        now >= self.born + self.fate.ready_after && !self.spec.one_shot
    }

    /// What a probe gets that is answered at `now`: `None`: no answer until the timeout.
    #[must_use]
    pub fn answer(&self, role: Role, now: Duration) -> Option<Answer> {
        if self.hang.is_some() {
            return None;
        }
        if self.serves(now) || (self.fate.liar && role == Role::Readiness) {
            return Some(Answer::Passed);
        }
        Some(if self.pid.is_multiple_of(2) { Answer::Refused } else { Answer::Failed })
    }

    /// Whether it gives this role's sign by itself.
    #[must_use]
    pub fn tells(&self, role: Role) -> bool {
        is_told(&self.spec, role)
    }
}

/// What a failed window of this process looks like.
#[must_use]
pub fn window(hang: Option<Hang>, timeout: Duration, lasted: Duration, base_ns: u64) -> Window {
    let nanos = |share: f64| {
        let whole = lasted.as_secs_f64() * share * 1e9;
        Duration::from_secs_f64(whole / 1e9).as_nanos().try_into().unwrap_or(u64::MAX)
    };
    let (state, run, delay): (char, u64, u64) = match hang {
        Some(Hang::Stopped) => ('T', 0, 0),
        Some(Hang::Asleep) | None => ('S', 0, 0),
        Some(Hang::Busy) => ('R', nanos(0.9), nanos(0.05)),
        Some(Hang::Disk) => ('D', 0, 0),
        Some(Hang::Starved) if base_ns.is_multiple_of(2) => ('R', 0, 0),
        Some(Hang::Starved) => ('R', nanos(0.02), nanos(0.9)),
        Some(Hang::Traced) => ('t', 0, 0),
    };
    let task = |run_ns, delay_ns| Task { tid: 1, state, run_ns, delay_ns };
    let traced = hang == Some(Hang::Traced);
    Window {
        before: Sample { tasks: vec![task(base_ns, base_ns)], traced },
        after: Sample { tasks: vec![task(base_ns + run, base_ns + delay)], traced },
        timeout,
        lasted,
    }
}

/// Whether a role's probe counts what the component says by itself.
#[must_use]
pub fn is_told(spec: &v1::ComponentSpec, role: Role) -> bool {
    matches!(role.probe(spec).and_then(|p| p.check.as_ref()), Some(Check::Notify(_) | Check::Heartbeat(_)))
}
