//! Verdicts on silence: of nodes, of agents, of instances that beat. Given after the last beat that may be missed, with what an observer
//! that was current for the whole of it has heard, and with a second signal: a node does not answer, an instance hangs by its node's view.

use std::time::Duration;

use razar_bus_schema::{
    ids::{Incarnation, Incident, Instance},
    time,
    v1::{self, event::Fact},
};

use super::{
    Action, Now, Pinged, Question, Rhythm, State, Subject, Watch,
    events::{Said, spoken},
};

/// A verdict that waits for a proof or an answer is looked at again after this: both take a millisecond.
const SOON: Duration = Duration::from_millis(5);
/// A node that is asked has this long at least.
const ASK_LIMIT_MIN: Duration = Duration::from_millis(100);

/// What follows for one subject.
struct Next {
    action: Option<Action>,
    due: Duration,
}

impl Next {
    const fn at(due: Duration) -> Self {
        Self { action: None, due }
    }
}

impl State {
    pub(super) fn decide_silence(&mut self, now: Now, actions: &mut Vec<Action>) {
        while let Some((at, subject)) = self.due.first().cloned().filter(|(at, _)| *at <= now.mono) {
            self.due.remove(&(at, subject.clone()));
            let Some(rhythm) = self.rhythm(&subject) else {
                self.watches.remove(&subject);
                if let Subject::Component(instance) = &subject {
                    self.watch_closely(instance, false);
                }
                continue;
            };
            // Every replica observes; the holder of its shard gives the verdict.
            let ours = subject.decided_by(&self.shards);
            let next = if ours { self.judge(&subject, &rhythm, now) } else { Next::at(now.mono + rhythm.interval) };
            let due = next.due.max(now.mono + Duration::from_millis(1));
            if let Some(watch) = self.watches.get_mut(&subject) {
                watch.due = due;
                self.due.insert((due, subject));
            }
            match next.action {
                Some(Action::Publish(event)) => self.publish(event, now, actions),
                Some(action) => {
                    self.note_question(&action, now);
                    actions.push(action);
                }
                None => {}
            }
        }
    }

    pub(super) fn rhythm(&self, subject: &Subject) -> Option<Rhythm> {
        match subject {
            Subject::Node(_) | Subject::Agent(..) => Some(self.rhythm_of_mesh()),
            Subject::Component(instance) => self.rhythm_of(instance),
        }
    }

    fn judge(&mut self, subject: &Subject, rhythm: &Rhythm, now: Now) -> Next {
        let Some(watch) = self.watches.get(subject) else { return Next::at(now.mono + rhythm.interval) };
        if self.is_away(subject) {
            return self.judge_return(subject, watch, rhythm, now);
        }
        if self.is_itself(subject) {
            return Next::at(now.mono + rhythm.interval);
        }
        // Whether a node's loop turns its guard and its health endpoint see; here it is there as long as it is heard or answers.
        if watch.stands(rhythm, now.mono).is_some() && !matches!(subject, Subject::Node(_)) {
            return self.verdict_standing(subject, watch, rhythm, now);
        }
        let Some(current) = self.currency.since(rhythm.interval) else { return Next::at(now.mono + rhythm.interval) };
        let silence = watch.silence(rhythm, current, now.mono);
        if silence.missed == 0 {
            return Next::at(silence.next);
        }
        let over = silence.since + rhythm.patience();
        let silent = silence.missed >= rhythm.misses;
        let proven = self.currency.proven().is_some_and(|proven| proven >= over);
        let next = match subject {
            Subject::Node(name) => self.judge_node(name, watch, silence.since, over + rhythm.slack, (silent && proven, rhythm), now),
            Subject::Agent(kind, id) if silent && proven => self.lost_agent(kind, id, watch, "no_beats", now),
            Subject::Component(instance) if silent && proven => self.judge_instance(instance, watch, rhythm, now),
            Subject::Agent(..) | Subject::Component(_) => Next::at(silence.next),
        };
        if silent && !proven {
            self.currency.want_proof();
            return Next { due: now.mono + SOON, ..next };
        }
        next
    }

    /// A node that misses a beat is asked; once it is silent without an answer it is lost.
    fn judge_node(&self, name: &str, watch: &Watch, since: Duration, over: Duration, (silent, rhythm): (bool, &Rhythm), now: Now) -> Next {
        let ask = || Next {
            action: Some(Action::Ping { node: name.to_owned(), limit: over.saturating_sub(now.mono).max(ASK_LIMIT_MIN) }),
            due: now.mono + rhythm.interval / 4,
        };
        match watch.question {
            Question::None => ask(),
            Question::Put(put) | Question::Unanswered { put, .. } if put < since => ask(),
            Question::Put(_) => Next::at(now.mono + SOON),
            Question::Unanswered { no_responders, .. } if silent => self.lost_node(name, watch, no_responders, now),
            // Nobody listened then; it may have come back since.
            Question::Unanswered { put, .. } if now.mono >= put + rhythm.interval => ask(),
            Question::Unanswered { put, .. } => Next::at((put + rhythm.interval).min(over).max(now.mono + SOON)),
        }
    }

    fn lost_node(&self, name: &str, watch: &Watch, no_responders: bool, now: Now) -> Next {
        let Some(seen) = self.facts.node(name) else { return Next::at(now.mono + self.limits.beat) };
        let silent_for = watch.silent_for(now.mono);
        let evidence = if no_responders { "no_responders" } else { "no_answer" };
        let how = if no_responders { "nobody listens there" } else { "it does not answer" };
        let text = format!("no beat for {}, and {how}", spoken(silent_for));
        let fact = Fact::NodeLost(v1::NodeLost {
            silent_for: Some(time::duration(silent_for)),
            evidence: vec!["no_beats".to_owned(), evidence.to_owned()],
        });
        let said = Said { code: "silent", text, cause: seen.presence.by().to_owned() };
        Next { action: Some(Action::Publish(self.about_node(name, fact, said, now))), due: now.mono + self.limits.beat }
    }

    fn lost_agent(&self, kind: &str, id: &str, watch: &Watch, evidence: &str, now: Now) -> Next {
        let Some(seen) = self.facts.agents.get(&(kind.to_owned(), id.to_owned())) else { return Next::at(now.mono + self.limits.beat) };
        let silent_for = watch.silent_for(now.mono);
        let text = match watch.stands {
            Some((.., age)) if evidence != "no_beats" => format!("it beats, and its loop last turned {} ago", spoken(age)),
            _ => format!("no beat for {}", spoken(silent_for)),
        };
        let fact = Fact::AgentDown(v1::AgentDown {
            kind: kind.to_owned(),
            id: id.to_owned(),
            silent_for: Some(time::duration(silent_for)),
            evidence: vec![evidence.to_owned()],
        });
        let said = Said { code: if evidence == "no_beats" { "silent" } else { "stands" }, text, cause: seen.presence.by().to_owned() };
        Next { action: Some(Action::Publish(self.about_agent(kind, id, fact, said, now))), due: now.mono + self.limits.beat }
    }

    /// Its beats say themselves that its loop stands.
    fn verdict_standing(&self, subject: &Subject, watch: &Watch, rhythm: &Rhythm, now: Now) -> Next {
        match subject {
            Subject::Node(_) => Next::at(now.mono + rhythm.interval),
            Subject::Agent(kind, id) => self.lost_agent(kind, id, watch, "loop_stands", now),
            Subject::Component(instance) => self.judge_instance(instance, watch, rhythm, now),
        }
    }

    /// Who counts as silent and has been heard since the verdict is back.
    fn judge_return(&self, subject: &Subject, watch: &Watch, rhythm: &Rhythm, now: Now) -> Next {
        let again = Next::at(now.mono + rhythm.interval);
        let (seen, sign) = match (subject, watch.sign) {
            (Subject::Node(name), Some(sign)) => (self.facts.node(name), sign),
            (Subject::Agent(kind, id), Some(sign)) => (self.facts.agents.get(&(kind.clone(), id.clone())), sign),
            _ => return again,
        };
        let Some(seen) = seen.filter(|seen| sign > seen.changed_at) else { return again };
        let away = sign.saturating_sub(seen.changed_at);
        let said =
            Said { code: "heard", text: format!("heard again {} after the verdict", spoken(away)), cause: seen.presence.by().to_owned() };
        let away = Some(time::duration(away));
        let event = match subject {
            Subject::Node(name) => self.about_node(name, Fact::NodeReturned(v1::NodeReturned { away }), said, now),
            Subject::Agent(kind, id) => {
                let fact = Fact::AgentReturned(v1::AgentReturned { kind: kind.clone(), id: id.clone(), away });
                self.about_agent(kind, id, fact, said, now)
            }
            Subject::Component(_) => return again,
        };
        Next { action: Some(Action::Publish(event)), ..again }
    }

    /// An instance that does not beat hangs if its node's view of its processes says so as well.
    fn judge_instance(&self, instance: &Instance, watch: &Watch, rhythm: &Rhythm, now: Now) -> Next {
        let again = Next::at(now.mono + rhythm.interval.min(self.limits.beat));
        let Some(view) = self.facts.view(instance) else { return again };
        if !view.judged_by.is_empty() || self.facts.is_lost(&view.node) {
            return again;
        }
        if let Some(reply) = watch.seen.as_ref().filter(|r| r.hung) {
            let silent_for = watch.silent_for(now.mono);
            let mut evidence = reply.evidence.clone().unwrap_or_default();
            evidence.silent_for = Some(time::duration(silent_for));
            evidence.probe = format!("no beat for {}", spoken(silent_for));
            let text = format!("no beat for {}, and by its node's view it hangs", spoken(silent_for));
            let said = Said { code: "silent", text, cause: view.changed_by.1.clone() };
            // A start that was to end an incident, and hangs, fails in that one.
            let open = reply.incident.as_ref().and_then(|open| Incident::try_from(open).ok());
            let open = open.filter(|open| open.instance == *instance && open.incarnation < view.incarnation);
            let own = || Incident { instance: instance.clone(), incarnation: view.incarnation, signs_of_life: reply.signs_of_life };
            let incident = open.unwrap_or_else(own);
            let fact = Fact::ComponentUnresponsive(v1::ComponentUnresponsive { evidence: Some(evidence) });
            let event = self.of_incident(self.about_instance((instance, view), fact, (said, ""), now), &incident);
            return Next { action: Some(Action::Publish(event)), ..again };
        }
        let asked = match watch.question {
            Question::None => None,
            Question::Put(at) | Question::Unanswered { put: at, .. } => Some(at),
        };
        if asked.is_some_and(|at| at + rhythm.interval.min(self.limits.beat) > now.mono) {
            return again;
        }
        Next { action: Some(Action::Look { node: view.node.clone(), instance: instance.clone() }), ..again }
    }

    /// Notes the question that an action puts.
    fn note_question(&mut self, action: &Action, now: Now) {
        let subject = match action {
            Action::Ping { node, .. } => Subject::Node(node.clone()),
            Action::Look { instance, .. } => Subject::Component(instance.clone()),
            Action::Echo(_) | Action::Measure { .. } | Action::Publish(_) => return,
        };
        if let Some(watch) = self.watches.get_mut(&subject) {
            watch.question = Question::Put(now.mono);
        }
    }

    pub(super) fn apply_pinged(&mut self, node: &str, how: Pinged, now: Now) {
        let subject = Subject::Node(node.to_owned());
        let Some(watch) = self.watches.get_mut(&subject) else { return };
        match how {
            // It answers, and so it is there, whatever its beats say of its loop.
            Pinged::Answered => watch.signs(now.mono),
            Pinged::NoResponders | Pinged::Silent => {
                if let Question::Put(put) = watch.question {
                    watch.question = Question::Unanswered { put, no_responders: how == Pinged::NoResponders };
                }
            }
        }
        self.look_at(&subject, now.mono);
    }

    pub(super) fn apply_looked(&mut self, instance: &Instance, reply: Option<v1::SilenceReply>, now: Now) {
        let subject = Subject::Component(instance.clone());
        let Some(watch) = self.watches.get_mut(&subject) else { return };
        let told = reply.as_ref().and_then(|r| r.incarnation.as_ref()).map(Incarnation::from);
        if told.is_some_and(|told| told == watch.incarnation) && watch.question != Question::None {
            watch.seen = reply;
            self.look_at(&subject, now.mono);
        }
    }
}
