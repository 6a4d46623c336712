//! When the requests of an open loop fall due: a `timerfd`, since tokio's timers are no finer than
//! a millisecond, which would count as latency. Falling due is a permit of a semaphore, so that
//! idle connections wait in turn and a late server piles up permits, not tasks.
#![allow(unsafe_code, reason = "timerfd has no safe face in std, nor in tokio; all calls are on a descriptor owned here")]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;

/// Requests that fall due one after the other at an even rate.
#[derive(Debug)]
pub(super) struct Pace {
    start: Instant,
    interval: Duration,
    due: Semaphore,
    taken: Cell<u32>,
}

impl Pace {
    pub(super) fn new(start: Instant, rate_per_s: f64) -> Pace {
        Pace { start, interval: Duration::from_secs_f64(1.0 / rate_per_s), due: Semaphore::new(0), taken: Cell::new(0) }
    }

    /// Waits for the next request to fall due, and says when it did.
    pub(super) async fn next(&self) -> Instant {
        self.due.acquire().await.expect("the semaphore is never closed").forget();
        let number = self.taken.get();
        self.taken.set(number + 1);
        self.moment(number)
    }

    /// Lets requests fall due, for ever.
    pub(super) async fn drive(&self) -> io::Result<()> {
        // SAFETY: an `OwnedFd` keeps its one descriptor open until it is dropped.
        let timer = unsafe { AsyncFd::register(new_timer()?) }.map_err(io::Error::from)?;
        let mut released = 0u32;
        loop {
            let now = Instant::now();
            let mut newly_due = 0;
            while self.moment(released + newly_due) <= now {
                newly_due += 1;
            }
            released += newly_due;
            self.due.add_permits(newly_due as usize);
            set_timer(timer.get_ref(), self.moment(released).saturating_duration_since(now))?;
            // Setting it again clears a past expiry, so the descriptor need not be read.
            timer.readable().await?.clear_ready();
        }
    }

    fn moment(&self, number: u32) -> Instant {
        self.start + self.interval * number
    }
}

fn new_timer() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed; a descriptor that is not negative is new and ours.
    let descriptor = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn set_timer(timer: &OwnedFd, after: Duration) -> io::Result<()> {
    // All zero would disarm it.
    let after = after.max(Duration::from_nanos(1));
    let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let value = libc::timespec { tv_sec: after.as_secs() as libc::time_t, tv_nsec: i64::from(after.subsec_nanos()) };
    let setting = libc::itimerspec { it_interval: never, it_value: value };
    // SAFETY: `setting` lives through the call, and the old setting is not asked for.
    match unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &setting, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_fall_due_evenly_and_none_is_dropped_when_nobody_is_ready() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let start = Instant::now();
        let pace = Pace::new(start, 2000.0);
        let fifth = runtime.block_on(async {
            tokio::select! {
                _ = pace.drive() => unreachable!("it never ends"),
                due = async { for _ in 0..4 { pace.next().await; } pace.next().await } => due,
            }
        });
        assert_eq!(fifth, start + Duration::from_millis(2));
        assert!(Instant::now() >= fifth, "it was let go before it fell due");
    }
}
