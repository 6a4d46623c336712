//! What time it is (decision 5): the median of the wall clocks of this node and of those it hears from, so
//! that one clock that is wrong moves no shard's clock.
//!
//! Nodes tell each other once a second what their wall clock shows; between two such messages a peer's clock is
//! taken to run as this node's monotonic one does. A node's own leap is so seen at once, and outvoted. Of an even
//! number of clocks the earlier of the two in the middle counts: late is better than early.

use crate::event::Now;
use crate::message::PeerMessage;
use crate::node::Node;
use flotilla_types::{Instant, NodeId, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// The peers' clocks as they were told last, and when.
#[derive(Debug)]
pub(crate) struct Clocks {
    peers: BTreeMap<NodeId, (Timestamp, Instant)>,
    next_tell: Instant,
}

impl Clocks {
    pub(crate) fn new(now: Instant) -> Clocks {
        Clocks { peers: BTreeMap::new(), next_tell: now }
    }

    /// The time for a shard's clock.
    pub(crate) fn median(&self, now: Now) -> Timestamp {
        if self.peers.is_empty() {
            return now.wall;
        }
        let since = |at: Instant| now.instant.saturating_since(at).as_millis() as u64;
        let told = self.peers.values().map(|(wall, at)| wall.0.saturating_add(since(*at)));
        let mut clocks: Vec<u64> = told.chain([now.wall.0]).collect();
        clocks.sort_unstable();
        Timestamp(clocks[(clocks.len() - 1) / 2])
    }
}

impl Node {
    /// A shard's replicated clock reading for a proposal made now.
    pub(crate) fn clock(&self, now: Now) -> Timestamp {
        self.clocks.median(now)
    }

    /// Tells the peers what this node's wall clock shows, when that is due.
    pub(crate) fn tell_clock(&mut self, now: Now) {
        if now.instant < self.clocks.next_tell {
            return;
        }
        self.clocks.next_tell = now.instant + TELL_INTERVAL;
        let members = &self.control;
        self.clocks.peers.retain(|node, _| members.node_record(*node).is_some());
        let peers: Vec<NodeId> = self.links.iter().filter(|(_, link)| link.up).map(|(node, _)| *node).collect();
        for peer in peers {
            self.send(peer, PeerMessage::Clock { wall: now.wall });
        }
    }

    pub(crate) fn handle_clock(&mut self, from: NodeId, wall: Timestamp, now: Now) {
        self.clocks.peers.insert(from, (wall, now.instant));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clocks(told: &[u64]) -> Clocks {
        let at = Instant::ZERO + Duration::from_secs(9);
        let peers = told.iter().enumerate().map(|(n, wall)| (NodeId(n as u64), (Timestamp(*wall), at))).collect();
        Clocks { peers, next_tell: Instant::ZERO }
    }

    #[test]
    fn one_wrong_clock_is_outvoted_and_of_two_the_earlier_counts() {
        // A second after the others told theirs.
        let now = |wall| Now { instant: Instant::ZERO + Duration::from_secs(10), wall: Timestamp(wall) };
        assert_eq!(clocks(&[]).median(now(5_000)), Timestamp(5_000));
        assert_eq!(clocks(&[4_000, 4_100]).median(now(5_050)), Timestamp(5_050));
        assert_eq!(clocks(&[4_000, 4_100]).median(now(9_000_000)), Timestamp(5_100));
        assert_eq!(clocks(&[4_000, 4_100]).median(now(0)), Timestamp(5_000));
        assert_eq!(clocks(&[9_000_000]).median(now(5_000)), Timestamp(5_000));
        assert_eq!(clocks(&[4_000]).median(now(9_000_000)), Timestamp(5_000));
    }
}
