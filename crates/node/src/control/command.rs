//! What can be asked of the control group, and its answers. A refusal is an ordinary answer: the
//! command is in the log, and every replica comes to the same.

use super::recovery::Recovery;
use super::row::{get_nodes, get_optional_node, get_profile, get_replicas, put_nodes, put_optional_node, put_profile, put_replicas};
use super::state::{NodeProfile, NodeState, Rebalancing, Removal};
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_types::wire::{DecodeError, Reader};
use flotilla_types::{GroupId, NodeId, ReplicaId};

/// A change of the control state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlCommand {
    /// A node joins. Keyed by its id: a repeated join gets the same answer and updates the profile.
    AddNode {
        /// The joiner.
        node: NodeId,
        /// What it says of itself.
        profile: NodeProfile,
        /// The dead holder of its name, which is removed by the same command (`--replace`).
        replaces: Option<NodeId>,
    },
    /// A node has started again, perhaps elsewhere or in another version.
    UpdateNode {
        /// The node.
        node: NodeId,
        /// What it says of itself now.
        profile: NodeProfile,
    },
    /// Its replicas are to go elsewhere.
    DrainNode {
        /// The node.
        node: NodeId,
    },
    /// Takes back [`ControlCommand::DrainNode`].
    ActivateNode {
        /// The node.
        node: NodeId,
    },
    /// Its replicas are to go elsewhere, and then it is to be removed.
    LeaveNode {
        /// The node.
        node: NodeId,
    },
    /// It is no member any more.
    RemoveNode {
        /// The node.
        node: NodeId,
        /// On what ground.
        removal: Removal,
    },
    /// Says where a group's replicas are wanted. A node that has a replica keeps it; the others get new ids.
    SetGroup {
        /// The group.
        group: GroupId,
        /// The record's epoch that this was decided on; with any other it is refused.
        expected_epoch: u64,
        /// Where voters are wanted.
        voters: Vec<NodeId>,
        /// Where learners are wanted.
        learners: Vec<NodeId>,
        /// Which voter should lead.
        preferred_leader: Option<NodeId>,
    },
    /// A replica is damaged or diverged: its node gets a new one in its place, under a new id.
    ReseedReplica {
        /// The group.
        group: GroupId,
        /// The replica that is given up.
        replica: ReplicaId,
    },
    /// The group's leader, which knows this record, reported a configuration without these replicas.
    ConfirmLeft {
        /// The group.
        group: GroupId,
        /// The record's epoch that the leader knew.
        expected_epoch: u64,
        /// The replicas that are gone.
        replicas: Vec<ReplicaId>,
    },
    /// Raises the cluster's format level.
    RaiseFormat {
        /// The new level.
        level: u32,
    },
    /// Pauses or resumes moves for the sake of balance.
    SetRebalancing {
        /// Which.
        rebalancing: Rebalancing,
    },
    /// Sets how fast snapshots are sent.
    SetMoveRate {
        /// Of each node; 0: as fast as it can.
        bytes_per_second: u64,
    },
    /// Gives nodes up for good, and has groups go on that lost their quorum by it.
    Recover(Recovery),
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAnswer {
    /// The node is a member, by this command or an earlier one.
    NodeAdded {
        /// The node.
        node: NodeId,
    },
    /// The node's record changed.
    NodeUpdated {
        /// The node.
        node: NodeId,
    },
    /// The group's record changed.
    GroupSet {
        /// The group.
        group: GroupId,
        /// The record's epoch now.
        epoch: u64,
    },
    /// The format level was raised.
    FormatRaised {
        /// The level.
        level: u32,
    },
    /// Moves for balance were paused or resumed.
    RebalancingSet,
    /// The groups are to be recovered.
    Recovering,
    /// It was so already.
    Unchanged,
    /// It was refused and nothing changed.
    Refused(Refusal),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another member has the name.
    #[error("the name belongs to node {holder}")]
    NameTaken {
        /// Who has it.
        holder: NodeId,
        /// What the cluster wants of the holder.
        holder_state: NodeState,
    },
    /// The node to be replaced does not have the joiner's name.
    #[error("node {node} does not have that name")]
    NotTheHolder {
        /// The node that was to be replaced.
        node: NodeId,
    },
    /// There never was such a node.
    #[error("there is no node {node}")]
    UnknownNode {
        /// Its id.
        node: NodeId,
    },
    /// The node was removed, which is for ever.
    #[error("node {node} was removed from the cluster")]
    NodeRemoved {
        /// Its id.
        node: NodeId,
    },
    /// It cannot be removed yet.
    #[error("node {node} still holds {count} replicas")]
    StillHoldsReplicas {
        /// Its id.
        node: NodeId,
        /// How many replicas are wanted there or have not left.
        count: u64,
    },
    /// The node does not speak the format that the cluster speaks or is to speak.
    #[error("node {node} does not speak format {level}")]
    FormatNotSpoken {
        /// Its id.
        node: NodeId,
        /// The format.
        level: u32,
    },
    /// There is no such group.
    #[error("there is no group {group}")]
    UnknownGroup {
        /// Its number.
        group: GroupId,
    },
    /// The group's record has changed since.
    #[error("the record of {group} has changed to epoch {epoch}")]
    StaleEpoch {
        /// The group.
        group: GroupId,
        /// Its epoch now.
        epoch: u64,
    },
    /// No voter, a node twice, or a preferred leader that is no voter.
    #[error("these cannot be the members of {group}")]
    BadMembers {
        /// The group.
        group: GroupId,
    },
}

const COMMAND_FORMAT: u8 = 1;
const ANSWER_FORMAT: u8 = 1;

impl ControlCommand {
    /// The bytes of a log entry of the control group (docs/formats.md, "Control command").
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(COMMAND_FORMAT);
        match self {
            ControlCommand::AddNode { node, profile, replaces } => {
                out.put_u8(1);
                out.put_u64_le(node.0);
                put_profile(&mut out, profile);
                put_optional_node(&mut out, *replaces);
            }
            ControlCommand::UpdateNode { node, profile } => {
                out.put_u8(2);
                out.put_u64_le(node.0);
                put_profile(&mut out, profile);
            }
            ControlCommand::DrainNode { node } => {
                out.put_u8(3);
                out.put_u64_le(node.0);
            }
            ControlCommand::ActivateNode { node } => {
                out.put_u8(4);
                out.put_u64_le(node.0);
            }
            ControlCommand::RemoveNode { node, removal } => {
                out.put_u8(5);
                out.put_u64_le(node.0);
                out.put_u8(match removal {
                    Removal::Drained => 0,
                    Removal::Dead => 1,
                });
            }
            ControlCommand::SetGroup { group, expected_epoch, voters, learners, preferred_leader } => {
                out.put_u8(6);
                out.put_u32_le(group.0);
                out.put_u64_le(*expected_epoch);
                put_nodes(&mut out, voters);
                put_nodes(&mut out, learners);
                put_optional_node(&mut out, *preferred_leader);
            }
            ControlCommand::ReseedReplica { group, replica } => {
                out.put_u8(7);
                out.put_u32_le(group.0);
                out.put_u64_le(replica.0);
            }
            ControlCommand::ConfirmLeft { group, expected_epoch, replicas } => {
                out.put_u8(8);
                out.put_u32_le(group.0);
                out.put_u64_le(*expected_epoch);
                put_replicas(&mut out, replicas);
            }
            ControlCommand::RaiseFormat { level } => {
                out.put_u8(9);
                out.put_u32_le(*level);
            }
            ControlCommand::SetRebalancing { rebalancing } => {
                out.put_u8(10);
                out.put_u8(rebalancing.to_byte());
            }
            ControlCommand::LeaveNode { node } => {
                out.put_u8(11);
                out.put_u64_le(node.0);
            }
            ControlCommand::SetMoveRate { bytes_per_second } => {
                out.put_u8(12);
                out.put_u64_le(*bytes_per_second);
            }
            ControlCommand::Recover(recovery) => {
                out.put_u8(13);
                recovery.encode(&mut out);
            }
        }
        out.freeze()
    }

    /// Reads what [`ControlCommand::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are no command. In a committed entry that means a newer format: the replica must stop.
    pub fn decode(bytes: Bytes) -> Result<ControlCommand, DecodeError> {
        let mut r = Reader::new(bytes);
        expect_format(&mut r, "control command format", COMMAND_FORMAT)?;
        let command = match r.u8("control command")? {
            1 => ControlCommand::AddNode { node: node(&mut r)?, profile: get_profile(&mut r)?, replaces: get_optional_node(&mut r)? },
            2 => ControlCommand::UpdateNode { node: node(&mut r)?, profile: get_profile(&mut r)? },
            3 => ControlCommand::DrainNode { node: node(&mut r)? },
            4 => ControlCommand::ActivateNode { node: node(&mut r)? },
            5 => ControlCommand::RemoveNode {
                node: node(&mut r)?,
                removal: if r.bool("removal")? { Removal::Dead } else { Removal::Drained },
            },
            6 => ControlCommand::SetGroup {
                group: group(&mut r)?,
                expected_epoch: r.u64("epoch")?,
                voters: get_nodes(&mut r)?,
                learners: get_nodes(&mut r)?,
                preferred_leader: get_optional_node(&mut r)?,
            },
            7 => ControlCommand::ReseedReplica { group: group(&mut r)?, replica: ReplicaId(r.u64("replica id")?) },
            8 => ControlCommand::ConfirmLeft { group: group(&mut r)?, expected_epoch: r.u64("epoch")?, replicas: get_replicas(&mut r)? },
            9 => ControlCommand::RaiseFormat { level: r.u32("format level")? },
            10 => ControlCommand::SetRebalancing { rebalancing: Rebalancing::from_byte(r.u8("rebalancing")?)? },
            11 => ControlCommand::LeaveNode { node: node(&mut r)? },
            12 => ControlCommand::SetMoveRate { bytes_per_second: r.u64("move rate")? },
            13 => ControlCommand::Recover(Recovery::decode(&mut r)?),
            other => return Err(DecodeError::Invalid("control command", u64::from(other))),
        };
        r.finish()?;
        Ok(command)
    }
}

impl ControlAnswer {
    /// The bytes in which an answer travels to the node that asked (docs/formats.md, "Control answer").
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(ANSWER_FORMAT);
        match self {
            ControlAnswer::NodeAdded { node } => put_kind_and_u64(&mut out, 1, node.0),
            ControlAnswer::NodeUpdated { node } => put_kind_and_u64(&mut out, 2, node.0),
            ControlAnswer::GroupSet { group, epoch } => {
                put_kind_and_u64(&mut out, 3, *epoch);
                out.put_u32_le(group.0);
            }
            ControlAnswer::FormatRaised { level } => put_kind_and_u64(&mut out, 4, u64::from(*level)),
            ControlAnswer::RebalancingSet => out.put_u8(5),
            ControlAnswer::Unchanged => out.put_u8(6),
            ControlAnswer::Recovering => out.put_u8(7),
            ControlAnswer::Refused(refusal) => refusal.encode(&mut out),
        }
        out.freeze()
    }

    /// Reads what [`ControlAnswer::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are no answer.
    pub fn decode(bytes: Bytes) -> Result<ControlAnswer, DecodeError> {
        let mut r = Reader::new(bytes);
        expect_format(&mut r, "control answer format", ANSWER_FORMAT)?;
        let answer = match r.u8("control answer")? {
            1 => ControlAnswer::NodeAdded { node: node(&mut r)? },
            2 => ControlAnswer::NodeUpdated { node: node(&mut r)? },
            3 => {
                let epoch = r.u64("epoch")?;
                ControlAnswer::GroupSet { group: group(&mut r)?, epoch }
            }
            4 => {
                let level = r.u64("format level")?;
                ControlAnswer::FormatRaised { level: u32::try_from(level).map_err(|_| DecodeError::Invalid("format level", level))? }
            }
            5 => ControlAnswer::RebalancingSet,
            6 => ControlAnswer::Unchanged,
            7 => ControlAnswer::Recovering,
            kind => ControlAnswer::Refused(Refusal::decode(kind, &mut r)?),
        };
        r.finish()?;
        Ok(answer)
    }
}

impl Refusal {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Refusal::NameTaken { holder, holder_state } => {
                put_kind_and_u64(out, 20, holder.0);
                out.put_u8(holder_state.to_byte());
            }
            Refusal::NotTheHolder { node } => put_kind_and_u64(out, 21, node.0),
            Refusal::UnknownNode { node } => put_kind_and_u64(out, 22, node.0),
            Refusal::NodeRemoved { node } => put_kind_and_u64(out, 23, node.0),
            Refusal::StillHoldsReplicas { node, count } => {
                put_kind_and_u64(out, 24, node.0);
                out.put_u64_le(*count);
            }
            Refusal::FormatNotSpoken { node, level } => {
                put_kind_and_u64(out, 25, node.0);
                out.put_u32_le(*level);
            }
            Refusal::UnknownGroup { group } => {
                out.put_u8(26);
                out.put_u32_le(group.0);
            }
            Refusal::StaleEpoch { group, epoch } => {
                put_kind_and_u64(out, 27, *epoch);
                out.put_u32_le(group.0);
            }
            Refusal::BadMembers { group } => {
                out.put_u8(28);
                out.put_u32_le(group.0);
            }
        }
    }

    fn decode(kind: u8, r: &mut Reader) -> Result<Refusal, DecodeError> {
        Ok(match kind {
            20 => Refusal::NameTaken { holder: node(r)?, holder_state: NodeState::from_byte(r.u8("node state")?)? },
            21 => Refusal::NotTheHolder { node: node(r)? },
            22 => Refusal::UnknownNode { node: node(r)? },
            23 => Refusal::NodeRemoved { node: node(r)? },
            24 => Refusal::StillHoldsReplicas { node: node(r)?, count: r.u64("replica count")? },
            25 => Refusal::FormatNotSpoken { node: node(r)?, level: r.u32("format level")? },
            26 => Refusal::UnknownGroup { group: group(r)? },
            27 => {
                let epoch = r.u64("epoch")?;
                Refusal::StaleEpoch { group: group(r)?, epoch }
            }
            28 => Refusal::BadMembers { group: group(r)? },
            other => return Err(DecodeError::Invalid("control answer", u64::from(other))),
        })
    }
}

fn put_kind_and_u64(out: &mut BytesMut, kind: u8, value: u64) {
    out.put_u8(kind);
    out.put_u64_le(value);
}

fn node(r: &mut Reader) -> Result<NodeId, DecodeError> {
    r.u64("node id").map(NodeId)
}

fn group(r: &mut Reader) -> Result<GroupId, DecodeError> {
    r.u32("group id").map(GroupId)
}

pub(super) fn expect_format(r: &mut Reader, what: &'static str, format: u8) -> Result<(), DecodeError> {
    match r.u8(what)? {
        found if found == format => Ok(()),
        other => Err(DecodeError::Invalid(what, u64::from(other))),
    }
}
