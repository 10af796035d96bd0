//! The disk of a node: the journal's memory and the plan. A crash of the agent loses nothing that was written; a power cut loses up to
//! 100 ms of it and makes the numbers go on a block further; a lost disk is a new node epoch.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use razar_bus_schema::{
    event::node_event_id,
    ids::{Incarnation, Instance},
    v1,
};
use razar_node::policy::{are_orders, fold_plan};

/// Numbers that are skipped after an unclean end.
pub const BLOCK: u64 = 1024;
/// The journal is synced this long after a write, at the latest.
const SYNC: Duration = Duration::from_millis(100);

/// Which life of which instance.
pub type Life = (Instance, Incarnation);

/// What is written.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// Node epoch.
    pub epoch: String,
    /// Memory per instance.
    pub memories: BTreeMap<Instance, v1::InstanceMemory>,
    /// Spawns planned of which the outcome is not written.
    pub planned: BTreeMap<Life, v1::SpawnPlanned>,
    /// Processes that may live.
    pub spawned: BTreeMap<Life, v1::Spawned>,
    /// Next event sequence.
    pub next_sequence: u64,
    /// Events that are not acknowledged.
    pub outbox: BTreeMap<u64, Arc<v1::Event>>,
    /// View of the bucket.
    pub plan: v1::PlanOnDisk,
}

/// A disk with what of it survives a power cut.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    /// As written.
    pub disk: Disk,
    synced: Disk,
    synced_at: Duration,
    written_at: Duration,
    /// The plan is a file of its own: what survives of it need not be as old as what survives of the rest.
    plan_synced: v1::PlanOnDisk,
    plan_synced_at: Duration,
    plan_written_at: Option<Duration>,
}

impl Journal {
    /// A new disk.
    #[must_use]
    pub fn new(epoch: String) -> Self {
        let disk = Disk { epoch, next_sequence: 1, ..Disk::default() };
        Self { synced: disk.clone(), disk, ..Self::default() }
    }

    /// Adds a change to the plan, which is on disk at once unless it is only orders. Whether what was written before, and this, are.
    pub fn store_plan(&mut self, change: v1::PlanOnDisk, now: Duration) -> (bool, bool) {
        let (before, at_once) = (now >= self.plan_synced_at + SYNC, !are_orders(&change));
        if before {
            self.plan_synced = self.disk.plan.clone();
            self.plan_synced_at = now;
        }
        fold_plan(&mut self.disk.plan, change);
        if at_once {
            self.plan_synced = self.disk.plan.clone();
            self.plan_synced_at = now;
        } else {
            self.plan_written_at = Some(now);
        }
        (before, at_once)
    }

    /// Something is about to be written.
    fn write(&mut self, now: Duration) -> &mut Disk {
        if now >= self.synced_at + SYNC {
            self.synced = self.disk.clone();
            self.synced_at = now;
        }
        self.written_at = now;
        &mut self.disk
    }

    /// Writes a memory.
    pub fn remember(&mut self, memory: v1::InstanceMemory, now: Duration) {
        if let Some(Ok(id)) = memory.instance.as_ref().map(Instance::try_from) {
            self.write(now).memories.insert(id, memory);
        }
    }

    /// Writes a plan of a spawn.
    pub fn plan_spawn(&mut self, life: &Life, planned: v1::SpawnPlanned, now: Duration) {
        let disk = self.write(now);
        let fresh = || v1::InstanceMemory { instance: Some((&life.0).into()), ..Default::default() };
        let memory = disk.memories.entry(life.0.clone()).or_insert_with(fresh);
        if life.1 > Incarnation::new(memory.generation, memory.start) {
            (memory.generation, memory.start) = (life.1.generation, life.1.start);
            memory.incarnation = Some(life.1.into());
        }
        disk.planned.insert(life.clone(), planned);
    }

    /// Writes that a process was made.
    pub fn spawned(&mut self, life: &Life, spawned: v1::Spawned, now: Duration) {
        let disk = self.write(now);
        disk.planned.remove(life);
        disk.spawned.insert(life.clone(), spawned);
    }

    /// Writes that a process is gone.
    pub fn gone(&mut self, life: &Life, now: Duration) {
        let disk = self.write(now);
        disk.planned.remove(life);
        disk.spawned.remove(life);
    }

    /// Writes an event; with its place and id.
    pub fn append(&mut self, mut event: v1::Event, node: &str, now: Duration) -> Arc<v1::Event> {
        let disk = self.write(now);
        let sequence = disk.next_sequence;
        disk.next_sequence += 1;
        event.id = node_event_id(node, &disk.epoch, sequence);
        event.node_sequence = Some(v1::NodeSequence { node: node.to_owned(), epoch: disk.epoch.clone(), sequence });
        let event = Arc::new(event);
        disk.outbox.insert(sequence, event.clone());
        event
    }

    /// Everything up to `sequence` is stored by the broker.
    pub fn acknowledged(&mut self, sequence: u64, now: Duration) {
        let disk = self.write(now);
        disk.outbox = disk.outbox.split_off(&(sequence + 1));
    }

    /// Power was cut: the newest writes are gone, and numbers go on a block further. Whether the plan's newest are.
    pub fn power_cut(&mut self, now: Duration) -> bool {
        if now >= self.written_at + SYNC {
            self.synced = self.disk.clone();
        }
        let lost = self.plan_written_at.is_some_and(|at| now < at + SYNC);
        if !lost {
            self.plan_synced = self.disk.plan.clone();
        }
        self.disk = self.synced.clone();
        self.disk.plan = self.plan_synced.clone();
        self.disk.next_sequence += BLOCK;
        for memory in self.disk.memories.values_mut() {
            memory.start += BLOCK;
        }
        self.synced = self.disk.clone();
        lost
    }
}
