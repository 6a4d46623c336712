//! Linearizable reads without writing: one confirmation of leadership for all groups of a node
//! (decision 2; Raft dissertation, section 6.4, where one group confirms by heartbeats).
//!
//! How it works. In each turn of its loop the node begins a round with the groups that have reads
//! waiting, noting each group's term and commit index. Every other node with a voter of such a group
//! gets one [`ReadConfirm`] that lists them, and answers which of them it shares the term of. Once a
//! quorum of the group's membership (both halves if joint, no learners, ourselves included) has
//! confirmed, no later leader can have committed anything when the round began, so reads that came
//! before it began may be answered at the noted index. A read that comes later needs a later round;
//! a confirmed round also answers every earlier read of the same group and term.
//!
//! The membership that counts is that at the begin of the round. A first leader after ours was
//! elected by a membership at most one change away from it, and those have a voter in common.
//! A confirmation is by node: another replica of the group on the same node cannot share the term
//! without having heard from this very leader, whose membership names it.
//!
//! Left out: deadlines of single reads (the node's), and retries: a group that is not confirmed in
//! time is given back, and its reads go into a new round.

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{GroupId, Instant, LogIndex, Membership, NodeId, Term};
use std::collections::VecDeque;
use std::time::Duration;

/// A group with reads waiting, at the begin of a round.
#[derive(Clone, Copy, Debug)]
pub struct ReadToConfirm<'a> {
    /// The group, led by this node's replica.
    pub group: GroupId,
    /// The term in which it leads.
    pub term: Term,
    /// The commit index now; an entry of `term` must be committed ([`crate::Group::serves_reads`]).
    pub read_index: LogIndex,
    /// The membership now.
    pub membership: &'a Membership,
}

/// A group whose part of a round has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolvedRead {
    /// The round: it speaks for reads that came before it began.
    pub round: u64,
    /// The group.
    pub group: GroupId,
    /// The term in which leadership was to be confirmed.
    pub term: Term,
    /// Where those reads may be answered, once applied; `None`: leadership was not confirmed.
    pub read_index: Option<LogIndex>,
}

/// Asks a node which groups' terms it shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadConfirm {
    /// Comes back in the answer.
    pub round: u64,
    /// The groups of which the asked node holds a voter.
    pub groups: Vec<(GroupId, Term)>,
}

/// The answer to a [`ReadConfirm`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadConfirmed {
    /// The round asked about.
    pub round: u64,
    /// Bit `i % 8` of byte `i / 8` stands for the `i`th group of the question.
    pub confirmed: Bytes,
}

/// All rounds of one node. Rounds are answered in any order and may be lost.
pub struct ReadRounds {
    node: NodeId,
    /// Ids from `first_round` on, without gaps.
    rounds: VecDeque<Round>,
    first_round: u64,
    /// Emptied rounds, kept for their memory.
    spare: Vec<Round>,
}

#[derive(Default)]
struct Round {
    began: Instant,
    /// Those that are asked about, in the order in which every question lists them.
    items: Vec<Item>,
    /// The voters' nodes of all items, one run for each half of each item.
    nodes: Vec<NodeId>,
    open: usize,
}

struct Item {
    group: GroupId,
    term: Term,
    read_index: LogIndex,
    /// Where its incoming half lies in `nodes`; the outgoing half follows.
    nodes_start: u32,
    incoming: u8,
    outgoing: u8,
    open: bool,
    /// One bit for each node of both halves.
    confirmed: u64,
}

/// More voters than this in both halves together are no membership of ours.
const VOTERS_MAX: usize = 64;

impl ReadRounds {
    /// No rounds yet, on this node.
    pub fn new(node: NodeId) -> ReadRounds {
        ReadRounds { node, rounds: VecDeque::new(), first_round: 1, spare: Vec::new() }
    }

    /// The first round gets this id. A process that comes back must not use again the ids of its former
    /// life, whose answers may still be under way.
    ///
    /// # Panics
    /// If a round has begun.
    #[must_use]
    pub fn starting_at(mut self, first_round: u64) -> ReadRounds {
        assert!(self.rounds.is_empty(), "the first round is still to come");
        self.first_round = first_round;
        self
    }

    /// Begins a round over `reads` and returns its id. Groups that need nobody else are added to
    /// `resolved` at once; what to ask whom is told by [`ReadRounds::questions`].
    pub fn begin<'a>(&mut self, now: Instant, reads: impl IntoIterator<Item = ReadToConfirm<'a>>, resolved: &mut Vec<ResolvedRead>) -> u64 {
        let id = self.first_round + self.rounds.len() as u64;
        let mut round = self.spare.pop().unwrap_or_default();
        round.began = now;
        for read in reads {
            if let Some(item) = round.add(&read, self.node) {
                resolved.push(item.resolve(id, true));
            }
        }
        self.rounds.push_back(round);
        self.drop_ended();
        id
    }

    /// What to send for a round that has just begun: one question for each other node that holds a
    /// voter of one of its groups, in the order of nodes.
    pub fn questions(&self, id: u64) -> Vec<(NodeId, ReadConfirm)> {
        let Some(round) = self.position(id).map(|position| &self.rounds[position]) else { return Vec::new() };
        let mut nodes = round.nodes.clone();
        nodes.sort_unstable();
        nodes.dedup();
        let question = |node: NodeId| {
            let listed = round.items.iter().filter(|item| item.bits_of(&round.nodes, node) != 0);
            (node, ReadConfirm { round: id, groups: listed.map(|item| (item.group, item.term)).collect() })
        };
        nodes.into_iter().filter(|node| *node != self.node).map(question).collect()
    }

    /// Takes a node's answer. Groups that have reached their quorum by it are added to `resolved`.
    /// Answers to rounds that have ended, or that do not fit, are ignored.
    pub fn confirm(&mut self, from: NodeId, answer: &ReadConfirmed, resolved: &mut Vec<ResolvedRead>) {
        let Some(position) = self.position(answer.round) else { return };
        let Round { items, nodes, open, .. } = &mut self.rounds[position];
        let listed = items.iter_mut().filter_map(|item| Some(item.bits_of(nodes, from)).filter(|bits| *bits != 0).map(|bits| (item, bits)));
        for (place, (item, bits)) in listed.enumerate() {
            if answer.holds(place) && item.open {
                item.confirmed |= bits;
                if item.has_quorum() {
                    item.open = false;
                    *open -= 1;
                    resolved.push(item.resolve(answer.round, true));
                }
            }
        }
        self.drop_ended();
    }

    /// The group's term or leadership has changed here: its part of every round ends unconfirmed.
    pub fn drop_group(&mut self, group: GroupId, resolved: &mut Vec<ResolvedRead>) {
        self.end_where(|_, item| item.group == group, resolved);
    }

    /// Ends what is still open of the rounds that began more than `timeout` before `now`.
    pub fn expire(&mut self, now: Instant, timeout: Duration, resolved: &mut Vec<ResolvedRead>) {
        self.end_where(|began, _| now.saturating_since(began) > timeout, resolved);
    }

    /// How many rounds have open parts (or wait behind one that has).
    pub fn open_count(&self) -> usize {
        self.rounds.len()
    }

    fn end_where(&mut self, ends: impl Fn(Instant, &Item) -> bool, resolved: &mut Vec<ResolvedRead>) {
        for (id, round) in (self.first_round..).zip(&mut self.rounds) {
            for item in &mut round.items {
                if item.open && ends(round.began, item) {
                    item.open = false;
                    round.open -= 1;
                    resolved.push(item.resolve(id, false));
                }
            }
        }
        self.drop_ended();
    }

    fn position(&self, id: u64) -> Option<usize> {
        let position = usize::try_from(id.checked_sub(self.first_round)?).ok()?;
        (position < self.rounds.len()).then_some(position)
    }

    /// Rounds end in any order but leave in theirs, so that ids need no map.
    fn drop_ended(&mut self) {
        while let Some(mut round) = self.rounds.pop_front_if(|round| round.open == 0) {
            self.first_round += 1;
            round.items.clear();
            round.nodes.clear();
            if self.spare.len() < SPARE_ROUNDS_MAX {
                self.spare.push(round);
            }
        }
    }
}

const SPARE_ROUNDS_MAX: usize = 16;

impl Round {
    /// Adds a group, or gives it back if this node alone is its quorum.
    fn add(&mut self, read: &ReadToConfirm<'_>, this_node: NodeId) -> Option<Item> {
        let Membership { voters, outgoing, .. } = read.membership;
        assert!(!voters.is_empty() && voters.len() + outgoing.len() <= VOTERS_MAX, "a leader's group has voters, and not too many");
        let start = self.nodes.len();
        self.nodes.extend(voters.values().chain(outgoing.values()));
        let mut item = Item {
            group: read.group,
            term: read.term,
            read_index: read.read_index,
            nodes_start: start as u32,
            incoming: voters.len() as u8,
            outgoing: outgoing.len() as u8,
            open: true,
            confirmed: 0,
        };
        item.confirmed = item.bits_of(&self.nodes, this_node);
        if item.has_quorum() {
            self.nodes.truncate(start);
            return Some(item);
        }
        self.open += 1;
        self.items.push(item);
        None
    }
}

impl Item {
    fn bits_of(&self, nodes: &[NodeId], node: NodeId) -> u64 {
        let start = self.nodes_start as usize;
        let own = &nodes[start..start + usize::from(self.incoming) + usize::from(self.outgoing)];
        own.iter().enumerate().fold(0, |bits, (place, of)| bits | (u64::from(*of == node) << place))
    }

    fn has_quorum(&self) -> bool {
        let incoming_mask = u64::MAX >> (VOTERS_MAX - usize::from(self.incoming));
        let incoming = (self.confirmed & incoming_mask).count_ones();
        let outgoing = (self.confirmed & !incoming_mask).count_ones();
        incoming > u32::from(self.incoming) / 2 && (self.outgoing == 0 || outgoing > u32::from(self.outgoing) / 2)
    }

    fn resolve(&self, round: u64, confirmed: bool) -> ResolvedRead {
        ResolvedRead { round, group: self.group, term: self.term, read_index: confirmed.then_some(self.read_index) }
    }
}

/// Whether these nodes are a quorum of a group. A read that another node forwards carries that
/// node's term of the group: if it is the leader's, its voter has confirmed on arrival, and with the
/// leader itself may be all that is needed.
pub fn confirmed_by(membership: &Membership, nodes: impl IntoIterator<Item = NodeId> + Clone) -> bool {
    membership.is_quorum(|_, of| nodes.clone().into_iter().any(|node| node == of))
}

impl ReadConfirm {
    /// Answers, on the node that is asked. `shares` says whether the node holds a voter of the group
    /// whose present term is that one.
    pub fn answer(&self, mut shares: impl FnMut(GroupId, Term) -> bool) -> ReadConfirmed {
        let mut confirmed = vec![0; self.groups.len().div_ceil(8)];
        for (place, (group, term)) in self.groups.iter().enumerate() {
            confirmed[place / 8] |= u8::from(shares(*group, *term)) << (place % 8);
        }
        ReadConfirmed { round: self.round, confirmed: confirmed.into() }
    }

    /// Appends the encoding (docs/formats.md, "Raft messages").
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.round);
        out.put_u32_le(self.groups.len() as u32);
        for (group, term) in &self.groups {
            out.put_u32_le(group.0);
            out.put_u64_le(term.0);
        }
    }

    /// Reads what [`ReadConfirm::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are no such question.
    pub fn decode(reader: &mut Reader) -> Result<ReadConfirm, DecodeError> {
        let round = reader.u64("round")?;
        let count = reader.count(12, "groups to confirm")?;
        let group = |_| Ok((GroupId(reader.u32("group")?), Term(reader.u64("term")?)));
        Ok(ReadConfirm { round, groups: (0..count).map(group).collect::<Result<_, DecodeError>>()? })
    }
}

impl ReadConfirmed {
    fn holds(&self, place: usize) -> bool {
        self.confirmed.get(place / 8).is_some_and(|byte| byte >> (place % 8) & 1 == 1)
    }

    /// Appends the encoding (docs/formats.md, "Raft messages").
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.round);
        out.write_bytes(&self.confirmed);
    }

    /// Reads what [`ReadConfirmed::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are no such answer.
    pub fn decode(reader: &mut Reader) -> Result<ReadConfirmed, DecodeError> {
        Ok(ReadConfirmed { round: reader.u64("round")?, confirmed: reader.bytes("confirmed groups")? })
    }
}
