//! Durations, sizes, shares, CPU and signals as people write them, and durations as people read them.
//! Only text in and numbers out; where a text stands in the file is not known here.

use std::time::Duration;

/// Longest duration that a stack file may name: a year keeps every sum of them far from overflow.
pub const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads `1m30s`, `250ms`, `1.5h`, `0`: numbers with the units us, ms, s, m, h, d, largest sense first or not.
///
/// Absent when the text is no duration, has a number without unit (but `0`), or is longer than [`DURATION_MAX`].
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = split_number(rest)?;
        let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(unit_end)?;
        let seconds = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(round_nanos(number * seconds)).ok()?)?;
        rest = next;
    }
    (!text.is_empty() && total <= DURATION_MAX).then_some(total)
}

/// Whole nanoseconds, so that `1.1s` is what it says.
fn round_nanos(seconds: f64) -> f64 {
    (seconds * 1e9).round() / 1e9
}

/// A duration in at most two units, as messages and tables show it: `250ms`, `90s`, `4m`, `3h12m`.
#[must_use]
pub fn show_duration(span: Duration) -> String {
    let millis = span.as_millis();
    let seconds = span.as_secs();
    if span.is_zero() {
        "0s".to_owned()
    } else if millis == 0 {
        format!("{}us", span.as_micros())
    } else if seconds < 120 && !millis.is_multiple_of(1000) {
        if millis < 1000 { format!("{millis}ms") } else { format!("{:.2}s", span.as_secs_f64()) }
    } else if seconds < 120 {
        format!("{seconds}s")
    } else {
        let pair = |big: u64, big_unit: &str, small: u64, small_unit: &str| {
            if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
        };
        match seconds {
            0..3600 => pair(seconds / 60, "m", seconds % 60, "s"),
            3600..86400 => pair(seconds / 3600, "h", seconds % 3600 / 60, "m"),
            _ => pair(seconds / 86400, "d", seconds % 86400 / 3600, "h"),
        }
    }
}

/// Reads `512MiB`, `2GiB`, `20m`, `1.5gb`, `4096` (bytes); as in Compose every unit is a power of 1024 and case does not matter.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    let factor = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let bytes = number * (1_u64 << factor) as f64;
    // 2^53: above it a float counts no single bytes any more, and no machine has so much.
    (0.0..9_007_199_254_740_992.0).contains(&bytes).then_some(bytes as u64)
}

/// Reads `50%` as thousandths: 500. 0 % to 100 %.
#[must_use]
pub fn parse_percent(text: &str) -> Option<u32> {
    let (number, unit) = split_number(text)?;
    (unit == "%" && (0.0..=100.0).contains(&number)).then_some((number * 10.0).round() as u32)
}

/// Reads a number of cores (`1.5`) as thousandths of a core: 1500. Up to 10,000 cores.
#[must_use]
pub fn parse_cores(text: &str) -> Option<u32> {
    let (number, unit) = split_number(text)?;
    (unit.is_empty() && (0.0..=10_000.0).contains(&number)).then_some((number * 1000.0).round() as u32)
}

/// A number at the beginning of a text, without sign or exponent, and what follows.
fn split_number(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at_checked(end)?;
    Some((number.parse().ok()?, rest))
}

/// Names and numbers of the signals that may stop a component, as Linux numbers them on every supported machine.
pub const SIGNALS: [(&str, i32); 12] = [
    ("SIGTERM", 15),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGHUP", 1),
    ("SIGKILL", 9),
    ("SIGUSR1", 10),
    ("SIGUSR2", 12),
    ("SIGABRT", 6),
    ("SIGALRM", 14),
    ("SIGPIPE", 13),
    ("SIGCONT", 18),
    ("SIGWINCH", 28),
];

/// Reads `SIGTERM`, `TERM`, `term` or `15`.
#[must_use]
pub fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS.iter().find(|(known, _)| known.strip_prefix("SIG") == Some(name)).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_compose_s() {
        for (text, millis) in [("1m30s", 90_000), ("250ms", 250), ("1.5h", 5_400_000), ("0", 0), ("1h1ms", 3_600_001), ("2d", 172_800_000)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse_duration("5us"), Some(Duration::from_micros(5)));
        for bad in ["", "5", "s", "1 m", "-1s", "1x", "1..2s", "400d", "99999999999999999999s", "1e3s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_show_two_units_at_most() {
        for (millis, text) in
            [(0, "0s"), (250, "250ms"), (90_000, "90s"), (1_910, "1.91s"), (240_000, "4m"), (150_000, "2m30s"), (11_520_000, "3h12m")]
        {
            assert_eq!(show_duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn sizes_shares_and_signals() {
        assert_eq!(parse_size("512MiB"), Some(512 << 20));
        assert_eq!(parse_size("1.5gb"), Some(3 << 29));
        assert_eq!(parse_size("4096"), Some(4096));
        assert_eq!(parse_size("5 parsecs"), None);
        assert_eq!(parse_size("99999999999t"), None);
        assert_eq!(parse_percent("50%"), Some(500));
        assert_eq!(parse_percent("101%"), None);
        assert_eq!(parse_cores("1.5"), Some(1500));
        assert_eq!(parse_signal("SIGINT"), Some(2));
        assert_eq!(parse_signal("term"), Some(15));
        assert_eq!(parse_signal("SIGFOO"), None);
    }
}
