//! Links: the connections between this node and the others.
//!
//! Each node dials each other node for what it sends itself, so a connection carries messages one way
//! only, from the node that dialed. That needs no rule for two nodes that dial each other at once, and
//! each side keeps and bounds what it sends by itself. Per peer there is a main connection, kept up
//! always, and a bulk connection for snapshots' rows, dialed when there are some and closed when idle.
//!
//! A link is up while both main connections, ours and the peer's, are. Every connection that replaces
//! or ends another takes the link down first: the node then knows that messages may be lost.
//!
//! - [`frame`]: messages to bytes and back; [`handshake`]: who may talk to whom;
//! - [`outgoing`]: dialing and sending; [`incoming`]: listening and receiving;
//! - [`reach`]: whether a joining node is where it says it is; [`socket`]: socket options.
//!
//! What the links leave out: encryption and authentication (nodes off loopback need `--insecure`).

pub mod frame;
pub mod handshake;
mod incoming;
mod outgoing;
mod reach;
mod socket;
#[cfg(test)]
mod tests;

pub use incoming::listen;
pub use reach::{answer_while_joining, runs_at};
pub use socket::bind;

use crate::answer_bytes::no_room;
use crate::mailbox::Inbox;
use flotilla_node::event::Event;
use flotilla_node::message::{Channel, PeerMessage};
use flotilla_node::request::{Failure, FailureReason, Reply};
use flotilla_node::scan::ScanPart;
use flotilla_types::{ByteSize, ClusterId, NodeId, Rng};
use outgoing::{Outgoing, Room};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What the links of a node are given.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// This node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// HOST:PORT where this node is reached, for those who know another address of it.
    pub advertised: Option<String>,
    /// How much may wait to be sent to one peer, on each of its two connections.
    pub buffer_bytes_max: ByteSize,
    /// How many connections of other nodes are accepted.
    pub connections_max: usize,
    /// How long a handshake may take.
    pub handshake_time_max: Duration,
    /// How long dialing may take.
    pub connect_time_max: Duration,
}

impl LinkOptions {
    /// The usual settings.
    pub fn new(node: NodeId, cluster: ClusterId) -> LinkOptions {
        LinkOptions {
            node,
            cluster,
            advertised: None,
            buffer_bytes_max: ByteSize(64 << 20),
            connections_max: 512,
            handshake_time_max: Duration::from_secs(5),
            connect_time_max: Duration::from_secs(2),
        }
    }
}

/// Plain counters of the links with one peer, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkStats {
    /// Bytes written to it.
    pub bytes_sent: u64,
    /// Bytes read from it.
    pub bytes_received: u64,
    /// Frames put together for it.
    pub frames_sent: u64,
    /// Frames read from it.
    pub frames_received: u64,
    /// Messages queued for it.
    pub messages_sent: u64,
    /// Messages read from it.
    pub messages_received: u64,
    /// Messages not sent because the link was down or its buffer full.
    pub messages_dropped: u64,
    /// Write system calls.
    pub writes: u64,
    /// Read system calls.
    pub reads: u64,
    /// Times it was dialed and took the connection.
    pub connects: u64,
}

/// The links with one peer at this moment.
#[derive(Clone, Copy, Debug)]
pub struct LinkView {
    /// The peer.
    pub node: NodeId,
    /// Whether the main connections, ours and the peer's, are up.
    pub is_up: bool,
    /// Bytes that wait to be sent to it.
    pub pending_bytes: usize,
    /// What was counted.
    pub stats: LinkStats,
}

/// The counters of one peer, shared by all that count for it.
type PeerCount = Rc<Cell<LinkStats>>;

fn count(stats: &Cell<LinkStats>, change: impl FnOnce(&mut LinkStats)) {
    let mut now = stats.get();
    change(&mut now);
    stats.set(now);
}

/// All links of a node. Clones share them.
#[derive(Clone)]
pub struct Links(Rc<Shared>);

struct Shared {
    options: LinkOptions,
    inbox: Rc<Inbox>,
    peers: RefCell<BTreeMap<NodeId, Peer>>,
    incoming: RefCell<BTreeMap<(NodeId, u8), incoming::Current>>,
    /// Nodes that are members no more, for ever: they are told so.
    removed: RefCell<BTreeSet<NodeId>>,
    /// Peers with something to send since the last flush.
    dirty: RefCell<BTreeSet<NodeId>>,
    rng: RefCell<Rng>,
    incarnation: u64,
    connection_number: Cell<u64>,
    accepted: Cell<usize>,
    said: RefCell<BTreeMap<String, Instant>>,
    /// Of peers, and of others for as long as they are connected.
    counts: RefCell<BTreeMap<NodeId, PeerCount>>,
    /// Handshakes refused.
    refused: Cell<u64>,
    /// Messages to nodes that are no peers.
    misdirected: Cell<u64>,
}

struct Peer {
    main: Outgoing,
    bulk: Outgoing,
    count: PeerCount,
    /// What the node was last told.
    told: Told,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Up,
    Down { refused: bool },
}

/// A refusal is told again after this long.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(600);
/// How many different refusals are remembered.
const SAID_MAX: usize = 256;

impl Links {
    /// No links yet. What arrives goes into `inbox`.
    pub(crate) fn new(options: LinkOptions, inbox: Rc<Inbox>, mut rng: Rng) -> Links {
        let incarnation = rng.next_u64();
        Links(Rc::new(Shared {
            options,
            inbox,
            peers: RefCell::default(),
            incoming: RefCell::default(),
            removed: RefCell::default(),
            dirty: RefCell::default(),
            rng: RefCell::new(rng),
            incarnation,
            connection_number: Cell::new(0),
            accepted: Cell::new(0),
            said: RefCell::default(),
            counts: RefCell::default(),
            refused: Cell::new(0),
            misdirected: Cell::new(0),
        }))
    }

    /// These nodes are members no more: their connections end, and whoever of them dials is told why.
    pub fn set_removed(&self, removed: BTreeSet<NodeId>) {
        for ((node, _), current) in self.0.incoming.borrow().iter() {
            if removed.contains(node) {
                current.close();
            }
        }
        self.0.removed.replace(removed);
    }

    /// A node has said where it is reached.
    fn note_address(&self, node: NodeId, address: Option<String>) {
        let Some(address) = address else { return };
        let is_news = self.0.peers.borrow().get(&node).is_some_and(|peer| !peer.main.is_at(&address));
        if is_news {
            self.0.inbox.push(Event::PeerAt { peer: node, address });
        }
    }

    /// Links with exactly these peers from now on.
    pub fn set_peers(&self, wanted: Vec<(NodeId, String)>) {
        let wanted: BTreeMap<NodeId, String> = wanted.into_iter().filter(|(node, _)| *node != self.0.options.node).collect();
        let mut peers = self.0.peers.borrow_mut();
        peers.retain(|node, _| wanted.contains_key(node));
        for (node, address) in wanted {
            if let Some(peer) = peers.get(&node) {
                peer.main.set_address(&address);
                peer.bulk.set_address(&address);
            } else {
                let count = self.count_of(node);
                let dial = |channel| Outgoing::start(self, node, channel, &address, Rc::clone(&count));
                let (main, bulk) = (dial(Channel::Main), dial(Channel::Bulk));
                peers.insert(node, Peer { main, bulk, count, told: Told::Nothing });
            }
        }
        drop(peers);
        self.forget_counts();
    }

    /// Queues a message. If it cannot be sent, a forwarded request is refused back to the node, a snapshot given up and an
    /// append reported; everything else is dropped, as Raft expects of a network.
    pub fn send(&self, to: NodeId, message: &PeerMessage) {
        let limit = self.0.options.buffer_bytes_max.0;
        let peers = self.0.peers.borrow();
        let Some(peer) = peers.get(&to) else {
            drop(peers);
            self.0.misdirected.set(self.0.misdirected.get() + 1);
            return self.refuse(to, message);
        };
        let push = |message: &PeerMessage| match message.channel() {
            Channel::Main => peer.main.push(message, room_of(message, limit)),
            Channel::Bulk => peer.bulk.push(message, room_of(message, limit)),
        };
        let queued = push(message) || in_short(message).is_some_and(|short| push(&short));
        count(&peer.count, |stats| *if queued { &mut stats.messages_sent } else { &mut stats.messages_dropped } += 1);
        if queued {
            self.0.dirty.borrow_mut().insert(to);
            return;
        }
        // Behind others of its group the follower finds the gap itself, and until then gets what is on its way.
        let is_missed = !matches!(message, PeerMessage::Raft { .. }) || !peer.main.holds(message);
        drop(peers);
        if is_missed {
            self.refuse(to, message);
        }
    }

    /// Writes what was queued: one system call a peer, unless the socket is full.
    pub fn flush(&self) {
        let peers = self.0.peers.borrow();
        while let Some(node) = { self.0.dirty.borrow_mut().pop_first() } {
            if let Some(peer) = peers.get(&node) {
                peer.main.flush();
                peer.bulk.flush();
            }
        }
    }

    /// Ends all connections, for good if nobody listens any more.
    pub fn close(&self) {
        self.0.peers.borrow_mut().clear();
        for current in self.0.incoming.borrow().values() {
            current.end();
        }
    }

    /// The links with each peer.
    pub fn views(&self) -> Vec<LinkView> {
        let peers = self.0.peers.borrow();
        let view = |(node, peer): (&NodeId, &Peer)| LinkView {
            node: *node,
            is_up: peer.told == Told::Up,
            pending_bytes: peer.main.pending_bytes() + peer.bulk.pending_bytes(),
            stats: peer.count.get(),
        };
        peers.iter().map(view).collect()
    }

    /// Handshakes that this node refused.
    pub fn refused(&self) -> u64 {
        self.0.refused.get()
    }

    /// Messages that were not sent because their receiver is no peer (any more).
    pub fn misdirected(&self) -> u64 {
        self.0.misdirected.get()
    }

    /// How many bytes wait to be sent to a peer.
    pub fn pending_bytes(&self, peer: NodeId) -> usize {
        self.0.peers.borrow().get(&peer).map_or(0, |peer| peer.main.pending_bytes() + peer.bulk.pending_bytes())
    }

    /// Where to count what is exchanged with a node.
    fn count_of(&self, node: NodeId) -> PeerCount {
        Rc::clone(self.0.counts.borrow_mut().entry(node).or_default())
    }

    /// Forgets the counters of nodes that are neither peers nor connected: whoever dials may call itself anything.
    fn forget_counts(&self) {
        let (peers, incoming) = (self.0.peers.borrow(), self.0.incoming.borrow());
        let is_connected = |node: &NodeId| incoming.range((*node, 0)..=(*node, u8::MAX)).next().is_some();
        self.0.counts.borrow_mut().retain(|node, _| peers.contains_key(node) || is_connected(node));
    }

    /// Tells the node, as its peer would, that a message went nowhere.
    fn refuse(&self, to: NodeId, message: &PeerMessage) {
        let answer = match message {
            PeerMessage::Forward(forward) => {
                let detail = format!("the link to node {to}, which leads the shard, is down or full; try again");
                PeerMessage::Reply {
                    id: forward.id,
                    reply: Reply::Failed(Failure::not_applied(FailureReason::Overloaded, detail)),
                    leader: None,
                }
            }
            // A read: it is asked for again, here or elsewhere, as long as it has time.
            PeerMessage::Scan(scan) => {
                let refused = scan.groups.iter().map(|group| (*group, None)).collect();
                PeerMessage::ScanPart { number: scan.number, answer: Ok(ScanPart { refused, ..ScanPart::default() }) }
            }
            PeerMessage::SnapshotChunk { group, transfer, number, .. } => {
                PeerMessage::SnapshotTaken { group: *group, transfer: *transfer, number: *number, accepted: false }
            }
            PeerMessage::Raft { group, message } if message.entry_count() > 0 => {
                return self.0.inbox.push(Event::AppendUnsent { group: *group, to: message.to() });
            }
            _ => return,
        };
        self.0.inbox.push(Event::Messages { from: to, messages: vec![answer] });
    }

    /// A main connection came up or went down: tells the node what changed.
    fn main_changed(&self, node: NodeId, refused: bool) {
        let incoming = self.0.incoming.borrow().contains_key(&(node, incoming::channel_number(Channel::Main)));
        let mut peers = self.0.peers.borrow_mut();
        let Some(peer) = peers.get_mut(&node) else { return };
        let up = incoming && peer.main.is_connected();
        let tell = match (peer.told, up) {
            (Told::Up, true) => return,
            (_, true) => Told::Up,
            (Told::Up, false) => Told::Down { refused },
            // That the process is gone may only be learnt after the link broke.
            (Told::Nothing | Told::Down { refused: false }, false) if refused => Told::Down { refused },
            (_, false) => return,
        };
        peer.told = tell;
        drop(peers);
        match tell {
            // The node says so, by the peer's name.
            Told::Up => tracing::debug!(peer = %node, "link up"),
            Told::Down { refused } => tracing::debug!(peer = %node, refused, "link down"),
            Told::Nothing => {}
        }
        self.0.inbox.push(match tell {
            Told::Down { refused } => Event::LinkDown { peer: node, refused },
            _ => Event::LinkUp { peer: node },
        });
    }

    /// The peer has just dialed us: it is there, so dial it now.
    fn dial_now(&self, node: NodeId) {
        if let Some(peer) = self.0.peers.borrow().get(&node) {
            peer.main.dial_now();
        }
    }

    fn next_number(&self) -> u64 {
        let number = self.0.connection_number.get() + 1;
        self.0.connection_number.set(number);
        number
    }

    /// Puts a warning into the traces unless the same was said lately.
    fn say_once(&self, line: String) {
        let mut said = self.0.said.borrow_mut();
        let now = Instant::now();
        if said.get(&line).is_some_and(|at| now - *at < SAY_AGAIN_AFTER) {
            return;
        }
        if said.len() >= SAID_MAX {
            said.retain(|_, at| now - *at < SAY_AGAIN_AFTER);
        }
        tracing::warn!("{line}");
        if said.len() < SAID_MAX {
            said.insert(line, now);
        }
    }
}

/// How much may wait on a link before a message. What goes whole is a quarter of all, the rest goes in parts, so that small
/// messages find room and a way behind any number of large ones. Of each, what clients ask and are answered leaves some: a link
/// full of it must not cost a leader its heartbeats.
fn room_of(message: &PeerMessage, limit: u64) -> Room {
    let (whole, parts) = (limit / 4, limit - limit / 4);
    // A refusal, or the short answer to a write, is better sent than waited for.
    let is_of_client = matches!(
        message,
        PeerMessage::Forward(_)
            | PeerMessage::Scan(_)
            | PeerMessage::Reply { reply: Reply::Value { .. } | Reply::Stale { .. }, .. }
            | PeerMessage::ScanPart { answer: Ok(_), .. }
    );
    let (whole_bytes_max, parts_bytes_max) = if is_of_client { (whole / 4 * 3, parts / 3 * 2) } else { (whole, parts) };
    Room { whole_bytes_max, parts_bytes_max }
}

/// What an answer is cut down to where there is no room for it: whoever asked need not wait in vain. Writes have short ones.
fn in_short(message: &PeerMessage) -> Option<PeerMessage> {
    match message {
        PeerMessage::Reply { id, reply, leader } => {
            let holds_value = match reply {
                Reply::Stale { reply, .. } => matches!(**reply, Reply::Value { .. }),
                reply => matches!(reply, Reply::Value { .. }),
            };
            let reply = if holds_value { Reply::Failed(no_room()) } else { reply.clone() };
            Some(PeerMessage::Reply { id: *id, reply, leader: *leader })
        }
        PeerMessage::ScanPart { number, answer: Ok(_) } => Some(PeerMessage::ScanPart { number: *number, answer: Err(no_room()) }),
        _ => None,
    }
}
