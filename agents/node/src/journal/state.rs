//! What the journal says, folded into memory: the snapshot at the head of a segment, and each record after it.
//! Folding is idempotent, so a record that a snapshot holds already does no harm. No IO.

use std::collections::BTreeMap;

use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1::{self, InstanceMemory, JournalSnapshot, SpawnPlanned, Spawned, journal_record::Record},
};

/// Key of a process: which life of which instance.
pub(super) type Life = (Instance, Incarnation);

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct State {
    pub(super) node_epoch: String,
    pub(super) next_sequence: u64,
    pub(super) acknowledged: u64,
    pub(super) memories: BTreeMap<Instance, InstanceMemory>,
    pub(super) processes: BTreeMap<Life, Spawned>,
    pub(super) planned: BTreeMap<Life, SpawnPlanned>,
}

impl State {
    pub(super) fn new(node_epoch: String) -> Self {
        Self { node_epoch, next_sequence: 1, ..Self::default() }
    }

    pub(super) fn from_snapshot(snapshot: JournalSnapshot) -> Self {
        let mut state = Self::new(snapshot.node_epoch);
        state.next_sequence = snapshot.next_sequence.max(1);
        state.acknowledged = snapshot.acknowledged;
        snapshot.memories.into_iter().for_each(|memory| state.remember(memory));
        for spawned in snapshot.processes {
            if let Some(life) = spawned.planned.as_ref().and_then(life_of) {
                state.processes.insert(life, spawned);
            }
        }
        for planned in snapshot.planned {
            if let Some(life) = life_of(&planned) {
                state.planned.insert(life, planned);
            }
        }
        state
    }

    pub(super) fn to_snapshot(&self) -> JournalSnapshot {
        JournalSnapshot {
            node_epoch: self.node_epoch.clone(),
            next_sequence: self.next_sequence,
            acknowledged: self.acknowledged,
            memories: self.memories.values().cloned().collect(),
            processes: self.processes.values().cloned().collect(),
            planned: self.planned.values().cloned().collect(),
        }
    }

    pub(super) fn fold(&mut self, record: Record) {
        match record {
            Record::Snapshot(snapshot) => *self = Self::from_snapshot(snapshot),
            Record::Event(event) => {
                if let Some(at) = event.node_sequence {
                    self.next_sequence = self.next_sequence.max(at.sequence.saturating_add(1));
                }
            }
            Record::SpawnPlanned(planned) => self.plan(planned),
            Record::Spawned(spawned) => self.spawned(spawned),
            Record::ProcessGone(gone) => self.gone(&gone),
            Record::Acknowledged(acked) => self.acknowledged = self.acknowledged.max(acked.sequence),
            Record::Memory(memory) => self.remember(memory),
        }
    }

    fn plan(&mut self, planned: SpawnPlanned) {
        let Some(life) = life_of(&planned) else { return };
        // A start is used up with its plan, whether or not the instance's memory is written after it.
        let memory = self
            .memories
            .entry(life.0.clone())
            .or_insert_with(|| InstanceMemory { instance: Some((&life.0).into()), ..InstanceMemory::default() });
        if life.1 > Incarnation::new(memory.generation, memory.start) {
            (memory.generation, memory.start) = (life.1.generation, life.1.start);
            memory.incarnation = Some(life.1.into());
        }
        self.planned.insert(life, planned);
    }

    fn spawned(&mut self, spawned: Spawned) {
        let Some(life) = spawned.planned.as_ref().and_then(life_of) else { return };
        self.planned.remove(&life);
        self.processes.insert(life, spawned);
    }

    fn gone(&mut self, gone: &v1::ProcessGone) {
        let Some(life) = life(gone.instance.as_ref(), gone.incarnation.as_ref()) else { return };
        self.planned.remove(&life);
        self.processes.remove(&life);
    }

    fn remember(&mut self, memory: InstanceMemory) {
        if let Some(Ok(instance)) = memory.instance.as_ref().map(Instance::try_from) {
            self.memories.insert(instance, memory);
        }
    }

    /// After an end that may have lost the newest records: go on further, so that no number is given twice.
    pub(super) fn skip(&mut self, block: u64) {
        self.next_sequence = self.next_sequence.saturating_add(block);
        for memory in self.memories.values_mut() {
            memory.start = memory.start.saturating_add(block);
        }
    }
}

/// Which life a plan is about; none if it names no valid instance.
pub(super) fn life_of(planned: &SpawnPlanned) -> Option<Life> {
    life(planned.instance.as_ref(), planned.incarnation.as_ref())
}

fn life(instance: Option<&v1::InstanceId>, incarnation: Option<&v1::Incarnation>) -> Option<Life> {
    Some((Instance::try_from(instance?).ok()?, incarnation?.into()))
}
