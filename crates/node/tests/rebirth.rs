//! A group's last copy becomes its only voter (decision record 0017): what the store does for it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use flotilla_node::boot::{self, GENESIS_START, Identity};
use flotilla_node::check;
use flotilla_node::control::{ControlCommand, ControlState, Formats, NodeProfile, NodeState, RebornGroup, Recovery};
use flotilla_node::state_machine::check::RowCheck;
use flotilla_node::state_machine::{
    Applier, ApplyJob, ControlRebirth, GroupApply, MutationBatch, RebirthJob, ReplicaState, SnapshotReader, StateMachineFaults,
    VERSION_MARGIN, read,
};
use flotilla_node::{Node, NodeConfig, Now, StoreJob};
use flotilla_storage::log::{LogRecord, Recovered, RecoveredReplica};
use flotilla_storage::store::layout::{self, CHUNK_BYTES, Filing};
use flotilla_storage::store::{SimulatedStore, StateStore};
use flotilla_types::{
    ClusterId, Condition, Entry, EntryKind, GroupId, HardState, Instant, Key, LogIndex, Member, Membership, NodeId, ReplicaId, ReplicaKey,
    Rng, Term, Timestamp, Version,
};
use std::sync::Arc;

const NODE: NodeId = NodeId(9);

fn replica(group: u32, id: u64) -> ReplicaKey {
    ReplicaKey { group: GroupId(group), replica: ReplicaId(id) }
}

fn key(number: u64) -> Key {
    Key::new(format!("key{number}")).unwrap()
}

fn value(number: u64) -> Bytes {
    Bytes::from(vec![number as u8; if number.is_multiple_of(2) { 5 } else { CHUNK_BYTES + 1 }])
}

fn put(index: u64) -> Entry {
    let mut batch = MutationBatch::new();
    batch.put(&key(index), &value(index), &Condition::ALWAYS);
    Entry { index: LogIndex(index), term: Term(2), kind: EntryKind::Normal, data: batch.finish(Timestamp(index)) }
}

fn job(from: Option<ReplicaKey>, to: ReplicaKey, entries: Vec<Entry>) -> RebirthJob {
    RebirthJob { to, node: NODE, from, entries, control: None }
}

fn open(store: SimulatedStore) -> Applier<SimulatedStore> {
    Applier::open(store, StateMachineFaults::default()).unwrap().0
}

/// A store in which `of` has applied entries 1 to `count`, one of three voters.
fn applied(of: ReplicaKey, count: u64) -> Applier<SimulatedStore> {
    let mut applier = open(SimulatedStore::new());
    let members = [(of.replica, NODE), (ReplicaId(77), NodeId(7)), (ReplicaId(78), NodeId(8))];
    let three = Membership::of_voters(members.map(|(replica, node)| Member { replica, node }));
    applier.create(of, ReplicaState::new(three)).unwrap();
    let entries = (1..=count).map(put).collect();
    applier.apply(ApplyJob { groups: vec![GroupApply { replica: of, entries, memberships: vec![], answers_wanted: false }] }).unwrap();
    applier
}

fn holds(store: &SimulatedStore, of: ReplicaKey, state: &ReplicaState, keys: impl IntoIterator<Item = u64>) {
    for number in keys {
        let found = read::get(store, of, state.filing(of), &key(number)).unwrap();
        assert_eq!(found.map(|(_, value)| value), Some(value(number)), "key {number}");
    }
    let mut check = RowCheck::default();
    for (key, value) in store.rows() {
        check.take(&key, &value, &mut |replica, what| panic!("{replica:?}: {what}"));
    }
    check.finish(&mut |replica, what| panic!("{replica:?}: {what}"));
}

fn rows_under(store: &SimulatedStore, under: ReplicaKey, generation: u32) -> usize {
    store.rows().into_iter().filter(|(key, _)| key.starts_with(&layout::data_prefix(under, generation))).count()
}

#[test]
fn the_last_copy_becomes_the_only_voter_with_all_of_its_log() {
    let (old, new) = (replica(1, 5), replica(1, 1 << 20));
    let mut applier = applied(old, 6);
    let before = applier.state(old).unwrap().clone();
    // The first of them is applied already: it was on its way when the log's end was taken.
    let state = applier.rebirth(job(Some(old), new, (6..=8).map(put).collect())).unwrap().unwrap();
    assert_eq!(applier.store().unpersisted(), 0, "it is durable before it is told");
    assert_eq!(state.applied, (LogIndex(8), Term(2)));
    assert_eq!(state.membership, Membership::of_voters([Member { replica: new.replica, node: NODE }]));
    assert!(state.version >= Version(before.version.0 + VERSION_MARGIN), "{}", state.version);
    assert_eq!((state.keys, state.filing(new)), (8, Filing { under: old, generation: 1 }), "its rows stay where they are");
    holds(applier.store(), new, &state, 1..=8);
    assert!(!read::is_in_force(applier.store(), old, 1).unwrap());

    // Asked again, it is done; and a restart finds it so.
    assert_eq!(applier.rebirth(job(Some(old), new, Vec::new())).unwrap().unwrap(), state);
    let store = applier.store().clone();
    let (mut applier, states) = Applier::open(store, StateMachineFaults::default()).unwrap();
    assert_eq!(states.into_iter().collect::<Vec<_>>(), [(new, state.clone())]);
    while applier.sweep(100).unwrap() {}

    // It goes on writing, and once more the majority is lost.
    let entries = vec![put(9)];
    applier.apply(ApplyJob { groups: vec![GroupApply { replica: new, entries, memberships: vec![], answers_wanted: false }] }).unwrap();
    let newer = replica(1, 2 << 20);
    let state = applier.rebirth(job(Some(new), newer, Vec::new())).unwrap().unwrap();
    holds(applier.store(), newer, &state, 1..=9);

    // A snapshot of it says nothing of where its rows lie.
    let mut reader = SnapshotReader::open(applier.store().view().unwrap(), newer).unwrap().unwrap();
    let copy = replica(1, (2 << 20) + 1);
    let mut target = open(SimulatedStore::new());
    target.create(copy, ReplicaState::new(Membership::default())).unwrap();
    target.begin_install(copy, 2).unwrap();
    while let Some(chunk) = reader.next_chunk(100_000).unwrap() {
        target.install_rows(copy, 2, chunk).unwrap();
    }
    let sent = ReplicaState::decode(reader.state().encode()).unwrap();
    let installed = target.finish_install(copy, 2, sent).unwrap();
    holds(target.store(), copy, &installed, 1..=9);

    // When it goes, so do its rows.
    assert!(rows_under(applier.store(), old, 1) > 0);
    applier.destroy(newer).unwrap();
    while applier.sweep(3).unwrap() {}
    assert_eq!(applier.store().rows(), []);
}

#[test]
fn a_shard_without_a_copy_begins_empty_above_all_versions() {
    let mut applier = open(SimulatedStore::new());
    let new = replica(2, 3 << 20);
    let state = applier.rebirth(job(None, new, Vec::new())).unwrap().unwrap();
    assert_eq!((state.applied, state.keys, state.filed_under), (GENESIS_START, 0, None));
    assert!(state.version >= Version(3 * VERSION_MARGIN), "the third recovery");
    holds(applier.store(), new, &state, []);
}

fn profile(name: &str) -> NodeProfile {
    NodeProfile {
        name: name.to_owned(),
        http: None,
        peer: format!("{name}:1"),
        resp: None,
        zone: String::new(),
        weight: 1,
        formats: Formats { min: 1, max: 1 },
    }
}

/// The store has made the new replica, and the log has no word of it: the crash came in between.
#[test]
fn a_restart_in_between_finishes_what_the_store_has_done() {
    let (identity, _) = boot::genesis(Identity::new(NODE, "n9".to_owned()), ClusterId(1), profile("n9"), 1, 3);
    let (old, new) = (replica(1, 2), replica(1, 1 << 20));
    let mut applier = applied(old, 6);
    let state = applier.rebirth(job(Some(old), new, vec![put(7)])).unwrap().unwrap();
    let in_log = |term: u64, entries: Vec<Entry>| RecoveredReplica {
        hard_state: HardState { term: Term(term), vote: Some(ReplicaId(77)), commit: LogIndex(1) },
        start: if entries.is_empty() { GENESIS_START } else { (LogIndex(0), Term(0)) },
        entries,
        install: None,
        is_lost: false,
    };
    let recovered = Recovered {
        identity: Some(identity.encode()),
        replicas: [(replica(0, 1), in_log(1, Vec::new())), (old, in_log(5, (1..=7).map(put).collect()))].into(),
        ..Recovered::default()
    };
    let mut said = Vec::new();
    check::hold_together(Some(&identity), &recovered, &[(new, state.clone())].into(), &Default::default(), &mut |_, what| said.push(what));
    assert_eq!(said, [] as [String; 0], "a check of the data-dir takes it for what it is");
    let now = Now { instant: Instant::ZERO, wall: Timestamp(1) };
    let mut node = Node::start(NodeConfig::default(), identity, recovered, [(new, state.clone())].into(), Rng::new(1), now).unwrap();
    let view = node.inspect().find(|view| view.group == new.group).unwrap();
    assert_eq!((view.replica, view.applied, view.filing), (new.replica, LogIndex(7), state.filing(new)));
    assert!(view.term > Term(5), "above the old one's term: {}", view.term);
    let effects = node.flush(now);
    let records = effects.log.unwrap().batch.records;
    assert!(
        records.contains(&LogRecord::Created { replica: new, start: state.applied })
            && records.contains(&LogRecord::Tombstone { replica: old })
    );
    let destroyed = |job: &StoreJob| matches!(job, StoreJob::Destroy { replica } if *replica == new);
    assert!(!effects.store.iter().any(destroyed), "it is no leftover");
}

#[test]
fn the_control_group_takes_its_recovery_in_the_same_write() {
    let (old, new) = (replica(0, 1), replica(0, 1 << 20));
    let mut control = ControlState::genesis(ClusterId(1), NODE, profile("n9"), 2, 3);
    control.apply(&ControlCommand::AddNode { node: NodeId(7), profile: profile("n7"), replaces: None });
    let mut applier = open(SimulatedStore::new());
    let members = Membership::of_voters([Member { replica: old.replica, node: NODE }, Member { replica: ReplicaId(50), node: NodeId(7) }]);
    let state = ReplicaState { control: Some(Arc::new(control.clone())), applied: GENESIS_START, ..ReplicaState::new(members) };
    applier.create(old, state).unwrap();
    // Of the log's end, which nobody had agreed on.
    let add = ControlCommand::AddNode { node: NodeId(8), profile: profile("n8"), replaces: None };
    let tail = Entry { index: LogIndex(2), term: Term(2), kind: EntryKind::Normal, data: add.encode() };
    let recovery = Recovery {
        removed: vec![NodeId(7)],
        groups: vec![RebornGroup {
            group: GroupId::CONTROL,
            voter: Member { replica: new.replica, node: NODE },
            from: Some(old.replica),
            expected_epoch: 0,
        }],
        known: Vec::new(),
        epoch_floor: 1000,
        next_replica: (1 << 20) + 1,
    };
    let rebirth = |command: Recovery, copy: Option<ControlState>| RebirthJob {
        control: Some(ControlRebirth { copy: copy.map(Arc::new), command: ControlCommand::Recover(command) }),
        ..job(Some(old), new, vec![tail.clone()])
    };
    let after = applier.rebirth(rebirth(recovery.clone(), Some(control.clone()))).unwrap().unwrap().control.unwrap();
    assert_eq!(after.nodes[&NodeId(7)].state, NodeState::Removed);
    assert_eq!(after.nodes[&NodeId(8)].state, NodeState::Active, "what its log held counts");
    assert!(after.epoch > 1000 && after.groups[&GroupId::CONTROL].voters[0].replica == new.replica);
    let store = applier.store().clone();
    let (_, states) = Applier::open(store, StateMachineFaults::default()).unwrap();
    assert_eq!(states[&new].control.as_deref(), Some(&*after), "its rows are those of the new state");

    // A command that does not fit changes nothing.
    let mut applier = open(SimulatedStore::new());
    let members = Membership::of_voters([Member { replica: old.replica, node: NODE }]);
    applier.create(old, ReplicaState { control: Some(Arc::new(control)), applied: GENESIS_START, ..ReplicaState::new(members) }).unwrap();
    let rows = applier.store().rows();
    let refused = applier.rebirth(rebirth(Recovery { removed: vec![NodeId(3)], ..recovery }, None)).unwrap();
    assert!(refused.as_ref().is_err_and(|why| why.contains("there is no node")), "{refused:?}");
    assert_eq!(applier.store().rows(), rows);
}
