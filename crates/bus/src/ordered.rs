//! One ordered read of a stream: a push consumer that is made anew after each gap, silence, stall, lost connection or recreated stream.
//! Push, since an ordered pull consumer stalls for 17 s after a broker's end. What the messages mean is the callers' matter.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use async_nats::{
    HeaderMap, StatusCode, Subscriber,
    jetstream::{
        consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, push},
        message::Message,
    },
};
use bytes::Bytes;
use futures::StreamExt;
use razar_bus_schema::stream::Store;
use tokio::sync::mpsc;

use crate::{
    Bus, BusError, Connection, TRACEPARENT,
    connection::jittered,
    provision::{epoch_or_created, info, unique},
    stall::Watchdog,
};

/// The broker tells so often that it has nothing to tell.
const IDLE_HEARTBEAT: Duration = Duration::from_secs(2);
/// Silence after which the consumer counts as dead: two missed heartbeats and a bit.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// A consumer without a reader is removed by the broker after this.
const INACTIVE_MAX: Duration = Duration::from_secs(30);
/// First and longest pause between two tries to make the consumer.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Messages read ahead of the owner; then the broker is told to wait (flow control).
const READ_AHEAD: usize = 512;

/// What is read.
#[derive(Debug, Clone)]
pub(crate) enum Plan {
    /// Everything, from a sequence of an epoch or from the beginning.
    Fold { epoch: Option<String>, after: u64 },
    /// The newest message of each subject, then what follows; all of it again after each reconnect and `again`.
    Latest { again: Duration },
}

/// What comes out.
#[derive(Debug)]
pub(crate) enum Read {
    /// A new consumer reads. `anew`: what was read before is void.
    Began { epoch: String, anew: bool, head: u64, pending: u64 },
    /// A message.
    Message(Raw),
}

#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) subject: String,
    pub(crate) headers: Option<HeaderMap>,
    pub(crate) payload: Bytes,
    pub(crate) sequence: u64,
    pub(crate) pending: u64,
    pub(crate) stored: SystemTime,
}

impl Raw {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str)
    }

    pub(crate) fn traceparent(&self) -> String {
        self.header(TRACEPARENT).unwrap_or_default().to_owned()
    }
}

/// Reads until the receiver is dropped.
pub(crate) fn read(bus: &Bus, store: Store, filter: String, plan: Plan) -> mpsc::Receiver<Read> {
    let (out, reads) = mpsc::channel(READ_AHEAD);
    let (epoch, last) = match &plan {
        Plan::Fold { epoch, after } => (epoch.clone(), *after),
        Plan::Latest { .. } => (None, 0),
    };
    let reader = Reader { bus: bus.clone(), store, filter, plan, out, epoch, last };
    tokio::spawn(reader.run());
    reads
}

struct Reader {
    bus: Bus,
    store: Store,
    filter: String,
    plan: Plan,
    out: mpsc::Sender<Read>,
    epoch: Option<String>,
    last: u64,
}

/// Why one consumer ended.
enum End {
    /// Make another.
    Again,
    /// Nobody reads any more.
    Dropped,
}

impl Reader {
    async fn run(mut self) {
        let mut pause = RETRY_MIN;
        loop {
            let up = tokio::select! {
                up = self.bus.until_up() => up,
                () = self.out.closed() => false,
            };
            if !up {
                return;
            }
            match self.begin().await {
                Ok(Some((subscriber, name))) => {
                    pause = RETRY_MIN;
                    let end = self.follow(subscriber, &name).await;
                    self.remove(name);
                    if matches!(end, End::Dropped) {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(store = self.store.label(), %error, "cannot read the stream yet");
                    tokio::select! {
                        () = tokio::time::sleep(jittered(pause)) => {}
                        () = self.out.closed() => return,
                    }
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Makes a consumer; `None`: nobody reads any more.
    async fn begin(&mut self) -> Result<Option<(Subscriber, String)>, BusError> {
        let info = info(&self.bus, self.store).await?;
        let epoch = epoch_or_created(&info);
        let head = info.state.last_sequence;
        // Facts that fell out of the stream while this reader was away, or a tail that the broker lost: what was read no longer holds.
        let missed = self.last > 0 && info.state.messages > 0 && info.state.first_sequence > self.last + 1;
        let missed = missed && matches!(self.plan, Plan::Fold { .. });
        let anew = self.epoch.as_ref() != Some(&epoch) || head < self.last || missed;
        if anew {
            // Told once there is a consumer: a try that fails must not make the next one forget it.
            (self.last, self.epoch) = (0, None);
        }
        let inbox = self.bus.inner.client.new_inbox();
        let subscribe = async { self.bus.inner.client.subscribe(inbox.clone()).await.map_err(|e| BusError::Client(e.to_string())) };
        let subscriber = self.bus.limited("subscribing", "", crate::REQUEST_LIMIT, subscribe).await?;
        let config = self.consumer(inbox);
        let name = config.name.clone().unwrap_or_default();
        let stream = self.bus.stream_of(self.store);
        let create = async {
            let made = self.bus.context().create_consumer_on_stream(config, &stream).await;
            made.map_err(|e| BusError::Client(e.to_string()))
        };
        let made = self.bus.limited("creating a consumer", "", crate::REQUEST_LIMIT, create).await?;
        let pending = made.cached_info().num_pending;
        self.epoch = Some(epoch.clone());
        let sent = self.out.send(Read::Began { epoch, anew, head, pending }).await;
        Ok(sent.is_ok().then_some((subscriber, name)))
    }

    fn consumer(&self, inbox: String) -> push::Config {
        let deliver_policy = match self.plan {
            Plan::Fold { .. } if self.last == 0 => DeliverPolicy::All,
            Plan::Fold { .. } => DeliverPolicy::ByStartSequence { start_sequence: self.last + 1 },
            Plan::Latest { .. } => DeliverPolicy::LastPerSubject,
        };
        push::Config {
            name: Some(format!("read-{}", unique(&self.bus))),
            deliver_subject: inbox,
            deliver_policy,
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            filter_subject: self.filter.clone(),
            max_deliver: 1,
            flow_control: true,
            idle_heartbeat: IDLE_HEARTBEAT,
            inactive_threshold: INACTIVE_MAX,
            memory_storage: true,
            num_replicas: 1,
            ..push::Config::default()
        }
    }

    async fn follow(&mut self, mut subscriber: Subscriber, name: &str) -> End {
        let mut connection = self.bus.connection();
        if !connection.borrow_and_update().is_up() {
            return End::Again;
        }
        let again = match self.plan {
            Plan::Latest { again } => tokio::time::Instant::now() + again,
            Plan::Fold { .. } => tokio::time::Instant::now() + Duration::from_secs(u64::from(u32::MAX)),
        };
        let context = self.bus.context();
        let mut consumed = 0;
        let read = Arc::new(AtomicU64::new(0));
        let watchdog = Watchdog::start(&self.bus, &self.bus.stream_of(self.store), name, read.clone());
        let mut heard = Instant::now();
        loop {
            let silence = tokio::time::Instant::from_std(heard + SILENCE_MAX);
            let message = tokio::select! {
                biased;
                message = subscriber.next() => message,
                // Also after a connection that was lost and made again in between: the broker may have forgotten the consumer.
                changed = connection.changed() => {
                    let gone = changed.is_err() || !matches!(&*connection.borrow(), Connection::Up { .. });
                    tracing::debug!(store = self.store.label(), gone, "the connection changed, reading again");
                    return End::Again;
                }
                () = tokio::time::sleep_until(silence) => return End::Again,
                () = tokio::time::sleep_until(again) => return End::Again,
                () = watchdog.stalled() => return End::Again,
                () = self.out.closed() => return End::Dropped,
            };
            let Some(message) = message else { return End::Again };
            if message.status.is_some() {
                if !self.status(&message, consumed).await {
                    return End::Again;
                }
                heard = Instant::now();
                continue;
            }
            let message = Message { message, context: context.clone() };
            let Some((raw, consumer_sequence)) = raw(message) else { continue };
            if consumer_sequence != consumed + 1 {
                return End::Again;
            }
            consumed = consumer_sequence;
            read.store(consumed, Ordering::Relaxed);
            let known = matches!(self.plan, Plan::Fold { .. }) && raw.sequence <= self.last;
            self.last = self.last.max(raw.sequence);
            if !known && self.out.send(Read::Message(raw)).await.is_err() {
                return End::Dropped;
            }
            heard = Instant::now();
        }
    }

    /// Answers flow control; false: the heartbeat tells of messages that never came.
    async fn status(&self, message: &async_nats::Message, consumed: u64) -> bool {
        if message.status != Some(StatusCode::IDLE_HEARTBEAT) {
            return true;
        }
        let header = |name: &str| message.headers.as_ref().and_then(|h| h.get(name)).map(async_nats::HeaderValue::as_str);
        // Asked for flow control, or reminded of it in a heartbeat since the answer was lost.
        let asked = message.reply.as_ref().map(ToString::to_string).or_else(|| header("Nats-Consumer-Stalled").map(str::to_owned));
        if let Some(reply) = asked {
            let answered = self.bus.inner.client.publish(reply, Bytes::new());
            return tokio::time::timeout(crate::REQUEST_LIMIT, answered).await.is_ok();
        }
        let delivered = header("Nats-Last-Consumer").and_then(|v| v.parse::<u64>().ok());
        delivered.is_none_or(|delivered| delivered == consumed)
    }

    /// Tells the broker that the consumer is done with; one that cannot be told forgets it by itself.
    fn remove(&self, name: String) {
        if !self.bus.is_up() {
            return;
        }
        let (bus, stream) = (self.bus.clone(), self.bus.stream_of(self.store));
        tokio::spawn(async move {
            let call = format!("CONSUMER.DELETE.{stream}.{name}");
            let _ = bus.api::<serde_json::Value>(&call, &serde_json::Map::new(), &name).await;
        });
    }
}

/// The message with its place in stream and consumer; `None` when its reply subject is not JetStream's.
fn raw(message: Message) -> Option<(Raw, u64)> {
    let (sequence, consumer_sequence, pending, stored) = {
        let info = message.info().ok()?;
        (info.stream_sequence, info.consumer_sequence, info.pending, SystemTime::from(info.published))
    };
    let message = message.message;
    let raw = Raw { subject: message.subject.to_string(), headers: message.headers, payload: message.payload, sequence, pending, stored };
    Some((raw, consumer_sequence))
}
