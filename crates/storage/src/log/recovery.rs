//! Opening a log: what is on disk, what of it counts, and a safe place to go on.

use super::read::Window;
use super::record::{InstallPhase, InstallRecord};
use super::replay::{Loaded, Replay, Walked};
use super::roll::Spares;
use super::segment::{self, BATCH_HEADER_BYTES, FORMAT, HeaderCheck, SEGMENT_HEADER_BYTES};
use super::state::{Extent, Place, State};
use super::{LogError, LogOptions, RaftLog, Segment};
use crate::disk::Disk;
use bytes::Bytes;
use flotilla_types::{Entry, HardState, LogIndex, ReplicaKey, Term};
use std::collections::{BTreeMap, BTreeSet};

/// What a log held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The node's identity, if one was ever recorded.
    pub identity: Option<Bytes>,
    /// All replicas that were created and not removed, those that lost records included.
    pub replicas: BTreeMap<ReplicaKey, RecoveredReplica>,
    /// All replicas that were removed.
    pub tombstones: BTreeSet<ReplicaKey>,
    /// What cannot be read although it was synced. Not empty: a person should look at the disk.
    pub damage: Vec<Damage>,
}

/// What the log held of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredReplica {
    /// Term, vote and commit mark.
    pub hard_state: HardState,
    /// The position before the first entry.
    pub start: (LogIndex, Term),
    /// The entries that are still needed, in order. Of a lost replica: those before the first gap.
    pub entries: Vec<Entry>,
    /// The last install, if there was one, and how far it came.
    pub install: Option<(InstallPhase, InstallRecord)>,
    /// Records of it may have been lost to damage. It must not vote, lead or answer again: it is
    /// removed and seeded anew under another id. The log takes nothing but its tombstone.
    pub is_lost: bool,
}

/// A stretch of the log that does not verify although it must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: String,
    /// Where in it the stretch begins.
    pub offset: u64,
    /// What is wrong.
    pub reason: String,
    /// The replicas that may have lost records in it.
    pub replicas: Vec<ReplicaKey>,
}

pub(super) fn open<D: Disk>(disk: D, options: LogOptions) -> Result<(RaftLog<D>, Recovered), LogError> {
    assert!((4096..1 << 31).contains(&options.segment_bytes), "a segment has 4 KiB to 2 GiB, not {} bytes", options.segment_bytes);
    let lock = disk.lock().map_err(LogError::of)?;
    let names = disk.list().map_err(LogError::of)?;
    let numbers: Vec<u64> = names.iter().filter_map(|name| segment::segment_number(name)).collect();
    let mut log = RaftLog {
        disk,
        _lock: lock,
        options,
        state: State::default(),
        segments: BTreeMap::new(),
        spares: Spares { ready: Vec::new(), filling: None, next: 0, bytes_since_fill: 0 },
        run: 1,
        position: 0,
        synced: 0,
        stated: 0,
        records_end: 0,
        is_poisoned: false,
        buffer: Vec::new(),
        record_offsets: Vec::new(),
        append_count: 0,
        sync_count: 0,
        bytes_appended: 0,
        bytes_moved: 0,
    };
    adopt_spares(&mut log, &names)?;
    if numbers.is_empty() {
        log.begin_segment(1, 0, 0)?;
        return Ok((log, Recovered::default()));
    }
    let mut replay = Replay::default();
    replay.cuts_below_sync_mark = log.options.cuts_below_sync_mark;
    let (walked, newest) = replay_all(&log.disk, &mut log.segments, &mut replay, &numbers, &mut |_, _| ())?;
    settle_tail(&mut log, &newest, &walked)?;
    let oldest = log.disk.path(&segment::segment_name(numbers[0]));
    replay.conclude(&oldest)?;
    let recovered = materialise(&log.disk, &log.segments, &mut replay)?;
    let newly_lost = replay.state.replicas.iter().any(|(key, replica)| replica.lost && !replay.known_lost.contains(key));
    log.state = replay.state;
    log.run = replay.run.checked_add(1).expect("nobody opens a log four billion times");
    settle(&mut log, &walked)?;
    let shows_loss = newly_lost || walked.damaged;
    if shows_loss || !log.has_room(0) {
        // What was lost is recorded in an opening before anything that shows the loss may go.
        match log.begin_segment(log.number() + 1, log.position, 0) {
            Err(LogError::Full(_)) if !shows_loss => {}
            result => result?,
        }
    }
    log.drop_unneeded()?;
    Ok((log, recovered))
}

/// Keeps spare files of the right size and removes the others.
fn adopt_spares<D: Disk>(log: &mut RaftLog<D>, names: &[String]) -> Result<(), LogError> {
    for name in names {
        let Some(number) = segment::spare_number(name) else { continue };
        log.spares.next = log.spares.next.max(number + 1);
        let length = log.disk.open(name).and_then(|file| log.disk.len(&file)).map_err(LogError::of)?;
        if length == log.options.segment_bytes && log.spares.ready.len() < log.options.spare_count_max {
            log.spares.ready.push(name.clone());
        } else {
            log.disk.remove(name).map_err(LogError::of)?;
        }
    }
    Ok(())
}

/// Reads all segments and shows each with the end of what counts in it; answers where the newest one ends,
/// and that one.
pub(super) fn replay_all<D: Disk>(
    disk: &D,
    segments: &mut BTreeMap<u64, Segment<D::File>>,
    replay: &mut Replay,
    numbers: &[u64],
    show: &mut dyn FnMut(&Loaded, &Walked),
) -> Result<(Walked, Loaded), LogError> {
    let mut next = Some(load(disk, segments, numbers[0])?);
    for (at, number) in numbers.iter().enumerate() {
        let (loaded, header) = next.take().expect("each segment is loaded in the round before its own");
        next = numbers.get(at + 1).map(|number| load(disk, segments, *number)).transpose()?;
        if at > 0 && numbers[at - 1] + 1 != *number {
            let missing = disk.path(&segment::segment_name(numbers[at - 1] + 1));
            replay.note(&missing, 0, "the segment is missing", true);
        }
        if let Some((reason, is_lossy)) = header {
            replay.note(&loaded.path, 0, reason, is_lossy);
        }
        // The end that the next segment states holds only for the one right before it.
        let follows = numbers.get(at + 1) == Some(&(number + 1));
        let known_end = next.as_ref().filter(|_| follows).and_then(|(next, _)| next.opening()).map(|head| head.previous_end);
        let walked = replay.walk(&loaded, known_end);
        show(&loaded, &walked);
        if next.is_none() {
            return Ok((walked, loaded));
        }
    }
    unreachable!("there is a newest segment")
}

/// Writes again what counts but is not known to be synced. After a failed sync the kernel may hold it
/// as clean though the disk has not got it; a sync alone would then pass it over.
fn settle_tail<D: Disk>(log: &mut RaftLog<D>, loaded: &Loaded, walked: &Walked) -> Result<(), LogError> {
    let from = walked.synced.max(SEGMENT_HEADER_BYTES).min(walked.end);
    let tail = &loaded.bytes.get(from as usize..walked.end as usize).unwrap_or_default();
    if tail.is_empty() {
        return Ok(());
    }
    let written = log.disk.write_at(&log.newest().file, u64::from(from), tail);
    log.guard(written)
}

/// What is wrong with a segment's header, and whether that means that records are gone.
type HeaderFlaw = (&'static str, bool);

/// Opens and reads one segment, and checks its header.
fn load<D: Disk>(disk: &D, segments: &mut BTreeMap<u64, Segment<D::File>>, number: u64) -> Result<(Loaded, Option<HeaderFlaw>), LogError> {
    let name = segment::segment_name(number);
    let path = disk.path(&name);
    let file = disk.open(&name).map_err(LogError::of)?;
    let length = disk.len(&file).map_err(LogError::of)?;
    let size = u32::try_from(length).map_err(|_| LogError::Foreign { file: path.clone() })?;
    let mut bytes = vec![0; size as usize];
    disk.read_at(&file, 0, &mut bytes).map_err(LogError::of)?;
    let header = match segment::check_segment_header(&bytes, number, length) {
        HeaderCheck::Good => None,
        HeaderCheck::Damaged(reason) => Some((reason, reason == segment::CUT_SHORT)),
        HeaderCheck::Format(found) => return Err(LogError::NewerFormat { file: path, found, known: FORMAT }),
        HeaderCheck::Foreign => return Err(LogError::Foreign { file: path }),
    };
    segments.insert(number, Segment { file, size });
    Ok((Loaded { number, path, bytes: Bytes::from(bytes) }, header))
}

/// Begins a new run where the last one ended, durably: from then on nothing that an earlier run left
/// behind this point can be taken for part of the log.
fn settle<D: Disk>(log: &mut RaftLog<D>, walked: &Walked) -> Result<(), LogError> {
    log.position = walked.end.next_multiple_of(segment::ALIGNMENT);
    (log.synced, log.stated) = (walked.synced, walked.synced);
    if walked.end + BATCH_HEADER_BYTES <= log.newest().size {
        segment::begin_batch(&mut log.buffer);
        let number = log.number();
        segment::finish_batch(&mut log.buffer, 0, number, log.position, log.run, log.synced);
        log.write_buffer()?;
        log.position += log.buffer.len() as u32;
    }
    log.sync_newest()?;
    log.records_end = walked.end;
    Ok(())
}

/// Reads the entries that are needed, segment by segment, and takes leave of lost replicas' entries.
pub(super) fn materialise<D: Disk>(
    disk: &D,
    segments: &BTreeMap<u64, Segment<D::File>>,
    replay: &mut Replay,
) -> Result<Recovered, LogError> {
    let State { identity, replicas, tombstones, live } = &mut replay.state;
    let mut recovered: Vec<RecoveredReplica> = Vec::with_capacity(replicas.len());
    let mut wanted: Vec<(Place, usize, Extent)> = Vec::new();
    for (at, replica) in replicas.values().enumerate() {
        let present = replica.extents.iter().take_while(|extent| extent.place != Place::MISSING);
        wanted.extend(present.clone().map(|extent| (extent.place, at, *extent)));
        recovered.push(RecoveredReplica {
            hard_state: replica.hard_state,
            start: replica.start,
            entries: Vec::with_capacity(present.map(|extent| extent.count as usize).sum()),
            install: replica.install,
            is_lost: replica.lost,
        });
    }
    wanted.sort_unstable_by_key(|(place, at, extent)| (*place, *at, extent.first));
    let mut window = Window::wide();
    for (_, at, extent) in &wanted {
        window.entries(disk, segments, extent, extent.first, &mut recovered[*at].entries, |_| true)?;
    }
    for (replica, recovered) in replicas.values_mut().zip(&mut recovered) {
        // Moved entries lie behind younger ones.
        recovered.entries.sort_by_key(|entry| entry.index);
        if replica.lost {
            replica.forget_entries(live);
            replica.last = replica.start.0.0;
        }
    }
    let replicas = replicas.keys().copied().zip(recovered).collect();
    Ok(Recovered { identity: identity.clone(), replicas, tombstones: tombstones.clone(), damage: replay.damage.clone() })
}
