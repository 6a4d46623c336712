//! The store of the simulation: rows in memory, under the same contract as the engine and no better.
//!
//! What the engine may lose, this one does lose: a crash keeps a prefix of the batches, cut anywhere
//! at or after the last persist, as the seed decides. A failed write leaves it failed, and its batch
//! may yet be found after the crash. Stalls are only a flag: the simulation itself holds back the job.

use super::{RowVisitor, RowWrite, StateStore, StoreError, StoreView, WriteBatch};
use bytes::Bytes;
use flotilla_types::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

type Rows = BTreeMap<Bytes, Bytes>;

/// What an injected fault looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectedFault {
    /// The disk is full.
    DiskFull,
    /// The device failed (EIO).
    Device,
}

/// A store in memory. Clones share it; [`SimulatedStore::crash`] ends it and gives what survives.
#[derive(Clone, Debug, Default)]
pub struct SimulatedStore(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// What readers see. Shared with views, copied only when written to under a view.
    rows: Arc<Rows>,
    /// What certainly survives a crash.
    durable: Rows,
    /// What was written since, in order.
    pending: Vec<WriteBatch>,
    failed: Option<&'static str>,
    write_fault: Option<InjectedFault>,
    read_fault: Option<InjectedFault>,
    stalled: bool,
    bytes: u64,
}

/// The rows at one moment.
#[derive(Clone, Debug)]
pub struct SimulatedView(Arc<Rows>);

impl InjectedFault {
    fn error(self, detail: &str) -> StoreError {
        match self {
            InjectedFault::DiskFull => StoreError::DiskFull(io::Error::from(io::ErrorKind::StorageFull)),
            InjectedFault::Device => StoreError::Io { detail: detail.to_owned(), source: Some(io::Error::other("injected device error")) },
        }
    }
}

impl Inner {
    fn check(&self) -> Result<(), StoreError> {
        match self.failed {
            Some(why) => Err(StoreError::Io { detail: format!("it takes nothing more: {why}"), source: None }),
            None => Ok(()),
        }
    }
}

fn apply(rows: &mut Rows, writes: &[RowWrite]) -> i64 {
    let mut grown = 0;
    let size = |key: &Bytes, value: &Bytes| (key.len() + value.len()) as i64;
    for RowWrite { key, value } in writes {
        let before = match value {
            Some(value) => {
                grown += size(key, value);
                rows.insert(key.clone(), value.clone())
            }
            None => rows.remove(key),
        };
        grown -= before.map_or(0, |before| size(key, &before));
    }
    grown
}

impl SimulatedStore {
    /// An empty store.
    pub fn new() -> SimulatedStore {
        SimulatedStore::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }

    /// The power fails: gives the store that is found afterwards. This one takes nothing more.
    pub fn crash(&self, rng: &mut Rng) -> SimulatedStore {
        let count = self.inner().pending.len();
        self.crash_keeping(rng.below(count as u64 + 1) as usize)
    }

    /// As [`SimulatedStore::crash`], keeping exactly `count` of the batches written since the last persist.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn crash_keeping(&self, count: usize) -> SimulatedStore {
        let survivor = self.survivor(count);
        self.inner().failed = Some("the node has crashed");
        survivor
    }

    /// What a crash now would leave, with exactly `count` of the batches written since the last
    /// persist; this store goes on.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn survivor(&self, count: usize) -> SimulatedStore {
        let inner = self.inner();
        let mut rows = inner.durable.clone();
        for batch in &inner.pending[..count] {
            apply(&mut rows, batch.writes());
        }
        let bytes = rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
        let survivor = Inner { rows: Arc::new(rows.clone()), durable: rows, bytes, ..Inner::default() };
        SimulatedStore(Arc::new(Mutex::new(survivor)))
    }

    /// How many batches were written since the last persist.
    pub fn unpersisted(&self) -> usize {
        self.inner().pending.len()
    }

    /// From now on the next write or persist fails like this, and all that follow.
    pub fn fail_writes(&self, fault: InjectedFault) {
        self.inner().write_fault = Some(fault);
    }

    /// From now on reads fail like this; `None` ends it.
    pub fn fail_reads(&self, fault: Option<InjectedFault>) {
        self.inner().read_fault = fault;
    }

    /// Says that the engine stalls, or no longer. The store itself never waits: the simulation asks
    /// [`SimulatedStore::stalled`] and holds the job back.
    pub fn set_stalled(&self, stalled: bool) {
        self.inner().stalled = stalled;
    }

    /// Whether the engine is to be thought of as stalled.
    pub fn stalled(&self) -> bool {
        self.inner().stalled
    }

    /// Flips one bit of one row's value, behind everyone's back; gives the row's key, `None` if there are no rows.
    pub fn flip_bit(&self, rng: &mut Rng) -> Option<Bytes> {
        let mut inner = self.inner();
        if inner.rows.is_empty() {
            return None;
        }
        let chosen = rng.below(inner.rows.len() as u64) as usize;
        let (key, value) = inner.rows.iter().nth(chosen).map(|(key, value)| (key.clone(), value.clone()))?;
        if value.is_empty() {
            return None;
        }
        let bit = rng.below(value.len() as u64 * 8) as usize;
        let mut wrong = value.to_vec();
        wrong[bit / 8] ^= 1 << (bit % 8);
        let wrong = Bytes::from(wrong);
        Arc::make_mut(&mut inner.rows).insert(key.clone(), wrong.clone());
        if inner.durable.get(&key) == Some(&value) {
            inner.durable.insert(key.clone(), wrong);
        }
        Some(key)
    }

    /// Sets a row, or takes it away, behind everyone's back.
    pub fn tamper(&self, key: &[u8], value: Option<Bytes>) {
        let mut inner = self.inner();
        let inner = &mut *inner;
        for rows in [Arc::make_mut(&mut inner.rows), &mut inner.durable] {
            match &value {
                Some(value) => drop(rows.insert(Bytes::copy_from_slice(key), value.clone())),
                None => drop(rows.remove(key)),
            }
        }
    }

    /// Every row, for tests that compare stores.
    pub fn rows(&self) -> Vec<(Bytes, Bytes)> {
        self.inner().rows.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

impl StateStore for SimulatedStore {
    type View = SimulatedView;

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let inner = self.inner();
        match inner.read_fault {
            Some(fault) => Err(fault.error("a row could not be read")),
            None => Ok(inner.rows.get(key).cloned()),
        }
    }

    fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        let mut inner = self.inner();
        inner.check()?;
        if batch.is_empty() {
            return Ok(());
        }
        let keys: BTreeSet<&Bytes> = batch.writes().iter().map(|write| &write.key).collect();
        assert!(keys.len() == batch.len(), "a batch holds each key at most once");
        if let Some(fault) = inner.write_fault {
            inner.failed = Some("a write failed");
            // It may have reached the disk all the same.
            inner.pending.push(batch);
            return Err(fault.error("a batch could not be written"));
        }
        let grown = apply(Arc::make_mut(&mut inner.rows), batch.writes());
        inner.bytes = inner.bytes.saturating_add_signed(grown);
        inner.pending.push(batch);
        Ok(())
    }

    fn persist(&self) -> Result<(), StoreError> {
        let mut inner = self.inner();
        inner.check()?;
        if let Some(fault) = inner.write_fault {
            inner.failed = Some("a sync failed");
            return Err(fault.error("the store could not be synced"));
        }
        for batch in std::mem::take(&mut inner.pending) {
            apply(&mut inner.durable, batch.writes());
        }
        Ok(())
    }

    fn view(&self) -> Result<SimulatedView, StoreError> {
        Ok(SimulatedView(self.inner().rows.clone()))
    }

    fn disk_bytes(&self) -> u64 {
        self.inner().bytes
    }
}

impl StoreView for SimulatedView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: RowVisitor<'_>) -> Result<(), StoreError> {
        visit_rows(self.range(from, to), visit)
    }

    fn scan_back(&self, from: &[u8], to: &[u8], visit: RowVisitor<'_>) -> Result<(), StoreError> {
        visit_rows(self.range(from, to).rev(), visit)
    }
}

impl SimulatedView {
    /// The rows of a range; an empty one if `to` does not lie behind `from`.
    fn range(&self, from: &[u8], to: &[u8]) -> impl DoubleEndedIterator<Item = (&Bytes, &Bytes)> {
        self.0.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to.max(from))))
    }
}

fn visit_rows<'a>(rows: impl Iterator<Item = (&'a Bytes, &'a Bytes)>, visit: RowVisitor<'_>) -> Result<(), StoreError> {
    for (key, value) in rows {
        if visit(key, value).is_break() {
            break;
        }
    }
    Ok(())
}
