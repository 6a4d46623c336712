//! What a client asks of a node and what it is told: the vocabulary between the doors (HTTP, Redis),
//! the node, and a forwarding node's peer.

use bytes::Bytes;
use flotilla_types::{Condition, Key, NodeId, Outcome, Version};

/// A client's request, whichever door it came through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read a key, linearizably.
    Get {
        /// The key.
        key: Key,
    },
    /// Read a key from any replica, however far behind it is: [`Reply::Stale`].
    GetStale {
        /// The key.
        key: Key,
    },
    /// Write a key if the condition holds.
    Put {
        /// The key.
        key: Key,
        /// The new value.
        value: Bytes,
        /// What must hold.
        condition: Condition,
    },
    /// Delete a key if the condition holds.
    Delete {
        /// The key.
        key: Key,
        /// What must hold.
        condition: Condition,
    },
    /// Add a node to the cluster (or say again how an existing one is reached).
    Join(JoinRequest),
    /// The whole cluster as the control group's leader sees it.
    ClusterStatus,
}

/// How a node that wants to join presents itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct JoinRequest {
    /// The joiner's id; a repeated join of one id gets the same answer.
    pub id: NodeId,
    /// Its name, unique among members.
    pub name: String,
    /// Where its HTTP API is reached, HOST:PORT.
    pub http: String,
    /// Where other nodes reach it, HOST:PORT.
    pub peer: String,
    /// Where its Redis door is reached, if it has one.
    pub resp: Option<String>,
    /// Its failure zone.
    pub zone: String,
    /// The lowest and the highest format it speaks.
    pub formats: (u32, u32),
    /// Remove the dead holder of the name first.
    pub replace: bool,
}

/// What a node answers to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The key's version and value.
    Value {
        /// Present version.
        version: Version,
        /// Present value.
        value: Bytes,
    },
    /// There is no such key.
    Absent,
    /// What a replica has that may be behind.
    Stale {
        /// How long ago it had applied all that a leader confirmed by a majority had told it was committed.
        lag_ms: u64,
        /// The value, or its absence.
        reply: Box<Reply>,
    },
    /// The write happened.
    Put {
        /// The version it gave the key.
        version: Version,
        /// Whether the key did not exist before.
        created: bool,
    },
    /// The delete happened.
    Deleted {
        /// Whether there was something to delete.
        deleted: bool,
    },
    /// The condition did not hold; nothing was written.
    ConditionFailed {
        /// The version that is there, if any.
        present: Option<Version>,
    },
    /// The joiner is a member: the control group's state, encoded, and its cluster.
    Joined {
        /// [`crate::control::ControlState`] in its own encoding.
        state: Bytes,
    },
    /// The joiner's name belongs to another node.
    NameTaken {
        /// The node that holds the name.
        holder: NodeId,
        /// Whether that node answers.
        alive: bool,
    },
    /// [`crate::status::ClusterStatus`] as JSON.
    Status(Bytes),
    /// The request failed.
    Failed(Failure),
}

/// A request that failed. One that writes cannot be built without its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure, for the status code.
    pub reason: FailureReason,
    /// Whether the write can have happened; [`Outcome::NotApplied`] for what does not write.
    pub outcome: Outcome,
    /// One line for people: what was attempted, what was found, what to do.
    pub detail: String,
}

/// The kinds of failure; each is one stable `code` and one status at the doors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FailureReason {
    /// The shard has no leader that this node can reach, or no quorum.
    NoQuorum = 1,
    /// Time ran out after the write was handed over.
    Timeout = 2,
    /// A bound on work under way was met; try again later.
    Overloaded = 3,
    /// The disk is full.
    DiskFull = 4,
    /// Stored bytes failed their checksum; they are not served.
    Damaged = 5,
    /// The node is shutting down.
    ShuttingDown = 6,
    /// This node is not (yet) part of a cluster.
    NotMember = 7,
    /// The asked node does not lead the shard; never reaches a client. The write was not proposed.
    NotLeader = 8,
    /// The value or the request is larger than what is allowed.
    TooLarge = 9,
}

impl Failure {
    /// A failure of something that certainly did not happen.
    pub fn not_applied(reason: FailureReason, detail: impl Into<String>) -> Failure {
        Failure { reason, outcome: Outcome::NotApplied, detail: detail.into() }
    }

    /// A failure of a write that may have happened.
    pub fn unknown(reason: FailureReason, detail: impl Into<String>) -> Failure {
        Failure { reason, outcome: Outcome::Unknown, detail: detail.into() }
    }
}

impl Request {
    /// Whether it changes data, so that its failure needs an outcome.
    pub fn is_write(&self) -> bool {
        matches!(self, Request::Put { .. } | Request::Delete { .. })
    }

    /// The key it is about, if it is about one.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Request::Get { key } | Request::GetStale { key } | Request::Put { key, .. } | Request::Delete { key, .. } => Some(key),
            Request::Join(_) | Request::ClusterStatus => None,
        }
    }

    /// How much memory it holds, for bounds.
    pub fn bytes(&self) -> usize {
        match self {
            Request::Put { key, value, .. } => key.as_bytes().len() + value.len(),
            Request::Get { key } | Request::GetStale { key } | Request::Delete { key, .. } => key.as_bytes().len(),
            Request::Join(_) | Request::ClusterStatus => 256,
        }
    }
}
