//! What time it is (decision 5): the median of the wall clocks of this node and of those it hears from, so
//! that one clock that is wrong moves no shard's clock.
//!
//! Nodes tell each other once a second what their wall clock shows; between two such messages a peer's clock is
//! taken to run as this node's monotonic one does, and not for long: a dead node's clock has no vote. Of an even number of
//! clocks the earlier of the two in the middle counts: late is better than early.
//!
//! Fewer clocks than a majority of the control group's voters, or a median that falls back, say nothing: then the time goes
//! on from where it was as the monotonic clock does. A clock that stood instead would leap when it goes on,
//! and what was written meanwhile would expire early. A node that never heard enough clocks does not know the
//! time, and takes no write that needs it.

use crate::event::Now;
use crate::message::PeerMessage;
use crate::node::Node;
use flotilla_types::{GroupId, Instant, NodeId, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// For so long what a peer said of its clock counts: some messages may be late.
const FRESH_TIME: Duration = Duration::from_secs(3);
/// A median that falls back by more is not believed.
const FALL_BACK_MS_MAX: u64 = 1_000;

/// The peers' clocks as they were told last, and when.
#[derive(Debug)]
pub(crate) struct Clocks {
    peers: BTreeMap<NodeId, (Timestamp, Instant)>,
    next_tell: Instant,
    /// The time as it was last agreed on, and when that was.
    agreed: Option<(Timestamp, Instant)>,
}

impl Clocks {
    pub(crate) fn new(now: Instant) -> Clocks {
        Clocks { peers: BTreeMap::new(), next_tell: now, agreed: None }
    }

    /// The time, if `needed` clocks agree on one now or did once.
    fn time(&mut self, now: Now, needed: usize) -> Option<Timestamp> {
        let since = |at: Instant| now.instant.saturating_since(at).as_millis() as u64;
        let fresh = self.peers.values().filter(|(_, at)| now.instant.saturating_since(*at) <= FRESH_TIME);
        let told = fresh.map(|(wall, at)| wall.0.saturating_add(since(*at)));
        let mut clocks: Vec<u64> = told.chain([now.wall.0]).collect();
        clocks.sort_unstable();
        let median = (clocks.len() >= needed).then(|| clocks[(clocks.len() - 1) / 2]);
        let expected = self.agreed.map(|(time, at)| time.0.saturating_add(since(at)));
        let time = match (median, expected) {
            (Some(median), Some(expected)) if median < expected.saturating_sub(FALL_BACK_MS_MAX) => expected,
            (Some(median), _) => median,
            (None, Some(expected)) => expected,
            (None, None) => return None,
        };
        self.agreed = Some((Timestamp(time), now.instant));
        Some(Timestamp(time))
    }
}

impl Node {
    /// A shard's replicated clock reading for a proposal made now; 0, which moves no clock, if the time is not known.
    pub(crate) fn clock(&mut self, now: Now) -> Timestamp {
        let voters = self.control.groups.get(&GroupId::CONTROL).map_or(1, |record| record.voters.len());
        self.clocks.time(now, voters / 2 + 1).unwrap_or(Timestamp(0))
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
        Clocks { peers, ..Clocks::new(Instant::ZERO) }
    }

    /// A moment of the monotonic clock, and what the wall clock shows.
    fn at(seconds: u64, wall: u64) -> Now {
        Now { instant: Instant::ZERO + Duration::from_secs(seconds), wall: Timestamp(wall) }
    }

    #[test]
    fn one_wrong_clock_is_outvoted_and_of_two_the_earlier_counts() {
        // A second after the others told theirs.
        let time = |told: &[u64], wall| clocks(told).time(at(10, wall), 1).map(|time| time.0);
        assert_eq!(time(&[], 5_000), Some(5_000));
        assert_eq!(time(&[4_000, 4_100], 5_050), Some(5_050));
        assert_eq!(time(&[4_000, 4_100], 9_000_000), Some(5_100));
        assert_eq!(time(&[4_000, 4_100], 0), Some(5_000));
        assert_eq!(time(&[9_000_000], 5_000), Some(5_000));
        assert_eq!(time(&[4_000], 9_000_000), Some(5_000));
    }

    #[test]
    fn too_few_clocks_tell_no_time_and_stop_none() {
        let mut clocks = clocks(&[]);
        assert_eq!(clocks.time(at(10, 5_000), 2), None);
        clocks.peers.insert(NodeId(1), (Timestamp(5_000), at(10, 0).instant));
        assert_eq!(clocks.time(at(11, 6_000), 2), Some(Timestamp(6_000)));
        // The peer is silent, and what it said counts no more; then this node's own clock leaps.
        assert_eq!(clocks.time(at(20, 15_000), 2), Some(Timestamp(15_000)));
        assert_eq!(clocks.time(at(21, 9_000_000), 2), Some(Timestamp(16_000)));
        clocks.peers.insert(NodeId(1), (Timestamp(17_500), at(22, 0).instant));
        assert_eq!(clocks.time(at(22, 9_000_000), 2), Some(Timestamp(17_500)));
    }

    #[test]
    fn a_time_that_falls_back_is_not_believed() {
        let mut clocks = clocks(&[]);
        assert_eq!(clocks.time(at(10, 9_000_000), 1), Some(Timestamp(9_000_000)));
        assert_eq!(clocks.time(at(12, 5_000), 1), Some(Timestamp(9_002_000)));
        assert_eq!(clocks.time(at(13, 9_002_100), 1), Some(Timestamp(9_002_100)), "a little: clocks are set right, and run unevenly");
        assert_eq!(clocks.time(at(14, 9_500_000), 1), Some(Timestamp(9_500_000)));
    }
}
