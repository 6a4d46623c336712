//! What all connections of one door share: the node behind it, limits, counters, and the coarse clock
//! by which stalled connections are found.
//!
//! One task looks over all connections a few times a second instead of each request starting a
//! timer: on the hot path a deadline costs one store into a `Cell`.

use super::door_metrics::DoorMetrics;
use super::options::HttpOptions;
use super::recent_stats::RecentStats;
use crate::answer_bytes::AnswerBytes;
use flotilla_node::request::LARGE_REQUEST_BYTES;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// What all connections of a door share.
pub(super) struct Door<B> {
    pub(super) backend: Rc<B>,
    pub(super) options: HttpOptions,
    pub(super) metrics: DoorMetrics,
    pub(super) recent: RecentStats,
    /// Pages and lines of scans that wait for their clients; values are counted where they are read.
    pub(super) answers: AnswerBytes,
    pub(super) shared: Rc<DoorState>,
}

/// The part of a door that does not depend on what is behind it.
#[derive(Default)]
pub(super) struct DoorState {
    /// Milliseconds since the door opened, as of the last sweep.
    pub(super) now_ms: Cell<u64>,
    /// Bytes of request bodies in memory.
    pub(super) body_bytes: Cell<usize>,
    /// Connections are to end after what they are doing.
    pub(super) draining: Cell<bool>,
    connections: RefCell<BTreeMap<u64, Rc<ConnectionState>>>,
    next_id: Cell<u64>,
}

/// What a connection is doing, for the sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waiting for the next request, reading its head, or writing an answer.
    Head,
    /// Reading a body, which must be complete at `deadline_ms`.
    Body { deadline_ms: u64 },
    /// The node has the request; it sees to its own deadline.
    Node,
    /// The answer is written; what the client still sends is read and thrown away.
    Linger { deadline_ms: u64 },
}

/// Why a connection, or the request on it, must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing happened for too long: close it.
    Close,
    /// The head of a request did not come in time.
    HeadStalled,
    /// A body made no progress.
    BodyStalled,
    /// The request's own timeout passed while its body was read.
    OutOfTime,
}

/// Whether what was written has reached the socket, for a body that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    Unasked,
    Asked,
    Done,
}

/// One connection's progress.
pub(super) struct ConnectionState {
    pub(super) phase: Cell<Phase>,
    pub(super) verdict: Cell<Option<Verdict>>,
    /// When the first byte of a head came that is not complete yet.
    pub(super) head_began_ms: Cell<Option<u64>>,
    /// When a byte last came or went.
    pub(super) progress_ms: Cell<u64>,
    /// Body lengths of the answers that the handler made and that are not written to their end.
    pub(super) answers: RefCell<VecDeque<u64>>,
    /// An answer was given before the whole request was read.
    pub(super) unread: Cell<bool>,
    /// Whether a body waits for what was written to have reached the socket.
    flush: Cell<Flush>,
    waker: RefCell<Option<Waker>>,
}

/// A connection's place in the door's list, given up when dropped.
pub(super) struct Registration {
    door: Rc<DoorState>,
    id: u64,
    pub(super) state: Rc<ConnectionState>,
}

/// Bytes of a body, counted against the door's bound until dropped.
pub(super) struct Reservation {
    door: Rc<DoorState>,
    bytes: usize,
}

impl DoorState {
    pub(super) fn connection_count(&self) -> usize {
        self.connections.borrow().len()
    }

    pub(super) fn register(self: &Rc<Self>) -> Registration {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let state = Rc::new(ConnectionState {
            phase: Cell::new(Phase::Head),
            verdict: Cell::new(None),
            head_began_ms: Cell::new(None),
            progress_ms: Cell::new(self.now_ms.get()),
            answers: RefCell::default(),
            unread: Cell::new(false),
            flush: Cell::new(Flush::Unasked),
            waker: RefCell::new(None),
        });
        self.connections.borrow_mut().insert(id, state.clone());
        Registration { door: self.clone(), id, state }
    }

    pub(super) fn reserve(self: &Rc<Self>) -> Reservation {
        Reservation { door: self.clone(), bytes: 0 }
    }

    /// Sets the clock and judges every connection by it.
    pub(super) fn sweep(&self, now_ms: u64, options: &HttpOptions) {
        self.now_ms.set(now_ms);
        let past = |since_ms: u64, timeout: Duration| u128::from(now_ms.saturating_sub(since_ms)) > timeout.as_millis();
        for connection in self.connections.borrow().values() {
            let progress_ms = connection.progress_ms.get();
            let verdict = match connection.phase.get() {
                Phase::Head if connection.head_began_ms.get().is_some_and(|began| past(began, options.head_timeout)) => {
                    Verdict::HeadStalled
                }
                Phase::Head if past(progress_ms, options.idle_timeout) => Verdict::Close,
                Phase::Body { deadline_ms } if now_ms > deadline_ms => Verdict::OutOfTime,
                Phase::Body { .. } if past(progress_ms, options.body_timeout) => Verdict::BodyStalled,
                Phase::Linger { deadline_ms } if now_ms > deadline_ms => Verdict::Close,
                Phase::Head | Phase::Body { .. } | Phase::Node | Phase::Linger { .. } => continue,
            };
            connection.verdict.set(Some(verdict));
            connection.wake();
        }
    }

    /// Tells every connection to end after what it is doing.
    pub(super) fn drain(&self) {
        self.draining.set(true);
        for connection in self.connections.borrow().values() {
            connection.wake();
        }
    }
}

impl ConnectionState {
    /// Remembers whom to wake; called by the connection's task each time it runs.
    pub(super) fn set_waker(&self, waker: &Waker) {
        let mut own = self.waker.borrow_mut();
        if !own.as_ref().is_some_and(|own| own.will_wake(waker)) {
            *own = Some(waker.clone());
        }
    }

    /// Ready once all that was written before the first call has reached the socket.
    pub(super) fn poll_flushed(&self) -> Poll<()> {
        if self.flush.get() == Flush::Done {
            return Poll::Ready(());
        }
        self.flush.set(Flush::Asked);
        Poll::Pending
    }

    /// The socket has taken everything.
    pub(super) fn note_flushed(&self) {
        if self.flush.get() == Flush::Asked {
            self.flush.set(Flush::Done);
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.door.connections.borrow_mut().remove(&self.id);
    }
}

impl Reservation {
    /// Whether there is room for `bytes` more at this moment; a large body leaves half of it to small ones.
    pub(super) fn would_fit(&self, bytes: u64, bytes_max: usize) -> bool {
        let held = self.door.body_bytes.get();
        let leaves_no_room = bytes > LARGE_REQUEST_BYTES as u64 && held > bytes_max / 2;
        held as u64 + bytes <= bytes_max as u64 && !leaves_no_room
    }

    /// Counts `bytes` more, unless that would pass the bound.
    pub(super) fn grow(&mut self, bytes: usize, bytes_max: usize) -> bool {
        let total = self.door.body_bytes.get() + bytes;
        let fits = total <= bytes_max;
        if fits {
            self.door.body_bytes.set(total);
            self.bytes += bytes;
        }
        fits
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.door.body_bytes.set(self.door.body_bytes.get() - self.bytes);
    }
}
