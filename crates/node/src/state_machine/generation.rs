//! The applier's part that makes, installs, destroys and sweeps: whatever concerns a replica's rows
//! as a whole.
//!
//! A generation that is being installed is on the dead list from the first moment, written before its
//! first row. So a crash at any step leaves either the old generation in force and the new one to be
//! swept, or, once the switching batch has survived, the reverse. Nothing must be recognised afterwards.

use super::apply::{Applier, ApplyError, Live};
use super::idempotency::IdempotencyTable;
use super::rows::RowWriter;
use super::snapshot::{ChunkError, Incoming};
use super::state::ReplicaState;
use crate::control::{ControlState, RowKey};
use bytes::Bytes;
use flotilla_storage::store::layout::{self, Filing, GENERATION_PREFIX_BYTES, RowKind};
use flotilla_storage::store::{StateStore, StoreError, StoreView, WriteBatch};
use flotilla_types::{GroupId, ReplicaKey};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Rows deleted in one batch when a generation must be empty at once.
const CLEAR_ROWS: usize = 1000;

/// Why a snapshot was not installed. After a refusal the install is given up.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The chunk is damaged, out of order or of an unknown format: begin again.
    #[error("the snapshot of {replica} is refused")]
    Refused {
        /// Whose.
        replica: ReplicaKey,
        /// Why.
        #[source]
        source: ChunkError,
    },
    /// No such install is under way.
    #[error("no snapshot is being installed as generation {generation} of {replica}")]
    NotUnderWay {
        /// Whose.
        replica: ReplicaKey,
        /// The generation named.
        generation: u32,
    },
    /// The store failed.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl From<StoreError> for InstallError {
    fn from(error: StoreError) -> InstallError {
        InstallError::Apply(error.into())
    }
}

/// What a store held when it was opened.
pub(super) struct Found {
    pub(super) replicas: BTreeMap<ReplicaKey, ReplicaState>,
    pub(super) idempotency: BTreeMap<ReplicaKey, IdempotencyTable>,
    pub(super) dead: BTreeSet<(ReplicaKey, u32)>,
    pub(super) damaged: Vec<(ReplicaKey, String)>,
}

/// Reads all state rows, the control group's rows, and the list of dead generations.
pub(super) fn read_states<S: StateStore>(store: &S) -> Result<Found, StoreError> {
    let view = store.view()?;
    let mut found = Found { replicas: BTreeMap::new(), idempotency: BTreeMap::new(), dead: BTreeSet::new(), damaged: Vec::new() };
    let mut unknown = None;
    view.scan(&[layout::TABLE_STATE], &[layout::TABLE_STATE + 1], &mut |key, value| {
        let Some(replica) = layout::parse_replica(key) else {
            unknown = Some(key.to_vec());
            return ControlFlow::Break(());
        };
        match decode_state(key, value) {
            Ok(state) => drop(found.replicas.insert(replica, state)),
            Err(detail) => found.damaged.push((replica, detail)),
        }
        ControlFlow::Continue(())
    })?;
    view.scan(&[layout::TABLE_DEAD], &[layout::TABLE_DEAD + 1], &mut |key, _| match layout::parse_generation(key) {
        Some(generation) => {
            found.dead.insert(generation);
            ControlFlow::Continue(())
        }
        None => {
            unknown = Some(key.to_vec());
            ControlFlow::Break(())
        }
    })?;
    if let Some(key) = unknown {
        return Err(StoreError::Damaged(format!("there is a row \"{}\" in no known table", key.escape_ascii())));
    }
    for (replica, state) in &found.replicas {
        let Filing { under, generation } = state.filing(*replica);
        if found.dead.contains(&(under, generation)) {
            return Err(StoreError::Damaged(format!("generation {} of {replica} is in force and listed as dead", state.generation)));
        }
    }
    let all: Vec<(ReplicaKey, Filing)> = found.replicas.iter().map(|(replica, state)| (*replica, state.filing(*replica))).collect();
    for (replica, Filing { under, generation }) in all {
        let read = match replica.group {
            GroupId::CONTROL => read_control(&view, under, generation)
                .map(|control| found.replicas.get_mut(&replica).expect("just listed").control = control),
            _ => IdempotencyTable::read(&view, under, generation).map(|table| drop(found.idempotency.insert(replica, table))),
        };
        match read {
            Ok(()) => {}
            Err(StoreError::Damaged(detail)) => {
                found.replicas.remove(&replica);
                found.damaged.push((replica, detail));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Reads a state row's value.
pub(super) fn decode_state(key: &[u8], value: &[u8]) -> Result<ReplicaState, String> {
    let body = layout::verify(key, value).map_err(|error| error.to_string())?;
    ReplicaState::decode(Bytes::copy_from_slice(body)).map_err(|error| format!("a state row cannot be read: {error}"))
}

/// The control state that the control rows of a generation make up; `None` if there are none.
fn read_control<V: StoreView>(view: &V, replica: ReplicaKey, generation: u32) -> Result<Option<Arc<ControlState>>, StoreError> {
    let prefix = layout::data_row(replica, generation, RowKind::Control, &[]);
    let mut rows = Vec::new();
    view.try_scan(&prefix, &layout::prefix_end(&prefix), &mut |key, value| {
        let body = layout::verify(&key[GENERATION_PREFIX_BYTES..], value)?;
        let name = RowKey::decode(&key[prefix.len()..]).map_err(|error| StoreError::Damaged(format!("a control row: {error}")))?;
        rows.push((name, Bytes::copy_from_slice(body)));
        Ok(ControlFlow::Continue(()))
    })?;
    if rows.is_empty() {
        return Ok(None);
    }
    let control = ControlState::from_rows(rows).map_err(|error| StoreError::Damaged(format!("the control rows of {replica}: {error}")))?;
    Ok(Some(Arc::new(control)))
}

fn put_dead(writer: &mut RowWriter, replica: ReplicaKey, generation: u32) {
    writer.put_own(&layout::dead_key(replica, generation), |_| {});
}

impl<S: StateStore> Applier<S> {
    /// Creates a replica with its first state (and, in the control group, its control rows).
    ///
    /// # Errors
    /// If the store fails.
    ///
    /// # Panics
    /// If the replica exists: ids are never used twice.
    pub fn create(&mut self, replica: ReplicaKey, state: ReplicaState) -> Result<(), ApplyError> {
        self.check()?;
        assert!(!self.replicas.contains_key(&replica), "{replica} exists already");
        assert!(state.generation <= state.generation_highest, "{replica}: generation above the highest");
        let mut writer = RowWriter::default();
        let live = Live::new(replica, state, IdempotencyTable::default());
        let generation = (replica, live.state.generation);
        if self.dead.contains(&generation) {
            // Created before a crash that the log had no word of it yet in, and destroyed at the restart.
            self.clear(generation.0, generation.1)?;
            writer.batch.delete(Bytes::copy_from_slice(&layout::dead_key(generation.0, generation.1)));
        }
        if let Some(control) = &live.state.control {
            for key in control.row_keys() {
                let value = control.encode_row(key).expect("row_keys lists rows that exist");
                writer.put_control(&live.prefix, &key.encode(), &value, 0);
            }
        }
        writer.put_own(&layout::state_key(replica), |out| live.state.encode_into(out));
        self.write(writer.batch)?;
        self.dead.remove(&generation);
        self.replicas.insert(replica, live);
        Ok(())
    }

    /// Forgets a replica: its state is gone at once, its rows are swept by and by. One that is not
    /// there is passed over.
    ///
    /// # Errors
    /// If the store fails.
    pub fn destroy(&mut self, replica: ReplicaKey) -> Result<(), ApplyError> {
        self.check()?;
        let generations = match self.replicas.get(&replica) {
            Some(live) => vec![live.state.filing(replica)],
            // Its state is damaged, so its generation is not known: look for it.
            None => self.generations_of(replica)?.into_iter().map(|generation| Filing { under: replica, generation }).collect(),
        };
        let mut writer = RowWriter::default();
        for Filing { under, generation } in &generations {
            put_dead(&mut writer, *under, *generation);
        }
        writer.batch.delete(Bytes::copy_from_slice(&layout::state_key(replica)));
        self.write(writer.batch)?;
        self.replicas.remove(&replica);
        self.scrubs.remove(&replica);
        // What was being installed is on the dead list already.
        self.installing.retain(|(r, _), _| *r != replica);
        self.dead.extend(generations.into_iter().map(|filing| (filing.under, filing.generation)));
        Ok(())
    }

    fn generations_of(&self, replica: ReplicaKey) -> Result<Vec<u32>, ApplyError> {
        let (mut from, end) = (layout::data_prefix(replica, 0).to_vec(), layout::prefix_end(&layout::data_prefix(replica, u32::MAX)));
        let mut generations = Vec::new();
        loop {
            let mut found = None;
            self.store.view()?.scan(&from, &end, &mut |key, _| {
                found = layout::parse_generation(key);
                ControlFlow::Break(())
            })?;
            let Some((_, generation)) = found else { return Ok(generations) };
            generations.push(generation);
            from = layout::prefix_end(&layout::data_prefix(replica, generation));
        }
    }

    /// Begins to fill a generation that is not in force, best [`ReplicaState::next_generation`]. Rows that
    /// an earlier attempt left there are deleted first, which takes its time.
    ///
    /// # Errors
    /// If the store fails, or there is no such replica.
    ///
    /// # Panics
    /// If the generation is in force.
    pub fn begin_install(&mut self, replica: ReplicaKey, generation: u32) -> Result<(), InstallError> {
        self.check()?;
        let Some(live) = self.replicas.get(&replica) else {
            return Err(InstallError::NotUnderWay { replica, generation });
        };
        assert!(live.state.generation != generation, "{replica}: generation {generation} is in force");
        let mut state = live.state.clone();
        self.clear(replica, generation)?;
        state.generation_highest = state.generation_highest.max(generation);
        let mut writer = RowWriter::default();
        put_dead(&mut writer, replica, generation);
        writer.put_own(&layout::state_key(replica), |out| state.encode_into(out));
        self.write(writer.batch)?;
        self.replicas.get_mut(&replica).expect("just found").state = state;
        self.dead.insert((replica, generation));
        self.installing.insert((replica, generation), Incoming::new(layout::data_prefix(replica, generation)));
        Ok(())
    }

    /// Writes a chunk's rows into the generation that is being filled.
    ///
    /// # Errors
    /// If the chunk is not the next one, intact; then the install is given up. If the store fails.
    pub fn install_rows(&mut self, replica: ReplicaKey, generation: u32, chunk: Bytes) -> Result<(), InstallError> {
        self.check()?;
        let incoming = self.installing.get_mut(&(replica, generation)).ok_or(InstallError::NotUnderWay { replica, generation })?;
        match incoming.take(chunk) {
            Ok(batch) => Ok(self.write(batch)?),
            Err(source) => {
                self.installing.remove(&(replica, generation));
                Err(InstallError::Refused { replica, source })
            }
        }
    }

    /// Switches to the filled generation and to the state the snapshot was taken at, in one batch,
    /// and makes that durable. Gives the state now in force.
    ///
    /// # Errors
    /// If the snapshot is not complete or does not match its state; then the install is given up. If the store fails.
    pub fn finish_install(&mut self, replica: ReplicaKey, generation: u32, state: ReplicaState) -> Result<ReplicaState, InstallError> {
        self.check()?;
        let incoming = self.installing.remove(&(replica, generation)).ok_or(InstallError::NotUnderWay { replica, generation })?;
        let refused = |source| InstallError::Refused { replica, source };
        incoming.check_complete(&state).map_err(refused)?;
        let live = self.replicas.get(&replica).ok_or(InstallError::NotUnderWay { replica, generation })?;
        let old = live.state.filing(replica);
        // The log has gone on past the snapshot while it was under way: going back would undo entries.
        if state.applied.0 < live.state.applied.0 {
            return Err(refused(ChunkError::Stale { snapshot: state.applied.0, applied: live.state.applied.0 }));
        }
        let generation_highest = live.state.generation_highest;
        let view = self.store.view()?;
        let (control, idempotency) = match replica.group {
            GroupId::CONTROL => (read_control(&view, replica, generation)?, IdempotencyTable::default()),
            _ => (None, IdempotencyTable::read(&view, replica, generation)?),
        };
        let state = ReplicaState { generation, generation_highest, filed_under: None, control, ..state };
        let mut writer = RowWriter::default();
        writer.put_own(&layout::state_key(replica), |out| state.encode_into(out));
        writer.batch.delete(Bytes::copy_from_slice(&layout::dead_key(replica, generation)));
        put_dead(&mut writer, old.under, old.generation);
        self.write(writer.batch)?;
        if !self.faults.snapshot_switched_before_durable {
            self.store.persist().inspect_err(|_| self.failed = true)?;
        }
        self.dead.remove(&(replica, generation));
        self.dead.insert((old.under, old.generation));
        // It looks at rows that are in force no more.
        self.scrubs.remove(&replica);
        self.replicas.insert(replica, Live::new(replica, state.clone(), idempotency));
        Ok(state)
    }

    /// Gives an install up; its rows are swept by and by.
    pub fn abort_install(&mut self, replica: ReplicaKey, generation: u32) {
        self.installing.remove(&(replica, generation));
    }

    /// Deletes up to `rows_max` rows of dead generations; gives whether there are more. A generation with
    /// damaged rows is left as it is.
    ///
    /// # Errors
    /// If the store fails.
    pub fn sweep(&mut self, rows_max: usize) -> Result<bool, ApplyError> {
        self.check()?;
        let Some(generation) = self.next_to_sweep() else { return Ok(false) };
        let resumed = self.sweep_from.take().filter(|(swept, _)| *swept == generation).map(|(_, from)| from);
        let rows = match self.rows_of(generation, resumed.as_deref(), rows_max) {
            // Nobody asks for these rows. They stay until the store is made anew.
            Err(StoreError::Damaged(_)) => {
                self.unsweepable.insert(generation);
                return Ok(self.next_to_sweep().is_some());
            }
            rows => rows?,
        };
        let mut batch = WriteBatch::with_capacity(rows.len() + 1);
        let last = rows.last().cloned();
        let done = rows.len() < rows_max.max(1);
        rows.into_iter().for_each(|key| batch.delete(key));
        if done {
            batch.delete(Bytes::copy_from_slice(&layout::dead_key(generation.0, generation.1)));
            self.dead.remove(&generation);
        } else {
            self.sweep_from = last.map(|key| (generation, key));
        }
        self.write(batch)?;
        Ok(self.next_to_sweep().is_some())
    }

    fn next_to_sweep(&self) -> Option<(ReplicaKey, u32)> {
        self.dead.iter().find(|g| !self.installing.contains_key(g) && !self.unsweepable.contains(g)).copied()
    }

    /// Up to `count` row keys of a generation, from one on.
    fn rows_of(&self, generation: (ReplicaKey, u32), from: Option<&[u8]>, count: usize) -> Result<Vec<Bytes>, StoreError> {
        let prefix = layout::data_prefix(generation.0, generation.1);
        let mut rows = Vec::new();
        self.store.view()?.scan(from.unwrap_or(&prefix), &layout::prefix_end(&prefix), &mut |key, _| {
            rows.push(Bytes::copy_from_slice(key));
            if rows.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(rows)
    }

    fn clear(&mut self, replica: ReplicaKey, generation: u32) -> Result<(), ApplyError> {
        loop {
            let rows = self.rows_of((replica, generation), None, CLEAR_ROWS)?;
            if rows.is_empty() {
                return Ok(());
            }
            let mut batch = WriteBatch::with_capacity(rows.len());
            rows.into_iter().for_each(|key| batch.delete(key));
            self.write(batch)?;
        }
    }

    fn write(&mut self, batch: WriteBatch) -> Result<(), ApplyError> {
        Ok(self.store.write(batch).inspect_err(|_| self.failed = true)?)
    }
}
