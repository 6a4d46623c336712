//! The loop that runs a node on the real world: one task on the thread that the doors and links share.
//!
//! A turn: take every waiting event, give it to the node, tick if it is time, flush, and carry out what
//! the node wants done. Before a turn the loop lets every other ready task run, so that all requests
//! and messages that have arrived meanwhile share the turn, its log write and its messages. While a log
//! write is under way they go on gathering for the next one, for a moment at most: a turn that cannot
//! be made durable yet would only cost a write, wake-ups and frames of its own.

use crate::answer_bytes::AnswerBytes;
use crate::disk_room::DiskRoom;
use crate::handle::{NodeHandle, Shared};
use crate::mailbox::Report;
use crate::threads::{LogThread, Readers, StoreThread};
use flotilla_node::effect::{Effects, ReplyTo};
use flotilla_node::event::{Event, Now};
use flotilla_node::message::PeerMessage;
use flotilla_node::notice::{Notice, NoticeLevel};
use flotilla_node::request::{Failure, FailureReason, Reply};
use flotilla_storage::store::StateStore;
use flotilla_types::Outcome;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// A thread that has been busy with one job for this long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(30);
/// An answer that the node owes for longer than this past its deadline is made up.
const OVERDUE_AFTER: Duration = Duration::from_secs(5);
/// How long a turn waits at most for the log write before it, so that reads and heartbeats do not wait
/// for a slow disk.
const GATHER_MAX: Duration = Duration::from_millis(1);
/// How often threads and overdue answers are looked at.
const INSPECTION_INTERVAL: Duration = Duration::from_secs(1);

/// The loop and all that it feeds.
pub(crate) struct Driver<S> {
    shared: Rc<Shared>,
    log: LogThread,
    store: StoreThread,
    readers: Readers<S>,
    room: DiskRoom,
    answers: AnswerBytes,
    /// Kept between turns for their memory.
    reports: Vec<Report>,
    events: VecDeque<Event>,
    /// The last log job sent, and the last that is known to be done.
    log_sent: u64,
    log_done: u64,
}

impl<S: StateStore> Driver<S> {
    /// A loop that has not turned yet.
    pub(crate) fn new(
        handle: &NodeHandle,
        log: LogThread,
        store: StoreThread,
        readers: Readers<S>,
        room: DiskRoom,
        answers: AnswerBytes,
    ) -> Driver<S> {
        Driver {
            shared: Rc::clone(&handle.0),
            log,
            store,
            readers,
            room,
            answers,
            reports: Vec::new(),
            events: VecDeque::new(),
            log_sent: 0,
            log_done: 0,
        }
    }

    /// Turns until the process must end: the reason. Dropping the future between two turns is fine.
    pub(crate) async fn run(&mut self) -> String {
        let shared = Rc::clone(&self.shared);
        let mut timer_due = shared.clock.instant();
        let timer = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(timer);
        let mut inspection = tokio::time::interval(INSPECTION_INTERVAL);
        inspection.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shared.inbox.woken() => {}
                () = &mut timer => {}
                _ = inspection.tick() => {
                    if let Err(reason) = self.inspect() {
                        return reason;
                    }
                }
            }
            if self.log_done < self.log_sent && shared.mailbox.is_empty() && shared.clock.instant() < timer_due {
                // Whatever wakes the loop now that its inbox holds something is another thread.
                let _ = tokio::time::timeout(GATHER_MAX, shared.inbox.woken()).await;
            }
            tokio::task::yield_now().await;
            if let Err(reason) = self.turn() {
                return reason;
            }
            let due = shared.node.borrow().next_timer();
            if due != timer_due || timer.is_elapsed() {
                timer_due = due;
                timer.as_mut().reset(shared.clock.deadline(due));
            }
        }
    }

    /// Has the threads finish what they have, persisted.
    pub(crate) fn finish(mut self) {
        self.log.finish();
        self.store.finish();
        self.readers.finish();
    }

    fn turn(&mut self) -> Result<(), String> {
        let shared = Rc::clone(&self.shared);
        let now = shared.clock.now();
        let mut node = shared.node.borrow_mut();
        let mut count = 0;
        // The inbox before the tick: after a pause, a leader's waiting heartbeat must be seen before an
        // election begins for the lack of it.
        shared.mailbox.take(&mut self.reports);
        let mut reports = std::mem::take(&mut self.reports);
        for report in reports.drain(..) {
            match report {
                Report::Event(event) => {
                    if let Event::LogSynced { job } = &event {
                        self.log_done = *job;
                    }
                    count += 1;
                    node.handle(event, now);
                }
                Report::Read { to, reply, took } => {
                    self.readers.note(took);
                    self.deliver(to, reply);
                }
                Report::Fatal(reason) => return Err(reason),
            }
        }
        self.reports = reports;
        shared.inbox.take(&mut self.events);
        count += self.events.len();
        for event in self.events.drain(..) {
            node.handle(event, now);
        }
        if now.instant >= node.next_timer() {
            node.handle(Event::Timer, now);
        }
        let effects = node.flush(now);
        drop(node);
        self.carry_out(effects, now)?;
        let took = shared.clock.instant().saturating_since(now.instant);
        shared.count(|stats| {
            stats.turns += 1;
            stats.events += count as u64;
            stats.turn_time_max = stats.turn_time_max.max(took);
        });
        Ok(())
    }

    fn carry_out(&mut self, effects: Effects, _now: Now) -> Result<(), String> {
        let Effects { replies, messages, log, store, reads, scans, peers, notices, fatal } = effects;
        for notice in notices {
            trace(&notice);
        }
        // First what other threads can begin with.
        if let Some(job) = log {
            self.log_sent = job.number;
            self.log.push(job);
        }
        if !store.is_empty() {
            self.store.push_all(store);
        }
        if let Some(peers) = peers {
            self.shared.links.set_removed(peers.removed);
            self.shared.links.set_peers(peers.linked);
        }
        for (to, message) in &messages {
            self.shared.links.send(*to, message);
        }
        if !replies.is_empty() {
            let mut tickets = self.shared.tickets.borrow_mut();
            for (ticket, reply) in replies {
                // What another node read for a client of this one is held by this one.
                tickets.answer(ticket, self.answers.hold_reply(reply));
            }
        }
        for read in reads {
            let to = read.to;
            match self.readers.run(read) {
                Some((reply, damage)) => {
                    if let Some(damage) = damage {
                        self.shared.inbox.push(Event::Store(damage));
                    }
                    self.shared.count(|stats| stats.reads_inline += 1);
                    self.deliver(to, reply);
                }
                None => self.shared.count(|stats| stats.reads_handed_over += 1),
            }
        }
        self.readers.run_scans(scans);
        self.shared.links.flush();
        fatal.map_or(Ok(()), Err)
    }

    fn deliver(&self, to: ReplyTo, reply: Reply) {
        match to {
            ReplyTo::Local(ticket) => self.shared.tickets.borrow_mut().answer(ticket, reply),
            ReplyTo::Peer { node, id } => self.shared.links.send(node, &PeerMessage::Reply { id, reply, leader: None }),
            ReplyTo::ScanPart { .. } => unreachable!("the node answers parts of scans itself"),
        }
    }

    /// Looks for room on the disk, threads that are stuck and answers that never came.
    fn inspect(&mut self) -> Result<(), String> {
        if let Some(is_low) = self.room.look() {
            self.shared.inbox.push(Event::DiskRoom { is_low });
        }
        self.shared.room.set(self.room.found());
        let now = self.shared.clock.instant();
        for (what, watch) in [("log", self.log.watch()), ("apply", self.store.watch())] {
            let busy = watch.busy(now);
            if busy > STUCK_AFTER {
                return Err(format!(
                    "the {what} thread has been stuck for {} s in one call to the disk: the process ends so that other nodes take over; look at the disk",
                    busy.as_secs()
                ));
            }
        }
        let mut tickets = self.shared.tickets.borrow_mut();
        let Some(moment) = now.as_nanos().checked_sub(OVERDUE_AFTER.as_nanos() as u64) else { return Ok(()) };
        for overdue in tickets.overdue(flotilla_types::Instant::from_nanos(moment)) {
            tracing::error!(ticket = overdue.ticket.0, "the node owed an answer: this is a bug");
            let outcome = if overdue.writes { Outcome::Unknown } else { Outcome::NotApplied };
            let detail = "no answer came in time".to_owned();
            tickets.answer(overdue.ticket, Reply::Failed(Failure { reason: FailureReason::Timeout, outcome, detail }));
        }
        Ok(())
    }
}

/// Puts what the node says into the traces, under its own name.
fn trace(notice: &Notice) {
    macro_rules! event {
        ($level:ident) => {
            tracing::event!(
                target: "flotilla_node",
                tracing::Level::$level,
                shard = notice.group.map(tracing::field::display),
                replica = notice.replica.map(tracing::field::display),
                peer = notice.peer.as_deref(),
                "{}",
                notice.line
            )
        };
    }
    match notice.level {
        NoticeLevel::Debug => event!(DEBUG),
        NoticeLevel::Info => event!(INFO),
        NoticeLevel::Warning => event!(WARN),
        NoticeLevel::Error => event!(ERROR),
    }
}
