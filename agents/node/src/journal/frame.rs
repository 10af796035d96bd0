//! Framing of records on disk: `[length u32 LE][crc32 u32 LE][bytes]`, so that a torn or damaged tail is seen and cut.
//! Which records there are, and what they mean, is not here.

use prost::Message as _;
use razar_bus_schema::v1::JournalRecord;

/// Length and checksum before each record.
const HEADER_BYTES: usize = 8;
/// A longer frame is damage: the largest record is a snapshot of a few thousand instances.
pub(super) const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The record as it goes to disk.
pub(super) fn encode(record: &JournalRecord) -> Vec<u8> {
    wrap(&record.encode_to_vec())
}

/// A frame with this content.
pub(crate) fn wrap(bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_BYTES + bytes.len());
    frame.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    frame.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    frame.extend_from_slice(bytes);
    frame
}

/// The content of the first frame, and what follows it; `None`: it is torn, damaged, or longer than `bytes_max`.
pub(crate) fn first(bytes: &[u8], bytes_max: usize) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(u32::from_le_bytes(*bytes.first_chunk::<4>()?)).ok()?;
    let crc = u32::from_le_bytes(*bytes.get(4..)?.first_chunk::<4>()?);
    // Zeros are what a power cut leaves at the end of a file; as a frame they would be an empty record with a right checksum.
    if length == 0 || length > bytes_max {
        return None;
    }
    let (content, rest) = bytes.get(HEADER_BYTES..)?.split_at_checked(length)?;
    (crc32fast::hash(content) == crc).then_some((content, rest))
}

/// The whole records at the front of some bytes, up to the first that is torn or damaged.
pub(super) struct Frames<'a> {
    rest: &'a [u8],
    good: usize,
}

impl<'a> Frames<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, good: 0 }
    }

    /// Bytes of the records given out so far: where a torn file is cut.
    pub(super) fn good_bytes(&self) -> usize {
        self.good
    }
}

impl Iterator for Frames<'_> {
    type Item = JournalRecord;

    fn next(&mut self) -> Option<JournalRecord> {
        let (bytes, rest) = first(self.rest, FRAME_BYTES_MAX)?;
        self.rest = rest;
        self.good += HEADER_BYTES + bytes.len();
        // Whole, but not ours to read (a newer version's): passed over.
        Some(JournalRecord::decode(bytes).unwrap_or_default())
    }
}
