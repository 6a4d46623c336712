//! The entries a group holds in memory: what the library calls its storage.
//!
//! It holds every entry from the last purge on, written or not; the log on disk is read only at
//! start. A follower that needs an entry from before the purge gets a snapshot.
//!
//! Invariants: the entries are one run after `start`; the term of `start` outlives its entry;
//! entries' bytes are shared with log and links, never copied.

use flotilla_types::ReplicaId;
use raft::eraftpb::{Entry, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};

/// See the module.
pub(crate) struct EntryCache {
    start_index: u64,
    start_term: u64,
    entries: VecDeque<Entry>,
    bytes: usize,
    initial: RaftState,
    /// Behind a cell because the library asks for a snapshot by shared reference.
    snapshots: RefCell<SnapshotDesk>,
}

/// Who was refused a snapshot, and the one on offer.
#[derive(Default)]
struct SnapshotDesk {
    wanted: BTreeSet<u64>,
    offer: Option<(u64, Snapshot)>,
}

impl EntryCache {
    pub(crate) fn new(start: (u64, u64), entries: VecDeque<Entry>, initial: RaftState) -> EntryCache {
        let bytes = entries.iter().map(entry_bytes).sum();
        EntryCache { start_index: start.0, start_term: start.1, entries, bytes, initial, snapshots: RefCell::default() }
    }

    fn last(&self) -> u64 {
        self.start_index + self.entries.len() as u64
    }

    /// Memory held by the entries.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds entries, replacing what was at their positions and after.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        assert!(self.start_index < first.index && first.index <= self.last() + 1, "entries follow those held");
        while self.last() >= first.index {
            let gone = self.entries.pop_back().expect("there are entries up to the last");
            self.bytes -= entry_bytes(&gone);
        }
        self.bytes += entries.iter().map(entry_bytes).sum::<usize>();
        self.entries.extend(entries);
    }

    /// Starts anew behind a snapshot.
    pub(crate) fn restore(&mut self, index: u64, term: u64) {
        (self.start_index, self.start_term, self.bytes) = (index, term, 0);
        self.entries.clear();
    }

    /// Drops entries up to `through`, which becomes the start unless that is further on.
    pub(crate) fn purge(&mut self, through: u64) {
        assert!(through <= self.last(), "only entries that are held can be purged");
        while self.start_index < through {
            let gone = self.entries.pop_front().expect("there are entries up to the last");
            self.bytes -= entry_bytes(&gone);
            (self.start_index, self.start_term) = (gone.index, gone.term);
        }
    }

    /// The entry behind which about `keep_bytes` are held.
    pub(crate) fn purge_point(&self, keep_bytes: usize) -> u64 {
        let mut excess = self.bytes.saturating_sub(keep_bytes);
        let dropped = self.entries.iter().take_while(|entry| {
            let bytes = entry_bytes(entry);
            let drops = bytes <= excess;
            excess = excess.saturating_sub(bytes);
            drops
        });
        self.start_index + dropped.count() as u64
    }

    pub(crate) fn take_wanted(&mut self) -> Vec<ReplicaId> {
        std::mem::take(&mut self.snapshots.get_mut().wanted).into_iter().map(ReplicaId).collect()
    }

    pub(crate) fn offer(&mut self, to: ReplicaId, snapshot: Snapshot) {
        self.snapshots.get_mut().offer = Some((to.0, snapshot));
    }

    /// Takes the offer back; says whether the library had taken it.
    pub(crate) fn withdraw_offer(&mut self) -> bool {
        self.snapshots.get_mut().offer.take().is_none()
    }
}

fn entry_bytes(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + size_of::<Entry>()
}

impl Storage for EntryCache {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(&self, low: u64, high: u64, bytes_max: impl Into<Option<u64>>, _: GetEntriesContext) -> raft::Result<Vec<Entry>> {
        if low <= self.start_index {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "the library asks for entries it was given");
        let bytes_max = bytes_max.into().unwrap_or(u64::MAX);
        let range = (low - self.start_index - 1) as usize..(high - self.start_index - 1) as usize;
        let mut bytes = 0u64;
        let mut taken = Vec::with_capacity(range.len().min(64));
        for entry in self.entries.range(range) {
            bytes += (entry.data.len() + entry.context.len()) as u64 + ENTRY_HEADER_BYTES;
            if bytes > bytes_max && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.start_index {
            return Ok(self.start_term);
        }
        let position = index.checked_sub(self.start_index + 1).ok_or(Error::Store(StorageError::Compacted))?;
        self.entries.get(position as usize).map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.start_index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let mut desk = self.snapshots.borrow_mut();
        match desk.offer.take() {
            Some((replica, snapshot)) if replica == to && snapshot.get_metadata().index >= request_index.max(self.start_index) => {
                desk.wanted.remove(&to);
                Ok(snapshot)
            }
            other => {
                desk.offer = other;
                desk.wanted.insert(to);
                Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}

/// What an entry costs in a message beside its bytes.
const ENTRY_HEADER_BYTES: u64 = 13;
