//! Configuration of an agent: environment over an optional TOML file, parsed and validated once. Unknown keys are refused.
//! `OTEL_*` variables are read by [`crate::telemetry`].

use std::{net::SocketAddr, path::PathBuf};

use razar_bus_schema::{ids::is_name, shard::ShardCount, subject::MESH_DEFAULT};
use serde::{Deserialize, de::DeserializeOwned};

/// Where the broker is when nothing says otherwise.
pub const SERVER_DEFAULT: &str = "nats://127.0.0.1:4222";
/// Health and metrics listen on a port of the system's choice, on this machine alone, when nothing says otherwise.
pub const HTTP_DEFAULT: &str = "127.0.0.1:0";
/// What is logged when nothing says otherwise.
pub const LOG_DEFAULT: &str = "info,async_nats=warn";

/// What every agent is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// Name of the mesh (`RAZAR_MESH`).
    pub mesh: String,
    /// Addresses of the broker (`RAZAR_SERVER`, comma-separated).
    pub servers: Vec<String>,
    /// NATS credentials file (`RAZAR_CREDENTIALS`).
    pub credentials: Option<PathBuf>,
    /// Address of `/healthz`, `/readyz` and `/metrics` (`RAZAR_HTTP`).
    pub http: SocketAddr,
    /// Id of this replica, unique among its kind (`RAZAR_REPLICA`); made up when absent.
    pub replica: String,
    /// Into how many shards the decisions of agents are divided that divide them (`RAZAR_SHARDS`): the same for all replicas.
    pub shards: ShardCount,
    /// Filter of the logs (`RAZAR_LOG`), as tracing's `EnvFilter` reads it.
    pub log: String,
    /// Logs as JSON (`RAZAR_LOG_FORMAT=json`), else compact text.
    pub log_json: bool,
}

/// For agents without settings of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// Why the configuration is unusable; the process exits 64.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value is wrong.
    #[error("{name}: {why}")]
    Value {
        /// Variable or key.
        name: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The file cannot be read.
    #[error("configuration file {path}: {why}")]
    File {
        /// The file.
        path: String,
        /// Why, with line and column where known.
        why: String,
    },
}

/// The file: keys as in [`AgentConfig`], and a table with the agent's own settings.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    mesh: Option<String>,
    server: Option<String>,
    credentials: Option<PathBuf>,
    http: Option<String>,
    replica: Option<String>,
    shards: Option<i64>,
    log: Option<String>,
    log_format: Option<String>,
    settings: Option<toml::Table>,
}

/// Reads the configuration of agent `kind` from the environment, and from the TOML file that `RAZAR_CONFIG` names. The agent's own
/// settings are the file's table `settings`; without one they are the default.
///
/// # Errors
/// When a value is wrong, a key unknown, or the file unreadable.
pub fn load<T: DeserializeOwned + Default>(kind: &str) -> Result<(AgentConfig, T), ConfigError> {
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let file = match env("RAZAR_CONFIG") {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(&path).map_err(|e| ConfigError::File { path: path.clone(), why: e.to_string() })?;
            Some((path, text))
        }
    };
    read(kind, env, file.as_ref().map(|(path, text)| (path.as_str(), text.as_str())))
}

/// As [`load`], from given sources.
///
/// # Errors
/// As [`load`].
pub fn read<T: DeserializeOwned + Default>(
    kind: &str,
    env: impl Fn(&str) -> Option<String>,
    file: Option<(&str, &str)>,
) -> Result<(AgentConfig, T), ConfigError> {
    let (path, parsed) = match file {
        None => ("", None),
        Some((path, text)) => {
            let parsed = toml::from_str::<File>(text).map_err(|e| ConfigError::File { path: path.to_owned(), why: e.to_string() })?;
            (path, Some(parsed))
        }
    };
    let settings = match parsed.as_ref().and_then(|f| f.settings.clone()) {
        None => T::default(),
        Some(table) => toml::Value::Table(table)
            .try_into()
            .map_err(|e: toml::de::Error| ConfigError::File { path: path.to_owned(), why: e.to_string() })?,
    };
    let of_file = |pick: fn(&File) -> Option<String>| parsed.as_ref().and_then(pick);
    let value = |name: &str, pick: fn(&File) -> Option<String>| env(name).or_else(|| of_file(pick));
    let bad = |name: &str, why: String| ConfigError::Value { name: name.to_owned(), why };

    let mesh = value("RAZAR_MESH", |f| f.mesh.clone()).unwrap_or_else(|| MESH_DEFAULT.to_owned());
    if !is_name(&mesh) {
        return Err(bad("RAZAR_MESH", format!("`{mesh}` is no name: a letter or digit, then at most 62 of a-z, 0-9, `-`, `_`")));
    }
    let server = value("RAZAR_SERVER", |f| f.server.clone()).unwrap_or_else(|| SERVER_DEFAULT.to_owned());
    let servers: Vec<String> = server.split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect();
    if servers.is_empty() {
        return Err(bad("RAZAR_SERVER", "no address".to_owned()));
    }
    let http = value("RAZAR_HTTP", |f| f.http.clone()).unwrap_or_else(|| HTTP_DEFAULT.to_owned());
    let http = http.parse().map_err(|_| bad("RAZAR_HTTP", format!("`{http}` is no address: 127.0.0.1:9100")))?;
    let replica = value("RAZAR_REPLICA", |f| f.replica.clone()).unwrap_or_else(|| generated(kind));
    if !is_name(&replica) {
        return Err(bad("RAZAR_REPLICA", format!("`{replica}` is no name: a letter or digit, then at most 62 of a-z, 0-9, `-`, `_`")));
    }
    let shards = match value("RAZAR_SHARDS", |f| f.shards.map(|n| n.to_string())) {
        None => ShardCount::ONE,
        Some(text) => text.parse().map_err(|e: razar_bus_schema::shard::ShardError| bad("RAZAR_SHARDS", e.to_string()))?,
    };
    let log = value("RAZAR_LOG", |f| f.log.clone()).unwrap_or_else(|| LOG_DEFAULT.to_owned());
    if let Err(e) = tracing_subscriber::EnvFilter::builder().parse(&log) {
        return Err(bad("RAZAR_LOG", format!("`{log}` is no filter: {e}")));
    }
    let log_json = match value("RAZAR_LOG_FORMAT", |f| f.log_format.clone()).as_deref() {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => return Err(bad("RAZAR_LOG_FORMAT", format!("`{other}` is neither `text` nor `json`"))),
    };
    let credentials = env("RAZAR_CREDENTIALS").map(PathBuf::from).or_else(|| parsed.as_ref().and_then(|f| f.credentials.clone()));
    Ok((AgentConfig { mesh, servers, credentials, http, replica, shards, log, log_json }, settings))
}

/// `orchestrator-1f3c9a02`: unique for all practical purposes.
fn generated(kind: &str) -> String {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one((std::process::id(), std::time::SystemTime::now()));
    format!("{kind}-{:08x}", random & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Own {
        shards: u32,
    }

    fn with(pairs: &[(&str, &str)], file: Option<&str>) -> Result<(AgentConfig, Own), ConfigError> {
        let env = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        read("registry", env, file.map(|text| ("agent.toml", text)))
    }

    #[test]
    fn nothing_at_all_is_a_configuration() {
        let (config, own) = with(&[], None).unwrap();
        assert_eq!((config.mesh.as_str(), config.servers, own), ("razar", vec![SERVER_DEFAULT.to_owned()], Own::default()));
        assert!(config.replica.starts_with("registry-"));
        assert_ne!(config.replica, with(&[], None).unwrap().0.replica, "replicas are told apart");
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let file = "mesh = \"of-file\"\nserver = \"a:1, b:2\"\nshards = 2\n[settings]\nshards = 4\n";
        let (config, own) = with(&[("RAZAR_MESH", "of-env"), ("RAZAR_LOG_FORMAT", "json")], Some(file)).unwrap();
        assert_eq!(config.shards.get(), 2);
        assert_eq!((config.mesh.as_str(), config.servers), ("of-env", vec!["a:1".to_owned(), "b:2".to_owned()]));
        assert_eq!((config.log_json, own), (true, Own { shards: 4 }));
    }

    #[test]
    fn wrong_values_are_named() {
        let cases = [
            ("RAZAR_MESH", "No Name"),
            ("RAZAR_SERVER", " , "),
            ("RAZAR_HTTP", "localhost"),
            ("RAZAR_REPLICA", "a.b"),
            ("RAZAR_SHARDS", "0"),
            ("RAZAR_SHARDS", "17"),
            ("RAZAR_SHARDS", "some"),
            ("RAZAR_LOG", "bus=loudly"),
            ("RAZAR_LOG_FORMAT", "yaml"),
        ];
        for (name, value) in cases {
            let error = with(&[(name, value)], None).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_with_their_place() {
        for (file, key) in [("mush = \"x\"\n", "mush"), ("[settings]\nshard = 1\n", "shard"), ("mesh = 3\n", "mesh")] {
            let error = with(&[], Some(file)).unwrap_err().to_string();
            assert!(error.contains("agent.toml") && error.contains(key), "{error}");
        }
    }
}
