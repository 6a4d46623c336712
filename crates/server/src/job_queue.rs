//! A queue from the loop to a thread that works in batches: the thread takes all that waits at once.
//!
//! It has no bound of its own: what may be under way is bounded where it enters (requests and bytes
//! in flight, unapplied bytes), since the loop must never block.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// One end of the queue; clones share it.
#[derive(Debug)]
pub(crate) struct JobQueue<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
}

#[derive(Debug)]
struct State<T> {
    jobs: VecDeque<T>,
    waiting: usize,
    closed: bool,
}

/// What came of waiting for jobs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// There are some.
    Jobs,
    /// None came in time.
    Idle,
    /// None are left and none will come.
    Closed,
}

impl<T> Clone for JobQueue<T> {
    fn clone(&self) -> JobQueue<T> {
        JobQueue { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Default for JobQueue<T> {
    fn default() -> JobQueue<T> {
        let state = Mutex::new(State { jobs: VecDeque::new(), waiting: 0, closed: false });
        JobQueue { shared: Arc::new(Shared { state, filled: Condvar::new() }) }
    }
}

impl<T> JobQueue<T> {
    /// Adds jobs, in order, and wakes a waiting thread.
    pub(crate) fn push_all(&self, jobs: impl IntoIterator<Item = T>) {
        let mut state = self.lock();
        state.jobs.extend(jobs);
        // Only a thread that waits needs the system call.
        if state.waiting > 0 && !state.jobs.is_empty() {
            drop(state);
            self.shared.filled.notify_one();
        }
    }

    /// Says that no more jobs come; those that wait are still done.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.shared.filled.notify_all();
    }

    /// Moves all waiting jobs behind those in `into`; waits for at least one, up to `timeout` if given.
    pub(crate) fn take_all(&self, into: &mut VecDeque<T>, timeout: Option<Duration>) -> Waited {
        let mut state = self.wait(timeout);
        if state.jobs.is_empty() {
            return if state.closed { Waited::Closed } else { Waited::Idle };
        }
        if into.is_empty() {
            std::mem::swap(into, &mut state.jobs);
        } else {
            into.append(&mut state.jobs);
        }
        Waited::Jobs
    }

    /// Takes the first job, waiting for one; `None`: closed. Of several waiting jobs the rest wakes
    /// another thread.
    pub(crate) fn take_one(&self) -> Option<T> {
        let mut state = self.wait(None);
        let job = state.jobs.pop_front();
        let wake_another = !state.jobs.is_empty() && state.waiting > 0;
        drop(state);
        if wake_another {
            self.shared.filled.notify_one();
        }
        job
    }

    fn wait(&self, timeout: Option<Duration>) -> std::sync::MutexGuard<'_, State<T>> {
        let mut state = self.lock();
        state.waiting += 1;
        while state.jobs.is_empty() && !state.closed {
            match timeout {
                None => state = self.shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(timeout) => {
                    let (guard, result) = self.shared.filled.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner);
                    state = guard;
                    if result.timed_out() {
                        break;
                    }
                }
            }
        }
        state.waiting -= 1;
        state
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_come_out_in_order_and_also_after_closing() {
        let queue = JobQueue::default();
        queue.push_all([1, 2]);
        queue.push_all([3]);
        queue.close();
        let mut jobs = VecDeque::from([0]);
        assert_eq!(queue.take_all(&mut jobs, None), Waited::Jobs);
        assert_eq!(jobs, [0, 1, 2, 3]);
        assert_eq!(queue.take_all(&mut jobs, None), Waited::Closed);
        assert_eq!(queue.take_one(), None);
    }

    #[test]
    fn an_empty_queue_is_idle_after_the_time_given() {
        let queue = JobQueue::<u32>::default();
        assert_eq!(queue.take_all(&mut VecDeque::new(), Some(Duration::from_millis(1))), Waited::Idle);
    }
}
