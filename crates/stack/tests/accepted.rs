//! Sound files: what the format's description shows is understood, resolved and stored as it says.

#![expect(clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail loudly")]

use std::{path::Path, time::Duration};

use razar_bus_schema::{time::std_duration, v1};
use razar_stack::{DocumentError, Loaded, ResolveError, Source, StackDocument, load, spec_hash};

/// The stack of the format's description, without what this release does not do yet.
const DESCRIBED: &str = r#"
name: llm-stack
mesh: { parallel_starts: 4, shards: 4, local_restarts: { max: 3, within: 90s } }
defaults: { stop: { signal: SIGTERM, grace: 10s }, logs: { max_size: 20MiB, keep: 3 } }

chakras:
  heart: { health_threshold: 0.88, heal_hook: { command: [./heal/heart.sh], timeout: 30s } }

components:
  postgres:
    chakra: heart
    priority: 1
    command: [postgres, -D, "${DATA}/pg", -p, "5433"]
    working_dir: .
    env: { PGTZ: UTC }
    secrets: { POSTGRES_PASSWORD: { file: ./secrets/pg } }
    ports: [5433]
    readiness: { exec: [pg_isready, -p, "5433"], period: 2s, timeout: 1s, failure_threshold: 3 }
    liveness:  { exec: [./alive.sh, -p, "5433"], period: 1s }
    stop: { signal: SIGINT, grace: 20s }
    required: true
    on_node_loss: stay
    state: ["${DATA}/cache"]
    resources: { memory: 512MiB, cpu: 1.5, open_files: 1024, restart: true }

  redis:
    chakra: heart
    command: [redis-server, --port, "6380"]
    readiness: { exec: [redis-cli, -p, "6380", ping] }
    required: false

  gateway:
    chakra: throat
    command: [litellm, --config, litellm.yaml, --port, "4000"]
    depends_on:
      postgres: { condition: ready }
      redis: { condition: ready, required: false, restart: true }
    startup:   { http: { port: 4000, path: /health/liveliness }, period: 250ms, failure_threshold: 240 }
    readiness: { http: { port: 4000, path: /health/readiness } }
    liveness:  { http: { port: 4000, path: /health/liveliness }, period: 2s, failure_threshold: 3 }
    restart: { policy: on-failure, backoff: { first: 0s, base: 1s, factor: 2, max: 60s, jitter: 0.2 }, reset_after: 1s }
    heal: [restart, clear_state, dependencies, chakra_hook]
    provides: [chat, embeddings]
    replicas: 1
    node: { labels: { gpu: "false" } }

  migrate:
    chakra: solar
    command: [./migrate.sh]
    one_shot: true
    depends_on: { postgres: { condition: ready } }

  vision:
    chakra: third_eye
    command: [python, -m, vision]
    readiness: { notify: true }

profiles:
  core:   { include: [postgres, redis, gateway, migrate], limits: { memory: 2GiB, cpu: 50% }, parallel_starts: 3, timeout: 60s }
  vision: { extends: core, include: [vision], autoload: [vision] }
"#;

fn loaded(text: &str) -> Loaded {
    let source = Source { file: "razar.yaml", text, dir: Path::new("/srv/llm") };
    let loaded = load(&source, &|name| (name == "DATA").then(|| "/data".to_owned())).unwrap_or_else(|found| panic!("{found}"));
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    loaded
}

fn component(text: &str) -> v1::ComponentSpec {
    loaded(&format!("name: s\ncomponents:\n  a:\n    chakra: root\n    {text}\n")).document.components.remove("a").unwrap()
}

#[test]
fn the_described_stack_is_resolved_as_described() {
    let document = loaded(DESCRIBED).document;
    let resolved = document.resolve("vision").unwrap();
    assert_eq!(
        resolved.components.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
        ["gateway", "migrate", "postgres", "redis", "vision"]
    );
    assert_eq!((resolved.parallel_starts, resolved.timeout), (3, Duration::from_secs(60)));
    assert_eq!((resolved.limits.memory_bytes, resolved.limits.cpu_permille), (2 << 30, 500));
    assert_eq!(resolved.autoload, ["vision"]);
    assert_eq!(resolved.revision, document.revision().unwrap());
    let heart = &resolved.chakras["heart"];
    assert_eq!(heart.heal_hook.as_ref().unwrap().command, ["/srv/llm/heal/heart.sh"]);
    assert_eq!(resolved.chakras.len(), 7);

    let postgres = resolved.component("postgres").unwrap();
    assert_eq!(postgres.command, ["postgres", "-D", "/data/pg", "-p", "5433"]);
    assert_eq!((postgres.working_dir.as_str(), postgres.priority), ("/srv/llm", 1));
    assert_eq!(postgres.secrets[0].file, "/srv/llm/secrets/pg");
    assert_eq!(postgres.state, ["/data/cache"]);
    assert_eq!(postgres.stop.unwrap().signal, 2);
    let limits = postgres.resources.unwrap();
    assert_eq!((limits.memory_bytes, limits.cpu_millis, limits.open_files, limits.restart), (512 << 20, 1500, 1024, true));
    let Some(v1::probe::Check::Exec(alive)) = postgres.liveness.as_ref().unwrap().check.as_ref() else { panic!("no exec") };
    assert_eq!(alive.command, ["/srv/llm/alive.sh", "-p", "5433"]);

    let gateway = resolved.component("gateway").unwrap();
    assert_eq!(gateway.command[0], "litellm");
    assert_eq!(gateway.depends_on.len(), 2);
    assert!(gateway.depends_on[0].required && !gateway.depends_on[1].required && gateway.depends_on[1].restart);
    assert_eq!(gateway.node_labels[0].value, "false");
    let migrate = resolved.component("migrate").unwrap();
    assert!(migrate.one_shot && migrate.readiness.is_none() && !migrate.readiness_none);
    assert_eq!(migrate.command, ["/srv/llm/migrate.sh"]);
}

#[test]
fn every_default_is_filled_in() {
    let spec = component(
        "command: [a]\n    readiness: { http: { port: 80 } }\n    liveness: { notify: true }\n    startup: { tcp: { port: 80 } }",
    );
    let seconds = |d: &Option<_>| std_duration(d.as_ref().unwrap()).as_secs_f64();
    let timing = |p: &Option<v1::Probe>| {
        let p = p.as_ref().unwrap();
        (
            p.period.as_ref().map(|period| std_duration(period).as_secs_f64()),
            seconds(&p.timeout),
            p.failure_threshold,
            p.success_threshold,
            seconds(&p.initial_delay),
        )
    };
    assert_eq!(timing(&spec.startup), (Some(1.0), 1.0, 30, 1, 0.0));
    // Readiness has two, which the node knows: while it passes, and while it does not.
    assert_eq!(timing(&spec.readiness), (None, 5.0, 3, 1, 0.0));
    assert_eq!(timing(&spec.liveness), (Some(1.0), 1.0, 3, 1, 0.0));
    let restart = spec.restart.unwrap();
    assert_eq!(
        (seconds(&restart.first), seconds(&restart.base), restart.factor, seconds(&restart.max), restart.jitter),
        (0.0, 1.0, 2.0, 60.0, 0.2)
    );
    assert_eq!((restart.budget_max, seconds(&restart.budget_within), restart.policy()), (3, 90.0, v1::RestartPolicy::OnFailure));
    let stop = spec.stop.unwrap();
    assert_eq!((stop.signal, seconds(&stop.grace)), (15, 10.0));
    assert_eq!((spec.logs.unwrap().max_size_bytes, spec.logs.unwrap().keep), (20 << 20, 3));
    assert_eq!((spec.priority, spec.replicas, spec.required), (5, 1, true));
    assert_eq!(spec.heal, ["restart", "clear_state", "dependencies", "chakra_hook"]);
    assert_eq!((spec.working_dir.as_str(), spec.resources), ("/srv/llm", None));
}

#[test]
fn a_component_s_own_figures_go_before_defaults_before_the_mesh() {
    let text = "name: s
mesh: { local_restarts: { max: 5, within: 100s } }
defaults: { stop: { grace: 3s }, restart: { policy: always, backoff: { base: 2s } }, probes: { liveness: { period: 7s } }, slow_probe: 2s }
components:
  a: { chakra: root, command: [a], liveness: { notify: true } }
  b: { chakra: root, command: [a], liveness: { notify: true, period: 8s }, stop: { grace: 4s }, restart: never, slow_probe: 1s }
";
    let document = loaded(text).document;
    let (a, b) = (&document.components["a"], &document.components["b"]);
    let seconds = |d: Option<_>| std_duration(&d.unwrap()).as_secs();
    assert_eq!((seconds(a.stop.unwrap().grace), seconds(b.stop.unwrap().grace)), (3, 4));
    assert_eq!((a.restart.unwrap().policy(), b.restart.unwrap().policy()), (v1::RestartPolicy::Always, v1::RestartPolicy::Never));
    assert_eq!((seconds(a.restart.unwrap().base), a.restart.unwrap().budget_max), (2, 5));
    assert_eq!((seconds(a.liveness.as_ref().unwrap().period), seconds(b.liveness.as_ref().unwrap().period)), (7, 8));
    assert_eq!((seconds(a.slow_probe), seconds(b.slow_probe)), (2, 1));
}

#[test]
fn a_component_with_one_probe_is_ready_by_it() {
    let spec = component("command: [a]\n    liveness: { http: { port: 80 } }");
    assert_eq!(spec.readiness.unwrap().check, spec.liveness.unwrap().check);
    assert!(component("command: [a]\n    readiness: none").readiness_none);
}

#[test]
fn compose_s_words_are_understood() {
    let text = "name: s
x-notes: { any: thing }
components:
  db: &base { chakra: heart, command: [db], readiness: none, env: [A=1, B=x=y] }
  once: { chakra: heart, command: [once], one_shot: true }
  api:
    <<: *base
    restart: unless-stopped
    depends_on:
      db: { condition: service_healthy }
      once: { condition: service_completed_successfully }
  web: { chakra: root, command: [web], readiness: none, depends_on: [api, db] }
  job: { chakra: root, command: [job], readiness: none, depends_on: { db: { condition: service_started } } }
";
    let document = loaded(text).document;
    let conditions = |name: &str| document.components[name].depends_on.iter().map(v1::Dependency::condition).collect::<Vec<_>>();
    use v1::DependencyCondition::{Completed, Ready, Started};
    assert_eq!(conditions("api"), [Ready, Completed]);
    assert_eq!(conditions("web"), [Ready, Ready]);
    assert_eq!(conditions("job"), [Started]);
    let api = &document.components["api"];
    assert_eq!((api.command[0].as_str(), api.restart.unwrap().policy()), ("db", v1::RestartPolicy::Always));
    assert_eq!(api.env.iter().map(|e| format!("{}={}", e.name, e.value)).collect::<Vec<_>>(), ["A=1", "B=x=y"]);
}

#[test]
fn variables_are_substituted_in_every_value() {
    let spec = component(
        "command: ['${DATA}', '${NONE:-d}', '${NONE:-${DATA}/x}', '$$${DATA}', '$HOME $1', '${NONE:-}', 8080, true]\n    readiness: none\n    ports: [\"${PORT:-81}\"]\n    env: { N: 1.50 }",
    );
    assert_eq!(spec.command, ["/data", "d", "/data/x", "$/data", "$HOME $1", "", "8080", "true"]);
    assert_eq!((spec.ports, spec.env[0].value.as_str()), (vec![81], "1.50"));
}

#[test]
fn files_from_other_systems_are_read() {
    let text = "name: s\ncomponents:\n  a: { chakra: root, command: [a], readiness: none }\n";
    let revision = loaded(text).document.revision().unwrap();
    for other in [format!("\u{feff}{text}"), text.replace('\n', "\r\n"), format!("---\n{text}...\n")] {
        assert_eq!(loaded(&other).document.revision().unwrap(), revision, "{other:?}");
    }
}

#[test]
fn relative_paths_begin_at_the_file() {
    for (path, whole) in
        [("./x", "/srv/llm/x"), ("../x/../y", "/srv/x/../y"), ("../../../../x", "/x"), ("/a/./b", "/a/b"), ("x/y", "/srv/llm/x/y")]
    {
        assert_eq!(component(&format!("command: [{path}]\n    readiness: none")).command[0], whole, "{path}");
    }
}

#[test]
fn a_stored_stack_is_the_same_when_it_comes_back() {
    let document = loaded(DESCRIBED).document;
    let bytes = document.to_bytes().unwrap();
    let back = StackDocument::from_bytes(&bytes).unwrap();
    assert_eq!(back, document);
    assert_eq!(back.to_bytes().unwrap(), bytes);
    assert_eq!(back.revision().unwrap(), loaded(DESCRIBED).document.revision().unwrap());
    let hash = |d: &StackDocument| d.components.values().map(spec_hash).collect::<Vec<_>>();
    assert_eq!(hash(&back), hash(&document));
}

#[test]
fn comments_and_order_do_not_change_the_revision_but_a_figure_does() {
    let of = |text: &str| loaded(text).document.revision().unwrap();
    let one = "name: s\ncomponents:\n  a: { chakra: root, command: [a], readiness: none }\n  b: { chakra: root, command: [b], readiness: none }\n";
    let same = "components:\n  # b first\n  b: { command: [b], chakra: root, readiness: none }\n  a: { chakra: root, command: ['a'], readiness: none, required: true }\nname: s\n";
    assert_eq!(of(one), of(same));
    assert_ne!(of(one), of(&one.replace("[b]", "[c]")));
}

#[test]
fn bytes_that_are_no_stack_are_refused() {
    let document = loaded(DESCRIBED).document;
    let text = String::from_utf8(document.to_bytes().unwrap()).unwrap();
    let refused = |text: &str| StackDocument::from_bytes(text.as_bytes()).unwrap_err();
    assert!(matches!(refused("{"), DocumentError::Malformed(_)));
    assert!(matches!(refused(&text.replace("\"version\":1", "\"version\":2")), DocumentError::Version(2)));
    assert!(matches!(refused(&text.replacen("\"name\":\"redis\"", "\"name\":\"sider\"", 1)), DocumentError::Malformed(_)));
    assert!(matches!(refused(&" ".repeat(razar_stack::DOCUMENT_BYTES_MAX + 1)), DocumentError::TooLarge(_)));
}

#[test]
fn an_unknown_profile_is_refused_with_the_nearest() {
    let error = loaded(DESCRIBED).document.resolve("corr").unwrap_err();
    assert_eq!(error.to_string(), "no profile `corr`; nearest: core");
}

#[test]
fn profiles_may_share_a_port_that_the_whole_stack_may_not() {
    let text = "name: s
components:
  a: { chakra: root, command: [a], readiness: none, ports: [80] }
  b: { chakra: root, command: [b], readiness: none, ports: [80] }
profiles: { one: { include: [a] }, two: { include: [b] } }
";
    let document = loaded(text).document;
    assert_eq!(document.resolve("two").unwrap().components.len(), 1);
    let error = document.resolve("").unwrap_err();
    assert!(matches!(error, ResolveError::PortTwice { port: 80, .. }));
    assert_eq!(error.to_string(), "a and b both claim port 80: choose a profile of one, two");
}

#[test]
fn places_are_known_for_later_complaints() {
    let loaded = loaded(DESCRIBED);
    assert_eq!(loaded.place(&["components", "postgres", "ports", "0"]).unwrap().to_string(), "17:13");
    assert_eq!(loaded.place(&["components", "redis", "ports", "0"]).unwrap().to_string(), "26:3");
}
