//! Builds rows: keys and values in one growing buffer that the store then shares, each value with its
//! checksum, and the chained hash over every write.
//!
//! The hash takes in what is the same on each replica: relative keys and values, not the prefix,
//! which holds the replica's id. It is chained write by write, so it does not depend on which entries
//! were applied together.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_storage::store::layout::{self, CHECKSUM_BYTES, CHUNK_BYTES, GENERATION_PREFIX_BYTES, INLINE_VALUE_BYTES_MAX, RowKind};
use flotilla_storage::store::{StoreError, WriteBatch};
use flotilla_types::{Key, Timestamp, Version};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Mixed into the hash of a delete, so that it differs from a put of the same bytes.
const DELETE_SEED: u64 = 0x9E37_79B9_7F4A_7C15;

const TAG_INLINE: u8 = 0;
const TAG_CHUNKED: u8 = 1;
/// Set in a tag: the deadline stands behind the version.
const TAG_EXPIRING: u8 = 2;
/// Tag and version.
const KEY_ROW_HEADER_BYTES: usize = 9;
const DEADLINE_BYTES: usize = 8;

/// What a key row says, apart from an inline value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHead {
    /// The key's version.
    pub version: Version,
    /// The value's length.
    pub value_bytes: u32,
    /// In how many chunk rows the value lies; 0: it is inline.
    pub chunks: u32,
    /// From when on the key counts as absent, by the shard's clock.
    pub deadline: Option<Timestamp>,
}

/// The row writes of a job under construction.
#[derive(Debug, Default)]
pub(super) struct RowWriter {
    buffer: BytesMut,
    pub(super) batch: WriteBatch,
}

impl KeyHead {
    /// What a value of this length will have for a head.
    pub(super) fn of_value(version: Version, value: &[u8], deadline: Option<Timestamp>) -> KeyHead {
        let chunks = if value.len() > INLINE_VALUE_BYTES_MAX { value.len().div_ceil(CHUNK_BYTES) as u32 } else { 0 };
        KeyHead { version, value_bytes: value.len() as u32, chunks, deadline }
    }

    /// Reads a key row's value; the inline value behind the head.
    ///
    /// # Errors
    /// If it is not what was written.
    pub fn decode(relative_key: &[u8], row: Bytes) -> Result<(KeyHead, Bytes), StoreError> {
        let wrong = |what: &str| StoreError::Damaged(format!("the row \"{}\" {what}", relative_key.escape_ascii()));
        let body = layout::verify_shared(relative_key, row)?;
        let Some((header, _)) = body.split_first_chunk::<KEY_ROW_HEADER_BYTES>() else {
            return Err(wrong("is too short"));
        };
        let [tag, version @ ..] = *header;
        let version = Version(u64::from_le_bytes(version));
        let mut rest = body.slice(KEY_ROW_HEADER_BYTES..);
        let mut deadline = None;
        if tag & TAG_EXPIRING != 0 {
            let Some(bytes) = rest.first_chunk::<DEADLINE_BYTES>() else { return Err(wrong("has no deadline")) };
            deadline = Some(Timestamp(u64::from_le_bytes(*bytes)));
            rest.advance(DEADLINE_BYTES);
        }
        match tag & !TAG_EXPIRING {
            TAG_INLINE => Ok((KeyHead { version, value_bytes: rest.len() as u32, chunks: 0, deadline }, rest)),
            TAG_CHUNKED => {
                let Ok(numbers) = <[u8; 8]>::try_from(&rest[..]) else { return Err(wrong("has no length and chunk count")) };
                let [a, b, c, d, e, f, g, h] = numbers;
                let (value_bytes, chunks) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
                let head = KeyHead { version, value_bytes, chunks, deadline };
                Ok((head, Bytes::new()))
            }
            _ => Err(wrong(&format!("has the tag {tag}, which this version does not know"))),
        }
    }
}

/// The key of a chunk row. A key and a chunk number cannot be taken for another key and number: rows of
/// one length have keys of one length.
pub(super) fn chunk_rest(key: &Key, number: u32) -> Vec<u8> {
    let mut rest = Vec::with_capacity(key.as_bytes().len() + 4);
    rest.extend_from_slice(key.as_bytes());
    rest.extend_from_slice(&number.to_be_bytes());
    rest
}

impl RowWriter {
    /// Sets a data row to checksum, `head` and `tail`; gives the chained hash.
    pub(super) fn put_row(
        &mut self,
        prefix: &[u8; GENERATION_PREFIX_BYTES],
        kind: RowKind,
        rest: &[u8],
        value: (&[u8], &[u8]),
        hash: u64,
    ) -> u64 {
        let (head, tail) = value;
        let buffer = &mut self.buffer;
        debug_assert!(buffer.is_empty());
        let key_bytes = GENERATION_PREFIX_BYTES + 1 + rest.len();
        buffer.reserve(key_bytes + CHECKSUM_BYTES + head.len() + tail.len());
        buffer.put_slice(prefix);
        buffer.put_u8(kind as u8);
        buffer.put_slice(rest);
        buffer.put_u32_le(0);
        buffer.put_slice(head);
        buffer.put_slice(tail);
        let body = key_bytes + CHECKSUM_BYTES;
        let sum = layout::checksum(&buffer[GENERATION_PREFIX_BYTES..key_bytes], &buffer[body..]);
        buffer[key_bytes..body].copy_from_slice(&sum.to_le_bytes());
        let hash = xxh3_64_with_seed(&buffer[GENERATION_PREFIX_BYTES..], hash);
        let mut key = buffer.split().freeze();
        let value = key.split_off(key_bytes);
        self.batch.put(key, value);
        hash
    }

    /// Deletes a data row; gives the chained hash.
    pub(super) fn delete_row(&mut self, prefix: &[u8; GENERATION_PREFIX_BYTES], kind: RowKind, rest: &[u8], hash: u64) -> u64 {
        self.buffer.reserve(GENERATION_PREFIX_BYTES + 1 + rest.len());
        self.buffer.put_slice(prefix);
        self.buffer.put_u8(kind as u8);
        self.buffer.put_slice(rest);
        let hash = xxh3_64_with_seed(&self.buffer[GENERATION_PREFIX_BYTES..], hash ^ DELETE_SEED);
        self.batch.delete(self.buffer.split().freeze());
        hash
    }

    /// Writes a key and its value, and takes away what chunks of the value before it are left over.
    pub(super) fn put_key(
        &mut self,
        prefix: &[u8; GENERATION_PREFIX_BYTES],
        key: &Key,
        head: KeyHead,
        value: &[u8],
        before: Option<KeyHead>,
        mut hash: u64,
    ) -> u64 {
        let mut header = [0; KEY_ROW_HEADER_BYTES + DEADLINE_BYTES + 8];
        header[0] = if head.chunks == 0 { TAG_INLINE } else { TAG_CHUNKED };
        header[1..KEY_ROW_HEADER_BYTES].copy_from_slice(&head.version.0.to_le_bytes());
        let mut end = KEY_ROW_HEADER_BYTES;
        if let Some(deadline) = head.deadline {
            header[0] |= TAG_EXPIRING;
            header[end..][..DEADLINE_BYTES].copy_from_slice(&deadline.0.to_le_bytes());
            end += DEADLINE_BYTES;
        }
        if head.chunks == 0 {
            hash = self.put_row(prefix, RowKind::Key, key.as_bytes(), (&header[..end], value), hash);
        } else {
            header[end..][..4].copy_from_slice(&head.value_bytes.to_le_bytes());
            header[end + 4..][..4].copy_from_slice(&head.chunks.to_le_bytes());
            hash = self.put_row(prefix, RowKind::Key, key.as_bytes(), (&header[..end + 8], &[]), hash);
            for (number, chunk) in value.chunks(CHUNK_BYTES).enumerate() {
                // The version ties a chunk to its key row.
                let version = head.version.0.to_le_bytes();
                hash = self.put_row(prefix, RowKind::Chunk, &chunk_rest(key, number as u32), (&version, chunk), hash);
            }
        }
        self.delete_chunks(prefix, key, head.chunks..before.map_or(0, |before| before.chunks), hash)
    }

    /// Deletes a key that is there.
    pub(super) fn delete_key(&mut self, prefix: &[u8; GENERATION_PREFIX_BYTES], key: &Key, before: KeyHead, hash: u64) -> u64 {
        let hash = self.delete_row(prefix, RowKind::Key, key.as_bytes(), hash);
        self.delete_chunks(prefix, key, 0..before.chunks, hash)
    }

    fn delete_chunks(&mut self, prefix: &[u8; GENERATION_PREFIX_BYTES], key: &Key, numbers: std::ops::Range<u32>, mut hash: u64) -> u64 {
        for number in numbers {
            hash = self.delete_row(prefix, RowKind::Chunk, &chunk_rest(key, number), hash);
        }
        hash
    }

    /// Sets a row of the control group's state.
    pub(super) fn put_control(&mut self, prefix: &[u8; GENERATION_PREFIX_BYTES], name: &[u8], value: &[u8], hash: u64) -> u64 {
        self.put_row(prefix, RowKind::Control, name, (value, &[]), hash)
    }

    /// Sets a row outside the data rows; its whole key counts as the relative key. Not hashed: it is
    /// this replica's own affair.
    pub(super) fn put_own(&mut self, key: &[u8], encode: impl FnOnce(&mut BytesMut)) {
        self.buffer.put_slice(key);
        self.buffer.put_u32_le(0);
        encode(&mut self.buffer);
        let body = key.len() + CHECKSUM_BYTES;
        let sum = layout::checksum(key, &self.buffer[body..]);
        self.buffer[key.len()..body].copy_from_slice(&sum.to_le_bytes());
        let mut row = self.buffer.split().freeze();
        let value = row.split_off(key.len());
        self.batch.put(row, value);
    }
}
