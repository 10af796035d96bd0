//! The bus against a real nats-server: what it promises while the broker is killed, stopped, emptied and filled with rubbish.

mod broker;
mod commands;
mod connecting;
mod events;
mod intents;
mod leases;
mod played;
mod queries;
mod stores;
