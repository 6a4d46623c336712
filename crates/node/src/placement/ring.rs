//! A consistent-hash ring with virtual nodes (Karger et al., 1997): a node's points depend on its id
//! and weight alone, so nodes that come or go leave all other points where they were.
//!
//! The hash is XXH3 over fixed bytes with fixed seeds: the ring must be the same on every machine and
//! in every version, since a changed hash would move data.

use flotilla_types::{GroupId, NodeId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const NODE_SEED: u64 = 0x666c_6f74_696c_6c61;
const GROUP_SEED: u64 = 0x7368_6172_6473_2121;
/// Points of a node: its weight within these bounds. With fewer the ring alone is too uneven, with
/// more it only takes longer to build; what is left uneven, bounded load corrects.
const POINTS_MIN: u32 = 16;
const POINTS_MAX: u32 = 256;

/// The ring of some nodes.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Hash, node, and the node's position among those the ring was made of.
    points: Vec<(u64, NodeId, u32)>,
}

impl Ring {
    /// The ring of these nodes and their weights. Nodes of weight 0 are not on it.
    pub fn new(nodes: impl IntoIterator<Item = (NodeId, u32)>) -> Ring {
        let mut points = Vec::new();
        for (position, (node, weight)) in nodes.into_iter().enumerate().filter(|(_, (_, weight))| *weight > 0) {
            for number in 0..weight.clamp(POINTS_MIN, POINTS_MAX) {
                points.push((hash(NODE_SEED, node.0, number), node, position as u32));
            }
        }
        points.sort_unstable();
        Ring { points }
    }

    /// The nodes met on the way round from a group's point; each as often as it has points.
    pub fn walk(&self, group: GroupId) -> impl Iterator<Item = NodeId> {
        self.points_from(group).map(|(_, node, _)| *node)
    }

    /// The same, as positions among the nodes that the ring was made of.
    pub(super) fn walk_positions(&self, group: GroupId) -> impl Iterator<Item = usize> {
        self.points_from(group).map(|(_, _, position)| *position as usize)
    }

    fn points_from(&self, group: GroupId) -> impl Iterator<Item = &(u64, NodeId, u32)> {
        let start = hash(GROUP_SEED, u64::from(group.0), 0);
        let first = self.points.partition_point(|(point, _, _)| *point < start);
        let (before, after) = self.points.split_at(first);
        after.iter().chain(before)
    }
}

fn hash(seed: u64, id: u64, number: u32) -> u64 {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&id.to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    xxh3_64_with_seed(&bytes, seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_the_same_for_ever() {
        let ring = Ring::new((1..=5).map(|n| (NodeId(n), 100)));
        let first: Vec<u64> = (0..16).map(|g| ring.walk(GroupId(g)).next().expect("nodes").0).collect();
        assert_eq!(first, [5, 5, 5, 1, 1, 1, 5, 1, 1, 4, 5, 4, 3, 3, 4, 3]);
    }

    #[test]
    fn a_node_that_leaves_moves_only_its_own_groups() {
        let four = Ring::new((1..=4).map(|n| (NodeId(n), 100)));
        let three = Ring::new((1..=3).map(|n| (NodeId(n), 100)));
        for group in (0..1000).map(GroupId) {
            let before = four.walk(group).next();
            assert!(before == Some(NodeId(4)) || before == three.walk(group).next());
        }
    }
}
