//! Placement against a naive version and against what is promised of it.
#![expect(clippy::disallowed_methods, reason = "the ignored scale test prints how long planning takes")]
#![expect(clippy::print_stdout, reason = "the timing is printed for whoever measures")]

use flotilla_node::placement::{Electorate, NodeWeight, assign, assign_leaders, exchange_for_load};
use flotilla_types::{GroupId, NodeId, Rng};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

type Nodes = BTreeMap<NodeId, NodeWeight>;
type Placement = BTreeMap<GroupId, Vec<NodeId>>;

fn nodes(zones_and_weights: &[(usize, u32)]) -> Nodes {
    let node =
        |(i, (zone, weight)): (usize, &(usize, u32))| (NodeId(i as u64 + 1), NodeWeight { zone: format!("z{zone}"), weight: *weight });
    zones_and_weights.iter().enumerate().map(node).collect()
}

fn even(count: usize) -> Nodes {
    nodes(&vec![(0, 100); count])
}

fn empty(groups: u32) -> Placement {
    (1..=groups).map(|g| (GroupId(g), vec![])).collect()
}

fn moved(before: &Placement, after: &Placement) -> usize {
    after.iter().map(|(g, nodes)| nodes.iter().filter(|n| !before[g].contains(n)).count()).sum()
}

fn load(placement: &Placement, node: NodeId) -> usize {
    placement.values().filter(|nodes| nodes.contains(&node)).count()
}

/// No placement moves less: what is missing must be made, and a node above the highest count that
/// evenness allows must give the difference away (equal weights, one zone).
fn moved_min(before: &Placement, nodes: &Nodes, replicas: usize) -> usize {
    let total = before.len() * replicas;
    let (floor, rest) = (total / nodes.len(), total % nodes.len());
    let mut loads: Vec<usize> = nodes.keys().map(|n| load(before, *n)).collect();
    loads.sort_unstable_by(|a, b| b.cmp(a));
    loads.iter().enumerate().map(|(i, load)| (floor + usize::from(i < rest)).saturating_sub(*load)).sum()
}

fn check(nodes: &Nodes, placement: &Placement, replicas: usize) {
    let usable: Nodes = nodes.iter().filter(|(_, n)| n.weight > 0).map(|(i, n)| (*i, n.clone())).collect();
    let replicas = replicas.min(usable.len());
    let zones: BTreeSet<&str> = usable.values().map(|n| n.zone.as_str()).collect();
    let zone_size = |zone: &str| usable.values().filter(|n| n.zone == zone).count();
    for members in placement.values() {
        assert_eq!(members.iter().collect::<BTreeSet<_>>().len(), replicas);
        assert!(members.iter().all(|n| usable.contains_key(n)));
        // As even over zones as can be: moving one from any zone to another never helps.
        let count = |zone: &str| members.iter().filter(|n| usable[n].zone == zone).count();
        for a in &zones {
            for b in &zones {
                assert!(count(a) <= count(b) + 1 || count(b) == zone_size(b), "{members:?}: {a} has too many, {b} too few");
            }
        }
    }
}

/// The naive version of the load bound, for one zone: hand out the weights' shares, cut at one
/// replica of each group, until nothing is left.
fn naive_ideals(nodes: &Nodes, groups: usize, replicas: usize) -> BTreeMap<NodeId, f64> {
    let mut ideals = BTreeMap::new();
    let mut open: BTreeMap<NodeId, f64> = nodes.iter().filter(|(_, n)| n.weight > 0).map(|(i, n)| (*i, f64::from(n.weight))).collect();
    let mut left = (groups * replicas.min(open.len())) as f64;
    while !open.is_empty() {
        let sum: f64 = open.values().sum();
        let full: Vec<NodeId> = open.iter().filter(|(_, w)| left * **w / sum >= groups as f64).map(|(n, _)| *n).collect();
        if full.is_empty() {
            ideals.extend(open.iter().map(|(n, w)| (*n, left * w / sum)));
            break;
        }
        for node in full {
            open.remove(&node);
            ideals.insert(node, groups as f64);
            left -= groups as f64;
        }
    }
    ideals
}

#[test]
fn nodes_that_come_and_go_move_little_more_than_the_minimum() {
    for groups in [64, 1024] {
        let three = assign(&even(3), empty(groups), 3);
        let four = assign(&even(4), three.clone(), 3);
        let five = assign(&even(5), four.clone(), 3);
        let mut without_two = even(5);
        without_two.remove(&NodeId(2));
        let four_again = assign(&without_two, five.clone(), 3);
        for (before, after, nodes) in [(&three, &four, &even(4)), (&four, &five, &even(5)), (&five, &four_again, &without_two)] {
            check(nodes, after, 3);
            let (moved, min) = (moved(before, after), moved_min(before, nodes, 3));
            assert!(moved as f64 <= 1.10 * min as f64, "{moved} moved, {min} would do");
        }
        assert_eq!(assign(&without_two, four_again.clone(), 3), four_again, "what is even stays");
    }
}

#[test]
fn a_thousand_nodes_and_16384_shards_are_planned_and_stay_put() {
    let many: Vec<(usize, u32)> = (0..1000).map(|i| (i % 7, 100)).collect();
    let start = std::time::Instant::now();
    let first = assign(&nodes(&many), empty(16_384), 3);
    let placed = start.elapsed();
    let grown = assign(&nodes(&many), assign(&nodes(&many[..500]), empty(16_384), 3), 3);
    let doubled = start.elapsed() - placed;
    let mut rng = Rng::new(1);
    let mut electorates: BTreeMap<GroupId, Electorate> =
        grown.iter().map(|(g, n)| (*g, Electorate { voters: n.clone(), present: rng.pick(n).copied() })).collect();
    let weights = nodes(&many).iter().map(|(n, w)| (*n, w.weight)).collect();
    let start = std::time::Instant::now();
    let leaders = assign_leaders(&weights, &electorates);
    println!("placed in {placed:?}, 500 and then 1000 nodes in {doubled:?}, leaders in {:?}", start.elapsed());
    for (group, node) in &leaders {
        electorates.get_mut(group).expect("asked for").present = Some(*node);
    }
    assert_eq!(assign_leaders(&weights, &electorates), leaders, "what is even stays");
    check(&nodes(&many), &first, 3);
    assert!(cfg!(debug_assertions) || placed.as_secs_f64() < 1.0 && doubled.as_secs_f64() < 2.0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn one_zone_is_within_one_of_the_naive_ideal(
        first in prop::collection::vec((0..1usize, 0..4u32), 1..8),
        second in prop::collection::vec((0..1usize, 0..4u32), 1..8),
        groups in 1..80u32, replicas in 1..6usize,
    ) {
        let mut present = empty(groups);
        for description in [first, second] {
            let nodes = nodes(&description);
            present = assign(&nodes, present, replicas);
            check(&nodes, &present, replicas);
            for (node, ideal) in naive_ideals(&nodes, groups as usize, replicas) {
                prop_assert!((load(&present, node) as f64 - ideal).abs() < 1.0 + 1e-6, "{node} {ideal} {present:?}");
            }
        }
    }

    #[test]
    fn any_zones_any_start_keep_every_promise(
        description in prop::collection::vec((0..4usize, 0..4u32), 1..10), seed: u64, groups in 1..60u32, replicas in 1..6usize,
    ) {
        let nodes = nodes(&description);
        let mut rng = Rng::new(seed);
        let mut chaos = empty(groups);
        for members in chaos.values_mut() {
            *members = (0..rng.below(5)).map(|_| NodeId(1 + rng.below(12))).collect();
        }
        let placed = assign(&nodes, chaos.clone(), replicas);
        check(&nodes, &placed, replicas);
        prop_assert_eq!(&assign(&nodes, placed.clone(), replicas), &placed, "what is even stays");
        // Equal nodes of one zone differ by at most one.
        for (a, left) in &nodes {
            for (b, right) in &nodes {
                prop_assert!(left != right || load(&placed, *a).abs_diff(load(&placed, *b)) <= 1);
            }
        }
    }

    #[test]
    fn equal_nodes_lead_evenly_and_few_leaders_change(count in 1..8usize, groups in 1..80u32, seed: u64) {
        let placed = assign(&even(count), empty(groups), 3);
        let mut rng = Rng::new(seed);
        let electorates: BTreeMap<GroupId, Electorate> =
            placed.iter().map(|(g, n)| (*g, Electorate { voters: n.clone(), present: rng.pick(n).copied() })).collect();
        let weights = even(count).keys().map(|n| (*n, 100)).collect();
        let leaders = assign_leaders(&weights, &electorates);
        prop_assert_eq!(leaders.len(), groups as usize);
        prop_assert!(leaders.iter().all(|(g, n)| placed[g].contains(n)));
        let led = |node: NodeId| leaders.values().filter(|n| **n == node).count();
        let counts: Vec<usize> = weights.keys().map(|n| led(*n)).collect();
        prop_assert!(counts.iter().max().expect("nodes") - counts.iter().min().expect("nodes") <= 1, "{counts:?}");
        // A lower bound: what is above the highest even count must go. A chain may take one more each.
        let before = |node: NodeId| electorates.values().filter(|e| e.present == Some(node)).count();
        let above: usize = weights.keys().map(|n| before(*n).saturating_sub((groups as usize).div_ceil(count))).sum();
        let changed = leaders.iter().filter(|(g, n)| electorates[g].present != Some(**n)).count();
        prop_assert!(changed <= 2 * above + count, "{changed} changed, {above} were above");
    }
}

#[test]
fn busy_leaders_are_exchanged_until_it_is_not_worth_it() {
    let nodes: BTreeMap<NodeId, u32> = (1..=3).map(|node| (NodeId(node), 100)).collect();
    let voters: Vec<NodeId> = nodes.keys().copied().collect();
    let mut groups: BTreeMap<GroupId, Electorate> = (1..=12)
        .map(|group| (GroupId(group), Electorate { voters: voters.clone(), present: Some(NodeId(u64::from(group) % 3 + 1)) }))
        .collect();
    // Two hot shards on one node, the rest lukewarm.
    let loads: BTreeMap<GroupId, u64> = groups.keys().map(|group| (*group, if matches!(group.0, 3 | 6) { 3_000 } else { 100 })).collect();
    let sum = |groups: &BTreeMap<GroupId, Electorate>, node: u64| -> u64 {
        groups.iter().filter(|(_, e)| e.present == Some(NodeId(node))).map(|(group, _)| loads[group]).sum()
    };
    assert_eq!(sum(&groups, 1), 6_200);
    let mut exchanges = 0;
    while let Some(exchange) = exchange_for_load(&nodes, &groups, &loads) {
        for (group, leader) in exchange {
            groups.get_mut(&group).expect("a group").present = Some(leader);
        }
        exchanges += 1;
    }
    let led = |node| groups.values().filter(|e| e.present == Some(NodeId(node))).count();
    assert_eq!((exchanges, [1, 2, 3].map(led)), (1, [4, 4, 4]), "one exchange, and each leads as many as before");
    assert_eq!([1, 2, 3].map(|node| sum(&groups, node)).iter().max(), Some(&3_300));
}
