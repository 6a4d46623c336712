//! When a replica that hears no leader campaigns.
//!
//! The library draws its timeouts from `thread_rng` at every reset and its draws cannot be told from
//! the outside. So its timer is never run: [`crate::Group::tick`] counts the library's own
//! `election_elapsed` (which it resets when it hears a leader or votes) against a timeout drawn here,
//! from our seed, anew whenever it fires and whenever term or role change.

use flotilla_types::Rng;

/// The timeout in force and where the next one comes from.
pub(crate) struct ElectionTimer {
    ticks_min: u64,
    ticks_max: u64,
    timeout: usize,
    rng: Rng,
}

impl ElectionTimer {
    pub(crate) fn new(ticks_min: usize, ticks_max: usize, rng: Rng) -> ElectionTimer {
        let mut timer = ElectionTimer { ticks_min: ticks_min as u64, ticks_max: ticks_max as u64, timeout: 0, rng };
        timer.redraw();
        timer
    }

    pub(crate) fn redraw(&mut self) {
        self.timeout = self.rng.between(self.ticks_min, self.ticks_max) as usize;
    }

    pub(crate) fn is_over(&self, elapsed: usize) -> bool {
        elapsed >= self.timeout
    }
}
