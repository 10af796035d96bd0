//! `up`: a sound file, a running mesh, the stack applied, its boot followed; then, in the foreground, its events until told otherwise.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use razar_bus_schema::{
    stream::Store,
    v1::{self, event::Fact},
};

use crate::{
    args::{Global, Up},
    boot::Boot,
    commands::{
        down,
        lifecycle::{receipt, send},
        mission::{self, Asked, End, Follow},
    },
    console::Console,
    exit::{Done, Exit, Failure},
    feed::{Feed, Item},
    keys::Keys,
    link::{Link, server},
    mesh::{Place, embedded, host_port},
    ports,
    render::{
        event::{evidence, exit_status, news, recovery_news, subject_name},
        mesh::mesh_words,
        status::{SYSTEM_STACK, name_of},
        text::escape,
        time::{clock, seconds},
    },
    stack_file,
};

/// Longest wait for a boot unless `--timeout` says otherwise: large models load for minutes.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// A mesh is there within half a second; a cold disk may need more.
const MESH_LIMIT: Duration = Duration::from_secs(30);

/// How often it is asked whether the mesh is there.
const MESH_POLL: Duration = Duration::from_millis(10);

/// How often it is seen whether the mesh that is followed was ended.
const FOLLOW_POLL: Duration = Duration::from_millis(200);

/// Applies a stack file.
///
/// # Errors
/// Exit 64 for a wrong file or profile, 69 when the mesh cannot be had, 75 when the boot does not end in time, 77 when it is refused.
pub(crate) async fn run(args: Up, console: &Console, global: &Global) -> Done {
    let loaded = stack_file::sound(&args.file, console)?;
    let document = loaded.document;
    let profile = args.profile.clone().unwrap_or_default();
    let wrong = |e: String| Failure::new(Exit::Arguments, e);
    document.resolve(&profile).map_err(|e| wrong(e.to_string()))?;
    let bytes = document.to_bytes().map_err(|e| wrong(e.to_string()))?;
    let revision = document.revision().map_err(|e| wrong(e.to_string()))?;
    let shards = args.shards.map(u32::from).or(loaded.file.mesh.shards);
    let link = mesh(args.replicas, shards, console, global).await?;
    let stored = link.bus.objects(Store::Stacks).put(&revision, &bytes).await;
    stored.map_err(|e| Failure::new(Exit::OutOfReach, format!("the stack could not be stored: {e}")))?;
    let before = link.caught_up().await?;
    let feed = Feed::new(&link, link.events_after(">", &before));
    let command = v1::Command { stack_revision: revision, profile, fresh: args.fresh, approve: args.approve, ..Default::default() };
    let sent = send(&link, ("orchestrator", "apply", &document.name), command, console, global).await?;
    let accepted =
        receipt(&sent, "orchestrator", console, &["up"], &document.name).map_err(|f| refused(f, sent.receipt(), &args, console))?;
    if global.no_wait || sent.receipt().mission_id.is_empty() {
        if console.json {
            console.message(sent.receipt())?
        } else {
            console.line(&accepted)?
        }
        return Ok(Exit::Well);
    }
    let keys = if args.detach || console.json { None } else { Keys::listen() };
    let mut follow = Follow { link: &link, console, feed, keys, limit: global.timeout.unwrap_or(BOOT_LIMIT) };
    let mut boot = Boot::new(&sent.receipt().mission_id, SystemTime::now());
    let end = follow.until_ended(&mut boot).await?;
    let exit = match end {
        End::Ended => mission::finish(&boot, console)?,
        End::Late => return Err(mission::late(&boot, console, follow.limit)),
        End::Detached => {
            console.note("detached; the boot goes on");
            return Ok(Exit::Well);
        }
        End::Interrupted => return down::after_interrupt(&link, console, global).await,
    };
    if args.detach {
        return Ok(exit);
    }
    if exit == Exit::Well && !console.json {
        invite(&link, console).await?;
    }
    foreground(follow, console, global, exit).await
}

/// A refusal, with the command that would be accepted where there is one.
fn refused(failure: Failure, receipt: &v1::Receipt, args: &Up, console: &Console) -> Failure {
    let file = args.file.display().to_string();
    match receipt.code.as_str() {
        "needs_approval" | "approval_needed" | "drop_not_approved" => failure.next(console.command(&["up", &file, "--approve"])),
        "another_stack" | "other_stack" => failure.next(console.command(&["down"])),
        _ => Failure { next: None, ..failure },
    }
}

/// What to try now: a component that others need, and that is quick to come back.
async fn invite(link: &Link, console: &Console) -> Result<(), Failure> {
    if !console.is_terminal() {
        return Ok(());
    }
    let (reply, _) = link.status().await?;
    let observed = reply.observed.unwrap_or_default();
    let needed =
        |name: &str| observed.components.iter().any(|c| c.desired.as_ref().is_some_and(|d| d.depends_on.iter().any(|n| n == name)));
    let own = observed.components.iter().filter(|c| c.stack != SYSTEM_STACK && c.process.is_some());
    let quickest = own.min_by_key(|c| {
        let took = c.last_took.as_ref().map(|d| (d.seconds, d.nanos)).unwrap_or((i64::MAX, 0));
        (!c.instance.as_ref().is_some_and(|i| needed(&i.component)), took)
    });
    if let Some(c) = quickest {
        let name = name_of(c);
        let (status, events) = (console.command(&["status", &name, "--pid"]), console.command(&["events", &name]));
        console.line(&format!("now kill one: kill -9 $({status}); {events}"))?;
    }
    console.line("following events; d or a closed terminal detaches, Ctrl+C stops all, again kills")
}

/// Follows events until somebody says otherwise, or the mesh of this machine ends.
async fn foreground(mut follow: Follow<'_>, console: &Console, global: &Global, exit: Exit) -> Done {
    let mut asked = Asked::listen()?;
    let mut causes = BTreeMap::new();
    let place = Place::of(&global.mesh);
    let here = place.facts().is_some_and(|facts| facts.server == follow.link.server);
    let mut ended = std::pin::pin!(mesh_ended(&place, here));
    loop {
        tokio::select! {
            gone = &mut ended => return match gone {
                Gone::All => {
                    console.note("the mesh was ended; state kept for the next up");
                    Ok(exit)
                }
                Gone::Guard => {
                    let text = "the mesh's node is gone; what runs goes on, and nobody heals it";
                    Err(Failure::new(Exit::OutOfReach, text).next(console.command(&["up"])))
                }
            },
            item = follow.feed.next() => match item {
                Item::Event { event, stored, .. } => {
                    if event.stack == SYSTEM_STACK && !console.verbose {
                        continue;
                    }
                    note_cause(&mut causes, &event);
                    let told = causes.get(&subject_name(&event)).and_then(|cause| recovery_news(&event, cause));
                    if told.is_some() {
                        causes.remove(&subject_name(&event));
                    }
                    let Some(text) = told.or_else(|| news(&event)) else { continue };
                    if console.json {
                        console.message(&*event)?;
                    } else {
                        let at = event.time.as_ref().map_or(stored, razar_bus_schema::time::system_time);
                        console.line(&format!("{} {text}", clock(at, console.zone)))?;
                    }
                }
                Item::Note(note) => console.note(&escape(&note)),
                Item::CaughtUp => {}
                Item::End => return Err(Failure::new(Exit::OutOfReach, "the bus was closed")),
            },
            end = asked.next(&mut follow.keys) => return match end {
                End::Detached => {
                    console.note("detached; the stack runs on");
                    Ok(exit)
                }
                End::Interrupted | End::Ended | End::Late => {
                    drop(follow.keys.take());
                    down::after_interrupt(follow.link, console, global).await
                }
            },
        }
    }
}

/// How the mesh of this machine ended.
enum Gone {
    /// Nothing of it runs.
    All,
    /// Its guard, and nobody brought it back; something of it runs.
    Guard,
}

/// Waits for the end of the mesh of this machine; for ever when the one followed is not `here`.
async fn mesh_ended(place: &Place, here: bool) -> Gone {
    if !here {
        return std::future::pending().await;
    }
    let mut guard = place.guard();
    let mut missed = Instant::now();
    loop {
        if guard.as_ref().is_some_and(|guard| !guard.ended(Duration::ZERO)) {
            missed = Instant::now();
        } else {
            // The agent starts another guard when it finds its own dead.
            guard = place.guard();
            if guard.is_none() && place.processes().is_empty() {
                return Gone::All;
            }
            if missed.elapsed() > down::LEFT_LIMIT {
                return Gone::Guard;
            }
        }
        tokio::time::sleep(FOLLOW_POLL).await;
    }
}

/// Remembers how an instance's incident began, for the line that ends it.
fn note_cause(causes: &mut BTreeMap<String, String>, event: &v1::Event) {
    let cause = match &event.fact {
        Some(Fact::ComponentExited(e)) => exit_status(e.status.as_ref()),
        Some(Fact::ComponentUnresponsive(u)) => u.evidence.as_ref().map(evidence).unwrap_or_default(),
        _ => return,
    };
    // What came first opened the incident: a hang, not the kill that ends it.
    causes.entry(subject_name(event)).or_insert(cause);
}

/// A connection to a mesh that answers; starts the embedded one where none runs.
///
/// # Errors
/// Exit 69 with the reason: what holds the port, what the node's log says.
async fn mesh(replicas: Option<u8>, shards: Option<u32>, console: &Console, global: &Global) -> Result<Link, Failure> {
    let place = Place::of(&global.mesh);
    let facts = place.facts();
    let address = server(global, facts.as_ref());
    let tried = Link::connect(&global.mesh, &address).await;
    // A mesh of this machine whose node is gone still answers, and nobody heals it.
    let ours = facts.as_ref().is_some_and(|f| f.server == address);
    if let Ok(link) = &tried
        && (!ours || place.guard().is_some())
        && link.status().await.is_ok()
        && link.plan().await.is_ok()
    {
        if replicas.is_some() {
            console.note("the mesh runs already; --replicas counts when it is started");
        }
        if shards.is_some() {
            console.note("the mesh runs already; --shards counts when it is started");
        }
        return tried.map_err(|why| Failure::new(Exit::OutOfReach, why));
    }
    let began = Instant::now();
    let mut child = None;
    if place.guard().is_none() {
        if tried.is_ok() && !ours {
            return Err(silent(&address, console, global));
        }
        if tried.is_err() {
            free(&address, console)?;
        }
        child = Some(place.start(&address, replicas, shards)?);
    }
    console.footer(&format!("starting the mesh on {address}"));
    let link = wait_for_mesh(&place, global, &address, child, began).await;
    console.footer("");
    let link = link?;
    let (reply, round_trip) = link.status().await?;
    let text = ready_line(&reply, began.elapsed(), round_trip);
    if console.json {
        console.note(&text)
    } else {
        console.line(&text)?
    }
    Ok(link)
}

/// `mesh ready in 0.31s: broker, 6 agents, node a`
fn ready_line(reply: &v1::StatusReply, took: Duration, round_trip: Duration) -> String {
    let nothing = v1::Observed::default();
    let observed = reply.observed.as_ref().unwrap_or(&nothing);
    let words = mesh_words(observed, round_trip);
    let agents = words.trim_start_matches("mesh: ").split(", ").next().unwrap_or_default().to_owned();
    let nodes: Vec<_> = observed.nodes.iter().filter(|n| !n.lost).map(|n| format!("node {}", escape(&n.name))).collect();
    let nodes = if nodes.is_empty() { "no node yet".to_owned() } else { nodes.join(", ") };
    format!("mesh ready in {}: broker, {agents}, {nodes}", seconds(took))
}

/// A broker that another node keeps, or somebody else, and on which the mesh does not answer.
fn silent(address: &str, console: &Console, global: &Global) -> Failure {
    let text = format!(
        "a broker answers on {}, and no registry and orchestrator of mesh `{}` do; fix: wait until they run, or name another mesh or port",
        escape(address),
        escape(&global.mesh)
    );
    let other = host_port(address).map_or_else(|| address.to_owned(), |(_, port)| elsewhere(address, port));
    Failure::new(Exit::OutOfReach, text).next(console.command(&["--server", &other, "up"]))
}

/// Where a mesh may be started instead, near this port.
fn elsewhere(address: &str, port: u16) -> String {
    ports::free_near(port).map_or_else(|| address.to_owned(), |port| format!("nats://127.0.0.1:{port}"))
}

/// Refuses when another process holds the bus's port.
fn free(address: &str, console: &Console) -> Result<(), Failure> {
    let Some((host, port)) = host_port(address) else {
        return Err(Failure::new(Exit::Arguments, format!("`{}` is no address: nats://127.0.0.1:4222", escape(address))));
    };
    if !matches!(host.as_str(), "127.0.0.1" | "localhost" | "::1") {
        return Err(Failure::new(
            Exit::OutOfReach,
            format!("no mesh answers on {}, and one there cannot be started from here", escape(address)),
        ));
    }
    let Some(holder) = ports::holder(port) else { return Ok(()) };
    let other = elsewhere(address, port);
    let text = format!("port {port} is held by {holder}, not by this mesh; fix: stop it, or another port");
    Err(Failure::new(Exit::OutOfReach, text).next(console.command(&["--server", &other, "up"])))
}

/// Whether a node has joined and the agents that are embedded are told of: then the counts are true.
fn is_whole(reply: &v1::StatusReply) -> bool {
    let Some(observed) = reply.observed.as_ref().filter(|_| reply.lag == 0) else { return false };
    let told = |kind: &str| observed.agents.iter().any(|a| !a.down && a.started.as_ref().is_some_and(|s| s.kind == kind));
    observed.nodes.iter().any(|n| !n.lost) && embedded().iter().all(|kind| told(kind))
}

async fn wait_for_mesh(
    place: &Place,
    global: &Global,
    address: &str,
    mut child: Option<std::process::Child>,
    began: Instant,
) -> Result<Link, Failure> {
    let limit = global.timeout.unwrap_or(MESH_LIMIT).min(MESH_LIMIT);
    let mut last = "nothing answers yet".to_owned();
    let mut link: Option<Link> = None;
    while began.elapsed() < limit {
        if let Some(status) = child.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
            let text = format!("the node ended with {status}; its log, {}:\n{}", place.log().display(), place.log_tail());
            return Err(Failure::new(Exit::OutOfReach, text));
        }
        if link.is_none() {
            match Link::connect(&global.mesh, address).await {
                Ok(connected) => link = Some(connected),
                Err(why) => last = format!("the bus {why}"),
            }
        }
        if let Some(connected) = &link {
            let (status, plan) = (connected.status().await, connected.plan().await);
            match (status, plan) {
                (Ok((reply, _)), Ok(_)) if is_whole(&reply) => return link.ok_or_else(|| Failure::new(Exit::OutOfReach, last)),
                (Ok(_), Ok(_)) => last = "not every agent and node is known yet".to_owned(),
                (Err(failure), _) | (_, Err(failure)) => last = failure.text,
            }
        }
        tokio::time::sleep(MESH_POLL).await;
    }
    let text = format!("the mesh is not there after {}: {last}; its log, {}:\n{}", seconds(limit), place.log().display(), place.log_tail());
    Err(Failure::new(Exit::OutOfReach, text))
}
