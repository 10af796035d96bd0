//! Recovery's events and records, each made from facts and records alone, so that a take-over tells the same under the same ids.

use std::time::{Duration, SystemTime};

use razar_bus_schema::{
    event::{Kind as _, agent_event_id},
    ids::{Incarnation, Incident, Instance},
    time,
    trace::Context,
    v1::{self, event::Fact, intent::Want},
};

use super::{State, View};

/// Kind of this agent, in ids, subjects and records.
pub const AGENT: &str = "recovery";

/// Id of an event about an incident, or about one attempt of it.
pub(super) fn fact_id(kind: &str, incident: &Incident, attempt: Option<u32>) -> String {
    let cause = attempt.map_or_else(|| incident.to_string(), |attempt| format!("{incident}:{attempt}"));
    agent_event_id(AGENT, kind, Some(&incident.instance), Some(incident.incarnation), &cause)
}

/// What an event says beside its fact.
pub(super) struct Said {
    pub(super) code: &'static str,
    pub(super) text: String,
    /// Attempt that it tells of; absent: the incident as a whole.
    pub(super) attempt: Option<u32>,
    /// Id of the event or record that caused it.
    pub(super) cause: String,
}

/// What an order asks for.
pub(super) struct Asked<'a> {
    pub(super) instance: &'a Instance,
    pub(super) incident: &'a Incident,
    pub(super) rung: &'a str,
    pub(super) attempt: u32,
    pub(super) replaces: Incarnation,
    pub(super) evidence: Vec<String>,
    /// It rests on a missing sign; how often life had been shown before.
    pub(super) silent: Option<u64>,
    pub(super) backoff: Duration,
    pub(super) limit: Duration,
    pub(super) why: String,
}

impl State {
    pub(super) fn actor(&self) -> v1::Actor {
        v1::Actor { kind: AGENT.to_owned(), id: self.who.replica.clone() }
    }

    pub(super) fn trace_of(&self, incident: &Incident) -> v1::TraceContext {
        Context::incident(&self.who.mesh, &incident.to_string()).into()
    }

    /// An event about an incident.
    pub(super) fn fact(&self, incident: &Incident, view: &View, fact: Fact, said: Said, at: SystemTime) -> Box<v1::Event> {
        Box::new(v1::Event {
            id: fact_id(fact.kind(), incident, said.attempt),
            kind: fact.kind().to_owned(),
            time: Some(time::timestamp(at)),
            source: Some(self.actor()),
            chakra: view.chakra.clone(),
            instance: Some((&incident.instance).into()),
            incarnation: Some(view.incarnation.into()),
            incident: Some(incident.into()),
            cause_id: said.cause,
            reason: Some(v1::Reason { code: said.code.to_owned(), text: said.text }),
            trace: Some(self.trace_of(incident)),
            mesh: self.who.mesh.clone(),
            stack: view.stack.clone(),
            fact: Some(fact),
            ..Default::default()
        })
    }

    /// A record that orders a rung.
    pub(super) fn order(&self, asked: Asked<'_>, at: SystemTime) -> Box<v1::Intent> {
        let hold = asked.backoff + asked.limit;
        let cause = asked.evidence.first().cloned().unwrap_or_default();
        let order = v1::RecoveryOrder {
            instance: Some(asked.instance.into()),
            incident: Some(asked.incident.into()),
            rung: asked.rung.to_owned(),
            attempt: asked.attempt,
            replaces: Some(asked.replaces.into()),
            evidence: Some(v1::OrderEvidence {
                missing_sign: asked.silent.is_some(),
                signs_of_life: asked.silent.unwrap_or_default(),
                event_ids: asked.evidence,
            }),
            backoff: (!asked.backoff.is_zero()).then(|| time::duration(asked.backoff)),
            clear_state: asked.rung == super::rungs::CLEAR_STATE || asked.rung == super::rungs::DEPENDENCIES,
            hold_dependents: Some(time::duration(hold)),
            ended: false,
            chakra_hook: asked.rung == super::rungs::CHAKRA_HOOK,
        };
        Box::new(v1::Intent {
            writer: Some(self.actor()),
            cause_id: cause,
            reason: Some(v1::Reason { code: asked.rung.to_owned(), text: asked.why }),
            trace: Some(self.trace_of(asked.incident)),
            decided_at: Some(time::timestamp(at)),
            told_by_event_id: fact_id("rung_tried", asked.incident, Some(asked.attempt)),
            want: Some(Want::Recovery(order)),
            ..Default::default()
        })
    }

    /// The same record, asking for less: at the end of its incident for nothing any more.
    pub(super) fn amended(
        &self,
        before: &v1::Intent,
        told_by: String,
        why: (&str, String),
        at: SystemTime,
        ended: bool,
    ) -> Box<v1::Intent> {
        let mut intent = before.clone();
        intent.writer = Some(self.actor());
        intent.reason = Some(v1::Reason { code: why.0.to_owned(), text: why.1 });
        intent.decided_at = Some(time::timestamp(at));
        intent.told_by_event_id.clone_from(&told_by);
        intent.cause_id = told_by;
        if let Some(Want::Recovery(order)) = &mut intent.want {
            order.hold_dependents = None;
            order.ended = ended;
        }
        Box::new(intent)
    }
}
