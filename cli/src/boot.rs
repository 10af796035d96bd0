//! A boot as its events tell it: who waits, is queued, starts, exits, is ready; the lines and the footer that follow from it.
//! Pure: events and `now` come in, text goes out. The waterfall and the critical path are in `waterfall`.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use razar_bus_schema::{
    ids::Instance,
    time::{std_duration, system_time},
    v1::{self, event::Fact},
};

use crate::render::{event, text::escape, time::seconds};

/// An exit is told together with the restart that follows; past this the restart is not at once, and the exit is told alone.
const EXIT_HELD: Duration = Duration::from_millis(250);

/// What an instance is doing in this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not spawned yet.
    Waiting,
    /// Spawned, not ready; or between an exit and its restart.
    Starting,
    /// Ready or completed.
    Ready,
    /// Failed or quarantined.
    Failed,
}

/// One try: from the spawn to ready or to its end. Offsets from the boot's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Try {
    /// Spawned.
    pub(crate) started: Duration,
    /// Time queued for a slot before it.
    pub(crate) queued: Duration,
    /// Became ready.
    pub(crate) ready: Option<Duration>,
    /// Ended.
    pub(crate) exited: Option<Duration>,
}

/// An instance's part of the boot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lane {
    /// Tries, oldest first.
    pub(crate) tries: Vec<Try>,
    /// Names of the components that it depends on.
    pub(crate) needs: Vec<String>,
    failed: bool,
    told_blocked: bool,
}

impl Lane {
    /// What it is doing.
    pub(crate) fn stage(&self) -> Stage {
        match self.tries.last() {
            _ if self.failed => Stage::Failed,
            None => Stage::Waiting,
            Some(last) if last.ready.is_some() && last.exited.is_none_or(|at| Some(at) <= last.ready) => Stage::Ready,
            Some(_) => Stage::Starting,
        }
    }

    /// First spawn.
    pub(crate) fn first_start(&self) -> Option<Duration> {
        self.tries.first().map(|t| t.started)
    }

    /// First time ready.
    pub(crate) fn ready_at(&self) -> Option<Duration> {
        self.tries.iter().find_map(|t| t.ready)
    }

    /// From the first spawn to the first time ready.
    pub(crate) fn took(&self) -> Option<Duration> {
        Some(self.ready_at()?.saturating_sub(self.first_start()?))
    }

    /// Part of [`Lane::took`] that went into tries that failed.
    pub(crate) fn failed_part(&self) -> Duration {
        let good = self.tries.iter().find(|t| t.ready.is_some()).map(|t| t.started);
        good.zip(self.first_start()).map(|(good, first)| good.saturating_sub(first)).unwrap_or_default()
    }

    /// Time queued for slots before the first spawn.
    pub(crate) fn queued(&self) -> Duration {
        self.tries.first().map(|t| t.queued).unwrap_or_default()
    }
}

/// A boot.
#[derive(Debug, Clone)]
pub(crate) struct Boot {
    mission: String,
    began: SystemTime,
    lanes: BTreeMap<String, Lane>,
    /// Dependencies told before the mission's beginning.
    early_needs: BTreeMap<String, Vec<String>>,
    held: Vec<(SystemTime, String, String)>,
    ended: Option<v1::MissionCompleted>,
}

impl Boot {
    /// The boot of mission `mission`, which began at `began` as far as is known; its event corrects this.
    pub(crate) fn new(mission: &str, began: SystemTime) -> Self {
        Self { mission: mission.to_owned(), began, lanes: BTreeMap::new(), early_needs: BTreeMap::new(), held: Vec::new(), ended: None }
    }

    /// Id of the mission.
    pub(crate) fn mission(&self) -> &str {
        &self.mission
    }

    /// The mission has ended, as the registry remembers it.
    pub(crate) fn end(&mut self, completed: &v1::MissionCompleted) {
        self.ended.get_or_insert_with(|| completed.clone());
    }

    /// Lanes in order of name.
    pub(crate) fn lanes(&self) -> &BTreeMap<String, Lane> {
        &self.lanes
    }

    /// How the mission ended; `None`: it goes on.
    pub(crate) fn ended(&self) -> Option<&v1::MissionCompleted> {
        self.ended.as_ref()
    }

    /// Takes an event in, and says what a person should read about it now.
    pub(crate) fn apply(&mut self, event: &v1::Event) -> Vec<String> {
        let at = event.time.as_ref().map(system_time).unwrap_or(self.began);
        match event.fact.as_ref() {
            Some(Fact::MissionStarted(m)) if m.mission_id == self.mission => self.begin(m, at),
            Some(Fact::MissionCompleted(m)) if m.mission_id == self.mission => {
                self.ended = Some(m.clone());
                return self.release_held(None);
            }
            Some(fact) => return self.instance_fact(event, fact, at),
            None => {}
        }
        Vec::new()
    }

    /// The mission as the registry remembers it: for a boot that began before we looked.
    pub(crate) fn begin(&mut self, started: &v1::MissionStarted, at: SystemTime) {
        self.began = at;
        for name in &started.to_start {
            let name = escape(name);
            let needs = self.early_needs.remove(&name).unwrap_or_default();
            self.lanes.entry(name).or_insert_with(|| Lane { needs, ..Lane::default() });
        }
    }

    /// An instance that is ready already when we look for the first time.
    pub(crate) fn seed_ready(&mut self, name: &str, ready_at: SystemTime, took: Duration) {
        let ready = self.offset(ready_at);
        let lane = self.lanes.entry(name.to_owned()).or_default();
        if lane.tries.is_empty() {
            lane.tries.push(Try { started: ready.saturating_sub(took), queued: Duration::ZERO, ready: Some(ready), exited: None });
        }
    }

    fn offset(&self, at: SystemTime) -> Duration {
        at.duration_since(self.began).unwrap_or_default()
    }

    fn instance_fact(&mut self, event: &v1::Event, fact: &Fact, at: SystemTime) -> Vec<String> {
        let Some(id) = &event.instance else { return Vec::new() };
        // What an earlier boot left in the stream is not of this one; clocks of other nodes may differ, so the mission's name counts too.
        if at < self.began && event.mission_id != self.mission {
            return Vec::new();
        }
        let name = Instance::new(escape(&id.component), id.ordinal).to_string();
        let offset = self.offset(at);
        if let Fact::DesiredChanged(d) = fact {
            self.desired(name, id, d);
            return Vec::new();
        }
        let Some(lane) = self.lanes.get_mut(&name) else { return Vec::new() };
        #[expect(clippy::wildcard_enum_match_arm, reason = "a lane is made of these facts")]
        match fact {
            Fact::ComponentStarted(s) => {
                let queued = s.queued.as_ref().map(std_duration).unwrap_or_default();
                lane.tries.push(Try { started: offset, queued, ready: None, exited: None });
                lane.failed = false;
                let restart = event::restart(s);
                self.release_held(Some((&name, &restart)))
            }
            Fact::ComponentReady(r) => {
                let took = r.took.as_ref().map(std_duration).unwrap_or_default();
                if lane.tries.is_empty() {
                    let started = offset.saturating_sub(took);
                    lane.tries.push(Try { started, queued: Duration::ZERO, ready: None, exited: None });
                }
                if let Some(last) = lane.tries.last_mut() {
                    last.ready = last.ready.or(Some(offset));
                }
                let word = if r.completed { "completed" } else { "ready" };
                vec![line(offset, &format!("{name} {word} {}", seconds(took)))]
            }
            Fact::ComponentExited(e) => {
                let completed = lane.stage() == Stage::Ready && e.status.as_ref().and_then(|s| s.code) == Some(0);
                if !completed {
                    if let Some(last) = lane.tries.last_mut() {
                        last.exited = Some(offset);
                    }
                    let how = event::exit_and_error(e.status.as_ref(), &e.last_error);
                    self.held.push((at, name.clone(), format!("{name} exited {how}")));
                }
                Vec::new()
            }
            Fact::ComponentFailed(_) | Fact::Quarantined(_) => {
                lane.failed = true;
                let mut lines = self.release_held(Some((&name, "")));
                lines.extend(event::news(event).map(|text| line(offset, &text)));
                lines
            }
            Fact::ComponentBlocked(b) => {
                // Every dependent is blocked while its dependencies start; only what a failure blocks is news.
                let by_failure = b.by.iter().any(|x| x.is == "failed" || x.is == "quarantined" || x.is == "absent" || x.is == "lost");
                if !by_failure || lane.told_blocked {
                    return Vec::new();
                }
                lane.told_blocked = true;
                event::news(event).map(|text| line(offset, &text)).into_iter().collect()
            }
            Fact::ComponentUnresponsive(_)
            | Fact::ComponentUnready(_)
            | Fact::ComponentUnkillable(_)
            | Fact::RungTried(_)
            | Fact::Released(_) => event::news(event).map(|text| line(offset, &text)).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// Learns what an instance depends on; further replicas get lanes of their own.
    fn desired(&mut self, name: String, id: &v1::InstanceId, d: &v1::DesiredChanged) {
        let needs: Vec<String> = d.depends_on.iter().map(|n| escape(n)).collect();
        let known = self.lanes.contains_key(&name);
        if known || id.ordinal > 0 && d.mode == "run" && self.lanes.contains_key(&escape(&id.component)) {
            self.lanes.entry(name).or_default().needs = needs;
        } else {
            self.early_needs.insert(name, needs);
        }
    }

    /// Exits that were held for the restart that followed: of `about` with its restart's words, or all.
    fn release_held(&mut self, about: Option<(&str, &str)>) -> Vec<String> {
        let (out, kept): (Vec<_>, Vec<_>) = self.held.drain(..).partition(|(_, name, _)| about.is_none_or(|(n, _)| n == name));
        self.held = kept;
        let told = |(at, _, text): (SystemTime, String, String)| match about {
            Some((_, restart)) if !restart.is_empty() => line(self.offset(at), &format!("{text}; {restart}")),
            _ => line(self.offset(at), &text),
        };
        out.into_iter().map(told).collect()
    }

    /// Exits whose restart does not come at once.
    pub(crate) fn tick(&mut self, now: SystemTime) -> Vec<String> {
        let late = |at: SystemTime| now.duration_since(at).is_ok_and(|d| d >= EXIT_HELD);
        let (out, kept): (Vec<_>, Vec<_>) = self.held.drain(..).partition(|(at, ..)| late(*at));
        self.held = kept;
        out.into_iter().map(|(at, _, text)| line(self.offset(at), &text)).collect()
    }

    fn in_stage(&self, stage: Stage) -> impl Iterator<Item = (&String, &Lane)> {
        self.lanes.iter().filter(move |(_, lane)| lane.stage() == stage)
    }

    /// How many are ready.
    pub(crate) fn ready_count(&self) -> usize {
        self.in_stage(Stage::Ready).count()
    }

    /// `[5/12 1.7s] starting embedder litellm; waiting api(litellm) web`
    pub(crate) fn footer(&self, now: SystemTime) -> String {
        if self.lanes.is_empty() {
            return String::new();
        }
        let elapsed = now.duration_since(self.began).unwrap_or_default().as_secs_f64();
        let mut parts = Vec::new();
        let names = |stage| self.in_stage(stage).map(|(n, _)| n.clone()).collect::<Vec<_>>().join(" ");
        for (stage, word) in [(Stage::Failed, "failed"), (Stage::Starting, "starting")] {
            let names = names(stage);
            if !names.is_empty() {
                parts.push(format!("{word} {names}"));
            }
        }
        let waiting: Vec<_> = self.in_stage(Stage::Waiting).map(|(name, lane)| self.waiting_word(name, lane)).collect();
        if !waiting.is_empty() {
            parts.push(format!("waiting {}", waiting.join(" ")));
        }
        let what = parts.join("; ");
        format!("[{}/{} {elapsed:.1}s] {what}", self.ready_count(), self.lanes.len()).trim_end().to_owned()
    }

    /// `api(litellm)`: what it waits for, where that is not itself waiting.
    fn waiting_word(&self, name: &str, lane: &Lane) -> String {
        let open = |need: &&String| self.lanes.get(*need).is_some_and(|l| matches!(l.stage(), Stage::Starting | Stage::Failed));
        let by: Vec<_> = lane.needs.iter().filter(open).map(String::as_str).collect();
        if by.is_empty() { name.to_owned() } else { format!("{name}({})", by.join(",")) }
    }

    /// Time that the boot took: as the mission says, else to the last one ready.
    pub(crate) fn took(&self) -> Duration {
        let last = || self.lanes.values().filter_map(Lane::ready_at).max().unwrap_or_default();
        self.ended.as_ref().and_then(|m| m.took.as_ref()).map_or_else(last, std_duration)
    }
}

fn line(offset: Duration, text: &str) -> String {
    format!("{:>6} {text}", seconds(offset))
}

/// Builds boots out of a few words, for the tests here and of the waterfall.
#[cfg(test)]
pub(crate) mod script {
    use std::time::UNIX_EPOCH;

    use razar_bus_schema::event::Kind;

    use super::*;

    pub(crate) fn at(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000) + Duration::from_millis(ms)
    }

    fn wire(ms: u64) -> Option<prost_types::Duration> {
        Some(razar_bus_schema::time::duration(Duration::from_millis(ms)))
    }

    pub(crate) fn event(ms: u64, name: &str, fact: Fact) -> v1::Event {
        v1::Event {
            kind: fact.kind().to_owned(),
            time: Some(razar_bus_schema::time::timestamp(at(ms))),
            instance: (!name.is_empty()).then(|| v1::InstanceId { component: name.to_owned(), ordinal: 0 }),
            fact: Some(fact),
            ..Default::default()
        }
    }

    pub(crate) fn mission(names: &[&str]) -> v1::Event {
        let to_start = names.iter().map(|n| (*n).to_owned()).collect();
        event(0, "", Fact::MissionStarted(v1::MissionStarted { mission_id: "m1".to_owned(), to_start, ..Default::default() }))
    }

    pub(crate) fn needs(name: &str, needs: &[&str]) -> v1::Event {
        let depends_on = needs.iter().map(|n| (*n).to_owned()).collect();
        event(0, name, Fact::DesiredChanged(v1::DesiredChanged { depends_on, ..Default::default() }))
    }

    pub(crate) fn started(ms: u64, name: &str, restart: u32, queued: u64) -> v1::Event {
        event(
            ms,
            name,
            Fact::ComponentStarted(v1::ComponentStarted { restart, restart_max: 3, queued: wire(queued), ..Default::default() }),
        )
    }

    pub(crate) fn ready(ms: u64, name: &str, took: u64) -> v1::Event {
        event(ms, name, Fact::ComponentReady(v1::ComponentReady { took: wire(took), ..Default::default() }))
    }

    pub(crate) fn exited(ms: u64, name: &str, error: &str) -> v1::Event {
        let status = Some(v1::ExitStatus { code: Some(1), ..Default::default() });
        event(ms, name, Fact::ComponentExited(v1::ComponentExited { status, last_error: error.to_owned(), ..Default::default() }))
    }

    pub(crate) fn completed(ms: u64, ready: &[&str], failed: &[&str]) -> v1::Event {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let outcome = if failed.is_empty() { "complete" } else { "incomplete" };
        event(
            ms,
            "",
            Fact::MissionCompleted(v1::MissionCompleted {
                mission_id: "m1".to_owned(),
                ready: names(ready),
                failed: names(failed),
                took: wire(ms),
                outcome: outcome.to_owned(),
                ..Default::default()
            }),
        )
    }

    /// A boot of the quickstart's shape in small: a failed start, a queue, a chain.
    pub(crate) fn small_boot() -> (Boot, Vec<String>) {
        let mut boot = Boot::new("m1", at(0));
        let events = [
            mission(&["embedder", "memory-store", "postgres", "scheduler", "worker"]),
            needs("memory-store", &["postgres"]),
            needs("worker", &["embedder", "memory-store"]),
            needs("scheduler", &["worker"]),
            started(0, "embedder", 0, 0),
            started(0, "postgres", 0, 0),
            exited(380, "embedder", "503 from model index"),
            started(382, "embedder", 1, 0),
            ready(400, "postgres", 400),
            started(1200, "memory-store", 0, 500),
            ready(1700, "memory-store", 500),
            ready(2980, "embedder", 2598),
            started(2980, "worker", 0, 0),
            ready(3600, "worker", 620),
            started(3600, "scheduler", 0, 0),
            ready(3800, "scheduler", 200),
            completed(3800, &["embedder", "memory-store", "postgres", "scheduler", "worker"], &[]),
        ];
        let lines = events.iter().flat_map(|e| boot.apply(e)).collect();
        (boot, lines)
    }
}

#[cfg(test)]
mod tests {
    use super::{script::*, *};

    #[test]
    fn lines_tell_what_went_wrong_and_what_became_ready() {
        let (boot, lines) = small_boot();
        assert_eq!(
            lines,
            [
                r#" 0.38s embedder exited exit 1: "503 from model index"; restarted at once, 1 of 3"#,
                " 0.40s postgres ready 0.40s",
                " 1.70s memory-store ready 0.50s",
                " 2.98s embedder ready 2.60s",
                " 3.60s worker ready 0.62s",
                " 3.80s scheduler ready 0.20s",
            ]
        );
        assert_eq!(boot.ended().unwrap().outcome, "complete");
        assert_eq!(boot.took(), Duration::from_millis(3800));
    }

    #[test]
    fn the_footer_says_who_starts_and_who_waits_for_whom() {
        let mut boot = Boot::new("m1", at(0));
        for e in [mission(&["api", "db", "web"]), needs("api", &["db"]), needs("web", &["api"]), started(0, "db", 0, 0)] {
            boot.apply(&e);
        }
        assert_eq!(boot.footer(at(1720)), "[0/3 1.7s] starting db; waiting api(db) web");
        boot.apply(&ready(1800, "db", 1800));
        assert_eq!(boot.footer(at(1900)), "[1/3 1.9s] waiting api web");
    }

    #[test]
    fn an_exit_without_a_restart_at_once_is_told_alone() {
        let mut boot = Boot::new("m1", at(0));
        for e in [mission(&["db"]), started(0, "db", 0, 0), exited(100, "db", "no disk")] {
            assert!(boot.apply(&e).is_empty());
        }
        assert!(boot.tick(at(200)).is_empty());
        assert_eq!(boot.tick(at(360)), [r#" 0.10s db exited exit 1: "no disk""#]);
        assert!(boot.tick(at(900)).is_empty(), "once");
        assert_eq!(boot.lanes()["db"].stage(), Stage::Starting);
    }

    #[test]
    fn what_is_not_of_this_boot_changes_nothing() {
        let mut boot = Boot::new("m1", at(0));
        boot.apply(&mission(&["db"]));
        assert!(boot.apply(&ready(5, "stranger", 5)).is_empty());
        let mut earlier = ready(5, "db", 5);
        earlier.time = Some(razar_bus_schema::time::timestamp(at(0) - Duration::from_secs(60)));
        assert!(boot.apply(&earlier).is_empty(), "of an earlier boot");
        assert_eq!(boot.ready_count(), 0);
        let mut other = completed(9, &["db"], &[]);
        if let Some(Fact::MissionCompleted(m)) = &mut other.fact {
            m.mission_id = "m0".to_owned();
        }
        boot.apply(&other);
        assert!(boot.ended().is_none());
        assert_eq!(boot.lanes().len(), 1);
    }
}
