//! The life of segment files: spare, newest, old, spare again.

use super::record::{self, OpeningHead};
use super::segment::{self, SEGMENT_HEADER_BYTES};
use super::{LogError, RaftLog, SEAL_ROOM_BYTES, Segment};
use crate::disk::Disk;
use flotilla_types::{LogIndex, ReplicaKey};

/// How much of a spare file is zero-filled in one go.
const FILL_STEP_BYTES: u64 = 1 << 20;
/// How much is appended between two such goes: a new log's first segment is a quarter of the usual
/// size, so that the first spare file is filled when the first segment is.
const FILL_EVERY_BYTES: u64 = FILL_STEP_BYTES / 4;
/// How large a record of moved entries gets.
const MOVED_RECORD_BYTES: usize = 256 << 10;

/// Files that can become segments.
pub(super) struct Spares<F> {
    /// Files of a segment's size, all blocks there.
    pub(super) ready: Vec<String>,
    /// One that is being zero-filled, and how far.
    pub(super) filling: Option<(String, F, u64)>,
    /// The number for the next one's name.
    pub(super) next: u64,
    /// What was appended since the last go.
    pub(super) bytes_since_fill: u64,
}

impl<D: Disk> RaftLog<D> {
    /// Begins a new segment with room for a batch of `length` bytes.
    pub(super) fn roll(&mut self, length: u32) -> Result<(), LogError> {
        let end = self.position;
        if self.synced < end {
            self.sync_newest()?;
        }
        self.drop_unneeded()?;
        self.begin_segment(self.number() + 1, end, length)?;
        let moved = self.move_entries(length);
        // An entry that cannot be read back is damage: the next recovery finds out whom it concerns.
        self.is_poisoned |= moved.as_ref().is_err_and(|error| !error.is_disk_full());
        moved
    }

    /// Makes segment `number` the newest. `previous_end` is where the one before it ends.
    pub(super) fn begin_segment(&mut self, number: u64, previous_end: u32, length: u32) -> Result<(), LogError> {
        let mut head = Vec::with_capacity(4096);
        let batch_at = SEGMENT_HEADER_BYTES as usize;
        head.resize(batch_at + segment::BATCH_HEADER_BYTES as usize, 0);
        self.encode_opening(previous_end, &mut head);
        let head_bytes = segment::padded(head.len() - batch_at) + SEGMENT_HEADER_BYTES;
        let needed = u64::from(head_bytes) + u64::from(length) + u64::from(self.reserve() + SEAL_ROOM_BYTES);
        let usual = if self.segments.is_empty() { self.options.segment_bytes / 4 } else { self.options.segment_bytes };
        let size = u32::try_from(usual.max(needed.next_multiple_of(4096))).expect("segments and batches are far below 4 GiB");
        segment::finish_batch(&mut head, batch_at, number, SEGMENT_HEADER_BYTES, self.run, SEGMENT_HEADER_BYTES);
        let mut header = Vec::with_capacity(batch_at);
        segment::encode_segment_header(number, size, &mut header);
        head[..batch_at].copy_from_slice(&header);

        let (spare, file) = self.take_spare(u64::from(size))?;
        let written = self.disk.write_at(&file, 0, &head);
        self.guard(written)?;
        // Content first, then the name: whatever has a segment's name has a good opening.
        let name = segment::segment_name(number);
        let synced = self.disk.sync_data(&file).and_then(|()| self.disk.rename(&spare, &name)).and_then(|()| self.disk.sync_dir());
        self.is_poisoned |= synced.is_err();
        self.guard(synced)?;
        self.spares.ready.retain(|ready| *ready != spare);
        self.segments.insert(number, Segment { file, size });
        self.position = head_bytes;
        self.synced = head_bytes;
        // The opening is named only when it is synced, so its end is a mark of its own.
        self.stated = head_bytes;
        self.records_end = head_bytes;
        Ok(())
    }

    fn encode_opening(&self, previous_end: u32, out: &mut Vec<u8>) {
        let known = || self.state.replicas.iter().filter(|(_, replica)| replica.sequence > 0 || replica.lost);
        let count = |count: usize| u32::try_from(count).expect("a node has fewer than 2^32 replicas");
        let head = OpeningHead { previous_end, replica_count: count(known().count()), tombstone_count: count(self.state.tombstones.len()) };
        record::encode_opening(head, out);
        if let Some(identity) = &self.state.identity {
            super::LogRecord::Identity(identity.clone()).encode(0, out);
        }
        for (key, replica) in known() {
            record::encode_state(*key, replica.sequence, &replica.image(), out);
        }
        self.state.tombstones.iter().for_each(|key| record::encode_buried(*key, out));
    }

    /// A file of `size` bytes with all its blocks. It stays a spare until it is renamed.
    fn take_spare(&mut self, size: u64) -> Result<(String, D::File), LogError> {
        if size == self.options.segment_bytes {
            if self.spares.ready.is_empty() {
                let filled = self.fill_spare(u64::MAX);
                self.guard(filled)?;
            }
            let name = self.spares.ready.last().expect("one was just filled").clone();
            let opened = self.disk.open(&name);
            return Ok((name, self.guard(opened)?));
        }
        let name = self.new_spare_name();
        let made = self.disk.create(&name).and_then(|file| self.disk.zero_fill(&file, 0, size).map(|()| file));
        if made.is_err() {
            // Room taken by a file nobody can use would keep the disk full.
            drop(self.disk.remove(&name));
        }
        let file = self.guard(made)?;
        Ok((name, file))
    }

    fn new_spare_name(&mut self) -> String {
        let name = segment::spare_name(self.spares.next);
        self.spares.next += 1;
        name
    }

    /// Zero-fills a spare file by up to `bytes`, making one if there is none.
    fn fill_spare(&mut self, bytes: u64) -> Result<(), crate::disk::DiskError> {
        if self.spares.filling.is_none() {
            let name = self.new_spare_name();
            let file = self.disk.create(&name)?;
            self.spares.filling = Some((name, file, 0));
        }
        let (_, file, filled) = self.spares.filling.as_mut().expect("it was just made");
        let step = bytes.min(self.options.segment_bytes - *filled);
        self.disk.zero_fill(file, *filled, step)?;
        *filled += step;
        self.disk.sync_data(file)?;
        if *filled == self.options.segment_bytes {
            let (name, _, _) = self.spares.filling.take().expect("it is there");
            self.spares.ready.push(name);
        }
        Ok(())
    }

    /// Fills a spare file a little further, so that the next roll finds one. Errors are left to the
    /// roll, which meets them again if they matter then.
    pub(super) fn prepare_spare(&mut self) {
        if !self.spares.ready.is_empty() {
            return;
        }
        let appended = self.bytes_appended - self.spares.bytes_since_fill;
        if appended >= FILL_EVERY_BYTES {
            self.spares.bytes_since_fill = self.bytes_appended;
            let steps = appended / FILL_EVERY_BYTES;
            if self.fill_spare(steps.saturating_mul(FILL_STEP_BYTES)).is_err() {
                self.drop_filling();
            }
        }
    }

    /// Gives up on a spare file that could not be filled; it may not be trusted to have its blocks.
    fn drop_filling(&mut self) {
        if let Some((name, _, _)) = self.spares.filling.take() {
            drop(self.disk.remove(&name));
        }
    }

    /// Lets the oldest segments go that hold nothing needed. Only what is synced may have said so, so
    /// this comes after a sync.
    pub(super) fn drop_unneeded(&mut self) -> Result<(), LogError> {
        debug_assert!(self.synced == self.position, "what makes a segment needless must be synced");
        let newest = self.number();
        let needed = self.state.live.oldest().unwrap_or(newest).min(newest);
        let mut changed = false;
        while let Some(entry) = self.segments.first_entry().filter(|entry| *entry.key() < needed) {
            let (number, segment) = entry.remove_entry();
            let name = segment::segment_name(number);
            let is_usual = u64::from(segment.size) == self.options.segment_bytes;
            let done = if is_usual && self.spares.ready.len() < self.options.spare_count_max {
                let spare = self.new_spare_name();
                let renamed = self.disk.rename(&name, &spare);
                if renamed.is_ok() {
                    self.spares.ready.push(spare);
                }
                renamed
            } else {
                self.disk.remove(&name)
            };
            self.is_poisoned |= done.is_err();
            self.guard(done)?;
            changed = true;
        }
        if changed {
            // Before its content changes, the file must have lost its old name for good.
            let synced = self.disk.sync_dir();
            self.is_poisoned |= synced.is_err();
            self.guard(synced)?;
        }
        Ok(())
    }

    /// Copies needed entries of the oldest segments into the newest, if there are too many segments
    /// for what they hold. `length` bytes are left free behind them.
    fn move_entries(&mut self, length: u32) -> Result<(), LogError> {
        let live = self.state.live.total();
        if self.segments.len() as u64 <= self.options.segment_count_max || live * 4 > self.bytes_total() {
            return Ok(());
        }
        let room = u64::from(self.newest().size - self.position).saturating_sub(u64::from(length + self.reserve() + SEAL_ROOM_BYTES));
        let mut budget = room.min(self.options.segment_bytes / 2) as usize;
        let newest = self.number();
        while let Some(oldest) = self.state.live.oldest().filter(|oldest| *oldest < newest) {
            let pinning: Vec<ReplicaKey> = self
                .state
                .replicas
                .iter()
                .filter(|(_, r)| r.extents.iter().any(|e| e.place.segment == oldest))
                .map(|(key, _)| *key)
                .collect();
            for key in pinning {
                if !self.move_replica(key, oldest, &mut budget)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Moves one replica's entries out of a segment; false if the budget is used up.
    fn move_replica(&mut self, key: ReplicaKey, segment: u64, budget: &mut usize) -> Result<bool, LogError> {
        loop {
            let replica = &self.state.replicas[&key];
            let mut run = replica.extents.iter().skip_while(|extent| extent.place.segment != segment);
            let Some(front) = run.next() else { return Ok(true) };
            let end = run.take_while(|extent| extent.place.segment == segment).last().map_or(front.end(), super::state::Extent::end);
            let limit = MOVED_RECORD_BYTES.min(*budget);
            let entries = self.read_range(key, LogIndex(front.first), end, limit)?;
            let bytes = segment::padded(segment::BATCH_HEADER_BYTES as usize + record::moved_len(&entries)) as usize;
            if bytes > *budget {
                return Ok(false);
            }
            self.append_moved(key, &entries)?;
            *budget -= bytes;
            self.bytes_moved += bytes as u64;
        }
    }

    fn append_moved(&mut self, key: ReplicaKey, entries: &[flotilla_types::Entry]) -> Result<(), LogError> {
        let number = self.number();
        let replica = self.state.replicas.get_mut(&key).expect("a replica that is moved is there");
        segment::begin_batch(&mut self.buffer);
        record::encode_moved(key, replica.sequence, entries, &mut self.buffer);
        let record_bytes = self.buffer.len() as u32 - segment::BATCH_HEADER_BYTES;
        segment::finish_batch(&mut self.buffer, 0, number, self.position, self.run, self.synced);
        self.write_buffer()?;
        let place = super::Place {
            segment: number,
            batch: self.position,
            batch_bytes: self.buffer.len() as u32,
            record: segment::BATCH_HEADER_BYTES,
        };
        let first = entries.first().expect("something is moved").index.0;
        let extent = super::state::Extent { first, count: entries.len() as u32, bytes: record_bytes, place };
        let replica = self.state.replicas.get_mut(&key).expect("it was there above");
        replica.relocate(&mut self.state.live, extent);
        replica.sequence += 1;
        self.stated = self.synced;
        self.position += self.buffer.len() as u32;
        self.records_end = self.position;
        Ok(())
    }
}
