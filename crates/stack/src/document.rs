//! The stack as it is stored under its content hash: self-contained, all profiles, variables and paths resolved, so that the
//! orchestrator can switch profiles without the user's file. Bytes are canonical: the same stack has the same revision.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use prost::Message as _;
use razar_bus_schema::{ids::sha256_hex, json, time, v1};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the stored form; a higher one is refused.
pub const DOCUMENT_VERSION: u32 = 1;

/// Largest stored stack, in bytes: a thousand components with room for long commands.
pub const DOCUMENT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Why bytes are no stored stack.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Larger than [`DOCUMENT_BYTES_MAX`].
    #[error("a stored stack of {0} bytes; at most {DOCUMENT_BYTES_MAX}")]
    TooLarge(usize),
    /// Written by a newer version.
    #[error("a stored stack of version {0}; this release reads {DOCUMENT_VERSION}")]
    Version(u32),
    /// Not the JSON of a stack.
    #[error("not a stored stack: {0}")]
    Malformed(String),
}

/// Why a profile cannot be resolved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ResolveError {
    /// No such profile.
    #[error("no profile `{name}`{}", .nearest.as_ref().map(|n| format!("; nearest: {n}")).unwrap_or_default())]
    UnknownProfile {
        /// What was asked for.
        name: String,
        /// What may be meant.
        nearest: Option<String>,
    },
    /// Two components of the whole stack claim the same port, so that only its profiles can be run.
    #[error("{first} and {second} both claim port {port}: choose a profile of {}", .profiles.join(", "))]
    PortTwice {
        /// The port.
        port: u32,
        /// One component.
        first: String,
        /// The other.
        second: String,
        /// Profiles that the stack has.
        profiles: Vec<String>,
    },
}

/// A functional layer with its figures.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChakraSpec {
    /// Share of its components that must be ready, 0 to 1.
    pub health_threshold: f64,
    /// Program that mends the layer, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heal_hook: Option<HookSpec>,
}

/// A program that a node runs once and waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookSpec {
    /// Program and arguments; a program with a slash is absolute.
    pub command: Vec<String>,
    /// Time until it is ended, in milliseconds.
    pub timeout_millis: u64,
    /// Its environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory, absolute.
    #[serde(default)]
    pub working_dir: String,
}

impl HookSpec {
    /// As it travels in a record.
    #[must_use]
    pub fn to_hook(&self) -> v1::Hook {
        let env = self.env.iter().map(|(name, value)| v1::EnvVar { name: name.clone(), value: value.clone() });
        v1::Hook {
            command: self.command.clone(),
            working_dir: self.working_dir.clone(),
            env: env.collect(),
            timeout: Some(time::duration(Duration::from_millis(self.timeout_millis))),
        }
    }
}

/// An entry of the error registry as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownErrorSpec {
    /// Name.
    pub name: String,
    /// Regular expression.
    pub pattern: String,
    /// `dependency`, `logic` or `external`.
    pub issue_type: String,
    /// What helps.
    pub fix: String,
    /// Rung to begin with; empty: the component's first.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rung: String,
}

impl KnownErrorSpec {
    /// As it travels in a record.
    #[must_use]
    pub fn to_known(&self) -> v1::KnownError {
        let Self { name, pattern, issue_type, fix, rung } = self.clone();
        v1::KnownError { name, pattern, issue_type, fix, rung }
    }
}

/// Limits of all components of a profile together; 0: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Resident memory in bytes.
    pub memory_bytes: u64,
    /// Share of all cores in thousandths.
    pub cpu_permille: u32,
    /// Threads.
    pub threads: u32,
}

/// A profile with what it extends folded in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileSpec {
    /// Components, in order of name.
    pub components: BTreeSet<String>,
    /// Components loaded at boot, in order of name.
    #[serde(default)]
    pub autoload: BTreeSet<String>,
    /// Limits of all together.
    #[serde(default)]
    pub limits: Limits,
    /// Start slots of a node.
    pub parallel_starts: u32,
    /// Time after which a boot is called incomplete, in milliseconds.
    pub timeout_millis: u64,
}

/// A stack as it is stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StackDocument {
    /// Name of the stack.
    pub name: String,
    /// What it is for; may be empty.
    pub description: String,
    /// Boots in a row that a component may end failed.
    pub failed_boots: u32,
    /// Chakras by name, the seven included.
    pub chakras: BTreeMap<String, ChakraSpec>,
    /// Components by name.
    pub components: BTreeMap<String, v1::ComponentSpec>,
    /// The whole stack as a profile.
    pub whole: ProfileSpec,
    /// Profiles by name.
    pub profiles: BTreeMap<String, ProfileSpec>,
    /// Program that is run when people must know of something.
    pub escalation_hook: Option<HookSpec>,
    /// The stack's own entries of the error registry, in order.
    pub known_errors: Vec<KnownErrorSpec>,
}

/// The stored form; specifications are protobuf's JSON, as on the bus.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    name: String,
    description: String,
    failed_boots: u32,
    chakras: BTreeMap<String, ChakraSpec>,
    components: BTreeMap<String, Value>,
    whole: ProfileSpec,
    profiles: BTreeMap<String, ProfileSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    escalation_hook: Option<HookSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    known_errors: Vec<KnownErrorSpec>,
}

/// One profile of a stack, ready to be planned.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resolved {
    /// Name of the stack.
    pub name: String,
    /// Profile; empty: every component.
    pub profile: String,
    /// Revision of the stack: [`StackDocument::revision`].
    pub revision: String,
    /// Specifications in order of name.
    pub components: Vec<v1::ComponentSpec>,
    /// Start slots of a node.
    pub parallel_starts: u32,
    /// Time after which the boot is called incomplete.
    pub timeout: Duration,
    /// Components loaded at boot.
    pub autoload: Vec<String>,
    /// Limits of all together.
    pub limits: Limits,
    /// Chakras by name, the seven included.
    pub chakras: BTreeMap<String, ChakraSpec>,
    /// Boots in a row that a component may end failed.
    pub failed_boots: u32,
    /// Program that is run when people must know of something.
    pub escalation_hook: Option<HookSpec>,
    /// The stack's own entries of the error registry, in order.
    pub known_errors: Vec<KnownErrorSpec>,
}

impl StackDocument {
    /// Canonical bytes: sorted JSON, the same for the same stack.
    ///
    /// # Errors
    /// When larger than [`DOCUMENT_BYTES_MAX`], or the build's descriptors are stale.
    pub fn to_bytes(&self) -> Result<Vec<u8>, DocumentError> {
        let malformed = |why: String| DocumentError::Malformed(why);
        let mut components = BTreeMap::new();
        for (name, spec) in &self.components {
            let text = json::to_json(spec).map_err(|e| malformed(e.to_string()))?;
            let value = serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))?;
            components.insert(name.clone(), sorted(value));
        }
        let stored = Stored {
            version: DOCUMENT_VERSION,
            name: self.name.clone(),
            description: self.description.clone(),
            failed_boots: self.failed_boots,
            chakras: self.chakras.clone(),
            components,
            whole: self.whole.clone(),
            profiles: self.profiles.clone(),
            escalation_hook: self.escalation_hook.clone(),
            known_errors: self.known_errors.clone(),
        };
        let bytes = serde_json::to_vec(&stored).map_err(|e| malformed(e.to_string()))?;
        if bytes.len() > DOCUMENT_BYTES_MAX { Err(DocumentError::TooLarge(bytes.len())) } else { Ok(bytes) }
    }

    /// Reads what [`StackDocument::to_bytes`] wrote.
    ///
    /// # Errors
    /// When too large, of a newer version, or not a stack.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::TooLarge(bytes.len()));
        }
        let malformed = |why: &dyn std::fmt::Display| DocumentError::Malformed(why.to_string());
        let head: Head = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
        if head.version != DOCUMENT_VERSION {
            return Err(DocumentError::Version(head.version));
        }
        let stored: Stored = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
        let mut components = BTreeMap::new();
        for (name, value) in stored.components {
            let spec: v1::ComponentSpec = json::from_json(&value.to_string()).map_err(|e| malformed(&e))?;
            if spec.name != name {
                return Err(malformed(&format!("component `{name}` calls itself `{}`", spec.name)));
            }
            components.insert(name, spec);
        }
        let profiles = stored.profiles.values().chain([&stored.whole]);
        if let Some(stranger) = profiles.flat_map(|p| &p.components).find(|c| !components.contains_key(*c)) {
            return Err(malformed(&format!("a profile names `{stranger}`, which is no component")));
        }
        Ok(Self {
            name: stored.name,
            description: stored.description,
            failed_boots: stored.failed_boots,
            chakras: stored.chakras,
            components,
            whole: stored.whole,
            profiles: stored.profiles,
            escalation_hook: stored.escalation_hook,
            known_errors: stored.known_errors,
        })
    }

    /// Content hash: lower-case hex SHA-256 of [`StackDocument::to_bytes`].
    ///
    /// # Errors
    /// As [`StackDocument::to_bytes`].
    pub fn revision(&self) -> Result<String, DocumentError> {
        Ok(sha256_hex(&self.to_bytes()?))
    }

    /// Names of the profiles, in order.
    #[must_use]
    pub fn profile_names(&self) -> Vec<&str> {
        self.profiles.keys().map(String::as_str).collect()
    }

    /// One profile, or with an empty name the whole stack.
    ///
    /// # Errors
    /// When there is no such profile, or the whole stack claims a port twice.
    pub fn resolve(&self, profile: &str) -> Result<Resolved, ResolveError> {
        let spec = if profile.is_empty() { Some(&self.whole) } else { self.profiles.get(profile) };
        let spec = spec.ok_or_else(|| ResolveError::UnknownProfile {
            name: profile.to_owned(),
            nearest: crate::names::nearest(profile, self.profiles.keys().map(String::as_str)).map(str::to_owned),
        })?;
        let components: Vec<v1::ComponentSpec> = spec.components.iter().filter_map(|name| self.components.get(name)).cloned().collect();
        self.ports_are_free(&components)?;
        Ok(Resolved {
            name: self.name.clone(),
            profile: profile.to_owned(),
            // Only a document that could not be stored has none, and nobody plans such a one.
            revision: self.revision().unwrap_or_default(),
            components,
            parallel_starts: spec.parallel_starts,
            timeout: Duration::from_millis(spec.timeout_millis),
            autoload: spec.autoload.iter().cloned().collect(),
            limits: spec.limits,
            chakras: self.chakras.clone(),
            failed_boots: self.failed_boots,
            escalation_hook: self.escalation_hook.clone(),
            known_errors: self.known_errors.clone(),
        })
    }

    fn ports_are_free(&self, components: &[v1::ComponentSpec]) -> Result<(), ResolveError> {
        let mut holders: BTreeMap<u32, &str> = BTreeMap::new();
        for spec in components {
            for port in &spec.ports {
                if let Some(first) = holders.insert(*port, &spec.name) {
                    return Err(ResolveError::PortTwice {
                        port: *port,
                        first: first.to_owned(),
                        second: spec.name.clone(),
                        profiles: self.profiles.keys().cloned().collect(),
                    });
                }
            }
        }
        Ok(())
    }
}

impl Resolved {
    /// The specification of `component`.
    #[must_use]
    pub fn component(&self, component: &str) -> Option<&v1::ComponentSpec> {
        self.components.iter().find(|spec| spec.name == component)
    }

    /// The hook of the chakra of `component`, if that has one.
    #[must_use]
    pub fn chakra_hook(&self, component: &str) -> Option<v1::Hook> {
        let chakra = &self.component(component)?.chakra;
        Some(self.chakras.get(chakra)?.heal_hook.as_ref()?.to_hook())
    }

    /// Share of a chakra's instances that must be well; 0 for one that the stack does not know.
    #[must_use]
    pub fn threshold(&self, chakra: &str) -> f64 {
        self.chakras.get(chakra).map_or(0.0, |chakra| chakra.health_threshold)
    }
}

/// Lower-case hex SHA-256 of what a running instance is made of: one-shots are checkpointed by it, updates found by it.
/// Order, number and placement (`priority`, `replicas`, `node_labels`) do not count: a second replica restarts no first one.
#[must_use]
pub fn spec_hash(spec: &v1::ComponentSpec) -> String {
    let instance = v1::ComponentSpec { priority: 0, replicas: 0, node_labels: Vec::new(), ..spec.clone() };
    sha256_hex(&instance.encode_to_vec())
}

/// The value with the keys of its objects in order, whatever map serde_json was built with.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let in_order: BTreeMap<String, Value> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(in_order.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}
