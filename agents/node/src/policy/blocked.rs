//! Who is said to be blocked, by whom, and that nobody blocks it any more.

use std::time::Duration;

use razar_bus_schema::{
    ids::Instance,
    v1::{self, InstanceState as State, event::Fact},
};

use super::{
    Node, Now,
    instance::Inst,
    moves::is_newer,
    precedence::{Verdict, sentence},
};

/// A living component is called blocked only when its dependency is away for longer: a local restart is no news.
pub(super) const BLOCKED_TOLD_AFTER: Duration = Duration::from_secs(1);

impl Node {
    /// Says once who blocks, and once that nobody does any more.
    pub(super) fn tell_blocked(&mut self, id: &Instance, verdict: &Verdict, now: Now) {
        // Held while a dependency recovers, it is blocked as before.
        let mut by = match (verdict, self.instances.get(id).and_then(|i| i.wanted.as_ref())) {
            (Verdict::Blocked(by), _) => by.clone(),
            (Verdict::Held { .. }, Some(wanted)) => self.blockers(&wanted.spec, id, now.mono),
            _ => Vec::new(),
        };
        if self.instances.get(id).is_none_or(|inst| stays_failed(inst, &by)) {
            // It stays failed, and is the ladder's; blocked, it would be nobody's.
            by.clear();
        }
        let stuck = by.iter().any(|b| self.is_stuck(b));
        let Some(inst) = self.instances.get_mut(id) else { return };
        let due = if inst.lives() {
            let since = *inst.blocked_since.get_or_insert(now.mono);
            if by.is_empty() {
                inst.blocked_since = None;
            }
            !by.is_empty() && inst.was_ready && now.mono >= since + BLOCKED_TOLD_AFTER
        } else {
            stuck || (!inst.blocked_told.is_empty() && !by.is_empty())
        };
        if inst.state == State::Completed {
            // Its readiness has said that nothing blocks it; said after that, it would read as waiting again.
            inst.blocked_told.clear();
            return;
        }
        // What is wanted may not be known yet, and so whether it is still blocked.
        let ended = by.is_empty() && !inst.blocked_told.is_empty() && inst.wanted.is_some();
        if (due && (inst.blocked_told != by || inst.blocked_unsure)) || ended {
            inst.blocked_told.clone_from(&by);
            inst.blocked_unsure = false;
            if ended {
                self.unblocked.insert(id.clone());
            } else {
                self.unblocked.remove(id);
            }
            let text = if ended { "no longer blocked".to_owned() } else { by.iter().map(sentence).collect::<Vec<_>>().join("; ") };
            let code = if ended { "unblocked" } else { "dependency_unmet" };
            self.tell(id, Fact::ComponentBlocked(v1::ComponentBlocked { by }), code, &text, now);
            // Whoever waits for it is blocked as well.
            self.touch(id);
        }
    }

    /// Whether a dependency does not come by itself: it is neither on its way nor waits for its turn alone, or what it waits for is stuck.
    fn is_stuck(&self, by: &v1::Blocker) -> bool {
        let comes = matches!(by.is.as_str(), "waiting" | "preparing" | "starting");
        !comes || self.replicas(&by.component).any(|inst| !inst.lives() && !inst.blocked_told.is_empty())
    }
}

/// Whether an instance that failed stays so, whatever blocks its start: it can do without all of that, and nobody asked for a new life.
pub(super) fn stays_failed(inst: &Inst, by: &[v1::Blocker]) -> bool {
    let needs = |b: &v1::Blocker| inst.spec().is_some_and(|s| s.depends_on.iter().any(|d| d.required && d.component == b.component));
    inst.state == State::Failed && !is_newer(inst) && !by.iter().any(needs)
}
