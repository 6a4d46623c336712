//! Snapshots on their way between two nodes (decision 8).
//!
//! The sender opens a view of its rows, offers Raft the position the view is at, and sends chunk
//! after chunk; the next one is read while the last one travels, and sent when the receiver has
//! taken it: two chunks of memory a transfer. Raft's own snapshot message travels with the last
//! chunk, so that the receiver's Raft hears of a snapshot only when all its rows are there. Every
//! transfer ends in exactly one report to Raft.
//!
//! The receiver fills a generation of rows that is not in force; what happens then is in
//! `replication` (announce, switch, record). It yields to clients: while its node serves them, it asks for the next chunk
//! only after a rest of twice the time that the last one took to be stored, so that moves get at most a third of the store's time.

use crate::control::Sending;
use crate::effect::StoreJob;
use crate::event::{Now, SnapshotRead};
use crate::message::PeerMessage;
use crate::node::Node;
use crate::state_machine::ReplicaState;
use bytes::Bytes;
use flotilla_consensus::{Message, SnapshotMeta};
use flotilla_storage::log::InstallRecord;
use flotilla_types::{GroupId, Instant, LogIndex, NodeId, ReplicaId, ReplicaKey};
use std::collections::BTreeMap;
use std::time::Duration;

/// A transfer that makes no progress for this long is given up; Raft asks for another.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(10);

/// Snapshots being sent by this node.
#[derive(Debug)]
pub(crate) struct Transfers {
    next: u64,
    outgoing: BTreeMap<u64, Outgoing>,
    pace: Pace,
    /// Chunks that were stored and are acknowledged when it is time to go on.
    resting: Vec<(Instant, NodeId, PeerMessage)>,
    /// When this node last did something for a client.
    served_at: Instant,
}

/// How much may be sent at this moment (a token bucket): chunks are sent while `allowance` is above zero, and take from it.
#[derive(Debug)]
struct Pace {
    allowance: i64,
    filled_at: Instant,
}

/// A node serves clients if it did something for one within this time.
const SERVING_FOR: Duration = Duration::from_millis(200);
/// The rest after a chunk, in times that it took, while clients are served; and the longest.
const RESTS_PER_CHUNK: u32 = 2;
const REST_MAX: Duration = Duration::from_secs(1);

/// Of its rate, what a pace lets through at once after a pause.
const PACE_BURST: Duration = Duration::from_millis(100);

impl Pace {
    fn refill(&mut self, bytes_per_second: u64, now: Instant) {
        let grown = |time: Duration| (u128::from(bytes_per_second) * time.as_micros() / 1_000_000) as i64;
        let since = now.saturating_since(std::mem::replace(&mut self.filled_at, now));
        self.allowance = self.allowance.saturating_add(grown(since)).min(grown(PACE_BURST).max(1));
    }
}

#[derive(Debug)]
struct Outgoing {
    source: ReplicaKey,
    to: ReplicaId,
    node: NodeId,
    /// Where the view is at, once it is open.
    position: Option<(LogIndex, Bytes)>,
    /// Raft's message for the last chunk.
    message: Option<Message>,
    /// The chunk that was read ahead.
    ready: Option<SnapshotRead>,
    /// The number of the next chunk to send.
    number: u32,
    /// Whether the receiver has yet to take the last one sent.
    under_way: bool,
    last_sent: bool,
    progress_at: Instant,
    began: Instant,
    bytes_done: u64,
}

/// A snapshot being received by one replica.
#[derive(Debug)]
pub(crate) struct Incoming {
    from: NodeId,
    transfer: u64,
    next_number: u32,
    /// When the last chunk came.
    chunk_at: Instant,
    pub(crate) generation: u32,
    finish: Option<(Box<Message>, Bytes)>,
    /// Set when all rows are here: the state that they were read at.
    complete: Option<ReplicaState>,
}

impl Incoming {
    /// The state of the snapshot at `index`, if all its rows are here.
    pub(crate) fn complete_at(&self, index: LogIndex) -> Option<ReplicaState> {
        self.complete.clone().filter(|state| state.applied.0 == index)
    }

    /// What the log records of it.
    pub(crate) fn install_record(&self, snapshot: &SnapshotMeta) -> InstallRecord {
        InstallRecord { index: snapshot.index, term: snapshot.term, generation: self.generation }
    }
}

impl Transfers {
    /// None yet; numbers rise from here.
    pub(crate) fn starting_at(next: u64, now: Instant) -> Transfers {
        Transfers {
            next,
            outgoing: BTreeMap::new(),
            pace: Pace { allowance: 0, filled_at: now },
            resting: Vec::new(),
            served_at: Instant::ZERO,
        }
    }

    /// What is being sent of a group; of several the one that is furthest.
    pub(crate) fn sending(&self, group: GroupId, now: Instant) -> Option<Sending> {
        let of_group = self.outgoing.values().filter(|o| o.source.group == group);
        let sending = |o: &Outgoing| Sending { to: o.node, bytes_done: o.bytes_done, elapsed: now.saturating_since(o.began) };
        of_group.max_by_key(|o| o.bytes_done).map(sending)
    }

    /// Bytes of chunks that were read ahead.
    pub(crate) fn bytes(&self) -> usize {
        self.outgoing.values().filter_map(|outgoing| outgoing.ready.as_ref()).map(|chunk| chunk.bytes.len()).sum()
    }

    /// The oldest position a group's snapshot under way was taken at: its log is kept from there on.
    pub(crate) fn oldest_index(&self, group: GroupId) -> Option<LogIndex> {
        self.outgoing.values().filter(|o| o.source.group == group).filter_map(|o| o.position.as_ref().map(|(index, _)| *index)).min()
    }
}

impl Node {
    /// Raft wants to send a follower a snapshot.
    pub(crate) fn begin_transfer(&mut self, group: GroupId, to: ReplicaId, now: Instant) {
        if self.transfers.outgoing.len() >= self.config.transfers_max
            || self.transfers.outgoing.values().any(|o| o.source.group == group && o.to == to)
        {
            return;
        }
        let Some(replica) = self.replicas.get(&group).filter(|replica| replica.is_initialized()) else { return };
        let Some(node) = replica.node_of(to).filter(|node| self.link_is_up(*node)) else { return };
        let source = replica.key;
        self.transfers.next += 1;
        let transfer = self.transfers.next;
        let outgoing = Outgoing {
            source,
            to,
            node,
            position: None,
            message: None,
            ready: None,
            number: 0,
            under_way: false,
            last_sent: false,
            progress_at: now,
            began: now,
            bytes_done: 0,
        };
        self.transfers.outgoing.insert(transfer, outgoing);
        self.read_chunk(transfer, source, true);
    }

    fn read_chunk(&mut self, transfer: u64, replica: ReplicaKey, first: bool) {
        let bytes_max = self.config.snapshot_chunk_bytes;
        self.out.store.push(StoreJob::ReadSnapshot { transfer, replica, first, bytes_max });
    }

    pub(crate) fn handle_snapshot_read(&mut self, transfer: u64, chunk: Option<SnapshotRead>, now: Now) {
        let Some(outgoing) = self.transfers.outgoing.get_mut(&transfer) else { return };
        let Some(chunk) = chunk else { return self.end_transfer(transfer, false) };
        outgoing.progress_at = now.instant;
        if outgoing.position.is_none() {
            let (index, term) = chunk.state.applied;
            outgoing.position = Some((index, chunk.state.encode()));
            let meta = SnapshotMeta { index, term, membership: chunk.state.membership.clone() };
            let (source, to) = (outgoing.source, outgoing.to);
            let group = source.group;
            outgoing.ready = Some(chunk);
            let here = self.replicas.get_mut(&group).filter(|replica| replica.key == source);
            let offered = here.is_some_and(|replica| replica.group.offer_snapshot(to, &meta));
            if !offered {
                return self.end_transfer(transfer, false);
            }
            self.dirty.insert(group);
        } else {
            outgoing.ready = Some(chunk);
        }
        self.send_chunk(transfer);
    }

    /// Raft's message for a snapshot that it was offered.
    pub(crate) fn attach_snapshot(&mut self, group: GroupId, message: Message) {
        let index = message.snapshot_meta().map(|meta| meta.index);
        let found = self
            .transfers
            .outgoing
            .iter_mut()
            .find(|(_, o)| o.source.group == group && o.to == message.to() && o.position.as_ref().map(|(at, _)| *at) == index);
        match found {
            Some((transfer, outgoing)) => {
                let transfer = *transfer;
                outgoing.message = Some(message);
                self.send_chunk(transfer);
            }
            None => {
                if let Some(replica) = self.replicas.get_mut(&group) {
                    replica.group.report_snapshot(message.to(), false);
                }
            }
        }
    }

    /// Sends the chunk that was read ahead, if it is its turn, and reads on.
    fn send_chunk(&mut self, transfer: u64) {
        let Some(outgoing) = self.transfers.outgoing.get_mut(&transfer) else { return };
        let last = match &outgoing.ready {
            Some(chunk) if !outgoing.under_way && (!chunk.last || outgoing.message.is_some()) => chunk.last,
            _ => return,
        };
        if self.control.move_bytes_per_second > 0 && self.transfers.pace.allowance <= 0 {
            return;
        }
        let Some(chunk) = outgoing.ready.take() else { return };
        outgoing.bytes_done += chunk.bytes.len() as u64;
        self.transfers.pace.allowance -= chunk.bytes.len() as i64;
        let state = outgoing.position.as_ref().map(|(_, state)| state.clone()).unwrap_or_default();
        let finish = if last { outgoing.message.take().map(|message| (Box::new(message), state)) } else { None };
        let message = PeerMessage::SnapshotChunk {
            group: outgoing.source.group,
            from: outgoing.source.replica,
            to: outgoing.to,
            transfer,
            number: outgoing.number,
            bytes: chunk.bytes,
            finish,
        };
        outgoing.number += 1;
        outgoing.under_way = true;
        outgoing.last_sent = last;
        let (node, source) = (outgoing.node, outgoing.source);
        self.send(node, message);
        if !last {
            self.read_chunk(transfer, source, false);
        }
    }

    /// Something is done for a client here.
    pub(crate) fn note_served(&mut self, now: Instant) {
        self.transfers.served_at = now;
    }

    /// Sends what had to wait for its time.
    pub(crate) fn pace_transfers(&mut self, now: Now) {
        let rested: Vec<_> = self.transfers.resting.extract_if(.., |(until, _, _)| *until <= now.instant).collect();
        for (_, to, taken) in rested {
            self.send(to, taken);
        }
        self.transfers.pace.refill(self.control.move_bytes_per_second, now.instant);
        let waits = |(_, outgoing): &(&u64, &Outgoing)| outgoing.ready.is_some() && !outgoing.under_way;
        let waiting: Vec<u64> = self.transfers.outgoing.iter().filter(waits).map(|(transfer, _)| *transfer).collect();
        for transfer in waiting {
            if self.transfers.pace.allowance <= 0
                && let Some(held) = self.transfers.outgoing.get_mut(&transfer)
            {
                // Not stuck: held back here.
                held.progress_at = now.instant;
            }
            self.send_chunk(transfer);
        }
    }

    pub(crate) fn handle_snapshot_taken(&mut self, from: NodeId, transfer: u64, number: u32, accepted: bool, now: Now) {
        let Some(outgoing) = self.transfers.outgoing.get_mut(&transfer) else { return };
        if outgoing.node != from || !outgoing.under_way || number.checked_add(1) != Some(outgoing.number) {
            return;
        }
        outgoing.under_way = false;
        outgoing.progress_at = now.instant;
        if !accepted {
            self.end_transfer(transfer, false);
        } else if outgoing.last_sent {
            self.stats.snapshots_sent += 1;
            self.end_transfer(transfer, true);
        } else {
            self.send_chunk(transfer);
        }
    }

    /// Ends a transfer with its one report.
    fn end_transfer(&mut self, transfer: u64, delivered: bool) {
        let Some(outgoing) = self.transfers.outgoing.remove(&transfer) else { return };
        self.out.store.push(StoreJob::CloseSnapshot { transfer });
        if let Some(replica) = self.replicas.get_mut(&outgoing.source.group).filter(|replica| replica.key == outgoing.source) {
            replica.group.report_snapshot(outgoing.to, delivered);
            self.dirty.insert(outgoing.source.group);
        }
    }

    fn end_transfers_where(&mut self, ends: impl Fn(&TransferView) -> bool) {
        let ending: Vec<u64> = self
            .transfers
            .outgoing
            .iter()
            .filter(|(_, o)| ends(&TransferView { group: o.source.group, node: o.node, progress_at: o.progress_at }))
            .map(|(transfer, _)| *transfer)
            .collect();
        for transfer in ending {
            self.end_transfer(transfer, false);
        }
    }

    /// The group is not led here any more.
    pub(crate) fn drop_transfers_of(&mut self, group: GroupId) {
        self.end_transfers_where(|transfer| transfer.group == group);
    }

    /// The receiver is out of reach.
    pub(crate) fn drop_transfers_to(&mut self, node: NodeId) {
        self.end_transfers_where(|transfer| transfer.node == node);
    }

    /// Gives up on transfers that do not move.
    pub(crate) fn expire_transfers(&mut self, now: Instant) {
        self.end_transfers_where(|transfer| now.saturating_since(transfer.progress_at) > TRANSFER_TIMEOUT);
    }

    pub(crate) fn handle_snapshot_chunk(&mut self, from: NodeId, message: PeerMessage, now: Now) {
        let PeerMessage::SnapshotChunk { group, from: sender, to, transfer, number, bytes, finish } = message else { return };
        let key = ReplicaKey { group, replica: to };
        let refusal = PeerMessage::SnapshotTaken { group, transfer, number, accepted: false };
        if !self.ensure_replica(key, from, now) {
            return self.send(from, refusal);
        }
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        replica.senders.insert(sender, from);
        if replica.install.is_some() {
            return self.send(from, refusal);
        }
        let first = number == 0;
        if first {
            if let Some(abandoned) = replica.incoming.take() {
                self.out.store.push(StoreJob::AbortInstall { replica: key, generation: abandoned.generation });
            }
            let generation = replica.next_generation;
            replica.next_generation += 1;
            replica.incoming =
                Some(Incoming { from, transfer, next_number: 0, chunk_at: now.instant, generation, finish: None, complete: None });
        }
        let Some(incoming) = replica.incoming.as_mut().filter(|i| i.from == from && i.transfer == transfer && i.next_number == number)
        else {
            return self.send(from, refusal);
        };
        incoming.next_number += 1;
        incoming.chunk_at = now.instant;
        incoming.finish = finish;
        let generation = incoming.generation;
        self.out.store.push(StoreJob::InstallRows { replica: key, generation, first, chunk: bytes });
    }

    pub(crate) fn handle_snapshot_rows(&mut self, key: ReplicaKey, generation: u32, accepted: bool, now: Now) {
        let Some(replica) = self.replicas.get_mut(&key.group).filter(|replica| replica.key == key) else { return };
        let Some(incoming) = replica.incoming.as_mut().filter(|incoming| incoming.generation == generation) else { return };
        let taken =
            PeerMessage::SnapshotTaken { group: key.group, transfer: incoming.transfer, number: incoming.next_number - 1, accepted };
        let from = incoming.from;
        let took = now.instant.saturating_since(incoming.chunk_at);
        let finish = incoming.finish.take();
        if !accepted {
            replica.incoming = None;
            self.out.store.push(StoreJob::AbortInstall { replica: key, generation });
            return self.send(from, taken);
        }
        if finish.is_none() && now.instant.saturating_since(self.transfers.served_at) < SERVING_FOR {
            let rest = (took * RESTS_PER_CHUNK).min(REST_MAX);
            return self.transfers.resting.push((now.instant + rest, from, taken));
        }
        if let Some((message, state)) = finish {
            // Raft must hear of no snapshot but of the one whose rows are here: it could not be undone.
            let offered = message.snapshot_meta().map(|meta| (meta.index, meta.term, meta.membership));
            let fits = |state: &ReplicaState| offered == Some((state.applied.0, state.applied.1, state.membership.clone()));
            incoming.complete = ReplicaState::decode(state).ok().filter(fits);
            let stepped = incoming.complete.is_some() && replica.group.step(*message).is_ok();
            if stepped {
                self.take_readies(key.group, now);
            }
            self.dirty.insert(key.group);
            // Raft may have had no use for it: the replica caught up in the meantime.
            if let Some(replica) = self.replicas.get_mut(&key.group)
                && let Some(unused) = replica.incoming.take()
            {
                self.out.store.push(StoreJob::AbortInstall { replica: key, generation: unused.generation });
            }
        }
        self.send(from, taken);
    }
}

/// What a transfer is chosen by when it must end.
struct TransferView {
    group: GroupId,
    node: NodeId,
    progress_at: Instant,
}
