//! Shards: the parts into which an agent's decisions are divided, so that several replicas decide at once, each about components of its
//! own. Which shard a component belongs to is a function of its name and the number of shards; what is mesh-wide belongs to shard 0.

use std::collections::BTreeSet;

use crate::ids::{Instance, is_name, sha256_hex};

/// Most shards of one agent: each is a lease of its own, and more replicas than these decide about nothing.
pub const SHARDS_MAX: u32 = 16;

/// Shard of what is mesh-wide.
pub const MESH_SHARD: u32 = 0;

/// Hexadecimal digits of the hash that are taken for a number.
const DIGITS: usize = 15;

/// Into how many shards an agent's decisions are divided: 1 to [`SHARDS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardCount(u32);

/// A number of shards that there cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no number of shards: 1 to {SHARDS_MAX}")]
pub struct ShardError(pub String);

impl Default for ShardCount {
    fn default() -> Self {
        Self::ONE
    }
}

impl std::fmt::Display for ShardCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for ShardCount {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        text.parse().ok().and_then(|count| Self::new(count).ok()).ok_or_else(|| ShardError(text.to_owned()))
    }
}

impl ShardCount {
    /// One shard: whoever holds it decides about everything.
    pub const ONE: Self = Self(1);

    /// A number of shards.
    ///
    /// # Errors
    /// When it is none of 1 to [`SHARDS_MAX`].
    pub fn new(count: u32) -> Result<Self, ShardError> {
        if (1..=SHARDS_MAX).contains(&count) { Ok(Self(count)) } else { Err(ShardError(count.to_string())) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Every shard.
    pub fn all(self) -> std::ops::Range<u32> {
        0..self.0
    }

    /// Shard of a component: the same wherever it is computed, and one for all instances of it.
    #[must_use]
    pub fn shard_of(self, component: &str) -> u32 {
        if self.0 == 1 {
            return MESH_SHARD;
        }
        let hash = sha256_hex(component.as_bytes());
        let number = hash.get(..DIGITS).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0);
        u32::try_from(number % u64::from(self.0)).unwrap_or(MESH_SHARD)
    }

    /// Key in `leases` of a shard. It says of how many, so that a shard of another division is never taken for this one.
    #[must_use]
    pub fn lease_key(self, agent: &str, shard: u32) -> String {
        if self.0 == 1 { format!("shard.{agent}.{shard}") } else { format!("shard.{agent}.{shard}of{}", self.0) }
    }

    /// Key in `leases` by which a replica says that it shares in the shards.
    #[must_use]
    pub fn member_key(self, agent: &str, replica: &str) -> String {
        format!("member.{agent}.{}.{replica}", self.0)
    }
}

/// Pattern of the keys in `leases` of all shards of an agent, however divided.
#[must_use]
pub fn lease_keys(agent: &str) -> String {
    format!("shard.{agent}.*")
}

/// Pattern of the keys in `leases` of all replicas that share in an agent's shards.
#[must_use]
pub fn member_keys(agent: &str) -> String {
    format!("member.{agent}.*.*")
}

/// A key in `leases`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseKey {
    /// A shard.
    Shard {
        /// Agent.
        agent: String,
        /// Shard.
        shard: u32,
        /// Of how many.
        count: ShardCount,
    },
    /// A replica that shares in the shards.
    Member {
        /// Agent.
        agent: String,
        /// Into how many shards it divides.
        count: ShardCount,
        /// The replica.
        replica: String,
    },
}

impl LeaseKey {
    /// Reads a key; `None` for one of a newer version or of nobody.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        let tokens: Vec<&str> = key.split('.').collect();
        match tokens.as_slice() {
            ["shard", agent, rest] if is_name(agent) => {
                let (shard, count) = rest.split_once("of").unwrap_or((rest, "1"));
                Some(Self::Shard { agent: (*agent).to_owned(), shard: shard.parse().ok()?, count: count.parse().ok()? })
            }
            ["member", agent, count, replica] if is_name(agent) && is_name(replica) => {
                Some(Self::Member { agent: (*agent).to_owned(), count: count.parse().ok()?, replica: (*replica).to_owned() })
            }
            _ => None,
        }
    }
}

/// The shards that a replica may decide about now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shards {
    count: ShardCount,
    held: BTreeSet<u32>,
}

impl Default for Shards {
    /// Everything: one shard, and it is held.
    fn default() -> Self {
        Self::new(ShardCount::ONE, [MESH_SHARD])
    }
}

impl Shards {
    /// These of `count`; what there is none of is left out.
    #[must_use]
    pub fn new(count: ShardCount, held: impl IntoIterator<Item = u32>) -> Self {
        Self { count, held: held.into_iter().filter(|shard| *shard < count.get()).collect() }
    }

    /// Into how many the decisions are divided.
    #[must_use]
    pub const fn count(&self) -> ShardCount {
        self.count
    }

    /// The shards.
    #[must_use]
    pub const fn held(&self) -> &BTreeSet<u32> {
        &self.held
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether there is more than one shard to hold.
    #[must_use]
    pub const fn is_divided(&self) -> bool {
        self.count.get() > 1
    }

    /// Whether this replica decides about a component.
    #[must_use]
    pub fn decides(&self, component: &str) -> bool {
        self.held.contains(&self.count.shard_of(component))
    }

    /// Whether this replica decides about an instance, that is about its component.
    #[must_use]
    pub fn decides_on(&self, instance: &Instance) -> bool {
        self.decides(&instance.component)
    }

    /// Whether this replica decides about what is mesh-wide.
    #[must_use]
    pub fn decides_on_mesh(&self) -> bool {
        self.held.contains(&MESH_SHARD)
    }

    /// Share of a mesh-wide quota of `all` that `shard` has for itself; what does not divide is shard 0's.
    #[must_use]
    pub fn share(&self, all: usize, shard: u32) -> usize {
        let count = usize::try_from(self.count.get()).unwrap_or(usize::MAX);
        all / count + if shard == MESH_SHARD { all % count } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(count: u32) -> ShardCount {
        ShardCount::new(count).unwrap()
    }

    /// Golden: a replica of another version must compute the same.
    #[test]
    fn a_component_has_one_shard_for_ever() {
        let names = ["api", "db", "memory-store", "c0", "c1", "c2", "c3", "c4"];
        let shards = |count: u32| names.map(|name| of(count).shard_of(name));
        assert_eq!(shards(1), [0; 8]);
        assert_eq!(shards(2), GOLDEN_2);
        assert_eq!(shards(4), GOLDEN_4);
        assert_eq!(shards(16), GOLDEN_16);
    }

    const GOLDEN_2: [u32; 8] = [1, 0, 0, 0, 1, 1, 1, 0];
    const GOLDEN_4: [u32; 8] = [1, 0, 0, 0, 1, 1, 1, 0];
    const GOLDEN_16: [u32; 8] = [5, 8, 12, 8, 13, 5, 9, 12];

    #[test]
    fn a_replica_decides_about_what_its_shards_hold() {
        let one = Shards::new(of(4), [of(4).shard_of("api"), 99]);
        assert!(one.decides("api") && one.decides_on(&Instance::new("api", 3)));
        let none = Shards::new(of(4), of(4).all().filter(|s| *s != of(4).shard_of("api")));
        assert!(!none.decides("api") && none.decides_on_mesh() == (of(4).shard_of("api") != 0));
        assert!(Shards::default().decides("anything") && Shards::default().decides_on_mesh());
        assert!(!Shards::new(of(4), []).decides_on_mesh() && Shards::new(of(4), []).is_none());
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        for text in ["0", "17", "-1", "two", ""] {
            let error = text.parse::<ShardCount>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("1 to 16"), "{error}");
        }
        assert_eq!(("1".parse(), "16".parse()), (Ok(of(1)), Ok(of(16))));
    }

    #[test]
    fn keys_round_trip_and_say_of_how_many() {
        let shard = |count: u32, shard: u32| LeaseKey::Shard { agent: "recovery".to_owned(), shard, count: of(count) };
        assert_eq!(LeaseKey::parse("shard.recovery.0"), Some(shard(1, 0)), "as before there were several");
        assert_eq!(LeaseKey::parse(&of(4).lease_key("recovery", 2)), Some(shard(4, 2)));
        let member = of(4).member_key("recovery", "a-recovery-2");
        let parsed = LeaseKey::Member { agent: "recovery".to_owned(), count: of(4), replica: "a-recovery-2".to_owned() };
        assert_eq!(LeaseKey::parse(&member), Some(parsed));
        for foreign in ["shard.recovery", "shard.recovery.x", "shard.recovery.1of99", "member.recovery.4", "node.a", ""] {
            assert_eq!(LeaseKey::parse(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn shares_of_a_quota_are_the_quota(all in 0_usize..100, count in 1..=SHARDS_MAX) {
            let shards = Shards::new(of(count), []);
            prop_assert_eq!(of(count).all().map(|shard| shards.share(all, shard)).sum::<usize>(), all);
        }
    }

    #[test]
    fn components_spread() {
        let count = of(4);
        let mut each = [0_u32; 4];
        for n in 0..400 {
            if let Some(shard) = each.get_mut(usize::try_from(count.shard_of(&format!("component-{n}"))).unwrap()) {
                *shard += 1;
            }
        }
        assert!(each.iter().all(|n| (60..140).contains(n)), "{each:?}");
    }
}
