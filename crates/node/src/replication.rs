//! From Raft's Ready to log, links and apply thread, and back (decisions 1, 3 and 5).
//!
//! All groups' records of one turn go into one log job. Messages that promise something wait in that
//! job's entry of the [`LogQueue`] until it is synced. A Ready with nothing to persist passes at once,
//! unless one of its group's is still on its way to the disk.

use crate::control::{ControlCommand, Standing};
use crate::effect::{LogJob, StoreJob};
use crate::event::Now;
use crate::message::PeerMessage;
use crate::node::Node;
use crate::notice::Notice;
use crate::replica::{Install, InstallStage, Proposed, Replica, Waiter};
use crate::request::{Failure, FailureReason, Reply, Request};
use crate::state_machine::{
    GroupApplied, GroupApply, IDEMPOTENT_BYTES, INCREMENT_BYTES, MutationBatch, MutationResult, ReplicaState, StopReason, TTL_BYTES,
};
use bytes::Bytes;
use flotilla_consensus::{Group, GroupConfig, Message, ProposeError, RaftRole, Ready, Restored, StepError};
use flotilla_storage::log::{LogBatch, LogRecord};
use flotilla_storage::store::layout::Filing;
use flotilla_types::{Entry, EntryKind, GroupId, LogIndex, MembershipChange, NodeId, PlantedFault, ReplicaId, ReplicaKey, Term};
use std::collections::{BTreeMap, VecDeque};

/// What waits for the log.
#[derive(Debug, Default)]
pub(crate) struct LogQueue {
    batch: LogBatch,
    batch_bytes: usize,
    must_sync: bool,
    held: Vec<Held>,
    /// Number of the last job sent.
    sent: u64,
    synced: u64,
    /// Jobs under way, and what each releases.
    under_way: VecDeque<(u64, Vec<Held>)>,
}

/// Released when its job is on disk.
#[derive(Debug)]
struct Held {
    replica: ReplicaKey,
    /// The Ready that is persisted by then.
    number: u64,
    messages: Vec<Message>,
    /// Instead: the next stage of a snapshot's install.
    install: Option<InstallStage>,
}

impl LogQueue {
    /// Adds a record to this turn's job.
    pub(crate) fn push(&mut self, record: LogRecord) {
        if let LogRecord::Entries { entries, .. } = &record {
            self.batch_bytes += entries.iter().map(|entry| entry.data.len() + ENTRY_OVERHEAD).sum::<usize>();
        }
        self.batch.records.push(record);
        self.must_sync = true;
    }

    /// Whether this turn's job is as large as one may be: the rest goes into the next.
    pub(crate) fn is_full(&self) -> bool {
        self.batch_bytes >= JOB_BYTES_MAX
    }

    /// The number of the oldest job that is not on disk.
    pub(crate) fn oldest_job(&self) -> Option<u64> {
        self.under_way.front().map(|(number, _)| *number)
    }

    /// A replica's first records are in this turn's job.
    pub(crate) fn wait_for_next(&self, replica: Option<&mut Replica>) {
        if let Some(replica) = replica {
            replica.synced_wait = self.sent + 1;
        }
    }

    /// Whether all of a group's records are on disk.
    fn is_synced(&self, replica: &Replica) -> bool {
        replica.synced_wait <= self.synced
    }

    /// Holds something back until this turn's job is on disk, or the last one that the group is in.
    fn hold(&mut self, replica: &mut Replica, with_records: bool, held: Held) {
        let next = self.sent + 1;
        if with_records {
            replica.synced_wait = next;
        }
        match self.under_way.iter_mut().find(|(number, _)| *number == replica.synced_wait) {
            Some((_, waiting)) => waiting.push(held),
            None => self.held.push(held),
        }
    }
}

impl Node {
    /// Proposes what was asked of a shard in this turn as one entry (or as few as the limits allow).
    pub(crate) fn propose_pending(&mut self, group: GroupId, now: Now) {
        if self.replicas.get(&group).is_none_or(|replica| replica.pending.is_empty()) {
            return;
        }
        let clock = self.clock(now);
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if !replica.is_leader() {
            let unproposed = replica.take_pending();
            return self.reroute(group, unproposed);
        }
        while !replica.pending.is_empty() {
            let count = fill(&mut self.mutations, &replica.pending);
            match replica.group.propose(self.mutations.finish(clock)) {
                Ok((term, index)) => {
                    self.stats.proposals += 1;
                    self.stats.mutations += count as u64;
                    let waiters = replica.pending.drain(..count).map(|(waiter, _)| Some(waiter)).collect();
                    replica.pending_bytes = replica.pending.iter().map(|(_, request)| request.bytes()).sum();
                    replica.proposed.push_back(Proposed { index, term, waiters });
                }
                // Held back: the group becomes dirty again when something is committed or decided.
                Err(ProposeError::Transferring | ProposeError::TooMuchUncommitted | ProposeError::ChangePending) => return,
                Err(_) => {
                    let unproposed = replica.take_pending();
                    return self.reroute(group, unproposed);
                }
            }
        }
    }

    /// Takes all that a group has ready.
    pub(crate) fn take_readies(&mut self, group: GroupId, now: Now) {
        while let Some(replica) = self.replicas.get_mut(&group)
            && replica.install.is_none()
            && let Some(ready) = replica.group.take_ready()
        {
            self.take_ready(group, ready, now);
        }
        let wanted = self.replicas.get_mut(&group).map(|replica| replica.group.snapshots_wanted()).unwrap_or_default();
        for follower in wanted {
            self.begin_transfer(group, follower, now.instant);
        }
    }

    fn take_ready(&mut self, group: GroupId, mut ready: Ready, now: Now) {
        self.send_raft(group, std::mem::take(&mut ready.send_now));
        if self.config.fault == Some(PlantedFault::LoneVoterSendsBeforeSync) {
            self.send_raft(group, std::mem::take(&mut ready.send_when_persisted));
        }
        let committed = std::mem::take(&mut ready.committed);
        self.queue_apply(group, committed, now);
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let key = replica.key;
        if let Some(snapshot) = &ready.snapshot {
            // What gathers must come to the store before the switch, not be answered with what comes after it.
            self.apply.hurry();
            // Decision 8: announce, switch, record; everything else of this Ready waits.
            let incoming = replica.incoming.take();
            let Some((incoming, state)) = incoming.and_then(|incoming| incoming.complete_at(snapshot.index).map(|state| (incoming, state)))
            else {
                self.out.fatal = Some(format!("{key} was given a snapshot at {} whose rows never came", snapshot.index));
                return;
            };
            let record = incoming.install_record(snapshot);
            self.log.push(LogRecord::Installing { replica: key, snapshot: record });
            let held = Held { replica: key, number: ready.number, messages: Vec::new(), install: Some(InstallStage::Announcing) };
            self.log.hold(replica, true, held);
            replica.install = Some(Install { generation: incoming.generation, state, record, stage: InstallStage::Announcing, ready });
            return;
        }
        self.persist_ready(group, ready);
    }

    /// Writes a Ready's records and holds its promises back until they are on disk.
    fn persist_ready(&mut self, group: GroupId, ready: Ready) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let (key, number) = (replica.key, ready.number);
        let messages = ready.send_when_persisted;
        if !ready.needs_log && self.log.is_synced(replica) {
            replica.group.on_persisted(number);
            return self.send_raft(group, messages);
        }
        if ready.needs_log {
            if let Some(hard_state) = ready.hard_state
                && self.config.fault != Some(PlantedFault::VoteNotPersisted)
            {
                self.log.push(LogRecord::HardState { replica: key, hard_state });
            }
            if !ready.entries.is_empty() {
                self.log.push(LogRecord::Entries { replica: key, entries: ready.entries });
            }
            self.log.must_sync |= ready.must_sync;
        }
        let held = Held { replica: key, number, messages, install: None };
        self.log.hold(replica, ready.needs_log, held);
    }

    /// Sends this turn's log job, if there is anything in it.
    pub(crate) fn send_log_job(&mut self) {
        let queue = &mut self.log;
        if queue.batch.records.is_empty() && queue.held.is_empty() {
            return;
        }
        queue.sent += 1;
        queue.batch_bytes = 0;
        self.stats.log_jobs += 1;
        queue.under_way.push_back((queue.sent, std::mem::take(&mut queue.held)));
        let job = LogJob { number: queue.sent, batch: std::mem::take(&mut queue.batch), must_sync: std::mem::take(&mut queue.must_sync) };
        self.out.log = Some(job);
    }

    pub(crate) fn handle_log_synced(&mut self, job: u64, _now: Now) {
        self.log.synced = self.log.synced.max(job);
        self.log_is_full = false;
        while let Some((_, held)) = self.log.under_way.pop_front_if(|(number, _)| *number <= job) {
            for Held { replica: key, number, messages, install } in held {
                let Some(replica) = self.replicas.get_mut(&key.group).filter(|replica| replica.key == key) else { continue };
                self.dirty.insert(key.group);
                match install {
                    None => {
                        replica.group.on_persisted(number);
                        self.send_raft(key.group, messages);
                    }
                    Some(stage) => self.advance_install(key.group, stage),
                }
            }
        }
    }

    /// The log has recorded a stage of an install: go on with the next.
    fn advance_install(&mut self, group: GroupId, stage: InstallStage) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let key = replica.key;
        let Some(install) = replica.install.as_mut() else { return };
        match stage {
            InstallStage::Announcing => {
                install.stage = InstallStage::Switching;
                let job = StoreJob::FinishInstall { replica: key, generation: install.generation, state: Box::new(install.state.clone()) };
                self.out.store.push(job);
            }
            InstallStage::Switching => {}
            InstallStage::Recording => {
                let Some(Install { generation, state, ready, .. }) = replica.install.take() else { return };
                let index = state.applied.0;
                replica.filing = Filing { under: key, generation };
                replica.applied = index;
                replica.keys = state.keys;
                replica.bytes = state.bytes;
                replica.group.on_persisted(ready.number);
                replica.group.on_applied(index);
                self.stats.snapshots_installed += 1;
                self.send_raft(group, ready.send_when_persisted);
                if let Some(control) = state.control.as_ref().filter(|_| group == GroupId::CONTROL) {
                    self.adopt_control(&control.clone());
                }
                self.settle_superseded(group, (state.applied.1, index.next()), true);
                self.run_reads_up_to(group);
            }
        }
    }

    /// The store has switched to the snapshot's generation: record it before it is acknowledged.
    pub(crate) fn handle_snapshot_installed(&mut self, key: ReplicaKey, generation: u32, state: Option<Box<ReplicaState>>) {
        let Some(replica) = self.replicas.get_mut(&key.group).filter(|replica| replica.key == key) else { return };
        let Some(install) = replica.install.as_mut().filter(|install| install.generation == generation) else { return };
        let Some(state) = state else {
            // Raft has already taken the snapshot as its own past; only a restart takes that back.
            self.out.fatal = Some(format!("{key}: generation {generation} of a snapshot could not be put in force"));
            return;
        };
        install.state = *state;
        install.stage = InstallStage::Recording;
        let number = install.ready.number;
        let snapshot = install.record;
        self.log.push(LogRecord::Installed { replica: key, snapshot });
        if let Some(hard_state) = install.ready.hard_state {
            self.log.push(LogRecord::HardState { replica: key, hard_state });
        }
        let entries = std::mem::take(&mut install.ready.entries);
        if !entries.is_empty() {
            self.log.push(LogRecord::Entries { replica: key, entries });
        }
        let held = Held { replica: key, number, messages: Vec::new(), install: Some(InstallStage::Recording) };
        self.log.hold(replica, true, held);
    }

    /// Sends a group's Raft messages to the nodes their receivers are on.
    fn send_raft(&mut self, group: GroupId, messages: Vec<Message>) {
        for message in messages {
            if message.is_snapshot() {
                self.attach_snapshot(group, message);
                continue;
            }
            let Some(replica) = self.replicas.get(&group) else { return };
            if let Some(node) = replica.node_of(message.to()) {
                self.stats.raft_messages += 1;
                self.out.messages.push((node, PeerMessage::Raft { group, message }));
            }
        }
    }

    pub(crate) fn handle_raft(&mut self, from: NodeId, group: GroupId, message: Message, now: Now) {
        let key = ReplicaKey { group, replica: message.to() };
        if !self.ensure_replica(key, from, now) {
            return;
        }
        let over = self.unapplied_bytes > self.config.unapplied_bytes_max;
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if over && message.entry_count() > 0 {
            return; // As on a full link: Raft sends it again.
        }
        replica.senders.insert(message.from(), from);
        if message.is_snapshot() {
            return; // Comes only with the last of its rows.
        }
        self.dirty.insert(group);
        let sender = message.from();
        match replica.group.step(message) {
            Ok(()) => replica.note_heard(sender, now.instant),
            // Something that this replica had acknowledged is gone: it must not vote on what is left.
            Err(error @ (StepError::CommitPastEnd { .. } | StepError::Diverged { .. })) => {
                self.stop_replica(key, &StopReason::Damaged(error.to_string()))
            }
            Err(error) => self
                .out
                .notices
                .push(Notice::debug(format!("{key} refused a message: {error}")).of_replica(key).of_peer(self.name_of(from))),
        }
    }

    /// Makes sure that the addressed replica is here, creating it if the control group wants it;
    /// tells the sender if it is gone for ever.
    pub(crate) fn ensure_replica(&mut self, key: ReplicaKey, from: NodeId, now: Now) -> bool {
        if self.replicas.get(&key.group).is_some_and(|replica| replica.key == key) {
            return true;
        }
        match self.standing(key) {
            Standing::Removed => {
                self.send(from, PeerMessage::Gone { group: key.group, replica: key.replica });
                false
            }
            // It is made of what is here, not of what it is sent.
            Standing::Wanted(_) if self.control.is_to_be_reborn(key) => false,
            Standing::Wanted(_) if !self.replicas.contains_key(&key.group) && self.is_wanted_here(key) => {
                // The sender comes back: by then the control state is confirmed.
                let Some(first_new) = self.first_new_replica else { return false };
                if key.replica.0 < first_new {
                    let line = format!("the log is damaged, and {key} may have lain there: it will be re-seeded from the other replicas");
                    self.out.notices.push(Notice::error(line).of_replica(key));
                    self.retire_damaged(key);
                    return false;
                }
                self.log.push(LogRecord::Created { replica: key, start: Node::NOWHERE });
                let config = GroupConfig { replica: key.replica, ..self.config.group.clone() };
                let restored = Restored {
                    hard_state: Default::default(),
                    membership: Default::default(),
                    applied: LogIndex(0),
                    start: Node::NOWHERE,
                    entries: Vec::new(),
                };
                let rng = self.rng.fork();
                let group = Group::new(config, restored, rng).expect("an empty replica is consistent");
                let mut replica = Replica::new(key, group, now.instant);
                replica.synced_wait = self.log.sent + 1;
                self.replicas.insert(key.group, replica);
                self.create_empty_state(key);
                true
            }
            Standing::Unknown => {
                let ask = PeerMessage::ControlAsk { epoch: self.control.epoch, orphan: None };
                self.send(from, ask);
                false
            }
            _ => false,
        }
    }

    /// Hands committed entries to the apply thread, with the configuration that each change makes.
    fn queue_apply(&mut self, group: GroupId, entries: Vec<Entry>, now: Now) {
        if !entries.is_empty() && group != GroupId::CONTROL {
            self.note_served(now.instant);
        }
        let Some(replica) = self.replicas.get_mut(&group).filter(|_| !entries.is_empty()) else { return };
        let answers_wanted = !replica.proposed.is_empty() || group == GroupId::CONTROL;
        let mut memberships = Vec::new();
        let mut bytes = 0;
        for entry in &entries {
            bytes += entry.data.len() + ENTRY_OVERHEAD;
            if replica.change_at == Some(entry.index) {
                replica.change_at = None;
            }
            if entry.kind == EntryKind::Membership {
                let change = MembershipChange::decode(entry.data.clone()).expect("committed entries are our own encoding");
                memberships.push((entry.index, replica.group.apply_membership(&change)));
            }
        }
        replica.applying.extend(entries.last().map(|last| (last.index, bytes)));
        let key = replica.key;
        let is_awaited = answers_wanted || !memberships.is_empty() || replica.is_leader();
        self.unapplied_bytes += bytes;
        if !memberships.is_empty() {
            self.report_soon(now);
        }
        // A turn may take several Readies of a group.
        self.apply.push(GroupApply { replica: key, entries, memberships, answers_wanted }, bytes, is_awaited);
    }

    /// Sends the committed entries of all groups that are to be applied now as one job.
    pub(crate) fn send_apply_job(&mut self) {
        let due = self.apply.take_due();
        if !due.is_empty() {
            self.out.store.push(StoreJob::Apply(due));
        }
    }

    pub(crate) fn handle_applied(&mut self, applied: GroupApplied, now: Now) {
        let key = applied.replica;
        let Some(replica) = self.replicas.get_mut(&key.group).filter(|replica| replica.key == key) else { return };
        let index = applied.applied.0;
        if let Some(reason) = &applied.stopped {
            return self.stop_replica(key, reason);
        }
        assert!(index >= replica.applied, "{key} was applied backwards, from {} to {index}", replica.applied);
        replica.applied = index;
        replica.note_applied();
        while let Some((_, bytes)) = replica.applying.pop_front_if(|(last, _)| *last <= index) {
            self.unapplied_bytes -= bytes;
            self.supervision.applied_bytes += bytes;
        }
        replica.keys = applied.keys;
        replica.bytes = applied.bytes;
        replica.expiry.take_applied(&applied);
        replica.group.on_applied(index);
        self.dirty.insert(key.group);
        for (index, term, results) in applied.answers {
            self.settle_superseded(key.group, (term, index), false);
            let Some(proposed) =
                self.replicas.get_mut(&key.group).and_then(|r| r.proposed.pop_front_if(|p| p.index == index && p.term == term))
            else {
                continue;
            };
            assert_eq!(proposed.waiters.len(), results.len(), "{key} at {index}: one result for each mutation");
            for (waiter, result) in proposed.waiters.into_iter().zip(results) {
                if let Some(waiter) = waiter {
                    self.answer(waiter.to, reply_of(result));
                }
            }
        }
        if let Some(control) = applied.control {
            self.adopt_control(&control);
        }
        for (index, term, answer) in applied.control_answers {
            self.handle_control_answer(index, term, &answer);
            self.handle_admin_answer(index, term, &answer, now);
        }
        self.settle_superseded(key.group, (applied.applied.1, index.next()), false);
        if let Some((index, hash)) = applied.checkpoint {
            self.report_checkpoint(key.group, index, hash);
        }
        if let Some(mark) = applied.scrub {
            self.handle_scrub_mark(key, mark, now);
        }
        self.run_reads_up_to(key.group);
        self.leave_if_removed(key.group, now);
    }

    /// The state machine cannot go on here. Damage is healed from the others; an entry of a later
    /// format is not, since every replica of this version stops at it.
    pub(crate) fn stop_replica(&mut self, key: ReplicaKey, reason: &StopReason) {
        let alone = self.replicas.get(&key.group).is_some_and(|replica| replica.group.membership().voters.len() < 3);
        match reason {
            StopReason::Damaged(detail) if !alone => {
                self.out.notices.push(
                    Notice::error(format!("{key} is damaged and will be re-seeded from the other replicas: {detail}")).of_replica(key),
                );
                self.retire_damaged(key);
            }
            reason => self.out.fatal = Some(format!("{key} cannot go on: {reason}")),
        }
    }

    /// Rows could not be read, though the state machine has not met them. Where the other copies do not suffice now,
    /// this one goes on with what it can read, and lets another lead.
    pub(crate) fn handle_damaged_rows(&mut self, key: ReplicaKey, detail: String, now: Now) {
        let Some(replica) = self.replicas.get(&key.group).filter(|replica| replica.key == key) else { return };
        let voters = &replica.group.membership().voters;
        let is_there = |id: ReplicaId, node: NodeId| {
            let voter = ReplicaKey { group: key.group, replica: id };
            // A leader knows whether a replica is there, not only its node.
            let answers = !replica.is_leader() || replica.is_heard(id, now.instant);
            node != self.identity.node && self.link_is_up(node) && self.control.is_wanted(voter) && answers
        };
        let others = voters.iter().filter(|(id, node)| is_there(**id, **node)).count();
        if others > voters.len() / 2 {
            return self.stop_replica(key, &StopReason::Damaged(detail));
        }
        let line = format!("{key} is damaged and cannot be re-seeded as long as so few of its other copies are there: {detail}");
        self.out.notices.push(Notice::error(line).of_replica(key));
        if replica.is_leader() {
            self.hand_over_group(key.group, now.instant);
        }
    }

    /// Answers what was proposed before `end` (in the order of terms, then indexes) and is in force by no
    /// answer of its own. The state machine has an entry of `end`'s term, and terms never fall along a
    /// log: so what an earlier term proposed and was not applied never will be, at whatever index.
    /// Behind a `snapshot` it cannot be told which of the entries up to it were applied.
    fn settle_superseded(&mut self, group: GroupId, end: (Term, LogIndex), snapshot: bool) {
        let before_end = |p: &mut Proposed| (p.term, p.index) < end;
        while let Some(proposed) = self.replicas.get_mut(&group).and_then(|replica| replica.proposed.pop_front_if(before_end)) {
            let may_be_applied = proposed.index < end.1 && (snapshot || proposed.term == end.0);
            for Waiter { to, .. } in proposed.waiters.into_iter().flatten() {
                let failure = if may_be_applied {
                    Failure::unknown(FailureReason::Timeout, "the shard's leader changed while the write was under way")
                } else {
                    let detail = "the shard's leader changed before the write was agreed on: try again";
                    Failure::not_applied(FailureReason::NoQuorum, detail)
                };
                self.answer(to, Reply::Failed(failure));
            }
        }
    }

    /// What the store holds durably need not be replayed; what is also not kept for slow followers
    /// is purged from memory and log.
    pub(crate) fn handle_persisted(&mut self, indexes: &BTreeMap<ReplicaKey, LogIndex>, now: Now) {
        self.persist_is_done();
        let keep_max = self.config.log_keep_bytes;
        let keep = keep_max / self.replicas.len().max(1);
        let mut held: usize = self.replicas.values().map(|replica| replica.group.entries_bytes()).sum();
        for (key, persisted) in indexes {
            let Some(replica) = self.replicas.get_mut(&key.group).filter(|replica| replica.key == *key && replica.install.is_none()) else {
                continue;
            };
            let sending = self.transfers.oldest_index(key.group);
            let keep = if sending.is_some() { keep * SENDING_KEEP_FACTOR } else { keep };
            let kept = replica.group.purge_point(keep);
            // Each group's last entry may be larger than its share. Past the bound such groups keep what others lack; past
            // twice the bound nothing, and whoever lacks it gets a snapshot. What is behind one under way is always kept.
            let before = replica.group.entries_bytes();
            let through = match held {
                held if held <= keep_max || before <= keep => kept,
                held if held <= 2 * keep_max => kept.max(replica.matched_by_others(now.instant).unwrap_or(kept)),
                _ => *persisted,
            };
            let through = if through > kept { through.min(sending.unwrap_or(through)).max(kept) } else { through };
            let through = through.min(*persisted);
            if through >= replica.group.first_index()
                && let Some(term) = replica.group.term_at(through)
            {
                self.log.batch.records.push(LogRecord::Purge { replica: *key, through, term });
                replica.group.purge(through);
                held -= before - replica.group.entries_bytes();
            }
        }
    }

    /// Looks whether a group's leader changed, and does what follows.
    pub(crate) fn notice_leader(&mut self, group: GroupId, now: Now) {
        let me = self.identity.node;
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let leader = if replica.is_leader() { Some(me) } else { replica.leader_node() };
        let before = std::mem::replace(&mut replica.leader_seen, leader);
        let campaigns = matches!(replica.group.role(), RaftRole::PreCandidate | RaftRole::Candidate);
        // Who needs no other vote has won before it is seen to ask for any.
        let has_won = leader == Some(me) && before != leader;
        if (campaigns || has_won) && !replica.campaigns_seen {
            self.stats.elections_begun += 1;
        }
        replica.campaigns_seen = campaigns;
        match leader {
            Some(_) => {
                replica.leaderless_since = None;
                replica.campaign_at = None;
            }
            None => {
                replica.leaderless_since.get_or_insert(now.instant);
            }
        }
        if leader == before {
            return;
        }
        self.stats.leader_changes += u64::from(leader.is_some());
        let (key, term) = (replica.key, replica.group.term());
        let line = leader
            .map_or_else(|| format!("{group} has no leader in {term}"), |node| format!("{} leads {group} in {term}", self.name_of(node)));
        self.out.notices.push(Notice::debug(line).of_replica(key));
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if leader == Some(me) {
            replica.expiry.begin_to_lead();
            replica.scrub.begin_to_lead(self.config.scrub_interval, now.instant);
        }
        if before == Some(me) {
            let unproposed = replica.take_pending();
            replica.checkpoints.clear();
            replica.scrub.end_to_lead();
            replica.change_at = None;
            self.reroute(group, unproposed);
            self.reroute_reads(group);
            self.drop_transfers_of(group);
        }
        if leader == Some(me) {
            // One frame and one wake-up for the heartbeats of all groups, instead of one each.
            let interval = self.config.group.heartbeat_ticks;
            if let Some(replica) = self.replicas.get_mut(&group) {
                replica.ticks_to_skip = (interval - self.ticks % interval) % interval;
            }
            // What it gathered as a follower its clients wait for now.
            self.apply.hurry();
            self.stats.elections_won += 1;
        }
        if leader.is_some() {
            self.retry_parked_of(group, now);
        }
    }

    /// Proposes a command to the control group, if it is led here.
    pub(crate) fn propose_control(&mut self, command: &ControlCommand) -> Option<(LogIndex, Term)> {
        let replica = self.replicas.get_mut(&GroupId::CONTROL).filter(|replica| replica.is_leader())?;
        let data: Bytes = command.encode();
        let (term, index) = replica.group.propose(data).ok()?;
        self.stats.proposals += 1;
        self.dirty.insert(GroupId::CONTROL);
        Some((index, term))
    }
}

/// Bytes of entries after which a log job takes no further groups.
const JOB_BYTES_MAX: usize = 64 << 20;
/// Bytes that an entry costs beside its data, for bounds.
pub(crate) const ENTRY_OVERHEAD: usize = 64;
/// How many times the usual is kept of a group's log while a snapshot of it is being sent.
const SENDING_KEEP_FACTOR: usize = 4;

fn reply_of(result: MutationResult) -> Reply {
    match result {
        MutationResult::Put { version, created } => Reply::Put { version, created },
        MutationResult::Deleted { deleted } => Reply::Deleted { deleted },
        MutationResult::ConditionFailed { present } => Reply::ConditionFailed { present },
        MutationResult::Incremented { value, version } => Reply::Incremented { value, version },
        MutationResult::Refused(refusal) => Reply::Refused(refusal),
    }
}

/// Appends as many of the requests as one entry takes, at least one; gives how many.
fn fill(batch: &mut MutationBatch, pending: &[(Waiter, Request)]) -> usize {
    let count = pending.iter().take_while(|(_, request)| append(batch, request)).count();
    assert!(count > 0, "an empty batch takes any one mutation");
    count
}

/// Appends a write, unless the entry is full.
fn append(batch: &mut MutationBatch, request: &Request) -> bool {
    let (id, write) = match request {
        Request::Idempotent { id, write } => (Some(*id), &**write),
        write => (None, write),
    };
    let (key, bytes, condition) = match write {
        Request::Put { key, value, ttl, condition } => (key, value.len() + ttl.map_or(0, |_| TTL_BYTES), condition),
        Request::Delete { key, condition } => (key, 0, condition),
        Request::Increment { key, condition, .. } => (key, INCREMENT_BYTES, condition),
        other => unreachable!("only writes are pending, not {other:?}"),
    };
    if !batch.fits(key.as_bytes().len(), bytes + id.map_or(0, |_| IDEMPOTENT_BYTES), condition) {
        return false;
    }
    if let Some(id) = id {
        batch.idempotent(id);
    }
    match write {
        Request::Put { value, ttl: None, .. } => batch.put(key, value, condition),
        Request::Put { value, ttl: Some(ttl), .. } => batch.put_expiring(key, value, *ttl, condition),
        Request::Increment { by, .. } => batch.increment(key, *by, condition),
        _ => batch.delete(key, condition),
    };
    true
}

#[cfg(test)]
mod tests;
