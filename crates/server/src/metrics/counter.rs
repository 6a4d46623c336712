//! Counters and histograms of one thread that others may read at any time.
//!
//! Only the owning thread counts, so that loading and storing is enough: no locked instruction, and a reader
//! sees at worst the value of a moment ago.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that one thread sets or adds to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// Upper bounds of the buckets of [`Histogram`], in microseconds: 50 µs to 10 s.
const BUCKET_MICROS_MAX: [u64; 16] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000];

/// How long things took, in fixed buckets; counted by one thread.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BUCKET_MICROS_MAX.len() + 1],
    sum_nanos: Counter,
}

impl Counter {
    /// Adds to it.
    pub fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }

    /// What it is now.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Histogram {
    /// Counts one that took `duration`.
    pub fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKET_MICROS_MAX.iter().position(|&max| nanos <= max * 1_000).unwrap_or(BUCKET_MICROS_MAX.len());
        self.buckets[bucket].add(1);
        self.sum_nanos.add(nanos);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::get).sum()
    }

    /// How long all of them took together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_nanos.get())
    }

    /// The buckets' upper bounds, the last of which has none, and how many fell into each and no lower one.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bounds = BUCKET_MICROS_MAX.iter().map(|micros| Some(Duration::from_micros(*micros)));
        bounds.chain([None]).zip(self.buckets.iter().map(Counter::get))
    }
}
