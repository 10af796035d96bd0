//! Replicas of the registry: each folds all of EVENTS, dies of it now and then, and begins again at its last snapshot.

use std::time::Duration;

use prost::Message as _;
use razar_bus_schema::v1;
use razar_registry::projection::{AGENT_EVENT_WINDOW, Projection};

use super::{
    bus::Client,
    faults::Fault,
    world::{Happening, World},
};

/// A replica of the registry.
#[derive(Debug, Default)]
pub struct Registry {
    /// It lives.
    pub alive: bool,
    /// Lives so far.
    pub lives: u64,
    /// Its projection.
    pub projection: Projection,
    epoch: Option<u64>,
    /// Its newest snapshot, with the epoch of EVENTS that it is of.
    pub snapshot: Option<(u64, v1::Observed)>,
}

impl World {
    pub(super) fn start_registry(&mut self, r: usize) {
        let registry = &mut self.registries[r];
        if registry.alive {
            return;
        }
        registry.alive = true;
        registry.lives += 1;
        let life = registry.lives;
        registry.epoch = None;
        if let Some((epoch, snapshot)) = registry.snapshot.clone().filter(|(epoch, _)| *epoch == self.broker.events.epoch) {
            let bytes = snapshot.encode_to_vec();
            let read = v1::Observed::decode(bytes.as_slice()).unwrap_or_default();
            registry.projection = Projection::from_snapshot(read);
            registry.epoch = Some(epoch);
            let upto = registry.projection.applied_sequence();
            let from = upto.saturating_sub(AGENT_EVENT_WINDOW);
            for stored in self.broker.events.stored.iter().filter(|s| s.sequence > from && s.sequence <= upto) {
                registry.projection.prime(stored.sequence, &stored.event);
            }
        }
        self.reconnect_soon(Client::Registry(r));
        self.later(Duration::from_millis(1), Happening::Announces(Client::Registry(r), life));
    }

    /// Hands a registry some events; it may die of it, and begin again at its last snapshot.
    pub(super) fn feed_registry(&mut self, r: usize) -> bool {
        let epoch = self.broker.events.epoch;
        let registry = &mut self.registries[r];
        if registry.epoch != Some(epoch) {
            let (known, life) = (registry.epoch.replace(epoch), registry.lives);
            registry.projection = Projection::new(&format!("events-{epoch}"));
            if known.is_some() {
                self.later(Duration::from_millis(1), Happening::Announces(Client::Registry(r), life));
            }
        }
        for _ in 0..1 + self.net.below(40) {
            let registry = &mut self.registries[r];
            let next = usize::try_from(registry.projection.applied_sequence()).unwrap_or(usize::MAX);
            let Some(stored) = self.broker.events.stored.get(next) else { break };
            let _ = registry.projection.apply(stored.sequence, &stored.event);
        }
        let registry = &mut self.registries[r];
        if self.net.per_mille(20) {
            registry.snapshot = Some((epoch, registry.projection.observed()));
        }
        if self.faults.on(Fault::RegistryKilled) && self.net.per_mille(5) {
            registry.alive = false;
            self.say("registry", format_args!("replica {r} killed"));
            self.broker.drop_line(Client::Registry(r));
            let wait = self.net.millis(100, 5_000);
            self.later(wait, Happening::RegistryStarts(r));
            return false;
        }
        self.registries[r].projection.applied_sequence() < self.broker.events.head()
    }
}
