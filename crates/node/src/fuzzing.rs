//! What the fuzz targets (`crates/fuzzing`) try of this crate that is private to it: not for other use.

pub use crate::state_machine::fuzzing::{row, row_in_chunk, snapshot_chunks};

use crate::report::Report;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Reads a node's report.
///
/// # Panics
/// If it reads otherwise once it is written again.
pub fn report(bytes: Bytes) {
    let Ok(report) = Report::decode(bytes) else { return };
    let again = Report::decode(report.encode()).map(|again| again.encode());
    assert_eq!(again, Ok(report.encode()));
}

/// A report's bytes.
pub fn report_seed() -> Bytes {
    let (epoch, replicas, bytes, keys) = (3, 4, 5, 6);
    Report { epoch, replicas, bytes, keys, shutting_down: false, reseeds: Vec::new(), groups: BTreeMap::new() }.encode()
}
