//! The rows that the engine's files hold, read without opening the store: that would write (it cuts journals,
//! removes what is left over, writes out memtables and merges tables). The only other file that names the engine.
//!
//! A store at rest is the merge of its runs of tables and of the journals' items that no table holds yet: of
//! each key the write with the highest number counts. The journals' part lies in memory, as it does in a node that
//! starts; tables are read block by block. Files must have been found whole by [`super::engine_files`].

use super::engine_files::{StoreReport, TableFile, visit_journals};
use super::journal::Item;
use super::{FallibleRowVisitor, StoreError};
use crate::disk::{DiskError, FileDisk};
use bytes::Bytes;
use lsm_tree::table::Scanner;
use lsm_tree::{Cache, Checksum, Table, ValueType};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What the one set of rows of ours is called.
const ROWS: &[u8] = b"rows";
/// The engine's own tree; it holds `n`, id (big-endian) -> name.
const NAMES_TREE: u64 = 0;

/// A write of a key: its number, and the value if it is no delete.
type Write = (u64, Option<Bytes>);

/// One run of tables, read from front to back.
struct Run {
    tables: std::vec::IntoIter<Table>,
    open: Option<Scanner>,
    next: Option<(Bytes, Write)>,
}

/// Shows every row of the store in `folder` in key order; nothing if it was never finished. `report` is what its
/// files were found to be.
///
/// # Errors
/// If something cannot be read, or the visitor's own.
pub fn visit(folder: &Path, report: &StoreReport, visit: FallibleRowVisitor<'_>) -> Result<(), StoreError> {
    let mut rows_tree = None;
    merge(folder, report, NAMES_TREE, &mut |key, value| {
        if let Some(id) = key.strip_prefix(b"n").and_then(|id| id.try_into().ok()).filter(|_| value == ROWS) {
            rows_tree = Some(u64::from_be_bytes(id));
        }
        Ok(std::ops::ControlFlow::Continue(()))
    })?;
    rows_tree.map_or(Ok(()), |id| merge(folder, report, id, visit))
}

fn merge(folder: &Path, report: &StoreReport, tree: u64, visit: FallibleRowVisitor<'_>) -> Result<(), StoreError> {
    let Some(files) = report.trees.get(&tree) else { return Ok(()) };
    let tables_folder = folder.join("keyspaces").join(tree.to_string()).join("tables");
    let cache = Arc::new(Cache::with_capacity_bytes(0));
    let (mut runs, mut persisted) = (Vec::new(), None);
    for files in files {
        let tables = files.iter().map(|file| open_table(&tables_folder, file, &cache)).collect::<Result<Vec<_>, _>>()?;
        persisted = persisted.max(tables.iter().map(Table::get_highest_seqno).max());
        let mut run = Run { tables: tables.into_iter(), open: None, next: None };
        run.advance()?;
        runs.push(run);
    }
    let mut memory = journal_rows(folder, tree, persisted)?.into_iter().peekable();
    loop {
        let of_runs = runs.iter().filter_map(|run| run.next.as_ref().map(|(key, _)| key));
        let Some(key) = of_runs.chain(memory.peek().map(|(key, _)| key)).min().cloned() else { return Ok(()) };
        let mut newest: Option<Write> = memory.next_if(|(next, _)| *next == key).map(|(_, write)| write);
        for run in &mut runs {
            while let Some((_, write)) = run.next.take_if(|(next, _)| *next == key) {
                if newest.as_ref().is_none_or(|(number, _)| *number < write.0) {
                    newest = Some(write);
                }
                run.advance()?;
            }
        }
        if let Some((_, Some(value))) = newest
            && visit(&key, &value)?.is_break()
        {
            return Ok(());
        }
    }
}

fn open_table(folder: &Path, file: &TableFile, cache: &Arc<Cache>) -> Result<Table, StoreError> {
    let path = folder.join(file.id.to_string());
    let shown = path.display().to_string();
    Table::recover(path, Checksum::from_raw(file.checksum), file.number_base, 0, Arc::clone(cache), None, false, false)
        .map_err(|error| StoreError::Damaged(format!("{shown}: {error:?}")))
}

/// The newest write of each key in the journals, of those that no table holds yet.
fn journal_rows(folder: &Path, tree: u64, persisted: Option<u64>) -> Result<BTreeMap<Bytes, Write>, StoreError> {
    let mut rows = BTreeMap::new();
    let taken = visit_journals(&FileDisk::read_only(folder), &mut |number, Item { keyspace, key, value }| {
        if keyspace == tree && persisted.is_none_or(|persisted| number > persisted) {
            rows.insert(Bytes::copy_from_slice(key), (number, value.map(Bytes::copy_from_slice)));
        }
    });
    taken.map_err(|error| StoreError::Io {
        detail: error.to_string(),
        source: match error {
            DiskError::Io { source, .. } => Some(source),
            _ => None,
        },
    })?;
    Ok(rows)
}

impl Run {
    fn advance(&mut self) -> Result<(), StoreError> {
        let failed = |error: lsm_tree::Error| StoreError::Damaged(format!("reading a table: {error:?}"));
        loop {
            if let Some(item) = self.open.as_mut().and_then(Iterator::next) {
                let item = item.map_err(failed)?;
                let value = (item.key.value_type == ValueType::Value).then(|| Bytes::from(item.value));
                self.next = Some((Bytes::from(item.key.user_key), (item.key.seqno, value)));
                return Ok(());
            }
            let Some(table) = self.tables.next() else {
                self.open = None;
                return Ok(());
            };
            self.open = Some(table.scan().map_err(failed)?);
        }
    }
}
