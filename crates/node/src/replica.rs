//! One group's copy on this node: its Raft group, what clients wait for, and where its state machine
//! stands. Plain bookkeeping; the decisions are in `requests`, `replication`, `reading` and `transfer`.

use crate::effect::ReplyTo;
use crate::expiry::Expiry;
use crate::request::Request;
use crate::scrub::Scrub;
use crate::state_machine::ReplicaState;
use crate::transfer::Incoming;
use flotilla_consensus::{Group, RaftRole, Ready};
use flotilla_storage::log::InstallRecord;
use flotilla_storage::store::layout::Filing;
use flotilla_types::{Instant, Key, LogIndex, NodeId, ReplicaId, ReplicaKey, Term};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A replica that has said nothing for this long does not answer its leader: more than two election timeouts.
const HEARD_WITHIN: Duration = Duration::from_secs(3);

/// Somebody who waits for an answer until `expires`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiter {
    pub(crate) to: ReplyTo,
    pub(crate) expires: Instant,
}

/// A read that waits: for a leadership round, or for the state machine.
#[derive(Clone, Debug)]
pub(crate) struct WaitingRead {
    pub(crate) waiter: Waiter,
    pub(crate) of: ReadOf,
}

/// What is to be read.
#[derive(Clone, Debug)]
pub(crate) enum ReadOf {
    /// A key.
    Key(Key),
    /// The shard, as a part of the scan that the waiter names.
    Scan,
}

/// A proposed entry and who waits for what it does, in the order of its mutations. A waiter that was
/// answered already (its time ran out) is `None`.
#[derive(Debug)]
pub(crate) struct Proposed {
    pub(crate) index: LogIndex,
    pub(crate) term: Term,
    pub(crate) waiters: Vec<Option<Waiter>>,
}

/// A received snapshot on its way into force (decision 8).
#[derive(Debug)]
pub(crate) struct Install {
    pub(crate) generation: u32,
    pub(crate) stage: InstallStage,
    /// The state that the snapshot was taken at; once switched, the state in force.
    pub(crate) state: ReplicaState,
    /// What the log records.
    pub(crate) record: InstallRecord,
    /// The Ready that brought the snapshot; its entries and messages wait until it is installed.
    pub(crate) ready: Ready,
}

/// How far an install has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstallStage {
    /// `installing` is on its way to the log.
    Announcing,
    /// The store switches generations.
    Switching,
    /// `installed` is on its way to the log.
    Recording,
}

/// Where the state machine stands at the indexes named for comparison (decision 11).
pub(crate) type Checkpoints = BTreeMap<LogIndex, BTreeMap<ReplicaId, u64>>;

/// What a leader does for clients, in reads; a mean over some ten seconds.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Done since the last measurement.
    done: u64,
    /// Since when it is measured, and when it was last.
    measured: Option<(Instant, Instant)>,
    /// In thousandths a second.
    milli_per_second: u64,
}

impl Load {
    /// Of a write, in reads: about what either costs the leader's processor.
    pub(crate) const WRITE: u64 = 4;
    const MEAN_OVER: Duration = Duration::from_secs(10);
    const TOLD_AFTER: Duration = Duration::from_secs(30);

    pub(crate) fn add(&mut self, reads: u64) {
        self.done += reads;
    }

    /// To be called now and then; begins anew when the replica begins to lead.
    pub(crate) fn measure(&mut self, leads: bool, now: Instant) {
        let done = std::mem::take(&mut self.done);
        let Some((since, last)) = self.measured.filter(|_| leads) else {
            (self.measured, self.milli_per_second) = (leads.then_some((now, now)), 0);
            return;
        };
        let elapsed_ms = now.saturating_since(last).as_millis() as u64;
        if elapsed_ms == 0 {
            self.done = done;
            return;
        }
        let share = elapsed_ms.min(Self::MEAN_OVER.as_millis() as u64);
        let rate = done.saturating_mul(1_000_000) / elapsed_ms;
        let over = Self::MEAN_OVER.as_millis() as u64;
        self.milli_per_second = (self.milli_per_second * (over - share) + rate * share) / over;
        self.measured = Some((since, now));
    }

    /// In reads a second; `None` as long as too little is known.
    pub(crate) fn get(&self, now: Instant) -> Option<u64> {
        let (since, _) = self.measured?;
        (now.saturating_since(since) >= Self::TOLD_AFTER).then_some(self.milli_per_second / 1_000)
    }
}

/// One group's copy on this node. Invariants:
/// - `proposed` rises in term, and in index within a term (a later term may begin further back, where
///   another leader cut this one's entries off); everything at or before `applied` has been answered;
/// - while `install` is set no Ready is taken;
/// - `synced_wait` is the number of the last log job that holds something of this group, 0 if all
///   of it is on disk.
pub(crate) struct Replica {
    pub(crate) key: ReplicaKey,
    pub(crate) group: Group,
    /// Where the rows in force are.
    pub(crate) filing: Filing,
    /// The next one that a snapshot may fill.
    pub(crate) next_generation: u32,
    pub(crate) applied: LogIndex,
    /// Handed to the apply thread and not yet applied: up to which index, how many bytes.
    pub(crate) applying: VecDeque<(LogIndex, usize)>,
    /// Keys and bytes of the state machine, as last told.
    pub(crate) keys: u64,
    pub(crate) bytes: u64,
    /// Writes to be proposed at the end of this turn.
    pub(crate) pending: Vec<(Waiter, Request)>,
    /// What these hold.
    pub(crate) pending_bytes: usize,
    pub(crate) proposed: VecDeque<Proposed>,
    /// Reads that no round has begun for.
    pub(crate) reads_new: Vec<WaitingRead>,
    /// Reads that are safe once this index is applied, in rising order.
    pub(crate) reads_at: VecDeque<(LogIndex, WaitingRead)>,
    pub(crate) synced_wait: u64,
    pub(crate) incoming: Option<Incoming>,
    pub(crate) install: Option<Install>,
    /// Where messages of replicas come from that our configuration does not (yet) hold.
    pub(crate) senders: BTreeMap<ReplicaId, NodeId>,
    /// Who led at the last look, and since when nobody has.
    pub(crate) leader_seen: Option<NodeId>,
    /// Whether it asked for votes then.
    pub(crate) campaigns_seen: bool,
    pub(crate) leaderless_since: Option<Instant>,
    pub(crate) checkpoints: Checkpoints,
    /// The configuration change that this leader has proposed and that is not yet committed.
    pub(crate) change_at: Option<LogIndex>,
    /// When this replica last had all that its leader had told it was committed; before that, since when
    /// it waits to have applied up to where.
    current: Instant,
    behind: Option<(LogIndex, Instant)>,
    /// When each of the others was last heard in the present term.
    heard: BTreeMap<ReplicaId, (Term, Instant)>,
    /// A new leader's, so that its heartbeats go out with those of the other groups led here.
    pub(crate) ticks_to_skip: usize,
    /// A majority's hash differs from ours: nothing is served until the replica is re-seeded.
    pub(crate) diverged: bool,
    /// When the leader's node was lost and this replica should campaign in its place.
    pub(crate) campaign_at: Option<Instant>,
    pub(crate) load: Load,
    pub(crate) expiry: Expiry,
    pub(crate) scrub: Scrub,
}

impl Replica {
    pub(crate) fn new(key: ReplicaKey, group: Group, now: Instant) -> Replica {
        let applied = group.applied();
        Replica {
            key,
            group,
            filing: Filing { under: key, generation: 1 },
            next_generation: 2,
            applied,
            applying: VecDeque::new(),
            keys: 0,
            bytes: 0,
            pending: Vec::new(),
            pending_bytes: 0,
            proposed: VecDeque::new(),
            reads_new: Vec::new(),
            reads_at: VecDeque::new(),
            synced_wait: 0,
            incoming: None,
            install: None,
            senders: BTreeMap::new(),
            leader_seen: None,
            campaigns_seen: false,
            leaderless_since: Some(now),
            checkpoints: BTreeMap::new(),
            change_at: None,
            current: Instant::ZERO,
            behind: None,
            heard: BTreeMap::new(),
            ticks_to_skip: 0,
            diverged: false,
            campaign_at: None,
            load: Load::default(),
            expiry: Expiry::default(),
            scrub: Scrub::new(now),
        }
    }

    /// Whether there is anything to read or send; a fresh replica waits for its first snapshot.
    pub(crate) fn is_initialized(&self) -> bool {
        self.applied > LogIndex(0)
    }

    /// A message of `from` was taken in.
    pub(crate) fn note_heard(&mut self, from: ReplicaId, now: Instant) {
        if self.is_leader() {
            self.heard.insert(from, (self.group.term(), now));
        } else if self.group.leader() == Some(from) && self.behind.is_none() {
            self.behind = Some((self.group.commit(), now));
            self.note_applied();
        }
    }

    /// More was applied.
    pub(crate) fn note_applied(&mut self) {
        if let Some((_, since)) = self.behind.take_if(|(index, _)| *index <= self.applied) {
            self.current = since;
        }
    }

    /// The last moment at which what is applied here was known to be all that was committed.
    pub(crate) fn current_at(&self, now: Instant) -> Instant {
        if !self.group.serves_reads() {
            return self.current;
        }
        // A leader is one as long as a quorum takes it for one.
        let mut moments: Vec<Instant> = self.heard.values().filter(|(term, _)| *term == self.group.term()).map(|(_, at)| *at).collect();
        moments.push(now);
        moments.sort_unstable_by(|a, b| b.cmp(a));
        let heard_since = |moment: Instant| {
            move |replica: ReplicaId| {
                replica == self.key.replica
                    || self.heard.get(&replica).is_some_and(|(term, at)| *term == self.group.term() && *at >= moment)
            }
        };
        let membership = self.group.membership();
        let found = moments.into_iter().find(|moment| membership.is_quorum(|replica, _| heard_since(*moment)(replica)));
        found.unwrap_or(self.current)
    }

    /// Up to where every other replica that answers this leader has its log; `None` if it has not heard any. One that waits
    /// for a snapshot is passed over. Elsewhere the end of the log: only a leader sends entries.
    pub(crate) fn matched_by_others(&self, now: Instant) -> Option<LogIndex> {
        if !self.is_leader() {
            return Some(self.group.last_index());
        }
        let answering = self.heard.keys().filter(|id| self.is_heard(**id, now)).filter_map(|id| self.group.progress(*id));
        answering.filter(|progress| !progress.in_snapshot).map(|progress| progress.matched).min()
    }

    /// Whether a replica answers this leader.
    pub(crate) fn is_heard(&self, replica: ReplicaId, now: Instant) -> bool {
        self.heard.get(&replica).is_some_and(|(term, at)| *term == self.group.term() && now.saturating_since(*at) < HEARD_WITHIN)
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.group.role() == RaftRole::Leader
    }

    /// Takes the writes out that were not proposed.
    pub(crate) fn take_pending(&mut self) -> Vec<(Waiter, Request)> {
        self.pending_bytes = 0;
        std::mem::take(&mut self.pending)
    }

    /// Whether a configuration change is on its way.
    pub(crate) fn change_pending(&self) -> bool {
        self.change_at.is_some()
    }

    /// The node that leads, as far as this replica knows.
    pub(crate) fn leader_node(&self) -> Option<NodeId> {
        self.group.leader().and_then(|leader| self.node_of(leader))
    }

    /// Where a replica of this group is.
    pub(crate) fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.group.membership().node_of(replica).or_else(|| self.senders.get(&replica).copied())
    }
}
