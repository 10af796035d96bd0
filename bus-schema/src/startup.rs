//! How long a component may take to come up, for whoever gives it a deadline.

use std::time::Duration;

use crate::{time, v1};

/// Time to come up of a component without a startup probe.
const DEFAULT: Duration = Duration::from_secs(30);
/// A start that may take longer than a year may take for ever: sums with it stay in range.
pub const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// Defaults of a startup probe.
const PERIOD: Duration = Duration::from_secs(1);
const FAILURES: u32 = 3;

/// The startup limit of a specification: delay, period and failures of its startup probe, else half a minute.
#[must_use]
pub fn limit(spec: &v1::ComponentSpec) -> Duration {
    spec.startup.as_ref().map_or(DEFAULT, |probe| {
        let failures = if probe.failure_threshold == 0 { FAILURES } else { probe.failure_threshold };
        let period = time::duration_or(probe.period.as_ref(), PERIOD).saturating_mul(failures).min(LONGEST);
        (time::duration_or(probe.initial_delay.as_ref(), Duration::ZERO).min(LONGEST) + period).min(LONGEST)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_the_startup_probe_allows() {
        let probe = |period, failure_threshold| v1::Probe {
            period: Some(prost_types::Duration { seconds: period, nanos: 0 }),
            failure_threshold,
            ..Default::default()
        };
        let of = |startup| limit(&v1::ComponentSpec { startup, ..Default::default() });
        assert_eq!(of(None), Duration::from_secs(30));
        assert_eq!(of(Some(probe(2, 60))), Duration::from_secs(120));
        assert_eq!(of(Some(probe(i64::MAX, u32::MAX))), LONGEST);
    }
}
