//! What a machine does: it starts its process on what its disks hold, runs the loop's turns, and does
//! what the effects say, the log and the store each on a thread of its own. The counterpart of
//! `server`'s driver.

use crate::checkers::Violation;
use crate::coverage::Capability;
use crate::history::Moment;
use crate::host::{Process, Running};
use crate::network::{HostNumber, Pipe, Stream};
use crate::verdict;
use crate::world::{Happening, Waiting, World};
use bytes::{Bytes, BytesMut};
use flotilla_node::boot::{self, Identity};
use flotilla_node::check;
use flotilla_node::control::{ControlState, Formats, NodeProfile};
use flotilla_node::message::Channel;
use flotilla_node::node::REMOVED;
use flotilla_node::scan::ScanJob;
use flotilla_node::state_machine::ReplicaState;
use flotilla_node::{
    Event, JoinRequest, Node, PeerMessage, ReadJob, Reply, ReplyTo, Request, StartError, StoreEvent, StoreJob, StoreWorker, Ticket,
    run_read, run_scan,
};
use flotilla_storage::disk::SimulatedDisk;
use flotilla_storage::log::{LogBatch, LogRecord, RaftLog, Recovered};
use flotilla_storage::store::{StateStore, layout};
use flotilla_types::{ClusterId, EntryKind, GroupId, NodeId, PlantedFault, ReplicaKey};
use std::collections::BTreeMap;
use std::time::Duration;

/// Raft messages of one direction that may come again after a reconnect.
const REPEATS_MAX: usize = 8;
/// From so many machines on they are spread over ten zones, and expected to hold the same but for one copy.
pub(crate) const LARGE: usize = 30;

impl World {
    // ---- starting ----

    /// Starts a process on what the machine's disks hold.
    pub(crate) fn start(&mut self, number: HostNumber) {
        let host = &mut self.hosts[number];
        if host.process.is_some() {
            return;
        }
        host.life += 1;
        let is_first_start = !host.exists;
        host.exists = true;
        self.trace.note(self.now, "start", &[number as u64], || format!("n{}", number + 1));
        let (mut log, mut recovered) = match RaftLog::open(host.disk.clone(), self.scenario.log.clone()) {
            Ok(opened) => opened,
            Err(error) if host.damaged => return self.reset(number, &error.to_string()),
            Err(error) => return self.cannot_start(number, &error.to_string()),
        };
        if recovered.identity.is_none() {
            if !is_first_start && !host.replaces {
                return self.cannot_start(number, "the log holds no identity any more");
            }
            let id = host.kept_id.take().unwrap_or(NodeId(self.chance.machines.next_u64()));
            let identity = Identity::new(id, host.name.clone());
            let batch = if number == 0 && is_first_start {
                let cluster = ClusterId(u128::from(self.chance.machines.next_u64()));
                boot::genesis(identity, cluster, self.profile(number), self.scenario.shards, self.scenario.replicas).1
            } else {
                boot::new_identity(&identity)
            };
            (log, recovered) = match self.write_and_reopen(number, log, &batch) {
                Ok(opened) => opened,
                Err(error) => return self.cannot_start(number, &error),
            };
        } else if !is_first_start {
            self.coverage.capability(Capability::Recovery, self.now);
        }
        let identity = recovered.identity.clone().map(Identity::decode);
        match identity {
            Some(Ok(identity)) if identity.cluster.is_some() => self.run_node(number, log, recovered, identity),
            Some(Ok(identity)) => {
                self.hosts[number].process = Some(Process::Joining { identity, log: Box::new(log) });
                self.plan_join(number);
            }
            other => self.cannot_start(number, &format!("the identity cannot be read: {other:?}")),
        }
    }

    fn write_and_reopen(
        &mut self,
        number: HostNumber,
        mut log: RaftLog<SimulatedDisk>,
        batch: &LogBatch,
    ) -> Result<(RaftLog<SimulatedDisk>, Recovered), String> {
        log.append(batch).and_then(|()| log.sync()).map_err(|error| error.to_string())?;
        drop(log);
        RaftLog::open(self.hosts[number].disk.clone(), self.scenario.log.clone()).map_err(|error| error.to_string())
    }

    fn run_node(&mut self, number: HostNumber, log: RaftLog<SimulatedDisk>, mut recovered: Recovered, identity: Identity) {
        let host = &mut self.hosts[number];
        let now = host.clock.now(self.now);
        let id = identity.node;
        let (worker, states) = match StoreWorker::open(host.store.clone(), self.scenario.plant) {
            Ok(opened) => opened,
            Err(error) => return self.cannot_start(number, &error.to_string()),
        };
        worker.mark_damaged(&mut recovered);
        if !self.hosts[number].damaged {
            // A node heals from this, which must not hide that nobody damaged anything.
            let whole = recovered.replicas.iter().filter(|(_, replica)| !replica.is_lost);
            let states = whole.filter_map(|(key, replica)| Some((key, check::contradiction(replica, Some(states.get(key)?))?)));
            if let Some((key, why)) = states.into_iter().next() {
                return self.cannot_start(number, &format!("{key}: {why}"));
            }
        }
        let rng = self.chance.machines.fork();
        let node = match Node::start(self.scenario.node.clone(), identity, recovered, states, rng, now) {
            Ok(node) => node,
            Err(error @ StartError::Damaged(_)) if self.hosts[number].damaged => return self.reset(number, &error.to_string()),
            Err(error) => return self.cannot_start(number, &error.to_string()),
        };
        let running = Running {
            node,
            id,
            inbox: Vec::new(),
            turn_planned: true,
            timer_planned: Moment(0),
            log,
            log_queue: Default::default(),
            log_busy: None,
            worker,
            store_queue: Default::default(),
            store_busy: None,
            peers: Vec::new(),
            removed: Default::default(),
            elections_won: 0,
            scrubs_whole: 0,
        };
        self.hosts[number].process = Some(Process::Running(Box::new(running)));
        self.plan(Duration::from_micros(50), Happening::Turn(number, self.hosts[number].life));
    }

    fn cannot_start(&mut self, number: HostNumber, why: &str) {
        self.fail("recovery", format!("n{} does not start: {why}", number + 1));
    }

    /// Damage that was done to the machine's disk is named and refused: an operator gives it an empty
    /// data-dir.
    fn reset(&mut self, number: HostNumber, why: &str) {
        self.trace.note(self.now, "given up", &[number as u64], || format!("n{}: {why}", number + 1));
        self.empty_data_dir(number);
        self.plan(Duration::from_millis(500), Happening::Start(number, self.hosts[number].life));
    }

    // ---- joining ----

    fn profile(&self, number: HostNumber) -> NodeProfile {
        let host = &self.hosts[number];
        NodeProfile {
            name: host.name.clone(),
            http: Some(format!("{}:7070", host.name)),
            peer: format!("{}:7071", host.name),
            resp: None,
            zone: format!("z{}", number % if self.hosts.len() < LARGE { 3 } else { 10 }),
            weight: 1,
            formats: Formats { min: boot::FORMAT, max: boot::FORMAT },
        }
    }

    fn plan_join(&mut self, number: HostNumber) {
        let after = Duration::from_millis(self.chance.machines.between(20, 800));
        self.plan(after, Happening::AskJoin(number, self.hosts[number].life));
    }

    pub(crate) fn ask_join(&mut self, number: HostNumber) {
        let Some(Process::Joining { identity, .. }) = &self.hosts[number].process else { return };
        let id = identity.node;
        let members: Vec<HostNumber> =
            (0..self.hosts.len()).filter(|h| self.is_member(*h) && self.network.is_passable(*h, number)).collect();
        if let Some(member) = self.chance.machines.pick(&members).copied() {
            let profile = self.profile(number);
            let request = Request::Join(JoinRequest {
                id,
                name: profile.name,
                http: profile.http.unwrap_or_default(),
                peer: profile.peer,
                resp: None,
                zone: profile.zone,
                weight: profile.weight,
                formats: (profile.formats.min, profile.formats.max),
                replace: self.hosts[number].replaces,
            });
            let ticket = self.wait(Waiting::Joiner { host: number, life: self.hosts[number].life }, member);
            let expires = self.hosts[member].clock.now(self.now).instant + Duration::from_secs(2);
            self.give(member, Event::Request { ticket: Ticket(ticket), request, expires });
        }
        // Asked again until it is in; a repeated join gets the same answer.
        self.plan_join(number);
    }

    pub(crate) fn join_answered(&mut self, number: HostNumber, reply: &Reply) {
        let Reply::Joined { state } = reply else { return };
        let state = match ControlState::decode(state.clone()) {
            Ok(state) => state,
            Err(error) => return self.fail("joining", format!("the answer to a join cannot be read: {error}")),
        };
        match self.hosts[number].process.take() {
            Some(Process::Joining { identity, log }) => {
                self.coverage.capability(Capability::Join, self.now);
                self.hosts[number].replaces = false;
                self.trace.note(self.now, "joined", &[number as u64], || format!("n{} as {}", number + 1, identity.node));
                let (identity, batch) = boot::joined(identity, &state);
                match self.write_and_reopen(number, *log, &batch) {
                    Ok((log, recovered)) => self.run_node(number, log, recovered, identity),
                    Err(error) => self.cannot_start(number, &error),
                }
            }
            other => self.hosts[number].process = other,
        }
    }

    // ---- the loop ----

    pub(crate) fn timer(&mut self, number: HostNumber) {
        let now = self.now;
        let host = &mut self.hosts[number];
        let clock = host.clock;
        let Some(running) = host.running() else { return };
        if running.timer_planned > now {
            return;
        }
        running.timer_planned = Moment(0);
        if running.node.next_timer() > clock.now(now).instant {
            return self.plan_timer(number);
        }
        if !running.turn_planned {
            running.turn_planned = true;
            self.turn(number);
        }
    }

    fn plan_timer(&mut self, number: HostNumber) {
        let now = self.now;
        let host = &mut self.hosts[number];
        let (clock, life) = (host.clock, host.life);
        let Some(running) = host.running() else { return };
        if running.timer_planned > now {
            return;
        }
        let at = clock.when(running.node.next_timer()).max(Moment(now.0 + 1));
        running.timer_planned = at;
        self.queue.push(at, Happening::Timer(number, life));
    }

    /// One turn of a node's loop: all that waits is handled, then what follows from it is done.
    pub(crate) fn turn(&mut self, number: HostNumber) {
        let host = &mut self.hosts[number];
        let life = host.life;
        if host.paused_until > self.now {
            return self.queue.push(host.paused_until, Happening::Turn(number, life));
        }
        let now = host.clock.now(self.now);
        let Some(running) = host.running() else { return };
        running.turn_planned = false;
        let inbox = std::mem::take(&mut running.inbox);
        let count = inbox.len();
        for event in inbox {
            running.node.handle(event, now);
        }
        // Behind all that waits, as in the server's driver: after a pause, what came in meanwhile counts first.
        if running.node.next_timer() <= now.instant {
            running.node.handle(Event::Timer, now);
        }
        let effects = running.node.flush(now);
        let views: Vec<_> =
            running.node.inspect().filter(|view| view.leader == Some(view.replica)).map(|v| (v.group, v.term, v.replica)).collect();
        let stats = *running.node.stats();
        let was = std::mem::replace(&mut running.elections_won, stats.elections_won);
        let scrubs_were = std::mem::replace(&mut running.scrubs_whole, stats.scrubs_whole);
        self.trace.note(self.now, "turn", &[number as u64, count as u64], || format!("n{}: {count} events", number + 1));
        self.remark_groups(number);
        self.ambush_turn(number);
        for (group, term, replica) in views {
            if let Err(violation) = self.leaders.observe(group, term, replica) {
                self.note_violation(violation);
            }
        }
        for _ in was..stats.elections_won {
            self.coverage.capability(Capability::Election, self.now);
        }
        for _ in scrubs_were..stats.scrubs_whole {
            self.coverage.capability(Capability::Scrub, self.now);
        }
        let is_planted = self.scenario.plant.is_some_and(PlantedFault::is_to_be_healed);
        if !is_planted && stats.scrub_differing + stats.scrub_damage > 0 {
            self.fail("scrub", format!("n{} found that rows differ, or are damaged", number + 1));
        }
        if let Some(peers) = effects.peers {
            let numbered = peers.linked.into_iter().filter_map(|(node, address)| Some((node, self.host_at(&address)?))).collect();
            let gone = |other: &HostNumber| self.network.peer_of(number, *other).is_some_and(|node| peers.removed.contains(&node));
            let ending: Vec<HostNumber> = (0..self.hosts.len()).filter(gone).collect();
            if let Some(running) = self.hosts[number].running() {
                (running.peers, running.removed) = (numbered, peers.removed);
            }
            for other in ending {
                self.break_end(number, other, false);
            }
        }
        for notice in effects.notices {
            self.trace.note(self.now, "notice", &[number as u64], || format!("n{}: {notice:?}", number + 1));
        }
        self.send_all(number, effects.messages);
        for (ticket, reply) in effects.replies {
            let after = Duration::from_micros(self.chance.clients.between(20, 400));
            self.plan(after, Happening::Replied(ticket.0, Box::new(reply)));
        }
        for job in effects.reads {
            // At the door at once, or a moment later.
            let after = Duration::from_micros(if self.chance.machines.chance(1, 2) { 0 } else { self.chance.machines.below(1_000) });
            self.plan(after, Happening::Read(number, life, Box::new(job)));
        }
        for job in effects.scans {
            let after = Duration::from_micros(self.chance.machines.below(2_000));
            self.plan(after, Happening::Scan(number, life, Box::new(job)));
        }
        if let Some(running) = self.hosts[number].running() {
            running.log_queue.extend(effects.log);
            running.store_queue.extend(effects.store);
        }
        self.begin_log_job(number);
        self.begin_store_job(number);
        if let Some(reason) = effects.fatal {
            self.stopped(number, &reason);
        } else {
            self.plan_timer(number);
        }
    }

    /// Says in the trace what has changed about a node's groups, if anyone reads it.
    fn remark_groups(&mut self, number: HostNumber) {
        if !self.trace.has_lines() {
            return;
        }
        let Some(running) = self.hosts[number].running() else { return };
        let views: Vec<_> = running.node.inspect().collect();
        for view in views {
            let (voters, outgoing) =
                (view.membership.voters.keys().collect::<Vec<_>>(), view.membership.outgoing.keys().collect::<Vec<_>>());
            let learners = view.membership.learners.keys().collect::<Vec<_>>();
            let text = format!(
                "n{} {}/{} {:?} in {} of {:?}, voters {voters:?} out {outgoing:?} learners {learners:?}",
                number + 1,
                view.group,
                view.replica,
                view.role,
                view.term,
                view.leader
            );
            if self.shown.get(&(number, view.group)) != Some(&text) {
                self.trace.remark(self.now, &format!("group {text} (applied {}, commit {})", view.applied, view.commit));
                self.shown.insert((number, view.group), text);
            }
        }
    }

    /// A node ended itself.
    fn stopped(&mut self, number: HostNumber, reason: &str) {
        self.trace.note(self.now, "stopped", &[number as u64], || format!("n{}: {reason}", number + 1));
        if reason.starts_with(REMOVED) {
            // An operator wanted it so; its machine becomes another node.
            self.coverage.capability(Capability::Removal, self.now);
            self.kill(number, false);
            self.empty_data_dir(number);
            let after = Duration::from_millis(self.chance.machines.between(100, 3_000));
            return self.plan(after, Happening::Start(number, self.hosts[number].life));
        }
        self.fail("stop", format!("n{} stopped by itself: {reason}", number + 1));
    }

    fn host_at(&self, address: &str) -> Option<HostNumber> {
        let name = address.split(':').next()?;
        self.hosts.iter().position(|host| host.name == name)
    }

    fn send_all(&mut self, number: HostNumber, messages: Vec<(NodeId, PeerMessage)>) {
        let mut frames: BTreeMap<(HostNumber, Stream), BytesMut> = BTreeMap::new();
        let mut larges: Vec<(Pipe, Option<GroupId>, Bytes)> = Vec::new();
        for (node, message) in messages {
            self.ambush_message(&message);
            let Some(to) = (0..self.hosts.len()).find(|to| *to != number && self.network.peer_of(number, *to) == Some(node)) else {
                continue;
            };
            if let PeerMessage::Raft { group, .. } | PeerMessage::SnapshotChunk { group, .. } = &message
                && self.deaf == Some((*group, to))
            {
                continue;
            }
            let raft = if let PeerMessage::Raft { group, message } = &message { Some((*group, message)) } else { None };
            if let Some((group, raft)) = raft
                && self.loss.0 > self.now
                && self.chance.network.below(1_000) < self.loss.1
            {
                // Lost on the way, or never sent for want of room, which the links would tell.
                if raft.entry_count() > 0 && self.chance.network.chance(1, 2) {
                    self.give(number, Event::AppendUnsent { group, to: raft.to() });
                }
                continue;
            }
            let is_raft = raft.is_some();
            if let PeerMessage::Reply { reply, .. } = &message
                && !matches!(reply, Reply::Failed(_))
            {
                self.coverage.capability(Capability::Forward, self.now);
            }
            let ordered_by = message.ordered_by();
            let large = Pipe { from: number, to, stream: Stream::Large };
            let is_large = message.encoded_bytes_about() > self.scenario.whole_bytes_max
                || ordered_by.is_some_and(|group| {
                    self.network.holds(large, group) || larges.iter().any(|(pipe, of, _)| (*pipe, *of) == (large, ordered_by))
                });
            let mut apart = BytesMut::new();
            let frame = match message.channel() {
                Channel::Bulk => frames.entry((to, Stream::Bulk)).or_default(),
                Channel::Main if is_large => &mut apart,
                Channel::Main => frames.entry((to, Stream::Main)).or_default(),
            };
            let start = frame.len();
            message.encode(frame);
            if is_raft && self.chance.network.chance(1, 64) {
                let repeats = self.repeats.entry((number, to)).or_default();
                repeats.push_back(Bytes::copy_from_slice(&frame[start..]));
                if repeats.len() > REPEATS_MAX {
                    repeats.pop_front();
                }
            }
            if !apart.is_empty() {
                larges.push((large, ordered_by, apart.freeze()));
            }
        }
        for ((to, stream), frame) in frames {
            self.send(Pipe { from: number, to, stream }, None, frame.freeze());
        }
        for (pipe, group, frame) in larges {
            self.send(pipe, group, frame);
        }
    }

    // ---- the log thread ----

    /// Writes all that waits, at once; it is synced when the time is over.
    fn begin_log_job(&mut self, number: HostNumber) {
        let now = self.now;
        let host = &mut self.hosts[number];
        let (life, slow) = (host.life, host.slow_disk);
        let Some(running) = host.running() else { return };
        if running.log_busy.is_some() || running.log_queue.is_empty() {
            return;
        }
        let mut busy = (0, false);
        let mut failed = None;
        let mut seen = Vec::new();
        let mut written = Vec::new();
        while let Some(job) = running.log_queue.pop_front() {
            if self.ambush.is_some() {
                written.extend(job.batch.records.iter().cloned());
            }
            for record in &job.batch.records {
                match record {
                    LogRecord::Purge { .. } => seen.push(Capability::Purge),
                    LogRecord::Entries { entries, .. } if entries.iter().any(|e| e.kind == EntryKind::Membership) => {
                        seen.push(Capability::Membership)
                    }
                    _ => {}
                }
            }
            if let Err(error) = running.log.append(&job.batch) {
                failed = Some(error.to_string());
                break;
            }
            busy = (job.number, busy.1 | job.must_sync);
        }
        running.log_busy = Some(busy);
        seen.into_iter().for_each(|capability| self.coverage.capability(capability, now));
        written.iter().for_each(|record| self.ambush_record(record));
        if let Some(error) = failed {
            return self.stopped(number, &format!("the log cannot be written: {error}"));
        }
        let mut latency = if busy.1 { Self::draw(&mut self.chance.machines, self.scenario.disk) } else { Duration::from_micros(5) };
        if slow.0 > now {
            latency = (latency * slow.1 as u32).min(slow.0.since(now) + latency);
        }
        self.plan(latency, Happening::LogDone(number, life));
    }

    pub(crate) fn log_done(&mut self, number: HostNumber) {
        let host = &mut self.hosts[number];
        let life = host.life;
        if host.paused_until > self.now {
            return self.queue.push(host.paused_until, Happening::LogDone(number, life));
        }
        let Some(running) = host.running() else { return };
        let Some((job, must_sync)) = running.log_busy.take() else { return };
        let mut result = if must_sync { running.log.sync() } else { Ok(()) };
        if running.log_queue.is_empty() && result.is_ok() {
            result = running.log.seal();
        }
        if let Err(error) = result {
            return self.stopped(number, &format!("the log cannot be synced: {error}"));
        }
        self.give(number, Event::LogSynced { job });
        self.begin_log_job(number);
    }

    // ---- the apply thread ----

    fn begin_store_job(&mut self, number: HostNumber) {
        let now = self.now;
        let host = &mut self.hosts[number];
        let (life, slow) = (host.life, host.slow_store);
        let Some(running) = host.running() else { return };
        if running.store_busy.is_some() {
            return;
        }
        running.store_busy = running.store_queue.pop_front();
        if running.store_busy.is_none() {
            return;
        }
        let mut latency = Self::draw(&mut self.chance.machines, self.scenario.store);
        if slow.0 > now {
            latency = (latency * slow.1 as u32).min(slow.0.since(now) + latency);
        }
        self.plan(latency, Happening::StoreDone(number, life));
    }

    pub(crate) fn store_done(&mut self, number: HostNumber) {
        let host = &mut self.hosts[number];
        let life = host.life;
        if host.paused_until > self.now {
            return self.queue.push(host.paused_until, Happening::StoreDone(number, life));
        }
        let store = host.store.clone();
        let Some(running) = host.running() else { return };
        let applies = matches!(running.store_busy, Some(StoreJob::Apply(_)));
        for event in running.finish_store_job() {
            if let (true, StoreEvent::Applied(groups)) = (applies, &event) {
                let replicas: Vec<ReplicaKey> = groups.iter().map(|group| group.replica).collect();
                replicas.into_iter().for_each(|replica| self.observe_hash(&store, replica));
            }
            self.ambush_store(&event);
            if let StoreEvent::SnapshotInstalled { state: Some(_), .. } = &event {
                self.coverage.capability(Capability::Snapshot, self.now);
            }
            self.give(number, Event::Store(event));
        }
        self.begin_store_job(number);
    }

    /// Compares a replica's hash with what others had at its index.
    fn observe_hash(&mut self, store: &impl StateStore, replica: ReplicaKey) {
        match read_state(store, replica) {
            Ok(Some(state)) => {
                if self.trace.has_lines() {
                    let (applied, version, keys, hash) = (state.applied.0, state.version, state.keys, state.hash);
                    self.trace.remark(self.now, &format!("applied {replica} {applied}: version {version}, {keys} keys, hash {hash:016x}"));
                }
                if let Err(violation) = self.hashes.observe(replica.group, replica.replica, state.applied.0, state.hash) {
                    let rows = verdict::differing_rows(self, replica.group);
                    self.note_violation(Violation { detail: format!("{}{rows}", violation.detail), ..violation });
                }
            }
            Ok(None) => {}
            Err(error) => self.fail("stores", error),
        }
    }

    pub(crate) fn run_read(&mut self, number: HostNumber, job: Box<ReadJob>) {
        let host = &mut self.hosts[number];
        if host.paused_until > self.now {
            let (at, life) = (host.paused_until, host.life);
            return self.queue.push(at, Happening::Read(number, life, job));
        }
        let (reply, damage) = run_read(&host.store, &job);
        if let Some(damage) = damage {
            self.give(number, Event::Store(damage));
        }
        match job.to {
            ReplyTo::Local(ticket) => {
                let after = Duration::from_micros(self.chance.clients.between(20, 400));
                self.plan(after, Happening::Replied(ticket.0, Box::new(reply)));
            }
            ReplyTo::Peer { node, id } => self.send_all(number, vec![(node, PeerMessage::Reply { id, reply, leader: None })]),
            ReplyTo::ScanPart { .. } => unreachable!("the node answers parts of scans itself"),
        }
    }

    pub(crate) fn run_scan(&mut self, number: HostNumber, job: Box<ScanJob>) {
        let host = &mut self.hosts[number];
        if host.paused_until > self.now {
            let (at, life) = (host.paused_until, host.life);
            return self.queue.push(at, Happening::Scan(number, life, job));
        }
        let scanned = run_scan(&host.store, &job);
        self.give(number, Event::Scanned { part: job.part, scanned });
    }
}

/// A replica's state, as its row holds it.
///
/// # Errors
/// If the row cannot be read.
pub(crate) fn read_state(store: &impl StateStore, replica: ReplicaKey) -> Result<Option<ReplicaState>, String> {
    let key = layout::state_key(replica);
    let Some(row) = store.get(&key).map_err(|error| error.to_string())? else { return Ok(None) };
    let body = layout::verify_shared(&key, row).map_err(|error| error.to_string())?;
    ReplicaState::decode(body).map(Some).map_err(|error| error.to_string())
}
