//! The apply thread: it has the store done what the loop asks, in order. Waiting apply jobs that
//! stand next to each other become one, and so one batch of the store.

use super::{Watch, spawn};
use crate::clock::Clock;
use crate::data_dir::Suspect;
use crate::job_queue::{JobQueue, Waited};
use crate::mailbox::{Mailbox, Report};
use flotilla_node::effect::StoreJob;
use flotilla_node::event::StoreEvent;
use flotilla_node::store_worker::StoreWorker;
use flotilla_storage::store::StateStore;
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Groups' runs of entries that are merged into one job, so that its results do not wait for ever.
const MERGED_RUNS_MAX: usize = 256;

/// The loop's end of the apply thread.
pub(crate) struct StoreThread {
    jobs: JobQueue<StoreJob>,
    watch: Watch,
    thread: Option<JoinHandle<()>>,
}

impl StoreThread {
    /// Starts the thread over an open store.
    pub(crate) fn start<S: StateStore>(worker: StoreWorker<S>, suspect: Suspect, clock: Clock, mailbox: Arc<Mailbox>) -> StoreThread {
        let (jobs, watch) = (JobQueue::default(), Watch::default());
        let (queue, busy) = (jobs.clone(), watch.clone());
        let thread = spawn("apply", mailbox, move |mailbox| run(worker, &suspect, &queue, &busy, &clock, mailbox));
        StoreThread { jobs, watch, thread: Some(thread) }
    }

    pub(crate) fn push_all(&self, jobs: Vec<StoreJob>) {
        self.jobs.push_all(jobs);
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
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

fn run<S: StateStore>(
    mut worker: StoreWorker<S>,
    suspect: &Suspect,
    queue: &JobQueue<StoreJob>,
    watch: &Watch,
    clock: &Clock,
    mailbox: &Mailbox,
) {
    let mut jobs = VecDeque::new();
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
            watch.begin(clock);
            let event = worker.run(job);
            watch.end();
            for event in event.into_iter().chain(worker.take_damage()) {
                if let StoreEvent::Failed { disk_full: false, detail, .. } = &event {
                    suspect.note(detail);
                }
                mailbox.post(Report::Event(flotilla_node::event::Event::Store(event)));
            }
        }
    }
}
