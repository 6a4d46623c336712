//! Replicas of a group that differ (decision 11). Hashes of one index are compared by the group's leader: the
//! chained ones over what was applied, and those of scrubs over what is stored. Only what a majority of the voters shares
//! convicts another; without a majority the group refuses writes.

use crate::message::PeerMessage;
use crate::node::Node;
use crate::notice::Notice;
use flotilla_types::{GroupId, LogIndex, Membership, ReplicaId, ReplicaKey};
use std::collections::BTreeMap;

/// Checkpoints of a group remembered for comparison.
const CHECKPOINTS_KEPT: usize = 8;

/// What a comparison came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// All that are there agree.
    Agreed,
    /// Some differ, and it takes more voters' hashes to tell which.
    Open,
    /// These differ from a majority.
    Minority(Vec<ReplicaId>),
    /// All voters' hashes are there, and no majority agrees.
    Undecided,
}

/// Compares hashes of one index.
pub(crate) fn compare(hashes: &BTreeMap<ReplicaId, u64>, membership: &Membership) -> Comparison {
    let mut values = hashes.values();
    let first = values.next();
    if values.all(|other| Some(other) == first) {
        return Comparison::Agreed;
    }
    let agreed = hashes.values().copied().find(|hash| membership.is_quorum(|id, _| hashes.get(&id) == Some(hash)));
    match agreed {
        Some(agreed) => Comparison::Minority(hashes.iter().filter(|(_, hash)| **hash != agreed).map(|(id, _)| *id).collect()),
        None if membership.voters.keys().all(|voter| hashes.contains_key(voter)) => Comparison::Undecided,
        None => Comparison::Open,
    }
}

impl Node {
    pub(crate) fn report_checkpoint(&mut self, group: GroupId, index: LogIndex, hash: u64) {
        let Some(replica) = self.replicas.get(&group) else { return };
        let own = replica.key.replica;
        if replica.is_leader() {
            self.handle_checkpoint(group, own, index, hash);
        } else if let Some(node) = replica.leader_node().filter(|node| self.link_is_up(*node)) {
            self.send(node, PeerMessage::Checkpoint { group, replica: own, index, hash });
        }
    }

    /// Compares what the replicas of a group led here say they are at a named index.
    pub(crate) fn handle_checkpoint(&mut self, group: GroupId, from: ReplicaId, index: LogIndex, hash: u64) {
        let Some(replica) = self.replicas.get_mut(&group).filter(|replica| replica.is_leader()) else { return };
        if replica.group.membership().role_of(from).is_none() {
            return;
        }
        let at = replica.checkpoints.entry(index).or_default();
        at.insert(from, hash);
        let comparison = compare(at, replica.group.membership());
        while replica.checkpoints.len() > CHECKPOINTS_KEPT {
            replica.checkpoints.pop_first();
        }
        self.act_on(group, index, &comparison);
    }

    /// Does what a comparison calls for.
    pub(crate) fn act_on(&mut self, group: GroupId, index: LogIndex, comparison: &Comparison) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let minority = match comparison {
            Comparison::Agreed | Comparison::Open => return,
            Comparison::Undecided => {
                if !std::mem::replace(&mut replica.diverged, true) {
                    let line = format!("{group}: its replicas differ at {index} and no majority agrees; its writes are refused");
                    self.out.notices.push(Notice::error(line).of_group(group));
                }
                return;
            }
            Comparison::Minority(minority) => minority,
        };
        replica.diverged = false;
        let (own, membership) = (replica.key.replica, replica.group.membership().clone());
        for id in minority {
            if *id == own {
                self.handle_diverged(group, own, index);
            } else if let Some(node) = membership.node_of(*id) {
                self.send(node, PeerMessage::Diverged { group, replica: *id, index });
            }
        }
    }

    pub(crate) fn handle_diverged(&mut self, group: GroupId, replica: ReplicaId, index: LogIndex) {
        let key = ReplicaKey { group, replica };
        if self.replicas.get(&group).is_some_and(|here| here.key == key) {
            let line = format!("{key} differs from a majority of its group at {index} and is re-seeded");
            self.out.notices.push(Notice::error(line).of_replica(key));
            self.retire_damaged(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_types::{Member, NodeId};

    #[test]
    fn only_a_majority_of_voters_convicts() {
        let members = (1..=3).map(|id| Member { replica: ReplicaId(id), node: NodeId(id) });
        let mut membership = Membership::of_voters(members);
        membership.learners.insert(ReplicaId(4), NodeId(4));
        let compare = |hashes: &[(u64, u64)]| compare(&hashes.iter().map(|(id, hash)| (ReplicaId(*id), *hash)).collect(), &membership);
        assert_eq!(compare(&[(1, 7)]), Comparison::Agreed);
        assert_eq!(compare(&[(1, 7), (2, 7), (3, 7), (4, 7)]), Comparison::Agreed);
        assert_eq!(compare(&[(1, 7), (2, 8)]), Comparison::Open, "one of two, and a third to come");
        assert_eq!(compare(&[(1, 7), (4, 8)]), Comparison::Open, "a learner is no majority");
        assert_eq!(compare(&[(1, 7), (2, 8), (3, 7)]), Comparison::Minority(vec![ReplicaId(2)]));
        assert_eq!(compare(&[(1, 7), (2, 7), (4, 8)]), Comparison::Minority(vec![ReplicaId(4)]));
        assert_eq!(compare(&[(1, 7), (2, 8), (3, 9)]), Comparison::Undecided);
    }
}
