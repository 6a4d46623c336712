//! The Raft log: records, and whole segments whose checksums are right.

use bytes::Bytes;
use flotilla_storage::disk::SimulatedDisk;
use flotilla_storage::log::{InstallRecord, LogBatch, LogOptions, LogRecord, RaftLog, fuzzing};
use flotilla_types::{Entry, EntryKind, GroupId, HardState, LogIndex, ReplicaId, ReplicaKey, Term};

pub(super) fn log_record(input: &[u8]) {
    fuzzing::records(Bytes::copy_from_slice(input));
}

pub(super) fn log_record_seeds() -> Vec<Vec<u8>> {
    let replica = ReplicaKey { group: GroupId(1), replica: ReplicaId(3) };
    let entry = |index| Entry { index: LogIndex(index), term: Term(2), kind: EntryKind::Normal, data: Bytes::from_static(b"data") };
    let hard_state = HardState { term: Term(2), vote: Some(ReplicaId(3)), commit: LogIndex(1) };
    let snapshot = InstallRecord { index: LogIndex(9), term: Term(2), generation: 1 };
    [
        LogRecord::Identity(Bytes::from_static(b"identity")),
        LogRecord::Created { replica, start: (LogIndex(0), Term(0)) },
        LogRecord::Entries { replica, entries: (1..4).map(entry).collect() },
        LogRecord::HardState { replica, hard_state },
        LogRecord::Purge { replica, through: LogIndex(1), term: Term(2) },
        LogRecord::Installing { replica, snapshot },
        LogRecord::Installed { replica, snapshot },
        LogRecord::Tombstone { replica },
    ]
    .iter()
    .map(fuzzing::encoded)
    .collect()
}

pub(super) fn log_recovery(input: &[u8]) {
    fuzzing::recover(input);
}

/// What lies behind the header of a real log's segment.
pub(super) fn log_recovery_seeds() -> Vec<Vec<u8>> {
    let replica = |number| ReplicaKey { group: GroupId(number), replica: ReplicaId(u64::from(number)) };
    let entry = |index| Entry { index: LogIndex(index), term: Term(1), kind: EntryKind::Normal, data: Bytes::from_static(b"data") };
    let disk = SimulatedDisk::new();
    let (mut log, _) = RaftLog::open(disk.clone(), LogOptions { segment_bytes: 4096, ..LogOptions::default() }).expect("a new log");
    let mut write = |records| {
        log.append(&LogBatch { records }).expect("there is room");
        log.sync().expect("the disk syncs");
        fuzzing::segment_of(&disk)
    };
    let created = |number| LogRecord::Created { replica: replica(number), start: (LogIndex(0), Term(0)) };
    let hard_state = HardState { term: Term(1), vote: None, commit: LogIndex(2) };
    vec![
        write(vec![LogRecord::Identity(Bytes::from_static(b"identity"))]),
        write(vec![created(1), created(2), LogRecord::Entries { replica: replica(1), entries: (1..4).map(entry).collect() }]),
        write(vec![LogRecord::HardState { replica: replica(1), hard_state }, LogRecord::Tombstone { replica: replica(2) }]),
        write(vec![LogRecord::Purge { replica: replica(1), through: LogIndex(2), term: Term(1) }]),
    ]
}
