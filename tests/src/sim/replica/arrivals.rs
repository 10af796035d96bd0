//! What a replica has sent arrives at the broker, or at nodes, whatever became of the replica; and commands come to whoever may decide.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use razar_bus_schema::{
    bucket::IntentKey,
    ids::{Incarnation, Instance},
    v1::{self, intent::Want},
};
use razar_orchestrator::policy::{self as orchestrator, LoadError, MissionsValue, WriteError};
use razar_quarantine::policy as quarantine;
use razar_recovery::policy as recovery;
use razar_watchdog::policy as watchdog;

use super::{
    super::{
        bus::{ACK_WAIT, Client, DELIVERIES_MAX},
        faults::Fault,
        world::{Happening, World},
    },
    REQUEST_LIMIT,
    mind::{Deed, Heard},
};

/// A node that is asked and does not answer is waited for so long.
const ASK_LIMIT: Duration = Duration::from_secs(4);

impl World {
    /// What a replica has sent arrives.
    pub(in crate::sim) fn replica_arrives(&mut self, r: usize, life: u64, deed: Deed) {
        let same = self.replicas[r].lives == life;
        // A paused process sends nothing; one that died may have sent it before.
        if same && let Some(until) = self.replicas[r].paused_until.filter(|until| *until > self.now) {
            self.at(until, Happening::ReplicaSends(r, life, Box::new(deed)));
            return;
        }
        let (arrives, lost) = self.fate(r, same);
        let mut wait = if arrives && !lost { self.latency() } else { REQUEST_LIMIT };
        let heard = match deed {
            Deed::Load { revision, profile } => {
                let result = self.load(arrives && !lost, &revision, &profile);
                Heard::Orchestrator(orchestrator::Outcome::Loaded { revision, profile, result })
            }
            Deed::WriteDesired { bucket, writes } => {
                let result = arrives.then(|| self.write_desired(r, &writes)).filter(|_| !lost).unwrap_or(Err(WriteError::Unknown));
                Heard::Orchestrator(orchestrator::Outcome::WroteDesired { writes, bucket, result })
            }
            Deed::WriteMissions { bucket, writes } => {
                let result = arrives.then(|| self.write_missions(r, &writes)).filter(|_| !lost).unwrap_or(Err(WriteError::Unknown));
                Heard::Orchestrator(orchestrator::Outcome::WroteMissions { writes, bucket, result })
            }
            Deed::Order(write) => {
                let result = arrives.then(|| self.write_order(r, &write)).filter(|_| !lost).unwrap_or(Err(recovery::WriteError::Unknown));
                Heard::Recovery(recovery::Outcome::Wrote(write, result))
            }
            Deed::Announce(announce) => self.announced(arrives, lost, announce),
            Deed::Isolate { bucket, writes } => {
                let revisions = arrives.then(|| self.write_quarantines(r, &writes)).flatten().filter(|_| !lost);
                Heard::Quarantine(quarantine::Outcome::Wrote { bucket, writes, revisions })
            }
            Deed::Ask { instance, nodes } => {
                let inventories = if arrives && !lost { self.inventories(&nodes) } else { None };
                if inventories.is_none() {
                    wait = ASK_LIMIT;
                }
                self.say("recovery", format_args!("replica {r} asks {nodes:?} for {instance}: {}", inventories.is_some()));
                Heard::Recovery(recovery::Outcome::Asked { instance, inventories })
            }
            Deed::Ping { node, limit } => {
                let (how, took) = if arrives && !lost { self.pinged(&node, limit) } else { (watchdog::Pinged::Silent, limit) };
                wait = took;
                Heard::Watchdog(watchdog::Outcome::Pinged(node, how))
            }
            Deed::Look { node, instance } => {
                let (reply, took) = if arrives && !lost { self.looks_at(r, &node, &instance) } else { (None, REQUEST_LIMIT) };
                wait = took;
                Heard::Watchdog(watchdog::Outcome::Looked(instance, reply.map(Box::new)))
            }
            Deed::Measure { node } => Heard::Watchdog(watchdog::Outcome::Measured(node, None)),
            Deed::Publish(event) => {
                let id = event.id.clone();
                if arrives {
                    self.take_event(r, event);
                }
                Heard::Published { id, stored: arrives && !lost }
            }
            Deed::Answer { token, receipt } => {
                if arrives && !lost {
                    self.answered(r, token, &receipt);
                }
                return;
            }
        };
        self.later(wait, Happening::ReplicaReply(r, life, Box::new(heard)));
    }

    /// Whether what it sends arrives, and whether the answer is lost.
    fn fate(&mut self, r: usize, same: bool) -> (bool, bool) {
        let dead = !same || !self.replicas[r].alive;
        let arrives = if dead { self.broker.up && self.net.per_mille(500) } else { self.broker.reaches(Client::Replica(r)) };
        let lost = self.faults.on(Fault::ReplyLost) && self.net.per_mille(40);
        (arrives, lost)
    }

    fn announced(&mut self, arrives: bool, lost: bool, announce: Box<recovery::Announce>) -> Heard {
        let result = if arrives {
            self.write_announcement(IntentKey::Escalation(announce.node.clone()), &announce)
        } else {
            Err(recovery::WriteError::Unknown)
        };
        let result = if lost { Err(recovery::WriteError::Unknown) } else { result };
        Heard::Recovery(recovery::Outcome::Announced(announce, result))
    }

    fn load(&self, heard: bool, revision: &str, profile: &str) -> Result<Arc<razar_orchestrator::blueprint::Blueprint>, LoadError> {
        if !heard {
            return Err(LoadError::Unavailable("the bus is away".to_owned()));
        }
        let found = self.stacks.blueprints.get(&(revision.to_owned(), profile.to_owned())).cloned();
        found.ok_or_else(|| LoadError::Refused("unknown_revision".to_owned(), "no such revision".to_owned(), Vec::new()))
    }

    fn take_event(&mut self, r: usize, event: Box<v1::Event>) {
        let reason = event.reason.as_ref().map_or("", |x| x.text.as_str()).to_owned();
        let about = event.instance.as_ref().map_or_else(String::new, |i| format!(" {}.{}", i.component, i.ordinal));
        let life = event.incarnation.as_ref().map_or_else(String::new, |i| format!("@{}", Incarnation::from(i)));
        let who = self.replicas[r].trade.name();
        self.say(who, format_args!("replica {r} tells {}{about}{life}: {reason}", event.kind));
        self.store_events(vec![Arc::from(event)]);
    }

    /// What all of these nodes hold; none: one does not say.
    fn inventories(&self, nodes: &BTreeSet<String>) -> Option<Vec<v1::NodeInventory>> {
        let of = |name: &String| {
            let h = self.hosts.iter().position(|h| h.name == *name)?;
            let host = &self.hosts[h];
            let hears = self.broker.reaches(Client::Host(h)) && host.paused_until.is_none_or(|until| until <= self.now);
            host.agent.as_ref().filter(|_| hears).map(|agent| agent.node.inventory())
        };
        nodes.iter().map(of).collect()
    }

    fn write_desired(&mut self, r: usize, writes: &[(Instance, v1::Intent, u64)]) -> Result<Vec<u64>, WriteError> {
        let batch: Vec<_> = writes.iter().map(|(id, intent, expected)| (IntentKey::Desired(id.clone()), intent, *expected)).collect();
        if self.would_conflict(&batch) {
            return Err(WriteError::Conflict);
        }
        for (id, intent, _) in writes {
            self.check_desired_write(id, intent);
            let what = match &intent.want {
                Some(Want::Desired(d)) => format!("{:?} generation {} on {}", d.mode(), d.generation, d.node),
                _ => String::new(),
            };
            self.say("orch", format_args!("replica {r} writes {id}: {what}"));
        }
        self.put(batch).ok_or(WriteError::Conflict)
    }

    fn write_order(&mut self, r: usize, write: &recovery::Write) -> Result<u64, recovery::WriteError> {
        let batch = vec![(IntentKey::Recovery(write.instance.clone()), &write.intent, write.expected)];
        if self.would_conflict(&batch) {
            return Err(recovery::WriteError::Conflict);
        }
        self.check_order_write(&write.instance, &write.intent);
        if let Some(Want::Recovery(order)) = &write.intent.want {
            let life = order.replaces.as_ref().map(Incarnation::from).unwrap_or_default();
            let (id, rung, attempt, ended) = (&write.instance, &order.rung, order.attempt, order.ended);
            self.say("recovery", format_args!("replica {r} orders {id}@{life}: {rung}, try {attempt}, ended {ended}"));
        }
        self.put(batch).and_then(|revisions| revisions.first().copied()).ok_or(recovery::WriteError::Conflict)
    }

    fn write_announcement(&mut self, key: IntentKey, announce: &recovery::Announce) -> Result<u64, recovery::WriteError> {
        let batch = vec![(key, announce.intent.as_ref(), announce.expected)];
        if self.would_conflict(&batch) {
            return Err(recovery::WriteError::Conflict);
        }
        self.put(batch).and_then(|revisions| revisions.first().copied()).ok_or(recovery::WriteError::Conflict)
    }

    fn write_quarantines(&mut self, r: usize, writes: &quarantine::Writes) -> Option<Vec<u64>> {
        let batch: Vec<_> = writes.iter().map(|(key, intent, expected)| (key.clone(), intent, *expected)).collect();
        if self.would_conflict(&batch) {
            return None;
        }
        for (key, intent, _) in writes {
            self.check_quarantine_write(key, intent);
            let phase = match &intent.want {
                Some(Want::Quarantine(quarantine)) => format!("{:?}", quarantine.phase()),
                _ => "mark".to_owned(),
            };
            let why = intent.reason.as_ref().map_or("", |reason| reason.text.as_str()).to_owned();
            self.say("quarantine", format_args!("replica {r} writes {key}: {phase}, {why}"));
        }
        self.put(batch)
    }

    fn would_conflict(&self, batch: &[(IntentKey, &v1::Intent, u64)]) -> bool {
        let stands = |key: &IntentKey| self.broker.intents.entries.get(&key.to_string()).map_or(0, |(revision, _)| *revision);
        batch.iter().any(|(key, _, expected)| stands(key) != *expected)
    }

    fn put(&mut self, batch: Vec<(IntentKey, &v1::Intent, u64)>) -> Option<Vec<u64>> {
        let entry =
            |(key, intent, expected): (IntentKey, &v1::Intent, u64)| (key.to_string(), Some(Arc::new(intent.clone())), Some(expected));
        let result = self.broker.intents.put(batch.into_iter().map(entry).collect()).ok();
        self.feed_all();
        result
    }

    fn write_missions(&mut self, r: usize, writes: &[(MissionsValue, u64)]) -> Result<Vec<u64>, WriteError> {
        let batch: Vec<_> = writes.iter().map(|(value, expected)| (value.key(), value.clone(), Some(*expected))).collect();
        let old = match self.broker.missions.entries.get("plan") {
            Some((_, MissionsValue::Plan(plan))) => plan.settled_command_ids.clone(),
            _ => Vec::new(),
        };
        let result = self.broker.missions.put(batch).map_err(|()| WriteError::Conflict);
        if result.is_ok() {
            for (value, _) in writes {
                if let MissionsValue::Plan(plan) = value {
                    let mission = plan.mission_id.clone();
                    self.say("orch", format_args!("replica {r} writes the plan: mission {mission}, ended {}", plan.ended));
                    for command in plan.settled_command_ids.iter().filter(|c| !old.contains(c)) {
                        let again = !self.checks.settled_in_plan.insert(command.clone());
                        if again && !self.faults.had(Fault::MissionsLost) {
                            self.violated("I2", format!("command {command} took effect in the plan twice"));
                        }
                    }
                }
            }
        }
        self.feed_all();
        result
    }

    /// Commands that are due are delivered to whoever may decide.
    pub(in crate::sim) fn commands_due(&mut self) {
        let waiting = self.broker.commands.iter().any(|c| !c.acked && c.deliveries < DELIVERIES_MAX);
        self.broker.commands_watched = waiting;
        if waiting {
            self.later(Duration::from_millis(500), Happening::CommandsDue);
        }
        let now = self.now;
        for at in 0..self.broker.commands.len() {
            let command = &self.broker.commands[at];
            if command.acked || command.deliveries >= DELIVERIES_MAX || command.next_at > now {
                continue;
            }
            let agent = command.agent;
            let decides = |r: &usize| self.replicas[*r].trade == agent && self.leads(*r) && self.broker.reaches(Client::Replica(*r));
            let Some(r) = (0..self.replicas.len()).find(decides) else { continue };
            let token = self.number();
            let command = &mut self.broker.commands[at];
            command.deliveries += 1;
            command.next_at = now + ACK_WAIT;
            command.token = token;
            let (wait, life) = (self.latency(), self.replicas[r].lives);
            self.later(wait, Happening::CommandArrives(r, life, at, token));
        }
    }

    pub(in crate::sim) fn command_arrives(&mut self, r: usize, life: u64, at: usize, token: u64) {
        if self.replicas[r].lives != life || !self.leads(r) || self.replicas[r].paused_until.is_some_and(|until| until > self.now) {
            return;
        }
        let queued = self.broker.commands[at].clone();
        self.say(queued.agent.name(), format_args!("replica {r} gets {} {} {}", queued.id, queued.verb, queued.target));
        self.replicas[r].mind.apply_command(token, &queued);
        self.replica_turn(r, life);
    }

    fn answered(&mut self, r: usize, token: u64, receipt: &v1::Receipt) {
        let Some(command) = self.broker.commands.iter_mut().find(|c| c.token == token) else { return };
        if command.id != receipt.command_id {
            let text = format!("{} is answered with the receipt of {}", command.id, receipt.command_id);
            self.violated("I2", text);
            return;
        }
        command.acked = true;
        let (accepted, reason, agent) = (receipt.accepted, &receipt.reason, command.agent);
        self.say(agent.name(), format_args!("replica {r} answers {}: accepted {accepted}, {reason}", receipt.command_id));
        self.check_receipt(receipt);
    }
}
