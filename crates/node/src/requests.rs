//! Clients' requests: admission, routing to the shard's leader, forwarding, and time running out
//! (decision 10).
//!
//! Every request under way is in exactly one place: parked (no leader known), pending or proposed at
//! a leader here, waiting to be read here, or forwarded. It is answered once. A write is sent again
//! only when the asked node has said that it did not propose it.

use crate::admin::{AdminAction, AdminRequest};
use crate::effect::ReplyTo;
use crate::event::{Now, Ticket};
use crate::message::{Forward, PeerMessage};
use crate::node::{Node, NodeConfig};
use crate::recovery::RecoverRequest;
use crate::replica::{Load, ReadOf, Waiter, WaitingRead};
use crate::request::{Failure, FailureReason, Reply, Request};
use flotilla_types::{GroupId, Instant, Key, NodeId, Outcome, PlantedFault, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

/// How long a request rests after the node it was sent to knew no leader either.
const NO_LEADER_PAUSE: Duration = Duration::from_millis(40);
/// What writes are refused with where there is no room for them.
const DISK_FULL: &str = "the disk of the shard's leader is full: free some space there, or delete keys";
/// Bytes of pending writes of one group that a turn may gather before it refuses more.
const PENDING_BYTES_MAX: usize = 64 << 20;

/// The requests that came through this node's doors.
#[derive(Debug)]
pub(crate) struct Requests {
    under_way: BTreeMap<Ticket, usize>,
    bytes: usize,
    requests_max: usize,
    bytes_max: usize,
    /// Waiting for a leader to be known.
    parked: BTreeMap<GroupId, Vec<Parked>>,
    forwarded: BTreeMap<u64, Forwarded>,
    next_forward: u64,
    /// Who leads the groups that have no replica here, as far as somebody told.
    hints: BTreeMap<GroupId, NodeId>,
}

#[derive(Debug)]
struct Parked {
    ticket: Ticket,
    request: Request,
    expires: Instant,
    /// Not routed again before this, unless the leader is seen to change.
    not_before: Instant,
}

#[derive(Debug)]
struct Forwarded {
    ticket: Ticket,
    node: NodeId,
    group: GroupId,
    request: Request,
    expires: Instant,
}

impl Requests {
    pub(crate) fn new(config: &NodeConfig, first_forward: u64) -> Requests {
        Requests {
            under_way: BTreeMap::new(),
            bytes: 0,
            requests_max: config.requests_max,
            bytes_max: config.request_bytes_max,
            parked: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            next_forward: first_forward,
            hints: BTreeMap::new(),
        }
    }

    pub(crate) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    pub(crate) fn bytes_under_way(&self) -> usize {
        self.bytes
    }

    fn admit(&mut self, ticket: Ticket, request: &Request) -> bool {
        let bytes = request.bytes();
        let leaves_no_room = request.is_large() && self.bytes > self.bytes_max / 2;
        if self.under_way.len() >= self.requests_max || self.bytes + bytes > self.bytes_max || leaves_no_room {
            return false;
        }
        self.bytes += bytes;
        assert!(self.under_way.insert(ticket, bytes).is_none(), "a ticket names one request");
        true
    }

    /// The request was answered, or its answer is on its way.
    pub(crate) fn done(&mut self, ticket: Ticket) {
        if let Some(bytes) = self.under_way.remove(&ticket) {
            self.bytes -= bytes;
        }
    }
}

impl Node {
    pub(crate) fn handle_request(&mut self, ticket: Ticket, request: Request, expires: Instant, now: Now) {
        self.stats.requests += 1;
        if self.shutting_down {
            return self.out.replies.push((ticket, failed(FailureReason::ShuttingDown, "this node is shutting down: ask another")));
        }
        if !self.requests.admit(ticket, &request) {
            self.stats.refused += 1;
            let detail = format!("{} requests are under way at this node: try again shortly", self.requests.under_way.len());
            return self.out.replies.push((ticket, failed(FailureReason::Overloaded, detail)));
        }
        if let Request::Join(join) = &request {
            // Heard before it can be agreed on: nobody may know where the others are.
            self.note_address(join.id, join.peer.clone());
        }
        match request {
            Request::Scan(ask) => self.handle_scan(ticket, ask, expires, now),
            Request::Admin(AdminRequest { action: AdminAction::Recover { plan }, dry_run }) => {
                self.handle_recover(ticket, RecoverRequest { dry_run, plan }, expires, now);
            }
            request => self.route(ticket, request, expires, now),
        }
    }

    /// Brings a request to its shard's leader, here or elsewhere, or parks it until one is known.
    fn route(&mut self, ticket: Ticket, request: Request, expires: Instant, now: Now) {
        let group = request.key().map_or(GroupId::CONTROL, |key| self.group_of(key));
        if let Request::GetStale { key } = &request {
            if self.may_serve_stale(group) {
                return self.read_stale(group, ReplyTo::Local(ticket), key.clone(), now);
            }
            if let Some(node) = self.leader_of(group).filter(|node| self.link_is_up(*node)).or_else(|| self.next_to_ask(group, NodeId(0))) {
                return self.forward(ticket, node, group, request, expires, now);
            }
        }
        if self.replicas.get(&group).is_some_and(|replica| replica.is_leader() && !replica.group.is_transferring()) {
            return self.accept(group, Waiter { to: ReplyTo::Local(ticket), expires }, request, now);
        }
        match self.leader_of(group).filter(|node| self.link_is_up(*node)) {
            Some(node) => self.forward(ticket, node, group, request, expires, now),
            None => self.requests.parked.entry(group).or_default().push(Parked { ticket, request, expires, not_before: Instant::ZERO }),
        }
    }

    /// Who leads a group, as far as this node knows; another node than this one.
    pub(crate) fn leader_of(&self, group: GroupId) -> Option<NodeId> {
        let not_me = |node: &NodeId| *node != self.identity.node;
        if let Some(replica) = self.replicas.get(&group).filter(|replica| replica.is_initialized()) {
            return replica.leader_node().filter(not_me);
        }
        let hint = self.requests.hints.get(&group).copied();
        hint.or_else(|| {
            let record = self.control.groups.get(&group)?;
            let voters = || record.voters.iter().map(|member| member.node);
            record.preferred_leader.into_iter().chain(voters()).find(|node| not_me(node) && self.link_is_up(*node))
        })
    }

    /// Another node that may know the leader, each in its turn: who was asked may be cut off from it.
    fn next_to_ask(&self, group: GroupId, asked: NodeId) -> Option<NodeId> {
        let members = self.control.groups.get(&group)?.all().map(|member| member.node);
        let others: BTreeSet<NodeId> = members.filter(|node| *node != self.identity.node && self.link_is_up(*node)).collect();
        let behind = others.range((Bound::Excluded(asked), Bound::Unbounded)).next();
        behind.or_else(|| others.first()).copied()
    }

    fn forward(&mut self, ticket: Ticket, node: NodeId, group: GroupId, request: Request, expires: Instant, now: Now) {
        self.stats.forwarded += 1;
        let id = self.requests.next_forward;
        self.requests.next_forward += 1;
        let term = self.replicas.get(&group).filter(|replica| replica.is_initialized()).map(|replica| replica.group.term());
        let left = expires.saturating_since(now.instant);
        let forward = Forward { id, expires_in_ms: left.as_millis() as u32, group, term, request: request.clone() };
        self.requests.forwarded.insert(id, Forwarded { ticket, node, group, request, expires });
        self.send(node, PeerMessage::Forward(forward));
    }

    /// What a put of the key would be refused with at this moment, if this node leads its shard and has no room on its disk.
    pub fn refusal_of_put(&self, key: &Key) -> Option<Failure> {
        let leads = self.replicas.get(&self.group_of(key)).is_some_and(|replica| replica.is_leader());
        let is_full = self.log_is_full || self.disk_is_low;
        (leads && is_full).then(|| Failure::not_applied(FailureReason::DiskFull, DISK_FULL))
    }

    /// Takes a request in at the leader it is meant for.
    fn accept(&mut self, group: GroupId, waiter: Waiter, request: Request, now: Now) {
        let share = if request.is_large() { 2 } else { 1 };
        let writes_refused = self.unapplied_bytes > self.config.unapplied_bytes_max / share;
        let needs_time = request.needs_time();
        let time_is_known = !needs_time || self.clock(now) > Timestamp(0);
        if group != GroupId::CONTROL {
            self.note_served(now.instant);
        }
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        replica.load.add(if request.is_write() { Load::WRITE } else { 1 });
        match request {
            Request::Get { key } => {
                replica.reads_new.push(WaitingRead { waiter, of: ReadOf::Key(key) });
                self.reading.waiting.insert(group);
            }
            // Any replica serves it, unless it is not whole: then another is asked.
            Request::GetStale { .. } => {
                self.refuse(waiter.to, FailureReason::NoQuorum, "the shard's replica here is being replaced: ask another node")
            }
            Request::Put { .. } | Request::Delete { .. } | Request::Increment { .. } | Request::Idempotent { .. } => {
                if replica.diverged {
                    let detail =
                        "this shard's copies differ or are damaged, and no majority agrees: writes are refused until an operator decides";
                    return self.refuse(waiter.to, FailureReason::Damaged, detail);
                }
                if needs_time && !time_is_known {
                    let detail = "this node has just started and not heard the clocks of a majority: try again shortly";
                    return self.refuse(waiter.to, FailureReason::NoQuorum, detail);
                }
                if self.log_is_full || (self.disk_is_low && request.needs_room()) {
                    self.stats.refused += 1;
                    return self.refuse(waiter.to, FailureReason::DiskFull, DISK_FULL);
                }
                if writes_refused || replica.pending_bytes > PENDING_BYTES_MAX / share {
                    self.stats.refused += 1;
                    return self.refuse(
                        waiter.to,
                        FailureReason::Overloaded,
                        "the store is behind with applying writes: try again shortly",
                    );
                }
                replica.pending_bytes += request.bytes();
                replica.pending.push((waiter, request));
                self.dirty.insert(group);
            }
            Request::Join(join) => self.accept_join(waiter, join, now),
            Request::ClusterStatus => {
                let json = self.cluster_status(now).to_json();
                self.answer(waiter.to, Reply::Status(json));
            }
            Request::Admin(request) => self.accept_admin(waiter, request, now),
            Request::Scan(_) => self.refuse(waiter.to, FailureReason::Overloaded, "a scan is asked for in parts, not forwarded whole"),
        }
    }

    pub(crate) fn handle_forward(&mut self, from: NodeId, forward: Forward, now: Now) {
        let Forward { id, expires_in_ms, group, term, request } = forward;
        let to = ReplyTo::Peer { node: from, id };
        if let Request::GetStale { key } = &request
            && self.may_serve_stale(group)
        {
            self.stats.served_for_peers += 1;
            return self.read_stale(group, to, key.clone(), now);
        }
        let Some(replica) =
            self.replicas.get(&group).filter(|replica| replica.is_leader() && !replica.group.is_transferring() && !self.shutting_down)
        else {
            return self.refuse_as_not_leader(from, id, group);
        };
        self.stats.served_for_peers += 1;
        let expires = now.instant + Duration::from_millis(u64::from(expires_in_ms));
        let waiter = Waiter { to, expires };
        if let (Request::Get { key }, Some(term)) = (&request, term)
            && replica.group.term() == term
            && replica.group.membership().is_quorum(|_, node| node == from || node == self.identity.node)
            && self.may_serve_reads(group)
        {
            // The forwarding node's voter shares our term, and said so after the request began: with
            // it and us a quorum has confirmed this leader, and no round is needed.
            let read = WaitingRead { waiter, of: ReadOf::Key(key.clone()) };
            let commit = replica.group.commit();
            return self.read_at(group, commit, read);
        }
        self.accept(group, waiter, request, now);
    }

    fn refuse_as_not_leader(&mut self, from: NodeId, id: u64, group: GroupId) {
        let leader = self.leader_of(group);
        let reply = Reply::Failed(Failure::not_applied(FailureReason::NotLeader, "another node leads the shard"));
        self.send(from, PeerMessage::Reply { id, reply, leader });
    }

    pub(crate) fn handle_reply(&mut self, from: NodeId, id: u64, reply: Reply, leader: Option<NodeId>, now: Now) {
        if self.requests.forwarded.get(&id).is_none_or(|forwarded| forwarded.node != from) {
            return; // Answered already: its time ran out, or the link broke.
        }
        let Some(Forwarded { ticket, group, request, expires, .. }) = self.requests.forwarded.remove(&id) else { return };
        match reply {
            Reply::Failed(Failure { reason: FailureReason::NotLeader, .. }) => {
                let not_before = self.note_not_leader(group, from, leader, now);
                self.requests.parked.entry(group).or_default().push(Parked { ticket, request, expires, not_before });
            }
            Reply::Failed(failure) if failure.reason == FailureReason::ShuttingDown && failure.outcome == Outcome::NotApplied => {
                self.requests.parked.entry(group).or_default().push(Parked { ticket, request, expires, not_before: Instant::ZERO });
            }
            reply => {
                if !self.replicas.contains_key(&group) {
                    self.requests.hints.insert(group, from);
                }
                let _ = now;
                self.answer_local(ticket, reply);
            }
        }
    }

    /// Remembers what `from`, which does not lead the group, said of who does; gives when to ask again.
    pub(crate) fn note_not_leader(&mut self, group: GroupId, from: NodeId, leader: Option<NodeId>, now: Now) -> Instant {
        let told = leader.filter(|node| *node != from && self.link_is_up(*node));
        match told.or_else(|| self.next_to_ask(group, from)) {
            Some(node) => self.requests.hints.insert(group, node),
            None => self.requests.hints.remove(&group),
        };
        // Not at once: whoever we took for the leader, and the hint, may be behind.
        if leader.is_some() { Instant::ZERO } else { now.instant + NO_LEADER_PAUSE }
    }

    /// A link broke: what was forwarded over it may or may not have arrived.
    pub(crate) fn fail_forwards_to(&mut self, node: NodeId) {
        let lost: Vec<u64> = self.requests.forwarded.iter().filter(|(_, f)| f.node == node).map(|(id, _)| *id).collect();
        for id in lost {
            let Some(Forwarded { ticket, group, request, expires, .. }) = self.requests.forwarded.remove(&id) else { continue };
            if request.is_write() && self.config.fault != Some(PlantedFault::ForwardedWriteSentAgain) {
                let detail = format!("the connection to the shard's leader, {}, was lost before it answered", self.name_of(node));
                self.answer_local(ticket, Reply::Failed(Failure::unknown(FailureReason::Timeout, detail)));
            } else {
                self.requests.parked.entry(group).or_default().push(Parked { ticket, request, expires, not_before: Instant::ZERO });
            }
        }
        self.requests.hints.retain(|_, hint| *hint != node);
        self.lose_scan_parts_of(node);
    }

    /// Routes what is parked once more, if its leader is known by now.
    pub(crate) fn retry_parked(&mut self, now: Now) {
        for (group, parked) in std::mem::take(&mut self.requests.parked) {
            let leads_here = self.replicas.get(&group).is_some_and(|replica| replica.is_leader());
            let known = leads_here || self.leader_of(group).is_some_and(|node| self.link_is_up(node));
            for waiting in parked {
                if known && waiting.not_before <= now.instant {
                    self.route(waiting.ticket, waiting.request, waiting.expires, now);
                } else {
                    self.requests.parked.entry(group).or_default().push(waiting);
                }
            }
        }
    }

    pub(crate) fn retry_parked_of(&mut self, group: GroupId, now: Now) {
        for Parked { ticket, request, expires, .. } in self.requests.parked.remove(&group).unwrap_or_default() {
            self.route(ticket, request, expires, now);
        }
    }

    /// Sends what a replica that no longer leads had taken in but not proposed to where it belongs.
    pub(crate) fn reroute(&mut self, group: GroupId, unproposed: Vec<(Waiter, Request)>) {
        for (waiter, request) in unproposed {
            match waiter.to {
                // Parked, not routed at once: who leads now is known by the end of the turn.
                ReplyTo::Local(ticket) => {
                    self.requests.parked.entry(group).or_default().push(Parked {
                        ticket,
                        request,
                        expires: waiter.expires,
                        not_before: Instant::ZERO,
                    });
                }
                ReplyTo::Peer { node, id } => self.refuse_as_not_leader(node, id, group),
                ReplyTo::ScanPart { part, group } => self.scan_shard_is_refused(part, group),
            }
        }
    }

    /// The same for reads that wait.
    pub(crate) fn reroute_waiting(&mut self, group: GroupId, reads: Vec<WaitingRead>) {
        for WaitingRead { waiter, of } in reads {
            match (of, waiter.to) {
                (ReadOf::Key(key), _) => self.reroute(group, vec![(waiter, Request::Get { key })]),
                (ReadOf::Scan, to) => self.refuse(to, FailureReason::NotLeader, "another node leads the shard"),
            }
        }
    }

    /// Answers whoever has waited long enough.
    pub(crate) fn expire(&mut self, now: Now) {
        let over = |expires: Instant| expires <= now.instant;
        let mut answers: Vec<(ReplyTo, Reply)> = Vec::new();
        for (group, parked) in &mut self.requests.parked {
            parked.retain(|waiting| {
                if over(waiting.expires) {
                    let detail =
                        format!("no leader of {group} could be reached in time: a majority of its replicas may be down or cut off");
                    answers.push((ReplyTo::Local(waiting.ticket), failed(FailureReason::NoQuorum, detail)));
                }
                !over(waiting.expires)
            });
        }
        self.requests.parked.retain(|_, parked| !parked.is_empty());
        self.requests.forwarded.retain(|_, forwarded| {
            if over(forwarded.expires) {
                let detail = "the shard's leader did not answer in time";
                let failure = if forwarded.request.may_change_something() {
                    Failure::unknown(FailureReason::Timeout, detail)
                } else {
                    Failure::not_applied(FailureReason::Timeout, detail)
                };
                answers.push((ReplyTo::Local(forwarded.ticket), Reply::Failed(failure)));
            }
            !over(forwarded.expires)
        });
        for (group, replica) in &mut self.replicas {
            let no_quorum = |to| {
                (
                    to,
                    failed(FailureReason::NoQuorum, format!("no majority of {group}'s replicas confirmed in time that this node leads it")),
                )
            };
            replica.reads_new.retain(|read| {
                if over(read.waiter.expires) {
                    answers.push(no_quorum(read.waiter.to));
                }
                !over(read.waiter.expires)
            });
            replica.reads_at.retain(|(_, read)| {
                if over(read.waiter.expires) {
                    answers.push((read.waiter.to, failed(FailureReason::Overloaded, "the store is behind with applying writes")));
                }
                !over(read.waiter.expires)
            });
            replica.pending.retain(|(waiter, request)| {
                if over(waiter.expires) {
                    replica.pending_bytes -= request.bytes();
                    answers.push(no_quorum(waiter.to));
                }
                !over(waiter.expires)
            });
            for waiter in replica.proposed.iter_mut().flat_map(|proposed| &mut proposed.waiters) {
                if let Some(late) = waiter.take_if(|waiter| over(waiter.expires)) {
                    let detail = "the write was proposed, and no majority of the shard's replicas confirmed it in time";
                    answers.push((late.to, Reply::Failed(Failure::unknown(FailureReason::Timeout, detail))));
                }
            }
        }
        self.reading.expire(now.instant, &mut |to| {
            answers.push((
                to,
                failed(FailureReason::NoQuorum, "no majority of the shard's replicas confirmed in time that this node leads it"),
            ));
        });
        for (to, reply) in answers {
            self.answer(to, reply);
        }
    }
}

/// A failure of what certainly did not happen.
fn failed(reason: FailureReason, detail: impl Into<String>) -> Reply {
    Reply::Failed(Failure::not_applied(reason, detail))
}
