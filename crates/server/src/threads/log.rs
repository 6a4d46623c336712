//! The log thread: what the loop has sent since the last sync goes to disk with one sync.
//!
//! All waiting jobs are appended, then synced once if any of them asks for it, then the last one's
//! number is reported: it stands for all before it. When no job comes for a while, the log is sealed,
//! so that the last batch counts as synced too. An append that finds the disk full is reported, leaves
//! the log as it was and is tried again until there is room; any other error ends the process and is
//! never retried: after a failed sync nobody knows what is on disk.

use super::{Watch, spawn};
use crate::clock::Clock;
use crate::job_queue::{JobQueue, Waited};
use crate::mailbox::{Mailbox, Report};
use crate::metrics::{Counter, Histogram};
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
/// How long a log that found the disk full waits before it looks again.
const FULL_PAUSE: Duration = Duration::from_millis(200);
/// How often its figures are put where others see them, at most.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// What the log thread counts.
#[derive(Debug, Default)]
pub(crate) struct LogNumbers {
    pub(crate) sync_time: Histogram,
    pub(crate) batches: Counter,
    pub(crate) bytes: Counter,
    pub(crate) moved_bytes: Counter,
    pub(crate) segments: Counter,
    pub(crate) disk_bytes: Counter,
    pub(crate) live_bytes: Counter,
}

/// The loop's end of the log thread.
pub(crate) struct LogThread {
    jobs: JobQueue<LogJob>,
    watch: Watch,
    numbers: Arc<LogNumbers>,
    thread: Option<JoinHandle<()>>,
}

impl LogThread {
    /// Starts the thread over an open log.
    pub(crate) fn start(log: RaftLog<FileDisk>, clock: Clock, mailbox: Arc<Mailbox>) -> LogThread {
        let (jobs, watch, numbers) = (JobQueue::default(), Watch::default(), Arc::<LogNumbers>::default());
        let (queue, busy, counted) = (jobs.clone(), watch.clone(), Arc::clone(&numbers));
        counted.publish(&log);
        let thread = spawn("log", mailbox, move |mailbox| {
            if let Err(error) = run(log, &queue, &busy, &clock, mailbox, &counted) {
                mailbox.post(Report::Fatal(describe(&error)));
            }
        });
        LogThread { jobs, watch, numbers, thread: Some(thread) }
    }

    pub(crate) fn push(&self, job: LogJob) {
        self.jobs.push_all([job]);
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    pub(crate) fn numbers(&self) -> Arc<LogNumbers> {
        Arc::clone(&self.numbers)
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

impl LogNumbers {
    /// Puts the log's own figures where others see them.
    fn publish(&self, log: &RaftLog<FileDisk>) {
        let stats = log.stats();
        self.batches.set(stats.append_count);
        self.bytes.set(stats.bytes_appended);
        self.moved_bytes.set(stats.bytes_moved);
        self.segments.set(stats.segment_count);
        self.disk_bytes.set(stats.bytes_total);
        self.live_bytes.set(stats.bytes_live);
    }
}

fn run(
    mut log: RaftLog<FileDisk>,
    queue: &JobQueue<LogJob>,
    watch: &Watch,
    clock: &Clock,
    mailbox: &Mailbox,
    numbers: &LogNumbers,
) -> Result<(), LogError> {
    let mut published = clock.instant();
    let mut jobs = VecDeque::new();
    let mut unsealed = false;
    // Why the first of `jobs` could not be written.
    let mut full: Option<LogError> = None;
    let mut was_full = false;
    loop {
        let patience = if full.is_some() { Some(FULL_PAUSE) } else { unsealed.then_some(IDLE_TIME) };
        match (queue.take_all(&mut jobs, patience), full.take()) {
            (Waited::Jobs, _) => {}
            (Waited::Idle, Some(_)) => {}
            (Waited::Closed, Some(error)) => return Err(error),
            (Waited::Idle | Waited::Closed, None) if unsealed => {
                watch.begin(clock);
                // A seal that finds no room is left out: it only narrows what a crash may cut.
                match log.seal() {
                    Err(error) if !error.is_disk_full() => return Err(error),
                    _ => unsealed = false,
                }
                numbers.publish(&log);
                watch.end();
                continue;
            }
            (Waited::Idle, None) => continue,
            (Waited::Closed, None) => return Ok(()),
        }
        watch.begin(clock);
        let (mut last, mut must_sync) = (None, false);
        // Later jobs build on earlier ones: what finds no room holds up all that is behind it.
        while let Some(job) = jobs.front() {
            match log.append(&job.batch) {
                Ok(()) => (last, must_sync) = (Some(job.number), must_sync || job.must_sync),
                Err(error) if error.is_disk_full() => {
                    full = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            }
            jobs.pop_front();
        }
        if let Some(job) = last {
            if must_sync {
                let began = clock.instant();
                log.sync()?;
                let ended = clock.instant();
                numbers.sync_time.record(ended.saturating_since(began));
                unsealed = true;
                if ended.saturating_since(published) >= PUBLISH_INTERVAL {
                    published = ended;
                    numbers.publish(&log);
                }
            }
            mailbox.post(Report::Event(Event::LogSynced { job }));
        }
        watch.end();
        if full.is_some() && !was_full {
            mailbox.post(Report::Event(Event::LogDiskFull));
        }
        was_full = full.is_some();
    }
}

/// The error with its causes, in one line.
fn describe(error: &LogError) -> String {
    format!("{}: nothing more can be promised, so the process ends; look at the disk, then start again", crate::error::chain(error))
}
