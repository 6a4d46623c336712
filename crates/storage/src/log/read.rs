//! Reading entries back: a few for a follower that lags, or all that are needed at recovery.
//!
//! Whole batches are read, since a batch has the checksum; what is handed out is copied from it record
//! by record, so that one entry never keeps more than its record in memory.

use super::record;
use super::segment;
use super::state::{Extent, Place};
use super::{LogError, RaftLog, Segment};
use crate::disk::Disk;
use bytes::Bytes;
use flotilla_types::wire::Reader;
use flotilla_types::{Entry, LogIndex, ReplicaKey};
use std::collections::BTreeMap;

/// How much is read at once when entries are read in order.
const WINDOW_BYTES: u32 = 1 << 20;

/// A stretch of a segment, and the last batch in it that was checked.
#[derive(Default)]
pub(super) struct Window {
    segment: u64,
    base: u32,
    bytes: Vec<u8>,
    checked: Option<(u64, u32)>,
    window_bytes: u32,
}

impl Window {
    /// For reading much, in order.
    pub(super) fn wide() -> Window {
        Window { window_bytes: WINDOW_BYTES, ..Window::default() }
    }

    /// For reading a few batches.
    fn narrow() -> Window {
        Window { window_bytes: 64 << 10, ..Window::default() }
    }

    /// The record at `place`, its batch checked.
    pub(super) fn record<D: Disk>(
        &mut self,
        disk: &D,
        segments: &BTreeMap<u64, Segment<D::File>>,
        place: Place,
    ) -> Result<Bytes, LogError> {
        let path = || disk.path(&segment::segment_name(place.segment));
        let end = u64::from(place.batch) + u64::from(place.batch_bytes);
        let window_end = u64::from(self.base) + self.bytes.len() as u64;
        if self.segment != place.segment || place.batch < self.base || end > window_end {
            let segment = segments.get(&place.segment).expect("a segment that is needed is there");
            let length = self.window_bytes.max(place.batch_bytes).min(segment.size - place.batch);
            self.checked = None;
            self.bytes.resize(length as usize, 0);
            (self.segment, self.base) = (place.segment, place.batch);
            disk.read_at(&segment.file, u64::from(place.batch), &mut self.bytes).map_err(LogError::Disk)?;
        }
        if self.checked != Some((place.segment, place.batch)) {
            let checked = segment::check_batch(&self.bytes, self.base, place.batch, place.segment);
            checked.map_err(|reason| LogError::Damaged { file: path(), offset: u64::from(place.batch), reason: reason.to_owned() })?;
            self.checked = Some((place.segment, place.batch));
        }
        let from = (place.batch - self.base) as usize;
        let batch = &self.bytes[from..from + place.batch_bytes as usize];
        let record = &batch[place.record as usize..];
        let length = record::entries_record_len(record).ok_or_else(|| unreadable(path(), place, "a record does not fit into its batch"))?;
        Ok(Bytes::copy_from_slice(&record[..length]))
    }

    /// Appends the entries of an extent, from `from` on, until `room` says stop.
    pub(super) fn entries<D: Disk>(
        &mut self,
        disk: &D,
        segments: &BTreeMap<u64, Segment<D::File>>,
        extent: &Extent,
        from: u64,
        out: &mut Vec<Entry>,
        room: impl FnMut(&Entry) -> bool,
    ) -> Result<(), LogError> {
        let record = self.record(disk, segments, extent.place)?;
        let decoded = record::decode_entries(&mut Reader::new(record), from.max(extent.first), extent.end(), out, room);
        decoded.map_err(|error| unreadable(disk.path(&segment::segment_name(extent.place.segment)), extent.place, &error.to_string()))
    }
}

fn unreadable(file: String, place: Place, reason: &str) -> LogError {
    LogError::Damaged { file, offset: u64::from(place.batch), reason: reason.to_owned() }
}

impl<D: Disk> RaftLog<D> {
    /// The entries from `from` on, at least one and then as many as `bytes_max` bytes of data allow.
    /// None if `from` is the index behind the last.
    ///
    /// # Errors
    /// [`LogError::NotInLog`] if `from` was purged or lies further ahead; [`LogError::Damaged`] if what
    /// is read does not verify. Neither poisons the log.
    pub fn read_entries(&self, replica: ReplicaKey, from: LogIndex, bytes_max: usize) -> Result<Vec<Entry>, LogError> {
        self.check_poison()?;
        self.read_range(replica, from, u64::MAX, bytes_max)
    }

    pub(super) fn read_range(&self, key: ReplicaKey, from: LogIndex, end: u64, bytes_max: usize) -> Result<Vec<Entry>, LogError> {
        let absent = || LogError::NotInLog { replica: key, index: from };
        let replica = self.state.replicas.get(&key).filter(|replica| !replica.lost).ok_or_else(absent)?;
        if from <= replica.start.0 || from.0 > replica.last + 1 {
            return Err(absent());
        }
        let mut entries = Vec::new();
        let mut window = Window::narrow();
        let mut left = bytes_max;
        let mut is_full = false;
        let begin = replica.extents.partition_point(|extent| extent.end() <= from.0);
        for extent in replica.extents.range(begin..).take_while(|extent| extent.first < end) {
            let mut is_first = entries.is_empty();
            window.entries(&self.disk, &self.segments, extent, from.0, &mut entries, |entry| {
                is_full = !is_first && entry.data.len() > left;
                is_first = false;
                left = left.saturating_sub(entry.data.len());
                !is_full
            })?;
            if is_full || left == 0 {
                break;
            }
        }
        entries.truncate(usize::try_from(end.saturating_sub(from.0)).unwrap_or(usize::MAX));
        Ok(entries)
    }
}
