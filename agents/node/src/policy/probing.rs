//! When which probe of an incarnation is due, and what a row of answers means. Until first ready it is asked often, then at its period.
//! What an answer changes in the instance is decided in `super`; how a question is put is the shell's.

use std::time::Duration;

use razar_bus_schema::{
    time,
    v1::{self, probe::Check},
};

/// First delay between two questions while starting; it doubles up to the period in doubt.
const EARLY_FIRST: Duration = Duration::from_millis(1);
/// First delay for exec probes: each is a process of its own.
const EARLY_FIRST_EXEC: Duration = Duration::from_millis(50);
/// A refused connect costs microseconds, so the next comes after this share of the time already waited: ready is seen 1 % late at most.
const REFUSED_DIVISOR: u32 = 100;
/// An answer that says no costs more, so the next question comes after this share of the time already waited, once that is longer.
const FAILED_DIVISOR: u32 = 50;
/// As above for exec probes, each of which is a process.
const FAILED_DIVISOR_EXEC: u32 = 10;
/// Questions to those that are well come this share of their period early, to fall on one instant with those of others: a node that wakes for
/// each by itself spends more on waking than on asking.
const EARLY_DIVISOR: u32 = 10;
/// At most so early.
const EARLY_MAX: Duration = Duration::from_millis(100);
/// Periods below this would be a busy loop.
const PERIOD_MIN: Duration = Duration::from_millis(10);
/// Default period of startup and liveness, and of readiness while it is in doubt.
const PERIOD: Duration = Duration::from_secs(1);
/// Default period of readiness once it passes: that a component makes progress is liveness's to see, sooner than this.
const READINESS_PERIOD: Duration = Duration::from_secs(5);
/// Default timeout of readiness.
const READINESS_TIMEOUT: Duration = Duration::from_secs(5);
/// Default timeout of startup and liveness.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Default failures in a row that count.
const FAILURES: u32 = 3;
/// Time to come up when there is no startup probe: then the start slot is given on.
pub const STARTUP_LIMIT: Duration = Duration::from_secs(30);

/// Role of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Gives time to come up.
    Startup,
    /// Can it serve?
    Readiness,
    /// Does it make progress?
    Liveness,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Readiness, Self::Liveness];

    /// The probe of this role in `spec`.
    #[must_use]
    pub fn probe(self, spec: &v1::ComponentSpec) -> Option<&v1::Probe> {
        match self {
            Self::Startup => spec.startup.as_ref(),
            Self::Readiness => spec.readiness.as_ref(),
            Self::Liveness => spec.liveness.as_ref(),
        }
    }
}

/// Figures of a probe, with defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Time between two questions while the answer is yes.
    pub period: Duration,
    /// Time between two questions otherwise, and the longest before first ready.
    pub doubt: Duration,
    /// Time to answer.
    pub timeout: Duration,
    /// Failures in a row that count.
    pub failures: u32,
    /// Successes in a row that count.
    pub successes: u32,
    /// Wait before the first question.
    pub initial_delay: Duration,
    /// Each question is a process.
    pub exec: bool,
}

/// Figures of `probe` in `role`.
#[must_use]
pub fn figures(probe: &v1::Probe, role: Role) -> Figures {
    let timeout = if role == Role::Readiness { READINESS_TIMEOUT } else { TIMEOUT };
    let by_default = if role == Role::Readiness { READINESS_PERIOD } else { PERIOD };
    let mut period = time::duration_or(probe.period.as_ref(), by_default);
    let mut doubt = time::duration_or(probe.period.as_ref(), PERIOD);
    let mut timeout = time::duration_or(probe.timeout.as_ref(), timeout);
    let mut failures = if probe.failure_threshold == 0 { FAILURES } else { probe.failure_threshold };
    if let Some(Check::Heartbeat(beat)) = &probe.check {
        period = time::duration_or(beat.interval.as_ref(), PERIOD);
        doubt = period;
        timeout = period;
        failures = if beat.misses == 0 { FAILURES } else { beat.misses };
    }
    Figures {
        period: period.max(PERIOD_MIN),
        doubt: doubt.max(PERIOD_MIN),
        timeout: timeout.max(PERIOD_MIN),
        failures,
        successes: probe.success_threshold.max(1),
        initial_delay: time::duration_or(probe.initial_delay.as_ref(), Duration::ZERO),
        exec: matches!(probe.check, Some(Check::Exec(_))),
    }
}

/// The last instant at or before `at` that all probes of this period share.
fn shared(at: Duration, period: Duration) -> Duration {
    let step = (period / EARLY_DIVISOR).min(EARLY_MAX).as_nanos().max(1);
    let early = at.as_nanos() % step;
    at.saturating_sub(Duration::from_nanos(u64::try_from(early).unwrap_or(0)))
}

/// How the question of a probe is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// The node asks.
    Asked,
    /// The component says so by itself; a window without a sign is a failure of liveness.
    Told,
}

/// Manner of a probe.
#[must_use]
pub fn manner(probe: &v1::Probe) -> Manner {
    match &probe.check {
        Some(Check::Notify(_) | Check::Heartbeat(_) | Check::Log(_)) => Manner::Told,
        Some(Check::Http(_) | Check::Tcp(_) | Check::Exec(_) | Check::Grpc(_)) | None => Manner::Asked,
    }
}

/// A start that may take longer than a year may take for ever: sums with it stay in range.
const STARTUP_LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Longest time that a start may hold its slot: what the startup probe allows, else [`STARTUP_LIMIT`].
#[must_use]
pub fn startup_limit(spec: &v1::ComponentSpec) -> Duration {
    spec.startup.as_ref().map_or(STARTUP_LIMIT, |probe| {
        let f = figures(probe, Role::Startup);
        (f.initial_delay + f.period.saturating_mul(f.failures).min(STARTUP_LONGEST)).min(STARTUP_LONGEST)
    })
}

/// An answer to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// Nobody listens: a failure that costs nothing to repeat.
    Refused,
    /// Nobody could have heard an answer (the bus was away): neither for nor against.
    Void,
}

/// State of one role's probe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoleState {
    /// Next question not before; `None`: not asked in this phase.
    pub next_at: Option<Duration>,
    /// Put and not yet answered, since when.
    pub asked: Option<Duration>,
    /// Successes in a row.
    pub successes: u32,
    /// Failures in a row.
    pub failures: u32,
    /// Delay between questions while starting.
    early: Duration,
    /// Last sign that the component gave by itself.
    pub sign_at: Option<Duration>,
}

/// What a row of answers amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// Enough successes.
    Good,
    /// Enough failures.
    Bad,
    /// Neither yet.
    Open,
}

impl RoleState {
    /// Folds an answer to a question of `role`; `starting` while the instance was never ready.
    pub fn fold(&mut self, answer: Answer, figures: &Figures, starting: Option<Duration>, now: Duration) -> Row {
        let asked = self.asked.take().unwrap_or(now);
        match answer {
            Answer::Passed => {
                self.successes = self.successes.saturating_add(1);
                self.failures = 0;
            }
            Answer::Failed | Answer::Refused => {
                self.failures = self.failures.saturating_add(1);
                self.successes = 0;
            }
            Answer::Void => {}
        }
        let next = match (starting, answer) {
            (None, Answer::Passed) => shared(asked + figures.period, figures.period),
            (None, Answer::Failed | Answer::Refused | Answer::Void) => asked + figures.doubt,
            (Some(spawned), Answer::Refused) => {
                let waited = now.saturating_sub(spawned);
                now + (waited / REFUSED_DIVISOR).clamp(EARLY_FIRST, figures.doubt)
            }
            (Some(spawned), Answer::Passed | Answer::Failed | Answer::Void) => {
                let waited = now.saturating_sub(spawned);
                let share = if figures.exec { FAILED_DIVISOR_EXEC } else { FAILED_DIVISOR };
                let first = if figures.exec { EARLY_FIRST_EXEC } else { EARLY_FIRST };
                let delay = self.early.min((waited / share).max(first)).min(figures.doubt);
                self.early = self.early.saturating_mul(2);
                now + delay
            }
        };
        self.next_at = Some(next.max(now));
        if self.successes >= figures.successes {
            Row::Good
        } else if self.failures >= figures.failures {
            Row::Bad
        } else {
            Row::Open
        }
    }
}

/// Probes of one incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Probes {
    /// Startup.
    pub startup: RoleState,
    /// Readiness.
    pub readiness: RoleState,
    /// Liveness.
    pub liveness: RoleState,
    /// The startup probe has passed, or there is none.
    pub started_up: bool,
}

impl Probes {
    /// State of a role.
    pub fn role(&mut self, role: Role) -> &mut RoleState {
        match role {
            Role::Startup => &mut self.startup,
            Role::Readiness => &mut self.readiness,
            Role::Liveness => &mut self.liveness,
        }
    }

    /// State of a role, read only.
    #[must_use]
    pub fn view(&self, role: Role) -> &RoleState {
        match role {
            Role::Startup => &self.startup,
            Role::Readiness => &self.readiness,
            Role::Liveness => &self.liveness,
        }
    }

    /// A new incarnation of `spec` was spawned at `now`.
    #[must_use]
    pub fn begun(spec: &v1::ComponentSpec, now: Duration) -> Self {
        let mut probes = Self { started_up: spec.startup.is_none(), ..Self::default() };
        if spec.one_shot {
            probes.started_up = true;
            return probes;
        }
        let first = if probes.started_up { Role::Readiness } else { Role::Startup };
        probes.arm_early(spec, first, now);
        probes
    }

    /// The startup probe passed at `now`: readiness begins.
    pub fn start_passed(&mut self, spec: &v1::ComponentSpec, now: Duration) {
        self.started_up = true;
        self.startup = RoleState::default();
        self.arm_early(spec, Role::Readiness, now);
    }

    /// First ready at `now`: readiness goes on at its period, liveness begins.
    pub fn became_ready(&mut self, spec: &v1::ComponentSpec, now: Duration) {
        for role in [Role::Readiness, Role::Liveness] {
            let Some(probe) = role.probe(spec) else { continue };
            let told_once = role == Role::Readiness && matches!(probe.check, Some(Check::Notify(_) | Check::Log(_)));
            let f = figures(probe, role);
            // Readiness has had its wait before the first question of all.
            let not_before = now + if role == Role::Liveness { f.initial_delay } else { Duration::ZERO };
            let state = self.role(role);
            *state = RoleState { sign_at: state.sign_at, ..RoleState::default() };
            state.next_at = (!told_once).then_some(shared(now + f.period, f.period).max(not_before));
        }
    }

    fn arm_early(&mut self, spec: &v1::ComponentSpec, role: Role, now: Duration) {
        let Some(probe) = role.probe(spec) else { return };
        let exec = matches!(probe.check, Some(Check::Exec(_)));
        let early = if exec { EARLY_FIRST_EXEC } else { EARLY_FIRST };
        let asked = manner(probe) == Manner::Asked;
        let wait = figures(probe, role).initial_delay.max(if exec { Duration::ZERO } else { early });
        let state = self.role(role);
        *state = RoleState { early, next_at: asked.then_some(now + wait), sign_at: state.sign_at, ..RoleState::default() };
    }

    /// Earliest question that is due, over all roles that are not being answered.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        Role::ALL.iter().map(|r| self.view(*r)).filter(|s| s.asked.is_none()).filter_map(|s| s.next_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http() -> v1::Probe {
        v1::Probe { check: Some(Check::Http(v1::HttpCheck { port: 1, ..Default::default() })), ..Default::default() }
    }

    fn spec() -> v1::ComponentSpec {
        v1::ComponentSpec { readiness: Some(http()), liveness: Some(http()), ..Default::default() }
    }

    /// Faults 22 and 51: numbers that no stack file gives, from a record of anybody's.
    #[test]
    fn odd_numbers_of_a_record_give_a_limit_all_the_same() {
        let longest = Some(prost_types::Duration { seconds: i64::MAX, nanos: i32::MAX });
        let startup = v1::Probe { period: longest, initial_delay: longest, failure_threshold: u32::MAX, ..http() };
        let limit = startup_limit(&v1::ComponentSpec { startup: Some(startup), ..Default::default() });
        assert_eq!(Duration::from_secs(1) + limit, Duration::from_secs(1) + STARTUP_LONGEST);
    }

    /// Times of the questions, in ms, when every one is answered at once with `answer`.
    fn questions(answer: Answer, count: usize) -> Vec<u128> {
        let (spec, mut probes) = (spec(), Probes::begun(&spec(), Duration::ZERO));
        let f = figures(spec.readiness.as_ref().unwrap(), Role::Readiness);
        let mut at = Vec::new();
        for _ in 0..count {
            let now = probes.next_deadline().unwrap();
            at.push(now.as_millis());
            let state = probes.role(Role::Readiness);
            state.asked = Some(now);
            let _ = state.fold(answer, &f, Some(Duration::ZERO), now);
        }
        at
    }

    #[test]
    fn an_unready_answer_is_asked_again_within_a_fiftieth_of_its_start_up_to_the_period() {
        let at = questions(Answer::Failed, 700);
        for pair in at.windows(2) {
            assert!(pair[1] - pair[0] <= (2 + pair[0] / 49).min(1_000), "{pair:?}");
        }
        assert!(at[699] > 300_000, "it comes to rest at the period: {}", at[699]);
    }

    #[test]
    fn a_listener_is_seen_within_a_millisecond_or_a_hundredth_of_its_start() {
        let at = questions(Answer::Refused, 600);
        for pair in at.windows(2) {
            assert!(pair[1] - pair[0] <= 2.max(pair[0] / 50), "{pair:?}");
        }
        assert!(at[599] > 10_000, "600 questions reach beyond 10 s: {}", at[599]);
    }

    #[test]
    fn those_that_are_well_are_asked_at_shared_instants_and_a_tenth_early_at_most() {
        for period in [10, 100, 1_000, 5_000, 60_000].map(Duration::from_millis) {
            let f = Figures { period, ..figures(&http(), Role::Liveness) };
            let mut instants = std::collections::BTreeSet::new();
            for asked in (0..2_000).map(Duration::from_micros).map(|at| at * 997) {
                let mut state = RoleState { asked: Some(asked), ..Default::default() };
                let _ = state.fold(Answer::Passed, &f, None, asked);
                let next = state.next_at.unwrap();
                assert!(next <= asked + period && next >= asked + period - (period / 10).min(EARLY_MAX), "{asked:?} {next:?}");
                instants.insert(next);
            }
            let most = Duration::from_millis(2_000).as_nanos() / (period / 10).min(EARLY_MAX).as_nanos() + 2;
            assert!(instants.len() as u128 <= most, "{period:?}: {}", instants.len());
        }
    }

    #[test]
    fn readiness_is_asked_seldom_while_it_passes_and_often_while_in_doubt() {
        let own = v1::Probe { period: Some(time::duration(Duration::from_secs(3))), ..http() };
        for (probe, role, passing, doubt) in [
            (http(), Role::Readiness, 5, 1),
            (http(), Role::Liveness, 1, 1),
            (http(), Role::Startup, 1, 1),
            (own.clone(), Role::Readiness, 3, 3),
            (own, Role::Liveness, 3, 3),
        ] {
            let f = figures(&probe, role);
            let after = |answer| {
                let mut state = RoleState { asked: Some(Duration::ZERO), ..Default::default() };
                let _ = state.fold(answer, &f, None, Duration::ZERO);
                state.next_at.unwrap().as_secs()
            };
            let (passed, failed) = (after(Answer::Passed), [Answer::Failed, Answer::Refused, Answer::Void].map(after));
            assert_eq!((passed, failed), (passing, [doubt; 3]), "{role:?}");
        }
        let mut probes = Probes::begun(&spec(), Duration::ZERO);
        probes.became_ready(&spec(), Duration::ZERO);
        assert_eq!((probes.readiness.next_at, probes.liveness.next_at), (Some(READINESS_PERIOD), Some(PERIOD)));
    }

    #[test]
    fn liveness_is_not_asked_before_first_ready() {
        let mut probes = Probes::begun(&spec(), Duration::ZERO);
        assert_eq!(probes.liveness.next_at, None);
        probes.became_ready(&spec(), Duration::from_secs(5));
        assert_eq!(probes.liveness.next_at, Some(Duration::from_secs(6)));
    }

    #[test]
    fn a_late_answer_is_followed_at_once_and_an_early_one_at_the_period() {
        let f = figures(&http(), Role::Liveness);
        for (took, next) in [(200, 1_000), (1_000, 1_000), (1_500, 1_500)] {
            let mut state = RoleState { asked: Some(Duration::ZERO), ..Default::default() };
            let _ = state.fold(Answer::Failed, &f, None, Duration::from_millis(took));
            assert_eq!(state.next_at, Some(Duration::from_millis(next)));
        }
    }
}
