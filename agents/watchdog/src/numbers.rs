//! The watchdog's numbers for Prometheus, beside those of every deciding agent.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use razar_agent_kit::Metrics;

/// Counters and gauges of one replica.
#[derive(Debug)]
pub(crate) struct Numbers {
    pub(crate) beats: Counter,
    pub(crate) watched: Gauge,
    pub(crate) interruptions: Gauge,
}

impl Numbers {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            beats: metrics.counter("beats_heard", "Beats heard"),
            watched: metrics.gauge("watched_subjects", "Nodes, agents and instances that are to be heard"),
            interruptions: metrics.gauge("interruptions", "Times that silence had to be counted anew, since the observer was not current"),
        }
    }
}
