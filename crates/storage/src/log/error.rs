//! What can go wrong with the Raft log.

use crate::disk::DiskError;
use flotilla_types::{LogIndex, ReplicaKey};

/// Why the log could not do what it was asked; each variant is one a caller answers differently.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// There is no room for the batch. Nothing of it counts, the log is as it was and can be used:
    /// purges and tombstones still go through and free room.
    #[error("the raft log has no room left")]
    Full(#[source] DiskError),
    /// The disk failed. Unless this came from reading or opening, the log is poisoned.
    #[error("the raft log's disk failed")]
    Disk(#[source] DiskError),
    /// A write or sync failed before: what is on disk is unknown, so nothing is done any more.
    #[error("the raft log failed before and must be opened anew, by a new process")]
    Poisoned,
    /// The file was written by a newer version of the program.
    #[error("{file} has log format {found}, this program knows formats up to {known}: it was written by a newer version")]
    NewerFormat {
        /// The file.
        file: String,
        /// Its format.
        found: u32,
        /// The newest one known.
        known: u32,
    },
    /// A file has the name of a log segment, but is none.
    #[error(
        "{file} has the name of a log segment, but is something else: put the segment back, or, if other nodes have its data, start an empty data-dir under this node's name with --join and --replace"
    )]
    Foreign {
        /// The file.
        file: String,
    },
    /// So much is damaged that the node's identity or the list of its replicas is lost.
    #[error(
        "the raft log cannot be recovered: {file} is damaged at byte {offset}: {reason}; put the file back, or, if other nodes have its data, start an empty data-dir under this node's name with --join and --replace"
    )]
    Unrecoverable {
        /// The file.
        file: String,
        /// Where the damage begins.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// What was written can no longer be read. Seen while reading entries, or when bytes change under recovery.
    #[error("{file} is damaged at byte {offset}: {reason}")]
    Damaged {
        /// The file.
        file: String,
        /// Where the damaged batch begins.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// The entry asked for was purged, or never was, or the replica is unknown.
    #[error("entry {index} of {replica} is not in the raft log")]
    NotInLog {
        /// Whose entry.
        replica: ReplicaKey,
        /// Which.
        index: LogIndex,
    },
}

impl LogError {
    /// Whether the disk is full: the one error after which the log can still be used.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, LogError::Full(_))
    }

    pub(super) fn of(error: DiskError) -> LogError {
        if matches!(error, DiskError::Full { .. }) { LogError::Full(error) } else { LogError::Disk(error) }
    }
}
