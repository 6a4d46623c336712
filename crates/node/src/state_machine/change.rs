//! What each mutation does to its key: the part of the applier that reads what is there, decides, and
//! writes rows and counters.
//!
//! What a key is at this point of a job is looked up in two places: the overlay of what the job has changed, which
//! is not in the store yet, and the store.

use super::apply::{EntryError, Live, MutationResult, StopReason, Work};
use super::rows::KeyHead;
use crate::request::WriteRefusal;
use flotilla_storage::store::layout::{GENERATION_PREFIX_BYTES, RowKind};
use flotilla_storage::store::{StateStore, StoreError};
use flotilla_types::{Condition, Key, Timestamp};
use std::time::Duration;

/// What a key is since an earlier mutation of the same job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Overlaid {
    head: Option<KeyHead>,
    /// The value, if it is an integer.
    integer: Option<i64>,
}

/// The longest text of an `i64`.
const INTEGER_BYTES_MAX: usize = "-9223372036854775808".len();

/// The integer that a value is: decimal, as it is written by us, so without `+`, blanks or leading zeros.
fn integer_of(value: &[u8]) -> Option<i64> {
    if value.len() > INTEGER_BYTES_MAX {
        return None;
    }
    let digits = value.strip_prefix(b"-").unwrap_or(value);
    let canonical = match digits {
        [b'0'] => value.len() == 1,
        [first, ..] => *first != b'0' && *first != b'+',
        [] => false,
    };
    if canonical { std::str::from_utf8(value).ok()?.parse().ok() } else { None }
}

/// How many keys and bytes a present key counts for.
fn size_of(key: &Key, head: Option<KeyHead>) -> (u64, u64) {
    head.map_or((0, 0), |head| (1, key.as_bytes().len() as u64 + u64::from(head.value_bytes)))
}

fn count_down(count: u64, by: u64) -> Result<u64, EntryError> {
    let short =
        || EntryError::Stop(StopReason::Damaged(format!("the state counts {count} where at least {by} are: it is not that of these rows")));
    count.checked_sub(by).ok_or_else(short)
}

/// What of a key counts: nothing, once its time is over.
fn unexpired(live: &Live, head: Option<KeyHead>) -> Option<KeyHead> {
    head.filter(|head| !head.is_expired(live.state.clock))
}

impl<S: StateStore> Work<'_, S> {
    /// A `ttl` counts from the clock of this entry.
    pub(super) fn put(
        &mut self,
        live: &mut Live,
        key: Key,
        value: &[u8],
        ttl: Option<Duration>,
        condition: &Condition,
    ) -> Result<MutationResult, EntryError> {
        let before = self.head(live, &key)?;
        let present = unexpired(live, before);
        if let Some(failed) = self.refusal(condition, present) {
            return Ok(failed);
        }
        let deadline = ttl.map(|ttl| Timestamp(live.state.clock.0.saturating_add(ttl.as_millis() as u64)));
        let head = self.write(live, key, value, deadline, before)?;
        Ok(MutationResult::Put { version: head.version, created: present.is_none() })
    }

    pub(super) fn delete(&mut self, live: &mut Live, key: Key, condition: &Condition) -> Result<MutationResult, EntryError> {
        let before = self.head(live, &key)?;
        let present = unexpired(live, before);
        if let Some(failed) = self.refusal(condition, present) {
            return Ok(failed);
        }
        self.remove(live, key, before)?;
        Ok(MutationResult::Deleted { deleted: present.is_some() })
    }

    /// Deletes the key if it is expired: it may have got another value since it was found to be.
    pub(super) fn expire(&mut self, live: &mut Live, key: Key) -> Result<MutationResult, EntryError> {
        let before = self.head(live, &key)?.filter(|head| head.is_expired(live.state.clock));
        self.remove(live, key, before)?;
        Ok(MutationResult::Deleted { deleted: before.is_some() })
    }

    /// An absent key counts from 0. The deadline stays.
    pub(super) fn increment(&mut self, live: &mut Live, key: Key, by: i64, condition: &Condition) -> Result<MutationResult, EntryError> {
        let Overlaid { head: before, integer } = self.present(live, &key)?;
        let present = unexpired(live, before);
        if let Some(failed) = self.refusal(condition, present) {
            return Ok(failed);
        }
        let Some(integer) = (if present.is_some() { integer } else { Some(0) }) else {
            return Ok(MutationResult::Refused(WriteRefusal::NotAnInteger));
        };
        let Some(sum) = integer.checked_add(by) else {
            return Ok(MutationResult::Refused(WriteRefusal::Overflow));
        };
        let deadline = present.and_then(|head| head.deadline);
        let head = self.write(live, key, sum.to_string().as_bytes(), deadline, before)?;
        Ok(MutationResult::Incremented { value: sum, version: head.version })
    }

    /// Gives the key a value and a version.
    fn write(
        &mut self,
        live: &mut Live,
        key: Key,
        value: &[u8],
        deadline: Option<Timestamp>,
        before: Option<KeyHead>,
    ) -> Result<KeyHead, EntryError> {
        let head = KeyHead::of_value(live.next_version(), value, deadline);
        live.state.hash = self.writer.put_key(&live.prefix, &key, head, value, before, live.state.hash);
        self.index_deadline(live, &key, before, Some(head));
        let (keys, bytes) = size_of(&key, before);
        let state = &mut live.state;
        state.keys = count_down(state.keys, keys)? + 1;
        state.bytes = count_down(state.bytes, bytes)? + key.as_bytes().len() as u64 + u64::from(head.value_bytes);
        self.remember(key, Overlaid { head: Some(head), integer: integer_of(value) });
        Ok(head)
    }

    /// Takes away what is there, if anything is.
    fn remove(&mut self, live: &mut Live, key: Key, before: Option<KeyHead>) -> Result<(), EntryError> {
        let Some(head) = before else { return Ok(()) };
        live.next_version();
        live.state.hash = self.writer.delete_key(&live.prefix, &key, head, live.state.hash);
        self.index_deadline(live, &key, before, None);
        let (keys, bytes) = size_of(&key, before);
        let state = &mut live.state;
        state.keys = count_down(state.keys, keys)?;
        state.bytes = count_down(state.bytes, bytes)?;
        self.remember(key, Overlaid { head: None, integer: None });
        Ok(())
    }

    fn refusal(&self, condition: &Condition, present: Option<KeyHead>) -> Option<MutationResult> {
        let present = present.map(|head| head.version);
        let refused = !condition.holds(present) && !self.conditions_ignored;
        refused.then_some(MutationResult::ConditionFailed { present })
    }

    /// What the key is at this point of the job, apart from its value.
    fn head(&mut self, live: &Live, key: &Key) -> Result<Option<KeyHead>, StoreError> {
        Ok(self.present(live, key)?.head)
    }

    /// What the key is at this point of the job. A value in chunks is longer than any integer.
    fn present(&mut self, live: &Live, key: &Key) -> Result<Overlaid, StoreError> {
        if let Some(overlaid) = self.overlay.get(key) {
            return Ok(*overlaid);
        }
        self.row_key.clear();
        self.row_key.extend_from_slice(&live.prefix);
        self.row_key.push(RowKind::Key as u8);
        self.row_key.extend_from_slice(key.as_bytes());
        let Some(row) = self.store.get(self.row_key)? else { return Ok(Overlaid { head: None, integer: None }) };
        let (head, value) = KeyHead::decode(&self.row_key[GENERATION_PREFIX_BYTES..], row)?;
        Ok(Overlaid { head: Some(head), integer: integer_of(&value) })
    }

    fn remember(&mut self, key: Key, now: Overlaid) {
        self.seen_twice |= self.overlay.insert(key, now).is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::integer_of;

    #[test]
    fn integers_are_those_that_we_write() {
        for integer in [0, 7, -7, 10, i64::MAX, i64::MIN] {
            assert_eq!(integer_of(integer.to_string().as_bytes()), Some(integer));
        }
        for text in ["", "-", "-0", "00", "007", "+7", " 7", "7 ", "1.0", "1e3", "-+7", "9223372036854775808", "seven", "٧"] {
            assert_eq!(integer_of(text.as_bytes()), None, "{text:?}");
        }
    }
}
