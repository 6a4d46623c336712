//! Listening for peers and receiving from them.
//!
//! A stranger costs little: connections and the time of a handshake are bounded, nothing is believed
//! before the handshake and every frame is checked after it. Of two connections of one peer and
//! channel the newer one stays; what the older one left behind is discarded.

use super::frame::FrameReader;
use super::handshake::{self, Answer, Hello};
use super::socket;
use super::{Links, count};
use bytes::BytesMut;
use flotilla_node::event::Event;
use flotilla_node::message::Channel;
use flotilla_types::NodeId;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Size of the memory that reads go into. Messages are slices of it and keep it alive, so it is filled
/// to the end before there is another: a small entry must not hold a large buffer to itself.
const READ_BYTES: usize = 64 << 10;
/// Least room for a read.
const READ_BYTES_MIN: usize = 4 << 10;
/// What one connection reads before others get their turn.
const READ_TURN_BYTES: usize = 1 << 20;

/// The connection of a peer that counts.
pub(super) struct Current {
    incarnation: u64,
    number: u64,
    /// False once a newer one took its place.
    counts: Rc<Cell<bool>>,
    task: AbortHandle,
}

impl Current {
    /// Ends it as if the other side had.
    pub(super) fn close(&self) {
        self.task.abort();
    }

    /// Ends it; what it still holds does not count.
    pub(super) fn end(&self) {
        self.counts.set(false);
        self.task.abort();
    }
}

/// Counts a connection for as long as it lives.
struct Accepted(Links);

impl Drop for Accepted {
    fn drop(&mut self) {
        let accepted = &self.0.0.accepted;
        accepted.set(accepted.get() - 1);
    }
}

pub(super) fn channel_number(channel: Channel) -> u8 {
    match channel {
        Channel::Main => 0,
        Channel::Bulk => 1,
    }
}

/// Accepts other nodes' connections until it is aborted.
pub async fn listen(links: Links, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let accepted = &links.0.accepted;
                if accepted.get() >= links.0.options.connections_max {
                    links.say_once(format!("more than {} connections from other nodes: new ones are closed", accepted.get()));
                    continue;
                }
                accepted.set(accepted.get() + 1);
                let counted = Accepted(links.clone());
                tokio::task::spawn_local(async move {
                    greet(&counted.0, stream, from).await;
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: it passes, and a busy loop would not help.
                links.say_once(format!("cannot accept connections from other nodes: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn greet(links: &Links, mut stream: TcpStream, from: SocketAddr) {
    let options = &links.0.options;
    let greeting = async {
        socket::tune(&stream)?;
        let hello = handshake::accept(&mut stream).await?;
        let mut verdict = hello.check(options.cluster, options.node);
        let answer = match &verdict {
            Ok(_) if links.0.removed.borrow().contains(&hello.node) => {
                verdict = Err(format!("node {} was removed from the cluster", hello.node));
                Answer::Removed
            }
            Err(_) if hello.node == options.node && hello.to == options.node && hello.cluster == options.cluster => Answer::Yourself,
            Ok(format) => Answer::Accepted { format: *format },
            Err(reason) => Answer::Refused { reason: reason.clone() },
        };
        handshake::answer(&mut stream, &answer).await?;
        Ok::<_, handshake::HandshakeError>((hello, verdict))
    };
    let refusal = match timeout(options.handshake_time_max, greeting).await {
        Ok(Ok((hello, Ok(_)))) => return take_in(links, hello, stream).await,
        Ok(Ok((_, Err(reason)))) => reason,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the handshake took too long".to_owned(),
    };
    links.0.refused.set(links.0.refused.get() + 1);
    // The port differs each time, so it would make each line a new one.
    links.say_once(format!("refused a connection from {} on the peer port: {refusal}", from.ip()));
}

/// Receives on a connection whose handshake is done, if it is the newest of its peer.
async fn take_in(links: &Links, hello: Hello, stream: TcpStream) {
    let key = (hello.node, channel_number(hello.channel));
    let main = hello.channel == Channel::Main;
    let replaced = {
        let mut incoming = links.0.incoming.borrow_mut();
        if incoming.get(&key).is_some_and(|current| current.incarnation == hello.incarnation && current.number >= hello.number) {
            return;
        }
        incoming.remove(&key)
    };
    if let Some(old) = replaced {
        old.end();
        if main {
            links.main_changed(hello.node, false);
        }
    }
    let counts = Rc::new(Cell::new(true));
    // A task of its own, so that a newer connection can end it.
    let task = tokio::task::spawn_local(receive(links.clone(), hello.node, stream, Rc::clone(&counts)));
    let current = Current { incarnation: hello.incarnation, number: hello.number, counts: Rc::clone(&counts), task: task.abort_handle() };
    links.0.incoming.borrow_mut().insert(key, current);
    links.note_address(hello.node, hello.address);
    if main {
        links.main_changed(hello.node, false);
        links.dial_now(hello.node);
    }
    let ended = task.await;
    if !counts.get() {
        return;
    }
    if let Ok(Some(reason)) = ended {
        links.say_once(format!("closed the connection from node {}: {reason}", hello.node));
    }
    links.0.incoming.borrow_mut().remove(&key);
    links.forget_counts();
    if main {
        links.main_changed(hello.node, false);
    }
}

/// Reads frames until the connection ends; the reason if we end it.
async fn receive(links: Links, from: NodeId, mut stream: TcpStream, counts: Rc<Cell<bool>>) -> Option<String> {
    let (mut frames, mut buffer, mut turn_bytes) = (FrameReader::default(), BytesMut::new(), 0);
    let peer_count = links.count_of(from);
    loop {
        if buffer.capacity() - buffer.len() < READ_BYTES_MIN {
            buffer.reserve(READ_BYTES.max(frames.missing_bytes(&buffer)));
        }
        let bytes = match stream.read_buf(&mut buffer).await {
            Ok(0) => return None,
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::debug!(peer = %from, "connection from the peer broke: {error}");
                return None;
            }
        };
        if !counts.get() {
            return None;
        }
        let (mut messages, mut frame_count) = (Vec::new(), 0);
        let outcome = loop {
            match frames.next(&mut buffer, &mut messages) {
                Ok(true) => frame_count += 1,
                Ok(false) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        count(&peer_count, |stats| {
            stats.bytes_received += bytes as u64;
            stats.frames_received += frame_count;
            stats.reads += 1;
            stats.messages_received += messages.len() as u64;
        });
        if !messages.is_empty() {
            links.0.inbox.push(Event::Messages { from, messages });
        }
        if outcome.is_some() {
            return outcome;
        }
        turn_bytes += bytes;
        if turn_bytes >= READ_TURN_BYTES {
            turn_bytes = 0;
            tokio::task::yield_now().await;
        }
    }
}
