//! Following a mission to its end, for `up` and `profile`: lines for what becomes ready or goes wrong, a footer, and the summary.

use std::time::{Duration, SystemTime};

use razar_bus_schema::{
    time::{std_duration, system_time},
    v1::{self, InstanceState as State},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    boot::Boot,
    console::Console,
    exit::{Done, Exit, Failure},
    feed::{Feed, Item},
    keys::Keys,
    link::Link,
    render::{status::name_of, text::escape, time::exact},
    waterfall,
};

/// How often the footer is drawn and held exits are looked at.
const TICK: Duration = Duration::from_millis(100);

/// How often the registry is asked whether the mission has ended, for an end that came before the events were followed.
const LOOK_PERIOD: Duration = Duration::from_secs(2);

/// How following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The mission ended.
    Ended,
    /// It did not in time.
    Late,
    /// Ctrl+C or SIGTERM.
    Interrupted,
    /// `d`, or the terminal was closed.
    Detached,
}

/// What is followed, and for whom.
pub(crate) struct Follow<'a> {
    /// The mesh.
    pub(crate) link: &'a Link,
    /// Where it is told.
    pub(crate) console: &'a Console,
    /// The events.
    pub(crate) feed: Feed,
    /// Keys that detach, if there is a terminal.
    pub(crate) keys: Option<Keys>,
    /// Longest time to follow.
    pub(crate) limit: Duration,
}

/// What a person, or who closes their terminal, asks for meanwhile.
pub(crate) struct Asked {
    hangup: Signal,
    terminate: Signal,
}

impl Asked {
    /// Listens from now on.
    ///
    /// # Errors
    /// When signals cannot be listened for.
    pub(crate) fn listen() -> Result<Self, Failure> {
        Ok(Self { hangup: signal(SignalKind::hangup())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The next wish. Cancel-safe.
    pub(crate) async fn next(&mut self, keys: &mut Option<Keys>) -> End {
        loop {
            let key = async {
                match keys {
                    Some(keys) => keys.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => return End::Interrupted,
                _ = self.terminate.recv() => return End::Interrupted,
                _ = self.hangup.recv() => return End::Detached,
                key = key => if key == b'd' { return End::Detached },
            }
        }
    }
}

impl Follow<'_> {
    /// Follows until the mission of `boot` has ended.
    ///
    /// # Errors
    /// When stdout cannot be written or the bus is closed.
    pub(crate) async fn until_ended(&mut self, boot: &mut Boot) -> Result<End, Failure> {
        let deadline = tokio::time::Instant::now() + self.limit;
        let mut asked = Asked::listen()?;
        let mut tick = tokio::time::interval(TICK);
        let mut look = tokio::time::interval(LOOK_PERIOD);
        for timer in [&mut tick, &mut look] {
            timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        let end = loop {
            if boot.ended().is_some() {
                break End::Ended;
            }
            tokio::select! {
                item = self.feed.next() => match item {
                    Item::Event { event, .. } => {
                        let lines = boot.apply(&event);
                        if !self.console.json {
                            self.console.lines(lines)?;
                        } else if !lines.is_empty() || boot.ended().is_some() {
                            self.console.message(&*event)?;
                        }
                    }
                    Item::Note(note) => self.console.note(&escape(&note)),
                    Item::CaughtUp => {}
                    Item::End => return Err(Failure::new(Exit::OutOfReach, "the bus was closed")),
                },
                _ = tick.tick() => {
                    let now = SystemTime::now();
                    let lines = boot.tick(now);
                    if !self.console.json {
                        self.console.lines(lines)?;
                    }
                    self.console.footer(&boot.footer(now));
                },
                _ = look.tick() => {
                    if let Ok((reply, _)) = self.link.status().await {
                        look_at(boot, &reply);
                    }
                },
                end = asked.next(&mut self.keys) => break end,
                () = tokio::time::sleep_until(deadline) => break End::Late,
            }
        };
        self.console.footer("");
        Ok(end)
    }
}

/// Takes from the registry what happened to the mission before its events were followed.
fn look_at(boot: &mut Boot, reply: &v1::StatusReply) {
    let Some(observed) = &reply.observed else { return };
    let is_ours = |m: &&v1::ObservedMission| m.started.as_ref().is_some_and(|s| s.mission_id == boot.mission());
    let Some(mission) = observed.missions.iter().find(is_ours) else { return };
    if boot.lanes().is_empty()
        && let (Some(started), Some(at)) = (&mission.started, &mission.started_at)
    {
        boot.begin(started, system_time(at));
        let to_start = &started.to_start;
        let ready = |c: &&v1::ObservedComponent| {
            let named = c.instance.as_ref().is_some_and(|i| to_start.contains(&i.component));
            named && matches!(c.state(), State::Ready | State::Completed)
        };
        for c in observed.components.iter().filter(ready) {
            let took = c.last_took.as_ref().map(std_duration).unwrap_or_default();
            if let Some(since) = &c.since {
                boot.seed_ready(&name_of(c), system_time(since), took);
            }
        }
    }
    if let Some(completed) = &mission.completed
        && reply.lag == 0
    {
        boot.end(completed);
    }
}

/// The summary of a mission that has ended; exit 1 if it is incomplete.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn finish(boot: &Boot, console: &Console) -> Done {
    if !console.json {
        if boot.lanes().values().any(|lane| lane.first_start().is_some()) {
            console.lines(waterfall::summary(boot, console.verbose))?;
        } else {
            console.line(&waterfall::headline(boot))?;
        }
    }
    let complete = boot.ended().is_some_and(|m| m.outcome == "complete");
    Ok(if complete { Exit::Well } else { Exit::NotWell })
}

/// The mission did not end in time.
pub(crate) fn late(boot: &Boot, console: &Console, limit: Duration) -> Failure {
    let text = format!("no outcome in {}: {}; the boot goes on", exact(limit), boot.footer(SystemTime::now()));
    Failure::new(Exit::NoOutcome, text).next(console.command(&["status"]))
}
