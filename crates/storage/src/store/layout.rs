//! How groups, replicas, generations and keys become rows (docs/formats.md, "The state store").
//!
//! ```text
//! [0x00][group][replica]                                 the replica's state row
//! [0x01][group][replica][generation][kind][rest...]      a data row; "relative key" = from the kind on
//! [0x02][group][replica][generation]                     a generation whose rows are to be swept
//! ```
//! group and generation are u32, replica is u64, all big-endian, so that rows sort by them. Rows are
//! filed under a generation so that a snapshot can be written beside the rows in force and switched
//! to in one write.
//!
//! Every value begins with a CRC-32C over its relative key and the rest of the value, so that a
//! row that was damaged, or that ended up under another key, is found when it is read.

use super::StoreError;
use bytes::{BufMut, Bytes};
use flotilla_types::{GroupId, ReplicaId, ReplicaKey};

/// First byte of state rows.
pub const TABLE_STATE: u8 = 0x00;
/// First byte of data rows.
pub const TABLE_DATA: u8 = 0x01;
/// First byte of the list of dead generations.
pub const TABLE_DEAD: u8 = 0x02;
/// Length of `[table][group][replica]`.
pub const REPLICA_PREFIX_BYTES: usize = 13;
/// Length of `[table][group][replica][generation]`.
pub const GENERATION_PREFIX_BYTES: usize = 17;
/// Length of the checksum that every value begins with.
pub const CHECKSUM_BYTES: usize = 4;

/// Values above this length lie in chunk rows beside their key row.
pub const INLINE_VALUE_BYTES_MAX: usize = 16 << 10;
/// Length of every chunk of such a value but the last.
pub const CHUNK_BYTES: usize = 64 << 10;

/// What a data row holds. The numbers are for ever; those reserved are not written yet, and a
/// replica that meets a kind it does not know stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum RowKind {
    /// `[key]`: a key's version and its value, or the value's length and number of chunks.
    Key = 1,
    /// `[key][number u32 BE]`: a piece of a long value.
    Chunk = 2,
    /// `[name]`: a row of the control group's state.
    Control = 3,
    /// Reserved: a transaction's intent on a key.
    Intent = 4,
    /// `[deadline u64 BE][key]`: the index of deadlines; the length of the key's value.
    Expiry = 5,
    /// Reserved: the history of changes, `[version]`.
    History = 6,
    /// `[request id u128 BE]`: what a request under an `Idempotency-Key` was answered first.
    Idempotency = 7,
}

impl RowKind {
    /// The kind a stored byte stands for, if this version writes such rows.
    pub fn from_byte(byte: u8) -> Option<RowKind> {
        match byte {
            1 => Some(RowKind::Key),
            2 => Some(RowKind::Chunk),
            3 => Some(RowKind::Control),
            5 => Some(RowKind::Expiry),
            7 => Some(RowKind::Idempotency),
            _ => None,
        }
    }
}

/// Where the rows of a replica that are in force are filed. They stay where they are when the replica becomes another
/// one (decision record 0017), so `under` may be an earlier id of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filing {
    /// The replica whose rows they were first.
    pub under: ReplicaKey,
    /// The generation. It alone tells a replica's generations apart, whatever they are filed under.
    pub generation: u32,
}

fn put_replica(out: &mut impl BufMut, table: u8, replica: ReplicaKey) {
    out.put_u8(table);
    out.put_u32(replica.group.0);
    out.put_u64(replica.replica.0);
}

/// The key of a replica's state row.
pub fn state_key(replica: ReplicaKey) -> [u8; REPLICA_PREFIX_BYTES] {
    let mut key = [0; REPLICA_PREFIX_BYTES];
    put_replica(&mut &mut key[..], TABLE_STATE, replica);
    key
}

/// What all data rows of one generation begin with.
pub fn data_prefix(replica: ReplicaKey, generation: u32) -> [u8; GENERATION_PREFIX_BYTES] {
    let mut key = [0; GENERATION_PREFIX_BYTES];
    let mut out = &mut key[..];
    put_replica(&mut out, TABLE_DATA, replica);
    out.put_u32(generation);
    key
}

/// The key under which a generation is listed as dead.
pub fn dead_key(replica: ReplicaKey, generation: u32) -> [u8; GENERATION_PREFIX_BYTES] {
    let mut key = data_prefix(replica, generation);
    key[0] = TABLE_DEAD;
    key
}

/// The key of a key row.
pub fn key_row(replica: ReplicaKey, generation: u32, key: &[u8]) -> Vec<u8> {
    data_row(replica, generation, RowKind::Key, key)
}

/// The key of a data row.
pub fn data_row(replica: ReplicaKey, generation: u32, kind: RowKind, rest: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(GENERATION_PREFIX_BYTES + 1 + rest.len() + 4);
    row.extend_from_slice(&data_prefix(replica, generation));
    row.push(kind as u8);
    row.extend_from_slice(rest);
    row
}

/// The first key behind all keys that begin with `prefix`.
///
/// # Panics
/// If the prefix is all 0xFF; ours begin with a table byte.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while end.last() == Some(&0xFF) {
        end.pop();
    }
    *end.last_mut().expect("our prefixes begin with a table byte below 0xFF") += 1;
    end
}

/// Reads a `[table][group][replica]` key back; `None` if it is none.
pub fn parse_replica(key: &[u8]) -> Option<ReplicaKey> {
    let group = key.get(1..5)?.try_into().ok()?;
    let replica = key.get(5..13)?.try_into().ok()?;
    Some(ReplicaKey { group: GroupId(u32::from_be_bytes(group)), replica: ReplicaId(u64::from_be_bytes(replica)) })
}

/// Reads a `[table][group][replica][generation]` key back; `None` if it is none.
pub fn parse_generation(key: &[u8]) -> Option<(ReplicaKey, u32)> {
    let generation = key.get(13..17)?.try_into().ok()?;
    Some((parse_replica(key)?, u32::from_be_bytes(generation)))
}

/// The checksum that the value of the row `relative_key` begins with, where `body` is the rest of
/// the value. The key's length goes in first, so that bytes cannot wander between key and body.
pub fn checksum(relative_key: &[u8], body: &[u8]) -> u32 {
    let seed = relative_key.len() as u32;
    crc32c::crc32c_append(crc32c::crc32c_append(seed, relative_key), body)
}

/// What stands behind a value's checksum, if that is right.
///
/// # Errors
/// If the value is not what was written under this key.
pub fn verify<'a>(relative_key: &[u8], value: &'a [u8]) -> Result<&'a [u8], StoreError> {
    let damaged = |what: &str| {
        let shown = &relative_key[..relative_key.len().min(64)];
        StoreError::Damaged(format!("the row \"{}\" ({} bytes) {what}", shown.escape_ascii(), value.len()))
    };
    let Some((sum, body)) = value.split_first_chunk::<CHECKSUM_BYTES>() else {
        return Err(damaged("is too short to hold its checksum"));
    };
    if u32::from_le_bytes(*sum) == checksum(relative_key, body) { Ok(body) } else { Err(damaged("does not match its checksum")) }
}

/// As [`verify`], keeping the memory shared.
///
/// # Errors
/// If the value is not what was written under this key.
pub fn verify_shared(relative_key: &[u8], value: Bytes) -> Result<Bytes, StoreError> {
    verify(relative_key, &value)?;
    Ok(value.slice(CHECKSUM_BYTES..))
}

/// A value with its checksum before it.
pub fn seal(relative_key: &[u8], body: &[u8]) -> Bytes {
    let mut value = Vec::with_capacity(CHECKSUM_BYTES + body.len());
    value.extend_from_slice(&checksum(relative_key, body).to_le_bytes());
    value.extend_from_slice(body);
    value.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICA: ReplicaKey = ReplicaKey { group: GroupId(258), replica: ReplicaId(772) };

    #[test]
    fn rows_are_laid_out_as_documented() {
        assert_eq!(state_key(REPLICA), *b"\x00\x00\x00\x01\x02\x00\x00\x00\x00\x00\x00\x03\x04");
        assert_eq!(key_row(REPLICA, 7, b"k"), b"\x01\x00\x00\x01\x02\x00\x00\x00\x00\x00\x00\x03\x04\x00\x00\x00\x07\x01k");
        assert_eq!(dead_key(REPLICA, 7)[0], 2);
        assert_eq!(parse_generation(&dead_key(REPLICA, 7)), Some((REPLICA, 7)));
        assert_eq!(prefix_end(b"\x01\xFF\xFF"), b"\x02");
    }

    #[test]
    fn a_flipped_bit_or_another_key_is_found() {
        let value = seal(b"\x01key", b"body");
        assert_eq!(verify(b"\x01key", &value).expect("intact"), b"body");
        for bit in 0..value.len() * 8 {
            let mut wrong = value.to_vec();
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(b"\x01key", &wrong).is_err(), "bit {bit}");
        }
        assert!(verify(b"\x01kez", &value).is_err());
        assert!(verify(b"\x01key", b"abc").is_err());
    }
}
