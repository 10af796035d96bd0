//! Conversions between the wire's timestamps and durations and those of the standard library. Saturating, never failing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds in a second.
const NANOS: u64 = 1_000_000_000;
/// Seconds of the year 9999's end: later instants cannot be written as JSON, nor counted on.
const SECONDS_MAX: u64 = 253_402_300_799;
/// Longest span that is believed, a thousand years: sums of such never overflow.
const SPAN_MAX: Duration = Duration::from_secs(1_000 * 366 * 24 * 3600);

/// A wall-clock instant as the wire writes it; instants before 1970 become 1970.
#[must_use]
pub fn timestamp(at: SystemTime) -> prost_types::Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    prost_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

/// The instant of a timestamp; before 1970 it becomes 1970, after the year 9999 that year's end.
#[must_use]
pub fn system_time(at: &prost_types::Timestamp) -> SystemTime {
    let seconds = u64::try_from(at.seconds).unwrap_or(0).min(SECONDS_MAX);
    let nanos = u64::try_from(at.nanos).unwrap_or(0).min(NANOS - 1);
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds) + Duration::from_nanos(nanos)).unwrap_or(UNIX_EPOCH)
}

/// Nanoseconds since 1970 of a timestamp, for spans.
#[must_use]
pub fn unix_nanos(at: &prost_types::Timestamp) -> u64 {
    let since = system_time(at).duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A duration as the wire writes it.
#[must_use]
pub fn duration(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or(0),
    }
}

/// The span of a wire duration; a negative one becomes zero, and one of more than a thousand years that.
#[must_use]
pub fn std_duration(span: &prost_types::Duration) -> Duration {
    let seconds = u64::try_from(span.seconds).unwrap_or(0);
    let nanos = u32::try_from(span.nanos).unwrap_or(0).min(999_999_999);
    Duration::new(seconds, nanos).min(SPAN_MAX)
}

/// The span of an optional wire duration, or `default` when it is absent.
#[must_use]
pub fn duration_or(span: Option<&prost_types::Duration>, default: Duration) -> Duration {
    span.map_or(default, std_duration)
}

/// Time from `wall` to the next of the instants, a `period` apart, that all share who follow the same wall clock; never zero. What is to
/// be done each second by many on one machine is done at one instant of it: to wake for each by itself costs more than what is done.
#[must_use]
pub fn until_shared(period: Duration, wall: SystemTime) -> Duration {
    let period = period.as_nanos().max(1);
    let into = wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() % period;
    Duration::from_nanos(u64::try_from(period - into).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_come_to_the_same_instants_and_never_to_this_one() {
        let period = Duration::from_millis(667);
        let shared = |ms: u64| Duration::from_millis(ms) + until_shared(period, UNIX_EPOCH + Duration::from_millis(ms));
        for ms in 0..3_000 {
            let at = shared(ms);
            assert!(at > Duration::from_millis(ms) && at <= Duration::from_millis(ms) + period, "{ms}: {at:?}");
            assert_eq!(at.as_nanos() % period.as_nanos(), 0, "{ms}: {at:?}");
        }
        assert!(until_shared(Duration::ZERO, UNIX_EPOCH) > Duration::ZERO);
    }

    #[test]
    fn odd_values_saturate() {
        assert_eq!(std_duration(&prost_types::Duration { seconds: -1, nanos: -5 }), Duration::ZERO);
        assert_eq!(system_time(&prost_types::Timestamp { seconds: -9, nanos: 3 }), UNIX_EPOCH + Duration::from_nanos(3));
        assert_eq!(std_duration(&prost_types::Duration { seconds: i64::MAX, nanos: i32::MAX }), SPAN_MAX);
        let late = system_time(&prost_types::Timestamp { seconds: i64::MAX, nanos: 0 });
        assert_eq!(late, UNIX_EPOCH + Duration::from_secs(SECONDS_MAX));
        let now = SystemTime::now();
        assert_eq!(system_time(&timestamp(now)), now);
    }
}
