//! Single requests over a raw connection, made again when it breaks.

use flotilla::connection::Connection;
use flotilla::text::encode_key;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Beyond the time the server was given, so that its own answer comes first.
const GRACE: Duration = Duration::from_secs(2);

/// One client at one node.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    timeout: Duration,
    connection: Option<Connection>,
    buffer: Vec<u8>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// Whether it says `Flotilla-Outcome: not-applied`.
    pub not_applied: bool,
    /// The version that its `ETag` names.
    pub version: Option<u64>,
    /// The body.
    pub body: Vec<u8>,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteEnd {
    /// Acknowledged.
    Done,
    /// It did not happen.
    NotApplied,
    /// It may have happened.
    Unknown,
}

impl Wire {
    /// A client of the node at `address` whose requests take about `timeout` at most. Connects when needed.
    pub fn new(address: SocketAddr, timeout: Duration) -> Wire {
        Wire { address, timeout, connection: None, buffer: Vec::new() }
    }

    /// Goes to another node from now on.
    pub fn turn_to(&mut self, address: SocketAddr) {
        self.address = address;
        self.connection = None;
    }

    /// Writes a key.
    pub async fn put(&mut self, key: &[u8], value: &[u8]) -> WriteEnd {
        let path = format!("/v1/kv/{}?timeout={}ms", encode_key(key), self.timeout.as_millis());
        match self.exchange("PUT", &path, value).await {
            Ok(reply) if (200..300).contains(&reply.status) => WriteEnd::Done,
            Ok(reply) if reply.not_applied => WriteEnd::NotApplied,
            // Nothing was sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => WriteEnd::NotApplied,
            _ => WriteEnd::Unknown,
        }
    }

    /// Reads a key: `None` if it is not there.
    ///
    /// # Errors
    /// If the connection broke or took too long, or the status is neither 200 nor 404.
    pub async fn get(&mut self, key: &[u8], stale: bool) -> io::Result<Option<Vec<u8>>> {
        let consistency = if stale { "&consistency=stale" } else { "" };
        let path = format!("/v1/kv/{}?timeout={}ms{consistency}", encode_key(key), self.timeout.as_millis());
        let reply = self.exchange("GET", &path, b"").await?;
        match reply.status {
            200 => Ok(Some(reply.body)),
            404 => Ok(None),
            status => Err(io::Error::other(format!("status {status}: {}", String::from_utf8_lossy(&reply.body)))),
        }
    }

    /// Any request.
    ///
    /// # Errors
    /// If the connection broke or took too long.
    pub async fn exchange(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Reply> {
        self.exchange_with(method, path, "", body).await
    }

    /// The same with further headers, each ended by `\r\n`.
    ///
    /// # Errors
    /// As there.
    pub async fn exchange_with(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> io::Result<Reply> {
        self.buffer.clear();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n{headers}content-length: {}\r\n\r\n", self.address, body.len());
        self.buffer.extend_from_slice(head.as_bytes());
        self.buffer.extend_from_slice(body);
        let bound = self.timeout + GRACE;
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                tokio::time::timeout(bound, Connection::open(self.address)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?
            }
        };
        let answer =
            tokio::time::timeout(bound, connection.exchange(&self.buffer)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        let tag = connection.header(b"etag:").and_then(|tag| std::str::from_utf8(tag).ok());
        let version = tag.and_then(|tag| tag.trim_matches('"').parse().ok());
        let reply = Reply { status: answer.status, not_applied: answer.not_applied, version, body: connection.body(&answer).to_vec() };
        if answer.keep_alive {
            self.connection = Some(connection);
        }
        Ok(reply)
    }
}
