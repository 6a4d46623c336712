//! What the control group decides when groups have lost their quorum for good (decision record 0017): which nodes are
//! given up, and which replica each such group goes on with, under a new id.
//!
//! The command is applied like any other where the control group has a quorum. Where it has none, it is applied in the very
//! write that makes the control group's own surviving replica its lone voter.

use super::command::{ControlAnswer, Refusal};
use super::row::{RowKey, get_nodes, put_nodes};
use super::state::{ControlState, GroupRecord, NodeState, Rebirth};
use bytes::{BufMut, BytesMut};
use flotilla_types::wire::{DecodeError, Reader};
use flotilla_types::{GroupId, Member, NodeId, ReplicaId};

/// Gives nodes up for good, and has groups go on without them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Members that never come back.
    pub removed: Vec<NodeId>,
    /// The groups that lost their quorum.
    pub groups: Vec<RebornGroup>,
    /// Members of groups that did not, which a control state that lost its latest commands may never have heard of:
    /// they must not be taken for removed ones.
    pub known: Vec<(GroupId, Member)>,
    /// The epoch rises above this.
    pub epoch_floor: u64,
    /// The next replica id to give afterwards. It leaves a gap behind all ids that may have been given.
    pub next_replica: u64,
}

/// A group that goes on with one voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebornGroup {
    /// The group.
    pub group: GroupId,
    /// Its voter, under an id that was never given.
    pub voter: Member,
    /// The replica there that it is made of; `None`: it begins empty.
    pub from: Option<ReplicaId>,
    /// The record's epoch that this was decided on; with any other it is refused. 0: any will do.
    pub expected_epoch: u64,
}

impl ControlState {
    pub(super) fn apply_recovery(&mut self, recovery: &Recovery, rows: &mut Vec<RowKey>) -> Result<ControlAnswer, Refusal> {
        self.check_recovery(recovery)?;
        for node in &recovery.removed {
            let record = self.nodes.get_mut(node).expect("checked");
            if record.state != NodeState::Removed {
                record.state = NodeState::Removed;
                rows.push(RowKey::Node(*node));
            }
        }
        for (group, member) in &recovery.known {
            let record = self.groups.get_mut(group).expect("checked");
            if !record.all().any(|known| known.replica == member.replica) {
                record.leaving.push(*member);
                rows.push(RowKey::Group(*group));
            }
        }
        for reborn in &recovery.groups {
            let RebornGroup { group, voter, from, .. } = *reborn;
            let record = GroupRecord {
                epoch: 0,
                voters: vec![voter],
                learners: Vec::new(),
                // Until it has become the new one it must not be taken for removed.
                leaving: from.map(|replica| Member { replica, node: voter.node }).into_iter().collect(),
                lost: Vec::new(),
                preferred_leader: Some(voter.node),
                rebirth: Some(Rebirth { voter: voter.replica, from }),
            };
            self.groups.insert(group, record);
            rows.push(RowKey::Group(group));
        }
        rows.sort_unstable();
        rows.dedup();
        if rows.is_empty() {
            return Ok(ControlAnswer::Unchanged);
        }
        self.next_replica = recovery.next_replica;
        self.epoch = self.epoch.max(recovery.epoch_floor);
        Ok(ControlAnswer::Recovering)
    }

    fn check_recovery(&self, recovery: &Recovery) -> Result<(), Refusal> {
        if let Some(node) = recovery.removed.iter().find(|node| !self.nodes.contains_key(node)) {
            return Err(Refusal::UnknownNode { node: *node });
        }
        if let Some((group, _)) = recovery.known.iter().find(|(group, _)| !self.groups.contains_key(group)) {
            return Err(Refusal::UnknownGroup { group: *group });
        }
        for RebornGroup { group, voter, from: _, expected_epoch } in recovery.groups.iter().copied() {
            let record = self.groups.get(&group).ok_or(Refusal::UnknownGroup { group })?;
            if expected_epoch != 0 && expected_epoch != record.epoch {
                return Err(Refusal::StaleEpoch { group, epoch: record.epoch });
            }
            let node = self.nodes.get(&voter.node).ok_or(Refusal::UnknownNode { node: voter.node })?;
            if node.state == NodeState::Removed || recovery.removed.contains(&voter.node) {
                return Err(Refusal::NodeRemoved { node: voter.node });
            }
            if voter.replica.0 < self.next_replica || voter.replica.0 >= recovery.next_replica {
                return Err(Refusal::BadMembers { group });
            }
        }
        Ok(())
    }
}

impl Recovery {
    /// Appends the encoding (docs/formats.md, "Control command").
    pub fn encode(&self, out: &mut BytesMut) {
        put_nodes(out, &self.removed);
        out.put_u32_le(self.groups.len() as u32);
        for RebornGroup { group, voter, from, expected_epoch } in &self.groups {
            out.put_u32_le(group.0);
            out.put_u64_le(voter.replica.0);
            out.put_u64_le(voter.node.0);
            out.put_u64_le(from.map_or(0, |replica| replica.0));
            out.put_u64_le(*expected_epoch);
        }
        out.put_u32_le(self.known.len() as u32);
        for (group, member) in &self.known {
            out.put_u32_le(group.0);
            out.put_u64_le(member.replica.0);
            out.put_u64_le(member.node.0);
        }
        out.put_u64_le(self.epoch_floor);
        out.put_u64_le(self.next_replica);
    }

    /// Reads what [`Recovery::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode(r: &mut Reader) -> Result<Recovery, DecodeError> {
        let group = |r: &mut Reader| r.u32("group id").map(GroupId);
        let member =
            |r: &mut Reader| Ok::<_, DecodeError>(Member { replica: ReplicaId(r.u64("replica id")?), node: NodeId(r.u64("node id")?) });
        let removed = get_nodes(r)?;
        let reborn = |r: &mut Reader| {
            let (group, voter, from) = (group(r)?, member(r)?, r.u64("replica id")?);
            let from = (from > 0).then_some(ReplicaId(from));
            Ok::<_, DecodeError>(RebornGroup { group, voter, from, expected_epoch: r.u64("epoch")? })
        };
        let groups = (0..r.count(36, "recovered groups")?).map(|_| reborn(r)).collect::<Result<_, _>>()?;
        let known = (0..r.count(20, "known members")?).map(|_| Ok((group(r)?, member(r)?))).collect::<Result<_, DecodeError>>()?;
        Ok(Recovery { removed, groups, known, epoch_floor: r.u64("epoch")?, next_replica: r.u64("next replica")? })
    }
}
