//! Everything a node wants done, as values. The world does it and reports back by events.

use crate::event::Ticket;
use crate::message::PeerMessage;
use crate::notice::Notice;
use crate::request::Reply;
use crate::scan::ScanJob;
use crate::state_machine::{GroupApply, RebirthJob, ReplicaState};
use bytes::Bytes;
use flotilla_storage::log::LogBatch;
use flotilla_storage::store::layout::Filing;
use flotilla_types::{GroupId, Key, LogIndex, NodeId, ReplicaKey, Timestamp};
use std::collections::BTreeSet;

/// What one turn of the loop produced. Order within each list is kept by the world; the lists do not
/// wait for each other (whatever must wait for a sync is held back by the node itself).
#[derive(Debug, Default)]
pub struct Effects {
    /// Answers for the doors.
    pub replies: Vec<(Ticket, Reply)>,
    /// Messages for peers.
    pub messages: Vec<(NodeId, PeerMessage)>,
    /// At most one log write.
    pub log: Option<LogJob>,
    /// Work for the apply thread, in order.
    pub store: Vec<StoreJob>,
    /// Point reads that may run now, in any order, on any thread.
    pub reads: Vec<ReadJob>,
    /// Scans that may run now, in any order, on any thread but the loop's; answered by [`crate::Event::Scanned`].
    pub scans: Vec<ScanJob>,
    /// Whom to be linked with, when that changed.
    pub peers: Option<Peers>,
    /// For the operator's eyes: one line each.
    pub notices: Vec<Notice>,
    /// The process must end, for this reason (damage that cannot be healed here, removal, ...).
    pub fatal: Option<String>,
}

/// Whom to be linked with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// The other members, and HOST:PORT of each.
    pub linked: Vec<(NodeId, String)>,
    /// Nodes that are members no more, for ever: whoever of them comes is told so.
    pub removed: BTreeSet<NodeId>,
}

/// One batch for the log thread: append, sync if asked, answer [`crate::event::Event::LogSynced`].
#[derive(Debug)]
pub struct LogJob {
    /// Rises by one with each job.
    pub number: u64,
    /// What to append.
    pub batch: LogBatch,
    /// Whether it must be synced before it is answered. A job that need not be (a commit mark alone)
    /// is answered all the same.
    pub must_sync: bool,
}

/// One job for the apply thread.
#[derive(Debug)]
pub enum StoreJob {
    /// Apply entries, of several groups at once.
    Apply(Vec<GroupApply>),
    /// Make everything applied so far durable, and say up to where.
    Persist,
    /// Create a replica's state (first start).
    Create {
        /// The replica.
        replica: ReplicaKey,
        /// Its first state.
        state: Box<ReplicaState>,
    },
    /// Make a group's lone new voter, of what is left of it, in one durable write.
    Rebirth(Box<RebirthJob>),
    /// Forget a replica and sweep its rows.
    Destroy {
        /// The replica.
        replica: ReplicaKey,
    },
    /// Open a view for an outgoing snapshot (`first`), or read on.
    ReadSnapshot {
        /// The sender's number for the transfer.
        transfer: u64,
        /// Which replica's rows.
        replica: ReplicaKey,
        /// Whether to open the view first.
        first: bool,
        /// How large a chunk may be.
        bytes_max: usize,
    },
    /// The transfer is over: close its view.
    CloseSnapshot {
        /// The sender's number for the transfer.
        transfer: u64,
    },
    /// Write rows of an incoming snapshot into a generation that is not in force; `first` clears
    /// what an earlier attempt left there.
    InstallRows {
        /// The receiving replica.
        replica: ReplicaKey,
        /// The generation being filled.
        generation: u32,
        /// Whether this begins the generation.
        first: bool,
        /// The chunk.
        chunk: Bytes,
    },
    /// Switch to the filled generation and make that durable.
    FinishInstall {
        /// The receiving replica.
        replica: ReplicaKey,
        /// The generation that was filled.
        generation: u32,
        /// The state the snapshot was taken at.
        state: Box<ReplicaState>,
    },
    /// Give a half-filled generation up.
    AbortInstall {
        /// The receiving replica.
        replica: ReplicaKey,
        /// The generation given up.
        generation: u32,
    },
    /// Sweep some rows of dead generations.
    Sweep,
    /// Read on in the view that a scrub's mark opened.
    Scrub {
        /// Whose.
        replica: ReplicaKey,
        /// The mark's index.
        index: LogIndex,
        /// About how many bytes.
        bytes_max: u64,
    },
    /// Let go of the view that a scrub's mark opened.
    CloseScrub {
        /// Whose.
        replica: ReplicaKey,
    },
    /// Name keys whose time is over by this clock, or by the shard's own.
    FindExpired {
        /// Whose.
        replica: ReplicaKey,
        /// The leader's clock.
        clock: Timestamp,
    },
}

impl StoreJob {
    /// Adds a run of entries to an apply job, which holds each replica once.
    pub fn add_run(runs: &mut Vec<GroupApply>, run: GroupApply) {
        match runs.iter_mut().find(|earlier| earlier.replica == run.replica) {
            Some(earlier) => earlier.extend(run),
            None => runs.push(run),
        }
    }
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyTo {
    /// To a door of this node.
    Local(Ticket),
    /// To the node that forwarded the request, under its number for it.
    Peer {
        /// The forwarding node.
        node: NodeId,
        /// Its number for the request.
        id: u64,
    },
    /// To a part of a scan that this node serves. Inside the node only: no effect bears it.
    ScanPart {
        /// The part.
        part: u64,
        /// The shard's group.
        group: GroupId,
    },
}

/// A point read that is safe to run at once: the node has shown that whatever was committed before
/// the request is applied, or says how far it may be behind.
#[derive(Debug)]
pub struct ReadJob {
    /// Who gets the answer ([`crate::state_machine::run_read`] makes it).
    pub to: ReplyTo,
    /// The replica to read.
    pub replica: ReplicaKey,
    /// Where its rows in force are.
    pub filing: Filing,
    /// The key.
    pub key: Key,
    /// For a read that may be stale: how far behind the replica may be.
    pub lag_ms: Option<u64>,
}
