//! Metrics in Prometheus' text format (version 0.0.4).
//!
//! - [`exposition`]: a writer for families and their samples;
//! - [`counter`]: counters and histograms that one thread counts and another reads;
//! - `node`: what a node has to say of itself; `process`: what the operating system says of it.
//!
//! Counting takes no lock, no allocation and no atomic addition: every number has one thread that counts
//! it. What that is the loop's thread for lies in plain `Cell`s. There is no registry; whoever owns a number writes
//! it when it is asked for. docs/metrics.md lists all of them, and a test holds it against them.

pub mod counter;
pub mod exposition;
mod node;
mod process;

pub use counter::{Counter, Histogram};
pub use exposition::{CONTENT_TYPE, Exposition, MetricKind, MetricValue, Sample};
pub(crate) use node::write_node_metrics;

use std::cell::Cell;

/// Adds one to a counter.
pub fn increment(counter: &Cell<u64>) {
    add(counter, 1);
}

/// Adds to a counter.
pub fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get().wrapping_add(count));
}
