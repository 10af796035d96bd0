//! An agent that decides: it folds EVENTS and whatever else it reads to the head, decides under the leases of its shards, and is told what
//! came of it. Here is the wiring that all of them share, with the only `select!`; what is folded how, and what is decided, is the
//! [`Decider`]'s, and it is plain code without IO.

mod away;
mod numbers;
mod shell;
mod sources;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures::FutureExt as _;
use razar_bus::{BusError, CommandItem, FoldItem, IntentItem, IntentRecord, LeaseState, Query, ReceivedCommand, Start, WatchItem};
use razar_bus_schema::{
    bucket::IntentKey,
    shard::{ShardCount, Shards},
    stream::Store,
    time::until_shared,
    v1,
};
use tokio::sync::mpsc;

pub use self::{numbers::Numbers, shell::Shell};
use self::{
    shell::{Done, Heads},
    sources::{Input, Sources},
};
use crate::{Agent, Authority, Tenures, health::STARTING, snapshot, tenures::TenuresWanted, tick::TICK_INTERVAL};

/// Seconds that a shard's lease holds without renewal, unless the settings say otherwise: a third of them is a beat, so that both come
/// at one wake. On three brokers 12.
pub const LEASE_SECONDS: u64 = 3;

/// Outcomes of actions that wait to be folded; there are never more actions under way than commands and one write for each instance.
const OUTCOMES_MAX: usize = 256;
/// Inputs folded in a row before the next decision: a burst is decided on once.
const INPUTS_IN_A_ROW: usize = 512;
/// The leases are given back within this time at the end.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);
/// With so many inputs in one turn, or behind an event, nothing is let gather: there is enough to fold.
const MANY: usize = 64;
/// How long more is let come to an event, if nothing is due before: longer than most recoveries take, and shorter than anybody notices.
const GATHER: Duration = Duration::from_millis(10);
/// Keys of `/readyz`.
const EVENTS: &str = "events";
const INTENTS: &str = "intents";
const SHARDS: &str = "shards";

/// The two clocks at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, from any origin; all durations are measured by it.
    pub mono: Duration,
    /// Wall clock, for what people read and for the expiry of commands.
    pub wall: SystemTime,
}

/// An event of the fold.
#[derive(Debug)]
pub struct Folded<'e> {
    /// Sequence in EVENTS.
    pub sequence: u64,
    /// The event.
    pub event: &'e v1::Event,
    /// Events behind it.
    pub pending: u64,
    /// When the broker stored it.
    pub stored: SystemTime,
    /// Whether this replica may decide now.
    pub leads: bool,
}

/// Another source of inputs than the mesh's streams.
pub trait Source {
    /// What comes from it.
    type Item;

    /// The next item; `None`: there is nothing more. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Option<Self::Item>>;
}

/// No further source.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nothing;

impl Source for Nothing {
    type Item = std::convert::Infallible;

    fn next(&mut self) -> impl Future<Output = Option<Self::Item>> {
        std::future::pending()
    }
}

/// How long a replica that was started reads before it answers what it knows by then; questions wait meanwhile.
const ANSWERS_AFTER: Duration = Duration::from_secs(1);

/// What an agent folds and decides. Folds (`apply_…`) emit nothing; `decide` is called only by who may decide, after every burst of inputs
/// and at [`Decider::next_deadline`].
pub trait Decider: Sized {
    /// Kind of the agent.
    const AGENT: &'static str;
    /// Whether the fold begins at the registry's snapshot.
    const SNAPSHOT: bool = false;
    /// Whether it decides by intents.
    const INTENTS: bool = true;
    /// Whether its decisions are divided into shards. All that it decides is mesh-wide else, and belongs to the one there is.
    const DIVIDED: bool = false;
    /// Another bucket that it folds, and writes to.
    const STORE: Option<Store> = None;
    /// Verbs of the commands that it takes; none: it takes no commands.
    const VERBS: &'static [&'static str] = &[];

    /// Its settings.
    type Settings;
    /// What it decides.
    type Action;
    /// What came of an action.
    type Outcome: Send + 'static;
    /// A source of its own.
    type Source: Source;

    /// Where the fold of EVENTS begins, given the registry's newest snapshot (`None`: there is none, or none is asked for). What is left
    /// there is given to each [`Self::apply_reset`] of its epoch.
    fn begin(&mut self, _snapshot: &mut Option<v1::Observed>) -> Start {
        Start::Beginning
    }
    /// Forget what was folded of EVENTS; `epoch` begins, to be folded over `snapshot` where the registry's is of that epoch.
    fn apply_reset(&mut self, epoch: &str, snapshot: Option<&v1::Observed>, now: Now);
    /// Folds an event.
    fn apply_event(&mut self, folded: &Folded<'_>, now: Now);
    /// Passes over a message of EVENTS that is no event; `item` is a [`FoldItem::DeadLetter`].
    fn apply_dead_letter(&mut self, _item: &FoldItem, _shell: &Shell<Self>) {}
    /// Everything that was there is folded.
    fn apply_caught_up(&mut self, _sequence: u64, _now: Now) {}
    /// Forget what was folded of `intents`; `epoch` begins.
    fn apply_intents_epoch(&mut self, _epoch: &str, _now: Now) {}
    /// Folds a record; `None`: it was deleted or cannot be read, which says nothing but that the key has this revision.
    fn apply_intent(&mut self, _key: &IntentKey, _revision: u64, _intent: Option<Arc<v1::Intent>>, _now: Now) {}
    /// Folds an item of [`Self::STORE`].
    fn apply_store(&mut self, _item: WatchItem, _shell: &Shell<Self>, _now: Now) {}
    /// Takes a command; it is held under `token` until [`Shell::settle`].
    fn apply_command(&mut self, _token: u64, _received: &ReceivedCommand, _now: Now) {}
    /// Takes an item of its own source.
    fn apply_item(&mut self, _item: <Self::Source as Source>::Item, _shell: &Shell<Self>, _now: Now) {}
    /// The connection to the broker came up or was lost.
    fn apply_connection(&mut self, _up: bool, _now: Now) {}
    /// Folds what came of an action.
    fn apply_outcome(&mut self, outcome: Self::Outcome, now: Now);
    /// It may no longer decide: what was under way is for others to finish.
    fn stand_down(&mut self);
    /// It may decide about these shards from now on, and about no other: what was under way in those is for others to finish.
    fn apply_shards(&mut self, _shards: &Shards, _now: Now) {}
    /// It may decide from now on, about anything.
    fn take_over(&mut self) {}
    /// Whether nobody waits for what it makes of an event: it lets more come then, and folds them together. What the event sets going
    /// elsewhere, the recovery of a component before all, has the processors meanwhile.
    fn gathers(&self) -> bool {
        false
    }
    /// When to decide again if nothing happens, by [`Now::mono`]; `decided_at`: when it decided last, so that what has come due since is
    /// not passed over.
    fn next_deadline(&self, decided_at: Now) -> Option<Duration>;
    /// Decides.
    fn decide(&mut self, now: Now) -> Vec<Self::Action>;
    /// Carries an action out, or begins to.
    fn perform(&mut self, action: Self::Action, shell: &mut Shell<Self>, now: Now);
    /// Answers a question.
    fn answer(&self, query: &Query, _shell: &Shell<Self>) -> impl Future<Output = Result<(), BusError>> {
        query.refuse(404, "nobody is asked here")
    }
}

/// How an agent enters the mesh.
#[derive(Debug)]
pub struct Entry<S> {
    /// What it is for, in a few words: its line in the list of services.
    pub purpose: &'static str,
    /// Questions that it answers: verb and subject.
    pub endpoints: Vec<(&'static str, String)>,
    /// How long the leases of its shards hold without renewal: whole seconds, at least 2.
    pub lease_ttl: Duration,
    /// Its own source.
    pub source: S,
}

/// Runs a deciding agent until it is asked to end.
///
/// # Errors
/// When the settings are wrong, or the client refuses to listen.
pub async fn run<D: Decider>(agent: Agent<D::Settings>, mut decider: D, entry: Entry<D::Source>) -> Result<(), BusError> {
    let bus = agent.bus.clone();
    agent.health.hold(EVENTS, "events are not folded to the head yet");
    if D::INTENTS {
        agent.health.hold(INTENTS, "intents are not read yet");
    }
    agent.health.release(STARTING);
    let _beating = agent.beat();
    agent.announce();
    let (done, outcomes) = mpsc::channel(OUTCOMES_MAX);
    const { assert!(!(D::DIVIDED && D::STORE.is_some()), "a bucket of its own is written by one holder") };
    let count = if D::DIVIDED { agent.config.shards } else { ShardCount::ONE };
    let leases = bus.shard_leases(D::AGENT, &agent.config.replica, count, entry.lease_ttl)?;
    let queries = bus.serve(D::AGENT, agent.version, entry.purpose, &entry.endpoints).await?;
    let mut commands = if D::VERBS.is_empty() { None } else { Some(bus.serve_commands(D::AGENT).await?) };
    if let Some(commands) = commands.as_mut().filter(|_| D::DIVIDED) {
        commands.hear_handovers(&agent.config.replica).await?;
    }
    let mut snapshot = if D::SNAPSHOT { snapshot::soon(&agent).await } else { None };
    let start = decider.begin(&mut snapshot);
    let folds = matches!(start, Start::After { .. });
    let mut sources = Sources {
        events: bus.fold_events(start),
        intents: D::INTENTS.then(|| bus.watch_intents()),
        store: D::STORE.map(|store| bus.bucket(store).watch()),
        commands,
        queries,
        answers: !entry.endpoints.is_empty(),
        answers_now: false,
        leases,
        connection: bus.connection(),
        done: outcomes,
        shutdown: agent.shutdown.clone(),
        further: Some(entry.source),
    };
    let shell = Shell::new(agent, done);
    let mut running = Running {
        decided_at: shell.now(),
        shell,
        decider,
        snapshot,
        tenures: Tenures::new(count),
        store_applied: 0,
        store_head: None,
        heads_asked: None,
        began: Instant::now(),
        has_caught_up: false,
        folds,
        decides: Shards::new(count, []),
        folded: 0,
    };
    running.shell.numbers.shards(&running.decides);
    running.connection_changed(&mut sources);
    running.leases_changed(&mut sources);
    while running.turn(&mut sources).await {}
    sources.leases.release(RELEASE_LIMIT).await;
    Ok(())
}

/// A decider in its shell.
struct Running<D: Decider> {
    shell: Shell<D>,
    decider: D,
    /// The registry's snapshot, over which the stream is folded.
    snapshot: Option<v1::Observed>,
    tenures: Tenures,
    store_applied: u64,
    /// Head of [`Decider::STORE`] when the heads were read.
    store_head: Option<u64>,
    heads_asked: Option<(TenuresWanted, Instant)>,
    began: Instant,
    /// EVENTS were read to their head once.
    has_caught_up: bool,
    /// A fold has begun before.
    folds: bool,
    /// What it might decide about at the end of the last turn.
    decides: Shards,
    /// By when it looked at that, and decided, last.
    decided_at: Now,
    /// Inputs of the last turn.
    folded: usize,
}

impl<D: Decider> Running<D> {
    /// Waits for an input, folds it and what else is there, then decides once. False: the end.
    async fn turn(&mut self, sources: &mut Sources<D>) -> bool {
        let leads = self.leads(sources);
        sources.answers_now = self.has_caught_up || self.began.elapsed() >= ANSWERS_AFTER;
        // To look for it may cost as much as to decide, which only who leads does.
        let deadline = if leads { self.decider.next_deadline(self.decided_at) } else { None };
        let deadline = deadline.into_iter().chain(self.shell.away.next_try(self.shell.now().mono)).min();
        let now = self.shell.now();
        let tick = until_shared(TICK_INTERVAL, now.wall);
        let timer = deadline.map_or(tick, |at| at.saturating_sub(now.mono).min(tick));
        let first = sources.next(leads, timer).await;
        let question = if self.may_gather(&first) {
            let left = (now.mono + timer).saturating_sub(self.shell.now().mono);
            sources.question_within(GATHER.min(left)).await
        } else {
            None
        };
        // It is answered behind what has come, and so are those that come with it.
        sources.answers_now &= question.is_none();
        let mut input = Some(first);
        let mut folded = 0;
        while let Some(next) = input {
            if matches!(next, Input::Stop | Input::Closed) {
                return false;
            }
            self.handle(next, sources).await;
            folded += 1;
            let leads = self.leads(sources);
            input = if folded < INPUTS_IN_A_ROW { sources.next(leads, TICK_INTERVAL).now_or_never() } else { None };
        }
        self.folded = folded;
        if let Some(question) = question {
            self.handle(question, sources).await;
        }
        self.shell.agent.ticker.tick();
        self.ask_heads();
        self.decide(sources);
        true
    }

    /// Whether more is to come to `first` before it is folded: nobody waits for what follows from it, and there is not enough already.
    fn may_gather(&self, first: &Input<D>) -> bool {
        let few = |pending: u64| usize::try_from(pending).is_ok_and(|pending| pending < MANY);
        let begins = matches!(first, Input::Event(FoldItem::Event { pending, .. }) if few(*pending))
            || matches!(first, Input::Intent(IntentItem::Record { .. }));
        begins && self.folded < MANY && self.has_caught_up && self.decider.gathers() && !self.shell.holds_commands()
    }

    /// The shards about which decisions may be made: under their leases, with everything read up to where it was when each was taken.
    fn held(&self, sources: &Sources<D>) -> Shards {
        self.tenures.held(|shard| self.has_read_store() && sources.leases.holds(shard))
    }

    /// Whether there is one of them.
    fn leads(&self, sources: &Sources<D>) -> bool {
        self.tenures.holds_any(|shard| self.has_read_store() && sources.leases.holds(shard))
    }

    fn has_read_store(&self) -> bool {
        D::STORE.is_none() || self.store_head.is_some_and(|head| self.store_applied >= head)
    }

    fn decide(&mut self, sources: &mut Sources<D>) {
        let held = self.held(sources);
        let now = self.shell.now();
        self.decided_at = now;
        if held != self.decides {
            tracing::info!(shards = ?held.held(), of = held.count().get(), "decides");
            self.shell.numbers.shards(&held);
            self.decider.apply_shards(&held, now);
            if self.decides.is_none() {
                self.decider.take_over();
            }
            if held.is_none() {
                self.stand_down(sources);
            }
            self.shell.give_away(&held, now.mono);
            self.decides = held;
        }
        self.hand_over(sources, now);
        if !self.decides.is_none() {
            for action in self.decider.decide(now) {
                self.decider.perform(action, &mut self.shell, now);
            }
        }
    }

    /// Commands about what another replica decides go there; what this one has come to decide about it takes itself.
    fn hand_over(&mut self, sources: &Sources<D>, now: Now) {
        let decides = &self.decides;
        for received in self.shell.away.take(|target| decides.decides(target)) {
            let token = self.shell.next_token();
            self.decider.apply_command(token, &received, now);
            self.shell.hold(token, received);
        }
        let (count, replica) = (decides.count(), &self.shell.agent.config.replica);
        let holder = |component: &str| sources.leases.holder(count.shard_of(component)).filter(|holder| holder != replica);
        for (number, to) in self.shell.away.due_to(now.mono, holder) {
            if let Some(received) = self.shell.away.get(number) {
                self.shell.handing_over(number, received.hand_over(&to));
            }
        }
    }

    async fn handle(&mut self, input: Input<D>, sources: &mut Sources<D>) {
        let now = self.shell.now();
        match input {
            Input::Event(item) => self.fold_event(item, self.leads(sources), now),
            Input::Intent(item) => self.fold_intent(item, now),
            Input::Store(item) => self.fold_store(item, now),
            Input::Command(item) => self.take_command(item, now),
            Input::Query(query) => {
                if let Err(error) = self.decider.answer(&query, &self.shell).await {
                    tracing::debug!(%error, "a question was not answered");
                }
            }
            Input::Item(item) => self.decider.apply_item(item, &self.shell, now),
            Input::Lease => self.leases_changed(sources),
            Input::Connection => self.connection_changed(sources),
            Input::Done(Done::Outcome(outcome)) => self.decider.apply_outcome(outcome, now),
            Input::Done(Done::Heads(wanted, heads)) => self.heads_read(&wanted, heads, sources),
            Input::Done(Done::HandedOver(number, taken)) => self.shell.away.handed_over(number, taken, now.mono),
            Input::Timer | Input::Stop | Input::Closed => {}
        }
    }

    fn fold_event(&mut self, item: FoldItem, leads: bool, now: Now) {
        match item {
            FoldItem::Reset { epoch } => {
                tracing::info!(epoch, "events are folded from their beginning");
                let snapshot = self.snapshot.as_ref().filter(|s| s.stream_epoch == epoch);
                self.decider.apply_reset(&epoch, snapshot, now);
                if std::mem::replace(&mut self.folds, true) {
                    // A stream made anew under a running agent does not know that it runs.
                    self.shell.agent.announce_in(&epoch);
                }
                self.tenures.each(Authority::events_reset);
                self.shell.agent.health.hold(EVENTS, "events are not folded to the head yet");
            }
            FoldItem::Event { sequence, event, pending, stored, .. } => {
                let folded = Folded { sequence, event: &event, pending, stored, leads };
                self.decider.apply_event(&folded, now);
                self.shell.numbers.folded(pending);
                self.progressed(sequence);
            }
            FoldItem::DeadLetter { sequence, ref subject, ref why, .. } => {
                tracing::warn!(sequence, subject, why, "a message of the stream is no event");
                self.decider.apply_dead_letter(&item, &self.shell);
                self.shell.numbers.dead_letter();
                self.progressed(sequence);
            }
            FoldItem::CaughtUp { sequence } => {
                self.has_caught_up = true;
                self.decider.apply_caught_up(sequence, now);
                self.shell.numbers.caught_up();
                self.progressed(sequence);
                self.shell.agent.health.release(EVENTS);
            }
        }
    }

    fn progressed(&mut self, sequence: u64) {
        self.tenures.each(|a| a.events_applied(sequence));
        self.shell.agent.ticker.applied(sequence);
    }

    fn fold_intent(&mut self, item: IntentItem, now: Now) {
        match item {
            IntentItem::Epoch(epoch) => {
                self.decider.apply_intents_epoch(&epoch, now);
                self.tenures.each(Authority::intents_reset);
                self.shell.agent.health.hold(INTENTS, "intents are not read yet");
            }
            IntentItem::Record { key, revision, record, settled } => {
                match record {
                    IntentRecord::Known { key, intent } => self.decider.apply_intent(&key, revision, Some(Arc::from(intent)), now),
                    IntentRecord::Foreign => {}
                    IntentRecord::Deleted => self.spoiled(&key, revision, now),
                    IntentRecord::Undecodable { why, .. } => {
                        tracing::warn!(key, why, "a record cannot be read");
                        self.shell.numbers.dead_letter();
                        self.spoiled(&key, revision, now);
                    }
                }
                if settled {
                    self.tenures.each(|a| a.intents_applied(revision));
                }
            }
            IntentItem::Settled { revision } => {
                self.tenures.each(|a| a.intents_applied(revision));
                self.shell.agent.health.release(INTENTS);
            }
        }
    }

    fn spoiled(&mut self, key: &str, revision: u64, now: Now) {
        if let Some(key) = IntentKey::parse(key) {
            self.decider.apply_intent(&key, revision, None, now);
        }
    }

    fn fold_store(&mut self, item: WatchItem, now: Now) {
        match &item {
            WatchItem::Epoch(_) => {
                self.store_applied = 0;
                // The head that was read is of the bucket before it.
                self.tenures.each(Authority::store_reset);
            }
            WatchItem::Entry { revision, settled: true, .. } | WatchItem::Settled { revision } => {
                self.store_applied = self.store_applied.max(*revision);
            }
            WatchItem::Entry { .. } => {}
        }
        self.decider.apply_store(item, &self.shell, now);
    }

    fn take_command(&mut self, item: CommandItem, now: Now) {
        match item {
            CommandItem::Command(received) => {
                let (command, verb, target) = (&received.command.command_id, &received.verb, &received.target);
                tracing::info!(command, verb, target, repeated = received.repeated, handed_over = received.handed_over, "command");
                if !self.decides.decides(away::component(target)) {
                    self.shell.away.put(*received, now.mono);
                    return;
                }
                let token = self.shell.next_token();
                self.decider.apply_command(token, &received, now);
                self.shell.hold(token, *received);
            }
            CommandItem::Refused(refused) => {
                let (subject, code, why) = (&refused.subject, refused.code, &refused.why);
                tracing::warn!(subject, code, why, sequence = refused.sequence, "a command was put aside");
                self.shell.numbers.dead_letter();
                self.shell.numbers.answered("other", false);
                self.shell.put_away(*refused);
            }
        }
    }

    fn leases_changed(&mut self, sources: &mut Sources<D>) {
        for shard in self.decides.count().all() {
            match sources.leases.state(shard) {
                LeaseState::Held { fence, .. } => self.tenures.taken(shard, fence),
                LeaseState::Waiting => self.tenures.lost(shard),
            }
        }
        let foreign = sources.leases.foreign().filter(|_| !self.leads(sources));
        let count = self.decides.count();
        let why =
            foreign.map(|other| format!("other replicas divide into {other} shards, this one into {count}: it waits for them to end"));
        self.shell.agent.health.set(SHARDS, why);
    }

    fn connection_changed(&mut self, sources: &mut Sources<D>) {
        let up = sources.connection.borrow_and_update().is_up();
        self.decider.apply_connection(up, self.shell.now());
        if up {
            self.tenures.each(Authority::connected);
        } else {
            self.tenures.each(Authority::disconnected);
            self.stand_down(sources);
        }
    }

    /// Commands that are not answered go back, for whoever may decide then.
    fn stand_down(&mut self, sources: &mut Sources<D>) {
        if let Some(commands) = &mut sources.commands {
            commands.pause();
        }
        self.decider.stand_down();
        self.shell.give_commands_back();
    }

    fn ask_heads(&mut self) {
        let wanted = self.tenures.wants_heads();
        let asked = self.heads_asked.as_ref().is_some_and(|(asked, at)| *asked == wanted && at.elapsed() < razar_bus::REQUEST_LIMIT);
        if wanted.is_empty() || asked {
            return;
        }
        self.heads_asked = Some((wanted.clone(), Instant::now()));
        self.store_head = None;
        self.shell.read_heads(wanted, self.decides.count());
    }

    fn heads_read(&mut self, wanted: &TenuresWanted, heads: Result<Heads, BusError>, sources: &Sources<D>) {
        match heads {
            Ok(Heads { division: Some(other), .. }) => {
                let count = self.decides.count();
                tracing::error!(%other, %count, "other replicas divide into another number of shards; this one waits for them to end");
                sources.leases.stand_aside(&wanted.iter().map(|(shard, _)| *shard).collect());
                self.heads_asked = None;
            }
            Ok(Heads { events, intents, store, division: None }) => {
                if self.tenures.wants_heads() == *wanted {
                    self.store_head = Some(store);
                }
                self.tenures.heads_read(wanted, events, intents);
            }
            Err(error) => {
                tracing::debug!(%error, "the heads cannot be read yet");
                self.heads_asked = None;
            }
        }
    }
}
