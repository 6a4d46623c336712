//! The state store: what the replicas of a node have applied, all in one ordered set of rows.
//!
//! [`StateStore`] is deliberately narrow (get, one atomic batch, persist, a read view), so that the
//! simulation can stand in for the engine and the engine can be exchanged. A write is atomic but
//! not synced: the Raft log is the write-ahead log, and what the store loses in a crash is applied
//! again from there. What it promises is order: after a crash it holds the effect of a prefix of
//! the batches, at least up to the last [`StateStore::persist`].
//!
//! - [`layout`]: how groups, replicas, generations and keys become row keys;
//! - [`engine`]: the real store, over an LSM tree; [`engine_files`] holds its files against their checksums (`journal`
//!   among them), [`engine_rows`] reads them without the engine;
//! - [`simulated`]: the same contract in memory, with crashes and faults from a seed.

pub mod engine;
pub mod engine_files;
pub mod engine_rows;
pub mod journal;
pub mod layout;
pub mod simulated;

use bytes::Bytes;
use std::ops::ControlFlow;

pub use engine::{EngineOptions, EngineStore};
pub use simulated::SimulatedStore;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Stored bytes are not what was written. Never served, never repaired by guessing.
    #[error("the state store is damaged: {0}")]
    Damaged(String),
    /// There is no room. Nothing of the batch may be relied on.
    #[error("the disk of the state store is full")]
    DiskFull(#[source] std::io::Error),
    /// Another process has the store open.
    #[error("the state store at {0} is in use by another process")]
    Locked(String),
    /// The store was written by a version that this one cannot read.
    #[error("the state store has a format this version does not know: {0}")]
    Format(String),
    /// Reading or writing failed. After a failed write nothing more is accepted until it is opened anew.
    #[error("the state store failed: {detail}")]
    Io {
        /// What was attempted.
        detail: String,
        /// The cause, if the operating system gave one.
        #[source]
        source: Option<std::io::Error>,
    },
}

/// One row write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowWrite {
    /// The row's key.
    pub key: Bytes,
    /// Its new value; `None` deletes it.
    pub value: Option<Bytes>,
}

/// Row writes that happen together or not at all. When it is written it must hold each key at most
/// once: the engine gives the writes of a batch one sequence number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    writes: Vec<RowWrite>,
}

/// A node's rows. A handle is cheap to clone and shares the store.
pub trait StateStore: Clone + Send + Sync + 'static {
    /// What [`StateStore::view`] gives.
    type View: StoreView;

    /// The newest value of a row, which may belong to a batch that views do not show yet.
    ///
    /// # Errors
    /// If it cannot be read or is damaged.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Makes the writes of `batch` happen, all or none; it holds no key twice. May block for as long as
    /// the engine needs to make room. Not durable before [`StateStore::persist`].
    ///
    /// # Errors
    /// If it cannot be written; then no further write is accepted, and what is found after opening
    /// the store anew is some prefix of the batches, this one perhaps included.
    fn write(&self, batch: WriteBatch) -> Result<(), StoreError>;

    /// Makes every batch written before this call durable.
    ///
    /// # Errors
    /// If that fails; never to be tried again.
    fn persist(&self) -> Result<(), StoreError>;

    /// A view of the rows as they are now, unmoved by later writes.
    ///
    /// # Errors
    /// If the store has failed.
    fn view(&self) -> Result<Self::View, StoreError>;

    /// About how many bytes the store takes on disk.
    fn disk_bytes(&self) -> u64;
}

/// Is shown a row's key and value, and says whether to go on.
pub type RowVisitor<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// As [`RowVisitor`], and may fail, which ends the visit.
pub type FallibleRowVisitor<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError>;

/// A consistent, unmoving view of a store.
pub trait StoreView: Send + 'static {
    /// The value of a row in this view.
    ///
    /// # Errors
    /// If it cannot be read or is damaged.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Visits the rows from `from` (included) to `to` (not included) in key order, until `visit` breaks.
    ///
    /// # Errors
    /// If a row cannot be read or is damaged.
    fn scan(&self, from: &[u8], to: &[u8], visit: RowVisitor<'_>) -> Result<(), StoreError>;

    /// Visits the same rows as [`StoreView::scan`], the last first.
    ///
    /// # Errors
    /// If a row cannot be read or is damaged.
    fn scan_back(&self, from: &[u8], to: &[u8], visit: RowVisitor<'_>) -> Result<(), StoreError>;

    /// As [`StoreView::scan`], with a visitor that may fail, which ends it.
    ///
    /// # Errors
    /// As there, and the visitor's own.
    fn try_scan(&self, from: &[u8], to: &[u8], visit: FallibleRowVisitor<'_>) -> Result<(), StoreError> {
        let mut failed = None;
        self.scan(from, to, &mut |key, value| {
            visit(key, value).unwrap_or_else(|error| {
                failed = Some(error);
                ControlFlow::Break(())
            })
        })?;
        failed.map_or(Ok(()), Err)
    }
}

impl WriteBatch {
    /// A batch with room for `count` writes.
    pub fn with_capacity(count: usize) -> WriteBatch {
        WriteBatch { writes: Vec::with_capacity(count) }
    }

    /// Sets a row.
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.writes.push(RowWrite { key, value: Some(value) });
    }

    /// Deletes a row, whether it is there or not.
    pub fn delete(&mut self, key: Bytes) {
        self.writes.push(RowWrite { key, value: None });
    }

    /// How many writes it holds.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Takes back all but the first `count` writes.
    pub fn truncate(&mut self, count: usize) {
        self.writes.truncate(count);
    }

    /// Drops all but the last write of each key. The order of the rest is lost, which matters no more.
    pub fn keep_last_of_each_key(&mut self) {
        self.writes.reverse();
        self.writes.sort_by(|a, b| a.key.cmp(&b.key));
        self.writes.dedup_by(|a, b| a.key == b.key);
    }

    /// The writes, in order.
    pub fn writes(&self) -> &[RowWrite] {
        &self.writes
    }

    /// The writes, in order, by value.
    pub fn into_writes(self) -> Vec<RowWrite> {
        self.writes
    }
}
