//! The asking side of a scan: which node is asked for which shards, until all have answered.
//!
//! A scan's shards are each in exactly one place: not asked for yet (their leader is not known, or the
//! node that was asked does not lead them), in a part that is under way, or answered.

use super::{PageFill, SCANS_MAX, ScanAsk, ScanChunk, ScanPart, merge};
use crate::event::{Now, Ticket};
use crate::message::{PeerMessage, ScanForward};
use crate::node::Node;
use crate::request::{Failure, FailureReason, Reply};
use flotilla_types::{GroupId, Instant, NodeId, ShardId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A node's share of a page is larger than what it is expected to hold by one part in this many, so
/// that chance does not end the page far too early.
const SHARE_SLACK: u64 = 8;
/// No share is smaller.
const SHARE_ITEMS_MIN: u64 = 16;
/// No share is smaller.
const SHARE_BYTES_MIN: u64 = 16 << 10;

/// Scans of this node's clients, and parts of scans that are served here.
#[derive(Debug)]
pub(crate) struct Scans {
    running: BTreeMap<Ticket, Scan>,
    /// Those that wait for a place, in the order in which they came.
    queue: VecDeque<(Ticket, ScanAsk, Instant)>,
    /// Parts under way: whom they were asked of.
    asked: BTreeMap<u64, Asked>,
    next_number: u64,
    pub(super) serving: BTreeMap<u64, super::part::Serving>,
    pub(super) next_part: u64,
    /// Parts of which a shard became ready or was refused in this turn.
    pub(super) changed: BTreeSet<u64>,
}

#[derive(Debug)]
struct Scan {
    ask: ScanAsk,
    expires: Instant,
    /// How many shards it is about.
    group_count: usize,
    /// Shards that are to be asked for, and not before when.
    open: BTreeMap<GroupId, Instant>,
    /// Parts under way.
    parts: usize,
    chunks: Vec<ScanChunk>,
}

#[derive(Debug)]
struct Asked {
    ticket: Ticket,
    node: NodeId,
    /// In order.
    groups: Vec<GroupId>,
}

impl Scans {
    pub(crate) fn starting_at(first_number: u64) -> Scans {
        Scans {
            running: BTreeMap::new(),
            queue: VecDeque::new(),
            asked: BTreeMap::new(),
            next_number: first_number,
            serving: BTreeMap::new(),
            next_part: 0,
            changed: BTreeSet::new(),
        }
    }

    /// Bytes of what was read for scans that wait for more.
    pub(crate) fn bytes(&self) -> usize {
        let chunks = self.running.values().flat_map(|scan| &scan.chunks);
        chunks.flat_map(|chunk| &chunk.items).map(super::ScanItem::bytes).sum()
    }
}

impl Node {
    /// Takes a scan in; it waits for its turn if too many are under way.
    pub(crate) fn handle_scan(&mut self, ticket: Ticket, ask: ScanAsk, expires: Instant, now: Now) {
        self.stats.scans += 1;
        if ask.range.is_empty() {
            self.answer_local(ticket, Reply::Page(merge(Vec::new(), &ask)));
        } else if self.scans.running.len() < SCANS_MAX {
            self.start_scan(ticket, ask, expires, now);
        } else {
            self.scans.queue.push_back((ticket, ask, expires));
        }
    }

    fn start_scan(&mut self, ticket: Ticket, ask: ScanAsk, expires: Instant, now: Now) {
        let shards_total = self.control.shards_total;
        let groups: Vec<GroupId> = match ask.range.slot() {
            Some(slot) => vec![crate::keyspace::shard_of_slot(slot, shards_total).group()],
            None => (0..shards_total).map(|shard| ShardId(shard).group()).collect(),
        };
        let open: BTreeMap<GroupId, Instant> = groups.into_iter().map(|group| (group, Instant::ZERO)).collect();
        let scan = Scan { ask, expires, group_count: open.len(), open, parts: 0, chunks: Vec::new() };
        self.scans.running.insert(ticket, scan);
        self.ask_scan_parts(ticket, now);
    }

    /// Asks for what of a scan can be asked for now; answers it if nothing is left.
    fn ask_scan_parts(&mut self, ticket: Ticket, now: Now) {
        let Some(scan) = self.scans.running.get(&ticket) else { return };
        let due: Vec<GroupId> = scan.open.iter().filter(|(_, at)| **at <= now.instant).map(|(group, _)| *group).collect();
        let mut by_node: BTreeMap<NodeId, Vec<GroupId>> = BTreeMap::new();
        for group in due {
            let node = if self.may_lead_scan(group) { Some(self.identity.node) } else { self.leader_of(group) };
            if let Some(node) = node.filter(|node| *node == self.identity.node || self.link_is_up(*node)) {
                by_node.entry(node).or_default().push(group);
            }
        }
        for (node, groups) in by_node {
            let number = self.scans.next_number;
            self.scans.next_number += 1;
            let Some(scan) = self.scans.running.get_mut(&ticket) else { return };
            scan.open.retain(|group, _| groups.binary_search(group).is_err());
            scan.parts += 1;
            let ask = scan.share(groups.len());
            let expires = scan.expires;
            self.scans.asked.insert(number, Asked { ticket, node, groups: groups.clone() });
            if node == self.identity.node {
                self.serve_scan_part((node, number), groups, ask, expires, now);
            } else {
                let expires_in_ms = expires.saturating_since(now.instant).as_millis() as u32;
                self.stats.forwarded += 1;
                self.send(node, PeerMessage::Scan(ScanForward { number, expires_in_ms, groups, ask }));
            }
        }
        if self.scans.running.get(&ticket).is_some_and(|scan| scan.open.is_empty() && scan.parts == 0) {
            let Some(scan) = self.scans.running.remove(&ticket) else { return };
            self.answer_local(ticket, Reply::Page(merge(scan.chunks, &scan.ask)));
            self.start_waiting_scans(now);
        }
    }

    fn start_waiting_scans(&mut self, now: Now) {
        while self.scans.running.len() < SCANS_MAX
            && let Some((ticket, ask, expires)) = self.scans.queue.pop_front()
        {
            self.start_scan(ticket, ask, expires, now);
        }
    }

    /// A node's answer for the shards that it was asked for.
    pub(crate) fn handle_scan_part(&mut self, from: NodeId, number: u64, answer: Result<ScanPart, Failure>, now: Now) {
        if self.scans.asked.get(&number).is_none_or(|asked| asked.node != from) {
            return; // Answered already, or given up.
        }
        let Some(Asked { ticket, groups, .. }) = self.scans.asked.remove(&number) else { return };
        let part = match answer {
            Ok(part) => part,
            Err(failure) => return self.fail_scan(ticket, failure, now),
        };
        let Some(scan) = self.scans.running.get_mut(&ticket) else { return };
        scan.parts -= 1;
        if !part.chunk.items.is_empty() {
            scan.chunks.push(part.chunk);
        }
        for (group, leader) in part.refused.into_iter().filter(|(group, _)| groups.binary_search(group).is_ok()) {
            let not_before = self.note_not_leader(group, from, leader, now);
            if let Some(scan) = self.scans.running.get_mut(&ticket) {
                scan.open.insert(group, not_before);
            }
        }
        self.finish_or_wait(ticket, now);
    }

    /// Answers a scan of which nothing is left. What is left is asked for with the next tick: whoever was
    /// taken for the leader may not have noticed yet either.
    fn finish_or_wait(&mut self, ticket: Ticket, now: Now) {
        if self.scans.running.get(&ticket).is_some_and(|scan| scan.open.is_empty()) {
            self.ask_scan_parts(ticket, now);
        }
    }

    fn fail_scan(&mut self, ticket: Ticket, failure: Failure, now: Now) {
        if self.scans.running.remove(&ticket).is_none() {
            return;
        }
        self.scans.asked.retain(|_, asked| asked.ticket != ticket);
        self.answer_local(ticket, Reply::Failed(failure));
        self.start_waiting_scans(now);
    }

    /// A link broke: what was asked over it is asked again, and what was asked from there is of no use.
    pub(crate) fn lose_scan_parts_of(&mut self, node: NodeId) {
        let lost: Vec<u64> = self.scans.asked.iter().filter(|(_, asked)| asked.node == node).map(|(number, _)| *number).collect();
        for number in lost {
            let Some(Asked { ticket, groups, .. }) = self.scans.asked.remove(&number) else { continue };
            let Some(scan) = self.scans.running.get_mut(&ticket) else { continue };
            scan.parts -= 1;
            scan.open.extend(groups.into_iter().map(|group| (group, Instant::ZERO)));
        }
        self.forget_scan_parts_for(node);
    }

    /// Asks for what could not be asked for before.
    pub(crate) fn retry_scans(&mut self, now: Now) {
        let waiting: Vec<Ticket> = self.scans.running.iter().filter(|(_, scan)| !scan.open.is_empty()).map(|(ticket, _)| *ticket).collect();
        for ticket in waiting {
            self.ask_scan_parts(ticket, now);
        }
    }

    /// Answers scans that have waited long enough.
    pub(crate) fn expire_scans(&mut self, now: Now) {
        let over = |expires: Instant| expires <= now.instant;
        let late: Vec<Ticket> = self.scans.running.iter().filter(|(_, scan)| over(scan.expires)).map(|(ticket, _)| *ticket).collect();
        for ticket in late {
            let open = self.scans.running.get(&ticket).and_then(|scan| scan.open.keys().next().copied());
            let asked = self.scans.asked.values().find(|asked| asked.ticket == ticket).map(|asked| asked.node);
            let failure = match (open, asked) {
                (Some(group), _) => Failure::not_applied(
                    FailureReason::NoQuorum,
                    format!("no leader of {group} could be reached in time: a majority of its replicas may be down or cut off"),
                ),
                (None, Some(node)) => {
                    let name = self.name_of(node);
                    Failure::not_applied(FailureReason::Timeout, format!("{name}, which leads some of the shards, did not answer in time"))
                }
                (None, None) => Failure::not_applied(FailureReason::Timeout, "the scan did not end in time"),
            };
            self.fail_scan(ticket, failure, now);
        }
        let mut late = Vec::new();
        self.scans.queue.retain(|(ticket, _, expires)| {
            if over(*expires) {
                late.push(*ticket);
            }
            !over(*expires)
        });
        for ticket in late {
            let detail = format!("{SCANS_MAX} scans are under way at this node and none ended in time: try again shortly");
            self.answer_local(ticket, Reply::Failed(Failure::not_applied(FailureReason::Overloaded, detail)));
        }
        self.expire_scan_parts(now);
    }
}

impl Scan {
    /// What a node that leads `count` of the shards is asked for.
    fn share(&self, count: usize) -> ScanAsk {
        if self.ask.fill == PageFill::Whole {
            return self.ask.clone();
        }
        let of = |whole: u32, least: u64| {
            let even = u64::from(whole) * count as u64 / self.group_count.max(1) as u64;
            (even + even / SHARE_SLACK).max(least).min(u64::from(whole)) as u32
        };
        ScanAsk {
            items_max: of(self.ask.items_max, SHARE_ITEMS_MIN),
            bytes_max: of(self.ask.bytes_max, SHARE_BYTES_MIN),
            ..self.ask.clone()
        }
    }
}
