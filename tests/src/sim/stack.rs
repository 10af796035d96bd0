//! Random stacks: a few revisions of one stack with two profiles each, over one to three machines. What depends on one another is placed
//! on one machine, as far as this version of the node asks for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use prost::Message as _;
use razar_bus_schema::{
    ids::sha256_hex,
    time,
    v1::{self, DependencyCondition as Condition, probe::Check},
};
use razar_orchestrator::blueprint::{Blueprint, Part};

use super::{random::Rng, watch::BEAT};

/// Name of the stack.
pub const STACK: &str = "demo";

/// Everything that may be put in force.
#[derive(Debug, Clone, Default)]
pub struct Stacks {
    /// By revision and profile.
    pub blueprints: BTreeMap<(String, String), Arc<Blueprint>>,
    /// Revisions, the first one first.
    pub revisions: Vec<String>,
    /// Names of all components.
    pub components: Vec<String>,
    /// Those that run once.
    pub one_shots: BTreeSet<String>,
}

const NAMES: [&str; 8] = ["db", "cache", "migrate", "api", "worker", "web", "gate", "cron"];

impl Stacks {
    /// Random stacks over these machines.
    #[must_use]
    pub fn random(rng: &mut Rng, hosts: &[String], watched: bool) -> Self {
        let count = 3 + rng.index(5);
        let mut specs: Vec<v1::ComponentSpec> = Vec::new();
        for name in NAMES.iter().take(count) {
            let spec = component(rng, name, &specs, hosts, watched);
            specs.push(spec);
        }
        let mut all = Self { components: NAMES.iter().take(count).map(|n| (*n).to_owned()).collect(), ..Self::default() };
        all.one_shots = specs.iter().filter(|s| s.one_shot).map(|s| s.name.clone()).collect();
        all.add(&specs, rng);
        for _ in 0..1 + rng.index(3) {
            change(rng, &mut specs, hosts);
            all.add(&specs, rng);
        }
        all
    }

    fn add(&mut self, specs: &[v1::ComponentSpec], rng: &mut Rng) {
        let revision = sha256_hex(&specs.iter().flat_map(prost::Message::encode_to_vec).collect::<Vec<_>>());
        if self.revisions.contains(&revision) {
            return;
        }
        let parallel = 1 + u32::try_from(rng.below(4)).unwrap_or(0);
        let core = 1 + rng.index(specs.len());
        for (profile, upto) in [("", specs.len()), ("core", core)] {
            let included = closure(specs, upto);
            let chosen: Vec<_> = specs.iter().filter(|s| included.contains(&s.name)).collect();
            let blueprint = blueprint(&revision, profile, &chosen, parallel);
            self.blueprints.insert((revision.clone(), profile.to_owned()), Arc::new(blueprint));
        }
        self.revisions.push(revision);
    }
}

/// The first `upto` components and what they depend on.
fn closure(specs: &[v1::ComponentSpec], upto: usize) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = specs.iter().take(upto).map(|s| s.name.clone()).collect();
    for spec in specs.iter().rev() {
        if names.contains(&spec.name) {
            names.extend(spec.depends_on.iter().map(|d| d.component.clone()));
        }
    }
    names
}

fn blueprint(revision: &str, profile: &str, specs: &[&v1::ComponentSpec], parallel_starts: u32) -> Blueprint {
    let mut wave_of: BTreeMap<&str, u32> = BTreeMap::new();
    for spec in specs {
        let wave = spec.depends_on.iter().filter_map(|d| wave_of.get(d.component.as_str())).max().map_or(0, |w| w + 1);
        wave_of.insert(&spec.name, wave);
    }
    let mut order: Vec<_> = specs.iter().map(|s| (wave_of[s.name.as_str()], s.priority, *s)).collect();
    order.sort_by(|a, b| (a.0, a.1, &a.2.name).cmp(&(b.0, b.1, &b.2.name)));
    let mut parts = BTreeMap::new();
    let mut rank = 1;
    for (wave, _, spec) in order {
        let spec_hash = sha256_hex(&spec.encode_to_vec());
        parts.insert(spec.name.clone(), Part { rank, wave, spec: spec.clone(), spec_hash, chakra_threshold: threshold(&spec.chakra) });
        rank += spec.replicas.max(1);
    }
    Blueprint {
        stack: STACK.to_owned(),
        revision: revision.to_owned(),
        profile: profile.to_owned(),
        parallel_starts,
        timeout: Duration::from_secs(60),
        failed_boots: 3,
        chakra_hooks: BTreeMap::from([("heart".to_owned(), v1::Hook { command: vec!["heal".to_owned()], ..Default::default() })]),
        escalation_hook: None,
        known_errors: Vec::new(),
        parts,
    }
}

/// Share of a chakra that is to serve.
fn threshold(chakra: &str) -> f64 {
    if chakra == "root" { 1.0 } else { 0.6 }
}

fn probe(check: Check, period: Duration, threshold: u32) -> v1::Probe {
    v1::Probe { check: Some(check), period: Some(time::duration(period)), failure_threshold: threshold, ..Default::default() }
}

fn component(rng: &mut Rng, name: &str, before: &[v1::ComponentSpec], hosts: &[String], watched: bool) -> v1::ComponentSpec {
    let http = || Check::Http(v1::HttpCheck { port: 80, ..Default::default() });
    let period = |rng: &mut Rng| *rng.pick(&[Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(3)]);
    let one_shot = name == "migrate" || rng.per_mille(60);
    let mut spec = v1::ComponentSpec {
        name: name.to_owned(),
        chakra: if rng.per_mille(700) { "heart" } else { "root" }.to_owned(),
        priority: u32::try_from(rng.below(3)).unwrap_or(0),
        command: vec![name.to_owned()],
        required: rng.per_mille(800),
        one_shot,
        replicas: if rng.per_mille(150) { 2 } else { 1 },
        stop: Some(v1::StopSpec { signal: 15, grace: Some(time::duration(rng.millis(200, 10_000))) }),
        restart: Some(restart(rng)),
        ..Default::default()
    };
    if rng.per_mille(400) {
        spec.state = vec![format!("/data/{name}")];
    }
    let all: &[&str] = &["restart", "clear_state", "dependencies", "chakra_hook"];
    let heal = *rng.pick(&[all, all, all, &["restart"], &["clear_state"], &[]]);
    spec.heal = heal.iter().map(|rung| (*rung).to_owned()).collect();
    if !one_shot {
        match rng.below(10) {
            0 => spec.readiness_none = true,
            1 => spec.readiness = Some(v1::Probe { check: Some(Check::Notify(v1::NotifyCheck {})), ..Default::default() }),
            2 => spec.readiness = Some(probe(Check::Exec(v1::ExecCheck { command: vec!["ready".to_owned()] }), period(rng), 3)),
            _ => spec.readiness = Some(probe(http(), period(rng), 3)),
        }
        match rng.below(10) {
            0 => {}
            // Who beats on the bus is judged by the watchdog.
            1 | 2 if watched => {
                let interval = Some(time::duration(BEAT));
                let check = Check::Heartbeat(v1::HeartbeatCheck { interval, misses: 2 + u32::try_from(rng.below(2)).unwrap_or(0) });
                spec.liveness = Some(v1::Probe { check: Some(check), ..Default::default() });
            }
            1 => {
                spec.liveness = Some(v1::Probe { check: Some(Check::Notify(v1::NotifyCheck {})), ..Default::default() });
            }
            _ => {
                let threshold = 1 + u32::try_from(rng.below(3)).unwrap_or(0);
                spec.liveness = Some(probe(http(), period(rng), threshold));
            }
        }
        // Who says nothing about being ready is asked whether it lives from its first moment, unless it has a startup probe.
        if rng.per_mille(200) || (spec.readiness_none && spec.liveness.is_some()) {
            spec.startup = Some(probe(http(), Duration::from_millis(500), 40));
        }
    }
    depend(rng, &mut spec, before);
    label(rng, &mut spec, before, hosts);
    spec
}

fn restart(rng: &mut Rng) -> v1::RestartSpec {
    let policy = match rng.below(10) {
        0 => v1::RestartPolicy::Always,
        1 => v1::RestartPolicy::Never,
        _ => v1::RestartPolicy::OnFailure,
    };
    v1::RestartSpec {
        policy: policy.into(),
        base: Some(time::duration(*rng.pick(&[Duration::from_millis(100), Duration::from_secs(1)]))),
        budget_max: 1 + u32::try_from(rng.below(4)).unwrap_or(0),
        budget_within: Some(time::duration(*rng.pick(&[Duration::from_secs(20), Duration::from_secs(90)]))),
        jitter: 0.2,
        ..Default::default()
    }
}

fn depend(rng: &mut Rng, spec: &mut v1::ComponentSpec, before: &[v1::ComponentSpec]) {
    for other in before {
        if spec.depends_on.len() < 3 && rng.per_mille(350) {
            let condition = match (other.one_shot, rng.below(4)) {
                (true, _) => Condition::Completed,
                (false, 0) => Condition::Started,
                (false, _) => Condition::Ready,
            };
            spec.depends_on.push(v1::Dependency {
                component: other.name.clone(),
                condition: condition.into(),
                required: rng.per_mille(850),
                restart: rng.per_mille(200),
            });
        }
    }
}

/// What depends on one another is on one machine; replicas, too.
fn label(rng: &mut Rng, spec: &mut v1::ComponentSpec, before: &[v1::ComponentSpec], hosts: &[String]) {
    if hosts.len() < 2 {
        return;
    }
    let host_of = |name: &str| before.iter().find(|b| b.name == name).and_then(|b| b.node_labels.first()).map(|l| l.value.clone());
    let host = spec.depends_on.first().and_then(|d| host_of(&d.component)).unwrap_or_else(|| rng.pick(hosts).clone());
    spec.depends_on.retain(|d| host_of(&d.component).as_ref() == Some(&host));
    spec.node_labels = vec![v1::Label { key: "host".to_owned(), value: host }];
}

/// Another revision: something is changed, added, taken away or moved.
fn change(rng: &mut Rng, specs: &mut Vec<v1::ComponentSpec>, hosts: &[String]) {
    match rng.below(6) {
        0 if specs.len() > 2 => {
            let gone = specs.remove(rng.index(specs.len())).name;
            specs.iter_mut().for_each(|s| s.depends_on.retain(|d| d.component != gone));
        }
        1 if hosts.len() > 1 => {
            // Everything moves to the next machine.
            for spec in specs.iter_mut() {
                for label in &mut spec.node_labels {
                    let at = hosts.iter().position(|h| *h == label.value).unwrap_or(0);
                    label.value.clone_from(&hosts[(at + 1) % hosts.len()]);
                }
            }
        }
        2 => {
            let at = rng.index(specs.len());
            specs[at].replicas = if specs[at].replicas == 1 { 2 } else { 1 };
        }
        3 => {
            let at = rng.index(specs.len());
            specs[at].priority = (specs[at].priority + 1) % 3;
        }
        _ => {
            let at = rng.index(specs.len());
            let version = specs[at].command.len();
            specs[at].command.push(format!("--v{version}"));
        }
    }
}
