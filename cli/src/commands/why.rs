//! `why`: the node's precedence table of a component; without a name, what is wrong at the root.

use std::time::SystemTime;

use razar_bus_schema::v1;

use crate::{
    args::{Global, Why},
    commands::status::painted,
    console::Console,
    exit::{Done, Exit, Failure},
    link::Link,
    lookup,
    render::{
        status::{name_of, report},
        why::table,
    },
};

/// Shows the table, or the root causes.
///
/// # Errors
/// Exit 69 when bus, registry or the node are away, 64 for an unknown name.
pub(crate) async fn run(args: &Why, console: &Console, global: &Global) -> Done {
    let link = Link::open(console, global).await?;
    let (reply, took) = link.status().await?;
    let Some(name) = &args.name else { return roots(console, &reply, took) };
    let known = reply.observed.as_ref().map(|o| o.components.as_slice()).unwrap_or_default();
    for c in lookup::instances(known, name)? {
        let Some(instance) = lookup::instance_of(c) else { continue };
        if c.node.is_empty() {
            return Err(Failure::new(Exit::NotWell, format!("{instance} is placed on no node yet; why is unknown")));
        }
        let why = link.why(&c.node, &instance).await?;
        if why.unknown {
            return Err(Failure::new(Exit::NotWell, format!("node {} does not know {instance} yet", c.node)));
        }
        if console.json {
            console.message(&why)?;
        } else {
            console.lines(table(&why))?;
        }
    }
    Ok(Exit::Well)
}

/// Unwell components that nothing else blocks, each with what it blocks.
fn roots(console: &Console, reply: &v1::StatusReply, took: std::time::Duration) -> Done {
    let nothing = v1::Observed::default();
    let observed = reply.observed.as_ref().unwrap_or(&nothing);
    let is_root = |c: &&v1::ObservedComponent| c.blocked_by.is_empty();
    let mut only_roots = reply.clone();
    if let Some(o) = only_roots.observed.as_mut() {
        o.components.retain(|c| is_root(&c));
    }
    let report_of_roots = report(&only_roots, SystemTime::now(), took, false);
    if report_of_roots.worst.is_none() {
        console.line(&format!("nothing is wrong at the root; {}", report(reply, SystemTime::now(), took, false).verdict))?;
        return Ok(Exit::Well);
    }
    for line in &report_of_roots.lines {
        let name = line.before.trim();
        if console.json {
            let found = observed.components.iter().find(|c| name_of(c) == name);
            found.map_or(Ok(()), |c| console.message(c))?;
            continue;
        }
        let component = name.split('.').next().unwrap_or(name);
        let blocked: Vec<_> =
            observed.components.iter().filter(|c| c.blocked_by.iter().any(|b| b.component == component)).map(name_of).collect();
        let blocks = if blocked.is_empty() { String::new() } else { format!("; blocks {}", blocked.join(" ")) };
        console.line(&format!("{}{blocks}", painted(line, console)))?;
    }
    if let Some(worst) = &report_of_roots.worst
        && !console.json
    {
        console.line(&format!("next: {}", console.command(&["why", worst])))?;
    }
    Ok(Exit::Well)
}
