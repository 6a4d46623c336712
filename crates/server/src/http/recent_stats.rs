//! What the door did in each of the last 300 seconds, for the dashboard's charts (`GET /v1/stats`).
//!
//! Nothing is counted for this: once a second, at a sweep that happens anyway, [`DoorMetrics`]'s totals are compared with those
//! of a second before. Percentiles come from the histograms' buckets, so they are as coarse as these.

use super::door_metrics::{DoorMetrics, Totals};
use crate::clock::Clock;
use bytes::Bytes;
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// How much time a sample covers, at least.
const INTERVAL_MS: u64 = 1_000;
/// Five minutes.
const SAMPLES_MAX: usize = 300;

/// What was answered in one interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct StatsSample {
    /// When the interval ended, in ms since 1970.
    at_ms: u64,
    /// Gets and scans.
    reads: u64,
    /// Puts, deletes, increments and batches.
    writes: u64,
    /// Those of both that were answered with a 5xx.
    errors: u64,
    /// What half of both took no longer than; null if there were none.
    p50_us: Option<u64>,
    /// What 99 of 100 took no longer than.
    p99_us: Option<u64>,
}

/// The samples of the last minutes, oldest first.
#[derive(Default)]
pub(super) struct RecentStats {
    clock: Clock,
    taken_ms: Cell<u64>,
    totals: RefCell<Totals>,
    samples: RefCell<VecDeque<StatsSample>>,
}

#[derive(Serialize)]
struct StatsAnswer<'a> {
    node: &'a str,
    interval_ms: u64,
    samples: &'a VecDeque<StatsSample>,
}

impl RecentStats {
    /// Takes a sample if it is time; `now_ms` is the door's clock.
    pub(super) fn sample(&self, now_ms: u64, metrics: &DoorMetrics) {
        if now_ms < self.taken_ms.get() + INTERVAL_MS {
            return;
        }
        self.taken_ms.set(now_ms);
        self.push(self.clock.now().wall.0, metrics.totals());
    }

    /// Keeps what was counted since the last sample.
    fn push(&self, at_ms: u64, totals: Totals) {
        let since = totals.since(&self.totals.replace(totals.clone()));
        let mut samples = self.samples.borrow_mut();
        if samples.len() == SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(StatsSample {
            at_ms,
            reads: since.reads,
            writes: since.writes,
            errors: since.errors,
            p50_us: since.percentile_us(50),
            p99_us: since.percentile_us(99),
        });
    }

    /// The contract's JSON.
    pub(super) fn to_json(&self, node: &str) -> Bytes {
        let answer = StatsAnswer { node, interval_ms: INTERVAL_MS, samples: &self.samples.borrow() };
        serde_json::to_vec(&answer).expect("plain data with text keys").into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::route::RouteKind;
    use super::*;
    use hyper::StatusCode;
    use std::time::Duration;

    const OK: StatusCode = StatusCode::OK;

    fn answered(metrics: &DoorMetrics, route: RouteKind, status: StatusCode, micros: u64) {
        metrics.record(route, status, false, Duration::from_micros(micros));
    }

    fn last(stats: &RecentStats) -> StatsSample {
        stats.samples.borrow().back().expect("a sample").clone()
    }

    #[test]
    fn a_sample_is_what_was_counted_since_the_one_before() {
        let (stats, metrics) = (RecentStats::default(), DoorMetrics::default());
        answered(&metrics, RouteKind::KvGet, OK, 40);
        answered(&metrics, RouteKind::Scan, StatusCode::NOT_FOUND, 40);
        answered(&metrics, RouteKind::KvPut, StatusCode::SERVICE_UNAVAILABLE, 40);
        answered(&metrics, RouteKind::Probe, StatusCode::SERVICE_UNAVAILABLE, 40);
        stats.push(1_000, metrics.totals());
        let first = last(&stats);
        assert_eq!((first.at_ms, first.reads, first.writes, first.errors), (1_000, 2, 1, 1), "probes are neither reads nor writes");
        answered(&metrics, RouteKind::Batch, OK, 40);
        stats.push(2_000, metrics.totals());
        assert_eq!((last(&stats).reads, last(&stats).writes, last(&stats).errors), (0, 1, 0));
        stats.push(3_000, metrics.totals());
        assert_eq!(last(&stats), StatsSample { at_ms: 3_000, reads: 0, writes: 0, errors: 0, p50_us: None, p99_us: None });
    }

    #[test]
    fn percentiles_lie_in_their_buckets_and_forget_earlier_seconds() {
        let (stats, metrics) = (RecentStats::default(), DoorMetrics::default());
        for _ in 0..98 {
            answered(&metrics, RouteKind::KvGet, OK, 200);
        }
        answered(&metrics, RouteKind::KvPut, OK, 20_000);
        answered(&metrics, RouteKind::KvPut, OK, 20_000);
        stats.push(1_000, metrics.totals());
        let (p50, p99) = (last(&stats).p50_us.expect("some"), last(&stats).p99_us.expect("some"));
        assert!((100..=250).contains(&p50) && (10_000..=25_000).contains(&p99), "{p50} {p99}");
        answered(&metrics, RouteKind::KvGet, OK, 60_000_000);
        stats.push(2_000, metrics.totals());
        assert_eq!(last(&stats).p50_us, Some(10_000_000), "beyond the last bound: at least that");
    }

    #[test]
    fn the_oldest_sample_makes_room() {
        let (stats, metrics) = (RecentStats::default(), DoorMetrics::default());
        for second in 1..=SAMPLES_MAX as u64 + 7 {
            stats.push(second, metrics.totals());
        }
        let json: serde_json::Value = serde_json::from_slice(&stats.to_json("n1")).expect("JSON");
        assert_eq!((&json["node"], &json["interval_ms"]), (&"n1".into(), &1_000.into()));
        let samples = json["samples"].as_array().expect("samples");
        assert_eq!((samples.len(), &samples[0]["at_ms"], &samples[0]["p50_us"]), (SAMPLES_MAX, &8.into(), &serde_json::Value::Null));
    }

    #[test]
    fn a_sample_is_taken_once_a_second() {
        let (stats, metrics) = (RecentStats::default(), DoorMetrics::default());
        for now_ms in (0..=3_500).step_by(500) {
            stats.sample(now_ms, &metrics);
        }
        assert_eq!(stats.samples.borrow().len(), 3);
    }
}
