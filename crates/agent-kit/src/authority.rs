//! When a replica may decide: only under the lease, and only after reading EVENTS and intents to the head *after* taking it
//! (`flows.md`, Agent replicas). A pure state machine; who takes leases and reads heads is the wiring's matter.

/// A request for the heads of both streams. An answer to an older request is void.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadsWanted(u64);

/// What one replica knows about its right to decide.
#[derive(Debug, Clone, Default)]
pub struct Authority {
    /// Fence of the tenure; none: another holds the lease.
    fence: Option<u64>,
    connected: bool,
    /// Raised by whatever makes heads that were read before worthless.
    round: u64,
    heads: Option<Heads>,
    events_applied: u64,
    intents_applied: u64,
}

#[derive(Debug, Clone, Copy)]
struct Heads {
    events: u64,
    intents: u64,
}

impl Authority {
    /// A replica that holds nothing and has read nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The lease was taken; `fence` tells this tenure apart from others.
    pub fn lease_taken(&mut self, fence: u64) {
        if self.fence != Some(fence) {
            self.fence = Some(fence);
            self.start_over();
        }
    }

    /// The lease was lost or given back.
    pub fn lease_lost(&mut self) {
        self.fence = None;
        self.start_over();
    }

    /// The connection is up.
    pub fn connected(&mut self) {
        self.connected = true;
    }

    /// The connection was lost: what was missed is folded before anything is decided.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.start_over();
    }

    /// EVENTS began anew: everything folded is void.
    pub fn events_reset(&mut self) {
        self.events_applied = 0;
        self.start_over();
    }

    /// The bucket of intents began anew.
    pub fn intents_reset(&mut self) {
        self.intents_applied = 0;
        self.start_over();
    }

    /// Another store that decisions are written to began anew: it is read to its head before anything is written there.
    pub fn store_reset(&mut self) {
        self.start_over();
    }

    /// Every event up to `sequence` is folded (also those passed over).
    pub fn events_applied(&mut self, sequence: u64) {
        self.events_applied = self.events_applied.max(sequence);
    }

    /// Every intent up to `revision` is folded, with nothing pending behind it.
    pub fn intents_applied(&mut self, revision: u64) {
        self.intents_applied = self.intents_applied.max(revision);
    }

    /// The heads to be read from the broker now, if any. The answer goes to [`Self::heads_read`].
    #[must_use]
    pub fn wants_heads(&self) -> Option<HeadsWanted> {
        (self.fence.is_some() && self.connected && self.heads.is_none()).then_some(HeadsWanted(self.round))
    }

    /// Heads that were read for `wanted`, after it was wanted.
    pub fn heads_read(&mut self, wanted: HeadsWanted, events: u64, intents: u64) {
        if self.wants_heads() == Some(wanted) {
            self.heads = Some(Heads { events, intents });
        }
    }

    /// Whether decisions may be made and written now. Ask the lease itself too, which knows the time.
    #[must_use]
    pub fn may_decide(&self) -> bool {
        self.why_not().is_none()
    }

    /// Fence of the tenure, while the lease is held.
    #[must_use]
    pub fn fence(&self) -> Option<u64> {
        self.fence
    }

    /// Why nothing may be decided, for `/readyz` and logs; none: it may.
    #[must_use]
    pub fn why_not(&self) -> Option<&'static str> {
        let Some(heads) = self.heads else {
            return Some(match (self.connected, self.fence) {
                (false, _) => "the bus is away",
                (true, None) => "another replica holds the lease",
                (true, Some(_)) => "the heads of events and intents are not read yet",
            });
        };
        if self.events_applied < heads.events {
            return Some("events are not folded to the head yet");
        }
        if self.intents_applied < heads.intents {
            return Some("intents are not folded to the head yet");
        }
        None
    }

    fn start_over(&mut self) {
        self.heads = None;
        self.round += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holder(events: u64, intents: u64) -> Authority {
        let mut a = Authority::new();
        a.connected();
        a.lease_taken(1);
        let wanted = a.wants_heads().unwrap();
        a.heads_read(wanted, events, intents);
        a
    }

    #[test]
    fn a_new_holder_decides_only_at_both_heads() {
        let mut a = holder(10, 3);
        assert!(!a.may_decide());
        a.events_applied(10);
        assert_eq!(a.why_not(), Some("intents are not folded to the head yet"));
        a.intents_applied(3);
        assert!(a.may_decide());
    }

    #[test]
    fn heads_read_before_the_lease_was_taken_do_not_count() {
        let mut a = Authority::new();
        a.connected();
        assert_eq!(a.wants_heads(), None, "without the lease nobody reads heads");
        a.lease_taken(1);
        let old = a.wants_heads().unwrap();
        a.lease_lost();
        a.lease_taken(2);
        a.heads_read(old, 0, 0);
        assert!(!a.may_decide(), "they were read under an earlier tenure");
        a.heads_read(a.wants_heads().unwrap(), 0, 0);
        assert!(a.may_decide());
    }

    #[test]
    fn what_voids_a_view_voids_the_right_to_decide() {
        let voids: [fn(&mut Authority); 4] =
            [Authority::lease_lost, Authority::disconnected, Authority::events_reset, Authority::intents_reset];
        for void in voids {
            let mut a = holder(0, 0);
            assert!(a.may_decide());
            void(&mut a);
            assert!(!a.may_decide());
        }
    }

    #[test]
    fn a_lost_connection_is_caught_up_with_first() {
        let mut a = holder(5, 0);
        a.events_applied(5);
        assert!(a.may_decide());
        a.disconnected();
        a.connected();
        assert!(!a.may_decide());
        a.heads_read(a.wants_heads().unwrap(), 9, 0);
        assert!(!a.may_decide());
        a.events_applied(9);
        assert!(a.may_decide());
    }

    /// What may happen to a replica, in any order.
    #[derive(Debug, Clone)]
    enum Input {
        Taken(u64),
        Lost,
        Up,
        Down,
        Ask,
        Answer(u64, u64),
        Events(u64),
        Intents(u64),
        EventsReset,
        IntentsReset,
    }

    fn inputs() -> impl Strategy<Value = Vec<Input>> {
        let one = prop_oneof![
            (0..4_u64).prop_map(Input::Taken),
            Just(Input::Lost),
            Just(Input::Up),
            Just(Input::Down),
            Just(Input::Ask),
            (0..4_u64, 0..4_u64).prop_map(|(e, i)| Input::Answer(e, i)),
            (0..6_u64).prop_map(Input::Events),
            (0..6_u64).prop_map(Input::Intents),
            Just(Input::EventsReset),
            Just(Input::IntentsReset),
        ];
        proptest::collection::vec(one, 0..60)
    }

    proptest! {
        /// The rule itself, told a second time over the whole history: decided only when the newest heads were asked for after
        /// everything that voids them, and are applied.
        #[test]
        fn nobody_decides_outside_the_rule(history in inputs()) {
            let mut a = Authority::new();
            let (mut held, mut up, mut asked, mut heads) = (None, false, None, None);
            let (mut events, mut intents) = (0, 0);
            for input in history {
                match input {
                    Input::Taken(f) => {
                        if held != Some(f) { (asked, heads) = (None, None); }
                        held = Some(f);
                        a.lease_taken(f);
                    }
                    Input::Lost => { (held, asked, heads) = (None, None, None); a.lease_lost(); }
                    Input::Up => { up = true; a.connected(); }
                    Input::Down => { up = false; (asked, heads) = (None, None); a.disconnected(); }
                    Input::Ask => asked = a.wants_heads().or(asked),
                    Input::Answer(e, i) => if let Some(wanted) = asked.take() {
                        heads = Some((e, i));
                        a.heads_read(wanted, e, i);
                    },
                    Input::Events(s) => { events = events.max(s); a.events_applied(s); }
                    Input::Intents(r) => { intents = intents.max(r); a.intents_applied(r); }
                    Input::EventsReset => { events = 0; (asked, heads) = (None, None); a.events_reset(); }
                    Input::IntentsReset => { intents = 0; (asked, heads) = (None, None); a.intents_reset(); }
                }
                let may = held.is_some() && up && heads.is_some_and(|(e, i)| events >= e && intents >= i);
                prop_assert_eq!(a.may_decide(), may);
            }
        }
    }
}
