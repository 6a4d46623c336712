//! What can go wrong with a group, by what the caller would do about it.

use flotilla_types::{LogIndex, ReplicaId};

/// A group cannot be opened from what was restored: the replica is damaged or misconfigured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsensusError {
    /// The configuration contradicts itself.
    #[error("the configuration of the group is wrong: {0}")]
    Config(String),
    /// The store has applied what the log does not hold: one of the two has lost data.
    #[error("the store has applied {applied}, but the log ends at {last}")]
    AppliedPastEnd {
        /// What the store has applied.
        applied: LogIndex,
        /// Where the log ends.
        last: LogIndex,
    },
    /// Entries between the store's state and the log's first entry are missing.
    #[error("the store has applied {applied}, but the log begins after {start}")]
    AppliedBeforeStart {
        /// What the store has applied.
        applied: LogIndex,
        /// The position before the log's first entry.
        start: LogIndex,
    },
    /// The entries are not one run after the start, or one of them cannot be read.
    #[error("the log's entry at {0} does not follow the one before it, or cannot be read")]
    Entries(LogIndex),
    /// The membership contradicts itself.
    #[error("the membership is wrong: {0}")]
    Membership(&'static str),
}

/// Why a message was not taken. Nothing has changed in the group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// It is for another replica: its sender works with an old membership.
    #[error("the message is for {0}")]
    OtherReplica(ReplicaId),
    /// An answer from a replica that is not in this leader's or candidate's membership.
    #[error("the sender {0} is not a member")]
    UnknownSender(ReplicaId),
    /// No correct replica sends this.
    #[error("the message cannot be right: {0}")]
    Invalid(&'static str),
    /// The leader counts on entries that this replica does not have: this replica has forgotten what
    /// it acknowledged, or the leader's bookkeeping is damaged.
    #[error("the leader says that this replica holds {claimed}, but its log ends at {last}")]
    CommitPastEnd {
        /// Up to where the leader counts on this replica.
        claimed: LogIndex,
        /// Where the log ends.
        last: LogIndex,
    },
    /// The leader's committed history differs from ours: one of the two is damaged.
    #[error("the message contradicts what is committed here at {0}")]
    Diverged(LogIndex),
}

/// Why a proposal was not taken. Nothing was proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This replica is not the leader.
    #[error("not the leader")]
    NotLeader,
    /// Leadership is being handed over: hold the proposal until that ends, within an election timeout.
    #[error("leadership is being transferred")]
    Transferring,
    /// Too many bytes are proposed and not committed.
    #[error("too many bytes wait to be committed")]
    TooMuchUncommitted,
    /// An earlier change of membership may not be applied yet.
    #[error("another change of membership is under way")]
    ChangePending,
    /// The change cannot be made to the present membership.
    #[error("the change cannot be made to the present membership")]
    ChangeImpossible,
}
