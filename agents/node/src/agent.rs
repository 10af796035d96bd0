//! The node's agent: wiring only. News of processes, probes, the bus and the clock go into the policy; what it decides goes to the
//! processes, the journal and the outbox. The only `select!` of the node.

use std::{
    ffi::OsString,
    fs::File,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use prost::Message as _;
use razar_agent_kit::tick::every_shared;
use razar_bus::{Bus, CoreMessage, IntentItem, IntentRecord, IntentWatch, QueryServer, Subscription};
use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1::{self, intent::Want, probe::Check},
};
use razar_os::{DeadlineTimer, NodeLock, monotonic_now};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    config::NodeConfig,
    guard::{Exits, GuardWatch},
    hooks::Hooks,
    journal::Journal,
    logs::LogStore,
    news::News,
    outbox::Outbox,
    policy::{
        Action, Input, Node, Now, Spawn, ViewChange,
        evidence::{Sample, Window},
        probing::{Answer, Role},
    },
    probe::{Outcome, ProbeContext, Prober},
    processes::{Cleared, ProcessNews, Processes, Word},
    sampling::Sampler,
    usage::Usages,
    view,
};

/// News that wait for the loop; a burst of all instances with all their probes fits.
const NEWS_MAX: usize = 16_384;
/// Time between two turns of the house: beats, what the disk held back, log losses.
const TURN: Duration = Duration::from_secs(1);
/// Longest wait at the end for the broker to take the last events.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// The agent.
pub struct Agent {
    pub(crate) config: NodeConfig,
    pub(crate) policy: Node,
    pub(crate) journal: Journal,
    pub(crate) outbox: Outbox,
    pub(crate) processes: Processes,
    hooks: Hooks,
    pub(crate) logs: LogStore,
    pub(crate) bus: Bus,
    pub(crate) usages: Usages,
    pub(crate) joined: v1::NodeJoined,
    pub(crate) house: crate::house::House,
    prober: Prober,
    exits: Exits,
    plan: view::PlanFile,
    /// The disk did not take the plan: tried again each second.
    unstored: bool,
    /// Ended processes that the journal still holds.
    buried: Vec<(Instance, Incarnation)>,
    /// What was heard, and is not written down before the turn is over.
    heard: Vec<Word>,
    timer: DeadlineTimer,
    pub(crate) news: mpsc::Sender<News>,
    _lock: NodeLock,
}

/// What the loop waits for.
pub(crate) struct Sources {
    pub(crate) processes: mpsc::Receiver<ProcessNews>,
    pub(crate) news: mpsc::Receiver<News>,
    pub(crate) intents: IntentWatch,
    pub(crate) queries: Option<QueryServer>,
    pub(crate) beats: Option<Subscription>,
    pub(crate) guard: GuardWatch,
}

/// What was made for the agent before it runs.
pub(crate) struct Parts {
    pub(crate) config: NodeConfig,
    pub(crate) policy: Node,
    pub(crate) journal: Journal,
    pub(crate) outbox: Outbox,
    pub(crate) processes: Processes,
    pub(crate) logs: LogStore,
    pub(crate) bus: Bus,
    pub(crate) joined: v1::NodeJoined,
    pub(crate) exits: Exits,
    pub(crate) buried: Vec<(Instance, Incarnation)>,
    pub(crate) lock: NodeLock,
    pub(crate) house: crate::house::House,
}

/// How the agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everything was stopped, as asked.
    Stopped,
    /// Its guard is gone and a new one was started, whose agent takes over.
    Replaced,
}

/// The two clocks now.
#[must_use]
pub fn now() -> Now {
    Now { mono: monotonic_now(), wall: SystemTime::now() }
}

impl Agent {
    pub(crate) fn new(parts: Parts) -> Result<(Self, mpsc::Receiver<News>)> {
        let (news, receiver) = mpsc::channel(NEWS_MAX);
        let agent = Self {
            hooks: Hooks::open(parts.config.path("hooks"), parts.processes.places().clone(), news.clone()),
            plan: view::PlanFile::new(parts.config.path("plan.pb")),
            config: parts.config,
            policy: parts.policy,
            journal: parts.journal,
            outbox: parts.outbox,
            processes: parts.processes,
            logs: parts.logs,
            bus: parts.bus,
            usages: Usages::default(),
            joined: parts.joined,
            house: parts.house,
            prober: Prober::new(),
            exits: parts.exits,
            unstored: false,
            buried: parts.buried,
            heard: Vec::new(),
            timer: DeadlineTimer::new().context("making a timer")?,
            news,
            _lock: parts.lock,
        };
        Ok((agent, receiver))
    }

    /// Runs until everything is stopped, or another agent takes over.
    pub(crate) async fn run(mut self, sources: Sources) -> Result<Ending> {
        let Sources { mut processes, mut news, mut intents, mut queries, mut beats, guard } = sources;
        // Watched once: its descriptor would otherwise be registered anew at each turn.
        let guard_gone = guard.gone();
        tokio::pin!(guard_gone);
        let mut guarded = true;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut acked = self.outbox.acked();
        let mut connection = self.bus.connection();
        let mut turn = every_shared(TURN);
        self.turn()?;
        self.keep_house();
        while !self.policy.finished() {
            tokio::select! {
                biased;
                // Seldom due, and not to wait until a burst of what follows is over.
                _ = turn.tick() => self.keep_house(),
                _ = terminate.recv() => self.policy.apply(Input::Shutdown, now()),
                _ = interrupt.recv() => self.policy.apply(Input::Shutdown, now()),
                Some(news) = processes.recv() => self.on_process(news),
                Some(news) = news.recv() => self.on_news(news),
                result = self.timer.expired() => result.context("the timer failed")?,
                Some(item) = intents.next() => self.on_intent(item),
                Some(query) = next_query(&mut queries) => self.on_query(query),
                Some(beat) = next_beat(&mut beats) => self.on_beat(&beat),
                Ok(()) = acked.changed() => self.on_acked(*acked.borrow_and_update()),
                Ok(()) = connection.changed() => self.renew_health(),
                gone = &mut guard_gone, if guarded => {
                    if self.on_guard_gone(gone) {
                        return self.hand_over().await;
                    }
                    guarded = false;
                }
            }
            self.turn()?;
        }
        self.end().await
    }

    async fn end(mut self) -> Result<Ending> {
        self.hooks.close().await;
        self.outbox.drained(DRAIN_LIMIT).await;
        self.house.close().await;
        self.bus.close(DRAIN_LIMIT).await;
        self.processes.close();
        self.journal.close().context("closing the journal")?;
        Ok(Ending::Stopped)
    }

    async fn hand_over(self) -> Result<Ending> {
        self.bus.close(DRAIN_LIMIT).await;
        self.journal.close().context("closing the journal")?;
        Ok(Ending::Replaced)
    }

    /// Lets the policy decide until it has nothing more to do at this instant.
    fn turn(&mut self) -> Result<()> {
        self.house.ticked();
        loop {
            let actions = self.policy.decide(now());
            if actions.is_empty() {
                break;
            }
            actions.into_iter().for_each(|action| self.act(action));
        }
        self.processes.lay_to_rest();
        // What follows from an end is written before the process is forgotten: who dies in between finds it again.
        for (instance, incarnation) in std::mem::take(&mut self.buried) {
            self.note(|journal| journal.gone(&instance, incarnation));
        }
        std::mem::take(&mut self.heard).into_iter().for_each(Word::done);
        self.timer.set(self.policy.next_deadline()).context("setting the timer")
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Spawn(spawn) => self.spawn(&spawn),
            Action::Signal { instance, incarnation, signal } => self.processes.signal(&instance, incarnation, signal),
            Action::Kill { instance, incarnation } => self.processes.kill(&instance, incarnation),
            Action::ClearState { instance, paths } => self.clear_state(instance, paths),
            Action::RunHook(run) => self.hooks.run(*run),
            Action::EndHook(key) => self.hooks.end(&key),
            Action::Probe { instance, incarnation, role, timeout, spec } => self.probe(instance, incarnation, role, timeout, &spec),
            Action::Remember(memory) => self.note(|journal| journal.remember(*memory)),
            Action::StorePlan(change) => self.store_plan(&change),
            Action::Tell(event) => self.tell(*event),
        }
    }

    fn store_plan(&mut self, change: &v1::PlanOnDisk) {
        let stored = self.plan.store(change, || self.policy.plan_on_disk());
        self.note_stored(stored);
    }

    fn note_stored(&mut self, stored: Result<Option<Arc<File>>, view::ViewError>) {
        self.unstored = stored.is_err();
        match stored {
            Ok(Some(file)) => self.journal.sync_with(&file),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the plan could not be kept on disk"),
        }
    }

    fn tell(&mut self, event: v1::Event) {
        self.house.told(&event);
        match self.journal.append_event(event) {
            Ok(events) => events.into_iter().for_each(|event| self.outbox.push(event)),
            Err(error) => tracing::error!(%error, "an event could not be journalled"),
        }
    }

    fn note(&mut self, write: impl FnOnce(&mut Journal) -> Result<(), crate::journal::JournalError>) {
        if let Err(error) = write(&mut self.journal) {
            tracing::error!(%error, "the journal could not be written");
        }
    }

    fn spawn(&mut self, spawn: &Spawn) {
        let (instance, incarnation) = (spawn.instance.clone(), spawn.incarnation);
        let outcome = self.processes.plan(spawn).and_then(|(planned, prepared)| {
            self.note(|journal| journal.spawn_planned(planned.clone()));
            let traceparent = crate::traces::of_start(spawn);
            let process = self.processes.spawn(spawn, prepared, &traceparent)?;
            self.note(|journal| journal.spawned(v1::Spawned { planned: Some(planned), process: Some(process.clone()) }));
            Ok(process)
        });
        let input = match outcome {
            Ok(process) => Input::Spawned { instance, incarnation, process },
            Err(why) => {
                self.note(|journal| journal.gone(&instance, incarnation));
                self.processes.discard(spawn);
                Input::SpawnFailed { instance, incarnation, why }
            }
        };
        self.policy.apply(input, now());
    }

    fn on_process(&mut self, news: ProcessNews) {
        match news {
            ProcessNews::Ended(instance, incarnation) => {
                if let Some(cleared) = self.processes.clear(&instance, incarnation) {
                    self.bury(&instance, incarnation, cleared);
                }
            }
            ProcessNews::Cleared(instance, incarnation, cleared) => self.bury(&instance, incarnation, cleared),
            ProcessNews::Sign(instance, incarnation, role, detail) => {
                self.policy.apply(Input::Sign { instance, incarnation, role, detail }, now());
            }
            ProcessNews::Word(word) => self.on_word(word),
        }
    }

    fn on_word(&mut self, word: Word) {
        // Not known yet what it means: the plan could not be read, and the record is to come. So is the word then.
        let Some(spec) = self.policy.instance(&word.instance).and_then(|i| i.spec().cloned()) else { return };
        for (role, said) in word.signs(&spec) {
            let (instance, incarnation) = (word.instance.clone(), word.incarnation);
            self.policy.apply(Input::Sign { instance, incarnation, role, detail: said.to_owned() }, now());
        }
        self.heard.push(word);
    }

    fn bury(&mut self, instance: &Instance, incarnation: Incarnation, cleared: Cleared) {
        let Some((status, last_error)) = self.processes.bury(instance, incarnation, &mut self.exits) else { return };
        self.usages.forget(instance);
        let (id, stragglers) = (instance.clone(), cleared.stragglers);
        let exited = Input::Exited { instance: id.clone(), incarnation, status, last_error, while_away: false, stragglers };
        self.policy.apply(exited, now());
        if !cleared.survivors.is_empty() {
            self.policy.apply(Input::Survived { instance: id, incarnation, pids: cleared.survivors }, now());
        }
        self.buried.push((instance.clone(), incarnation));
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::Probed(input) => self.policy.apply(*input, now()),
            News::Prepared(instance, failed) => self.policy.apply(Input::Prepared { instance, failed }, now()),
            News::HookEnded(input) => {
                if let Input::HookEnded { key, .. } = &*input {
                    self.hooks.ended(key);
                }
                self.policy.apply(*input, now());
            }
            News::Looked(look) => self.on_looked(*look),
            News::LookedForEvents(look) => self.on_looked_for_events(&look),
            News::Measured(usages) => self.usages.put(usages),
        }
    }

    fn on_intent(&mut self, item: IntentItem) {
        let settled = match item {
            IntentItem::Epoch(epoch) => {
                self.policy.apply(Input::View(ViewChange::Epoch(epoch)), now());
                false
            }
            IntentItem::Settled { .. } => true,
            IntentItem::Record { key, revision, record, settled } => {
                let intent = match record {
                    IntentRecord::Known { intent, .. } => Some(Some(intent)),
                    IntentRecord::Undecodable { .. } => Some(None),
                    IntentRecord::Foreign | IntentRecord::Deleted => None,
                };
                if let Some(intent) = intent {
                    self.expect(intent.as_deref());
                    self.policy.apply(Input::View(ViewChange::Record { key, revision, intent }), now());
                }
                settled
            }
        };
        if settled {
            self.policy.apply(Input::View(ViewChange::Settled), now());
        }
    }

    /// What a record will have started here is made ready for.
    fn expect(&self, intent: Option<&v1::Intent>) {
        if let Some(Want::Desired(desired)) = intent.and_then(|i| i.want.as_ref())
            && desired.node == self.config.node
            && desired.mode() != v1::RunMode::Stop
            && let Some(Ok(instance)) = desired.instance.as_ref().map(Instance::try_from)
        {
            self.processes.expect(instance);
        }
    }

    fn on_beat(&mut self, message: &CoreMessage) {
        let Ok(beat) = v1::Heartbeat::decode(message.payload.clone()) else { return };
        let Some(inst) = beat.id.parse::<Instance>().ok().and_then(|id| self.policy.instance(&id)) else { return };
        let named = Incarnation::new(beat.generation, beat.start);
        if named != Incarnation::default() && named != inst.incarnation {
            return;
        }
        let Some(spec) = inst.spec().cloned() else { return };
        let (instance, incarnation) = (inst.id.clone(), inst.incarnation);
        for role in Role::ALL {
            if matches!(role.probe(&spec).and_then(|p| p.check.as_ref()), Some(Check::Heartbeat(_))) {
                let detail = format!("beat {}", beat.cycle);
                self.policy.apply(Input::Sign { instance: instance.clone(), incarnation, role, detail }, now());
            }
        }
    }

    fn on_acked(&mut self, sequence: u64) {
        self.note(|journal| journal.acknowledged(sequence));
        if sequence > 0 {
            self.look_for_events();
        }
    }

    fn on_guard_gone(&self, gone: std::io::Result<()>) -> bool {
        if let Err(error) = gone {
            tracing::error!(%error, "the guard cannot be watched");
            return false;
        }
        let command: Vec<OsString> = std::env::current_exe().map(|exe| vec![exe.into(), "guard".into()]).unwrap_or_default();
        let sockets: Vec<_> = self.processes.notify_sockets().map(AsFd::as_fd).collect();
        match crate::guard::respawn(&command, &self.config.state_dir, &sockets) {
            Ok(_) => true,
            Err(error) => {
                tracing::error!(%error, "no new guard could be started; the node goes on without one");
                false
            }
        }
    }

    /// What is due each second.
    fn keep_house(&mut self) {
        self.journal.retry_held().into_iter().for_each(|event| self.outbox.push(event));
        // What the disk holds of the plan after a sync that failed is not known.
        if self.journal.has_sync_failed() || self.unstored {
            let stored = self.plan.store_whole(&self.policy.plan_on_disk());
            self.note_stored(stored.map(|()| None));
        }
        for loss in self.processes.log_losses() {
            tracing::warn!(instance = %loss.instance, bytes = loss.lost_bytes, "output came too fast; the oldest of it was not kept");
        }
        self.usages.measure_when_due(&self.processes, &self.news);
        self.tend_house();
    }

    fn clear_state(&self, instance: Instance, paths: Vec<String>) {
        let news = self.news.clone();
        tokio::task::spawn_blocking(move || {
            let failed = paths.iter().find_map(|path| crate::state::remove(path).err());
            let _ = news.blocking_send(News::Prepared(instance, failed));
        });
    }

    fn probe(&self, instance: Instance, incarnation: Incarnation, role: Role, timeout: Duration, spec: &v1::ComponentSpec) {
        let Some(probe) = role.probe(spec) else { return };
        let mut probe = probe.clone();
        probe.timeout = Some(razar_bus_schema::time::duration(timeout));
        let tree = self.processes.get(&instance, incarnation).map(|r| r.tree.clone()).filter(|_| role == Role::Liveness);
        let sampler = Sampler::new(tree);
        let context = self.probe_context(&probe, &instance, incarnation, spec);
        let (prober, news, bus) = (self.prober.clone(), self.news.clone(), self.bus.clone());
        tokio::spawn(async move {
            let (answer, detail, took, before) = if Prober::asks(&probe) {
                ask(&prober, &probe, &context, timeout, &sampler).await
            } else {
                let (before, beats) = (begin(&sampler, timeout).await, matches!(probe.check, Some(Check::Heartbeat(_))));
                let heard = !beats || bus.is_up();
                tokio::time::sleep(timeout).await;
                let heard = heard && (!beats || bus.is_up());
                let answer = if heard { Answer::Failed } else { Answer::Void };
                (answer, "no sign of life".to_owned(), timeout, before)
            };
            let window = match before.filter(|_| matches!(answer, Answer::Failed | Answer::Refused)) {
                None => None,
                Some((from, timeout, before)) => {
                    let of = |(until, after): (Duration, Sample)| Window { before, after, timeout, lasted: until.saturating_sub(from) };
                    sampler.take().await.map(of)
                }
            };
            let input = Input::Probed { instance, incarnation, role, answer, detail, took, window };
            let _ = news.send(News::Probed(Box::new(input))).await;
        });
    }

    fn probe_context(&self, probe: &v1::Probe, instance: &Instance, incarnation: Incarnation, spec: &v1::ComponentSpec) -> ProbeContext {
        if !matches!(probe.check, Some(Check::Exec(_))) {
            return ProbeContext::default();
        }
        let server = self.config.servers.first().map_or("", String::as_str);
        let who = crate::environment::Who { mesh: &self.config.mesh, server, instance, incarnation, notify: None, traceparent: "" };
        let env = crate::environment::environment(spec, &who, |name| std::env::var_os(name)).unwrap_or_default();
        ProbeContext { env, working_dir: spec.working_dir.clone().into() }
    }
}

async fn next_query(queries: &mut Option<QueryServer>) -> Option<razar_bus::Query> {
    match queries {
        Some(queries) => queries.next().await,
        None => std::future::pending().await,
    }
}

async fn next_beat(beats: &mut Option<Subscription>) -> Option<CoreMessage> {
    match beats {
        Some(beats) => beats.next().await,
        None => std::future::pending().await,
    }
}

/// Share of the timeout after which a probe without an answer is looked at: most answer sooner, and looking costs more than asking.
const LOOK_DIVISOR: u32 = 5;

/// The beginning of a window: since when, how long it was to last, and what was seen.
type Begun = (Duration, Duration, Sample);

/// Begins a window that is to last `timeout`.
async fn begin(sampler: &Sampler, timeout: Duration) -> Option<Begun> {
    sampler.take().await.map(|(at, seen)| (at, timeout, seen))
}

/// Puts the question; what the kernel says of the tree is read only when no answer comes soon, or when it says no.
async fn ask(
    prober: &Prober,
    probe: &v1::Probe,
    context: &ProbeContext,
    timeout: Duration,
    sampler: &Sampler,
) -> (Answer, String, Duration, Option<Begun>) {
    let look_after = timeout / LOOK_DIVISOR;
    let question = prober.run(probe, context);
    tokio::pin!(question);
    let mut begun = None;
    let answer = match tokio::time::timeout(look_after, &mut question).await {
        Ok(answer) => answer,
        Err(_) => tokio::select! {
            biased;
            answer = &mut question => answer,
            taken = begin(sampler, timeout.saturating_sub(look_after)) => {
                begun = taken;
                question.await
            }
        },
    };
    let meaning = match answer.outcome {
        Outcome::Passed => Answer::Passed,
        Outcome::Refused => Answer::Refused,
        Outcome::Failed | Outcome::TimedOut => Answer::Failed,
    };
    // Too short a window shows everybody at rest.
    begun = begun.filter(|(at, ..)| monotonic_now().saturating_sub(*at) >= look_after);
    if meaning != Answer::Passed && begun.is_none() {
        // It said no at once, or could not be looked at in time: the window is what follows.
        begun = begin(sampler, look_after).await;
        if begun.is_some() {
            tokio::time::sleep(look_after).await;
        }
    }
    (meaning, answer.detail, answer.took, begun)
}
