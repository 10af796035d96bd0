//! `start`, `stop`, `restart`, `profile`: commands to the orchestrator, and waiting until they have had their effect.

use std::time::{Duration, Instant};

use razar_bus::COMMAND_AGE_MAX;
use razar_bus_schema::v1;

use crate::{
    args::{Global, Named, Profile},
    boot::Boot,
    commands::mission::{self, End},
    console::Console,
    exit::{Done, Exit, Failure},
    feed::{Feed, Item},
    link::{ASK_LIMIT, Link},
    outcome::Waiter,
    render::{
        text::escape,
        time::{exact, span},
    },
};

/// Longest wait for an outcome unless `--timeout` says otherwise.
pub(crate) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// How often the projection is looked at beside the events.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// A command that was sent, with its receipt.
pub(crate) struct Sent {
    receipt: v1::Receipt,
    took: Duration,
}

/// Sends a command to each name, and waits for all.
///
/// # Errors
/// Exit 77 when one is refused, 75 when an outcome does not come in time, 69 when the mesh is away.
pub(crate) async fn run(verb: &str, args: Named, console: &Console, global: &Global) -> Done {
    let link = Link::open(console, global).await?;
    let before = link.caught_up().await?;
    let known = before.observed.as_ref().map(|o| o.components.as_slice()).unwrap_or_default();
    let feed = Feed::new(&link, link.events_after(">", &before));
    let mut waiters = Vec::new();
    let mut worst = Exit::Well;
    for name in &args.names {
        let command = v1::Command { reason: args.reason.clone(), ..Default::default() };
        let sent = send(&link, ("orchestrator", verb, name), command, console, global).await?;
        match receipt(&sent, "orchestrator", console, &[verb], name) {
            Ok(line) => console.note(&line),
            Err(refused) => {
                worst = worst.max(console.fail(&refused));
                continue;
            }
        }
        if console.json && global.no_wait {
            console.message(&sent.receipt)?;
        }
        waiters.push(Waiter::new(verb, name, &sent.receipt, known));
    }
    if global.no_wait {
        return Ok(worst);
    }
    wait(&link, feed, waiters, console, global).await.map(|exit| exit.max(worst))
}

/// Sends one command. The wait for its receipt is part of the wait for its outcome, and ends when the command does.
///
/// # Errors
/// As [`Link::command`].
pub(crate) async fn send(
    link: &Link,
    (agent, verb, target): (&str, &str, &str),
    command: v1::Command,
    console: &Console,
    global: &Global,
) -> Result<Sent, Failure> {
    let began = Instant::now();
    let outcome = global.timeout.unwrap_or(TIMEOUT_DEFAULT);
    let patience = if global.no_wait { ASK_LIMIT.min(outcome) } else { outcome.min(COMMAND_AGE_MAX) };
    let receipt = link.command((agent, verb, target), command, patience, console).await?;
    Ok(Sent { receipt, took: began.elapsed() })
}

impl Sent {
    /// The receipt.
    pub(crate) fn receipt(&self) -> &v1::Receipt {
        &self.receipt
    }
}

/// The line of an accepted command; `words` are what is typed before the target, for the suggestion when it is refused.
///
/// # Errors
/// Exit 77 with the reason and what to type instead, when it was refused.
pub(crate) fn receipt(sent: &Sent, agent: &str, console: &Console, words: &[&str], target: &str) -> Result<String, Failure> {
    let Sent { receipt, took } = sent;
    let by = if receipt.agent.is_empty() { agent } else { &receipt.agent };
    if receipt.accepted {
        let reason = if receipt.reason.is_empty() { String::new() } else { format!(": {}", escape(&receipt.reason)) };
        return Ok(format!("accepted by {}, {}{reason}", escape(by), span(*took)));
    }
    let reason = if receipt.reason.is_empty() { receipt.code.replace('_', " ") } else { receipt.reason.clone() };
    let near = receipt.nearest.first().filter(|n| n.as_str() != target);
    let told = near.filter(|n| !reason.contains(n.as_str())).map(|n| format!("; nearest: {}", escape(n))).unwrap_or_default();
    let failure = Failure::new(Exit::Refused, format!("refused by {}: {}{told}", escape(by), escape(&reason)));
    if matches!(receipt.code.as_str(), "quarantined" | "note_missing") {
        return Err(failure.next(console.command(&["release", target, "--note", "what was mended"])));
    }
    Err(match near {
        Some(near) => failure.next(console.command(&words.iter().copied().chain([near.as_str()]).collect::<Vec<_>>())),
        None => failure,
    })
}

/// Waits for the outcome of each.
///
/// # Errors
/// Exit 75 when one does not come in time.
pub(crate) async fn wait(link: &Link, mut feed: Feed, mut waiters: Vec<Waiter>, console: &Console, global: &Global) -> Done {
    let limit = global.timeout.unwrap_or(TIMEOUT_DEFAULT);
    let deadline = tokio::time::Instant::now() + limit;
    let mut look = tokio::time::interval(LOOK_PERIOD);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while waiters.iter().any(|w| w.ended().is_none()) {
        let open: Vec<_> = waiters.iter().filter(|w| w.ended().is_none()).map(|w| w.target.clone()).collect();
        console.footer(&format!("waiting for {}", open.join(" ")));
        tokio::select! {
            item = feed.next() => match item {
                Item::Event { event, .. } => {
                    let lines: Vec<_> = waiters.iter_mut().filter(|w| w.ended().is_none()).flat_map(|w| w.apply(&event)).collect();
                    if console.json && !lines.is_empty() {
                        console.message(&*event)?;
                    } else {
                        console.lines(lines)?;
                    }
                }
                Item::Note(note) => console.note(&escape(&note)),
                Item::CaughtUp => {}
                Item::End => return Err(Failure::new(Exit::OutOfReach, "the bus was closed")),
            },
            _ = look.tick() => {
                if let Ok((reply, _)) = link.status().await {
                    let observed = reply.observed.unwrap_or_default();
                    let lines: Vec<_> = waiters.iter_mut().filter(|w| w.ended().is_none()).flat_map(|w| w.look(&observed)).collect();
                    if !console.json {
                        console.lines(lines)?;
                    }
                }
            },
            () = tokio::time::sleep_until(deadline) => {
                let text = format!("accepted, no outcome in {}: {}", exact(limit), open.join(" "));
                let first = open.first().map(String::as_str).unwrap_or_default();
                return Err(Failure::new(Exit::NoOutcome, text).next(console.command(&["why", first])));
            }
            _ = tokio::signal::ctrl_c() => {
                console.footer("");
                console.note("interrupted; the command goes on");
                return Ok(Exit::Interrupted);
            }
        }
    }
    console.footer("");
    Ok(waiters.iter().filter_map(Waiter::ended).max().unwrap_or(Exit::Well))
}

/// Switches the profile and follows its mission.
///
/// # Errors
/// Exit 77 when it is refused, 75 when the mission does not end in time, 69 when the mesh is away.
pub(crate) async fn profile(args: Profile, console: &Console, global: &Global) -> Done {
    let link = Link::open(console, global).await?;
    let before = link.caught_up().await?;
    let feed = Feed::new(&link, link.events_after(">", &before));
    let command = v1::Command { reason: args.reason.clone(), ..Default::default() };
    let sent = send(&link, ("orchestrator", "profile", &args.name), command, console, global).await?;
    console.note(&receipt(&sent, "orchestrator", console, &["profile"], &args.name)?);
    if global.no_wait {
        if console.json {
            console.message(sent.receipt())?;
        }
        return Ok(Exit::Well);
    }
    if sent.receipt().mission_id.is_empty() {
        return wait(&link, feed, vec![Waiter::new("profile", &args.name, sent.receipt(), &[])], console, global).await;
    }
    let mut boot = Boot::new(&sent.receipt().mission_id, std::time::SystemTime::now());
    let mut follow = mission::Follow { link: &link, console, feed, keys: None, limit: global.timeout.unwrap_or(TIMEOUT_DEFAULT) };
    match follow.until_ended(&mut boot).await? {
        End::Ended => mission::finish(&boot, console),
        End::Late => Err(mission::late(&boot, console, follow.limit)),
        End::Interrupted | End::Detached => Ok(Exit::Interrupted),
    }
}
