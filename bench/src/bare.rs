//! The mesh's two ways over the bus without the mesh: the same messages through the same broker and client library, and one service that is
//! killed and started, by two ends that do nothing else. What a way takes here is what this machine allows.

use std::{
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use razar_bus::{Bus, EventPublisher, FoldItem, IntentItem, Start};
use razar_bus_schema::{
    bucket::IntentKey,
    ids::{Incarnation, Instance},
    v1::{self, event::Fact, intent::Want},
};
use razar_os::{NotifySocket, Process, Signal, append_file};
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
    let _far = far(near.broker.server.clone(), async move |bus| {
        let mut fold = bus.fold_events(Start::Beginning);
        while let Some(item) = fold.next().await {
            let at = match item {
                FoldItem::Event { event, .. } if matches!(event.fact, Some(Fact::ComponentReady(_))) => Instant::now(),
                FoldItem::CaughtUp { .. } => Instant::now(),
                FoldItem::Event { .. } | FoldItem::DeadLetter { .. } | FoldItem::Reset { .. } => continue,
            };
            if heard.send(at).await.is_err() {
                return Ok(());
            }
        }
        bail!("the bus was closed")
    });
    within(received.recv()).await?.context("nobody reads the stream")?;
    let mut process = near.start()?;
    within(near.words.recv()).await??;
    let mut samples = Samples::default();
    for n in 1..=u64::from(count) {
        tokio::time::sleep(PAUSE).await;
        let began = Instant::now();
        process.signal(Signal::KILL)?;
        process.wait_exit().await?;
        near.tell(n, told::exited())?;
        process.reap()?;
        process = near.start()?;
        near.tell(n, told::started(process.pid().as_raw().unsigned_abs()))?;
        within(near.words.recv()).await??;
        near.tell(n, told::ready(began.elapsed()))?;
        near.tell(n, told::recovered())?;
        samples.push(within(received.recv()).await?.context("nobody reads the stream")?.duration_since(began));
    }
    floor::end(&process)?;
    Ok(samples)
}

/// The end and the failure are told → another connection has them from the stream → its order is stored → the first end has it from a watch → started.
///
/// # Errors
/// When the broker or the service does not run.
pub(crate) async fn ordered(programs: &Programs, sync: Sync, count: u32) -> Result<Samples> {
    let mut near = Near::new(programs, sync).await?;
    let _far = far(near.broker.server.clone(), async |bus| {
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
        let process = near.start()?;
        samples.push(began.elapsed());
        floor::end(&process)?;
    }
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
        let words = NotifySocket::bind(&place.join("notify"))?;
        let (publisher, demo) = (bus.event_publisher(), programs.binary("razar-demo-service"));
        Ok(Self { bus, publisher, sequence: 0, demo, place, log, words, broker })
    }

    fn start(&self) -> Result<Process> {
        let args: [OsString; 2] = [format!("--name={NAME}").into(), "--notify".into()];
        let env = [("NOTIFY_SOCKET".into(), Path::new(self.words.path()).into())];
        Ok(floor::start(&self.demo, &args, &env, &self.place, &self.log)?.into_process()?)
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

/// An order as recovery writes it.
fn order(failed: &v1::Event) -> v1::Intent {
    let order = v1::RecoveryOrder {
        instance: Some((&instance()).into()),
        incident: failed.incident.clone(),
        rung: "clear_state".to_owned(),
        attempt: 1,
        replaces: failed.incarnation.or_else(|| Some(Incarnation::new(1, 1).into())),
        clear_state: true,
        ..Default::default()
    };
    v1::Intent { reason: failed.reason.clone(), trace: failed.trace.clone(), want: Some(Want::Recovery(order)), ..Default::default() }
}
