//! Tests of the control state: what is kept, what is refused, and that rows say all of it.

use super::*;
use bytes::Bytes;
use flotilla_types::{ClusterId, GroupId, Membership, NodeId, ReplicaId, ReplicaKey, Role, Term};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn profile(name: &str) -> NodeProfile {
    NodeProfile {
        name: name.to_owned(),
        http: Some("h:1".to_owned()),
        peer: "h:2".to_owned(),
        resp: None,
        zone: "z".to_owned(),
        weight: 100,
        formats: Formats { min: 1, max: 1 },
    }
}

fn newborn() -> ControlState {
    ControlState::genesis(ClusterId(7), NodeId(1), profile("a"), 4, 3)
}

fn add(node: u64, name: &str, replaces: Option<NodeId>) -> ControlCommand {
    ControlCommand::AddNode { node: NodeId(node), profile: profile(name), replaces }
}

fn set(state: &ControlState, group: u32, voters: &[u64], learners: &[u64]) -> ControlCommand {
    ControlCommand::SetGroup {
        group: GroupId(group),
        expected_epoch: state.groups[&GroupId(group)].epoch,
        voters: voters.iter().map(|n| NodeId(*n)).collect(),
        learners: learners.iter().map(|n| NodeId(*n)).collect(),
        preferred_leader: None,
    }
}

fn key(group: u32, replica: u64) -> ReplicaKey {
    ReplicaKey { group: GroupId(group), replica: ReplicaId(replica) }
}

#[test]
fn a_repeated_join_gets_the_same_answer_and_a_taken_name_is_refused() {
    let mut state = newborn();
    let first = state.apply(&add(2, "b", None));
    assert_eq!(first.answer, ControlAnswer::NodeAdded { node: NodeId(2) });
    assert_eq!(first.rows, [RowKey::Node(NodeId(2)), RowKey::Header]);
    let epoch = state.epoch;
    let again = state.apply(&add(2, "b", None));
    assert_eq!((again.answer, again.rows.len(), state.epoch), (first.answer, 0, epoch));
    let taken = Refusal::NameTaken { holder: NodeId(2), holder_state: NodeState::Active };
    assert_eq!(state.apply(&add(3, "b", None)).answer, ControlAnswer::Refused(taken));
}

/// Else it waits for ever for a node that nobody waits for any more.
#[test]
fn a_move_to_a_node_that_is_given_up_turns_around() {
    let mut state = newborn();
    for (node, name) in [(2, "b"), (3, "c"), (4, "d")] {
        state.apply(&add(node, name, None));
    }
    state.apply(&set(&state.clone(), 1, &[1, 2, 3], &[]));
    let present = Membership::of_voters(state.groups[&GroupId(1)].voters.iter().copied());
    state.apply(&set(&state.clone(), 1, &[1, 2, 4], &[]));
    let report = GroupReport {
        leader: NodeId(1),
        term: Term(2),
        membership: present,
        change_pending: false,
        record_epoch: state.groups[&GroupId(1)].epoch,
        bytes: 0,
        load: None,
        scrub: Default::default(),
        sending: None,
    };
    let limits = PlanLimits::default();
    let mut observed = Observed { groups: [(GroupId(1), report)].into(), ..Observed::default() };
    observed.nodes.extend([1, 2, 3].map(|node| (NodeId(node), NodeHealth::Up)));
    let for_time = limits.replace_after.expect("there is a limit unless told otherwise");
    observed.nodes.insert(NodeId(4), NodeHealth::Down { for_time: for_time / 2 });
    assert_eq!(plan(&state, &observed, &limits), [], "it may come back");
    observed.nodes.insert(NodeId(4), NodeHealth::Down { for_time });
    assert_eq!(plan(&state, &observed, &limits), [set(&state, 1, &[1, 2, 3], &[])]);
}

/// Else the leader on the old node hears nobody, and takes all nodes for dead.
#[test]
fn whoever_leads_while_the_control_group_moves_is_reported_to() {
    let mut state = newborn();
    state.apply(&add(2, "b", None));
    state.apply(&set(&state.clone(), 0, &[2], &[]));
    assert_eq!(state.planners(), [NodeId(1), NodeId(2)].into());
    let (expected_epoch, left) = (state.groups[&GroupId::CONTROL].epoch, state.groups[&GroupId::CONTROL].leaving[0].replica);
    state.apply(&ControlCommand::ConfirmLeft { group: GroupId::CONTROL, expected_epoch, replicas: vec![left] });
    assert_eq!(state.planners(), [NodeId(2)].into());
}

#[test]
fn a_replaced_node_is_removed_for_ever_and_its_name_is_free() {
    let mut state = newborn();
    state.apply(&add(2, "b", None));
    assert_eq!(state.apply(&add(3, "c", Some(NodeId(2)))).answer, ControlAnswer::Refused(Refusal::NotTheHolder { node: NodeId(2) }));
    assert_eq!(state.apply(&add(3, "b", Some(NodeId(2)))).answer, ControlAnswer::NodeAdded { node: NodeId(3) });
    assert_eq!(state.apply(&add(3, "b", Some(NodeId(2)))).answer, ControlAnswer::NodeAdded { node: NodeId(3) }, "asked again");
    assert_eq!(state.nodes[&NodeId(2)].state, NodeState::Removed);
    assert_eq!(state.apply(&add(2, "x", None)).answer, ControlAnswer::Refused(Refusal::NodeRemoved { node: NodeId(2) }));
}

#[test]
fn a_replica_keeps_its_id_until_it_is_confirmed_to_have_left() {
    let mut state = newborn();
    state.apply(&add(2, "b", None));
    state.apply(&set(&state.clone(), 1, &[1, 2], &[]));
    assert_eq!(state.standing(key(1, 6)), Standing::Wanted(Role::Voter));
    assert_eq!(state.standing(key(1, 7)), Standing::Unknown);
    state.apply(&set(&state.clone(), 1, &[1], &[]));
    assert_eq!(state.standing(key(1, 6)), Standing::Leaving);
    // Wanted again before it was confirmed: it may still count, so it goes on under its id.
    state.apply(&set(&state.clone(), 1, &[1], &[2]));
    assert_eq!(state.standing(key(1, 6)), Standing::Wanted(Role::Learner));
    state.apply(&set(&state.clone(), 1, &[1], &[]));
    let expected_epoch = state.groups[&GroupId(1)].epoch;
    state.apply(&ControlCommand::ConfirmLeft { group: GroupId(1), expected_epoch, replicas: vec![ReplicaId(6)] });
    assert_eq!(state.standing(key(1, 6)), Standing::Removed);
    state.apply(&set(&state.clone(), 1, &[1, 2], &[]));
    assert_eq!(state.groups[&GroupId(1)].wanted_on(NodeId(2)).map(|(m, _)| m.replica), Some(ReplicaId(7)));
}

#[test]
fn a_damaged_replica_is_never_wanted_again_though_its_node_is() {
    let mut state = newborn();
    state.apply(&add(2, "b", None));
    state.apply(&set(&state.clone(), 1, &[1, 2], &[]));
    state.apply(&ControlCommand::ReseedReplica { group: GroupId(1), replica: ReplicaId(6) });
    assert_eq!((state.standing(key(1, 6)), state.standing(key(1, 7))), (Standing::Leaving, Standing::Wanted(Role::Voter)));
    state.apply(&set(&state.clone(), 1, &[1], &[]));
    let expected_epoch = state.groups[&GroupId(1)].epoch;
    state.apply(&ControlCommand::ConfirmLeft { group: GroupId(1), expected_epoch, replicas: vec![ReplicaId(7)] });
    state.apply(&set(&state.clone(), 1, &[1, 2], &[]));
    assert_eq!(state.standing(key(1, 6)), Standing::Leaving);
    assert_eq!(state.standing(key(1, 8)), Standing::Wanted(Role::Voter));
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut state = newborn();
    state.apply(&add(2, "b", None));
    let refused = [
        ControlCommand::SetGroup {
            group: GroupId(1),
            expected_epoch: 0,
            voters: vec![NodeId(1)],
            learners: vec![],
            preferred_leader: None,
        },
        set(&state, 1, &[], &[1]),
        set(&state, 1, &[1, 1], &[]),
        set(&state, 1, &[1], &[1]),
        set(&state, 1, &[1, 9], &[]),
        ControlCommand::DrainNode { node: NodeId(9) },
        ControlCommand::RemoveNode { node: NodeId(1), removal: Removal::Drained },
        ControlCommand::RaiseFormat { level: 2 },
    ];
    let before = state.clone();
    for command in refused {
        let applied = state.apply(&command);
        assert!(matches!(applied.answer, ControlAnswer::Refused(_)), "{command:?}: {applied:?}");
        assert_eq!(ControlAnswer::decode(applied.answer.encode()), Ok(applied.answer));
        assert!(applied.rows.is_empty());
        assert_eq!(state, before);
    }
}

#[test]
fn row_keys_sort_as_their_bytes_do_and_read_back() {
    let keys = [RowKey::Header, RowKey::Node(NodeId(1)), RowKey::Node(NodeId(256)), RowKey::Group(GroupId(0)), RowKey::Group(GroupId(256))];
    assert!(keys.is_sorted() && keys.iter().map(|k| k.encode()).is_sorted());
    for key in keys {
        assert_eq!(RowKey::decode(&key.encode()), Ok(key));
    }
    assert!(RowKey::decode(&[1, 2]).is_err() && RowKey::decode(&[]).is_err() && RowKey::decode(&[9]).is_err());
}

fn some_profile() -> impl Strategy<Value = NodeProfile> {
    (0..4u8, any::<bool>(), 0..3u8, 0..3u32).prop_map(|(name, addresses, zone, weight)| NodeProfile {
        http: addresses.then(|| "h:1".to_owned()),
        resp: (!addresses).then(|| "r:1".to_owned()),
        zone: format!("z{zone}"),
        weight,
        formats: Formats { min: 1, max: 1 + u32::from(zone) },
        ..profile(&format!("n{name}"))
    })
}

fn some_command() -> impl Strategy<Value = ControlCommand> {
    let node = || (1..7u64).prop_map(NodeId);
    let group = || (0..6u32).prop_map(GroupId);
    let nodes = || prop::collection::vec((1..7u64).prop_map(NodeId), 0..4);
    prop_oneof![
        3 => (node(), some_profile(), prop::option::of(node())).prop_map(|(node, profile, replaces)| ControlCommand::AddNode { node, profile, replaces }),
        1 => (node(), some_profile()).prop_map(|(node, profile)| ControlCommand::UpdateNode { node, profile }),
        1 => node().prop_map(|node| ControlCommand::DrainNode { node }),
        1 => node().prop_map(|node| ControlCommand::ActivateNode { node }),
        1 => (node(), any::<bool>()).prop_map(|(node, dead)| ControlCommand::RemoveNode { node, removal: if dead { Removal::Dead } else { Removal::Drained } }),
        // Epoch 0 stands for "the present one" and is filled in by the test.
        8 => (group(), nodes(), nodes(), prop::option::of(node())).prop_map(|(group, voters, learners, preferred_leader)| {
            ControlCommand::SetGroup { group, expected_epoch: 0, voters, learners, preferred_leader }
        }),
        2 => (group(), 1..20u64).prop_map(|(group, r)| ControlCommand::ReseedReplica { group, replica: ReplicaId(r) }),
        4 => (group(), prop::collection::vec((1..20u64).prop_map(ReplicaId), 0..9)).prop_map(|(group, replicas)| {
            ControlCommand::ConfirmLeft { group, expected_epoch: 0, replicas }
        }),
        1 => (0..4u32).prop_map(|level| ControlCommand::RaiseFormat { level }),
        1 => any::<bool>().prop_map(|on| ControlCommand::SetRebalancing { rebalancing: if on { Rebalancing::On } else { Rebalancing::Paused } }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// Whatever commands come: a store that writes only the rows named, and a copy that is pushed
    /// them, hold the same state; ids are never given twice; a removed replica never comes back.
    #[test]
    fn the_rows_named_are_all_that_changed(mut commands in prop::collection::vec(some_command(), 0..60)) {
        let mut state = newborn();
        let mut store: BTreeMap<RowKey, Bytes> = state.row_keys().map(|k| (k, state.encode_row(k).expect("listed"))).collect();
        let mut copy = state.clone();
        let mut given: BTreeMap<ReplicaId, (GroupId, NodeId)> = BTreeMap::new();
        let mut removed: BTreeSet<ReplicaKey> = BTreeSet::new();
        for (step, command) in commands.iter_mut().enumerate() {
            if let ControlCommand::SetGroup { group, expected_epoch, .. } | ControlCommand::ConfirmLeft { group, expected_epoch, .. } = command {
                *expected_epoch = state.groups.get(group).map_or(0, |g| g.epoch);
            }
            prop_assert_eq!(ControlCommand::decode(command.encode()), Ok(command.clone()));
            let applied = state.apply(command);
            prop_assert_eq!(ControlAnswer::decode(applied.answer.encode()), Ok(applied.answer.clone()));
            for row in applied.rows {
                store.insert(row, state.encode_row(row).expect("a changed row exists"));
            }
            prop_assert_eq!(&ControlState::from_rows(store.clone()).expect("our own rows"), &state);
            if step % 5 == 0 {
                let rows: Vec<_> = state.row_keys_since(copy.epoch).into_iter().map(|k| (k, state.encode_row(k).expect("listed"))).collect();
                let (since, news) = (copy.epoch, copy.epoch < state.epoch);
                prop_assert_eq!(copy.absorb(since + 1, []), Ok(false), "a gap");
                prop_assert_eq!(copy.absorb(since, decode_rows(encode_rows(rows)).expect("our own rows")), Ok(news));
                prop_assert_eq!(&copy, &state);
            }
            for (group, record) in &state.groups {
                let wanted: BTreeSet<NodeId> = record.wanted().map(|m| m.node).collect();
                prop_assert_eq!(wanted.len(), record.wanted().count());
                for member in record.all() {
                    let place = *given.entry(member.replica).or_insert((*group, member.node));
                    prop_assert_eq!(place, (*group, member.node));
                }
            }
            for (replica, (group, _)) in &given {
                let key = ReplicaKey { group: *group, replica: *replica };
                if state.standing(key) == Standing::Removed {
                    removed.insert(key);
                }
            }
            prop_assert!(removed.iter().all(|key| state.standing(*key) == Standing::Removed));
        }
        prop_assert_eq!(ControlState::decode(state.encode()).expect("our own bytes"), state);
    }

    /// Bytes from a disk or a peer may be anything.
    #[test]
    fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let bytes = Bytes::from(bytes);
        let _ = ControlCommand::decode(bytes.clone());
        let _ = ControlAnswer::decode(bytes.clone());
        let _ = ControlState::decode(bytes);
    }
}
