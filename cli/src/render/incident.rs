//! Incidents as the stream of events tells them: a line each, and the whole story of one. Folds and words; reading is the command's.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    ids::Incident,
    time::{std_duration, system_time},
    v1::{self, event::Fact},
};

use super::{
    event::{exit_status, incarnation, summary},
    text::{count, escape},
    time::{Zone, clock, span},
};
use crate::replay::{Decision, lead};

/// Events of one story that are shown; a flapper's go on for days.
const EVENTS_MAX: usize = 1000;
/// Characters of a clock without its milliseconds.
const CLOCK_CHARS: usize = 8;

/// How an incident stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Somebody is on it, or nobody yet.
    Open,
    /// No rung helped; nobody has isolated it.
    Failed,
    /// It is well again.
    Recovered,
    /// It lost its object.
    Withdrawn,
    /// Its component is isolated.
    Quarantined,
}

impl Standing {
    const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Failed => "failed",
            Self::Recovered => "recovered",
            Self::Withdrawn => "withdrawn",
            Self::Quarantined => "quarantined",
        }
    }

    /// Whether it goes on.
    pub(crate) const fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::Failed)
    }
}

/// An incident.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// Its id.
    pub(crate) id: Incident,
    /// How it stands.
    pub(crate) standing: Standing,
    /// Newest event of it.
    pub(crate) last: v1::Event,
    /// Of the event that opened it, or of the first after it that has one: what a hand does later belongs to the trace of its command.
    trace: Option<[u8; 16]>,
    /// Its events, oldest first, where they are kept.
    pub(crate) events: Vec<v1::Event>,
    opened: SystemTime,
    ended: Option<SystemTime>,
    down: Option<Duration>,
    cause: String,
    rung: String,
    starts: u32,
    blocked: Vec<String>,
}

/// Whose events are kept whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Nobody's: lines are enough.
    Lines,
    /// The newest's, or of those that are open the newest's.
    Newest,
    /// This one's, or of this instance the newest's: `api@1.3`, `api`.
    Named(String),
}

/// All incidents of the events that were folded, in order of their beginnings.
#[derive(Debug)]
pub(crate) struct Book {
    wanted: Wanted,
    order: Vec<Incident>,
    told: BTreeMap<Incident, Told>,
}

impl Book {
    /// An empty one.
    pub(crate) fn new(wanted: Wanted) -> Self {
        Self { wanted, order: Vec::new(), told: BTreeMap::new() }
    }

    /// Folds the next event; `stored` is when the broker had it.
    pub(crate) fn fold(&mut self, event: &v1::Event, stored: SystemTime) {
        let at = event.time.as_ref().map_or(stored, system_time);
        self.fold_blocked(event);
        let Some(id) = event.incident.as_ref().and_then(|id| Incident::try_from(id).ok()).or_else(|| self.isolated(event)) else { return };
        let keep = self.keeps(&id);
        if !self.told.contains_key(&id) {
            if self.wanted == Wanted::Newest {
                self.told.values_mut().filter(|t| !t.standing.is_open()).for_each(|t| t.events = Vec::new());
            }
            self.order.push(id.clone());
        }
        let told = self.told.entry(id.clone()).or_insert_with(|| Told::opened(id, event, at));
        told.fold(event, at);
        if keep && told.events.len() < EVENTS_MAX {
            told.events.push(event.clone());
        }
    }

    fn keeps(&self, id: &Incident) -> bool {
        match &self.wanted {
            Wanted::Lines => false,
            Wanted::Newest => true,
            Wanted::Named(name) => id.to_string() == *name || id.instance.to_string() == *name,
        }
    }

    /// Of a quarantine that names no incident: the newest of its instance.
    fn isolated(&self, event: &v1::Event) -> Option<Incident> {
        let Some(Fact::Quarantined(_)) = &event.fact else { return None };
        let about = event.instance.as_ref()?;
        let is = |id: &&Incident| id.instance.component == about.component && id.instance.ordinal == about.ordinal;
        let id = self.order.iter().rev().find(is)?;
        self.told.get(id).filter(|told| told.standing.is_open()).map(|told| told.id.clone())
    }

    fn fold_blocked(&mut self, event: &v1::Event) {
        let (Some(Fact::ComponentBlocked(blocked)), Some(about)) = (&event.fact, &event.instance) else { return };
        self.told.values_mut().filter(|told| told.standing.is_open()).for_each(|told| told.holds_up(blocked, about));
    }

    /// Folds who was held up, of a `component_blocked` that comes after all else: by when it happened.
    pub(crate) fn fold_held_up(&mut self, event: &v1::Event, stored: SystemTime) {
        let (Some(Fact::ComponentBlocked(blocked)), Some(about)) = (&event.fact, &event.instance) else { return };
        let at = event.time.as_ref().map_or(stored, system_time);
        for told in self.told.values_mut().filter(|told| told.opened <= at && told.ended.is_none_or(|ended| at <= ended)) {
            told.holds_up(blocked, about);
        }
    }

    /// Every incident, oldest first.
    pub(crate) fn all(&self) -> impl DoubleEndedIterator<Item = &Told> {
        self.order.iter().filter_map(|id| self.told.get(id))
    }

    /// The incident that is wanted, of the open ones alone if `open`.
    pub(crate) fn wanted(&self, open: bool) -> Option<&Told> {
        self.all().rev().find(|told| self.keeps(&told.id) && (!open || told.standing.is_open()))
    }
}

impl Told {
    fn opened(id: Incident, event: &v1::Event, at: SystemTime) -> Self {
        Self {
            id,
            standing: Standing::Open,
            last: event.clone(),
            trace: None,
            events: Vec::new(),
            opened: at,
            ended: None,
            down: None,
            cause: summary(event),
            rung: String::new(),
            starts: 0,
            blocked: Vec::new(),
        }
    }

    fn holds_up(&mut self, blocked: &v1::ComponentBlocked, about: &v1::InstanceId) {
        let by = blocked.by.iter().any(|b| b.component == self.id.instance.component);
        if by && !self.blocked.contains(&about.component) {
            self.blocked.push(about.component.clone());
        }
    }

    fn fold(&mut self, event: &v1::Event, at: SystemTime) {
        if self.trace.is_none() {
            let traced = event.trace.as_ref().and_then(|t| razar_bus_schema::ids::parse_traceparent(&t.traceparent));
            self.trace = traced.map(|(id, _)| id);
        }
        self.last = event.clone();
        let end = match event.fact.as_ref() {
            Some(Fact::ComponentStarted(_)) => {
                self.starts += 1;
                return;
            }
            Some(Fact::RungTried(tried)) => {
                self.rung.clone_from(&tried.rung);
                return;
            }
            Some(Fact::Recovered(recovered)) => {
                self.rung.clone_from(&recovered.rung);
                self.starts = self.starts.max(recovered.starts);
                self.down = recovered.took.as_ref().map(std_duration);
                Standing::Recovered
            }
            Some(Fact::IncidentWithdrawn(_)) => Standing::Withdrawn,
            Some(Fact::Quarantined(_)) => Standing::Quarantined,
            Some(Fact::RecoveryFailed(_)) => Standing::Failed,
            _ => return,
        };
        if self.standing.is_open() {
            self.standing = end;
            self.ended = Some(at);
        }
    }

    /// Whether nothing more is told of it: an isolation goes on until somebody ends it.
    pub(crate) const fn is_settled(&self) -> bool {
        matches!(self.standing, Standing::Recovered | Standing::Withdrawn)
    }

    /// Whether anything of it happened at or after `since`.
    pub(crate) fn touches(&self, since: SystemTime) -> bool {
        self.standing.is_open() || self.last.time.as_ref().map(system_time).is_none_or(|at| at >= since)
    }

    fn span_to(&self, end: SystemTime) -> Duration {
        end.duration_since(self.opened).unwrap_or_default()
    }

    /// Id, clock, how it stands, how long, the rung, the cause.
    fn cells(&self, now: SystemTime, zone: Zone) -> [String; 6] {
        let at: String = clock(self.opened, zone).chars().take(CLOCK_CHARS).collect();
        let took = match self.standing {
            Standing::Recovered => self.down.unwrap_or_else(|| self.span_to(self.ended.unwrap_or(now))),
            Standing::Open => self.span_to(now),
            Standing::Failed | Standing::Withdrawn | Standing::Quarantined => self.span_to(self.ended.unwrap_or(now)),
        };
        let or = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        [self.id.to_string(), at, self.standing.name().to_owned(), span(took), or(escape(&self.rung)), or(self.cause.clone())]
    }

    /// The story, a line for each event, and how it ended.
    pub(crate) fn story(&self, now: SystemTime, zone: Zone) -> Vec<String> {
        let mut rows = Vec::new();
        let (mut before, mut last_exit) = (None::<SystemTime>, String::new());
        for event in &self.events {
            let at = event.time.as_ref().map_or(self.opened, system_time);
            let since = before.map_or_else(|| "+0".to_owned(), |b| format!("+{}", span(at.duration_since(b).unwrap_or_default())));
            let mut words = words(event, &mut last_exit);
            if before.is_none() {
                words = format!("{}, {words}", clock(at, zone));
            }
            before = Some(at);
            let who = event.source.as_ref().map_or_else(|| "-".to_owned(), |s| escape(&s.kind));
            rows.push([since, who, escape(&event.kind), incarnation(event), words]);
        }
        let mut lines = columns(&rows);
        lines.push(self.verdict(now));
        lines
    }

    /// `down 6.0s, healed in 11.0s, 5 starts; blocked api worker; trace 4bf92f35…`
    fn verdict(&self, now: SystemTime) -> String {
        let took = self.span_to(self.ended.unwrap_or(now));
        let how = match self.standing {
            Standing::Recovered => format!("down {}, healed in {}", span(self.down.unwrap_or(took)), span(took)),
            Standing::Open => format!("open for {}", span(took)),
            Standing::Failed => format!("no rung helped, in {}", span(took)),
            Standing::Withdrawn => format!("withdrawn after {}", span(took)),
            Standing::Quarantined => format!("quarantined after {}", span(took)),
        };
        let blocked = if self.blocked.is_empty() { String::new() } else { format!("; blocked {}", self.blocked.join(" ")) };
        let trace =
            self.trace.map(|id| format!("; trace {}", id.iter().map(|b| format!("{b:02x}")).collect::<String>())).unwrap_or_default();
        format!("{how}, {}{}{trace}", count(self.starts as usize, "start"), escape(&blocked))
    }
}

/// What an event of a story says; an exit like the one before is called the same.
fn words(event: &v1::Event, last_exit: &mut String) -> String {
    let told = summary(event);
    match event.fact.as_ref() {
        Some(Fact::ComponentExited(exited)) => {
            if *last_exit == told {
                return format!("{}, the same", exit_status(exited.status.as_ref()));
            }
            last_exit.clone_from(&told);
            told
        }
        Some(Fact::RecoveryStarted(_)) => event.reason.as_ref().map_or(told, |r| escape(&r.text)),
        _ => told,
    }
}

/// A line for each decision up to the first that differs, then how many there were.
pub(crate) fn replayed(decisions: &[Decision], otherwise: Option<usize>) -> Vec<String> {
    let shown = otherwise.map_or(decisions.len(), |at| at + 1);
    let row = |decision: &Decision| {
        let told = |event: &v1::Event| summary(event);
        let event = decision.recorded.as_ref().or(decision.decided.as_ref()).map(|(event, _)| event);
        let kind = event.map_or_else(String::new, |e| escape(&e.kind));
        let who = event.and_then(|e| e.source.as_ref()).map_or_else(|| "-".to_owned(), |s| escape(&s.kind));
        let verdict = match (&decision.recorded, &decision.decided) {
            (Some(_), Some(_)) if decision.agrees() => {
                let by = lead(decision).map_or_else(String::new, |(by, word)| format!(", {} {word}", span(by)));
                format!("the same{by}")
            }
            (Some(_), Some((event, _))) => format!("OTHERWISE: {}", told(event)),
            (Some(_), None) => "OTHERWISE: nothing of the kind".to_owned(),
            (None, _) => "OTHERWISE: this, where nothing was told".to_owned(),
        };
        [who, kind, event.map_or_else(String::new, told), verdict]
    };
    let mut lines = columns(&decisions.iter().take(shown).map(row).collect::<Vec<_>>());
    let all = count(decisions.len(), "decision");
    lines.push(match otherwise {
        None if decisions.is_empty() => "nothing was for recovery or quarantine to decide".to_owned(),
        None => format!("{all} replayed: the same"),
        Some(at) => format!("{all} replayed: otherwise from number {} on; what would have followed is another story", at + 1),
    });
    lines
}

/// A line for each incident.
pub(crate) fn lines<'t>(told: impl IntoIterator<Item = &'t Told>, now: SystemTime, zone: Zone) -> Vec<String> {
    columns(&told.into_iter().map(|t| t.cells(now, zone)).collect::<Vec<_>>())
}

/// Cells under each other, the last as long as it is.
fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let mut widths = [0; N];
    for row in rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = (*width).max(cell.chars().count()));
    }
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join(" ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use razar_bus_schema::{event::Kind as _, time};

    use super::*;

    const INCIDENT: &str = "store@1.1";

    fn at(ms: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
    }

    fn event(ms: u64, who: &str, start: u64, fact: Fact) -> v1::Event {
        let incident: Incident = INCIDENT.parse().unwrap();
        v1::Event {
            kind: fact.kind().to_owned(),
            time: Some(time::timestamp(at(ms))),
            source: Some(v1::Actor { kind: who.to_owned(), id: "x".to_owned() }),
            instance: Some((&incident.instance).into()),
            incarnation: Some(v1::Incarnation { generation: 1, start }),
            incident: Some((&incident).into()),
            reason: Some(v1::Reason { code: String::new(), text: "restart in 1.04s".to_owned() }),
            fact: Some(fact),
            ..Default::default()
        }
    }

    fn exited() -> Fact {
        let status = Some(v1::ExitStatus { code: Some(1), ..Default::default() });
        Fact::ComponentExited(v1::ComponentExited { status, last_error: "JSONDecodeError".to_owned(), ..Default::default() })
    }

    fn blocked() -> v1::Event {
        let by = vec![v1::Blocker { component: "store".to_owned(), needs: "ready".to_owned(), is: "failed".to_owned() }];
        let instance = Some(v1::InstanceId { component: "web".to_owned(), ordinal: 0 });
        v1::Event { incident: None, instance, ..event(130, "node", 0, Fact::ComponentBlocked(v1::ComponentBlocked { by })) }
    }

    fn story() -> Vec<v1::Event> {
        let tried = |outcome: &str, next: &str| {
            Fact::RungTried(v1::RungTried {
                rung: "restart".to_owned(),
                outcome: outcome.to_owned(),
                next: next.to_owned(),
                decided_at: None,
            })
        };
        let process = Some(v1::ProcessIdentity { pid: 7, ..Default::default() });
        let recovered =
            v1::Recovered { rung: "clear_state".to_owned(), took: Some(time::duration(Duration::from_millis(1200))), starts: 2 };
        vec![
            event(100, "node", 1, exited()),
            blocked(),
            event(101, "recovery", 1, Fact::RecoveryStarted(v1::RecoveryStarted::default())),
            event(1150, "node", 2, exited()),
            event(1152, "recovery", 2, tried("failed", "clear_state")),
            event(1200, "node", 3, Fact::ComponentStarted(v1::ComponentStarted { process, ..Default::default() })),
            event(6300, "recovery", 3, Fact::Recovered(recovered)),
        ]
    }

    fn book(wanted: Wanted, events: &[v1::Event]) -> Book {
        let mut book = Book::new(wanted);
        events.iter().for_each(|e| book.fold(e, at(0)));
        book
    }

    #[test]
    fn a_story_is_told_line_by_line_and_ends_with_what_it_cost() {
        let book = book(Wanted::Newest, &story());
        let told = book.wanted(false).unwrap();
        assert_eq!(
            told.story(at(9_000), Zone::Utc),
            [
                r#"+0     node     component_exited  1.1 00:00:00.100, exit 1: "JSONDecodeError""#,
                "+1.0ms recovery recovery_started  1.1 restart in 1.04s",
                "+1.05s node     component_exited  1.2 exit 1, the same",
                "+2.0ms recovery rung_tried        1.2 restart failed; next clear_state",
                "+48ms  node     component_started 1.3 pid 7",
                "+5.10s recovery recovered         1.3 1.20s clear_state, 2 starts: restart in 1.04s",
                "down 1.20s, healed in 6.20s, 2 starts; blocked web",
            ]
        );
    }

    #[test]
    fn an_incident_is_one_line() {
        let all = story();
        let line = |events: &[v1::Event]| lines(book(Wanted::Lines, events).all(), at(9_100), Zone::Utc);
        assert_eq!(line(&all), [r#"store@1.1 00:00:00 recovered 1.20s clear_state exit 1: "JSONDecodeError""#]);
        assert_eq!(line(&all[..3]), [r#"store@1.1 00:00:00 open 9.00s - exit 1: "JSONDecodeError""#]);
        let failed = event(2_100, "recovery", 2, Fact::RecoveryFailed(v1::RecoveryFailed::default()));
        assert_eq!(line(&[all[0].clone(), failed]), [r#"store@1.1 00:00:00 failed 2.00s - exit 1: "JSONDecodeError""#]);
    }

    #[test]
    fn a_quarantine_without_an_incident_ends_the_newest_of_its_instance() {
        let mut events = vec![story()[0].clone()];
        events.push(v1::Event { incident: None, ..event(2_000, "quarantine", 1, Fact::Quarantined(v1::Quarantined::default())) });
        let book = book(Wanted::Named("store".to_owned()), &events);
        assert_eq!(book.wanted(false).unwrap().standing, Standing::Quarantined);
        assert!(book.wanted(true).is_none(), "it is not open");
    }
}
