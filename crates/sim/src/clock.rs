//! A machine's two clocks, as functions of the world's time: a monotonic one that may run fast or
//! slow, and a wall clock that may be off and jump.

use crate::history::Moment;
use flotilla_node::event::Now;
use flotilla_types::{Instant, Timestamp};

/// Wall-clock time at the world's beginning, in milliseconds since 1970.
const EPOCH_MS: i64 = 1_700_000_000_000;
const PPM: i128 = 1_000_000;

/// A machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    since: Moment,
    local: u64,
    drift_ppm: i64,
    wall_offset_ms: i64,
}

impl Clock {
    /// Clocks of a machine whose monotonic clock shows `local` nanoseconds at the world's beginning.
    pub fn new(local: u64, drift_ppm: i64, wall_offset_ms: i64) -> Clock {
        Clock { since: Moment(0), local, drift_ppm, wall_offset_ms }
    }

    /// What the clocks show.
    pub fn now(&self, now: Moment) -> Now {
        Now {
            instant: Instant::from_nanos(self.local_at(now)),
            wall: Timestamp((EPOCH_MS + self.wall_offset_ms + (now.0 / 1_000_000) as i64) as u64),
        }
    }

    /// The first moment at which the monotonic clock shows `instant` or more.
    pub fn when(&self, instant: Instant) -> Moment {
        let ahead = i128::from(instant.as_nanos()) - i128::from(self.local);
        let world = (ahead * PPM).div_euclid(PPM + i128::from(self.drift_ppm)) + 1;
        Moment((i128::from(self.since.0) + world).max(0) as u64)
    }

    /// From now on it runs at another speed.
    pub fn set_drift(&mut self, drift_ppm: i64, now: Moment) {
        (self.local, self.since, self.drift_ppm) = (self.local_at(now), now, drift_ppm);
    }

    /// The wall clock is set.
    pub fn set_wall_offset(&mut self, offset_ms: i64) {
        self.wall_offset_ms = offset_ms;
    }

    fn local_at(&self, now: Moment) -> u64 {
        let elapsed = i128::from(now.0) - i128::from(self.since.0);
        (i128::from(self.local) + elapsed + elapsed * i128::from(self.drift_ppm) / PPM) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_never_early_and_hardly_late() {
        for drift in [-50_000, -17, 0, 3, 50_000] {
            let mut clock = Clock::new(77, 0, 0);
            clock.set_drift(drift, Moment(1_000));
            for due in [5_000u64, 123_456_789, 60_000_000_000] {
                let when = clock.when(Instant::from_nanos(due));
                let shown = clock.now(when).instant.as_nanos();
                assert!((due..due + 3).contains(&shown), "drift {drift}: {shown} for {due}");
            }
        }
    }
}
