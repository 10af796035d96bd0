//! Which shards a replica is to contend for and which to give back, by what it sees of the leases: pure. Every replica reckons the same, so
//! that a free shard has one contender as a rule; where views differ, the broker decides by compare-and-swap.

use std::collections::{BTreeMap, BTreeSet};

use razar_bus_schema::shard::ShardCount;

/// What a replica sees of its agent's leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Who holds which shard of the division that this replica has.
    pub(crate) holders: BTreeMap<u32, String>,
    /// Replicas that share in it.
    pub(crate) members: BTreeSet<String>,
    /// Another division of which a shard is held.
    pub(crate) foreign: Option<ShardCount>,
}

/// The shards that `me` is to hold or to contend for.
pub(crate) fn wanted(view: &View, me: &str, count: ShardCount) -> BTreeSet<u32> {
    let held: BTreeSet<u32> = view.holders.iter().filter(|(_, holder)| *holder == me).map(|(shard, _)| *shard).collect();
    if view.foreign.is_some() {
        // Whoever was there first goes on; nobody begins.
        return held;
    }
    if count == ShardCount::ONE {
        return count.all().collect();
    }
    let mut loads: BTreeMap<&str, usize> = view.members.iter().map(|member| (member.as_str(), 0)).collect();
    loads.entry(me).or_default();
    for holder in view.holders.values() {
        if let Some(load) = loads.get_mut(holder.as_str()) {
            *load += 1;
        }
    }
    let mut wanted = held.clone();
    let free: Vec<u32> = count.all().filter(|shard| !view.holders.contains_key(shard)).collect();
    for shard in &free {
        let least = loads.iter().map(|(member, load)| (*load, *member)).min();
        let Some((_, member)) = least else { break };
        *loads.entry(member).or_default() += 1;
        if member == me {
            wanted.insert(*shard);
        }
    }
    if free.is_empty() && gives(&loads, me) {
        // The mesh-wide shard moves last.
        wanted.pop_last();
    }
    wanted
}

/// Whether `me` has most, and somebody two less: one at a time, until nobody has.
fn gives(loads: &BTreeMap<&str, usize>, me: &str) -> bool {
    let most = loads.iter().max_by_key(|(member, load)| (**load, std::cmp::Reverse(**member)));
    let least = loads.values().min().copied().unwrap_or(0);
    most.is_some_and(|(member, load)| *member == me && *load >= least + 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(count: u32) -> ShardCount {
        ShardCount::new(count).unwrap()
    }

    fn view(holders: &[(u32, &str)], members: &[&str]) -> View {
        View {
            holders: holders.iter().map(|(shard, holder)| (*shard, (*holder).to_owned())).collect(),
            members: members.iter().map(|member| (*member).to_owned()).collect(),
            foreign: None,
        }
    }

    #[test]
    fn shards_are_shared_and_one_that_is_alone_has_all() {
        let cases: [(&str, View, &str, &[u32]); 8] = [
            ("alone", view(&[], &[]), "a", &[0, 1, 2, 3]),
            ("two, nothing held", view(&[], &["a", "b"]), "b", &[1, 3]),
            ("the other has all", view(&[(0, "a"), (1, "a"), (2, "a"), (3, "a")], &["a", "b"]), "b", &[]),
            ("it gives one back", view(&[(0, "a"), (1, "a"), (2, "a"), (3, "a")], &["a", "b"]), "a", &[0, 1, 2]),
            ("the other takes it", view(&[(0, "a"), (1, "a"), (2, "a")], &["a", "b"]), "b", &[3]),
            ("evenly: nothing moves", view(&[(0, "a"), (1, "a"), (2, "b"), (3, "b")], &["a", "b"]), "a", &[0, 1]),
            ("three of four: nothing moves", view(&[(0, "a"), (1, "a"), (2, "b"), (3, "c")], &["a", "b", "c"]), "a", &[0, 1]),
            ("the last one left", view(&[(0, "a")], &["a"]), "a", &[0, 1, 2, 3]),
        ];
        for (what, view, me, expected) in cases {
            assert_eq!(wanted(&view, me, of(4)), expected.iter().copied().collect(), "{what}");
        }
    }

    #[test]
    fn one_shard_is_contended_for_by_all() {
        for me in ["a", "b"] {
            assert_eq!(wanted(&view(&[(0, "a")], &["a", "b"]), me, of(1)), [0].into());
        }
    }

    #[test]
    fn while_another_division_is_held_nobody_begins_and_who_was_there_goes_on() {
        let foreign = |holders: &[(u32, &str)]| View { foreign: Some(of(2)), ..view(holders, &["a", "b"]) };
        assert_eq!(wanted(&foreign(&[]), "a", of(4)), BTreeSet::new());
        assert_eq!(wanted(&foreign(&[(1, "a")]), "a", of(4)), [1].into());
        assert_eq!(wanted(&foreign(&[]), "a", of(1)), BTreeSet::new());
    }

    proptest! {
        /// From anything held by anybody the replicas that are there come to even shares, whoever moves first.
        #[test]
        fn shares_become_even(
            count in 2_u32..9,
            there in 1_usize..5,
            held in proptest::collection::vec(0_usize..5, 9),
            order in proptest::collection::vec(0_usize..5, 400),
        ) {
            let names = ["a", "b", "c", "d"];
            let members = names.get(..there).unwrap();
            let start = (0..count).filter_map(|s| Some((s, *members.get(*held.get(usize::try_from(s).ok()?)?)?)));
            let mut now = view(&start.collect::<Vec<_>>(), members);
            for turn in order.into_iter().chain((0..there).cycle().take(100)) {
                let me = names[turn % there];
                let want = wanted(&now, me, of(count));
                now.holders.retain(|shard, holder| holder != me || want.contains(shard));
                for shard in want {
                    now.holders.entry(shard).or_insert_with(|| me.to_owned());
                }
            }
            let load = |name: &&str| now.holders.values().filter(|h| h == name).count();
            let loads: Vec<usize> = members.iter().map(load).collect();
            prop_assert_eq!(loads.iter().sum::<usize>(), usize::try_from(count).unwrap());
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{:?}", loads);
        }
    }
}
