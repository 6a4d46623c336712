//! A fleet: many nodes and many shards, too many to run the whole machines for long.
//!
//! Real are the control group's state, its planner and the steps by which a shard's leader follows (`plan`, `next_step`): what
//! decides. Modelled, half a second at a time, are the shards ([`shard`]: elections, changes that take their time or are lost with
//! a leader, copies that are sent and begun anew) and what the planner hears of them (reports that come late or not at all; the
//! control group itself can lose its majority).
//!
//! [`storm`] lets nodes join, leave and fail, alone and all at once, and says after each storm whether the fleet came to rest even
//! and complete, and how much was moved for it. With each change of a shard's members it is checked that a majority of the voters
//! has the data and is up, unless failures alone took that away, and that the shard would survive no fewer failures than before.
//!
//! Left out: bytes, clients, and all of Raft but what is listed; the worlds of [`crate::world`] are for that.

mod shard;
pub mod storm;

use flotilla_node::control::{
    ControlAnswer, ControlCommand, ControlState, Formats, GroupRecord, GroupReport, NodeHealth, NodeProfile, NodeState, Observed,
    PlanLimits, Step, next_step, plan,
};
use flotilla_types::{ClusterId, GroupId, MemberStep, MembershipChange, NodeId, ReplicaId, Rng};
use shard::{Shard, Sight};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// What one step of the model stands for: nodes report and the planner plans this often.
pub const STEP: Duration = Duration::from_millis(500);
/// A node that was not heard for so many steps counts as down.
const HEARD_STEPS: u64 = 6;
/// Leaderships that one node hands over in one step.
const TRANSFERS_AT_ONCE: u32 = 8;
/// Of 100 reports, how many are lost.
const REPORTS_LOST_PERCENT: u64 = 5;
/// The most steps by which a node's copy of the control state is behind.
const COPY_BEHIND_STEPS_MAX: u64 = 3;

/// How large a fleet is.
#[derive(Clone, Copy, Debug)]
pub struct FleetSize {
    /// Nodes.
    pub nodes: u64,
    /// Zones that they are spread over.
    pub zones: u64,
    /// Shards.
    pub shards: u32,
}

/// A machine as the model sees it.
#[derive(Debug)]
struct Machine {
    up: bool,
    /// Since when, in steps: who has just come back is behind for a moment.
    since: u64,
    /// By how many steps its copy of the control state is behind.
    behind: u64,
    /// The last report that arrived, and when.
    report: Option<(u64, BTreeMap<GroupId, GroupReport>)>,
}

/// A fleet. Invariants, checked with every change: see the module.
#[derive(Debug)]
pub struct Fleet {
    rng: Rng,
    /// Steps since the beginning.
    now: u64,
    state: ControlState,
    shards: BTreeMap<GroupId, Shard>,
    machines: BTreeMap<NodeId, Machine>,
    /// The wishes for each group, the last ones, and from when on they held.
    wishes: BTreeMap<GroupId, VecDeque<(u64, GroupRecord)>>,
    limits: PlanLimits,
    watching_since: u64,
    next_node: u64,
    zones: u64,
    /// Replicas that were begun on a node, the control group's left out.
    copies_begun: u64,
    /// How often the planner was asked.
    plans: u64,
}

impl Fleet {
    /// A fleet of one node that holds everything.
    pub fn new(seed: u64, shards: u32, zones: u64) -> Fleet {
        let state = ControlState::genesis(ClusterId(1), NodeId(1), profile(1, zones), shards, 3);
        let lone = |(group, record): (&GroupId, &GroupRecord)| (*group, Shard::lone(record.voters[0]));
        let mut fleet = Fleet {
            rng: Rng::new(seed),
            now: 0,
            shards: state.groups.iter().map(lone).collect(),
            wishes: state.groups.iter().map(|(group, record)| (*group, VecDeque::from([(0, record.clone())]))).collect(),
            state,
            machines: BTreeMap::new(),
            limits: PlanLimits { replace_after: Some(Duration::from_secs(60)), ..PlanLimits::default() },
            watching_since: 0,
            next_node: 2,
            zones,
            copies_begun: 0,
            plans: 0,
        };
        fleet.machines.insert(NodeId(1), Machine { up: true, since: 0, behind: 0, report: None });
        fleet
    }

    /// One step: machines report, the planner plans, leaders follow.
    pub fn step(&mut self) {
        self.now += 1;
        self.elect();
        self.report();
        self.plan();
        self.follow();
    }

    fn elect(&mut self) {
        let sight = Sight { machines: &self.machines, now: self.now };
        for shard in self.shards.values_mut() {
            shard.elect(&sight, &mut self.rng);
        }
    }

    fn report(&mut self) {
        let mut reports: BTreeMap<NodeId, BTreeMap<GroupId, GroupReport>> = BTreeMap::new();
        for (group, shard) in &self.shards {
            let Some(leader) = shard.leader_node() else { continue };
            let record_epoch = self.known_record(*group, leader).epoch;
            reports.entry(leader).or_default().insert(*group, shard.report(leader, record_epoch));
        }
        for (node, machine) in self.machines.iter_mut().filter(|(_, machine)| machine.up) {
            if !self.rng.chance(REPORTS_LOST_PERCENT, 100) {
                machine.report = Some((self.now, reports.remove(node).unwrap_or_default()));
            }
            if self.rng.chance(1, 10) {
                machine.behind = self.rng.below(COPY_BEHIND_STEPS_MAX + 1);
            }
        }
    }

    /// The wish for a group as a node knows it.
    fn known_record(&self, group: GroupId, node: NodeId) -> &GroupRecord {
        let behind = self.machines.get(&node).map_or(0, |machine| machine.behind);
        let wishes = &self.wishes[&group];
        let known = wishes.iter().rev().find(|(since, _)| since + behind <= self.now).or(wishes.front());
        &known.expect("every group has had a wish from the start").1
    }

    fn observed(&self) -> Observed {
        let mut observed = Observed::default();
        for node in self.state.nodes.keys() {
            let last = self.machines.get(node).and_then(|machine| machine.report.as_ref()).map_or(0, |(at, _)| *at);
            let for_time = STEP * (self.now - last.max(self.watching_since)) as u32;
            let is_heard = last > 0 && self.now - last < HEARD_STEPS;
            observed.nodes.insert(*node, if is_heard { NodeHealth::Up } else { NodeHealth::Down { for_time } });
        }
        for (_, groups) in self.machines.values().filter_map(|machine| machine.report.as_ref()) {
            for (group, report) in groups {
                if observed.groups.get(group).is_none_or(|known| known.term < report.term) {
                    observed.groups.insert(*group, report.clone());
                }
            }
        }
        observed
    }

    fn plan(&mut self) {
        let observed = self.observed();
        let members = self.state.members().count();
        let heard = self.state.members().filter(|(node, _)| observed.nodes.get(node) == Some(&NodeHealth::Up)).count();
        // Who hears no majority, or leads nothing, judges nobody.
        if self.shards[&GroupId::CONTROL].leader_node().is_none() {
            self.watching_since = self.now;
            return;
        }
        if heard * 2 <= members {
            self.watching_since = self.now;
        }
        self.plans += 1;
        for command in plan(&self.state, &observed, &self.limits) {
            self.apply(&command);
        }
    }

    /// The control group agrees on a command.
    fn apply(&mut self, command: &ControlCommand) -> ControlAnswer {
        if let ControlCommand::ConfirmLeft { group, replicas, .. } = command {
            let membership = &self.shards[group].membership;
            assert!(!replicas.iter().any(|replica| membership.contains(*replica)), "{group}: {replicas:?} are still in {membership:?}");
        }
        let applied = self.state.apply(command);
        if let ControlCommand::SetGroup { group, .. } | ControlCommand::ConfirmLeft { group, .. } = command {
            let wishes = self.wishes.get_mut(group).expect("planned for a group that is there");
            wishes.push_back((self.now, self.state.groups[group].clone()));
            while wishes.len() > COPY_BEHIND_STEPS_MAX as usize + 2 {
                wishes.pop_front();
            }
        }
        applied.answer
    }

    fn follow(&mut self) {
        let mut transfers: BTreeMap<NodeId, u32> = BTreeMap::new();
        let groups: Vec<GroupId> = self.shards.keys().copied().collect();
        for group in groups {
            let Some(leader) = self.shards[&group].leader_node() else { continue };
            let record = self.known_record(group, leader).clone();
            let sight = Sight { machines: &self.machines, now: self.now };
            let shard = self.shards.get_mut(&group).expect("listed");
            shard.carry_on(&record, &sight, &mut self.rng);
            let Some(leading) = shard.leader else { continue };
            let caught_up = |replica: ReplicaId| shard.is_in_sync(replica, &sight);
            match next_step(&record, &shard.membership, leading, caught_up, shard.pending.is_some()) {
                Some(Step::Propose(change)) => {
                    let is_new =
                        change.steps.iter().any(|step| matches!(step, MemberStep::AddLearner(m) if !shard.membership.contains(m.replica)));
                    self.copies_begun += u64::from(is_new && group != GroupId::CONTROL);
                    shard.propose(change, &record, &sight, &mut self.rng);
                }
                Some(Step::LeaveJoint) => shard.propose(MembershipChange::leave_joint(), &record, &sight, &mut self.rng),
                Some(Step::TransferLeadership(to)) => {
                    let count = transfers.entry(leader).or_default();
                    if *count < TRANSFERS_AT_ONCE {
                        *count += 1;
                        shard.lead(to);
                    }
                }
                None => {}
            }
        }
    }

    // ---- what is done to it ----

    fn join(&mut self) -> NodeId {
        let node = NodeId(self.next_node);
        self.next_node += 1;
        let answer = self.apply(&ControlCommand::AddNode { node, profile: profile(node.0, self.zones), replaces: None });
        assert!(matches!(answer, ControlAnswer::NodeAdded { .. }), "{answer:?}");
        self.machines.insert(node, Machine { up: true, since: self.now, behind: 0, report: None });
        node
    }

    fn set_up(&mut self, node: NodeId, up: bool) {
        if let Some(machine) = self.machines.get_mut(&node) {
            (machine.up, machine.since) = (up, self.now);
        }
        if !up {
            let machines = &self.machines;
            for shard in self.shards.values_mut() {
                shard.lose(node, &mut self.rng, |voter| machines.get(&voter).is_some_and(|machine| machine.up));
            }
        }
    }

    fn members_in(&self, wanted: NodeState) -> Vec<NodeId> {
        self.state.members().filter(|(_, record)| record.state == wanted).map(|(node, _)| node).collect()
    }

    // ---- what it comes to ----

    /// How many copies each node that takes part is wanted to hold, and how many shards it is to lead.
    fn loads(&self) -> BTreeMap<NodeId, (usize, usize)> {
        let mut loads: BTreeMap<NodeId, (usize, usize)> = self.holders().into_iter().map(|node| (node, (0, 0))).collect();
        for (_, record) in self.state.groups.iter().filter(|(group, _)| **group != GroupId::CONTROL) {
            for member in record.wanted() {
                loads.entry(member.node).or_default().0 += 1;
            }
            if let Some(leader) = record.preferred_leader {
                loads.entry(leader).or_default().1 += 1;
            }
        }
        loads
    }

    /// The nodes that are to hold something.
    fn holders(&self) -> Vec<NodeId> {
        let limit = self.limits.replace_after.unwrap_or(Duration::MAX);
        let observed = self.observed();
        let given_up = |node: &NodeId| matches!(observed.nodes.get(node), Some(NodeHealth::Down { for_time }) if *for_time >= limit);
        self.members_in(NodeState::Active).into_iter().filter(|node| !given_up(node)).collect()
    }

    /// What keeps the fleet from being at rest, even and complete; empty: nothing does. The first few.
    pub fn amiss(&self) -> Vec<String> {
        let mut amiss = Vec::new();
        let leaving = self.members_in(NodeState::Leaving);
        if !leaving.is_empty() {
            amiss.push(format!("{leaving:?} have not left"));
        }
        let holders = self.holders();
        let zone = |node: NodeId| self.state.nodes[&node].profile.zone.clone();
        let zones: BTreeSet<String> = holders.iter().map(|node| zone(*node)).collect();
        for (group, record) in &self.state.groups {
            let copies = if *group == GroupId::CONTROL { control_copies(holders.len()) } else { holders.len().min(3) };
            let nodes: BTreeSet<NodeId> = record.wanted().map(|member| member.node).collect();
            let spread: BTreeSet<String> = nodes.iter().map(|node| zone(*node)).collect();
            let shard = &self.shards[group];
            if nodes.len() != copies || spread.len() < copies.min(zones.len()) {
                amiss.push(format!("{group} is wanted on {nodes:?} in zones {spread:?}"));
            } else if record.going().next().is_some() || !flotilla_node::control::reconcile::is_settled(record, &shard.membership) {
                amiss.push(format!("{group} is wanted as {record:?} and is {:?}", shard.membership));
            } else if nodes.iter().any(|node| !holders.contains(node)) {
                amiss.push(format!("{group} lies on {nodes:?}, of which not all are to hold anything"));
            } else if shard.leader_node().is_none() || record.preferred_leader != shard.leader_node() {
                amiss.push(format!("{group} is led by {:?}, preferred is {:?}", shard.leader_node(), record.preferred_leader));
            }
            if amiss.len() > 4 {
                return amiss;
            }
        }
        let spread = self.copies_spread();
        if spread > 1 {
            amiss.push(format!("copies differ by {spread}"));
        }
        amiss
    }

    /// The most copies on a node less the fewest. A zone so large that its even part would be more than one copy of each shard is
    /// full before that, and counted apart.
    fn copies_spread(&self) -> usize {
        let mut zones: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (node, (copies, _)) in self.loads() {
            zones.entry(&self.state.nodes[&node].profile.zone).or_default().push(copies);
        }
        let shards = self.state.shards_total as usize;
        let (mut copies, mut spread) = (shards * zones.len().min(3), 0);
        loop {
            let nodes: usize = zones.values().map(Vec::len).sum();
            let Some(full) = zones.iter().find(|(_, loads)| loads.len() * copies > shards * nodes).map(|(zone, _)| *zone) else { break };
            let loads = zones.remove(full).expect("just found");
            spread = spread.max(spread_of(loads.into_iter()));
            copies -= shards;
        }
        spread.max(spread_of(zones.into_values().flatten()))
    }
}

fn spread_of(counts: impl Iterator<Item = usize>) -> usize {
    let counts: BTreeSet<usize> = counts.collect();
    counts.last().unwrap_or(&0) - counts.first().unwrap_or(&0)
}

fn control_copies(nodes: usize) -> usize {
    match nodes {
        0..=2 => nodes,
        3..=4 => 3,
        _ => 5,
    }
}

fn profile(number: u64, zones: u64) -> NodeProfile {
    NodeProfile {
        name: format!("n{number}"),
        http: None,
        peer: format!("n{number}:7071"),
        resp: None,
        zone: format!("z{}", number % zones),
        weight: 1,
        formats: Formats { min: 1, max: 1 },
    }
}
