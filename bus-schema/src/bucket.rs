//! Keys of the buckets as functions and types. Each prefix of `intents` has one writer; nobody else may write there.

use crate::ids::{Instance, is_name};

/// A key of the bucket `intents`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IntentKey {
    /// `desired.<component>.<ordinal>`, written by the orchestrator.
    Desired(Instance),
    /// `recovery.<component>.<ordinal>`, written by recovery.
    Recovery(Instance),
    /// `quarantine.<component>`, written by quarantine, by hand.
    QuarantineComponent(String),
    /// `quarantine.<component>.<ordinal>`, written by quarantine, by the ladder.
    QuarantineInstance(Instance),
    /// `load.<component>`, written by lazy-loader.
    Load(String),
    /// `vram.<node>.<device>`, written by gpu.
    Vram {
        /// Node.
        node: String,
        /// Device.
        device: String,
    },
    /// `escalation.<node>`, written by recovery.
    Escalation(String),
    /// `mark.<agent>`: that agent has written all it knew into a new bucket epoch.
    Mark(String),
}

impl std::fmt::Display for IntentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Desired(i) => write!(f, "desired.{}", i.key()),
            Self::Recovery(i) => write!(f, "recovery.{}", i.key()),
            Self::QuarantineComponent(c) => write!(f, "quarantine.{c}"),
            Self::QuarantineInstance(i) => write!(f, "quarantine.{}", i.key()),
            Self::Load(c) => write!(f, "load.{c}"),
            Self::Vram { node, device } => write!(f, "vram.{node}.{device}"),
            Self::Escalation(node) => write!(f, "escalation.{node}"),
            Self::Mark(agent) => write!(f, "mark.{agent}"),
        }
    }
}

impl IntentKey {
    /// Reads a key; `None` for one of a newer version or of nobody.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        let mut tokens = key.split('.');
        let (prefix, name, third, rest) = (tokens.next()?, tokens.next()?, tokens.next(), tokens.next());
        if !is_name(name) || rest.is_some() {
            return None;
        }
        let instance = || Some(Instance::new(name, third?.parse().ok()?));
        match (prefix, third) {
            ("desired", _) => instance().map(Self::Desired),
            ("recovery", _) => instance().map(Self::Recovery),
            ("quarantine", None) => Some(Self::QuarantineComponent(name.to_owned())),
            ("quarantine", Some(_)) => instance().map(Self::QuarantineInstance),
            ("load", None) => Some(Self::Load(name.to_owned())),
            ("vram", Some(device)) => Some(Self::Vram { node: name.to_owned(), device: device.to_owned() }),
            ("escalation", None) => Some(Self::Escalation(name.to_owned())),
            ("mark", None) => Some(Self::Mark(name.to_owned())),
            _ => None,
        }
    }
}

/// Key in `leases` of a shard of an agent whose decisions are not divided; of one whose are: [`crate::shard::ShardCount::lease_key`].
#[must_use]
pub fn lease_key(agent: &str, shard: u32) -> String {
    crate::shard::ShardCount::ONE.lease_key(agent, shard)
}

/// Key in `missions` of the plan in force.
pub const PLAN_KEY: &str = "plan";

/// Name in the object store `stacks` of the newest snapshot of registry's projection, an `Observed`.
pub const REGISTRY_SNAPSHOT: &str = "snapshot-registry";

/// Key in `missions` of a component's history over boots.
#[must_use]
pub fn history_key(component: &str) -> String {
    format!("history.{component}")
}

/// Key in `missions` of a brief; `slot` turns round at [`BRIEFS_KEPT`].
#[must_use]
pub fn brief_key(slot: u64) -> String {
    format!("brief.{}", slot % BRIEFS_KEPT)
}

/// Newest mission briefs that are kept.
pub const BRIEFS_KEPT: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip_and_foreign_ones_are_nobodys() {
        let keys = [
            "desired.api.0",
            "recovery.api.3",
            "quarantine.api",
            "quarantine.api.1",
            "load.vision",
            "vram.a.gpu0",
            "escalation.a",
            "mark.quarantine",
        ];
        for key in keys {
            assert_eq!(IntentKey::parse(key).expect(key).to_string(), key);
        }
        for bad in ["", "desired", "desired.api", "desired.api.x", "desired.api.0.1", "load.a.b", "tomorrow.api.0", "desired.API.0"] {
            assert_eq!(IntentKey::parse(bad), None, "{bad}");
        }
    }
}
