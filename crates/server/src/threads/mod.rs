//! The threads beside the loop, for what may block: the log's sync, the store's writes, slow reads.
//! Each takes jobs from a queue and posts what came of them to the loop's mailbox.
//!
//! A [`Watch`] tells the loop how long a thread has been busy with one job: one that hangs on a dead
//! disk must end the process, not leave a node that looks alive.

mod log;
mod read;
mod store;

pub(crate) use log::{LogNumbers, LogThread};
pub(crate) use read::Readers;
pub(crate) use store::{StoreNumbers, StoreThread};

use crate::clock::Clock;
use crate::mailbox::{Mailbox, Report};
use flotilla_types::Instant;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Since when a thread is busy with its present job.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<AtomicU64>);

impl Watch {
    pub(crate) fn begin(&self, clock: &Clock) -> Instant {
        let now = clock.instant();
        self.0.store(now.as_nanos().max(1), Ordering::Relaxed);
        now
    }

    pub(crate) fn end(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// How long the present job has been running; zero if there is none.
    pub(crate) fn busy(&self, now: Instant) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => now.saturating_since(Instant::from_nanos(since)),
        }
    }
}

/// Starts a thread. If it panics, the process is to end: what it held is in an unknown state.
pub(crate) fn spawn(name: &'static str, mailbox: Arc<Mailbox>, body: impl FnOnce(&Mailbox) + Send + 'static) -> JoinHandle<()> {
    let guarded = move || {
        if catch_unwind(AssertUnwindSafe(|| body(&mailbox))).is_err() {
            mailbox.post(Report::Fatal(format!("the {name} thread panicked: this is a bug")));
        }
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(guarded).expect("a thread can be started while the process starts")
}
