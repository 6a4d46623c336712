//! Keys with a deadline: when they are expired, the index of deadlines, and what a leader is told to delete.
//!
//! A key is expired once its shard's clock has reached its deadline. The clock is part of the replicated state
//! and moves only by entries, so all replicas agree, no leader change brings a key back, and whoever applies or
//! reads treats an expired key as absent. Its rows stay until a leader has it deleted through the log.
//!
//! [`Applier::find_expired`] names such keys, a bounded number. It goes through the index from where it stopped,
//! since an LSM tree keeps what was deleted before that place in the way for a while. Where it stopped, and what
//! it named last, is in memory only: whatever is forgotten is found again.

use super::apply::{Applier, ApplyError, Live, StopReason, Work};
use super::generation::decode_state;
use super::rows::KeyHead;
use flotilla_storage::store::layout::{self, GENERATION_PREFIX_BYTES, RowKind};
use flotilla_storage::store::{StateStore, StoreError, StoreView};
use flotilla_types::{Key, ReplicaKey, Timestamp};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// Most keys named at once: what one entry may delete.
const FOUND_MAX: usize = super::mutation::ENTRY_KEYS_MAX;
/// Bytes of keys and values after which no more are named at once.
const FOUND_BYTES_MAX: usize = 4 << 20;
const DEADLINE_BYTES: usize = 8;

/// A place in the index.
pub(super) type Place = (Timestamp, Key);

/// How far the index was gone through. Invariant: no deadline lies before `from` unless it is in `found`.
#[derive(Debug, Default)]
pub(super) struct ExpirySweep {
    from: Option<Place>,
    /// Named, and not deleted yet.
    found: BTreeSet<Place>,
    /// The soonest deadline that the present job has written.
    pub(super) soonest_written: Option<Timestamp>,
}

/// Keys whose time is over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpiredKeys {
    /// They; not all, if there are many.
    pub keys: Vec<Key>,
    /// The soonest deadline behind those.
    pub next: Option<Timestamp>,
}

impl KeyHead {
    /// Whether its time is over at this moment of its shard's clock.
    pub(super) fn is_expired(&self, clock: Timestamp) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= clock)
    }
}

/// Whether a key that a view shows is expired in that view.
pub(super) fn is_expired<V: StoreView>(view: &V, replica: ReplicaKey, head: &KeyHead) -> Result<bool, StoreError> {
    if head.deadline.is_none() {
        return Ok(false);
    }
    // Written in one batch with whatever moved the clock. Without it the replica is gone: who asks finds out.
    let key = layout::state_key(replica);
    let Some(row) = view.get(&key)? else { return Ok(true) };
    let state = decode_state(&key, &row).map_err(StoreError::Damaged)?;
    Ok(head.is_expired(state.clock))
}

/// The rest of an index row's relative key.
fn index_rest(deadline: Timestamp, key: &Key) -> Vec<u8> {
    let mut rest = Vec::with_capacity(DEADLINE_BYTES + key.as_bytes().len());
    rest.extend_from_slice(&deadline.0.to_be_bytes());
    rest.extend_from_slice(key.as_bytes());
    rest
}

impl<S: StateStore> Work<'_, S> {
    /// Brings the index up to date with a key's change.
    pub(super) fn index_deadline(&mut self, live: &mut Live, key: &Key, before: Option<KeyHead>, after: Option<KeyHead>) {
        let sweep = &mut live.expiry;
        if let Some(deadline) = before.and_then(|head| head.deadline) {
            if !sweep.found.is_empty() {
                sweep.found.remove(&(deadline, key.clone()));
            }
            if after.and_then(|head| head.deadline) != Some(deadline) {
                live.state.hash = self.writer.delete_row(&live.prefix, RowKind::Expiry, &index_rest(deadline, key), live.state.hash);
            }
        }
        if let Some(head) = after
            && let Some(deadline) = head.deadline
        {
            let (rest, bytes) = (index_rest(deadline, key), head.value_bytes.to_le_bytes());
            live.state.hash = self.writer.put_row(&live.prefix, RowKind::Expiry, &rest, (&bytes, &[]), live.state.hash);
            let place = (deadline, key.clone());
            if sweep.from.as_ref().is_some_and(|from| place < *from) {
                sweep.from = Some(place);
            }
            sweep.soonest_written = Some(sweep.soonest_written.map_or(deadline, |soonest| soonest.min(deadline)));
        }
    }
}

impl<S: StateStore> Applier<S> {
    /// Keys whose deadline is reached by this clock or the shard's own, the soonest first. What was named before
    /// and is still there is named again.
    ///
    /// # Errors
    /// If the store fails; then this applier is done. A damaged row stops the replica.
    pub fn find_expired(&mut self, replica: ReplicaKey, clock: Timestamp) -> Result<Result<ExpiredKeys, StopReason>, ApplyError> {
        self.check()?;
        let Some(live) = self.replicas.get_mut(&replica).filter(|live| live.stopped.is_none()) else {
            return Ok(Ok(ExpiredKeys::default()));
        };
        let next = match live.go_through_index(&self.store, clock) {
            Ok(next) => next,
            Err(StoreError::Damaged(detail)) => {
                live.stopped = Some(StopReason::Damaged(detail.clone()));
                return Ok(Err(StopReason::Damaged(detail)));
            }
            Err(error) => {
                self.failed = true;
                return Err(error.into());
            }
        };
        let keys = live.expiry.found.iter().map(|(_, key)| key.clone()).collect();
        Ok(Ok(ExpiredKeys { keys, next }))
    }
}

impl Live {
    /// Finds the next keys to name, if there are none left; gives the soonest deadline behind.
    fn go_through_index<S: StateStore>(&mut self, store: &S, clock: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        if let Some((deadline, _)) = self.expiry.found.first() {
            return Ok(Some(*deadline));
        }
        let clock = clock.max(self.state.clock);
        let mut from = self.prefix.to_vec();
        from.push(RowKind::Expiry as u8);
        let end = layout::prefix_end(&from);
        if let Some((deadline, key)) = &self.expiry.from {
            from.extend_from_slice(&index_rest(*deadline, key));
        }
        let (found, mut bytes, mut behind) = (&mut self.expiry.found, 0, None);
        store.view()?.try_scan(&from, &end, &mut |key, value| {
            let (place, value_bytes) = read_row(&key[GENERATION_PREFIX_BYTES..], value)?;
            if place.0 > clock || found.len() >= FOUND_MAX || bytes >= FOUND_BYTES_MAX {
                behind = Some(place);
                return Ok(ControlFlow::Break(()));
            }
            bytes += place.1.as_bytes().len() + value_bytes;
            found.insert(place);
            Ok(ControlFlow::Continue(()))
        })?;
        let next = behind.as_ref().map(|(deadline, _)| *deadline);
        self.expiry.from = behind.or_else(|| self.expiry.found.last().cloned()).or(self.expiry.from.take());
        Ok(next)
    }
}

/// What the index holds of a key, to be compared.
pub(super) fn index_row(deadline: Timestamp, key: &Key, value_bytes: u32) -> Vec<u8> {
    let mut row = index_rest(deadline, key);
    row.extend_from_slice(&value_bytes.to_le_bytes());
    row
}

/// A row of the index: deadline, key, and the length of the key's value.
pub(super) fn read_index_row(relative_key: &[u8], row: &[u8]) -> Result<(Timestamp, Key, u32), StoreError> {
    let ((deadline, key), value_bytes) = read_row(relative_key, row)?;
    Ok((deadline, key, value_bytes as u32))
}

/// An index row's place, and the length of the key's value.
pub(super) fn read_row(relative_key: &[u8], row: &[u8]) -> Result<(Place, usize), StoreError> {
    let body = layout::verify(relative_key, row)?;
    let wrong = || StoreError::Damaged(format!("the row \"{}\" is none of the index of deadlines", relative_key.escape_ascii()));
    let (deadline, key) = relative_key[1..].split_first_chunk::<DEADLINE_BYTES>().ok_or_else(wrong)?;
    let key = Key::new(key.to_vec()).map_err(|_| wrong())?;
    let value_bytes = u32::from_le_bytes(body.try_into().map_err(|_| wrong())?);
    Ok(((Timestamp(u64::from_be_bytes(*deadline)), key), value_bytes as usize))
}
