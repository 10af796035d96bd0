//! The watchdog's numbers for Prometheus.

use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use razar_agent_kit::{Metrics, metrics::Labels};

/// Counters and gauges of one replica.
#[derive(Debug)]
pub(crate) struct Numbers {
    pub(crate) folded: Counter,
    pub(crate) dead_letters: Counter,
    pub(crate) lag: Gauge,
    pub(crate) leads: Gauge,
    pub(crate) beats: Counter,
    pub(crate) watched: Gauge,
    pub(crate) interruptions: Gauge,
    decisions: Family<Labels, Counter>,
}

impl Numbers {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            folded: metrics.counter("events_folded", "Events folded"),
            dead_letters: metrics.counter("dead_letters", "Messages that could not be used and were put aside"),
            lag: metrics.gauge("events_behind", "Events in the stream that are not folded yet"),
            leads: metrics.gauge("leads", "Whether this replica may decide"),
            beats: metrics.counter("beats_heard", "Beats heard"),
            watched: metrics.gauge("watched_subjects", "Nodes, agents and instances that are to be heard"),
            interruptions: metrics.gauge("interruptions", "Times that silence had to be counted anew, since the observer was not current"),
            decisions: metrics.counters("decisions", "Decisions by kind"),
        }
    }

    pub(crate) fn decided(&self, kind: &str) {
        self.decisions.get_or_create(&vec![("kind", kind.to_owned())]).inc();
    }
}
