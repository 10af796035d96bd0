//! The kinds of faults, which of them a seed has, and what each does to the world when its time comes.

use std::{collections::BTreeSet, time::Duration};

use super::{
    bus::Client,
    random::Rng,
    world::{Happening, World},
};

/// Kinds of faults; a failing seed is run again without each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Fault {
    // Processes.
    BootCrash,
    Crash,
    Hang,
    SlowStart,
    DeafToTerm,
    Liar,
    Unkillable,
    Leans,
    Flaps,
    Dirties,
    Breaks,
    SpawnFails,
    ClearFails,
    // Machines.
    AgentKilled,
    AgentDiesMidway,
    AgentPaused,
    Reboot,
    PowerCut,
    DiskLost,
    WallJump,
    // The bus.
    LineCut,
    BrokerDown,
    ReplyLost,
    SlowLine,
    LateCopies,
    Relist,
    EventsLost,
    IntentsLost,
    MissionsLost,
    // Agents.
    ReplicaKilled,
    ReplicaPaused,
    RegistryKilled,
    // Operators, and whoever plays an agent by hand.
    DoubleCommands,
    Quarantine,
    Recovery,
    Poison,
    // The way of beats.
    BeatsLost,
    Muted,
    LoopStands,
}

use Fault as F;

/// All of them.
pub const ALL: [Fault; 39] = [
    F::BootCrash,
    F::Crash,
    F::Hang,
    F::SlowStart,
    F::DeafToTerm,
    F::Liar,
    F::Unkillable,
    F::Leans,
    F::Flaps,
    F::Dirties,
    F::Breaks,
    F::SpawnFails,
    F::ClearFails,
    F::AgentKilled,
    F::AgentDiesMidway,
    F::AgentPaused,
    F::Reboot,
    F::PowerCut,
    F::DiskLost,
    F::WallJump,
    F::LineCut,
    F::BrokerDown,
    F::ReplyLost,
    F::SlowLine,
    F::LateCopies,
    F::Relist,
    F::EventsLost,
    F::IntentsLost,
    F::MissionsLost,
    F::ReplicaKilled,
    F::ReplicaPaused,
    F::RegistryKilled,
    F::DoubleCommands,
    F::Quarantine,
    F::Recovery,
    F::Poison,
    F::BeatsLost,
    F::Muted,
    F::LoopStands,
];

/// Those that strike at an instant; the others are in what happens anyway.
const STRIKES: [(Fault, u64); 18] = [
    (F::Breaks, 4),
    (F::AgentKilled, 10),
    (F::AgentDiesMidway, 10),
    (F::AgentPaused, 6),
    (F::Reboot, 2),
    (F::PowerCut, 2),
    (F::DiskLost, 2),
    (F::WallJump, 3),
    (F::LineCut, 8),
    (F::BrokerDown, 5),
    (F::Relist, 3),
    (F::EventsLost, 1),
    (F::IntentsLost, 2),
    (F::MissionsLost, 1),
    (F::ReplicaKilled, 8),
    (F::ReplicaPaused, 8),
    (F::Muted, 4),
    (F::LoopStands, 4),
];

/// The faults of a run.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    on: BTreeSet<Fault>,
    /// Faults have ceased.
    pub ceased: bool,
}

impl Faults {
    /// Those of a seed: mostly about half of them, so that each is seen with and without each other.
    #[must_use]
    pub fn random(rng: &mut Rng) -> Self {
        let share = *rng.pick(&[150, 500, 500, 800, 1000]);
        Self { on: ALL.into_iter().filter(|_| rng.per_mille(share)).collect(), ceased: false }
    }

    /// Whether this kind may strike now.
    #[must_use]
    pub fn on(&self, fault: Fault) -> bool {
        !self.ceased && self.on.contains(&fault)
    }

    /// Takes a kind away.
    pub fn without(&mut self, fault: Fault) {
        self.on.remove(&fault);
    }

    /// The kinds that are on.
    #[must_use]
    pub fn kinds(&self) -> Vec<Fault> {
        self.on.iter().copied().collect()
    }

    /// Whether the run had this kind at all.
    #[must_use]
    pub fn had(&self, fault: Fault) -> bool {
        self.on.contains(&fault)
    }
}

impl World {
    /// A fault strikes, and the next one is planned.
    pub fn strike(&mut self) {
        if self.faults.ceased {
            return;
        }
        let wait = self.chaos.millis(200, 12_000);
        self.later(wait, Happening::Strike);
        let possible: Vec<(Fault, u64)> = STRIKES.into_iter().filter(|(f, _)| self.faults.on(*f)).collect();
        let total = possible.iter().map(|(_, w)| w).sum();
        let mut luck = self.chaos.below(total);
        for (fault, weight) in possible {
            if luck < weight {
                self.inject(fault);
                return;
            }
            luck -= weight;
        }
    }

    fn inject(&mut self, fault: Fault) {
        self.all_listen();
        let host = self.chaos.index(self.hosts.len());
        let replica = self.chaos.index(self.replicas.len());
        let span = if self.chaos.per_mille(150) { self.chaos.millis(10_000, 90_000) } else { self.chaos.millis(20, 8_000) };
        match fault {
            F::Breaks => self.breaks_or_mends(),
            F::AgentKilled => self.kill_agent(host, "killed"),
            F::AgentDiesMidway => {
                let after = u32::try_from(self.chaos.below(12)).unwrap_or(0);
                self.hosts[host].dies_after = Some(after);
            }
            F::AgentPaused => {
                let span = span.min(Duration::from_secs(15));
                self.tell_host(host, format_args!("agent paused for {span:?}"));
                self.hosts[host].paused_until = Some(self.now + span);
            }
            F::Reboot => self.reboot(host, false),
            F::PowerCut => self.reboot(host, true),
            F::DiskLost => self.lose_disk(host),
            F::WallJump => {
                let by = i64::try_from(self.chaos.below(7_200)).unwrap_or(0) - 3_600;
                self.tell_host(host, format_args!("wall clock jumps by {by}s"));
                self.hosts[host].wall_skew += by;
                self.hosts[host].oracle.blur(self.now);
                // Some of these are jumps of a second clock as well: the broker's stamps commands, a replica's says whether one has expired.
                match by.rem_euclid(3) {
                    0 => {
                        self.say("clock", format_args!("wall clock of the broker jumps by {by}s"));
                        self.broker.wall_skew += by;
                    }
                    1 => {
                        self.say("clock", format_args!("wall clock of replica {replica} jumps by {by}s"));
                        self.replicas[replica].wall_skew += by;
                    }
                    _ => {}
                }
            }
            F::LineCut => {
                let client = match self.chaos.below(5) {
                    0 => Client::Registry(self.chaos.index(self.registries.len())),
                    1 | 2 => Client::Replica(replica),
                    _ => Client::Host(host),
                };
                self.say("bus", format_args!("line of {client:?} cut for {span:?}"));
                self.broker.links.entry(client).or_default().cut = true;
                self.broker.drop_line(client);
                self.later(span, Happening::LineMended(client));
            }
            F::BrokerDown => {
                if self.broker.up {
                    self.say("bus", format_args!("broker down for {span:?}"));
                    self.broker.up = false;
                    let clients: Vec<Client> = self.broker.links.keys().copied().collect();
                    clients.iter().for_each(|c| self.broker.drop_line(*c));
                    self.later(span, Happening::BrokerUp);
                }
            }
            F::Relist => self.reconnect_soon(Client::Host(host)),
            F::EventsLost => {
                self.say("bus", format_args!("EVENTS is lost and made anew"));
                self.broker.events.recreate();
                self.feed_all();
            }
            F::IntentsLost => {
                self.say("bus", format_args!("the bucket of intents is lost and made anew"));
                self.broker.intents.recreate();
                self.checks.intents_recreated();
                self.feed_all();
            }
            F::MissionsLost => {
                self.say("bus", format_args!("the bucket of missions is lost and made anew"));
                self.broker.missions.recreate();
                self.feed_all();
            }
            F::ReplicaKilled => self.kill_replica(replica),
            F::ReplicaPaused => {
                let span = span.min(Duration::from_secs(20));
                self.say(self.replicas[replica].trade.name(), format_args!("replica {replica} paused for {span:?}"));
                self.pause_replica(replica, span);
            }
            F::Muted => {
                self.tell_host(host, format_args!("beats of the node are lost for {span:?}"));
                self.hosts[host].muted_until = Some(self.now + span);
            }
            F::LoopStands => {
                let span = span.min(Duration::from_secs(20));
                self.say(self.replicas[replica].trade.name(), format_args!("the loop of replica {replica} stands for {span:?}"));
                self.pause_replica(replica, span);
                self.replicas[replica].stands_since = Some(self.now);
            }
            _ => {}
        }
    }
}
