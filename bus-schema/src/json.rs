//! Protobuf's JSON mapping for every message of the contract, by reflection over the embedded descriptors.
//! Unknown enum values are written as numbers and unknown fields are passed over, so that newer messages are survived. Instants and
//! spans beyond what JSON can say are written as the nearest that it can: one odd message must not hide the others.

use std::sync::OnceLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, ReflectMessage, SerializeOptions, Value};

use crate::DESCRIPTORS;

/// Why a message could not be turned into JSON or read from it.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The embedded descriptors do not know the type.
    #[error("no descriptor of {0}")]
    Descriptor(String),
    /// The text is not JSON of this message.
    #[error("not the JSON of {message}: {why}")]
    Text {
        /// Full name of the message.
        message: String,
        /// What is wrong, with line and column.
        why: String,
    },
    /// The bytes are not of this message.
    #[error("not the bytes of {message}: {why}")]
    Bytes {
        /// Full name of the message.
        message: String,
        /// What is wrong.
        why: String,
    },
}

fn pool() -> Option<&'static DescriptorPool> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(DESCRIPTORS).ok()).as_ref()
}

/// Reads the descriptors, which takes milliseconds and else is done with the first message: for who waits for that message meanwhile.
pub fn prepare() {
    let _ = pool();
}

fn descriptor(name: &str) -> Result<MessageDescriptor, JsonError> {
    pool().and_then(|pool| pool.get_message_by_name(name)).ok_or_else(|| JsonError::Descriptor(name.to_owned()))
}

/// One line of JSON, camelCase names, default values left out.
///
/// # Errors
/// When the descriptors do not know the type (a build with stale generated files).
pub fn to_json<M: Message + Name>(message: &M) -> Result<String, JsonError> {
    to_json_named(&M::full_name(), &message.encode_to_vec())
}

/// As [`to_json`], for the encoded bytes of the message called `full_name` (`razar.v1.Event`).
///
/// # Errors
/// When the type is unknown or the bytes are not of it.
pub fn to_json_named(full_name: &str, bytes: &[u8]) -> Result<String, JsonError> {
    let bad = |why: String| JsonError::Bytes { message: full_name.to_owned(), why };
    let mut dynamic = DynamicMessage::decode(descriptor(full_name)?, bytes).map_err(|e| bad(e.to_string()))?;
    let write = |dynamic: &DynamicMessage| {
        let mut out = Vec::new();
        let options = SerializeOptions::new().stringify_64_bit_integers(true);
        dynamic.serialize_with_options(&mut serde_json::Serializer::new(&mut out), &options).map(|_| out)
    };
    let out = match write(&dynamic) {
        Ok(out) => out,
        Err(_) => {
            bring_into_range(&mut dynamic);
            write(&dynamic).map_err(|e| bad(e.to_string()))?
        }
    };
    String::from_utf8(out).map_err(|e| bad(e.to_string()))
}

/// Seconds of the years 1 and 9999, between which JSON can say an instant.
const INSTANT_SECONDS: (i64, i64) = (-62_135_596_800, 253_402_300_799);
/// Seconds of the longest span that JSON can say: ten thousand years.
const SPAN_SECONDS: i64 = 315_576_000_000;

fn bring_into_range(message: &mut DynamicMessage) {
    let name = message.descriptor().full_name().to_owned();
    if name == "google.protobuf.Timestamp" || name == "google.protobuf.Duration" {
        let mut seconds = message.get_field_by_name("seconds").and_then(|v| v.as_i64()).unwrap_or(0);
        let mut nanos = message.get_field_by_name("nanos").and_then(|v| v.as_i32()).unwrap_or(0);
        if name.ends_with("Timestamp") {
            (seconds, nanos) = (seconds.clamp(INSTANT_SECONDS.0, INSTANT_SECONDS.1), nanos.clamp(0, 999_999_999));
        } else {
            seconds = seconds.clamp(-SPAN_SECONDS, SPAN_SECONDS);
            // Both parts of a span have one sign.
            let (least, most) = (if seconds > 0 { 0 } else { -999_999_999 }, if seconds < 0 { 0 } else { 999_999_999 });
            nanos = nanos.clamp(least, most);
        }
        message.set_field_by_name("seconds", Value::I64(seconds));
        message.set_field_by_name("nanos", Value::I32(nanos));
        return;
    }
    for (_, value) in message.fields_mut() {
        match value {
            Value::Message(inner) => bring_into_range(inner),
            Value::List(items) => items.iter_mut().filter_map(Value::as_message_mut).for_each(bring_into_range),
            Value::Bool(_)
            | Value::I32(_)
            | Value::I64(_)
            | Value::U32(_)
            | Value::U64(_)
            | Value::F32(_)
            | Value::F64(_)
            | Value::String(_)
            | Value::Bytes(_)
            | Value::EnumNumber(_)
            | Value::Map(_) => {}
        }
    }
}

/// Reads protobuf's JSON mapping; unknown fields are passed over.
///
/// # Errors
/// When the text is not JSON of this message.
pub fn from_json<M: Message + Name + Default>(text: &str) -> Result<M, JsonError> {
    let name = M::full_name();
    let bad = |why: String| JsonError::Text { message: name.clone(), why };
    let mut reader = serde_json::Deserializer::from_str(text);
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let dynamic = DynamicMessage::deserialize_with_options(descriptor(&name)?, &mut reader, &options).map_err(|e| bad(e.to_string()))?;
    reader.end().map_err(|e| bad(e.to_string()))?;
    dynamic.transcode_to().map_err(|e| bad(e.to_string()))
}

/// Reads a payload that is either protobuf or, when its first byte is `{`, protobuf's JSON mapping: no proto3 message of the
/// contract begins with that byte.
///
/// # Errors
/// When it is neither.
pub fn from_payload<M: Message + Name + Default>(payload: &[u8]) -> Result<M, JsonError> {
    if payload.first() == Some(&b'{') {
        let text = std::str::from_utf8(payload).map_err(|e| JsonError::Text { message: M::full_name(), why: e.to_string() })?;
        return from_json(text);
    }
    M::decode(payload).map_err(|e| JsonError::Bytes { message: M::full_name(), why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::v1;

    #[test]
    fn a_bare_reason_is_a_command() {
        let command: v1::Command = from_payload(br#"{"reason":"upgrade","for":"7200s"}"#).unwrap();
        assert_eq!(command.reason, "upgrade");
        assert_eq!(command.r#for.unwrap().seconds, 7200);
    }

    #[test]
    fn unknown_values_are_survived() {
        let mut bytes = v1::ObservedComponent { state: 9_999, ..Default::default() }.encode_to_vec();
        bytes.extend([0xfa, 0x3f, 0x02, b'h', b'i']); // field 1023, unknown here
        let read = v1::ObservedComponent::decode(bytes.as_slice()).unwrap();
        assert_eq!(read.state(), v1::InstanceState::Unspecified);
        assert_eq!(to_json(&read).unwrap(), r#"{"state":9999}"#);
        assert_eq!(to_json_named("razar.v1.ObservedComponent", &bytes).unwrap(), r#"{"state":9999}"#);
        let newer: v1::Command = from_json(r#"{"reason":"r","fieldOfTomorrow":{"a":1}}"#).unwrap();
        assert_eq!(newer.reason, "r");
    }

    #[test]
    fn what_json_cannot_say_is_said_as_near_as_it_can() {
        let at = prost_types::Timestamp { seconds: i64::MAX, nanos: i32::MIN };
        let event = v1::Event { id: "x".to_owned(), time: Some(at), ..Default::default() };
        assert_eq!(to_json(&event).unwrap(), r#"{"id":"x","time":"9999-12-31T23:59:59Z"}"#);
        for (seconds, nanos) in [(i64::MIN, i32::MAX), (i64::MAX, i32::MIN), (0, i32::MIN), (1, -1)] {
            let command = v1::Command { r#for: Some(prost_types::Duration { seconds, nanos }), ..Default::default() };
            from_json::<v1::Command>(&to_json(&command).unwrap()).unwrap();
        }
    }

    proptest! {
        #[test]
        fn any_payload_is_survived(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = from_payload::<v1::Command>(&payload);
            let _ = from_payload::<v1::Event>(&payload);
        }

        #[test]
        fn any_text_is_survived(text in "\\{.*") {
            let _ = from_payload::<v1::Command>(text.as_bytes());
        }
    }
}
