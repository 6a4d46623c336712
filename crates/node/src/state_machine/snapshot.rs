//! A replica's rows as a stream of chunks, and back (docs/formats.md, "Snapshot chunks").
//!
//! A [`SnapshotReader`] reads a view, a chunk at a time, and remembers only the last key: memory is
//! bounded by one chunk. Rows travel with their relative keys and their checksums, so that each is
//! verified when it is read, when it arrives, and whenever it is read from then on. Chunks are
//! numbered; the last states how many rows there were. The receiver takes each once and in order.

use super::generation::decode_state;
use super::state::ReplicaState;
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_storage::store::layout::{self, Filing, GENERATION_PREFIX_BYTES, RowKind};
use flotilla_storage::store::{StoreError, StoreView, WriteBatch};
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{LogIndex, ReplicaKey};
use std::ops::ControlFlow;

const FORMAT: u8 = 1;
const KIND_ROWS: u8 = 0;
const KIND_END: u8 = 1;
const HEADER_BYTES: usize = 10;

/// Why a chunk, or a whole snapshot, is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The bytes are not those that were sent.
    #[error("the chunk does not match its checksum")]
    Checksum,
    /// The chunk, or a row in it, was made by a newer version.
    #[error("the chunk holds what this version does not know: {0}")]
    Unknown(String),
    /// A chunk is missing, repeated or out of order.
    #[error("chunk {expected} was expected, chunk {found} came")]
    Order {
        /// The next number.
        expected: u32,
        /// The number that came.
        found: u32,
    },
    /// The bytes are no chunk.
    #[error("the chunk cannot be decoded")]
    Malformed(#[from] DecodeError),
    /// A row does not match its checksum or does not follow the one before.
    #[error("{0}")]
    Row(String),
    /// The end came too early, or something came after it.
    #[error("the snapshot is not complete: {0}")]
    Incomplete(String),
    /// The replica has applied more than the snapshot holds.
    #[error("the snapshot was taken at {snapshot}, the replica has applied {applied}")]
    Stale {
        /// Where the snapshot was taken.
        snapshot: LogIndex,
        /// What the replica has applied.
        applied: LogIndex,
    },
}

/// Rows and bytes counted along a snapshot; the same at both ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    rows: u64,
    bytes: u64,
    keys: u64,
}

/// Reads a replica's rows out of a view.
#[derive(Debug)]
pub struct SnapshotReader<V: StoreView> {
    view: V,
    state: ReplicaState,
    prefix: [u8; GENERATION_PREFIX_BYTES],
    /// The last row given.
    last: Option<Vec<u8>>,
    number: u32,
    totals: Totals,
    rows_done: bool,
    finished: bool,
    /// A planted fault: rows of this kind are left out.
    left_out: Option<RowKind>,
}

impl Totals {
    fn count(&mut self, relative_key: &[u8], value: &[u8]) {
        self.rows += 1;
        self.bytes += (relative_key.len() + value.len()) as u64;
        self.keys += u64::from(relative_key[0] == RowKind::Key as u8);
    }
}

impl<V: StoreView> SnapshotReader<V> {
    /// Begins to read a replica's rows; `None` if the view holds no state of it.
    ///
    /// # Errors
    /// If the store fails or the state is damaged.
    pub fn open(view: V, replica: ReplicaKey) -> Result<Option<SnapshotReader<V>>, StoreError> {
        let key = layout::state_key(replica);
        let Some(row) = view.get(&key)? else { return Ok(None) };
        let mut state = decode_state(&key, &row).map_err(StoreError::Damaged)?;
        let Filing { under, generation } = state.filing(replica);
        let prefix = layout::data_prefix(under, generation);
        // Where they are filed is this node's own affair.
        state.filed_under = None;
        Ok(Some(SnapshotReader {
            view,
            state,
            prefix,
            last: None,
            number: 0,
            totals: Totals::default(),
            rows_done: false,
            finished: false,
            left_out: None,
        }))
    }

    /// Plants a fault: rows of this kind are left out.
    pub(crate) fn leave_out(&mut self, kind: RowKind) {
        self.left_out = Some(kind);
    }

    /// The replica's state at the view. Its control state, if any, travels as rows.
    pub fn state(&self) -> &ReplicaState {
        &self.state
    }

    /// How many bytes of rows were given so far.
    pub fn bytes_done(&self) -> u64 {
        self.totals.bytes
    }

    /// Whether the last chunk was given.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The next chunk, not much longer than `bytes_max` (it holds at least one row); `None` after the last.
    ///
    /// # Errors
    /// If the store fails or a row is damaged: damage is not passed on.
    pub fn next_chunk(&mut self, bytes_max: usize) -> Result<Option<Bytes>, StoreError> {
        if self.finished {
            return Ok(None);
        }
        let mut out = BytesMut::new();
        out.put_u32_le(0);
        out.put_u8(FORMAT);
        out.put_u8(KIND_ROWS);
        out.put_u32_le(self.number);
        if !self.rows_done {
            self.read_rows(&mut out, bytes_max)?;
        }
        if out.len() == HEADER_BYTES {
            out[5] = KIND_END;
            out.put_u64_le(self.totals.rows);
            out.put_u64_le(self.totals.bytes);
            self.finished = true;
        }
        self.number += 1;
        let sum = crc32c::crc32c(&out[4..]);
        out[..4].copy_from_slice(&sum.to_le_bytes());
        Ok(Some(out.freeze()))
    }

    fn read_rows(&mut self, out: &mut BytesMut, bytes_max: usize) -> Result<(), StoreError> {
        // The first key behind the last one given.
        let from = self.last.take().map_or_else(
            || self.prefix.to_vec(),
            |mut last| {
                last.push(0);
                last
            },
        );
        let (mut last, totals, left_out) = (None, &mut self.totals, self.left_out.map(|kind| kind as u8));
        self.view.try_scan(&from, &layout::prefix_end(&self.prefix), &mut |key, value| {
            let relative_key = &key[GENERATION_PREFIX_BYTES..];
            if left_out == Some(relative_key[0]) {
                return Ok(ControlFlow::Continue(()));
            }
            layout::verify(relative_key, value)?;
            out.write_bytes(relative_key);
            out.write_bytes(value);
            totals.count(relative_key, value);
            if out.len() < bytes_max {
                return Ok(ControlFlow::Continue(()));
            }
            last = Some(key.to_vec());
            Ok(ControlFlow::Break(()))
        })?;
        self.rows_done = last.is_none();
        self.last = last;
        Ok(())
    }
}

/// A snapshot that is arriving.
#[derive(Debug)]
pub(super) struct Incoming {
    prefix: [u8; GENERATION_PREFIX_BYTES],
    number: u32,
    last: Bytes,
    totals: Totals,
    complete: bool,
}

impl Incoming {
    pub(super) fn new(prefix: [u8; GENERATION_PREFIX_BYTES]) -> Incoming {
        Incoming { prefix, number: 0, last: Bytes::new(), totals: Totals::default(), complete: false }
    }

    /// Verifies the next chunk and gives its rows under this replica's own prefix.
    pub(super) fn take(&mut self, chunk: Bytes) -> Result<WriteBatch, ChunkError> {
        let mut reader = Reader::new(chunk.clone());
        let sum = reader.u32("checksum")?;
        if sum != crc32c::crc32c(&chunk[4..]) {
            return Err(ChunkError::Checksum);
        }
        match reader.u8("chunk format")? {
            FORMAT => {}
            other => return Err(ChunkError::Unknown(format!("chunk format {other}"))),
        }
        let kind = reader.u8("chunk kind")?;
        let found = reader.u32("chunk number")?;
        if self.complete {
            return Err(ChunkError::Incomplete(format!("chunk {found} came after the end")));
        }
        if found != self.number {
            return Err(ChunkError::Order { expected: self.number, found });
        }
        self.number += 1;
        match kind {
            KIND_ROWS => self.take_rows(reader),
            KIND_END => {
                let (rows, bytes) = (reader.u64("row count")?, reader.u64("byte count")?);
                reader.finish()?;
                if (rows, bytes) != (self.totals.rows, self.totals.bytes) {
                    let Totals { rows: had, bytes: had_bytes, .. } = self.totals;
                    return Err(ChunkError::Incomplete(format!("{had} rows of {had_bytes} bytes came, {rows} of {bytes} were sent")));
                }
                self.complete = true;
                Ok(WriteBatch::default())
            }
            other => Err(ChunkError::Unknown(format!("chunk kind {other}"))),
        }
    }

    fn take_rows(&mut self, mut reader: Reader) -> Result<WriteBatch, ChunkError> {
        let mut batch = WriteBatch::default();
        while reader.remaining() > 0 {
            let (relative_key, value) = (reader.bytes("row key")?, reader.bytes("row value")?);
            let kind = relative_key.first().copied().unwrap_or(0);
            if RowKind::from_byte(kind).is_none() {
                return Err(ChunkError::Unknown(format!("row kind {kind}")));
            }
            layout::verify(&relative_key, &value).map_err(|error| ChunkError::Row(error.to_string()))?;
            if relative_key <= self.last {
                return Err(ChunkError::Row(format!("the row \"{}\" is out of order", relative_key.escape_ascii())));
            }
            self.totals.count(&relative_key, &value);
            let mut key = BytesMut::with_capacity(GENERATION_PREFIX_BYTES + relative_key.len());
            key.put_slice(&self.prefix);
            key.put_slice(&relative_key);
            self.last = relative_key;
            batch.put(key.freeze(), value);
        }
        Ok(batch)
    }

    /// Whether everything came, and is what the state says.
    pub(super) fn check_complete(&self, state: &ReplicaState) -> Result<(), ChunkError> {
        if !self.complete {
            return Err(ChunkError::Incomplete(format!("only {} chunks came", self.number)));
        }
        if self.totals.keys != state.keys {
            return Err(ChunkError::Incomplete(format!("{} keys came, the state counts {}", self.totals.keys, state.keys)));
        }
        Ok(())
    }
}
