//! The wire contract of the mesh: generated protobuf types, identities, subjects, streams, buckets and keys as types.
//! No IO, no clock, no async runtime: everything here is a pure function of its arguments.
//! What the messages mean is documented in `proto/razar/v1/*.proto`.

pub mod bucket;
pub mod event;
pub mod ids;
pub mod json;
pub mod places;
pub mod presence;
pub mod shard;
pub mod startup;
pub mod stream;
pub mod subject;
pub mod time;
pub mod trace;

/// Types generated from `proto/razar/v1/*.proto` by `cargo xtask codegen`; never edited by hand.
#[expect(clippy::large_enum_variant, reason = "generated code")]
pub mod v1 {
    include!("generated/razar.v1.rs");
}

/// Descriptors of every message in [`v1`], without comments, as an encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/razar.v1.bin");

/// Largest payload that the mesh sends or accepts, in bytes; the broker's `max_payload` is the same.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024;
