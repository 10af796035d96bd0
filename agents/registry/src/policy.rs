//! Which keys of the bucket `observed` to write next, pure: what the bucket holds against what the projection says, each key a tenth of a
//! second after it changed and at most ten times a second, each write over the revision that is known, so that a former holder's write is
//! refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::projection::{Key, Projection};

/// A key that rested is written this long after it changed, and none more often than that: a crash and its recovery are one write, after
/// those who are waited for have done their work, and a flapping component costs the broker ten writes a second, no more.
pub const WRITE_INTERVAL: Duration = Duration::from_millis(100);
/// Writes under way at once.
pub const WRITES_MAX: usize = 64;

/// A write that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Key in the bucket.
    pub key: String,
    /// Value; `None`: the key is to be deleted.
    pub value: Option<Vec<u8>>,
    /// Revision that it must have; 0: none.
    pub expected: u64,
    /// Number of the bucket that it is meant for, as this replica counts them: what comes of it says nothing of another one.
    pub bucket: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Held {
    revision: u64,
    value: Option<Vec<u8>>,
}

/// What is known of the bucket, and what is to be looked at.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    /// Which bucket it is, by the number of those before it.
    number: u64,
    bucket: BTreeMap<String, Held>,
    suspects: BTreeSet<String>,
    under_way: BTreeSet<String>,
    not_before: BTreeMap<String, Duration>,
}

impl Writer {
    /// The bucket began anew: nothing is in it.
    pub fn reset(&mut self) {
        self.number += 1;
        self.bucket.clear();
        self.under_way.clear();
    }

    /// A key was read or written; `None`: deleted.
    pub fn observe(&mut self, key: &str, revision: u64, value: Option<&[u8]>) {
        let held = self.bucket.entry(key.to_owned()).or_default();
        if revision > held.revision {
            *held = Held { revision, value: value.map(<[u8]>::to_vec) };
            self.suspects.insert(key.to_owned());
        }
    }

    /// These keys of the projection changed.
    pub fn changed(&mut self, keys: impl IntoIterator<Item = Key>, now: Duration) {
        for key in keys.into_iter().map(|k| k.to_string()) {
            // One that waits goes on waiting as it did: what changes all the time is written all the same.
            if !self.suspects.contains(&key) {
                let rested = self.not_before.get(&key).is_none_or(|at| *at <= now);
                if rested {
                    self.not_before.insert(key.clone(), now + WRITE_INTERVAL);
                }
                self.suspects.insert(key);
            }
        }
    }

    /// Everything is to be looked at: the shard was taken, or the projection began anew.
    pub fn suspect_all(&mut self, projection: &Projection) {
        self.under_way.clear();
        self.suspects.extend(self.bucket.keys().cloned());
        self.suspects.extend(projection.keys().into_iter().map(|k| k.to_string()));
    }

    /// The writes to be made now; marks them as under way.
    pub fn decide(&mut self, projection: &Projection, now: Duration) -> Vec<Write> {
        let mut writes = Vec::new();
        let mut settled = Vec::new();
        for key in &self.suspects {
            if self.under_way.len() + writes.len() >= WRITES_MAX {
                break;
            }
            if self.under_way.contains(key) || self.not_before.get(key).is_some_and(|at| *at > now) {
                continue;
            }
            let value = Key::parse(key).and_then(|k| projection.value(&k));
            let held = self.bucket.get(key);
            settled.push(key.clone());
            if held.and_then(|h| h.value.as_ref()) != value.as_ref() {
                writes.push(Write { key: key.clone(), value, expected: held.map_or(0, |h| h.revision), bucket: self.number });
            }
        }
        for key in settled {
            self.suspects.remove(&key);
        }
        for write in &writes {
            self.under_way.insert(write.key.clone());
            self.not_before.insert(write.key.clone(), now + WRITE_INTERVAL);
        }
        self.not_before.retain(|key, at| *at > now || self.suspects.contains(key));
        writes
    }

    /// What came of a write: its revision, or `None` when it was refused or may not have been stored; then it is looked at again.
    pub fn wrote(&mut self, write: &Write, revision: Option<u64>) {
        if write.bucket != self.number {
            // What was written is gone with its bucket.
            return;
        }
        self.under_way.remove(&write.key);
        match revision {
            Some(revision) => self.observe(&write.key, revision, write.value.as_deref()),
            None => {
                self.suspects.insert(write.key.clone());
            }
        }
    }

    /// When, after `now`, there may be something to write; `None`: only after a change.
    #[must_use]
    pub fn next_deadline(&self, now: Duration) -> Option<Duration> {
        let waiting = self.suspects.iter().filter(|k| !self.under_way.contains(*k));
        waiting.filter_map(|k| self.not_before.get(k).copied()).filter(|at| *at > now).min()
    }

    /// Keys that are to be looked at or written.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.suspects.len() + self.under_way.len()
    }
}

#[cfg(test)]
mod tests {
    use razar_bus_schema::v1::{self, event::Fact};

    use super::*;

    fn agent_started(id: &str, version: &str) -> v1::Event {
        let fact = v1::AgentStarted { kind: "registry".to_owned(), id: id.to_owned(), version: version.to_owned(), ..Default::default() };
        v1::Event { id: format!("{id}{version}"), fact: Some(Fact::AgentStarted(fact)), ..Default::default() }
    }

    fn folded_at(projection: &mut Projection, writer: &mut Writer, event: &v1::Event, now: Duration) {
        let next = projection.applied_sequence() + 1;
        projection.apply(next, event);
        writer.changed(projection.take_dirty(), now);
    }

    /// Folded long enough before [`T0`] to be written then.
    fn folded(projection: &mut Projection, writer: &mut Writer, event: &v1::Event) {
        folded_at(projection, writer, event, T0 - WRITE_INTERVAL);
    }

    const T0: Duration = Duration::from_secs(1);

    #[test]
    fn a_key_is_written_over_its_revision_and_not_more_often_than_allowed() {
        let (mut projection, mut writer) = (Projection::new("s"), Writer::default());
        folded(&mut projection, &mut writer, &agent_started("r1", "1"));
        let first = writer.decide(&projection, T0);
        assert_eq!(first.iter().map(|w| (w.key.as_str(), w.expected)).collect::<Vec<_>>(), [("agents.registry.r1", 0)]);
        folded_at(&mut projection, &mut writer, &agent_started("r1", "2"), T0);
        assert!(writer.decide(&projection, T0).is_empty(), "one is under way");
        writer.wrote(&first[0], Some(7));
        assert!(writer.decide(&projection, T0).is_empty(), "it was just written");
        assert_eq!(writer.next_deadline(T0), Some(T0 + WRITE_INTERVAL));
        let second = writer.decide(&projection, T0 + WRITE_INTERVAL);
        assert_eq!(second[0].expected, 7);
        writer.wrote(&second[0], Some(8));
        assert!(writer.decide(&projection, T0 * 9).is_empty());
        assert_eq!((writer.next_deadline(T0 * 9), writer.backlog()), (None, 0));
    }

    #[test]
    fn what_changes_twice_within_a_moment_is_written_once_after_it() {
        let (mut projection, mut writer) = (Projection::new("s"), Writer::default());
        folded_at(&mut projection, &mut writer, &agent_started("r1", "1"), T0);
        assert!(writer.decide(&projection, T0).is_empty(), "it may change again");
        let later = T0 + WRITE_INTERVAL / 2;
        folded_at(&mut projection, &mut writer, &agent_started("r1", "2"), later);
        assert!(writer.decide(&projection, later).is_empty());
        assert_eq!(writer.next_deadline(later), Some(T0 + WRITE_INTERVAL), "from its first change on");
        let written = writer.decide(&projection, T0 + WRITE_INTERVAL);
        assert_eq!(written.len(), 1);
        writer.wrote(&written[0], Some(1));
        assert!(writer.decide(&projection, T0 * 4).is_empty());
        // Long after: again a moment, though it was written before.
        folded_at(&mut projection, &mut writer, &agent_started("r1", "3"), T0 * 5);
        assert!(writer.decide(&projection, T0 * 5).is_empty());
        assert_eq!(writer.decide(&projection, T0 * 5 + WRITE_INTERVAL).len(), 1);
    }

    #[test]
    fn what_the_bucket_lost_or_has_too_much_is_put_right() {
        let (mut projection, mut writer) = (Projection::new("s"), Writer::default());
        folded(&mut projection, &mut writer, &agent_started("r1", "1"));
        let write = writer.decide(&projection, T0).remove(0);
        writer.wrote(&write, Some(1));
        writer.observe("nodes.ghost", 2, Some(b"x"));
        writer.observe("nonsense", 3, Some(b"x"));
        writer.observe("agents.registry.r1", 4, None);
        let mut writes = writer.decide(&projection, T0 * 2);
        writes.sort_by(|a, b| a.key.cmp(&b.key));
        let told: Vec<_> = writes.iter().map(|w| (w.key.as_str(), w.value.is_some(), w.expected)).collect();
        assert_eq!(told, [("agents.registry.r1", true, 4), ("nodes.ghost", false, 2), ("nonsense", false, 3)]);
        writer.wrote(&writes[0], None);
        assert_eq!(writer.decide(&projection, T0 * 3).len(), 1, "what was refused is tried again");
    }

    #[test]
    fn a_new_holder_looks_at_everything_and_writes_only_what_differs() {
        let (mut projection, mut writer) = (Projection::new("s"), Writer::default());
        folded(&mut projection, &mut writer, &agent_started("r1", "1"));
        folded(&mut projection, &mut writer, &agent_started("r2", "1"));
        let same = projection.value(&Key::Agent("registry".to_owned(), "r1".to_owned())).unwrap();
        writer.observe("agents.registry.r1", 5, Some(&same));
        writer.suspect_all(&projection);
        let keys: Vec<_> = writer.decide(&projection, T0).into_iter().map(|w| w.key).collect();
        assert_eq!(keys, ["agents.registry.r2"]);
    }

    #[test]
    fn what_was_written_into_a_bucket_before_is_not_in_this_one() {
        let (mut projection, mut writer) = (Projection::new("s"), Writer::default());
        folded(&mut projection, &mut writer, &agent_started("r1", "1"));
        let write = writer.decide(&projection, T0).remove(0);
        writer.reset();
        writer.wrote(&write, Some(7));
        writer.suspect_all(&projection);
        assert_eq!(writer.decide(&projection, T0 * 2).first().map(|w| w.expected), Some(0));
    }
}
