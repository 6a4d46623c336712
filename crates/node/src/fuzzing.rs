//! What the fuzz targets (`crates/fuzzing`) try of this crate that is private to it: not for other use.

pub use crate::state_machine::fuzzing::{row, row_in_chunk, snapshot_chunks};

use crate::recovery::Order;
use crate::recovery::holdings::Holdings;
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

/// Reads what a node says that it holds, and an order to recover.
///
/// # Panics
/// If either reads otherwise once it is written again.
pub fn recovery(bytes: Bytes) {
    if let Ok(holdings) = Holdings::decode(bytes.clone()) {
        assert_eq!(Holdings::decode(holdings.encode()), Ok(holdings));
    }
    if let Ok(order) = Order::decode(bytes) {
        assert_eq!(Order::decode(order.encode()), Ok(order));
    }
}

/// A report's bytes.
pub fn report_seed() -> Bytes {
    let (epoch, replicas, bytes, keys) = (3, 4, 5, 6);
    Report { epoch, replicas, bytes, keys, shutting_down: false, reseeds: Vec::new(), groups: BTreeMap::new() }.encode()
}
