//! The Raft log: one a node, shared by all its replicas, in segments (docs/formats.md, "The Raft log").
//!
//! **Writing.** [`RaftLog::append`] writes one batch with one write; [`RaftLog::sync`] makes all that
//! was appended durable with one fdatasync. Segments have their full size before they are used, either
//! zero-filled or recycled, so that fdatasync has no metadata to write. A batch has one checksum and is
//! found again wholly or not at all.
//!
//! **What is damage and what is a torn tail.** Each batch states up to where the log was known to be
//! synced when it was written; [`RaftLog::seal`] states it for the last one. Below the highest such
//! mark everything must verify, and what does not is reported, never cut. Above it lies what nobody
//! was told is safe: it counts up to the first batch that does not verify, and the rest is cut. Each
//! opening of the log is a new run, whose number is synced before anything else is written, so what
//! was cut cannot come to life again behind newer batches.
//!
//! **Rolling.** Before a segment is begun, the one before it is synced whole. The new file gets its
//! header and an opening (every replica's state, all tombstones, the identity), is synced, and only
//! then gets its name. So a file with a segment's name always has a good opening, older segments are
//! needed for nothing but entries, and they go, oldest first, when none of theirs is needed.
//!
//! **The bound.** A replica that does not purge keeps old segments. When more than
//! `segment_count_max` segments exist and at most a quarter of their bytes is needed, each roll copies
//! needed entries of the oldest segments to the new one, at most half a segment of them, as `moved`
//! records, which say where entries lie and never which there are. With L the bytes needed, the log
//! stays below 1.5 times the larger of `segment_count_max` segments and 4 L, and two segments more.
//!
//! **A full disk.** Rewriting a segment that is there needs no room. Room is needed to make another
//! one; when there is none, `append` fails with [`LogError::Full`] before it has written a byte.
//! The last part of every segment is kept for batches without entries, so that purges and tombstones
//! still go through, which give old segments back. Where overwriting can hit a full disk (file systems
//! that copy on write), the half-written batch is overwritten by the next one and its header is erased.
//!
//! **A failed write or sync** poisons the log: nobody knows what is on disk, so it does nothing more.
//!
//! Left out: compression and encryption (entries may be either already), and finding out that the
//! newest segments were removed as whole files, which leaves no trace here; the state store's applied
//! index tells.

mod error;
pub mod fuzzing;
mod read;
mod record;
mod recovery;
mod replay;
mod roll;
mod segment;
mod state;
mod verify;

pub use error::LogError;
pub use record::{InstallPhase, InstallRecord, LogBatch, LogRecord};
pub use recovery::{Damage, Recovered, RecoveredReplica};
pub use replay::stated_bytes;
pub use verify::{LogReport, verify};

use crate::disk::{Disk, DiskError};
use flotilla_types::ReplicaKey;
use roll::Spares;
use segment::BATCH_HEADER_BYTES;
use state::{Place, Plan, Replica, State};
use std::collections::BTreeMap;

/// The longest batch.
pub const BATCH_BYTES_MAX: usize = 1 << 30;
/// A buffer that one large batch made larger than this is given back.
const BUFFER_BYTES_KEPT: usize = 4 << 20;
/// Room at a segment's end for the seal and the start of a run.
const SEAL_ROOM_BYTES: u32 = 2 * BATCH_HEADER_BYTES;

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// How large a segment is. A batch that is larger gets a segment of its own size.
    pub segment_bytes: u64,
    /// With more segments than this, entries that are still needed are moved out of the oldest.
    pub segment_count_max: u64,
    /// How many spare files are kept; others are removed when their segment is needed no more.
    pub spare_count_max: usize,
    /// Planted by the simulation alone, to show that it would be found: recovery cuts at the first
    /// batch that does not verify, also below the sync mark.
    pub cuts_below_sync_mark: bool,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions { segment_bytes: 64 << 20, segment_count_max: 8, spare_count_max: 2, cuts_below_sync_mark: false }
    }
}

/// The log of one node.
///
/// Invariants: `stated <= synced <= position`; all segments but the newest are synced whole; what
/// `state` holds is what recovery would find, if all that was written survived.
pub struct RaftLog<D: Disk> {
    disk: D,
    _lock: D::Lock,
    options: LogOptions,
    state: State,
    /// All segments, by number; the last one is written to.
    segments: BTreeMap<u64, Segment<D::File>>,
    spares: Spares<D::File>,
    /// Which opening of the log this is.
    run: u32,
    /// Where in the newest segment the next batch goes.
    position: u32,
    /// Everything before this is synced.
    synced: u32,
    /// The highest mark that is written.
    stated: u32,
    /// Behind the last batch with records.
    records_end: u32,
    is_poisoned: bool,
    buffer: Vec<u8>,
    /// Where in `buffer` each record of the batch begins; `None` for one that is left out.
    record_offsets: Vec<Option<u32>>,
    append_count: u64,
    sync_count: u64,
    bytes_appended: u64,
    bytes_moved: u64,
}

struct Segment<F> {
    file: F,
    size: u32,
}

/// Figures for status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Bytes of all segments.
    pub bytes_total: u64,
    /// About how many of them hold entries that are still needed.
    pub bytes_live: u64,
    /// How many segments there are, spare ones not counted.
    pub segment_count: u64,
    /// The newest segment's number.
    pub segment: u64,
    /// Where in it the next batch goes.
    pub position: u64,
    /// Where in it what is synced ends.
    pub synced: u64,
    /// The replica that keeps the oldest segment that is needed, and that segment.
    pub oldest_pinned: Option<(ReplicaKey, u64)>,
    /// Batches appended since the log was opened.
    pub append_count: u64,
    /// Syncs of appended batches since the log was opened.
    pub sync_count: u64,
    /// Bytes of these batches.
    pub bytes_appended: u64,
    /// Bytes of entries moved out of old segments since the log was opened.
    pub bytes_moved: u64,
}

impl<D: Disk> RaftLog<D> {
    /// Opens the log on `disk`, or makes one if there is none.
    ///
    /// # Errors
    /// If the disk fails or is full, if a file is foreign or of a newer format, or if damage took the
    /// node's identity or its list of replicas. Other damage is in [`Recovered::damage`].
    pub fn open(disk: D, options: LogOptions) -> Result<(RaftLog<D>, Recovered), LogError> {
        recovery::open(disk, options)
    }

    /// Writes one batch with one write; it is durable after the next [`RaftLog::sync`].
    ///
    /// # Errors
    /// [`LogError::Full`]: nothing was written, the log can be used. All others: the log is poisoned.
    ///
    /// # Panics
    /// If a record cannot follow what is there, by the rules at [`LogRecord`]: nothing is written then.
    pub fn append(&mut self, batch: &LogBatch) -> Result<(), LogError> {
        self.check_poison()?;
        let length = BATCH_HEADER_BYTES as usize + batch.records.iter().map(LogRecord::encoded_len).sum::<usize>();
        assert!(length <= BATCH_BYTES_MAX, "a batch has at most {BATCH_BYTES_MAX} bytes, this one has {length}");
        let length = segment::padded(length);
        let has_entries = batch.records.iter().any(|record| matches!(record, LogRecord::Entries { .. }));
        if !self.has_room(length + self.reserve()) {
            match self.roll(length) {
                Err(LogError::Full(_)) if !has_entries && self.has_room(length) => {}
                result => result?,
            }
        }
        // At once: a buffer that grows with a large batch is copied and half empty.
        self.buffer.clear();
        self.buffer.reserve(length as usize);
        self.encode(batch);
        let number = self.number();
        if self.buffer.len() > BATCH_HEADER_BYTES as usize {
            segment::finish_batch(&mut self.buffer, 0, number, self.position, self.run, self.synced);
            if let Err(error) = self.write_buffer() {
                self.unplan(batch);
                return Err(error);
            }
            self.take(batch);
            self.stated = self.synced;
            self.append_count += 1;
            self.bytes_appended += self.buffer.len() as u64;
            self.position += self.buffer.len() as u32;
            self.records_end = self.position;
        }
        if self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Makes everything appended durable.
    ///
    /// # Errors
    /// If it may not be; the log is then poisoned, and what was not synced before may be there or not.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.check_poison()?;
        if self.synced < self.records_end {
            self.sync_newest()?;
            self.sync_count += 1;
            self.drop_unneeded()?;
            self.prepare_spare();
        }
        Ok(())
    }

    /// States that the last batch is synced, if it is and nothing says so yet: call it when there is
    /// nothing to write. The seal itself needs no sync: without it, the last batch is merely not known
    /// to have been synced.
    ///
    /// # Errors
    /// If the write failed; the log is then poisoned.
    pub fn seal(&mut self) -> Result<(), LogError> {
        self.check_poison()?;
        let is_stated = self.stated >= self.records_end;
        let is_synced = self.synced >= self.records_end;
        if is_stated || !is_synced || !self.has_room(0) {
            return Ok(());
        }
        segment::begin_batch(&mut self.buffer);
        let number = self.number();
        segment::finish_batch(&mut self.buffer, 0, number, self.position, self.run, self.synced);
        match self.write_buffer() {
            // A seal is a kindness: a disk too full for it does no harm.
            Err(LogError::Full(_)) => return Ok(()),
            result => result?,
        }
        self.stated = self.synced;
        self.position += self.buffer.len() as u32;
        Ok(())
    }

    /// Figures for status and metrics.
    pub fn stats(&self) -> LogStats {
        LogStats {
            bytes_total: self.bytes_total(),
            bytes_live: self.state.live.total(),
            segment_count: self.segments.len() as u64,
            segment: self.number(),
            position: u64::from(self.position),
            synced: u64::from(self.synced),
            oldest_pinned: self.state.oldest_pin().map(|(segment, key)| (key, segment)),
            append_count: self.append_count,
            sync_count: self.sync_count,
            bytes_appended: self.bytes_appended,
            bytes_moved: self.bytes_moved,
        }
    }

    fn bytes_total(&self) -> u64 {
        self.segments.values().map(|segment| u64::from(segment.size)).sum()
    }

    fn check_poison(&self) -> Result<(), LogError> {
        if self.is_poisoned { Err(LogError::Poisoned) } else { Ok(()) }
    }

    /// Passes a disk's answer on; any error but a full disk poisons the log.
    fn guard<T>(&mut self, result: Result<T, DiskError>) -> Result<T, LogError> {
        result.map_err(|error| {
            self.is_poisoned |= !matches!(error, DiskError::Full { .. });
            LogError::of(error)
        })
    }

    fn number(&self) -> u64 {
        *self.segments.last_key_value().expect("an open log has a segment").0
    }

    fn newest(&self) -> &Segment<D::File> {
        self.segments.last_key_value().expect("an open log has a segment").1
    }

    /// Whether `length` more bytes, and what must always go behind them, fit into the newest segment.
    fn has_room(&self, length: u32) -> bool {
        u64::from(self.position) + u64::from(length) + u64::from(SEAL_ROOM_BYTES) <= u64::from(self.newest().size)
    }

    /// The part of a segment that is kept for batches without entries while the disk is full.
    fn reserve(&self) -> u32 {
        (self.options.segment_bytes / 32).min(1 << 20) as u32
    }

    /// Writes the buffer at the position.
    fn write_buffer(&mut self) -> Result<(), LogError> {
        let offset = u64::from(self.position);
        let written = self.disk.write_at(&self.newest().file, offset, &self.buffer);
        if let Err(error @ DiskError::Full { .. }) = written {
            // Part of the batch may be there. It must not count, so its header is erased. If even that
            // cannot be done, what is there decides: a part never verifies, and the next batch is
            // written over it; and if only zeros were missing, on a file of zeros, all of it is there.
            let erased = self.disk.write_at(&self.newest().file, offset, &[0; BATCH_HEADER_BYTES as usize]);
            if erased.is_err() {
                let read = self.is_whole(offset);
                if self.guard(read)? {
                    return Ok(());
                }
            }
            return Err(LogError::of(error));
        }
        self.guard(written)
    }

    /// Whether what lies at `offset` is the buffer.
    fn is_whole(&self, offset: u64) -> Result<bool, DiskError> {
        let mut bytes = vec![0; self.buffer.len()];
        self.disk.read_at(&self.newest().file, offset, &mut bytes)?;
        Ok(bytes == self.buffer)
    }

    fn sync_newest(&mut self) -> Result<(), LogError> {
        let synced = self.disk.sync_data(&self.newest().file);
        if synced.is_err() {
            self.is_poisoned = true;
        }
        self.guard(synced)?;
        self.synced = self.position;
        Ok(())
    }

    /// Fills the buffer with the batch and notes where its records begin.
    fn encode(&mut self, batch: &LogBatch) {
        segment::begin_batch(&mut self.buffer);
        self.record_offsets.clear();
        for record in &batch.records {
            let sequence = match record.replica() {
                None => Some(0),
                Some(key) => self.plan(key, record),
            };
            self.record_offsets.push(sequence.map(|sequence| {
                let offset = self.buffer.len() as u32;
                record.encode(sequence, &mut self.buffer);
                offset
            }));
        }
    }

    /// The record's sequence number; `None` if it is left out, because the replica is gone.
    fn plan(&mut self, key: ReplicaKey, record: &LogRecord) -> Option<u64> {
        if self.state.tombstones.contains(&key) {
            return None;
        }
        let is_new = matches!(record, LogRecord::Created { .. } | LogRecord::Tombstone { .. }) && !self.state.replicas.contains_key(&key);
        let replica = match is_new {
            true => self.state.replicas.entry(key).or_default(),
            false => self.state.replicas.get_mut(&key).unwrap_or_else(|| panic!("{key} was never created")),
        };
        let now = Plan { sequence: replica.sequence, start: replica.start.0.0, last: replica.last, is_buried: false };
        let plan = replica.plan.get_or_insert(now);
        if plan.is_buried {
            return None;
        }
        let is_tombstone = matches!(record, LogRecord::Tombstone { .. });
        assert!(!replica.lost || is_tombstone, "{key} lost records to damage: nothing but its tombstone may follow");
        match record {
            LogRecord::Entries { entries, .. } => {
                let first = entries.first().expect("a record of entries has entries").index.0;
                assert!(
                    plan.start < first && first <= plan.last + 1,
                    "{key} has entries {} to {}: {first} cannot follow",
                    plan.start,
                    plan.last
                );
                plan.last = first + entries.len() as u64 - 1;
            }
            LogRecord::Purge { through, .. } => {
                plan.start = plan.start.max(through.0);
                plan.last = plan.last.max(through.0);
            }
            LogRecord::Installed { snapshot, .. } => (plan.start, plan.last) = (snapshot.index.0, snapshot.index.0),
            LogRecord::Created { start, .. } => {
                assert!(plan.sequence == 0, "{key} is created a second time");
                (plan.start, plan.last) = (start.0.0, start.0.0);
            }
            LogRecord::Tombstone { .. } => plan.is_buried = true,
            LogRecord::Identity(_) | LogRecord::HardState { .. } | LogRecord::Installing { .. } => {}
        }
        plan.sequence += 1;
        Some(plan.sequence - 1)
    }

    /// The batch was not written after all.
    fn unplan(&mut self, batch: &LogBatch) {
        for key in batch.records.iter().filter_map(LogRecord::replica) {
            if let Some(replica) = self.state.replicas.get_mut(&key) {
                replica.plan = None;
                if replica.sequence == 0 && !replica.lost {
                    self.state.replicas.remove(&key);
                }
            }
        }
    }

    /// The batch was written: it counts.
    fn take(&mut self, batch: &LogBatch) {
        let place = Place { segment: self.number(), batch: self.position, batch_bytes: self.buffer.len() as u32, record: 0 };
        let State { identity, replicas, tombstones, live } = &mut self.state;
        for (record, offset) in batch.records.iter().zip(&self.record_offsets) {
            let Some(offset) = *offset else { continue };
            match record {
                LogRecord::Identity(bytes) => *identity = Some(bytes.clone()),
                LogRecord::Tombstone { replica } => {
                    replicas.remove(replica).iter_mut().for_each(|replica: &mut Replica| replica.forget_entries(live));
                    tombstones.insert(*replica);
                }
                _ => {
                    let key = record.replica().expect("all other records are a replica's");
                    let replica = replicas.get_mut(&key).expect("it was there when the record was planned");
                    replica.plan = None;
                    replica.take(live, record, record.encoded_len() as u32, Place { record: offset, ..place });
                }
            }
        }
    }
}
