//! The mesh's own stack on this node: broker, provision, agents. Its ports are chosen once and kept, so that a new life of the
//! node's agent finds the same specification and restarts nothing.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, TcpListener},
    ops::RangeInclusive,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use razar_bus_schema::{shard::ShardCount, v1};
use razar_stack::{SystemAgent, SystemBroker, SystemStack, system};
use serde::{Deserialize, Serialize};

use crate::{
    config::{Embedded, NodeConfig},
    policy::Group,
};

/// Variables that the mesh's own processes take over from the node.
const PASSED_ON: [&str; 4] = ["OTEL_", "RAZAR_LOG", "RUST_BACKTRACE", "SSL_CERT_"];

/// How late the broker's timers may be. Whenever it works, its runtime's monitor sleeps for 20 µs at a time, and is woken for each: two of five
/// switches to it were that. Its own timers are of milliseconds and more.
const BROKER_TIMER_SLACK: Duration = Duration::from_millis(1);

/// How late the timers of a component may be, where it is not the default.
pub(crate) fn timer_slack(group: Group, component: &str) -> Option<Duration> {
    (group == Group::System && component == "broker").then_some(BROKER_TIMER_SLACK)
}

/// Ports of the mesh's own processes, kept in the state directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ports {
    /// Broker's clients.
    pub(crate) broker: u16,
    /// Broker's monitoring.
    pub(crate) monitor: u16,
    /// Node's health endpoint.
    pub(crate) node_http: u16,
    /// Agents' health endpoints, by name of the component.
    pub(crate) agents: BTreeMap<String, u16>,
}

/// The ports kept at `path`, or new ones. When nothing of the mesh lives (`cold`), one that somebody else took is chosen anew;
/// the broker's is the user's word and stays.
///
/// # Errors
/// When no port is free, or the file cannot be written.
pub(crate) fn ports(path: &Path, config: &NodeConfig, cold: bool) -> Result<Ports> {
    let kept = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Ports>(&bytes).ok()).unwrap_or_default();
    let broker = config.broker_port();
    let mut next = first_port(broker, ephemeral());
    let mut taken = vec![broker];
    let mut choose = |old: u16| -> Result<u16> {
        if old != 0 && (!cold || is_free(old)) {
            taken.push(old);
            return Ok(old);
        }
        for _ in 0..PORTS_TRIED {
            next = next.checked_add(1).unwrap_or(1024);
            if !taken.contains(&next) && is_free(next) {
                taken.push(next);
                return Ok(next);
            }
        }
        bail!("no free port above {next} for the mesh's own processes")
    };
    let mut chosen = Ports { broker, monitor: choose(kept.monitor)?, node_http: choose(kept.node_http)?, agents: BTreeMap::new() };
    for name in config.embedded.iter().flat_map(component_names) {
        let port = choose(kept.agents.get(&name.0).copied().unwrap_or(0))?;
        chosen.agents.insert(name.0, port);
    }
    if chosen != kept {
        crate::start::write_whole(path, &serde_json::to_vec_pretty(&chosen)?)?;
    }
    Ok(chosen)
}

/// Ports looked at above the broker's before giving up.
const PORTS_TRIED: u16 = 2_000;

/// Ports from which the kernel takes one for each outgoing connection: a free one may be gone before its agent listens.
fn ephemeral() -> RangeInclusive<u16> {
    let read = || {
        let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
        let mut bounds = text.split_ascii_whitespace().filter_map(|word| word.parse().ok());
        Some(bounds.next()?..=bounds.next()?)
    };
    read().unwrap_or(32_768..=60_999)
}

/// Where the search begins: next to the broker's port, or, if that is an ephemeral one, at a port below those that depends on it, so that
/// several meshes look in different places.
fn first_port(broker: u16, ephemeral: RangeInclusive<u16>) -> u16 {
    const LOWEST: u16 = 10_000;
    let span = ephemeral.start().saturating_sub(LOWEST).saturating_sub(PORTS_TRIED);
    if ephemeral.contains(&broker) && span > 0 { LOWEST + broker.wrapping_mul(31) % span } else { broker }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Components of the embedded agents: (component, agent), replicas after the first numbered.
fn component_names(embedded: &Embedded) -> Vec<(String, String)> {
    let of = |(agent, count): &(String, u32)| {
        let name = |n: u32| if n == 1 { agent.clone() } else { format!("{agent}-{n}") };
        (1..=*count).map(|n| (name(n), agent.clone())).collect::<Vec<_>>()
    };
    embedded.agents.iter().flat_map(of).collect()
}

/// The compiled-in plan; empty when the mesh's parts run elsewhere. Writes the broker's configuration.
///
/// # Errors
/// When the broker's configuration cannot be written.
pub(crate) fn plan(config: &NodeConfig, ports: &Ports, node_epoch: &str, passed_on: &[(String, String)]) -> Result<Vec<v1::Desired>> {
    let Some(embedded) = &config.embedded else { return Ok(Vec::new()) };
    let broker = write_broker_config(config, ports)?;
    let binary = |name: &str| embedded.bin_dir.join(format!("razar-{name}")).to_string_lossy().into_owned();
    let server = format!("nats://127.0.0.1:{}", ports.broker);
    let mut env = BTreeMap::from([("RAZAR_MESH".to_owned(), config.mesh.clone()), ("RAZAR_SERVER".to_owned(), server)]);
    if embedded.shards != ShardCount::ONE {
        env.insert("RAZAR_SHARDS".to_owned(), embedded.shards.to_string());
    }
    env.extend(passed_on.iter().filter(|(name, _)| PASSED_ON.iter().any(|p| name.starts_with(p))).cloned());
    let agents = component_names(embedded).into_iter().map(|(name, agent)| {
        let http_port = ports.agents.get(&name).copied().unwrap_or(0);
        let env = BTreeMap::from([
            ("RAZAR_HTTP".to_owned(), format!("127.0.0.1:{http_port}")),
            ("RAZAR_REPLICA".to_owned(), format!("{}-{name}", config.node)),
        ]);
        SystemAgent { command: vec![binary(&agent)], env, http_port, name }
    });
    let stack = SystemStack {
        node: config.node.clone(),
        node_epoch: node_epoch.to_owned(),
        generation: 1,
        working_dir: config.state_dir.to_string_lossy().into_owned(),
        env,
        broker: Some(SystemBroker {
            command: vec![embedded.nats_server.clone(), "-c".to_owned(), broker],
            port: ports.broker,
            monitor_port: ports.monitor,
        }),
        provision: vec![binary("provision")],
        agents: agents.collect(),
    };
    Ok(system(&stack)?)
}

fn write_broker_config(config: &NodeConfig, ports: &Ports) -> Result<String> {
    let dir = config.path("broker");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let path = dir.join("nats.conf");
    let text = format!(
        "# Written by razar at each start.\n\
         host: 127.0.0.1\nport: {}\nhttp: \"127.0.0.1:{}\"\nserver_name: \"razar-{}-{}\"\nmax_payload: {}\n\
         jetstream {{\n  store_dir: {}\n  sync_interval: always\n}}\n",
        ports.broker,
        ports.monitor,
        config.mesh,
        config.node,
        razar_bus_schema::PAYLOAD_BYTES_MAX,
        serde_json::to_string(&dir.to_string_lossy())?,
    );
    crate::start::write_whole(&path, text.as_bytes())?;
    Ok(path.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_meshs_broker_may_be_late() {
        assert_eq!(timer_slack(Group::System, "broker"), Some(Duration::from_millis(1)));
        assert_eq!(timer_slack(Group::System, "registry"), None);
        assert_eq!(timer_slack(Group::User, "broker"), None);
    }

    fn config(dir: &Path) -> NodeConfig {
        let lookup = |name: &str| match name {
            "RAZAR_STATE_DIR" => Some(dir.to_string_lossy().into_owned()),
            "RAZAR_EMBEDDED" => Some("1".to_owned()),
            "RAZAR_SERVER" => Some("nats://127.0.0.1:42220".to_owned()),
            "RAZAR_AGENTS" => Some("registry:2".to_owned()),
            _ => None,
        };
        NodeConfig::from_variables(lookup, Path::new("/opt")).unwrap()
    }

    #[test]
    fn ports_are_kept_and_a_stolen_one_is_replaced_when_nothing_lives() {
        let dir = tempfile::tempdir().unwrap();
        let (config, path) = (config(dir.path()), dir.path().join("ports.json"));
        let first = ports(&path, &config, true).unwrap();
        assert_eq!(first.agents.keys().collect::<Vec<_>>(), ["registry", "registry-2"]);
        assert_eq!(ports(&path, &config, true).unwrap(), first);
        let _thief = TcpListener::bind((Ipv4Addr::LOCALHOST, first.monitor)).unwrap();
        assert_eq!(ports(&path, &config, false).unwrap(), first, "while the mesh lives its ports are its own");
        assert_ne!(ports(&path, &config, true).unwrap().monitor, first.monitor);
    }

    #[test]
    fn ports_are_not_taken_from_those_of_outgoing_connections() {
        assert_eq!(first_port(4222, 32_768..=60_999), 4222, "beside the broker's, where a user finds them");
        for broker in 32_768..=60_999 {
            assert!((10_000..30_768).contains(&first_port(broker, 32_768..=60_999)), "{broker}");
        }
        assert_eq!(first_port(4222, 1024..=65_535), 4222, "nothing is left below");
    }

    #[test]
    fn the_same_ports_give_the_same_plan() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let ports = ports(&dir.path().join("ports.json"), &config, true).unwrap();
        let first = plan(&config, &ports, "e", &[]).unwrap();
        assert_eq!(first, plan(&config, &ports, "e", &[]).unwrap());
        let names: Vec<_> = first.iter().filter_map(|d| d.instance.as_ref()).map(|i| i.component.as_str()).collect();
        assert_eq!(names, ["broker", "provision", "registry", "registry-2"]);
    }
}
