//! Answers to questions on `razar.node.<node>.<verb>`, from memory and log files; they change nothing.

use std::time::{Duration, SystemTime};

use razar_bus::Query;
use razar_bus_schema::{ids::Instance, time, v1};

use crate::{
    agent::{Agent, now},
    logs::{From, LogStore},
    policy::precedence::state_name,
};

/// Lines of a log answered at most; more do not fit a message.
const LOG_LINES_MAX: usize = 1_000;
/// Lines answered when none are asked for.
const LOG_LINES_DEFAULT: usize = 100;
/// Bytes of lines in one answer: the payload's bound with room for the rest of each line's record.
const LOG_BYTES_MAX: usize = 160 * 1024;
/// Longest time that one question keeps log lines flowing.
const FOLLOW_MAX: Duration = Duration::from_secs(60);
/// Verbs that a node answers.
pub(crate) const VERBS: [&str; 5] = ["why", "logs", "inventory", "silence", "ping"];

impl Agent {
    pub(crate) fn on_query(&mut self, query: Query) {
        match query.verb {
            "why" => self.answer_why(query),
            "logs" => self.answer_logs(query),
            "silence" => self.answer_silence(query),
            "inventory" => {
                let inventory = self.policy.inventory();
                let of = |item: &v1::InventoryItem| item.instance.as_ref().and_then(|i| Instance::try_from(i).ok());
                let usage = inventory.items.iter().map(|i| of(i).and_then(|id| self.usages.get(&id)).unwrap_or_default()).collect();
                let joined = Some(self.joined.clone());
                let reply = v1::InventoryReply { node: self.config.node.clone(), joined, inventory: Some(inventory), usage };
                answer(query, reply);
            }
            _ => {
                let loop_age = Some(time::duration(self.house.loop_age()));
                let node_epoch = self.policy.config.node_epoch.clone();
                let troubles = self.troubles();
                answer(query, v1::PingReply { node: self.config.node.clone(), node_epoch, loop_age, troubles });
            }
        }
    }

    fn answer_why(&mut self, query: Query) {
        let request: v1::WhyRequest = match query.read() {
            Ok(request) => request,
            Err(error) => return refuse(query, error.to_string()),
        };
        let id = Instance::new(request.component, request.ordinal);
        let Some(inst) = self.policy.instance(&id) else {
            let reply = v1::WhyReply { unknown: true, node: self.config.node.clone(), ..Default::default() };
            return answer(query, reply);
        };
        let lines = self.policy.table(inst, now().mono);
        let verdict = match lines.iter().find(|l| l.won) {
            None => format!("nothing is wanted of {id}"),
            Some(l) if l.rule == 8 => format!("{id} is {}: {}", state_name(inst.state), inst.reason),
            Some(l) => format!("{id} {} by rule {}: {}", said(&l.says), l.rule, l.reason),
        };
        let reply = v1::WhyReply {
            instance: Some((&id).into()),
            incarnation: Some(inst.incarnation.into()),
            state: inst.state.into(),
            lines,
            verdict,
            incident: inst.incident.as_ref().map(|open| (&open.id).into()),
            node: self.config.node.clone(),
            unknown: false,
            spec: inst.spec().map(|s| (**s).clone()),
            usage: self.usages.get(&id),
        };
        answer(query, reply);
    }

    fn answer_silence(&mut self, query: Query) {
        let request: v1::SilenceRequest = match query.read() {
            Ok(request) => request,
            Err(error) => return refuse(query, error.to_string()),
        };
        let id = request.instance.as_ref().and_then(|i| Instance::try_from(i).ok());
        let reply = id.map(|id| self.policy.silence(&id)).unwrap_or_default();
        answer(query, reply);
    }

    fn answer_logs(&mut self, query: Query) {
        let request: v1::LogTailRequest = match query.read() {
            Ok(request) => request,
            Err(error) => return refuse(query, error.to_string()),
        };
        let id = Instance::new(request.component, request.ordinal);
        let Some(inst) = self.policy.instance(&id) else {
            return answer(query, v1::LogTailReply { unknown: true, ..Default::default() });
        };
        let (incarnation, logs) = (inst.incarnation, self.logs.clone());
        let chakra = inst.spec().map_or_else(String::new, |s| s.chakra.clone());
        if let (Some(span), true) = (&request.follow, inst.lives()) {
            let limit = time::std_duration(span).min(FOLLOW_MAX);
            let (bus, subject, id) = (self.bus.clone(), self.bus.subjects().log(&chakra, &id.component), id.clone());
            let source = logs.clone();
            tokio::spawn(async move { tokio::time::timeout(limit, follow(source, id, incarnation, bus, subject)).await });
        }
        tokio::task::spawn(async move {
            let lines = tokio::task::spawn_blocking(move || tail(&logs, &id, usize::try_from(request.lines).unwrap_or(LOG_LINES_MAX)));
            match lines.await {
                Ok(Ok(lines)) => answer(query, v1::LogTailReply { lines, unknown: false }),
                Ok(Err(error)) => refuse(query, error.to_string()),
                Err(error) => refuse(query, error.to_string()),
            }
        });
    }
}

fn tail(logs: &LogStore, id: &Instance, count: usize) -> std::io::Result<Vec<v1::LogLine>> {
    let count = if count == 0 { LOG_LINES_DEFAULT } else { count.min(LOG_LINES_MAX) };
    let lines = logs.tail(id, count)?;
    let mut bytes = 0_usize;
    let newest_first = lines.into_iter().rev().take_while(|line| {
        bytes += line.text.len();
        bytes <= LOG_BYTES_MAX
    });
    let mut lines: Vec<_> = newest_first.map(|line| record(id, line.at, line.text, String::new())).collect();
    lines.reverse();
    Ok(lines)
}

async fn follow(logs: LogStore, id: Instance, incarnation: razar_bus_schema::ids::Incarnation, bus: razar_bus::Bus, subject: String) {
    use prost::Message as _;
    let Ok(mut follow) = logs.follow(&id, incarnation, From::Now) else { return };
    while let Ok(lines) = follow.next().await {
        for line in lines {
            let shown = line.shown();
            let record = record(&id, shown.at, shown.text, incarnation.to_string());
            if bus.publish(&subject, record.encode_to_vec().into(), "").await.is_err() {
                return;
            }
        }
    }
}

fn record(id: &Instance, at: SystemTime, text: String, incarnation: String) -> v1::LogLine {
    v1::LogLine {
        component: id.component.clone(),
        ordinal: id.ordinal,
        time: Some(time::timestamp(at)),
        text,
        origin: v1::LogOrigin::Output.into(),
        incarnation,
    }
}

fn said(says: &str) -> &'static str {
    match says {
        "wait" => "waits",
        "stop" => "is stopped",
        "replace" => "is replaced",
        _ => "runs",
    }
}

fn answer<M: prost::Message + prost::Name + 'static>(query: Query, reply: M) {
    tokio::spawn(async move {
        if let Err(error) = query.answer(&reply).await {
            tracing::debug!(%error, "an answer could not be sent");
        }
    });
}

fn refuse(query: Query, why: String) {
    tokio::spawn(async move {
        let _ = query.refuse(400, &why).await;
    });
}
