//! A writer for metrics' families and samples.

use super::counter::Histogram;
use std::fmt::{self, Write as _};

/// The `Content-Type` of [`Exposition`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's samples mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only ever rises; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// The number in a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricValue {
    /// A count; exact.
    Count(u64),
    /// A measure, such as seconds.
    Real(f64),
}

/// One number that somebody else keeps, described: how a node's counters come to be shown.
#[derive(Clone, Debug)]
pub struct Sample<'a> {
    /// The family's name with its unit, such as `flotilla_log_bytes_total`.
    pub name: &'a str,
    /// One line for people.
    pub help: &'a str,
    /// What the family's samples mean.
    pub kind: MetricKind,
    /// Label names and values.
    pub labels: &'a [(&'a str, &'a str)],
    /// The number.
    pub value: MetricValue,
}

impl<'a> Sample<'a> {
    /// A count without labels.
    pub fn counter(name: &'a str, help: &'a str, count: u64) -> Sample<'a> {
        Sample { name, help, kind: MetricKind::Counter, labels: &[], value: MetricValue::Count(count) }
    }

    /// Something that goes up and down, without labels.
    pub fn gauge(name: &'a str, help: &'a str, count: u64) -> Sample<'a> {
        Sample { name, help, kind: MetricKind::Gauge, labels: &[], value: MetricValue::Count(count) }
    }

    /// As [`Sample::gauge`], of a measure.
    pub fn measure(name: &'a str, help: &'a str, real: f64) -> Sample<'a> {
        Sample { name, help, kind: MetricKind::Gauge, labels: &[], value: MetricValue::Real(real) }
    }
}

/// Metrics text being written. All samples of one family must come one after another.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    family: String,
}

impl Exposition {
    /// Writes one sample; a family's `HELP` and `TYPE` once, before its first.
    pub fn sample(&mut self, sample: &Sample<'_>) {
        let kind = match sample.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        self.family(sample.name, sample.help, kind);
        self.line(sample.name, "", sample.labels, None, sample.value);
    }

    /// Writes several samples.
    pub fn samples<'a>(&mut self, samples: impl IntoIterator<Item = Sample<'a>>) {
        for sample in samples {
            self.sample(&sample);
        }
    }

    /// Writes a histogram, in seconds.
    pub fn histogram(&mut self, name: &str, help: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        self.family(name, help, "histogram");
        let mut total = 0;
        for (bound, count) in histogram.buckets() {
            total += count;
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.as_secs_f64().to_string());
            self.line(name, "_bucket", labels, Some(("le", &bound)), MetricValue::Count(total));
        }
        self.line(name, "_sum", labels, None, MetricValue::Real(histogram.sum().as_secs_f64()));
        self.line(name, "_count", labels, None, MetricValue::Count(total));
    }

    /// The text so far.
    pub fn into_text(self) -> String {
        self.text
    }

    fn family(&mut self, name: &str, help: &str, kind: &str) {
        if self.family != name {
            debug_assert!(!self.text.contains(&format!("# TYPE {name} ")), "the samples of {name} must come one after another");
            self.family = name.to_owned();
            let help = help.replace('\\', "\\\\").replace('\n', "\\n");
            self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        }
    }

    fn line(&mut self, name: &str, suffix: &str, labels: &[(&str, &str)], last: Option<(&str, &str)>, value: MetricValue) {
        self.write(format_args!("{name}{suffix}"));
        let mut separator = '{';
        for (label, text) in labels.iter().copied().chain(last) {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            self.write(format_args!("{separator}{label}=\"{text}\""));
            separator = ',';
        }
        let close = if separator == ',' { "}" } else { "" };
        match value {
            MetricValue::Count(count) => self.write(format_args!("{close} {count}\n")),
            MetricValue::Real(real) => self.write(format_args!("{close} {real}\n")),
        }
    }

    fn write(&mut self, arguments: fmt::Arguments<'_>) {
        self.text.write_fmt(arguments).expect("writing into a String cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn families_are_described_once_and_labels_escaped() {
        let mut exposition = Exposition::default();
        let sample = |labels, value| Sample { name: "x_total", help: "Things\nseen.", kind: MetricKind::Counter, labels, value };
        exposition.samples([sample(&[("a", "q\"\\\n")], MetricValue::Count(1)), sample(&[("a", "b"), ("c", "d")], MetricValue::Count(2))]);
        exposition.sample(&Sample { name: "y", help: "Y.", kind: MetricKind::Gauge, labels: &[], value: MetricValue::Real(0.5) });
        let expected = "# HELP x_total Things\\nseen.\n# TYPE x_total counter\nx_total{a=\"q\\\"\\\\\\n\"} 1\nx_total{a=\"b\",c=\"d\"} 2\n\
                        # HELP y Y.\n# TYPE y gauge\ny 0.5\n";
        assert_eq!(exposition.into_text(), expected);
    }

    #[test]
    fn buckets_are_cumulative_and_their_bounds_included() {
        let histogram = Histogram::default();
        for micros in [1, 50, 51, 20_000_000] {
            histogram.record(Duration::from_micros(micros));
        }
        let mut exposition = Exposition::default();
        exposition.histogram("t_seconds", "T.", &[("route", "kv")], &histogram);
        let text = exposition.into_text();
        assert!(text.contains("t_seconds_bucket{route=\"kv\",le=\"0.00005\"} 2\n"), "{text}");
        assert!(text.contains("t_seconds_bucket{route=\"kv\",le=\"0.0001\"} 3\n"), "{text}");
        assert!(text.contains("t_seconds_bucket{route=\"kv\",le=\"10\"} 3\n"), "{text}");
        assert!(text.contains("t_seconds_bucket{route=\"kv\",le=\"+Inf\"} 4\n"), "{text}");
        assert!(text.contains("t_seconds_sum{route=\"kv\"} 20.000102\nt_seconds_count{route=\"kv\"} 4\n"), "{text}");
    }
}
