//! The Raft log against a simple model, on a disk that crashes, fails, fills up and rots.

#![expect(clippy::disallowed_methods, reason = "the fixture lies in real files")]

use bytes::Bytes;
use flotilla_storage::disk::{Disk, DiskError, FileDisk, SimulatedDisk};
use flotilla_storage::log::{InstallPhase, InstallRecord, LogBatch, LogError, LogOptions, LogRecord, RaftLog, Recovered, RecoveredReplica};
use flotilla_types::{Entry, EntryKind, GroupId, HardState, LogIndex, ReplicaId, ReplicaKey, Rng, Term};

type Log = RaftLog<SimulatedDisk>;

fn options() -> LogOptions {
    LogOptions { segment_bytes: 8192, segment_count_max: 3, spare_count_max: 2, ..LogOptions::default() }
}

fn open(disk: &SimulatedDisk) -> (Log, Recovered) {
    RaftLog::open(disk.clone(), options()).expect("the disk is fine")
}

fn key(n: u64) -> ReplicaKey {
    ReplicaKey { group: GroupId(n as u32), replica: ReplicaId(n + 100) }
}

fn entry(index: u64, term: u64, size: usize) -> Entry {
    Entry { index: LogIndex(index), term: Term(term), kind: EntryKind::Normal, data: Bytes::from(vec![(index + term) as u8; size]) }
}

/// What the records amount to.
fn apply(model: &mut Recovered, record: &LogRecord) {
    if record.replica().is_some_and(|key| model.tombstones.contains(&key)) {
        return;
    }
    match record {
        LogRecord::Identity(identity) => model.identity = Some(identity.clone()),
        LogRecord::Entries { replica, entries } => {
            let r = model.replicas.get_mut(replica).expect("created");
            r.entries.retain(|e| e.index < entries[0].index);
            r.entries.extend_from_slice(entries);
        }
        LogRecord::HardState { replica, hard_state } => model.replicas.get_mut(replica).expect("created").hard_state = *hard_state,
        LogRecord::Purge { replica, through, term } => {
            let r = model.replicas.get_mut(replica).expect("created");
            if *through > r.start.0 {
                r.start = (*through, *term);
                r.entries.retain(|e| e.index > *through);
            }
        }
        LogRecord::Installing { replica, snapshot } => {
            model.replicas.get_mut(replica).expect("created").install = Some((InstallPhase::Installing, *snapshot));
        }
        LogRecord::Installed { replica, snapshot } => {
            let r = model.replicas.get_mut(replica).expect("created");
            r.install = Some((InstallPhase::Installed, *snapshot));
            r.start = (snapshot.index, snapshot.term);
            r.entries.clear();
        }
        LogRecord::Created { replica, start } => {
            model.replicas.insert(*replica, RecoveredReplica { start: *start, ..RecoveredReplica::default() });
        }
        LogRecord::Tombstone { replica } => {
            model.replicas.remove(replica);
            model.tombstones.insert(*replica);
        }
    }
}

/// A batch that may follow `model`.
fn random_batch(rng: &mut Rng, model: &Recovered, next_replica: &mut u64) -> LogBatch {
    let mut after = model.clone();
    let mut records = Vec::new();
    for _ in 0..rng.between(1, 4) {
        let keys: Vec<ReplicaKey> = after.replicas.keys().copied().collect();
        let record = match (rng.below(20), rng.pick(&keys).copied()) {
            (0, _) => LogRecord::Identity(Bytes::from(vec![rng.below(256) as u8; 20])),
            (1, _) | (_, None) => {
                *next_replica += 1;
                let start = rng.below(3);
                LogRecord::Created { replica: key(*next_replica), start: (LogIndex(start), Term(start)) }
            }
            (2, Some(replica)) if keys.len() > 3 => LogRecord::Tombstone { replica },
            (3, Some(replica)) => {
                let snapshot = install(rng, &after.replicas[&replica]);
                LogRecord::Installing { replica, snapshot }
            }
            (4, Some(replica)) => {
                let snapshot = install(rng, &after.replicas[&replica]);
                LogRecord::Installed { replica, snapshot }
            }
            (5 | 6, Some(replica)) => {
                let vote = rng.chance(1, 2).then(|| ReplicaId(rng.below(9)));
                let hard_state = HardState { term: Term(rng.below(50)), vote, commit: LogIndex(rng.below(50)) };
                LogRecord::HardState { replica, hard_state }
            }
            (7..=10, Some(replica)) => {
                let r = &after.replicas[&replica];
                let Some(entry) = rng.pick(&r.entries) else { continue };
                LogRecord::Purge { replica, through: entry.index, term: entry.term }
            }
            (_, Some(replica)) => {
                let r = &after.replicas[&replica];
                let last = r.start.0.0 + r.entries.len() as u64;
                let first = if rng.chance(1, 4) { rng.between(r.start.0.0 + 1, last + 1) } else { last + 1 };
                let term = rng.between(1, 99);
                let entries = (first..first + rng.between(1, 6)).map(|i| entry(i, term, rng.below(300) as usize)).collect();
                LogRecord::Entries { replica, entries }
            }
        };
        apply(&mut after, &record);
        records.push(record);
    }
    LogBatch { records }
}

fn install(rng: &mut Rng, replica: &RecoveredReplica) -> InstallRecord {
    let last = replica.start.0.0 + replica.entries.len() as u64;
    InstallRecord { index: LogIndex(last + rng.below(5)), term: Term(rng.below(9)), generation: rng.below(9) as u32 }
}

/// A log, what it must hold, and how much of that must survive.
struct Run {
    rng: Rng,
    disk: SimulatedDisk,
    /// The state after each batch since the last crash; the first is what the crash left.
    states: Vec<Recovered>,
    /// The state that is synced, counted in `states`.
    synced: usize,
    next_replica: u64,
}

impl Run {
    fn new(seed: u64) -> Run {
        let states = vec![Recovered::default()];
        Run { rng: Rng::new(seed), disk: SimulatedDisk::new(), states, synced: 0, next_replica: 0 }
    }

    fn latest(&self) -> &Recovered {
        self.states.last().expect("there is always one")
    }

    /// One random step; an error is the log's.
    fn step(&mut self, log: &mut Log) -> Result<(), LogError> {
        match self.rng.below(10) {
            0..=6 => {
                let latest = self.latest().clone();
                let batch = random_batch(&mut self.rng, &latest, &mut self.next_replica);
                let mut after = latest;
                batch.records.iter().for_each(|record| apply(&mut after, record));
                // Pushed first: a write that failed half-way may be found whole after a crash.
                self.states.push(after);
                log.append(&batch)
            }
            7 | 8 => {
                log.sync()?;
                self.synced = self.states.len() - 1;
                Ok(())
            }
            _ => log.seal(),
        }
    }

    fn check_recovered(&mut self, recovered: &Recovered) {
        assert_eq!(recovered.damage, [], "nothing was damaged");
        let survivor = self.states.iter().rposition(|state| state == recovered);
        let survivor = survivor.unwrap_or_else(|| panic!("no state ever was like\n{recovered:#?}\nlatest\n{:#?}", self.states.last()));
        assert!(survivor >= self.synced, "state {} was synced, state {survivor} was found", self.synced);
        self.states = vec![recovered.clone()];
        self.synced = 0;
    }

    fn check_reads(&mut self, log: &Log) {
        for (key, replica) in &self.latest().replicas {
            let mut read = Vec::new();
            while read.len() < replica.entries.len() {
                let from = LogIndex(replica.start.0.0 + 1 + read.len() as u64);
                read.extend(log.read_entries(*key, from, 400).expect("the entries are there"));
            }
            assert_eq!(read, replica.entries);
            let purged = log.read_entries(*key, replica.start.0, 1);
            assert!(matches!(purged, Err(LogError::NotInLog { .. })));
        }
    }
}

#[test]
fn what_was_synced_survives_any_crash_and_nothing_survives_half() {
    let mut rolled = 0;
    let mut moved = 0;
    for seed in 0..150 {
        let mut run = Run::new(seed);
        for _ in 0..6 {
            let (mut log, recovered) = open(&run.disk);
            run.check_recovered(&recovered);
            for _ in 0..run.rng.below(60) {
                run.step(&mut log).expect("the disk is fine");
            }
            run.check_reads(&log);
            rolled = rolled.max(log.stats().segment);
            moved += log.stats().bytes_moved;
            drop(log);
            let mut rng = run.rng.fork();
            run.disk.crash(&mut rng);
        }
    }
    assert!(rolled > 10 && moved > 0, "the test rolls ({rolled}) and moves ({moved})");
}

#[test]
fn any_one_call_may_fail() {
    for seed in 0..3 {
        let calls = {
            let mut run = Run::new(seed);
            let (mut log, _) = open(&run.disk);
            (0..60).for_each(|_| run.step(&mut log).expect("the disk is fine"));
            run.disk.calls()
        };
        for call in 0..calls {
            let mut run = Run::new(seed);
            run.disk.fail_call(Some(call));
            if let Ok((mut log, recovered)) = RaftLog::open(run.disk.clone(), options()) {
                run.check_recovered(&recovered);
                for _ in 0..60 {
                    if run.step(&mut log).is_err() {
                        let poisoned = [log.append(&LogBatch::default()), log.sync(), log.seal()];
                        assert!(poisoned.iter().all(|r| matches!(r, Err(LogError::Poisoned))), "call {call} failed without consequence");
                        break;
                    }
                }
            }
            let mut rng = run.rng.fork();
            run.disk.crash(&mut rng);
            let (_, recovered) = open(&run.disk);
            run.check_recovered(&recovered);
            // And opening fails at any call, too, without harm.
            for call in 0.. {
                run.disk.crash(&mut rng);
                let before = run.disk.calls();
                run.disk.fail_call(Some(before + call));
                let opened = RaftLog::open(run.disk.clone(), options());
                let is_over = run.disk.calls() <= before + call;
                opened.iter().for_each(|(_, recovered)| run.check_recovered(recovered));
                if is_over {
                    break;
                }
            }
        }
    }
}

/// A log of several segments, every batch synced and the last one sealed.
fn sealed_log(seed: u64) -> (SimulatedDisk, Recovered) {
    let mut run = Run::new(seed);
    let (mut log, _) = open(&run.disk);
    log.append(&LogBatch { records: vec![LogRecord::Identity(Bytes::from_static(b"node"))] }).expect("it fits");
    run.states[0].identity = Some(Bytes::from_static(b"node"));
    for index in 0..60 {
        run.step(&mut log).expect("the disk is fine");
        // Every other log gets replicas that may keep old segments.
        if seed % 2 == 1 {
            let replica = key(1000 + index);
            let created = LogRecord::Created { replica, start: (LogIndex(0), Term(0)) };
            let entries = (1..=2).map(|index| entry(index, 1, 250)).collect();
            let batch = LogBatch { records: vec![created, LogRecord::Entries { replica, entries }] };
            let mut after = run.latest().clone();
            batch.records.iter().for_each(|record| apply(&mut after, record));
            run.states.push(after);
            log.append(&batch).expect("it fits");
        }
    }
    log.sync().expect("the disk is fine");
    log.seal().expect("the disk is fine");
    let sealed = run.latest().clone();
    drop(log);
    (run.disk, sealed)
}

#[test]
fn flipped_bits_are_reported_and_never_served() {
    let mut rng = Rng::new(7);
    let mut reported = 0;
    for round in 0..600 {
        let (disk, sealed) = sealed_log(round % 20);
        let (file, offset) = disk.flip_bit(&mut rng).expect("the disk is not empty");
        let recovered = match RaftLog::open(disk, options()) {
            Ok((_, recovered)) => recovered,
            Err(LogError::Unrecoverable { .. } | LogError::NewerFormat { .. }) => {
                reported += 1;
                continue;
            }
            Err(other) => panic!("{other}"),
        };
        if recovered.damage.is_empty() {
            assert_eq!(recovered, sealed, "round {round}: a flip in {file} at {offset} went unnoticed");
            continue;
        }
        reported += 1;
        assert!(recovered.damage.iter().any(|d| d.file == file && d.offset <= offset), "{:?}, flipped {file} {offset}", recovered.damage);
        let concerned: Vec<ReplicaKey> = recovered.damage.iter().flat_map(|d| d.replicas.clone()).collect();
        for (key, replica) in &recovered.replicas {
            assert_eq!(replica.is_lost, concerned.contains(key), "who is named is lost");
            if !replica.is_lost {
                assert_eq!(Some(replica), sealed.replicas.get(key), "round {round}: a flip in {file} at {offset} changed {key} silently");
            }
        }
        for key in sealed.replicas.keys() {
            assert!(recovered.replicas.contains_key(key) || recovered.damage.iter().any(|d| d.file == file), "{key} vanished");
        }
    }
    assert!(reported > 150, "most flips hit what counts: {reported}");
}

#[test]
fn damage_stays_known_after_the_damaged_segment_is_gone() {
    let (disk, sealed) = sealed_log(3);
    let mut rng = Rng::new(1);
    let lost = loop {
        let (file, offset) = disk.flip_bit(&mut rng).expect("not empty");
        let copy = SimulatedDisk::new();
        disk.list().expect("fine").iter().for_each(|name| copy.put(name, &disk.content(name).expect("it was listed")));
        let opened = RaftLog::open(copy.clone(), options());
        if let Ok((_, recovered)) = opened
            && recovered.replicas.values().any(|replica| replica.is_lost)
        {
            break (copy, recovered);
        }
        // Flip it back.
        let bit = (0..8).find(|bit| {
            disk.flip_bit_at(&file, offset, *bit);
            let good = RaftLog::open(disk.clone(), options()).is_ok_and(|(_, r)| r.damage.is_empty() && r == sealed);
            if !good {
                disk.flip_bit_at(&file, offset, *bit);
            }
            good
        });
        assert!(bit.is_some(), "a flip that is undone does no harm");
    };
    let (copy, first) = lost;
    let lost: Vec<ReplicaKey> = first.replicas.iter().filter(|(_, r)| r.is_lost).map(|(key, _)| *key).collect();
    for _ in 0..3 {
        let (mut log, again) = open(&copy);
        let lost_again: Vec<ReplicaKey> = again.replicas.iter().filter(|(_, r)| r.is_lost).map(|(key, _)| *key).collect();
        assert_eq!(lost, lost_again, "{:?}", again.damage);
        assert!(!again.damage.is_empty());
        for (key, replica) in again.replicas.iter().filter(|(_, r)| !r.is_lost) {
            if let Some(entry) = replica.entries.last() {
                let purge = LogRecord::Purge { replica: *key, through: entry.index, term: entry.term };
                log.append(&LogBatch { records: vec![purge] }).expect("it fits");
            }
        }
        log.sync().expect("fine");
    }
    let (mut log, _) = open(&copy);
    log.append(&LogBatch { records: lost.iter().map(|replica| LogRecord::Tombstone { replica: *replica }).collect() }).expect("it fits");
    log.sync().expect("fine");
    drop(log);
    let (_, last) = open(&copy);
    assert!(last.replicas.values().all(|replica| !replica.is_lost), "{:?}", last.damage);
}

#[test]
fn a_cut_tail_stays_dead() {
    let write = |log: &mut Log, index: u64, size: usize| {
        let entry = entry(index, 1, size);
        log.append(&LogBatch { records: vec![LogRecord::Entries { replica: key(1), entries: vec![entry] }] }).expect("it fits");
    };
    let mut cut = 0;
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let disk = SimulatedDisk::new();
        let (mut log, _) = open(&disk);
        let created = LogRecord::Created { replica: key(1), start: (LogIndex(0), Term(0)) };
        log.append(&LogBatch { records: vec![created] }).expect("it fits");
        log.sync().expect("fine");
        (1..=4).for_each(|index| write(&mut log, index, 600));
        drop(log);
        disk.crash(&mut rng);
        let (mut log, recovered) = open(&disk);
        let kept = recovered.replicas[&key(1)].entries.len() as u64;
        cut += u64::from(kept < 4);
        // With the start of the run before it as long as what was cut, so that the old tail would fit on behind.
        if kept < 4 {
            write(&mut log, kept + 1, 600 - 32);
            log.sync().expect("fine");
        }
        drop(log);
        disk.crash(&mut rng);
        let (_, again) = open(&disk);
        assert_eq!(again.replicas[&key(1)].entries.len() as u64, (kept + 1).min(4), "seed {seed}");
    }
    assert!(cut > 50);
}

#[test]
fn a_full_disk_leaves_the_log_usable() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let disk = SimulatedDisk::new();
        let (mut log, _) = open(&disk);
        let created = LogRecord::Created { replica: key(1), start: (LogIndex(0), Term(0)) };
        log.append(&LogBatch { records: vec![created] }).expect("it fits");
        disk.set_capacity(Some(8192 * 3 + 4096 + rng.below(8192)));
        let mut last = 0;
        let full = loop {
            let entries = vec![entry(last + 1, 1, rng.below(500) as usize)];
            match log.append(&LogBatch { records: vec![LogRecord::Entries { replica: key(1), entries }] }) {
                Ok(()) => last += 1,
                Err(error) => break error,
            }
        };
        assert!(full.is_disk_full(), "{full}");
        log.sync().expect("what fitted is synced");
        let state = HardState { term: Term(9), ..HardState::default() };
        log.append(&LogBatch { records: vec![LogRecord::HardState { replica: key(1), hard_state: state }] }).expect("the reserve");
        log.append(&LogBatch { records: vec![LogRecord::Purge { replica: key(1), through: LogIndex(last), term: Term(1) }] })
            .expect("the reserve");
        log.sync().expect("fine");
        for _ in 0..20 {
            last += 1;
            let purge = LogRecord::Purge { replica: key(1), through: LogIndex(last), term: Term(1) };
            log.append(&LogBatch { records: vec![LogRecord::Entries { replica: key(1), entries: vec![entry(last, 1, 300)] }] })
                .expect("purging made room");
            log.append(&LogBatch { records: vec![purge] }).expect("room");
            log.sync().expect("fine");
        }
        drop(log);
        disk.crash(&mut rng);
        let (_, recovered) = open(&disk);
        assert_eq!(recovered.replicas[&key(1)].start, (LogIndex(last), Term(1)));
        assert_eq!(recovered.replicas[&key(1)].hard_state, state);
    }
}

#[test]
fn a_write_that_meets_a_full_disk_half_way_counts_for_nothing() {
    for bytes in 0..900 {
        let mut rng = Rng::new(bytes);
        let disk = SimulatedDisk::new();
        let (mut log, _) = open(&disk);
        let created = LogRecord::Created { replica: key(1), start: (LogIndex(0), Term(0)) };
        log.append(&LogBatch { records: vec![created] }).expect("it fits");
        disk.fill_after(Some(bytes));
        let append = |log: &mut Log, term| {
            log.append(&LogBatch { records: vec![LogRecord::Entries { replica: key(1), entries: vec![entry(1, term, 800)] }] })
        };
        let is_full = append(&mut log, 1).is_err_and(|error| error.is_disk_full());
        disk.fill_after(None);
        if is_full {
            log.append(&LogBatch { records: vec![LogRecord::Identity(Bytes::from_static(b"n"))] }).expect("there is room again");
        }
        log.sync().expect("fine");
        drop(log);
        disk.crash(&mut rng);
        let (_, recovered) = open(&disk);
        assert_eq!(recovered.replicas[&key(1)].entries.len(), usize::from(!is_full));
        assert_eq!(recovered.identity.is_some(), is_full);
    }
}

#[test]
fn a_replica_that_never_purges_does_not_keep_the_log_for_ever() {
    let disk = SimulatedDisk::new();
    let (mut log, _) = open(&disk);
    let created = |n| LogRecord::Created { replica: key(n), start: (LogIndex(0), Term(0)) };
    log.append(&LogBatch { records: vec![created(1), created(2)] }).expect("it fits");
    let stuck: Vec<Entry> = (1..=3).map(|i| entry(i, 1, 500)).collect();
    log.append(&LogBatch { records: vec![LogRecord::Entries { replica: key(1), entries: stuck.clone() }] }).expect("it fits");
    let mut largest = 0;
    for index in 1..=2000 {
        let busy = LogRecord::Entries { replica: key(2), entries: vec![entry(index, 1, 400)] };
        let purge = LogRecord::Purge { replica: key(2), through: LogIndex(index), term: Term(1) };
        log.append(&LogBatch { records: vec![busy, purge] }).expect("it fits");
        log.sync().expect("fine");
        largest = largest.max(log.stats().bytes_total);
    }
    assert!(largest <= 8192 * (3 * 3 / 2 + 2), "the bound holds: {largest}");
    assert!(log.stats().bytes_moved > 0);
    assert_eq!(log.read_entries(key(1), LogIndex(1), 1 << 20).expect("they were moved"), stuck);
    drop(log);
    disk.crash(&mut Rng::new(1));
    let (_, recovered) = open(&disk);
    assert_eq!(recovered.replicas[&key(1)].entries, stuck);
    assert_eq!(recovered.replicas[&key(2)].start.0, LogIndex(2000));
}

#[test]
fn a_missing_segment_is_damage() {
    let write = || {
        let disk = SimulatedDisk::new();
        let (mut log, _) = open(&disk);
        let created = LogRecord::Created { replica: key(1), start: (LogIndex(0), Term(0)) };
        log.append(&LogBatch { records: vec![LogRecord::Identity(Bytes::from_static(b"n")), created] }).expect("it fits");
        for index in 1..=60 {
            let entries = vec![entry(index, 1, 500)];
            log.append(&LogBatch { records: vec![LogRecord::Entries { replica: key(1), entries }] }).expect("it fits");
        }
        log.sync().expect("fine");
        assert!(log.stats().segment_count >= 4);
        drop(log);
        disk
    };
    for number in 1..=3 {
        let disk = write();
        disk.remove(&format!("{number:016x}.log")).expect("it is there");
        let (_, recovered) = open(&disk);
        assert!(recovered.replicas[&key(1)].is_lost, "segment {number} went unnoticed");
        assert!(recovered.damage.iter().any(|damage| damage.replicas == [key(1)]), "{:?}", recovered.damage);
    }
}

#[test]
fn only_one_at_a_time_and_a_crash_lets_go() {
    let disk = SimulatedDisk::new();
    let (first, _) = open(&disk);
    assert!(matches!(RaftLog::open(disk.clone(), options()), Err(LogError::Disk(DiskError::Locked { .. }))));
    disk.crash(&mut Rng::new(1));
    let (_second, _) = open(&disk);
    drop(first);
    assert!(RaftLog::open(disk.clone(), options()).is_err(), "the dead process's lock is not the living one's");

    let dir = tempfile::tempdir().expect("a temporary directory");
    let file_disk = || FileDisk::open(dir.path().join("a/log")).expect("it can be made");
    let held = RaftLog::open(file_disk(), options()).expect("fine");
    assert!(matches!(RaftLog::open(file_disk(), options()), Err(LogError::Disk(DiskError::Locked { .. }))));
    drop(held);
    assert!(RaftLog::open(file_disk(), options()).is_ok());
}

#[test]
fn newer_formats_and_foreign_files_are_refused() {
    let disk = SimulatedDisk::new();
    drop(open(&disk));
    let name = "0000000000000001.log";
    let mut newer = disk.content(name).expect("the first segment");
    newer[8..12].copy_from_slice(&2u32.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&newer[..12]), &newer[16..64]);
    newer[12..16].copy_from_slice(&crc.to_le_bytes());
    disk.put(name, &newer);
    assert!(matches!(RaftLog::open(disk.clone(), options()), Err(LogError::NewerFormat { found: 2, known: 1, .. })));
    disk.put(name, b"something else");
    assert!(matches!(RaftLog::open(disk, options()), Err(LogError::Foreign { .. })));
}

#[test]
fn a_real_directory_holds_what_was_synced() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut rng = Rng::new(5);
    let mut model = Recovered::default();
    let mut next_replica = 0;
    for _ in 0..4 {
        let disk = FileDisk::open(dir.path()).expect("it is there");
        let (mut log, recovered) = RaftLog::open(disk, options()).expect("fine");
        assert_eq!(recovered, model);
        for _ in 0..60 {
            let batch = random_batch(&mut rng, &model, &mut next_replica);
            batch.records.iter().for_each(|record| apply(&mut model, record));
            log.append(&batch).expect("it fits");
        }
        log.sync().expect("fine");
        log.seal().expect("fine");
    }
}

#[test]
fn files_of_format_1_open() {
    let disk = SimulatedDisk::new();
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/log");
    for file in std::fs::read_dir(&dir).expect("the fixture is there") {
        let file = file.expect("it can be listed");
        disk.put(&file.file_name().to_string_lossy(), &std::fs::read(file.path()).expect("it can be read"));
    }
    let (_, recovered) = open(&disk);
    assert_eq!(recovered, fixture().1);
}

/// Writes the fixture. Run by hand when a new format begins; the old one's files stay as they are.
#[test]
#[ignore = "writes files into the source tree"]
fn write_the_fixture() {
    let disk = fixture().0;
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/log");
    std::fs::create_dir_all(&dir).expect("it can be made");
    for name in disk.list().expect("fine").iter().filter(|name| name.ends_with(".log")) {
        std::fs::write(dir.join(name), disk.content(name).expect("it was listed")).expect("it can be written");
    }
}

fn fixture() -> (SimulatedDisk, Recovered) {
    sealed_log(11)
}
