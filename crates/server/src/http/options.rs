//! The door's limits, each with its default.

use flotilla_types::VALUE_BYTES_DEFAULT_MAX;
use std::time::Duration;

/// What one process may tune of its HTTP door.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Longest value, in bytes; more is 413.
    pub value_bytes_max: usize,
    /// Connections at once; more are told 503 and closed.
    pub connections_max: usize,
    /// Bytes of request bodies in memory at once, over all connections; more is 503.
    pub body_bytes_max: usize,
    /// Bytes of pages and streams of scans that clients have not read yet, over all connections; more is 503.
    pub answer_bytes_max: usize,
    /// How long a request's head may take from its first byte to its last; then 408.
    pub head_timeout: Duration,
    /// How long a body may make no progress; then 408.
    pub body_timeout: Duration,
    /// How long a connection may do nothing at all; then it is closed.
    pub idle_timeout: Duration,
    /// How long requests under way may take to end once the door shuts down.
    pub drain_timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> HttpOptions {
        HttpOptions {
            value_bytes_max: VALUE_BYTES_DEFAULT_MAX,
            connections_max: 16_384,
            body_bytes_max: 256 << 20,
            answer_bytes_max: 256 << 20,
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            drain_timeout: Duration::from_secs(5),
        }
    }
}

impl HttpOptions {
    /// How often connections are looked over: the coarse clock's step.
    pub(super) fn sweep_interval(&self) -> Duration {
        let shortest = self.head_timeout.min(self.body_timeout).min(self.idle_timeout);
        (shortest / 4).clamp(Duration::from_millis(5), Duration::from_millis(500))
    }
}
