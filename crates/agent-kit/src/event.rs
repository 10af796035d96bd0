//! Events that agents say about themselves and about what they could not read.

use std::time::{SystemTime, UNIX_EPOCH};

use razar_bus::{FoldItem, RefusedCommand};
use razar_bus_schema::{
    event::{Kind, agent_event_id},
    time::timestamp,
    v1::{self, event::Fact},
};

/// An event about the mesh itself by the agent `kind`, replica `replica`; `cause` makes its id.
#[must_use]
pub fn mesh_event(mesh: &str, kind: &str, replica: &str, fact: Fact, cause: &str, now: SystemTime) -> v1::Event {
    v1::Event {
        id: agent_event_id(kind, fact.kind(), None, None, cause),
        kind: fact.kind().to_owned(),
        time: Some(timestamp(now)),
        source: Some(v1::Actor { kind: kind.to_owned(), id: replica.to_owned() }),
        cause_id: cause.to_owned(),
        mesh: mesh.to_owned(),
        stack: "system".to_owned(),
        fact: Some(fact),
        ..v1::Event::default()
    }
}

/// The event that tells of a message which the fold passed over; none for other items. Every replica computes the same id from the
/// stream's epoch and the sequence, so that it is told once.
#[must_use]
pub fn dead_letter(mesh: &str, kind: &str, replica: &str, epoch: &str, item: &FoldItem, now: SystemTime) -> Option<v1::Event> {
    let FoldItem::DeadLetter { sequence, subject, why, bytes } = item else { return None };
    let fact = Fact::DeadLettered(v1::DeadLettered {
        subject: subject.clone(),
        why: why.clone(),
        bytes: u64::try_from(*bytes).unwrap_or(u64::MAX),
        stream_sequence: *sequence,
    });
    Some(mesh_event(mesh, kind, replica, fact, &format!("{epoch}/{sequence}"), now))
}

/// The event that tells of a command which nobody can carry out. Its id is computed from the command's place: sequence, and when it was
/// stored, since a stream that was made anew counts from 1.
#[must_use]
pub fn refused_command(mesh: &str, kind: &str, replica: &str, refused: &RefusedCommand, now: SystemTime) -> v1::Event {
    let fact = Fact::DeadLettered(v1::DeadLettered {
        subject: refused.subject.clone(),
        why: refused.why.clone(),
        bytes: u64::try_from(refused.bytes).unwrap_or(u64::MAX),
        stream_sequence: refused.sequence,
    });
    let stored = refused.stored.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    mesh_event(mesh, kind, replica, fact, &format!("command/{}/{stored}", refused.sequence), now)
}
