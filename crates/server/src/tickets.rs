//! Requests under way at the doors of this node: who waits for which answer.
//!
//! A slab: a slot is used again by later requests, a generation in the ticket tells them apart, so that
//! a request costs no allocation. A slot lives until the node has answered, also when the door has
//! gone away meanwhile: what the node still holds counts against the bounds.

use flotilla_node::event::Ticket;
use flotilla_node::request::Reply;
use flotilla_types::Instant;
use std::task::{Poll, Waker};

/// The slots of all requests under way.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    slots: Vec<Slot>,
    free: Vec<u32>,
    in_flight: usize,
    bytes_in_flight: usize,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    state: State,
    bytes: usize,
    expires: Instant,
    writes: bool,
}

#[derive(Debug)]
enum State {
    Free,
    /// The node has it, the door waits.
    Waiting(Option<Waker>),
    /// The node has it, the door has gone.
    Forgotten,
    /// The node has answered, the door has not looked yet.
    Answered(Reply),
}

/// A request that the node should have answered by now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overdue {
    pub(crate) ticket: Ticket,
    pub(crate) writes: bool,
}

impl Tickets {
    /// Opens a slot.
    pub(crate) fn open(&mut self, bytes: usize, expires: Instant, writes: bool) -> Ticket {
        self.in_flight += 1;
        self.bytes_in_flight += bytes;
        let state = State::Waiting(None);
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            *slot = Slot { generation: slot.generation, state, bytes, expires, writes };
            return ticket(slot.generation, index);
        }
        let index = u32::try_from(self.slots.len()).expect("requests in flight are bounded far below");
        self.slots.push(Slot { generation: 0, state, bytes, expires, writes });
        ticket(0, index)
    }

    /// Requests that the node has and has not answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Bytes of those requests.
    pub(crate) fn bytes_in_flight(&self) -> usize {
        self.bytes_in_flight
    }

    /// The node's answer. One to a ticket that is no longer in use is dropped.
    pub(crate) fn answer(&mut self, ticket: Ticket, reply: Reply) {
        let Some((index, slot)) = self.find(ticket) else { return };
        let bytes = slot.bytes;
        match std::mem::replace(&mut slot.state, State::Free) {
            State::Waiting(waker) => {
                slot.state = State::Answered(reply);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            State::Forgotten => self.release(index),
            // The first answer counts.
            before @ (State::Answered(_) | State::Free) => {
                slot.state = before;
                return;
            }
        }
        self.in_flight -= 1;
        self.bytes_in_flight -= bytes;
    }

    /// The door asks; an answer is given out once.
    pub(crate) fn poll(&mut self, ticket: Ticket, waker: &Waker) -> Poll<Reply> {
        let (index, slot) = self.find(ticket).expect("a door asks only for a slot it holds");
        match &mut slot.state {
            State::Waiting(Some(old)) if old.will_wake(waker) => Poll::Pending,
            State::Waiting(old) => {
                *old = Some(waker.clone());
                Poll::Pending
            }
            State::Answered(_) => {
                let State::Answered(reply) = std::mem::replace(&mut slot.state, State::Free) else { unreachable!("just matched") };
                self.release(index);
                Poll::Ready(reply)
            }
            State::Forgotten | State::Free => unreachable!("a door that has gone does not ask"),
        }
    }

    /// The door has gone.
    pub(crate) fn forget(&mut self, ticket: Ticket) {
        let Some((index, slot)) = self.find(ticket) else { return };
        match slot.state {
            State::Waiting(_) => slot.state = State::Forgotten,
            State::Answered(_) => self.release(index),
            State::Forgotten | State::Free => {}
        }
    }

    /// What was to be answered before `moment` and was not.
    pub(crate) fn overdue(&self, moment: Instant) -> Vec<Overdue> {
        let late = |slot: &Slot| matches!(slot.state, State::Waiting(_) | State::Forgotten) && slot.expires < moment;
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| late(slot))
            .map(|(index, slot)| Overdue { ticket: ticket(slot.generation, index as u32), writes: slot.writes })
            .collect()
    }

    fn find(&mut self, ticket: Ticket) -> Option<(u32, &mut Slot)> {
        let (generation, index) = ((ticket.0 >> 32) as u32, ticket.0 as u32);
        let slot = self.slots.get_mut(index as usize)?;
        (slot.generation == generation && !matches!(slot.state, State::Free)).then_some((index, slot))
    }

    fn release(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
    }
}

fn ticket(generation: u32, index: u32) -> Ticket {
    Ticket(u64::from(generation) << 32 | u64::from(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(tickets: &mut Tickets) -> Ticket {
        tickets.open(10, Instant::from_nanos(5), true)
    }

    #[test]
    fn an_answer_reaches_its_own_request_only() {
        let mut tickets = Tickets::default();
        let first = open(&mut tickets);
        tickets.answer(first, Reply::Absent);
        assert_eq!(tickets.poll(first, Waker::noop()), Poll::Ready(Reply::Absent));
        let second = open(&mut tickets);
        assert_ne!(first, second, "the slot is used again under another ticket");
        tickets.answer(first, Reply::Absent);
        assert!(tickets.poll(second, Waker::noop()).is_pending());
    }

    #[test]
    fn a_forgotten_request_counts_until_it_is_answered() {
        let mut tickets = Tickets::default();
        let ticket = open(&mut tickets);
        tickets.forget(ticket);
        assert_eq!((tickets.in_flight(), tickets.bytes_in_flight()), (1, 10));
        assert_eq!(tickets.overdue(Instant::from_nanos(6)), [Overdue { ticket, writes: true }]);
        tickets.answer(ticket, Reply::Absent);
        tickets.answer(ticket, Reply::Absent);
        assert_eq!((tickets.in_flight(), tickets.bytes_in_flight()), (0, 0));
        assert_eq!(tickets.overdue(Instant::from_nanos(6)), []);
    }
}
