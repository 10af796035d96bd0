//! Log lines of several components, merged by time: `14:21:07.391 worker.0 ! RuntimeError: queue closed`.

use razar_bus_schema::{
    time::system_time,
    v1::{self, LogOrigin},
};

use super::{
    text::escape,
    time::{Zone, clock},
};

/// One line; `width` is that of the widest name.
pub(crate) fn line(log: &v1::LogLine, width: usize, zone: Zone) -> String {
    let at = log.time.as_ref().map_or_else(|| "-".to_owned(), |t| clock(system_time(t), zone));
    let mark = match log.origin() {
        LogOrigin::Unspecified | LogOrigin::Output => '|',
        LogOrigin::Error => '!',
        LogOrigin::Mesh => '*',
    };
    format!("{at} {:<width$} {mark} {}", name(log), escape(&log.text))
}

/// Name with its ordinal: `worker.0`.
pub(crate) fn name(log: &v1::LogLine) -> String {
    format!("{}.{}", escape(&log.component), log.ordinal)
}

/// In order of time; lines of one instant keep the order in which they came.
pub(crate) fn merge(mut lines: Vec<v1::LogLine>) -> Vec<v1::LogLine> {
    lines.sort_by_key(|l| l.time.as_ref().map(system_time));
    lines
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn lines_are_merged_and_marked() {
        let log = |component: &str, ms: u64, origin: LogOrigin, text: &str| v1::LogLine {
            component: component.to_owned(),
            time: Some(razar_bus_schema::time::timestamp(UNIX_EPOCH + Duration::from_millis(ms))),
            text: text.to_owned(),
            origin: origin.into(),
            ..Default::default()
        };
        let lines = merge(vec![
            log("worker", 277, LogOrigin::Error, "RuntimeError: queue closed"),
            log("worker", 278, LogOrigin::Mesh, "exit 1, 1.5 started"),
            log("api", 0, LogOrigin::Output, "POST /chat\t200"),
        ]);
        assert_eq!(
            lines.iter().map(|l| line(l, 8, Zone::Utc)).collect::<Vec<_>>(),
            [
                "00:00:00.000 api.0    | POST /chat\\t200",
                "00:00:00.277 worker.0 ! RuntimeError: queue closed",
                "00:00:00.278 worker.0 * exit 1, 1.5 started",
            ]
        );
    }
}
