//! The first bytes of a connection: who dials whom, in which cluster, and which formats both speak
//! (docs/formats.md, "Links and frames"). A stranger is told why it is refused.

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_node::message::Channel;
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{ClusterId, NodeId};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The lowest and the highest link format that this version speaks.
pub const LINK_FORMATS: (u32, u32) = (1, 1);

const MAGIC: &[u8; 8] = b"FLOTLINK";
/// Bound on what either side says in the handshake.
const BODY_BYTES_MAX: usize = 1024;
/// The longest name of a host (RFC 1035, section 2.3.4), and a port.
const ADDRESS_BYTES_MAX: usize = 255 + 6;

/// What the dialing node says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The lowest and the highest link format it speaks.
    pub formats: (u32, u32),
    /// Its cluster.
    pub cluster: ClusterId,
    /// Itself.
    pub node: NodeId,
    /// Whom it wants to reach.
    pub to: NodeId,
    /// Drawn at random by its process: tells a restarted process from the one before.
    pub incarnation: u64,
    /// Rises with each connection of that process.
    pub number: u64,
    /// What the connection is for.
    pub channel: Channel,
    /// HOST:PORT where it is reached now; `None`: it does not say.
    pub address: Option<String>,
}

/// What the dialed node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Frames of this format may follow.
    Accepted {
        /// The highest that both speak.
        format: u32,
    },
    /// The connection is closed, for this reason.
    Refused {
        /// One line for people.
        reason: String,
    },
    /// The dialing node was removed from the cluster, for ever.
    Removed,
    /// The dialed node is the one that was meant, and waits to be taken into a cluster.
    Joining,
    /// The dialing node has the id of the dialed one.
    Yourself,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection broke or took too long.
    #[error("the handshake broke off: {0}")]
    Io(#[from] io::Error),
    /// The other side is no Flotilla node.
    #[error("what was received is no Flotilla handshake: {0}")]
    Garbage(&'static str),
    /// The handshake's fields cannot be read.
    #[error("what was received is no Flotilla handshake: {0}")]
    Fields(#[from] DecodeError),
}

impl Hello {
    /// The format to speak with the node that sent this hello to `node` of `cluster`.
    ///
    /// # Errors
    /// If it is not wanted here: the reason.
    pub fn check(&self, cluster: ClusterId, node: NodeId) -> Result<u32, String> {
        let (low, high) = (self.formats.0.max(LINK_FORMATS.0), self.formats.1.min(LINK_FORMATS.1));
        if low > high {
            let (theirs, ours) = (self.formats, LINK_FORMATS);
            return Err(format!(
                "node {} speaks link formats {} to {}, node {node} speaks {} to {}: run versions that have one in common",
                self.node, theirs.0, theirs.1, ours.0, ours.1
            ));
        }
        if self.cluster != cluster {
            return Err(format!("node {} belongs to cluster {}, node {node} to cluster {cluster}", self.node, self.cluster));
        }
        if self.to != node {
            return Err(format!(
                "node {} wanted to reach node {}, but this is node {node}: the address has changed hands",
                self.node, self.to
            ));
        }
        if self.node == node {
            return Err(format!("node {node} reached itself, or a copy of its data-dir runs as a second node"));
        }
        Ok(high)
    }

    /// Its bytes, without magic number, length and checksum (docs/formats.md, "Links and frames").
    pub fn encode(&self) -> BytesMut {
        let mut body = BytesMut::new();
        body.put_u32_le(self.formats.0);
        body.put_u32_le(self.formats.1);
        body.put_u128_le(self.cluster.0);
        body.put_u64_le(self.node.0);
        body.put_u64_le(self.to.0);
        body.put_u64_le(self.incarnation);
        body.put_u64_le(self.number);
        body.put_u8(match self.channel {
            Channel::Main => 0,
            Channel::Bulk => 1,
        });
        if let Some(address) = self.address.as_ref().filter(|address| address.len() <= ADDRESS_BYTES_MAX) {
            body.write_bytes(address.as_bytes());
        }
        body
    }

    /// Reads what [`Hello::encode`] wrote. What stands behind the known fields is left to later formats.
    ///
    /// # Errors
    /// If the bytes are no hello.
    pub fn decode(body: Bytes) -> Result<Hello, DecodeError> {
        let mut reader = Reader::new(body);
        Ok(Hello {
            formats: (reader.u32("lowest format")?, reader.u32("highest format")?),
            cluster: ClusterId(reader.u128("cluster id")?),
            node: NodeId(reader.u64("node id")?),
            to: NodeId(reader.u64("node id")?),
            incarnation: reader.u64("incarnation")?,
            number: reader.u64("connection number")?,
            channel: match reader.u8("channel")? {
                0 => Channel::Main,
                1 => Channel::Bulk,
                other => return Err(DecodeError::Invalid("channel", u64::from(other))),
            },
            address: if reader.remaining() > 0 { String::from_utf8(reader.bytes("address")?.to_vec()).ok() } else { None },
        })
    }
}

impl Answer {
    /// Its bytes, without magic number, length and checksum.
    pub fn encode(&self) -> BytesMut {
        let mut body = BytesMut::new();
        match self {
            Answer::Accepted { format } => {
                body.put_u8(0);
                body.put_u32_le(*format);
            }
            Answer::Refused { reason } => {
                let end = (0..=reason.len().min(BODY_BYTES_MAX - 5)).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
                body.put_u8(1);
                body.write_bytes(&reason.as_bytes()[..end]);
            }
            Answer::Removed => body.put_u8(2),
            Answer::Joining => body.put_u8(3),
            Answer::Yourself => body.put_u8(4),
        }
        body
    }

    /// Reads what [`Answer::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are no answer.
    pub fn decode(body: Bytes) -> Result<Answer, DecodeError> {
        let mut reader = Reader::new(body);
        match reader.u8("answer")? {
            0 => Ok(Answer::Accepted { format: reader.u32("format")? }),
            // A stranger's words end up in our traces: no control characters.
            1 => {
                let said = reader.bytes("reason")?;
                Ok(Answer::Refused { reason: String::from_utf8_lossy(&said).chars().filter(|c| !c.is_control()).collect() })
            }
            2 => Ok(Answer::Removed),
            3 => Ok(Answer::Joining),
            4 => Ok(Answer::Yourself),
            other => Err(DecodeError::Invalid("answer", u64::from(other))),
        }
    }
}

/// The dialing side: says hello and waits for the answer.
///
/// # Errors
/// If the other side does not answer, or not as a node would.
pub async fn dial(stream: &mut TcpStream, hello: &Hello) -> Result<Answer, HandshakeError> {
    send(stream, hello.encode()).await?;
    Ok(Answer::decode(receive(stream).await?)?)
}

/// The accepting side: what the dialing node says.
///
/// # Errors
/// If that is no hello.
pub async fn accept(stream: &mut TcpStream) -> Result<Hello, HandshakeError> {
    Ok(Hello::decode(receive(stream).await?)?)
}

/// The accepting side: answers.
///
/// # Errors
/// If the connection broke.
pub async fn answer(stream: &mut TcpStream, answer: &Answer) -> Result<(), HandshakeError> {
    Ok(send(stream, answer.encode()).await?)
}

async fn send(stream: &mut TcpStream, body: BytesMut) -> io::Result<()> {
    let mut out = BytesMut::with_capacity(MAGIC.len() + 2 + body.len() + 4);
    out.put_slice(MAGIC);
    out.put_u16_le(body.len() as u16);
    out.put_slice(&body);
    out.put_u32_le(crc32c::crc32c(&body));
    stream.write_all(&out).await
}

async fn receive(stream: &mut TcpStream) -> Result<Bytes, HandshakeError> {
    let mut start = [0; MAGIC.len() + 2];
    stream.read_exact(&mut start).await?;
    let (magic, length) = start.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(HandshakeError::Garbage("it does not begin like one"));
    }
    let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
    if length > BODY_BYTES_MAX {
        return Err(HandshakeError::Garbage("it is too long"));
    }
    let mut body = vec![0; length + 4];
    stream.read_exact(&mut body).await?;
    let (said, checksum) = body.split_at(length);
    if crc32c::crc32c(said).to_le_bytes() != *checksum {
        return Err(HandshakeError::Garbage("its checksum does not match"));
    }
    body.truncate(length);
    Ok(Bytes::from(body))
}
