//! The Raft log against the least there can be: bare writes into a zero-filled file with fdatasync
//! after each. Both take turns, round by round, so that a disk whose speed drifts treats them alike.
//!
//! `cargo bench -p flotilla-storage --bench log [-- DIR]`; DIR should lie on the disk in question.

#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

use bytes::Bytes;
use flotilla_storage::disk::{Disk, DiskError, FileDisk};
use flotilla_storage::log::{LogBatch, LogOptions, LogRecord, RaftLog};
use flotilla_types::{Entry, EntryKind, GroupId, LogIndex, ReplicaId, ReplicaKey, Term};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ENTRY_BYTES: usize = 300;
const ROUNDS: usize = 20;
const GROUPS: u32 = 16;

fn main() {
    let arguments = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let dir = arguments.map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(dir).expect("the directory can be written");
    for batch_entries in [1, 16, 64] {
        synced(dir.path(), batch_entries);
    }
    unsynced(dir.path());
    recovery(dir.path());
}

fn key(group: u32) -> ReplicaKey {
    ReplicaKey { group: GroupId(group), replica: ReplicaId(u64::from(group) + 1) }
}

/// A log with all its groups and the index of the last entry of each.
struct Writer {
    log: RaftLog<FileDisk>,
    last: Vec<u64>,
    turn: u32,
    data: Bytes,
}

impl Writer {
    fn open(dir: &Path, name: &str) -> Writer {
        let disk = FileDisk::open(dir.join(name)).expect("the directory can be made");
        let (mut log, _) = RaftLog::open(disk, LogOptions::default()).expect("the log can be made");
        let created = |group| LogRecord::Created { replica: key(group), start: (LogIndex(0), Term(0)) };
        let mut records = vec![LogRecord::Identity(Bytes::from_static(b"bench"))];
        records.extend((0..GROUPS).map(created));
        log.append(&LogBatch { records }).expect("there is room");
        log.sync().expect("the disk works");
        Writer { log, last: vec![0; GROUPS as usize], turn: 0, data: Bytes::from(vec![7; ENTRY_BYTES]) }
    }

    /// A batch of single entries of consecutive groups.
    fn batch(&mut self, entry_count: usize) -> LogBatch {
        let records = (0..entry_count).map(|_| {
            self.turn = (self.turn + 1) % GROUPS;
            let last = &mut self.last[self.turn as usize];
            *last += 1;
            let entry = Entry { index: LogIndex(*last), term: Term(1), kind: EntryKind::Normal, data: self.data.clone() };
            LogRecord::Entries { replica: key(self.turn), entries: vec![entry] }
        });
        LogBatch { records: records.collect() }
    }

    /// All but the newest is in the store.
    fn purge(&mut self) {
        let purge = |(group, last): (usize, &u64)| LogRecord::Purge { replica: key(group as u32), through: LogIndex(*last), term: Term(1) };
        let records = self.last.iter().enumerate().map(purge).collect();
        self.log.append(&LogBatch { records }).expect("there is room");
        self.log.sync().expect("the disk works");
    }
}

fn synced(dir: &Path, batch_entries: usize) {
    let mut writer = Writer::open(dir, &format!("log-{batch_entries}"));
    let bare_disk = FileDisk::open(dir.join(format!("bare-{batch_entries}"))).expect("the directory can be made");
    let bare = zero_filled(&bare_disk).expect("there is room");
    let bytes = vec![7; batch_entries * ENTRY_BYTES];
    let mut offset = 0;
    let mut ratios = Vec::new();
    let (mut log_time, mut bare_time) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let batches: Vec<LogBatch> = (0..50).map(|_| writer.batch(batch_entries)).collect();
        let begin = Instant::now();
        for batch in &batches {
            writer.log.append(batch).expect("there is room");
            writer.log.sync().expect("the disk works");
        }
        let ours = begin.elapsed();
        let begin = Instant::now();
        for _ in &batches {
            bare_disk.write_at(&bare, offset, &bytes).expect("there is room");
            bare_disk.sync_data(&bare).expect("the disk works");
            offset += bytes.len() as u64;
        }
        let theirs = begin.elapsed();
        ratios.push(ours.as_secs_f64() / theirs.as_secs_f64());
        log_time += ours;
        bare_time += theirs;
        writer.purge();
    }
    ratios.sort_by(f64::total_cmp);
    let rate = |time: Duration| (ROUNDS * 50 * batch_entries) as f64 / time.as_secs_f64();
    println!(
        "batches of {batch_entries:2}: log {:8.0} entries/s, bare {:8.0} entries/s, time ratio {:.2} (median of {ROUNDS} rounds)",
        rate(log_time),
        rate(bare_time),
        ratios[ROUNDS / 2]
    );
}

fn zero_filled(disk: &FileDisk) -> Result<<FileDisk as Disk>::File, DiskError> {
    let file = disk.create("bare")?;
    disk.zero_fill(&file, 0, 64 << 20)?;
    disk.sync_data(&file)?;
    Ok(file)
}

/// What an entry costs the processor: one thread, no syncs, so elapsed time is close to it.
fn unsynced(dir: &Path) {
    let mut writer = Writer::open(dir, "cpu");
    let mut elapsed = Duration::ZERO;
    let mut count = 0;
    for _ in 0..600 {
        let batch = writer.batch(64);
        let begin = Instant::now();
        writer.log.append(&batch).expect("there is room");
        elapsed += begin.elapsed();
        count += 64;
    }
    println!("append alone, batches of 64: {:.2} us an entry", elapsed.as_secs_f64() * 1e6 / f64::from(count));
}

fn recovery(dir: &Path) {
    let mut writer = Writer::open(dir, "recovery");
    let count = 1_000_000 / 64;
    for _ in 0..count {
        let batch = writer.batch(64);
        writer.log.append(&batch).expect("there is room");
    }
    writer.log.sync().expect("the disk works");
    drop(writer);
    let begin = Instant::now();
    let disk = FileDisk::open(dir.join("recovery")).expect("it is there");
    let (log, recovered) = RaftLog::open(disk, LogOptions::default()).expect("it is fine");
    let entries: usize = recovered.replicas.values().map(|replica| replica.entries.len()).sum();
    println!("recovery of {entries} entries in {} segments: {:.2} s", log.stats().segment_count, begin.elapsed().as_secs_f64());
}
