//! Spreads replicas over nodes: in this order, never two of a group on one node; as evenly over zones
//! as can be; every node within one of its ideal count; and the fewest moves from the present placement.
//!
//! How: ideal counts come from the weights (`targets.rs`). What is present is kept unless node or zone
//! forbid it; gaps are filled by walking the ring, passing over full nodes (bounded load, Mirrokni et
//! al., 2016); then full nodes hand groups to those below their target, directly or, where zones forbid
//! that, along a shortest chain of nodes. In terms of flows that is augmentation in the residual graph,
//! so it ends with every node at its target: a fractional solution exists (each group gives each node
//! the same part), hence an integral one does.

use super::ring::Ring;
use super::targets::{Zones, targets};
use flotilla_types::{GroupId, NodeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What placement knows of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeWeight {
    /// Replicas of one group are spread over zones.
    pub zone: String,
    /// Its share relative to other nodes; 0 holds nothing.
    pub weight: u32,
}

/// Where each group's replicas should be, given where they are. There are `replicas` of each, or as
/// many as there are nodes with a weight. Deterministic: the same arguments give the same answer on
/// every node; the order of the groups and of their members does not matter.
pub fn assign(
    nodes: &BTreeMap<NodeId, NodeWeight>,
    groups: impl IntoIterator<Item = (GroupId, Vec<NodeId>)>,
    replicas: usize,
) -> BTreeMap<GroupId, Vec<NodeId>> {
    let nodes: BTreeMap<NodeId, &NodeWeight> = nodes.iter().filter(|(_, n)| n.weight > 0).map(|(id, n)| (*id, n)).collect();
    let present: BTreeMap<GroupId, Vec<NodeId>> = groups.into_iter().collect();
    let replicas = replicas.min(nodes.len());
    if replicas == 0 {
        return present.into_keys().map(|group| (group, Vec::new())).collect();
    }
    let mut spread = Spread::new(&nodes, &present, replicas);
    spread.keep_what_zones_allow();
    spread.fill_gaps();
    spread.level();
    spread.into_placement()
}

/// Which of a node's groups may be handed on.
#[derive(Clone, Copy)]
enum Which {
    /// Those that were not there before.
    Newcomers,
    All,
}

struct Spread {
    ids: Vec<NodeId>,
    zone_of: Vec<usize>,
    zones: Zones,
    replicas: usize,
    target: Vec<usize>,
    groups: Vec<GroupId>,
    /// The nodes of each group before.
    present: Vec<Vec<usize>>,
    /// The nodes of each group.
    members: Vec<Vec<usize>>,
    /// The groups of each node.
    held: Vec<BTreeSet<usize>>,
    ring: Ring,
}

impl Spread {
    fn new(nodes: &BTreeMap<NodeId, &NodeWeight>, present: &BTreeMap<GroupId, Vec<NodeId>>, replicas: usize) -> Spread {
        let ids: Vec<NodeId> = nodes.keys().copied().collect();
        let index_of: BTreeMap<NodeId, usize> = ids.iter().enumerate().map(|(i, n)| (*n, i)).collect();
        let names: BTreeSet<&str> = nodes.values().map(|n| n.zone.as_str()).collect();
        let zone_index: BTreeMap<&str, usize> = names.into_iter().enumerate().map(|(i, z)| (z, i)).collect();
        let zone_of: Vec<usize> = nodes.values().map(|n| zone_index[n.zone.as_str()]).collect();
        let zones = Zones::new(&zone_of, replicas);
        let members: Vec<Vec<usize>> = present
            .values()
            .map(|m| m.iter().filter_map(|n| index_of.get(n).copied()).collect::<BTreeSet<usize>>().into_iter().collect())
            .collect();
        let mut held = vec![BTreeSet::new(); ids.len()];
        for (group, members) in members.iter().enumerate() {
            for node in members {
                held[*node].insert(group);
            }
        }
        let weights: Vec<u32> = nodes.values().map(|n| n.weight).collect();
        let load: Vec<usize> = held.iter().map(BTreeSet::len).collect();
        let target = targets(&zones, &zone_of, &weights, &load, present.len(), replicas);
        let ring = Ring::new(nodes.iter().map(|(id, n)| (*id, n.weight)));
        Spread {
            ids,
            zone_of,
            zones,
            replicas,
            target,
            groups: present.keys().copied().collect(),
            present: members.clone(),
            members,
            held,
            ring,
        }
    }

    fn into_placement(self) -> BTreeMap<GroupId, Vec<NodeId>> {
        let nodes_of = |members: &Vec<usize>| {
            let mut nodes: Vec<NodeId> = members.iter().map(|n| self.ids[*n]).collect();
            nodes.sort_unstable();
            nodes
        };
        self.groups.iter().zip(&self.members).map(|(group, members)| (*group, nodes_of(members))).collect()
    }

    fn in_zone(&self, group: usize, zone: usize) -> usize {
        self.members[group].iter().filter(|n| self.zone_of[**n] == zone).count()
    }

    /// Replicas that zones still need before this group may use its free places elsewhere.
    fn zones_owed(&self, group: usize) -> usize {
        (0..self.zones.len()).map(|zone| self.zones.min(zone).saturating_sub(self.in_zone(group, zone))).sum()
    }

    fn keep_what_zones_allow(&mut self) {
        for group in 0..self.groups.len() {
            loop {
                let places = self.replicas as i64 - self.members[group].len() as i64;
                let crowded = |zone: usize| self.in_zone(group, zone) > self.zones.max(zone);
                let short = self.zones_owed(group) as i64 > places;
                let may_go = |node: &usize| {
                    let zone = self.zone_of[*node];
                    crowded(zone) || (short && self.in_zone(group, zone) > self.zones.min(zone))
                };
                if !short && !(0..self.zones.len()).any(crowded) {
                    break;
                }
                let fullest = self.members[group].iter().copied().filter(may_go).max_by_key(|n| self.surplus(*n));
                self.drop_from(
                    group,
                    fullest
                        .expect("a crowded zone has a node, and zones owed more than the places left mean another has more than it needs"),
                );
            }
        }
    }

    fn surplus(&self, node: usize) -> i64 {
        self.held[node].len() as i64 - self.target[node] as i64
    }

    fn drop_from(&mut self, group: usize, node: usize) {
        self.members[group].retain(|n| *n != node);
        self.held[node].remove(&group);
    }

    fn put_on(&mut self, group: usize, node: usize) {
        self.members[group].push(node);
        self.held[node].insert(group);
    }

    fn fill_gaps(&mut self) {
        for group in 0..self.groups.len() {
            while self.members[group].len() < self.replicas {
                let node = self.choose_node(group);
                self.put_on(group, node);
            }
        }
    }

    /// The first node on the ring that may take the group and is below its target; failing that, the
    /// first that may take it.
    fn choose_node(&self, group: usize) -> usize {
        let only_owed = self.zones_owed(group) == self.replicas - self.members[group].len();
        let may_take = |node: usize| {
            let zone = self.zone_of[node];
            let limit = if only_owed { self.zones.min(zone) } else { self.zones.max(zone) };
            !self.members[group].contains(&node) && self.in_zone(group, zone) < limit
        };
        let mut fallback = None;
        for node in self.ring.walk_positions(self.groups[group]) {
            if (fallback.is_none() || self.surplus(node) < 0) && may_take(node) {
                if self.surplus(node) < 0 {
                    return node;
                }
                fallback = Some(node);
            }
        }
        fallback.expect("the zone limits add up to more than the replicas, and every zone has nodes enough for its own")
    }

    /// Whether the group's replica may go from one node to another.
    fn may_move(&self, group: usize, from: usize, to: usize) -> bool {
        if self.members[group].contains(&to) {
            return false;
        }
        let (source, goal) = (self.zone_of[from], self.zone_of[to]);
        source == goal || (self.in_zone(group, source) > self.zones.min(source) && self.in_zone(group, goal) < self.zones.max(goal))
    }

    fn level(&mut self) {
        for from in 0..self.ids.len() {
            while self.surplus(from) > 0 {
                // What came here only just now costs nothing to put elsewhere.
                let handed = self.hand_over(from, Which::Newcomers)
                    || self.hand_along_chain(from, Which::Newcomers)
                    || self.hand_over(from, Which::All)
                    || self.hand_along_chain(from, Which::All);
                assert!(handed, "the targets can be met, so a chain exists (see the top of this file)");
            }
        }
    }

    fn movable(&self, from: usize, which: Which) -> impl Iterator<Item = usize> {
        self.held[from].iter().copied().filter(move |group| match which {
            Which::All => true,
            Which::Newcomers => !self.present[*group].contains(&from),
        })
    }

    /// Moves one group straight to a node below its target, preferring what the ring meets first.
    fn hand_over(&mut self, from: usize, which: Which) -> bool {
        let below: Vec<usize> = (0..self.ids.len()).filter(|n| self.surplus(*n) < 0).collect();
        // On average the walk meets one of them after this many points; then a list is as good.
        let steps_max = 8 * self.ids.len() / below.len().max(1) + 8;
        let found = self.movable(from, which).find_map(|group| {
            let walk = self.ring.walk_positions(self.groups[group]).take(steps_max);
            let to = walk.chain(below.iter().copied()).find(|to| self.surplus(*to) < 0 && self.may_move(group, from, *to))?;
            Some((group, to))
        });
        if let Some((group, to)) = found {
            self.drop_from(group, from);
            self.put_on(group, to);
        }
        found.is_some()
    }

    /// Moves one group each along a shortest chain of nodes that ends below its target.
    fn hand_along_chain(&mut self, from: usize, which: Which) -> bool {
        let mut came_by: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        let end = 'search: loop {
            let Some(node) = queue.pop_front() else { return false };
            let movable: Vec<usize> = self.movable(node, which).collect();
            if movable.is_empty() {
                continue;
            }
            for to in 0..self.ids.len() {
                if to == from || came_by.contains_key(&to) {
                    continue;
                }
                if let Some(group) = movable.iter().copied().find(|g| self.may_move(*g, node, to)) {
                    came_by.insert(to, (node, group));
                    if self.surplus(to) < 0 {
                        break 'search to;
                    }
                    queue.push_back(to);
                }
            }
        };
        // From the end backwards. A shortest chain never moves a group twice in a way that would
        // forbid the second step: the group could have gone the whole way in one.
        let mut to = end;
        while let Some((node, group)) = came_by.get(&to).copied() {
            assert!(self.may_move(group, node, to), "a step of a shortest chain is forbidden by another");
            self.drop_from(group, node);
            self.put_on(group, to);
            to = node;
        }
        true
    }
}
