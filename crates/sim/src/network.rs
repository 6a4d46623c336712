//! Links between machines: one connection a pair, with a stream for messages, one for large messages, which small ones
//! pass, and one for snapshots' rows.
//!
//! A stream behaves like TCP: what is sent arrives in order, late if need be, or the connection
//! breaks and the rest never arrives. A cut holds back what goes in one direction; if it lasts, both
//! ends give the connection up, each at its own time.
//!
//! Left out: what a handshake refuses (wrong cluster, wrong node id). The world knows who is there.

use crate::history::Moment;
use bytes::Bytes;
use flotilla_types::{GroupId, NodeId};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A machine, by its number.
pub type HostNumber = usize;

/// Which of the streams of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Messages.
    Main,
    /// Large messages, and what must not pass them.
    Large,
    /// Rows of snapshots.
    Bulk,
}

/// One direction of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pipe {
    /// The sending machine.
    pub from: HostNumber,
    /// The receiving machine.
    pub to: HostNumber,
    /// Which stream.
    pub stream: Stream,
}

/// A connection between two machines.
#[derive(Debug)]
pub struct Connection {
    /// Rises with each connection made.
    pub number: u64,
    /// The nodes at its ends, in the order of the machines.
    pub nodes: (NodeId, NodeId),
    /// Which ends still hold it to be up.
    pub up: (bool, bool),
}

#[derive(Debug)]
struct Frame {
    arrival: Moment,
    /// In which it keeps its order.
    group: Option<GroupId>,
    bytes: Bytes,
}

/// All links.
#[derive(Debug, Default)]
pub struct Network {
    connections: BTreeMap<(HostNumber, HostNumber), Connection>,
    under_way: BTreeMap<Pipe, VecDeque<Frame>>,
    /// Directions that are cut, with the number of cuts upon each.
    cuts: BTreeMap<(HostNumber, HostNumber), u32>,
    next_connection: u64,
}

fn pair(a: HostNumber, b: HostNumber) -> (HostNumber, HostNumber) {
    (a.min(b), a.max(b))
}

impl Network {
    /// The connection between two machines, if an end still holds it to be up.
    pub fn connection(&self, a: HostNumber, b: HostNumber) -> Option<&Connection> {
        self.connections.get(&pair(a, b))
    }

    /// Whether `at` holds its connection with `other` to be up; gives the node at the other end.
    pub fn peer_of(&self, at: HostNumber, other: HostNumber) -> Option<NodeId> {
        let connection = self.connection(at, other)?;
        let (up, node) = if at < other { (connection.up.0, connection.nodes.1) } else { (connection.up.1, connection.nodes.0) };
        up.then_some(node)
    }

    /// Whether both ends hold it to be up.
    pub fn is_whole(&self, a: HostNumber, b: HostNumber) -> bool {
        self.connection(a, b).is_some_and(|c| c.up == (true, true))
    }

    /// Makes a connection; gives its number.
    pub fn connect(&mut self, (a, node_a): (HostNumber, NodeId), (b, node_b): (HostNumber, NodeId)) -> u64 {
        assert!(self.connection(a, b).is_none(), "one connection a pair");
        self.next_connection += 1;
        let nodes = if a < b { (node_a, node_b) } else { (node_b, node_a) };
        self.connections.insert(pair(a, b), Connection { number: self.next_connection, nodes, up: (true, true) });
        self.next_connection
    }

    /// One end learns that the connection is gone; gives the node that was at the other end. What
    /// was under way to either is lost.
    pub fn give_up(&mut self, at: HostNumber, other: HostNumber) -> Option<NodeId> {
        let peer = self.peer_of(at, other)?;
        self.drop_what_is_under_way(at, other);
        let connection = self.connections.get_mut(&pair(at, other))?;
        if at < other {
            connection.up.0 = false;
        } else {
            connection.up.1 = false;
        }
        if connection.up == (false, false) {
            self.connections.remove(&pair(at, other));
        }
        Some(peer)
    }

    fn drop_what_is_under_way(&mut self, a: HostNumber, b: HostNumber) {
        self.under_way.retain(|pipe, _| pair(pipe.from, pipe.to) != pair(a, b));
    }

    /// Sends a frame; gives when it arrives, not before what was sent earlier. Small ones pass large ones, not the other way round.
    pub fn send(&mut self, pipe: Pipe, group: Option<GroupId>, bytes: Bytes, now: Moment, latency: Duration) -> Moment {
        let last = |pipe: Pipe| self.under_way.get(&pipe)?.back().map(|last| last.arrival);
        let before = if pipe.stream == Stream::Large { last(Pipe { stream: Stream::Main, ..pipe }) } else { None };
        let arrival = (now + latency).max(last(pipe).max(before).unwrap_or_default());
        self.under_way.entry(pipe).or_default().push_back(Frame { arrival, group, bytes });
        arrival
    }

    /// Whether something that must keep its order in a group is under way.
    pub fn holds(&self, pipe: Pipe, group: GroupId) -> bool {
        self.under_way.get(&pipe).is_some_and(|frames| frames.iter().any(|frame| frame.group == Some(group)))
    }

    /// The next frame that has arrived.
    pub fn receive(&mut self, pipe: Pipe, now: Moment) -> Option<Bytes> {
        if self.is_cut(pipe.from, pipe.to) || !self.is_whole(pipe.from, pipe.to) {
            return None;
        }
        let frames = self.under_way.get_mut(&pipe)?;
        if frames.front()?.arrival > now {
            return None;
        }
        frames.pop_front().map(|frame| frame.bytes)
    }

    /// Cuts one direction.
    pub fn cut(&mut self, from: HostNumber, to: HostNumber) {
        *self.cuts.entry((from, to)).or_default() += 1;
    }

    /// Takes one cut of a direction back. Gives the pipes in which something waits.
    pub fn mend(&mut self, from: HostNumber, to: HostNumber) -> Vec<Pipe> {
        if let Some(cuts) = self.cuts.get_mut(&(from, to)) {
            *cuts -= 1;
            if *cuts == 0 {
                self.cuts.remove(&(from, to));
            }
        }
        self.under_way.keys().filter(|pipe| (pipe.from, pipe.to) == (from, to)).copied().collect()
    }

    /// Whether a direction is cut.
    pub fn is_cut(&self, from: HostNumber, to: HostNumber) -> bool {
        self.cuts.contains_key(&(from, to))
    }

    /// Whether anything can pass between two machines both ways.
    pub fn is_passable(&self, a: HostNumber, b: HostNumber) -> bool {
        !self.is_cut(a, b) && !self.is_cut(b, a)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPE: Pipe = Pipe { from: 0, to: 1, stream: Stream::Main };

    fn connected() -> Network {
        let mut network = Network::default();
        network.connect((1, NodeId(11)), (0, NodeId(10)));
        network
    }

    #[test]
    fn what_is_sent_arrives_in_order() {
        let mut network = connected();
        assert_eq!(network.send(PIPE, None, Bytes::from_static(b"a"), Moment(0), Duration::from_nanos(9)), Moment(9));
        assert_eq!(network.send(PIPE, None, Bytes::from_static(b"b"), Moment(1), Duration::from_nanos(2)), Moment(9));
        assert_eq!(network.receive(PIPE, Moment(8)), None);
        assert_eq!(network.receive(PIPE, Moment(9)), Some(Bytes::from_static(b"a")));
        assert_eq!(network.receive(PIPE, Moment(9)), Some(Bytes::from_static(b"b")));
    }

    #[test]
    fn what_is_small_passes_what_is_large_and_not_the_other_way_round() {
        let large = Pipe { stream: Stream::Large, ..PIPE };
        let (mut network, group) = (connected(), GroupId(1));
        let mut send = |pipe, at, latency| network.send(pipe, Some(group), Bytes::new(), Moment(at), Duration::from_nanos(latency));
        assert_eq!([send(large, 0, 9), send(PIPE, 1, 2), send(PIPE, 2, 30), send(large, 3, 9)], [9, 3, 32, 32].map(Moment));
        assert!(network.holds(large, group) && !network.holds(large, GroupId(2)));
        while network.receive(large, Moment(99)).is_some() {}
        assert!(!network.holds(large, group));
    }

    #[test]
    fn a_cut_holds_back_and_a_break_loses() {
        let mut network = connected();
        network.cut(0, 1);
        network.send(PIPE, None, Bytes::from_static(b"a"), Moment(0), Duration::ZERO);
        assert_eq!(network.receive(PIPE, Moment(5)), None);
        assert_eq!(network.mend(0, 1), [PIPE]);
        assert_eq!(network.receive(PIPE, Moment(5)), Some(Bytes::from_static(b"a")));
        network.send(PIPE, None, Bytes::from_static(b"b"), Moment(5), Duration::ZERO);
        assert_eq!(network.give_up(1, 0), Some(NodeId(10)));
        assert_eq!(network.receive(PIPE, Moment(9)), None);
        assert_eq!(network.peer_of(0, 1), Some(NodeId(11)), "the other end does not know yet");
        assert_eq!(network.give_up(0, 1), Some(NodeId(11)));
        assert!(network.connection(0, 1).is_none());
    }
}
