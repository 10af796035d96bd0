//! Shards: all observe, the holder gives the verdict. Of two, `api` belongs to shard 1, `db` to shard 0, nodes, agents and chakras too.

use razar_bus_schema::{
    ids::Incarnation,
    shard::{ShardCount, Shards},
    v1,
};

use crate::world::{World, ms};

/// Two watchdogs, each with one of two shards.
fn shared() -> World {
    let mut w = World::new(2);
    for shard in [0, 1] {
        decides_about(&mut w, shard, &[u32::try_from(shard).unwrap()]);
    }
    w.node("a");
    w.node("b");
    w
}

fn decides_about(w: &mut World, dog: usize, held: &[u32]) {
    let now = w.at();
    w.dogs[dog].leads = !held.is_empty();
    w.dogs[dog].state.apply_shards(&Shards::new(ShardCount::new(2).unwrap(), held.iter().copied()), now);
}

/// Who offered events of this kind.
fn by(w: &World, kind: &str) -> Vec<String> {
    let mut who: Vec<_> = w.offered.iter().filter(|e| e.kind == kind).map(|e| e.source.clone().unwrap().id).collect();
    who.dedup();
    who
}

/// Mutation: whoever decides at all gives every verdict.
#[test]
fn only_the_holder_of_its_shard_gives_a_verdict() {
    let mut w = shared();
    for name in ["api", "db"] {
        let instance = w.beating(name, ms(1000));
        let hung = v1::SilenceReply { hung: true, incarnation: Some(Incarnation::new(1, 1).into()), ..Default::default() };
        w.looks.insert(instance, hung);
    }
    w.pass(ms(5_000));
    w.answering.remove("b");
    w.beater("b").silent = true;
    w.beater("api").silent = true;
    w.pass(ms(6_000));
    assert_eq!((by(&w, "node_lost"), by(&w, "component_unresponsive")), (vec!["w0".to_owned()], vec!["w1".to_owned()]));
    w.beater("db").silent = true;
    w.pass(ms(6_000));
    assert_eq!(by(&w, "component_unresponsive"), ["w1", "w0"]);
}

#[test]
fn who_comes_to_hold_a_shard_has_observed_and_gives_the_verdict_that_is_due() {
    let mut w = shared();
    w.pass(ms(5_000));
    w.answering.remove("b");
    w.beater("b").silent = true;
    decides_about(&mut w, 0, &[]);
    w.pass(ms(6_000));
    assert_eq!(by(&w, "node_lost"), [""; 0], "nobody holds shard 0");
    decides_about(&mut w, 1, &[0, 1]);
    w.pass(ms(100));
    assert_eq!(by(&w, "node_lost"), ["w1"], "it was silent in the ears of this one, too");
}

#[test]
fn chakras_are_shard_0s() {
    let mut w = shared();
    let api = w.desire("api", "heart", |_| {});
    w.ready(&api, Incarnation::new(1, 1));
    w.pass(ms(5_000));
    w.exits(&api, Incarnation::new(1, 1));
    w.pass(ms(5_000));
    assert_eq!(by(&w, "chakra_down"), ["w0"]);
}
