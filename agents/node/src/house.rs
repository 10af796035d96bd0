//! The node's own household: the age of its loop, its beats on the bus, the spans that its events complete, and what its health
//! endpoint says.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prost::Message as _;
use razar_bus_schema::{time, v1};
use razar_os::monotonic_now;

use crate::{agent::Agent, outbox::OutboxStatus, traces::Traces};

/// What the health endpoint shows, written by the loop each second.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Health {
    /// Instances that are ready or completed.
    pub ready: usize,
    /// Instances that are to run.
    pub wanted: usize,
    /// The bus is usable.
    pub bus_up: bool,
    /// Events that wait for the bus.
    pub unacknowledged: u64,
    /// Age of the oldest of them.
    pub oldest: Option<Duration>,
    /// Why the journal cannot be written; none: it can.
    pub journal_failing: Option<String>,
}

/// The household.
#[derive(Debug, Default)]
pub struct House {
    ticked_ns: Arc<AtomicU64>,
    cycle: u64,
    traces: Traces,
    health: Arc<Mutex<Health>>,
    events_told: u64,
}

impl House {
    /// The loop has turned.
    pub(crate) fn ticked(&self) {
        self.ticked_ns.store(u64::try_from(monotonic_now().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Time since the loop turned last.
    pub(crate) fn loop_age(&self) -> Duration {
        monotonic_now().saturating_sub(Duration::from_nanos(self.ticked_ns.load(Ordering::Relaxed)))
    }

    /// An event is being told.
    pub(crate) fn told(&mut self, event: &v1::Event) {
        self.events_told += 1;
        let about = event.instance.as_ref().map_or("", |i| i.component.as_str());
        let reason = event.reason.as_ref().map_or("", |r| r.text.as_str());
        tracing::info!(kind = event.kind, component = about, reason, trace = event.trace.as_ref().map_or("", |t| t.traceparent.as_str()));
        self.traces.told(event);
    }

    /// Sends a beat and renews what the health endpoint shows.
    pub(crate) fn beat(&mut self, beat: Beat) {
        self.cycle += 1;
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = beat.health;
        if !beat.bus.is_up() {
            return;
        }
        let message = v1::Heartbeat {
            kind: "node".to_owned(),
            id: beat.node.clone(),
            cycle: self.cycle,
            loop_age: Some(time::duration(self.loop_age())),
            ..Default::default()
        };
        tokio::spawn(async move {
            let subject = beat.bus.subjects().heartbeat("node", &beat.node);
            let _ = beat.bus.publish(&subject, message.encode_to_vec().into(), "").await;
        });
    }
}

/// What a beat is made of.
pub(crate) struct Beat {
    bus: razar_bus::Bus,
    node: String,
    health: Health,
}

impl Agent {
    /// The beat of this second.
    pub(crate) fn beat_now(&self) -> Beat {
        let mut health = Health { bus_up: self.bus.is_up(), ..Health::default() };
        for inst in self.policy.instances().filter(|i| i.group() == crate::policy::Group::User) {
            let wanted = inst.wanted.as_ref().is_some_and(|w| w.desired.mode() == v1::RunMode::Run && !w.elsewhere);
            health.wanted += usize::from(wanted);
            health.ready += usize::from(matches!(inst.state, v1::InstanceState::Ready | v1::InstanceState::Completed));
        }
        let OutboxStatus { unacknowledged, oldest_age, .. } = self.outbox.status();
        health.unacknowledged = unacknowledged;
        health.oldest = oldest_age;
        health.journal_failing = self.journal.status().failing;
        Beat { bus: self.bus.clone(), node: self.config.node.clone(), health }
    }
}
