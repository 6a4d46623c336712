//! Scrubs (decision 11): slowly, one shard after the other, the rows in the stores of a shard's replicas are
//! hashed at one index and compared, which finds rows that were lost or changed behind everyone's back.
//!
//! A shard's leader names a scrub by a mark in the log; every replica takes a view there (`state_machine::scrub`), reads
//! it on the apply thread in small steps, no faster than [`NodeConfig::scrub_bytes_per_second`] for all of the node's
//! together, one after the other, and sends its hash to the leader. The leader compares them as it does with
//! checkpoints (`divergence`). A replica that cannot take part says so; one that is cut off is not waited for.
//!
//! A node names one scrub at a time. Nothing of this is stored: a new leader begins anew, and what a
//! restart or an election cuts short is only late.
//!
//! [`NodeConfig::scrub_bytes_per_second`]: crate::NodeConfig::scrub_bytes_per_second

use crate::divergence::{Comparison, compare};
use crate::effect::StoreJob;
use crate::event::Now;
use crate::message::PeerMessage;
use crate::node::Node;
use crate::notice::Notice;
use crate::replica::Replica;
use crate::state_machine::{ScrubMark, ScrubStep, scrub_mark};
use flotilla_types::{GroupId, Instant, LogIndex, ReplicaId, ReplicaKey, Term, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// The most that one step reads: it holds up what is applied behind it.
const STEP_BYTES_MAX: u64 = 128 << 10;
/// A mark that was not applied by then is forgotten.
const MARK_TIME_MAX: Duration = Duration::from_secs(10);
/// For how much longer than the leader itself others may take, and this.
const PATIENCE_FACTOR: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(10);
/// A new leader's first scrub comes after this part of the interval; one that was not whole is repeated then.
const SOON: u32 = 8;

/// What a scrub came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubResult {
    /// All replicas hold the same rows.
    Agreed,
    /// Those that took part do, but some did not take part.
    Incomplete,
    /// A minority differed, and is re-seeded.
    Differed,
    /// They differ, and no majority agrees: writes are refused.
    Undecided,
}

/// A shard's last scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastScrub {
    /// The index that was looked at.
    pub index: LogIndex,
    /// When it ended, by the leader's wall clock.
    pub at: Timestamp,
    /// What it came to.
    pub result: ScrubResult,
    /// How many replicas were compared.
    pub copies: u32,
}

/// What a leader tells of its shard's scrubs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// The last one that ended under this leader.
    pub last: Option<LastScrub>,
    /// If one is under way: how many bytes the leader has read for it.
    pub bytes_done: Option<u64>,
}

/// The views of this node that are to be read.
#[derive(Debug)]
pub(crate) struct Scrubs {
    queue: VecDeque<Reading>,
    is_stepping: bool,
    /// How many bytes may be read now; below zero after a step that read more than that.
    credit: i64,
    credit_at: Instant,
}

/// A view that is read, or waits to be.
#[derive(Debug)]
struct Reading {
    replica: ReplicaKey,
    index: LogIndex,
    bytes_done: u64,
}

/// Where a replica stands with scrubs.
#[derive(Debug)]
pub(crate) struct Scrub {
    /// A leader names the next one then.
    due: Instant,
    /// The last mark applied here.
    own: Option<Own>,
    /// The one that this leader gathers answers to.
    round: Option<Round>,
    last: Option<LastScrub>,
}

#[derive(Clone, Copy, Debug)]
struct Own {
    index: LogIndex,
    term: Term,
    began: Instant,
    ended: Option<Instant>,
}

/// Answers to one mark, at the leader. Others may answer before the leader has applied it itself.
#[derive(Debug)]
struct Round {
    index: LogIndex,
    term: Term,
    named: Instant,
    /// `None`: could not take part.
    answers: BTreeMap<ReplicaId, Option<u64>>,
    /// Cut off at some time since the mark: what they answered may be lost.
    absent: BTreeSet<ReplicaId>,
    worst: Option<ScrubResult>,
}

impl Scrubs {
    pub(crate) fn new(now: Instant) -> Scrubs {
        Scrubs { queue: VecDeque::new(), is_stepping: false, credit: 0, credit_at: now }
    }

    /// How many views are open.
    pub(crate) fn views(&self) -> usize {
        self.queue.len()
    }

    /// The replica is gone.
    pub(crate) fn forget(&mut self, replica: ReplicaKey) {
        self.queue.retain(|reading| reading.replica != replica);
    }

    /// Counts the time that has passed as bytes that may be read.
    fn refill(&mut self, rate: u64, now: Instant) {
        let nanos = now.saturating_since(self.credit_at).as_nanos();
        let earned = i64::try_from(nanos * u128::from(rate) / 1_000_000_000).unwrap_or(i64::MAX);
        // Less than a byte is not lost but waits.
        if earned > 0 {
            self.credit_at = now;
            // After a rest no more than a moment's worth is made up for.
            let most = i64::try_from(rate / 10).unwrap_or(i64::MAX).max(1);
            self.credit = self.credit.saturating_add(earned).min(most);
        }
    }
}

impl Scrub {
    pub(crate) fn new(now: Instant) -> Scrub {
        Scrub { due: now, own: None, round: None, last: None }
    }

    /// Another one leads now: answers go there.
    pub(crate) fn end_to_lead(&mut self) {
        self.round = None;
    }

    /// Begins anew: what a former leader did is not known here.
    pub(crate) fn begin_to_lead(&mut self, interval: Duration, now: Instant) {
        *self = Scrub { due: now + interval / SOON, own: self.own, ..Scrub::new(now) };
    }
}

impl Node {
    /// Names the next scrub of a shard led here, and ends those for which nobody is waited for any more.
    pub(crate) fn begin_and_end_scrubs(&mut self, now: Now) {
        let led: Vec<GroupId> =
            self.replicas.iter().filter(|(_, replica)| replica.scrub.round.is_some()).map(|(group, _)| *group).collect();
        for group in led {
            self.end_scrub_if_complete(group, now);
        }
        let is_busy = self.unapplied_bytes > self.config.unapplied_bytes_max / 4 || self.log_is_full || self.shutting_down;
        if self.config.scrub_bytes_per_second == 0 || is_busy || self.scrubs.queue.len() > 1 {
            return;
        }
        if self.replicas.values().any(|replica| replica.scrub.round.is_some()) {
            return;
        }
        let may = |replica: &Replica| {
            replica.group.serves_reads() && replica.install.is_none() && !replica.group.is_transferring() && !replica.change_pending()
        };
        let due = self.replicas.iter_mut().filter(|(_, replica)| replica.scrub.due <= now.instant && may(replica));
        let Some((group, replica)) = due.min_by_key(|(_, replica)| replica.scrub.due) else { return };
        // A group that takes no mark now is not to hold up the others.
        replica.scrub.due = now.instant + self.config.scrub_interval / SOON;
        if let Ok((term, index)) = replica.group.propose(scrub_mark()) {
            replica.scrub.round = Some(Round::new(index, term, now.instant));
            self.stats.proposals += 1;
            self.stats.scrubs_begun += 1;
            self.dirty.insert(*group);
        }
    }

    /// A mark was applied here, and a view taken if one could be.
    pub(crate) fn handle_scrub_mark(&mut self, key: ReplicaKey, mark: ScrubMark, now: Now) {
        let takes_part = mark.is_open && self.config.scrub_bytes_per_second > 0;
        self.scrubs.forget(key);
        let Some(replica) = self.replicas.get_mut(&key.group).filter(|replica| replica.key == key) else { return };
        let ScrubMark { index, term, .. } = mark;
        replica.scrub.own = Some(Own { index, term, began: now.instant, ended: None });
        if takes_part {
            self.scrubs.queue.push_back(Reading { replica: key, index, bytes_done: 0 });
        } else {
            if mark.is_open {
                self.out.store.push(StoreJob::CloseScrub { replica: key });
            }
            self.answer_scrub(key, index, None, now);
        }
    }

    /// Reads on, as fast as may be.
    pub(crate) fn step_scrubs(&mut self, now: Now) {
        self.scrubs.refill(self.config.scrub_bytes_per_second, now.instant);
        let is_behind = self.unapplied_bytes > self.config.unapplied_bytes_max / 4;
        if self.scrubs.is_stepping || self.scrubs.credit <= 0 || is_behind {
            return;
        }
        if let Some(Reading { replica, index, .. }) = self.scrubs.queue.front() {
            let bytes_max = self.scrubs.credit.unsigned_abs().min(STEP_BYTES_MAX);
            self.out.store.push(StoreJob::Scrub { replica: *replica, index: *index, bytes_max });
            self.scrubs.is_stepping = true;
        }
    }

    pub(crate) fn handle_scrubbed(&mut self, key: ReplicaKey, index: LogIndex, step: ScrubStep, now: Now) {
        self.scrubs.is_stepping = false;
        if let ScrubStep::More { bytes } | ScrubStep::Done { bytes, .. } = &step {
            self.scrubs.credit = self.scrubs.credit.saturating_sub_unsigned(*bytes);
            self.stats.scrub_bytes += bytes;
        }
        // A newer mark, or the replica's end, may have overtaken it.
        let Some(reading) = self.scrubs.queue.front_mut().filter(|reading| (reading.replica, reading.index) == (key, index)) else {
            return;
        };
        let hash = match step {
            ScrubStep::More { bytes } => return reading.bytes_done += bytes,
            ScrubStep::Done { hash, .. } => Some(hash),
            ScrubStep::Gone => None,
            ScrubStep::Damaged(detail) => {
                self.scrubs.queue.pop_front();
                return self.handle_scrub_damage(key, index, detail, now);
            }
        };
        self.scrubs.queue.pop_front();
        self.answer_scrub(key, index, hash, now);
    }

    /// Rows of this replica are damaged or missing. With a majority beside it, it is replaced; else nobody can
    /// tell what is right, and the process goes on without making it worse.
    fn handle_scrub_damage(&mut self, key: ReplicaKey, index: LogIndex, detail: String, now: Now) {
        self.stats.scrub_damage += 1;
        let Some(replica) = self.replicas.get_mut(&key.group).filter(|replica| replica.key == key) else { return };
        if replica.group.membership().voters.len() >= 3 {
            // As with what a read finds: not while too few of the others are there.
            self.handle_damaged_rows(key, detail, now);
            return self.answer_scrub(key, index, None, now);
        }
        replica.diverged = true;
        if let Some(round) = &mut replica.scrub.round {
            round.worst = Some(ScrubResult::Undecided);
        }
        let line = format!("{key} is damaged, and there is no majority to replace it from; while it leads, writes are refused: {detail}");
        self.out.notices.push(Notice::error(line).of_replica(key));
        self.answer_scrub(key, index, None, now);
    }

    /// Tells the leader what a scrub found here; `None`: this replica could not take part.
    fn answer_scrub(&mut self, key: ReplicaKey, index: LogIndex, hash: Option<u64>, now: Now) {
        let Some(replica) = self.replicas.get_mut(&key.group).filter(|replica| replica.key == key) else { return };
        let Some(own) = replica.scrub.own.as_mut().filter(|own| own.index == index) else { return };
        own.ended = Some(now.instant);
        let term = own.term;
        if replica.is_leader() {
            self.handle_scrub_answer(key.group, key.replica, (index, term), hash, now);
        } else if let Some(node) = replica.leader_node().filter(|node| self.link_is_up(*node)) {
            self.send(node, PeerMessage::Scrubbed { group: key.group, replica: key.replica, index, term, hash });
        }
    }

    /// A replica's answer, at the leader.
    pub(crate) fn handle_scrub_answer(&mut self, group: GroupId, from: ReplicaId, at: (LogIndex, Term), hash: Option<u64>, now: Now) {
        let Some(replica) = self.replicas.get_mut(&group).filter(|replica| replica.is_leader()) else { return };
        if replica.group.membership().role_of(from).is_none() {
            return;
        }
        let Some(round) = replica.scrub.round.as_mut().filter(|round| (round.index, round.term) == at) else { return };
        round.answers.insert(from, hash);
        let comparison = compare(&round.hashes(), replica.group.membership());
        match &comparison {
            Comparison::Minority(minority) => {
                // Told again only if it has grown.
                let is_new = minority.contains(&from) || round.worst != Some(ScrubResult::Differed);
                round.worst = Some(ScrubResult::Differed);
                if is_new {
                    self.stats.scrub_differing += 1;
                    self.act_on(group, at.0, &comparison);
                }
            }
            Comparison::Undecided => {
                round.worst = Some(ScrubResult::Undecided);
                self.stats.scrub_differing += 1;
                self.act_on(group, at.0, &comparison);
            }
            Comparison::Agreed | Comparison::Open => {}
        }
        self.end_scrub_if_complete(group, now);
    }

    /// Ends a round that nobody is waited for in any more.
    fn end_scrub_if_complete(&mut self, group: GroupId, now: Now) {
        let Some(replica) = self.replicas.get(&group) else { return };
        let members = replica.group.membership().members();
        let me = self.identity.node;
        let cut_off: Vec<ReplicaId> =
            members.iter().filter(|(_, node)| **node != me && !self.link_is_up(**node)).map(|(id, _)| *id).collect();
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let is_leader = replica.is_leader();
        let Scrub { own, round: Some(round), .. } = &mut replica.scrub else { return };
        if !is_leader {
            replica.scrub.round = None;
            return;
        }
        round.absent.extend(cut_off);
        let waited_for = members.keys().any(|id| !round.answers.contains_key(id) && !round.absent.contains(id));
        let own = own.filter(|own| (own.index, own.term) == (round.index, round.term));
        let out_of_time = match own {
            None => now.instant.saturating_since(round.named) > MARK_TIME_MAX,
            Some(Own { ended: None, .. }) => false,
            Some(Own { began, ended: Some(ended), .. }) => {
                now.instant.saturating_since(ended) > ended.saturating_since(began) * PATIENCE_FACTOR + PATIENCE
            }
        };
        if waited_for && !out_of_time {
            return;
        }
        let (index, copies) = (round.index, round.hashes().len());
        let result = round.worst.unwrap_or(if copies == members.len() { ScrubResult::Agreed } else { ScrubResult::Incomplete });
        let interval = self.config.scrub_interval;
        replica.scrub.round = None;
        replica.scrub.last = Some(LastScrub { index, at: now.wall, result, copies: copies as u32 });
        replica.scrub.due = now.instant + if result == ScrubResult::Agreed { interval } else { interval / SOON };
        if result == ScrubResult::Agreed {
            // Somebody has put right what differed; the chained hash was compared as well.
            replica.diverged = false;
        }
        self.stats.scrubs_ended += 1;
        self.stats.scrubs_whole += u64::from(result == ScrubResult::Agreed);
    }

    /// What this leader tells of a group's scrubs.
    pub(crate) fn scrub_report(&self, replica: &Replica) -> ScrubReport {
        let reading = self.scrubs.queue.iter().find(|reading| reading.replica == replica.key);
        let has_ended = |round: &Round| replica.scrub.own.is_some_and(|own| own.index == round.index && own.ended.is_some());
        let done = |round| reading.map_or(if has_ended(round) { replica.bytes } else { 0 }, |reading| reading.bytes_done);
        ScrubReport { last: replica.scrub.last, bytes_done: replica.scrub.round.as_ref().map(done) }
    }
}

impl Round {
    fn new(index: LogIndex, term: Term, named: Instant) -> Round {
        Round { index, term, named, answers: BTreeMap::new(), absent: BTreeSet::new(), worst: None }
    }

    fn hashes(&self) -> BTreeMap<ReplicaId, u64> {
        self.answers.iter().filter_map(|(id, hash)| Some((*id, (*hash)?))).collect()
    }
}

impl ScrubResult {
    /// As the contract writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            ScrubResult::Agreed => "agreed",
            ScrubResult::Incomplete => "incomplete",
            ScrubResult::Differed => "differed",
            ScrubResult::Undecided => "undecided",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_becomes_bytes_and_a_rest_only_a_moments_worth() {
        let mut scrubs = Scrubs::new(Instant::ZERO);
        let at = |ms: u64| Instant::from_nanos(ms * 1_000_000);
        scrubs.refill(1_000, at(20));
        assert_eq!(scrubs.credit, 20);
        scrubs.credit -= 70;
        scrubs.refill(1_000, at(50));
        assert_eq!(scrubs.credit, -20);
        scrubs.refill(1_000, at(9_000));
        assert_eq!(scrubs.credit, 100);
        // Slower than a byte a tick.
        let mut slow = Scrubs::new(Instant::ZERO);
        for tick in 1..=100 {
            slow.refill(10, at(tick * 20));
        }
        assert_eq!(slow.credit, 1);
        slow.credit = 0;
        scrubs.refill(0, at(10_000));
        assert_eq!(scrubs.credit, 100);
    }
}
