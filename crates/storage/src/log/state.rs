//! What the log holds, in memory: of each replica its states and where its entries lie. Appending and
//! recovery change it by the same methods, so that what is found again is what was held.

use super::record::{InstallPhase, InstallRecord, ReplicaImage};
use bytes::Bytes;
use flotilla_types::{HardState, LogIndex, ReplicaKey, Term};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

/// Everything that counts in the log.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) identity: Option<Bytes>,
    pub(super) replicas: BTreeMap<ReplicaKey, Replica>,
    pub(super) tombstones: BTreeSet<ReplicaKey>,
    pub(super) live: LiveBytes,
}

/// How much of each segment is still needed; a segment that is not listed has nothing.
#[derive(Debug, Default)]
pub(super) struct LiveBytes(BTreeMap<u64, (u64, u64)>);

/// One replica's part of the log.
///
/// Invariants: the extents are in index order and without overlap; together they are exactly the
/// entries behind `start` up to `last`.
#[derive(Debug, Default)]
pub(super) struct Replica {
    /// The number of its next record.
    pub(super) sequence: u64,
    pub(super) hard_state: HardState,
    pub(super) start: (LogIndex, Term),
    pub(super) last: u64,
    pub(super) extents: VecDeque<Extent>,
    pub(super) install: Option<(InstallPhase, InstallRecord)>,
    /// Records of it were lost to damage, and nothing that came later made up for them.
    pub(super) lost: bool,
    /// While a batch is encoded: what the records before the present one make of it.
    pub(super) plan: Option<Plan>,
    /// Recovery only: of the damages found so far, how many are known not to concern it.
    pub(super) cleared: usize,
    /// Recovery only: the damages that may have cost it records.
    pub(super) suspects: Option<Range<usize>>,
}

/// What a replica will be when a batch that is being encoded is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) sequence: u64,
    pub(super) start: u64,
    pub(super) last: u64,
    pub(super) is_buried: bool,
}

/// Some consecutive entries and the record they lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) first: u64,
    pub(super) count: u32,
    /// About how many bytes of the record they take.
    pub(super) bytes: u32,
    pub(super) place: Place,
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The segment; 0: nowhere, the entries are missing.
    pub(super) segment: u64,
    /// Where in it the batch begins.
    pub(super) batch: u32,
    /// How long the batch is.
    pub(super) batch_bytes: u32,
    /// Where in the batch the record begins.
    pub(super) record: u32,
}

impl Place {
    pub(super) const MISSING: Place = Place { segment: 0, batch: 0, batch_bytes: 0, record: 0 };
}

impl LiveBytes {
    fn add(&mut self, extent: &Extent) {
        if extent.place != Place::MISSING {
            let (extents, bytes) = self.0.entry(extent.place.segment).or_default();
            *extents += 1;
            *bytes += u64::from(extent.bytes);
        }
    }

    fn remove(&mut self, extent: &Extent) {
        if extent.place == Place::MISSING {
            return;
        }
        let (extents, bytes) = self.0.get_mut(&extent.place.segment).expect("an extent was counted when it came");
        *extents -= 1;
        *bytes -= u64::from(extent.bytes);
        if *extents == 0 {
            self.0.remove(&extent.place.segment);
        }
    }

    /// The oldest segment that is needed.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.0.keys().next().copied()
    }

    /// All bytes that are needed.
    pub(super) fn total(&self) -> u64 {
        self.0.values().map(|(_, bytes)| bytes).sum()
    }
}

impl Extent {
    /// The index behind its last entry.
    pub(super) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// The part in `[from, to)`, which must be in it.
    fn part(&self, from: u64, to: u64) -> Extent {
        debug_assert!(self.first <= from && from < to && to <= self.end());
        let count = (to - from) as u32;
        let bytes = (u64::from(self.bytes) * u64::from(count) / u64::from(self.count)) as u32;
        Extent { first: from, count, bytes, place: self.place }
    }
}

impl Replica {
    /// A replica whose log begins behind `start`.
    pub(super) fn new(start: (LogIndex, Term)) -> Replica {
        Replica { start, last: start.0.0, ..Replica::default() }
    }

    /// Entries come, replacing what is at or above the first.
    pub(super) fn append(&mut self, live: &mut LiveBytes, extent: Extent) {
        self.truncate(live, extent.first);
        live.add(&extent);
        self.last = extent.end() - 1;
        self.extents.push_back(extent);
    }

    /// Entries that are here already lie elsewhere too: the new place counts. Never changes which
    /// entries there are.
    pub(super) fn relocate(&mut self, live: &mut LiveBytes, moved: Extent) {
        let from = moved.first.max(self.start.0.0 + 1);
        let to = moved.end().min(self.last + 1);
        if from >= to {
            return;
        }
        let mut at = self.extents.partition_point(|extent| extent.end() <= from);
        while let Some(old) = self.extents.get(at).copied().filter(|extent| extent.first < to) {
            live.remove(&old);
            self.extents.remove(at);
            if old.end() > to {
                let right = old.part(to, old.end());
                live.add(&right);
                self.extents.insert(at, right);
            }
            if old.first < from {
                let left = old.part(old.first, from);
                live.add(&left);
                self.extents.insert(at, left);
                at += 1;
            }
        }
        let moved = moved.part(from, to);
        live.add(&moved);
        self.extents.insert(at, moved);
    }

    /// The entries up to `through` are needed no more.
    pub(super) fn purge(&mut self, live: &mut LiveBytes, through: LogIndex, term: Term) {
        if through <= self.start.0 {
            return;
        }
        self.start = (through, term);
        self.last = self.last.max(through.0);
        while let Some(front) = self.extents.front().copied().filter(|extent| extent.first <= through.0) {
            live.remove(&front);
            self.extents.pop_front();
            if front.end() > through.next().0 {
                let rest = front.part(through.next().0, front.end());
                live.add(&rest);
                self.extents.push_front(rest);
            }
        }
    }

    /// The log begins anew behind `start`.
    pub(super) fn restart(&mut self, live: &mut LiveBytes, start: (LogIndex, Term)) {
        self.forget_entries(live);
        self.start = start;
        self.last = start.0.0;
    }

    /// All its places are given up, as when the replica goes.
    pub(super) fn forget_entries(&mut self, live: &mut LiveBytes) {
        for extent in self.extents.drain(..) {
            live.remove(&extent);
        }
    }

    /// Its entries up to `last` exist, but nothing is known of where.
    pub(super) fn miss_entries(&mut self, live: &mut LiveBytes, last: u64) {
        self.forget_entries(live);
        self.last = self.start.0.0;
        self.extend_missing(last);
    }

    /// What an opening says of it is the truth; entries that are not known to lie anywhere are missing.
    pub(super) fn reconcile(&mut self, live: &mut LiveBytes, image: &ReplicaImage) {
        self.hard_state = image.hard_state;
        self.install = image.install;
        self.lost = image.lost;
        self.purge(live, image.start.0, image.start.1);
        self.start = image.start;
        self.truncate(live, image.last + 1);
        self.last = self.last.min(image.last);
        self.extend_missing(image.last);
    }

    /// Entries up to `last` exist beyond those known; nothing is known of where.
    pub(super) fn extend_missing(&mut self, last: u64) {
        while self.last < last {
            let first = self.last + 1;
            let count = u32::try_from(last - self.last).unwrap_or(u32::MAX);
            self.extents.push_back(Extent { first, count, bytes: 0, place: Place::MISSING });
            self.last += u64::from(count);
        }
    }

    /// Whether an entry is missing.
    pub(super) fn is_missing_entries(&self) -> bool {
        self.extents.iter().any(|extent| extent.place == Place::MISSING)
    }

    /// What an opening says of it.
    pub(super) fn image(&self) -> ReplicaImage {
        ReplicaImage { hard_state: self.hard_state, start: self.start, last: self.last, install: self.install, lost: self.lost }
    }

    fn truncate(&mut self, live: &mut LiveBytes, from: u64) {
        while let Some(back) = self.extents.back().copied().filter(|extent| extent.end() > from) {
            live.remove(&back);
            self.extents.pop_back();
            if back.first < from {
                let left = back.part(back.first, from);
                live.add(&left);
                self.extents.push_back(left);
            }
        }
    }
}

impl State {
    /// The replica is gone for ever.
    pub(super) fn bury(&mut self, key: ReplicaKey) {
        if let Some(mut replica) = self.replicas.remove(&key) {
            replica.forget_entries(&mut self.live);
        }
        self.tombstones.insert(key);
    }

    /// The replica that keeps the oldest needed segment.
    pub(super) fn oldest_pin(&self) -> Option<(u64, ReplicaKey)> {
        let oldest = self.live.oldest()?;
        let pins = |replica: &Replica| replica.extents.iter().any(|extent| extent.place.segment == oldest);
        self.replicas.iter().find(|(_, replica)| pins(replica)).map(|(key, _)| (oldest, *key))
    }
}
