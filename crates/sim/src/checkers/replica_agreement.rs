//! Replicas of a group agree: the chained hash over what was applied is the same wherever one index
//! was applied, and at the end the rows themselves are the same.
//!
//! The hash says that they applied the same entries; the rows say that applying did the same and
//! that nothing was lost or damaged since.

use super::Violation;
use bytes::Bytes;
use flotilla_types::{GroupId, LogIndex, ReplicaId};
use std::collections::BTreeMap;

const PROPERTY: &str = "replica agreement";

/// The hash of each group at each index at which a replica was seen.
#[derive(Debug, Default)]
pub struct Hashes(BTreeMap<(GroupId, LogIndex), (u64, ReplicaId)>);

impl Hashes {
    /// Notes the hash of a replica after it applied `index`; the same one again costs little.
    ///
    /// # Errors
    /// If another replica, or this one at an earlier time, had another hash there.
    pub fn observe(&mut self, group: GroupId, replica: ReplicaId, index: LogIndex, hash: u64) -> Result<(), Violation> {
        let (known, first) = *self.0.entry((group, index)).or_insert((hash, replica));
        if known != hash {
            return Err(Violation::new(PROPERTY, format!("{group} at {index}: {first} has hash {known:016x}, {replica} has {hash:016x}")));
        }
        Ok(())
    }

    /// How many points were compared or could be.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A replica's rows at the end of a run, without what is its own (replica id, generation).
#[derive(Clone, Debug)]
pub struct ReplicaRows {
    /// The replica.
    pub replica: ReplicaId,
    /// Up to where it applied.
    pub applied: LogIndex,
    /// Its rows, in order.
    pub rows: Vec<(Bytes, Bytes)>,
}

/// Compares replicas of one group that have applied the same index, row by row.
///
/// # Errors
/// The first row in which two differ.
pub fn check_rows(group: GroupId, replicas: &[ReplicaRows]) -> Result<(), Violation> {
    let mut first_at: BTreeMap<LogIndex, &ReplicaRows> = BTreeMap::new();
    for replica in replicas {
        let first = *first_at.entry(replica.applied).or_insert(replica);
        if first.rows == replica.rows {
            continue;
        }
        let place = first.rows.iter().zip(&replica.rows).position(|(a, b)| a != b).unwrap_or(first.rows.len().min(replica.rows.len()));
        let show = |rows: &ReplicaRows| {
            rows.rows.get(place).map_or("nothing".to_owned(), |(k, v)| format!("{} -> {} bytes", k.escape_ascii(), v.len()))
        };
        let (a, b) = (show(first), show(replica));
        let counts = (first.rows.len(), replica.rows.len());
        return Err(Violation::new(
            PROPERTY,
            format!(
                "{group} at {}: row {place} of {} is {a}, of {} it is {b} ({counts:?} rows)",
                replica.applied, first.replica, replica.replica
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hashes_at_one_index_are_found() {
        let mut hashes = Hashes::default();
        assert!(hashes.observe(GroupId(1), ReplicaId(1), LogIndex(5), 7).is_ok());
        assert!(hashes.observe(GroupId(1), ReplicaId(2), LogIndex(5), 7).is_ok());
        assert!(hashes.observe(GroupId(1), ReplicaId(2), LogIndex(6), 8).is_ok());
        assert!(hashes.observe(GroupId(1), ReplicaId(3), LogIndex(5), 8).is_err());
    }

    #[test]
    fn a_lost_or_changed_row_is_found() {
        let of = |replica, applied, rows: &[(&'static str, &'static str)]| ReplicaRows {
            replica: ReplicaId(replica),
            applied: LogIndex(applied),
            rows: rows.iter().map(|(k, v)| (Bytes::from(*k), Bytes::from(*v))).collect(),
        };
        let whole = of(1, 5, &[("a", "1"), ("b", "2")]);
        assert!(check_rows(GroupId(1), &[whole.clone(), of(2, 5, &[("a", "1"), ("b", "2")])]).is_ok());
        assert!(check_rows(GroupId(1), &[whole.clone(), of(2, 4, &[("a", "1")])]).is_ok(), "another index may differ");
        assert!(check_rows(GroupId(1), &[whole.clone(), of(2, 5, &[("a", "1")])]).is_err());
        assert!(check_rows(GroupId(1), &[whole, of(2, 5, &[("a", "1"), ("b", "3")])]).is_err());
    }
}
