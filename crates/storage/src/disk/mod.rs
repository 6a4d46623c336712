//! One directory of files, as the Raft log uses it.
//!
//! [`Disk`] is deliberately small: whole reads and whole writes at an offset, fdatasync, rename.
//! [`FileDisk`] is the real one and the only code of the core crates that touches `std::fs`;
//! [`SimulatedDisk`] forgets at a crash what was not synced and fails on demand.
//!
//! What users of a disk may assume, and no more: bytes written are durable once `sync_data` of their
//! file returned; a name (created, renamed or removed) is durable once `sync_dir` returned; before
//! that any 512-byte sector may hold its old or any later state, independently of its neighbours.
//! There is no appending, truncating or mapping: the log writes into files that already have their
//! size, so that a sync never has to write a file's length or block map.

mod file_disk;
mod simulated;

pub use file_disk::FileDisk;
pub use simulated::SimulatedDisk;

use std::io;

/// A directory of files. Handles stay good when their file is renamed.
pub trait Disk {
    /// An open file.
    type File;
    /// Held while the directory is in use; dropping it lets the next user in.
    type Lock;

    /// Takes the directory for this user alone.
    ///
    /// # Errors
    /// [`DiskError::Locked`] if someone else has it; otherwise as all that follow.
    fn lock(&self) -> Result<Self::Lock, DiskError>;
    /// The names in the directory, sorted.
    fn list(&self) -> Result<Vec<String>, DiskError>;
    /// Opens a file that exists.
    fn open(&self, name: &str) -> Result<Self::File, DiskError>;
    /// Makes an empty file; one of that name loses its content.
    fn create(&self, name: &str) -> Result<Self::File, DiskError>;
    /// How long a file is.
    fn len(&self, file: &Self::File) -> Result<u64, DiskError>;
    /// Fills `into` from `offset` on; a file that ends before that is an error.
    fn read_at(&self, file: &Self::File, offset: u64, into: &mut [u8]) -> Result<(), DiskError>;
    /// Writes all of `bytes`; on an error any part of them may have been written.
    fn write_at(&self, file: &Self::File, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;
    /// Writes `length` zeros: real blocks, not a hole, so that later writes there allocate nothing.
    fn zero_fill(&self, file: &Self::File, offset: u64, length: u64) -> Result<(), DiskError>;
    /// Makes all that was written to a file durable. After an error nobody knows what is: give up.
    fn sync_data(&self, file: &Self::File) -> Result<(), DiskError>;
    /// Makes the names durable.
    fn sync_dir(&self) -> Result<(), DiskError>;
    /// Gives a file another name, replacing one that has it.
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError>;
    /// Takes a file away.
    fn remove(&self, name: &str) -> Result<(), DiskError>;
    /// How messages name a file.
    fn path(&self, name: &str) -> String;
}

/// Why the disk did not do what it was asked; each variant is one that a person answers differently.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The disk or the quota is full.
    #[error("cannot {attempted} {path}: the disk is full")]
    Full {
        /// What was to be done.
        attempted: &'static str,
        /// To which file or directory.
        path: String,
    },
    /// The file system is mounted read-only.
    #[error("cannot {attempted} {path}: the file system is read-only")]
    ReadOnly {
        /// What was to be done.
        attempted: &'static str,
        /// To which file or directory.
        path: String,
    },
    /// The user this process runs as may not.
    #[error("cannot {attempted} {path}: permission denied; the data-dir must belong to the user that runs this")]
    Permission {
        /// What was to be done.
        attempted: &'static str,
        /// To which file or directory.
        path: String,
    },
    /// Another process has the directory.
    #[error("{path} is in use by another process")]
    Locked {
        /// The lock file.
        path: String,
    },
    /// Anything else, a failing device above all.
    #[error("cannot {attempted} {path} at byte {offset}")]
    Io {
        /// What was to be done.
        attempted: &'static str,
        /// To which file or directory.
        path: String,
        /// Where in it; 0 if that means nothing.
        offset: u64,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

impl DiskError {
    fn of(source: io::Error, attempted: &'static str, path: String, offset: u64) -> DiskError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::Full { attempted, path },
            io::ErrorKind::ReadOnlyFilesystem => DiskError::ReadOnly { attempted, path },
            io::ErrorKind::PermissionDenied => DiskError::Permission { attempted, path },
            _ => DiskError::Io { attempted, path, offset, source },
        }
    }
}
