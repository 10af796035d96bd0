//! `status`: the registry's projection, whole or of one component.

use std::time::{Duration, SystemTime};

use razar_bus_schema::v1;

use crate::{
    args::{Global, Status},
    console::Console,
    exit::{Done, Exit, Failure},
    link::Link,
    lookup,
    render::{
        log,
        mesh::trouble_line,
        spec::detail,
        status::{Health, Line, Report, SYSTEM_STACK, name_of, report, state_word},
    },
};

/// How often `--watch` asks.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// Log lines shown of one component.
const LOG_LINES: u32 = 5;

/// Shows the status.
///
/// # Errors
/// Exit 69 when bus or registry are away, 64 for an unknown name.
pub(crate) async fn run(args: &Status, console: &Console, global: &Global) -> Done {
    let link = Link::open(console, global).await?;
    if !args.watch {
        return once(args, console, &link).await;
    }
    loop {
        console.clear();
        if let Err(failure) = once(args, console, &link).await {
            // A watch outlives a registry that comes back.
            if failure.exit != Exit::OutOfReach {
                return Err(failure);
            }
            console.error(&failure.text);
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH_PERIOD) => {}
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
        }
    }
}

async fn once(args: &Status, console: &Console, link: &Link) -> Done {
    let (mut reply, took) = link.status().await?;
    let nodes = reply.observed.as_ref().map(|o| o.nodes.as_slice()).unwrap_or_default();
    (reply.troubles, reply.health) = tokio::join!(link.troubles(nodes), link.health());
    if reply.lag > 0 {
        console.note(&format!("the registry is {} events behind", reply.lag));
    }
    match &args.name {
        Some(name) => {
            reply.troubles.iter().for_each(|trouble| console.note(&trouble_line(trouble).to_string()));
            one(args, name, console, link, &reply).await
        }
        None => all(args, console, &reply, took),
    }
}

fn all(args: &Status, console: &Console, reply: &v1::StatusReply, took: Duration) -> Done {
    let report = report(reply, SystemTime::now(), took, args.all);
    if console.json {
        let mut shown = reply.clone();
        if let Some(observed) = shown.observed.as_mut().filter(|_| !args.all) {
            observed.components.retain(|c| c.stack != SYSTEM_STACK);
        }
        console.message(&shown)?;
    } else {
        print(&report, console)?;
    }
    if !args.check {
        return Ok(Exit::Well);
    }
    Ok(match report.health {
        Health::Well => Exit::Well,
        Health::Degraded => Exit::NotWell,
        Health::Critical => Exit::Critical,
    })
}

/// A line, its word in the colour of its meaning.
pub(crate) fn painted(line: &Line, console: &Console) -> String {
    format!("{}{}{}", line.before, console.paint(line.tone, &line.word), line.after)
}

fn print(report: &Report, console: &Console) -> Result<(), Failure> {
    console.lines(report.lines.iter().chain([&report.verdict]).map(|l| painted(l, console)))?;
    if let Some(worst) = &report.worst {
        console.line(&format!("next: {}", console.command(&["why", worst])))?;
    } else if report.health != Health::Well {
        console.line(&format!("next: {}", console.command(&["doctor"])))?;
    }
    Ok(())
}

async fn one(args: &Status, name: &str, console: &Console, link: &Link, reply: &v1::StatusReply) -> Done {
    let known = reply.observed.as_ref().map(|o| o.components.as_slice()).unwrap_or_default();
    let found = lookup::instances(known, name)?;
    let mut worst = Exit::Well;
    for c in &found {
        if args.pid {
            return pid(c, console);
        }
        if console.json {
            console.message(*c)?;
        } else {
            show(c, known, console, link).await?;
        }
        let only =
            v1::StatusReply { observed: Some(v1::Observed { components: vec![(*c).clone()], ..Default::default() }), ..Default::default() };
        let exit = match report(&only, SystemTime::now(), Duration::ZERO, false).health {
            Health::Well => Exit::Well,
            Health::Degraded => Exit::NotWell,
            Health::Critical => Exit::Critical,
        };
        worst = worst.max(exit);
    }
    Ok(if args.check { worst } else { Exit::Well })
}

fn pid(c: &v1::ObservedComponent, console: &Console) -> Done {
    match &c.process {
        Some(process) if process.pid > 0 => {
            console.line(&process.pid.to_string())?;
            Ok(Exit::Well)
        }
        _ => Err(Failure::new(Exit::NotWell, format!("{} has no process: {}", name_of(c), state_word(c.state)))),
    }
}

async fn show(c: &v1::ObservedComponent, known: &[v1::ObservedComponent], console: &Console, link: &Link) -> Result<(), Failure> {
    let instance = lookup::instance_of(c).filter(|_| !c.node.is_empty());
    let mut why = None;
    let mut lines = Vec::new();
    if let Some(instance) = &instance {
        match link.why(&c.node, instance).await {
            Ok(reply) => why = Some(reply).filter(|r| !r.unknown),
            Err(failure) => console.note(&failure.text),
        }
        let request =
            v1::LogTailRequest { component: instance.component.clone(), ordinal: instance.ordinal, lines: LOG_LINES, ..Default::default() };
        lines = link.logs(&c.node, &request).await.map(|r| r.lines).unwrap_or_default();
    }
    console.lines(detail(c, why.as_ref(), known, SystemTime::now()))?;
    let skip = lines.len().saturating_sub(LOG_LINES as usize);
    console.lines(lines.iter().skip(skip).map(|l| format!("  {}", log::line(l, 0, console.zone))))
}
