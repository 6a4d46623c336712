//! Reads a range of several shards in byte order, through one view of the store, on any thread but the
//! loop's.
//!
//! Each shard's rows are read ahead a few at a time and merged. Long values lie in chunk rows; they are
//! read through the same view when their turn has come, so that none is read in vain.

use super::read::{clock_in_force, read_chunks};
use super::rows::KeyHead;
use crate::request::{Failure, FailureReason};
use crate::scan::{ITEM_BYTES, ScanAsk, ScanChunk, ScanItem, ScanJob, Scanned};
use bytes::Bytes;
use flotilla_storage::store::layout::{self, Filing, GENERATION_PREFIX_BYTES, RowKind};
use flotilla_storage::store::{StateStore, StoreError, StoreView};
use flotilla_types::{Key, KeyRange, ReplicaKey, Timestamp};
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

/// A shard's next rows are read at least so many at a time.
const READ_AHEAD_ROWS_MIN: usize = 8;
/// And no more than these bytes of them, unless that is a single row.
const READ_AHEAD_BYTES: usize = 256 << 10;
/// Bytes before the key in a key row's key.
const KEY_AT: usize = GENERATION_PREFIX_BYTES + 1;

/// Runs a scan.
///
/// # Errors
/// If the store fails or a row is damaged; nothing of it may be used then.
pub fn run_scan<S: StateStore>(store: &S, job: &ScanJob) -> Scanned {
    let mut at = None;
    scan(store, job, &mut at).map_err(|error| {
        let failure = Failure::not_applied(FailureReason::Damaged, format!("scanning: {error}"));
        (failure, at.filter(|_| matches!(error, StoreError::Damaged(_))))
    })
}

/// `at` is the replica whose rows were read last.
fn scan<S: StateStore>(
    store: &S,
    job: &ScanJob,
    at: &mut Option<ReplicaKey>,
) -> Result<(ScanChunk, Vec<flotilla_types::GroupId>), StoreError> {
    let view = store.view()?;
    let ask = &job.ask;
    let rows_ahead = (ask.items_max as usize / job.shards.len().max(1)).max(READ_AHEAD_ROWS_MIN) + 1;
    let bytes_ahead = (ask.bytes_max as usize / job.shards.len().max(1)).min(READ_AHEAD_BYTES);
    let mut gone = Vec::new();
    let mut sources: Vec<Source> = Vec::new();
    for (replica, filing) in &job.shards {
        *at = Some(*replica);
        // In this very view: rows of a generation that is not in force may be swept in part.
        match clock_in_force(&view, *replica, filing.generation)? {
            Some(clock) => sources.push(Source::new(*replica, *filing, clock, &ask.range)),
            None => gone.push(replica.group),
        }
    }
    // Keys are not shared between shards.
    let mut next: BTreeMap<Key, usize> = BTreeMap::new();
    for (number, source) in sources.iter_mut().enumerate() {
        *at = Some(source.replica);
        source.read_ahead(&view, ask.reverse, (rows_ahead, bytes_ahead))?;
        next.extend(source.ahead.front().map(|row| (row.key.clone(), number)));
    }
    let mut chunk = ScanChunk::default();
    let mut bytes = 0;
    while let Some((_, number)) = if ask.reverse { next.pop_last() } else { next.pop_first() } {
        let source = &mut sources[number];
        let Some(row) = source.ahead.front() else { continue };
        let row_bytes = row.bytes(ask);
        let is_full = chunk.items.len() >= ask.items_max as usize || bytes + row_bytes > ask.bytes_max as usize;
        if is_full && !chunk.items.is_empty() {
            chunk.more = true;
            break;
        }
        let Some(row) = source.ahead.pop_front() else { continue };
        *at = Some(source.replica);
        let Row { key, head, inline } = row;
        let value = match (ask.keys_only, head.chunks) {
            (true, _) => None,
            (false, 0) => Some(inline),
            (false, _) => Some(read_chunks(&view, source.filing, &key, head)?),
        };
        bytes += row_bytes;
        chunk.items.push(ScanItem { key, version: head.version, value });
        if source.ahead.is_empty() {
            source.read_ahead(&view, ask.reverse, (rows_ahead, bytes_ahead))?;
        }
        next.extend(source.ahead.front().map(|row| (row.key.clone(), number)));
    }
    Ok((chunk, gone))
}

/// A row that was read ahead.
struct Row {
    key: Key,
    head: KeyHead,
    inline: Bytes,
}

/// One shard's rows, from where they are not read yet.
struct Source {
    replica: ReplicaKey,
    filing: Filing,
    /// The shard's clock: what has expired by it is not there.
    clock: Timestamp,
    /// What is left to be read, as keys of the store.
    from: Vec<u8>,
    to: Vec<u8>,
    ahead: VecDeque<Row>,
}

impl Row {
    fn bytes(&self, ask: &ScanAsk) -> usize {
        ITEM_BYTES + self.key.as_bytes().len() + if ask.keys_only { 0 } else { self.head.value_bytes as usize }
    }
}

impl Source {
    fn new(replica: ReplicaKey, filing: Filing, clock: Timestamp, range: &KeyRange) -> Source {
        let row = |rest: &[u8]| layout::data_row(filing.under, filing.generation, RowKind::Key, rest);
        let to = range.end.as_ref().map_or_else(|| layout::prefix_end(&row(&[])), |end| row(end));
        Source { replica, filing, clock, from: row(&range.start), to, ahead: VecDeque::new() }
    }

    /// Reads the next rows, up to so many rows and bytes; none are left behind the last.
    fn read_ahead<V: StoreView>(&mut self, view: &V, reverse: bool, (rows_max, bytes_max): (usize, usize)) -> Result<(), StoreError> {
        let (ahead, clock) = (&mut self.ahead, self.clock);
        let (mut failed, mut bytes, mut last) = (None, 0, None);
        let mut visit = |row_key: &[u8], row: &[u8]| match read_row(row_key, row) {
            Ok(found) if found.head.is_expired(clock) => ControlFlow::Continue(()),
            Ok(found) => {
                bytes += row_key.len() + row.len();
                ahead.push_back(found);
                if ahead.len() < rows_max && bytes < bytes_max {
                    return ControlFlow::Continue(());
                }
                last = Some(row_key.to_vec());
                ControlFlow::Break(())
            }
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        };
        if reverse {
            view.scan_back(&self.from, &self.to, &mut visit)?
        } else {
            view.scan(&self.from, &self.to, &mut visit)?
        }
        if let Some(error) = failed {
            return Err(error);
        }
        match (last, reverse) {
            (Some(last), true) => self.to = last,
            (Some(last), false) => self.from = [&last[..], &[0]].concat(),
            (None, _) => self.from = self.to.clone(),
        }
        Ok(())
    }
}

fn read_row(row_key: &[u8], row: &[u8]) -> Result<Row, StoreError> {
    let (head, inline) = KeyHead::decode(&row_key[GENERATION_PREFIX_BYTES..], Bytes::copy_from_slice(row))?;
    let key = Key::new(Bytes::copy_from_slice(&row_key[KEY_AT..])).map_err(|error| StoreError::Damaged(format!("a key row: {error}")))?;
    Ok(Row { key, head, inline })
}
