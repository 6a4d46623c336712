//! Runs of keys: what a scan, and a delete of many keys, is about.

use crate::key::{KEY_BYTES_MAX, Slot, crc16_slot, hash_tag};
use bytes::Bytes;

/// All keys from `start` (included) to `end` (not included) in byte order; without an end, to the last key.
///
/// `start` may be one byte longer than any key: the first key behind the longest one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key, or what lies before it; empty: from the first key of all.
    pub start: Bytes,
    /// What lies behind the last key; `None`: nothing does.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// Longest bound that is of any use.
    pub const BOUND_BYTES_MAX: usize = KEY_BYTES_MAX + 1;

    /// The keys that begin with `prefix`.
    pub fn of_prefix(prefix: &[u8]) -> KeyRange {
        KeyRange { start: Bytes::copy_from_slice(prefix), end: behind_prefix(prefix) }
    }

    /// Whether no key can lie in it.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether a key lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        *self.start <= *key && self.end.as_ref().is_none_or(|end| *key < **end)
    }

    /// The keys that lie in both.
    #[must_use]
    pub fn intersection(&self, other: &KeyRange) -> KeyRange {
        let end = match (&self.end, &other.end) {
            (Some(a), Some(b)) => Some(a.min(b).clone()),
            (a, b) => a.clone().or_else(|| b.clone()),
        };
        KeyRange { start: self.start.clone().max(other.start.clone()), end }
    }

    /// What is left behind `key`.
    #[must_use]
    pub fn behind(&self, key: &[u8]) -> KeyRange {
        let start = [key, &[0]].concat().into();
        KeyRange { start, end: self.end.clone() }
    }

    /// What is left before `key`.
    #[must_use]
    pub fn before(&self, key: &[u8]) -> KeyRange {
        KeyRange { start: self.start.clone(), end: Some(Bytes::copy_from_slice(key)) }
    }

    /// The slot in which all keys of the range lie, if they share a hash tag: each begins with the same
    /// bytes up to the tag's closing brace.
    pub fn slot(&self) -> Option<Slot> {
        let tag = hash_tag(&self.start)?;
        let whole = KeyRange::of_prefix(&self.start[..tag.end + 1]);
        let is_within = match (&self.end, &whole.end) {
            (_, None) => true,
            (Some(end), Some(last)) => end <= last,
            (None, Some(_)) => false,
        };
        is_within.then(|| crc16_slot(&self.start[tag]))
    }
}

/// The first bytes behind everything that begins with `prefix`; `None` if nothing is.
fn behind_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&byte| byte != 0xFF)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;
    use proptest::prelude::*;

    fn range(start: &str, end: Option<&str>) -> KeyRange {
        KeyRange { start: Bytes::copy_from_slice(start.as_bytes()), end: end.map(|end| Bytes::copy_from_slice(end.as_bytes())) }
    }

    #[test]
    fn a_prefix_is_a_range() {
        assert_eq!(KeyRange::of_prefix(b"ab"), range("ab", Some("ac")));
        assert_eq!(KeyRange::of_prefix(b""), range("", None));
        assert_eq!(KeyRange::of_prefix(b"a\xFF\xFF").end.as_deref(), Some(&b"b"[..]));
        assert_eq!(KeyRange::of_prefix(b"\xFF").end, None);
    }

    #[test]
    fn a_whole_hash_tag_names_one_slot() {
        let slot = |key: &str| Key::new(key.to_owned()).expect("a key").slot();
        assert_eq!(KeyRange::of_prefix(b"{user1}").slot(), Some(slot("{user1}x")));
        assert_eq!(KeyRange::of_prefix(b"a{user1}.b").slot(), Some(slot("user1")));
        assert_eq!(KeyRange::of_prefix(b"a{user1}.b").behind(b"a{user1}.bc").slot(), Some(slot("user1")), "also from the middle on");
        assert_eq!(range("{t}a", Some("{t}c")).slot(), Some(slot("t")));
        assert_eq!(range("{t}a", Some("{u")).slot(), None, "the range goes beyond the tag");
        assert_eq!(range("{t}a", None).slot(), None);
        for prefix in ["", "a", "{user1", "{}", "{}{a}"] {
            assert_eq!(KeyRange::of_prefix(prefix.as_bytes()).slot(), None, "{prefix}");
        }
    }

    proptest! {
        #[test]
        fn ranges_hold_what_they_say(prefix in prop::collection::vec(250u8..=255, 0..3), key in prop::collection::vec(250u8..=255, 1..4)) {
            prop_assert_eq!(KeyRange::of_prefix(&prefix).contains(&key), key.starts_with(&prefix));
            let whole = KeyRange::of_prefix(&prefix);
            prop_assert!(!whole.behind(&key).contains(&key) && !whole.before(&key).contains(&key));
        }

        #[test]
        fn one_slot_is_the_slot_of_every_key(start in "[{}ab]{0,6}", end in "[{}ab]{0,6}", key in "[{}ab]{1,8}") {
            let range = KeyRange { start: start.into(), end: Some(end.into()) };
            let key = Key::new(key).expect("a key");
            if let Some(slot) = range.slot() && range.contains(key.as_bytes()) {
                prop_assert_eq!(key.slot(), slot);
            }
        }
    }
}
