//! Scrubs at the state machine: the view is at the mark in whatever company that is applied, and what was lost, changed or
//! damaged shows.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use flotilla_node::state_machine::{
    Applier, ApplyJob, GroupApplied, GroupApply, MutationBatch, ReplicaState, ScrubMark, ScrubStep, SnapshotReader, StateMachineFaults,
};
use flotilla_storage::store::layout::{self, CHECKSUM_BYTES, GENERATION_PREFIX_BYTES};
use flotilla_storage::store::{EngineOptions, EngineStore, SimulatedStore, StateStore};
use flotilla_types::{
    Condition, Entry, EntryKind, GroupId, Key, LogIndex, Member, Membership, NodeId, ReplicaId, ReplicaKey, Term, Timestamp,
};

/// As docs/formats.md has it.
const MARK: &[u8] = &[0x80, 1];

fn replica(group: u32, id: u64) -> ReplicaKey {
    ReplicaKey { group: GroupId(group), replica: ReplicaId(id) }
}

fn entry(index: u64, data: Bytes) -> Entry {
    Entry { index: LogIndex(index), term: Term(1), kind: EntryKind::Normal, data }
}

fn put(index: u64, key: u64) -> Entry {
    let mut batch = MutationBatch::new();
    batch.put(&Key::new(format!("key{key}")).unwrap(), &[index as u8; 300], &Condition::ALWAYS);
    entry(index, batch.finish(Timestamp(index)))
}

/// Entries 1 to 40 with a mark at 20; before and behind it the same keys are written.
fn entries() -> Vec<Entry> {
    (1..=40).map(|index| if index == 20 { entry(20, Bytes::from_static(MARK)) } else { put(index, index % 13) }).collect()
}

fn applier<S: StateStore>(store: S, replicas: &[ReplicaKey]) -> Applier<S> {
    let (mut applier, _) = Applier::open(store, StateMachineFaults::default()).unwrap();
    let membership = Membership::of_voters([Member { replica: ReplicaId(1), node: NodeId(9) }]);
    for replica in replicas {
        applier.create(*replica, ReplicaState::new(membership.clone())).unwrap();
    }
    applier
}

fn apply<S: StateStore>(applier: &mut Applier<S>, groups: Vec<(ReplicaKey, Vec<Entry>)>) -> Vec<GroupApplied> {
    let group = |(replica, entries)| GroupApply { replica, entries, memberships: vec![], answers_wanted: true };
    applier.apply(ApplyJob { groups: groups.into_iter().map(group).collect() }).unwrap()
}

/// Reads a view to its end, and says in how many steps.
fn read<S: StateStore>(applier: &mut Applier<S>, replica: ReplicaKey, bytes_max: u64) -> (ScrubStep, u64) {
    for steps in 1.. {
        match applier.scrub(replica, LogIndex(20), bytes_max).unwrap() {
            ScrubStep::More { bytes } => assert!(bytes >= bytes_max),
            ScrubStep::Done { hash, .. } => return (ScrubStep::Done { bytes: 0, hash }, steps),
            other => return (other, steps),
        }
    }
    unreachable!()
}

/// The hash at the mark, with all in one job.
fn hash_on<S: StateStore>(store: S) -> ScrubStep {
    let key = replica(5, 2);
    let mut applier = applier(store, &[key]);
    let applied = apply(&mut applier, vec![(key, entries())]).remove(0);
    assert_eq!(applied.scrub, Some(ScrubMark { index: LogIndex(20), term: Term(1), is_open: true }));
    assert_eq!(applied.applied.0, LogIndex(40));
    assert_eq!(applied.answers.len(), 39, "each entry but the mark is answered");
    read(&mut applier, key, 1 << 20).0
}

#[test]
fn the_view_is_at_the_mark_in_whatever_company_it_is_applied() {
    let (key, before, behind) = (replica(5, 1), replica(4, 1), replica(6, 1));
    let mut one_by_one = applier(SimulatedStore::new(), &[key]);
    for entry in entries() {
        apply(&mut one_by_one, vec![(key, vec![entry])]);
    }
    let (alone, steps) = read(&mut one_by_one, key, 500);
    assert!(steps > 3, "small steps: {steps}");
    assert_eq!(read(&mut one_by_one, key, 500).0, ScrubStep::Gone, "a view is read once");

    let mut among_others = applier(SimulatedStore::new(), &[before, key, behind]);
    let others = || (1..=5).map(|index| put(index, index)).collect();
    apply(&mut among_others, vec![(before, others()), (key, entries()), (behind, others())]);
    assert_eq!(read(&mut among_others, key, 1 << 20), (alone.clone(), 1));

    let folder = tempfile::tempdir().unwrap();
    let engine = EngineStore::open(folder.path(), EngineOptions::default()).unwrap();
    assert_eq!((hash_on(SimulatedStore::new()), hash_on(engine)), (alone.clone(), alone));
}

#[test]
fn a_crash_behind_the_mark_separates_no_group_from_its_applied_index() {
    let (key, before) = (replica(5, 1), replica(4, 1));
    let store = SimulatedStore::new();
    let mut applier = applier(store.clone(), &[before, key]);
    applier.persist().unwrap();
    apply(&mut applier, vec![(before, vec![put(1, 1)]), (key, entries())]);
    assert_eq!(store.unpersisted(), 2, "up to the mark, and behind it");
    let survivor = store.crash_keeping(1);
    let (found, states) = Applier::open(survivor, StateMachineFaults::default()).unwrap();
    assert_eq!((states[&key].applied.0, states[&before].applied.0), (LogIndex(20), LogIndex(1)));
    assert_eq!(found.state(key).unwrap().keys, 13);
}

#[test]
fn what_was_lost_changed_or_damaged_shows() {
    let key = replica(5, 1);
    let whole = hash_on(SimulatedStore::new());
    let tampered = |tamper: &dyn Fn(&SimulatedStore, &[u8], &Bytes)| {
        let store = SimulatedStore::new();
        let mut applier = applier(store.clone(), &[key]);
        apply(&mut applier, vec![(key, entries()[..19].to_vec())]);
        let prefix = layout::data_prefix(key, 1);
        let rows = store.rows();
        let (row, value) = rows.iter().find(|(row, _)| row.starts_with(&prefix)).unwrap();
        tamper(&store, row, value);
        apply(&mut applier, vec![(key, entries()[19..].to_vec())]);
        read(&mut applier, key, 1 << 20).0
    };
    assert_eq!(tampered(&|_, _, _| ()), whole);
    let lost = tampered(&|store, row, _| store.tamper(row, None));
    assert!(matches!(&lost, ScrubStep::Damaged(detail) if detail.contains("counts 13 keys at i20 and the store holds 12")), "{lost:?}");
    let changed = tampered(&|store, row, value| {
        let mut body = value[CHECKSUM_BYTES..].to_vec();
        *body.last_mut().unwrap() ^= 1;
        store.tamper(row, Some(layout::seal(&row[GENERATION_PREFIX_BYTES..], &body)));
    });
    assert!(matches!(changed, ScrubStep::Done { .. }) && changed != whole, "only the comparison tells: {changed:?}");
    let damaged = tampered(&|store, row, value| {
        let mut value = value.to_vec();
        *value.last_mut().unwrap() ^= 1;
        store.tamper(row, Some(value.into()));
    });
    assert!(matches!(&damaged, ScrubStep::Damaged(detail) if detail.contains("checksum")), "{damaged:?}");
}

#[test]
fn views_are_few_and_go_with_their_rows() {
    let all: Vec<ReplicaKey> = (1..=9).map(|group| replica(group, 1)).collect();
    let mut applier = applier(SimulatedStore::new(), &all);
    for (place, key) in all.iter().enumerate() {
        let applied = apply(&mut applier, vec![(*key, entries())]).remove(0);
        assert_eq!(applied.scrub.unwrap().is_open, place < 8, "{place}");
    }
    assert_eq!(read(&mut applier, all[8], 1 << 20).0, ScrubStep::Gone, "it never was");
    // Destroyed, closed, and replaced by a snapshot.
    applier.destroy(all[0]).unwrap();
    applier.close_scrub(all[1]);
    let mut reader = SnapshotReader::open(applier.store().view().unwrap(), all[3]).unwrap().unwrap();
    applier.begin_install(all[2], 2).unwrap();
    while let Some(chunk) = reader.next_chunk(1 << 20).unwrap() {
        applier.install_rows(all[2], 2, chunk).unwrap();
    }
    applier.finish_install(all[2], 2, reader.state().clone()).unwrap();
    for key in &all[..3] {
        assert_eq!(read(&mut applier, *key, 1 << 20).0, ScrubStep::Gone);
    }
    assert!(matches!(read(&mut applier, all[3], 1 << 20).0, ScrubStep::Done { .. }));
    // A newer mark replaces the older view.
    apply(&mut applier, vec![(all[4], vec![entry(41, Bytes::from_static(MARK))])]);
    assert_eq!(applier.scrub(all[4], LogIndex(20), 1 << 20).unwrap(), ScrubStep::Gone);
    assert!(matches!(applier.scrub(all[4], LogIndex(41), 1 << 20).unwrap(), ScrubStep::Done { .. }));
}
