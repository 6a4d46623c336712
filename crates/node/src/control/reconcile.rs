//! What a group's leader does next to bring Raft's configuration to what is wanted (decision 8).
//!
//! New members come in as learners, one at a time, and get their data. Once all that are to vote have
//! caught up, one change brings voters and learners to the wanted sets and takes out the rest; with
//! more than one step it goes through a joint configuration. Nothing is remembered: the next step
//! follows from the wanted and the applied configuration alone, so any leader goes on where another
//! stopped, and a new wish turns it around in mid-course.
//!
//! Fault tolerance is never lowered on the way: a voter goes only in the change that brings its
//! successor, and no change begins unless its voters would have a majority that keeps up.

use super::state::GroupRecord;
use flotilla_types::{Member, MemberStep, Membership, MembershipChange, NodeId, ReplicaId, Role};
use std::collections::BTreeMap;

/// What the leader should do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Propose this change.
    Propose(MembershipChange),
    /// Propose to leave the joint configuration (also when an earlier leader meant to).
    LeaveJoint,
    /// Hand the leadership to this voter: the leader is about to go, or another is preferred. If the
    /// transfer fails, this is the next step again; the caller spaces its attempts.
    TransferLeadership(ReplicaId),
}

/// The next step, if any. `leader` is the replica that asks; `actual` its applied configuration;
/// `caught_up` whether a member answers and is close enough to the log's end to vote without holding
/// up commits; `change_pending` whether a configuration change is proposed and not yet applied.
pub fn next_step(
    wanted: &GroupRecord,
    actual: &Membership,
    leader: ReplicaId,
    caught_up: impl Fn(ReplicaId) -> bool,
    change_pending: bool,
) -> Option<Step> {
    if change_pending {
        return None;
    }
    let keeps_up = |replica: ReplicaId| replica == leader || caught_up(replica);
    if actual.is_joint() {
        return leave_joint(wanted, actual, leader, caught_up);
    }
    if let Some(replica) = actual.learners.keys().find(|r| wanted.role_of(**r).is_none()) {
        return Some(propose([MemberStep::Remove(*replica)]));
    }
    if let Some(member) = wanted.wanted().find(|m| !actual.contains(m.replica)) {
        return Some(propose([MemberStep::AddLearner(*member)]));
    }
    let steps = steps_to(wanted, actual);
    if steps.is_empty() {
        let preferred = wanted.voters.iter().find(|m| Some(m.node) == wanted.preferred_leader)?.replica;
        return (preferred != leader && caught_up(preferred)).then_some(Step::TransferLeadership(preferred));
    }
    let new_voters_wait = wanted.voters.iter().any(|m| !actual.voters.contains_key(&m.replica) && !keeps_up(m.replica));
    let majority_keeps_up = wanted.voters.iter().filter(|m| keeps_up(m.replica)).count() > wanted.voters.len() / 2;
    if new_voters_wait || !majority_keeps_up {
        return None;
    }
    if wanted.role_of(leader) != Some(Role::Voter) {
        let stays = |m: &&Member| actual.voters.contains_key(&m.replica) && caught_up(m.replica);
        if let Some(successor) = successor(wanted, wanted.voters.iter().filter(stays).map(|m| (m.replica, m.node))) {
            return Some(Step::TransferLeadership(successor));
        }
        if steps.len() == 1 {
            // There is no joint configuration in which a successor could take over.
            return None;
        }
    }
    Some(propose(steps))
}

/// In a joint configuration the incoming half decides afterwards, so one of it must lead before that.
fn leave_joint(wanted: &GroupRecord, actual: &Membership, leader: ReplicaId, caught_up: impl Fn(ReplicaId) -> bool) -> Option<Step> {
    if actual.voters.contains_key(&leader) {
        return Some(Step::LeaveJoint);
    }
    successor(wanted, actual.voters.iter().filter(|(r, _)| caught_up(**r)).map(|(r, n)| (*r, *n))).map(Step::TransferLeadership)
}

/// Who of the candidates should lead: the preferred, else one that is wanted, else the first.
fn successor(wanted: &GroupRecord, candidates: impl Iterator<Item = (ReplicaId, NodeId)>) -> Option<ReplicaId> {
    let rank = |(replica, node): &(ReplicaId, NodeId)| {
        (Some(*node) != wanted.preferred_leader, wanted.role_of(*replica) != Some(Role::Voter), *replica)
    };
    candidates.min_by_key(rank).map(|(replica, _)| replica)
}

fn steps_to(wanted: &GroupRecord, actual: &Membership) -> Vec<MemberStep> {
    let promoted = wanted.voters.iter().filter(|m| !actual.voters.contains_key(&m.replica)).map(|m| MemberStep::AddVoter(*m));
    let demoted = wanted.learners.iter().filter(|m| !actual.learners.contains_key(&m.replica)).map(|m| MemberStep::AddLearner(*m));
    let removed = actual.voters.keys().filter(|r| wanted.role_of(**r).is_none()).map(|r| MemberStep::Remove(*r));
    promoted.chain(demoted).chain(removed).collect()
}

fn propose(steps: impl IntoIterator<Item = MemberStep>) -> Step {
    Step::Propose(MembershipChange { steps: steps.into_iter().collect() })
}

/// Whether a group's configuration is what is wanted.
pub fn is_settled(wanted: &GroupRecord, actual: &Membership) -> bool {
    let same = |wanted: &[Member], actual: &BTreeMap<ReplicaId, NodeId>| {
        wanted.len() == actual.len() && wanted.iter().all(|m| actual.contains_key(&m.replica))
    };
    !actual.is_joint() && same(&wanted.voters, &actual.voters) && same(&wanted.learners, &actual.learners)
}
