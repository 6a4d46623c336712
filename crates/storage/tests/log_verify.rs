//! A log is read by `verify` as recovery would read it, without a write, and no flipped bit below its end goes by.

use bytes::Bytes;
use flotilla_storage::disk::{Disk, SimulatedDisk};
use flotilla_storage::log::{LogBatch, LogOptions, LogRecord, RaftLog, verify};
use flotilla_storage::verify::{Audience, FileUse, Finding, Weight};
use flotilla_types::{Entry, EntryKind, GroupId, HardState, LogIndex, ReplicaId, ReplicaKey, Term};

#[derive(Default)]
struct Heard {
    files: Vec<FileUse>,
    findings: Vec<Finding>,
}

impl Audience for Heard {
    fn file(&mut self, file: FileUse) {
        self.files.push(file);
    }
    fn finding(&mut self, finding: Finding) {
        self.findings.push(finding);
    }
    fn progress(&mut self, _bytes: u64) {}
}

const KEY: ReplicaKey = ReplicaKey { group: GroupId(3), replica: ReplicaId(7) };

fn options() -> LogOptions {
    LogOptions { segment_bytes: 4096, segment_count_max: 8, spare_count_max: 1, ..LogOptions::default() }
}

/// Two segments or more, a spare, and a seal at the end.
fn log_on(disk: &SimulatedDisk) {
    let (mut log, _) = RaftLog::open(disk.clone(), options()).expect("the disk is fine");
    let mut write = |records| {
        log.append(&LogBatch { records }).and_then(|()| log.sync()).and_then(|()| log.seal()).expect("the disk is fine");
    };
    write(vec![LogRecord::Identity(Bytes::from_static(b"me")), LogRecord::Created { replica: KEY, start: (LogIndex(1), Term(1)) }]);
    for index in 2..60 {
        let entry = Entry { index: LogIndex(index), term: Term(1), kind: EntryKind::Normal, data: Bytes::from(vec![index as u8; 90]) };
        let hard_state = HardState { term: Term(1), vote: None, commit: LogIndex(index - 1) };
        write(vec![LogRecord::Entries { replica: KEY, entries: vec![entry] }, LogRecord::HardState { replica: KEY, hard_state }]);
    }
}

fn heard(disk: &SimulatedDisk) -> Heard {
    let mut heard = Heard::default();
    let report = verify(disk, &mut heard);
    assert_eq!(report.recovered.is_none(), heard.findings.iter().any(|finding| finding.what.contains("cannot be recovered")));
    heard
}

#[test]
fn a_whole_log_is_whole_and_stays_as_it_is() {
    let disk = SimulatedDisk::new();
    log_on(&disk);
    let names = disk.list().expect("names");
    let before: Vec<_> = names.iter().map(|name| disk.content(name)).collect();
    let mut heard = Heard::default();
    let report = verify(&disk, &mut heard);
    assert_eq!(heard.findings, []);
    assert_eq!(report.records, 2 + 2 * 58 + report.recovered.as_ref().map_or(0, |_| openings(&heard)));
    assert_eq!(report.recovered.expect("it can be recovered").replicas[&KEY].entries.len(), 58);
    assert!(heard.files.iter().filter(|file| file.bytes_used > 0).count() >= 2, "{:?}", heard.files);
    assert_eq!(disk.list().expect("names"), names);
    assert_eq!(names.iter().map(|name| disk.content(name)).collect::<Vec<_>>(), before);
}

/// Records in the openings: one each in the first, then head, identity and one replica.
fn openings(heard: &Heard) -> u64 {
    1 + 3 * (heard.files.iter().filter(|file| file.bytes_used > 0).count() as u64 - 1)
}

#[test]
fn every_byte_that_counts_is_watched_and_no_other() {
    let disk = SimulatedDisk::new();
    log_on(&disk);
    for FileUse { file, bytes, bytes_used } in heard(&disk).files {
        let name = file.rsplit('/').next().expect("a name").to_owned();
        // The last seal states a mark and nothing else: without it the batch before it is merely not known to be synced.
        let is_newest = disk.list().expect("names").iter().rfind(|name| name.ends_with(".log")) == Some(&name);
        for offset in 0..bytes {
            assert!(disk.flip_bit_at(&name, offset, (offset % 8) as u8));
            let findings = heard(&disk).findings;
            let is_seal = is_newest && offset + 32 >= bytes_used && offset < bytes_used;
            match offset < bytes_used {
                true if is_seal => assert!(findings.iter().all(|finding| finding.weight == Weight::Note), "{name} {offset}: {findings:?}"),
                true => assert!(findings.iter().any(|f| f.weight == Weight::Damage && f.file == file), "{name} {offset}: {findings:?}"),
                false => assert_eq!(findings, [], "{name} {offset}"),
            }
            assert!(disk.flip_bit_at(&name, offset, (offset % 8) as u8));
        }
    }
}
