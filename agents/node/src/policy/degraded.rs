//! Degradations: told once, and told when they have passed. They end nothing.

use std::time::Duration;

use razar_bus_schema::{
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

    /// Tells a degradation once, until it has passed. Of two kinds the one that was seen last stands for both.
    pub(super) fn degraded(&mut self, id: &Instance, kind: DegradedKind, detail: &str, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        if let Some(known) = inst.degraded.as_mut().filter(|d| d.kind == kind) {
            known.seen_at = now.mono;
            return;
        }
        inst.degraded = Some(Degradation { kind, detail: detail.to_owned(), seen_at: now.mono });
        let fact = Fact::ComponentDegraded(v1::ComponentDegraded { kind: kind.into(), detail: detail.to_owned(), passed: false });
        self.tell(id, fact, "degraded", detail, now);
        self.dirty.insert(id.clone());
    }

    /// An answer as it should be, of one that is degraded: with no sign of that for long enough, it has passed.
    pub(super) fn answered_well(&mut self, id: &Instance, detail: &str, now: Now) {
        let Some(inst) = self.instances.get_mut(id) else { return };
        let quiet = quiet(inst);
        let Some(passed) = inst.degraded.take_if(|d| now.mono >= d.seen_at + quiet) else { return };
        let fact = Fact::ComponentDegraded(v1::ComponentDegraded { kind: passed.kind.into(), detail: detail.to_owned(), passed: true });
        self.tell(id, fact, "degraded", detail, now);
        self.dirty.insert(id.clone());
    }
}

/// Each of its probes is asked more than once in this time.
fn quiet(inst: &Inst) -> Duration {
    let Some(spec) = inst.spec() else { return Duration::ZERO };
    let asked = [Role::Readiness, Role::Liveness].into_iter().filter_map(|role| Some((role, role.probe(spec)?)));
    let periods =
        asked.filter(|(_, probe)| probing::manner(probe) != Manner::Told).map(|(role, probe)| probing::figures(probe, role).period);
    // What comes by itself is judged by its windows, each of a period of liveness.
    let windows = spec.liveness.iter().map(|probe| probing::figures(probe, Role::Liveness).period);
    QUIET_PERIODS * periods.chain(windows).max().unwrap_or_default()
}
