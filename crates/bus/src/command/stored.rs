//! What a stored command says, and the id of one that has none.

use std::time::{SystemTime, UNIX_EPOCH};

use razar_bus_schema::{
    PAYLOAD_BYTES_MAX,
    ids::sha256_hex,
    json,
    time::{system_time, timestamp},
    v1,
};

use super::COMMAND_AGE_MAX;
use crate::Bus;

/// Longest command id.
const ID_BYTES_MAX: usize = 64;

/// A command that may be taken up.
pub(super) struct ReadCommand {
    pub(super) verb: String,
    pub(super) target: String,
    pub(super) command: v1::Command,
    pub(super) expires: SystemTime,
}

/// Reads a command as it was stored; the error says what is wrong with it.
pub(super) fn read(bus: &Bus, subject: &str, payload: &[u8], sequence: u64, stored: SystemTime) -> Result<ReadCommand, String> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(format!("{} bytes are more than the {PAYLOAD_BYTES_MAX} allowed", payload.len()));
    }
    let tokens = bus.subjects().parse_command(subject).ok_or("the subject is not <mesh>.command.<agent>.<verb>.<target>")?;
    let (verb, target) = (tokens.verb.to_owned(), tokens.target.to_owned());
    let mut command: v1::Command = json::from_payload(payload).map_err(|e| e.to_string())?;
    if command.command_id.len() > ID_BYTES_MAX {
        return Err(format!("a command id has at most {ID_BYTES_MAX} bytes"));
    }
    if command.command_id.is_empty() {
        command.command_id = computed_id(subject, payload, sequence, stored);
    }
    if command.issuer.is_empty() {
        "anonymous".clone_into(&mut command.issuer);
    }
    let latest = stored + COMMAND_AGE_MAX;
    let expires = command.expires_at.as_ref().map_or(latest, |at| system_time(at).min(latest));
    command.expires_at = Some(timestamp(expires));
    Ok(ReadCommand { verb, target, command, expires })
}

/// Id of a command that has none: the hash of what was sent and of its place in the stream. The place stands for the inbox, which
/// JetStream does not keep: a replica that was started after the command was sent computes the same id.
fn computed_id(subject: &str, payload: &[u8], sequence: u64, stored: SystemTime) -> String {
    let nanos = stored.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut text = format!("{subject}\0{sequence}\0{nanos}\0").into_bytes();
    text.extend_from_slice(payload);
    let mut id = sha256_hex(&text);
    id.truncate(32);
    id
}
