//! What the loop hears from its own tasks: answers of probes, ends of preparations, measurements.

use std::collections::BTreeMap;

use razar_bus_schema::{ids::Instance, v1};

use crate::policy::{Input, upkeep::Look};

/// What the loop hears from its own tasks.
#[derive(Debug)]
pub(crate) enum News {
    /// A probe was answered.
    Probed(Box<Input>),
    /// State was cleared.
    Prepared(Instance, Option<String>),
    /// A hook ended.
    HookEnded(Box<Input>),
    /// Disk and stores were looked at.
    Looked(Box<Look>),
    /// EVENTS alone were looked for, when the first of this node's was stored.
    LookedForEvents(Box<Look>),
    /// What the processes use was measured.
    Measured(BTreeMap<Instance, v1::ResourceUsage>),
}
