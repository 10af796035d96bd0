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
    let bytes = record.encode_to_vec();
    let mut frame = Vec::with_capacity(HEADER_BYTES + bytes.len());
    frame.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    frame.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    frame.extend_from_slice(&bytes);
    frame
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

    fn payload(&self) -> Option<&'a [u8]> {
        let length = usize::try_from(u32::from_le_bytes(*self.rest.first_chunk::<4>()?)).ok()?;
        let crc = u32::from_le_bytes(*self.rest.get(4..)?.first_chunk::<4>()?);
        // Zeros are what a power cut leaves at the end of a file; as a frame they would be an empty record with a right checksum.
        if length == 0 || length > FRAME_BYTES_MAX {
            return None;
        }
        let bytes = self.rest.get(HEADER_BYTES..HEADER_BYTES + length)?;
        (crc32fast::hash(bytes) == crc).then_some(bytes)
    }
}

impl Iterator for Frames<'_> {
    type Item = JournalRecord;

    fn next(&mut self) -> Option<JournalRecord> {
        let bytes = self.payload()?;
        self.rest = self.rest.get(HEADER_BYTES + bytes.len()..).unwrap_or_default();
        self.good += HEADER_BYTES + bytes.len();
        // Whole, but not ours to read (a newer version's): passed over.
        Some(JournalRecord::decode(bytes).unwrap_or_default())
    }
}
