//! How things reach the loop: from its own thread through [`Inbox`], from other threads through
//! [`Mailbox`]. Both wake the loop by one shared [`Notify`]; what arrives while the loop is already
//! woken costs no further wake-up, so that a burst of results costs one `eventfd` write.

use flotilla_node::effect::ReplyTo;
use flotilla_node::event::Event;
use flotilla_node::request::Reply;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// What another thread reports.
#[derive(Debug)]
pub(crate) enum Report {
    /// Something for the node.
    Event(Event),
    /// A read that was handed over is done.
    Read {
        /// Who gets the answer.
        to: ReplyTo,
        /// The answer.
        reply: Reply,
        /// How long it took.
        took: Duration,
    },
    /// The process cannot go on, for this reason.
    Fatal(String),
}

/// Reports of other threads, waiting for the loop.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    reports: Mutex<Vec<Report>>,
    wake: Arc<Notify>,
}

/// Events of the loop's own thread, waiting for the loop.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    events: RefCell<VecDeque<Event>>,
    wake: Arc<Notify>,
}

impl Mailbox {
    /// A mailbox that wakes the waiter of `wake`.
    pub(crate) fn new(wake: Arc<Notify>) -> Mailbox {
        Mailbox { reports: Mutex::default(), wake }
    }

    /// Leaves a report. Wakes the loop only if it is the first since the loop last looked.
    pub(crate) fn post(&self, report: Report) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let first = reports.is_empty();
        reports.push(report);
        drop(reports);
        if first {
            self.wake.notify_one();
        }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Exchanges the waiting reports for the (empty) `spare`, whose memory is used again.
    pub(crate) fn take(&self, spare: &mut Vec<Report>) {
        debug_assert!(spare.is_empty(), "reports would be lost");
        std::mem::swap(&mut *self.reports.lock().unwrap_or_else(PoisonError::into_inner), spare);
    }
}

impl Inbox {
    /// An inbox that wakes the waiter of `wake`.
    pub(crate) fn new(wake: Arc<Notify>) -> Inbox {
        Inbox { events: RefCell::default(), wake }
    }

    /// Leaves an event for the next turn.
    pub(crate) fn push(&self, event: Event) {
        let mut events = self.events.borrow_mut();
        if events.is_empty() {
            self.wake.notify_one();
        }
        events.push_back(event);
    }

    /// Exchanges the waiting events for the (empty) `spare`.
    pub(crate) fn take(&self, spare: &mut VecDeque<Event>) {
        debug_assert!(spare.is_empty(), "events would be lost");
        std::mem::swap(&mut *self.events.borrow_mut(), spare);
    }

    /// Waits until there may be something to take.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}
