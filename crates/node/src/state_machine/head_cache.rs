//! What keys were when they were last written, so that writing them again needs no read of the store.
//!
//! One place for each of [`PLACES`] hashes; who comes later takes it. Row keys hold replica and
//! generation, so nothing need be forgotten when those end. Only what was written in jobs that went
//! into the store may be asked for: within a job the overlay comes first, and a failed job ends the applier.

use super::rows::KeyHead;
use xxhash_rust::xxh3::xxh3_64;

/// With keys of the greatest length that is kept: 6 MiB.
const PLACES: usize = 1 << 15;
/// Longer row keys are not kept.
const ROW_KEY_BYTES_MAX: usize = 128;

/// See the module.
#[derive(Debug)]
pub(super) struct HeadCache {
    places: Vec<Place>,
}

#[derive(Clone, Debug, Default)]
struct Place {
    row_key: Vec<u8>,
    head: Option<KeyHead>,
}

impl HeadCache {
    pub(super) fn new() -> HeadCache {
        HeadCache { places: vec![Place::default(); PLACES] }
    }

    /// What the key was at its last write, `Some(None)` if absent; `None` if that is not known here.
    pub(super) fn get(&self, row_key: &[u8]) -> Option<Option<KeyHead>> {
        let place = &self.places[place_of(row_key)];
        (place.row_key == row_key).then_some(place.head)
    }

    /// The key was written.
    pub(super) fn put(&mut self, row_key: &[u8], head: Option<KeyHead>) {
        let place = &mut self.places[place_of(row_key)];
        place.row_key.clear();
        if row_key.len() <= ROW_KEY_BYTES_MAX {
            place.row_key.extend_from_slice(row_key);
            place.head = head;
        }
    }
}

fn place_of(row_key: &[u8]) -> usize {
    xxh3_64(row_key) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_types::Version;

    #[test]
    fn knows_the_last_write_or_nothing() {
        let mut cache = HeadCache::new();
        let head = |version| Some(KeyHead::of_value(Version(version), b"v", None));
        // Enough keys that many share a place.
        let key = |number: usize| format!("key {number}").into_bytes();
        for number in 0..2 * PLACES {
            cache.put(&key(number), head(number as u64));
        }
        let known = (0..2 * PLACES).filter(|number| match cache.get(&key(*number)) {
            Some(found) => {
                assert_eq!(found, head(*number as u64));
                true
            }
            None => false,
        });
        assert!((PLACES / 2..=PLACES).contains(&known.count()));
        cache.put(b"a", None);
        assert_eq!((cache.get(b"a"), cache.get(b"b")), (Some(None), None));
        cache.put(&[7; ROW_KEY_BYTES_MAX + 1], head(1));
        assert_eq!(cache.get(&[7; ROW_KEY_BYTES_MAX + 1]), None);
    }
}
