//! Spreads preferred leaders over nodes in proportion to their weights, with few changes.
//!
//! Present leaders stay unless the load can be made more even: as long as some chain of groups leads
//! from a node to one that would still be less loaded afterwards, leadership is passed along the
//! shortest such chain (an optimal semi-matching: Harvey et al., 2003). Zones follow from nodes: zones
//! of equal weight come out even to within their numbers of nodes.

use flotilla_types::{GroupId, NodeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A group, from the point of view of who leads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Electorate {
    /// The nodes that may lead.
    pub voters: Vec<NodeId>,
    /// The node that leads or should lead now.
    pub present: Option<NodeId>,
}

/// Which node should lead each group. `nodes`: those that may lead, by weight. A group without a
/// voter among them is left out.
pub fn assign_leaders(nodes: &BTreeMap<NodeId, u32>, groups: &BTreeMap<GroupId, Electorate>) -> BTreeMap<GroupId, NodeId> {
    let weights: BTreeMap<NodeId, u64> = nodes.iter().filter(|(_, w)| **w > 0).map(|(n, w)| (*n, u64::from(*w))).collect();
    let mut leading = Leading { led: weights.keys().map(|n| (*n, BTreeSet::new())).collect(), weights, groups };
    let eligible = |voters: &[NodeId]| -> Vec<NodeId> { voters.iter().copied().filter(|v| leading.weights.contains_key(v)).collect() };
    let electorates: Vec<(GroupId, Vec<NodeId>, Option<NodeId>)> =
        groups.iter().map(|(g, e)| (*g, eligible(&e.voters), e.present)).filter(|(_, voters, _)| !voters.is_empty()).collect();
    let (kept, open): (Vec<_>, Vec<_>) =
        electorates.into_iter().partition(|(_, voters, present)| present.is_some_and(|p| voters.contains(&p)));
    for (group, _, present) in kept {
        leading.give(group, present.expect("partitioned by it"));
    }
    for (group, voters, _) in open {
        let least = voters.into_iter().reduce(|a, b| if leading.is_less(b, a) { b } else { a }).expect("filtered above");
        leading.give(group, least);
    }
    while leading.sweep() {}
    leading.led.iter().flat_map(|(node, led)| led.iter().map(|group| (*group, *node))).collect()
}

/// Of the mean, in per cent, how busy the busiest node must be for an exchange.
const BUSY_PERCENT: u64 = 130;
/// Of the busiest node's load, in per cent, what an exchange must take off it.
const GAIN_PERCENT: u64 = 10;

/// Two groups whose leaders should change places: each node leads as many as before, and the busiest one's load gets nearer to
/// the others'. `None` if no exchange is worth it. `loads` is what each group's leader has to do, in any unit.
pub fn exchange_for_load(
    nodes: &BTreeMap<NodeId, u32>,
    groups: &BTreeMap<GroupId, Electorate>,
    loads: &BTreeMap<GroupId, u64>,
) -> Option<[(GroupId, NodeId); 2]> {
    // By weight, so that a node with half of the weight counts as busy with half of the load.
    let weight = |node: &NodeId| u64::from(nodes.get(node).copied().unwrap_or(0).max(1));
    let load = |group: &GroupId| loads.get(group).copied().unwrap_or(0);
    let mut sums: BTreeMap<NodeId, u64> = nodes.keys().map(|node| (*node, 0)).collect();
    for (group, electorate) in groups {
        *sums.get_mut(&electorate.present?)? += load(group);
    }
    let busy = |node: &NodeId, sum: u64| sum.saturating_mul(1_000) / weight(node);
    let mean = sums.values().sum::<u64>().saturating_mul(1_000) / nodes.keys().map(weight).sum::<u64>().max(1);
    let (hot, hot_sum) = sums.iter().map(|(node, sum)| (*node, *sum)).max_by_key(|(node, sum)| (busy(node, *sum), *node))?;
    if busy(&hot, hot_sum) * 100 <= mean * BUSY_PERCENT {
        return None;
    }
    let led_by = |node: NodeId| groups.iter().filter(move |(_, electorate)| electorate.present == Some(node));
    let mut best: Option<(u64, [(GroupId, NodeId); 2])> = None;
    for (heavy, theirs) in led_by(hot) {
        for (light, ours) in groups.iter().filter(|(light, _)| load(light) < load(heavy)) {
            let cold = ours.present?;
            if cold == hot || !theirs.voters.contains(&cold) || !ours.voters.contains(&hot) || !nodes.contains_key(&cold) {
                continue;
            }
            let shift = load(heavy) - load(light);
            let after = busy(&hot, hot_sum - shift).max(busy(&cold, sums[&cold] + shift));
            if best.is_none_or(|(least, _)| after < least) {
                best = Some((after, [(*heavy, cold), (*light, hot)]));
            }
        }
    }
    best.filter(|(after, _)| after * 100 <= busy(&hot, hot_sum) * (100 - GAIN_PERCENT)).map(|(_, exchange)| exchange)
}

struct Leading<'a> {
    weights: BTreeMap<NodeId, u64>,
    groups: &'a BTreeMap<GroupId, Electorate>,
    led: BTreeMap<NodeId, BTreeSet<GroupId>>,
}

impl Leading<'_> {
    fn give(&mut self, group: GroupId, node: NodeId) {
        self.led.get_mut(&node).expect("only eligible nodes lead").insert(group);
    }

    fn load(&self, node: NodeId) -> u64 {
        self.led[&node].len() as u64
    }

    /// Whether `a` with one more group would be less loaded than `b` with one more.
    fn is_less(&self, a: NodeId, b: NodeId) -> bool {
        (self.load(a) + 1) * self.weights[&b] < (self.load(b) + 1) * self.weights[&a]
    }

    /// Whether one group less on `from` and one more on `to` is more even.
    fn is_gain(&self, from: NodeId, to: NodeId) -> bool {
        (self.load(to) + 1) * self.weights[&from] < self.load(from) * self.weights[&to]
    }

    /// Improves from every node as far as that goes; false if nothing could be improved.
    fn sweep(&mut self) -> bool {
        let mut improved = false;
        for from in self.weights.keys().copied().collect::<Vec<_>>() {
            while self.gains_anywhere(from) && self.pass_on_from(from) {
                improved = true;
            }
        }
        improved
    }

    /// Whether there would be a gain if the least loaded node could be reached: cheaper than a search.
    fn gains_anywhere(&self, from: NodeId) -> bool {
        self.weights.keys().any(|to| self.is_gain(from, *to))
    }

    fn pass_on_from(&mut self, from: NodeId) -> bool {
        let mut came_by: BTreeMap<NodeId, (NodeId, GroupId)> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            for group in &self.led[&node] {
                for to in &self.groups[group].voters {
                    if *to == from || came_by.contains_key(to) || !self.weights.contains_key(to) {
                        continue;
                    }
                    came_by.insert(*to, (node, *group));
                    if self.is_gain(from, *to) {
                        self.pass_along(*to, &came_by);
                        return true;
                    }
                    queue.push_back(*to);
                }
            }
        }
        false
    }

    fn pass_along(&mut self, end: NodeId, came_by: &BTreeMap<NodeId, (NodeId, GroupId)>) {
        let mut to = end;
        while let Some((node, group)) = came_by.get(&to) {
            self.led.get_mut(node).expect("it led").remove(group);
            self.give(*group, to);
            to = *node;
        }
    }
}
