//! The log thread: what the loop has sent since the last sync goes to disk with one sync.
//!
//! All waiting jobs are appended, then synced once if any of them asks for it, then the last one's
//! number is reported: it stands for all before it. When no job comes for a while, the log is sealed,
//! so that the last batch counts as synced too. An append that finds the disk full is reported and
//! leaves the log as it was; any other error ends the process and is never retried: after a failed
//! sync nobody knows what is on disk.

use super::{Watch, spawn};
use crate::clock::Clock;
use crate::job_queue::{JobQueue, Waited};
use crate::mailbox::{Mailbox, Report};
use flotilla_node::effect::LogJob;
use flotilla_node::event::Event;
use flotilla_storage::disk::FileDisk;
use flotilla_storage::log::{LogError, RaftLog};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A queue without jobs for this long is idle.
const IDLE_TIME: Duration = Duration::from_millis(20);

/// The loop's end of the log thread.
pub(crate) struct LogThread {
    jobs: JobQueue<LogJob>,
    watch: Watch,
    thread: Option<JoinHandle<()>>,
}

impl LogThread {
    /// Starts the thread over an open log.
    pub(crate) fn start(log: RaftLog<FileDisk>, clock: Clock, mailbox: Arc<Mailbox>) -> LogThread {
        let (jobs, watch) = (JobQueue::default(), Watch::default());
        let (queue, busy) = (jobs.clone(), watch.clone());
        let thread = spawn("log", mailbox, move |mailbox| {
            if let Err(error) = run(log, &queue, &busy, &clock, mailbox) {
                mailbox.post(Report::Fatal(describe(&error)));
            }
        });
        LogThread { jobs, watch, thread: Some(thread) }
    }

    pub(crate) fn push(&self, job: LogJob) {
        self.jobs.push_all([job]);
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Has all waiting jobs done and the log sealed, and waits for it.
    pub(crate) fn finish(&mut self) {
        self.jobs.close();
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        self.jobs.close();
    }
}

fn run(mut log: RaftLog<FileDisk>, queue: &JobQueue<LogJob>, watch: &Watch, clock: &Clock, mailbox: &Mailbox) -> Result<(), LogError> {
    let mut jobs = VecDeque::new();
    let mut unsealed = false;
    loop {
        match queue.take_all(&mut jobs, unsealed.then_some(IDLE_TIME)) {
            Waited::Jobs => {}
            Waited::Idle | Waited::Closed if unsealed => {
                watch.begin(clock);
                // A seal that finds no room is left out: it only narrows what a crash may cut.
                match log.seal() {
                    Err(error) if !error.is_disk_full() => return Err(error),
                    _ => unsealed = false,
                }
                watch.end();
                continue;
            }
            Waited::Idle => continue,
            Waited::Closed => return Ok(()),
        }
        watch.begin(clock);
        let (mut last, mut must_sync, mut full) = (None, false, None);
        for job in jobs.drain(..) {
            match log.append(&job.batch) {
                Ok(()) => (last, must_sync) = (Some(job.number), must_sync || job.must_sync),
                Err(error) if error.is_disk_full() => {
                    full = Some(job.number);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(job) = last {
            if must_sync {
                log.sync()?;
                unsealed = true;
            }
            mailbox.post(Report::Event(Event::LogSynced { job }));
        }
        if let Some(job) = full {
            // Later jobs build on this one: none of them is written.
            mailbox.post(Report::Event(Event::LogDiskFull { job }));
        }
        watch.end();
    }
}

/// The error with its causes, in one line.
fn describe(error: &LogError) -> String {
    format!("{}: nothing more can be promised, so the process ends; look at the disk, then start again", crate::error::chain(error))
}
