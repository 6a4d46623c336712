//! The real store: one keyspace of an LSM tree (fjall 3). The only file that names the engine.
//!
//! - A batch goes into the engine's journal without a flush or sync; [`StateStore::persist`] syncs the
//!   journal, which is one sequence for the whole store, so that a crash leaves a prefix of the batches.
//! - The engine shares our byte strings (its `bytes_1` feature): rows are handed over and back without a copy.
//! - Memory is bounded by [`EngineOptions`]; a node at rest holds a few megabytes.
//! - A write blocks while the engine has four full memtables or too many unmerged tables. That is why
//!   writes belong to a thread of their own.
//!
//! The engine believes its journals' batch numbers and its lists of tables without looking at a checksum, refuses
//! or cuts a journal where it cannot read on, and may panic on a damaged list. So [`EngineStore::open`] first has
//! [`engine_files`] read what the engine would believe, and cuts the last journal where it ends to make sense. What that
//! loses is caught one level up: the applied index then lies below what the Raft log was purged up to, or the
//! log applies it again.

use super::engine_files::{self, Depth};
use super::{RowVisitor, RowWrite, StateStore, StoreError, StoreView, WriteBatch};
use crate::disk::{Disk, FileDisk};
use crate::verify::{Audience, FileUse, Finding, Weight};
use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, LsmError, PersistMode, Readable, Snapshot};
use flotilla_types::ByteSize;
use std::io::{self, ErrorKind};
use std::path::Path;

/// The one keyspace.
const KEYSPACE: &str = "rows";
/// Smallest journal bound that the engine takes.
const JOURNAL_BYTES_MIN: u64 = 64 << 20;

/// How much memory and disk the engine may use.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Blocks read from disk that are kept in memory.
    pub cache_bytes: ByteSize,
    /// A memtable is written out when it reaches this; up to five may exist under load. Fixed when
    /// the store is created.
    pub memtable_bytes: ByteSize,
    /// All journals together; past it memtables are written out early.
    pub journal_bytes_max: ByteSize,
    /// Threads that write out memtables and merge tables.
    pub worker_threads: usize,
}

/// The store on disk. Clones share it; it closes when the last is dropped.
#[derive(Clone)]
pub struct EngineStore {
    database: Database,
    rows: Keyspace,
    cut: Option<(String, u64)>,
}

/// A view of the store on disk. It holds back the merging of what it sees: drop it soon.
pub struct EngineView {
    snapshot: Snapshot,
    rows: Keyspace,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            cache_bytes: ByteSize(32 << 20),
            memtable_bytes: ByteSize(32 << 20),
            journal_bytes_max: ByteSize(256 << 20),
            worker_threads: 1,
        }
    }
}

impl EngineStore {
    /// Opens the store in a folder of its own, or makes it.
    ///
    /// # Errors
    /// If it is in use, damaged, of an unknown format, or cannot be read.
    pub fn open(folder: &Path, options: EngineOptions) -> Result<EngineStore, StoreError> {
        let cut = EngineStore::verify(folder, Depth::Lists)?;
        if let Some((journal, length)) = &cut {
            let file = std::fs::File::options().write(true).open(folder.join(journal));
            file.and_then(|file| file.set_len(*length).and_then(|()| file.sync_all()))
                .map_err(|source| io_error(format!("cutting the journal {journal}"), source))?;
        }
        let database = Database::builder(folder)
            .cache_size(options.cache_bytes.0)
            .max_journaling_size(options.journal_bytes_max.0.max(JOURNAL_BYTES_MIN))
            .worker_threads(options.worker_threads.max(1))
            .manual_journal_persist(true)
            .open()
            .map_err(|error| match error {
                fjall::Error::Locked => StoreError::Locked(folder.display().to_string()),
                error => store_error("opening", error),
            })?;
        let keyspace_options = || KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes.0).manual_journal_persist(true);
        let rows = database.keyspace(KEYSPACE, keyspace_options).map_err(|error| store_error("opening", error))?;
        Ok(EngineStore { database, rows, cut })
    }

    /// Which journal was cut when the store was opened, and where: the writes behind that are gone from it.
    pub fn journal_cut(&self) -> Option<(&str, u64)> {
        self.cut.as_ref().map(|(journal, offset)| (journal.as_str(), *offset))
    }

    /// Holds the store's files against their checksums, without opening it. Gives the last journal and from where on it
    /// is to be cut, if it is.
    ///
    /// # Errors
    /// The first damage.
    pub fn verify(folder: &Path, depth: Depth) -> Result<Option<(String, u64)>, StoreError> {
        if !folder.is_dir() || is_of_later_format(folder) {
            return Ok(None);
        }
        let mut damage = FirstDamage(None);
        let report = engine_files::verify(&|name| FileDisk::read_only(folder.join(name)), depth, &mut damage);
        match damage.0 {
            Some(Finding { file, bytes, what, .. }) if !report.is_whole => {
                Err(StoreError::Damaged(format!("{file} at byte {}: {what}", bytes.start)))
            }
            _ => Ok(report.cut),
        }
    }
}

/// Whether a later version of the engine wrote the store: it must be refused, not taken for damaged.
fn is_of_later_format(folder: &Path) -> bool {
    let (disk, mut marker) = (FileDisk::read_only(folder), [0; 4]);
    let read = disk.open("version").and_then(|file| disk.read_at(&file, 0, &mut marker));
    read.is_ok() && matches!(marker, [b'F', b'J', b'L', 4..=6])
}

/// Keeps the first damage that is named.
struct FirstDamage(Option<Finding>);

impl Audience for FirstDamage {
    fn file(&mut self, _file: FileUse) {}

    fn finding(&mut self, finding: Finding) {
        if finding.weight == Weight::Damage {
            self.0.get_or_insert(finding);
        }
    }

    fn progress(&mut self, _bytes: u64) {}
}

impl StateStore for EngineStore {
    type View = EngineView;

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.rows.get(key).map(|value| value.map(Bytes::from)).map_err(|error| store_error("reading a row", error))
    }

    fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        let mut out = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.len());
        for RowWrite { key, value } in batch.into_writes() {
            match value {
                Some(value) => out.insert(&self.rows, key, value),
                None => out.remove(&self.rows, key),
            }
        }
        out.commit().map_err(|error| store_error("writing a batch", error))
    }

    fn persist(&self) -> Result<(), StoreError> {
        self.database.persist(PersistMode::SyncData).map_err(|error| store_error("syncing the journal", error))
    }

    fn view(&self) -> Result<EngineView, StoreError> {
        Ok(EngineView { snapshot: self.database.snapshot(), rows: self.rows.clone() })
    }

    fn disk_bytes(&self) -> u64 {
        self.database.disk_space().unwrap_or_else(|_| self.rows.disk_space())
    }
}

impl StoreView for EngineView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.snapshot.get(&self.rows, key).map(|value| value.map(Bytes::from)).map_err(|error| store_error("reading a row", error))
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: RowVisitor<'_>) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        visit_rows(self.snapshot.range(&self.rows, from..to), visit)
    }

    fn scan_back(&self, from: &[u8], to: &[u8], visit: RowVisitor<'_>) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        visit_rows(self.snapshot.range(&self.rows, from..to).rev(), visit)
    }
}

fn visit_rows(rows: impl Iterator<Item = fjall::Guard>, visit: RowVisitor<'_>) -> Result<(), StoreError> {
    for row in rows {
        let (key, value) = row.into_inner().map_err(|error| store_error("reading rows", error))?;
        if visit(&key, &value).is_break() {
            break;
        }
    }
    Ok(())
}

/// Sorts the engine's errors by what the caller must do about them.
fn store_error(attempted: &str, error: fjall::Error) -> StoreError {
    let detail = match error {
        fjall::Error::Poisoned => format!("{attempted}: a thread of the engine failed before, as it does on a damaged table"),
        fjall::Error::Storage(LsmError::ChecksumMismatch { .. }) => format!("{attempted}: a block does not match its checksum"),
        fjall::Error::Io(ref source) | fjall::Error::Storage(LsmError::Io(ref source)) => format!("{attempted}: {source}"),
        _ => format!("{attempted}: {error:?}"),
    };
    match error {
        fjall::Error::Io(source) | fjall::Error::Storage(LsmError::Io(source)) => io_error(detail, source),
        fjall::Error::InvalidVersion(_) | fjall::Error::Storage(LsmError::InvalidVersion(_)) => StoreError::Format(detail),
        fjall::Error::Storage(_)
        | fjall::Error::JournalRecovery(_)
        | fjall::Error::Decompress(_)
        | fjall::Error::InvalidTrailer
        | fjall::Error::InvalidTag(_)
        | fjall::Error::Unrecoverable => StoreError::Damaged(detail),
        _ => StoreError::Io { detail, source: None },
    }
}

fn io_error(detail: String, source: io::Error) -> StoreError {
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::DiskFull(source),
        // A table that ends early or holds nonsense is damage, not a failing device.
        ErrorKind::UnexpectedEof | ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::NotFound => StoreError::Damaged(detail),
        _ => StoreError::Io { detail, source: Some(source) },
    }
}
