//! A shard of the fleet: who its members are, who leads, who has the data. Raft's rules in a few lines each.

use super::Machine;
use flotilla_node::control::{GroupRecord, GroupReport};
use flotilla_types::{Member, MemberStep, Membership, MembershipChange, NodeId, ReplicaId, Rng, Term};
use std::collections::{BTreeMap, BTreeSet};

/// Steps that a node which came back needs to catch up.
const BEHIND_STEPS: u64 = 2;

/// What the machines are like at this step.
pub(super) struct Sight<'a> {
    pub(super) machines: &'a BTreeMap<NodeId, Machine>,
    pub(super) now: u64,
}

impl Sight<'_> {
    fn is_up(&self, node: NodeId) -> bool {
        self.machines.get(&node).is_some_and(|machine| machine.up)
    }

    /// Up, and for long enough to have caught up with what came meanwhile.
    fn is_steady(&self, node: NodeId) -> bool {
        self.machines.get(&node).is_some_and(|machine| machine.up && self.now >= machine.since + BEHIND_STEPS)
    }
}

#[derive(Debug)]
pub(super) struct Shard {
    pub(super) membership: Membership,
    pub(super) leader: Option<ReplicaId>,
    term: Term,
    /// Those that had all the data once; a node that is down is behind, and catches up when it is back.
    with_data: BTreeSet<ReplicaId>,
    /// Learners that are being sent the data, and how many steps are left.
    copying: BTreeMap<ReplicaId, u64>,
    /// A change that is proposed, and in how many steps it is applied.
    pub(super) pending: Option<(MembershipChange, u64)>,
    /// Without a leader: how many steps until the next election.
    election: u64,
}

impl Shard {
    pub(super) fn lone(member: Member) -> Shard {
        Shard {
            membership: Membership::of_voters([member]),
            leader: Some(member.replica),
            term: Term(1),
            with_data: BTreeSet::from([member.replica]),
            copying: BTreeMap::new(),
            pending: None,
            election: 0,
        }
    }

    pub(super) fn leader_node(&self) -> Option<NodeId> {
        self.membership.node_of(self.leader?)
    }

    pub(super) fn is_in_sync(&self, replica: ReplicaId, sight: &Sight) -> bool {
        self.with_data.contains(&replica) && self.membership.node_of(replica).is_some_and(|node| sight.is_steady(node))
    }

    pub(super) fn report(&self, leader: NodeId, record_epoch: u64) -> GroupReport {
        GroupReport {
            leader,
            term: self.term,
            membership: self.membership.clone(),
            change_pending: self.pending.is_some(),
            record_epoch,
            bytes: 64 << 20,
            load: None,
            scrub: Default::default(),
            sending: None,
        }
    }

    /// A leader without a majority steps down; a majority without a leader elects one that has the data.
    pub(super) fn elect(&mut self, sight: &Sight, rng: &mut Rng) {
        if !self.membership.is_quorum(|_, node| sight.is_up(node)) {
            self.leader = None;
            return;
        }
        if self.leader.is_some() {
            return;
        }
        if self.election > 0 {
            self.election -= 1;
            return;
        }
        let voters = self.membership.voters.iter().chain(&self.membership.outgoing);
        let fit: Vec<ReplicaId> = voters.filter(|(r, n)| self.with_data.contains(r) && sight.is_up(**n)).map(|(r, _)| *r).collect();
        if let Some(next) = rng.pick(&fit) {
            self.lead(*next);
        }
    }

    pub(super) fn lead(&mut self, replica: ReplicaId) {
        self.leader = Some(replica);
        self.term = Term(self.term.0 + 1);
        // What the last leader was sending ends with it.
        self.copying.clear();
    }

    /// A node went down.
    pub(super) fn lose(&mut self, node: NodeId, rng: &mut Rng, is_up: impl Fn(NodeId) -> bool) {
        if let Some(replica) = self.membership.replica_on(node) {
            self.copying.remove(&replica);
        }
        if self.leader_node() != Some(node) {
            return;
        }
        self.leader = None;
        self.election = rng.between(1, 4);
        // What it had proposed is on the others, or lost with it.
        let reached = rng.chance(1, 2) && self.membership.is_quorum(|_, voter| is_up(voter));
        self.pending = self.pending.take().filter(|_| reached);
    }

    /// Proposes a change. What is done about a shard must not be what takes its majority away, or the failures that it could bear:
    /// by what is up now, since nobody can know what fails before it is applied.
    pub(super) fn propose(&mut self, change: MembershipChange, wanted: &GroupRecord, sight: &Sight, rng: &mut Rng) {
        let (before, next) = (&self.membership, applied(&self.membership, &change));
        let majority = |membership: &Membership| membership.is_quorum(|_, node| sight.is_up(node));
        assert!(majority(&next) || !majority(before), "a majority is given up: {before:?} to {next:?}, wanted {wanted:?}");
        let spare = |membership: &Membership| {
            let up = membership.voters.values().filter(|node| sight.is_up(**node)).count();
            up.saturating_sub(membership.voters.len() / 2 + 1)
        };
        let keeps_size = next.voters.len() == before.voters.len();
        let bears = !keeps_size || spare(&next) >= spare(before).min(1);
        assert!(bears, "fewer failures to bear: {before:?} to {next:?}, wanted {wanted:?}");
        self.pending = Some((change, rng.between(0, 2)));
    }

    /// What goes on by itself where there is a leader: copies are sent, a change comes to be applied.
    pub(super) fn carry_on(&mut self, wanted: &GroupRecord, sight: &Sight, rng: &mut Rng) {
        for (replica, node) in self.membership.learners.clone() {
            if self.with_data.contains(&replica) || !sight.is_up(node) {
                continue;
            }
            let left = self.copying.entry(replica).or_insert_with(|| rng.between(1, 8));
            *left -= 1;
            if *left == 0 {
                self.copying.remove(&replica);
                self.with_data.insert(replica);
            }
        }
        match self.pending.take() {
            Some((change, 0)) => self.change(&change, wanted),
            Some((change, steps)) => self.pending = Some((change, steps - 1)),
            None => {}
        }
    }

    fn change(&mut self, change: &MembershipChange, wanted: &GroupRecord) {
        let before = self.membership.clone();
        self.membership = applied(&before, change);
        let now = &self.membership;
        let show = || format!("{before:?} to {now:?}, wanted {wanted:?}");
        assert!(now.voters.keys().all(|replica| self.with_data.contains(replica)), "a voter lacks the data: {}", show());
        assert!(now.voters.len() >= before.voters.len().min(wanted.voters.len()), "fewer voters: {}", show());
        let members = self.membership.members();
        self.with_data.retain(|replica| members.contains_key(replica));
        self.copying.retain(|replica, _| members.contains_key(replica));
        if self
            .leader
            .is_some_and(|leader| !self.membership.voters.contains_key(&leader) && !self.membership.outgoing.contains_key(&leader))
        {
            self.leader = None;
            self.election = 1;
        }
    }
}

/// What Raft makes of a change.
fn applied(before: &Membership, change: &MembershipChange) -> Membership {
    let mut m = before.clone();
    if change.steps.is_empty() {
        assert!(m.is_joint(), "there is nothing to leave");
        m.outgoing.clear();
        m.learners.append(&mut m.learners_next);
        return m;
    }
    assert!(!m.is_joint(), "a change in a joint configuration");
    if change.steps.len() > 1 {
        m.outgoing = m.voters.clone();
    }
    for step in &change.steps {
        match step {
            MemberStep::AddVoter(member) => {
                m.learners.remove(&member.replica);
                m.voters.insert(member.replica, member.node);
            }
            MemberStep::AddLearner(member) => {
                m.voters.remove(&member.replica);
                let later = m.outgoing.contains_key(&member.replica);
                if later { &mut m.learners_next } else { &mut m.learners }.insert(member.replica, member.node);
            }
            MemberStep::Remove(replica) => {
                m.voters.remove(replica);
                m.learners.remove(replica);
            }
        }
    }
    m
}
