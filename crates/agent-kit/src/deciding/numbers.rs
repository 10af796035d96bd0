//! The numbers of a deciding agent for Prometheus.

use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use razar_bus_schema::shard::Shards;

use crate::{Metrics, metrics::Labels};

/// Counters and gauges of one replica.
#[derive(Debug)]
pub struct Numbers {
    verbs: &'static [&'static str],
    folded: Counter,
    dead_letters: Counter,
    lag: Gauge,
    leads: Gauge,
    divided: Gauge,
    held: Family<Labels, Gauge>,
    decisions: Family<Labels, Counter>,
    commands: Option<Family<Labels, Counter>>,
}

impl Numbers {
    /// Registers them; `verbs` are those of the commands that are taken.
    pub(super) fn new(metrics: &Metrics, verbs: &'static [&'static str]) -> Self {
        Self {
            verbs,
            folded: metrics.counter("events_folded", "Events folded"),
            dead_letters: metrics.counter("dead_letters", "Messages that could not be used and were put aside"),
            lag: metrics.gauge("events_behind", "Events in the stream that are not folded yet"),
            leads: metrics.gauge("leads", "Whether this replica may decide"),
            divided: metrics.gauge("shards", "Shards into which the decisions are divided"),
            held: metrics.gauges("shard_held", "Whether this replica may decide about a shard"),
            decisions: metrics.counters("decisions", "Decisions by kind"),
            commands: (!verbs.is_empty()).then(|| metrics.counters("commands", "Commands answered, by verb and result")),
        }
    }

    /// A decision was made. `kind` is one of a few.
    pub fn decided(&self, kind: &str) {
        self.decisions.get_or_create(&vec![("kind", kind.to_owned())]).inc();
    }

    /// Something could not be used.
    pub fn dead_letter(&self) {
        self.dead_letters.inc();
    }

    pub(super) fn folded(&self, pending: u64) {
        self.folded.inc();
        self.lag.set(i64::try_from(pending).unwrap_or(i64::MAX));
    }

    pub(super) fn caught_up(&self) {
        self.lag.set(0);
    }

    pub(super) fn shards(&self, shards: &Shards) {
        self.leads.set(i64::from(!shards.is_none()));
        self.divided.set(shards.count().get().into());
        for shard in shards.count().all() {
            self.held.get_or_create(&vec![("shard", shard.to_string())]).set(i64::from(shards.held().contains(&shard)));
        }
    }

    /// What senders make up is no label.
    pub(super) fn answered(&self, verb: &str, accepted: bool) {
        let Some(commands) = &self.commands else { return };
        let verb = if self.verbs.contains(&verb) { verb } else { "other" };
        let result = if accepted { "accepted" } else { "refused" };
        commands.get_or_create(&vec![("verb", verb.to_owned()), ("result", result.to_owned())]).inc();
    }
}
