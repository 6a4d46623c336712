//! One replica of one Raft group: the face of this crate.
//!
//! A thin layer over the library's `RawNode`: it translates, keeps the [`Membership`] with its
//! nodes, holds messages back until their `Ready` is on disk, and asserts what the library would
//! otherwise panic about further inside.
//!
//! Invariants:
//! - start ≤ applied ≤ commit ≤ last index; purged ≤ applied.
//! - no message that speaks for a term or vote goes out before that term and vote are on disk;
//! - nobody campaigns while entries or a snapshot of its own are not on disk (the library asserts
//!   that a new leader's log is).

use crate::config::GroupConfig;
use crate::election_timer::ElectionTimer;
use crate::entry_cache::EntryCache;
use crate::error::{ConsensusError, ProposeError, StepError};
use crate::message::{Message, MessageKind, entry_from_raft, entry_to_raft};
use crate::ready::Ready;
use crate::snapshot::SnapshotMeta;
use crate::{membership, validate};
use bytes::Bytes;
use flotilla_types::{Entry, EntryKind, HardState, LogIndex, Membership, MembershipChange, ReplicaId, Rng, Term};
use raft::eraftpb::{self, EntryType};
use raft::{Changer, GetEntriesContext, INVALID_ID, ProgressState, RaftState, RawNode, SnapshotStatus, StateRole};
use std::collections::{BTreeMap, VecDeque};

/// An entry above this is not sent again as long as it may be on its way.
const LARGE_ENTRY_BYTES: usize = 64 << 10;

/// What a replica begins from: what its log and its store hold.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// The last durable hard state.
    pub hard_state: HardState,
    /// The membership as of `applied`; empty for a new replica, which waits for a snapshot.
    pub membership: Membership,
    /// How far the store has applied.
    pub applied: LogIndex,
    /// The position before the first entry.
    pub start: (LogIndex, Term),
    /// The log's entries after `start`.
    pub entries: Vec<Entry>,
}

/// A replica's part in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaftRole {
    /// Follows, or does not know whom to follow.
    Follower,
    /// Asks whether an election could be won.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// What a leader knows of another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Up to where its log is known to be the leader's.
    pub matched: LogIndex,
    /// Whether it was heard from within the last election timeout.
    pub recently_active: bool,
    /// Whether it is waiting for a snapshot that was sent.
    pub in_snapshot: bool,
}

/// See the module.
pub struct Group {
    raw: RawNode<EntryCache>,
    config: GroupConfig,
    membership: Membership,
    timer: ElectionTimer,
    /// What was last given out to be written.
    logged: HardState,
    /// The last `Ready` given out, and the last one reported to be on disk.
    number_taken: u64,
    number_persisted: u64,
    /// The last `Ready` that changed term or vote, and the last one with entries or a snapshot.
    vote_number: u64,
    log_number: u64,
    /// The leader's request to take over, while this replica may not campaign yet.
    campaign_asked: Option<Message>,
    /// Snapshots being installed: number of the `Ready`, index.
    installing: VecDeque<(u64, u64)>,
    /// Ticks so far, and at which of them a follower that is probed was last sent to on a heartbeat's answer.
    ticks: u64,
    resumed: BTreeMap<ReplicaId, u64>,
}

impl Group {
    /// A replica as its disk left it. It starts as a follower.
    ///
    /// # Errors
    /// If log and store do not fit together, or the configuration is wrong.
    pub fn new(config: GroupConfig, restored: Restored, rng: Rng) -> Result<Group, ConsensusError> {
        let Restored { hard_state, membership, applied, start, entries } = restored;
        let last = LogIndex(start.0.0 + entries.len() as u64);
        if applied < start.0 {
            return Err(ConsensusError::AppliedBeforeStart { applied, start: start.0 });
        }
        if applied > last {
            return Err(ConsensusError::AppliedPastEnd { applied, last });
        }
        if membership != Membership::default() {
            membership::contradiction(&membership).map_or(Ok(()), |what| Err(ConsensusError::Membership(what)))?;
        }
        let mut before = start;
        for entry in &entries {
            let readable = entry.kind == EntryKind::Normal || MembershipChange::decode(entry.data.clone()).is_ok();
            if entry.index != before.0.next() || entry.term < before.1 || !readable {
                return Err(ConsensusError::Entries(entry.index));
            }
            before = (entry.index, entry.term);
        }
        // The log's last term is a term this replica has seen, also if it was born with the log and
        // never wrote a hard state. In a term it has not written down it cannot have voted.
        let term = hard_state.term.max(before.1);
        let vote = if term == hard_state.term { hard_state.vote } else { None };
        // The durable mark may lag behind the store, and may be ahead of a log whose tail was cut.
        let commit = hard_state.commit.max(applied).min(last);
        let initial = RaftState {
            hard_state: eraftpb::HardState { term: term.0, vote: vote.map_or(INVALID_ID, |r| r.0), commit: commit.0, ..Default::default() },
            conf_state: membership::to_conf_state(&membership),
        };
        let raft_config = config.to_raft(applied.0)?;
        let cache = EntryCache::new((start.0.0, start.1.0), entries.into_iter().map(entry_to_raft).collect(), initial);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&raft_config, cache, &logger).map_err(|error| ConsensusError::Config(error.to_string()))?;
        let timer = ElectionTimer::new(config.election_ticks_min, config.election_ticks_max, rng);
        Ok(Group {
            raw,
            config,
            membership,
            timer,
            logged: hard_state,
            number_taken: 0,
            number_persisted: 0,
            vote_number: 0,
            log_number: 0,
            campaign_asked: None,
            installing: VecDeque::new(),
            ticks: 0,
            resumed: BTreeMap::new(),
        })
    }

    /// One tick of time has passed.
    pub fn tick(&mut self) {
        self.tick_with_patience(1);
    }

    /// The same, for a replica that should rather not lead: it waits three times as long for a leader before it campaigns.
    pub fn tick_patiently(&mut self) {
        self.tick_with_patience(3);
    }

    fn tick_with_patience(&mut self, factor: usize) {
        self.ticks += 1;
        if self.role() == RaftRole::Leader {
            let before = self.standing();
            self.raw.raft.tick();
            self.redraw_if_changed(before);
            return;
        }
        let raft = &mut self.raw.raft;
        raft.election_elapsed += 1;
        if self.timer.is_over(raft.election_elapsed / factor) && self.may_campaign() {
            self.raw.raft.election_elapsed = 0;
            self.timer.redraw();
            self.hup();
        }
    }

    /// Campaigns at once, by a pre-vote first. Nothing happens if this replica leads already, is no
    /// voter, or has something of its log not yet on disk.
    pub fn campaign(&mut self) {
        if self.may_campaign() {
            self.raw.raft.election_elapsed = 0;
            self.hup();
        }
    }

    fn hup(&mut self) {
        let before = self.standing();
        // The library refuses by doing nothing, as with a membership change not yet applied.
        let _ = self.raw.campaign();
        self.redraw_if_changed(before);
    }

    fn may_campaign(&self) -> bool {
        let raft = &self.raw.raft;
        raft.promotable()
            && self.log_number <= self.number_persisted
            && raft.raft_log.persisted == raft.raft_log.last_index()
            && raft.snap().is_none()
    }

    /// This replica knows the node of its leader to be dead: it no longer protects that leader from
    /// elections by refusing (pre-)votes for an election timeout.
    pub fn forget_leader(&mut self) {
        if self.role() == RaftRole::Follower {
            self.raw.raft.leader_id = INVALID_ID;
        }
    }

    /// Takes a message from another replica.
    ///
    /// # Errors
    /// If the message cannot be right or is not for this replica; nothing has changed then.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        validate::check(&self.raw.raft, &message)?;
        if message.kind() == MessageKind::CampaignNow && !self.may_campaign() {
            // Something of the log is on its way to the disk, a commit mark at least: the leader that hands over waits for an
            // election timeout before it goes on, so this must not be dropped.
            self.campaign_asked = Some(message);
            return Ok(());
        }
        if message.kind() == MessageKind::HeartbeatAnswer && self.would_repeat_probe(&message) {
            return Ok(());
        }
        let before = self.standing();
        let (from, snapshot) = (message.from(), message.snapshot_meta());
        let result = self.raw.step(message.0);
        self.redraw_if_changed(before);
        // The library switches to a snapshot's membership at once, before it is installed.
        if let Some(meta) = snapshot
            && self.raw.raft.snap().is_some_and(|pending| pending.get_metadata().index == meta.index.0)
        {
            self.membership = meta.membership;
        }
        // The only other error, of a local kind of message, cannot come out of a `Message`.
        result.map_err(|_| StepError::UnknownSender(from))
    }

    /// The library takes a heartbeat's answer for a sign that what it sent before is lost, and sends it again. Heartbeats pass
    /// large appends on their way, so for these that is right at most once in an election timeout; else the answer only counts.
    fn would_repeat_probe(&mut self, answer: &Message) -> bool {
        let (from, ticks) = (answer.from(), self.ticks);
        let raft = &self.raw.raft;
        let probed = |progress: &&raft::Progress| progress.state == ProgressState::Probe && progress.paused;
        let next = raft.prs().get(from.0).filter(probed).map(|progress| progress.next_idx);
        let is_leader = raft.state == StateRole::Leader && answer.term().0 == raft.term;
        let is_large = |next| {
            let entries = raft.raft_log.slice(next, next + 1, None, GetEntriesContext::empty(false));
            entries.is_ok_and(|entries| entries.iter().any(|entry| entry.data.len() > LARGE_ENTRY_BYTES))
        };
        let Some(_) = next.filter(|next| is_leader && *next <= raft.raft_log.last_index() && is_large(*next)) else {
            self.resumed.remove(&from);
            return false;
        };
        let since = self.resumed.entry(from).or_insert(ticks);
        if ticks - *since >= self.config.election_ticks_min as u64 {
            *since = ticks;
            return false;
        }
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(from.0) {
            progress.recent_active = true;
        }
        true
    }

    fn standing(&self) -> (u64, StateRole) {
        (self.raw.raft.term, self.raw.raft.state)
    }

    fn redraw_if_changed(&mut self, before: (u64, StateRole)) {
        if self.standing() != before {
            self.timer.redraw();
        }
    }

    /// Proposes `data` as one entry. Whether it is committed shows when it, or another entry at its
    /// index, comes out committed.
    ///
    /// # Errors
    /// If this replica cannot propose now; nothing was proposed.
    pub fn propose(&mut self, data: Bytes) -> Result<(Term, LogIndex), ProposeError> {
        self.check_may_propose()?;
        // What stepping a `MsgPropose` does, without the message.
        let raft = &mut self.raw.raft;
        if !raft.append_entry(&mut [eraftpb::Entry { data, ..Default::default() }]) {
            return Err(ProposeError::TooMuchUncommitted);
        }
        raft.bcast_append();
        Ok((self.term(), self.last_index()))
    }

    fn check_may_propose(&self) -> Result<(), ProposeError> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader || raft.prs().get(raft.id).is_none() {
            return Err(ProposeError::NotLeader);
        }
        if raft.lead_transferee.is_some() { Err(ProposeError::Transferring) } else { Ok(()) }
    }

    /// Proposes a change of membership: one step at once, several by a joint membership, none to
    /// leave the joint membership.
    ///
    /// # Errors
    /// If this replica cannot propose it now; no change was proposed.
    pub fn propose_membership(&mut self, change: &MembershipChange) -> Result<(Term, LogIndex), ProposeError> {
        self.check_may_propose()?;
        if self.raw.raft.has_pending_conf() {
            return Err(ProposeError::ChangePending);
        }
        let raft_change = membership::to_conf_change(change);
        // The library passes over replica 0 in silence.
        if raft_change.changes.iter().any(|single| single.node_id == INVALID_ID) {
            return Err(ProposeError::ChangeImpossible);
        }
        // The library takes changes that it will fail to apply; what it would be applied to is known
        // here, since no other change is under way.
        let mut changer = Changer::new(self.raw.raft.prs());
        let trial = match (raft_change.leave_joint(), raft_change.enter_joint()) {
            (true, _) => changer.leave_joint(),
            (false, Some(auto_leave)) => changer.enter_joint(auto_leave, &raft_change.changes),
            (false, None) => changer.simple(&raft_change.changes),
        };
        trial.map_err(|_| ProposeError::ChangeImpossible)?;
        self.raw.propose_conf_change(change.encode().to_vec(), raft_change).map_err(|_| ProposeError::TooMuchUncommitted)?;
        let proposed = self.raw.raft.raft_log.unstable_entries().last();
        let taken = proposed.is_some_and(|entry| entry.entry_type == EntryType::EntryConfChangeV2);
        // The library says no by proposing an empty entry instead.
        if taken { Ok((self.term(), self.last_index())) } else { Err(ProposeError::ChangePending) }
    }

    /// Makes a committed change. Called for each committed `Membership` entry, in order, before the
    /// entries after it. Returns the membership it leads to. A leader that is no voter in it is a
    /// follower afterwards.
    pub fn apply_membership(&mut self, change: &MembershipChange) -> Membership {
        let before = self.standing();
        // A change that does not fit leaves the membership as it is, on every replica alike.
        if let Ok(state) = self.raw.apply_conf_change(&membership::to_conf_change(change)) {
            self.membership = membership::after(&self.membership, change, &state);
        }
        // The library lets a leader that was removed stay, and then misses its own progress.
        if self.raw.raft.state == StateRole::Leader && !self.raw.raft.promotable() {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, INVALID_ID);
        }
        self.redraw_if_changed(before);
        self.membership.clone()
    }

    /// Whether this leader should propose [`MembershipChange::leave_joint`] now.
    pub fn should_leave_joint(&self) -> bool {
        self.membership.is_joint() && !self.raw.raft.has_pending_conf() && self.check_may_propose().is_ok()
    }

    /// Hands leadership to another voter. Proposals fail until it has happened, or an election
    /// timeout has passed. Nothing happens unless this replica leads.
    pub fn transfer_leadership(&mut self, to: ReplicaId) {
        if self.role() == RaftRole::Leader && (self.membership.voters.contains_key(&to) || self.membership.outgoing.contains_key(&to)) {
            self.raw.transfer_leader(to.0);
        }
    }

    /// The replica that leadership is being handed to is gone: this one leads on. Should the other have begun to campaign, votes decide.
    pub fn abandon_transfer_to(&mut self, to: ReplicaId) {
        if self.raw.raft.lead_transferee == Some(to.0) {
            // The library's way to say so: a transfer to oneself ends one to another, and is no transfer.
            let own = self.raw.raft.id;
            self.raw.transfer_leader(own);
        }
    }

    /// Whether leadership is being handed over.
    pub fn is_transferring(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// Whether [`Group::take_ready`] would give something.
    pub fn has_ready(&self) -> bool {
        self.raw.has_ready()
    }

    /// What is to be done now, if anything. May be called again before earlier `Ready`s are on disk.
    pub fn take_ready(&mut self) -> Option<Ready> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut raft_ready = self.raw.ready();
        let number = raft_ready.number();
        assert_eq!(number, self.number_taken + 1, "readies are numbered one by one");
        self.number_taken = number;

        let snapshot = (!raft_ready.snapshot().is_empty()).then(|| SnapshotMeta::from_raft(raft_ready.snapshot()));
        let raft_entries = raft_ready.take_entries();
        let entries: Vec<Entry> = raft_entries.iter().map(entry_from_raft).collect();
        let committed = raft_ready.take_committed_entries().iter().map(entry_from_raft).collect();
        let mut messages = raft_ready.take_messages();
        messages.append(&mut raft_ready.take_persisted_messages());
        let cache = self.raw.raft.mut_store();
        if let Some(meta) = &snapshot {
            cache.restore(meta.index.0, meta.term.0);
            self.installing.push_back((number, meta.index.0));
        }
        cache.append(raft_entries);
        self.raw.advance_append_async(raft_ready);

        let now = self.hard_state();
        let votes = (now.term, now.vote) != (self.logged.term, self.logged.vote);
        let has_log = snapshot.is_some() || !entries.is_empty();
        if votes {
            self.vote_number = number;
        }
        if has_log {
            self.log_number = number;
        }
        let needs_log = votes || has_log;
        let hard_state = (needs_log && now != self.logged).then_some(now);
        self.logged = hard_state.unwrap_or(self.logged);

        // A leader may send entries while it writes them (Raft dissertation, section 10.2.1), but not
        // in a term that it could forget: a lone voter leads in the very step that raises its term.
        let may_send_now = self.raw.raft.state == StateRole::Leader && self.vote_number <= self.number_persisted;
        let messages: Vec<Message> = messages.into_iter().map(Message::from_raft).collect();
        let (send_now, send_when_persisted) = if may_send_now { (messages, Vec::new()) } else { (Vec::new(), messages) };
        Some(Ready { number, hard_state, entries, snapshot, send_now, send_when_persisted, committed, needs_log, must_sync: needs_log })
    }

    /// All `Ready`s up to `number` are on disk, their snapshots installed.
    ///
    /// # Panics
    /// If that `Ready` was never taken.
    pub fn on_persisted(&mut self, number: u64) {
        assert!(number <= self.number_taken, "only what was taken can be on disk");
        if number <= self.number_persisted {
            return;
        }
        self.number_persisted = number;
        self.raw.on_persist_ready(number);
        self.campaign_if_asked();
        while let Some((_, index)) = self.installing.pop_front_if(|(of, _)| *of <= number) {
            self.on_applied(LogIndex(index));
        }
    }

    /// Campaigns as a leader asked for that hands over, if that had to wait for the disk and is of use still.
    fn campaign_if_asked(&mut self) {
        if self.campaign_asked.is_none() || !self.may_campaign() {
            return;
        }
        if let Some(message) = self.campaign_asked.take().filter(|message| message.term() == self.term()) {
            let before = self.standing();
            // The library takes it or leaves it.
            let _ = self.raw.step(message.0);
            self.redraw_if_changed(before);
        }
    }

    /// The store has applied everything up to `index`. An installed snapshot needs no call.
    ///
    /// # Panics
    /// If that was not committed and on disk.
    pub fn on_applied(&mut self, index: LogIndex) {
        let log = &self.raw.raft.raft_log;
        if index.0 > log.applied {
            assert!(index.0 <= log.committed.min(log.persisted), "only what is committed and on disk can be applied");
            self.raw.advance_apply_to(index.0);
        }
    }

    /// Drops the entries up to `through` from memory. A follower that still needs them gets a snapshot.
    ///
    /// # Panics
    /// If they are not all applied.
    pub fn purge(&mut self, through: LogIndex) {
        assert!(through <= self.applied(), "only applied entries can be purged");
        // Behind a snapshot that is being installed there is nothing left to drop.
        self.raw.raft.mut_store().purge(through.0);
    }

    /// Up to where entries can be purged so that about `keep_bytes` of the applied and later ones stay,
    /// for followers that lag; below [`Group::first_index`] if there is nothing to purge.
    pub fn purge_point(&self, keep_bytes: usize) -> LogIndex {
        LogIndex(self.raw.raft.store().purge_point(keep_bytes)).min(self.applied())
    }

    /// Memory held by entries.
    pub fn entries_bytes(&self) -> usize {
        self.raw.raft.store().bytes() + self.raw.raft.raft_log.unstable.entries_size
    }

    /// Messages to a replica were lost: the leader probes before it sends more.
    pub fn report_unreachable(&mut self, replica: ReplicaId) {
        self.raw.report_unreachable(replica.0);
    }

    /// A snapshot that was sent has been delivered with its rows, or has failed. Exactly once for each.
    pub fn report_snapshot(&mut self, replica: ReplicaId, delivered: bool) {
        self.raw.report_snapshot(replica.0, if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
    }

    /// Followers that need a snapshot, each once; a follower that still needs one is named again with
    /// its next sign of life.
    pub fn snapshots_wanted(&mut self) -> Vec<ReplicaId> {
        let wanted = self.raw.raft.mut_store().take_wanted();
        if self.role() == RaftRole::Leader { wanted } else { Vec::new() }
    }

    /// Offers a snapshot to a follower. If it is taken, a message of kind `Snapshot` with this
    /// metadata comes out of the next `Ready`, and [`Group::report_snapshot`] must follow. If not
    /// (the follower has caught up, is silent, or this replica does not lead) the snapshot is not needed now.
    ///
    /// # Panics
    /// If the snapshot is ahead of what is applied.
    #[must_use = "a snapshot that is not taken must be let go"]
    pub fn offer_snapshot(&mut self, to: ReplicaId, snapshot: &SnapshotMeta) -> bool {
        assert!(snapshot.index <= self.applied(), "a snapshot is of what is applied");
        let raft = &mut self.raw.raft;
        if raft.state != StateRole::Leader || to == ReplicaId(raft.id) {
            return false;
        }
        let Some(progress) = raft.mut_prs().get_mut(to.0) else { return false };
        progress.resume();
        raft.mut_store().offer(to, snapshot.to_raft());
        raft.send_append(to.0);
        raft.mut_store().withdraw_offer()
    }

    fn hard_state(&self) -> HardState {
        let raft = &self.raw.raft;
        let vote = (raft.vote != INVALID_ID).then_some(ReplicaId(raft.vote));
        HardState { term: Term(raft.term), vote, commit: LogIndex(raft.raft_log.committed) }
    }

    /// This replica.
    pub fn replica(&self) -> ReplicaId {
        self.config.replica
    }

    /// What it is in its group.
    pub fn role(&self) -> RaftRole {
        match self.raw.raft.state {
            StateRole::Follower => RaftRole::Follower,
            StateRole::PreCandidate => RaftRole::PreCandidate,
            StateRole::Candidate => RaftRole::Candidate,
            StateRole::Leader => RaftRole::Leader,
        }
    }

    /// The present term.
    pub fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    /// The leader, as far as this replica knows.
    pub fn leader(&self) -> Option<ReplicaId> {
        (self.raw.raft.leader_id != INVALID_ID).then_some(ReplicaId(self.raw.raft.leader_id))
    }

    /// How far entries are known to be committed.
    pub fn commit(&self) -> LogIndex {
        LogIndex(self.raw.raft.raft_log.committed)
    }

    /// How far entries are applied, as reported.
    pub fn applied(&self) -> LogIndex {
        LogIndex(self.raw.raft.raft_log.applied)
    }

    /// The end of the log, on disk or not.
    pub fn last_index(&self) -> LogIndex {
        LogIndex(self.raw.raft.raft_log.last_index())
    }

    /// The first entry in memory, or where it would be.
    pub fn first_index(&self) -> LogIndex {
        LogIndex(self.raw.raft.raft_log.first_index())
    }

    /// The entries behind `index`, on disk or not, committed or not; `None` if they are not all in memory.
    pub fn entries_after(&self, index: LogIndex) -> Option<Vec<Entry>> {
        let log = &self.raw.raft.raft_log;
        let (low, high) = (index.0 + 1, log.last_index() + 1);
        if low < log.first_index() || log.unstable_snapshot().is_some() {
            return None;
        }
        if low >= high {
            return Some(Vec::new());
        }
        let entries = log.slice(low, high, None, GetEntriesContext::empty(false)).ok()?;
        Some(entries.iter().map(entry_from_raft).collect())
    }

    /// The membership as of the last change applied.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Whether this replica leads and has committed an entry of its own term: only then does its
    /// commit index cover every write that was ever acknowledged (Raft paper, section 8).
    pub fn serves_reads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader && self.raw.raft.commit_to_current_term()
    }

    /// What this leader knows of a replica; `None` if it does not lead or there is no such replica.
    pub fn progress(&self, replica: ReplicaId) -> Option<Progress> {
        let raft = &self.raw.raft;
        let progress = (raft.state == StateRole::Leader).then(|| raft.prs().get(replica.0))??;
        Some(Progress {
            matched: LogIndex(progress.matched),
            recently_active: progress.recent_active || replica.0 == raft.id,
            in_snapshot: progress.state == ProgressState::Snapshot,
        })
    }

    /// The term of the entry at `index`, if it is in memory or right before what is.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        let log = &self.raw.raft.raft_log;
        if index.0 + 1 < log.first_index() || index.0 > log.last_index() {
            return None;
        }
        log.term(index.0).ok().map(Term)
    }
}
