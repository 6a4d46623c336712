//! Dialing a peer and sending to it: one [`Outgoing`] for each channel of each peer.
//!
//! The loop queues messages with [`Outgoing::push`] and writes them at the end of its turn with
//! [`Outgoing::flush`], straight into the socket. Only what the socket does not take is left to the
//! connection's task, which waits until it is writable. The same task notices when the peer is gone.
//!
//! What is queued is bounded by bytes, what goes in parts apart from what goes before it. When a connection ends, what it
//! has not written is discarded.

use super::handshake::{self, Answer, Hello};
use super::{Links, PeerCount, count, frame::FrameWriter, socket};
use flotilla_node::message::{Channel, PeerMessage};
use flotilla_types::{GroupId, NodeId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Wait before the first repeated dial, doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait between dials.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A bulk connection without work is closed after this.
const BULK_IDLE_TIME_MAX: Duration = Duration::from_secs(30);
/// What one call writes before others get their turn.
const WRITE_TURN_BYTES: usize = 1 << 20;
/// Transfers whose last chunk is remembered; more than a node ever sends at once.
const TRANSFERS_MAX: usize = 64;

/// The sending end of one channel to one peer.
pub(super) struct Outgoing {
    shared: Rc<Shared>,
    task: JoinHandle<()>,
}

/// How much may wait already where a message is queued.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Of messages that go whole.
    pub(super) whole_bytes_max: u64,
    /// Of messages that go in parts; looked at if this one does.
    pub(super) parts_bytes_max: u64,
}

struct Shared {
    peer: NodeId,
    channel: Channel,
    count: PeerCount,
    state: RefCell<State>,
    /// There is something for the task: unwritten bytes, a broken connection, a reason to dial now.
    work: Notify,
}

struct State {
    address: String,
    stream: Option<Rc<TcpStream>>,
    /// Set by a failed write, for the task to see.
    broken: Option<io::Error>,
    /// The socket took less than it was given; the task goes on when it is writable.
    blocked: bool,
    frames: FrameWriter,
    /// Bulk: the last chunk sent of each transfer, so that it can be given up if the connection ends.
    transfers: BTreeMap<(GroupId, u64), u32>,
}

/// Why a connection ended.
enum Ended {
    /// The peer closed or reset it: its process is gone, or wants us no more.
    ByPeer(String),
    /// It broke on the way.
    Broken(io::Error),
    /// There was nothing more to send.
    Idle,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Outgoing {
    /// Begins to dial.
    pub(super) fn start(links: &Links, peer: NodeId, channel: Channel, address: &str, count: PeerCount) -> Outgoing {
        let state = State {
            address: address.to_owned(),
            stream: None,
            broken: None,
            blocked: false,
            frames: FrameWriter::default(),
            transfers: BTreeMap::new(),
        };
        let shared = Rc::new(Shared { peer, channel, count, state: RefCell::new(state), work: Notify::new() });
        let task = tokio::task::spawn_local(run(links.clone(), Rc::clone(&shared)));
        Outgoing { shared, task }
    }

    /// Where to dial next time.
    pub(super) fn set_address(&self, address: &str) {
        let mut state = self.shared.state.borrow_mut();
        if state.address != address {
            address.clone_into(&mut state.address);
            self.shared.work.notify_one();
        }
    }

    /// Whether this is where it dials.
    pub(super) fn is_at(&self, address: &str) -> bool {
        self.shared.state.borrow().address == address
    }

    pub(super) fn is_connected(&self) -> bool {
        self.shared.state.borrow().stream.is_some()
    }

    pub(super) fn pending_bytes(&self) -> usize {
        self.shared.state.borrow().frames.pending_bytes()
    }

    /// Whether the message would wait behind a large one of its group.
    pub(super) fn holds(&self, message: &PeerMessage) -> bool {
        self.shared.state.borrow().frames.holds(message)
    }

    pub(super) fn dial_now(&self) {
        if !self.is_connected() {
            self.shared.work.notify_one();
        }
    }

    /// Queues a message; false if there is no connection or too much waits already.
    pub(super) fn push(&self, message: &PeerMessage, room: Room) -> bool {
        let mut state = self.shared.state.borrow_mut();
        let may_wait = state.stream.is_some() || self.shared.channel == Channel::Bulk;
        let in_parts = state.frames.parts_bytes();
        let whole_is_full = (state.frames.pending_bytes() - in_parts) as u64 >= room.whole_bytes_max;
        let parts_are_full = in_parts as u64 >= room.parts_bytes_max;
        if !may_wait || whole_is_full || (parts_are_full && state.frames.goes_in_parts(message)) {
            return false;
        }
        if let PeerMessage::SnapshotChunk { group, transfer, number, .. } = message {
            if state.transfers.len() >= TRANSFERS_MAX {
                state.transfers.pop_first();
            }
            state.transfers.insert((*group, *transfer), *number);
        }
        state.frames.push(message);
        true
    }

    /// Writes what is queued, as far as the socket takes it.
    pub(super) fn flush(&self) {
        let mut state = self.shared.state.borrow_mut();
        if state.stream.is_none() {
            if state.frames.pending_bytes() > 0 {
                self.shared.work.notify_one();
            }
        } else if !state.blocked && state.write(&self.shared.count) {
            self.shared.work.notify_one();
        }
    }
}

impl State {
    /// Writes until all is written, the socket is full, or others should have their turn. True if the
    /// task has something to do.
    fn write(&mut self, peer_count: &PeerCount) -> bool {
        let Some(stream) = self.stream.clone() else { return false };
        let (mut bytes, mut calls) = (0, 0);
        let left = loop {
            let chunk = self.frames.chunk();
            if chunk.is_empty() {
                break false;
            }
            if bytes >= WRITE_TURN_BYTES {
                break true;
            }
            calls += 1;
            match stream.try_write(chunk) {
                Ok(0) => {
                    self.broken = Some(ErrorKind::WriteZero.into());
                    break true;
                }
                Ok(count) => {
                    bytes += count;
                    self.frames.advance(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.broken = Some(error);
                    break true;
                }
            }
        };
        self.blocked = left;
        count(peer_count, |stats| {
            stats.bytes_sent += bytes as u64;
            stats.frames_sent += self.frames.take_closed();
            stats.writes += calls;
        });
        left
    }
}

/// Dials for as long as the peer is wanted.
async fn run(links: Links, shared: Rc<Shared>) {
    let (peer, bulk) = (shared.peer, shared.channel == Channel::Bulk);
    let mut backoff = BACKOFF_MIN;
    loop {
        if bulk {
            while shared.state.borrow().frames.pending_bytes() == 0 {
                shared.work.notified().await;
            }
        }
        let address = shared.state.borrow().address.clone();
        let refused = match connect(&links, &shared, &address).await {
            Ok(stream) => {
                let since = Instant::now();
                count(&shared.count, |stats| stats.connects += 1);
                shared.state.borrow_mut().stream = Some(Rc::clone(&stream));
                if !bulk {
                    links.main_changed(peer, false);
                }
                let ended = serve(&shared, &stream).await;
                drop(stream);
                // One that is ended at once is dialed less and less often.
                if since.elapsed() > BACKOFF_MAX {
                    backoff = BACKOFF_MIN;
                }
                match ended {
                    Ended::Idle => false,
                    Ended::ByPeer(what) => {
                        tracing::debug!(%peer, channel = ?shared.channel, "connection ended by the peer: {what}");
                        true
                    }
                    Ended::Broken(error) => {
                        tracing::debug!(%peer, channel = ?shared.channel, "connection broke: {error}");
                        false
                    }
                }
            }
            Err(NotConnected::Refused) => true,
            Err(NotConnected::Io(error)) => {
                tracing::debug!(%peer, address, "cannot dial: {error}");
                false
            }
            Err(NotConnected::Removed) => {
                links.0.inbox.push(flotilla_node::event::Event::Removed { by: peer });
                backoff = BACKOFF_MAX;
                false
            }
            Err(NotConnected::Unwanted(reason)) => {
                links.say_once(format!("node {peer} at {address} refuses the link: {reason}"));
                backoff = BACKOFF_MAX;
                false
            }
        };
        let given_up = {
            let mut state = shared.state.borrow_mut();
            (state.stream, state.broken, state.blocked) = (None, None, false);
            state.frames.clear();
            std::mem::take(&mut state.transfers)
        };
        for ((group, transfer), number) in given_up {
            links.give_up_transfer(peer, group, transfer, number);
        }
        if !bulk {
            links.main_changed(peer, refused);
        }
        let wait = links.jittered(backoff);
        backoff = (backoff * 2).min(BACKOFF_MAX);
        let _ = timeout(wait, shared.work.notified()).await;
    }
}

enum NotConnected {
    /// Nothing listens there.
    Refused,
    Io(io::Error),
    /// A node answered that it does not want us.
    Unwanted(String),
    /// A node answered that we were removed from the cluster.
    Removed,
}

async fn connect(links: &Links, shared: &Shared, address: &str) -> Result<Rc<TcpStream>, NotConnected> {
    let options = &links.0.options;
    let slow = || NotConnected::Io(ErrorKind::TimedOut.into());
    let mut stream = match timeout(options.connect_time_max, TcpStream::connect(address)).await {
        Err(_) => return Err(slow()),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Err(NotConnected::Refused),
        Ok(Err(error)) => return Err(NotConnected::Io(error)),
        Ok(Ok(stream)) => stream,
    };
    socket::tune(&stream).map_err(NotConnected::Io)?;
    let hello = Hello {
        formats: handshake::LINK_FORMATS,
        cluster: options.cluster,
        node: options.node,
        to: shared.peer,
        incarnation: links.0.incarnation,
        number: links.next_number(),
        channel: shared.channel,
        address: options.advertised.clone(),
    };
    match timeout(options.handshake_time_max, handshake::dial(&mut stream, &hello)).await {
        Err(_) => Err(slow()),
        Ok(Err(handshake::HandshakeError::Io(error))) => Err(NotConnected::Io(error)),
        Ok(Err(error)) => Err(NotConnected::Unwanted(error.to_string())),
        Ok(Ok(Answer::Refused { reason })) => Err(NotConnected::Unwanted(reason)),
        Ok(Ok(Answer::Removed)) => Err(NotConnected::Removed),
        // It is a member already, and about to learn it.
        Ok(Ok(Answer::Joining)) => Err(NotConnected::Refused),
        Ok(Ok(Answer::Yourself)) => Err(NotConnected::Unwanted("it has this node's own id: a copy of the data-dir runs there".to_owned())),
        Ok(Ok(Answer::Accepted { format })) if (handshake::LINK_FORMATS.0..=handshake::LINK_FORMATS.1).contains(&format) => {
            Ok(Rc::new(stream))
        }
        Ok(Ok(Answer::Accepted { format })) => Err(NotConnected::Unwanted(format!("it chose the unknown link format {format}"))),
    }
}

/// Sends until the connection ends.
async fn serve(shared: &Shared, stream: &TcpStream) -> Ended {
    let bulk = shared.channel == Channel::Bulk;
    shared.state.borrow_mut().write(&shared.count);
    loop {
        let blocked = {
            let mut state = shared.state.borrow_mut();
            if let Some(error) = state.broken.take() {
                return match error.kind() {
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Ended::ByPeer(error.to_string()),
                    _ => Ended::Broken(error),
                };
            }
            state.blocked
        };
        let interest = if blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let ready = tokio::select! {
            ready = stream.ready(interest) => ready,
            () = shared.work.notified() => continue,
            () = tokio::time::sleep(BULK_IDLE_TIME_MAX), if bulk && !blocked => return Ended::Idle,
        };
        let ready = match ready {
            Ok(ready) => ready,
            Err(error) => return Ended::Broken(error),
        };
        if ready.is_writable() && blocked {
            shared.state.borrow_mut().write(&shared.count);
            // More than a turn's bytes are waiting: let others go first.
            tokio::task::yield_now().await;
        }
        if ready.is_readable() || ready.is_read_closed() {
            // The accepting side says nothing after the handshake: anything readable is an end.
            match stream.try_read(&mut [0; 64]) {
                Ok(0) => return Ended::ByPeer("closed".to_owned()),
                Ok(_) => return Ended::ByPeer("it sent bytes where none belong".to_owned()),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ended::ByPeer(error.to_string()),
                Err(error) => return Ended::Broken(error),
            }
        }
    }
}

impl Links {
    fn jittered(&self, wait: Duration) -> Duration {
        wait.mul_f64(0.75 + 0.5 * self.0.rng.borrow_mut().unit())
    }

    fn give_up_transfer(&self, peer: NodeId, group: GroupId, transfer: u64, number: u32) {
        let messages = vec![PeerMessage::SnapshotTaken { group, transfer, number, accepted: false }];
        self.0.inbox.push(flotilla_node::event::Event::Messages { from: peer, messages });
    }
}
