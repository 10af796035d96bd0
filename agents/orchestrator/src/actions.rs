//! Carries out what was decided: one task for each action that waits, one [`Outcome`] from each. Decides nothing.

use std::sync::Arc;

use prost::Message as _;
use razar_bus::{Bus, BusError};
use razar_bus_schema::{bucket::IntentKey, ids::Instance, stream::Store, v1};
use razar_stack::{DOCUMENT_BYTES_MAX, ResolveError, StackDocument};

use crate::{
    blueprint::{Blueprint, BlueprintError},
    policy::{LoadError, MissionsValue, Outcome, WriteError},
};

/// Reads a stack revision and makes its blueprint.
pub(crate) async fn load(bus: Bus, revision: String, profile: String) -> Outcome {
    let read = bus.objects(Store::Stacks).get(&revision, DOCUMENT_BYTES_MAX).await;
    let result = match read {
        Ok(Some(bytes)) => blueprint(&bytes, &revision, &profile).map(Arc::new),
        Ok(None) => Err(refused("unknown_revision", format!("no stack revision {revision} is stored"))),
        Err(error @ BusError::TooLarge { .. }) => Err(refused("malformed", error.to_string())),
        Err(error) => {
            tracing::warn!(%error, revision, "the stack revision cannot be read yet");
            Err(LoadError::Unavailable(error.to_string()))
        }
    };
    Outcome::Loaded { revision, profile, result }
}

fn refused(code: &str, text: String) -> LoadError {
    LoadError::Refused(code.to_owned(), text, Vec::new())
}

fn blueprint(bytes: &[u8], revision: &str, profile: &str) -> Result<Blueprint, LoadError> {
    let document = StackDocument::from_bytes(bytes).map_err(|e| refused("malformed", e.to_string()))?;
    let hash = document.revision().map_err(|e| refused("malformed", e.to_string()))?;
    if hash != revision {
        return Err(refused("malformed", format!("what is stored as {revision} has the hash {hash}")));
    }
    if razar_stack::names::RESERVED_STACKS.contains(&document.name.as_str()) {
        return Err(refused("reserved", format!("{} is no name for a stack", document.name)));
    }
    if let Some(name) = document.components.keys().find(|name| razar_stack::names::is_reserved(name)) {
        return Err(refused("reserved", format!("{name} is the name of a part of the mesh")));
    }
    Blueprint::of(&document, revision, profile).map_err(|e| match e {
        BlueprintError::Resolve(ResolveError::UnknownProfile { ref nearest, .. }) => {
            LoadError::Refused("unknown_profile".to_owned(), e.to_string(), nearest.iter().cloned().collect())
        }
        BlueprintError::Resolve(_) | BlueprintError::Plan(_) => refused("malformed", e.to_string()),
    })
}

/// Writes `desired` records as one batch.
pub(crate) async fn write_desired(bus: Bus, bucket: u64, writes: Vec<(Instance, v1::Intent, u64)>) -> Outcome {
    let batch: Vec<_> = writes.iter().map(|(i, intent, expected)| (IntentKey::Desired(i.clone()), intent.clone(), *expected)).collect();
    let result = bus.put_intents(&batch).await.map_err(|e| write_error(&e, "intents"));
    Outcome::WroteDesired { writes, bucket, result }
}

/// Writes into `missions` as one batch.
pub(crate) async fn write_missions(bus: Bus, bucket: u64, writes: Vec<(MissionsValue, u64)>) -> Outcome {
    let batch = writes.iter().map(|(value, expected)| (value.key(), encode(value).into(), *expected)).collect();
    let result = bus.bucket(Store::Missions).put_batch(batch).await.map_err(|e| write_error(&e, "missions"));
    Outcome::WroteMissions { writes, bucket, result }
}

fn write_error(error: &BusError, bucket: &str) -> WriteError {
    tracing::warn!(%error, bucket, "a decision was not written");
    if error.outcome_unknown() { WriteError::Unknown } else { WriteError::Conflict }
}

fn encode(value: &MissionsValue) -> Vec<u8> {
    match value {
        MissionsValue::Plan(plan) => plan.encode_to_vec(),
        MissionsValue::History(history) => history.encode_to_vec(),
        MissionsValue::Brief(_, brief) => brief.encode_to_vec(),
    }
}

/// What a key of `missions` holds; `None`: nothing that is known here.
pub(crate) fn decode(key: &str, bytes: &[u8]) -> Option<MissionsValue> {
    match key.split_once('.') {
        None if key == razar_bus_schema::bucket::PLAN_KEY => v1::Mission::decode(bytes).ok().map(MissionsValue::Plan),
        Some(("history", _)) => v1::BootHistory::decode(bytes).ok().map(MissionsValue::History),
        Some(("brief", slot)) => Some(MissionsValue::Brief(slot.parse().ok()?, v1::MissionBrief::decode(bytes).ok()?)),
        _ => None,
    }
}
