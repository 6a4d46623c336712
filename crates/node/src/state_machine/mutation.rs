//! What an entry of a shard's log holds: the leader's clock and a batch of mutations
//! (docs/formats.md, "Entries and mutations").
//!
//! The leader appends what clients ask to one [`MutationBatch`] and proposes its bytes; log, links and
//! apply share them. [`Mutations`] reads them back one by one, keys and values as slices of the entry.
//!
//! Kinds 7 to 9 are reserved: range deletes, transactions.
//! A replica that meets a kind it does not know stops: whatever it guessed, the others would differ.

use crate::request::RequestId;
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{Condition, Key, KeyError, Match, Timestamp, Version};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_128;

/// Most mutations in one entry.
pub const ENTRY_KEYS_MAX: usize = 1000;
/// Most bytes in one entry; a single mutation may be longer.
pub const ENTRY_BYTES_MAX: usize = 16 << 20;

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 9;
const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;
const KIND_INCREMENT: u8 = 3;

const KIND_PUT_EXPIRING: u8 = 4;
const KIND_EXPIRE: u8 = 5;
const KIND_IDEMPOTENT: u8 = 6;

/// What an idempotent request has before its mutation.
pub const IDEMPOTENT_BYTES: usize = 17;
/// What a put has behind its value if its key expires.
pub const TTL_BYTES: usize = 8;
/// What an increment has behind its key.
pub const INCREMENT_BYTES: usize = 8;

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Give the key a value if the condition holds.
    Put {
        /// The key.
        key: Key,
        /// Its new value.
        value: Bytes,
        /// How long it has it, by the shard's clock, in whole milliseconds; `None`: for ever.
        ttl: Option<Duration>,
        /// What must hold.
        condition: Condition,
    },
    /// Delete the key if the condition holds.
    Delete {
        /// The key.
        key: Key,
        /// What must hold.
        condition: Condition,
    },
    /// Add to the integer that is the key's value, if the condition holds.
    Increment {
        /// The key.
        key: Key,
        /// What is added.
        by: i64,
        /// What must hold.
        condition: Condition,
    },
    /// Delete the key if its deadline is reached.
    Expire {
        /// The key.
        key: Key,
    },
    /// Do this unless it was done before under the same id.
    Idempotent {
        /// The client's name for the request.
        id: RequestId,
        /// Tells requests apart that bear the same id: a hash of the mutation's bytes.
        fingerprint: u128,
        /// What is to be done; no idempotent one itself.
        mutation: Box<Mutation>,
    },
}

/// Why an entry cannot be applied. The same on each replica, unless its version differs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MutationError {
    /// The entry was made by a newer version.
    #[error("the entry has format {0}, this version knows format {FORMAT}")]
    UnknownFormat(u8),
    /// The mutation was made by a newer version.
    #[error("the entry holds a mutation of kind {0}, which this version does not know")]
    UnknownKind(u8),
    /// The bytes are no entry.
    #[error("the entry cannot be decoded")]
    Malformed(#[from] DecodeError),
    /// The key is none.
    #[error("the entry holds a mutation of no valid key")]
    Key(#[from] KeyError),
}

/// Collects the mutations of one entry in their final bytes.
#[derive(Debug, Default)]
pub struct MutationBatch {
    bytes: BytesMut,
    count: usize,
}

/// Reads the mutations of one entry.
#[derive(Clone, Debug)]
pub struct Mutations {
    clock: Timestamp,
    reader: Reader,
}

impl MutationBatch {
    /// An empty batch.
    pub fn new() -> MutationBatch {
        MutationBatch::default()
    }

    /// How many mutations it holds.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How long the entry is as it stands.
    pub fn byte_count(&self) -> usize {
        self.bytes.len()
    }

    /// Whether a mutation of a key and a value (0: a delete) of these lengths still fits. Into an
    /// empty batch, any does.
    pub fn fits(&self, key_bytes: usize, value_bytes: usize, condition: &Condition) -> bool {
        let bytes = 2 + condition_bytes(condition) + 4 + key_bytes + 4 + value_bytes;
        self.is_empty() || (self.count < ENTRY_KEYS_MAX && self.bytes.len() + bytes <= ENTRY_BYTES_MAX)
    }

    /// Appends a put; gives its position in the entry.
    pub fn put(&mut self, key: &Key, value: &[u8], condition: &Condition) -> usize {
        self.begin(KIND_PUT, key, 4 + value.len(), condition);
        self.bytes.write_bytes(value);
        self.count - 1
    }

    /// Appends a delete; gives its position in the entry.
    pub fn delete(&mut self, key: &Key, condition: &Condition) -> usize {
        self.begin(KIND_DELETE, key, 0, condition);
        self.count - 1
    }

    /// As [`MutationBatch::put`], for a time in whole milliseconds.
    pub fn put_expiring(&mut self, key: &Key, value: &[u8], ttl: Duration, condition: &Condition) -> usize {
        self.begin(KIND_PUT_EXPIRING, key, 4 + value.len() + TTL_BYTES, condition);
        self.bytes.write_bytes(value);
        self.bytes.put_u64_le(ttl.as_millis() as u64);
        self.count - 1
    }

    /// Appends the deletion of a key whose time is over; gives its position in the entry.
    pub fn expire(&mut self, key: &Key) -> usize {
        self.begin(KIND_EXPIRE, key, 0, &Condition::ALWAYS);
        self.count - 1
    }

    /// Appends an increment; gives its position in the entry.
    pub fn increment(&mut self, key: &Key, by: i64, condition: &Condition) -> usize {
        self.begin(KIND_INCREMENT, key, INCREMENT_BYTES, condition);
        self.bytes.put_i64_le(by);
        self.count - 1
    }

    /// Says that the mutation appended next is a request of this id, to be done once.
    pub fn idempotent(&mut self, id: RequestId) {
        self.begin_entry(IDEMPOTENT_BYTES);
        self.bytes.put_u8(KIND_IDEMPOTENT);
        self.bytes.put_u128_le(id.0);
    }

    /// The entry's bytes, stamped with the leader's clock. The batch is empty again.
    pub fn finish(&mut self, clock: Timestamp) -> Bytes {
        self.begin_entry(0);
        self.bytes[1..HEADER_BYTES].copy_from_slice(&clock.0.to_le_bytes());
        self.count = 0;
        self.bytes.split().freeze()
    }

    fn begin_entry(&mut self, bytes_more: usize) {
        if self.bytes.is_empty() {
            self.bytes.reserve(HEADER_BYTES + bytes_more);
            self.bytes.put_u8(FORMAT);
            self.bytes.put_u64_le(0);
        }
    }

    fn begin(&mut self, kind: u8, key: &Key, bytes_more: usize, condition: &Condition) {
        let bytes = 2 + condition_bytes(condition) + 4 + key.as_bytes().len() + bytes_more;
        self.begin_entry(bytes);
        self.bytes.reserve(bytes);
        self.bytes.put_u8(kind);
        encode_condition(condition, &mut self.bytes);
        self.bytes.write_bytes(key.as_bytes());
        self.count += 1;
    }
}

impl Mutations {
    /// Begins to read an entry's data.
    ///
    /// # Errors
    /// If it is of a format that this version does not know.
    pub fn decode(data: Bytes) -> Result<Mutations, MutationError> {
        let mut reader = Reader::new(data);
        match reader.u8("entry format")? {
            FORMAT => Ok(Mutations { clock: Timestamp(reader.u64("entry clock")?), reader }),
            other => Err(MutationError::UnknownFormat(other)),
        }
    }

    /// The leader's clock when it made the entry.
    pub fn clock(&self) -> Timestamp {
        self.clock
    }

    /// The next mutation; `None` behind the last.
    ///
    /// # Errors
    /// If the bytes are none that this version knows.
    pub fn next_mutation(&mut self) -> Result<Option<Mutation>, MutationError> {
        if self.reader.remaining() == 0 {
            return Ok(None);
        }
        let kind = self.reader.u8("mutation kind")?;
        if kind != KIND_IDEMPOTENT {
            return self.mutation(kind).map(Some);
        }
        let id = RequestId(self.reader.u128("request id")?);
        let bytes = self.reader.clone().rest();
        let kind = self.reader.u8("mutation kind")?;
        let mutation = Box::new(self.mutation(kind)?);
        let fingerprint = xxh3_128(&bytes[..bytes.len() - self.reader.remaining()]);
        Ok(Some(Mutation::Idempotent { id, fingerprint, mutation }))
    }

    /// A mutation of a key, behind its kind.
    fn mutation(&mut self, kind: u8) -> Result<Mutation, MutationError> {
        if !(KIND_PUT..=KIND_EXPIRE).contains(&kind) {
            return Err(MutationError::UnknownKind(kind));
        }
        let condition = decode_condition(&mut self.reader)?;
        if kind == KIND_EXPIRE && !condition.is_always() {
            return Err(DecodeError::Invalid("condition of an expiry", 1).into());
        }
        let key = Key::new(self.reader.bytes("key")?)?;
        Ok(match kind {
            KIND_PUT => Mutation::Put { key, value: self.reader.bytes("value")?, ttl: None, condition },
            KIND_PUT_EXPIRING => {
                let value = self.reader.bytes("value")?;
                let ttl = Some(Duration::from_millis(self.reader.u64("time to live")?));
                Mutation::Put { key, value, ttl, condition }
            }
            KIND_EXPIRE => Mutation::Expire { key },
            KIND_INCREMENT => Mutation::Increment { key, by: self.reader.u64("increment")? as i64, condition },
            _ => Mutation::Delete { key, condition },
        })
    }
}

const MATCH_NONE: u8 = 0;
const MATCH_ANY: u8 = 1;
const MATCH_VERSIONS: u8 = 2;

fn match_code(m: &Option<Match>) -> u8 {
    match m {
        None => MATCH_NONE,
        Some(Match::Any) => MATCH_ANY,
        Some(Match::Versions(_)) => MATCH_VERSIONS,
    }
}

fn condition_bytes(condition: &Condition) -> usize {
    let versions = |m: &Option<Match>| if let Some(Match::Versions(versions)) = m { 4 + versions.len() * 8 } else { 0 };
    versions(&condition.if_match) + versions(&condition.if_none_match)
}

/// One byte, `If-Match` in the low half and `If-None-Match` in the high half, then the versions named.
fn encode_condition(condition: &Condition, out: &mut BytesMut) {
    out.put_u8(match_code(&condition.if_match) | match_code(&condition.if_none_match) << 4);
    for m in [&condition.if_match, &condition.if_none_match] {
        if let Some(Match::Versions(versions)) = m {
            out.put_u32_le(versions.len() as u32);
            for version in versions {
                out.put_u64_le(version.0);
            }
        }
    }
}

fn decode_condition(reader: &mut Reader) -> Result<Condition, DecodeError> {
    let codes = reader.u8("condition")?;
    if codes == 0 {
        return Ok(Condition::ALWAYS);
    }
    Ok(Condition { if_match: decode_match(codes & 0x0F, reader)?, if_none_match: decode_match(codes >> 4, reader)? })
}

fn decode_match(code: u8, reader: &mut Reader) -> Result<Option<Match>, DecodeError> {
    match code {
        MATCH_NONE => Ok(None),
        MATCH_ANY => Ok(Some(Match::Any)),
        MATCH_VERSIONS => {
            let count = reader.count(8, "versions")?;
            let versions = (0..count).map(|_| reader.u64("version").map(Version)).collect::<Result<_, _>>()?;
            Ok(Some(Match::Versions(versions)))
        }
        other => Err(DecodeError::Invalid("condition", u64::from(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_match() -> impl Strategy<Value = Option<Match>> {
        prop_oneof![
            Just(None),
            Just(Some(Match::Any)),
            proptest::collection::vec(any::<u64>().prop_map(Version), 0..4).prop_map(|v| Some(Match::Versions(v))),
        ]
    }

    fn any_mutation() -> impl Strategy<Value = Mutation> {
        let key = proptest::collection::vec(any::<u8>(), 1..20).prop_map(|k| Key::new(k).expect("1 to 20 bytes"));
        let condition = (any_match(), any_match()).prop_map(|(if_match, if_none_match)| Condition { if_match, if_none_match });
        (key, 0..5, proptest::collection::vec(any::<u8>(), 0..40), any::<i64>(), condition).prop_map(|(key, kind, value, by, condition)| {
            match kind {
                0 => Mutation::Put { key, value: value.into(), ttl: None, condition },
                1 => Mutation::Put { key, value: value.into(), ttl: Some(Duration::from_millis(by as u64)), condition },
                2 => Mutation::Expire { key },
                3 => Mutation::Delete { key, condition },
                _ => Mutation::Increment { key, by, condition },
            }
        })
    }

    fn read(data: Bytes) -> Result<(Timestamp, Vec<Mutation>), MutationError> {
        let mut mutations = Mutations::decode(data)?;
        let mut all = Vec::new();
        while let Some(mutation) = mutations.next_mutation()? {
            all.push(mutation);
        }
        Ok((mutations.clock(), all))
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(mutations in proptest::collection::vec(any_mutation(), 0..20), clock: u64) {
            let mut batch = MutationBatch::new();
            for (position, mutation) in mutations.iter().enumerate() {
                let given = match mutation {
                    Mutation::Put { key, value, ttl: None, condition } => batch.put(key, value, condition),
                    Mutation::Put { key, value, ttl: Some(ttl), condition } => batch.put_expiring(key, value, *ttl, condition),
                    Mutation::Expire { key } => batch.expire(key),
                    Mutation::Delete { key, condition } => batch.delete(key, condition),
                    Mutation::Increment { key, by, condition } => batch.increment(key, *by, condition),
                    Mutation::Idempotent { .. } => unreachable!("not drawn here"),
                };
                prop_assert_eq!(given, position);
            }
            let data = batch.finish(Timestamp(clock));
            prop_assert!(batch.is_empty() && batch.byte_count() == 0);
            prop_assert_eq!(read(data).expect("our own bytes"), (Timestamp(clock), mutations));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = read(bytes.into());
        }
    }

    #[test]
    fn the_first_format_stays_readable() {
        let data = b"\x01\x2a\0\0\0\0\0\0\0\
            \x01\x00\x01\0\0\0a\x02\0\0\0hi\
            \x01\x12\x01\0\0\0\x07\0\0\0\0\0\0\0\x01\0\0\0b\0\0\0\0\
            \x02\x01\x01\0\0\0c\
            \x03\x00\x01\0\0\0d\xfe\xff\xff\xff\xff\xff\xff\xff\
            \x04\x00\x01\0\0\0f\x02\0\0\0ho\xe8\x03\0\0\0\0\0\0\
            \x05\x00\x01\0\0\0f\
            \x06\x2b\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\x00\x01\0\0\0e";
        let key = |k: &'static str| Key::new(k).expect("valid");
        let b = Condition { if_match: Some(Match::Versions(vec![Version(7)])), if_none_match: Some(Match::Any) };
        let expected = vec![
            Mutation::Put { key: key("a"), value: "hi".into(), ttl: None, condition: Condition::ALWAYS },
            Mutation::Put { key: key("b"), value: Bytes::new(), ttl: None, condition: b },
            Mutation::Delete { key: key("c"), condition: Condition { if_match: Some(Match::Any), if_none_match: None } },
            Mutation::Increment { key: key("d"), by: -2, condition: Condition::ALWAYS },
            Mutation::Put { key: key("f"), value: "ho".into(), ttl: Some(Duration::from_secs(1)), condition: Condition::ALWAYS },
            Mutation::Expire { key: key("f") },
            Mutation::Idempotent {
                id: RequestId(43),
                // Of the bytes of the delete: stored beside answers, so it must not change.
                fingerprint: xxh3_128(b"\x02\x00\x01\0\0\0e"),
                mutation: Box::new(Mutation::Delete { key: key("e"), condition: Condition::ALWAYS }),
            },
        ];
        assert_eq!(read(Bytes::from_static(data)), Ok((Timestamp(42), expected)));
    }

    #[test]
    fn a_request_of_an_id_is_told_from_others_by_its_bytes() {
        let entry = |by| {
            let mut batch = MutationBatch::new();
            batch.idempotent(RequestId(9));
            let position = batch.increment(&Key::new("k").expect("valid"), by, &Condition::ALWAYS);
            assert_eq!((position, batch.len()), (0, 1));
            batch.delete(&Key::new("k").expect("valid"), &Condition::ALWAYS);
            read(batch.finish(Timestamp(1))).expect("our own bytes").1
        };
        let (one, again, two) = (entry(1), entry(1), entry(2));
        assert_eq!((one.len(), &one), (2, &again));
        let Mutation::Idempotent { id: RequestId(9), fingerprint, mutation } = &one[0] else { panic!("{one:?}") };
        assert!(matches!(**mutation, Mutation::Increment { by: 1, .. }));
        assert!(matches!(&two[0], Mutation::Idempotent { fingerprint: other, .. } if other != fingerprint));
        // One within another would be one that its own record hides.
        let nested = [&b"\x01\0\0\0\0\0\0\0\0"[..], &[6], &[0; 16], &[6]].concat();
        assert_eq!(read(nested.into()), Err(MutationError::UnknownKind(6)));
    }

    /// Found by fuzzing: it was read, and its condition forgotten.
    #[test]
    fn an_expiry_has_no_condition() {
        let data = b"\x01\0\0\0\0\0\0\0\0\x05\x01\x01\0\0\0f";
        assert_eq!(read(Bytes::from_static(data)), Err(DecodeError::Invalid("condition of an expiry", 1).into()));
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        assert_eq!(read(Bytes::from_static(b"\x02\0\0\0\0\0\0\0\0")), Err(MutationError::UnknownFormat(2)));
        assert_eq!(read(Bytes::from_static(b"\x01\0\0\0\0\0\0\0\0\xC8")), Err(MutationError::UnknownKind(200)));
    }

    #[test]
    fn an_entry_is_bounded_by_keys_and_bytes() {
        let (mut batch, key, always) = (MutationBatch::new(), Key::new("k").expect("valid"), Condition::ALWAYS);
        assert!(batch.fits(1, 64 << 20, &always), "a single mutation always fits");
        for _ in 0..ENTRY_KEYS_MAX {
            assert!(batch.fits(1, 0, &always));
            batch.delete(&key, &always);
        }
        assert!(!batch.fits(1, 0, &always));
        batch.finish(Timestamp(0));
        batch.put(&key, &vec![0; ENTRY_BYTES_MAX - 100], &always);
        assert!(batch.fits(1, 50, &always) && !batch.fits(1, 100, &always));
    }
}
