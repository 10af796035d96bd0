//! Carries out what was decided: one task for each action that waits, one [`Outcome`] from each. Decides nothing.

use std::{collections::BTreeSet, time::Duration};

use razar_bus::{Bus, BusError};
use razar_bus_schema::{bucket::IntentKey, ids::Instance, v1};

use crate::policy::{Outcome, Write, WriteError};

/// A node answers from memory.
const ASK_LIMIT: Duration = Duration::from_secs(4);

/// Asks each of these nodes what it holds; none is believed unless all say so.
pub(crate) async fn ask(bus: Bus, instance: Instance, nodes: BTreeSet<String>) -> Outcome {
    let bus = &bus;
    let asked = nodes.iter().map(|node| async move {
        let subject = bus.subjects().node(node, "inventory");
        let reply: Result<v1::InventoryReply, BusError> = bus.ask(&subject, &v1::InventoryRequest {}, ASK_LIMIT).await;
        reply.ok()?.inventory
    });
    let inventories = futures::future::join_all(asked).await.into_iter().collect();
    Outcome::Asked { instance, inventories }
}

/// Writes one record over the revision that is known.
pub(crate) async fn write(bus: Bus, write: Box<Write>) -> Outcome {
    let batch = [(IntentKey::Recovery(write.instance.clone()), write.intent.clone(), write.expected)];
    let result = match bus.put_intents(&batch).await {
        Ok(revisions) => revisions.first().copied().ok_or(WriteError::Unknown),
        Err(error) => {
            tracing::warn!(%error, instance = %write.instance, "an order was not written");
            Err(if error.outcome_unknown() { WriteError::Unknown } else { WriteError::Conflict })
        }
    };
    Outcome::Wrote(write, result)
}
