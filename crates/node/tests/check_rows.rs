//! The rows that an applier leaves make sense to a check; each row that is missing, changed or made up does not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use flotilla_node::request::RequestId;
use flotilla_node::state_machine::check::RowCheck;
use flotilla_node::state_machine::{Applier, ApplyJob, GroupApply, MutationBatch, ReplicaState, StateMachineFaults};
use flotilla_storage::store::layout::{self, CHUNK_BYTES};
use flotilla_storage::store::{SimulatedStore, StateStore, StoreView};
use flotilla_types::{
    Condition, Entry, EntryKind, GroupId, Key, LogIndex, Member, Membership, NodeId, ReplicaId, ReplicaKey, Term, Timestamp,
};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

const REPLICA: ReplicaKey = ReplicaKey { group: GroupId(3), replica: ReplicaId(7) };

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Short, long and expiring values, an answered request, overwritten and deleted keys; and a second replica that is gone.
fn rows() -> Rows {
    let store = SimulatedStore::new();
    let (mut applier, _) = Applier::open(store.clone(), StateMachineFaults::default()).unwrap();
    let membership = Membership::of_voters([Member { replica: REPLICA.replica, node: NodeId(9) }]);
    let gone = ReplicaKey { group: GroupId(4), replica: ReplicaId(8) };
    for replica in [REPLICA, gone] {
        applier.create(replica, ReplicaState::new(membership.clone())).unwrap();
    }
    let key = |name: &str| Key::new(name.to_owned()).unwrap();
    let long = vec![7; 3 * CHUNK_BYTES + 5];
    let fill = |index| {
        let mut batch = MutationBatch::new();
        batch.put(&key("long"), &long, &Condition::ALWAYS);
        batch.put(&key("longer"), &long, &Condition::ALWAYS);
        batch.put(&key("short"), b"value", &Condition::ALWAYS);
        batch.put_expiring(&key("brief"), b"value", Duration::from_secs(5), &Condition::ALWAYS);
        batch.idempotent(RequestId(5));
        batch.increment(&key("sum"), 3, &Condition::ALWAYS);
        Entry { index: LogIndex(index), term: Term(1), kind: EntryKind::Normal, data: batch.finish(Timestamp(1000)) }
    };
    let mut after = MutationBatch::new();
    after.put(&key("longer"), &long[..CHUNK_BYTES], &Condition::ALWAYS);
    after.delete(&key("short"), &Condition::ALWAYS);
    let after = Entry { index: LogIndex(2), term: Term(1), kind: EntryKind::Normal, data: after.finish(Timestamp(2000)) };
    let group = |replica, entries| GroupApply { replica, entries, memberships: vec![], answers_wanted: false };
    applier.apply(ApplyJob { groups: vec![group(REPLICA, vec![fill(1), after]), group(gone, vec![fill(1)])] }).unwrap();
    applier.destroy(gone).unwrap();
    let mut rows = Rows::new();
    let visit = &mut |key: &[u8], value: &[u8]| {
        rows.insert(key.to_vec(), value.to_vec());
        ControlFlow::Continue(())
    };
    store.view().unwrap().scan(&[0], &[9], visit).unwrap();
    rows
}

fn findings(rows: &Rows) -> Vec<String> {
    let (mut check, mut found) = (RowCheck::default(), Vec::new());
    let mut say = |_, what| found.push(what);
    for (key, value) in rows {
        check.take(key, value, &mut say);
    }
    let checked = check.finish(&mut say);
    assert_eq!(checked.rows, rows.len() as u64);
    found
}

/// A row that is not an answer to a request: nothing counts those, since they may be forgotten at any time.
fn is_counted(key: &[u8]) -> bool {
    key[0] != layout::TABLE_DATA || key[layout::GENERATION_PREFIX_BYTES] != layout::RowKind::Idempotency as u8
}

#[test]
fn rows_that_were_applied_are_whole() {
    let rows = rows();
    assert_eq!(findings(&rows), Vec::<String>::new());
    assert!(rows.len() > 20, "{}", rows.len());
}

#[test]
fn a_missing_or_changed_row_is_found() {
    let whole = rows();
    let ours = |key: &&Vec<u8>| key.starts_with(&layout::data_prefix(REPLICA, 1)) || key.starts_with(&layout::state_key(REPLICA));
    for key in whole.keys().filter(ours) {
        let mut rows = whole.clone();
        rows.get_mut(key).unwrap()[0] ^= 1;
        assert!(!findings(&rows).is_empty(), "changed: {}", key.escape_ascii());
        rows.remove(key);
        assert_eq!(!findings(&rows).is_empty(), is_counted(key), "removed: {}", key.escape_ascii());
    }
}

#[test]
fn a_row_that_is_too_many_is_found() {
    let whole = rows();
    let put = |key: Vec<u8>, relative: &dyn Fn(&[u8]) -> Vec<u8>, body: &[u8]| {
        let mut rows = whole.clone();
        rows.insert(key.clone(), layout::seal(&relative(&key), body).to_vec());
        findings(&rows)
    };
    let behind = |key: &[u8]| key[layout::GENERATION_PREFIX_BYTES..].to_vec();
    let mut body = vec![0];
    body.extend_from_slice(&Bytes::from_static(&[1, 0, 0, 0, 0, 0, 0, 0, b'v']));
    assert!(put(layout::key_row(REPLICA, 1, b"made up"), &behind, &body)[0].contains("the state counts"));
    assert!(put(layout::key_row(REPLICA, 2, b"made up"), &behind, &body)[0].contains("neither in force nor listed"));
    assert!(put(layout::dead_key(REPLICA, 1).to_vec(), &|key| key.to_vec(), &[])[0].contains("in force and listed as dead"));
    assert!(put(vec![9, 9], &|key| key.to_vec(), &[])[0].contains("no known table"));
}
