//! Links over real sockets on loopback: two nodes' links, and strangers on the peer port.

use super::handshake::{self, Answer, Hello, LINK_FORMATS};
use super::*;
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_node::message::Forward;
use flotilla_node::request::Request;
use flotilla_types::wire::{Reader, Write};
use flotilla_types::{EntryKind, GroupId, Key, ReplicaId, Version};
use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet};

const CLUSTER: ClusterId = ClusterId(7);

/// One node's links and what its node would be given.
struct End {
    node: NodeId,
    address: String,
    links: Links,
    inbox: Rc<Inbox>,
    events: RefCell<VecDeque<Event>>,
    listening: JoinHandle<()>,
}

impl End {
    fn new(node: u64) -> End {
        End::with(node, |_| ())
    }

    fn with(node: u64, change: impl FnOnce(&mut LinkOptions)) -> End {
        let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        End::on(node, listener, change)
    }

    fn on(node: u64, listener: TcpListener, change: impl FnOnce(&mut LinkOptions)) -> End {
        let node = NodeId(node);
        let address = listener.local_addr().expect("an address").to_string();
        let mut options = LinkOptions::new(node, CLUSTER);
        change(&mut options);
        let inbox = Rc::new(Inbox::new(Arc::new(Notify::new())));
        let links = Links::new(options, Rc::clone(&inbox), Rng::new(node.0));
        let listening = tokio::task::spawn_local(listen(links.clone(), listener));
        End { node, address, links, inbox, events: RefCell::default(), listening }
    }

    /// The next event.
    async fn event(&self) -> Event {
        loop {
            if let Some(event) = self.events.borrow_mut().pop_front() {
                return event;
            }
            let mut events = VecDeque::new();
            self.inbox.take(&mut events);
            if events.is_empty() {
                self.inbox.woken().await;
            } else {
                self.events.replace(events);
            }
        }
    }

    /// The next event, in short.
    async fn told(&self) -> String {
        match self.event().await {
            Event::LinkUp { peer } => format!("up {}", peer.0),
            Event::LinkDown { peer, refused } => format!("down {} refused={refused}", peer.0),
            Event::Messages { from, messages } => {
                let names: Vec<String> = messages.iter().map(short).collect();
                format!("from {}: {}", from.0, names.join(", "))
            }
            Event::PeerAt { peer, address } => format!("{} at {address}", peer.0),
            Event::Removed { by } => format!("removed, says {}", by.0),
            Event::AppendUnsent { group, to } => format!("unsent {}/{}", group.0, to.0),
            other => panic!("links tell nothing like {other:?}"),
        }
    }

    fn send(&self, to: &End, message: &PeerMessage) {
        self.links.send(to.node, message);
        self.links.flush();
    }

    /// The process is gone: no task, no socket.
    fn kill(self) {
        self.listening.abort();
        self.links.close();
    }
}

fn short(message: &PeerMessage) -> String {
    match message {
        PeerMessage::Gone { group, .. } => format!("gone {}", group.0),
        PeerMessage::Reply { id, reply: Reply::Value { value, .. }, .. } => format!("value {id} of {}", value.len()),
        PeerMessage::Reply { id, reply: Reply::Failed(failure), .. } => format!("failed {id} {:?} {}", failure.reason, failure.outcome),
        PeerMessage::SnapshotTaken { transfer, number, accepted, .. } => format!("taken {transfer}/{number} {accepted}"),
        PeerMessage::SnapshotChunk { transfer, number, .. } => format!("chunk {transfer}/{number}"),
        other => panic!("not sent here: {other:?}"),
    }
}

fn gone(group: u32) -> PeerMessage {
    PeerMessage::Gone { group: GroupId(group), replica: ReplicaId(1) }
}

fn value(id: u64, length: usize) -> PeerMessage {
    PeerMessage::Reply { id, reply: Reply::Value { version: Version(1), value: Bytes::from(vec![1; length]) }, leader: None }
}

fn forward(id: u64) -> PeerMessage {
    let request = Request::Get { key: Key::new("k").expect("a key") };
    PeerMessage::Forward(Forward { id, expires_in_ms: 1000, group: GroupId(1), term: None, request })
}

fn chunk(number: u32) -> PeerMessage {
    let (from, to) = (ReplicaId(1), ReplicaId(2));
    PeerMessage::SnapshotChunk { group: GroupId(1), from, to, transfer: 9, number, bytes: Bytes::from_static(b"rows"), finish: None }
}

/// An append of one entry of so many bytes, to replica 2 of a group.
fn append(group: u32, length: usize) -> PeerMessage {
    // docs/formats.md, "Raft messages": receiver, sender, term; term, index and commit before the entries.
    let mut bytes = BytesMut::new();
    bytes.put_u8(1);
    bytes.put_u32_le(group);
    bytes.put_u8(1);
    [2, 1, 5, 5, 9, 9].into_iter().for_each(|number| bytes.put_u64_le(number));
    bytes.put_u32_le(1);
    bytes.put_u64_le(5);
    bytes.put_u8(EntryKind::Normal as u8);
    bytes.write_bytes(&vec![7; length]);
    PeerMessage::decode(&mut Reader::new(bytes.freeze())).expect("an append")
}

/// A peer of `a` that shakes hands and then reads nothing.
async fn deaf_peer(a: &End) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    a.links.set_peers(vec![(NodeId(2), listener.local_addr().expect("an address").to_string())]);
    let (mut stream, _) = listener.accept().await.expect("a dials");
    handshake::accept(&mut stream).await.expect("a says hello");
    handshake::answer(&mut stream, &Answer::Accepted { format: 1 }).await.expect("a listens");
    while counted(a).messages_sent == 0 {
        a.links.send(NodeId(2), &gone(0));
        tokio::task::yield_now().await;
    }
    stream
}

/// Runs a test on one thread, as the server does, with a bound on its time.
fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let bounded = async { tokio::time::timeout(Duration::from_secs(30), test()).await.expect("the test takes its time") };
    LocalSet::new().block_on(&runtime, bounded);
}

/// Two ends with an established link.
async fn linked() -> (End, End) {
    let (a, b) = (End::new(1), End::new(2));
    a.links.set_peers(vec![(b.node, b.address.clone())]);
    b.links.set_peers(vec![(a.node, a.address.clone())]);
    assert_eq!((a.told().await, b.told().await), ("up 2".to_owned(), "up 1".to_owned()));
    (a, b)
}

fn hello(to: &End, number: u64) -> Hello {
    let (formats, channel) = (LINK_FORMATS, Channel::Main);
    Hello { formats, cluster: CLUSTER, node: NodeId(1), to: to.node, incarnation: 5, number, channel, address: None }
}

async fn dial(end: &End, hello: &Hello) -> (TcpStream, Answer) {
    let mut stream = TcpStream::connect(&end.address).await.expect("it listens");
    let answer = handshake::dial(&mut stream, hello).await.expect("an answer");
    (stream, answer)
}

async fn refusal(end: &End, hello: Hello) -> String {
    match dial(end, &hello).await.1 {
        Answer::Refused { reason } => reason,
        other => panic!("{other:?} to {hello:?}"),
    }
}

fn framed(message: &PeerMessage) -> Vec<u8> {
    let mut writer = frame::FrameWriter::default();
    writer.push(message);
    writer.chunk().to_vec()
}

/// What an end has counted of its one peer.
fn counted(end: &End) -> LinkStats {
    end.links.views().first().expect("it has a peer").stats
}

#[test]
fn messages_arrive_in_order_small_and_large() {
    run(|| async {
        let (a, b) = linked().await;
        for group in 0..3 {
            a.links.send(b.node, &gone(group));
        }
        let writes = counted(&a).writes;
        a.links.flush();
        assert_eq!(counted(&a).writes, writes + 1, "one write for all of a turn");
        assert_eq!(b.told().await, "from 1: gone 0, gone 1, gone 2");
        assert_eq!((counted(&a).messages_sent, counted(&a).frames_sent, counted(&a).connects), (3, 1, 1));
        assert_eq!((counted(&b).messages_received, counted(&b).frames_received), (3, 1));
        assert_eq!(counted(&a).bytes_sent, counted(&b).bytes_received);
        a.send(&b, &value(7, 20 << 20));
        assert_eq!(b.told().await, format!("from 1: value 7 of {}", 20 << 20));
        b.send(&a, &gone(4));
        assert_eq!(a.told().await, "from 2: gone 4");
    });
}

#[test]
fn a_peer_that_is_gone_is_noticed_and_found_again() {
    run(|| async {
        let (a, b) = linked().await;
        let address = b.address.clone();
        b.kill();
        let down = a.told().await;
        // Whichever of the two connections breaks first; that the process is gone follows.
        let refused = if down == "down 2 refused=false" { a.told().await } else { down };
        assert_eq!(refused, "down 2 refused=true");
        a.links.send(NodeId(2), &gone(1));
        a.links.send(NodeId(2), &forward(3));
        assert_eq!(a.told().await, "from 2: failed 3 Overloaded not-applied");
        let listener = bind(address.parse().expect("an address")).expect("the port is free again");
        let b = End::on(2, listener, |_| ());
        b.links.set_peers(vec![(a.node, a.address.clone())]);
        assert_eq!((a.told().await, b.told().await), ("up 2".to_owned(), "up 1".to_owned()));
    });
}

#[test]
fn what_waits_for_a_slow_peer_is_bounded() {
    run(|| async {
        let a = End::with(1, |options| options.buffer_bytes_max = ByteSize(1 << 20));
        let _stream = deaf_peer(&a).await;
        for id in 0..200 {
            a.links.send(NodeId(2), &value(id, 100_000));
            a.links.flush();
            tokio::task::yield_now().await;
        }
        let pending = a.links.pending_bytes(NodeId(2));
        assert!(((512 << 10)..(700 << 10)).contains(&pending), "half of the room, and all answers in short: {pending}");
        // Small requests have room of their own, of which some is left to the nodes' own messages.
        let dropped_before = counted(&a).messages_dropped;
        let mut forwards = 0;
        while counted(&a).messages_dropped == dropped_before {
            a.links.send(NodeId(2), &forward(forwards));
            forwards += 1;
        }
        let pending = a.links.pending_bytes(NodeId(2)) - pending;
        assert!(pending < (200 << 10) && forwards > 1000, "{forwards} in {pending} bytes");
        assert_eq!(a.told().await, format!("from 2: failed {} Overloaded not-applied", forwards - 1));
        let dropped = counted(&a).messages_dropped;
        a.links.send(NodeId(2), &gone(1));
        assert_eq!(counted(&a).messages_dropped, dropped);
        for _ in 0..50_000 {
            a.links.send(NodeId(2), &gone(1));
        }
        assert!(counted(&a).messages_dropped > dropped && a.links.pending_bytes(NodeId(2)) <= (1 << 20) + 100);
    });
}

#[test]
fn an_append_without_room_is_told_unless_others_of_its_group_wait() {
    run(|| async {
        let a = End::with(1, |options| options.buffer_bytes_max = ByteSize(4 << 20));
        a.links.send(NodeId(2), &append(7, 10));
        assert_eq!(a.told().await, "unsent 7/2", "there is no such link");
        let _stream = deaf_peer(&a).await;
        for _ in 0..20 {
            a.links.send(NodeId(2), &append(8, 1 << 20));
        }
        assert!(counted(&a).messages_dropped > 10);
        a.links.send(NodeId(2), &append(9, 1 << 20));
        assert_eq!(a.told().await, "unsent 9/2", "nothing of its group waits; of the group before, the follower finds the gap itself");
        let dropped = counted(&a).messages_dropped;
        a.links.send(NodeId(2), &append(9, 10));
        assert_eq!(counted(&a).messages_dropped, dropped, "what is small has room of its own");
    });
}

#[test]
fn snapshot_chunks_travel_on_their_own_connection_and_are_given_up_with_it() {
    run(|| async {
        let (a, b) = linked().await;
        a.send(&b, &chunk(0));
        assert_eq!(b.told().await, "from 1: chunk 9/0");
        b.kill();
        let mut told = Vec::new();
        while !told.contains(&"from 2: taken 9/0 false".to_owned()) {
            told.push(a.told().await);
        }
    });
}

#[test]
fn strangers_are_told_why_they_are_refused() {
    run(|| async {
        let end = End::new(2);
        let usual = hello(&end, 1);
        assert!(refusal(&end, Hello { cluster: ClusterId(8), ..usual.clone() }).await.contains("belongs to cluster"));
        assert!(refusal(&end, Hello { formats: (2, 3), ..usual.clone() }).await.contains("speaks link formats 2 to 3"));
        assert!(refusal(&end, Hello { to: NodeId(3), ..usual.clone() }).await.contains("changed hands"));
        assert_eq!(dial(&end, &Hello { node: end.node, ..usual.clone() }).await.1, Answer::Yourself);
        assert!(matches!(dial(&end, &usual).await.1, Answer::Accepted { format: 1 }));
        assert_eq!(end.links.refused(), 4);
    });
}

#[test]
fn garbage_on_the_peer_port_ends_the_connection_and_nothing_else() {
    run(|| async {
        let end = End::new(2);
        let closed = async |mut stream: TcpStream| stream.read(&mut [0; 16]).await.map_or(0, |count| count);
        for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 64], &[255; 4096], b"FLOTLINK\xff\xff"] {
            let mut stream = TcpStream::connect(&end.address).await.expect("it listens");
            stream.write_all(garbage).await.expect("it reads");
            assert_eq!(closed(stream).await, 0, "{garbage:?}");
        }
        let mut damaged = framed(&gone(1));
        damaged[9] ^= 1;
        for (number, frame) in [damaged, (1u32 << 30).to_le_bytes().to_vec(), vec![0; 64]].into_iter().enumerate() {
            let (mut stream, _) = dial(&end, &hello(&end, number as u64)).await;
            stream.write_all(&framed(&gone(0))).await.expect("it reads");
            assert_eq!(end.told().await, "from 1: gone 0");
            stream.write_all(&frame).await.expect("it reads");
            assert_eq!(closed(stream).await, 0, "{number}");
        }
    });
}

#[test]
fn a_stranger_that_says_nothing_is_not_waited_for() {
    run(|| async {
        let end = End::with(2, |options| {
            options.handshake_time_max = Duration::from_millis(50);
            options.connections_max = 1;
        });
        let mut silent = TcpStream::connect(&end.address).await.expect("it listens");
        let mut one_too_many = TcpStream::connect(&end.address).await.expect("the kernel accepts");
        assert_eq!(one_too_many.read(&mut [0; 1]).await.unwrap_or(0), 0);
        assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0);
        assert!(matches!(dial(&end, &hello(&end, 1)).await.1, Answer::Accepted { .. }), "there is room again");
    });
}

#[test]
fn the_newer_connection_of_a_peer_replaces_the_older_one() {
    run(|| async {
        let end = End::new(2);
        let (mut old, _) = dial(&end, &hello(&end, 1)).await;
        old.write_all(&framed(&gone(1))).await.expect("it reads");
        assert_eq!(end.told().await, "from 1: gone 1");
        let (mut new, _) = dial(&end, &hello(&end, 2)).await;
        assert_eq!(old.read(&mut [0; 1]).await.unwrap_or(0), 0, "the older one is closed");
        new.write_all(&framed(&gone(2))).await.expect("it reads");
        assert_eq!(end.told().await, "from 1: gone 2");
        let (mut late, _) = dial(&end, &hello(&end, 1)).await;
        assert_eq!(late.read(&mut [0; 1]).await.unwrap_or(0), 0, "one that was overtaken does not count");
        new.write_all(&framed(&gone(3))).await.expect("it still reads");
        assert_eq!(end.told().await, "from 1: gone 3");
    });
}
