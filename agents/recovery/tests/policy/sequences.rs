//! Whatever happens, in any order: no record is written over untold (which the bench sees to), nothing that quarantine has is ordered, no
//! incident has two ends, and who takes over at rest finds nothing to do.

#![expect(clippy::indexing_slicing, reason = "a test may fail loudly, its helpers too")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use razar_bus_schema::v1::{self, InstanceState, QuarantinePhase as Phase, RunMode, event::Fact, intent::Want};

use crate::bench::{Bench, id, spec};

/// Something that may happen.
#[derive(Debug, Clone, Copy)]
enum Op {
    Start(usize),
    Told(usize, Word),
    Quarantine(usize, usize),
    Generation(usize),
    Stop(usize),
    Pass(u64),
    TakeOver,
    Mute(bool),
    Conflict(bool),
    Answers(bool),
}

const NAMES: [&str; 3] = ["db", "api", "web"];
const PHASES: [Phase; 3] = [Phase::Isolated, Phase::Probation, Phase::Released];
const CAUSES: [&str; 4] = ["budget_spent", "rung_failed", "start_failed", "policy_never"];

fn op() -> impl Strategy<Value = Op> {
    let who = 0..NAMES.len();
    prop_oneof![
        4 => who.clone().prop_map(Op::Start),
        14 => (who.clone(), word()).prop_map(|(who, word)| Op::Told(who, word)),
        3 => (who.clone(), 0..PHASES.len()).prop_map(|(who, phase)| Op::Quarantine(who, phase)),
        1 => who.clone().prop_map(Op::Generation),
        1 => who.prop_map(Op::Stop),
        4 => (0..90_u64).prop_map(Op::Pass),
        1 => Just(Op::TakeOver),
        1 => any::<bool>().prop_map(Op::Mute),
        1 => any::<bool>().prop_map(Op::Conflict),
        1 => any::<bool>().prop_map(Op::Answers),
    ]
}

/// What its node says of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Ready,
    Unready,
    Exit,
    Fail(usize),
    Recover,
    Block,
    Withdraw,
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        3 => Just(Word::Ready),
        1 => Just(Word::Unready),
        3 => Just(Word::Exit),
        4 => (0..CAUSES.len()).prop_map(Word::Fail),
        1 => Just(Word::Recover),
        1 => Just(Word::Block),
        1 => Just(Word::Withdraw),
    ]
}

/// What the test knows of one component.
#[derive(Debug, Clone, Copy)]
struct Life {
    generation: u64,
    start: u64,
    isolated: bool,
}

fn specs() -> [v1::ComponentSpec; 3] {
    [spec("db", &[]), spec("api", &["db"]), v1::ComponentSpec { heal: vec!["restart".to_owned()], ..spec("web", &["api"]) }]
}

/// Its newest incarnation.
fn newest(life: Life) -> String {
    format!("{}.{}", life.generation, life.start.max(1))
}

fn play(b: &mut Bench, lives: &mut [Life; 3], op: Op) {
    let specs = specs();
    match op {
        Op::Start(who) => {
            lives[who].start += 1;
            b.started(NAMES[who], &newest(lives[who]));
        }
        Op::Generation(who) => {
            (lives[who].generation, lives[who].start) = (lives[who].generation + 1, 0);
            b.desire(&specs[who], lives[who].generation, RunMode::Run);
        }
        Op::Stop(who) => b.desire(&specs[who], lives[who].generation, RunMode::Stop),
        Op::Quarantine(who, phase) => {
            lives[who].isolated = PHASES[phase] != Phase::Released;
            b.quarantine(NAMES[who], PHASES[phase]);
        }
        Op::Pass(seconds) => b.pass(seconds),
        Op::TakeOver => b.take_over(),
        Op::Mute(on) => b.mute = on,
        Op::Conflict(on) => b.conflict = on,
        Op::Answers(on) => answer(b, lives, on),
        Op::Told(who, word) => tell(b, NAMES[who], &newest(lives[who]), word),
    }
}

fn answer(b: &mut Bench, lives: &[Life; 3], on: bool) {
    let known: Vec<_> = NAMES.iter().zip(lives).map(|(name, life)| (*name, newest(*life))).collect();
    let items: Vec<_> = known.iter().map(|(name, now)| (*name, now.as_str(), InstanceState::Ready)).collect();
    b.holds(&items);
    if !on {
        b.inventory = None;
    }
}

fn tell(b: &mut Bench, name: &str, now: &str, word: Word) {
    let local = || Fact::Recovered(v1::Recovered { rung: "local".to_owned(), ..Default::default() });
    match word {
        Word::Ready => b.ready(name, now),
        Word::Unready => b.tell(name, now, Fact::ComponentUnready(v1::ComponentUnready::default())),
        Word::Recover => b.tell(name, now, local()),
        Word::Withdraw => b.tell(name, now, Fact::IncidentWithdrawn(v1::IncidentWithdrawn::default())),
        Word::Exit => b.exited(name, now),
        Word::Fail(cause) => b.failed(name, now, CAUSES[cause]),
        Word::Block => b.blocked(name, now, "db"),
    }
    if matches!(word, Word::Recover | Word::Withdraw) {
        b.close(name);
    }
}

/// An order for what quarantine has, if there is one among the last.
fn orders_isolated(b: &Bench, from: usize, lives: &[Life; 3]) -> Option<String> {
    let names = NAMES.iter().zip(lives).filter(|(_, life)| life.isolated).map(|(name, _)| id(name)).collect::<Vec<_>>();
    b.orders[from..].iter().find_map(|intent| match &intent.want {
        Some(Want::Recovery(order)) if !order.ended && order.hold_dependents.is_some() => {
            let about = order.instance.as_ref()?.component.clone();
            names.iter().any(|n| n.component == about).then_some(about)
        }
        _ => None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_the_rules_hold(ops in proptest::collection::vec(op(), 1..80)) {
        let mut b = Bench::new(&specs());
        let mut lives = [Life { generation: 1, start: 0, isolated: false }; 3];
        for op in ops {
            let orders = b.orders.len();
            play(&mut b, &mut lives, op);
            prop_assert_eq!(orders_isolated(&b, orders, &lives), None);
        }
        (b.mute, b.conflict) = (false, false);
        b.pass(10);
        b.pass(3_600);
        let ids = b.told_ids();
        let all = ids.len();
        prop_assert_eq!(ids.into_iter().collect::<BTreeSet<_>>().len(), all, "an event is told once");
        b.take();
        let (orders, brake) = (b.orders.len(), b.state.facts().brake().is_some());
        b.take_over();
        let told: Vec<_> = b.take().into_iter().filter(|line| !line.starts_with("ask")).collect();
        prop_assert!(brake || told.is_empty() && b.orders.len() == orders, "a successor finds nothing to do: {told:?}");
    }
}
