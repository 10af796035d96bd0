//! The right to decide, for each shard by itself: losing one does not disturb the others, and one that is taken waits for heads that are
//! read after that. Pure, as [`Authority`], of which there is one for each shard.

use razar_bus_schema::shard::{ShardCount, Shards};

use crate::{Authority, HeadsWanted};

/// A request for the heads, for every shard that waits for them.
pub type TenuresWanted = Vec<(u32, HeadsWanted)>;

/// The authorities of one replica over the shards of its agent.
#[derive(Debug, Clone)]
pub struct Tenures {
    count: ShardCount,
    shards: Vec<Authority>,
}

impl Tenures {
    /// A replica that holds nothing and has read nothing.
    #[must_use]
    pub fn new(count: ShardCount) -> Self {
        Self { count, shards: count.all().map(|_| Authority::new()).collect() }
    }

    /// Tells all of them what concerns the whole view: the connection, a store that began anew, what is applied.
    pub fn each(&mut self, tell: impl Fn(&mut Authority)) {
        self.shards.iter_mut().for_each(tell);
    }

    /// The lease of a shard was taken; `fence` tells this tenure apart from others.
    pub fn taken(&mut self, shard: u32, fence: u64) {
        if let Some(authority) = self.shard(shard) {
            authority.lease_taken(fence);
        }
    }

    /// The lease of a shard was lost or given back.
    pub fn lost(&mut self, shard: u32) {
        if let Some(authority) = self.shard(shard).filter(|a| a.fence().is_some()) {
            authority.lease_lost();
        }
    }

    /// The heads to be read from the broker now, and for which shards; empty: none.
    #[must_use]
    pub fn wants_heads(&self) -> TenuresWanted {
        self.count.all().zip(&self.shards).filter_map(|(shard, authority)| Some((shard, authority.wants_heads()?))).collect()
    }

    /// Heads that were read for `wanted`, after they were wanted.
    pub fn heads_read(&mut self, wanted: &[(u32, HeadsWanted)], events: u64, intents: u64) {
        for (shard, wanted) in wanted {
            if let Some(authority) = self.shard(*shard) {
                authority.heads_read(*wanted, events, intents);
            }
        }
    }

    /// The shards about which may be decided, if `holds` by the leases themselves, which know the time.
    #[must_use]
    pub fn held(&self, holds: impl Fn(u32) -> bool) -> Shards {
        Shards::new(self.count, self.decidable(holds))
    }

    /// Whether there is one of them.
    #[must_use]
    pub fn holds_any(&self, holds: impl Fn(u32) -> bool) -> bool {
        self.decidable(holds).next().is_some()
    }

    fn decidable(&self, holds: impl Fn(u32) -> bool) -> impl Iterator<Item = u32> {
        let held = self.count.all().zip(&self.shards).filter(move |(shard, authority)| authority.may_decide() && holds(*shard));
        held.map(|(shard, _)| shard)
    }

    fn shard(&mut self, shard: u32) -> Option<&mut Authority> {
        self.shards.get_mut(usize::try_from(shard).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four() -> Tenures {
        let mut tenures = Tenures::new(ShardCount::new(4).unwrap());
        tenures.each(Authority::connected);
        tenures
    }

    fn held(tenures: &Tenures) -> Vec<u32> {
        tenures.held(|_| true).held().iter().copied().collect()
    }

    fn read(tenures: &mut Tenures, events: u64) {
        let wanted = tenures.wants_heads();
        tenures.heads_read(&wanted, events, 0);
    }

    #[test]
    fn a_shard_that_is_lost_leaves_the_others() {
        let mut tenures = four();
        tenures.taken(0, 1);
        tenures.taken(2, 2);
        read(&mut tenures, 0);
        assert_eq!(held(&tenures), [0, 2]);
        tenures.lost(0);
        tenures.lost(3);
        assert_eq!(held(&tenures), [2]);
        assert!(tenures.wants_heads().is_empty());
        assert_eq!(tenures.held(|shard| shard != 2).held().len(), 0, "the lease knows the time");
    }

    #[test]
    fn a_shard_that_is_taken_later_waits_for_heads_of_its_own() {
        let mut tenures = four();
        tenures.taken(1, 1);
        let first = tenures.wants_heads();
        tenures.taken(3, 2);
        tenures.heads_read(&first, 5, 0);
        tenures.each(|a| a.events_applied(5));
        assert_eq!(held(&tenures), [1]);
        read(&mut tenures, 9);
        assert_eq!(held(&tenures), [1], "the other is not at its head");
        tenures.each(|a| a.events_applied(9));
        assert_eq!(held(&tenures), [1, 3]);
    }

    #[test]
    fn what_voids_the_view_voids_every_tenure() {
        let mut tenures = four();
        tenures.taken(1, 1);
        tenures.taken(3, 2);
        read(&mut tenures, 0);
        tenures.each(Authority::disconnected);
        assert!(held(&tenures).is_empty());
    }
}
