//! Linearizable reads (decision 2): at the leader, after one leadership round for all groups of this
//! node that have reads waiting. The rounds themselves are `flotilla_consensus::ReadRounds`; here is
//! which reads they speak for, and what happens to reads when leadership is lost.

use crate::effect::{ReadJob, ReplyTo};
use crate::event::Now;
use crate::message::PeerMessage;
use crate::node::Node;
use crate::replica::{ReadOf, WaitingRead};
use flotilla_consensus::{ReadConfirm, ReadConfirmed, ReadRounds, ReadToConfirm, ResolvedRead};
use flotilla_types::{GroupId, Instant, Key, LogIndex, NodeId, PlantedFault};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Rounds under way at once: while they are, later reads gather for the next one.
const ROUNDS_MAX: usize = 2;
/// After this a round is given up and its reads go into another.
const ROUND_TIMEOUT: Duration = Duration::from_millis(200);

/// The reads of all groups led here that wait for a round.
pub(crate) struct Reading {
    rounds: ReadRounds,
    /// Groups with reads that no round has begun for.
    pub(crate) waiting: BTreeSet<GroupId>,
    /// Reads that a round was begun for, in the order of rounds.
    asked: BTreeMap<GroupId, VecDeque<(u64, WaitingRead)>>,
    resolved: Vec<ResolvedRead>,
}

impl Reading {
    pub(crate) fn new(node: NodeId, first_round: u64) -> Reading {
        Reading {
            rounds: ReadRounds::new(node).starting_at(first_round),
            waiting: BTreeSet::new(),
            asked: BTreeMap::new(),
            resolved: Vec::new(),
        }
    }

    /// Gives up on rounds that nobody answers, and on reads whose time ran out.
    pub(crate) fn expire(&mut self, now: Instant, refuse: &mut dyn FnMut(ReplyTo)) {
        self.rounds.expire(now, ROUND_TIMEOUT, &mut self.resolved);
        for reads in self.asked.values_mut() {
            reads.retain(|(_, read)| {
                let over = read.waiter.expires <= now;
                if over {
                    refuse(read.waiter.to);
                }
                !over
            });
        }
    }
}

impl Node {
    /// Whether a group's replica here may answer reads once its leadership is confirmed.
    pub(crate) fn may_serve_reads(&self, group: GroupId) -> bool {
        self.replicas.get(&group).is_some_and(|replica| {
            let own_term = replica.group.serves_reads() || self.config.fault == Some(PlantedFault::ReadBeforeOwnTermEntry);
            replica.is_leader() && own_term && !replica.diverged
        })
    }

    /// Begins one round for every group with waiting reads.
    pub(crate) fn begin_read_round(&mut self, now: Now) {
        self.settle_rounds();
        if self.reading.waiting.is_empty() || self.reading.rounds.open_count() >= ROUNDS_MAX {
            return;
        }
        let mut asking: Vec<GroupId> = Vec::new();
        for group in std::mem::take(&mut self.reading.waiting) {
            if self.may_serve_reads(group) {
                asking.push(group);
            } else if self.replicas.get(&group).is_some_and(|replica| replica.is_leader()) {
                self.reading.waiting.insert(group); // An entry of the new term is on its way.
            } else {
                self.reroute_reads(group);
            }
        }
        if asking.is_empty() {
            return;
        }
        self.stats.read_rounds += 1;
        let replicas = &self.replicas;
        let reads = asking.iter().map(|group| {
            let raft = &replicas[group].group;
            ReadToConfirm { group: *group, term: raft.term(), read_index: raft.commit(), membership: raft.membership() }
        });
        let round = self.reading.rounds.begin(now.instant, reads, &mut self.reading.resolved);
        for group in &asking {
            let Some(replica) = self.replicas.get_mut(group) else { continue };
            let asked = self.reading.asked.entry(*group).or_default();
            asked.extend(replica.reads_new.drain(..).map(|read| (round, read)));
        }
        for (node, question) in self.reading.rounds.questions(round) {
            if self.link_is_up(node) {
                self.send(node, PeerMessage::ReadConfirm(question));
            }
        }
        self.settle_rounds();
    }

    pub(crate) fn handle_read_confirm(&mut self, from: NodeId, question: &ReadConfirm) {
        let answer = question.answer(|group, term| self.replicas.get(&group).is_some_and(|replica| replica.group.term() == term));
        self.send(from, PeerMessage::ReadConfirmed(answer));
    }

    pub(crate) fn handle_read_confirmed(&mut self, from: NodeId, answer: &ReadConfirmed) {
        self.reading.rounds.confirm(from, answer, &mut self.reading.resolved);
    }

    /// Serves what rounds have confirmed; what they have not goes back to wait for another.
    fn settle_rounds(&mut self) {
        while let Some(ResolvedRead { round, group, term, read_index }) = self.reading.resolved.pop() {
            let Some(asked) = self.reading.asked.get_mut(&group) else { continue };
            let all = self.config.fault == Some(PlantedFault::ReadAnsweredByEarlierRound) && read_index.is_some();
            let spoken_for = if all { asked.len() } else { asked.partition_point(|(asked_in, _)| *asked_in <= round) };
            let mut reads: Vec<WaitingRead> = asked.drain(..spoken_for).map(|(_, read)| read).collect();
            if asked.is_empty() {
                self.reading.asked.remove(&group);
            }
            let Some(replica) = self.replicas.get_mut(&group) else { continue };
            if all {
                reads.append(&mut replica.reads_new);
            }
            match read_index {
                Some(index) if replica.group.term() == term && replica.is_leader() => {
                    for read in reads {
                        self.read_at(group, index, read);
                    }
                }
                _ => {
                    replica.reads_new.splice(..0, reads);
                    self.reading.waiting.insert(group);
                }
            }
        }
    }

    /// Lets a read run once `index` is applied.
    pub(crate) fn read_at(&mut self, group: GroupId, index: LogIndex, read: WaitingRead) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if replica.applied < index {
            let place = replica.reads_at.partition_point(|(at, _)| *at <= index);
            return replica.reads_at.insert(place, (index, read));
        }
        let key = match (read.of, read.waiter.to) {
            (ReadOf::Key(key), _) => key,
            (ReadOf::Scan, ReplyTo::ScanPart { part, group }) => return self.scan_shard_is_ready(part, group),
            (ReadOf::Scan, to) => unreachable!("a shard of a scan is read for {to:?}"),
        };
        let job = ReadJob { to: read.waiter.to, replica: replica.key, filing: replica.filing, key, lag_ms: None };
        self.stats.reads += 1;
        self.run_read(job);
    }

    fn run_read(&mut self, job: ReadJob) {
        if let ReplyTo::Local(ticket) = job.to {
            self.requests.done(ticket);
        }
        self.out.reads.push(job);
    }

    /// Whether a replica here may be read as it is.
    pub(crate) fn may_serve_stale(&self, group: GroupId) -> bool {
        self.replicas.get(&group).is_some_and(|replica| replica.is_initialized() && !replica.diverged && replica.install.is_none())
    }

    /// Reads what the replica here has, and says how far that may be behind.
    pub(crate) fn read_stale(&mut self, group: GroupId, to: ReplyTo, key: Key, now: Now) {
        let Some(replica) = self.replicas.get(&group) else { return };
        let lag_ms = now.instant.saturating_since(replica.current_at(now.instant)).as_millis() as u64;
        self.run_read(ReadJob { to, replica: replica.key, filing: replica.filing, key, lag_ms: Some(lag_ms) });
    }

    /// Runs the reads that waited for what is applied by now.
    pub(crate) fn run_reads_up_to(&mut self, group: GroupId) {
        while let Some(replica) = self.replicas.get_mut(&group)
            && let Some((index, read)) = replica.reads_at.pop_front_if(|(index, _)| *index <= replica.applied)
        {
            self.read_at(group, index, read);
        }
    }

    /// The replica does not lead any more: its waiting reads belong elsewhere.
    pub(crate) fn reroute_reads(&mut self, group: GroupId) {
        self.reading.rounds.drop_group(group, &mut self.reading.resolved);
        self.reading.resolved.retain(|resolved| resolved.group != group);
        self.reading.waiting.remove(&group);
        let asked = self.reading.asked.remove(&group).unwrap_or_default();
        let mut reads: Vec<WaitingRead> = asked.into_iter().map(|(_, read)| read).collect();
        if let Some(replica) = self.replicas.get_mut(&group) {
            reads.append(&mut replica.reads_new);
        }
        self.reroute_waiting(group, reads);
    }
}
