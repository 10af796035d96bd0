//! What a node has to tell: journalled first, then sent in order, one request at a time, until the broker has it.

use std::{sync::Arc, time::Duration};

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1,
};

use super::super::{
    bus::Client,
    faults::Fault,
    world::{Happening, World},
};

/// A publish that is not answered by then is tried again.
const PUBLISH_LIMIT: Duration = Duration::from_secs(5);
/// Events that go out in one request.
const BATCH_MAX: usize = 64;

impl World {
    pub(super) fn journal_event(&mut self, h: usize, event: v1::Event) {
        let name = self.hosts[h].name.clone();
        let event = self.hosts[h].journal.append(event, &name, self.now);
        let about =
            event.instance.as_ref().map_or_else(String::new, |i| Instance::try_from(i).map_or_else(|_| String::new(), |i| i.to_string()));
        let incarnation = event.incarnation.as_ref().map_or_else(String::new, |i| format!("@{}", Incarnation::from(i)));
        let why = event.reason.as_ref().map_or("", |r| r.text.as_str());
        self.tell_host(h, format_args!("{} {about}{incarnation}: {why}", event.kind));
        self.told_by_node(h, &event);
        let life = self.hosts[h].lives;
        self.later(Duration::ZERO, Happening::OutboxSends(h, life));
    }

    /// The outbox sends what is journalled, in order, one request at a time.
    pub(in crate::sim) fn outbox_sends(&mut self, h: usize, life: u64) {
        if let Some(until) = self.node_paused(h) {
            self.at(until, Happening::OutboxSends(h, life));
            return;
        }
        let request = self.number();
        let host = &mut self.hosts[h];
        let Some(agent) = host.agent.as_mut().filter(|a| a.in_flight.is_none() && host.lives == life) else { return };
        let events: Vec<_> = host.journal.disk.outbox.values().take(BATCH_MAX).cloned().collect();
        let Some(last) = events.last().and_then(|e| e.node_sequence.as_ref()).map(|s| s.sequence) else { return };
        if !self.broker.links.get(&Client::Host(h)).is_some_and(|l| l.connected) {
            return;
        }
        agent.in_flight = Some((request, last));
        let wait = self.latency();
        if self.faults.on(Fault::LateCopies) && self.net.per_mille(5) {
            let late = self.net.millis(100, 150_000);
            self.later(late, Happening::OutboxArrives(h, life, request, events.clone()));
        }
        self.later(wait, Happening::OutboxArrives(h, life, request, events));
        self.later(PUBLISH_LIMIT, Happening::OutboxReply(h, life, request, false));
    }

    pub(in crate::sim) fn outbox_arrives(&mut self, h: usize, life: u64, request: u64, events: Vec<Arc<v1::Event>>) {
        if !self.broker.up || self.broker.links.get(&Client::Host(h)).is_some_and(|l| l.cut) {
            return;
        }
        self.store_events(events);
        if self.faults.on(Fault::ReplyLost) && self.net.per_mille(30) {
            return;
        }
        let wait = self.latency();
        self.later(wait, Happening::OutboxReply(h, life, request, true));
    }

    pub(in crate::sim) fn outbox_reply(&mut self, h: usize, life: u64, request: u64, stored: bool) {
        if let Some(until) = self.node_paused(h) {
            self.at(until, Happening::OutboxReply(h, life, request, stored));
            return;
        }
        let host = &mut self.hosts[h];
        let Some(agent) = host.agent.as_mut().filter(|_| host.lives == life) else { return };
        let Some((_, upto)) = agent.in_flight.filter(|(r, _)| *r == request) else { return };
        agent.in_flight = None;
        if stored {
            let acked: Vec<_> = host.journal.disk.outbox.range(..=upto).map(|(_, e)| e.id.clone()).collect();
            host.journal.acknowledged(upto, self.now);
            if let Some(lost) = acked.iter().find(|id| !self.broker.ever_stored.contains(*id)) {
                self.violated("I1", format!("{lost} was acknowledged and is not stored"));
                return;
            }
        }
        let wait = if stored { Duration::ZERO } else { Duration::from_millis(500) };
        self.later(wait, Happening::OutboxSends(h, life));
    }

    /// Stores events and lets everybody know.
    pub fn store_events(&mut self, events: Vec<Arc<v1::Event>>) {
        let mut any = false;
        for event in events {
            let (now, wall) = (self.now, self.wall(self.broker.wall_skew));
            if self.broker.events.append(event.clone(), now, wall) {
                self.broker.ever_stored.insert(event.id.clone());
                self.stored(&event);
                any = true;
            }
        }
        if any {
            for client in (0..self.replicas.len()).map(Client::Replica).chain((0..self.registries.len()).map(Client::Registry)) {
                self.feed_soon(client);
            }
        }
    }
}
