//! What a run found.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Percentiles, in milliseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct LatencyMs {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// The figures of one run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LoadReport {
    /// Requests answered as they should be: 2xx, or 404 for a read of a key that is not there.
    pub operations: u64,
    /// Reads among them that found nothing.
    pub misses: u64,
    /// Seconds measured.
    pub seconds: f64,
    /// Operations a second.
    pub operations_per_s: f64,
    /// Other answers, by status; `0` stands for connections that broke.
    pub failures: BTreeMap<u16, u64>,
    /// From sending (closed loop), or from when the request fell due (open loop), to the answer.
    pub latency: LatencyMs,
    /// Open loop only: from sending to the answer, which hides the wait for a free connection.
    pub service_time: Option<LatencyMs>,
    /// Server processes found on this machine.
    pub server_processes: usize,
    /// Processor seconds the servers used for each 100,000 operations.
    pub server_cpu_s_per_100k: Option<f64>,
    /// Processor seconds this load generator used for each 100,000 operations.
    pub client_cpu_s_per_100k: Option<f64>,
}

impl LatencyMs {
    pub(super) fn of(histogram: &Histogram<u64>) -> LatencyMs {
        let ms = |nanos: u64| nanos as f64 / 1e6;
        let quantile = |q| ms(histogram.value_at_quantile(q));
        LatencyMs {
            mean: histogram.mean() / 1e6,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: ms(histogram.max()),
        }
    }
}

impl LoadReport {
    /// Answers that were not as they should be.
    pub fn failure_count(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let row = |name: &str, l: &LatencyMs| {
            format!(
                "{name:<13} mean {:.2}  p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2} ms",
                l.mean, l.p50, l.p90, l.p99, l.p999, l.max
            )
        };
        let mut lines = vec![
            format!("operations    {} in {:.1} s: {:.0} a second", self.operations, self.seconds, self.operations_per_s),
            row("latency", &self.latency),
        ];
        lines.extend(self.service_time.as_ref().map(|service_time| row("service time", service_time)));
        if self.misses > 0 {
            lines.push(format!("misses        {} reads of keys that are not there", self.misses));
        }
        if !self.failures.is_empty() {
            let part = |(status, count): (&u16, &u64)| match status {
                0 => format!("{count} broken connections"),
                _ => format!("{count} with status {status}"),
            };
            let parts: Vec<String> = self.failures.iter().map(part).collect();
            lines.push(format!("failures      {}", parts.join(", ")));
        }
        lines.push(match self.server_cpu_s_per_100k {
            Some(cpu) => format!("server CPU    {cpu:.2} s per 100k operations, {} processes", self.server_processes),
            None => "server CPU    not known: the servers are not on this machine, or one ended".to_owned(),
        });
        lines.extend(self.client_cpu_s_per_100k.map(|cpu| format!("client CPU    {cpu:.2} s per 100k operations")));
        lines
    }
}

/// `part` for each 100,000 of `operations`.
pub(super) fn per_100k(part: Duration, operations: u64) -> Option<f64> {
    (operations > 0).then(|| part.as_secs_f64() * 1e5 / operations as f64)
}
