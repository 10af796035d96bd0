//! Faults 19, 20, 21, 22 and 51: whatever bytes come over the bus, each entry reads or refuses them, and what it reads is folded without
//! a panic, however odd: messages of the mesh with values from the ends of their ranges, cut, bent and repeated, between sound ones that
//! bring the policies into the states where they count. `RAZAR_EDGE_CASES` says how many (256 of each).

#![expect(clippy::expect_used, clippy::indexing_slicing, clippy::wildcard_enum_match_arm, reason = "a test may fail loudly, its parts too")]

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};
use razar_bus_schema::{
    DESCRIPTORS,
    bucket::IntentKey,
    event::node_event_id,
    ids::{Incarnation, Instance},
    json,
    subject::Subjects,
    v1,
};
use razar_node::policy::{self as node, ViewChange, probing::Answer};
use razar_orchestrator::policy::{self as orchestrator, LoadError, MissionsValue, Outcome, Pending};
use razar_registry::projection::Projection;
use razar_stack::StackDocument;
use razar_tests::sim::{random::Rng, stack::Stacks};

/// Messages that one case sends.
const MESSAGES: u64 = 40;
/// Decisions of one case after each message: more than a boot of eight components takes.
const TURNS: u32 = 60;
/// Depth to which a message is filled.
const DEPTH: u32 = 6;

fn cases() -> ProptestConfig {
    let cases = std::env::var("RAZAR_EDGE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(256);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 0, ..ProptestConfig::default() }
}

/// Each decoder of the bus, of the disk and of the command line's side, on the same bytes.
fn read_everywhere(bytes: &[u8]) {
    fn read<M: Message + Name + Default>(bytes: &[u8]) {
        if let Ok(message) = json::from_payload::<M>(bytes) {
            let text = json::to_json(&message).expect("what was read can be shown");
            json::from_json::<M>(&text).expect("what was shown can be read");
        }
        let _ = json::to_json_named(&M::full_name(), bytes);
    }
    read::<v1::Command>(bytes);
    read::<v1::Receipt>(bytes);
    read::<v1::Event>(bytes);
    read::<v1::Intent>(bytes);
    read::<v1::Heartbeat>(bytes);
    read::<v1::LogLine>(bytes);
    read::<v1::Mission>(bytes);
    read::<v1::BootHistory>(bytes);
    read::<v1::MissionBrief>(bytes);
    read::<v1::Observed>(bytes);
    read::<v1::PlanOnDisk>(bytes);
    read::<v1::StatusRequest>(bytes);
    read::<v1::StatusReply>(bytes);
    read::<v1::DiscoverRequest>(bytes);
    read::<v1::PlanRequest>(bytes);
    read::<v1::PlanReply>(bytes);
    read::<v1::WhyRequest>(bytes);
    let _ = StackDocument::from_bytes(bytes);
    let text = String::from_utf8_lossy(bytes);
    let _ = IntentKey::parse(&text);
    let _ = Subjects::new("razar").expect("a name").parse_command(&text);
    let _ = (text.parse::<Incarnation>(), text.parse::<Instance>());
}

fn descriptor(name: &str) -> MessageDescriptor {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    let pool = POOL.get_or_init(|| DescriptorPool::decode(DESCRIPTORS).expect("the embedded descriptors"));
    pool.get_message_by_name(name).expect("a message of the contract")
}

/// A value at an end of its range, or one that is in use elsewhere in the mesh.
fn scalar(kind: &Kind, rng: &mut Rng) -> Value {
    const TEXTS: [&str; 14] =
        ["", "a", "db", "api", "db.0", "db.4294967295", "demo", "system", "e1", "events-1", "../../etc", "\0\n\u{1b}[2J", "run", "ä:💥"];
    match kind {
        Kind::Double => Value::F64(*rng.pick(&[0.0, -1.0, 0.5, f64::NAN, f64::INFINITY, f64::MAX, f64::MIN_POSITIVE])),
        Kind::Float => Value::F32(*rng.pick(&[0.0, -1.0, f32::NAN, f32::INFINITY])),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(*rng.pick(&[0, 1, -1, 9, 999_999_999, i32::MIN, i32::MAX])),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(*rng.pick(&[0, 1, -1, 60, i64::MIN, i64::MAX, i64::MAX / 2])),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(*rng.pick(&[0, 1, 2, 3, 255, u32::MAX - 1, u32::MAX])),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(*rng.pick(&[0, 1, 2, 3, 256, u64::MAX - 1, u64::MAX])),
        Kind::Bool => Value::Bool(rng.per_mille(500)),
        Kind::String if rng.per_mille(20) => Value::String("x".repeat(rng.index(70_000))),
        Kind::String => Value::String((*rng.pick(&TEXTS)).to_owned()),
        Kind::Bytes => Value::Bytes(vec![0xff; rng.index(40)].into()),
        Kind::Enum(_) => Value::EnumNumber(*rng.pick(&[0, 1, 2, 3, 4, 5, 6, 99, -1, i32::MAX])),
        Kind::Message(of) => Value::Message(message(of, rng, 0)),
    }
}

fn value(field: &FieldDescriptor, rng: &mut Rng, depth: u32) -> Value {
    let one = |rng: &mut Rng| match field.kind() {
        Kind::Message(of) => Value::Message(message(&of, rng, depth.saturating_sub(1))),
        kind => scalar(&kind, rng),
    };
    if field.is_list() { Value::List((0..rng.index(4)).map(|_| one(rng)).collect()) } else { one(rng) }
}

/// A message with about half of its fields; of a choice of several the last one stays.
fn message(of: &MessageDescriptor, rng: &mut Rng, depth: u32) -> DynamicMessage {
    let mut made = DynamicMessage::new(of.clone());
    let fields: Vec<_> = of.fields().filter(|f| depth > 0 || !matches!(f.kind(), Kind::Message(_))).collect();
    // One of a large choice, so that each is met.
    let chosen = (!fields.is_empty()).then(|| rng.index(fields.len()));
    for (n, field) in fields.iter().enumerate() {
        let in_choice = field.containing_oneof().is_some_and(|choice| choice.fields().len() > 1);
        if (in_choice && chosen == Some(n)) || (!in_choice && rng.per_mille(500)) {
            made.set_field(field, value(field, rng, depth));
        }
    }
    made
}

/// Changes a few of the fields of a sound message, at any depth.
fn bend(sound: &mut DynamicMessage, rng: &mut Rng, depth: u32) {
    let fields: Vec<_> = sound.fields().map(|(field, _)| field).collect();
    for field in fields {
        if rng.per_mille(60) {
            if rng.per_mille(300) {
                sound.clear_field(&field)
            } else {
                sound.set_field(&field, value(&field, rng, depth))
            }
            continue;
        }
        match sound.get_field_mut(&field) {
            Value::Message(inner) => bend(inner, rng, depth),
            Value::List(items) => items.iter_mut().for_each(|item| {
                if let Value::Message(inner) = item {
                    bend(inner, rng, depth);
                }
            }),
            _ => {}
        }
    }
}

/// Bytes of a message: invented, or a sound one that is bent; sometimes cut, with a flipped bit or with what follows twice.
fn bytes_of(name: &str, sound: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut made = match sound {
        [] => message(&descriptor(name), rng, DEPTH),
        _ if rng.per_mille(300) => message(&descriptor(name), rng, DEPTH),
        some => DynamicMessage::decode(descriptor(name), rng.pick(some).as_slice()).expect("sound"),
    };
    bend(&mut made, rng, DEPTH);
    let mut bytes = made.encode_to_vec();
    if rng.per_mille(100) && !bytes.is_empty() {
        let (at, bit) = (rng.index(bytes.len()), rng.index(8));
        match rng.index(3) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << bit,
            _ => bytes.extend_from_within(at..),
        }
    }
    bytes
}

/// The policies of one mesh on one machine, with a bus that does at once what it is told.
struct Mesh {
    rng: Rng,
    stacks: Stacks,
    projection: Projection,
    orchestrator: orchestrator::State,
    node: node::Node,
    mono: Duration,
    revision: u64,
    stream: u64,
    journal: u64,
    token: u64,
    /// What was sent by the policies themselves, by message.
    sound: BTreeMap<&'static str, Vec<Vec<u8>>>,
    desired: Vec<String>,
}

impl Mesh {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let stacks = Stacks::random(&mut rng, &["a".to_owned()], false);
        let mono = Duration::from_secs(1_000);
        let now = node::Now { mono, wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) };
        let config = node::Config { mesh: "razar".to_owned(), node: "a".to_owned(), node_epoch: "e1".to_owned(), seed, start_floor: 0 };
        let mut node = node::Node::new(config, Vec::new(), node::Restored::default(), now);
        node.join(v1::NodeJoined { node_epoch: "e1".to_owned(), ..Default::default() }, now);
        node.apply(node::Input::View(ViewChange::Epoch("b1".to_owned())), now);
        node.apply(node::Input::View(ViewChange::Settled), now);
        let who = orchestrator::Identity { mesh: "razar".to_owned(), replica: "o1".to_owned() };
        let mut orchestrator = orchestrator::State::new(who);
        orchestrator.apply_intents_epoch("b1");
        orchestrator.apply_mark("b1");
        orchestrator.apply_missions_epoch();
        let projection = Projection::new("events-1");
        let (sound, desired) = (BTreeMap::new(), Vec::new());
        Self { rng, stacks, projection, orchestrator, node, mono, revision: 0, stream: 0, journal: 0, token: 0, sound, desired }
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + self.mono
    }

    fn node_now(&self) -> node::Now {
        node::Now { mono: self.mono, wall: self.wall() }
    }

    fn orchestrator_now(&self) -> orchestrator::Now {
        orchestrator::Now { mono: self.mono, wall: self.wall() }
    }

    fn remember(&mut self, name: &'static str, bytes: Vec<u8>) {
        self.sound.entry(name).or_default().push(bytes);
    }

    fn event(&mut self, bytes: &[u8]) {
        self.stream += 1;
        match v1::Event::decode(bytes) {
            Ok(event) => {
                let _ = self.projection.apply(self.stream, &event);
                self.orchestrator.apply_event(self.stream, &event, self.orchestrator_now());
            }
            Err(_) => self.projection.dead_letter(self.stream),
        }
    }

    fn intent(&mut self, key: &str, bytes: &[u8]) {
        self.revision += 1;
        let read = v1::Intent::decode(bytes).ok();
        if let Some(IntentKey::Desired(instance)) = IntentKey::parse(key) {
            match &read {
                Some(intent) => self.orchestrator.apply_record(&instance, self.revision, Arc::new(intent.clone())),
                None => self.orchestrator.apply_spoiled(&instance, self.revision),
            }
        }
        let change = ViewChange::Record { key: key.to_owned(), revision: self.revision, intent: read.map(Box::new) };
        self.node.apply(node::Input::View(change), self.node_now());
    }

    fn mission(&mut self, key: &str, bytes: &[u8]) {
        self.revision += 1;
        let value = match key.split_once('.') {
            None => v1::Mission::decode(bytes).ok().map(MissionsValue::Plan),
            Some(("history", _)) => v1::BootHistory::decode(bytes).ok().map(MissionsValue::History),
            Some(_) => v1::MissionBrief::decode(bytes).ok().map(|brief| MissionsValue::Brief(3, brief)),
        };
        self.orchestrator.apply_missions(key, self.revision, value, self.orchestrator_now());
    }

    fn command(&mut self, verb: &str, target: &str, command: v1::Command) {
        self.token += 1;
        let id = if command.command_id.is_empty() { format!("c{}", self.token) } else { command.command_id.clone() };
        let expires = self.wall() + Duration::from_secs(60);
        let (verb, target) = (verb.to_owned(), target.to_owned());
        self.orchestrator.apply_command(Pending { token: self.token, id, verb, target, command, expires, verdict: None });
    }

    fn act(&mut self, action: orchestrator::Action) {
        let now = self.orchestrator_now();
        let outcome = match action {
            orchestrator::Action::Load { revision, profile } => {
                let found = self.stacks.blueprints.get(&(revision.clone(), profile.clone())).cloned();
                let result = found.ok_or_else(|| LoadError::Refused("unknown_revision".to_owned(), String::new(), Vec::new()));
                Outcome::Loaded { revision, profile, result }
            }
            orchestrator::Action::WriteDesired { writes, bucket } => {
                let mut revisions = Vec::new();
                for (instance, intent, _) in &writes {
                    let (key, bytes) = (IntentKey::Desired(instance.clone()).to_string(), intent.encode_to_vec());
                    self.intent(&key, &bytes);
                    revisions.push(self.revision);
                    self.desired.push(key);
                    self.remember("razar.v1.Intent", bytes);
                }
                self.node.apply(node::Input::View(ViewChange::Settled), self.node_now());
                Outcome::WroteDesired { writes, bucket, result: Ok(revisions) }
            }
            orchestrator::Action::WriteMissions { writes, bucket, .. } => {
                let mut revisions = Vec::new();
                for (value, _) in &writes {
                    let (name, bytes) = match value {
                        MissionsValue::Plan(plan) => ("razar.v1.Mission", plan.encode_to_vec()),
                        MissionsValue::History(history) => ("razar.v1.BootHistory", history.encode_to_vec()),
                        MissionsValue::Brief(_, brief) => ("razar.v1.MissionBrief", brief.encode_to_vec()),
                    };
                    self.mission(&value.key(), &bytes);
                    revisions.push(self.revision);
                    self.remember(name, bytes);
                }
                Outcome::WroteMissions { writes, bucket, result: Ok(revisions) }
            }
            orchestrator::Action::Publish(event) => {
                let bytes = event.encode_to_vec();
                self.event(&bytes);
                self.remember("razar.v1.Event", bytes);
                Outcome::Published { id: event.id, stored: true }
            }
            orchestrator::Action::Answer { .. } => return,
        };
        self.orchestrator.apply_outcome(outcome, now);
    }

    fn carry_out(&mut self, action: node::Action) {
        let input = match action {
            node::Action::ClearState { instance, .. } => node::Input::Prepared { instance, failed: None },
            node::Action::RunHook(run) => {
                let (outcome, took) = (node::hooks::HookOutcome::Ok, Duration::ZERO);
                let end = node::hooks::HookEnd { outcome, status: None, took, output: String::new(), output_cut: false, stragglers: 0 };
                node::Input::HookEnded { key: run.key, program: String::new(), end }
            }
            node::Action::EndHook(_) => return,
            node::Action::Spawn(spawn) => {
                let process = v1::ProcessIdentity { pid: 4_000, ..Default::default() };
                node::Input::Spawned { instance: spawn.instance, incarnation: spawn.incarnation, process }
            }
            node::Action::Signal { instance, incarnation, .. } | node::Action::Kill { instance, incarnation } => {
                let status = v1::ExitStatus { signal: Some(9), ..Default::default() };
                node::Input::Exited { instance, incarnation, status, last_error: String::new(), while_away: false, stragglers: 0 }
            }
            node::Action::Probe { instance, incarnation, role, timeout, .. } => {
                let answer = if self.rng.per_mille(800) { Answer::Passed } else { Answer::Failed };
                node::Input::Probed { instance, incarnation, role, answer, detail: String::new(), took: timeout, window: None }
            }
            node::Action::Tell(mut event) => {
                self.journal += 1;
                event.id = node_event_id("a", "e1", self.journal);
                event.node_sequence = Some(v1::NodeSequence { node: "a".to_owned(), epoch: "e1".to_owned(), sequence: self.journal });
                let bytes = event.encode_to_vec();
                self.event(&bytes);
                return self.remember("razar.v1.Event", bytes);
            }
            node::Action::Remember(_) | node::Action::StorePlan(_) => return,
        };
        self.node.apply(input, self.node_now());
    }

    /// Lets everybody decide until nobody has anything to do, or often enough.
    fn settle(&mut self) {
        for _ in 0..TURNS {
            let decided = self.orchestrator.decide(self.orchestrator_now());
            let actions = self.node.decide(self.node_now());
            if decided.is_empty() && actions.is_empty() {
                break;
            }
            decided.into_iter().for_each(|action| self.act(action));
            actions.into_iter().for_each(|action| self.carry_out(action));
        }
        let _ = (self.node.next_deadline(), self.orchestrator.next_deadline(self.orchestrator_now()), self.orchestrator.plan_reply());
        for inst in self.node.instances() {
            let _ = self.node.verdict(inst, self.mono);
        }
        let observed = self.projection.observed();
        json::to_json(&observed).expect("what was folded can be shown");
    }

    fn odd(&mut self, name: &'static str) -> Vec<u8> {
        let sound = self.sound.get(name).cloned().unwrap_or_default();
        bytes_of(name, &sound, &mut self.rng)
    }

    /// One message of anybody's.
    fn strike(&mut self) {
        match self.rng.index(8) {
            0 | 1 => {
                let bytes = self.odd("razar.v1.Event");
                self.event(&bytes);
            }
            2 | 3 => {
                let known = self.desired.clone();
                let keys = ["desired.db.0", "recovery.db.0", "quarantine.db", "quarantine.db.0", "load.db", "vram.a.0", "desired.api.7"];
                let key = if known.is_empty() || self.rng.per_mille(400) {
                    (*self.rng.pick(&keys)).to_owned()
                } else {
                    self.rng.pick(&known).clone()
                };
                let bytes = self.odd("razar.v1.Intent");
                self.intent(&key, &bytes);
                if self.rng.per_mille(700) {
                    self.node.apply(node::Input::View(ViewChange::Settled), self.node_now());
                }
            }
            4 => {
                let (key, name) = *self.rng.pick(&[
                    ("plan", "razar.v1.Mission"),
                    ("history.db", "razar.v1.BootHistory"),
                    ("brief.3", "razar.v1.MissionBrief"),
                ]);
                let bytes = self.odd(name);
                self.mission(key, &bytes);
            }
            5 => {
                let verb = *self.rng.pick(&["apply", "profile", "start", "stop", "restart", "down", "forget", "sing"]);
                let target = *self.rng.pick(&["db", "api.0", "demo", "core", "_", "", "nobody"]);
                if let Ok(command) = v1::Command::decode(self.odd("razar.v1.Command").as_slice()) {
                    self.command(verb, target, command);
                }
            }
            6 => {
                if let Ok(snapshot) = v1::Observed::decode(self.odd("razar.v1.Observed").as_slice()) {
                    self.orchestrator.apply_snapshot(&snapshot, self.orchestrator_now());
                    let mut primed = Projection::from_snapshot(snapshot);
                    let bytes = self.odd("razar.v1.Event");
                    if let Ok(event) = v1::Event::decode(bytes.as_slice()) {
                        primed.prime(1, &event);
                        let _ = primed.apply(2, &event);
                    }
                    let _ = primed.observed();
                }
            }
            _ => self.mono += self.rng.millis(0, 90_000),
        }
        if let Ok(request) = v1::DiscoverRequest::decode(self.odd("razar.v1.DiscoverRequest").as_slice()) {
            let _ = self.projection.discover(&request);
        }
        if let Ok(request) = v1::StatusRequest::decode(self.odd("razar.v1.StatusRequest").as_slice()) {
            let _ = self.projection.status(&request);
        }
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), open in any::<bool>()) {
        let mut bytes = bytes;
        if open {
            bytes.insert(0, b'{');
        }
        read_everywhere(&bytes);
    }

    #[test]
    fn messages_with_odd_values_are_read_or_refused(seed in any::<u64>()) {
        let mut rng = Rng::new(seed);
        for name in ["Event", "Intent", "Command", "Observed", "Mission", "StatusReply", "PlanReply"] {
            let name = format!("razar.v1.{name}");
            let bytes = bytes_of(&name, &[], &mut rng);
            read_everywhere(&bytes);
            if let Ok(text) = json::to_json_named(&name, &bytes) {
                read_everywhere(text.as_bytes());
            }
        }
    }

    #[test]
    fn odd_messages_are_folded_without_a_panic(seed in any::<u64>()) {
        let mut mesh = Mesh::new(seed);
        let revision = mesh.stacks.revisions.first().cloned().expect("a revision");
        mesh.settle();
        mesh.command("apply", "demo", v1::Command { stack_revision: revision, ..Default::default() });
        mesh.settle();
        for _ in 0..MESSAGES {
            mesh.strike();
            mesh.settle();
        }
    }
}

/// The property above means something only if sound messages get the policies anywhere.
#[test]
fn sound_messages_boot_the_stack() {
    let mut ready = 0;
    for seed in 0..20 {
        let mut mesh = Mesh::new(seed);
        let revision = mesh.stacks.revisions.first().cloned().expect("a revision");
        mesh.settle();
        mesh.command("apply", "demo", v1::Command { stack_revision: revision, ..Default::default() });
        for _ in 0..20 {
            mesh.settle();
            mesh.mono += Duration::from_secs(1);
        }
        ready += mesh.projection.observed().components.iter().filter(|c| c.state() == v1::InstanceState::Ready).count();
    }
    assert!(ready > 20, "{ready} instances became ready in twenty stacks");
}
