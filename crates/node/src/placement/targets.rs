//! How many replicas each zone and each node should hold.
//!
//! A group's replicas are spread over zones as evenly as the numbers of nodes allow: each zone holds
//! between `min` and `max` of every group, which differ by at most one. Within these bounds, and never
//! more than one of a group on a node, counts follow the weights. Ideals are fractions; each is rounded
//! up or down, up where most replicas are already, so that the present placement is disturbed least.

use std::cmp::Reverse;

/// How many replicas of one group each zone may hold.
pub(super) struct Zones {
    min: Vec<usize>,
    max: Vec<usize>,
}

impl Zones {
    pub(super) fn new(zone_of: &[usize], replicas: usize) -> Zones {
        let count = zone_of.iter().max().map_or(0, |z| z + 1);
        let sizes: Vec<usize> = (0..count).map(|zone| zone_of.iter().filter(|z| **z == zone).count()).collect();
        let at = |level: usize| -> Vec<usize> { sizes.iter().map(|size| *size.min(&level)).collect() };
        let level = (0..=replicas).rfind(|level| at(*level).iter().sum::<usize>() <= replicas).expect("level 0 holds nothing");
        Zones { min: at(level), max: at(level + 1) }
    }

    pub(super) fn len(&self) -> usize {
        self.min.len()
    }

    pub(super) fn min(&self, zone: usize) -> usize {
        self.min[zone]
    }

    pub(super) fn max(&self, zone: usize) -> usize {
        self.max[zone]
    }
}

/// The number of replicas each node should hold; they add up to `groups * replicas`.
pub(super) fn targets(zones: &Zones, zone_of: &[usize], weights: &[u32], load: &[usize], groups: usize, replicas: usize) -> Vec<usize> {
    let zone_sum = |values: &dyn Fn(usize) -> usize| -> Vec<usize> {
        let mut sums = vec![0; zones.len()];
        for (node, zone) in zone_of.iter().enumerate() {
            sums[*zone] += values(node);
        }
        sums
    };
    let zone_weights: Vec<f64> = zone_sum(&|node| weights[node] as usize).into_iter().map(|w| w as f64).collect();
    let bounds: Vec<(f64, f64)> = (0..zones.len()).map(|z| ((groups * zones.min(z)) as f64, (groups * zones.max(z)) as f64)).collect();
    let zone_ideals = share(groups * replicas, &zone_weights, &bounds);
    let zone_targets = round(groups * replicas, &zone_ideals, &zone_sum(&|node| load[node]));

    let mut target = vec![0; zone_of.len()];
    for (zone, total) in zone_targets.into_iter().enumerate() {
        let nodes: Vec<usize> = (0..zone_of.len()).filter(|n| zone_of[*n] == zone).collect();
        let node_weights: Vec<f64> = nodes.iter().map(|n| f64::from(weights[*n])).collect();
        let ideals = share(total, &node_weights, &vec![(0.0, groups as f64); nodes.len()]);
        let node_load: Vec<usize> = nodes.iter().map(|n| load[*n]).collect();
        for (node, count) in nodes.iter().zip(round(total, &ideals, &node_load)) {
            target[*node] = count;
        }
    }
    target
}

/// Divides `total` by weight within bounds: each gets `level * weight`, cut to its bounds, with the
/// level at which that adds up.
fn share(total: usize, weights: &[f64], bounds: &[(f64, f64)]) -> Vec<f64> {
    let at = |level: f64| -> Vec<f64> { weights.iter().zip(bounds).map(|(w, (min, max))| (level * w).clamp(*min, *max)).collect() };
    let total = total as f64;
    let (mut low, mut high) = (0.0, total + 1.0);
    // f64 has 53 bits: 128 halvings reach the last of them from any start that occurs.
    for _ in 0..128 {
        let middle = (low + high) / 2.0;
        if at(middle).iter().sum::<f64>() < total { low = middle } else { high = middle }
    }
    let near_integer = |x: f64| if (x - x.round()).abs() < 1e-6 { x.round() } else { x };
    at(high).into_iter().map(near_integer).collect()
}

/// Rounds up as many ideals as it takes to reach `total`, those with the most load first.
fn round(total: usize, ideals: &[f64], load: &[usize]) -> Vec<usize> {
    let mut counts: Vec<usize> = ideals.iter().map(|x| x.floor() as usize).collect();
    let mut order: Vec<usize> = (0..ideals.len()).filter(|i| ideals[*i] > ideals[*i].floor()).collect();
    order.sort_by_key(|i| (Reverse(load[*i] as i64 - counts[*i] as i64), *i));
    let missing = total.checked_sub(counts.iter().sum()).expect("rounded down, ideals do not exceed the total");
    assert!(missing <= order.len(), "rounded up, ideals reach the total");
    for i in order.into_iter().take(missing) {
        counts[i] += 1;
    }
    counts
}
