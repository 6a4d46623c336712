//! The apply thread: it has the store done what the loop asks, in order. Waiting apply jobs that
//! stand next to each other become one, and so one batch of the store.

use super::{Watch, spawn};
use crate::clock::Clock;
use crate::data_dir::Suspect;
use crate::job_queue::{JobQueue, Waited};
use crate::mailbox::{Mailbox, Report};
use crate::metrics::{Counter, Histogram};
use flotilla_node::effect::StoreJob;
use flotilla_node::event::StoreEvent;
use flotilla_node::store_worker::StoreWorker;
use flotilla_storage::store::StateStore;
use flotilla_types::Instant;
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Groups' runs of entries that are merged into one job, so that its results do not wait for ever.
const MERGED_RUNS_MAX: usize = 256;
/// A job that takes longer than this was held up by the engine.
const STALL_TIME: Duration = Duration::from_millis(100);
/// How often the store's size is looked at, at most.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// What the apply thread counts.
#[derive(Debug, Default)]
pub(crate) struct StoreNumbers {
    pub(crate) apply_time: Histogram,
    pub(crate) entries: Counter,
    pub(crate) persist_time: Histogram,
    pub(crate) stalls: Counter,
    pub(crate) disk_bytes: Counter,
}

/// What a job is, for what is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum JobKind {
    Apply,
    Persist,
    Other,
}

/// The loop's end of the apply thread.
pub(crate) struct StoreThread {
    jobs: JobQueue<StoreJob>,
    watch: Watch,
    numbers: Arc<StoreNumbers>,
    thread: Option<JoinHandle<()>>,
}

impl StoreThread {
    /// Starts the thread over an open store.
    pub(crate) fn start<S: StateStore>(worker: StoreWorker<S>, suspect: Suspect, clock: Clock, mailbox: Arc<Mailbox>) -> StoreThread {
        let (jobs, watch, numbers) = (JobQueue::default(), Watch::default(), Arc::<StoreNumbers>::default());
        let (queue, busy, counted) = (jobs.clone(), watch.clone(), Arc::clone(&numbers));
        counted.disk_bytes.set(worker.store().disk_bytes());
        let thread = spawn("apply", mailbox, move |mailbox| run(worker, &suspect, &queue, &busy, &clock, mailbox, &counted));
        StoreThread { jobs, watch, numbers, thread: Some(thread) }
    }

    pub(crate) fn push_all(&self, jobs: Vec<StoreJob>) {
        self.jobs.push_all(jobs);
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    pub(crate) fn numbers(&self) -> Arc<StoreNumbers> {
        Arc::clone(&self.numbers)
    }

    /// Has all waiting jobs done and what was applied persisted, and waits for it.
    pub(crate) fn finish(&mut self) {
        self.jobs.push_all([StoreJob::Persist]);
        self.jobs.close();
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Drop for StoreThread {
    fn drop(&mut self) {
        self.jobs.close();
    }
}

impl StoreNumbers {
    fn count(&self, kind: JobKind, took: Duration) {
        match kind {
            JobKind::Apply => self.apply_time.record(took),
            JobKind::Persist => self.persist_time.record(took),
            JobKind::Other => {}
        }
        if took > STALL_TIME {
            self.stalls.add(1);
        }
    }
}

fn run<S: StateStore>(
    mut worker: StoreWorker<S>,
    suspect: &Suspect,
    queue: &JobQueue<StoreJob>,
    watch: &Watch,
    clock: &Clock,
    mailbox: &Mailbox,
    numbers: &StoreNumbers,
) {
    let mut jobs = VecDeque::new();
    let mut published = Instant::ZERO;
    while queue.take_all(&mut jobs, None) != Waited::Closed {
        while let Some(mut job) = jobs.pop_front() {
            if let StoreJob::Apply(runs) = &mut job {
                while runs.len() < MERGED_RUNS_MAX
                    && let Some(StoreJob::Apply(_)) = jobs.front()
                {
                    let Some(StoreJob::Apply(more)) = jobs.pop_front() else { unreachable!("just seen") };
                    more.into_iter().for_each(|run| StoreJob::add_run(runs, run));
                }
            }
            let kind = match &job {
                StoreJob::Apply(runs) => {
                    numbers.entries.add(runs.iter().map(|run| run.entries.len() as u64).sum());
                    JobKind::Apply
                }
                StoreJob::Persist => JobKind::Persist,
                _ => JobKind::Other,
            };
            let began = watch.begin(clock);
            let event = worker.run(job);
            watch.end();
            let ended = clock.instant();
            numbers.count(kind, ended.saturating_since(began));
            if ended.saturating_since(published) >= PUBLISH_INTERVAL {
                published = ended;
                numbers.disk_bytes.set(worker.store().disk_bytes());
            }
            for event in event.into_iter().chain(worker.take_damage()) {
                if let StoreEvent::Failed { disk_full: false, detail, .. } = &event {
                    suspect.note(detail);
                }
                mailbox.post(Report::Event(flotilla_node::event::Event::Store(event)));
            }
        }
    }
}
