//! Commands: read from the stream COMMANDS by a durable consumer that all replicas of an agent share, answered by a receipt, and
//! acknowledged only after. Effectively once: by the command's id, which the agent's records keep.
//! JetStream does not store where a request wants its answer. Razar's own askers say it in a header; for those of any other client every
//! replica also listens to the commands themselves and remembers it.

mod pulling;
mod stored;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use async_nats::{HeaderMap, Request, Subscriber, jetstream::message::Message as StreamMessage};
use bytes::Bytes;
use futures::StreamExt;
use prost::Message;
use razar_bus_schema::{json, stream::Store, v1};

use self::{pulling::Puller, stored::read};
use crate::{Bus, BusError, REQUEST_LIMIT, Subscription, TRACEPARENT, connection::check_size, provision::unique};

/// A command is not taken up later than this after it was stored, whatever it says.
pub const COMMAND_AGE_MAX: Duration = Duration::from_secs(60);
/// Deliveries after which a command is given up. They are counted here and not by the broker, which would put it aside with a word that is
/// missed by whoever is away: it goes on delivering until somebody has told that it was given up.
const DELIVERIES_MAX: i64 = 5;
/// Inboxes remembered; a command without one is carried out all the same.
const INBOXES_MAX: usize = 1024;
/// The listener hears a command within a millisecond of the stream; one sent while nobody listened is never heard.
const HEARD_LIMIT: Duration = Duration::from_millis(100);
/// How often it is asked whether it has.
const HEARD_POLL: Duration = Duration::from_millis(1);
/// Headers of a command that is handed over: where it was sent, and by which subject it is acknowledged.
const SENT_TO: &str = "Razar-Subject";
const ACK: &str = "Razar-Ack";
/// Prefix of the subjects by which the broker takes acknowledgements: a header must not make an agent publish anywhere else.
const ACK_PREFIX: &str = "$JS.ACK.";
/// Who is handed a command takes it from its queue by then, or is no longer who decides.
const HANDOVER_LIMIT: Duration = Duration::from_millis(500);
/// Header in which our own askers say where they want the receipt: it is stored with the command.
const REPLY: &str = "Razar-Reply";
/// The only subjects that a stored header may name: a command must not make an agent publish anywhere else.
const INBOX_PREFIX: &str = "_INBOX.";

/// What came.
#[derive(Debug)]
pub enum CommandItem {
    /// A command that can be read and has not expired.
    Command(Box<ReceivedCommand>),
    /// One that is to be answered with a refusal: malformed, too large, expired or given up.
    Refused(Box<RefusedCommand>),
}

/// A command that cannot be carried out, to be answered, told of and put away.
#[derive(Debug)]
pub struct RefusedCommand {
    /// Subject.
    pub subject: String,
    /// Stable code: `malformed`, `expired`, `given_up` (delivered again and again, and settled by nobody).
    pub code: &'static str,
    /// Why.
    pub why: String,
    /// Size in bytes.
    pub bytes: usize,
    /// Sequence in COMMANDS.
    pub sequence: u64,
    /// When the broker stored it.
    pub stored: SystemTime,
    receipt: v1::Receipt,
    answer: Answer,
}

/// A command to be carried out and settled.
#[derive(Debug)]
pub struct ReceivedCommand {
    /// Verb.
    pub verb: String,
    /// Target (`api`, `api.1`, a stack, a profile, `_`).
    pub target: String,
    /// The command; its id, issuer and expiry are filled in.
    pub command: v1::Command,
    /// When the broker stored it.
    pub stored: SystemTime,
    /// Header `traceparent`, else the command's field; empty: none.
    pub traceparent: String,
    /// Delivered before: it may have been carried out.
    pub repeated: bool,
    /// It was read by another replica, who took this one for the holder of its shard.
    pub handed_over: bool,
    answer: Answer,
}

/// Where and how the receipt goes.
#[derive(Debug)]
struct Answer {
    bus: Bus,
    agent: String,
    inboxes: Arc<Inboxes>,
    key: Key,
    /// Told by the command itself.
    inbox: Option<String>,
    json: bool,
    ack: String,
}

/// A command as both the stream and the listener see it.
type Key = (String, Bytes);

/// Where the commands heard of late want their answers.
#[derive(Debug, Default)]
struct Inboxes {
    heard: Mutex<VecDeque<(Key, String, Instant)>>,
}

impl Inboxes {
    fn hear(&self, key: Key, inbox: String) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let old = |(_, _, at): &(Key, String, Instant)| at.elapsed() > COMMAND_AGE_MAX;
        while heard.len() >= INBOXES_MAX || heard.front().is_some_and(old) {
            heard.pop_front();
        }
        heard.push_back((key, inbox, Instant::now()));
    }

    /// The oldest inbox of an equal command: equal ones are answered in order.
    fn take(&self, key: &Key) -> Option<String> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let at = heard.iter().position(|(k, _, _)| k == key)?;
        heard.remove(at).map(|(_, inbox, _)| inbox)
    }
}

/// Commands to one agent. Every replica makes one; only who holds a lease calls [`CommandSource::next`].
pub struct CommandSource {
    bus: Bus,
    agent: String,
    inboxes: Arc<Inboxes>,
    listener: tokio::task::AbortHandle,
    puller: Puller,
    /// What other replicas hand over to this one.
    handed: Arc<tokio::sync::Mutex<Option<Subscriber>>>,
}

impl std::fmt::Debug for CommandSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandSource").field("agent", &self.agent).field("puller", &self.puller).finish_non_exhaustive()
    }
}

impl Bus {
    /// Listens for commands to `agent`. Works while the bus is away; pulls nothing before [`CommandSource::next`].
    ///
    /// # Errors
    /// When the client's buffer stays full.
    pub async fn serve_commands(&self, agent: &str) -> Result<CommandSource, BusError> {
        let mut heard = self.subscribe(&self.subjects().commands_to(agent), INBOXES_MAX).await?;
        let inboxes = Arc::new(Inboxes::default());
        let filled = inboxes.clone();
        let listener = tokio::spawn(async move { listen(&mut heard, &filled).await }).abort_handle();
        let (bus, agent) = (self.clone(), agent.to_owned());
        let puller = Puller::new(&bus, &agent);
        Ok(CommandSource { bus, agent, inboxes, listener, puller, handed: Arc::default() })
    }

    /// Sends a command and waits for its receipt. An empty id is filled in, so that the call may be repeated with the returned id.
    ///
    /// # Errors
    /// [`BusError::Timeout`]: no receipt in time; the command is stored and is taken up if its agent comes back within 60 s.
    pub async fn command(
        &self,
        agent: &str,
        verb: &str,
        target: &str,
        mut command: v1::Command,
        limit: Duration,
    ) -> Result<v1::Receipt, BusError> {
        if command.command_id.is_empty() {
            command.command_id = unique(self);
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("c:{}", command.command_id));
        if !command.traceparent.is_empty() {
            headers.insert(TRACEPARENT, command.traceparent.as_str());
        }
        let inbox = self.inner.client.new_inbox();
        headers.insert(REPLY, inbox.as_str());
        let payload = Bytes::from(command.encode_to_vec());
        check_size(payload.len())?;
        let subject = self.subjects().command(agent, verb, target);
        let request = Request::new().headers(headers).payload(payload).inbox(inbox);
        let answer = self.request_with(&subject, request, limit).await?;
        json::from_payload(&answer.payload).map_err(|e| BusError::Malformed { what: "the receipt".to_owned(), why: e.to_string() })
    }
}

async fn handed_over(handed: &tokio::sync::Mutex<Option<Subscriber>>) -> async_nats::Message {
    if let Some(subscriber) = handed.lock().await.as_mut()
        && let Some(message) = subscriber.next().await
    {
        return message;
    }
    std::future::pending().await
}

async fn listen(heard: &mut Subscription, inboxes: &Inboxes) {
    while let Some(message) = heard.next().await {
        if let Some(reply) = message.reply {
            inboxes.hear((message.subject, message.payload), reply);
        }
    }
}

impl CommandSource {
    /// Listens also for what other replicas read and hand over to `replica`.
    ///
    /// # Errors
    /// When the client's buffer stays full.
    pub async fn hear_handovers(&mut self, replica: &str) -> Result<(), BusError> {
        let subject = self.bus.subjects().handover(&self.agent, replica);
        // Also while the bus is away.
        let subscribing = tokio::time::timeout(REQUEST_LIMIT, self.bus.inner.client.subscribe(subject.clone())).await;
        let what = format!("subscribing to {subject}");
        let subscribed = subscribing.map_err(|_| BusError::Timeout { what, after: REQUEST_LIMIT })?;
        *self.handed.lock().await = Some(subscribed.map_err(|e| BusError::Client(e.to_string()))?);
        Ok(())
    }

    /// The next command; waits as long as it takes. Cancel-safe, and gets on however often it is cut short. Call it only while a lease of the
    /// agent is held.
    pub async fn next(&mut self) -> CommandItem {
        loop {
            let handed = self.handed.clone();
            // Nothing is waited for once a message is there: what was read would be lost with a caller who does not wait that long.
            let came = tokio::select! {
                biased;
                message = handed_over(&handed) => self.take_handed_over(message),
                message = self.puller.next() => self.open(message),
            };
            if let Some(item) = came {
                return item;
            }
        }
    }

    /// One that was read by another replica: it is told that this one has it, and opened as if it had been pulled here.
    fn take_handed_over(&self, mut message: async_nats::Message) -> Option<CommandItem> {
        let header = |name: &str| message.headers.as_ref().and_then(|h| h.get(name)).map(|v| v.as_str().to_owned());
        let (subject, ack, asked) = (header(SENT_TO)?, header(ACK)?, message.reply.take()?);
        let of_us = format!(".{}.{}.", self.bus.stream_of(Store::Commands), self.agent);
        let is_ours = self.bus.subjects().parse_command(&subject).is_some_and(|s| s.agent == self.agent);
        if !is_ours || !ack.starts_with(ACK_PREFIX) || !ack.contains(&of_us) {
            tracing::warn!(subject, ack, "what was handed over is no command to this agent");
            return None;
        }
        let bus = self.bus.clone();
        tokio::spawn(async move {
            if let Err(error) = bus.publish(&asked, Bytes::new(), "").await {
                tracing::debug!(%error, "a command that was handed over may be handed over again");
            }
        });
        (message.subject, message.reply) = (subject.into(), Some(ack.into()));
        match self.open(message)? {
            CommandItem::Command(received) => Some(CommandItem::Command(Box::new(ReceivedCommand { handed_over: true, ..*received }))),
            refused @ CommandItem::Refused { .. } => Some(refused),
        }
    }

    /// Stops pulling: call it when the lease is lost, so that the next holder gets what comes.
    pub fn pause(&mut self) {
        self.puller.pause();
    }

    /// Reads a message; one that cannot be carried out is refused here.
    fn open(&self, message: async_nats::Message) -> Option<CommandItem> {
        let message = StreamMessage { message, context: self.bus.context() };
        let (sequence, stored, delivered) = {
            let info = message.info().ok()?;
            (info.stream_sequence, SystemTime::from(info.published), info.delivered)
        };
        let message = message.message;
        let ack = message.reply.as_ref().map(ToString::to_string)?;
        let subject = message.subject.to_string();
        let payload = message.payload;
        let bytes = payload.len();
        let header = |name: &str| message.headers.as_ref().and_then(|h| h.get(name)).map(|v| v.as_str().to_owned());
        let (trace, inbox) = (header(TRACEPARENT), header(REPLY).filter(|i| i.starts_with(INBOX_PREFIX)));
        let key = (subject.clone(), payload.clone());
        let json = payload.first() == Some(&b'{');
        let answer = Answer { bus: self.bus.clone(), agent: self.agent.clone(), inboxes: self.inboxes.clone(), key, inbox, json, ack };
        let (code, why, id) = match read(&self.bus, &subject, &payload, sequence, stored) {
            Ok(read) if delivered > DELIVERIES_MAX => {
                ("given_up", format!("it was delivered {DELIVERIES_MAX} times and settled by nobody"), read.command.command_id)
            }
            Ok(read) if SystemTime::now() <= read.expires => {
                let mut command = read.command;
                let field = std::mem::take(&mut command.traceparent);
                let traceparent = trace.unwrap_or(field);
                command.traceparent.clone_from(&traceparent);
                let (verb, target) = (read.verb, read.target);
                let repeated = delivered > 1;
                let received = ReceivedCommand { verb, target, command, stored, traceparent, repeated, handed_over: false, answer };
                return Some(CommandItem::Command(Box::new(received)));
            }
            Ok(read) => ("expired", "it was stored too long ago".to_owned(), read.command.command_id),
            Err(why) => ("malformed", why, String::new()),
        };
        self.bus.count_dead_letter();
        let receipt = v1::Receipt {
            accepted: false,
            reason: why.clone(),
            command_id: id,
            code: code.to_owned(),
            agent: self.agent.clone(),
            ..v1::Receipt::default()
        };
        Some(CommandItem::Refused(Box::new(RefusedCommand { subject, code, why, bytes, sequence, stored, receipt, answer })))
    }
}

impl Drop for CommandSource {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl ReceivedCommand {
    /// Sends the receipt, then acknowledges the command. Call it once the decision is durable, or refused.
    /// The receipt's agent and command id are filled in.
    ///
    /// # Errors
    /// When the acknowledgement is not confirmed: the command comes again, with the same id.
    pub async fn settle(self, mut receipt: v1::Receipt) -> Result<(), BusError> {
        receipt.command_id.clone_from(&self.command.command_id);
        receipt.agent.clone_from(&self.answer.agent);
        self.answer.send(&receipt).await;
        self.answer.acknowledge().await
    }

    /// What hands it over to another replica, which then settles it in this one's place. It stays the broker's: if that replica dies, the
    /// command comes again. The call ends once the other has taken it.
    ///
    /// # Errors
    /// When the other is not there, or takes no commands now.
    pub fn hand_over(&self, replica: &str) -> impl Future<Output = Result<(), BusError>> + Send + use<> {
        let Answer { bus, agent, key: (sent_to, payload), inbox, ack, .. } = &self.answer;
        let mut headers = HeaderMap::new();
        headers.insert(SENT_TO, sent_to.as_str());
        headers.insert(ACK, ack.as_str());
        if let Some(inbox) = inbox {
            headers.insert(REPLY, inbox.as_str());
        }
        if !self.traceparent.is_empty() {
            headers.insert(TRACEPARENT, self.traceparent.as_str());
        }
        let (bus, subject, payload) = (bus.clone(), bus.subjects().handover(agent, replica), payload.clone());
        async move { bus.request_raw(&subject, Some(headers), payload, HANDOVER_LIMIT).await.map(|_| ()) }
    }

    /// Gives it back to the broker, which delivers it again at once, to whoever takes commands then.
    ///
    /// # Errors
    /// When the bus is down: the command comes again by itself, later.
    pub async fn give_back(self) -> Result<(), BusError> {
        self.answer.bus.publish(&self.answer.ack, Bytes::from_static(b"-NAK"), "").await
    }

    /// Tells the broker that work goes on; each 3 s while a decision takes longer than that.
    ///
    /// # Errors
    /// When the bus is down.
    pub async fn in_progress(&self) -> Result<(), BusError> {
        self.answer.bus.publish(&self.answer.ack, Bytes::from_static(b"+WPI"), "").await
    }
}

impl RefusedCommand {
    /// Sends the receipt, with the reason.
    pub async fn answer(&self) {
        self.answer.send(&self.receipt).await;
    }

    /// Acknowledges the command, so that it does not come again. Call it once it is told: whoever dies before that has it come to another.
    ///
    /// # Errors
    /// When the acknowledgement is not confirmed: the command comes again.
    pub async fn put_away(self) -> Result<(), BusError> {
        self.answer.acknowledge().await
    }
}

impl Answer {
    /// Where the answer is wanted. The listener's copy of the command takes another way than the stream's, and may come after it.
    async fn wanted_at(&self) -> Option<String> {
        if let Some(inbox) = &self.inbox {
            self.inboxes.take(&self.key);
            return Some(inbox.clone());
        }
        let until = Instant::now() + HEARD_LIMIT;
        loop {
            match self.inboxes.take(&self.key) {
                None if Instant::now() < until => tokio::time::sleep(HEARD_POLL).await,
                inbox => return inbox,
            }
        }
    }

    /// At most once: who asks again gets the same receipt by the command's id.
    async fn send(&self, receipt: &v1::Receipt) {
        let Some(inbox) = self.wanted_at().await else { return };
        let bytes = match json::to_json(receipt) {
            Ok(text) if self.json => Bytes::from(text),
            _ => Bytes::from(receipt.encode_to_vec()),
        };
        if let Err(error) = self.bus.publish(&inbox, bytes, "").await {
            tracing::debug!(%error, "a receipt was not sent");
        }
    }

    /// Confirmed by the broker.
    async fn acknowledge(&self) -> Result<(), BusError> {
        self.bus.request_raw(&self.ack, None, Bytes::from_static(b"+ACK"), REQUEST_LIMIT).await.map(|_| ())
    }
}
