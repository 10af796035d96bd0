//! Whether an agent is alive (its loop turns) and ready (nothing holds it back). Served by [`crate::http`].

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::tick::{LOOP_AGE_MAX, LoopTicker};

/// Health of one process. Clones share it. Begins not ready, held back by `starting`.
#[derive(Debug, Clone)]
pub struct Health {
    ticker: LoopTicker,
    held: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

/// Key of the reason that every agent begins with.
pub const STARTING: &str = "starting";
/// Key of the reason while the bus is away; kept by [`crate::run()`].
pub const BUS: &str = "bus";

impl Health {
    /// Health by the ticks of `ticker`.
    #[must_use]
    pub fn new(ticker: LoopTicker) -> Self {
        let health = Self { ticker, held: Arc::default() };
        health.hold(STARTING, "it is starting");
        health
    }

    /// Not ready because of `why`; `key` names the cause, so that it can be taken back. Few keys, all literals.
    pub fn hold(&self, key: &'static str, why: impl Into<String>) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(key, why.into());
    }

    /// The cause `key` holds it back no longer.
    pub fn release(&self, key: &'static str) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Holds or releases by whether there is a reason.
    pub fn set(&self, key: &'static str, why_not: Option<impl Into<String>>) {
        match why_not {
            Some(why) => self.hold(key, why),
            None => self.release(key),
        }
    }

    /// What holds it back, by key; empty: ready.
    #[must_use]
    pub fn reasons(&self) -> BTreeMap<&'static str, String> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether nothing holds it back.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Why it is not alive; none: it is.
    #[must_use]
    pub fn dead(&self) -> Option<String> {
        let age = self.ticker.age();
        (age > LOOP_AGE_MAX).then(|| format!("the loop has not turned for {:.1} s", age.as_secs_f64()))
    }

    /// Answer of `/readyz`: `{"ready":false,"reasons":{"bus":"the bus is away"}}`.
    #[must_use]
    pub fn ready_json(&self) -> String {
        let reasons = self.reasons();
        serde_json::json!({ "ready": reasons.is_empty(), "reasons": reasons }).to_string()
    }
}
