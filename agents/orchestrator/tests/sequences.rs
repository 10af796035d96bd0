//! Random sequences of commands, failures and deaths: generations never fall (the world asserts it at each write, with CAS and telling),
//! what is desired converges to what was asked for last, and the orchestrator comes to rest.
#![expect(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly, its helpers too")]
#[expect(dead_code, reason = "shared with the tests by name")]
mod world;

use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;
use razar_bus_schema::v1::{self, RunMode};
use world::{World, blueprint};

/// Something that happens.
#[derive(Debug, Clone)]
enum Happening {
    Apply { plan: usize, approve: bool, fresh: bool },
    Verb(&'static str, &'static str),
    Dies(usize),
    Deaf(bool),
    Bad(&'static str),
    Fails(&'static str),
    NewJournal,
    NewBucket,
    Restart,
    Redeliver,
    Step,
    Pass(u64),
}

const PLANS: [&[&str]; 4] = [
    &["db", "api>db", "web>api", "job*>db", "cache!"],
    &["db", "api>db=new", "web>api", "job*>db", "cache!"],
    &["db", "api>db", "job*>db"],
    &["db", "api#2>db", "web>api", "job*>db", "cache!=new"],
];

fn happening() -> impl Strategy<Value = Happening> {
    let component = prop_oneof![Just("db"), Just("api"), Just("web"), Just("job"), Just("cache"), Just("api.1"), Just("nobody")];
    let verb = prop_oneof![Just("start"), Just("stop"), Just("restart")];
    prop_oneof![
        3 => (0..PLANS.len(), any::<bool>(), any::<bool>()).prop_map(|(plan, approve, fresh)| Happening::Apply { plan, approve, fresh }),
        5 => (verb, component.clone()).prop_map(|(v, c)| Happening::Verb(v, c)),
        1 => Just(Happening::Verb("down", "demo")),
        4 => (0usize..20).prop_map(Happening::Dies),
        1 => any::<bool>().prop_map(Happening::Deaf),
        1 => component.clone().prop_map(Happening::Bad),
        2 => component.prop_map(Happening::Fails),
        1 => Just(Happening::NewJournal),
        1 => Just(Happening::NewBucket),
        1 => Just(Happening::Restart),
        2 => Just(Happening::Redeliver),
        6 => Just(Happening::Step),
        2 => (0u64..90).prop_map(Happening::Pass),
    ]
}

fn happen(world: &mut World, n: usize, happening: Happening, epochs: &mut usize) {
    let id = format!("c{n}");
    match happening {
        Happening::Apply { plan, approve, fresh } => {
            let revision = world.store(&blueprint("demo", "", PLANS[plan]));
            world.command(&id, "apply", "demo", v1::Command { stack_revision: revision, approve, fresh, ..Default::default() });
        }
        Happening::Verb(verb, target) => world.command(&id, verb, target, v1::Command::default()),
        Happening::Dies(after) => world.dies_after = Some(after),
        Happening::Deaf(deaf) => world.deaf = deaf,
        Happening::Bad(component) => {
            world.bad.insert(component.to_owned());
        }
        Happening::Fails(component) => {
            if world.holds(component) {
                world.component_fails(component);
            }
        }
        Happening::NewJournal => {
            *epochs += 1;
            world.join("a", &format!("e{epochs}"));
        }
        Happening::NewBucket => {
            *epochs += 1;
            world.lose_intents(&format!("b{epochs}"));
        }
        Happening::Restart => world.restart(),
        Happening::Redeliver => world.redeliver(),
        Happening::Step => {
            world.step();
            world.nodes_act();
        }
        Happening::Pass(seconds) => world.tick(Duration::from_secs(seconds)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_converges_and_rests(happenings in proptest::collection::vec(happening(), 1..60)) {
        let mut world = World::with_node();
        let mut epochs = 1;
        for (n, happening) in happenings.into_iter().enumerate() {
            happen(&mut world, n, happening, &mut epochs);
        }
        // Faults cease.
        world.dies_after = None;
        world.deaf = false;
        world.bad.clear();
        world.redeliver();
        world.run_for(Duration::from_secs(700));
        world.redeliver();
        world.run_for(Duration::from_secs(700));

        let plan = world.plan();
        let down = plan.stack_revision.is_empty();
        let components = world.stacks.get(&(plan.stack_revision.clone(), String::new())).map(|b| b.instances()
            .into_iter().map(|(i, _)| i).collect::<BTreeSet<_>>()).unwrap_or_default();
        for instance in world.intents.keys() {
            let desired = world.desired_of(instance).unwrap();
            let by_hand = plan.stopped_by_hand.iter().any(|s| *s == instance.component || *s == instance.key());
            let runs = !down && components.contains(instance) && !by_hand;
            prop_assert_eq!(desired.mode() == RunMode::Run, runs, "{}", instance);
        }
        if !down {
            prop_assert!(components.iter().all(|i| world.intents.contains_key(i)));
        }
        prop_assert!(plan.mission_id.is_empty() || plan.ended, "the mission has an end");
        // Every command that was answered has one first word and, if accepted, one last word.
        for id in world.receipts.keys() {
            let results = world.results(id);
            let fits = matches!(results.iter().map(String::as_str).collect::<Vec<_>>()[..], ["refused"] | ["accepted", "done" | "failed"]);
            prop_assert!(fits, "{}: {:?}", id, results);
        }
        prop_assert!(!world.step(), "it rests");
        // A successor that reads everything anew has nothing to do either.
        world.restart();
        world.run();
        let batches = world.batches;
        world.restart();
        world.run();
        prop_assert_eq!(world.batches, batches);
    }
}
