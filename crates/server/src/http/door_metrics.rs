//! The door's own counters.

use super::route::RouteKind;
use crate::metrics::{Exposition, Histogram, MetricKind, MetricValue, Sample, increment};
use hyper::StatusCode;
use std::cell::Cell;
use std::time::Duration;

/// How a request ended, as a label.
const OUTCOMES: [&str; 4] = ["ok", "refused", "failed", "unknown"];

/// Counters of one door.
#[derive(Default)]
pub(super) struct DoorMetrics {
    requests: [[Cell<u64>; OUTCOMES.len()]; RouteKind::ALL.len()],
    durations: [Histogram; RouteKind::ALL.len()],
    pub(super) requests_in_flight: Cell<u64>,
    pub(super) body_bytes_in: Cell<u64>,
    pub(super) body_bytes_out: Cell<u64>,
    pub(super) connections_refused: Cell<u64>,
}

impl DoorMetrics {
    /// Counts a request that was answered.
    pub(super) fn record(&self, route: RouteKind, status: StatusCode, unknown: bool, took: Duration) {
        let outcome = match status.as_u16() {
            _ if unknown => 3,
            ..400 => 0,
            400..500 => 1,
            _ => 2,
        };
        increment(&self.requests[route as usize][outcome]);
        self.durations[route as usize].record(took);
    }

    /// Writes them all.
    pub(super) fn write(&self, exposition: &mut Exposition, connections: usize) {
        for route in RouteKind::ALL {
            for (outcome, count) in OUTCOMES.iter().zip(&self.requests[route as usize]) {
                exposition.sample(&Sample {
                    name: "flotilla_http_requests_total",
                    help: "HTTP requests answered, by route and how they ended: ok (below 400), refused (4xx), failed (5xx, not applied), \
                           unknown (5xx, a write that may have happened).",
                    kind: MetricKind::Counter,
                    labels: &[("route", route.as_str()), ("outcome", outcome)],
                    value: MetricValue::Count(count.get()),
                });
            }
        }
        for route in RouteKind::ALL {
            let name = "flotilla_http_request_duration_seconds";
            let help = "Time from a request's head to its answer, as the door sees it.";
            exposition.histogram(name, help, &[("route", route.as_str())], &self.durations[route as usize]);
        }
        let numbers = [
            ("flotilla_http_requests_in_flight", "HTTP requests being answered.", MetricKind::Gauge, self.requests_in_flight.get()),
            ("flotilla_http_connections", "Open HTTP connections.", MetricKind::Gauge, connections as u64),
            (
                "flotilla_http_connections_refused_total",
                "HTTP connections closed at once because too many were open.",
                MetricKind::Counter,
                self.connections_refused.get(),
            ),
            ("flotilla_http_request_body_bytes_total", "Bytes of request bodies.", MetricKind::Counter, self.body_bytes_in.get()),
            ("flotilla_http_response_body_bytes_total", "Bytes of response bodies.", MetricKind::Counter, self.body_bytes_out.get()),
        ];
        for (name, help, kind, count) in numbers {
            exposition.sample(&Sample { name, help, kind, labels: &[], value: MetricValue::Count(count) });
        }
    }
}
