//! What the fuzz targets (`crates/fuzzing`) try of stored rows and snapshots, whose decoders are private: not for other use.

use super::rows::KeyHead;
use super::snapshot::Incoming;
use super::{expiry, generation, idempotency};
use bytes::Bytes;
use flotilla_storage::store::layout::{self, GENERATION_PREFIX_BYTES};

/// Reads a row of each kind with this relative key and this body, the checksum put right.
pub fn row(relative_key: &[u8], body: &[u8]) {
    if relative_key.is_empty() {
        return;
    }
    let sealed = layout::seal(relative_key, body);
    let _ = KeyHead::decode(relative_key, sealed.clone());
    let _ = idempotency::read_row(relative_key, &sealed);
    let _ = expiry::read_row(relative_key, &sealed);
    let _ = generation::decode_state(relative_key, &sealed);
    let _ = (layout::parse_replica(relative_key), layout::parse_generation(relative_key));
}

/// Takes chunks of a snapshot, each with a u16 length before it and with its checksum put right.
pub fn snapshot_chunks(mut input: &[u8]) {
    let mut incoming = Incoming::new([0; GENERATION_PREFIX_BYTES]);
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let (body, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        input = rest;
        let chunk = [&crc32c::crc32c(body).to_le_bytes(), body].concat();
        let _ = incoming.take(Bytes::from(chunk));
    }
}

/// A row as it lies in a chunk: key and value with their lengths.
pub fn row_in_chunk(relative_key: &[u8], body: &[u8]) -> Vec<u8> {
    let value = layout::seal(relative_key, body);
    let length = |bytes: &[u8]| (bytes.len() as u32).to_le_bytes();
    [&length(relative_key), relative_key, &length(&value), &value].concat()
}
