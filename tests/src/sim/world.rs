//! The world: everything in it, its one queue of happenings in order of time, and the loop that lets them happen one by one.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use razar_node::policy::Input;

use super::{
    ailments::{Ailments, Figures},
    bus::{Broker, Client},
    checks::Checks,
    faults::Faults,
    host::{Host, ProbeAsked, Step},
    operator::Operator,
    random::Rng,
    registry::Registry,
    replica::{
        Replica,
        mind::{Deed, Heard, Trade},
    },
    stack::Stacks,
    story::Story,
};

/// The wall clock at the beginning, seconds since 1970.
pub const WALL_AT_START_SECONDS: u64 = 1_800_000_000;

/// A watch reads everything again so often.
const RELIST: Duration = Duration::from_secs(300);

/// Something that happens at an instant.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Happening {
    Strike,
    BrokerUp,
    LineMended(Client),
    Connect(Client),
    Relist(Client, u64),
    Feed(Client, u64),
    AgentStarts(usize),
    NodeTimer(usize, u64, Duration),
    NodeInput(usize, u64, Box<Input>),
    NodeBuries(usize),
    NodeLooks(usize, u64),
    ProbeEnds(usize, u64, Box<ProbeAsked>),
    ProcStep(usize, u32, Step),
    OutboxSends(usize, u64),
    OutboxArrives(usize, u64, u64, Vec<Arc<razar_bus_schema::v1::Event>>),
    OutboxReply(usize, u64, u64, bool),
    ReplicaStarts(usize),
    ReplicaLease(usize, u64),
    ReplicaTurn(usize, u64),
    ReplicaSends(usize, u64, Box<Deed>),
    ReplicaReply(usize, u64, Box<Heard>),
    CommandsDue,
    CommandArrives(usize, u64, usize, u64),
    RegistryStarts(usize),
    OperatorActs,
    Beats(Client),
    Announces(Client, u64),
    LadderActs(razar_bus_schema::ids::Instance),
}

/// Everything.
#[derive(Debug)]
pub struct World {
    /// The seed.
    pub seed: u64,
    /// True time since the beginning.
    pub now: Duration,
    /// Steps so far.
    pub steps: u64,
    /// Which faults there are.
    pub faults: Faults,
    /// The story so far.
    pub story: Story,
    /// The broker.
    pub broker: Broker,
    /// Machines.
    pub hosts: Vec<Host>,
    /// Recovery and quarantine are played by hand: their records come from the operator, whatever the rules say.
    pub by_hand: bool,
    /// What ails components.
    pub ailments: Ailments,
    /// By which figures they are healed.
    pub figures: Figures,
    /// Replicas of the agents that decide.
    pub replicas: Vec<Replica>,
    /// Replicas of the registry.
    pub registries: Vec<Registry>,
    /// The operator.
    pub operator: Operator,
    /// What may be put in force.
    pub stacks: Stacks,
    /// What must never happen.
    pub checks: Checks,
    /// Randomness of the faults.
    pub chaos: Rng,
    /// Randomness of the lines.
    pub net: Rng,
    /// Randomness of the processes.
    pub luck: Rng,
    /// Randomness of the way of beats.
    pub ether: Rng,
    queue: BTreeMap<(Duration, u64), Happening>,
    numbers: u64,
}

impl World {
    /// The world of a seed at its beginning.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::of(seed, "world");
        let count = *rng.pick(&[1, 1, 1, 2, 3]);
        let names: Vec<String> = ["a", "b", "c"].iter().take(count).map(|n| (*n).to_owned()).collect();
        let by_hand = rng.per_mille(150);
        let stacks = Stacks::random(&mut Rng::of(seed, "stack"), &names, !by_hand);
        let trades: &[Trade] = if by_hand { &[Trade::Orchestrator] } else { &Trade::ALL };
        let faults = Faults::random(&mut Rng::of(seed, "faults"));
        let mut ailing = Rng::of(seed, "ailments");
        let mut world = Self {
            seed,
            by_hand,
            figures: Figures::random(&mut ailing),
            ailments: Ailments::random(&mut ailing, &stacks.components, &faults),
            now: Duration::ZERO,
            steps: 0,
            faults,
            story: Story::default(),
            broker: Broker::default(),
            hosts: names.iter().map(|name| Host::new(name)).collect(),
            replicas: trades.iter().flat_map(|trade| [*trade; 2]).enumerate().map(|(r, trade)| Replica::new(trade, r)).collect(),
            registries: (0..2).map(|_| Registry::default()).collect(),
            operator: Operator::new(seed),
            stacks,
            checks: Checks::default(),
            chaos: Rng::of(seed, "chaos"),
            net: Rng::of(seed, "net"),
            luck: Rng::of(seed, "luck"),
            ether: Rng::of(seed, "ether"),
            queue: BTreeMap::new(),
            numbers: 0,
        };
        for h in 0..world.hosts.len() {
            world.broker.links.insert(Client::Host(h), Default::default());
            world.later(Duration::from_millis(1), Happening::AgentStarts(h));
        }
        for r in 0..world.replicas.len() {
            world.broker.links.insert(Client::Replica(r), Default::default());
            world.later(Duration::from_millis(2), Happening::ReplicaStarts(r));
        }
        for r in 0..world.registries.len() {
            world.broker.links.insert(Client::Registry(r), Default::default());
            world.later(Duration::from_millis(2), Happening::RegistryStarts(r));
        }
        if !by_hand {
            let all: Vec<Client> = world.broker.links.keys().copied().collect();
            for client in all {
                let phase = world.ether.millis(1, 1_000);
                world.later(phase, Happening::Beats(client));
            }
        }
        world.later(Duration::from_millis(50), Happening::OperatorActs);
        world.later(Duration::from_secs(3), Happening::Strike);
        world
    }

    /// A line of the story.
    pub fn say(&mut self, who: &str, what: fmt::Arguments<'_>) {
        self.story.tell(self.now, format_args!("{who}"), what);
    }

    /// A number that was not given before.
    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Lets this happen after `wait`.
    pub fn later(&mut self, wait: Duration, happening: Happening) {
        self.at(self.now + wait, happening);
    }

    /// Lets this happen at `at`.
    pub fn at(&mut self, at: Duration, happening: Happening) {
        let number = self.number();
        self.queue.insert((at.max(self.now), number), happening);
    }

    /// The wall clock of a machine whose clock is wrong by `skew` seconds.
    #[must_use]
    pub fn wall(&self, skew: i64) -> SystemTime {
        let seconds = WALL_AT_START_SECONDS.saturating_add_signed(skew);
        UNIX_EPOCH + Duration::from_secs(seconds) + self.now
    }

    /// How long a message takes.
    pub fn latency(&mut self) -> Duration {
        if self.faults.on(super::faults::Fault::SlowLine) && self.net.per_mille(20) {
            return self.net.millis(100, 3_000);
        }
        self.net.span(Duration::from_micros(80), Duration::from_millis(3))
    }

    /// Everything until `end` happens, or until something must never have happened.
    pub fn run_until(&mut self, end: Duration, steps_max: u64) {
        while self.checks.violation.is_none() && self.steps < steps_max {
            let Some(entry) = self.queue.first_entry() else { break };
            if entry.key().0 > end {
                break;
            }
            let ((at, _), happening) = entry.remove_entry();
            self.now = at;
            self.steps += 1;
            self.happen(happening);
            self.check_step();
        }
        if self.checks.violation.is_none() {
            self.now = self.now.max(end);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Strike => self.strike(),
            Happening::BrokerUp => self.broker_up(),
            Happening::LineMended(client) => self.line_mended(client),
            Happening::Connect(client) => self.connect(client),
            Happening::Relist(client, connection) => self.relist(client, connection),
            Happening::Feed(client, connection) => self.feed(client, connection),
            Happening::AgentStarts(h) => self.start_agent(h),
            Happening::NodeTimer(h, life, at) => self.node_timer(h, life, at),
            Happening::NodeInput(h, life, input) => self.node_input(h, life, input),
            Happening::NodeBuries(h) => self.bury(h),
            Happening::NodeLooks(h, life) => self.node_looks(h, life),
            Happening::ProbeEnds(h, life, asked) => self.probe_ends(h, life, asked),
            Happening::ProcStep(h, pid, step) => self.proc_step(h, pid, step),
            Happening::OutboxSends(h, life) => self.outbox_sends(h, life),
            Happening::OutboxArrives(h, life, request, events) => self.outbox_arrives(h, life, request, events),
            Happening::OutboxReply(h, life, request, stored) => self.outbox_reply(h, life, request, stored),
            Happening::ReplicaStarts(r) => self.start_replica(r),
            Happening::ReplicaLease(r, life) => self.replica_lease(r, life),
            Happening::ReplicaTurn(r, life) => self.replica_turn(r, life),
            Happening::ReplicaSends(r, life, deed) => self.replica_arrives(r, life, *deed),
            Happening::ReplicaReply(r, life, heard) => self.replica_reply(r, life, *heard),
            Happening::CommandsDue => self.commands_due(),
            Happening::CommandArrives(r, life, at, token) => self.command_arrives(r, life, at, token),
            Happening::RegistryStarts(r) => self.start_registry(r),
            Happening::OperatorActs => self.operator_acts(),
            Happening::Beats(of) => self.beats(of),
            Happening::Announces(of, life) => self.announces(of, life),
            Happening::LadderActs(instance) => self.ladder_acts(&instance),
        }
    }

    fn broker_up(&mut self) {
        if !self.broker.up {
            self.say("bus", format_args!("broker up"));
            self.broker.up = true;
            let clients: Vec<Client> = self.broker.links.keys().copied().collect();
            clients.into_iter().for_each(|client| self.reconnect_soon(client));
        }
    }

    fn line_mended(&mut self, client: Client) {
        self.broker.links.entry(client).or_default().cut = false;
        self.reconnect_soon(client);
    }

    /// Connects a client again in a while.
    pub fn reconnect_soon(&mut self, client: Client) {
        let wait = self.net.millis(1, 2_000);
        self.later(wait, Happening::Connect(client));
    }

    fn connect(&mut self, client: Client) {
        let lives = match client {
            Client::Host(h) => self.hosts[h].agent.is_some(),
            Client::Replica(r) => self.replicas[r].alive,
            Client::Registry(r) => self.registries[r].alive,
        };
        if !lives || !self.broker.up || self.broker.links.get(&client).is_some_and(|l| l.cut) {
            return;
        }
        self.broker.connect(client);
        self.feed_soon(client);
        let connection = self.broker.links.get(&client).map_or(0, |l| l.connection);
        self.later(RELIST, Happening::Relist(client, connection));
        match client {
            Client::Host(h) => {
                let (life, epoch) = (self.hosts[h].lives, self.broker.events.epoch);
                if let Some(agent) = &mut self.hosts[h].agent {
                    agent.events_epoch.get_or_insert(epoch);
                }
                self.later(Duration::from_micros(500), Happening::OutboxSends(h, life));
            }
            Client::Replica(r) => {
                if self.replicas[r].trade == Trade::Orchestrator {
                    self.broker.missions.watch(client);
                }
                self.replica_connected(r);
            }
            Client::Registry(_) => {}
        }
    }

    fn relist(&mut self, client: Client, connection: u64) {
        if self.broker.links.get(&client).is_some_and(|l| l.connected && l.connection == connection) {
            self.connect(client);
        }
    }

    /// What is stored reaches a client in a moment.
    pub fn feed_soon(&mut self, client: Client) {
        let Some(link) = self.broker.links.get_mut(&client).filter(|l| l.connected && !l.feeding) else { return };
        link.feeding = true;
        let connection = link.connection;
        let wait = self.latency();
        self.later(wait, Happening::Feed(client, connection));
    }

    /// What is stored reaches everybody in a moment.
    pub fn feed_all(&mut self) {
        let clients: Vec<Client> = self.broker.links.keys().copied().collect();
        clients.into_iter().for_each(|client| self.feed_soon(client));
    }

    fn feed(&mut self, client: Client, connection: u64) {
        if self.broker.links.get(&client).is_none_or(|l| !l.connected || l.connection != connection) {
            return;
        }
        if let Some(until) = self.paused(client) {
            self.at(until, Happening::Feed(client, connection));
            return;
        }
        self.broker.links.entry(client).or_default().feeding = false;
        let more = match client {
            Client::Host(h) => self.feed_host(h),
            Client::Replica(r) => self.feed_replica(r),
            Client::Registry(r) => self.feed_registry(r),
        };
        if more {
            self.feed_soon(client);
        }
    }

    fn paused(&self, client: Client) -> Option<Duration> {
        let until = match client {
            Client::Host(h) => self.hosts[h].paused_until,
            Client::Replica(r) => self.replicas[r].paused_until,
            Client::Registry(_) => None,
        };
        until.filter(|until| *until > self.now)
    }
}
