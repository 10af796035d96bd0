//! The watchdog's spans, written with the verdict that they lead to, with ids computed from it: whoever leads writes the same. A verdict on
//! a node, an agent or a chakra is the root of a story, which its end joins; one on an instance belongs to that instance's incident.

use std::time::{Duration, SystemTime};

use razar_agent_kit::{Hops, SpanRecord, hops::described};
use razar_bus_schema::{
    ids::span_id,
    time::{std_duration, system_time},
    v1::{self, event::Fact},
};

/// Writes spans.
#[derive(Debug)]
pub(crate) struct Teller {
    hops: Hops,
}

/// What an event ends: a name, how long it took, and whether it is the root of its story.
struct Ended {
    name: &'static str,
    took: Duration,
    root: bool,
}

impl Teller {
    pub(crate) fn new(hops: Hops) -> Self {
        Self { hops }
    }

    /// An event is sent: what led to it, and its own way to the stream.
    pub(crate) fn published(&self, event: &v1::Event) {
        let Some(context) = self.hops.context(event) else { return };
        if let Some(Ended { name, took, root }) = ended(event) {
            let at = event.time.as_ref().map_or_else(SystemTime::now, system_time);
            let id = if root { context.span } else { span_id(&format!("{name}:{}", event.id)) };
            let span = SpanRecord::new(context.trace, id, name, at.checked_sub(took).unwrap_or(at), at);
            let span = if root { span } else { span.under(context.span) };
            self.hops.spans().record(described(span, event).with("razar.event", event.kind.clone()));
        }
        self.hops.sent(event);
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "what is no verdict ends nothing, facts of later versions neither")]
fn ended(event: &v1::Event) -> Option<Ended> {
    let (name, took, root) = match event.fact.as_ref()? {
        Fact::NodeLost(lost) => ("silence", lost.silent_for.as_ref(), true),
        Fact::AgentDown(down) => ("silence", down.silent_for.as_ref(), true),
        Fact::ChakraDown(down) => ("below threshold", down.delay.as_ref(), true),
        Fact::GreatSpiral(_) | Fact::OutOfSync(_) => ("all chakras", None, true),
        Fact::NodeReturned(returned) => ("away", returned.away.as_ref(), false),
        Fact::AgentReturned(returned) => ("away", returned.away.as_ref(), false),
        Fact::ChakraRecovered(recovered) => ("down", recovered.took.as_ref(), false),
        Fact::ComponentUnresponsive(hung) => ("silence", hung.evidence.as_ref().and_then(|e| e.silent_for.as_ref()), false),
        _ => return None,
    };
    Some(Ended { name, took: took.map_or(Duration::ZERO, std_duration), root })
}
