//! The mesh's two ways over the bus without the mesh: messages of the same kinds through the same broker and client library, and one service
//! that is killed and started, by two ends that do nothing else. What a way takes here is what this machine allows.

use std::{
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use razar_bus::{Bus, EventPublisher, FoldItem, IntentItem, Start};
use razar_bus_schema::{
    bucket::IntentKey,
    ids::Instance,
    time::{duration, timestamp},
    v1::{self, event::Fact, intent::Want},
};
use razar_os::{BoundSocket, NotifySocket, Process, Signal, append_file};
use tokio::sync::{mpsc, oneshot};

use crate::{
    broker::{Broker, connect},
    floor::{self, PAUSE},
    mesh::{EVENT_LIMIT, Sync},
    programs::Programs,
    report::Samples,
    told,
};

/// The service's name.
const NAME: &str = "c0";
/// What waits between the ends: one thing at a time.
const WAITING_MAX: usize = 64;

/// kill → pidfd → started → it says that it is ready → a subscriber on a connection of its own has the stored fact. The end and the start are told, too.
///
/// # Errors
/// When the broker or the service does not run.
pub(crate) async fn ready(programs: &Programs, sync: Sync, count: u32) -> Result<Samples> {
    let mut near = Near::new(programs, sync).await?;
    let (heard, mut received) = mpsc::channel(WAITING_MAX);
    let far = far(near.broker.server.clone(), async move |bus| {
        let mut fold = bus.fold_events(Start::Beginning);
        while let Some(item) = fold.next().await {
            let told = match item {
                FoldItem::Event { event, .. } if matches!(event.fact, Some(Fact::ComponentReady(_))) => event.incarnation,
                FoldItem::CaughtUp { .. } => None,
                FoldItem::Event { .. } | FoldItem::DeadLetter { .. } | FoldItem::Reset { .. } => continue,
            };
            if heard.send((told.map(|of| of.start), Instant::now())).await.is_err() {
                return Ok(());
            }
        }
        bail!("the bus was closed")
    });
    within(received.recv()).await?.context("nobody reads the stream")?;
    let mut service = near.start()?;
    within(near.heard()).await??;
    let mut samples = Samples::default();
    for n in 1..=u64::from(count) {
        tokio::time::sleep(PAUSE).await;
        let began = Instant::now();
        service.0.signal(Signal::KILL)?;
        service.0.wait_exit().await?;
        near.tell(n, told::exited())?;
        let next = near.start()?;
        drop(std::mem::replace(&mut service, next));
        near.tell(n, told::started(service.0.pid().as_raw().unsigned_abs()))?;
        within(near.heard()).await??;
        near.tell(n, told::ready(began.elapsed()))?;
        near.tell(n, told::recovered())?;
        let at = loop {
            let (start, at) = within(received.recv()).await?.context("nobody reads the stream")?;
            if start == Some(n + 1) {
                break at;
            }
        };
        samples.push(at.duration_since(began));
    }
    drop((service, far));
    near.end().await?;
    Ok(samples)
}

/// The end and the failure are told → another connection has them from the stream → its order is stored → the first end has it from a watch → started.
///
/// # Errors
/// When the broker or the service does not run.
pub(crate) async fn ordered(programs: &Programs, sync: Sync, count: u32) -> Result<Samples> {
    let mut near = Near::new(programs, sync).await?;
    let far = far(near.broker.server.clone(), async |bus| {
        let mut fold = bus.fold_events(Start::Beginning);
        let mut revision = 0;
        while let Some(item) = fold.next().await {
            if let FoldItem::Event { event, .. } = item
                && matches!(event.fact, Some(Fact::ComponentFailed(_)))
            {
                let written = bus.put_intents(&[(IntentKey::Recovery(instance()), order(&event), revision)]).await?;
                revision = written.first().copied().context("nothing was written")?;
            }
        }
        bail!("the bus was closed")
    });
    let mut watch = near.bus.watch_intents();
    while !matches!(within(watch.next()).await?.context("the bus was closed")?, IntentItem::Settled { .. }) {}
    let mut samples = Samples::default();
    for n in 1..=u64::from(count) {
        tokio::time::sleep(PAUSE).await;
        let began = Instant::now();
        near.tell(n, told::exited())?;
        near.tell(n, told::failed())?;
        while !matches!(within(watch.next()).await?.context("the bus was closed")?, IntentItem::Record { .. }) {}
        let _service = near.start()?;
        samples.push(began.elapsed());
    }
    drop(far);
    near.end().await?;
    Ok(samples)
}

async fn within<T>(wait: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(EVENT_LIMIT, wait).await.context("nothing came over the bus")
}

/// The other end, in a thread and on a connection of its own. Dropped, it ends.
struct Far {
    // Dropped first: the thread is waited for after that.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Far {
    fn drop(&mut self) {
        drop(self.stop.take());
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn far<W>(server: String, work: W) -> Far
where
    W: AsyncFnOnce(Bus) -> Result<()> + Send + 'static,
{
    let (stop, stopped) = oneshot::channel::<()>();
    let run = move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            tokio::select! {
                _ = stopped => Ok(()),
                ended = async { work(connect(&server).await?).await } => ended,
            }
        })
    };
    let thread = std::thread::spawn(move || {
        // The near end waits in vain then, and says so; why is said here.
        if let Err(error) = run() {
            eprintln!("the far end of a way without the mesh: {error:#}");
        }
    });
    Far { stop: Some(stop), thread: Some(thread) }
}

/// A service that ends when this is dropped.
struct Service(Process);

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended.
        let _ = floor::end(&self.0);
    }
}

/// The end that starts the service and tells of it.
struct Near {
    bus: Bus,
    publisher: EventPublisher,
    sequence: u64,
    demo: PathBuf,
    place: PathBuf,
    log: File,
    words: NotifySocket,
    // Last: the connection goes before it.
    broker: Broker,
}

impl Near {
    async fn new(programs: &Programs, sync: Sync) -> Result<Self> {
        let place = programs.place()?;
        let (broker, bus) = Broker::start(programs, &place, sync).await?;
        let (log, _) = append_file(&place.join("log"))?;
        let words = NotifySocket::new(BoundSocket::bind(&place.join("notify"))?)?;
        let (publisher, demo) = (bus.event_publisher(), programs.binary("razar-demo-service"));
        Ok(Self { bus, publisher, sequence: 0, demo, place, log, words, broker })
    }

    /// The next word of the service.
    async fn heard(&self) -> Result<()> {
        self.words.peek().await?;
        Ok(self.words.take()?)
    }

    fn start(&self) -> Result<Service> {
        let args: [OsString; 2] = [format!("--name={NAME}").into(), "--notify".into()];
        let env = [("NOTIFY_SOCKET".into(), Path::new(self.words.bound().path()).into())];
        Ok(Service(floor::start(&self.demo, &args, &env, &self.place, &self.log)?.into_process()?))
    }

    /// Nothing of this connection is on its way when the next measurement begins.
    async fn end(mut self) -> Result<()> {
        ensure!(self.publisher.drained(EVENT_LIMIT).await, "the broker did not take all events");
        self.bus.close(EVENT_LIMIT).await;
        Ok(())
    }

    fn tell(&mut self, start: u64, fact: Fact) -> Result<()> {
        self.sequence += 1;
        let event = told::event(NAME.to_owned(), start, self.sequence, SystemTime::now(), fact);
        let traceparent = event.trace.as_ref().map_or_else(String::new, |t| t.traceparent.clone());
        self.publisher.offer(self.sequence, &event, &traceparent)?.then_some(()).context("what was told before is still on its way")
    }
}

fn instance() -> Instance {
    Instance::new(NAME, 0)
}

/// An order with what recovery writes into one.
fn order(failed: &v1::Event) -> v1::Intent {
    let order = v1::RecoveryOrder {
        instance: Some((&instance()).into()),
        incident: failed.incident.clone(),
        rung: "clear_state".to_owned(),
        attempt: 1,
        replaces: failed.incarnation,
        evidence: Some(v1::OrderEvidence { event_ids: vec![failed.id.clone()], ..Default::default() }),
        clear_state: true,
        hold_dependents: Some(duration(EVENT_LIMIT)),
        ..Default::default()
    };
    v1::Intent {
        writer: Some(v1::Actor { kind: "recovery".to_owned(), id: "a".to_owned() }),
        cause_id: failed.id.clone(),
        reason: failed.reason.clone(),
        trace: failed.trace.clone(),
        decided_at: Some(timestamp(SystemTime::now())),
        told_by_event_id: failed.id.clone(),
        want: Some(Want::Recovery(order)),
        ..Default::default()
    }
}
