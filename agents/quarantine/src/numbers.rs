//! Quarantine's numbers for Prometheus.

use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use razar_agent_kit::{Metrics, metrics::Labels};

/// Counters and gauges of one replica.
#[derive(Debug)]
pub(crate) struct Numbers {
    pub(crate) folded: Counter,
    pub(crate) dead_letters: Counter,
    pub(crate) lag: Gauge,
    pub(crate) leads: Gauge,
    decisions: Family<Labels, Counter>,
    commands: Family<Labels, Counter>,
}

impl Numbers {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            folded: metrics.counter("events_folded", "Events folded"),
            dead_letters: metrics.counter("dead_letters", "Messages that could not be used and were put aside"),
            lag: metrics.gauge("events_behind", "Events in the stream that are not folded yet"),
            leads: metrics.gauge("leads", "Whether this replica may decide"),
            decisions: metrics.counters("decisions", "Decisions by kind"),
            commands: metrics.counters("commands", "Commands answered, by verb and result"),
        }
    }

    pub(crate) fn decided(&self, kind: &str) {
        self.decisions.get_or_create(&vec![("kind", kind.to_owned())]).inc();
    }

    /// `verb` is one of the few that are known, or `other`: what senders make up is no label.
    pub(crate) fn answered(&self, verb: &str, accepted: bool) {
        let verb = if crate::policy::VERBS.contains(&verb) { verb } else { "other" };
        let result = if accepted { "accepted" } else { "refused" };
        self.commands.get_or_create(&vec![("verb", verb.to_owned()), ("result", result.to_owned())]).inc();
    }
}
