//! Durations with two units at most, and clocks with milliseconds, local or UTC.

use std::time::{Duration, SystemTime};

/// Past this many minutes seconds tell nothing any more.
const MINUTES_ALONE: u64 = 10;

/// A duration as it is told: `0.6ms`, `52ms`, `1.35s`, `11.0s`, `4m12s`, `3h12m`, `2d3h`.
pub(crate) fn span(d: Duration) -> String {
    let ms = d.as_secs_f64() * 1e3;
    if ms < 9.95 {
        format!("{ms:.1}ms")
    } else if ms < 999.5 {
        format!("{ms:.0}ms")
    } else {
        seconds(d)
    }
}

/// A duration in seconds, for columns of a boot: `0.05s`, `0.38s`, `3.80s`, `11.0s`, then as [`span`].
pub(crate) fn seconds(d: Duration) -> String {
    let s = d.as_secs_f64();
    if s < 9.995 {
        format!("{s:.2}s")
    } else if s < 59.95 {
        format!("{s:.1}s")
    } else {
        long(d)
    }
}

/// An age: `0.2s`, `4.2s`, `41s`, then as [`span`].
pub(crate) fn age(d: Duration) -> String {
    let s = d.as_secs_f64();
    if s < 9.95 {
        format!("{s:.1}s")
    } else if s < 59.5 {
        format!("{s:.0}s")
    } else {
        long(d)
    }
}

/// A duration from a configuration, as short as it can be told exactly: `250ms`, `1.5s`, `90s`, `4m`, `1h30m`.
pub(crate) fn exact(d: Duration) -> String {
    let (ms, s) = (d.as_millis(), d.as_secs());
    if ms < 1000 {
        format!("{ms}ms")
    } else if d.subsec_millis() != 0 {
        format!("{}s", d.as_secs_f64())
    } else if s < 120 || (s < 600 && !s.is_multiple_of(60)) {
        format!("{s}s")
    } else {
        long(d)
    }
}

/// From a minute up: two units, and only one where the second says nothing.
fn long(d: Duration) -> String {
    let s = d.as_secs_f64().round() as u64;
    let (days, hours, minutes, rest) = (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60);
    let two = |a: u64, au: &str, b: u64, bu: &str| if b == 0 { format!("{a}{au}") } else { format!("{a}{au}{b}{bu}") };
    if days > 0 {
        two(days, "d", hours, "h")
    } else if hours > 0 {
        two(hours, "h", minutes, "m")
    } else if minutes >= MINUTES_ALONE {
        format!("{minutes}m")
    } else {
        two(minutes, "m", rest, "s")
    }
}

/// Where clocks are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zone {
    /// The machine's.
    Local,
    /// UTC.
    Utc,
}

/// A clock with milliseconds: `14:02:11.204`.
pub(crate) fn clock(at: SystemTime, zone: Zone) -> String {
    zoned(at, zone).map_or_else(|| "-".to_owned(), |z| z.strftime("%H:%M:%S%.3f").to_string())
}

/// A clock without seconds: `16:20`.
pub(crate) fn short_clock(at: SystemTime, zone: Zone) -> String {
    zoned(at, zone).map_or_else(|| "-".to_owned(), |z| z.strftime("%H:%M").to_string())
}

/// An instant for machines and for tables: `2026-11-22T14:02:11.204Z`.
pub(crate) fn rfc3339(at: SystemTime) -> String {
    zoned(at, Zone::Utc).map_or_else(|| "-".to_owned(), |z| z.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

/// The instant that a person means by `1h`, `14:02`, `14:02:11`, or an RFC 3339 time.
///
/// # Errors
/// A sentence that says what is understood.
pub(crate) fn instant(text: &str, now: SystemTime, zone: Zone) -> Result<SystemTime, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return now.checked_sub(ago).ok_or_else(|| format!("`{text}` is longer ago than time itself"));
    }
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(at.into());
    }
    let today = || Some(zoned(now, zone)?.with().time(text.parse().ok()?).build().ok()?.timestamp().into());
    today().ok_or_else(|| format!("`{text}` is no time: 90s, 1h, 14:02, 14:02:11 or 2026-11-22T14:02:11Z"))
}

fn zoned(at: SystemTime, zone: Zone) -> Option<jiff::Zoned> {
    let tz = match zone {
        Zone::Local => jiff::tz::TimeZone::system(),
        Zone::Utc => jiff::tz::TimeZone::UTC,
    };
    Some(jiff::Timestamp::try_from(at).ok()?.to_zoned(tz))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_duration_has_two_units_at_most() {
        let told: Vec<_> =
            [0, 52, 702, 1350, 11_000, 59_960, 252_000, 1_560_000, 11_520_000, 183_600_000].map(|n| span(ms(n))).into_iter().collect();
        assert_eq!(told, ["0.0ms", "52ms", "702ms", "1.35s", "11.0s", "1m", "4m12s", "26m", "3h12m", "2d3h"]);
        assert_eq!(span(Duration::from_micros(640)), "0.6ms");
        assert_eq!([310, 3800, 10_900].map(|n| seconds(ms(n))), ["0.31s", "3.80s", "10.9s"]);
        assert_eq!([200, 4230, 41_000, 240_000].map(|n| age(ms(n))), ["0.2s", "4.2s", "41s", "4m"]);
        assert_eq!([250, 1500, 30_000, 90_000, 240_000, 5_400_000].map(|n| exact(ms(n))), ["250ms", "1.5s", "30s", "90s", "4m", "1h30m"]);
    }

    #[test]
    fn clocks_have_milliseconds() {
        assert_eq!(clock(UNIX_EPOCH + ms(50_531_204), Zone::Utc), "14:02:11.204");
        assert_eq!(clock(UNIX_EPOCH + ms(50_531_000), Zone::Utc), "14:02:11.000");
    }

    #[test]
    fn since_is_an_age_or_a_time() {
        let now = UNIX_EPOCH + Duration::from_secs(86_400 + 3600);
        assert_eq!(instant("1h", now, Zone::Utc), Ok(UNIX_EPOCH + Duration::from_secs(86_400)));
        assert_eq!(instant("00:30", now, Zone::Utc), Ok(UNIX_EPOCH + Duration::from_secs(86_400 + 1800)));
        assert_eq!(instant("1970-01-02T00:00:05Z", now, Zone::Utc), Ok(UNIX_EPOCH + Duration::from_secs(86_405)));
        assert!(instant("yesterday", now, Zone::Utc).unwrap_err().contains("is no time"));
    }
}
