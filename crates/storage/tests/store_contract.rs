//! Both stores keep the same contract: the same script runs on each.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use flotilla_storage::store::{EngineOptions, EngineStore, SimulatedStore, StateStore, StoreError, StoreView, WriteBatch};
use flotilla_types::Rng;
use std::ops::ControlFlow;

fn batch(writes: &[(&str, Option<&str>)]) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for (key, value) in writes {
        let key = Bytes::copy_from_slice(key.as_bytes());
        match value {
            Some(value) => batch.put(key, Bytes::copy_from_slice(value.as_bytes())),
            None => batch.delete(key),
        }
    }
    batch
}

fn scan<V: StoreView>(view: &V, from: &str, to: &str, count: usize) -> String {
    let mut seen = Seen { text: String::new(), left: count };
    view.scan(from.as_bytes(), to.as_bytes(), &mut |key, value| seen.visit(key, value)).unwrap();
    seen.text
}

fn scan_back<V: StoreView>(view: &V, from: &str, to: &str, count: usize) -> String {
    let mut seen = Seen { text: String::new(), left: count };
    view.scan_back(from.as_bytes(), to.as_bytes(), &mut |key, value| seen.visit(key, value)).unwrap();
    seen.text
}

struct Seen {
    text: String,
    left: usize,
}

impl Seen {
    fn visit(&mut self, key: &[u8], value: &[u8]) -> ControlFlow<()> {
        self.text += &format!("{}={} ", key.escape_ascii(), value.escape_ascii());
        self.left -= 1;
        if self.left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn check_contract<S: StateStore>(store: &S) {
    store.write(batch(&[("a", Some("1")), ("b", Some("2")), ("c", Some(""))])).unwrap();
    let view = store.view().unwrap();
    store.write(batch(&[("a", None), ("b", Some("3")), ("d", Some("4")), ("absent", None)])).unwrap();
    assert_eq!(store.get(b"a").unwrap(), None);
    assert_eq!(store.get(b"b").unwrap().as_deref(), Some(&b"3"[..]));
    assert_eq!(store.get(b"c").unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(view.get(b"a").unwrap().as_deref(), Some(&b"1"[..]), "a view does not move");
    assert_eq!(view.get(b"d").unwrap(), None);
    assert_eq!(scan(&view, "a", "z", 9), "a=1 b=2 c= ");
    assert_eq!(scan(&store.view().unwrap(), "b", "d", 9), "b=3 c= ", "the end is not included");
    assert_eq!(scan(&store.view().unwrap(), "a", "z", 2), "b=3 c= ", "a visit may end it");
    assert_eq!(scan(&store.view().unwrap(), "z", "a", 9), "", "a range may be empty");
    assert_eq!(scan_back(&store.view().unwrap(), "b", "d", 9), "c= b=3 ", "backwards the bounds are the same");
    assert_eq!(scan_back(&store.view().unwrap(), "a", "z", 2), "d=4 c= ");
    assert_eq!(scan_back(&store.view().unwrap(), "z", "a", 9), "");
    store.persist().unwrap();

    let mut twice = batch(&[("e", Some("1")), ("f", Some("1")), ("e", None), ("f", Some("2")), ("g", None), ("g", Some("3"))]);
    twice.keep_last_of_each_key();
    assert_eq!(twice.len(), 3);
    store.write(twice).unwrap();
    assert_eq!(scan(&store.view().unwrap(), "e", "z", 9), "f=2 g=3 ");
}

#[test]
fn the_simulated_store_keeps_the_contract() {
    check_contract(&SimulatedStore::new());
}

#[test]
fn the_engine_keeps_the_contract_and_opens_again() {
    let folder = tempfile::tempdir().unwrap();
    let open = || EngineStore::open(folder.path(), EngineOptions::default());
    let store = open().unwrap();
    check_contract(&store);
    assert!(matches!(open(), Err(StoreError::Locked(_))), "one process at a time");
    drop(store);
    let store = open().unwrap();
    assert_eq!(scan(&store.view().unwrap(), "a", "z", 9), "b=3 c= d=4 f=2 g=3 ");
    assert!(store.disk_bytes() > 0);
}

#[test]
fn a_crash_keeps_a_prefix_from_the_last_persist_on() {
    let mut survived = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let store = SimulatedStore::new();
        for number in 0..10 {
            let number = number.to_string();
            store.write(batch(&[(&number, Some(&number)), ("last", Some(&number))])).unwrap();
            if number == "4" {
                store.persist().unwrap();
            }
        }
        let after = store.crash(&mut Rng::new(seed));
        assert!(matches!(store.write(batch(&[("x", None)])), Err(StoreError::Io { .. })));
        let last: usize = std::str::from_utf8(&after.get(b"last").unwrap().unwrap()).unwrap().parse().unwrap();
        assert_eq!(after.rows().len(), last + 2, "no hole, nothing behind");
        survived.insert(last);
    }
    assert_eq!(survived.into_iter().collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9]);
}
