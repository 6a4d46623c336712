//! What the control group's leader proposes: a pure function of the agreed state and of what was last
//! reported, run every second or so. It remembers nothing, so a new leader goes on where the old one
//! stopped.
//!
//! 1. Replicas that a group is reported to run without are confirmed to have left.
//! 2. Groups whose wanted members differ from `placement::assign` are changed, a few at a time; a group
//!    is in motion until its leader reports exactly what is wanted, and left to it unless a node that it
//!    is to move to was removed or given up.
//! 3. When nothing moves, preferred leaders are spread.
//! 4. A node that is to leave and holds nothing any more is removed.
//!
//! **Voters are odd in number.** With an even number of copies the last is a learner: it holds the data
//! and gives no failover, but an even voter would only raise the quorum. So two nodes hold one voter and
//! one learner, and the third node makes it three voters in one joint change. The control group has one
//! copy more to lose than any shard, hence 1, 3 or 5 voters: three from three nodes on, five from five
//! on, whatever is wanted of shards; it is written rarely, so the wider quorum costs nothing.
//!
//! **What is left alone:** nothing is put on a node that is down, and a group with a wanted member down
//! is not moved for balance. A node that is down keeps its replicas for a while
//! ([`PlanLimits::replace_after`]); then they are wanted elsewhere, if there are nodes enough, and when it
//! returns it gets its share anew. A change whose target went down waits, and counts against no limit, so
//! it blocks no others.

use super::command::ControlCommand;
use super::reconcile::is_settled;
use super::state::{ControlState, GroupRecord, NodeState, Rebalancing, Removal};
use crate::placement::{Electorate, NodeWeight, assign, assign_leaders, exchange_for_load};
use crate::scrub::ScrubReport;
use flotilla_types::{GroupId, Membership, NodeId, ReplicaId, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What the control group's leader has heard. None of it is agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// How each node is; one that is missing here counts as down.
    pub nodes: BTreeMap<NodeId, NodeHealth>,
    /// What each group's leader last reported; missing: nothing yet. The caller drops reports that are
    /// not renewed, so that a group without a leader holds up no others.
    pub groups: BTreeMap<GroupId, GroupReport>,
}

/// Whether a node answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeHealth {
    /// It does.
    Up,
    /// It does not.
    Down {
        /// For how long.
        for_time: Duration,
    },
}

/// A report of a group's leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupReport {
    /// The node that leads.
    pub leader: NodeId,
    /// In which term. Of two reports the one of the higher term counts.
    pub term: Term,
    /// The applied configuration.
    pub membership: Membership,
    /// Whether a configuration change is proposed and not yet applied.
    pub change_pending: bool,
    /// The epoch of the group's record that the leader works towards.
    pub record_epoch: u64,
    /// How many bytes the group holds.
    pub bytes: u64,
    /// What its leader has to do for clients, in reads a second (a write counts as four); `None`: it leads too short a time to say.
    pub load: Option<u64>,
    /// Its scrubs. Nothing is planned by them.
    pub scrub: ScrubReport,
    /// The snapshot that its leader sends, if it sends one.
    pub sending: Option<Sending>,
}

/// How far a snapshot is that a group's leader sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// The node that gets it.
    pub to: NodeId,
    /// Bytes sent.
    pub bytes_done: u64,
    /// For how long.
    pub elapsed: Duration,
}

/// Below this load of all shards, in reads a second, nobody is busy.
const LOAD_MIN: u64 = 1_000;

/// How much may happen at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanLimits {
    /// Groups in motion in all.
    pub motions_max: usize,
    /// Groups in motion that come to or go from one node.
    pub motions_per_node_max: usize,
    /// Commands of one plan.
    pub commands_max: usize,
    /// A node that is down for this long holds nothing that counts; `None`: it is waited for, however long.
    pub replace_after: Option<Duration>,
}

impl Default for PlanLimits {
    fn default() -> PlanLimits {
        PlanLimits { motions_max: 16, motions_per_node_max: 4, commands_max: 64, replace_after: Some(Duration::from_secs(300)) }
    }
}

/// The commands to propose now; empty when all is as it should be, or must wait.
pub fn plan(state: &ControlState, observed: &Observed, limits: &PlanLimits) -> Vec<ControlCommand> {
    let planner = Planner::new(state, observed, limits);
    let mut commands = planner.confirm_left();
    let confirmed: BTreeSet<GroupId> = commands.iter().filter_map(group_of).collect();
    let placed = planner.place(&confirmed);
    let still = placed.is_empty() && planner.moving == 0;
    commands.extend(placed);
    commands.extend(planner.remove_emptied());
    if still {
        commands.extend(planner.lead(&confirmed));
    }
    commands.truncate(limits.commands_max);
    commands
}

/// A group whose copies are wanted elsewhere than they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The group.
    pub group: GroupId,
    /// The nodes that get a copy.
    pub gains: Vec<NodeId>,
    /// The nodes that lose theirs.
    pub loses: Vec<NodeId>,
    /// Whether it must not be: the group would survive fewer failures than now.
    pub weakens: bool,
}

/// All that would be changed in the end if nothing else happened, in the order of the groups.
pub fn preview(state: &ControlState, observed: &Observed, limits: &PlanLimits) -> Vec<Change> {
    let planner = Planner::new(state, observed, limits);
    let change = |(group, nodes): (GroupId, Vec<NodeId>)| {
        let record = &state.groups[&group];
        let (voters, _) = choose_roles(record, &nodes);
        let gains: Vec<NodeId> = nodes.iter().copied().filter(|node| record.wanted_on(*node).is_none()).collect();
        let loses: Vec<NodeId> = record.wanted().map(|m| m.node).filter(|node| !nodes.contains(node)).collect();
        let weakens = planner.weakens(record, voters.len());
        (!gains.is_empty() || !loses.is_empty()).then_some(Change { group, gains, loses, weakens })
    };
    planner.desired().into_iter().filter_map(change).collect()
}

fn group_of(command: &ControlCommand) -> Option<GroupId> {
    match command {
        ControlCommand::SetGroup { group, .. } | ControlCommand::ConfirmLeft { group, .. } => Some(*group),
        _ => None,
    }
}

struct Planner<'a> {
    state: &'a ControlState,
    observed: &'a Observed,
    limits: &'a PlanLimits,
    /// Groups whose leader reports exactly what is wanted.
    settled: BTreeSet<GroupId>,
    /// Groups in motion that can go on.
    moving: usize,
    /// Of those, how many concern a node.
    moving_on: BTreeMap<NodeId, usize>,
}

impl<'a> Planner<'a> {
    fn new(state: &'a ControlState, observed: &'a Observed, limits: &'a PlanLimits) -> Planner<'a> {
        let mut planner = Planner { state, observed, limits, settled: BTreeSet::new(), moving: 0, moving_on: BTreeMap::new() };
        for (group, record) in &state.groups {
            let Some(report) = observed.groups.get(group) else { continue };
            if record.going().next().is_none() && is_settled(record, &report.membership) {
                planner.settled.insert(*group);
            } else if planner.is_up(report.leader) && joining(record, &report.membership).all(|n| planner.is_up(n)) {
                let concerned: BTreeSet<NodeId> = joining(record, &report.membership).chain(record.going().map(|m| m.node)).collect();
                planner.count(concerned);
            }
        }
        planner
    }

    fn count(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        self.moving += 1;
        for node in nodes {
            *self.moving_on.entry(node).or_default() += 1;
        }
    }

    fn is_up(&self, node: NodeId) -> bool {
        self.observed.nodes.get(&node) == Some(&NodeHealth::Up)
    }

    /// Whether it is to hold something.
    fn is_active(&self, node: NodeId) -> bool {
        self.state.nodes.get(&node).is_some_and(|r| r.state == NodeState::Active) && !self.is_given_up(node)
    }

    /// Whether it is down for so long that others take over what it holds.
    fn is_given_up(&self, node: NodeId) -> bool {
        let Some(limit) = self.limits.replace_after else { return false };
        matches!(self.observed.nodes.get(&node), Some(NodeHealth::Down { for_time }) if *for_time >= limit)
    }

    /// Nodes on their way out that hold nothing any more.
    fn remove_emptied(&self) -> Vec<ControlCommand> {
        let emptied = |node: &NodeId| self.state.replicas_on(*node).next().is_none();
        let leaving = self.state.nodes.iter().filter(|(_, record)| record.state == NodeState::Leaving).map(|(node, _)| *node);
        leaving.filter(emptied).map(|node| ControlCommand::RemoveNode { node, removal: Removal::Drained }).collect()
    }

    /// Only a leader that knows the record as it is, and has nothing under way, can say that a replica
    /// is out for good: one that works towards an older wish might still add it.
    fn confirm_left(&self) -> Vec<ControlCommand> {
        let mut commands = Vec::new();
        for (group, record) in self.state.groups.iter().filter(|(_, r)| r.going().next().is_some() || r.rebirth.is_some()) {
            let Some(report) = self.observed.groups.get(group) else { continue };
            if report.record_epoch != record.epoch || report.change_pending || report.membership.is_joint() {
                continue;
            }
            let replicas: Vec<ReplicaId> = record.going().map(|m| m.replica).filter(|r| !report.membership.contains(*r)).collect();
            let is_born = record.rebirth.is_some_and(|rebirth| report.membership.contains(rebirth.voter));
            if !replicas.is_empty() || is_born {
                commands.push(ControlCommand::ConfirmLeft { group: *group, expected_epoch: record.epoch, replicas });
            }
        }
        commands
    }

    fn place(&self, untouched: &BTreeSet<GroupId>) -> Vec<ControlCommand> {
        if self.moving >= self.limits.motions_max {
            return Vec::new();
        }
        let mut urgent = Vec::new();
        let mut for_balance = Vec::new();
        for (group, nodes) in self.desired() {
            let record = &self.state.groups[&group];
            let (voters, learners) = choose_roles(record, &nodes);
            let open = self.settled.contains(&group) || self.is_hopeless(record);
            if !open || untouched.contains(&group) || same_nodes(record, &voters, &learners) {
                continue;
            }
            if self.is_urgent(record, nodes.len()) {
                urgent.push((group, voters, learners))
            } else {
                for_balance.push((group, voters, learners))
            }
        }
        // The fewest voters first: they have the least to lose.
        urgent.sort_by_key(|(group, _, _)| (self.state.groups[group].voters.len(), *group));
        if self.state.rebalancing == Rebalancing::Paused {
            for_balance.clear();
        }
        let mut budget = Planner { settled: BTreeSet::new(), moving_on: self.moving_on.clone(), ..*self };
        let mut commands = Vec::new();
        for (group, voters, learners) in urgent.into_iter().chain(for_balance) {
            if budget.moving >= self.limits.motions_max || commands.len() >= self.limits.commands_max {
                break;
            }
            let record = &self.state.groups[&group];
            let concerned = concerned(record, &voters, &learners);
            let full = |n: &NodeId| budget.moving_on.get(n).is_some_and(|count| *count >= self.limits.motions_per_node_max);
            if self.may_start(record, &voters, &learners) && !concerned.iter().any(full) {
                budget.count(concerned);
                let preferred_leader = record.preferred_leader.filter(|leader| voters.contains(leader));
                commands.push(ControlCommand::SetGroup { group, expected_epoch: record.epoch, voters, learners, preferred_leader });
            }
        }
        commands
    }

    /// Where every group's copies should be.
    fn desired(&self) -> BTreeMap<GroupId, Vec<NodeId>> {
        let mut holds_any: BTreeSet<NodeId> = BTreeSet::new();
        holds_any.extend(self.state.groups.values().flat_map(|r| r.wanted().map(|m| m.node)));
        // A node that went down before it held anything is passed over, so that the others get even.
        let takes_part = |node: NodeId| self.is_active(node) && (self.is_up(node) || holds_any.contains(&node));
        let members = self.state.members().filter(|(node, _)| takes_part(*node));
        let nodes: BTreeMap<NodeId, NodeWeight> =
            members.map(|(node, r)| (node, NodeWeight { zone: r.profile.zone.clone(), weight: r.profile.weight })).collect();
        let usable = nodes.values().filter(|n| n.weight > 0).count();
        let present = |group: &GroupId| (*group, self.state.groups[group].wanted().map(|m| m.node).collect::<Vec<_>>());
        let shards = self.state.groups.keys().filter(|g| **g != GroupId::CONTROL).map(present);
        let mut desired = assign(&nodes, shards, self.state.replicas_wanted as usize);
        let copies = match usable {
            0..=2 => usable,
            3..=4 => 3,
            _ => 5,
        };
        desired.extend(assign(&nodes, [present(&GroupId::CONTROL)], copies));
        desired.retain(|_, nodes| !nodes.is_empty());
        desired
    }

    /// Whether the motion under way can never end, because a node that it counts on was removed or given up: then
    /// it is turned around in mid-course.
    fn is_hopeless(&self, record: &GroupRecord) -> bool {
        let removed = |node: NodeId| self.state.nodes.get(&node).is_none_or(|r| r.state == NodeState::Removed);
        record.wanted().any(|m| removed(m.node) || self.is_given_up(m.node))
    }

    /// Whether there is more at stake than balance: copies are missing, or sit where they must not stay.
    fn is_urgent(&self, record: &GroupRecord, copies: usize) -> bool {
        record.wanted().count() < copies || record.wanted().any(|m| !self.is_active(m.node))
    }

    fn may_start(&self, record: &GroupRecord, voters: &[NodeId], learners: &[NodeId]) -> bool {
        let stays = |node: NodeId| voters.contains(&node) || learners.contains(&node);
        let joining_up = voters.iter().chain(learners).all(|n| record.wanted_on(*n).is_some() || self.is_up(*n));
        // A node that is merely down keeps what it has; one that is drained or removed does not.
        let members_up = record.wanted().all(|m| self.is_up(m.node) || !self.is_active(m.node) && !stays(m.node));
        joining_up && members_up && !self.weakens(record, voters.len())
    }

    /// Whether so few voters would survive fewer failures than what is left of the present ones, or
    /// let writes rest on a single copy where they rest on two.
    fn weakens(&self, record: &GroupRecord, voters_next: usize) -> bool {
        let quorum = record.voters.len() / 2 + 1;
        let left = record.voters.iter().filter(|m| self.is_active(m.node)).count();
        let quorum_next = voters_next / 2 + 1;
        voters_next - quorum_next < left.saturating_sub(quorum) || quorum_next < quorum.min(2)
    }

    /// What each shard's leader has to do, if all are where they should be and know, and it is worth a look.
    fn loads(&self, shards: &BTreeMap<GroupId, Electorate>) -> Option<BTreeMap<GroupId, u64>> {
        let of = |(group, electorate): (&GroupId, &Electorate)| {
            let report = self.observed.groups.get(group).filter(|report| Some(report.leader) == electorate.present)?;
            Some((*group, report.load?))
        };
        let loads: BTreeMap<GroupId, u64> = shards.iter().map(of).collect::<Option<_>>()?;
        (shards.len() + 1 == self.state.groups.len() && loads.values().sum::<u64>() >= LOAD_MIN).then_some(loads)
    }

    fn lead(&self, untouched: &BTreeSet<GroupId>) -> Vec<ControlCommand> {
        let nodes: BTreeMap<NodeId, u32> =
            self.state.members().filter(|(_, r)| r.state == NodeState::Active).map(|(node, r)| (node, r.profile.weight.max(1))).collect();
        let electorate =
            |record: &GroupRecord| Electorate { voters: record.voters.iter().map(|m| m.node).collect(), present: record.preferred_leader };
        // Groups whose preferred leader is merely down go back to it when it returns. What is assigned
        // must be applied as a whole: half of an exchange of leaders is undone by the next plan.
        let waits = |record: &GroupRecord| record.preferred_leader.is_some_and(|n| self.is_active(n) && !self.is_up(n));
        let open =
            |(group, record): &(&GroupId, &GroupRecord)| self.settled.contains(group) && !untouched.contains(group) && !waits(record);
        // The control group is apart, since it is not one more load to be spread: any voter will do.
        let (control, shards): (BTreeMap<_, _>, BTreeMap<_, _>) =
            self.state.groups.iter().filter(open).map(|(g, r)| (*g, electorate(r))).partition(|(g, _)| *g == GroupId::CONTROL);
        let mut leaders = assign_leaders(&nodes, &shards);
        if leaders.iter().all(|(group, node)| shards[group].present == Some(*node))
            && let Some(exchange) = self.loads(&shards).and_then(|loads| exchange_for_load(&nodes, &shards, &loads))
        {
            leaders.extend(exchange);
        }
        leaders.extend(assign_leaders(&nodes, &control));
        let changed = |(group, node): (GroupId, NodeId)| {
            let record = &self.state.groups[&group];
            (record.preferred_leader != Some(node)).then(|| ControlCommand::SetGroup {
                group,
                expected_epoch: record.epoch,
                voters: record.voters.iter().map(|m| m.node).collect(),
                learners: record.learners.iter().map(|m| m.node).collect(),
                preferred_leader: Some(node),
            })
        };
        leaders.into_iter().filter_map(changed).collect()
    }
}

/// The nodes that have yet to become what they are wanted as.
pub(super) fn joining<'a>(record: &'a GroupRecord, actual: &'a Membership) -> impl Iterator<Item = NodeId> + 'a {
    let voters = record.voters.iter().filter(|m| !actual.voters.contains_key(&m.replica));
    let learners = record.learners.iter().filter(|m| !actual.contains(m.replica));
    voters.chain(learners).map(|m| m.node)
}

/// Which of a group's nodes vote: as many as are odd, present voters first, then present learners.
fn choose_roles(record: &GroupRecord, nodes: &[NodeId]) -> (Vec<NodeId>, Vec<NodeId>) {
    let mut order = nodes.to_vec();
    let rank = |node: NodeId| {
        let voter = record.voters.iter().any(|m| m.node == node);
        (!voter, record.wanted_on(node).is_none(), Some(node) != record.preferred_leader, node)
    };
    order.sort_by_key(|n| rank(*n));
    let mut learners = order.split_off(if nodes.len().is_multiple_of(2) { nodes.len() - 1 } else { nodes.len() });
    order.sort_unstable();
    learners.sort_unstable();
    (order, learners)
}

fn same_nodes(record: &GroupRecord, voters: &[NodeId], learners: &[NodeId]) -> bool {
    record.voters.iter().map(|m| m.node).eq(voters.iter().copied()) && record.learners.iter().map(|m| m.node).eq(learners.iter().copied())
}

/// The nodes that gain or lose something: those to which data or votes come and from which they go.
fn concerned(record: &GroupRecord, voters: &[NodeId], learners: &[NodeId]) -> BTreeSet<NodeId> {
    let gains = voters.iter().filter(|n| !record.voters.iter().any(|m| m.node == **n));
    let copies = learners.iter().filter(|n| record.wanted_on(**n).is_none());
    let loses = record.wanted().map(|m| m.node).filter(|n| !voters.contains(n) && !learners.contains(n));
    gains.chain(copies).copied().chain(loses).collect()
}
