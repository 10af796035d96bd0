//! The built-in stack `system`: broker → one-shot `provision` → agents, planned like any other but never taken from the bus.
//! Where the programs lie and which ports they get is the caller's to say.

use std::collections::BTreeMap;

use razar_bus_schema::{ids::sha256_hex, time::duration, v1};

use crate::{
    document::{Resolved, spec_hash},
    file::{Restart, StackFile},
    fill,
    plan::{History, NodeFacts, Plan, PlanError, plan},
};

/// Name of the built-in stack.
pub const STACK: &str = "system";

/// Start slots of the system stack: all agents at once, a mesh is up when the slowest is.
const PARALLEL_STARTS: u32 = 32;

/// What readiness asks of the broker: JetStream has begun. It does not ask whether each stream can be written: on a full disk who runs goes
/// on, and what is wrong is told by the node's own look at the broker.
const BROKER_READY_PATH: &str = "/healthz?js-server-only=true";

/// What liveness asks of the broker: it answers at all.
const BROKER_LIVE_PATH: &str = "/healthz?js-enabled-only=true";

/// What the system stack consists of on this node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SystemStack {
    /// Node that runs it.
    pub node: String,
    /// Epoch of the journal that the system stack has on that node.
    pub node_epoch: String,
    /// Generation of every record; raise it when anything changed.
    pub generation: u64,
    /// Working directory of all, absolute.
    pub working_dir: String,
    /// Environment of all.
    pub env: BTreeMap<String, String>,
    /// The embedded broker; absent when the mesh uses another one.
    pub broker: Option<SystemBroker>,
    /// Program that creates streams and buckets; empty: none.
    pub provision: Vec<String>,
    /// The agents.
    pub agents: Vec<SystemAgent>,
}

/// The embedded broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SystemBroker {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Port of its clients.
    pub port: u16,
    /// Port of its monitoring.
    pub monitor_port: u16,
}

/// An agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SystemAgent {
    /// Name: `orchestrator`, `registry`, …
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment of its own, over that of all.
    pub env: BTreeMap<String, String>,
    /// Port of `/healthz`, `/readyz`, `/metrics`.
    pub http_port: u16,
}

/// The records of the system stack, in order of rank.
///
/// # Errors
/// When there are more members than a plan has room for.
pub fn system(stack: &SystemStack) -> Result<Vec<v1::Desired>, PlanError> {
    let mut components = Vec::new();
    if let Some(broker) = &stack.broker {
        components.push(self::broker(stack, broker));
    }
    if !stack.provision.is_empty() {
        components.push(provision(stack));
    }
    components.extend(stack.agents.iter().map(|agent| self::agent(stack, agent)));
    components.sort_by(|a, b| a.name.cmp(&b.name));
    let hashes: String = components.iter().map(spec_hash).collect();
    let resolved = Resolved {
        name: STACK.to_owned(),
        revision: sha256_hex(hashes.as_bytes()),
        components,
        parallel_starts: PARALLEL_STARTS,
        ..Resolved::default()
    };
    let node = NodeFacts { name: stack.node.clone(), ..NodeFacts::default() };
    let plan: Plan = plan(&resolved, &[node], &History::default(), &BTreeMap::new())?;
    let epochs = BTreeMap::from([(stack.node.clone(), stack.node_epoch.clone())]);
    let mut records = plan.desired(&resolved, &epochs, "", false);
    for record in &mut records {
        record.generation = stack.generation.max(1);
    }
    Ok(records)
}

fn member(stack: &SystemStack, name: &str, chakra: &str, command: &[String], own_env: &BTreeMap<String, String>) -> v1::ComponentSpec {
    let mut env = stack.env.clone();
    env.extend(own_env.clone());
    v1::ComponentSpec {
        name: name.to_owned(),
        chakra: chakra.to_owned(),
        command: command.to_vec(),
        working_dir: stack.working_dir.clone(),
        env: env.into_iter().map(|(name, value)| v1::EnvVar { name, value }).collect(),
        required: true,
        stop: Some(v1::StopSpec { signal: fill::STOP_SIGNAL_DEFAULT, grace: Some(duration(fill::STOP_GRACE_DEFAULT)) }),
        restart: Some(restart(v1::RestartPolicy::Always)),
        replicas: 1,
        logs: Some(v1::LogSpec { max_size_bytes: fill::LOG_BYTES_DEFAULT, keep: fill::LOG_KEEP_DEFAULT }),
        slow_probe: Some(duration(fill::SLOW_PROBE_DEFAULT)),
        ..v1::ComponentSpec::default()
    }
}

/// The mesh's defaults without an end: the system stack has no ladder behind it.
fn restart(policy: v1::RestartPolicy) -> v1::RestartSpec {
    let defaults = fill::restart(&Restart::default(), &StackFile::default());
    v1::RestartSpec { policy: policy.into(), endless: true, ..defaults }
}

fn http(port: u16, path: &str, readiness: bool) -> v1::Probe {
    let timeout = if readiness { fill::READINESS_TIMEOUT_DEFAULT } else { fill::PROBE_TIMEOUT_DEFAULT };
    v1::Probe {
        check: Some(v1::probe::Check::Http(v1::HttpCheck { port: port.into(), path: path.to_owned(), ..v1::HttpCheck::default() })),
        // Readiness without a period of its own is asked less often while it passes.
        period: (!readiness).then(|| duration(fill::PROBE_PERIOD_DEFAULT)),
        timeout: Some(duration(timeout)),
        failure_threshold: fill::FAILURE_THRESHOLD_DEFAULT,
        success_threshold: 1,
        initial_delay: Some(duration(std::time::Duration::ZERO)),
    }
}

fn depends(component: &str, condition: v1::DependencyCondition) -> v1::Dependency {
    v1::Dependency { component: component.to_owned(), condition: condition.into(), required: true, restart: false }
}

fn broker(stack: &SystemStack, broker: &SystemBroker) -> v1::ComponentSpec {
    v1::ComponentSpec {
        ports: vec![broker.port.into(), broker.monitor_port.into()],
        readiness: Some(http(broker.monitor_port, BROKER_READY_PATH, true)),
        liveness: Some(http(broker.monitor_port, BROKER_LIVE_PATH, false)),
        ..member(stack, "broker", "root", &broker.command, &BTreeMap::new())
    }
}

fn provision(stack: &SystemStack) -> v1::ComponentSpec {
    v1::ComponentSpec {
        one_shot: true,
        restart: Some(restart(v1::RestartPolicy::OnFailure)),
        depends_on: stack.broker.iter().map(|_| depends("broker", v1::DependencyCondition::Ready)).collect(),
        ..member(stack, "provision", "root", &stack.provision, &BTreeMap::new())
    }
}

fn agent(stack: &SystemStack, agent: &SystemAgent) -> v1::ComponentSpec {
    let depends_on = if !stack.provision.is_empty() {
        vec![depends("provision", v1::DependencyCondition::Completed)]
    } else {
        stack.broker.iter().map(|_| depends("broker", v1::DependencyCondition::Ready)).collect()
    };
    v1::ComponentSpec {
        ports: vec![agent.http_port.into()],
        readiness: Some(http(agent.http_port, "/readyz", true)),
        liveness: Some(http(agent.http_port, "/healthz", false)),
        depends_on,
        ..member(stack, &agent.name, "crown", &agent.command, &agent.env)
    }
}
