//! Degradations: told once, and told when they have passed. They end nothing.

use std::time::Duration;

use razar_bus_schema::{
    event::TOLD_AGAIN,
    ids::Instance,
    time,
    v1::{self, DegradedKind, event::Fact},
};

use super::{
    Node, Now,
    folding::Said,
    instance::{Degradation, Inst},
    probing::{self, Answer, Manner, Role},
};

/// A probe slower than this counts as degraded, unless the stack file says otherwise.
const SLOW_PROBE: Duration = Duration::from_millis(500);
/// Periods of the probe that is asked least, without a sign of it, after which a degradation has passed: one that comes and goes is not
/// told each second.
const QUIET_PERIODS: u32 = 3;

impl Node {
    /// How long an answer took, of one that was ready before.
    pub(super) fn note_pace(&mut self, id: &Instance, spec: &v1::ComponentSpec, said: &Said, now: Now) {
        let limit = time::duration_or(spec.slow_probe.as_ref(), SLOW_PROBE);
        let Some(inst) = self.instances.get(id) else { return };
        if said.answer != Answer::Passed {
            return;
        }
        if said.took > limit {
            let text = format!("a probe took {:.0?}, more than {limit:.0?}", said.took);
            self.degraded(id, DegradedKind::Slow, &text, now);
        } else if inst.degraded.as_ref().is_some_and(|d| d.kind == DegradedKind::Slow) {
            self.answered_well(id, &format!("a probe took {:.0?}", said.took), now);
        }
    }

    /// Tells a degradation once, until it has passed. A lesser kind adds nothing to what it is called already: two that alternate are one.
    pub(super) fn degraded(&mut self, id: &Instance, kind: DegradedKind, detail: &str, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        match inst.degraded.as_mut().filter(|known| known.kind >= kind) {
            Some(known) => known.seen_at = now.mono,
            None => self.become_degraded(id, kind, detail, now),
        }
    }

    /// Tells it whatever was told before.
    pub(super) fn become_degraded(&mut self, id: &Instance, kind: DegradedKind, detail: &str, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        let begun = Degradation { kind, detail: detail.to_owned(), seen_at: now.mono };
        let fact = begun.fact(false);
        (inst.degraded, inst.undegraded) = (Some(begun), None);
        self.tell(id, fact, "degraded", detail, now);
        self.dirty.insert(id.clone());
    }

    /// It answers badly, or not at all: whatever it was, that goes on.
    pub(super) fn answered_badly(&mut self, id: &Instance, now: Now) {
        if let Some(known) = self.instances.get_mut(id).and_then(|inst| inst.degraded.as_mut()) {
            known.seen_at = now.mono;
        }
    }

    /// An answer as it should be, of one that is degraded: with no sign of that for long enough, it has passed.
    pub(super) fn answered_well(&mut self, id: &Instance, detail: &str, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        let quiet = quiet(inst);
        let Some(passed) = inst.degraded.take_if(|d| now.mono >= d.seen_at + quiet) else { return };
        let passed = Degradation { detail: detail.to_owned(), ..passed };
        let fact = passed.fact(true);
        inst.undegraded = Some(passed);
        self.tell(id, fact, "degraded", detail, now);
        self.dirty.insert(id.clone());
    }

    /// The last agent may have died before it told what it remembered: what is told twice changes nothing.
    pub(super) fn tell_degraded_again(&mut self, id: &Instance, now: Now) {
        let Some(inst) = self.instances.get(id) else { return };
        let Some(memory) = degradation_of(inst) else { return };
        let why = "the node's last agent may not have told it";
        let event = self.draft(Some(id), Fact::ComponentDegraded(memory), TOLD_AGAIN, why, now);
        self.tells.push(event);
    }
}

impl Degradation {
    fn fact(&self, passed: bool) -> Fact {
        Fact::ComponentDegraded(self.to_wire(passed))
    }

    fn to_wire(&self, passed: bool) -> v1::ComponentDegraded {
        v1::ComponentDegraded { kind: self.kind.into(), detail: self.detail.clone(), passed }
    }
}

/// What was told last of its degradation, to be remembered.
pub(super) fn degradation_of(inst: &Inst) -> Option<v1::ComponentDegraded> {
    let (begun, passed) = (inst.degraded.as_ref(), inst.undegraded.as_ref());
    begun.map(|d| d.to_wire(false)).or_else(|| passed.map(|d| d.to_wire(true)))
}

/// What was remembered of it, for an incarnation that is taken over.
pub(super) fn recall(inst: &mut Inst, memory: &v1::ComponentDegraded, now: Duration) {
    let known = Degradation { kind: memory.kind(), detail: memory.detail.clone(), seen_at: now };
    *(if memory.passed { &mut inst.undegraded } else { &mut inst.degraded }) = Some(known);
}

/// Each of its probes is asked more than once in this time.
fn quiet(inst: &Inst) -> Duration {
    let Some(spec) = inst.spec() else { return Duration::ZERO };
    let pace = |probe: &v1::Probe, role| {
        let figures = probing::figures(probe, role);
        // The next question waits for the answer.
        figures.period.max(figures.timeout)
    };
    // What comes by itself is judged by its windows where it is a sign of life; that it is ready it says once.
    let readiness = spec.readiness.as_ref().filter(|probe| probing::manner(probe) != Manner::Told);
    let periods = [readiness.map(|probe| pace(probe, Role::Readiness)), spec.liveness.as_ref().map(|probe| pace(probe, Role::Liveness))];
    QUIET_PERIODS * periods.into_iter().flatten().max().unwrap_or_default()
}
