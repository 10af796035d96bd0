//! Questions to nodes: one task for each that waits, one [`Outcome`] from each. Decides nothing.

use std::time::Duration;

use razar_bus::{Bus, BusError};
use razar_bus_schema::{
    ids::{Incarnation, Instance},
    v1,
};

use crate::policy::{Measured, Outcome, Pinged};

/// A node that is asked about an instance, or what it holds, answers from memory.
const ASK_LIMIT: Duration = Duration::from_secs(1);

/// Asks a node whether it is there.
pub(crate) async fn ping(bus: Bus, node: String, limit: Duration) -> Outcome {
    let subject = bus.subjects().node(&node, "ping");
    let answer = bus.ask::<_, v1::PingReply>(&subject, &v1::PingRequest {}, limit).await;
    let how = match answer {
        Ok(_) => Pinged::Answered,
        Err(BusError::NoResponders { .. }) => Pinged::NoResponders,
        Err(_) => Pinged::Silent,
    };
    Outcome::Pinged(node, how)
}

/// Asks a node what it makes of an instance that does not beat.
pub(crate) async fn look(bus: Bus, node: String, instance: Instance) -> Outcome {
    let subject = bus.subjects().node(&node, "silence");
    let request = v1::SilenceRequest { instance: Some((&instance).into()) };
    let reply = bus.ask::<_, v1::SilenceReply>(&subject, &request, ASK_LIMIT).await;
    Outcome::Looked(instance, reply.ok().map(Box::new))
}

/// Asks a node what its instances use.
pub(crate) async fn measure(bus: Bus, node: String) -> Outcome {
    let subject = bus.subjects().node(&node, "inventory");
    let reply = bus.ask::<_, v1::InventoryReply>(&subject, &v1::InventoryRequest {}, ASK_LIMIT).await;
    let measured = reply.ok().map(|reply| {
        let items = reply.inventory.unwrap_or_default().items;
        let one = |(item, usage): (v1::InventoryItem, v1::ResourceUsage)| {
            let instance = Instance::try_from(item.instance.as_ref()?).ok()?;
            let incarnation = item.incarnation.as_ref().map(Incarnation::from).unwrap_or_default();
            // Nothing at all was measured: there is no process, or no time yet.
            (usage != v1::ResourceUsage::default()).then_some(Measured { instance, incarnation, usage })
        };
        items.into_iter().zip(reply.usage).filter_map(one).collect()
    });
    Outcome::Measured(node, measured)
}
