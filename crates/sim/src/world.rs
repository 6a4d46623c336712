//! The world: machines, links, clients and time, in one queue of happenings.
//!
//! The world makes the nodes' events and does what their effects say, as `server` does on real
//! sockets and disks; how long each thing takes, and what goes wrong, follows from the seed.
//! [`crate::process`] is what a machine does, [`crate::injection`] what is done to it,
//! [`crate::verdict`] how a run ends.

use crate::ambush::Ambush;
use crate::checkers::Violation;
use crate::checkers::one_leader::Leaders;
use crate::checkers::replica_agreement::Hashes;
use crate::clock::Clock;
use crate::coverage::{Capability, Coverage, Fault};
use crate::history::{Answer, Call, Guard, History, KeyNumber, Moment, Operation};
use crate::host::{Host, Process};
use crate::injection::Ending;
use crate::network::{HostNumber, Network, Pipe, Stream};
use crate::queue::Queue;
use crate::scans::{self, AskedScan};
use crate::scenario::{Latency, Scenario};
use crate::trace::{Lines, Trace};
use crate::workload::Workload;
use bytes::Bytes;
use flotilla_node::scan::{ScanAsk, ScanJob};
use flotilla_node::{Event, PeerMessage, ReadJob, Reply, Ticket};
use flotilla_storage::disk::SimulatedDisk;
use flotilla_storage::store::SimulatedStore;
use flotilla_types::{GroupId, PlantedFault, Rng};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How often machines without a connection try to make one.
const CONNECT_EVERY: Duration = Duration::from_millis(100);

/// How much of a message the trace shows.
const MESSAGE_CHARS_MAX: usize = 400;

/// Something that happens.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A node's loop takes its inbox.
    Turn(HostNumber, u64),
    /// A node's timer is due.
    Timer(HostNumber, u64),
    /// A log thread has written and synced.
    LogDone(HostNumber, u64),
    /// An apply thread has done its job.
    StoreDone(HostNumber, u64),
    /// A read reaches the store.
    Read(HostNumber, u64, Box<ReadJob>),
    /// A scan reaches the store.
    Scan(HostNumber, u64, Box<ScanJob>),
    /// A frame may have arrived.
    Arrive(Pipe),
    /// One end of a connection may learn that it is gone.
    LinkDown { at: HostNumber, other: HostNumber, connection: u64, refused: bool },
    /// Machines try to connect.
    Connect,
    /// A process is started.
    Start(HostNumber, u64),
    /// A joining process asks a member.
    AskJoin(HostNumber, u64),
    /// A client asks.
    Ask(u32),
    /// A reply reaches whoever asked.
    Replied(u64, Box<Reply>),
    /// A client has had enough.
    GiveUp(u64),
    /// The next fault.
    Fault,
    /// A fault ends.
    End(Ending),
    /// Whoever is to die in an ambush dies.
    Strike,
}

/// Who waits for a ticket.
#[derive(Clone, Debug)]
pub(crate) enum Waiting {
    /// A client, for this operation.
    Client { operation: usize, client: u32 },
    /// A client, for a page of a scan.
    Scanner(Box<AskedScan>),
    /// A joining machine, in this life.
    Joiner { host: HostNumber, life: u64 },
    /// An operator, who does not mind.
    Operator,
}

/// What clients do now.
#[derive(Debug)]
pub(crate) enum Load {
    /// They ask at random.
    Random,
    /// They work this list off; what fails is asked again.
    List(VecDeque<(KeyNumber, bool)>),
    /// They ask nothing more; what failed stays so.
    #[cfg(test)]
    Nothing,
}

/// Random numbers, a generator for each purpose, so that one's draws do not shift another's.
pub(crate) struct Chance {
    pub(crate) network: Rng,
    pub(crate) machines: Rng,
    pub(crate) clients: Rng,
    pub(crate) faults: Rng,
}

/// The world of one seed.
pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) now: Moment,
    pub(crate) queue: Queue<Happening>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) network: Network,
    pub(crate) chance: Chance,
    pub(crate) workload: Workload,
    pub(crate) history: History,
    pub(crate) load: Load,
    /// Operations of the list that are under way.
    pub(crate) list_under_way: u32,
    pub(crate) tickets: BTreeMap<u64, (Waiting, HostNumber)>,
    pub(crate) next_ticket: u64,
    pub(crate) leaders: Leaders,
    pub(crate) hashes: Hashes,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Trace,
    pub(crate) violation: Option<Violation>,
    /// Faults come no more.
    pub(crate) healed: bool,
    /// Of 1,000 Raft messages, how many are dropped, and until when.
    pub(crate) loss: (Moment, u64),
    /// What links take longer, and until when.
    pub(crate) delay: (Moment, u64),
    /// Raft messages that may come again after a reconnect.
    pub(crate) repeats: BTreeMap<(HostNumber, HostNumber), VecDeque<Bytes>>,
    /// What was last remarked of a group on a machine.
    pub(crate) shown: BTreeMap<(HostNumber, GroupId), String>,
    /// A ticket that a test waits for, and the answer.
    pub(crate) watched: Option<(u64, Option<Reply>)>,
    /// A machine that nothing of this group reaches.
    pub(crate) deaf: Option<(GroupId, HostNumber)>,
    /// What an operator was last answered.
    pub(crate) told: Option<Reply>,
    /// When a disk was last lost.
    pub(crate) disk_lost: Option<Moment>,
    /// A move that is watched, and who dies in it.
    pub(crate) ambush: Option<Ambush>,
    /// When all was as it should be again behind that.
    pub(crate) at_rest_again: Option<Moment>,
}

impl World {
    /// The world of `seed`, at its beginning.
    pub fn new(seed: u64, scenario: Scenario, lines: Lines) -> World {
        let mut rng = Rng::new(seed);
        let chance = Chance { network: rng.fork(), machines: rng.fork(), clients: rng.fork(), faults: rng.fork() };
        let mut world = World {
            now: Moment(0),
            queue: Queue::default(),
            hosts: Vec::new(),
            network: Network::default(),
            chance,
            workload: Workload::new(scenario.workload.clone()),
            history: History::default(),
            load: Load::Random,
            list_under_way: 0,
            tickets: BTreeMap::new(),
            next_ticket: 1,
            leaders: Leaders::default(),
            hashes: Hashes::default(),
            coverage: Coverage::default(),
            trace: Trace::new(lines),
            violation: None,
            healed: false,
            loss: (Moment(0), 0),
            delay: (Moment(0), 0),
            repeats: BTreeMap::new(),
            shown: BTreeMap::new(),
            watched: None,
            deaf: None,
            told: None,
            disk_lost: None,
            ambush: None,
            at_rest_again: None,
            scenario,
        };
        if world.scenario.grows {
            world.coverage.fault(Fault::Growth, Moment(0) + world.scenario.safety * 2 / 3);
        }
        world.populate(&mut rng);
        world
    }

    fn populate(&mut self, rng: &mut Rng) {
        let scenario = self.scenario.clone();
        for number in 0..scenario.hosts {
            let drift = rng.between(0, 2 * scenario.drift_ppm_max) as i64 - scenario.drift_ppm_max as i64;
            let disk = SimulatedDisk::new();
            disk.ignore_sync(scenario.plant == Some(PlantedFault::AcknowledgeBeforeSync));
            self.hosts.push(Host {
                name: format!("n{}", number + 1),
                disk,
                store: SimulatedStore::new(),
                clock: Clock::new(rng.below(1 << 40), drift, rng.below(200) as i64 - 100),
                process: None,
                life: 0,
                paused_until: Moment(0),
                slow_disk: (Moment(0), 1),
                slow_store: (Moment(0), 1),
                exists: false,
                replaces: false,
                kept_id: None,
                damaged: false,
            });
            let span = if scenario.grows { scenario.safety.as_millis() as u64 * 2 / 3 } else { 500 };
            let at = if number == 0 { 0 } else { rng.between(50, span.max(51)) };
            self.plan(Duration::from_millis(at), Happening::Start(number, 0));
        }
        for client in 0..scenario.workload.clients {
            self.plan(Duration::from_millis(300 + rng.below(300)), Happening::Ask(client));
        }
        self.plan(CONNECT_EVERY, Happening::Connect);
        self.plan(Duration::from_millis(1_500), Happening::Fault);
    }

    pub(crate) fn plan(&mut self, after: Duration, what: Happening) {
        self.queue.push(self.now + after, what);
    }

    pub(crate) fn draw(rng: &mut Rng, latency: Latency) -> Duration {
        // Mostly near the lower end, as latencies are.
        let span = latency.max_us - latency.min_us;
        let us = latency.min_us + rng.below(span + 1).min(rng.below(span + 1)).min(rng.below(span + 1));
        Duration::from_nanos(us * 1_000 + rng.below(1_000))
    }

    pub(crate) fn fail(&mut self, property: &'static str, detail: impl Into<String>) {
        self.note_violation(Violation::new(property, detail));
    }

    pub(crate) fn note_violation(&mut self, violation: Violation) {
        self.trace.note(self.now, "violation", &[], || violation.to_string());
        self.violation.get_or_insert(violation);
    }

    /// Lets things happen until `until`, or until something is wrong.
    pub fn run_until(&mut self, until: Moment) {
        while self.violation.is_none() && self.now < until {
            let Some((at, happening)) = self.queue.pop() else { break };
            self.now = at;
            self.happen(happening);
            self.ambush_after();
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Turn(host, life) if self.lives(host, life) => self.turn(host),
            Happening::Timer(host, life) if self.lives(host, life) => self.timer(host),
            Happening::LogDone(host, life) if self.lives(host, life) => self.log_done(host),
            Happening::StoreDone(host, life) if self.lives(host, life) => self.store_done(host),
            Happening::Read(host, life, job) if self.lives(host, life) => self.run_read(host, job),
            Happening::Scan(host, life, job) if self.lives(host, life) => self.run_scan(host, job),
            Happening::AskJoin(host, life) if self.lives(host, life) => self.ask_join(host),
            Happening::Start(host, life) if self.lives(host, life) => self.start(host),
            Happening::Arrive(pipe) => self.arrive(pipe),
            Happening::LinkDown { at, other, connection, refused } => self.link_down(at, other, connection, refused),
            Happening::Connect => self.connect_all(),
            Happening::Ask(client) => self.ask(client),
            Happening::Replied(ticket, reply) => self.replied(ticket, &reply),
            Happening::GiveUp(ticket) => self.give_up(ticket),
            Happening::Fault => self.fault(),
            Happening::End(ending) => self.end_fault(ending),
            Happening::Strike => self.strike(),
            // Planned for a process that is no more.
            _ => {}
        }
    }

    fn lives(&self, host: HostNumber, life: u64) -> bool {
        self.hosts[host].life == life
    }

    /// Puts an event into a node's inbox and plans the turn that takes it.
    pub(crate) fn give(&mut self, host: HostNumber, event: Event) {
        let life = self.hosts[host].life;
        let Some(running) = self.hosts[host].running() else { return };
        running.inbox.push(event);
        if !running.turn_planned {
            running.turn_planned = true;
            let after = Duration::from_nanos(self.chance.machines.between(5_000, 60_000));
            self.plan(after, Happening::Turn(host, life));
        }
    }

    // ---- links ----

    /// Sends what one turn said to one machine: as one frame a stream, but each large message by itself, with the group
    /// that it must keep its order in.
    pub(crate) fn send(&mut self, pipe: Pipe, group: Option<GroupId>, frame: Bytes) {
        let extra = if self.delay.0 > self.now { self.chance.network.below(self.delay.1 * 1_000_000 + 1) } else { 0 };
        let mut latency = Self::draw(&mut self.chance.network, self.scenario.link) + Duration::from_nanos(extra);
        latency += match pipe.stream {
            Stream::Main => Duration::ZERO,
            Stream::Large => Duration::from_micros(self.chance.network.below(4 * self.scenario.link.max_us)),
            Stream::Bulk => Duration::from_nanos(frame.len() as u64 * 100),
        };
        self.trace.note(self.now, "send", &[pipe.from as u64, pipe.to as u64], || {
            format!("n{} to n{}: {} bytes", pipe.from + 1, pipe.to + 1, frame.len())
        });
        self.trace.bytes(&frame);
        let arrival = self.network.send(pipe, group, frame, self.now, latency);
        self.queue.push(arrival, Happening::Arrive(pipe));
    }

    fn arrive(&mut self, pipe: Pipe) {
        while let Some(frame) = self.network.receive(pipe, self.now) {
            let Some(from) = self.network.peer_of(pipe.to, pipe.from) else { return };
            let mut reader = flotilla_types::wire::Reader::new(frame);
            let mut messages = Vec::new();
            while reader.remaining() > 0 {
                match PeerMessage::decode(&mut reader) {
                    Ok(message) => messages.push(message),
                    Err(error) => return self.fail("messages", format!("a node sent what cannot be decoded: {error}")),
                }
            }
            if self.trace.has_lines() {
                for message in &messages {
                    let mut text = format!("{message:?}");
                    text.truncate(text.floor_char_boundary(MESSAGE_CHARS_MAX));
                    self.trace.remark(self.now, &format!("message n{} to n{}: {text}", pipe.from + 1, pipe.to + 1));
                }
            }
            self.give(pipe.to, Event::Messages { from, messages });
        }
    }

    fn link_down(&mut self, at: HostNumber, other: HostNumber, connection: u64, refused: bool) {
        if self.network.connection(at, other).is_none_or(|c| c.number != connection) {
            return;
        }
        // A cut that was mended in time broke nothing, if the other end kept the connection.
        if self.network.is_whole(at, other) && self.network.is_passable(at, other) {
            return;
        }
        self.break_end(at, other, refused);
    }

    /// One end gives its connection up, now; the other learns of it.
    pub(crate) fn break_end(&mut self, at: HostNumber, other: HostNumber, refused: bool) {
        let Some(connection) = self.network.connection(at, other).map(|c| c.number) else { return };
        let Some(peer) = self.network.give_up(at, other) else { return };
        self.trace.note(self.now, "link down", &[at as u64, other as u64], || format!("n{} to n{}", at + 1, other + 1));
        self.give(at, Event::LinkDown { peer, refused });
        if self.network.connection(at, other).is_some() {
            let passable = self.network.is_passable(at, other);
            let after = if passable { self.chance.network.between(1, 50) } else { self.chance.network.between(300, 4_000) };
            self.plan(Duration::from_millis(after), Happening::LinkDown { at: other, other: at, connection, refused: false });
        }
    }

    fn connect_all(&mut self) {
        for a in 0..self.hosts.len() {
            for b in a + 1..self.hosts.len() {
                self.connect(a, b);
            }
        }
        let after = CONNECT_EVERY + Duration::from_millis(self.chance.network.below(50));
        self.plan(after, Happening::Connect);
    }

    fn connect(&mut self, a: HostNumber, b: HostNumber) {
        let (Some(node_a), Some(node_b)) = (self.hosts[a].node_id(), self.hosts[b].node_id()) else { return };
        let asleep = self.hosts[a].paused_until > self.now || self.hosts[b].paused_until > self.now;
        if asleep || self.network.is_whole(a, b) || !self.network.is_passable(a, b) {
            return;
        }
        for (host, node, other) in [(a, node_b, b), (b, node_a, a)] {
            // Whoever was removed is told so when it dials.
            let by = self.hosts[host].node_id().expect("just seen");
            if self.hosts[host].running().is_some_and(|running| running.removed.contains(&node)) {
                return self.give(other, Event::Removed { by });
            }
        }
        let knows = |host: &mut Host, node, number| host.running().is_some_and(|r| r.peers.contains(&(node, number)));
        if !knows(&mut self.hosts[a], node_b, b) && !knows(&mut self.hosts[b], node_a, a) {
            return;
        }
        // A new connection ends what is left of an older one.
        self.break_end(a, b, false);
        self.break_end(b, a, false);
        self.network.connect((a, node_a), (b, node_b));
        self.trace.note(self.now, "link up", &[a as u64, b as u64], || format!("n{} and n{}", a + 1, b + 1));
        self.give(a, Event::LinkUp { peer: node_b });
        self.give(b, Event::LinkUp { peer: node_a });
        for (from, to) in [(a, b), (b, a)] {
            for frame in self.repeats.remove(&(from, to)).unwrap_or_default() {
                self.send(Pipe { from, to, stream: Stream::Main }, None, frame);
            }
        }
    }

    // ---- clients ----

    fn ask(&mut self, client: u32) {
        let rng = &mut self.chance.clients;
        let host = rng.below(self.hosts.len() as u64) as usize;
        if self.hosts[host].node_id().is_none() {
            // Refused at once: ask elsewhere a little later.
            let after = Duration::from_millis(rng.between(5, 60));
            return self.plan(after, Happening::Ask(client));
        }
        if matches!(self.load, Load::Random)
            && let Some(ask) = scans::choose(rng)
        {
            return self.ask_scan(client, host, ask);
        }
        let (key, call) = match &mut self.load {
            #[cfg(test)]
            Load::Nothing => return,
            Load::Random => self.workload.choose(rng),
            Load::List(list) => match list.pop_front() {
                Some((key, true)) => (key, self.workload.put(Guard::Always, rng)),
                Some((key, false)) => (key, Call::Get),
                None => return,
            },
        };
        self.list_under_way += 1;
        let (shortest, longest) = self.scenario.workload.timeout_ms;
        let timeout = Duration::from_millis(rng.between(shortest, longest));
        let operation = self.history.invoke(client, key, call, self.now);
        let request = self.workload.request(key, call);
        self.trace.note(self.now, "ask", &[operation as u64, host as u64], || {
            format!("client {client} asks n{}: key {} {call:?}", host + 1, key.0)
        });
        let ticket = self.wait(Waiting::Client { operation, client }, host);
        let expires = self.hosts[host].clock.now(self.now).instant + timeout;
        self.give(host, Event::Request { ticket: Ticket(ticket), request, expires });
        self.plan(timeout + Duration::from_secs(1), Happening::GiveUp(ticket));
    }

    fn ask_scan(&mut self, client: u32, host: HostNumber, ask: ScanAsk) {
        self.list_under_way += 1;
        let (shortest, longest) = self.scenario.workload.timeout_ms;
        let timeout = Duration::from_millis(self.chance.clients.between(shortest, longest));
        self.trace.note(self.now, "scan", &[host as u64], || format!("client {client} asks n{}: {ask:?}", host + 1));
        let asked = AskedScan { client, ask, invoked: self.now };
        let request = asked.request();
        let ticket = self.wait(Waiting::Scanner(Box::new(asked)), host);
        let expires = self.hosts[host].clock.now(self.now).instant + timeout;
        self.give(host, Event::Request { ticket: Ticket(ticket), request, expires });
        self.plan(timeout + Duration::from_secs(1), Happening::GiveUp(ticket));
    }

    /// A client has its page, or no more patience.
    fn scanned(&mut self, asked: &AskedScan, reply: Option<&Reply>) {
        match reply {
            Some(Reply::Page(page)) => match asked.reads(page, &self.workload, self.now) {
                Ok(reads) => {
                    self.trace.note(self.now, "page", &[reads.len() as u64], || format!("client {}: {page:?}", asked.client));
                    self.coverage.capability(Capability::Scan, self.now);
                    self.history.observe(reads);
                }
                Err(detail) => self.fail("answers", detail),
            },
            Some(Reply::Failed(_)) | None => {}
            Some(other) => self.fail("answers", format!("a scan was answered with {other:?}")),
        }
        self.list_under_way -= 1;
        let think_ms = self.chance.clients.between(1, self.scenario.workload.think_ms_max);
        self.plan(Duration::from_millis(think_ms), Happening::Ask(asked.client));
    }

    pub(crate) fn wait(&mut self, waiting: Waiting, host: HostNumber) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.tickets.insert(ticket, (waiting, host));
        ticket
    }

    fn replied(&mut self, ticket: u64, reply: &Reply) {
        if let Some((_, answer)) = self.watched.as_mut().filter(|(watched, _)| *watched == ticket) {
            *answer = Some(reply.clone());
        }
        let Some((waiting, _)) = self.tickets.remove(&ticket) else { return };
        match waiting {
            Waiting::Client { operation, client } => {
                let asked = self.history.operations()[operation];
                match self.workload.answer(asked.key, asked.call, reply) {
                    Ok(answer) => self.answered(operation, client, answer),
                    Err(detail) => self.fail("answers", detail),
                }
            }
            Waiting::Scanner(asked) => self.scanned(&asked, Some(reply)),
            Waiting::Joiner { host, life } if self.lives(host, life) => self.join_answered(host, reply),
            Waiting::Joiner { .. } => {}
            Waiting::Operator if matches!(reply, Reply::Admin(_) | Reply::Failed(_)) => self.told = Some(reply.clone()),
            Waiting::Operator => self.fail("answers", format!("an operator was answered with {reply:?}")),
        }
    }

    fn give_up(&mut self, ticket: u64) {
        match self.tickets.remove(&ticket) {
            Some((Waiting::Client { operation, client }, _)) => self.answered(operation, client, Answer::Unknown),
            Some((Waiting::Scanner(asked), _)) => self.scanned(&asked, None),
            Some((Waiting::Joiner { .. } | Waiting::Operator, _)) | None => {}
        }
    }

    fn answered(&mut self, operation: usize, client: u32, answer: Answer) {
        let Operation { key, call, .. } = self.history.operations()[operation];
        self.history.answer(operation, answer, self.now);
        self.trace.note(self.now, "answer", &[operation as u64], || self.history.operations()[operation].to_string());
        let capability = match answer {
            Answer::Value { .. } | Answer::Absent => Some(Capability::Get),
            Answer::Put { .. } | Answer::Incremented { .. } => Some(Capability::Put),
            Answer::Deleted { .. } => Some(Capability::Delete),
            Answer::GuardFailed { .. } => Some(Capability::Guard),
            Answer::NotApplied | Answer::Unknown => None,
        };
        if let Some(capability) = capability {
            self.coverage.capability(capability, self.now);
        }
        self.list_under_way -= 1;
        let mut think_ms = self.chance.clients.between(1, self.scenario.workload.think_ms_max);
        if let Load::List(list) = &mut self.load {
            if capability.is_none() && Workload::is_lasting(key) {
                list.push_back((key, call != Call::Get));
            }
            think_ms = 1;
        }
        self.plan(Duration::from_millis(think_ms), Happening::Ask(client));
    }

    /// The connections of clients and joiners with a machine are gone.
    pub(crate) fn hang_up(&mut self, host: HostNumber) {
        let here: Vec<u64> = self.tickets.iter().filter(|(_, (_, at))| *at == host).map(|(ticket, _)| *ticket).collect();
        for ticket in here {
            self.give_up(ticket);
        }
    }

    /// Whether a process on the machine runs as a member.
    pub(crate) fn is_member(&self, host: HostNumber) -> bool {
        matches!(self.hosts[host].process, Some(Process::Running(_)))
    }
}
