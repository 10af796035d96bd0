//! Numbers for Prometheus: a registry that each agent adds its own to, and the standard numbers of the process.
//! Names are `razar_<name>_<unit>[_total]`; the prefix and `_total` are put on here.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::process::ProcessNumbers;

/// Labels of a family: name and value.
pub type Labels = Vec<(&'static str, String)>;

/// The numbers of one process. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    process: Arc<Registry>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry with the process's own numbers.
    #[must_use]
    pub fn new() -> Self {
        let mut process = Registry::default();
        process.register_collector(Box::new(ProcessNumbers::new()));
        Self { registry: Arc::new(Mutex::new(Registry::with_prefix("razar"))), process: Arc::new(process) }
    }

    /// A counter `razar_<name>_total`; `help` without a full stop.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.register(|r| r.register(name, help, counter.clone()));
        counter
    }

    /// A gauge `razar_<name>`.
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.register(|r| r.register(name, help, gauge.clone()));
        gauge
    }

    /// Counters `razar_<name>_total` by labels; only labels with few values.
    #[must_use]
    pub fn counters(&self, name: &str, help: &str) -> Family<Labels, Counter> {
        let family = Family::default();
        self.register(|r| r.register(name, help, family.clone()));
        family
    }

    /// Gauges `razar_<name>` by labels; only labels with few values.
    #[must_use]
    pub fn gauges(&self, name: &str, help: &str) -> Family<Labels, Gauge> {
        let family = Family::default();
        self.register(|r| r.register(name, help, family.clone()));
        family
    }

    /// Registers anything else (histograms, collectors), under the prefix `razar_`.
    pub fn register(&self, with: impl FnOnce(&mut Registry)) {
        with(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let own = encode_registry(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner));
        // Writing to a String cannot fail; a collector's error leaves the rest standing.
        let _ = own.and_then(|()| encode_registry(&mut text, &self.process)).and_then(|()| encode_eof(&mut text));
        text
    }
}
