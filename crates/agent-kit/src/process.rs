//! Prometheus's standard numbers of this process, read from `/proc` when they are asked for.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Ticks per second in `/proc/<pid>/stat`: the kernel's fixed interface to user space.
const TICKS_PER_SECOND: f64 = 100.0;

/// The collector.
#[derive(Debug)]
pub(crate) struct ProcessNumbers {
    started: f64,
}

impl ProcessNumbers {
    pub(crate) fn new() -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { started }
    }
}

/// User and system time in seconds.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11).take(2).map(|f| f.parse::<u32>().ok());
    let (user, system) = (ticks.next()??, ticks.next()??);
    Some((f64::from(user) + f64::from(system)) / TICKS_PER_SECOND)
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<i64>().ok().map(|kib| kib * 1024)
}

fn open_files() -> Option<i64> {
    i64::try_from(std::fs::read_dir("/proc/self/fd").ok()?.count()).ok()
}

impl Collector for ProcessNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut put = |name: &str, help: &str, metric: &dyn Encode| {
            let out = encoder.encode_descriptor(name, help, None, metric.kind())?;
            metric.put(out)
        };
        if let Some(seconds) = cpu_seconds() {
            put("process_cpu_seconds", "User and system CPU time spent in seconds.", &ConstCounter::new(seconds))?;
        }
        if let Some(bytes) = resident_bytes() {
            put("process_resident_memory_bytes", "Resident memory size in bytes.", &ConstGauge::new(bytes))?;
        }
        if let Some(files) = open_files() {
            put("process_open_fds", "Number of open file descriptors.", &ConstGauge::new(files))?;
        }
        put("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", &ConstGauge::new(self.started))
    }
}

/// [`EncodeMetric`] behind a reference: the trait itself is not for trait objects.
trait Encode {
    fn kind(&self) -> prometheus_client::metrics::MetricType;
    fn put(&self, out: prometheus_client::encoding::MetricEncoder<'_>) -> Result<(), std::fmt::Error>;
}

impl<M: EncodeMetric> Encode for M {
    fn kind(&self) -> prometheus_client::metrics::MetricType {
        self.metric_type()
    }

    fn put(&self, out: prometheus_client::encoding::MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.encode(out)
    }
}
