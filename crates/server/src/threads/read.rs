//! Point reads. As long as they are quick they run on the loop's thread, which costs nothing beyond
//! the read; when the disk makes them slow they go to a few threads, so that heartbeats do not wait.
//! Scans always go to threads, of their own, so that they hold up no point read.

use super::spawn;
use crate::answer_bytes::AnswerBytes;
use crate::job_queue::JobQueue;
use crate::mailbox::{Mailbox, Report};
use flotilla_node::effect::ReadJob;
use flotilla_node::event::StoreEvent;
use flotilla_node::request::Reply;
use flotilla_node::scan::ScanJob;
use flotilla_node::{Event, run_read, run_scan};
use flotilla_storage::store::StateStore;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Reads above this, on average, are handed over.
const SLOW: Duration = Duration::from_micros(200);
/// Reads below this, on average, come back.
const QUICK: Duration = Duration::from_micros(100);
const THREADS: usize = 2;
const SCAN_THREADS: usize = 2;

/// Where reads are run.
pub(crate) struct Readers<S> {
    store: S,
    answers: AnswerBytes,
    jobs: JobQueue<ReadJob>,
    scans: JobQueue<ScanJob>,
    threads: Vec<JoinHandle<()>>,
    pace: Pace,
}

/// How quick reads are lately, and so where they run.
#[derive(Debug, Default)]
struct Pace {
    average: Duration,
    handing_over: bool,
}

impl<S: StateStore> Readers<S> {
    /// Starts the threads.
    pub(crate) fn start(store: S, mailbox: &Arc<Mailbox>, answers: AnswerBytes) -> Readers<S> {
        let jobs = JobQueue::<ReadJob>::default();
        let scans = JobQueue::<ScanJob>::default();
        let mut threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (store, jobs, answers) = (store.clone(), jobs.clone(), answers.clone());
                spawn("read", Arc::clone(mailbox), move |mailbox| {
                    while let Some(job) = jobs.take_one() {
                        let start = Instant::now();
                        let (reply, damage) = run_read(&store, &job);
                        let reply = answers.hold_reply(reply);
                        if let Some(damage) = damage {
                            mailbox.post(Report::Event(Event::Store(damage)));
                        }
                        mailbox.post(Report::Read { to: job.to, reply, took: start.elapsed() });
                    }
                })
            })
            .collect();
        threads.extend((0..SCAN_THREADS).map(|_| {
            let (store, scans) = (store.clone(), scans.clone());
            spawn("scan", Arc::clone(mailbox), move |mailbox| {
                while let Some(job) = scans.take_one() {
                    let scanned = run_scan(&store, &job);
                    mailbox.post(Report::Event(Event::Scanned { part: job.part, scanned }));
                }
            })
        }));
        Readers { store, answers, jobs, scans, threads, pace: Pace::default() }
    }

    /// Runs a read here and now, or hands it over: then its answer comes by the mailbox, as does the damage
    /// that it finds.
    pub(crate) fn run(&mut self, job: ReadJob) -> Option<(Reply, Option<StoreEvent>)> {
        if self.pace.handing_over {
            self.jobs.push_all([job]);
            return None;
        }
        let start = Instant::now();
        let (reply, damage) = run_read(&self.store, &job);
        let reply = self.answers.hold_reply(reply);
        self.pace.note(start.elapsed());
        Some((reply, damage))
    }

    /// Hands scans over; what they read comes by the mailbox.
    pub(crate) fn run_scans(&self, scans: Vec<ScanJob>) {
        if !scans.is_empty() {
            self.scans.push_all(scans);
        }
    }

    /// A read that was handed over took so long.
    pub(crate) fn note(&mut self, took: Duration) {
        self.pace.note(took);
    }

    /// Ends the threads.
    pub(crate) fn finish(&mut self) {
        self.jobs.close();
        self.scans.close();
        for thread in self.threads.drain(..) {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

impl<S> Drop for Readers<S> {
    fn drop(&mut self) {
        self.jobs.close();
        self.scans.close();
    }
}

impl Pace {
    fn note(&mut self, took: Duration) {
        self.average = (self.average * 7 + took) / 8;
        self.handing_over = if self.handing_over { self.average > QUICK } else { self.average > SLOW };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_reads_are_handed_over_until_they_are_quick_again() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.note(Duration::from_micros(20));
        }
        assert!(!pace.handing_over);
        pace.note(Duration::from_millis(5));
        assert!(pace.handing_over, "one read that took long is enough");
        for _ in 0..3 {
            pace.note(Duration::from_micros(20));
        }
        assert!(pace.handing_over);
        for _ in 0..30 {
            pace.note(Duration::from_micros(20));
        }
        assert!(!pace.handing_over);
    }
}
