//! What a client asks of a node and what it is told: the vocabulary between the doors (HTTP, Redis),
//! the node, and a forwarding node's peer.

use crate::admin::{AdminReply, AdminRequest};
use crate::scan::{ScanAsk, ScanPage};
use bytes::Bytes;
use flotilla_types::wire::DecodeError;
use flotilla_types::{Condition, Key, NodeId, Outcome, Version};
use std::fmt;
use std::time::Duration;
use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

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
        /// How long the key has it, in whole milliseconds; `None`: for ever.
        ttl: Option<Duration>,
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
    /// Add to the integer that is a key's value, if the condition holds; an absent key counts from 0.
    Increment {
        /// The key.
        key: Key,
        /// What is added.
        by: i64,
        /// What must hold.
        condition: Condition,
    },
    /// Write once: if a write of this id was done before, answer what that one was answered.
    Idempotent {
        /// The client's name for it.
        id: RequestId,
        /// The write; no idempotent one itself.
        write: Box<Request>,
    },
    /// Add a node to the cluster (or say again how an existing one is reached).
    Join(JoinRequest),
    /// The whole cluster as the control group's leader sees it.
    ClusterStatus,
    /// Read a page of a range of keys, each shard at one moment after now. Never forwarded whole.
    Scan(ScanAsk),
    /// An operator asks for something of the whole cluster; asked again, it says how far it is.
    Admin(AdminRequest),
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
    /// Its share of the replicas relative to other nodes.
    #[serde(default = "usual_weight")]
    pub weight: u32,
    /// The lowest and the highest format it speaks.
    pub formats: (u32, u32),
    /// Remove the dead holder of the name first.
    pub replace: bool,
}

/// What a joiner weighs that does not say.
fn usual_weight() -> u32 {
    100
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
    /// The increment happened.
    Incremented {
        /// What the key holds now.
        value: i64,
        /// The version it gave the key.
        version: Version,
    },
    /// The write was agreed on, and what is there did not allow it; nothing was written.
    Refused(WriteRefusal),
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
    /// A page of a scan.
    Page(ScanPage),
    /// What became of an operator's request.
    Admin(AdminReply),
    /// The request failed.
    Failed(Failure),
}

/// Why the state of a shard did not allow a write, other than its condition. It certainly did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WriteRefusal {
    /// The value to be incremented is no integer.
    NotAnInteger = 1,
    /// The sum does not fit into 64 bits.
    Overflow = 2,
    /// Another request bore the same [`RequestId`] before.
    IdReused = 3,
    /// The shard remembers as many requests as it may, and none of them is old enough to be forgotten.
    TableFull = 4,
}

impl WriteRefusal {
    /// All of them.
    pub const ALL: [WriteRefusal; 4] =
        [WriteRefusal::NotAnInteger, WriteRefusal::Overflow, WriteRefusal::IdReused, WriteRefusal::TableFull];

    /// The refusal that a byte stands for.
    pub(crate) fn from_byte(byte: u8) -> Result<WriteRefusal, DecodeError> {
        let known = WriteRefusal::ALL.into_iter().find(|refusal| *refusal as u8 == byte);
        known.ok_or(DecodeError::Invalid("refusal", u64::from(byte)))
    }
}

/// A client's name for a write that it may send again: what is kept of an `Idempotency-Key`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u128);

impl RequestId {
    /// The id of a key of the client's choice.
    pub fn of(idempotency_key: &[u8]) -> RequestId {
        RequestId(xxh3_128(idempotency_key))
    }

    /// The id of one of several writes under one key of the client's choice.
    pub fn of_part(idempotency_key: &[u8], place: u64) -> RequestId {
        // Not the seed 0, under which whole requests stand.
        RequestId(xxh3_128_with_seed(idempotency_key, place + 1))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
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

/// A request with more bytes than this is a large one.
pub const LARGE_REQUEST_BYTES: usize = 64 << 10;

impl Reply {
    /// The bytes of the value it brings.
    pub fn value_bytes(&self) -> usize {
        match self {
            Reply::Value { value, .. } => value.len(),
            Reply::Stale { reply, .. } => reply.value_bytes(),
            _ => 0,
        }
    }
}

impl Request {
    /// Whether it must leave room for others: of every bound on bytes large requests get the first half, small ones all of
    /// it, so that a few that write large values do not turn away the many that write small ones.
    pub fn is_large(&self) -> bool {
        self.bytes() > LARGE_REQUEST_BYTES
    }

    /// Whether it changes data, so that its failure needs an outcome.
    pub fn is_write(&self) -> bool {
        match self {
            Request::Put { .. } | Request::Delete { .. } | Request::Increment { .. } | Request::Idempotent { .. } => true,
            Request::Get { .. }
            | Request::GetStale { .. }
            | Request::Scan(_)
            | Request::Join(_)
            | Request::ClusterStatus
            | Request::Admin(_) => false,
        }
    }

    /// Whether it changes anything, data or the cluster: then an answer that did not come leaves its outcome unknown.
    pub fn may_change_something(&self) -> bool {
        self.is_write() || matches!(self, Request::Join(_) | Request::Admin(_))
    }

    /// Whether it is a write that may need more room on the disk than it gives back: deletes do not.
    pub fn needs_room(&self) -> bool {
        match self {
            Request::Idempotent { write, .. } => write.needs_room(),
            Request::Put { .. } | Request::Increment { .. } => true,
            _ => false,
        }
    }

    /// Whether its effect depends on what time it is.
    pub fn needs_time(&self) -> bool {
        matches!(self, Request::Put { ttl: Some(_), .. } | Request::Idempotent { .. })
    }

    /// The key it is about, if it is about one.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Request::Get { key }
            | Request::GetStale { key }
            | Request::Put { key, .. }
            | Request::Delete { key, .. }
            | Request::Increment { key, .. } => Some(key),
            Request::Idempotent { write, .. } => write.key(),
            Request::Join(_) | Request::ClusterStatus | Request::Scan(_) | Request::Admin(_) => None,
        }
    }

    /// How much memory it holds, for bounds.
    pub fn bytes(&self) -> usize {
        match self {
            Request::Put { key, value, .. } => key.as_bytes().len() + value.len(),
            Request::Get { key } | Request::GetStale { key } | Request::Delete { key, .. } | Request::Increment { key, .. } => {
                key.as_bytes().len()
            }
            Request::Idempotent { write, .. } => size_of::<Request>() + write.bytes(),
            Request::Join(_) | Request::ClusterStatus | Request::Admin(_) => 256,
            // What its answer takes is bounded by how many run at once.
            Request::Scan(ask) => 256 + ask.range.start.len() + ask.range.end.as_ref().map_or(0, Bytes::len),
        }
    }

    /// This write, to be done once under `id`.
    #[must_use]
    pub fn once(self, id: Option<RequestId>) -> Request {
        match id {
            Some(id) => Request::Idempotent { id, write: Box::new(self) },
            None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::AdminAction;

    #[test]
    fn what_frees_room_is_let_through_whether_or_not_it_is_to_happen_once() {
        let key = || Key::new("k").expect("a key");
        let once = |write| Request::Idempotent { id: RequestId(1), write: Box::new(write) };
        let put = || Request::Put { key: key(), value: Bytes::new(), ttl: None, condition: Condition::ALWAYS };
        let increment = || Request::Increment { key: key(), by: 1, condition: Condition::ALWAYS };
        let delete = || Request::Delete { key: key(), condition: Condition::ALWAYS };
        assert!([put(), increment(), once(put()), once(increment())].iter().all(Request::needs_room));
        assert!(![delete(), once(delete()), Request::Get { key: key() }, Request::ClusterStatus].iter().any(Request::needs_room));
    }

    #[test]
    fn what_may_have_changed_something_is_not_said_to_have_failed() {
        let action = AdminAction::Drain { node: "n1".to_owned() };
        let admin = Request::Admin(AdminRequest { action, dry_run: false });
        assert!(admin.may_change_something() && !admin.is_write() && !Request::ClusterStatus.may_change_something());
    }
}
