#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::control::{ControlCommand, Formats, NodeProfile, Standing};
use flotilla_types::{ClusterId, Membership, ReplicaKey};

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

/// Five nodes, and two shards beside the control group, each with voters 10g+1 to 10g+3 on nodes 1 to 3.
fn control() -> ControlState {
    let mut control = ControlState::genesis(ClusterId(7), NodeId(1), profile("n1"), 2, 3);
    for node in 2..=5 {
        control.apply(&ControlCommand::AddNode { node: NodeId(node), profile: profile(&format!("n{node}")), replaces: None });
    }
    for (group, record) in &mut control.groups {
        record.voters = (1..=3).map(|node| member(group.0, node)).collect();
    }
    control.next_replica = 100;
    control
}

fn member(group: u32, node: u64) -> Member {
    Member { replica: ReplicaId(u64::from(group) * 10 + node), node: NodeId(node) }
}

fn membership(group: u32) -> Membership {
    Membership::of_voters((1..=3).map(|node| member(group, node)))
}

/// The replica of a group on a node, with its log's end and nothing beyond it.
fn held(group: u32, node: u64, term: u64, last: u64) -> HeldReplica {
    HeldReplica {
        key: ReplicaKey { group: GroupId(group), replica: member(group, node).replica },
        last: (Term(term), LogIndex(last)),
        commit: LogIndex(last),
        applied: LogIndex(last),
        membership: membership(group),
        keys: last,
        bytes: 10 * last,
    }
}

fn survey(nodes: &[(u64, Vec<HeldReplica>)]) -> Survey {
    let names: Vec<NodeId> = nodes.iter().map(|(node, _)| NodeId(*node)).collect();
    let of = |(node, replicas): &(u64, Vec<HeldReplica>)| {
        let reaches = names.iter().copied().filter(|other| other.0 != *node).collect();
        (NodeId(*node), Holdings { reaches, control: control(), under_way: Vec::new(), replicas: replicas.clone() })
    };
    nodes.iter().map(of).collect()
}

fn all_of(node: u64) -> Vec<HeldReplica> {
    (0..=2).map(|group| held(group, node, 3, 20)).collect()
}

#[test]
fn nothing_is_done_where_a_majority_is_left() {
    let plan = plan_recovery(&survey(&[(1, all_of(1)), (2, all_of(2)), (4, vec![])]));
    assert_eq!((plan.whole, plan.lost.len(), plan.gone.len()), (3, 0, 0));
    assert_eq!(plan.absent, BTreeSet::from([NodeId(3), NodeId(5)]), "they are merely away");
}

#[test]
fn the_longest_log_of_a_voter_is_kept_by_term_before_index() {
    let mut survey = survey(&[(1, vec![held(1, 1, 3, 90)]), (4, vec![])]);
    // A learner further on than the last voter: it may have what was never agreed on, and it never had a vote.
    let learner = |last| {
        let mut learner = held(1, 1, 4, last);
        learner.key.replica = ReplicaId(77);
        learner.membership.learners.insert(ReplicaId(77), NodeId(4));
        learner
    };
    survey.get_mut(&NodeId(4)).unwrap().replicas = vec![learner(95)];
    let lost = |survey: &Survey| plan_recovery(survey).lost.into_iter().find(|lost| lost.group == GroupId(1)).unwrap();
    let kept = lost(&survey).kept.unwrap();
    assert_eq!((kept.replica, kept.is_voter, kept.keys), (ReplicaId(11), true, 90));
    survey.get_mut(&NodeId(1)).unwrap().replicas.clear();
    let kept = lost(&survey).kept.unwrap();
    assert_eq!((kept.replica, kept.is_voter), (ReplicaId(77), false), "no voter is left");

    // Of five voters two are left; the shorter log of the later term is what an election would take.
    let five = Membership::of_voters((1..=5).map(|node| member(1, node)));
    let of_five = |node, term, last| HeldReplica { membership: five.clone(), ..held(1, node, term, last) };
    let survey = self::survey(&[(1, vec![of_five(1, 3, 90)]), (2, vec![of_five(2, 4, 60)])]);
    assert_eq!(lost(&survey).node, NodeId(2));
    assert_eq!(lost(&survey).gone, BTreeSet::from([NodeId(3), NodeId(4), NodeId(5)]));
}

#[test]
fn both_halves_of_a_joint_membership_must_be_there() {
    let mut joint = held(1, 1, 3, 20);
    joint.membership = Membership {
        voters: [(ReplicaId(11), NodeId(1)), (ReplicaId(12), NodeId(2)), (ReplicaId(14), NodeId(4))].into(),
        outgoing: [(ReplicaId(11), NodeId(1)), (ReplicaId(13), NodeId(3)), (ReplicaId(15), NodeId(5))].into(),
        ..Membership::default()
    };
    let other = HeldReplica { membership: joint.membership.clone(), ..held(1, 2, 3, 20) };
    let plan = plan_recovery(&survey(&[
        (1, vec![joint.clone(), held(0, 1, 1, 1), held(2, 1, 1, 1)]),
        (2, vec![other, held(0, 2, 1, 1), held(2, 2, 1, 1)]),
    ]));
    assert_eq!(plan.whole, 2);
    assert_eq!(plan.lost.iter().map(|lost| lost.group).collect::<Vec<_>>(), [GroupId(1)]);
    assert_eq!(plan.gone, BTreeSet::from([NodeId(3), NodeId(4), NodeId(5)]), "all that the group counted on");
}

#[test]
fn what_no_copy_is_left_of_begins_empty_spread_over_those_that_are_there() {
    let survey = survey(&[(4, vec![]), (5, vec![])]);
    let plan = plan_recovery(&survey);
    assert!(plan.lost.iter().all(|lost| lost.kept.is_none()));
    let homes: Vec<(GroupId, NodeId)> = plan.lost.iter().map(|lost| (lost.group, lost.node)).collect();
    assert_eq!(homes, [(GroupId(0), NodeId(4)), (GroupId(1), NodeId(4)), (GroupId(2), NodeId(5))]);
    assert_eq!(plan.gone, BTreeSet::from([NodeId(1), NodeId(2), NodeId(3)]));
}

#[test]
fn a_node_that_another_reaches_is_not_given_up() {
    let mut survey = survey(&[(1, all_of(1)), (4, vec![])]);
    survey.get_mut(&NodeId(4)).unwrap().reaches.push(NodeId(2));
    assert_eq!(plan_recovery(&survey).reached_elsewhere, BTreeMap::from([(NodeId(2), NodeId(4))]));
}

#[test]
fn the_id_names_what_is_decided_and_not_what_is_counted() {
    let id = |nodes: &[(u64, Vec<HeldReplica>)]| plan_recovery(&survey(nodes)).id();
    let shown = id(&[(1, all_of(1)), (4, vec![])]);
    let grown = (0..=2).map(|group| held(group, 1, 4, 30)).collect();
    assert_eq!(id(&[(1, grown), (4, vec![])]), shown, "its log has grown");
    assert_ne!(id(&[(2, all_of(2)), (4, vec![])]), shown, "another copy");
    assert_ne!(id(&[(1, all_of(1)[..2].to_vec()), (4, vec![])]), shown, "one copy less");
}

#[test]
fn the_command_makes_a_state_that_knows_every_replica_that_is_left() {
    let mut survey = survey(&[(1, vec![held(0, 1, 3, 20), held(1, 1, 3, 20)]), (4, vec![])]);
    // Shard 1 is whole: it moved to nodes 1 and 4 by a command that the control group lost. Nothing is left of shard 2.
    let moved =
        Membership { voters: [(ReplicaId(11), NodeId(1))].into(), learners: [(ReplicaId(150), NodeId(4))].into(), ..Membership::default() };
    let mut learner = HeldReplica { membership: moved.clone(), ..held(1, 4, 3, 20) };
    learner.key.replica = ReplicaId(150);
    survey.get_mut(&NodeId(1)).unwrap().replicas[1].membership = moved;
    survey.get_mut(&NodeId(4)).unwrap().replicas = vec![learner];
    let plan = plan_recovery(&survey);
    assert_eq!((plan.whole, plan.lost.len()), (1, 2));
    let recovery = plan.command(&survey);
    let mut after = control();
    let epoch = after.epoch;
    let encoded = ControlCommand::Recover(recovery).encode();
    let command = ControlCommand::decode(encoded).unwrap();
    let applied = after.apply(&command);
    assert!(matches!(applied.answer, crate::control::ControlAnswer::Recovering), "{applied:?}");
    assert_eq!(after, ControlState::decode(after.encode()).unwrap(), "its rows are read back");
    assert!(after.epoch > epoch + EPOCH_MARGIN && after.next_replica > 1 << REPLICA_MARGIN_BITS);
    let standing = |group, replica| after.standing(ReplicaKey { group: GroupId(group), replica: ReplicaId(replica) });
    assert_eq!(standing(1, 150), Standing::Leaving, "it counts in its group, and must not be taken for removed");
    assert_eq!(standing(1, 11), Standing::Wanted(Role::Voter));
    assert_eq!(standing(0, 1), Standing::Leaving, "what the control group's new voter is made of");
    assert_eq!(standing(0, 2), Standing::Removed);
    assert_eq!(standing(2, 21), Standing::Removed);
    assert_eq!(after.groups[&GroupId(2)].rebirth.unwrap().from, None);
    for node in [2, 3] {
        assert_eq!(after.nodes[&NodeId(node)].state, NodeState::Removed);
    }
    assert_eq!(after.nodes[&NodeId(5)].state, NodeState::Active, "nothing was lost with it");

    // The same again is refused, and changes nothing: its ids are given.
    let before = after.clone();
    assert!(matches!(after.apply(&command).answer, crate::control::ControlAnswer::Refused(_)));
    assert_eq!(after, before);
    // While it is under way nothing more is to be done about these groups.
    for holdings in survey.values_mut() {
        holdings.control = after.clone();
        holdings.reaches.clear();
    }
    let again = plan_recovery(&survey);
    assert!(again.lost.is_empty(), "{again:?}");
    assert_eq!(again.under_way, BTreeSet::from([GroupId(0), GroupId(2)]));
}
