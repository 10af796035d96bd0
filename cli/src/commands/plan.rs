//! `plan`: what `up` would do with a file, beside what runs where a mesh can be asked; without a file the plan in force. Starts nothing.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use prost::Message;
use razar_bus_schema::{ids::Instance, stream::Store, time::std_duration, v1};
use razar_stack::{Change, DOCUMENT_BYTES_MAX, History, NodeFacts, Plan as StackPlan, Running, StackDocument, plan};

use crate::{
    args::{Global, Plan},
    console::Console,
    exit::{Done, Exit, Failure},
    link::{Link, server},
    mesh::Place,
    render::{plan::table, text::escape},
    stack_file,
};

/// File taken when none is named, if it is here.
const FILE_DEFAULT: &str = "razar.yaml";

/// Prefix of the boot histories in the bucket `missions`.
const HISTORY_PREFIX: &str = "history.";

/// What a running mesh adds to a plan.
#[derive(Debug, Default)]
pub(crate) struct Around {
    nodes: Vec<NodeFacts>,
    history: History,
    running: BTreeMap<Instance, Running>,
    /// Plan in force; default: none.
    pub(crate) reply: v1::PlanReply,
}

/// Shows the plan.
///
/// # Errors
/// Exit 64 for a wrong file, 69 when the plan in force is asked for and the mesh is away.
pub(crate) async fn run(args: &Plan, console: &Console, global: &Global) -> Done {
    let file = args.file.clone().or_else(|| Some(PathBuf::from(FILE_DEFAULT)).filter(|f| f.is_file()));
    let (planned, around) = match file {
        Some(file) => of_file(&file, args, console, global).await?,
        None => in_force(args, console, global).await?,
    };
    let changes = planned.rows.iter().any(|r| r.change != Change::Keep) || !planned.stops.is_empty();
    if console.json {
        let json = |e: serde_json::Error| Failure::new(Exit::NotWell, e.to_string());
        for row in &planned.rows {
            console.line(&serde_json::to_string(row).map_err(json)?)?;
        }
        for stop in &planned.stops {
            console.line(&serde_json::to_string(stop).map_err(json)?)?;
        }
    } else {
        let all = console.verbose || args.file.is_none() && !changes;
        console.lines(table(&planned, all))?;
        let (theirs, ours) = (&around.reply.stack, &planned.stack);
        if !theirs.is_empty() && theirs != ours {
            console.note(&format!("{} is in force: up would be refused; first: {}", escape(theirs), console.command(&["down"])));
        }
    }
    Ok(if args.check && changes { Exit::NotWell } else { Exit::Well })
}

async fn of_file(file: &Path, args: &Plan, console: &Console, global: &Global) -> Result<(StackPlan, Around), Failure> {
    let loaded = stack_file::sound(file, console)?;
    let place = Place::of(&global.mesh);
    let server = server(global, place.facts().as_ref());
    let around = match Link::connect(&global.mesh, &server).await {
        Ok(link) => around(&link).await.unwrap_or_default(),
        Err(_) => Around::default(),
    };
    let planned = planned(&loaded.document, args.profile.as_deref().unwrap_or_default(), &around)?;
    Ok((planned, around))
}

async fn in_force(args: &Plan, console: &Console, global: &Global) -> Result<(StackPlan, Around), Failure> {
    let link = Link::open(console, global).await?;
    let around = around(&link).await?;
    if around.reply.stack_revision.is_empty() {
        let text = format!("no stack is in force, and there is no {FILE_DEFAULT} here");
        return Err(Failure::new(Exit::Arguments, text).next(console.command(&["plan", "FILE"])));
    }
    let bytes = link.bus.objects(Store::Stacks).get(&around.reply.stack_revision, DOCUMENT_BYTES_MAX).await;
    let bytes = bytes.map_err(|e| link.silent("store of stacks", &e))?;
    let bytes = bytes.ok_or_else(|| Failure::new(Exit::NotWell, format!("revision {} is not stored", around.reply.stack_revision)))?;
    let document = StackDocument::from_bytes(&bytes).map_err(|e| Failure::new(Exit::NotWell, e.to_string()))?;
    let profile = args.profile.clone().unwrap_or_else(|| around.reply.profile.clone());
    let planned = planned(&document, &profile, &around)?;
    Ok((planned, around))
}

/// The plan of a document's profile, on this machine alone when no mesh tells of nodes.
///
/// # Errors
/// Exit 64 when there is no such profile, or no plan.
fn planned(document: &StackDocument, profile: &str, around: &Around) -> Result<StackPlan, Failure> {
    let resolved = document.resolve(profile).map_err(|e| Failure::new(Exit::Arguments, e.to_string()))?;
    let here = [NodeFacts { name: "a".to_owned(), labels: BTreeMap::new(), cpus: cpus() }];
    let nodes = if around.nodes.is_empty() { &here } else { around.nodes.as_slice() };
    let nothing = BTreeMap::new();
    let same = around.reply.stack.is_empty() || around.reply.stack == document.name;
    let running = if same { &around.running } else { &nothing };
    plan(&resolved, nodes, &around.history, running).map_err(|e| Failure::new(Exit::Arguments, e.to_string()))
}

fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// Asks a running mesh what there is.
///
/// # Errors
/// Exit 69 when registry or orchestrator do not answer.
pub(crate) async fn around(link: &Link) -> Result<Around, Failure> {
    let (status, _) = link.status().await?;
    let reply = link.plan().await?;
    let observed = status.observed.unwrap_or_default();
    let node = |n: &v1::ObservedNode| NodeFacts {
        name: n.name.clone(),
        labels: n.joined.iter().flat_map(|j| &j.labels).map(|l| (l.key.clone(), l.value.clone())).collect(),
        cpus: n.joined.as_ref().map_or(0, |j| j.cpus),
    };
    let record = |p: &v1::PlannedInstance| {
        let (instance, d) = (Instance::try_from(p.instance.as_ref()?).ok()?, p.desired.as_ref()?);
        let running = Running {
            node: d.node.clone(),
            generation: d.generation,
            spec_hash: d.spec_hash.clone(),
            wanted: d.mode != "stop",
            rank: d.rank,
        };
        Some((instance, running))
    };
    Ok(Around {
        nodes: observed.nodes.iter().filter(|n| !n.lost).map(node).collect(),
        history: History { takes: takes(link, &reply).await },
        running: reply.instances.iter().filter_map(record).collect(),
        reply,
    })
}

/// Times of earlier boots: from the orchestrator's histories, else the medians of the plan in force.
async fn takes(link: &Link, reply: &v1::PlanReply) -> BTreeMap<String, Vec<Duration>> {
    let entries = link.bus.bucket(Store::Missions).entries().await.unwrap_or_default();
    let history = |e: &razar_bus::Entry| {
        let component = e.key.strip_prefix(HISTORY_PREFIX)?.to_owned();
        let takes: Vec<_> = v1::BootHistory::decode(e.value.clone()).ok()?.takes.iter().map(std_duration).collect();
        (!takes.is_empty()).then_some((component, takes))
    };
    let told: BTreeMap<_, _> = entries.iter().filter_map(history).collect();
    if !told.is_empty() {
        return told;
    }
    let median = |p: &v1::PlannedInstance| Some((p.instance.as_ref()?.component.clone(), vec![std_duration(p.takes.as_ref()?)]));
    reply.instances.iter().filter_map(median).collect()
}
