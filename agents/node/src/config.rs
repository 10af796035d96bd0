//! What a node is told at its start, from the environment, parsed and checked once.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use razar_bus_schema::{ids::is_name, shard::ShardCount};

/// Configuration of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Name of the mesh. `RAZAR_MESH`, default `razar`.
    pub mesh: String,
    /// Name of this node. `RAZAR_NODE`, default `a`.
    pub node: String,
    /// Addresses of the broker. `RAZAR_SERVER`, comma separated, default `nats://127.0.0.1:4222`.
    pub servers: Vec<String>,
    /// Where everything durable lies. `RAZAR_STATE_DIR`, required.
    pub state_dir: PathBuf,
    /// Address of `/healthz`, `/readyz` and `/metrics`. `RAZAR_HTTP`; default: a port of loopback kept in the state directory.
    pub http: Option<SocketAddr>,
    /// The node runs broker and agents itself. `RAZAR_EMBEDDED=1`.
    pub embedded: Option<Embedded>,
    /// Labels for placement. `RAZAR_LABELS=gpu=true,zone=b`.
    pub labels: BTreeMap<String, String>,
}

/// What an embedded mesh needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedded {
    /// Where the agents' binaries lie. `RAZAR_BIN_DIR`, default: beside this one.
    pub bin_dir: PathBuf,
    /// The broker's binary. `RAZAR_NATS_SERVER`, default `nats-server` on `PATH`.
    pub nats_server: String,
    /// Agents and their number of replicas. `RAZAR_AGENTS=registry:2,orchestrator:1`, default one of each.
    pub agents: Vec<(String, u32)>,
    /// Shards into which they divide their decisions. `RAZAR_SHARDS`, default 1.
    pub shards: ShardCount,
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A variable has no usable value.
    #[error("{name}: `{value}` {why}")]
    Bad {
        /// Variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A variable is needed and missing.
    #[error("{0} is not set")]
    Missing(&'static str),
}

/// Agents of an embedded mesh, one replica each, when none are named.
const AGENTS: [&str; 5] = ["registry", "orchestrator", "recovery", "quarantine", "watchdog"];
/// Replicas of one agent on one node; more serve nothing there.
const REPLICAS_MAX: u32 = 16;

impl NodeConfig {
    /// Reads the configuration from variables.
    ///
    /// # Errors
    /// See [`ConfigError`]; the process ends with 64.
    pub fn from_variables(lookup: impl Fn(&str) -> Option<String>, exe_dir: &Path) -> Result<Self, ConfigError> {
        let get = |name: &str| lookup(name).filter(|v| !v.is_empty());
        let named = |name: &'static str, default: &str| {
            let value = get(name).unwrap_or_else(|| default.to_owned());
            if is_name(&value) { Ok(value) } else { Err(ConfigError::Bad { name, value, why: "is no name (a-z, 0-9, - and _)" }) }
        };
        let http = get("RAZAR_HTTP").map(|value| {
            value.parse().map_err(|_| ConfigError::Bad { name: "RAZAR_HTTP", value, why: "is no address, as 127.0.0.1:7070" })
        });
        let embedded = match get("RAZAR_EMBEDDED").as_deref() {
            None | Some("0") => None,
            Some("1") => Some(Embedded {
                bin_dir: get("RAZAR_BIN_DIR").map_or_else(|| exe_dir.to_owned(), PathBuf::from),
                nats_server: get("RAZAR_NATS_SERVER").unwrap_or_else(|| "nats-server".to_owned()),
                agents: agents(get("RAZAR_AGENTS"))?,
                shards: shards(get("RAZAR_SHARDS"))?,
            }),
            Some(other) => return Err(ConfigError::Bad { name: "RAZAR_EMBEDDED", value: other.to_owned(), why: "is neither 0 nor 1" }),
        };
        let servers = get("RAZAR_SERVER").unwrap_or_else(|| "nats://127.0.0.1:4222".to_owned());
        Ok(Self {
            mesh: named("RAZAR_MESH", razar_bus_schema::subject::MESH_DEFAULT)?,
            node: named("RAZAR_NODE", "a")?,
            servers: servers.split(',').map(|s| s.trim().to_owned()).collect(),
            state_dir: get("RAZAR_STATE_DIR").map(PathBuf::from).ok_or(ConfigError::Missing("RAZAR_STATE_DIR"))?,
            http: http.transpose()?,
            embedded,
            labels: labels(get("RAZAR_LABELS"))?,
        })
    }

    /// Port of the first broker address; 4222 when it names none.
    #[must_use]
    pub fn broker_port(&self) -> u16 {
        let port = self.servers.first().and_then(|s| s.rsplit(':').next()).and_then(|p| p.trim_end_matches('/').parse().ok());
        port.unwrap_or(4222)
    }

    /// A path below the state directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.state_dir.join(name)
    }
}

fn agents(value: Option<String>) -> Result<Vec<(String, u32)>, ConfigError> {
    let Some(value) = value else { return Ok(AGENTS.iter().map(|a| ((*a).to_owned(), 1)).collect()) };
    let parse = |part: &str| {
        let (name, count) = part.split_once(':').unwrap_or((part, "1"));
        let count = count.parse().ok().filter(|n| (1..=REPLICAS_MAX).contains(n))?;
        AGENTS.contains(&name).then(|| (name.to_owned(), count))
    };
    let bad = || ConfigError::Bad { name: "RAZAR_AGENTS", value: value.clone(), why: "is no list as registry:2,orchestrator:1" };
    value.split(',').map(|part| parse(part.trim()).ok_or_else(bad)).collect()
}

fn shards(value: Option<String>) -> Result<ShardCount, ConfigError> {
    let Some(value) = value else { return Ok(ShardCount::ONE) };
    value.parse().map_err(|_| ConfigError::Bad { name: "RAZAR_SHARDS", value, why: "is no number of shards: 1 to 16" })
}

fn labels(value: Option<String>) -> Result<BTreeMap<String, String>, ConfigError> {
    let Some(value) = value else { return Ok(BTreeMap::new()) };
    let pair = |part: &str| part.split_once('=').map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()));
    let bad = || ConfigError::Bad { name: "RAZAR_LABELS", value: value.clone(), why: "is no list as gpu=true,zone=b" };
    value.split(',').map(|part| pair(part).ok_or_else(bad)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<NodeConfig, ConfigError> {
        let lookup = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        NodeConfig::from_variables(lookup, Path::new("/opt/razar"))
    }

    #[test]
    fn a_state_directory_is_enough() {
        let config = read(&[("RAZAR_STATE_DIR", "/tmp/x"), ("RAZAR_EMBEDDED", "1")]).unwrap();
        assert_eq!((config.mesh.as_str(), config.node.as_str(), config.broker_port()), ("razar", "a", 4222));
        assert_eq!(config.embedded.unwrap().bin_dir, Path::new("/opt/razar"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bad =
            [("RAZAR_MESH", "A.B"), ("RAZAR_NODE", "a b"), ("RAZAR_HTTP", "here"), ("RAZAR_EMBEDDED", "yes"), ("RAZAR_LABELS", "gpu")];
        for (name, value) in bad {
            let error = read(&[("RAZAR_STATE_DIR", "/tmp/x"), (name, value)]).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{name}: `{value}`")), "{error}");
        }
        assert_eq!(read(&[]).unwrap_err(), ConfigError::Missing("RAZAR_STATE_DIR"));
        let agents = read(&[("RAZAR_STATE_DIR", "/tmp/x"), ("RAZAR_EMBEDDED", "1"), ("RAZAR_AGENTS", "oracle:1")]);
        assert!(agents.unwrap_err().to_string().contains("registry:2"));
        let shards = |n| read(&[("RAZAR_STATE_DIR", "/tmp/x"), ("RAZAR_EMBEDDED", "1"), ("RAZAR_SHARDS", n)]);
        assert_eq!(shards("4").unwrap().embedded.unwrap().shards.get(), 4);
        for n in ["0", "17", "many"] {
            assert_eq!(shards(n).unwrap_err().to_string(), format!("RAZAR_SHARDS: `{n}` is no number of shards: 1 to 16"));
        }
    }
}
