//! What the mesh stands on, as its node sees it: the disk of the state directory, the broker's stores, and what is to be done about
//! them. Looks are folded, chores are decided, troubles are told to whoever asks; how a look is taken is the shell's matter.

use std::time::Duration;

use razar_bus_schema::{stream::Store, v1};

/// Free bytes below which the disk counts as full: a broker's block and a journal's segment no longer fit.
const FULL_BELOW_BYTES: u64 = 16 << 20;
/// Free bytes below which people are warned: a third of what the bounded streams may grow to.
const LOW_BELOW_BYTES: u64 = 512 << 20;
/// Free bytes at which a broker that could not store may be started again: it reads its streams, and writes an index of each.
const ROOM_BYTES: u64 = 64 << 20;
/// Looks in a row at which the broker cannot store, with room on its disk, before it is started again: it may be about to find out.
const STUCK_LOOKS: u32 = 3;
/// First and longest pause between two starts of a broker that cannot store: what a start does not mend, the next one hardly will.
const RESTART_PAUSE: Duration = Duration::from_secs(60);
/// See [`RESTART_PAUSE`].
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(3600);
/// Pause before stores are provisioned once more: the one-shot takes some tens of milliseconds, and tries for 30 s by itself.
const PROVISION_PAUSE: Duration = Duration::from_secs(5);

/// The disk of the state directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that may still be written.
    pub free_bytes: u64,
    /// Size.
    pub total_bytes: u64,
}

/// What the broker says of its own storage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum BrokerStore {
    /// It does not say: it is away, or not ours to ask.
    #[default]
    Unknown,
    /// All is well.
    Well,
    /// It cannot store; why, in its words.
    Failing(String),
}

/// One look at all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// When it began, monotonic: what has changed since is not in it.
    pub at: Duration,
    /// Before it began, the broker had stored something that this node told, in this life of its agent or an earlier one.
    pub told_before: bool,
    /// The mesh's stores with their epochs, `None` where one does not exist; `None`: the broker did not tell.
    pub stores: Option<Vec<(Store, Option<String>)>>,
    /// What the broker says of its storage.
    pub broker: BrokerStore,
    /// The disk; `None`: it cannot be looked at.
    pub disk: Option<Disk>,
}

/// What is to be done. Each is a part of the system stack that does its work anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chore {
    /// Make the stores that are missing.
    Provision {
        /// When the look began that showed it.
        seen_at: Duration,
        /// Why, in words.
        why: String,
    },
    /// Start the broker again: an error of its storage is sticky.
    RestartBroker {
        /// When the look began that showed it.
        seen_at: Duration,
        /// Why, in words.
        why: String,
    },
}

/// Which EVENTS this node tells into: others, made anew, know nothing of who lives here.
#[derive(Debug, Clone, Default)]
pub struct EventsSeen {
    epoch: Option<String>,
    /// Something of this node's was stored, and then there were none.
    lost: bool,
}

impl EventsSeen {
    /// Whether it is known which they are. To be asked as soon as one's first event is stored: what is made anew before the first look
    /// would be taken for what was told into.
    #[must_use]
    pub const fn are_known(&self) -> bool {
        self.epoch.is_some()
    }

    /// Folds a look; whether EVENTS are others than those that this node has told into. (An agent that has seen no EVENTS before they are
    /// lost knows by [`Look::told_before`] alone.)
    pub fn apply(&mut self, look: &Look) -> bool {
        match look.stores.iter().flatten().find(|(store, _)| *store == Store::Events) {
            Some((_, Some(epoch))) => {
                let others = self.lost || self.epoch.as_ref().is_some_and(|known| known != epoch);
                *self = Self { epoch: Some(epoch.clone()), lost: false };
                others
            }
            Some((_, None)) => {
                self.lost |= look.told_before;
                false
            }
            None => false,
        }
    }
}

/// What is known of it.
#[derive(Debug, Clone, Default)]
pub struct Upkeep {
    /// The node runs broker and provision itself.
    embedded: bool,
    last: Look,
    missing: Vec<Store>,
    stuck_looks: u32,
    provisioned_at: Option<Duration>,
    restarted_at: Option<Duration>,
    restarts: u32,
}

impl Upkeep {
    /// Nothing seen yet. `embedded`: the node runs broker and provision itself.
    #[must_use]
    pub fn new(embedded: bool) -> Self {
        Self { embedded, ..Self::default() }
    }

    /// Folds a look.
    pub fn apply(&mut self, look: Look) {
        if let Some(stores) = &look.stores {
            self.missing = stores.iter().filter(|(_, epoch)| epoch.is_none()).map(|(store, _)| *store).collect();
        }
        match look.broker {
            BrokerStore::Failing(_) => self.stuck_looks = self.stuck_looks.saturating_add(1),
            BrokerStore::Well => (self.stuck_looks, self.restarts) = (0, 0),
            BrokerStore::Unknown => self.stuck_looks = 0,
        }
        self.last = look;
    }

    /// What is to be done now; what it names counts as under way.
    #[must_use]
    pub fn decide(&mut self, now: Duration) -> Vec<Chore> {
        let mut chores = Vec::new();
        if !self.embedded {
            return chores;
        }
        let seen_at = self.last.at;
        let rests = |since: Option<Duration>, pause| since.is_none_or(|at| now >= at + pause);
        if !self.missing.is_empty() && rests(self.provisioned_at, PROVISION_PAUSE) {
            self.provisioned_at = Some(now);
            chores.push(Chore::Provision { seen_at, why: format!("the broker no longer has {}: made again, empty", self.names()) });
        }
        let pause = RESTART_PAUSE.saturating_mul(1 << self.restarts.min(6)).min(RESTART_PAUSE_MAX);
        let room = self.last.disk.is_some_and(|d| d.free_bytes >= ROOM_BYTES);
        if let BrokerStore::Failing(error) = &self.last.broker
            && room
            && self.stuck_looks >= STUCK_LOOKS
            && rests(self.restarted_at, pause)
        {
            self.restarted_at = Some(now);
            self.restarts = self.restarts.saturating_add(1);
            self.stuck_looks = 0;
            let why = format!("the broker stores nothing though its disk has room again: started anew ({error})");
            chores.push(Chore::RestartBroker { seen_at, why });
        }
        chores
    }

    fn names(&self) -> String {
        self.missing.iter().map(|s| s.label()).collect::<Vec<_>>().join(", ")
    }

    /// What is wrong, for whoever asks; `dir` is the state directory, `journal` why the journal cannot be written and how many events
    /// wait for it in memory.
    #[must_use]
    pub fn troubles(&self, node: &str, dir: &str, journal: Option<(&str, usize)>) -> Vec<v1::Trouble> {
        let trouble = |code: &str, warning, text| v1::Trouble { node: node.to_owned(), code: code.to_owned(), text, warning };
        let mut troubles = Vec::new();
        if let Some(disk) = self.last.disk {
            let room = format!("{} of {} free", size(disk.free_bytes), size(disk.total_bytes));
            if disk.free_bytes < FULL_BELOW_BYTES {
                let text =
                    format!("disk of {dir} is full, {room}: what runs goes on and is healed, nothing new is stored; free space there");
                troubles.push(trouble("disk_full", false, text));
            } else if disk.free_bytes < LOW_BELOW_BYTES {
                let text = format!("disk of {dir} is nearly full, {room}: a full disk stores no event; free space there");
                troubles.push(trouble("disk_low", true, text));
            }
        }
        if let Some((why, held)) = journal {
            let text = format!("the journal cannot be written: {why}; {held} events wait in memory");
            troubles.push(trouble("journal", false, text));
        }
        if let BrokerStore::Failing(error) = &self.last.broker {
            let then = if self.embedded { "it is started anew once there is room" } else { "free space there, then start it anew" };
            troubles.push(trouble("broker_store", false, format!("the broker cannot store: {error}; {then}")));
        }
        if !self.missing.is_empty() {
            let then = if self.embedded { "they are being made again" } else { "run razar-provision" };
            troubles.push(trouble("stores_missing", false, format!("the broker does not have {}; {then}", self.names())));
        }
        troubles
    }
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = UNITS.iter().find(|(_, unit)| bytes >= *unit);
    unit.map_or_else(|| format!("{bytes}B"), |(name, unit)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn look(at: Duration, free_mib: u64, broker: BrokerStore) -> Look {
        let all = Store::ALL.into_iter().map(|s| (s, Some("e".to_owned()))).collect();
        Look { at, told_before: true, stores: Some(all), broker, disk: Some(Disk { free_bytes: free_mib << 20, total_bytes: 4 << 30 }) }
    }

    fn failing() -> BrokerStore {
        BrokerStore::Failing("no space left on device".to_owned())
    }

    fn codes(upkeep: &Upkeep) -> Vec<String> {
        upkeep.troubles("a", "/state", None).into_iter().map(|t| t.code).collect()
    }

    /// Mutation caught: `decide` asks for no room, or for one look alone.
    #[test]
    fn a_broker_that_cannot_store_is_started_again_once_there_is_room_and_not_before() {
        let mut upkeep = Upkeep::new(true);
        for n in 0..60 {
            upkeep.apply(look(n * SECOND, 0, failing()));
            assert_eq!(upkeep.decide(n * SECOND), [], "a start on a full disk mends nothing");
        }
        assert_eq!(codes(&upkeep), ["disk_full", "broker_store"]);
        upkeep.apply(look(60 * SECOND, 0, BrokerStore::Well));
        for n in 61..64 {
            upkeep.apply(look(n * SECOND, 900, failing()));
            let chores = upkeep.decide(n * SECOND);
            assert_eq!(chores.len(), usize::from(n == 63), "{n}: {chores:?}");
        }
    }

    /// Mutation caught: the pause does not grow.
    #[test]
    fn a_start_that_mends_nothing_is_repeated_ever_more_rarely() {
        let mut upkeep = Upkeep::new(true);
        let mut starts = Vec::new();
        for n in 0..1_000 {
            upkeep.apply(look(n * SECOND, 900, failing()));
            starts.extend(upkeep.decide(n * SECOND).iter().map(|_| n));
        }
        assert_eq!(starts, [2, 122, 362, 842]);
        upkeep.apply(look(1_000 * SECOND, 900, BrokerStore::Well));
        assert_eq!(upkeep.restarts, 0, "well again, it begins anew");
    }

    #[test]
    fn other_events_are_told_from_those_that_were_told_into() {
        let first = |epoch: Option<&str>| Look { stores: Some(vec![(Store::Events, epoch.map(str::to_owned))]), ..Look::default() };
        let seen = |epoch: Option<&str>| Look { told_before: true, ..first(epoch) };
        let untold = Look { told_before: true, ..Look::default() };
        let mut events = EventsSeen::default();
        assert!(!events.apply(&first(None)), "a first boot, which has not made them yet");
        assert!(!events.apply(&first(Some("a"))), "the first");
        assert!(!events.apply(&seen(Some("a"))) && !events.apply(&untold));
        assert!(events.apply(&seen(Some("b"))), "made anew between two looks");
        assert!(!events.apply(&seen(None)) && !events.apply(&untold));
        assert!(events.apply(&seen(Some("c"))) && !events.apply(&seen(Some("c"))), "told once");
        let mut events = EventsSeen::default();
        assert!(!events.apply(&seen(None)));
        assert!(events.apply(&seen(Some("b"))), "lost before the first look at them");
        let mut events = EventsSeen::default();
        assert!(!events.are_known() && !events.apply(&seen(Some("a"))) && events.are_known(), "as the first of this node's was stored");
        assert!(events.apply(&seen(Some("b"))), "made anew before the first look at them");
        let mut events = EventsSeen::default();
        assert!(!events.apply(&seen(None)) && !events.are_known(), "lost before it was asked which they are");
        assert!(events.apply(&seen(Some("b"))) && !events.apply(&seen(Some("b"))));
    }

    /// Mutation caught: `apply` forgets what was missing when the broker does not tell.
    #[test]
    fn a_store_that_is_gone_is_made_again() {
        let mut upkeep = Upkeep::new(true);
        let mut gone = look(SECOND, 900, BrokerStore::Well);
        gone.stores = Some(Store::ALL.into_iter().map(|s| (s, (s != Store::Events).then(|| "e".to_owned()))).collect());
        upkeep.apply(gone.clone());
        upkeep.apply(Look { stores: None, ..gone.clone() });
        let chores = upkeep.decide(2 * SECOND);
        assert!(matches!(chores.as_slice(), [Chore::Provision { why, .. }] if why.contains("events")), "{chores:?}");
        assert_eq!(codes(&upkeep), ["stores_missing"]);
        upkeep.apply(gone);
        assert_eq!(upkeep.decide(3 * SECOND), [], "it is under way");
        upkeep.apply(look(8 * SECOND, 900, BrokerStore::Well));
        assert_eq!((upkeep.decide(8 * SECOND), codes(&upkeep).len()), (Vec::new(), 0));
    }

    #[test]
    fn who_runs_no_broker_tells_and_does_nothing() {
        let mut upkeep = Upkeep::new(false);
        for n in 0..10 {
            let mut look = look(n * SECOND, 900, BrokerStore::Unknown);
            look.stores = Some(vec![(Store::Leases, None)]);
            upkeep.apply(look);
            assert_eq!(upkeep.decide(n * SECOND), []);
        }
        assert!(upkeep.troubles("a", "/state", None)[0].text.contains("leases; run razar-provision"));
    }

    #[test]
    fn a_disk_that_fills_is_told_before_it_is_full() {
        let mut upkeep = Upkeep::new(true);
        for (free, code) in [(3_000, None), (511, Some("disk_low")), (15, Some("disk_full"))] {
            upkeep.apply(look(SECOND, free, BrokerStore::Well));
            assert_eq!(codes(&upkeep), code.into_iter().collect::<Vec<_>>(), "{free} MiB");
        }
        let told = upkeep.troubles("a", "/state", Some(("no space", 7)));
        assert_eq!(
            told[0].text,
            "disk of /state is full, 15MiB of 4GiB free: what runs goes on and is healed, nothing new is stored; free space there"
        );
        assert_eq!((told[1].code.as_str(), told[1].text.ends_with("7 events wait in memory")), ("journal", true));
    }
}
