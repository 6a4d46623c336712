//! What nodes say to each other, and its bytes (docs/formats.md, "Messages between nodes").
//!
//! A link carries frames; a frame carries messages of all groups. What travels apart, on a
//! connection of its own, is the snapshots' rows: see [`PeerMessage::channel`].

use crate::fitness::Unfit;
use crate::request::{Failure, Reply, Request};
use crate::scan::{ScanAsk, ScanItem, ScanPart};
use bytes::Bytes;
use flotilla_consensus::{Message, MessageKind, ReadConfirm, ReadConfirmed};
use flotilla_types::{GroupId, LogIndex, NodeId, ReplicaId, Term, Timestamp};

/// One message between two nodes.
#[derive(Clone, Debug)]
pub enum PeerMessage {
    /// A Raft message between two replicas of a group.
    Raft {
        /// The group of both.
        group: GroupId,
        /// What Raft says; it holds sender and receiver.
        message: Message,
    },
    /// The addressed replica is not here and will never be again.
    Gone {
        /// The group.
        group: GroupId,
        /// The replica that was addressed.
        replica: ReplicaId,
    },
    /// A client's request, forwarded to the shard's leader. One hop: the receiver answers it or
    /// refuses it, and never forwards it.
    Forward(Forward),
    /// The answer to a [`PeerMessage::Forward`].
    Reply {
        /// The forwarder's number for the request.
        id: u64,
        /// The answer.
        reply: Reply,
        /// With `NotLeader`: who leads, as far as the answering node knows.
        leader: Option<NodeId>,
    },
    /// "Am I still the leader of these groups?": one round for all groups with waiting reads.
    ReadConfirm(ReadConfirm),
    /// Which groups of the round this node shares the term of.
    ReadConfirmed(ReadConfirmed),
    /// A part of a snapshot on its way to a replica.
    SnapshotChunk {
        /// The group.
        group: GroupId,
        /// The sending replica.
        from: ReplicaId,
        /// The receiving replica.
        to: ReplicaId,
        /// The sender's number for the transfer.
        transfer: u64,
        /// The chunk's position, from 0.
        number: u32,
        /// The chunk in its own checksummed format.
        bytes: Bytes,
        /// With the last chunk: the Raft message that offers the snapshot, and the state it was
        /// taken at, encoded.
        finish: Option<(Box<Message>, Bytes)>,
    },
    /// The receiver took the chunk and may be sent the next, or gives the transfer up.
    SnapshotTaken {
        /// The group.
        group: GroupId,
        /// The sender's number for the transfer.
        transfer: u64,
        /// The position of the chunk.
        number: u32,
        /// Whether to go on.
        accepted: bool,
    },
    /// A node tells the control group's leader how it is; see [`crate::control`].
    Report(Bytes),
    /// The control group's state, pushed to a node that holds no voter of it; encoded.
    ControlCopy(Bytes),
    /// Ask for a [`PeerMessage::ControlCopy`] if the asked node has a later epoch.
    ControlAsk {
        /// The epoch the asking node has.
        epoch: u64,
        /// A replica without a leader asks whether it is still wanted (none: just the copy).
        orphan: Option<(GroupId, ReplicaId)>,
    },
    /// The control group's leader answers a report: this is the epoch in force.
    ControlEpoch {
        /// The epoch.
        epoch: u64,
    },
    /// A follower's chained hash at a named index, for the leader to compare (decision 11).
    Checkpoint {
        /// The group.
        group: GroupId,
        /// The reporting replica.
        replica: ReplicaId,
        /// Where.
        index: LogIndex,
        /// The chained hash there.
        hash: u64,
    },
    /// What a scrub found at a replica, for the leader to compare (decision 11).
    Scrubbed {
        /// The group.
        group: GroupId,
        /// The reporting replica.
        replica: ReplicaId,
        /// The mark's index.
        index: LogIndex,
        /// The mark's term.
        term: Term,
        /// The hash over its rows there; `None`: it could not take part.
        hash: Option<u64>,
    },
    /// Where members are reached, as the sender was told by themselves: not agreed on.
    Addresses(Vec<(NodeId, String)>),
    /// The sender should not lead at present.
    Unfit {
        /// Why.
        reason: Unfit,
    },
    /// What the sender's wall clock shows (decision 5).
    Clock {
        /// That.
        wall: Timestamp,
    },
    /// The leader found this replica's hash to differ from a majority's: it must be re-seeded.
    Diverged {
        /// The group.
        group: GroupId,
        /// The replica that differs.
        replica: ReplicaId,
        /// Where.
        index: LogIndex,
    },
    /// "What do you hold?": before a recovery.
    HoldingsAsk {
        /// The asking node's number for the question.
        number: u64,
    },
    /// The answer to a [`PeerMessage::HoldingsAsk`].
    Holdings {
        /// The asking node's number for the question.
        number: u64,
        /// [`crate::recovery::holdings::Holdings`], encoded.
        holdings: Bytes,
    },
    /// What an operator decided about groups that lost their quorum, for the node that can carry it out; encoded.
    RecoveryOrder(Bytes),
    /// A part of a scan, for the node that leads these shards. One hop, as a forward.
    Scan(ScanForward),
    /// The answer to a [`PeerMessage::Scan`].
    ScanPart {
        /// The asking node's number for the part.
        number: u64,
        /// What the shards hold, and which are led elsewhere.
        answer: Result<ScanPart, Failure>,
    },
}

/// A part of a scan as it is asked for.
#[derive(Clone, Debug)]
pub struct ScanForward {
    /// The asking node's number for it, never used twice by a process.
    pub number: u64,
    /// How long the answer is of use, in milliseconds.
    pub expires_in_ms: u32,
    /// The shards' groups.
    pub groups: Vec<GroupId>,
    /// What is asked of them.
    pub ask: ScanAsk,
}

/// A forwarded request.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The forwarding node's number for it, never used twice by a process.
    pub id: u64,
    /// How long the answer is of use, in milliseconds.
    pub expires_in_ms: u32,
    /// The shard's group.
    pub group: GroupId,
    /// The term of the forwarding node's own voter in that group at this moment, if it has one: it
    /// confirms a leader of that term for reads that come with it (decision 2).
    pub term: Option<Term>,
    /// What is asked.
    pub request: Request,
}

/// Which connection a message travels on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Raft, forwarded requests and their replies: in order.
    Main,
    /// Rows of snapshots.
    Bulk,
}

impl PeerMessage {
    /// The connection it travels on.
    pub fn channel(&self) -> Channel {
        match self {
            PeerMessage::SnapshotChunk { .. } => Channel::Bulk,
            _ => Channel::Main,
        }
    }

    /// About how many bytes its encoding has, if it may be large; less for what never is.
    pub fn encoded_bytes_about(&self) -> usize {
        /// Of what is around keys, values and entries.
        const FIXED: usize = 128;
        FIXED
            + match self {
                PeerMessage::Raft { message, .. } => message.encoded_bytes_max(),
                PeerMessage::Forward(forward) => forward.request.bytes(),
                PeerMessage::Reply { reply, .. } => reply.value_bytes(),
                PeerMessage::SnapshotChunk { bytes, .. }
                | PeerMessage::Report(bytes)
                | PeerMessage::ControlCopy(bytes)
                | PeerMessage::Holdings { holdings: bytes, .. }
                | PeerMessage::RecoveryOrder(bytes) => bytes.len(),
                PeerMessage::ScanPart { answer: Ok(part), .. } => part.chunk.items.iter().map(ScanItem::bytes).sum(),
                _ => 0,
            }
    }

    /// The group within which it must keep its order. Raft takes everything but appends in any order, and refuses an append
    /// that overtakes another, which is then sent again.
    pub fn ordered_by(&self) -> Option<GroupId> {
        match self {
            PeerMessage::Raft { group, message } => (message.kind() == MessageKind::Append).then_some(*group),
            PeerMessage::SnapshotChunk { group, .. } => Some(*group),
            _ => None,
        }
    }
}
