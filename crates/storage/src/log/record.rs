//! What the log is given, and its bytes (docs/formats.md, "The Raft log", "Records").
//!
//! Each record of a replica carries the replica's sequence number, which rises by one a record. It is
//! what tells, when a stretch of the log is damaged, whose records lay in it: a replica whose next
//! record has the next number lost nothing.

use bytes::BufMut;
use bytes::Bytes;
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{Entry, EntryKind, GroupId, HardState, LogIndex, ReplicaId, ReplicaKey, Term};

/// One thing to remember.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRecord {
    /// The node's own identity, opaque to the log; the latest wins.
    Identity(Bytes),
    /// Entries of one replica, of consecutive indexes. The first one's index replaces everything at or
    /// above it; it may not lie at or below what was purged, nor leave a gap behind the last entry.
    Entries {
        /// Whose.
        replica: ReplicaKey,
        /// The entries.
        entries: Vec<Entry>,
    },
    /// Term, vote and commit mark; the latest wins.
    HardState {
        /// Whose.
        replica: ReplicaKey,
        /// The state.
        hard_state: HardState,
    },
    /// The entries up to `through` are in the store durably and needed no more.
    Purge {
        /// Whose.
        replica: ReplicaKey,
        /// The last one not needed.
        through: LogIndex,
        /// The term of that entry.
        term: Term,
    },
    /// A snapshot is being installed (architecture, decision 8).
    Installing {
        /// By whom.
        replica: ReplicaKey,
        /// What.
        snapshot: InstallRecord,
    },
    /// A snapshot is installed: the replica's log begins behind it, all earlier entries are gone.
    Installed {
        /// By whom.
        replica: ReplicaKey,
        /// What.
        snapshot: InstallRecord,
    },
    /// The replica exists from here on, and its log begins behind `start`.
    Created {
        /// Which.
        replica: ReplicaKey,
        /// The position before the first entry.
        start: (LogIndex, Term),
    },
    /// The replica is gone for ever: everything of it is forgotten but this. Records for it that come
    /// later are left out.
    Tombstone {
        /// Which.
        replica: ReplicaKey,
    },
}

/// Which snapshot is installed into which generation of the replica's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstallRecord {
    /// The last index in the snapshot.
    pub index: LogIndex,
    /// The term of that entry.
    pub term: Term,
    /// The generation its rows go into.
    pub generation: u32,
}

/// How far an install has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallPhase {
    /// It began; the store may hold either generation.
    Installing,
    /// It is done.
    Installed,
}

/// What is written together: at recovery it is there wholly or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogBatch {
    /// In the order they take effect.
    pub records: Vec<LogRecord>,
}

impl LogRecord {
    /// Whose record it is; `None` for the node's own.
    pub fn replica(&self) -> Option<ReplicaKey> {
        match self {
            LogRecord::Identity(_) => None,
            LogRecord::Entries { replica, .. }
            | LogRecord::HardState { replica, .. }
            | LogRecord::Purge { replica, .. }
            | LogRecord::Installing { replica, .. }
            | LogRecord::Installed { replica, .. }
            | LogRecord::Created { replica, .. }
            | LogRecord::Tombstone { replica } => Some(*replica),
        }
    }

    /// How many bytes [`LogRecord::encode`] appends.
    pub(super) fn encoded_len(&self) -> usize {
        match self {
            LogRecord::Identity(identity) => 1 + 4 + identity.len(),
            LogRecord::Entries { entries, .. } => entries_len(entries),
            LogRecord::HardState { .. } => PREFIX_BYTES + HARD_STATE_BYTES,
            LogRecord::Purge { .. } | LogRecord::Created { .. } => PREFIX_BYTES + 16,
            LogRecord::Installing { .. } | LogRecord::Installed { .. } => PREFIX_BYTES + 20,
            LogRecord::Tombstone { .. } => PREFIX_BYTES,
        }
    }

    /// Appends the record's bytes.
    pub(super) fn encode(&self, sequence: u64, out: &mut Vec<u8>) {
        match self {
            LogRecord::Identity(identity) => {
                out.put_u8(kind::IDENTITY);
                out.write_bytes(identity);
            }
            LogRecord::Entries { replica, entries } => encode_entries(kind::ENTRIES, *replica, sequence, entries, out),
            LogRecord::HardState { replica, hard_state } => {
                put_prefix(kind::HARD_STATE, *replica, sequence, out);
                put_hard_state(hard_state, out);
            }
            LogRecord::Purge { replica, through, term } => {
                put_prefix(kind::PURGE, *replica, sequence, out);
                put_position((*through, *term), out);
            }
            LogRecord::Installing { replica, snapshot } => {
                put_prefix(kind::INSTALLING, *replica, sequence, out);
                put_install(snapshot, out);
            }
            LogRecord::Installed { replica, snapshot } => {
                put_prefix(kind::INSTALLED, *replica, sequence, out);
                put_install(snapshot, out);
            }
            LogRecord::Created { replica, start } => {
                put_prefix(kind::CREATED, *replica, sequence, out);
                put_position(*start, out);
            }
            LogRecord::Tombstone { replica } => put_prefix(kind::TOMBSTONE, *replica, sequence, out),
        }
    }
}

/// A record as recovery reads it: entries stay bytes, passed over by their length.
#[derive(Debug)]
pub(super) enum StoredRecord {
    Identity(Bytes),
    Entries { first: u64, count: u32, moved: bool },
    HardState(HardState),
    Purge(LogIndex, Term),
    Install(InstallPhase, InstallRecord),
    Created(LogIndex, Term),
    Tombstone,
    Opening(OpeningHead),
    State(ReplicaImage),
    Buried,
}

/// How a segment's opening begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpeningHead {
    /// Where the segment before this one ends; 0 if there is none.
    pub(super) previous_end: u32,
    /// How many replicas' states follow.
    pub(super) replica_count: u32,
    /// How many tombstones follow.
    pub(super) tombstone_count: u32,
}

/// A replica's state at the opening of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplicaImage {
    pub(super) hard_state: HardState,
    pub(super) start: (LogIndex, Term),
    pub(super) last: u64,
    pub(super) install: Option<(InstallPhase, InstallRecord)>,
    /// Records of it were lost to damage; it may not be used any more.
    pub(super) lost: bool,
}

/// A record with where it begins in the reader it came from and how long it is.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) replica: Option<(ReplicaKey, u64)>,
    pub(super) record: StoredRecord,
}

mod kind {
    pub(super) const END: u8 = 0;
    pub(super) const IDENTITY: u8 = 1;
    pub(super) const ENTRIES: u8 = 2;
    pub(super) const MOVED: u8 = 3;
    pub(super) const HARD_STATE: u8 = 4;
    pub(super) const PURGE: u8 = 5;
    pub(super) const INSTALLING: u8 = 6;
    pub(super) const INSTALLED: u8 = 7;
    pub(super) const CREATED: u8 = 8;
    pub(super) const TOMBSTONE: u8 = 9;
    pub(super) const OPENING: u8 = 10;
    pub(super) const STATE: u8 = 11;
    pub(super) const BURIED: u8 = 12;
}

/// Kind, group, replica, sequence.
const PREFIX_BYTES: usize = 1 + 4 + 8 + 8;
const HARD_STATE_BYTES: usize = 8 + 1 + 8 + 8;
/// Indexes and sequence numbers are below this: more than a replica writes in the life of a cluster. Recovery reckons with
/// them, so that one which only a fault can have made must not get that far.
const NUMBER_END: u64 = 1 << 48;
/// Term, kind, length.
const ENTRY_HEAD_BYTES: usize = 8 + 1 + 4;

fn put_prefix(kind: u8, replica: ReplicaKey, sequence: u64, out: &mut Vec<u8>) {
    out.put_u8(kind);
    out.put_u32_le(replica.group.0);
    out.put_u64_le(replica.replica.0);
    out.put_u64_le(sequence);
}

fn put_position((index, term): (LogIndex, Term), out: &mut Vec<u8>) {
    out.put_u64_le(index.0);
    out.put_u64_le(term.0);
}

fn put_hard_state(hard_state: &HardState, out: &mut Vec<u8>) {
    out.put_u64_le(hard_state.term.0);
    out.write_bool(hard_state.vote.is_some());
    out.put_u64_le(hard_state.vote.map_or(0, |vote| vote.0));
    out.put_u64_le(hard_state.commit.0);
}

fn put_install(snapshot: &InstallRecord, out: &mut Vec<u8>) {
    put_position((snapshot.index, snapshot.term), out);
    out.put_u32_le(snapshot.generation);
}

fn entries_len(entries: &[Entry]) -> usize {
    PREFIX_BYTES + 16 + entries.iter().map(|entry| ENTRY_HEAD_BYTES + entry.data.len()).sum::<usize>()
}

/// How many bytes a record that moves `entries` takes.
pub(super) fn moved_len(entries: &[Entry]) -> usize {
    entries_len(entries)
}

/// Appends a record that repeats `entries` so that an old segment can go.
pub(super) fn encode_moved(replica: ReplicaKey, sequence: u64, entries: &[Entry], out: &mut Vec<u8>) {
    encode_entries(kind::MOVED, replica, sequence, entries, out);
}

fn encode_entries(kind: u8, replica: ReplicaKey, sequence: u64, entries: &[Entry], out: &mut Vec<u8>) {
    put_prefix(kind, replica, sequence, out);
    let first = entries.first().expect("a record of entries has entries").index;
    out.put_u64_le(first.0);
    out.put_u32_le(u32::try_from(entries.len()).expect("a batch has fewer than 2^32 entries"));
    let length_at = out.len();
    out.put_u32_le(0);
    for (entry, index) in entries.iter().zip(first.0..) {
        assert!(entry.index.0 == index, "entries of one record have consecutive indexes, {replica} has {} at {index}", entry.index);
        out.put_u64_le(entry.term.0);
        out.put_u8(entry.kind as u8);
        out.write_bytes(&entry.data);
    }
    let length = u32::try_from(out.len() - length_at - 4).expect("a batch is shorter than 4 GiB");
    out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
}

/// Appends the records a segment opens with, all but the identity.
pub(super) fn encode_opening(head: OpeningHead, out: &mut Vec<u8>) {
    out.put_u8(kind::OPENING);
    out.put_u32_le(head.previous_end);
    out.put_u32_le(head.replica_count);
    out.put_u32_le(head.tombstone_count);
}

/// Appends a replica's state in an opening.
pub(super) fn encode_state(replica: ReplicaKey, sequence: u64, image: &ReplicaImage, out: &mut Vec<u8>) {
    put_prefix(kind::STATE, replica, sequence, out);
    put_hard_state(&image.hard_state, out);
    put_position(image.start, out);
    out.put_u64_le(image.last);
    out.put_u8(match image.install {
        None => 0,
        Some((InstallPhase::Installing, _)) => 1,
        Some((InstallPhase::Installed, _)) => 2,
    });
    put_install(&image.install.map_or_else(InstallRecord::default, |(_, snapshot)| snapshot), out);
    out.write_bool(image.lost);
}

/// Appends a tombstone in an opening.
pub(super) fn encode_buried(replica: ReplicaKey, out: &mut Vec<u8>) {
    put_prefix(kind::BURIED, replica, 0, out);
}

/// The next record; `None` at the end (the padding, or nothing left).
pub(super) fn decode(reader: &mut Reader) -> Result<Option<Located>, DecodeError> {
    if reader.remaining() == 0 {
        return Ok(None);
    }
    let kind = reader.u8("record kind")?;
    let alone = |record| Ok(Some(Located { replica: None, record }));
    match kind {
        kind::END => return Ok(None),
        kind::IDENTITY => return alone(StoredRecord::Identity(Bytes::copy_from_slice(&reader.bytes("identity")?))),
        kind::OPENING => {
            let previous_end = reader.u32("end of the previous segment")?;
            let (replica_count, tombstone_count) = (reader.u32("replica count")?, reader.u32("tombstone count")?);
            return alone(StoredRecord::Opening(OpeningHead { previous_end, replica_count, tombstone_count }));
        }
        _ => {}
    }
    let replica = ReplicaKey { group: GroupId(reader.u32("group")?), replica: ReplicaId(reader.u64("replica")?) };
    let sequence = number(reader, "sequence number")?;
    let record = match kind {
        kind::ENTRIES | kind::MOVED => {
            let (first, count) = (number(reader, "first index")?, reader.u32("entry count")?);
            let bytes = reader.bytes("entries")?.len();
            // Memory is allotted by the count: it must be one that its bytes can hold.
            let is_possible = count > 0 && count as usize <= bytes / ENTRY_HEAD_BYTES;
            if !is_possible || first == 0 {
                return Err(DecodeError::Invalid("entry count", u64::from(count)));
            }
            StoredRecord::Entries { first, count, moved: kind == kind::MOVED }
        }
        kind::HARD_STATE => StoredRecord::HardState(hard_state(reader)?),
        kind::PURGE => position(reader).map(|(index, term)| StoredRecord::Purge(index, term))?,
        kind::INSTALLING => StoredRecord::Install(InstallPhase::Installing, install(reader)?),
        kind::INSTALLED => StoredRecord::Install(InstallPhase::Installed, install(reader)?),
        kind::CREATED => position(reader).map(|(index, term)| StoredRecord::Created(index, term))?,
        kind::TOMBSTONE => StoredRecord::Tombstone,
        kind::STATE => StoredRecord::State(ReplicaImage {
            hard_state: hard_state(reader)?,
            start: position(reader)?,
            last: number(reader, "last index")?,
            install: {
                let phase = reader.u8("install phase")?;
                let snapshot = install(reader)?;
                match phase {
                    0 => None,
                    1 => Some((InstallPhase::Installing, snapshot)),
                    2 => Some((InstallPhase::Installed, snapshot)),
                    other => return Err(DecodeError::Invalid("install phase", u64::from(other))),
                }
            },
            lost: reader.bool("lost")?,
        }),
        kind::BURIED => StoredRecord::Buried,
        other => return Err(DecodeError::Invalid("record kind", u64::from(other))),
    };
    Ok(Some(Located { replica: Some((replica, sequence)), record }))
}

/// The entries of the record at the front of `reader`, those from `from` on and below `end`, until
/// `room` says stop. They share the reader's memory.
pub(super) fn decode_entries(
    reader: &mut Reader,
    from: u64,
    end: u64,
    out: &mut Vec<Entry>,
    mut room: impl FnMut(&Entry) -> bool,
) -> Result<(), DecodeError> {
    let kind = reader.u8("record kind")?;
    if kind != kind::ENTRIES && kind != kind::MOVED {
        return Err(DecodeError::Invalid("record kind", u64::from(kind)));
    }
    reader.u32("group")?;
    reader.u64("replica")?;
    reader.u64("sequence number")?;
    let (first, count) = (reader.u64("first index")?, reader.u32("entry count")?);
    let mut entries = Reader::new(reader.bytes("entries")?);
    for index in first..end.min(first.saturating_add(u64::from(count))) {
        let term = Term(entries.u64("entry term")?);
        let kind = entries.u8("entry kind")?;
        let kind = EntryKind::from_byte(kind).ok_or(DecodeError::Invalid("entry kind", u64::from(kind)))?;
        let data = entries.bytes("entry data")?;
        if index >= from {
            let entry = Entry { index: LogIndex(index), term, kind, data };
            if !room(&entry) {
                break;
            }
            out.push(entry);
        }
    }
    Ok(())
}

fn number(reader: &mut Reader, what: &'static str) -> Result<u64, DecodeError> {
    let number = reader.u64(what)?;
    if number < NUMBER_END { Ok(number) } else { Err(DecodeError::Invalid(what, number)) }
}

fn position(reader: &mut Reader) -> Result<(LogIndex, Term), DecodeError> {
    Ok((LogIndex(number(reader, "index")?), Term(reader.u64("term")?)))
}

fn install(reader: &mut Reader) -> Result<InstallRecord, DecodeError> {
    let (index, term) = position(reader)?;
    Ok(InstallRecord { index, term, generation: reader.u32("generation")? })
}

fn hard_state(reader: &mut Reader) -> Result<HardState, DecodeError> {
    let term = Term(reader.u64("term")?);
    let voted = reader.bool("vote given")?;
    let vote = ReplicaId(reader.u64("vote")?);
    Ok(HardState { term, vote: voted.then_some(vote), commit: LogIndex(reader.u64("commit mark")?) })
}

/// How long the record of entries at the front of `bytes` is; `None` if it does not fit in there.
pub(super) fn entries_record_len(bytes: &[u8]) -> Option<usize> {
    let at = PREFIX_BYTES + 12;
    let length = u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize;
    (at + 4 + length <= bytes.len()).then_some(at + 4 + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(first: u64, count: u32, bytes: usize) -> Vec<u8> {
        let mut out = Vec::new();
        put_prefix(kind::ENTRIES, ReplicaKey { group: GroupId(1), replica: ReplicaId(3) }, 1, &mut out);
        out.put_u64_le(first);
        out.put_u32_le(count);
        out.write_bytes(&vec![0; bytes]);
        out
    }

    fn read(bytes: Vec<u8>) -> Result<Option<Located>, DecodeError> {
        decode(&mut Reader::new(bytes.into()))
    }

    /// Found by fuzzing: memory was allotted for a thousand million entries, by the word of a record of 50 bytes.
    #[test]
    fn numbers_that_no_log_can_hold_are_refused() {
        assert!(read(entries(1, 2, 2 * ENTRY_HEAD_BYTES)).is_ok());
        assert_eq!(read(entries(1, 3, 2 * ENTRY_HEAD_BYTES)).err(), Some(DecodeError::Invalid("entry count", 3)));
        assert_eq!(read(entries(NUMBER_END, 1, 13)).err(), Some(DecodeError::Invalid("first index", NUMBER_END)));
        let mut sequence = entries(1, 1, 13);
        sequence[PREFIX_BYTES - 8..PREFIX_BYTES].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(read(sequence).err(), Some(DecodeError::Invalid("sequence number", u64::MAX)));
    }

    /// Found by fuzzing: the sum of index and count wrapped.
    #[test]
    fn entries_that_end_behind_the_last_index_are_read_without_a_panic() {
        let mut reader = Reader::new(entries(u64::MAX, 2, 26).into());
        assert!(decode_entries(&mut reader, 0, u64::MAX, &mut Vec::new(), |_| true).is_ok());
    }
}
