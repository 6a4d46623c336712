//! What a check of a data-dir's files reports. It reads, and never changes anything.
//!
//! [`crate::log::verify`] reads the log as recovery would; [`crate::store::engine_files`] holds the store's files
//! against the checksums that the engine wrote down; [`crate::store::engine_rows`] reads the rows without the engine.

use crate::disk::DiskError;
use std::ops::Range;

/// How much is read of a file at once, where that is bounded.
pub const READ_BYTES: usize = 1 << 20;

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub weight: Weight,
    /// The file.
    pub file: String,
    /// Where in it; an empty range means the place where it begins.
    pub bytes: Range<u64>,
    /// What is wrong.
    pub what: String,
    /// What is to be done about it.
    pub advice: &'static str,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// As a crash leaves it: nothing that was acknowledged is concerned.
    Note,
    /// It is not what was written.
    Damage,
}

/// A file and how much of it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileUse {
    /// The file.
    pub file: String,
    /// How long it is.
    pub bytes: u64,
    /// How many bytes from its front are read by anyone. What lies behind may be anything: it was filled
    /// ahead of need, or is left over from an earlier use.
    pub bytes_used: u64,
}

/// Is told of files and findings as they come.
pub trait Audience {
    /// A file was read.
    fn file(&mut self, file: FileUse);
    /// Something was found.
    fn finding(&mut self, finding: Finding);
    /// So many bytes more were read.
    fn progress(&mut self, bytes: u64);
}

impl Finding {
    /// Damage.
    pub fn damage(file: impl Into<String>, bytes: Range<u64>, what: impl Into<String>, advice: &'static str) -> Finding {
        Finding { weight: Weight::Damage, file: file.into(), bytes, what: what.into(), advice }
    }

    /// What a crash leaves.
    pub fn note(file: impl Into<String>, bytes: Range<u64>, what: impl Into<String>, advice: &'static str) -> Finding {
        Finding { weight: Weight::Note, file: file.into(), bytes, what: what.into(), advice }
    }

    /// A file that the disk does not give.
    pub fn unreadable(file: impl Into<String>, error: &DiskError) -> Finding {
        let mut what = error.to_string();
        if let DiskError::Io { source, .. } = error {
            what = format!("{what}: {source}");
        }
        Finding::damage(file, 0..0, what, "look at the disk, then start the node: what it cannot read it fetches from the other nodes")
    }
}
