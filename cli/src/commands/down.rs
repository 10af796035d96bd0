//! `down`: the stack stopped in reverse order of rank by the orchestrator's intents, then the embedded mesh by its guard.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use razar_bus_schema::{
    time::std_duration,
    v1::{self, event::Fact},
};

use crate::{
    args::{Down, Global},
    commands::lifecycle::{TIMEOUT_DEFAULT, receipt, send},
    console::Console,
    exit::{Done, Exit, Failure},
    feed::{Feed, Item},
    link::{Link, server},
    mesh::{Guard, Place},
    render::{
        event::subject_name,
        status::{SYSTEM_STACK, name_of},
        text::escape,
        time::{exact, seconds, span},
    },
};

/// How often the registry is looked at beside the events.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// How often the guard's end is looked for.
const GUARD_POLL: Duration = Duration::from_millis(20);

/// After the guard nothing of the mesh is left; what is must have missed its end by no more than this.
pub(crate) const LEFT_LIMIT: Duration = Duration::from_secs(5);

/// Stops the stack, then the mesh.
///
/// # Errors
/// Exit 75 when something does not stop in time, 77 when it is refused.
pub(crate) async fn run(args: &Down, console: &Console, global: &Global) -> Done {
    let place = Place::of(&global.mesh);
    let facts = place.facts();
    let address = server(global, facts.as_ref());
    match Link::connect(&global.mesh, &address).await {
        Ok(link) => all(Some(&link), console, global, args.keep_mesh).await,
        Err(why) if place.guard().is_some() && !args.keep_mesh => {
            console.note(&format!("bus away: {address} {why}; the node ends without an order of the orchestrator"));
            all(None, console, global, false).await
        }
        Err(_) if place.guard().is_none() && global.server.is_none() => {
            console.note(&format!("nothing to stop: no mesh {} runs here", global.mesh));
            Ok(Exit::Well)
        }
        Err(_) => Err(Link::open(console, global).await.err().unwrap_or_else(|| Failure::new(Exit::OutOfReach, "bus away"))),
    }
}

/// After Ctrl+C: stops all; a second one kills.
///
/// # Errors
/// As [`run`].
pub(crate) async fn after_interrupt(link: &Link, console: &Console, global: &Global) -> Done {
    console.footer("");
    console.note("stopping all; Ctrl+C again kills");
    tokio::select! {
        done = all(Some(link), console, global, false) => done.map(|exit| exit.max(Exit::Interrupted)),
        _ = tokio::signal::ctrl_c() => {
            console.footer("");
            kill(Some(link), console, global).await
        }
    }
}

async fn all(link: Option<&Link>, console: &Console, global: &Global, keep_mesh: bool) -> Done {
    let began = Instant::now();
    let limit = global.timeout.unwrap_or(TIMEOUT_DEFAULT);
    let mut course = Course::default();
    if let Some(link) = link {
        match stack(link, console, global, limit, &mut course).await {
            Ok(()) => {}
            // A mesh without an answering orchestrator is ended by its guard, which stops its components too.
            Err(failure) if failure.exit == Exit::OutOfReach && !keep_mesh => console.note(&failure.text),
            Err(failure) => return Err(failure),
        }
    }
    let mut kept = "";
    if !keep_mesh && !global.no_wait {
        match Place::of(&global.mesh).guard() {
            Some(guard) => end_mesh(&guard, console, global, limit).await?,
            None if link.is_some() => console.note("the mesh was not started from here and runs on"),
            None => {}
        }
        kept = "; state kept for the next up";
    }
    console.footer("");
    if !console.json {
        console.line(&format!("down in {}, reverse order: {}{kept}", seconds(began.elapsed()), course.told()))?;
    }
    Ok(Exit::Well)
}

/// Who is to stop, who has, and who had to be killed.
#[derive(Debug, Default)]
struct Course {
    total: usize,
    living: BTreeSet<String>,
    /// Gone at the last look, without an event.
    missed: BTreeSet<String>,
    stopped: BTreeSet<String>,
    killed: Vec<(String, Duration)>,
}

impl Course {
    fn apply(&mut self, event: &v1::Event) -> Option<String> {
        let name = subject_name(event);
        let Some(Fact::ComponentStopped(s)) = &event.fact else { return None };
        if event.stack == SYSTEM_STACK || !self.living.remove(&name) {
            return None;
        }
        let took = s.took.as_ref().map(std_duration).unwrap_or_default();
        if s.killed {
            self.killed.push((name.clone(), took));
            return Some(format!("{name} killed: it ignored its signal for {}", span(took)));
        }
        self.stopped.insert(name);
        None
    }

    /// What the registry says, for what the events did not. They may only be on their way, and they say who had to be killed: what is
    /// gone counts when it was at the last look too.
    fn look(&mut self, living: &BTreeSet<String>) {
        let gone: BTreeSet<String> = self.living.difference(living).cloned().collect();
        for name in gone.intersection(&self.missed) {
            self.living.remove(name);
            self.stopped.insert(name.clone());
        }
        self.missed = gone;
    }

    /// `11 stopped, worker killed (ignored SIGTERM for 10s)`
    fn told(&self) -> String {
        let mut parts = vec![format!("{} stopped", self.stopped.len())];
        let killed = |(name, took): &(String, Duration)| {
            format!("{name} killed (ignored its signal for {})", exact(Duration::from_secs(took.as_secs())))
        };
        parts.extend(self.killed.iter().map(killed));
        parts.join(", ")
    }
}

fn living_of(reply: &v1::StatusReply) -> impl Iterator<Item = String> {
    let components = reply.observed.as_ref().map(|o| o.components.as_slice()).unwrap_or_default();
    components.iter().filter(|c| c.stack != SYSTEM_STACK && c.process.is_some()).map(name_of)
}

async fn stack(link: &Link, console: &Console, global: &Global, limit: Duration, course: &mut Course) -> Result<(), Failure> {
    let plan = link.plan().await?;
    let before = link.caught_up().await?;
    course.living = living_of(&before).collect();
    course.total = course.living.len();
    let mut feed = Feed::new(link, link.events_after(">", &before));
    // Nothing is in force while an earlier down still stops what lives: then there is only to wait.
    if !plan.stack.is_empty() {
        let sent = send(link, ("orchestrator", "down", &plan.stack), v1::Command::default(), console, global).await?;
        let accepted = receipt(&sent, "orchestrator", console, &["down"], &plan.stack)?;
        if global.no_wait {
            return if console.json { console.message(sent.receipt()) } else { console.line(&accepted) };
        }
    }
    let deadline = tokio::time::Instant::now() + limit;
    let mut look = tokio::time::interval(LOOK_PERIOD);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !course.living.is_empty() {
        let living: Vec<_> = course.living.iter().map(String::as_str).collect();
        console.footer(&format!("[{}/{}] stopping {}", course.total - course.living.len(), course.total, living.join(" ")));
        tokio::select! {
            item = feed.next() => match item {
                Item::Event { event, .. } => {
                    let line = course.apply(&event);
                    if console.json && matches!(event.fact, Some(Fact::ComponentStopped(_))) {
                        console.message(&*event)?;
                    } else if let Some(line) = line {
                        console.line(&line)?;
                    }
                }
                Item::Note(note) => console.note(&escape(&note)),
                Item::CaughtUp => {}
                Item::End => return Err(Failure::new(Exit::OutOfReach, "the bus was closed")),
            },
            _ = look.tick() => if let Ok((reply, _)) = link.status().await {
                course.look(&living_of(&reply).collect());
            },
            () = tokio::time::sleep_until(deadline) => {
                let text = format!("accepted, not all stopped in {}: {}", exact(limit), living.join(" "));
                return Err(Failure::new(Exit::NoOutcome, text).next(console.command(&["status"])));
            }
        }
    }
    Ok(())
}

/// Ends the mesh by its guard, and waits until nothing of it is left.
async fn end_mesh(guard: &Guard, console: &Console, global: &Global, limit: Duration) -> Result<(), Failure> {
    console.footer("ending the mesh");
    guard.terminate()?;
    let deadline = Instant::now() + limit;
    while !guard.ended(Duration::ZERO) {
        if Instant::now() > deadline {
            let text = format!("the mesh (pid {}) has not ended in {}", guard.pid, exact(limit));
            return Err(Failure::new(Exit::NoOutcome, text).next(console.command(&["doctor"])));
        }
        tokio::time::sleep(GUARD_POLL).await;
    }
    let place = Place::of(&global.mesh);
    let deadline = Instant::now() + LEFT_LIMIT;
    loop {
        let left = place.processes();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let left: Vec<_> = left.iter().map(|(pid, name)| format!("{pid} ({})", escape(name))).collect();
            return Err(Failure::new(Exit::NotWell, format!("still there: pid {}", left.join(", "))).next(console.command(&["doctor"])));
        }
        tokio::time::sleep(GUARD_POLL).await;
    }
}

/// Kills the guard, what is of the mesh, and the components that the registry knows, each known by more than its pid.
async fn kill(link: Option<&Link>, console: &Console, global: &Global) -> Done {
    let place = Place::of(&global.mesh);
    let mut known = Vec::new();
    if let Some(link) = link
        && let Ok((reply, _)) = link.status().await
    {
        let components = reply.observed.unwrap_or_default().components;
        known = components.into_iter().filter_map(|c| c.process).map(|p| (p.pid, p.start_time_ticks)).collect();
    }
    let killed = place.kill(&known);
    console.line(&format!("killed {}", crate::render::text::count(killed, "process").replace("processs", "processes")))?;
    Ok(Exit::Interrupted)
}

#[cfg(test)]
mod tests {
    use razar_bus_schema::time::duration;

    use super::*;

    #[test]
    fn who_was_killed_is_told_though_the_registry_is_quicker_than_the_events() {
        let nobody = BTreeSet::new();
        let mut course = Course { living: ["deaf".to_owned(), "lost".to_owned()].into(), ..Course::default() };
        course.look(&nobody);
        assert_eq!(course.living.len(), 2, "the events may be on their way");
        let stopped = v1::ComponentStopped { killed: true, took: Some(duration(Duration::from_secs(10))), ..Default::default() };
        let instance = Some(v1::InstanceId { component: "deaf".to_owned(), ordinal: 0 });
        let event = v1::Event { instance, fact: Some(Fact::ComponentStopped(stopped)), ..Default::default() };
        assert!(course.apply(&event).is_some_and(|line| line.contains("deaf killed")));
        course.look(&nobody);
        assert!(course.living.is_empty(), "of the other there is no event");
        assert_eq!(course.told(), "1 stopped, deaf killed (ignored its signal for 10s)");
    }
}
