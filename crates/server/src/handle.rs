//! What the doors of a node hold of it: [`NodeHandle`]. It lives on the loop's thread; a request costs
//! no lock, no wake-up of another thread and no allocation of its own.

use crate::clock::Clock;
use crate::disk_room::Room;
use crate::mailbox::{Inbox, Mailbox};
use crate::peer::Links;
use crate::threads::{LogNumbers, StoreNumbers};
use crate::tickets::Tickets;
use flotilla_node::Node;
use flotilla_node::event::{Event, Ticket};
use flotilla_node::request::{Failure, FailureReason, Reply, Request};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

/// How much the doors may have under way at once; past it they are told `overloaded`.
#[derive(Clone, Copy, Debug)]
pub struct DoorLimits {
    /// Requests.
    pub requests_max: usize,
    /// Bytes of keys and values in them.
    pub request_bytes_max: usize,
}

/// A node, as its doors see it. Clones share it.
#[derive(Clone)]
pub struct NodeHandle(pub(crate) Rc<Shared>);

/// What driver and doors share.
pub(crate) struct Shared {
    pub(crate) node: RefCell<Node>,
    pub(crate) inbox: Rc<Inbox>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) tickets: RefCell<Tickets>,
    pub(crate) clock: Clock,
    pub(crate) limits: DoorLimits,
    pub(crate) links: Links,
    pub(crate) stats: Cell<DriverStats>,
    pub(crate) log: Arc<LogNumbers>,
    pub(crate) store: Arc<StoreNumbers>,
    pub(crate) room: Cell<Option<Room>>,
    /// When the process began to serve.
    pub(crate) since: SystemTime,
    pub(crate) store_cache_bytes_max: u64,
    pub(crate) unapplied_bytes_max: u64,
}

/// Plain counters of the loop, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct DriverStats {
    /// Turns of the loop.
    pub turns: u64,
    /// Events handled.
    pub events: u64,
    /// Requests refused at the door because too much was under way.
    pub refused: u64,
    /// Point reads run on the loop's thread.
    pub reads_inline: u64,
    /// Point reads handed to the reader threads, because reading was slow.
    pub reads_handed_over: u64,
    /// The longest turn since the start.
    pub turn_time_max: Duration,
}

impl NodeHandle {
    /// Has the node answer a request within `timeout`; the answer always comes. Dropping the future
    /// forgets the answer, not the request.
    pub async fn request(&self, request: Request, timeout: Duration) -> Reply {
        match self.submit(request, timeout) {
            Ok(answer) => answer.await,
            Err(refused) => Reply::Failed(refused),
        }
    }

    /// Runs `ask` on the node, between two turns of the loop.
    pub fn with_node<T>(&self, ask: impl FnOnce(&mut Node) -> T) -> T {
        ask(&mut self.0.node.borrow_mut())
    }

    /// Requests that the node has and has not answered.
    pub fn requests_in_flight(&self) -> usize {
        self.0.tickets.borrow().in_flight()
    }

    /// What the loop counted.
    pub fn driver_stats(&self) -> DriverStats {
        self.0.stats.get()
    }

    /// The node's links, for their counters.
    pub fn links(&self) -> &Links {
        &self.0.links
    }

    /// The node's clocks.
    pub fn clock(&self) -> Clock {
        self.0.clock
    }

    fn submit(&self, request: Request, timeout: Duration) -> Result<Answer, Failure> {
        let shared = &self.0;
        let bytes = request.bytes();
        let expires = shared.clock.instant() + timeout;
        let mut tickets = shared.tickets.borrow_mut();
        let limits = shared.limits;
        // One request larger than the bound is let through when there is nothing else.
        let held = tickets.bytes_in_flight();
        let leaves_no_room = request.is_large() && held > limits.request_bytes_max / 2;
        let full_of_bytes = tickets.in_flight() > 0 && (held + bytes > limits.request_bytes_max || leaves_no_room);
        if tickets.in_flight() >= limits.requests_max || full_of_bytes {
            let count = tickets.in_flight();
            shared.count(|stats| stats.refused += 1);
            let detail = format!("{count} requests with {held} bytes are under way on this node: try again later");
            return Err(Failure::not_applied(FailureReason::Overloaded, detail));
        }
        let ticket = tickets.open(bytes, expires, request.may_change_something());
        drop(tickets);
        shared.inbox.push(Event::Request { ticket, request, expires });
        Ok(Answer { shared: Rc::clone(shared), ticket, taken: false })
    }
}

impl Shared {
    pub(crate) fn count(&self, change: impl FnOnce(&mut DriverStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }
}

/// The answer to a request, when it comes.
struct Answer {
    shared: Rc<Shared>,
    ticket: Ticket,
    taken: bool,
}

impl Future for Answer {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
        let polled = self.shared.tickets.borrow_mut().poll(self.ticket, context.waker());
        self.taken = polled.is_ready();
        polled
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.taken {
            self.shared.tickets.borrow_mut().forget(self.ticket);
        }
    }
}
