//! The state machine against a simple model, on the simulated store with crashes, and on the real one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use flotilla_node::control::{ControlAnswer, ControlCommand, ControlState, Formats, NodeProfile};
use flotilla_node::request::{RequestId, WriteRefusal};
use flotilla_node::state_machine::{
    Applier, ApplyError, ApplyJob, CHECKPOINT_EVERY, ChunkError, ENTRY_KEYS_MAX, GroupApplied, GroupApply, InstallError, MutationBatch,
    MutationError, MutationResult, RETENTION_MS, ReplicaState, SnapshotReader, StateMachineFaults, StopReason, read,
};
use flotilla_storage::store::layout::{CHUNK_BYTES, Filing, INLINE_VALUE_BYTES_MAX};
use flotilla_storage::store::simulated::{InjectedFault, SimulatedView};
use flotilla_storage::store::{EngineOptions, EngineStore, SimulatedStore, StateStore, StoreError, WriteBatch};
use flotilla_types::{
    ClusterId, Condition, Entry, EntryKind, GroupId, Key, LogIndex, Match, Member, Membership, NodeId, ReplicaId, ReplicaKey, Rng, Term,
    Timestamp, Version,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const NO_FAULTS: StateMachineFaults = StateMachineFaults {
    apply_twice_after_restart: false,
    applied_index_apart: false,
    conditions_ignored: false,
    snapshot_switched_before_durable: false,
    table_not_in_snapshot: false,
};
const SIZES: [usize; 6] = [0, 5, INLINE_VALUE_BYTES_MAX, INLINE_VALUE_BYTES_MAX + 1, CHUNK_BYTES + 1, 3 * CHUNK_BYTES];

#[derive(Clone, Debug)]
struct Op {
    key: u8,
    change: Change,
    condition: Condition,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    /// An index into [`SIZES`].
    Put(usize),
    Delete,
    Increment(i64),
}

/// The simplest thing that does the same.
#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    keys: BTreeMap<Key, (Version, Bytes)>,
    version: u64,
}

fn replica(group: u32, id: u64) -> ReplicaKey {
    ReplicaKey { group: GroupId(group), replica: ReplicaId(id) }
}

/// Where a replica's rows are that never had another generation.
fn first_filing(under: ReplicaKey) -> Filing {
    Filing { under, generation: 1 }
}

fn key(number: u8) -> Key {
    Key::new(format!("key{number}")).unwrap()
}

/// Bytes that tell which entry wrote them.
fn value(size: usize, index: u64) -> Bytes {
    (0..size).map(|at| (at as u64 * 7 + index) as u8).collect()
}

fn normal(index: u64, data: Bytes) -> Entry {
    Entry { index: LogIndex(index), term: Term(1 + index / 10), kind: EntryKind::Normal, data }
}

fn entry(index: u64, ops: &[Op]) -> Entry {
    let mut batch = MutationBatch::new();
    for op in ops {
        match op.change {
            Change::Put(size) => batch.put(&key(op.key), &value(SIZES[size], index), &op.condition),
            Change::Delete => batch.delete(&key(op.key), &op.condition),
            Change::Increment(by) => batch.increment(&key(op.key), by, &op.condition),
        };
    }
    normal(index, batch.finish(Timestamp(index * 100)))
}

/// `size` is an index into [`SIZES`].
fn put(index: u64, number: u8, size: usize) -> Entry {
    entry(index, &[Op { key: number, change: Change::Put(size % SIZES.len()), condition: Condition::ALWAYS }])
}

fn job(replica: ReplicaKey, entries: &[Entry]) -> ApplyJob {
    ApplyJob { groups: vec![GroupApply { replica, entries: entries.to_vec(), memberships: vec![], answers_wanted: true }] }
}

fn membership() -> Membership {
    Membership::of_voters([Member { replica: ReplicaId(1), node: NodeId(9) }])
}

/// A store with one fresh replica.
fn fresh<S: StateStore>(store: S, replica: ReplicaKey) -> Applier<S> {
    let (mut applier, _) = Applier::open(store, NO_FAULTS).unwrap();
    applier.create(replica, ReplicaState::new(membership())).unwrap();
    applier
}

fn apply_one<S: StateStore>(applier: &mut Applier<S>, replica: ReplicaKey, entries: &[Entry]) -> GroupApplied {
    applier.apply(job(replica, entries)).unwrap().remove(0)
}

impl Model {
    fn apply(&mut self, index: u64, ops: &[Op]) -> Vec<MutationResult> {
        ops.iter().map(|op| self.apply_op(index, op)).collect()
    }

    fn apply_op(&mut self, index: u64, op: &Op) -> MutationResult {
        let key = key(op.key);
        let present = self.keys.get(&key).map(|(version, _)| *version);
        if !op.condition.holds(present) {
            return MutationResult::ConditionFailed { present };
        }
        match op.change {
            Change::Put(size) => {
                self.version += 1;
                self.keys.insert(key, (Version(self.version), value(SIZES[size], index)));
                MutationResult::Put { version: Version(self.version), created: present.is_none() }
            }
            Change::Delete => {
                self.version += u64::from(present.is_some());
                self.keys.remove(&key);
                MutationResult::Deleted { deleted: present.is_some() }
            }
            Change::Increment(by) => {
                let before = self.keys.get(&key).map_or("0".into(), |(_, value)| String::from_utf8_lossy(value).into_owned());
                let Ok(before) = before.parse::<i64>() else { return MutationResult::Refused(WriteRefusal::NotAnInteger) };
                let Some(value) = before.checked_add(by) else { return MutationResult::Refused(WriteRefusal::Overflow) };
                self.version += 1;
                self.keys.insert(key, (Version(self.version), value.to_string().into()));
                MutationResult::Incremented { value, version: Version(self.version) }
            }
        }
    }

    fn of(entries: &[Vec<Op>]) -> Model {
        let mut model = Model::default();
        for (at, ops) in entries.iter().enumerate() {
            model.apply(at as u64 + 1, ops);
        }
        model
    }

    /// How many rows it takes: one a key, and the chunks of long values.
    fn rows(&self) -> usize {
        let chunks = |v: &Bytes| if v.len() > INLINE_VALUE_BYTES_MAX { v.len().div_ceil(CHUNK_BYTES) } else { 0 };
        self.keys.values().map(|(_, v)| 1 + chunks(v)).sum()
    }

    fn check<S: StateStore>(&self, store: &S, replica: ReplicaKey, state: &ReplicaState) {
        for number in 0..8 {
            let key = key(number);
            let expected = self.keys.get(&key).cloned();
            assert_eq!(read::get(store, replica, state.filing(replica), &key).unwrap(), expected, "{key}");
            let head = read::head(store, replica, state.filing(replica), &key).unwrap();
            assert_eq!(head, expected.map(|(version, value)| (version, value.len() as u64)));
        }
        assert_eq!(state.version, Version(self.version));
        assert_eq!(state.keys, self.keys.len() as u64);
        assert_eq!(state.bytes, self.keys.iter().map(|(k, (_, v))| (k.as_bytes().len() + v.len()) as u64).sum::<u64>());
    }
}

fn data_rows(store: &SimulatedStore) -> usize {
    store.rows().iter().filter(|(key, _)| key[0] == 1).count()
}

fn any_match() -> impl Strategy<Value = Option<Match>> {
    prop_oneof![
        4 => Just(None),
        1 => Just(Some(Match::Any)),
        1 => proptest::collection::vec((1..20u64).prop_map(Version), 0..4).prop_map(|v| Some(Match::Versions(v))),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    let condition = (any_match(), any_match()).prop_map(|(if_match, if_none_match)| Condition { if_match, if_none_match });
    let increment = || prop_oneof![3 => -5..5i64, 1 => Just(i64::MAX - 3)].prop_map(Change::Increment);
    let change = prop_oneof![6 => (0..SIZES.len()).prop_map(Change::Put), 2 => Just(Change::Delete), 1 => increment()];
    // The last two keys are counters, most of the time.
    let counter = prop_oneof![1 => change.clone(), 1 => Just(Change::Delete), 6 => increment()];
    let any = prop_oneof![3 => (0..3u8, change), 2 => (3..5u8, counter)];
    (any, condition).prop_map(|((key, change), condition)| Op { key, change, condition })
}

fn any_entries() -> impl Strategy<Value = Vec<Vec<Op>>> {
    proptest::collection::vec(proptest::collection::vec(any_op(), 0..4), 1..20)
}

fn entries_of(ops: &[Vec<Op>]) -> Vec<Entry> {
    ops.iter().enumerate().map(|(at, ops)| entry(at as u64 + 1, ops)).collect()
}

/// Applies in jobs of chance lengths, checking each answer.
fn apply_in_jobs<S: StateStore>(applier: &mut Applier<S>, replica: ReplicaKey, ops: &[Vec<Op>], rng: &mut Rng) {
    let entries = entries_of(ops);
    let applied = |applier: &Applier<S>| applier.state(replica).unwrap().applied.0.0 as usize;
    while applied(applier) < entries.len() {
        let from = applied(applier);
        let to = rng.between(from as u64 + 1, entries.len() as u64) as usize;
        // Some that were applied already come again.
        let again = rng.below(from as u64 + 1) as usize;
        let result = apply_one(applier, replica, &entries[again..to]);
        let mut model = Model::of(&ops[..from]);
        let expected: Vec<_> =
            (from..to).map(|at| (LogIndex(at as u64 + 1), entries[at].term, model.apply(at as u64 + 1, &ops[at]))).collect();
        assert_eq!(result.answers, expected);
        assert_eq!(result.applied.0, LogIndex(to as u64));
        model.check(applier.store(), replica, applier.state(replica).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replicas_equal_the_model_whatever_the_jobs_and_crashes(ops in any_entries(), seed: u64) {
        let (a, mut rng) = (replica(3, 1), Rng::new(seed));
        let mut applier = fresh(SimulatedStore::new(), a);
        applier.persist().unwrap();
        for _ in 0..3 {
            let end = rng.below(ops.len() as u64 + 1) as usize;
            apply_in_jobs(&mut applier, a, &ops[..end], &mut rng);
            if rng.chance(1, 3) {
                let durable = applier.persist().unwrap();
                prop_assert_eq!(durable[&a], applier.state(a).unwrap().applied.0);
            }
            let (reopened, states) = Applier::open(applier.store().crash(&mut rng), NO_FAULTS).unwrap();
            let survived = states[&a].applied.0.0 as usize;
            Model::of(&ops[..survived]).check(reopened.store(), a, &states[&a]);
            applier = reopened;
        }
        apply_in_jobs(&mut applier, a, &ops, &mut rng);
        let model = Model::of(&ops);
        prop_assert_eq!(data_rows(applier.store()), model.rows(), "no chunk row is left over");

        // Another replica, under another id, all at once: the same state, the same hash.
        let b = replica(3, 2);
        let mut other = fresh(SimulatedStore::new(), b);
        apply_one(&mut other, b, &entries_of(&ops));
        prop_assert_eq!(other.state(b), applier.state(a));
    }

    #[test]
    fn an_installed_snapshot_equals_its_source_and_a_crash_leaves_all_or_nothing(
        before in any_entries(), more in any_entries(), bytes_max in 100..200_000usize,
    ) {
        let (a, b) = (replica(3, 1), replica(3, 2));
        let ops = [before.clone(), more].concat();
        let mut source = fresh(SimulatedStore::new(), a);
        apply_one(&mut source, a, &entries_of(&ops));
        let (snapshot, chunks) = read_snapshot(&mut source, a, bytes_max, &[put(ops.len() as u64 + 1, 7, 9)]);
        let (old, new) = (Model::of(&before), Model::of(&ops));

        let watched = Watched::default();
        let mut target = fresh(watched.clone(), b);
        apply_one(&mut target, b, &entries_of(&before));
        target.persist().unwrap();
        let old_state = target.state(b).unwrap().clone();
        watched.crashes.lock().unwrap().clear();

        let generation = old_state.next_generation();
        target.begin_install(b, generation).unwrap();
        for chunk in chunks {
            target.install_rows(b, generation, chunk).unwrap();
        }
        let installed = target.finish_install(b, generation, snapshot.clone()).unwrap();
        prop_assert_eq!(comparable(&installed), comparable(&snapshot));
        new.check(&watched, b, &installed);
        prop_assert_eq!(watched.store.unpersisted(), 0, "the switch is durable before it is reported");
        while target.sweep(3).unwrap() {}

        let mut switched = 0;
        for crashed in watched.crashes.lock().unwrap().drain(..) {
            let (mut reopened, states) = Applier::open(crashed.clone(), NO_FAULTS).unwrap();
            let state = &states[&b];
            let model = if state.generation == generation { &new } else { &old };
            switched += usize::from(state.generation == generation);
            prop_assert_eq!(state.applied, if state.generation == generation { snapshot.applied } else { old_state.applied });
            model.check(&crashed, b, state);
            while reopened.sweep(7).unwrap() {}
            prop_assert_eq!(data_rows(&crashed), model.rows(), "what is not in force was swept");
        }
        prop_assert!(switched > 0);
    }
}

/// Notes what a crash right behind each batch would leave.
#[derive(Clone, Default)]
struct Watched {
    store: SimulatedStore,
    crashes: Arc<Mutex<Vec<SimulatedStore>>>,
}

impl StateStore for Watched {
    type View = SimulatedView;
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.get(key)
    }
    fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        self.store.write(batch)?;
        self.crashes.lock().unwrap().push(self.store.survivor(self.store.unpersisted()));
        Ok(())
    }
    fn persist(&self) -> Result<(), StoreError> {
        self.store.persist()
    }
    fn view(&self) -> Result<SimulatedView, StoreError> {
        self.store.view()
    }
    fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }
}

/// A snapshot's state and chunks; `later` is applied once its view is open and must not be in it.
fn read_snapshot<S: StateStore>(
    applier: &mut Applier<S>,
    replica: ReplicaKey,
    bytes_max: usize,
    later: &[Entry],
) -> (ReplicaState, Vec<Bytes>) {
    let mut reader = SnapshotReader::open(applier.store().view().unwrap(), replica).unwrap().unwrap();
    apply_one(applier, replica, later);
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk(bytes_max).unwrap() {
        chunks.push(chunk);
    }
    assert!(reader.is_finished());
    (reader.state().clone(), chunks)
}

/// A state without what is a replica's own affair.
fn comparable(state: &ReplicaState) -> ReplicaState {
    ReplicaState { generation: 0, generation_highest: 0, ..state.clone() }
}

#[test]
fn the_real_store_does_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b, mut rng) = (replica(3, 1), replica(4, 2), Rng::new(7));
    let ops: Vec<Vec<Op>> = (0..60)
        .map(|_| {
            let op = |rng: &mut Rng| Op {
                key: rng.below(5) as u8,
                change: if rng.chance(3, 4) { Change::Put(rng.below(SIZES.len() as u64) as usize) } else { Change::Delete },
                condition: Condition::ALWAYS,
            };
            (0..rng.below(4)).map(|_| op(&mut rng)).collect()
        })
        .collect();
    let open = || EngineStore::open(folder.path(), EngineOptions::default()).unwrap();
    let mut applier = fresh(open(), a);
    apply_in_jobs(&mut applier, a, &ops[..30], &mut rng);
    applier.persist().unwrap();
    drop(applier);
    let (mut applier, states) = Applier::open(open(), NO_FAULTS).unwrap();
    assert_eq!(states[&a].applied.0, LogIndex(30));
    apply_in_jobs(&mut applier, a, &ops, &mut rng);

    let (snapshot, chunks) = read_snapshot(&mut applier, a, 50_000, &[put(61, 7, 9)]);
    applier.create(b, ReplicaState::new(membership())).unwrap();
    applier.begin_install(b, 2).unwrap();
    for chunk in chunks {
        applier.install_rows(b, 2, chunk).unwrap();
    }
    let installed = applier.finish_install(b, 2, snapshot).unwrap();
    Model::of(&ops).check(applier.store(), b, &installed);
    applier.destroy(a).unwrap();
    while applier.sweep(10).unwrap() {}
    assert_eq!(read::get(applier.store(), a, first_filing(a), &key(7)).unwrap(), None);
    assert!(applier.store().disk_bytes() > 0);

    // The hash is the simulated store's.
    let mut other = fresh(SimulatedStore::new(), a);
    apply_one(&mut other, a, &entries_of(&ops));
    assert_eq!(other.state(a).unwrap().hash, installed.hash);
}

#[test]
fn only_the_next_intact_chunk_is_taken() {
    let (a, b) = (replica(3, 1), replica(3, 2));
    let mut source = fresh(SimulatedStore::new(), a);
    let entries: Vec<Entry> = (0..6).map(|n| put(n + 1, n as u8, 3)).collect();
    apply_one(&mut source, a, &entries);
    let (state, chunks) = read_snapshot(&mut source, a, 60, &[]);
    assert!(chunks.len() > 3);
    let mut target = fresh(SimulatedStore::new(), b);
    let mut attempt = |given: &[Bytes], finish: bool| {
        target.begin_install(b, 2).unwrap();
        for chunk in given {
            match target.install_rows(b, 2, chunk.clone()) {
                Ok(()) => {}
                Err(InstallError::Refused { source, .. }) => return Some(source),
                Err(other) => panic!("{other}"),
            }
        }
        match finish.then(|| target.finish_install(b, 2, state.clone())) {
            Some(Err(InstallError::Refused { source, .. })) => Some(source),
            Some(Ok(_)) | None => None,
            Some(Err(other)) => panic!("{other}"),
        }
    };
    let order = |expected, found| Some(ChunkError::Order { expected, found });
    assert_eq!(attempt(&[chunks[0].clone(), chunks[0].clone()], false), order(1, 0), "repeated");
    assert_eq!(attempt(&[chunks[0].clone(), chunks[2].clone()], false), order(1, 2), "missing");
    assert_eq!(attempt(&[chunks[1].clone()], false), order(0, 1), "out of order");
    assert!(matches!(attempt(&chunks[..chunks.len() - 1], true), Some(ChunkError::Incomplete(_))), "no end");
    let mut too_many = chunks.clone();
    too_many.push(chunks[chunks.len() - 1].clone());
    assert!(matches!(attempt(&too_many, false), Some(ChunkError::Incomplete(_))), "behind the end");
    for bit in 0..chunks[0].len() * 8 {
        let mut wrong = chunks[0].to_vec();
        wrong[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(attempt(&[wrong.into()], false), Some(ChunkError::Checksum), "bit {bit}");
    }
    assert_eq!(attempt(&chunks, true), None);
}

#[test]
fn what_one_replica_does_not_know_stops_it_alone_at_the_entry_before() {
    let (a, b) = (replica(1, 1), replica(2, 2));
    let mut applier = fresh(SimulatedStore::new(), a);
    applier.create(b, ReplicaState::new(membership())).unwrap();
    // A put that is fine and then a kind nobody knows: nothing of the entry may happen.
    let mut bad = put(2, 1, 1).data.to_vec();
    bad.push(200);
    let mut both = job(a, &[put(1, 0, 1), normal(2, bad.into()), put(3, 2, 1)]);
    both.groups.extend(job(b, &[put(1, 0, 1)]).groups);
    let results = applier.apply(both).unwrap();
    let source = MutationError::UnknownKind(200);
    assert_eq!(results[0].stopped, Some(StopReason::UnknownEntry { index: LogIndex(2), source }));
    assert_eq!((results[0].applied.0, results[0].keys), (LogIndex(1), 1));
    assert_eq!((results[1].stopped.clone(), results[1].applied.0), (None, LogIndex(1)));
    let (_, states) = Applier::open(applier.store().clone(), NO_FAULTS).unwrap();
    let mut reference = fresh(SimulatedStore::new(), a);
    apply_one(&mut reference, a, &[put(1, 0, 1)]);
    assert_eq!(&states[&a], reference.state(a).unwrap());
    assert_eq!(data_rows(applier.store()), 2);
    assert!(apply_one(&mut applier, a, &[put(2, 1, 1)]).stopped.is_some(), "it stays stopped");
}

#[test]
fn damage_is_found_by_reads_apply_and_snapshots_and_stops_one_replica() {
    for seed in 0..40 {
        let (a, mut rng) = (replica(1, 1), Rng::new(seed));
        let mut applier = fresh(SimulatedStore::new(), a);
        apply_one(&mut applier, a, &[put(1, 0, 1), put(2, 1, 1)]);
        let store = applier.store().clone();
        let damaged = store.flip_bit(&mut rng).unwrap();
        if damaged[0] == 0 {
            let (reopened, states) = Applier::open(store, NO_FAULTS).unwrap();
            assert!(states.is_empty());
            assert_eq!(reopened.damaged()[0].0, a);
            continue;
        }
        let number = damaged[damaged.len() - 1] - b'0';
        assert!(read::get(&store, a, first_filing(a), &key(number)).is_err());
        assert!(read::get(&store, a, first_filing(a), &key(1 - number)).unwrap().is_some());
        let mut reader = SnapshotReader::open(store.view().unwrap(), a).unwrap().unwrap();
        assert!(matches!(reader.next_chunk(1 << 20), Err(StoreError::Damaged(_))));
        let result = apply_one(&mut applier, a, &[put(3, number, 1)]);
        assert!(matches!(result.stopped, Some(StopReason::Damaged(_))));
        assert_eq!(result.applied.0, LogIndex(2));
    }
}

/// An entry of increments of one counter under request ids.
fn once(index: u64, clock: u64, requests: &[(u128, i64)]) -> Entry {
    let mut batch = MutationBatch::new();
    for (id, by) in requests {
        batch.idempotent(RequestId(*id));
        batch.increment(&key(0), *by, &Condition::ALWAYS);
    }
    normal(index, batch.finish(Timestamp(clock)))
}

/// What these entries were answered, all of them.
fn answers(applied: &GroupApplied) -> Vec<MutationResult> {
    applied.answers.iter().flat_map(|(_, _, answers)| answers.clone()).collect()
}

fn sum(value: i64, version: u64) -> MutationResult {
    MutationResult::Incremented { value, version: Version(version) }
}

#[test]
fn a_request_takes_effect_once_whatever_the_jobs_restarts_and_snapshots() {
    let (a, b, c) = (replica(3, 1), replica(3, 2), replica(3, 3));
    let entries = [once(1, 10, &[(1, 5), (1, 5)]), once(2, 20, &[(2, 1), (1, 5), (1, 6)]), once(3, 30, &[(2, 1)])];
    let reused = MutationResult::Refused(WriteRefusal::IdReused);
    let expected = [sum(5, 1), sum(5, 1), sum(6, 2), sum(5, 1), reused, sum(6, 2)];
    let mut at_once = fresh(SimulatedStore::new(), a);
    assert_eq!(answers(&apply_one(&mut at_once, a, &entries)), expected);

    let mut restarted = fresh(SimulatedStore::new(), b);
    let mut given = Vec::new();
    for entry in &entries {
        given.extend(answers(&apply_one(&mut restarted, b, std::slice::from_ref(entry))));
        restarted = Applier::open(restarted.store().clone(), NO_FAULTS).unwrap().0;
    }
    assert_eq!(given, expected);
    assert_eq!(restarted.state(b), at_once.state(a));

    let (state, chunks) = read_snapshot(&mut at_once, a, 60, &[]);
    let mut behind = fresh(SimulatedStore::new(), c);
    behind.begin_install(c, 2).unwrap();
    chunks.into_iter().for_each(|chunk| behind.install_rows(c, 2, chunk).unwrap());
    behind.finish_install(c, 2, state).unwrap();
    assert_eq!(answers(&apply_one(&mut behind, c, &[once(4, 40, &[(1, 5), (2, 1), (3, 1)])])), [sum(5, 1), sum(6, 2), sum(7, 3)]);
}

#[test]
fn requests_are_forgotten_after_their_time_and_not_before() {
    let late = RETENTION_MS + 10;
    let entries = [once(1, 10, &[(1, 1)]), once(2, 11, &[(2, 1)]), once(3, late - 1, &[(1, 1)]), once(4, late, &[(1, 1), (2, 1)])];
    let expected = [sum(1, 1), sum(2, 2), sum(1, 1), sum(3, 3), sum(2, 2)];
    let a = replica(1, 1);
    let (mut at_once, mut one_by_one) = (fresh(SimulatedStore::new(), a), fresh(SimulatedStore::new(), a));
    assert_eq!(answers(&apply_one(&mut at_once, a, &entries)), expected);
    entries.iter().for_each(|entry| drop(apply_one(&mut one_by_one, a, std::slice::from_ref(entry))));
    assert_eq!(at_once.store().rows(), one_by_one.store().rows());
    // Any entry sweeps, also one that asks for nothing.
    apply_one(&mut at_once, a, &[entry(5, &[]), once(6, 3 * late, &[])]);
    assert_eq!(data_rows(at_once.store()), 1, "the counter alone");
}

/// An entry of what `fill` appends, at this clock.
fn at(index: u64, clock: u64, fill: impl FnOnce(&mut MutationBatch)) -> Entry {
    let mut batch = MutationBatch::new();
    fill(&mut batch);
    normal(index, batch.finish(Timestamp(clock)))
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_key_is_absent_from_its_deadline_on() {
    let (a, always) = (replica(1, 1), Condition::ALWAYS);
    let if_absent = Condition { if_match: None, if_none_match: Some(Match::Any) };
    let lend = |index, clock, number: u8, text: &'static str, ms: u32| {
        at(index, clock, |batch| {
            batch.put_expiring(&key(number), text.as_bytes(), ms * MS, &Condition::ALWAYS);
        })
    };
    let entries = [
        lend(1, 100, 0, "v", 50),
        at(2, 149, |batch| {
            batch.put(&key(0), b"x", &if_absent);
        }),
        at(3, 150, |batch| {
            batch.delete(&key(0), &Condition { if_match: Some(Match::Any), if_none_match: None });
        }),
        at(4, 120, |batch| {
            batch.put(&key(0), b"w", &if_absent);
        }),
        at(5, 160, |batch| {
            batch.expire(&key(0));
        }),
        lend(6, 160, 0, "7", 10),
        at(7, 170, |batch| {
            batch.increment(&key(0), 1, &always);
        }),
        lend(8, 170, 1, "5", 10),
        at(9, 175, |batch| {
            batch.increment(&key(1), 1, &always);
        }),
        lend(10, 175, 2, "z", 1),
        at(11, 180, |batch| {
            (0..3).for_each(|number| {
                batch.expire(&key(number));
            })
        }),
    ];
    let put = |version, created| MutationResult::Put { version: Version(version), created };
    let deleted = |deleted| MutationResult::Deleted { deleted };
    let failed = |present: Option<u64>| MutationResult::ConditionFailed { present: present.map(Version) };
    let expected = [
        put(1, true),
        failed(Some(1)),
        failed(None),
        put(2, true),
        deleted(false),
        put(3, false),
        sum(1, 4),
        put(5, true),
        sum(6, 6),
        put(7, true),
        deleted(false),
        deleted(true),
        deleted(true),
    ];
    let (mut at_once, mut one_by_one) = (fresh(SimulatedStore::new(), a), fresh(SimulatedStore::new(), a));
    let applied = apply_one(&mut at_once, a, &entries);
    assert_eq!(answers(&applied), expected);
    assert_eq!((applied.clock, applied.deadline), (Timestamp(180), Some(Timestamp(150))));
    let seen: Vec<bool> = entries
        .iter()
        .map(|entry| {
            apply_one(&mut one_by_one, a, std::slice::from_ref(entry));
            let there = read::get(one_by_one.store(), a, first_filing(a), &key(0)).unwrap();
            assert_eq!(read::head(one_by_one.store(), a, first_filing(a), &key(0)).unwrap().is_some(), there.is_some());
            there.is_some()
        })
        .collect();
    assert_eq!(seen, [true, true, false, true, true, true, true, true, true, true, true], "gone at 150 exactly");
    assert_eq!(at_once.store().rows(), one_by_one.store().rows());
    assert_eq!((data_rows(at_once.store()), at_once.state(a).unwrap().keys), (1, 1), "no row of the expired keys is left");
}

#[test]
fn expired_keys_are_named_until_they_are_deleted() {
    let (a, always) = (replica(1, 1), Condition::ALWAYS);
    let mut applier = fresh(SimulatedStore::new(), a);
    let lend = |batch: &mut MutationBatch, number: u8, ms: u32| {
        batch.put_expiring(&key(number), b"v", ms * MS, &always);
    };
    let first = at(1, 100, |batch| [(0, 30), (1, 20), (2, 40)].into_iter().for_each(|(number, ms)| lend(batch, number, ms)));
    apply_one(&mut applier, a, &[first]);
    let find = |applier: &mut Applier<SimulatedStore>, clock| {
        let found = applier.find_expired(a, Timestamp(clock)).unwrap().unwrap();
        (found.keys, found.next.map(|next| next.0))
    };
    assert_eq!(find(&mut applier, 119), (vec![], Some(120)));
    assert_eq!(find(&mut applier, 130), (vec![key(1), key(0)], Some(140)));
    // Nothing came of that, and one of them got another value.
    apply_one(
        &mut applier,
        a,
        &[at(2, 100, |batch| {
            batch.put(&key(0), b"w", &always);
        })],
    );
    assert_eq!(find(&mut applier, 130).0, [key(1)]);
    // A deadline before what was gone through already.
    apply_one(
        &mut applier,
        a,
        &[
            at(3, 101, |batch| {
                batch.expire(&key(1));
            }),
            at(4, 102, |batch| lend(batch, 3, 3)),
        ],
    );
    assert_eq!(find(&mut applier, 130).0, [key(1)], "the clock of entry 3 had not come so far");
    apply_one(
        &mut applier,
        a,
        &[at(5, 130, |batch| {
            batch.expire(&key(1));
        })],
    );
    assert_eq!(find(&mut applier, 0), (vec![key(3)], Some(140)), "by the shard's clock");
    let rest = at(6, 150, |batch| {
        [2, 3].iter().for_each(|number| {
            batch.expire(&key(*number));
        })
    });
    apply_one(&mut applier, a, &[rest]);
    assert_eq!(find(&mut applier, 1000), (vec![], None));
    let (mut reopened, _) = Applier::open(applier.store().clone(), NO_FAULTS).unwrap();
    assert_eq!(find(&mut reopened, 1000), (vec![], None));
    assert_eq!(data_rows(applier.store()), 1);
}

#[test]
fn no_more_expired_keys_are_named_than_an_entry_deletes() {
    let a = replica(1, 1);
    let mut applier = fresh(SimulatedStore::new(), a);
    let lend = |batch: &mut MutationBatch, number: usize| {
        let key = Key::new(format!("k{number}")).unwrap();
        {
            batch.put_expiring(&key, b"v", MS, &Condition::ALWAYS);
        };
    };
    let all: Vec<Entry> =
        (0..3).map(|n| at(n + 1, 10, |batch| (0..ENTRY_KEYS_MAX).for_each(|k| lend(batch, n as usize * 1000 + k)))).collect();
    apply_one(&mut applier, a, &all);
    for round in 0..3 {
        let found = applier.find_expired(a, Timestamp(50)).unwrap().unwrap();
        assert_eq!(found.keys.len(), ENTRY_KEYS_MAX);
        apply_one(
            &mut applier,
            a,
            &[at(4 + round, 50, |batch| {
                found.keys.iter().for_each(|key| {
                    batch.expire(key);
                })
            })],
        );
    }
    assert_eq!(applier.find_expired(a, Timestamp(50)).unwrap(), Ok(Default::default()));
    assert_eq!(data_rows(applier.store()), 0);
}

#[test]
fn checkpoints_are_taken_at_their_very_index() {
    let entries: Vec<Entry> = (1..=2 * CHECKPOINT_EVERY + 9).map(|i| put(i, (i % 5) as u8, 1)).collect();
    let a = replica(1, 1);
    let (mut at_once, mut one_by_one) = (fresh(SimulatedStore::new(), a), fresh(SimulatedStore::new(), a));
    let last = apply_one(&mut at_once, a, &entries).checkpoint.unwrap();
    let seen: Vec<_> = entries.iter().filter_map(|e| apply_one(&mut one_by_one, a, std::slice::from_ref(e)).checkpoint).collect();
    assert_eq!((seen.len(), seen[1]), (2, last));
    assert_eq!(last.0, LogIndex(2 * CHECKPOINT_EVERY));
    assert_eq!(at_once.state(a), one_by_one.state(a));
}

#[test]
fn the_hash_tells_states_apart() {
    let hash = |entries: &[Entry]| {
        let mut applier = fresh(SimulatedStore::new(), replica(1, 1));
        apply_one(&mut applier, replica(1, 1), entries);
        applier.state(replica(1, 1)).unwrap().hash
    };
    let histories = [vec![], vec![put(1, 0, 5)], vec![put(1, 1, 5)], vec![put(1, 0, 4)], vec![put(1, 0, 5), normal(2, Bytes::new())]];
    let hashes: std::collections::BTreeSet<u64> = histories.iter().map(|h| hash(h)).collect();
    assert_eq!(hashes.len(), histories.len());
}

#[test]
fn planted_faults_do_harm() {
    let a = replica(1, 1);
    let run = |faults: StateMachineFaults| {
        let (mut applier, _) = Applier::open(SimulatedStore::new(), faults).unwrap();
        applier.create(a, ReplicaState::new(membership())).unwrap();
        let exists = Condition { if_match: Some(Match::Any), if_none_match: None };
        let refused = entry(2, &[Op { key: 1, change: Change::Put(1), condition: exists }]);
        apply_one(&mut applier, a, &[put(1, 0, 1), refused, put(3, 0, 2)]);
        // Without the last batch: the state row, if it was written apart.
        let store = applier.store().crash_keeping(applier.store().unpersisted() - usize::from(faults.applied_index_apart));
        let (mut applier, states) = Applier::open(store, faults).unwrap();
        let applied = states[&a].applied.0.0 as usize;
        apply_one(&mut applier, a, &[put(1, 0, 1), entry(2, &[]), put(3, 0, 2)][applied..]);
        let (version, value) = read::get(applier.store(), a, first_filing(a), &key(0)).unwrap().unwrap();
        (version, value.len(), applier.state(a).unwrap().keys)
    };
    let right = run(NO_FAULTS);
    assert_eq!(right, (Version(2), SIZES[2], 1));
    assert_ne!(run(StateMachineFaults { apply_twice_after_restart: true, ..NO_FAULTS }), right);
    assert_ne!(run(StateMachineFaults { applied_index_apart: true, ..NO_FAULTS }), right);
    assert_ne!(run(StateMachineFaults { conditions_ignored: true, ..NO_FAULTS }), right);
}

#[test]
fn a_failed_store_ends_the_applier() {
    for (fault, full) in [(InjectedFault::DiskFull, true), (InjectedFault::Device, false)] {
        let a = replica(1, 1);
        let mut applier = fresh(SimulatedStore::new(), a);
        applier.store().fail_writes(fault);
        let error = applier.apply(job(a, &[put(1, 0, 1)])).unwrap_err();
        assert_eq!(matches!(error, ApplyError::Store(StoreError::DiskFull(_))), full);
        assert!(matches!(applier.apply(job(a, &[put(1, 0, 1)])), Err(ApplyError::FailedBefore)));
        assert!(matches!(applier.persist(), Err(ApplyError::FailedBefore)));
        let (_, states) = Applier::open(applier.store().crash_keeping(1), NO_FAULTS).unwrap();
        assert_eq!(states[&a].applied.0, LogIndex(0));
    }
}

#[test]
fn a_destroyed_replica_leaves_nothing() {
    let (a, b) = (replica(1, 1), replica(1, 2));
    let mut applier = fresh(SimulatedStore::new(), a);
    applier.create(b, ReplicaState::new(membership())).unwrap();
    apply_one(&mut applier, a, &(1..9).map(|i| put(i, i as u8, 4)).collect::<Vec<_>>());
    apply_one(&mut applier, b, &[put(1, 0, 1)]);
    applier.destroy(a).unwrap();
    assert_eq!(apply_one(&mut applier, a, &[put(9, 0, 0)]).stopped, Some(StopReason::NoState));
    // The sweep goes on after a restart.
    assert!(applier.sweep(2).unwrap());
    let (mut applier, states) = Applier::open(applier.store().clone(), NO_FAULTS).unwrap();
    assert_eq!(states.keys().copied().collect::<Vec<_>>(), [b]);
    while applier.sweep(2).unwrap() {}
    assert_eq!(applier.store().rows().len(), 2, "the state row and the key of the other replica");
}

#[test]
fn control_commands_change_rows_that_reopen_and_snapshots_bring_back() {
    let (a, b) = (replica(0, 1), replica(0, 2));
    let profile = |name: &str| NodeProfile {
        name: name.into(),
        http: None,
        peer: "p:1".into(),
        resp: None,
        zone: "z".into(),
        weight: 1,
        formats: Formats { min: 1, max: 1 },
    };
    let control = ControlState::genesis(ClusterId(5), NodeId(9), profile("n1"), 4, 3);
    let (mut applier, _) = Applier::open(SimulatedStore::new(), NO_FAULTS).unwrap();
    applier.create(a, ReplicaState { control: Some(control.clone().into()), ..ReplicaState::new(membership()) }).unwrap();
    let add = |n: u64| ControlCommand::AddNode { node: NodeId(n), profile: profile(&format!("n{n}")), replaces: None };
    let result = apply_one(&mut applier, a, &[normal(1, Bytes::new()), normal(2, add(20).encode()), normal(3, add(21).encode())]);
    let mut expected = control;
    let answers: Vec<_> = (20..22).map(|n| (LogIndex(n - 18), Term(1), expected.apply(&add(n)).answer)).collect();
    assert_eq!(answers[0].2, ControlAnswer::NodeAdded { node: NodeId(20) });
    assert_eq!(result.control_answers, answers);
    assert_eq!(result.control.as_deref(), Some(&expected));
    let (_, states) = Applier::open(applier.store().clone(), NO_FAULTS).unwrap();
    assert_eq!(states[&a].control.as_deref(), Some(&expected));

    let (state, chunks) = read_snapshot(&mut applier, a, 90, &[]);
    let mut other = fresh(SimulatedStore::new(), b);
    assert_eq!(apply_one(&mut other, b, &[normal(1, add(20).encode())]).stopped, Some(StopReason::NoControlState(LogIndex(1))));
    other.begin_install(b, 2).unwrap();
    for chunk in chunks {
        other.install_rows(b, 2, chunk).unwrap();
    }
    assert_eq!(other.finish_install(b, 2, state).unwrap().control.as_deref(), Some(&expected));
    assert_eq!(other.state(b).unwrap().hash, applier.state(a).unwrap().hash);
}

#[test]
fn memberships_are_stored_with_their_entry() {
    let a = replica(1, 1);
    let mut applier = fresh(SimulatedStore::new(), a);
    let change = Entry { kind: EntryKind::Membership, ..normal(1, Bytes::from_static(b"change")) };
    let mut next = membership();
    next.learners.insert(ReplicaId(8), NodeId(8));
    let mut job = job(a, &[change, put(2, 0, 0)]);
    job.groups[0].memberships = vec![(LogIndex(1), next.clone())];
    applier.apply(job).unwrap();
    let (_, states) = Applier::open(applier.store().clone(), NO_FAULTS).unwrap();
    assert_eq!(states[&a].membership, next);
}

/// What format 1 wrote: must be read for ever, and is written until there is a format 2.
#[test]
fn rows_of_the_first_format_stay_readable() {
    let a = replica(3, 1);
    let fixture: Vec<(Bytes, Bytes)> = include_str!("state_machine_v1.rows")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (key, value) = line.split_once(' ').unwrap();
            (unhex(key), unhex(value))
        })
        .collect();
    let mut today = fresh(SimulatedStore::new(), a);
    apply_one(&mut today, a, &[put(1, 0, 1), put(2, 1, 3), entry(3, &[])]);
    let written: String = today.store().rows().iter().map(|(key, value)| format!("{} {}\n", hex(key), hex(value))).collect();
    assert_eq!(today.store().rows(), fixture, "what is written now:\n{written}");

    let store = SimulatedStore::new();
    let mut batch = WriteBatch::default();
    fixture.iter().for_each(|(key, value)| batch.put(key.clone(), value.clone()));
    store.write(batch).unwrap();
    let (applier, states) = Applier::open(store, NO_FAULTS).unwrap();
    assert_eq!((states[&a].applied, states[&a].keys, states[&a].membership.clone()), ((LogIndex(3), Term(1)), 2, membership()));
    assert_eq!(read::get(applier.store(), a, first_filing(a), &key(0)).unwrap(), Some((Version(1), value(SIZES[1], 1))));
    assert_eq!(read::get(applier.store(), a, first_filing(a), &key(1)).unwrap(), Some((Version(2), value(SIZES[3], 2))));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Bytes {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}
