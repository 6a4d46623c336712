//! The door's own counters.

use super::route::RouteKind;
use crate::metrics::{Exposition, Histogram, MetricKind, MetricValue, Sample, increment};
use hyper::StatusCode;
use std::cell::Cell;
use std::time::Duration;

/// How a request ended, as labels: the class of its status, and what became of what was asked.
const ENDS: [(&str, &str); 5] = [("2xx", "ok"), ("3xx", "ok"), ("4xx", "not-applied"), ("5xx", "not-applied"), ("5xx", "unknown")];

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
