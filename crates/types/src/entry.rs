//! What a Raft log holds: entries, and the hard state (term, vote, commit) beside them.

use crate::ReplicaId;
use bytes::Bytes;
use std::fmt;

/// A Raft term (Raft paper, section 5.1). 0 before the first election.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

/// A position in one group's Raft log. Entries begin at 1; 0 is "before the first".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogIndex(pub u64);

/// What an entry's bytes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// For the state machine: a batch of mutations or a control command. Empty: a new leader's no-op.
    Normal = 0,
    /// A [`crate::MembershipChange`] in its own encoding.
    Membership = 1,
}

/// One entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Position in the group's log.
    pub index: LogIndex,
    /// Term of the leader that made it.
    pub term: Term,
    /// What `data` means.
    pub kind: EntryKind,
    /// Shared by log, links and apply; never copied on the way.
    pub data: Bytes,
}

/// What a replica must have on disk before it answers (Raft paper, figure 2, "persistent state").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Highest term seen.
    pub term: Term,
    /// Whom this replica voted for in `term`; `None` if nobody.
    pub vote: Option<ReplicaId>,
    /// Highest index known to be committed; a hint, may lag behind.
    pub commit: LogIndex,
}

impl EntryKind {
    /// The kind that a stored byte stands for.
    pub fn from_byte(byte: u8) -> Option<EntryKind> {
        match byte {
            0 => Some(EntryKind::Normal),
            1 => Some(EntryKind::Membership),
            _ => None,
        }
    }
}

impl LogIndex {
    /// The next position.
    #[must_use]
    pub fn next(self) -> LogIndex {
        LogIndex(self.0 + 1)
    }
}

macro_rules! display_number {
    ($type:ty, $prefix:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}
display_number!(Term, "t");
display_number!(LogIndex, "i");
