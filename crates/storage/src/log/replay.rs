//! Reading the segments from front to back and finding out what they amount to.
//!
//! What must verify: in a segment that is not the last, everything up to the end that the next one's
//! opening states; in the last, everything below the highest mark in any batch of it that verifies,
//! wherever it lies. What does not verify there is damage: it is named, and reading goes on behind it.
//! What does not verify above was never acknowledged, and is where the log ends.
//!
//! Whom damage concerns is told by the sequence numbers (see [`super::record`]). A replica whose next
//! record behind the damage has the next number lost nothing. One with a gap is lost, unless a later
//! opening states its state again and the entries in doubt were purged, moved or replaced since. One
//! with no record behind the damage may have lost something, so it counts as lost.

use super::record::{self, InstallPhase, InstallRecord, LogRecord, OpeningHead, StoredRecord};
use super::segment::{self, BATCH_HEADER_BYTES, Frame, SEGMENT_HEADER_BYTES};
use super::state::{Extent, LiveBytes, Place, Replica, State};
use super::{Damage, LogError};
use bytes::Bytes;
use flotilla_types::wire::Reader;
use flotilla_types::{LogIndex, ReplicaKey, Term};
use std::collections::BTreeSet;

/// One segment, read.
pub(super) struct Loaded {
    pub(super) number: u64,
    pub(super) path: String,
    pub(super) bytes: Bytes,
}

/// Where a walked segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Walked {
    /// Behind the last batch that counts.
    pub(super) end: u32,
    /// Below this everything was known to be synced.
    pub(super) synced: u32,
    /// Something was damaged.
    pub(super) damaged: bool,
}

/// What was found so far.
#[derive(Default)]
pub(super) struct Replay {
    /// See [`super::LogOptions`].
    pub(super) cuts_below_sync_mark: bool,
    pub(super) state: State,
    pub(super) damage: Vec<Damage>,
    /// Which of `damage` may have held records.
    lossy: Vec<bool>,
    /// The newest run seen.
    pub(super) run: u32,
    /// Some opening was read: the list of replicas is known.
    pub(super) is_based: bool,
    /// Replicas that the newest opening read calls lost.
    pub(super) known_lost: BTreeSet<ReplicaKey>,
    /// Batches read, and records in them.
    pub(super) batches: u64,
    pub(super) records: u64,
}

/// How much of the file `name`, from its front, the file itself says was synced: what lies behind may be
/// a torn write, what lies before can only be damaged. 0 for a file that is no segment.
pub fn stated_bytes(name: &str, content: &[u8]) -> u64 {
    let Some(number) = segment::segment_number(name) else { return 0 };
    let loaded = Loaded { number, path: name.to_owned(), bytes: Bytes::copy_from_slice(content) };
    u64::from(loaded.mark_from(SEGMENT_HEADER_BYTES))
}

impl Loaded {
    /// What the segment's opening says, if it verifies.
    pub(super) fn opening(&self) -> Option<OpeningHead> {
        let frame = self.check(SEGMENT_HEADER_BYTES)?;
        let mut reader = Reader::new(self.body(SEGMENT_HEADER_BYTES, frame));
        match record::decode(&mut reader).ok()??.record {
            StoredRecord::Opening(head) => Some(head),
            _ => None,
        }
    }

    fn size(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("recovery refuses files of 4 GiB")
    }

    fn check(&self, at: u32) -> Option<Frame> {
        if at >= self.size() { None } else { segment::check_batch(&self.bytes, 0, at, self.number).ok() }
    }

    fn body(&self, at: u32, frame: Frame) -> Bytes {
        self.bytes.slice((at + BATCH_HEADER_BYTES) as usize..(at + frame.bytes) as usize)
    }

    /// The highest mark in any batch from `at` on.
    fn mark_from(&self, mut at: u32) -> u32 {
        let mut mark = 0;
        while at < self.size() {
            match self.check(at) {
                Some(frame) => {
                    mark = mark.max(frame.synced);
                    at += frame.bytes;
                }
                None => at += segment::ALIGNMENT,
            }
        }
        mark
    }

    /// The first batch in `(at, end)`.
    fn next_batch(&self, at: u32, end: u32, run: u32) -> Option<u32> {
        let from = (at + segment::ALIGNMENT).next_multiple_of(segment::ALIGNMENT);
        (from..end.min(self.size())).step_by(segment::ALIGNMENT as usize).find(|at| self.check(*at).is_some_and(|frame| frame.run >= run))
    }
}

impl Replay {
    /// Notes damage; `lossy` if records may have lain there.
    pub(super) fn note(&mut self, file: &str, offset: u64, reason: impl Into<String>, lossy: bool) {
        self.damage.push(Damage { file: file.to_owned(), offset, reason: reason.into(), replicas: Vec::new() });
        self.lossy.push(lossy);
    }

    /// Reads a segment's batches. `known_end` is where the next segment says that this one ends.
    pub(super) fn walk(&mut self, loaded: &Loaded, known_end: Option<u32>) -> Walked {
        let size = loaded.size();
        let mut at = SEGMENT_HEADER_BYTES;
        let mut mark = 0;
        let mut damaged = false;
        let mut scanned = false;
        while known_end.is_none_or(|end| at < end) && at < size {
            let reason = match segment::check_batch(&loaded.bytes, 0, at, loaded.number) {
                Ok(frame) if frame.run >= self.run => {
                    self.run = frame.run;
                    mark = mark.max(frame.synced);
                    let place = Place { segment: loaded.number, batch: at, batch_bytes: frame.bytes, record: 0 };
                    damaged |= !self.batch(&loaded.path, place, loaded.body(at, frame));
                    at += frame.bytes;
                    continue;
                }
                Ok(_) => "the batch is a leftover",
                Err(reason) => reason,
            };
            if !scanned {
                scanned = true;
                mark = if self.cuts_below_sync_mark { 0 } else { mark.max(loaded.mark_from(at)) };
            }
            // A segment gets its name when its opening is synced, so the opening always counts.
            let opening_end = SEGMENT_HEADER_BYTES + BATCH_HEADER_BYTES;
            let must_verify = known_end.unwrap_or(mark.max(opening_end)).min(size);
            if at >= must_verify {
                break;
            }
            let next = loaded.next_batch(at, must_verify, self.run).unwrap_or(must_verify);
            self.note(&loaded.path, u64::from(at), format!("{reason}; {} bytes that were synced cannot be read", next - at), true);
            damaged = true;
            at = next;
        }
        if let Some(end) = known_end.filter(|end| at < *end) {
            self.note(&loaded.path, u64::from(at), format!("the file is cut short: it held {} bytes", end), true);
            damaged = true;
        }
        Walked { end: at, synced: mark.min(at), damaged }
    }

    /// Takes one batch; false if its records make no sense.
    fn batch(&mut self, path: &str, place: Place, body: Bytes) -> bool {
        self.batches += 1;
        let total = body.len();
        let mut reader = Reader::new(body);
        let mut opening = Opening::default();
        loop {
            let begin = total - reader.remaining();
            let located = match record::decode(&mut reader) {
                Ok(Some(located)) => {
                    self.records += 1;
                    located
                }
                Ok(None) => break,
                Err(error) => {
                    self.note(path, u64::from(place.batch), format!("a record cannot be read: {error}"), true);
                    return false;
                }
            };
            let bytes = (total - reader.remaining() - begin) as u32;
            let place = Place { record: BATCH_HEADER_BYTES + begin as u32, ..place };
            match (located.replica, located.record) {
                (None, StoredRecord::Identity(identity)) => self.state.identity = Some(identity),
                (None, StoredRecord::Opening(head)) => opening.head = Some(head),
                (Some((key, sequence)), StoredRecord::State(image)) => {
                    opening.replicas.insert(key);
                    if image.lost {
                        opening.lost.insert(key);
                    }
                    self.image(path, place, key, sequence, &image);
                }
                (Some((key, _)), StoredRecord::Buried) => {
                    opening.tombstones.insert(key);
                }
                (Some((key, _)), StoredRecord::Tombstone) => self.state.bury(key),
                (Some((key, sequence)), record) => self.record(path, place, bytes, key, sequence, record),
                (None, _) => unreachable!("decoding gives every other record its replica"),
            }
        }
        if let Some(head) = opening.head {
            self.close_opening(path, place, head, opening);
        }
        true
    }

    fn record(&mut self, path: &str, place: Place, bytes: u32, key: ReplicaKey, sequence: u64, record: StoredRecord) {
        if self.state.tombstones.contains(&key) {
            return;
        }
        let begins = matches!(record, StoredRecord::Created(..)) && sequence == 0;
        let known =
            self.state.replicas.entry(key).or_insert_with(|| Replica { cleared: 0, lost: !begins, ..Replica::new((LogIndex(0), Term(0))) });
        let whole = !known.lost && known.sequence == sequence && known.takes(&record);
        if !whole && (known.sequence != sequence || !known.lost) {
            self.suspect(path, place, key);
        }
        let replica = self.state.replicas.get_mut(&key).expect("it is there by now");
        let live = &mut self.state.live;
        replica.sequence = sequence + 1;
        replica.cleared = self.damage.len();
        match record {
            StoredRecord::Entries { first, count, moved } => {
                let extent = Extent { first, count, bytes, place };
                if moved {
                    replica.relocate(live, extent);
                } else if first > replica.start.0.0 {
                    replica.extend_missing(first - 1);
                    replica.append(live, extent);
                }
            }
            StoredRecord::HardState(hard_state) => replica.hard_state = hard_state,
            StoredRecord::Purge(index, term) => replica.purge(live, index, term),
            StoredRecord::Created(index, term) => replica.restart(live, (index, term)),
            StoredRecord::Install(phase, snapshot) => replica.install(live, phase, snapshot),
            _ => unreachable!("the other records are handled by the caller"),
        }
    }

    /// A replica's state as an opening gives it.
    fn image(&mut self, path: &str, place: Place, key: ReplicaKey, sequence: u64, image: &record::ReplicaImage) {
        let mut suspects = None;
        match self.state.replicas.get(&key) {
            None if self.is_based => {
                if !self.lossy.contains(&true) {
                    self.note(path, u64::from(place.batch), format!("records of {key} are missing before this segment"), true);
                }
                suspects = Some(0..self.damage.len());
            }
            Some(replica) if !replica.lost && replica.sequence != sequence => self.suspect(path, place, key),
            _ => {}
        }
        let cleared = self.damage.len();
        let replica = self.state.replicas.entry(key).or_insert_with(|| Replica { suspects, ..Replica::new(image.start) });
        replica.reconcile(&mut self.state.live, image);
        replica.sequence = sequence;
        replica.cleared = cleared;
    }

    fn close_opening(&mut self, path: &str, place: Place, head: OpeningHead, opening: Opening) {
        let counts = (opening.replicas.len(), opening.tombstones.len());
        if counts != (head.replica_count as usize, head.tombstone_count as usize) {
            self.note(path, u64::from(place.batch), "the opening lists fewer replicas than it says", true);
            return;
        }
        // The list is whole: who is not in it was removed in a stretch that is damaged.
        let gone: Vec<ReplicaKey> = self.state.replicas.keys().filter(|key| !opening.replicas.contains(key)).copied().collect();
        gone.into_iter().for_each(|key| self.state.bury(key));
        self.state.tombstones = opening.tombstones;
        self.known_lost = opening.lost;
        self.is_based = true;
    }

    /// Records of `key` are missing before `place`, where it was noticed.
    fn suspect(&mut self, path: &str, place: Place, key: ReplicaKey) {
        let cleared = self.state.replicas.get(&key).map_or(0, |replica| replica.cleared);
        if !self.lossy[cleared..].contains(&true) {
            self.note(path, u64::from(place.batch), format!("records of {key} are missing before this one"), true);
        }
        let replica = self.state.replicas.get_mut(&key).expect("a replica under suspicion is known");
        let from = replica.suspects.as_ref().map_or(cleared, |range| range.start);
        replica.suspects = Some(from..self.damage.len());
        replica.lost = true;
        let last = replica.last;
        replica.miss_entries(&mut self.state.live, last);
    }

    /// All segments are read: says whom each damage concerns.
    pub(super) fn conclude(&mut self, oldest: &str) -> Result<(), LogError> {
        let keys: Vec<ReplicaKey> = self.state.replicas.keys().copied().collect();
        // What is noted below says whom losses concern; it is no further damage.
        let found = self.damage.len();
        for key in keys {
            let replica = self.state.replicas.get_mut(&key).expect("it was listed");
            if self.lossy[replica.cleared..found].contains(&true) {
                let from = replica.suspects.as_ref().map_or(replica.cleared, |range| range.start);
                replica.suspects = Some(from..found);
                replica.lost = true;
            }
            if !replica.lost && !replica.is_missing_entries() {
                continue;
            }
            replica.lost = true;
            let suspects = replica.suspects.clone().unwrap_or(0..0);
            let mut named = false;
            for (damage, _) in self.damage[suspects.clone()].iter_mut().zip(&self.lossy[suspects]).filter(|(_, lossy)| **lossy) {
                damage.replicas.push(key);
                named = true;
            }
            if !named {
                self.note(oldest, u64::from(SEGMENT_HEADER_BYTES), format!("records of {key} that lay before this segment are lost"), true);
                self.damage.last_mut().expect("it was just noted").replicas.push(key);
            }
        }
        match self.damage.iter().zip(&self.lossy).find(|(_, lossy)| **lossy) {
            Some((damage, _)) if !self.is_based || self.state.identity.is_none() => Err(LogError::Unrecoverable {
                file: damage.file.clone(),
                offset: damage.offset,
                reason: format!("{}; the node's identity or its list of replicas lay there", damage.reason),
            }),
            _ => Ok(()),
        }
    }
}

#[derive(Default)]
struct Opening {
    head: Option<OpeningHead>,
    replicas: BTreeSet<ReplicaKey>,
    tombstones: BTreeSet<ReplicaKey>,
    lost: BTreeSet<ReplicaKey>,
}

impl Replica {
    /// Whether the record can follow what is there.
    fn takes(&self, record: &StoredRecord) -> bool {
        match record {
            StoredRecord::Entries { first, moved: false, .. } => *first > self.start.0.0 && *first <= self.last + 1,
            _ => true,
        }
    }

    /// An install began or ended.
    pub(super) fn install(&mut self, live: &mut LiveBytes, phase: InstallPhase, snapshot: InstallRecord) {
        self.install = Some((phase, snapshot));
        if phase == InstallPhase::Installed {
            self.restart(live, (snapshot.index, snapshot.term));
        }
    }

    /// Takes a record that was appended.
    pub(super) fn take(&mut self, live: &mut LiveBytes, record: &LogRecord, bytes: u32, place: Place) {
        match record {
            LogRecord::Identity(_) | LogRecord::Tombstone { .. } => unreachable!("these concern no replica that is there"),
            LogRecord::Entries { entries, .. } => {
                let first = entries.first().expect("checked when it was encoded").index.0;
                self.append(live, Extent { first, count: entries.len() as u32, bytes, place });
            }
            LogRecord::HardState { hard_state, .. } => self.hard_state = *hard_state,
            LogRecord::Purge { through, term, .. } => self.purge(live, *through, *term),
            LogRecord::Installing { snapshot, .. } => self.install(live, InstallPhase::Installing, *snapshot),
            LogRecord::Installed { snapshot, .. } => self.install(live, InstallPhase::Installed, *snapshot),
            LogRecord::Created { start, .. } => self.restart(live, *start),
        }
        self.sequence += 1;
    }
}
