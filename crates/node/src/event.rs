//! Everything that can happen to a node, as values. The world (`server` or `sim`) makes them.

use crate::message::PeerMessage;
use crate::request::Request;
use crate::state_machine::GroupApplied;
use bytes::Bytes;
use flotilla_types::{GroupId, Instant, LogIndex, NodeId, ReplicaId, ReplicaKey, Timestamp};
use std::collections::BTreeMap;

/// The time of an event, by the node's two clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The monotonic clock: for deadlines and ticks.
    pub instant: Instant,
    /// The wall clock: only ever an input to a shard's replicated clock.
    pub wall: Timestamp,
}

/// A door's name for a request under way; the reply bears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What a node is given.
#[derive(Debug)]
pub enum Event {
    /// A client's request came through a door.
    Request {
        /// Comes back with the reply, exactly once.
        ticket: Ticket,
        /// What is asked.
        request: Request,
        /// When the client must have an answer.
        expires: Instant,
    },
    /// A peer's messages came, in the order it sent them.
    Messages {
        /// The peer.
        from: NodeId,
        /// What it said.
        messages: Vec<PeerMessage>,
    },
    /// A link to a peer is established.
    LinkUp {
        /// The peer.
        peer: NodeId,
    },
    /// The link to a peer broke: what was sent may or may not have arrived, nothing more will come
    /// from the old connection.
    LinkDown {
        /// The peer.
        peer: NodeId,
        /// The peer's process is known to be gone (its address refuses connections).
        refused: bool,
    },
    /// A peer was heard from at another address than it is dialed at.
    PeerAt {
        /// The peer.
        peer: NodeId,
        /// HOST:PORT where it says that it is reached.
        address: String,
    },
    /// A peer says that this node was removed from the cluster.
    Removed {
        /// The peer.
        by: NodeId,
    },
    /// The log job of this number, and all before it, are on disk.
    LogSynced {
        /// The number of the [`crate::effect::LogJob`].
        job: u64,
    },
    /// An append found no room on the link, or no link: the follower will miss it.
    AppendUnsent {
        /// The group.
        group: GroupId,
        /// The replica it was for.
        to: ReplicaId,
    },
    /// The log found the disk full: nothing of the job that was to be written next is there, and it is tried
    /// again until there is room ([`Event::LogSynced`]).
    LogDiskFull,
    /// The room on the disk has become low, or is no longer.
    DiskRoom {
        /// Whether writes that need more of it must be refused.
        is_low: bool,
    },
    /// A [`crate::effect::StoreJob`] was done.
    Store(StoreEvent),
    /// A [`crate::scan::ScanJob`] was done.
    Scanned {
        /// The number of its part.
        part: u64,
        /// What was read.
        scanned: crate::scan::Scanned,
    },
    /// The time that [`crate::Node::next_timer`] named has come.
    Timer,
    /// Hand leadership over and refuse new work; the process is about to end.
    ShutDown,
}

/// What came of a [`crate::effect::StoreJob`].
#[derive(Debug)]
pub enum StoreEvent {
    /// Entries were applied.
    Applied(Vec<GroupApplied>),
    /// All that was applied before is durable up to these indexes.
    Persisted(BTreeMap<ReplicaKey, LogIndex>),
    /// A view for an outgoing snapshot was opened, or the next chunk of one was read.
    SnapshotChunk {
        /// The sender's number for the transfer.
        transfer: u64,
        /// The next chunk; `None`: the replica has no state to send.
        chunk: Option<SnapshotRead>,
    },
    /// Rows of an incoming snapshot were written into their generation.
    SnapshotRows {
        /// The group and replica that receives.
        replica: ReplicaKey,
        /// The receiving generation.
        generation: u32,
        /// Whether the chunk verified and followed the one before.
        accepted: bool,
    },
    /// The generation was switched, durably, or could not be.
    SnapshotInstalled {
        /// The group and replica that receives.
        replica: ReplicaKey,
        /// The generation that was to be put in force.
        generation: u32,
        /// The state in force; `None` if the snapshot was not complete.
        state: Option<Box<crate::state_machine::ReplicaState>>,
    },
    /// What came of a [`crate::StoreJob::Rebirth`]: durable, or why it cannot be, with nothing written.
    Reborn {
        /// The new replica.
        replica: ReplicaKey,
        /// Its state.
        state: Result<Box<crate::state_machine::ReplicaState>, String>,
    },
    /// The replica's rows are gone (or listed to be swept).
    Destroyed {
        /// The replica that was.
        replica: ReplicaKey,
    },
    /// The keys that a [`crate::StoreJob::FindExpired`] asked for, or why the replica cannot go on.
    ExpiredFound {
        /// Whose.
        replica: ReplicaKey,
        /// They.
        found: Result<crate::state_machine::ExpiredKeys, crate::state_machine::StopReason>,
    },
    /// Rows of a replica cannot be read as they were written: found by a read, a scan or an outgoing snapshot, and
    /// never passed on.
    Damaged {
        /// Whose; those of an earlier life of the group here are passed over.
        replica: ReplicaKey,
        /// What was found.
        detail: String,
    },
    /// What came of a [`crate::StoreJob::Scrub`].
    Scrubbed {
        /// Whose.
        replica: ReplicaKey,
        /// The mark's index.
        index: LogIndex,
        /// What came of it.
        step: crate::state_machine::ScrubStep,
    },
    /// Damage or an I/O error in the store: this replica cannot go on.
    Failed {
        /// The replica concerned; `None`: the whole store.
        replica: Option<ReplicaKey>,
        /// What happened.
        detail: String,
        /// Whether the disk is full.
        disk_full: bool,
    },
}

/// One chunk of an outgoing snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotRead {
    /// The group.
    pub group: GroupId,
    /// The state at the view: index, term, membership.
    pub state: crate::state_machine::ReplicaState,
    /// The chunk's bytes in their own checksummed format.
    pub bytes: Bytes,
    /// Whether it is the last.
    pub last: bool,
}
