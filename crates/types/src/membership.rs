//! Who the replicas of a group are, and how that changes (Raft dissertation, chapter 4; joint
//! configurations as in section 4.3).

use crate::wire::{DecodeError, Reader};
use crate::{NodeId, ReplicaId};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::BTreeMap;

/// A replica and the node it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Member {
    /// The replica's id, which is its Raft id.
    pub replica: ReplicaId,
    /// The node that holds it.
    pub node: NodeId,
}

/// What a replica may do in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Counts towards quorums and may lead.
    Voter,
    /// Gets the log, counts towards nothing.
    Learner,
}

/// A group's configuration, as applied. While `outgoing` is not empty it is joint: every decision
/// needs a majority of `voters` and a majority of `outgoing`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The voters (the incoming half if joint).
    pub voters: BTreeMap<ReplicaId, NodeId>,
    /// The outgoing half if joint, else empty.
    pub outgoing: BTreeMap<ReplicaId, NodeId>,
    /// The learners.
    pub learners: BTreeMap<ReplicaId, NodeId>,
    /// Outgoing voters that become learners when the joint configuration is left.
    pub learners_next: BTreeMap<ReplicaId, NodeId>,
}

/// One step of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberStep {
    /// Make it a voter, whether it was a learner or nothing.
    AddVoter(Member),
    /// Make it a learner, whether it was a voter or nothing.
    AddLearner(Member),
    /// Take it out.
    Remove(ReplicaId),
}

/// A change of a group's configuration. One step is made at once; several go through a joint
/// configuration, which the leader leaves by an empty change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipChange {
    /// The steps; none: leave the joint configuration.
    pub steps: Vec<MemberStep>,
}

impl Membership {
    /// A configuration of voters only.
    pub fn of_voters(members: impl IntoIterator<Item = Member>) -> Membership {
        Membership { voters: members.into_iter().map(|m| (m.replica, m.node)).collect(), ..Membership::default() }
    }

    /// Whether decisions need two majorities.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether the replica is in it, in any role.
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.node_of(replica).is_some()
    }

    /// The node a replica is on.
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        [&self.voters, &self.outgoing, &self.learners, &self.learners_next].into_iter().find_map(|m| m.get(&replica).copied())
    }

    /// A replica's role now; a voter of either half is a voter.
    pub fn role_of(&self, replica: ReplicaId) -> Option<Role> {
        if self.voters.contains_key(&replica) || self.outgoing.contains_key(&replica) {
            Some(Role::Voter)
        } else if self.learners.contains_key(&replica) {
            Some(Role::Learner)
        } else {
            None
        }
    }

    /// All members in the order of their ids, each once.
    pub fn members(&self) -> BTreeMap<ReplicaId, NodeId> {
        let mut all = self.voters.clone();
        all.extend(&self.outgoing);
        all.extend(&self.learners);
        all.extend(&self.learners_next);
        all
    }

    /// The replica on a node, if any.
    pub fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        [&self.voters, &self.outgoing, &self.learners, &self.learners_next]
            .into_iter()
            .find_map(|m| m.iter().find(|(_, n)| **n == node).map(|(r, _)| *r))
    }

    /// Whether those for which `agrees` is true are a quorum: a majority of each half. Learners
    /// never count. An empty configuration has no quorum.
    pub fn is_quorum(&self, mut agrees: impl FnMut(ReplicaId, NodeId) -> bool) -> bool {
        let mut majority = |half: &BTreeMap<ReplicaId, NodeId>| {
            let count = half.iter().filter(|(r, n)| agrees(**r, **n)).count();
            count > half.len() / 2
        };
        !self.voters.is_empty() && majority(&self.voters) && (self.outgoing.is_empty() || majority(&self.outgoing))
    }

    /// Appends the encoding (docs/formats.md, "Membership").
    pub fn encode(&self, out: &mut BytesMut) {
        for half in [&self.voters, &self.outgoing, &self.learners, &self.learners_next] {
            out.put_u32_le(half.len() as u32);
            for (replica, node) in half {
                out.put_u64_le(replica.0);
                out.put_u64_le(node.0);
            }
        }
    }

    /// Reads what [`Membership::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are no membership.
    pub fn decode(reader: &mut Reader) -> Result<Membership, DecodeError> {
        let mut half = || -> Result<BTreeMap<ReplicaId, NodeId>, DecodeError> {
            let count = reader.count(16, "membership")?;
            (0..count).map(|_| Ok((ReplicaId(reader.u64("replica id")?), NodeId(reader.u64("node id")?)))).collect()
        };
        Ok(Membership { voters: half()?, outgoing: half()?, learners: half()?, learners_next: half()? })
    }
}

impl MembershipChange {
    /// The change that leaves a joint configuration.
    pub fn leave_joint() -> MembershipChange {
        MembershipChange::default()
    }

    /// The encoding (docs/formats.md, "Membership change").
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(4 + self.steps.len() * 17);
        out.put_u32_le(self.steps.len() as u32);
        for step in &self.steps {
            let (kind, replica, node) = match *step {
                MemberStep::AddVoter(m) => (0, m.replica, m.node),
                MemberStep::AddLearner(m) => (1, m.replica, m.node),
                MemberStep::Remove(replica) => (2, replica, NodeId(0)),
            };
            out.put_u8(kind);
            out.put_u64_le(replica.0);
            out.put_u64_le(node.0);
        }
        out.freeze()
    }

    /// Reads what [`MembershipChange::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are no change.
    pub fn decode(bytes: Bytes) -> Result<MembershipChange, DecodeError> {
        let mut reader = Reader::new(bytes);
        let count = reader.count(17, "membership change")?;
        let mut steps = Vec::with_capacity(count);
        for _ in 0..count {
            let kind = reader.u8("step kind")?;
            let member = Member { replica: ReplicaId(reader.u64("replica id")?), node: NodeId(reader.u64("node id")?) };
            steps.push(match kind {
                0 => MemberStep::AddVoter(member),
                1 => MemberStep::AddLearner(member),
                2 => MemberStep::Remove(member.replica),
                other => return Err(DecodeError::Invalid("step kind", u64::from(other))),
            });
        }
        reader.finish()?;
        Ok(MembershipChange { steps })
    }
}
