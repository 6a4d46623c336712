//! The serving side of a scan: some shards of one scan, read here after their leadership is confirmed.
//!
//! Each shard waits for a leadership round and for the state machine as a point read does; the rows of
//! all are then read at once. What turns out not to be led here is refused, and asked for elsewhere.

use super::{ScanAsk, ScanChunk, ScanJob, ScanPart, Scanned};
use crate::effect::ReplyTo;
use crate::event::Now;
use crate::message::PeerMessage;
use crate::node::Node;
use crate::replica::{ReadOf, Waiter, WaitingRead};
use flotilla_storage::store::layout::Filing;
use flotilla_types::{GroupId, Instant, NodeId, ReplicaKey};
use std::collections::BTreeSet;

/// One part under way. Each shard is in one of three places: waiting, ready, refused.
#[derive(Debug)]
pub(crate) struct Serving {
    /// The asking node, which may be this one, and its number for the part.
    asker: (NodeId, u64),
    ask: ScanAsk,
    expires: Instant,
    waiting: BTreeSet<GroupId>,
    ready: Vec<(ReplicaKey, Filing)>,
    refused: Vec<(GroupId, Option<NodeId>)>,
}

impl Node {
    /// Whether a scan may ask this node for a shard.
    pub(super) fn may_lead_scan(&self, group: GroupId) -> bool {
        self.replicas.get(&group).is_some_and(|replica| replica.is_leader() && !replica.group.is_transferring())
    }

    pub(crate) fn serve_scan_part(&mut self, asker: (NodeId, u64), groups: Vec<GroupId>, ask: ScanAsk, expires: Instant, now: Now) {
        let part = self.scans.next_part;
        self.scans.next_part += 1;
        let mut serving = Serving { asker, ask, expires, waiting: BTreeSet::new(), ready: Vec::new(), refused: Vec::new() };
        for group in groups {
            let is_leaving = self.shutting_down && asker.0 != self.identity.node;
            if is_leaving || !self.may_lead_scan(group) {
                serving.refused.push((group, self.leader_of(group)));
                continue;
            }
            let Some(replica) = self.replicas.get_mut(&group) else { continue };
            if serving.waiting.insert(group) {
                let waiter = Waiter { to: ReplyTo::ScanPart { part, group }, expires };
                replica.reads_new.push(WaitingRead { waiter, of: ReadOf::Scan });
                self.reading.waiting.insert(group);
            }
        }
        self.scans.serving.insert(part, serving);
        self.run_scan_part(part, now);
    }

    /// A shard of a part may be read: this node leads it and has applied what was committed.
    pub(crate) fn scan_shard_is_ready(&mut self, part: u64, group: GroupId) {
        let Some(replica) = self.replicas.get(&group) else { return };
        let shard = (replica.key, replica.filing);
        if let Some(serving) = self.scans.serving.get_mut(&part)
            && serving.waiting.remove(&group)
        {
            serving.ready.push(shard);
            self.scans.changed.insert(part);
        }
    }

    /// A shard of a part cannot be read here.
    pub(crate) fn scan_shard_is_refused(&mut self, part: u64, group: GroupId) {
        let leader = self.leader_of(group);
        if let Some(serving) = self.scans.serving.get_mut(&part)
            && serving.waiting.remove(&group)
        {
            serving.refused.push((group, leader));
            self.scans.changed.insert(part);
        }
    }

    /// Runs the parts of which no shard waits any more.
    pub(crate) fn run_scan_parts(&mut self, now: Now) {
        while let Some(part) = self.scans.changed.pop_first() {
            self.run_scan_part(part, now);
        }
    }

    fn run_scan_part(&mut self, part: u64, now: Now) {
        let Some(serving) = self.scans.serving.get_mut(&part).filter(|serving| serving.waiting.is_empty()) else { return };
        if serving.ready.is_empty() {
            return self.handle_scanned(part, Ok((ScanChunk::default(), Vec::new())), now);
        }
        self.stats.reads += serving.ready.len() as u64;
        self.out.scans.push(ScanJob { part, shards: std::mem::take(&mut serving.ready), ask: serving.ask.clone() });
    }

    /// The rows of a part were read.
    pub(crate) fn handle_scanned(&mut self, part: u64, scanned: Scanned, now: Now) {
        let Some(serving) = self.scans.serving.remove(&part) else { return };
        let (node, number) = serving.asker;
        let scanned = scanned.map_err(|(failure, damaged)| {
            if let Some(replica) = damaged {
                self.handle_damaged_rows(replica, failure.detail.clone(), now);
            }
            failure
        });
        let answer = scanned.map(|(chunk, gone)| {
            let gone = gone.into_iter().map(|group| (group, None));
            ScanPart { chunk, refused: serving.refused.into_iter().chain(gone).collect() }
        });
        if node == self.identity.node {
            self.handle_scan_part(node, number, answer, now);
        } else {
            self.stats.served_for_peers += 1;
            self.send(node, PeerMessage::ScanPart { number, answer });
        }
    }

    /// The asking node is gone, and with it whoever wanted these.
    pub(super) fn forget_scan_parts_for(&mut self, node: NodeId) {
        self.scans.serving.retain(|_, serving| serving.asker.0 != node);
    }

    /// Forgets parts whose answer is of no use any more; their shards' reads run out by themselves.
    pub(super) fn expire_scan_parts(&mut self, now: Now) {
        self.scans.serving.retain(|_, serving| serving.expires > now.instant);
    }
}
