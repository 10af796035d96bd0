//! The bus against a real nats-server: what it promises while the broker is killed, stopped, emptied and filled with rubbish.

mod broker;
mod commands;
mod connecting;
mod events;
mod hurt;
mod intents;
mod leases;
mod played;
#[expect(dead_code, unreachable_pub, reason = "shared with the end-to-end tests; not every part is used here")]
#[path = "../../../../tests/src/e2e/proxy.rs"]
mod proxy;
mod queries;
mod shards;
mod stores;
