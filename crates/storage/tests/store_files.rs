//! The engine's files read without the engine: the same rows, and no flipped bit goes by.

#![expect(clippy::disallowed_methods, reason = "the engine's files are real ones")]

use bytes::Bytes;
use flotilla_storage::disk::FileDisk;
use flotilla_storage::store::engine_files::{self, Depth, StoreReport};
use flotilla_storage::store::{EngineOptions, EngineStore, StateStore, StoreView, WriteBatch, engine_rows};
use flotilla_storage::verify::{Audience, FileUse, Finding, Weight};
use flotilla_types::{ByteSize, Rng};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

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

fn heard(folder: &Path) -> (Heard, StoreReport) {
    let mut heard = Heard::default();
    let report = engine_files::verify(&|name| FileDisk::read_only(folder.join(name)), Depth::All, &mut heard);
    (heard, report)
}

/// Enough for several tables, overwritten and deleted rows, and a journal with rows that no table holds.
fn store_in(folder: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let options = EngineOptions { memtable_bytes: ByteSize(1 << 20), ..EngineOptions::default() };
    let store = EngineStore::open(folder, options).expect("a new store");
    let mut rng = Rng::new(7);
    for round in 0u64..60 {
        let mut batch = WriteBatch::with_capacity(60);
        for at in 0..60 {
            let key = Bytes::from((at * 131 + rng.below(100)).to_be_bytes().to_vec());
            if rng.below(10) == 0 { batch.delete(key) } else { batch.put(key, Bytes::from(vec![round as u8; 1500])) }
        }
        batch.keep_last_of_each_key();
        store.write(batch).expect("room");
    }
    store.persist().expect("room");
    let mut rows = BTreeMap::new();
    let view = store.view().expect("a view");
    let visit = &mut |key: &[u8], value: &[u8]| {
        rows.insert(key.to_vec(), value.to_vec());
        ControlFlow::Continue(())
    };
    view.scan(&[0], &[0xFF], visit).expect("whole");
    rows
}

#[test]
fn the_rows_are_those_the_engine_gives() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows = store_in(folder.path());
    let (heard, report) = heard(folder.path());
    assert_eq!(heard.findings, []);
    assert!(report.is_whole && report.batches >= 60, "{report:?}");
    // The engine's own tree, and at least one table of ours: more than four memtables were filled.
    assert!(report.trees.values().all(|runs| !runs.is_empty()), "{report:?}");
    let mut read = BTreeMap::new();
    engine_rows::visit(folder.path(), &report, &mut |key, value| {
        read.insert(key.to_vec(), value.to_vec());
        Ok(ControlFlow::Continue(()))
    })
    .expect("whole");
    assert_eq!(read.len(), rows.len());
    assert!(read == rows, "other values");
}

/// Which of two values of a key is the newer one, the engine tells by the numbers of their batches alone.
#[test]
fn a_journal_whose_batches_changed_places_is_cut_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = EngineStore::open(folder.path(), EngineOptions::default()).expect("a new store");
    for value in ["old", "new"] {
        let mut batch = WriteBatch::with_capacity(1);
        batch.put(Bytes::from_static(b"key"), Bytes::from(value));
        store.write(batch).expect("room");
    }
    store.persist().expect("room");
    drop(store);
    let journal = folder.path().join("0.jnl");
    let mut content = std::fs::read(&journal).expect("readable");
    // Head, item, key, value and end of the first batch; the second one's number stands behind its kind and count.
    let second = 13 + 21 + 3 + 3 + 13;
    assert_eq!(content[second], 1, "a batch begins there");
    content[second + 5] ^= 1 << 4;
    content[5] ^= 1 << 5;
    std::fs::write(&journal, &content).expect("writable");
    let (found, _) = heard(folder.path());
    assert!(matches!(&found.findings[..], [Finding { weight: Weight::Damage, bytes, .. }] if bytes.start == 53), "{:?}", found.findings);
    let store = EngineStore::open(folder.path(), EngineOptions::default()).expect("what is left is a prefix");
    assert_eq!(store.journal_cut(), Some(("0.jnl", 53)));
    assert_eq!(store.get(b"key").expect("readable").as_deref(), Some(&b"old"[..]));
}

/// A power cut may take a sector that was not synced, and leave later ones.
#[test]
fn a_journal_with_a_hole_is_cut_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows = store_in(folder.path());
    let store = EngineStore::open(folder.path(), EngineOptions::default()).expect("whole");
    assert_eq!(store.journal_cut(), None);
    let batch = |value: &'static str| {
        let mut batch = WriteBatch::with_capacity(1);
        batch.put(Bytes::from_static(b"\xF0key"), Bytes::from_static(value.as_bytes()));
        batch
    };
    store.write(batch("first")).and_then(|()| store.persist()).expect("room");
    let used = |heard: &Heard| heard.files.iter().filter(|file| file.file.ends_with(".jnl")).map(|file| file.bytes_used).max();
    let hole = used(&heard(folder.path()).0).expect("a journal");
    store.write(batch("second")).and_then(|()| store.write(batch("third"))).and_then(|()| store.persist()).expect("room");
    drop(store);
    let journal = heard(folder.path()).0.files.iter().rfind(|file| file.file.ends_with(".jnl")).expect("a journal").file.clone();
    let mut content = std::fs::read(&journal).expect("readable");
    content[hole as usize..][..20].fill(0);
    std::fs::write(&journal, &content).expect("writable");
    let store = EngineStore::open(folder.path(), EngineOptions::default()).expect("what is left is a prefix");
    assert_eq!(store.journal_cut().map(|(_, offset)| offset), Some(hole));
    assert_eq!(store.get(b"\xF0key").expect("readable").as_deref(), Some(&b"first"[..]));
    assert!(rows.iter().all(|(key, value)| store.get(key).expect("readable").as_deref() == Some(&value[..])));
}

#[test]
fn tables_are_looked_at_though_their_list_is_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    store_in(folder.path());
    let (mut whole, _) = heard(folder.path());
    for FileUse { file, bytes, bytes_used } in whole.files.iter_mut().filter(|file| file.file.ends_with(".jnl")) {
        // Zeros as in any journal, but not 64 MiB of them.
        *bytes = *bytes_used + 4096;
        std::fs::File::options().write(true).open(&*file).and_then(|journal| journal.set_len(*bytes)).expect("writable");
    }
    let flip = |file: &str, offset: usize| {
        let mut content = std::fs::read(file).expect("readable");
        content[offset] ^= 4;
        std::fs::write(file, &content).expect("writable");
    };
    let file_of = |part: &str| whole.files.iter().find(|file| file.file.contains(part)).expect("it is there").clone();
    flip(&file_of("keyspaces/1/v").file, 100);
    let (found, _) = heard(folder.path());
    assert_eq!(found.findings.len(), 1, "{:?}", found.findings);
    let table = file_of("keyspaces/1/tables/");
    for offset in [100, table.bytes / 2, table.bytes - 5, table.bytes - 30, table.bytes - 60] {
        flip(&table.file, offset as usize);
        let (found, _) = heard(folder.path());
        assert!(
            found.findings.iter().any(|finding| finding.file == table.file && finding.bytes.contains(&offset))
                || offset + 60 >= table.bytes && found.findings.len() == 2,
            "{offset}: {:?}",
            found.findings
        );
        flip(&table.file, offset as usize);
    }
}

#[test]
fn a_flipped_bit_is_found_wherever_it_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    store_in(folder.path());
    let (mut whole, _) = heard(folder.path());
    for FileUse { file, bytes, bytes_used } in whole.files.iter_mut().filter(|file| file.file.ends_with(".jnl")) {
        // Zeros as in any journal, but not 64 MiB of them.
        *bytes = *bytes_used + 4096;
        std::fs::File::options().write(true).open(&*file).and_then(|journal| journal.set_len(*bytes)).expect("writable");
    }
    let mut rng = Rng::new(11);
    for FileUse { file, bytes_used, .. } in whole.files {
        let content = std::fs::read(&file).expect("readable");
        for round in 0..7 {
            // The first bytes of small files, any of large ones.
            let offset = if round < 4 { round * bytes_used / 4 } else { rng.below(bytes_used.max(1)) };
            if offset >= bytes_used {
                break;
            }
            let mut flipped = content.clone();
            flipped[offset as usize] ^= 1 << rng.below(8);
            std::fs::write(&file, &flipped).expect("writable");
            let (found, report) = heard(folder.path());
            let about = |finding: &&Finding| finding.file == file || file.ends_with("current");
            let named: Vec<_> = found.findings.iter().filter(about).collect();
            assert!(!named.is_empty(), "{file} at {offset}: {:?}", found.findings);
            assert!(named.iter().any(|finding| finding.bytes.start <= offset), "{file} at {offset}: {named:?}");
            assert_eq!(report.is_whole, found.findings.iter().all(|finding| finding.weight == Weight::Note));
        }
        std::fs::write(&file, &content).expect("writable");
    }
    assert_eq!(heard(folder.path()).0.findings, []);
}
