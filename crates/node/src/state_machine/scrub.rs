//! Hashing a replica's rows as they are behind one entry, to be compared between replicas (decision 11).
//!
//! The leader puts a mark into the shard's log. Whoever applies it takes a view right behind it, so that all
//! replicas see the rows at the very same index, whatever company the entry is applied in. The view is then hashed a
//! step at a time: every row is read and held to its checksum, and the keys are counted and held to the count that
//! the state keeps. What was lost without a trace, or changed along with its checksum, only the comparison shows.
//!
//! A view holds back the merging of what it sees, so there are few at a time, and a newer one of a replica
//! replaces the older. It is in memory only: a restart forgets it, and the leader names another one.

use super::apply::{Applier, ApplyError};
use super::state::ReplicaState;
use bytes::Bytes;
use flotilla_storage::store::layout::{self, Filing, GENERATION_PREFIX_BYTES, RowKind};
use flotilla_storage::store::{StateStore, StoreError, StoreView};
use flotilla_types::{LogIndex, ReplicaKey, Term};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The data of a mark. Its first byte is no format of mutations or of control commands.
const MARK: &[u8] = &[0x80, 1];
/// Views open at once on one node.
const VIEWS_MAX: usize = 8;

/// A mark that was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubMark {
    /// The mark's index.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// Whether a view was taken there; false: too many are open.
    pub is_open: bool,
}

/// What came of reading on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScrubStep {
    /// So many bytes were read, and there are more.
    More {
        /// Bytes of this step.
        bytes: u64,
    },
    /// All is read.
    Done {
        /// Bytes of this step.
        bytes: u64,
        /// The hash over all rows and what the state counts.
        hash: u64,
    },
    /// The view is there no more: the replica is gone, or a snapshot has replaced its rows.
    Gone,
    /// A row does not verify, or rows are missing by the replica's own count.
    Damaged(String),
}

/// A view being read.
#[derive(Debug)]
pub(super) struct Scrub<V> {
    index: LogIndex,
    view: V,
    prefix: [u8; GENERATION_PREFIX_BYTES],
    /// The first row not read yet.
    from: Vec<u8>,
    hash: u64,
    keys: u64,
    /// What the state says.
    keys_counted: u64,
}

/// The entry that names a scrub.
pub(crate) fn mark() -> Bytes {
    Bytes::from_static(MARK)
}

pub(crate) fn is_mark(data: &[u8]) -> bool {
    data == MARK
}

/// Keeps a view of a replica's rows at the mark it has just applied, unless too many are open.
pub(super) fn open<V>(scrubs: &mut BTreeMap<ReplicaKey, Scrub<V>>, view: V, replica: ReplicaKey, state: &ReplicaState) -> ScrubMark {
    scrubs.remove(&replica);
    let is_open = scrubs.len() < VIEWS_MAX;
    let (index, term) = state.applied;
    if is_open {
        // All of the state that follows from the entries applied.
        let counters = [index.0, term.0, state.version.0, state.clock.0, state.hash, state.keys, state.bytes];
        let hash = counters.iter().fold(0, |hash, number| xxh3_64_with_seed(&number.to_le_bytes(), hash));
        let Filing { under, generation } = state.filing(replica);
        let prefix = layout::data_prefix(under, generation);
        let from = prefix.to_vec();
        scrubs.insert(replica, Scrub { index, view, prefix, from, hash, keys: 0, keys_counted: state.keys });
    }
    ScrubMark { index, term, is_open }
}

impl<V: StoreView> Scrub<V> {
    fn step(&mut self, replica: ReplicaKey, bytes_max: u64) -> Result<ScrubStep, StoreError> {
        let Scrub { view, prefix, from, hash, keys, .. } = self;
        let (mut bytes, mut last) = (0, None);
        view.try_scan(from, &layout::prefix_end(&prefix[..]), &mut |key, value| {
            let relative_key = &key[GENERATION_PREFIX_BYTES..];
            layout::verify(relative_key, value)?;
            *hash = xxh3_64_with_seed(value, xxh3_64_with_seed(relative_key, *hash));
            *keys += u64::from(relative_key[0] == RowKind::Key as u8);
            bytes += (key.len() + value.len()) as u64;
            if bytes < bytes_max {
                return Ok(ControlFlow::Continue(()));
            }
            last = Some(key.to_vec());
            Ok(ControlFlow::Break(()))
        })?;
        if let Some(mut last) = last {
            last.push(0);
            *from = last;
            return Ok(ScrubStep::More { bytes });
        }
        if self.keys != self.keys_counted {
            let (held, counted) = (self.keys, self.keys_counted);
            return Ok(ScrubStep::Damaged(format!("{replica} counts {counted} keys at {} and the store holds {held}", self.index)));
        }
        Ok(ScrubStep::Done { bytes, hash: self.hash })
    }
}

impl<S: StateStore> Applier<S> {
    /// Reads on in the view that was taken at `index`: about `bytes_max`, at least one row.
    ///
    /// # Errors
    /// If the store fails; then this applier is done.
    pub fn scrub(&mut self, replica: ReplicaKey, index: LogIndex, bytes_max: u64) -> Result<ScrubStep, ApplyError> {
        self.check()?;
        let Some(scrub) = self.scrubs.get_mut(&replica).filter(|scrub| scrub.index == index) else { return Ok(ScrubStep::Gone) };
        let step = match scrub.step(replica, bytes_max) {
            Ok(step) => step,
            Err(StoreError::Damaged(detail)) => ScrubStep::Damaged(detail),
            Err(error) => {
                self.failed = true;
                return Err(error.into());
            }
        };
        if !matches!(step, ScrubStep::More { .. }) {
            self.scrubs.remove(&replica);
        }
        Ok(step)
    }

    /// Lets go of a replica's view.
    pub fn close_scrub(&mut self, replica: ReplicaKey) {
        self.scrubs.remove(&replica);
    }
}
