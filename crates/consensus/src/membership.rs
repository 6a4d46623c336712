//! Membership and its changes, between our form and the library's.
//!
//! The library knows replica ids only; the node of each replica is kept beside it in a
//! [`Membership`]. One step is a simple change, several are an explicit joint change, none leaves
//! the joint membership. `auto_leave` is never used: it is lost if the leader changes before it
//! applies the joint entry (raft-rs says so itself in `commit_apply`).

use flotilla_types::{Member, MemberStep, Membership, MembershipChange, NodeId, ReplicaId};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
use std::collections::BTreeMap;

/// The library's configuration of a membership.
pub(crate) fn to_conf_state(membership: &Membership) -> ConfState {
    let ids = |half: &BTreeMap<ReplicaId, NodeId>| half.keys().map(|r| r.0).collect::<Vec<_>>();
    ConfState {
        voters: ids(&membership.voters),
        learners: ids(&membership.learners),
        voters_outgoing: ids(&membership.outgoing),
        learners_next: ids(&membership.learners_next),
        ..Default::default()
    }
}

/// The library's form of a change.
pub(crate) fn to_conf_change(change: &MembershipChange) -> ConfChangeV2 {
    let single = |step: &MemberStep| {
        let (kind, replica) = match *step {
            MemberStep::AddVoter(member) => (ConfChangeType::AddNode, member.replica),
            MemberStep::AddLearner(member) => (ConfChangeType::AddLearnerNode, member.replica),
            MemberStep::Remove(replica) => (ConfChangeType::RemoveNode, replica),
        };
        ConfChangeSingle { change_type: kind, node_id: replica.0, ..Default::default() }
    };
    let transition = if change.steps.len() > 1 { ConfChangeTransition::Explicit } else { ConfChangeTransition::Auto };
    ConfChangeV2 { transition, changes: change.steps.iter().map(single).collect::<Vec<_>>().into(), ..Default::default() }
}

/// The membership that `change` made of `old`, where the library now says `state`.
pub(crate) fn after(old: &Membership, change: &MembershipChange, state: &ConfState) -> Membership {
    let mut nodes = old.members();
    for step in &change.steps {
        if let MemberStep::AddVoter(Member { replica, node }) | MemberStep::AddLearner(Member { replica, node }) = *step {
            // A replica never moves: the first node it was given stays.
            nodes.entry(replica).or_insert(node);
        }
    }
    let half = |ids: &[u64]| {
        let with_node = |id: &u64| (ReplicaId(*id), *nodes.get(&ReplicaId(*id)).expect("a replica comes with its node"));
        ids.iter().map(with_node).collect()
    };
    Membership {
        voters: half(&state.voters),
        outgoing: half(&state.voters_outgoing),
        learners: half(&state.learners),
        learners_next: half(&state.learners_next),
    }
}

/// Says what is wrong with a membership: the library panics on some contradictions.
pub(crate) fn contradiction(membership: &Membership) -> Option<&'static str> {
    let Membership { voters, outgoing, learners, learners_next } = membership;
    let meets = |a: &BTreeMap<ReplicaId, NodeId>, b: &BTreeMap<ReplicaId, NodeId>| a.keys().any(|r| b.contains_key(r));
    if voters.is_empty() {
        Some("it has no voters")
    } else if membership.members().contains_key(&ReplicaId(0)) {
        Some("0 is no replica")
    } else if meets(learners, voters) || meets(learners, outgoing) || meets(learners, learners_next) {
        Some("a learner is something else as well")
    } else if meets(learners_next, voters) {
        Some("a voter is to become a learner")
    } else if !learners_next.keys().all(|r| outgoing.contains_key(r)) {
        Some("a learner to be is no outgoing voter")
    } else {
        None
    }
}
