//! What befalls a fleet, one storm after the other, and what each came to.

use super::{Fleet, FleetSize, STEP, spread_of};
use flotilla_node::control::{ControlCommand, NodeState, PlanLimits};
use flotilla_types::{GroupId, NodeId};
use std::time::Duration;

/// A fleet is at rest within this time of the last that befell it.
const REST_MAX: Duration = Duration::from_secs(3 * 3600);
/// How long all must stay as it is to count as rest.
const STILL_STEPS: u64 = 10;

/// What befalls a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storm {
    /// All nodes but the first join, spread over some time, as long as there is no data.
    Growth,
    /// So many nodes join at once.
    Join(u64),
    /// So many nodes are asked to leave at once.
    Leave(u64),
    /// So many nodes are down for some seconds, one after the other and some together.
    Crashes(u64),
    /// So many nodes are down until they are given up, and come back when all is at rest without them.
    GivenUp(u64),
    /// All nodes of a zone are down for a while that is shorter than what is waited for them.
    ZoneAway,
    /// More than half of the nodes are down for longer than that.
    MajorityAway,
    /// Nodes join, leave and fail for some minutes, while the moves of one thing meet those of the next.
    All,
}

impl Storm {
    /// All of them, in the order in which they come.
    pub const ALL: [Storm; 11] = [
        Storm::Growth,
        Storm::Join(1),
        Storm::Leave(1),
        Storm::GivenUp(1),
        Storm::Crashes(10),
        Storm::Join(10),
        Storm::Leave(10),
        Storm::ZoneAway,
        Storm::MajorityAway,
        Storm::All,
        Storm::GivenUp(3),
    ];

    /// What it did, for people.
    pub fn describe(self) -> String {
        match self {
            Storm::Growth => "all join".to_owned(),
            Storm::Join(count) => format!("{count} join"),
            Storm::Leave(count) => format!("{count} leave"),
            Storm::Crashes(count) => format!("{count} crash"),
            Storm::GivenUp(count) => format!("{count} given up"),
            Storm::ZoneAway => "a zone away".to_owned(),
            Storm::MajorityAway => "most away".to_owned(),
            Storm::All => "all at once".to_owned(),
        }
    }

    /// Whether the least that could have been moved is known.
    fn has_minimum(self) -> bool {
        !matches!(self, Storm::All)
    }
}

/// What a storm came to.
#[derive(Clone, Debug)]
pub struct Aftermath {
    /// Which.
    pub storm: Storm,
    /// Nodes that hold something, afterwards.
    pub nodes: usize,
    /// Copies begun on other nodes.
    pub moved: u64,
    /// The fewest that would have done, where that is known.
    pub moved_min: Option<u64>,
    /// How long until all was at rest.
    pub took: Duration,
    /// The most copies on a node less the fewest.
    pub copies_spread: usize,
    /// The same of leaders.
    pub leaders_spread: usize,
    /// How often the planner was asked.
    pub plans: u64,
}

/// Lets all storms befall a fleet of this size.
///
/// # Errors
/// What is amiss, if it does not come to rest even and complete, or moves more than it may. A breach of what must hold on the
/// way is a panic.
pub fn weather(seed: u64, size: FleetSize, mut done: impl FnMut(&Aftermath)) -> Result<(), String> {
    let mut fleet = Fleet::new(seed, size.shards, size.zones);
    for storm in Storm::ALL {
        let aftermath = fleet.befall(storm, size)?;
        done(&aftermath);
        // A tenth more than the least, which knows nothing of zones: where those are few and uneven, a copy can go only where
        // there is none in its zone, and another makes room for it.
        let allowed = aftermath.moved_min.map(|least| least + least / 10 + 2 * size.zones);
        if allowed.is_some_and(|allowed| aftermath.moved > allowed) {
            return Err(format!("more was moved than need be: {aftermath:?}"));
        }
    }
    Ok(())
}

impl Fleet {
    fn befall(&mut self, storm: Storm, size: FleetSize) -> Result<Aftermath, String> {
        let replace_after = self.limits.replace_after;
        // What nodes do as long as groups are small (see `supervise`).
        self.limits = match storm {
            Storm::Growth => PlanLimits { motions_max: 128, motions_per_node_max: 128, commands_max: 256, replace_after },
            _ => PlanLimits { replace_after, ..PlanLimits::default() },
        };
        let (began, moved, plans) = (self.now, self.copies_begun, self.plans);
        let mut moved_min = 0;
        match storm {
            Storm::Growth => {
                for _ in 1..size.nodes {
                    self.join();
                    let pause = self.rng.below(4);
                    self.steps(pause);
                }
                // Each node is full once; what came to those that were there before goes on to those that come later.
                moved_min = u64::MAX;
            }
            Storm::Join(count) => {
                moved_min = self.share(self.holders().len() as u64 + count) * count;
                (0..count).for_each(|_| _ = self.join());
            }
            Storm::Leave(count) => {
                for node in self.pick_nodes(count) {
                    moved_min += self.loads()[&node].0 as u64;
                    self.apply(&ControlCommand::LeaveNode { node });
                }
            }
            Storm::Crashes(count) => {
                for node in self.pick_nodes(count) {
                    self.set_up(node, false);
                    // In all for less than what is waited for them.
                    let pause = self.rng.below(10);
                    self.steps(pause);
                    if self.rng.chance(1, 2) {
                        self.set_up(node, true);
                    }
                }
                self.all_back();
            }
            Storm::GivenUp(count) => {
                // As far as no group loses its majority: that is beyond what can be healed without them.
                let nodes = self.pick_nodes_apart(count);
                for node in &nodes {
                    moved_min += self.loads()[node].0 as u64;
                    self.set_up(*node, false);
                }
                let wait = replace_after.map_or(0, |time| time.as_millis() / STEP.as_millis()) as u64;
                self.steps(wait + 10);
                self.come_to_rest()?;
                self.all_back();
                // What they held is elsewhere: they get a share as new nodes do.
                moved_min += self.share(self.holders().len() as u64 + count) * count;
            }
            Storm::ZoneAway => {
                let zone = self.state.nodes[&self.holders()[0]].profile.zone.clone();
                let inside: Vec<NodeId> = self.holders().into_iter().filter(|node| self.state.nodes[node].profile.zone == zone).collect();
                inside.iter().for_each(|node| self.set_up(*node, false));
                self.steps(60);
                self.all_back();
            }
            Storm::MajorityAway => {
                let count = self.holders().len() as u64 * 3 / 5;
                for node in self.pick_nodes(count) {
                    self.set_up(node, false);
                }
                self.steps(400);
                self.all_back();
            }
            Storm::All => self.storm_on(),
        }
        self.come_to_rest()?;
        let loads = self.loads();
        Ok(Aftermath {
            storm,
            nodes: loads.len(),
            moved: self.copies_begun - moved,
            moved_min: (storm.has_minimum() && moved_min != u64::MAX).then_some(moved_min),
            took: STEP * (self.now - began - STILL_STEPS) as u32,
            copies_spread: self.copies_spread(),
            leaders_spread: spread_of(loads.values().map(|(_, leaders)| *leaders)),
            plans: self.plans - plans,
        })
    }

    /// Some minutes of everything.
    fn storm_on(&mut self) {
        for _ in 0..60 {
            let holders = self.holders();
            match self.rng.below(10) {
                0..3 => _ = self.join(),
                3..5 if holders.len() > 8 => {
                    let node = self.pick_nodes(1)[0];
                    self.apply(&ControlCommand::LeaveNode { node });
                }
                5 if self.members_in(NodeState::Leaving).len() > 1 => {
                    let node = self.members_in(NodeState::Leaving)[0];
                    self.apply(&ControlCommand::ActivateNode { node });
                }
                6 => self.all_back(),
                _ => {
                    let node = self.pick_nodes(1)[0];
                    self.set_up(node, false);
                }
            }
            let pause = self.rng.below(16);
            self.steps(pause);
        }
        self.all_back();
    }

    fn steps(&mut self, count: u64) {
        (0..count).for_each(|_| self.step());
    }

    /// A node's part of all copies, rounded down.
    fn share(&self, nodes: u64) -> u64 {
        u64::from(self.state.shards_total) * nodes.min(3) / nodes
    }

    fn pick_nodes(&mut self, count: u64) -> Vec<NodeId> {
        let mut nodes = self.holders();
        for place in (1..nodes.len()).rev() {
            nodes.swap(place, self.rng.below(place as u64 + 1) as usize);
        }
        nodes.truncate((count as usize).min(nodes.len().saturating_sub(1)));
        nodes
    }

    /// Nodes of which no group has two.
    fn pick_nodes_apart(&mut self, count: u64) -> Vec<NodeId> {
        let mut apart: Vec<NodeId> = Vec::new();
        for node in self.pick_nodes(u64::MAX) {
            let meets = |(group, record): (&GroupId, &flotilla_node::control::GroupRecord)| {
                let others = record.wanted().filter(|member| apart.contains(&member.node)).count();
                let limit = if *group == GroupId::CONTROL { 2 } else { 1 };
                others >= limit && record.wanted_on(node).is_some()
            };
            if (apart.len() as u64) < count && !self.state.groups.iter().any(meets) {
                apart.push(node);
            }
        }
        apart
    }

    fn all_back(&mut self) {
        let down: Vec<NodeId> = self.machines.iter().filter(|(_, machine)| !machine.up).map(|(node, _)| *node).collect();
        down.into_iter().for_each(|node| self.set_up(node, true));
    }

    fn come_to_rest(&mut self) -> Result<(), String> {
        let began = self.now;
        let mut still = 0;
        while still < STILL_STEPS {
            self.step();
            let amiss = self.amiss();
            still = if amiss.is_empty() { still + 1 } else { 0 };
            if STEP * (self.now - began) as u32 > REST_MAX {
                return Err(format!("not at rest after {} s:\n    {}", REST_MAX.as_secs(), amiss.join("\n    ")));
            }
        }
        Ok(())
    }
}
