//! The table of requests that bore an `Idempotency-Key`, and what they were answered first (decision 5).
//!
//! It is part of the replicated state: rows of a kind of their own hold it, so that restarts, snapshots and
//! leader changes keep it, and whether a request is a repeated one is decided where entries are applied.
//! The applier keeps a copy in memory, since what a job has recorded is not in the store yet.
//!
//! A record is kept for [`RETENTION_MS`] by the shard's clock and swept when a later entry is applied, the
//! oldest first, a bounded number for each entry. A full table takes no new ids: forgetting one early would
//! let its request happen twice. Until it is swept a record answers, also past its time.

use super::apply::{Live, MutationResult, Work};
use super::rows::RowWriter;
use crate::request::{RequestId, WriteRefusal};
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_storage::store::layout::{self, GENERATION_PREFIX_BYTES, RowKind};
use flotilla_storage::store::{StateStore, StoreError, StoreView};
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{ReplicaKey, Timestamp, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// How long a record is kept at least.
pub const RETENTION_MS: u64 = 15 * 60 * 1000;
/// Most records of one shard: about 5 MiB of memory for each replica, 3 MiB in the store.
pub const RECORDS_MAX: usize = 1 << 15;
/// Most records swept before an entry is applied: as many as one entry can add.
const SWEPT_PER_ENTRY: usize = super::mutation::ENTRY_KEYS_MAX;

/// See the module. Invariant: `order` names each record once, under its time.
#[derive(Debug, Default)]
pub(super) struct IdempotencyTable {
    records: BTreeMap<RequestId, Record>,
    order: BTreeSet<(Timestamp, RequestId)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// Which request it was, apart from its id.
    fingerprint: u128,
    answer: MutationResult,
}

impl IdempotencyTable {
    /// Reads the rows of a generation.
    pub(super) fn read<V: StoreView>(view: &V, replica: ReplicaKey, generation: u32) -> Result<IdempotencyTable, StoreError> {
        let prefix = layout::data_row(replica, generation, RowKind::Idempotency, &[]);
        let mut table = IdempotencyTable::default();
        view.try_scan(&prefix, &layout::prefix_end(&prefix), &mut |key, value| {
            let (id, at, record) = read_row(&key[GENERATION_PREFIX_BYTES..], value)?;
            table.insert(id, at, record);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(table)
    }

    fn insert(&mut self, id: RequestId, at: Timestamp, record: Record) {
        self.records.insert(id, record);
        self.order.insert((at, id));
    }

    /// What the request was answered first; `None` if it is new and there is room for it.
    fn answer(&self, id: RequestId, fingerprint: u128) -> Option<MutationResult> {
        match self.records.get(&id) {
            Some(record) if record.fingerprint == fingerprint => Some(record.answer),
            Some(_) => Some(MutationResult::Refused(WriteRefusal::IdReused)),
            None if self.records.len() >= RECORDS_MAX => Some(MutationResult::Refused(WriteRefusal::TableFull)),
            None => None,
        }
    }

    /// Takes the oldest record out if its time is over.
    fn pop_expired(&mut self, clock: Timestamp) -> Option<RequestId> {
        let (at, id) = *self.order.first()?;
        if clock.0.saturating_sub(at.0) < RETENTION_MS {
            return None;
        }
        self.order.pop_first();
        self.records.remove(&id);
        Some(id)
    }
}

impl<S: StateStore> Work<'_, S> {
    /// What a request was answered before, or why it may not be one of its id.
    pub(super) fn first_answer(live: &Live, id: RequestId, fingerprint: u128) -> Option<MutationResult> {
        live.idempotency.answer(id, fingerprint)
    }

    /// Keeps the first answer to a request.
    pub(super) fn record(&mut self, live: &mut Live, id: RequestId, fingerprint: u128, answer: MutationResult) {
        let (at, record) = (live.state.clock, Record { fingerprint, answer });
        live.state.hash = put_row(self.writer, &live.prefix, id, at, &record, live.state.hash);
        live.idempotency.insert(id, at, record);
        // Its row may be one that this job has deleted.
        self.seen_twice |= self.has_swept;
        self.has_recorded = true;
    }

    /// Forgets the oldest records whose time is over.
    pub(super) fn sweep_records(&mut self, live: &mut Live) {
        for _ in 0..SWEPT_PER_ENTRY {
            let Some(id) = live.idempotency.pop_expired(live.state.clock) else { return };
            let rest = id.0.to_be_bytes();
            live.state.hash = self.writer.delete_row(&live.prefix, RowKind::Idempotency, &rest, live.state.hash);
            // The clock may have made a leap since this job recorded it.
            self.seen_twice |= self.has_recorded;
            self.has_swept = true;
        }
    }
}

fn put_row(
    writer: &mut RowWriter,
    prefix: &[u8; GENERATION_PREFIX_BYTES],
    id: RequestId,
    at: Timestamp,
    record: &Record,
    hash: u64,
) -> u64 {
    let mut value = BytesMut::with_capacity(48);
    value.put_u128_le(record.fingerprint);
    value.put_u64_le(at.0);
    encode_answer(record.answer, &mut value);
    writer.put_row(prefix, RowKind::Idempotency, &id.0.to_be_bytes(), (&value, &[]), hash)
}

/// Whether a row is one that was written.
pub(super) fn verify_row(relative_key: &[u8], row: &[u8]) -> Result<(), StoreError> {
    read_row(relative_key, row).map(drop)
}

pub(super) fn read_row(relative_key: &[u8], row: &[u8]) -> Result<(RequestId, Timestamp, Record), StoreError> {
    let body = layout::verify(relative_key, row)?;
    let damaged = |what: String| StoreError::Damaged(format!("the row \"{}\" {what}", relative_key.escape_ascii()));
    let id = <[u8; 16]>::try_from(&relative_key[1..]).map_err(|_| damaged("has no request id for a key".to_owned()))?;
    let (at, record) = decode(Bytes::copy_from_slice(body)).map_err(|error| damaged(error.to_string()))?;
    Ok((RequestId(u128::from_be_bytes(id)), at, record))
}

fn decode(body: Bytes) -> Result<(Timestamp, Record), DecodeError> {
    let mut reader = Reader::new(body);
    let fingerprint = reader.u128("fingerprint")?;
    let at = Timestamp(reader.u64("time of the request")?);
    let answer = decode_answer(&mut reader)?;
    reader.finish()?;
    Ok((at, Record { fingerprint, answer }))
}

fn encode_answer(answer: MutationResult, out: &mut BytesMut) {
    match answer {
        MutationResult::Put { version, created } => {
            out.put_u8(1);
            out.put_u64_le(version.0);
            out.write_bool(created);
        }
        MutationResult::Deleted { deleted } => {
            out.put_u8(2);
            out.write_bool(deleted);
        }
        MutationResult::ConditionFailed { present } => {
            out.put_u8(3);
            out.put_u64_le(present.map_or(0, |version| version.0));
        }
        MutationResult::Incremented { value, version } => {
            out.put_u8(4);
            out.put_i64_le(value);
            out.put_u64_le(version.0);
        }
        MutationResult::Refused(refusal) => {
            out.put_u8(5);
            out.put_u8(refusal as u8);
        }
    }
}

fn decode_answer(reader: &mut Reader) -> Result<MutationResult, DecodeError> {
    Ok(match reader.u8("kind of answer")? {
        1 => MutationResult::Put { version: Version(reader.u64("version")?), created: reader.bool("created")? },
        2 => MutationResult::Deleted { deleted: reader.bool("deleted")? },
        3 => MutationResult::ConditionFailed { present: Some(Version(reader.u64("version")?)).filter(|version| version.0 != 0) },
        4 => MutationResult::Incremented { value: reader.u64("sum")? as i64, version: Version(reader.u64("version")?) },
        5 => MutationResult::Refused(WriteRefusal::from_byte(reader.u8("refusal")?)?),
        other => return Err(DecodeError::Invalid("kind of answer", u64::from(other))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: MutationResult = MutationResult::Deleted { deleted: true };

    fn filled(count: usize) -> IdempotencyTable {
        let mut table = IdempotencyTable::default();
        (0..count).for_each(|n| table.insert(RequestId(n as u128), Timestamp(n as u64), Record { fingerprint: 7, answer: DONE }));
        table
    }

    #[test]
    fn a_full_table_takes_no_new_id_and_forgets_none_before_its_time() {
        let mut table = filled(RECORDS_MAX);
        let new = RequestId(u128::MAX);
        assert_eq!(table.answer(new, 7), Some(MutationResult::Refused(WriteRefusal::TableFull)));
        assert_eq!(table.answer(RequestId(0), 7), Some(DONE));
        assert_eq!(table.answer(RequestId(0), 8), Some(MutationResult::Refused(WriteRefusal::IdReused)));
        assert_eq!(table.pop_expired(Timestamp(RETENTION_MS - 1)), None);
        assert_eq!(table.pop_expired(Timestamp(RETENTION_MS)), Some(RequestId(0)));
        assert_eq!(table.pop_expired(Timestamp(RETENTION_MS)), None);
        assert_eq!(table.answer(new, 7), None);
    }

    #[test]
    fn answers_survive_their_row() {
        let refusals = WriteRefusal::ALL.into_iter().map(MutationResult::Refused);
        let answers = [
            MutationResult::Put { version: Version(9), created: true },
            DONE,
            MutationResult::ConditionFailed { present: None },
            MutationResult::ConditionFailed { present: Some(Version(3)) },
            MutationResult::Incremented { value: -5, version: Version(4) },
        ];
        for answer in refusals.chain(answers) {
            let mut row = BytesMut::new();
            encode_answer(answer, &mut row);
            let mut reader = Reader::new(row.freeze());
            assert_eq!(decode_answer(&mut reader), Ok(answer));
            assert_eq!(reader.remaining(), 0);
        }
    }
}
