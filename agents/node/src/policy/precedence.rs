//! The precedence of `flows.md` as one pure function: eight rules, the first match wins. `razar why` prints what it says.
//! It decides what an instance should be; how its node gets there is decided in `super`.

use std::time::Duration;

use razar_bus_schema::{
    ids::Instance,
    time,
    v1::{self, DependencyCondition as Condition, InstanceState as State, QuarantinePhase as Phase, RunMode},
};

use super::{Node, instance::Inst};

/// What an instance should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wanted of it.
    Unwanted,
    /// Rule 1.
    Quarantined,
    /// Rule 2, with what `component_stopped` says.
    Stop(&'static str),
    /// Rule 3: until then.
    Held {
        /// Component whose recovery holds it.
        by: String,
        /// End of the hold, monotonic.
        until: Duration,
    },
    /// Rule 4.
    Blocked(Vec<v1::Blocker>),
    /// Rule 5.
    NotWanted,
    /// Rule 6.
    NoGrant,
    /// Rule 7.
    Replace(Cause),
    /// Rule 8.
    Run,
}

/// Why the living or last incarnation is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A rung of the ladder.
    Rung,
    /// A dependency with `restart: true` is another incarnation.
    Dependency(String),
    /// The orchestrator raised the generation.
    Generation,
}

impl Verdict {
    /// Number of the rule.
    #[must_use]
    pub fn rule(&self) -> u32 {
        match self {
            Self::Unwanted => 0,
            Self::Quarantined => 1,
            Self::Stop(_) => 2,
            Self::Held { .. } => 3,
            Self::Blocked(_) => 4,
            Self::NotWanted => 5,
            Self::NoGrant => 6,
            Self::Replace(_) => 7,
            Self::Run => 8,
        }
    }
}

impl Node {
    /// What `inst` should be at `now`.
    #[must_use]
    pub fn verdict(&self, inst: &Inst, now: Duration) -> Verdict {
        let Some(wanted) = &inst.wanted else { return Verdict::Unwanted };
        if self.quarantine_of(&inst.id).is_some_and(|(q, _)| isolates(q.phase())) {
            return Verdict::Quarantined;
        }
        if self.shutting_down(inst) {
            return Verdict::Stop("shutdown");
        }
        if wanted.elsewhere {
            return Verdict::Stop("moved");
        }
        if wanted.desired.mode() == RunMode::Stop {
            return Verdict::Stop("desired");
        }
        if let Some((by, until)) = self.hold_on(inst, now) {
            return Verdict::Held { by, until };
        }
        let blockers = self.blockers(&wanted.spec, &inst.id, now);
        if !blockers.is_empty() {
            return Verdict::Blocked(blockers);
        }
        if wanted.desired.mode() == RunMode::OnDemand && !self.is_loaded(&inst.id.component) {
            return Verdict::NotWanted;
        }
        if let Some(cause) = self.replacement(inst) {
            return Verdict::Replace(cause);
        }
        Verdict::Run
    }

    /// Dependencies of `spec` whose condition does not hold.
    #[must_use]
    pub fn blockers(&self, spec: &v1::ComponentSpec, id: &Instance, now: Duration) -> Vec<v1::Blocker> {
        let _ = now;
        spec.depends_on.iter().filter(|d| d.component != id.component).filter_map(|d| self.blocker(d)).collect()
    }

    fn blocker(&self, dependency: &v1::Dependency) -> Option<v1::Blocker> {
        let condition = dependency.condition();
        let mut seen = false;
        for inst in self.replicas(&dependency.component) {
            if !inst.wanted.as_ref().is_some_and(|w| !w.elsewhere && w.desired.mode() != RunMode::Stop) {
                continue;
            }
            seen = true;
            // One that was stopped in order to be started again is not out.
            let out = is_out(inst.state) && !(inst.state == State::Stopped && is_to_run(inst));
            if holds(condition, inst) || (!dependency.required && out) {
                continue;
            }
            return Some(blocker(dependency, state_name(inst.state)));
        }
        if seen || !dependency.required {
            return None;
        }
        let known = self.replicas(&dependency.component).next().map_or("absent", |i| state_name(i.state));
        Some(blocker(dependency, known))
    }

    fn replacement(&self, inst: &Inst) -> Option<Cause> {
        if self.running_order(inst).is_some() {
            return Some(Cause::Rung);
        }
        let wanted = inst.wanted.as_ref()?;
        if inst.lives() && inst.incarnation.generation < wanted.desired.generation {
            return Some(Cause::Generation);
        }
        if !inst.lives() {
            return None;
        }
        let spec = inst.spec()?;
        let changed = spec.depends_on.iter().filter(|d| d.restart).find(|d| {
            self.replicas(&d.component).any(|now| {
                let then = inst.dependencies.iter().find(|(i, _)| *i == now.id);
                // A one-shot that is done in a newer generation without running has no newer life.
                let lived = now.incarnation.start > 0;
                lived && holds(d.condition(), now) && then.is_some_and(|(_, then)| *then != now.incarnation)
            })
        });
        changed.map(|d| Cause::Dependency(d.component.clone()))
    }

    /// The table that `razar why` prints: all eight lines, the winner marked.
    #[must_use]
    pub fn table(&self, inst: &Inst, now: Duration) -> Vec<v1::WhyLine> {
        let verdict = self.verdict(inst, now);
        let won = verdict.rule();
        (1..=8).map(|rule| self.line(inst, &verdict, rule, rule == won, now)).collect()
    }

    fn line(&self, inst: &Inst, verdict: &Verdict, rule: u32, won: bool, now: Duration) -> v1::WhyLine {
        let wanted = inst.wanted.as_ref();
        let age_of = |at: Option<Duration>| at.map(|at| time::duration(now.saturating_sub(at)));
        let own = format!("node {}", self.config.node);
        let (name, says, writer, age, reason) = match rule {
            1 => {
                let record = self.quarantine_of(&inst.id);
                let reason = record.map_or_else(|| "-".to_owned(), |(q, r)| format!("{}: {r}", phase_name(q.phase())));
                ("quarantined", "stop", "quarantine".to_owned(), None, reason)
            }
            2 => {
                let reason = if *verdict == Verdict::Stop("shutdown") {
                    "the node shuts down".to_owned()
                } else {
                    wanted.map_or_else(|| "nothing is wanted of it".to_owned(), |w| w.reason.clone())
                };
                let writer = wanted.map_or_else(|| "orchestrator".to_owned(), |w| w.writer.clone());
                ("desired stop", "stop", writer, age_of(wanted.map(|w| w.received)), reason)
            }
            3 => {
                let hold = self.hold_on(inst, now);
                let reason =
                    hold.map_or_else(|| "-".to_owned(), |(by, until)| format!("held by {by} for {:.1?} more", until.saturating_sub(now)));
                ("held", "wait", "recovery".to_owned(), None, reason)
            }
            4 => {
                let by = wanted.map(|w| self.blockers(&w.spec, &inst.id, now)).unwrap_or_default();
                let reason = if by.is_empty() { "-".to_owned() } else { by.iter().map(sentence).collect::<Vec<_>>().join("; ") };
                ("dependency unmet", "wait", own, age_of(Some(inst.since)), reason)
            }
            5 => {
                let on_demand = wanted.is_some_and(|w| w.desired.mode() == RunMode::OnDemand);
                ("not wanted", "stop", "lazy-loader".to_owned(), None, if on_demand { "on demand" } else { "not on demand" }.to_owned())
            }
            6 => ("no grant", "wait", "gpu".to_owned(), None, "asks for none".to_owned()),
            7 => {
                let reason = match self.replacement(inst) {
                    None => "-".to_owned(),
                    Some(Cause::Rung) => "a rung of the ladder".to_owned(),
                    Some(Cause::Dependency(name)) => format!("{name} is another incarnation"),
                    Some(Cause::Generation) => "a newer generation is desired".to_owned(),
                };
                ("replace", "replace", "recovery".to_owned(), None, reason)
            }
            _ => ("else run", "run", own, age_of(Some(inst.since)), self.run_reason(inst, now)),
        };
        let name = if rule == 7 { format!("{name} {}", inst.incarnation) } else { name.to_owned() };
        let says = if won || rule == 8 { says } else { "no" };
        v1::WhyLine { rule, name, says: says.to_owned(), writer, age, reason, won }
    }

    fn run_reason(&self, inst: &Inst, now: Duration) -> String {
        let Some(wanted) = &inst.wanted else { return "-".to_owned() };
        let limits = super::restart::Limits::of(&wanted.spec);
        let policy = match limits.policy {
            v1::RestartPolicy::Always => "always",
            v1::RestartPolicy::Never => "never",
            v1::RestartPolicy::OnFailure | v1::RestartPolicy::Unspecified => "on-failure",
        };
        format!("{policy}, {} of {} restarts used", inst.budget.spent(&limits, now), limits.max)
    }
}

/// Whether a quarantine in this phase keeps its object stopped; an unknown phase does.
#[must_use]
pub fn isolates(phase: Phase) -> bool {
    matches!(phase, Phase::Isolated | Phase::Unspecified)
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Isolated | Phase::Unspecified => "isolated",
        Phase::Probation => "on probation",
        Phase::Released => "released",
    }
}

/// Whether `condition` holds of a dependency's instance.
#[must_use]
pub fn holds(condition: Condition, inst: &Inst) -> bool {
    match condition {
        // A start that is decided on may still fail: there is a process once one was made.
        Condition::Started => inst.process.is_some() && inst.state != State::Stopping || inst.state == State::Completed,
        Condition::Ready | Condition::Unspecified => matches!(inst.state, State::Ready | State::Completed),
        Condition::Completed => inst.state == State::Completed,
    }
}

/// An instance that nobody who can do without waits for.
fn is_out(state: State) -> bool {
    matches!(state, State::Failed | State::Quarantined | State::Stopped)
}

/// Whether its record wants it to run, whoever asks for it.
fn is_to_run(inst: &Inst) -> bool {
    inst.wanted.as_ref().is_some_and(|w| w.desired.mode() == RunMode::Run)
}

/// Name of a state, for people.
#[must_use]
pub fn state_name(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::Waiting => "waiting",
        State::Preparing => "preparing",
        State::Starting => "starting",
        State::Ready => "ready",
        State::Unready => "unready",
        State::Stopping => "stopping",
        State::Stopped => "stopped",
        State::Exited => "exited",
        State::Backoff => "in backoff",
        State::Failed => "failed",
        State::Completed => "completed",
        State::Quarantined => "quarantined",
        State::Probation => "on probation",
    }
}

fn blocker(dependency: &v1::Dependency, is: &str) -> v1::Blocker {
    let needs = match dependency.condition() {
        Condition::Started => "started",
        Condition::Ready | Condition::Unspecified => "ready",
        Condition::Completed => "completed",
    };
    v1::Blocker { component: dependency.component.clone(), needs: needs.to_owned(), is: is.to_owned() }
}

/// A blocker as a sentence: `memory-store is starting, must be ready`.
#[must_use]
pub fn sentence(b: &v1::Blocker) -> String {
    format!("{} is {}, must be {}", b.component, b.is, b.needs)
}
