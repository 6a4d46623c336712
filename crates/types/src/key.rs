//! Keys, hash slots, versions and the conditions a write may carry.

use bytes::Bytes;
use std::fmt;
use std::ops::Range;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 4096;
/// Longest value unless configured otherwise, in bytes (settable up to 64 MiB).
pub const VALUE_BYTES_DEFAULT_MAX: usize = 8 << 20;
/// Hash slots, as in Redis Cluster.
pub const SLOT_COUNT: u32 = 16384;

/// A key: 1 to 4096 bytes, any bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

/// Why bytes are no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key has no bytes.
    #[error("the key is empty: a key has 1 to {KEY_BYTES_MAX} bytes")]
    Empty,
    /// The key has too many bytes.
    #[error("the key has {0} bytes: a key has 1 to {KEY_BYTES_MAX} bytes")]
    TooLong(usize),
}

/// A hash slot: CRC16(key) mod 16384, or of the hash tag if the key has one (Redis Cluster
/// specification, "Hash tags").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u16);

/// Given to a key by each write; rises with every change of that key and never repeats for it, also
/// across delete and re-create. Below 2^53. It is the ETag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// Which present versions an `If-Match` or `If-None-Match` names (RFC 9110, sections 13.1.1 and 13.1.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// `*`: any version, so "the key exists".
    Any,
    /// One of these versions.
    Versions(Vec<Version>),
}

/// What must hold of a key for a write to happen; both empty: always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// The present version must be named here.
    pub if_match: Option<Match>,
    /// The present version must not be named here.
    pub if_none_match: Option<Match>,
}

impl Key {
    /// Checks the length.
    ///
    /// # Errors
    /// If `bytes` is empty or longer than [`KEY_BYTES_MAX`].
    pub fn new(bytes: impl Into<Bytes>) -> Result<Key, KeyError> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(KeyError::Empty),
            length if length > KEY_BYTES_MAX => Err(KeyError::TooLong(length)),
            _ => Ok(Key(bytes)),
        }
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key's bytes, shared.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// The slot the key hashes to.
    pub fn slot(&self) -> Slot {
        crc16_slot(hashed_part(&self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Match {
    fn names(&self, present: Option<Version>) -> bool {
        match (self, present) {
            (_, None) => false,
            (Match::Any, Some(_)) => true,
            (Match::Versions(versions), Some(present)) => versions.contains(&present),
        }
    }
}

impl Condition {
    /// The write happens whatever is there.
    pub const ALWAYS: Condition = Condition { if_match: None, if_none_match: None };

    /// Whether there is nothing to check.
    pub fn is_always(&self) -> bool {
        self.if_match.is_none() && self.if_none_match.is_none()
    }

    /// Whether the condition holds for a key whose present version is `present` (`None`: absent).
    pub fn holds(&self, present: Option<Version>) -> bool {
        self.if_match.as_ref().is_none_or(|m| m.names(present)) && !self.if_none_match.as_ref().is_some_and(|m| m.names(present))
    }
}

/// What of the key is hashed: the inside of the first `{...}` if it is not empty, else all.
fn hashed_part(key: &[u8]) -> &[u8] {
    hash_tag(key).map_or(key, |tag| &key[tag])
}

/// Where the hash tag of all keys that begin with `prefix` stands in it, without its braces; `None` if
/// they have none, or do not share it.
pub(crate) fn hash_tag(prefix: &[u8]) -> Option<Range<usize>> {
    let first = prefix.iter().position(|&b| b == b'{')? + 1;
    let length = prefix[first..].iter().position(|&b| b == b'}').filter(|length| *length > 0)?;
    Some(first..first + length)
}

/// The slot of what is hashed of a key.
pub(crate) fn crc16_slot(hashed: &[u8]) -> Slot {
    Slot(crc16(hashed) % SLOT_COUNT as u16)
}

/// CRC-16/XMODEM, as the Redis Cluster specification gives it (appendix A).
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0u16, |crc, &byte| (crc << 8) ^ CRC16_TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

const CRC16_TABLE: [u16; 256] = {
    let mut table = [0u16; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(key: &str) -> u16 {
        Key::new(key.to_owned()).expect("a valid key").slot().0
    }

    #[test]
    fn slots_are_those_of_redis_cluster() {
        assert_eq!(crc16(b"123456789"), 0x31C3, "the specification's own test value");
        assert_eq!(slot("foo"), 12182);
        assert_eq!(slot("somekey"), 11058);
    }

    #[test]
    fn only_the_first_non_empty_hash_tag_counts() {
        assert_eq!(slot("{user1000}.following"), slot("{user1000}.followers"));
        assert_eq!(slot("foo{{bar}}zap"), slot("{bar"));
        assert_eq!(slot("foo{bar}{zap}"), slot("bar"));
        assert_ne!(slot("foo{}{bar}"), slot("bar"));
    }

    #[test]
    fn conditions_follow_rfc_9110() {
        let v = |n| Some(Version(n));
        let of = |if_match, if_none_match| Condition { if_match, if_none_match };
        assert!(Condition::ALWAYS.holds(None) && Condition::ALWAYS.holds(v(1)));
        assert!(of(Some(Match::Any), None).holds(v(1)) && !of(Some(Match::Any), None).holds(None));
        assert!(of(None, Some(Match::Any)).holds(None) && !of(None, Some(Match::Any)).holds(v(1)));
        let two = Match::Versions(vec![Version(1), Version(2)]);
        assert!(of(Some(two.clone()), None).holds(v(2)) && !of(Some(two.clone()), None).holds(v(3)));
        assert!(of(None, Some(two.clone())).holds(v(3)) && !of(None, Some(two)).holds(v(1)));
    }
}
