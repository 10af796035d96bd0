//! The node's own household: its beats on the bus, the spans that its events complete, its numbers, and what its health endpoint says.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, SystemTime},
};

use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use prost::Message as _;
use razar_agent_kit::{Health, LoopTicker, Metrics, Spans, health, http, metrics};
use razar_bus::Bus;
use razar_bus_schema::{
    time,
    v1::{self, event::Fact},
};
use razar_os::{ThreadTimes, monotonic_now};

use crate::{
    agent::Agent,
    config::NodeConfig,
    news::News,
    pace::Pace,
    policy::{
        Group, Input, Now,
        upkeep::{Chore, EventsSeen, Look, Upkeep},
    },
    stores,
    system::Ports,
    traces::Traces,
};

/// Key of the reason on `/readyz` while the journal cannot be written.
const JOURNAL: &str = "journal";
/// Key of the reason on `/readyz` while the disk, or what the broker keeps on it, is not as it must be.
const STORES: &str = "stores";
/// Turns of the house between two looks at disk and stores: what is gone is made again within some seconds, for one question to the broker.
const LOOK_TURNS: u64 = 2;
/// Name of the kind, for beats and spans.
const KIND: &str = "node";

/// Numbers of the node that the loop renews each second.
struct Numbers {
    events_told: Counter,
    unacknowledged: Gauge,
    instances: Family<metrics::Labels, Gauge>,
    memory: Family<metrics::Labels, Gauge>,
    cpu: Family<metrics::Labels, Gauge>,
    starts: Family<metrics::Labels, Counter>,
}

/// The household.
pub(crate) struct House {
    ticker: LoopTicker,
    health: Health,
    spans: Spans,
    traces: Traces,
    numbers: Numbers,
    subjects: razar_bus_schema::subject::Subjects,
    cycle: u64,
    pace: Pace,
    away_since: Option<SystemTime>,
    events: EventsSeen,
    upkeep: Upkeep,
    places: stores::Places,
    /// A look is under way: a disk that hangs is looked at once.
    looking: bool,
    /// It is being asked which EVENTS there are.
    asking: bool,
}

impl House {
    /// Opens the health endpoint; a port that is taken is said, and the node goes on without one.
    pub(crate) async fn open(config: &NodeConfig, bus: &Bus, ports: &Ports) -> Self {
        let metrics = Metrics::new();
        let (ticker, spans) = (LoopTicker::new(), Spans::from_env(KIND, env!("CARGO_PKG_VERSION"), &config.node, &metrics));
        let health = Health::new(ticker.clone());
        let address = config.http.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, ports.node_http)));
        if let Err(error) = http::serve(address, health.clone(), metrics.clone()).await {
            tracing::error!(%address, %error, "no health endpoint");
        }
        health.release(health::STARTING);
        let numbers = Numbers {
            events_told: metrics.counter("events_told", "Events told"),
            unacknowledged: metrics.gauge("events_unacknowledged", "Events journalled and not yet stored by the broker"),
            instances: metrics.gauges("instances", "Instances by state"),
            memory: metrics.gauges("component_memory_bytes", "Resident memory of a component"),
            cpu: metrics.gauges("component_cpu_millis", "CPU of a component in thousandths of a core"),
            starts: metrics.counters("component_starts", "Processes started, by component"),
        };
        let subjects = bus.subjects().clone();
        let embedded = config.embedded.is_some();
        Self {
            ticker,
            health,
            spans,
            traces: Traces::default(),
            numbers,
            subjects,
            cycle: 0,
            pace: Pace::default(),
            away_since: None,
            events: EventsSeen::default(),
            upkeep: Upkeep::new(embedded),
            places: stores::Places { dir: config.state_dir.clone(), monitor: embedded.then_some(ports.monitor) },
            looking: false,
            asking: false,
        }
    }

    /// The loop has turned.
    pub(crate) fn ticked(&self) {
        self.ticker.tick();
    }

    /// Time since the loop turned last.
    pub(crate) fn loop_age(&self) -> Duration {
        self.ticker.age()
    }

    /// Sends what is left of the spans.
    pub(crate) async fn close(&self) {
        self.spans.shutdown().await;
    }

    /// An event is being told.
    pub(crate) fn told(&mut self, event: &v1::Event) {
        self.numbers.events_told.inc();
        let about = event.instance.as_ref().map_or("", |i| i.component.as_str());
        if matches!(&event.fact, Some(Fact::ComponentStarted(started)) if !started.adopted) {
            self.numbers.starts.get_or_create(&vec![("component", about.to_owned())]).inc();
        }
        let reason = event.reason.as_ref().map_or("", |r| r.text.as_str());
        let trace_id = event.trace.as_ref().and_then(|t| t.traceparent.get(3..35)).unwrap_or("");
        tracing::info!(component = about, reason, trace_id, "{}", event.kind);
        if self.spans.is_on() {
            self.traces.told(event, &self.subjects).into_iter().for_each(|span| self.spans.record(span));
        }
    }
}

impl Agent {
    /// Each second: health, numbers, a beat, and a look at disk and stores.
    pub(crate) fn tend_house(&mut self) {
        self.renew_health();
        self.renew_numbers();
        self.house.cycle += 1;
        let times = ThreadTimes::own().ok().flatten();
        if let Some(stood) = self.house.pace.turned(monotonic_now(), times) {
            tracing::warn!("{stood}");
        }
        if self.house.cycle.is_multiple_of(LOOK_TURNS) && !std::mem::replace(&mut self.house.looking, true) {
            let (bus, places, news) = (self.bus.clone(), self.house.places.clone(), self.news.clone());
            let told_before = *self.outbox.acked().borrow() > 0;
            tokio::spawn(async move {
                let look = stores::look(&bus, places, told_before).await;
                let _ = news.send(News::Looked(Box::new(look))).await;
            });
        }
        if !self.bus.is_up() {
            return;
        }
        let message = v1::Heartbeat {
            kind: KIND.to_owned(),
            id: self.config.node.clone(),
            cycle: self.house.cycle,
            loop_age: Some(time::duration(self.house.loop_age())),
            ..Default::default()
        };
        let (bus, node) = (self.bus.clone(), self.config.node.clone());
        tokio::spawn(async move {
            let _ = bus.publish(&bus.subjects().heartbeat(KIND, &node), message.encode_to_vec().into(), "").await;
        });
    }

    /// The first of this node's events is stored: in which EVENTS is asked at once.
    pub(crate) fn look_for_events(&mut self) {
        if self.house.events.are_known() || std::mem::replace(&mut self.house.asking, true) {
            return;
        }
        let (bus, news) = (self.bus.clone(), self.news.clone());
        tokio::spawn(async move {
            let look = stores::look_for_events(&bus).await;
            let _ = news.send(News::LookedForEvents(Box::new(look))).await;
        });
    }

    pub(crate) fn on_looked_for_events(&mut self, look: &Look) {
        self.house.asking = false;
        self.note_events(look, crate::agent::now());
    }

    /// EVENTS that are others know nothing of this node.
    fn note_events(&mut self, look: &Look, now: Now) {
        if self.house.events.apply(look) {
            self.policy.join(self.joined.clone(), now);
            self.policy.tell_living(now);
        }
    }

    /// What a look at disk and stores showed.
    pub(crate) fn on_looked(&mut self, mut look: Look) {
        self.house.looking = false;
        let now = crate::agent::now();
        self.note_events(&look, now);
        if self.policy.makes_stores(look.at, now) {
            look.stores = None;
        }
        self.house.upkeep.apply(look);
        for chore in self.house.upkeep.decide(monotonic_now()) {
            let (component, seen_at, why) = match chore {
                Chore::Provision { seen_at, why } => ("provision", seen_at, why),
                Chore::RestartBroker { seen_at, why } => ("broker", seen_at, why),
            };
            tracing::warn!(component, "{why}");
            self.policy.apply(Input::Renew { component, seen_at, why }, now);
        }
        self.renew_health();
    }

    /// What is wrong with what this node stands on.
    pub(crate) fn troubles(&self) -> Vec<v1::Trouble> {
        let journal = self.journal.status();
        let failing = journal.failing.as_deref().map(|why| (why, journal.events_held));
        self.house.upkeep.troubles(&self.config.node, &self.config.state_dir.to_string_lossy(), failing)
    }

    pub(crate) fn renew_health(&mut self) {
        let user = || self.policy.instances().filter(|i| i.group() == Group::User);
        let wanted = user().filter(|i| i.wanted.as_ref().is_some_and(|w| w.desired.mode() == v1::RunMode::Run && !w.elsewhere)).count();
        let running = user().filter(|i| matches!(i.state, v1::InstanceState::Ready | v1::InstanceState::Completed)).count();
        let waiting = self.outbox.status().unacknowledged;
        let why = if self.bus.is_up() {
            self.house.away_since = None;
            None
        } else {
            let since = *self.house.away_since.get_or_insert_with(SystemTime::now);
            let away = SystemTime::now().duration_since(since).unwrap_or_default().as_secs();
            Some(format!("the bus is away for {away}s; {running} of {wanted} run, healing goes on, {waiting} events journalled"))
        };
        self.house.health.set(health::BUS, why);
        let troubles = self.troubles();
        let told = |of_journal: bool| {
            let ours = troubles.iter().filter(|t| !t.warning && (t.code == JOURNAL) == of_journal);
            Some(ours.map(|t| t.text.as_str()).collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty())
        };
        self.house.health.set(JOURNAL, told(true));
        self.house.health.set(STORES, told(false));
    }

    fn renew_numbers(&self) {
        let numbers = &self.house.numbers;
        numbers.unacknowledged.set(i64::try_from(self.outbox.status().unacknowledged).unwrap_or(i64::MAX));
        numbers.instances.clear();
        for inst in self.policy.instances() {
            let state = crate::policy::precedence::state_name(inst.state).to_owned();
            numbers.instances.get_or_create(&vec![("state", state)]).inc();
        }
        for (id, usage) in self.usages.iter() {
            let label = vec![("component", id.to_string())];
            numbers.memory.get_or_create(&label).set(i64::try_from(usage.memory_bytes).unwrap_or(i64::MAX));
            numbers.cpu.get_or_create(&label).set(i64::from(usage.cpu_millis));
        }
    }
}
