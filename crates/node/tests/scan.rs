//! Scans of one node's shards against a sorted map: every page, whatever its bounds, on both stores.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use flotilla_node::run_scan;
use flotilla_node::scan::{PageFill, ScanAsk, ScanJob, merge};
use flotilla_node::state_machine::{Applier, ApplyJob, GroupApply, MutationBatch, ReplicaState, StateMachineFaults};
use flotilla_storage::store::layout::{CHUNK_BYTES, Filing, INLINE_VALUE_BYTES_MAX};
use flotilla_storage::store::{EngineOptions, EngineStore, SimulatedStore, StateStore};
use flotilla_types::{
    Condition, Entry, EntryKind, GroupId, Key, KeyRange, LogIndex, Member, Membership, NodeId, ReplicaId, ReplicaKey, Rng, Term, Timestamp,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const SHARDS: u32 = 3;
const SIZES: [usize; 5] = [0, 5, 300, INLINE_VALUE_BYTES_MAX, CHUNK_BYTES + 1];

fn shard(number: u32) -> ReplicaKey {
    ReplicaKey { group: GroupId(number + 1), replica: ReplicaId(1) }
}

/// A store with a few shards that hold these keys, spread over them.
fn fill<S: StateStore>(store: S, keys: &BTreeMap<Vec<u8>, usize>) -> Applier<S> {
    let (mut applier, _) = Applier::open(store, StateMachineFaults::default()).unwrap();
    for number in 0..SHARDS {
        let members = Membership::of_voters([Member { replica: ReplicaId(1), node: NodeId(9) }]);
        applier.create(shard(number), ReplicaState::new(members)).unwrap();
        let mut batch = MutationBatch::new();
        for (key, size) in keys.iter().filter(|(key, _)| shard_of(key) == number) {
            batch.put(&Key::new(key.clone()).unwrap(), &value(key, *size), &Condition::ALWAYS);
        }
        let data = batch.finish(Timestamp(1));
        let entries = vec![Entry { index: LogIndex(1), term: Term(1), kind: EntryKind::Normal, data }];
        let group = GroupApply { replica: shard(number), entries, memberships: vec![], answers_wanted: false };
        applier.apply(ApplyJob { groups: vec![group] }).unwrap();
    }
    applier
}

fn shard_of(key: &[u8]) -> u32 {
    key.iter().map(|byte| u32::from(*byte)).sum::<u32>() % SHARDS
}

fn value(key: &[u8], size: usize) -> Bytes {
    key.iter().copied().cycle().take(SIZES[size]).collect()
}

fn job(ask: &ScanAsk, shards: std::ops::Range<u32>) -> ScanJob {
    ScanJob {
        part: 1,
        shards: shards.map(|number| (shard(number), Filing { under: shard(number), generation: 1 })).collect(),
        ask: ask.clone(),
    }
}

/// All pages of a scan, as two nodes and the one that asks them would make it.
fn pages<S: StateStore>(store: &S, mut ask: ScanAsk) -> Vec<(Vec<u8>, Option<Bytes>)> {
    let mut found = Vec::new();
    loop {
        let chunks = [0..1, 1..SHARDS].map(|shards| run_scan(store, &job(&ask, shards)).unwrap());
        assert!(chunks.iter().all(|(_, gone)| gone.is_empty()));
        let page = merge(chunks.into_iter().map(|(chunk, _)| chunk).collect(), &ask);
        assert!(page.items.len() <= ask.items_max as usize);
        found.extend(page.items.into_iter().map(|item| (item.key.as_bytes().to_vec(), item.value)));
        match page.rest {
            Some(rest) => ask.range = rest,
            None => return found,
        }
    }
}

fn expected(keys: &BTreeMap<Vec<u8>, usize>, ask: &ScanAsk) -> Vec<(Vec<u8>, Option<Bytes>)> {
    let within = keys.iter().filter(|(key, _)| ask.range.contains(key));
    let mut found: Vec<_> = within.map(|(key, size)| (key.clone(), (!ask.keys_only).then(|| value(key, *size)))).collect();
    if ask.reverse {
        found.reverse();
    }
    found
}

fn ask(range: KeyRange, bounds: (u32, u32), reverse: bool) -> ScanAsk {
    ScanAsk { range, reverse, keys_only: bounds.0.is_multiple_of(4), items_max: bounds.0, bytes_max: bounds.1, fill: PageFill::Whole }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_page_is_what_a_sorted_map_gives(
        keys in prop::collection::btree_map(prop::collection::vec(prop::sample::select(vec![0u8, b'a', b'b', 0xFE, 0xFF]), 1..5), 0..SIZES.len(), 0..60),
        start in prop::collection::vec(prop::sample::select(vec![0u8, b'a', 0xFF]), 0..4),
        end in prop::option::of(prop::collection::vec(prop::sample::select(vec![0u8, b'b', 0xFF]), 0..4)),
        items_max in 1u32..40, bytes_max in 1u32..100_000, reverse: bool,
    ) {
        let applier = fill(SimulatedStore::new(), &keys);
        for range in [KeyRange { start: start.clone().into(), end: end.map(Bytes::from) }, KeyRange::of_prefix(&start)] {
            let ask = ask(range, (items_max, bytes_max), reverse);
            prop_assert_eq!(pages(applier.store(), ask.clone()), expected(&keys, &ask));
        }
    }
}

#[test]
fn the_real_store_gives_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(7);
    let keys: BTreeMap<Vec<u8>, usize> =
        (0..2_000).map(|_| (format!("key{}", rng.below(9_999)).into_bytes(), rng.below(3) as usize)).collect();
    let applier = fill(EngineStore::open(folder.path(), EngineOptions::default()).unwrap(), &keys);
    for (prefix, reverse) in [(&b""[..], false), (b"key1", true), (b"key", true)] {
        let ask = ask(KeyRange::of_prefix(prefix), (101, 50_000), reverse);
        assert_eq!(pages(applier.store(), ask.clone()), expected(&keys, &ask));
    }
}

#[test]
fn a_chunk_is_bounded_and_says_whether_there_is_more() {
    let keys: BTreeMap<Vec<u8>, usize> = (b'a'..=b'z').map(|name| (vec![name], 2)).collect();
    let applier = fill(SimulatedStore::new(), &keys);
    let run = |items_max, bytes_max| {
        let ask = ScanAsk { keys_only: false, ..ask(KeyRange::default(), (items_max, bytes_max), false) };
        let (chunk, _) = run_scan(applier.store(), &job(&ask, 0..SHARDS)).unwrap();
        (chunk.items.len(), chunk.more)
    };
    assert_eq!(run(26, 1 << 20), (26, false));
    assert_eq!(run(25, 1 << 20), (25, true));
    assert_eq!(run(100, 3 * 333), (3, true), "three items of 32 and 1 and 300 bytes");
    assert_eq!(run(100, 1), (1, true), "one item always fits");
}

#[test]
fn a_replica_that_was_replaced_is_named_and_not_read() {
    let keys: BTreeMap<Vec<u8>, usize> = (b'a'..=b'z').map(|name| (vec![name], 1)).collect();
    let applier = fill(SimulatedStore::new(), &keys);
    let ask = ask(KeyRange::default(), (99, 1 << 20), false);
    let mut job = job(&ask, 0..SHARDS);
    job.shards[1].1.generation = 2;
    job.shards[2].0.replica = ReplicaId(8);
    let (chunk, gone) = run_scan(applier.store(), &job).unwrap();
    assert_eq!(gone, [GroupId(2), GroupId(3)]);
    assert!(chunk.items.iter().all(|item| shard_of(item.key.as_bytes()) == 0) && !chunk.items.is_empty());
}

#[test]
fn what_has_expired_is_not_shown() {
    let mut applier = fill(SimulatedStore::new(), &BTreeMap::new());
    let mut apply = |index, batch: &mut MutationBatch, clock| {
        let entries = vec![Entry { index: LogIndex(index), term: Term(1), kind: EntryKind::Normal, data: batch.finish(Timestamp(clock)) }];
        let group = GroupApply { replica: shard(0), entries, memberships: vec![], answers_wanted: false };
        applier.apply(ApplyJob { groups: vec![group] }).unwrap();
        let ask = ask(KeyRange::default(), (9, 1 << 20), false);
        let (chunk, _) = run_scan(applier.store(), &job(&ask, 0..SHARDS)).unwrap();
        chunk.items.iter().map(|item| item.key.as_bytes()[0]).collect::<Vec<u8>>()
    };
    let key = |name: u8| Key::new(vec![name]).unwrap();
    let mut batch = MutationBatch::new();
    batch.put_expiring(&key(b'a'), b"", Duration::from_millis(10), &Condition::ALWAYS);
    batch.put(&key(b'b'), b"", &Condition::ALWAYS);
    batch.put_expiring(&key(b'c'), b"", Duration::from_millis(11), &Condition::ALWAYS);
    assert_eq!(apply(2, &mut batch, 100), b"abc");
    batch.put(&key(b'd'), b"", &Condition::ALWAYS);
    assert_eq!(apply(3, &mut batch, 110), b"bcd", "at its very deadline a key is gone");
}
