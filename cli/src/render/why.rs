//! The precedence table of one instance, as its node answered it.

use razar_bus_schema::{ids::Instance, time::std_duration, v1};

use super::{
    event::incident_name,
    text::{columns, escape},
    time::age,
};

/// The table and the sentence that ends it.
pub(crate) fn table(reply: &v1::WhyReply) -> Vec<String> {
    let mut rows = vec![["", "RULE", "SAYS", "WRITER", "AGE", "REASON"].map(str::to_owned).to_vec()];
    rows.extend(reply.lines.iter().map(|line| {
        let mark = if line.won { ">" } else { " " };
        let age = line.age.as_ref().map(|d| age(std_duration(d))).unwrap_or_default();
        vec![format!("{}{mark}", line.rule), escape(&line.name), escape(&line.says), escape(&line.writer), age, escape(&line.reason)]
    }));
    // The first column has no heading; two blanks keep the others above their cells.
    if let Some(cell) = rows.first_mut().and_then(|r| r.first_mut()) {
        *cell = "  ".to_owned();
    }
    let mut lines = columns(&rows);
    let verdict = reply.verdict.trim();
    if !verdict.is_empty() {
        let incident = reply.incident.as_ref().and_then(incident_name);
        let incident = incident.filter(|i| !verdict.contains(i.as_str())).map(|i| format!(": {i}")).unwrap_or_default();
        lines.push(format!("{}{incident}", escape(verdict)));
    } else if let Some(won) = reply.lines.iter().find(|l| l.won) {
        let name = reply.instance.as_ref().map_or_else(|| "it".to_owned(), |i| Instance::new(escape(&i.component), i.ordinal).to_string());
        lines.push(format!("{name}: rule {}, {}, {}", won.rule, escape(&won.name), escape(&won.says)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_table_marks_the_line_that_won() {
        let line = |rule, name: &str, says: &str, writer: &str, ms: u64, reason: &str, won| v1::WhyLine {
            rule,
            name: name.to_owned(),
            says: says.to_owned(),
            writer: writer.to_owned(),
            age: (ms > 0).then(|| razar_bus_schema::time::duration(Duration::from_millis(ms))),
            reason: reason.to_owned(),
            won,
        };
        let reply = v1::WhyReply {
            lines: vec![
                line(1, "quarantined", "no", "quarantine", 0, "", false),
                line(2, "desired stop", "no", "orchestrator", 11_520_000, "mission 1: run, rank 9", false),
                line(4, "dependency unmet", "wait", "node a", 3100, "memory-store is starting, must be ready", true),
            ],
            verdict: "api waits by rule 4 until memory-store is ready".to_owned(),
            incident: Some(v1::IncidentId {
                instance: Some(v1::InstanceId { component: "memory-store".to_owned(), ordinal: 0 }),
                incarnation: Some(v1::Incarnation { generation: 1, start: 1 }),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(
            table(&reply),
            [
                "   RULE             SAYS WRITER       AGE   REASON",
                "1  quarantined      no   quarantine   -     -",
                "2  desired stop     no   orchestrator 3h12m mission 1: run, rank 9",
                "4> dependency unmet wait node a       3.1s  memory-store is starting, must be ready",
                "api waits by rule 4 until memory-store is ready: memory-store@1.1",
            ]
        );
    }
}
