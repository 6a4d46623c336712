//! The node: a deterministic machine. Events go in by [`Node::handle`], effects come out of
//! [`Node::flush`], once a turn. It holds no clock, no socket, no thread and no file; two worlds, the
//! server and the simulation, run the same code.
//!
//! A turn works like this: every waiting event is handled, which records requests and steps Raft;
//! then `flush` proposes what clients asked of each shard as one entry, begins one leadership round
//! for all waiting reads, and takes what Raft has ready: messages, one batch for the log, entries to
//! apply. Messages that promise something wait for the log (`replication`).

use crate::apply_queue::ApplyQueue;
use crate::boot::{self, Identity};
use crate::check;
use crate::clocks::Clocks;
use crate::control::{ControlState, Standing};
use crate::effect::{Effects, ReplyTo};
use crate::event::{Event, Now, StoreEvent, Ticket};
use crate::fitness::Fitness;
use crate::message::{PeerMessage, ScanForward};
use crate::notice::Notice;
use crate::reading::Reading;
use crate::recovery::{Rebirths, Surveys, successor};
use crate::replica::Replica;
use crate::replication::LogQueue;
use crate::request::{Failure, FailureReason, Reply};
use crate::requests::Requests;
use crate::scan::Scans;
use crate::scrub::Scrubs;
use crate::state_machine::{MutationBatch, ReplicaState};
use crate::stats::NodeStats;
use crate::supervise::Supervision;
use crate::transfer::Transfers;
use flotilla_consensus::{Group, GroupConfig, Restored};
use flotilla_storage::log::{InstallPhase, LogRecord, Recovered, RecoveredReplica};
use flotilla_types::{GroupId, Instant, Key, LogIndex, Membership, NodeId, PlantedFault, ReplicaKey, Rng, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// One Raft tick.
pub const TICK: Duration = Duration::from_millis(20);

/// What a process may tune. What the whole cluster must agree on is in the control group.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Requests under way from this node's doors; one more is refused with `overloaded`.
    pub requests_max: usize,
    /// Bytes those requests may hold.
    pub request_bytes_max: usize,
    /// Committed bytes that wait for the apply thread; past it writes are refused.
    pub unapplied_bytes_max: usize,
    /// Bytes of entries kept in memory and in the log, over all groups, for followers that lag.
    pub log_keep_bytes: usize,
    /// Applied bytes after which the store is made durable, so that the log can be purged.
    pub persist_bytes: usize,
    /// The longest time between two such moments while there is something to make durable.
    pub persist_interval: Duration,
    /// Size of a snapshot's chunks.
    pub snapshot_chunk_bytes: usize,
    /// Snapshots sent at once.
    pub transfers_max: usize,
    /// Bytes of rows that scrubs read a second; 0: this node takes no part in scrubs and names none.
    pub scrub_bytes_per_second: u64,
    /// How long after one scrub of a shard the next one may begin.
    pub scrub_interval: Duration,
    /// How long a node may be down before the others take over what it holds; `None`: for ever.
    pub replace_after: Option<Duration>,
    /// Raft's settings, the same for each group.
    pub group: GroupConfig,
    /// Set by the simulation alone.
    pub fault: Option<PlantedFault>,
}

impl Default for NodeConfig {
    fn default() -> NodeConfig {
        NodeConfig {
            requests_max: 16_384,
            request_bytes_max: 256 << 20,
            unapplied_bytes_max: 64 << 20,
            log_keep_bytes: 64 << 20,
            persist_bytes: 32 << 20,
            persist_interval: Duration::from_secs(5),
            snapshot_chunk_bytes: 256 << 10,
            transfers_max: 4,
            scrub_bytes_per_second: 8 << 20,
            scrub_interval: Duration::from_secs(3600),
            replace_after: Some(Duration::from_secs(300)),
            group: GroupConfig::default(),
            fault: None,
        }
    }
}

/// What the process of a removed node ends with.
pub const REMOVED: &str = "this node was removed from the cluster: its data may be wiped";

/// Why a node cannot start on what its data-dir holds.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Raft cannot take up what was recovered.
    #[error("{replica} cannot be restored: {reason}")]
    Replica {
        /// The replica.
        replica: ReplicaKey,
        /// What does not fit.
        reason: String,
    },
    /// Log and store contradict each other, or records are damaged, and no peer can replace them.
    #[error("the data is damaged: {0}")]
    Damaged(String),
    /// The data-dir belongs to no cluster yet.
    #[error("this data-dir has neither created nor joined a cluster")]
    NoCluster,
}

/// A link to a peer, as the world last told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) up: bool,
    pub(crate) since: Instant,
}

/// One node.
pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) identity: Identity,
    pub(crate) rng: Rng,
    pub(crate) started: Instant,
    /// The latest copy of the control group's state that this node has.
    pub(crate) control: ControlState,
    pub(crate) replicas: BTreeMap<GroupId, Replica>,
    pub(crate) tombstones: BTreeSet<ReplicaKey>,
    /// Replicas below this id were perhaps made here before, and all that told of them was damaged: they are never made
    /// anew, since they may have voted. `None`: not known yet, since the control state here may be old.
    pub(crate) first_new_replica: Option<u64>,
    pub(crate) links: BTreeMap<NodeId, Link>,
    /// Groups that may have something to propose, to read or to send.
    pub(crate) dirty: BTreeSet<GroupId>,
    pub(crate) requests: Requests,
    pub(crate) scans: Scans,
    pub(crate) reading: Reading,
    pub(crate) clocks: Clocks,
    pub(crate) fitness: Fitness,
    pub(crate) log: LogQueue,
    pub(crate) apply: ApplyQueue,
    pub(crate) transfers: Transfers,
    pub(crate) scrubs: Scrubs,
    pub(crate) supervision: Supervision,
    pub(crate) surveys: Surveys,
    pub(crate) rebirths: Rebirths,
    pub(crate) out: Effects,
    /// The entry being put together; kept for its memory.
    pub(crate) mutations: MutationBatch,
    pub(crate) next_tick: Instant,
    /// Ticks since the start.
    pub(crate) ticks: usize,
    pub(crate) shutting_down: bool,
    /// Room on the disk is low: what needs more of it is refused.
    pub(crate) disk_is_low: bool,
    /// The log waits for room: nothing is proposed.
    pub(crate) log_is_full: bool,
    pub(crate) unapplied_bytes: usize,
    pub(crate) stats: NodeStats,
}

impl Node {
    /// Takes up what log and store hold.
    ///
    /// # Errors
    /// If they contradict each other or are damaged beyond what peers can replace.
    pub fn start(
        config: NodeConfig,
        identity: Identity,
        recovered: Recovered,
        mut states: BTreeMap<ReplicaKey, ReplicaState>,
        mut rng: Rng,
        now: Now,
    ) -> Result<Node, StartError> {
        // Numbers that peers send back begin anywhere: an answer meant for this node's former life must
        // not be taken for one to this life's request of the same number.
        let mut first_number = || rng.next_u64() >> 16;
        let genesis = identity.genesis_state();
        let control = identity
            .last_control()
            .map_err(|error| StartError::Damaged(format!("the kept copy of the control state: {error}")))?
            .ok_or(StartError::NoCluster)?;
        let mut node = Node {
            requests: Requests::new(&config, first_number()),
            scans: Scans::starting_at(first_number()),
            reading: Reading::new(identity.node, first_number()),
            clocks: Clocks::new(now.instant),
            fitness: Fitness::new(now.instant),
            log: LogQueue::default(),
            apply: ApplyQueue::default(),
            transfers: Transfers::starting_at(first_number(), now.instant),
            scrubs: Scrubs::new(now.instant),
            supervision: Supervision::new(now.instant),
            surveys: Surveys::starting_at(first_number()),
            rebirths: Rebirths::default(),
            out: Effects::default(),
            mutations: MutationBatch::new(),
            next_tick: now.instant + TICK,
            ticks: 0,
            started: now.instant,
            shutting_down: false,
            disk_is_low: false,
            log_is_full: false,
            unapplied_bytes: 0,
            stats: NodeStats::default(),
            links: BTreeMap::new(),
            dirty: BTreeSet::new(),
            replicas: BTreeMap::new(),
            tombstones: recovered.tombstones.clone(),
            first_new_replica: recovered.damage.is_empty().then_some(0),
            control,
            config,
            identity,
            rng,
        };
        // A later copy than the identity's may lie in the store of the control group's replica.
        for (key, state) in &states {
            if let Some(control) =
                state.control.as_ref().filter(|control| key.group == GroupId::CONTROL && control.epoch >= node.control.epoch)
            {
                node.control = ControlState::clone(control);
            }
        }
        node.name_damage(&recovered);
        let successors: BTreeMap<ReplicaKey, ReplicaKey> =
            recovered.replicas.keys().filter_map(|key| Some((*key, successor(*key, &recovered, &states)?))).collect();
        for (key, replica) in recovered.replicas {
            if let Some((to, state)) = successors.get(&key).and_then(|to| states.remove_entry(to)) {
                node.take_over_at_start(key, &replica, to, state, now);
                continue;
            }
            if replica.is_lost {
                node.retire_lost(key)?;
                continue;
            }
            let state = states.remove(&key);
            let created_here = genesis
                .as_ref()
                .is_some_and(|genesis| state.is_none() && replica.start == boot::GENESIS_START && genesis.groups.contains_key(&key.group));
            let state = match (&genesis, created_here) {
                (Some(genesis), true) => Some(node.create_genesis_state(genesis, key)?),
                _ => state,
            };
            if state.is_none() && replica.start != Node::NOWHERE {
                // Its rows are gone, perhaps because it was on its way out and only the tombstone was lost.
                node.retire_lost(key)?;
                continue;
            }
            if let Some(reason) = state.as_ref().and_then(|state| check::contradiction(&replica, Some(state))) {
                node.out.notices.push(Notice::error(reason).of_replica(key));
                node.retire_lost(key)?;
                continue;
            }
            node.restore(key, replica, state, now)?;
        }
        // What the store holds of replicas that the log does not know is a leftover of theirs.
        for key in states.into_keys() {
            node.out.store.push(crate::effect::StoreJob::Destroy { replica: key });
        }
        node.update_peers();
        Ok(node)
    }

    /// Damage is never passed over in silence, wherever recovery found it.
    fn name_damage(&mut self, recovered: &Recovered) {
        for damage in &recovered.damage {
            let line = format!("damage found in the log: {} at byte {}: {}", damage.file, damage.offset, damage.reason);
            self.out.notices.push(Notice::error(line));
        }
    }

    /// A replica whose records or rows are damaged is re-seeded from the others, under a new id. Where
    /// there are no others, the node must not start.
    fn retire_lost(&mut self, key: ReplicaKey) -> Result<(), StartError> {
        if !check::others_suffice(&self.control, self.identity.node, key) {
            return Err(StartError::Damaged(format!("{key} has no other copies to be replaced from: restore the files, or a backup")));
        }
        self.out.notices.push(Notice::error(format!("{key} is damaged and will be re-seeded from the other replicas")).of_replica(key));
        self.retire_damaged(key);
        Ok(())
    }

    /// Gives a damaged replica up: it never votes again, and the control group is asked for another.
    pub(crate) fn retire_damaged(&mut self, key: ReplicaKey) {
        self.tombstones.insert(key);
        self.log.push(LogRecord::Tombstone { replica: key });
        self.out.store.push(crate::effect::StoreJob::Destroy { replica: key });
        self.supervision.reseeds.insert(key);
        self.dismiss(key);
    }

    fn create_genesis_state(&mut self, genesis: &ControlState, key: ReplicaKey) -> Result<ReplicaState, StartError> {
        let (_, membership) = boot::genesis_membership(genesis, key.group)
            .filter(|(replica, _)| *replica == key.replica)
            .ok_or_else(|| StartError::Damaged(format!("{key} was never created by this node")))?;
        let control = (key.group == GroupId::CONTROL).then(|| genesis.clone());
        let state = ReplicaState { applied: boot::GENESIS_START, control: control.map(Arc::new), ..ReplicaState::new(membership) };
        self.out.store.push(crate::effect::StoreJob::Create { replica: key, state: Box::new(state.clone()) });
        Ok(state)
    }

    /// A replica that waits for its first snapshot.
    pub(crate) fn create_empty_state(&mut self, key: ReplicaKey) -> ReplicaState {
        let state = ReplicaState::new(Membership::default());
        self.out.store.push(crate::effect::StoreJob::Create { replica: key, state: Box::new(state.clone()) });
        state
    }

    /// Takes one replica up again (decision 8: an install goes on from whichever record it finds).
    pub(crate) fn restore(
        &mut self,
        key: ReplicaKey,
        recovered: RecoveredReplica,
        state: Option<ReplicaState>,
        now: Now,
    ) -> Result<(), StartError> {
        let damaged = |reason: String| StartError::Replica { replica: key, reason };
        let RecoveredReplica { hard_state, mut start, mut entries, install, is_lost: _ } = recovered;
        let state = match state {
            None if start == Node::NOWHERE => Some(self.create_empty_state(key)),
            state => state,
        };
        let mut used_generation = state.as_ref().map_or(0, |state| state.generation_highest);
        match install {
            Some((InstallPhase::Installing, install)) => {
                used_generation = used_generation.max(install.generation);
                if state.as_ref().is_some_and(|state| state.generation == install.generation) {
                    // The store switched before the crash: finish what the log did not record.
                    self.log.push(LogRecord::Installed { replica: key, snapshot: install });
                    start = (install.index, install.term);
                    entries.clear();
                }
            }
            Some((InstallPhase::Installed, install)) => used_generation = used_generation.max(install.generation),
            None => {}
        }
        let (applied, membership) = state.as_ref().map_or((LogIndex(0), Membership::default()), |s| (s.applied.0, s.membership.clone()));
        let config = GroupConfig { replica: key.replica, ..self.config.group.clone() };
        let restored = Restored { hard_state, membership, applied, start, entries };
        let rng = self.rng.fork();
        let group = Group::new(config, restored, rng).map_err(|error| damaged(error.to_string()))?;
        let mut replica = Replica::new(key, group, now.instant);
        replica.next_generation = used_generation + 1;
        if let Some(state) = state {
            replica.filing = state.filing(key);
            replica.keys = state.keys;
            replica.bytes = state.bytes;
        }
        self.dirty.insert(key.group);
        self.replicas.insert(key.group, replica);
        Ok(())
    }

    /// Takes one event in. Cheap: it records and steps; what follows from it comes with [`Node::flush`].
    pub fn handle(&mut self, event: Event, now: Now) {
        match event {
            Event::Request { ticket, request, expires } => self.handle_request(ticket, request, expires, now),
            Event::Messages { from, messages } => {
                for message in messages {
                    self.handle_message(from, message, now);
                }
            }
            Event::LinkUp { peer } => self.handle_link_up(peer, now),
            Event::LinkDown { peer, refused } => self.handle_link_down(peer, refused, now),
            Event::PeerAt { peer, address } => self.note_address(peer, address),
            Event::Removed { by } => self.out.fatal = Some(format!("{REMOVED}, as {} says", self.name_of(by))),
            Event::LogSynced { job } => self.handle_log_synced(job, now),
            Event::LogDiskFull => {
                self.log_is_full = true;
                self.out
                    .notices
                    .push(Notice::error("the log found the disk full: free some space; nothing is written until then".to_owned()));
            }
            Event::DiskRoom { is_low } => {
                self.disk_is_low = is_low;
                self.out.notices.push(match is_low {
                    true => Notice::error(
                        "the disk is almost full: puts and increments are refused with 507 until there is room; deletes still work"
                            .to_owned(),
                    ),
                    false => Notice::info("there is room on the disk again: puts are taken".to_owned()),
                });
            }
            Event::AppendUnsent { group, to } => {
                if let Some(replica) = self.replicas.get_mut(&group) {
                    replica.group.report_unreachable(to);
                }
            }
            Event::Store(event) => self.handle_store(event, now),
            Event::Scanned { part, scanned } => self.handle_scanned(part, scanned, now),
            Event::Timer => self.handle_timer(now),
            Event::ShutDown => self.hand_over(now),
        }
    }

    fn handle_message(&mut self, from: NodeId, message: PeerMessage, now: Now) {
        match message {
            PeerMessage::Raft { group, message } => self.handle_raft(from, group, message, now),
            PeerMessage::Gone { group, replica } => {
                if let Some(replica_here) = self.replicas.get_mut(&group) {
                    replica_here.group.report_unreachable(replica);
                }
                self.ask_if_removed(group, replica);
            }
            PeerMessage::Forward(forward) => self.handle_forward(from, forward, now),
            PeerMessage::Reply { id, reply, leader } => self.handle_reply(from, id, reply, leader, now),
            PeerMessage::Scan(ScanForward { number, expires_in_ms, groups, ask }) => {
                let expires = now.instant + Duration::from_millis(u64::from(expires_in_ms));
                self.serve_scan_part((from, number), groups, ask, expires, now);
            }
            PeerMessage::ScanPart { number, answer } => self.handle_scan_part(from, number, answer, now),
            PeerMessage::ReadConfirm(question) => self.handle_read_confirm(from, &question),
            PeerMessage::ReadConfirmed(answer) => self.handle_read_confirmed(from, &answer),
            PeerMessage::SnapshotChunk { .. } => self.handle_snapshot_chunk(from, message, now),
            PeerMessage::SnapshotTaken { transfer, number, accepted, .. } => {
                self.handle_snapshot_taken(from, transfer, number, accepted, now)
            }
            PeerMessage::Addresses(addresses) => self.handle_addresses(addresses),
            PeerMessage::Unfit { reason } => self.handle_unfit(from, reason, now),
            PeerMessage::Clock { wall } => self.handle_clock(from, wall, now),
            PeerMessage::Report(bytes) => self.handle_report(from, &bytes, now),
            PeerMessage::ControlCopy(bytes) => self.handle_control_copy(bytes, now),
            PeerMessage::ControlAsk { epoch, orphan } => self.handle_control_ask(from, epoch, orphan),
            PeerMessage::ControlEpoch { epoch } => self.handle_control_epoch(from, epoch, now),
            PeerMessage::Checkpoint { group, replica, index, hash } => self.handle_checkpoint(group, replica, index, hash),
            PeerMessage::Scrubbed { group, replica, index, term, hash } => {
                self.handle_scrub_answer(group, replica, (index, term), hash, now)
            }
            PeerMessage::Diverged { group, replica, index } => self.handle_diverged(group, replica, index),
            PeerMessage::HoldingsAsk { number } => self.handle_holdings_ask(from, number),
            PeerMessage::Holdings { number, holdings } => self.handle_holdings(from, number, holdings, now),
            PeerMessage::RecoveryOrder(order) => self.handle_recovery_order(order),
        }
    }

    fn handle_store(&mut self, event: StoreEvent, now: Now) {
        match event {
            StoreEvent::Applied(groups) => {
                for applied in groups {
                    self.handle_applied(applied, now);
                }
            }
            StoreEvent::Persisted(indexes) => self.handle_persisted(&indexes, now),
            StoreEvent::SnapshotChunk { transfer, chunk } => self.handle_snapshot_read(transfer, chunk, now),
            StoreEvent::SnapshotRows { replica, generation, accepted } => self.handle_snapshot_rows(replica, generation, accepted, now),
            StoreEvent::SnapshotInstalled { replica, generation, state } => self.handle_snapshot_installed(replica, generation, state),
            StoreEvent::Destroyed { .. } => {}
            StoreEvent::Reborn { replica, state } => self.handle_reborn(replica, state, now),
            StoreEvent::Scrubbed { replica, index, step } => self.handle_scrubbed(replica, index, step, now),
            StoreEvent::ExpiredFound { replica, found } => self.handle_expired_found(replica, found, now),
            StoreEvent::Damaged { replica, detail } => self.handle_damaged_rows(replica, detail, now),
            StoreEvent::Failed { replica, detail, disk_full } => {
                let what = replica.map_or_else(|| "the store".to_owned(), |key| format!("the store, at {key},"));
                self.out.fatal = Some(if disk_full {
                    format!("{what} found the disk full ({detail}): free some space and start again; nothing that was acknowledged is lost")
                } else {
                    format!(
                        "{what} failed: {detail}; start the node again: it then verifies the store, and fetches what is damaged from the other nodes"
                    )
                });
            }
        }
    }

    fn handle_timer(&mut self, now: Now) {
        if now.instant < self.next_tick {
            return;
        }
        // At most one tick a turn: after a pause the inbox is taken first, and missed ticks are not made up.
        self.next_tick = (self.next_tick + TICK).max(now.instant + TICK / 2);
        self.ticks += 1;
        self.look_after_fitness(now);
        self.tick_replicas(now.instant);
        self.apply.hurry();
        self.campaign_in_place_of_the_dead(now);
        self.expire(now);
        self.expire_scans(now);
        self.retry_parked(now);
        self.tell_clock(now);
        self.look_for_expired(now);
        self.step_scrubs(now);
        self.pace_transfers(now);
        self.retry_scans(now);
        self.conclude_surveys(now);
        self.supervise(now);
    }

    /// Ends the turn: everything that follows from the events handled since the last one.
    pub fn flush(&mut self, now: Now) -> Effects {
        while !self.log.is_full()
            && let Some(group) = self.dirty.pop_first()
        {
            self.propose_pending(group, now);
            self.take_readies(group, now);
            self.notice_leader(group, now);
        }
        self.begin_read_round(now);
        self.run_scan_parts(now);
        self.send_log_job();
        self.send_apply_job();
        self.stats.unapplied_bytes = self.unapplied_bytes as u64;
        self.stats.requests_under_way = self.requests.under_way() as u64;
        std::mem::take(&mut self.out)
    }

    /// When [`Event::Timer`] is due.
    pub fn next_timer(&self) -> Instant {
        self.next_tick
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.identity.node
    }

    /// The copy of the control group's state that this node has.
    pub fn control(&self) -> &ControlState {
        &self.control
    }

    /// The group a key belongs to: slot x shards / 16384.
    pub(crate) fn group_of(&self, key: &Key) -> GroupId {
        crate::keyspace::shard_of(key, self.control.shards_total).group()
    }

    /// Answers once, wherever the request came from.
    pub(crate) fn answer(&mut self, to: ReplyTo, reply: Reply) {
        match to {
            ReplyTo::Local(ticket) => self.answer_local(ticket, reply),
            ReplyTo::Peer { node, id } => {
                let leader = None;
                self.send(node, PeerMessage::Reply { id, reply, leader });
            }
            // Whatever became of the read: the asking node asks again, as long as it has time.
            ReplyTo::ScanPart { part, group } => self.scan_shard_is_refused(part, group),
        }
    }

    pub(crate) fn answer_local(&mut self, ticket: Ticket, reply: Reply) {
        self.requests.done(ticket);
        self.out.replies.push((ticket, reply));
    }

    pub(crate) fn send(&mut self, to: NodeId, message: PeerMessage) {
        self.out.messages.push((to, message));
    }

    pub(crate) fn refuse(&mut self, to: ReplyTo, reason: FailureReason, detail: impl Into<String>) {
        self.answer(to, Reply::Failed(Failure::not_applied(reason, detail)));
    }

    pub(crate) fn link_is_up(&self, node: NodeId) -> bool {
        self.links.get(&node).is_some_and(|link| link.up)
    }

    /// A node's name, or its id if it has none here.
    pub fn name_of(&self, node: NodeId) -> String {
        self.control.node_record(node).map_or_else(|| node.to_string(), |record| record.profile.name.clone())
    }

    /// Whether a replica of this id may exist on this node, as far as it knows.
    pub(crate) fn standing(&self, key: ReplicaKey) -> Standing {
        if self.tombstones.contains(&key) { Standing::Removed } else { self.control.standing(key) }
    }

    /// A position before anything.
    pub(crate) const NOWHERE: (LogIndex, Term) = (LogIndex(0), Term(0));
}
