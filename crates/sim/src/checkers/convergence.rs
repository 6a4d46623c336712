//! Liveness: once everything is healed, the cluster comes to rest within a bound. Every group has
//! one leader, its configuration is what the control group wants, and all its replicas have applied
//! the same.
//!
//! The world asks again and again until nothing is amiss or the bound is met; what is amiss then is
//! the violation.

use super::Violation;
use flotilla_types::{GroupId, LogIndex, NodeId, ReplicaId, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What one replica shows of itself.
#[derive(Clone, Debug)]
pub struct ReplicaSeen {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// Its term.
    pub term: Term,
    /// Whether it leads.
    pub leads: bool,
    /// Up to where it applied.
    pub applied: LogIndex,
    /// Up to where it knows entries to be committed.
    pub commit: LogIndex,
    /// Nodes of the voters in its configuration.
    pub voters: BTreeSet<NodeId>,
    /// Nodes of the learners.
    pub learners: BTreeSet<NodeId>,
    /// Whether its configuration is joint.
    pub joint: bool,
}

/// Where the control group wants a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Nodes of voters.
    pub voters: BTreeSet<NodeId>,
    /// Nodes of learners.
    pub learners: BTreeSet<NodeId>,
}

/// What is amiss now, for every group that is wanted; empty: the cluster is at rest.
pub fn amiss(wanted: &BTreeMap<GroupId, Wanted>, seen: &[ReplicaSeen]) -> Vec<String> {
    look(wanted, seen, true)
}

/// As [`amiss`], but replicas may lag: what must hold before a disk may be lost.
pub fn misplaced(wanted: &BTreeMap<GroupId, Wanted>, seen: &[ReplicaSeen]) -> Vec<String> {
    look(wanted, seen, false)
}

fn look(wanted: &BTreeMap<GroupId, Wanted>, seen: &[ReplicaSeen], lag_counts: bool) -> Vec<String> {
    let mut amiss = Vec::new();
    for (group, wanted) in wanted {
        let replicas: Vec<&ReplicaSeen> = seen.iter().filter(|r| r.group == *group).collect();
        let term = replicas.iter().map(|r| r.term).max();
        let leaders: Vec<&&ReplicaSeen> = replicas.iter().filter(|r| r.leads && Some(r.term) == term).collect();
        let [leader] = leaders[..] else {
            amiss.push(format!("{group} has {} leaders in {term:?}", leaders.len()));
            continue;
        };
        if leader.joint || leader.voters != wanted.voters || leader.learners != wanted.learners {
            amiss.push(format!(
                "{group} has voters {:?}, learners {:?}, joint {}, wanted are {wanted:?}",
                leader.voters, leader.learners, leader.joint
            ));
        }
        // As long as one has not applied the end of a joint change, what it left may be needed to elect.
        for replica in replicas.iter().filter(|r| r.joint && !r.leads) {
            amiss.push(format!("{group}/{} on {} is joint", replica.replica, replica.node));
        }
        let members: BTreeSet<NodeId> = wanted.voters.union(&wanted.learners).copied().collect();
        let present: BTreeSet<NodeId> = replicas.iter().map(|r| r.node).collect();
        if members != present {
            amiss.push(format!("{group} lies on {present:?}, wanted on {members:?}"));
        }
        for replica in replicas.iter().filter(|r| lag_counts && (r.applied != leader.commit || r.term != leader.term)) {
            let (applied, term) = (replica.applied, replica.term);
            amiss.push(format!(
                "{group}/{} on {} is at {applied} in {term}, the leader's commit is {} in {}",
                replica.replica, replica.node, leader.commit, leader.term
            ));
        }
    }
    amiss
}

/// The violation that a cluster which does not come to rest commits.
pub fn violation(amiss: &[String], waited: Duration) -> Violation {
    Violation::new("convergence", format!("still amiss {} s after everything was healed:\n    {}", waited.as_secs(), amiss.join("\n    ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(node: u64, leads: bool, applied: u64) -> ReplicaSeen {
        ReplicaSeen {
            group: GroupId(1),
            replica: ReplicaId(node),
            node: NodeId(node),
            term: Term(3),
            leads,
            applied: LogIndex(applied),
            commit: LogIndex(9),
            voters: [NodeId(1), NodeId(2)].into(),
            learners: BTreeSet::new(),
            joint: false,
        }
    }

    #[test]
    fn whatever_is_not_at_rest_is_named() {
        let wanted = BTreeMap::from([(GroupId(1), Wanted { voters: [NodeId(1), NodeId(2)].into(), learners: BTreeSet::new() })]);
        let amiss = |seen: &[ReplicaSeen]| amiss(&wanted, seen);
        assert_eq!(amiss(&[replica(1, true, 9), replica(2, false, 9)]), Vec::<String>::new());
        assert_eq!(amiss(&[replica(1, false, 9), replica(2, false, 9)]).len(), 1, "no leader");
        assert_eq!(amiss(&[replica(1, true, 9), replica(2, false, 8)]).len(), 1, "behind");
        assert_eq!(amiss(&[replica(1, true, 9)]).len(), 1, "missing");
        assert_eq!(amiss(&[replica(1, true, 9), replica(2, false, 9), replica(3, false, 9)]).len(), 1, "left over");
        let joint = |r: ReplicaSeen| ReplicaSeen { joint: true, ..r };
        assert_eq!(amiss(&[joint(replica(1, true, 9)), replica(2, false, 9)]).len(), 1, "half way");
        assert_eq!(amiss(&[]).len(), 1, "nothing at all");
    }
}
