//! The door's own counters.

use super::route::RouteKind;
use crate::metrics::{Exposition, Histogram, MetricKind, MetricValue, Sample, increment};
use hyper::StatusCode;
use std::cell::Cell;
use std::time::Duration;

/// How a request ended, as labels: the class of its status, and what became of what was asked.
const ENDS: [(&str, &str); 5] = [("2xx", "ok"), ("3xx", "ok"), ("4xx", "not-applied"), ("5xx", "not-applied"), ("5xx", "unknown")];

/// The routes that read and that write keys.
const READS: [RouteKind; 2] = [RouteKind::KvGet, RouteKind::Scan];
const WRITES: [RouteKind; 5] = [RouteKind::KvPut, RouteKind::KvDelete, RouteKind::KvIncrement, RouteKind::DeleteRange, RouteKind::Batch];
/// Of [`ENDS`], those of requests that the store failed.
const FAILED: std::ops::Range<usize> = 3..5;

/// What was asked of keys since the door opened, or between two moments.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    pub(super) reads: u64,
    pub(super) writes: u64,
    /// Those of both that were answered with a 5xx.
    pub(super) errors: u64,
    /// How many of both fell into each of [`Histogram`]'s buckets, and the buckets' bounds.
    durations: Vec<(Option<Duration>, u64)>,
}

/// Counters of one door.
#[derive(Default)]
pub(super) struct DoorMetrics {
    requests: [[Cell<u64>; ENDS.len()]; RouteKind::ALL.len()],
    durations: [Histogram; RouteKind::ALL.len()],
    pub(super) requests_in_flight: Cell<u64>,
    pub(super) body_bytes_in: Cell<u64>,
    pub(super) body_bytes_out: Cell<u64>,
    pub(super) connections_refused: Cell<u64>,
}

impl DoorMetrics {
    /// Counts a request that was answered.
    pub(super) fn record(&self, route: RouteKind, status: StatusCode, unknown: bool, took: Duration) {
        let end = match status.as_u16() {
            _ if unknown => 4,
            ..300 => 0,
            300..400 => 1,
            400..500 => 2,
            _ => 3,
        };
        increment(&self.requests[route as usize][end]);
        self.durations[route as usize].record(took);
    }

    /// What was asked of keys so far.
    pub(super) fn totals(&self) -> Totals {
        let count = |route: &RouteKind| self.requests[*route as usize].iter().map(Cell::get).sum::<u64>();
        let failed = |route: &RouteKind| self.requests[*route as usize][FAILED].iter().map(Cell::get).sum::<u64>();
        let mut durations: Vec<(Option<Duration>, u64)> = Histogram::default().buckets().collect();
        for route in READS.iter().chain(&WRITES) {
            for (sum, (_, count)) in durations.iter_mut().zip(self.durations[*route as usize].buckets()) {
                sum.1 += count;
            }
        }
        Totals {
            reads: READS.iter().map(count).sum(),
            writes: WRITES.iter().map(count).sum(),
            errors: READS.iter().chain(&WRITES).map(failed).sum(),
            durations,
        }
    }

    /// Writes them all.
    pub(super) fn write(&self, exposition: &mut Exposition, connections: usize, body_bytes: usize) {
        for route in RouteKind::ALL {
            for ((status, outcome), count) in ENDS.iter().zip(&self.requests[route as usize]) {
                exposition.sample(&Sample {
                    name: "flotilla_http_requests_total",
                    help: "HTTP requests answered, by route, class of status and outcome (ok, not-applied, or unknown: a write that may have \
                           happened).",
                    kind: MetricKind::Counter,
                    labels: &[("route", route.as_str()), ("status", status), ("outcome", outcome)],
                    value: MetricValue::Count(count.get()),
                });
            }
        }
        for route in RouteKind::ALL {
            let name = "flotilla_http_request_duration_seconds";
            let help = "Time from a request's head to its answer, as the door sees it.";
            exposition.histogram(name, help, &[("route", route.as_str())], &self.durations[route as usize]);
        }
        exposition.samples([
            Sample::gauge("flotilla_http_requests_in_flight", "HTTP requests being answered.", self.requests_in_flight.get()),
            Sample::gauge("flotilla_http_connections", "Open HTTP connections.", connections as u64),
            Sample::counter(
                "flotilla_http_connections_refused_total",
                "HTTP connections closed at once because too many were open.",
                self.connections_refused.get(),
            ),
            Sample::counter("flotilla_http_request_body_bytes_total", "Bytes of request bodies.", self.body_bytes_in.get()),
            Sample::counter("flotilla_http_response_body_bytes_total", "Bytes of response bodies.", self.body_bytes_out.get()),
            Sample::gauge("flotilla_http_body_bytes", "Bytes of request bodies in memory.", body_bytes as u64),
        ]);
    }
}

impl Totals {
    /// What came on top of `earlier`.
    pub(super) fn since(&self, earlier: &Totals) -> Totals {
        let earlier_count = |bucket: usize| earlier.durations.get(bucket).map_or(0, |(_, count)| *count);
        let durations = self.durations.iter().enumerate().map(|(at, (bound, count))| (*bound, count - earlier_count(at)));
        Totals {
            reads: self.reads - earlier.reads,
            writes: self.writes - earlier.writes,
            errors: self.errors - earlier.errors,
            durations: durations.collect(),
        }
    }

    /// How long `percent` of 100 took at most, in microseconds: taken as evenly spread over their bucket. `None` if there were none.
    pub(super) fn percentile_us(&self, percent: u64) -> Option<u64> {
        let total: u64 = self.durations.iter().map(|(_, count)| count).sum();
        let rank = (total * percent).div_ceil(100);
        let (mut below, mut lower) = (0, Duration::ZERO);
        for (bound, count) in self.durations.iter().filter(|_| total > 0) {
            // The last bucket has no bound: at least as long as the one before.
            let upper = bound.unwrap_or(lower);
            if below + count >= rank {
                let part = (rank - below) as f64 / *count as f64;
                return Some((lower + (upper - lower).mul_f64(part)).as_micros() as u64);
            }
            (below, lower) = (below + count, upper);
        }
        None
    }
}
