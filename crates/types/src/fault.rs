//! Faults that the simulation plants on purpose, one at a time, to show that it would find them.
//! Production always runs with `None`.

/// A deliberate breach of one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlantedFault {
    /// Log writes are reported as synced without being synced.
    AcknowledgeBeforeSync,
    /// Term and vote are left out of the log.
    VoteNotPersisted,
    /// What a Ready that changes term or vote says is sent before it is on disk.
    LoneVoterSendsBeforeSync,
    /// A leader serves reads before an entry of its own term is committed.
    ReadBeforeOwnTermEntry,
    /// A read is answered by a leadership round that began before it came.
    ReadAnsweredByEarlierRound,
    /// After a restart the last applied entries are applied once more.
    ApplyTwiceAfterRestart,
    /// Recovery cuts the log at the first bad record, also below the sync mark.
    CutBelowSyncMark,
    /// A wiped or damaged replica comes back under its old replica id.
    ReseedUnderOldReplicaId,
    /// A snapshot's generation is switched and acknowledged before its rows are durable.
    SnapshotSwitchedBeforeDurable,
    /// A forwarded write whose reply was lost is sent again.
    ForwardedWriteSentAgain,
    /// A snapshot lacks the table of idempotent requests.
    TableNotInSnapshot,
    /// A row of one replica is gone from its store, without a trace.
    RowLost,
    /// A row of one replica is another one, checksum and all.
    RowChanged,
}

impl PlantedFault {
    /// All of them.
    pub const ALL: [PlantedFault; 13] = [
        PlantedFault::AcknowledgeBeforeSync,
        PlantedFault::VoteNotPersisted,
        PlantedFault::LoneVoterSendsBeforeSync,
        PlantedFault::ReadBeforeOwnTermEntry,
        PlantedFault::ReadAnsweredByEarlierRound,
        PlantedFault::ApplyTwiceAfterRestart,
        PlantedFault::CutBelowSyncMark,
        PlantedFault::ReseedUnderOldReplicaId,
        PlantedFault::SnapshotSwitchedBeforeDurable,
        PlantedFault::ForwardedWriteSentAgain,
        PlantedFault::TableNotInSnapshot,
        PlantedFault::RowLost,
        PlantedFault::RowChanged,
    ];

    /// Whether it is no breach by the nodes but done to them, and they are to find and heal it.
    pub fn is_to_be_healed(self) -> bool {
        matches!(self, PlantedFault::RowLost | PlantedFault::RowChanged)
    }

    /// Its name on the command line of the simulation.
    pub fn name(self) -> &'static str {
        match self {
            PlantedFault::AcknowledgeBeforeSync => "acknowledge-before-sync",
            PlantedFault::VoteNotPersisted => "vote-not-persisted",
            PlantedFault::LoneVoterSendsBeforeSync => "lone-voter-sends-before-sync",
            PlantedFault::ReadBeforeOwnTermEntry => "read-before-own-term-entry",
            PlantedFault::ReadAnsweredByEarlierRound => "read-answered-by-earlier-round",
            PlantedFault::ApplyTwiceAfterRestart => "apply-twice-after-restart",
            PlantedFault::CutBelowSyncMark => "cut-below-sync-mark",
            PlantedFault::ReseedUnderOldReplicaId => "reseed-under-old-replica-id",
            PlantedFault::SnapshotSwitchedBeforeDurable => "snapshot-switched-before-durable",
            PlantedFault::ForwardedWriteSentAgain => "forwarded-write-sent-again",
            PlantedFault::TableNotInSnapshot => "table-not-in-snapshot",
            PlantedFault::RowLost => "row-lost",
            PlantedFault::RowChanged => "row-changed",
        }
    }
}
