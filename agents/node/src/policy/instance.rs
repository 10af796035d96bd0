//! One instance as its node keeps it, and the declared machine that its state moves along.
//! Why it moves is decided in `super`; here is only what may follow what, and the durable memory of it.

use std::{sync::Arc, time::Duration};

use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance},
    v1::{self, InstanceState as State},
};

use super::{Group, evidence::HangRow, hooks::HookKey, probing::Probes, restart::Budget};

/// What is wanted of an instance, from the newest record that is not void.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The record.
    pub desired: Arc<v1::Desired>,
    /// Its specification.
    pub spec: Arc<v1::ComponentSpec>,
    /// Who wrote it.
    pub writer: String,
    /// Why.
    pub reason: String,
    /// Trace that its effects continue.
    pub trace: Option<v1::TraceContext>,
    /// When it was received, monotonic.
    pub received: Duration,
    /// Bucket epoch and revision, empty and 0 for the compiled-in plan.
    pub place: Place,
    /// Which of the node's two plans it belongs to.
    pub group: Group,
    /// The record names another node: a copy here is to be stopped.
    pub elsewhere: bool,
}

/// Where a record stands in the order of the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Bucket epoch.
    pub epoch: String,
    /// Revision inside it.
    pub revision: u64,
}

/// An incident that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenIncident {
    /// Its id.
    pub id: Incident,
    /// When the first failure happened, monotonic.
    pub since: Duration,
    /// Starts spent on it.
    pub starts: u32,
    /// What failed first, for people.
    pub cause: String,
}

/// A stop under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// What was put aside (`desired`, `replaced`, …), as `component_stopped` says it.
    pub why: &'static str,
    /// First signal sent, monotonic.
    pub since: Duration,
    /// SIGKILL sent, monotonic.
    pub killed: Option<Duration>,
    /// Told as unkillable.
    pub unkillable: bool,
}

/// One instance.
#[derive(Debug, Clone)]
pub struct Inst {
    /// Its name.
    pub id: Instance,
    /// What is wanted of it; `None` while only its memory is known.
    pub wanted: Option<Wanted>,
    /// State.
    pub state: State,
    /// Since when, monotonic.
    pub since: Duration,
    /// Why it is in this state.
    pub reason: String,
    /// Newest incarnation.
    pub incarnation: Incarnation,
    /// Highest incarnation that may have been used, at or above the newest: numbers are skipped after an unclean end, and a newer
    /// generation may be remembered before the life that it replaces has ended.
    pub used: Incarnation,
    /// Its process while one lives.
    pub process: Option<v1::ProcessIdentity>,
    /// Specification that the newest incarnation was started with.
    pub started_spec: Option<Arc<v1::ComponentSpec>>,
    /// Hash of that specification.
    pub started_hash: String,
    /// Dependencies' incarnations at its start.
    pub dependencies: Vec<(Instance, Incarnation)>,
    /// Spawned when, monotonic.
    pub spawned_at: Duration,
    /// Ready since when, while ready.
    pub ready_since: Option<Duration>,
    /// Time that this incarnation has been ready, up to `ready_since`.
    pub ready_before: Duration,
    /// It was ready in this incarnation.
    pub was_ready: bool,
    /// Wanted to start since when.
    pub waiting_since: Duration,
    /// Startable but without a slot since when.
    pub queued_since: Option<Duration>,
    /// Holds a start slot.
    pub slot: bool,
    /// Probes of the living incarnation.
    pub probes: Probes,
    /// Row of failed windows of the living incarnation.
    pub hang: HangRow,
    /// It does not beat and hangs by the kernel's view: what the watchdog is told when it asks.
    pub suspect: Option<v1::HangEvidence>,
    /// Local budget.
    pub budget: Budget,
    /// Next start not before.
    pub backoff_until: Duration,
    /// Delay that the next start waited for.
    pub delay: Duration,
    /// Stop under way.
    pub stop: Option<Stop>,
    /// Open incident.
    pub incident: Option<OpenIncident>,
    /// Signs of life that the newest incarnation gave after failures.
    pub signs_of_life: u64,
    /// The newest incarnation was started by a rung: no local restarts until recovered.
    pub by_rung: bool,
    /// Specification hash and generation with which a one-shot completed.
    pub completed: Option<(String, u64)>,
    /// Highest place acted on.
    pub fence: Place,
    /// Highest generation persisted.
    pub generation: u64,
    /// How the last incarnation ended.
    pub last_exit: Option<v1::ExitStatus>,
    /// Last line of its error output.
    pub last_error: String,
    /// Why it was given up last.
    pub failed_cause: String,
    /// It runs as it is to run, and nothing about it was changed since that was looked at: only its probes fall due.
    pub calm: bool,
    /// Blockers told last.
    pub blocked_told: Vec<v1::Blocker>,
    /// The last agent of the node noted them, and may have died before it told them.
    pub blocked_unsure: bool,
    /// Condition of a dependency lost since, for living instances.
    pub blocked_since: Option<Duration>,
    /// Degradation told and not taken back.
    pub degraded: Option<Degradation>,
    /// The last one that has passed, of this life.
    pub undegraded: Option<Degradation>,
    /// Escalated past the budget (system plan).
    pub escalated: bool,
    /// Recovery order that was carried out or found void: (incident, attempt, void).
    pub order_settled: Option<(Incident, u32)>,
    /// The order that the next start carries out.
    pub order_running: Option<(Incident, u32)>,
    /// The hook that the next start waits for.
    pub hook: Option<HookKey>,
    /// The log was told slow in starting.
    pub slow_start_told: bool,
    /// Memory as last written to the journal.
    pub remembered: Option<v1::InstanceMemory>,
}

/// How a living incarnation is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degradation {
    /// Kind.
    pub kind: v1::DegradedKind,
    /// What was told of it.
    pub detail: String,
    /// Last seen when, monotonic.
    pub seen_at: Duration,
}

impl Inst {
    /// An instance of which nothing is known yet.
    #[must_use]
    pub fn new(id: Instance, now: Duration) -> Self {
        Self {
            id,
            wanted: None,
            state: State::Waiting,
            since: now,
            reason: "known, not yet wanted".to_owned(),
            incarnation: Incarnation::default(),
            used: Incarnation::default(),
            process: None,
            started_spec: None,
            started_hash: String::new(),
            dependencies: Vec::new(),
            spawned_at: Duration::ZERO,
            ready_since: None,
            ready_before: Duration::ZERO,
            was_ready: false,
            waiting_since: now,
            queued_since: None,
            slot: false,
            probes: Probes::default(),
            hang: HangRow::default(),
            suspect: None,
            budget: Budget::default(),
            backoff_until: Duration::ZERO,
            delay: Duration::ZERO,
            stop: None,
            incident: None,
            signs_of_life: 0,
            by_rung: false,
            completed: None,
            fence: Place::default(),
            generation: 0,
            last_exit: None,
            last_error: String::new(),
            failed_cause: String::new(),
            blocked_told: Vec::new(),
            blocked_unsure: false,
            blocked_since: None,
            degraded: None,
            undegraded: None,
            escalated: false,
            order_settled: None,
            order_running: None,
            hook: None,
            slow_start_told: false,
            calm: false,
            remembered: None,
        }
    }

    /// Whether a process of it lives.
    #[must_use]
    pub fn lives(&self) -> bool {
        is_living(self.state)
    }

    /// Whether it is a one-shot that ran already with the wanted specification, and is not asked to run again.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let (Some(wanted), Some((hash, generation))) = (&self.wanted, &self.completed) else { return false };
        let fresh = wanted.desired.fresh && *generation < wanted.desired.generation;
        wanted.spec.one_shot && *hash == wanted.desired.spec_hash && !fresh
    }

    /// Specification of the living incarnation, else the wanted one.
    #[must_use]
    pub fn spec(&self) -> Option<&Arc<v1::ComponentSpec>> {
        let wanted = self.wanted.as_ref().map(|w| &w.spec);
        if self.lives() { self.started_spec.as_ref().or(wanted) } else { wanted }
    }

    /// Plan that it belongs to.
    #[must_use]
    pub fn group(&self) -> Group {
        self.wanted.as_ref().map_or(Group::User, |w| w.group)
    }

    /// Rank in its plan.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.wanted.as_ref().map_or(u32::MAX, |w| w.desired.rank)
    }

    /// Time that the newest incarnation has been ready in all.
    #[must_use]
    pub fn ready_for(&self, now: Duration) -> Duration {
        self.ready_before + self.ready_since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }
}

/// Whether a process exists in this state.
#[must_use]
pub fn is_living(state: State) -> bool {
    matches!(state, State::Starting | State::Ready | State::Unready | State::Stopping)
}

/// The declared machine: whether `to` may follow `from`.
#[must_use]
pub fn may_follow(from: State, to: State) -> bool {
    use State::{
        Backoff, Completed, Exited, Failed, Preparing, Probation, Quarantined, Ready, Starting, Stopped, Stopping, Unready, Waiting,
    };
    match from {
        State::Unspecified => false,
        Waiting => matches!(to, Preparing | Starting | Stopped | Quarantined | Completed),
        Preparing => matches!(to, Starting | Waiting | Exited | Stopped | Quarantined),
        Starting => matches!(to, Ready | Exited | Stopping | Completed),
        Ready => matches!(to, Unready | Exited | Stopping),
        Unready => matches!(to, Ready | Exited | Stopping),
        Stopping => matches!(to, Stopped | Waiting | Quarantined),
        Stopped => matches!(to, Waiting | Quarantined),
        Exited => matches!(to, Backoff | Starting | Waiting | Failed | Stopped | Quarantined),
        Backoff => matches!(to, Starting | Waiting | Stopped | Quarantined),
        Failed => matches!(to, Waiting | Stopped | Quarantined),
        Completed => matches!(to, Waiting | Stopped | Quarantined),
        Quarantined => matches!(to, Probation | Stopped),
        Probation => matches!(to, Waiting | Stopped | Quarantined),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [State; 14] = [
        State::Unspecified,
        State::Waiting,
        State::Preparing,
        State::Starting,
        State::Ready,
        State::Unready,
        State::Stopping,
        State::Stopped,
        State::Exited,
        State::Backoff,
        State::Failed,
        State::Completed,
        State::Quarantined,
        State::Probation,
    ];

    #[test]
    fn the_machine_is_the_declared_one() {
        let table: Vec<String> = ALL
            .iter()
            .map(|from| {
                let to: Vec<_> = ALL.iter().filter(|to| may_follow(*from, **to)).map(|to| format!("{to:?}")).collect();
                format!("{from:?} -> {}", to.join(" "))
            })
            .collect();
        assert_eq!(
            table,
            [
                "Unspecified -> ",
                "Waiting -> Preparing Starting Stopped Completed Quarantined",
                "Preparing -> Waiting Starting Stopped Exited Quarantined",
                "Starting -> Ready Stopping Exited Completed",
                "Ready -> Unready Stopping Exited",
                "Unready -> Ready Stopping Exited",
                "Stopping -> Waiting Stopped Quarantined",
                "Stopped -> Waiting Quarantined",
                "Exited -> Waiting Starting Stopped Backoff Failed Quarantined",
                "Backoff -> Waiting Starting Stopped Quarantined",
                "Failed -> Waiting Stopped Quarantined",
                "Completed -> Waiting Stopped Quarantined",
                "Quarantined -> Stopped Probation",
                "Probation -> Waiting Stopped Quarantined",
            ]
        );
    }

    #[test]
    fn nothing_that_lives_is_started_and_nothing_quarantined_starts_without_probation() {
        for from in ALL {
            assert!(!(is_living(from) && may_follow(from, State::Starting)), "{from:?}");
        }
        assert!(!may_follow(State::Quarantined, State::Starting));
        assert!(!may_follow(State::Failed, State::Starting), "failed goes through waiting, by a cause that is listed");
    }
}
