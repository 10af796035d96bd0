//! Parts that the tests play: a stranger's client, a node's journal.

use anyhow::Result;
use razar_bus_schema::{
    event::{Kind, node_event_id},
    v1,
};

use crate::broker::Broker;

/// A client of the library itself, as any other program has it.
pub(crate) async fn stranger(broker: &Broker) -> Result<async_nats::Client> {
    Ok(async_nats::connect(format!("127.0.0.1:{}", broker.port)).await?)
}

/// The event with `sequence` in a node's journal.
pub(crate) fn event(sequence: u64) -> v1::Event {
    let fact = v1::event::Fact::ComponentReady(v1::ComponentReady::default());
    v1::Event {
        id: node_event_id("a", "e1", sequence),
        kind: fact.kind().to_owned(),
        chakra: "heart".to_owned(),
        instance: Some(v1::InstanceId { component: "api".to_owned(), ordinal: 0 }),
        node_sequence: Some(v1::NodeSequence { node: "a".to_owned(), epoch: "e1".to_owned(), sequence }),
        fact: Some(fact),
        ..v1::Event::default()
    }
}
