//! The line to the mesh: opening it, the questions that commands ask, and what is said when it is away.
//! What an answer means is for the commands; that nobody answers is told here, as unknown.

use std::time::{Duration, Instant, SystemTime};

use futures::{StreamExt as _, stream::FuturesUnordered};
use razar_bus::{Bus, BusError, COMMAND_AGE_MAX, Config, EventFold, Start};
use razar_bus_schema::{
    ids::{Instance, sha256_hex},
    v1,
};
use serde_json::Value;

use crate::{
    args::Global,
    console::Console,
    exit::{Exit, Failure},
    http,
    mesh::{Facts, Place, SERVER_DEFAULT, host_port},
    ports,
    render::{text::escape, time::exact},
    spans::Sending,
};

/// A bus on the same network accepts in a millisecond.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// What is said of a port where something else listens.
const NOT_NATS: &str = "does not speak NATS";

/// A question is answered from memory.
pub(crate) const ASK_LIMIT: Duration = Duration::from_secs(5);

/// Silence after which a question is put again as well: of several replicas one may stand, and the broker gives each question to one of them.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// A node answers from memory; one that does not by then is not waited for with a status that is known.
const PING_LIMIT: Duration = Duration::from_millis(500);

/// A registry that has just started folds a hundred thousand events in a few seconds.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(20);

/// How often it is asked whether it has.
const CATCH_UP_POLL: Duration = Duration::from_millis(10);

/// A connection to the mesh.
#[derive(Debug)]
pub(crate) struct Link {
    /// The bus.
    pub(crate) bus: Bus,
    /// Its address.
    pub(crate) server: String,
}

/// Address of the bus: as named, else where the embedded mesh has it.
pub(crate) fn server(global: &Global, facts: Option<&Facts>) -> String {
    let known = facts.map(|f| f.server.clone()).filter(|s| !s.is_empty());
    global.server.clone().filter(|s| !s.is_empty()).or(known).unwrap_or_else(|| SERVER_DEFAULT.to_owned())
}

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// Exit 69 with what is known when the bus is away: who holds its port, what the node says.
    pub(crate) async fn open(console: &Console, global: &Global) -> Result<Self, Failure> {
        if console.json {
            // Needed once there is an answer.
            tokio::task::spawn_blocking(razar_bus_schema::json::prepare);
        }
        let place = Place::of(&global.mesh);
        let facts = place.facts();
        let server = server(global, facts.as_ref());
        match Self::connect(&global.mesh, &server).await {
            Ok(link) => Ok(link),
            Err(why) => Err(away(console, &server, &why, facts.as_ref(), place.guard().is_some()).await),
        }
    }

    /// Connects, or says in a word why not.
    ///
    /// # Errors
    /// `refuses`, `does not answer`, or the broker's own reason.
    pub(crate) async fn connect(mesh: &str, server: &str) -> Result<Self, String> {
        let (host, port) = host_port(server).ok_or_else(|| format!("`{server}` is no address: nats://127.0.0.1:4222"))?;
        // A plain connect tells a refusal at once, where the client would go on trying.
        let tried = tokio::time::timeout(CONNECT_LIMIT, tokio::net::TcpStream::connect((host.as_str(), port))).await;
        match tried {
            Err(_) => return Err("does not answer".to_owned()),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => return Err("refuses".to_owned()),
            Ok(Err(e)) => return Err(e.to_string()),
            Ok(Ok(_)) => {}
        }
        let config = Config { servers: vec![server.to_owned()], mesh: mesh.to_owned(), name: "razar".to_owned(), credentials: None };
        let bus = Bus::connect(config).await.map_err(|e| e.to_string())?;
        let unusable = |e: BusError| if matches!(e, BusError::Timeout { .. }) { NOT_NATS.to_owned() } else { e.to_string() };
        bus.ready(CONNECT_LIMIT).await.map_err(unusable)?;
        Ok(Self { bus, server: server.to_owned() })
    }

    /// The projection with the mesh's own components, and the time the answer took.
    ///
    /// # Errors
    /// Exit 69 when the registry does not answer.
    pub(crate) async fn status(&self) -> Result<(v1::StatusReply, Duration), Failure> {
        let asked = Instant::now();
        let request = v1::StatusRequest { components: Vec::new(), system: true };
        let reply = self.ask("registry", "status", &request).await?;
        Ok((reply, asked.elapsed()))
    }

    /// As [`Link::status`], once the registry has folded all that was in the stream: what is waited for from then on is new.
    ///
    /// # Errors
    /// Exit 69 when the registry does not answer, or does not catch up.
    pub(crate) async fn caught_up(&self) -> Result<v1::StatusReply, Failure> {
        let began = Instant::now();
        loop {
            let (reply, _) = self.status().await?;
            if reply.lag == 0 {
                return Ok(reply);
            }
            if began.elapsed() > CATCH_UP_LIMIT {
                let text = format!("the registry is {} events behind, and what is new is unknown", reply.lag);
                return Err(Failure::new(Exit::OutOfReach, text));
            }
            tokio::time::sleep(CATCH_UP_POLL).await;
        }
    }

    /// The plan in force.
    ///
    /// # Errors
    /// Exit 69 when the orchestrator does not answer.
    pub(crate) async fn plan(&self) -> Result<v1::PlanReply, Failure> {
        self.ask("orchestrator", "plan", &v1::PlanRequest {}).await
    }

    async fn ask<Rep: prost::Message + Default>(&self, agent: &str, verb: &str, request: &impl prost::Message) -> Result<Rep, Failure> {
        let (subject, began) = (self.bus.subjects().query(agent, verb), Instant::now());
        let (mut asked, mut late) = (FuturesUnordered::new(), None);
        loop {
            let left = ASK_LIMIT.saturating_sub(began.elapsed());
            if !left.is_zero() {
                asked.push(self.bus.ask(&subject, request, left));
            }
            match tokio::time::timeout(ASK_AGAIN, asked.next()).await {
                Ok(Some(Ok(reply))) => return Ok(reply),
                Ok(Some(Err(error @ BusError::Timeout { .. }))) => late = Some(error),
                Ok(Some(Err(error))) => return Err(self.silent(agent, &error)),
                // Nobody has answered yet; or nobody is left to be waited for.
                Err(_) | Ok(None) => {}
            }
            if let Some(error) = late.as_ref().filter(|_| asked.is_empty()) {
                return Err(self.silent(agent, error));
            }
        }
    }

    /// Why an instance is as it is, by its node.
    ///
    /// # Errors
    /// Exit 69 when the node does not answer.
    pub(crate) async fn why(&self, node: &str, instance: &Instance) -> Result<v1::WhyReply, Failure> {
        let request = v1::WhyRequest { component: instance.component.clone(), ordinal: instance.ordinal };
        self.ask_node(node, "why", &request).await
    }

    /// What nodes say is wrong with what they stand on; who does not answer says nothing.
    pub(crate) async fn troubles(&self, nodes: &[v1::ObservedNode]) -> Vec<v1::Trouble> {
        let ping = |node: &v1::ObservedNode| {
            let subject = self.bus.subjects().node(&node.name, "ping");
            async move { self.bus.ask::<v1::PingRequest, v1::PingReply>(&subject, &v1::PingRequest {}, PING_LIMIT).await }
        };
        let answers = futures::future::join_all(nodes.iter().map(ping)).await;
        answers.into_iter().flatten().flat_map(|answer| answer.troubles).collect()
    }

    /// How the mesh is in numbers, by the watchdog; one that does not answer is not waited for with a status that is known.
    pub(crate) async fn health(&self) -> Option<v1::HealthReply> {
        let subject = self.bus.subjects().query("watchdog", "health");
        self.bus.ask(&subject, &v1::HealthRequest {}, PING_LIMIT).await.ok()
    }

    /// Last log lines, by the instance's node.
    ///
    /// # Errors
    /// Exit 69 when the node does not answer.
    pub(crate) async fn logs(&self, node: &str, request: &v1::LogTailRequest) -> Result<v1::LogTailReply, Failure> {
        self.ask_node(node, "logs", request).await
    }

    async fn ask_node<Rep: prost::Message + Default>(&self, node: &str, verb: &str, request: &impl prost::Message) -> Result<Rep, Failure> {
        let subject = self.bus.subjects().node(node, verb);
        self.bus.ask(&subject, request, ASK_LIMIT).await.map_err(|e| self.silent(&format!("node {node}"), &e))
    }

    /// What is said when an agent does not answer.
    pub(crate) fn silent(&self, who: &str, error: &BusError) -> Failure {
        #[expect(clippy::wildcard_enum_match_arm, reason = "the others say for themselves what is wrong")]
        let why = match error {
            BusError::NoResponders { .. } => format!("no {who} answers on {}", self.server),
            BusError::Timeout { .. } => format!("the {who} does not answer in time"),
            other => format!("{who}: {other}"),
        };
        Failure::new(Exit::OutOfReach, format!("{}; what it would say is unknown", escape(&why)))
    }

    /// Sends a command and waits `patience` for its receipt; a refused one is a receipt too. After [`ASK_LIMIT`] it is told that one waits:
    /// who had read the command may have died with it, and the broker gives it to the next after some seconds.
    ///
    /// # Errors
    /// Exit 69 when the bus is away, 75 when the command is stored and nobody has taken it up yet.
    pub(crate) async fn command(
        &self,
        (agent, verb, target): (&str, &str, &str),
        mut command: v1::Command,
        patience: Duration,
        console: &Console,
    ) -> Result<v1::Receipt, Failure> {
        if command.command_id.is_empty() {
            command.command_id = command_id(verb, target);
        }
        if command.issuer.is_empty() {
            command.issuer = issuer();
        }
        let id = command.command_id.clone();
        let in_time = format!("within {} of the asking", exact(COMMAND_AGE_MAX));
        let sending = Sending::begin(self.bus.mesh(), &mut command);
        let waiting = async {
            tokio::time::sleep(ASK_LIMIT).await;
            if patience > ASK_LIMIT {
                console.note(&format!("no receipt from {agent} within {}; waiting {} at most", exact(ASK_LIMIT), exact(patience)));
            }
            std::future::pending().await
        };
        let receipt = tokio::select! {
            receipt = self.bus.command(agent, verb, target, command, patience) => receipt,
            never = waiting => never,
        };
        if let Ok(receipt) = &receipt {
            sending.end(self.bus.subjects(), agent, verb, target, receipt).await;
        }
        #[expect(clippy::wildcard_enum_match_arm, reason = "the others say for themselves what is wrong")]
        receipt.map_err(|e| match e {
            BusError::Timeout { .. } | BusError::NoResponders { .. } => Failure::new(
                Exit::NoOutcome,
                format!(
                    "no receipt from {agent} within {}: command {id} is stored, and is taken up if it comes back {in_time}",
                    exact(patience)
                ),
            ),
            BusError::Denied { subject } => Failure::new(Exit::Refused, format!("the broker forbids {subject}")),
            other => Failure::new(Exit::OutOfReach, format!("{agent} {verb} {target}: {other}; whether it was stored is unknown")),
        })
    }

    /// Events whose subject matches `pattern`, after what `reply` knows: nothing that happens from then on is missed.
    pub(crate) fn events_after(&self, pattern: &str, reply: &v1::StatusReply) -> EventFold {
        let observed = reply.observed.as_ref();
        let epoch = observed.map(|o| o.stream_epoch.clone()).unwrap_or_default();
        let sequence = observed.map(|o| o.applied_sequence).unwrap_or_default();
        let from = if epoch.is_empty() { Start::Beginning } else { Start::After { epoch, sequence } };
        self.bus.follow_events(pattern, from)
    }
}

/// Computed from who asks for what and when, so that two commands of one person differ.
fn command_id(verb: &str, target: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut id = sha256_hex(format!("{verb} {target} {} {now}", std::process::id()).as_bytes());
    id.truncate(12);
    id
}

/// Who asks, for the record.
fn issuer() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default();
    if user.is_empty() { format!("uid {}", rustix::process::getuid().as_raw()) } else { user }
}

/// The bus is away: who holds its port, what the node says on its own endpoint, what to type.
async fn away(console: &Console, server: &str, why: &str, facts: Option<&Facts>, guarded: bool) -> Failure {
    let address = host_port(server).map_or_else(|| server.to_owned(), |(host, port)| format!("{host}:{port}"));
    let mut text = format!("bus away: {address} {why}; the mesh's state is unknown");
    if why == NOT_NATS
        && let Some((_, port)) = host_port(server)
        && let Some(holder) = ports::holder(port)
    {
        text.push_str(&format!("\nport {port} is held by {holder}"));
    }
    if let Some(facts) = facts.filter(|f| !f.node_http.is_empty()) {
        match http::get(&facts.node_http, "/readyz").await {
            Ok((_, body)) => text.push_str(&format!("\nnode {} says on /readyz: {}", escape(&facts.node), readyz_words(&body))),
            Err(e) => text.push_str(&format!("\nnode {} does not answer on {}: {e}", escape(&facts.node), escape(&facts.node_http))),
        }
    }
    let failure = Failure::new(Exit::OutOfReach, text);
    // A mesh whose guard lives mends itself; another `up` would not help it.
    if guarded { failure } else { failure.next(console.command(&["up"])) }
}

/// What a node's `/readyz` says: its sentence, or its facts as they are.
pub(crate) fn readyz_words(body: &str) -> String {
    let Ok(Value::Object(value)) = serde_json::from_str::<Value>(body) else { return escape(body.trim()) };
    let sentence = ["says", "text", "reason", "why", "message"].iter().find_map(|k| value.get(*k)?.as_str()).filter(|s| !s.is_empty());
    if let Some(sentence) = sentence {
        return escape(sentence);
    }
    if let Some(Value::Object(reasons)) = value.get("reasons") {
        let told: Vec<_> = reasons.values().filter_map(Value::as_str).map(escape).collect();
        return if told.is_empty() { "ready".to_owned() } else { told.join(", ") };
    }
    let one = |(key, value): (&String, &Value)| {
        let told = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{} {}", key.replace('_', " "), escape(&told))
    };
    value.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_quoted_by_its_sentence_or_its_facts() {
        assert_eq!(readyz_words(r#"{"ready":true,"says":"12 of 12 run, healing goes on"}"#), "12 of 12 run, healing goes on");
        assert_eq!(readyz_words(r#"{"ready":false,"reasons":{"bus":"the bus is away"}}"#), "the bus is away");
        assert_eq!(readyz_words(r#"{"ready":true,"reasons":{}}"#), "ready");
        assert_eq!(readyz_words(r#"{"bus":"down","journalled":37}"#), "bus down, journalled 37");
        assert_eq!(readyz_words("ok\n"), "ok");
    }

    #[tokio::test]
    async fn a_bus_that_refuses_is_told_as_unknown() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert_eq!(Link::connect("razar", &format!("nats://127.0.0.1:{port}")).await.unwrap_err(), "refuses");
    }
}
