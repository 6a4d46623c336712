//! The one place of the server that reads the clocks for the node.

use flotilla_node::event::Now;
use flotilla_types::{Instant, Timestamp};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The node's two clocks: monotonic since the process began, and the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: std::time::Instant,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { start: std::time::Instant::now() }
    }
}

impl Clock {
    /// Both clocks, now.
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Now { instant: self.instant(), wall: Timestamp(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)) }
    }

    /// The monotonic clock.
    pub fn instant(&self) -> Instant {
        Instant::ZERO + self.start.elapsed()
    }

    /// The moment at which a timer for `instant` must fire; a day ahead at most.
    pub(crate) fn deadline(&self, instant: Instant) -> tokio::time::Instant {
        let ahead = instant.saturating_since(self.instant()).min(Duration::from_hours(24));
        tokio::time::Instant::now() + ahead
    }
}
