//! The mesh itself as people read it: what nodes stand on, chakras that are down, the score, who is there.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use razar_bus_schema::v1;

use super::{
    status::{Line, since},
    text::{count, escape, or_dash},
    time::{age, span},
};
use crate::console::Tone;

/// Time for which an escalation that nothing ends is shown.
const NEWS_FOR: Duration = Duration::from_secs(3600);
/// Score from which on it is shown as good.
const SCORE_WELL: f64 = 0.95;

/// `chakra heart: down for 12s, missing db`
pub(super) fn down_line(chakra: &v1::ObservedChakra, now: SystemTime) -> Line {
    let missing = chakra.down.as_ref().map(|d| d.missing.iter().map(|m| escape(m)).collect::<Vec<_>>().join(" ")).unwrap_or_default();
    let long = chakra.down_at.as_ref().map(|at| format!(" for {}", age(since(at, now)))).unwrap_or_default();
    let after = format!("{long}, missing {}", or_dash(&missing));
    Line { before: format!("chakra {}: ", escape(&chakra.name)), word: "down".to_owned(), tone: Tone::Bad, after }
}

/// `escalated P1 3m ago by recovery: many components failed at once; the ladder waits`; nothing once it is old and nobody says that its
/// cause goes on.
pub(super) fn escalation_line(escalation: &v1::ObservedEscalation, now: SystemTime) -> Option<Line> {
    let told = escalation.escalated.as_ref()?;
    let old = escalation.at.as_ref().map(|at| since(at, now));
    if escalation.mesh_cause.is_empty() && old.is_none_or(|old| old > NEWS_FOR) {
        return None;
    }
    let ago = old.map(|old| format!(" {} ago", age(old))).unwrap_or_default();
    let by = escalation.source.as_ref().map(|s| format!(" by {}", escape(&s.kind))).unwrap_or_default();
    let tone = if matches!(told.severity.as_str(), "P1" | "P2") { Tone::Bad } else { Tone::Warn };
    let word = format!("escalated {}", escape(&told.severity));
    Some(Line { before: String::new(), word, tone, after: format!("{ago}{by}: {}", escape(&told.about)) })
}

/// `score 0.92: 11 of 12 essential serve, 0.08 restarts each in 10m`
pub(super) fn score_line(health: &v1::HealthReply) -> Line {
    let v1::HealthReply { score, essential_up, essential_total, restart_rate, .. } = health;
    let tone = if *score >= SCORE_WELL { Tone::Good } else { Tone::Warn };
    let after = format!(": {essential_up} of {essential_total} essential serve, {restart_rate:.2} restarts each in 10m");
    Line { before: String::new(), word: format!("score {score:.2}"), tone, after }
}

/// `node a: disk of /var/lib/razar is full, …`
pub(crate) fn trouble_line(trouble: &v1::Trouble) -> Line {
    let tone = if trouble.warning { Tone::Warn } else { Tone::Bad };
    let word = format!("node {}", escape(&trouble.node));
    Line { before: String::new(), word, tone, after: format!(": {}", escape(&trouble.text)) }
}

/// `; node a: disk full, broker store`, of what does not work.
pub(super) fn trouble_words(troubles: &[v1::Trouble]) -> String {
    let mut by_node: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for trouble in troubles.iter().filter(|t| !t.warning) {
        by_node.entry(&trouble.node).or_default().push(escape(&trouble.code).replace('_', " "));
    }
    by_node.iter().map(|(node, codes)| format!("; node {}: {}", escape(node), codes.join(", "))).collect()
}

/// `mesh: 6 agents, 1 node, bus 0.2ms`, with who is down.
pub(crate) fn mesh_words(observed: &v1::Observed, bus: Duration) -> String {
    let is_agent = |a: &&v1::ObservedAgent| a.started.as_ref().is_some_and(|s| s.kind != "node");
    let agents: Vec<_> = observed.agents.iter().filter(is_agent).collect();
    let down = agents.iter().filter(|a| a.down).count();
    let lost = observed.nodes.iter().filter(|n| n.lost).count();
    let alive = |n: usize, down: usize, noun: &str, gone: &str| {
        if down == 0 { count(n, noun) } else { format!("{}, {down} {gone}", count(n - down, noun)) }
    };
    let agents = alive(agents.len(), down, "agent", "down");
    let nodes = alive(observed.nodes.len(), lost, "node", "lost");
    let dead =
        if observed.dead_letters > 0 { format!(", {}", count(observed.dead_letters as usize, "dead letter")) } else { String::new() };
    format!("mesh: {agents}, {nodes}, bus {}{dead}", span(bus))
}
