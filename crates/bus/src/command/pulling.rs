//! Pulls commands from the consumer that all replicas of an agent share. Whoever waits for one may stop waiting at any moment, many times
//! each millisecond: each step goes on where it was when they come back.

use std::time::{Duration, Instant};

use async_nats::{
    StatusCode, Subscriber,
    jetstream::consumer::{AckPolicy, DeliverPolicy, pull},
};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use razar_bus_schema::stream::Store;

use crate::{Bus, BusError, Connection, REQUEST_LIMIT, connection::jittered, stall};

/// One pull waits so long at the broker.
const PULL: Duration = Duration::from_secs(5);
/// Silence after which a pull counts as dead.
const PULL_DEAD: Duration = Duration::from_secs(7);
/// Unacknowledged so long, a command goes to whoever pulls.
const ACK_WAIT: Duration = Duration::from_secs(10);
/// To the broker: no bound but the age of what it keeps.
const DELIVERIES_UNBOUNDED: i64 = -1;
/// Commands delivered and not acknowledged, over all replicas.
const ACK_PENDING_MAX: i64 = 64;
/// Pause after a failed try to pull.
const RETRY: Duration = Duration::from_millis(200);

/// Reads the commands of one agent.
pub(super) struct Puller {
    bus: Bus,
    agent: String,
    pull: Option<Pull>,
    /// What is being asked of the broker, and since when the connection is up that it was asked on.
    asking: Option<(Instant, BoxFuture<'static, Result<Answered, BusError>>)>,
    /// Nothing is tried before.
    rests_until: Option<Instant>,
    /// Where the consumer stood when the last pull ran out although commands wait.
    stands_at: Option<u64>,
    /// The consumer is being made anew; everything up to this sequence of COMMANDS was acknowledged to the one before.
    anew_after: Option<u64>,
}

struct Pull {
    subscriber: Subscriber,
    inbox: String,
    /// When it counts as dead; `None`: nothing is asked for at present.
    asked_until: Option<Instant>,
    connected: Instant,
}

/// What came of a question to the broker.
enum Answered {
    /// It is there, and may be pulled from.
    Begun(Pull),
    /// Whether it stands although commands wait, and where.
    Looked { stands_at: Option<u64>, acknowledged: u64 },
    /// It was taken away, to be made anew.
    Deleted,
    /// The next command is asked for.
    Asked,
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").field("agent", &self.agent).field("pull", &self.pull).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Pull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pull").field("inbox", &self.inbox).field("asked_until", &self.asked_until).finish_non_exhaustive()
    }
}

impl Puller {
    pub(super) fn new(bus: &Bus, agent: &str) -> Self {
        let (bus, agent) = (bus.clone(), agent.to_owned());
        Self { bus, agent, pull: None, asking: None, rests_until: None, stands_at: None, anew_after: None }
    }

    /// Gives up what it asked for: the next holder of the lease gets what comes.
    pub(super) fn pause(&mut self) {
        (self.pull, self.asking) = (None, None);
    }

    /// The next message; waits as long as it takes. Cancel-safe.
    pub(super) async fn next(&mut self) -> async_nats::Message {
        loop {
            if let Some(until) = self.rests_until {
                tokio::time::sleep_until(until.into()).await;
                self.rests_until = None;
            }
            match self.pulled().await {
                Ok(message) => return message,
                Err(error) => {
                    self.pause();
                    self.rests_until = Some(Instant::now() + jittered(RETRY));
                    tracing::debug!(agent = self.agent, %error, "cannot pull commands yet");
                }
            }
        }
    }

    async fn pulled(&mut self) -> Result<async_nats::Message, BusError> {
        loop {
            let since = until_connected(&self.bus).await?;
            // One that was asked on an earlier connection may never be answered.
            if let Some((_, asking)) = self.asking.as_mut().filter(|(on, _)| *on == since) {
                let answered = asking.await;
                self.asking = None;
                self.take(answered?, since);
                continue;
            }
            let Some(pull) = self.pull.as_mut().filter(|p| p.connected == since) else {
                let deliver_anew =
                    self.anew_after.map_or(DeliverPolicy::All, |after| DeliverPolicy::ByStartSequence { start_sequence: after + 1 });
                self.asking = Some((since, begin(self.bus.clone(), self.agent.clone(), deliver_anew, since).boxed()));
                continue;
            };
            let Some(dead) = pull.asked_until else {
                self.asking = Some((since, ask(self.bus.clone(), self.agent.clone(), pull.inbox.clone()).boxed()));
                continue;
            };
            let mut connection = self.bus.connection();
            let message = tokio::select! {
                biased;
                message = pull.subscriber.next() => message.ok_or(BusError::Closed)?,
                () = tokio::time::sleep_until(dead.into()) => return Err(BusError::Timeout { what: "a pull".to_owned(), after: PULL_DEAD }),
                _ = connection.wait_for(|c| !c.is_up()) => return Err(BusError::Down),
            };
            match message.status {
                None => {
                    pull.asked_until = None;
                    self.stands_at = None;
                    return Ok(message);
                }
                Some(StatusCode::IDLE_HEARTBEAT) => {}
                // The pull ran out.
                Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => {
                    pull.asked_until = None;
                    self.asking = Some((since, look(self.bus.clone(), self.agent.clone()).boxed()));
                }
                // The consumer is gone, or does not take pulls: make it again.
                Some(status) => return Err(BusError::Broker { code: u64::from(status.as_u16()), why: "the pull was refused".to_owned() }),
            }
        }
    }

    fn take(&mut self, answered: Answered, since: Instant) {
        match answered {
            Answered::Begun(pull) => (self.pull, self.anew_after) = (Some(pull), None),
            // Commands wait, and did at the last look too, at the same place: it is made anew behind what was acknowledged to it.
            Answered::Looked { stands_at: Some(at), acknowledged } if self.stands_at == Some(at) => {
                tracing::warn!(agent = self.agent, "the consumer of commands stands still, making another");
                self.anew_after = Some(acknowledged);
                (self.pull, self.stands_at) = (None, None);
                self.asking = Some((since, delete(self.bus.clone(), self.agent.clone()).boxed()));
            }
            Answered::Looked { stands_at, .. } => self.stands_at = stands_at,
            Answered::Asked => {
                if let Some(pull) = &mut self.pull {
                    pull.asked_until = Some(Instant::now() + PULL_DEAD);
                }
            }
            Answered::Deleted => {}
        }
    }
}

async fn until_connected(bus: &Bus) -> Result<Instant, BusError> {
    let mut connection = bus.connection();
    match &*connection.wait_for(Connection::is_up).await.map_err(|_| BusError::Closed)? {
        Connection::Up { since } => Ok(*since),
        Connection::Down { .. } | Connection::Refused { .. } => Err(BusError::Down),
    }
}

/// Asks for one command, which comes to `inbox`.
async fn ask(bus: Bus, agent: String, inbox: String) -> Result<Answered, BusError> {
    let body = serde_json::json!({ "batch": 1, "expires": u64::try_from(PULL.as_nanos()).unwrap_or(u64::MAX) });
    let call = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{agent}", bus.stream_of(Store::Commands));
    let asked = bus.inner.client.publish_with_reply(call, inbox, body.to_string().into());
    let asked = async { asked.await.map_err(|e| BusError::Client(e.to_string())) };
    bus.limited("pulling commands", "", REQUEST_LIMIT, asked).await.map(|()| Answered::Asked)
}

/// Looks, after a pull ran out, whether commands wait all the same.
async fn look(bus: Bus, agent: String) -> Result<Answered, BusError> {
    let info = stall::info(&bus, &bus.stream_of(Store::Commands), &agent).await?;
    let delivered = info.delivered.consumer_sequence;
    // At its limit of unacknowledged ones it waits rightly, for them to be acknowledged or due again.
    let full = i64::try_from(info.num_ack_pending).unwrap_or(i64::MAX) >= ACK_PENDING_MAX;
    let stands_at = stall::standing(info.num_pending, delivered, delivered).filter(|_| !full);
    Ok(Answered::Looked { stands_at, acknowledged: info.ack_floor.stream_sequence })
}

async fn delete(bus: Bus, agent: String) -> Result<Answered, BusError> {
    let call = format!("CONSUMER.DELETE.{}.{agent}", bus.stream_of(Store::Commands));
    bus.api::<serde_json::Value>(&call, &serde_json::Map::new(), &agent).await.map(|_| Answered::Deleted)
}

/// Makes the shared consumer, where it is not there yet, and hears what is pulled from it. `deliver_anew`: where one begins that is made now.
async fn begin(bus: Bus, agent: String, deliver_anew: DeliverPolicy, connected: Instant) -> Result<Answered, BusError> {
    let stream = bus.stream_of(Store::Commands);
    // One that is there begins where it began: that cannot be changed.
    let deliver_policy = match stall::info(&bus, &stream, &agent).await {
        Ok(present) => present.config.deliver_policy,
        Err(BusError::Missing { .. }) => deliver_anew,
        Err(error) => return Err(error),
    };
    let config = pull::Config {
        durable_name: Some(agent.clone()),
        deliver_policy,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: DELIVERIES_UNBOUNDED,
        max_ack_pending: ACK_PENDING_MAX,
        filter_subject: bus.subjects().commands_to(&agent),
        ..pull::Config::default()
    };
    let create = async {
        let made = bus.context().create_consumer_on_stream(config, &stream).await;
        made.map(|_| ()).map_err(|e| BusError::Client(e.to_string()))
    };
    bus.limited("making the consumer of commands", "", REQUEST_LIMIT, create).await?;
    let inbox = bus.inner.client.new_inbox();
    let subscribe = async { bus.inner.client.subscribe(inbox.clone()).await.map_err(|e| BusError::Client(e.to_string())) };
    let subscriber = bus.limited("subscribing", "", REQUEST_LIMIT, subscribe).await?;
    Ok(Answered::Begun(Pull { subscriber, inbox, asked_until: None, connected }))
}
