//! Which groups lost their quorum, and which copy each goes on with: a pure function of what the nodes that answer hold.
//!
//! A group has a quorum if the replicas that are here are one, by the configuration of the one that has applied most.
//! Otherwise the voter with the longest log (by term, then index) is chosen, as an election would among those that are
//! left; a learner only where no voter is left. Whatever was acknowledged and is on no surviving replica is lost; that can be
//! told of nothing in particular, since those that knew are gone.

use super::holdings::{HeldReplica, Holdings};
use crate::control::{ControlState, NodeState, RebornGroup, Recovery};
use crate::state_machine::REPLICA_MARGIN_BITS;
use flotilla_types::{GroupId, LogIndex, Member, NodeId, ReplicaId, Role, Term};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use xxhash_rust::xxh3::xxh3_64;

/// How far a recovered control state's epoch is raised above all that was seen of it: commands that are lost may have been
/// seen by nodes that are gone.
const EPOCH_MARGIN: u64 = 1 << 20;

/// What is known when a recovery is planned: what each node that answers holds.
pub type Survey = BTreeMap<NodeId, Holdings>;

/// What a recovery would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryPlan {
    /// Members that do not answer and had a replica in a group that lost its quorum: given up for good.
    pub gone: BTreeSet<NodeId>,
    /// The other members that do not answer: nothing depends on them.
    pub absent: BTreeSet<NodeId>,
    /// Members that do not answer the asking node, and answer one that does: who, and whom.
    pub reached_elsewhere: BTreeMap<NodeId, NodeId>,
    /// How many groups have a quorum.
    pub whole: usize,
    /// Groups that a recovery is under way for.
    pub under_way: BTreeSet<GroupId>,
    /// The groups that lost their quorum, in order.
    pub lost: Vec<LostGroup>,
}

/// A group without a quorum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostGroup {
    /// The group.
    pub group: GroupId,
    /// The node on which it goes on, with what is there or with nothing.
    pub node: NodeId,
    /// The copy it goes on with; `None`: none is left, and it begins empty.
    pub kept: Option<KeptCopy>,
    /// Nodes that had a replica of it and do not answer.
    pub gone: BTreeSet<NodeId>,
}

/// What is left of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptCopy {
    /// The replica.
    pub replica: ReplicaId,
    /// The end of its log; all of it is kept.
    pub last: (Term, LogIndex),
    /// Up to where it is known to be what a majority agreed on.
    pub commit: LogIndex,
    /// Whether it had a vote. One that had none may be further behind.
    pub is_voter: bool,
    /// Keys that it has applied.
    pub keys: u64,
    /// The bytes of these and their values.
    pub bytes: u64,
}

/// The latest copy of the control state that any of them has.
pub fn latest_control(survey: &Survey) -> Option<(NodeId, &ControlState)> {
    let latest = survey.iter().max_by_key(|(node, holdings)| (holdings.control.epoch, Reverse(**node)));
    latest.map(|(node, holdings)| (*node, &holdings.control))
}

/// Finds what has to be done, if anything.
pub fn plan_recovery(survey: &Survey) -> RecoveryPlan {
    let mut plan = RecoveryPlan::default();
    let Some((latest_at, control)) = latest_control(survey) else { return plan };
    let absent: BTreeSet<NodeId> = control.members().map(|(node, _)| node).filter(|node| !survey.contains_key(node)).collect();
    for (node, holdings) in survey {
        let there = holdings.reaches.iter().filter(|reached| absent.contains(reached));
        plan.reached_elsewhere.extend(there.map(|reached| (*reached, *node)));
    }
    let mut held: BTreeMap<GroupId, Vec<(NodeId, &HeldReplica)>> = BTreeMap::new();
    for (node, holdings) in survey {
        for replica in &holdings.replicas {
            held.entry(replica.key.group).or_default().push((*node, replica));
        }
    }
    // Where groups begin empty: spread over those that are to hold something.
    let is_active = |node: &NodeId| control.nodes.get(node).is_some_and(|record| record.state == NodeState::Active);
    let mut homes: BTreeMap<NodeId, usize> = survey.keys().filter(|node| is_active(node)).map(|node| (*node, 0)).collect();
    if homes.is_empty() {
        homes.extend(survey.keys().map(|node| (*node, 0)));
    }
    for (group, record) in &control.groups {
        let here = held.remove(group).unwrap_or_default();
        let is_here = |replica: ReplicaId| here.iter().any(|(_, held)| held.key.replica == replica);
        let is_under_way = record.rebirth.is_some_and(|rebirth| {
            let voter = record.voters.iter().find(|member| member.replica == rebirth.voter);
            let there = voter.and_then(|voter| survey.get(&voter.node));
            let can_begin = rebirth.from.is_none_or(is_here);
            !is_here(rebirth.voter) && there.is_some_and(|there| can_begin || there.under_way.contains(group))
        });
        if is_under_way {
            plan.under_way.insert(*group);
            continue;
        }
        let latest = here.iter().max_by_key(|(node, held)| (held.applied, Reverse(*node)));
        let membership = latest.map(|(_, held)| &held.membership);
        if membership.is_some_and(|membership| membership.is_quorum(|replica, _| is_here(replica))) {
            plan.whole += 1;
            continue;
        }
        let members = membership.map(|membership| membership.members().into_values().collect::<BTreeSet<_>>()).unwrap_or_default();
        let holders = members.into_iter().chain(record.all().map(|member| member.node));
        let gone: BTreeSet<NodeId> = holders.filter(|node| absent.contains(node)).collect();
        let is_voter = |held: &HeldReplica| {
            let has_vote = |membership: &flotilla_types::Membership| membership.role_of(held.key.replica) == Some(Role::Voter);
            membership.is_some_and(has_vote) || has_vote(&held.membership)
        };
        let chosen = here.iter().max_by_key(|(node, held)| (is_voter(held), held.last, Reverse(*node)));
        let kept = chosen.map(|(node, held)| {
            let HeldReplica { key, last, commit, keys, bytes, .. } = **held;
            (*node, KeptCopy { replica: key.replica, last, commit, is_voter: is_voter(held), keys, bytes })
        });
        let node = match kept {
            Some((node, _)) => node,
            None if *group == GroupId::CONTROL => latest_at,
            None => {
                let home = homes.iter_mut().min_by_key(|(node, count)| (**count, **node)).expect("somebody answered");
                *home.1 += 1;
                *home.0
            }
        };
        plan.gone.extend(&gone);
        plan.lost.push(LostGroup { group: *group, node, kept: kept.map(|(_, kept)| kept), gone });
    }
    plan.absent = absent.difference(&plan.gone).copied().collect();
    plan
}

impl RecoveryPlan {
    /// Names what the plan decides, not what it counts: of the same decisions the id is the same.
    pub fn id(&self) -> String {
        let mut bytes = Vec::new();
        for node in &self.gone {
            bytes.extend_from_slice(&node.0.to_le_bytes());
        }
        for lost in &self.lost {
            bytes.extend_from_slice(&lost.group.0.to_le_bytes());
            bytes.extend_from_slice(&lost.node.0.to_le_bytes());
            bytes.extend_from_slice(&lost.kept.map_or(0, |kept| kept.replica.0).to_le_bytes());
        }
        format!("{:016x}", xxh3_64(&bytes))
    }

    /// The control group's own part of it, if it lost its quorum.
    pub fn control(&self) -> Option<&LostGroup> {
        self.lost.iter().find(|lost| lost.group == GroupId::CONTROL)
    }

    /// The plan as the control group's command.
    pub fn command(&self, survey: &Survey) -> Recovery {
        let Some((_, control)) = latest_control(survey) else { return Recovery::default() };
        let is_control_lost = self.control().is_some();
        let held = || survey.values().flat_map(|holdings| &holdings.replicas);
        let seen = held().flat_map(|held| held.membership.members().into_keys().chain([held.key.replica]));
        let given = survey.values().map(|holdings| holdings.control.next_replica.saturating_sub(1));
        let highest = seen.map(|replica| replica.0).chain(given).max().unwrap_or(0);
        let first = ((highest >> REPLICA_MARGIN_BITS) + 1) << REPLICA_MARGIN_BITS;
        let reborn = |(lost, replica): (&LostGroup, u64)| RebornGroup {
            group: lost.group,
            voter: Member { replica: ReplicaId(replica), node: lost.node },
            from: lost.kept.map(|kept| kept.replica),
            // What a lost control group had decided last nobody knows.
            expected_epoch: if is_control_lost { 0 } else { control.groups.get(&lost.group).map_or(0, |record| record.epoch) },
        };
        let groups: Vec<RebornGroup> = self.lost.iter().zip(first..).map(reborn).collect();
        let mut known = BTreeSet::new();
        if is_control_lost {
            let is_lost = |group: GroupId| self.lost.iter().any(|lost| lost.group == group);
            for held in held().filter(|held| !is_lost(held.key.group)) {
                let members = held.membership.members().into_iter();
                known.extend(members.map(|(replica, node)| (held.key.group, replica, node)));
            }
        }
        let epoch = survey.values().map(|holdings| holdings.control.epoch).max().unwrap_or(0);
        Recovery {
            removed: self.gone.iter().copied().collect(),
            next_replica: first + groups.len() as u64,
            groups,
            known: known.into_iter().map(|(group, replica, node)| (group, Member { replica, node })).collect(),
            epoch_floor: if is_control_lost { epoch + EPOCH_MARGIN } else { 0 },
        }
    }
}

#[cfg(test)]
mod tests;
