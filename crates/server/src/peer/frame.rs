//! Frames: how messages lie on a connection (docs/formats.md, "Links and frames"). Bytes only; the
//! sockets are elsewhere.
//!
//! Small messages are gathered into frames of whole messages. A large one is cut into parts that
//! travel between such frames, so that it does not hold up heartbeats. What carries a group's entries
//! or rows keeps its order, because what follows a large one of its group goes the same way; the rest
//! passes, since Raft takes heartbeats, votes and answers in any order.
//!
//! A connection carries one large message at a time.

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_node::message::PeerMessage;
use flotilla_node::request::LARGE_REQUEST_BYTES;
use flotilla_types::GroupId;
use flotilla_types::wire::{DecodeError, Reader};
use std::collections::{BTreeMap, VecDeque};

/// The largest payload of a frame.
pub const FRAME_BYTES_MAX: usize = 256 << 10;
/// The largest message: the largest value that may be configured, and room for what is around it.
pub const MESSAGE_BYTES_MAX: usize = 80 << 20;
/// The most parts of a message: all but the last are as long as a frame, a peer that cuts smaller ones is none of ours.
const PARTS_MAX: usize = MESSAGE_BYTES_MAX / (FRAME_BYTES_MAX - 2) + 1;
/// Length and checksum before the payload.
const HEADER_BYTES: usize = 8;
/// A frame of whole messages is closed once it holds this much.
const FRAME_CLOSE_BYTES: usize = 64 << 10;
/// A message above this is cut into parts: what counts as large, and room for what is around it. With
/// [`FRAME_CLOSE_BYTES`] it stays below a frame.
const WHOLE_BYTES_MAX: usize = LARGE_REQUEST_BYTES + (8 << 10);
/// Memory for sending that is kept when there is nothing to send.
const IDLE_BYTES_MAX: usize = 1 << 20;

/// First byte of a payload: whole messages follow.
const KIND_WHOLE: u8 = 1;
/// First byte of a payload: a byte that says whether this is the last part, then the part.
const KIND_PART: u8 = 2;

/// Why bytes from a peer are no frame. The connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than any may be.
    #[error("a frame of {0} bytes, {FRAME_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// The frame's bytes are not what was sent.
    #[error("a frame whose checksum does not match its bytes")]
    Checksum,
    /// The payload is of no known kind.
    #[error("a frame of the unknown kind {0}")]
    Kind(u8),
    /// A message in parts is longer than any may be.
    #[error("a message of more than {MESSAGE_BYTES_MAX} bytes")]
    MessageTooLong,
    /// The payload holds no messages.
    #[error("a message that cannot be read: {0}")]
    Message(#[from] DecodeError),
}

/// Messages on their way out: gathered into frames, handed out as bytes.
#[derive(Debug, Default)]
pub struct FrameWriter {
    /// Frames; the last may still be open.
    buffer: BytesMut,
    /// How much of `buffer` is written.
    sent: usize,
    /// Where the open frame begins.
    open: Option<usize>,
    parts: VecDeque<Large>,
    parts_bytes: usize,
    /// Where in `buffer` a part that is being written ends.
    part_end: usize,
    /// Groups with messages in `parts`, and how many.
    held: BTreeMap<GroupId, usize>,
    /// Frames closed since somebody asked.
    closed: u64,
}

#[derive(Debug)]
struct Large {
    group: Option<GroupId>,
    rest: Bytes,
}

impl FrameWriter {
    /// Bytes that wait to be written.
    pub fn pending_bytes(&self) -> usize {
        self.buffer.len() - self.sent + self.parts_bytes
    }

    /// Of these, what goes in parts; the rest goes before it.
    pub fn parts_bytes(&self) -> usize {
        self.parts_bytes + self.part_end.saturating_sub(self.sent)
    }

    /// Whether the message would wait behind a large one of its group.
    pub fn holds(&self, message: &PeerMessage) -> bool {
        message.ordered_by().is_some_and(|group| self.held.contains_key(&group))
    }

    /// Whether the message is to go in parts: it is large, or waits behind a large one.
    pub fn goes_in_parts(&self, message: &PeerMessage) -> bool {
        message.encoded_bytes_about() > WHOLE_BYTES_MAX || self.holds(message)
    }

    /// Adds a message.
    pub fn push(&mut self, message: &PeerMessage) {
        let group = message.ordered_by();
        if self.goes_in_parts(message) {
            // In memory of its own, of its size: a buffer that grows with it is copied and half empty.
            let mut encoded = BytesMut::with_capacity(message.encoded_bytes_about());
            message.encode(&mut encoded);
            return self.push_parts(group, encoded.freeze());
        }
        let frame = self.open.unwrap_or_else(|| {
            let frame = self.buffer.len();
            self.buffer.put_bytes(0, HEADER_BYTES);
            self.buffer.put_u8(KIND_WHOLE);
            frame
        });
        self.open = Some(frame);
        let start = self.buffer.len();
        message.encode(&mut self.buffer);
        if self.buffer.len() - start > WHOLE_BYTES_MAX {
            let encoded = self.buffer.split_off(start).freeze();
            if start == frame + HEADER_BYTES + 1 {
                self.buffer.truncate(frame);
                self.open = None;
            }
            self.push_parts(group, encoded);
        } else if self.buffer.len() - frame >= FRAME_CLOSE_BYTES {
            self.close_frame();
        }
    }

    /// The next bytes to write; empty if there are none. [`FrameWriter::advance`] takes them off.
    pub fn chunk(&mut self) -> &[u8] {
        self.close_frame();
        if self.sent == self.buffer.len() {
            self.reset();
            self.frame_part();
        }
        &self.buffer[self.sent..]
    }

    /// The first `count` bytes of the chunk are written.
    pub fn advance(&mut self, count: usize) {
        self.sent += count;
        assert!(self.sent <= self.buffer.len(), "more was written than there was");
        if self.sent == self.buffer.len() && self.open.is_none() {
            self.reset();
        } else if self.sent > IDLE_BYTES_MAX && self.open.is_none() {
            // A peer that takes its time must not make the buffer hold what it has taken already.
            bytes::Buf::advance(&mut self.buffer, self.sent);
            self.part_end = self.part_end.saturating_sub(self.sent);
            self.sent = 0;
        }
    }

    /// Frames closed since this was last asked.
    pub fn take_closed(&mut self) -> u64 {
        std::mem::take(&mut self.closed)
    }

    /// Forgets everything: the connection is gone.
    pub fn clear(&mut self) {
        *self = FrameWriter::default();
    }

    fn reset(&mut self) {
        (self.sent, self.part_end) = (0, 0);
        if self.buffer.capacity() > IDLE_BYTES_MAX { self.buffer = BytesMut::new() } else { self.buffer.clear() }
    }

    fn push_parts(&mut self, group: Option<GroupId>, encoded: Bytes) {
        self.parts_bytes += encoded.len();
        if let Some(group) = group {
            *self.held.entry(group).or_default() += 1;
        }
        self.parts.push_back(Large { group, rest: encoded });
    }

    /// Moves the next part into the buffer.
    fn frame_part(&mut self) {
        let Some(large) = self.parts.front_mut() else { return };
        let part = large.rest.split_to(large.rest.len().min(FRAME_BYTES_MAX - 2));
        let last = large.rest.is_empty();
        self.parts_bytes -= part.len();
        self.open = Some(self.buffer.len());
        self.buffer.reserve(HEADER_BYTES + 2 + part.len());
        self.buffer.put_bytes(0, HEADER_BYTES);
        self.buffer.put_u8(KIND_PART);
        self.buffer.put_u8(u8::from(last));
        self.buffer.put_slice(&part);
        self.close_frame();
        self.part_end = self.buffer.len();
        if last && let Some(group) = self.parts.pop_front().and_then(|large| large.group) {
            let count = self.held.get_mut(&group).expect("a group with a message in parts is held");
            *count -= 1;
            if *count == 0 {
                self.held.remove(&group);
            }
        }
    }

    fn close_frame(&mut self) {
        let Some(frame) = self.open.take() else { return };
        let length = self.buffer.len() - frame - HEADER_BYTES;
        assert!(length <= FRAME_BYTES_MAX, "a frame is closed before it grows too long");
        let checksum = crc32c::crc32c(&self.buffer[frame + HEADER_BYTES..]);
        self.buffer[frame..frame + 4].copy_from_slice(&(length as u32).to_le_bytes());
        self.buffer[frame + 4..frame + HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        self.closed += 1;
    }
}

/// Takes messages out of the bytes of one connection.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// The parts so far of a large message, and their bytes.
    parts: Vec<Bytes>,
    parts_bytes: usize,
}

impl FrameReader {
    /// How many bytes the frame at the front of `buffer` still lacks, as far as that is known.
    pub fn missing_bytes(&self, buffer: &[u8]) -> usize {
        let length = buffer.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
        (HEADER_BYTES + length.min(FRAME_BYTES_MAX)).saturating_sub(buffer.len())
    }

    /// Takes the next frame off `buffer` and appends its messages to `into`; false: it is not
    /// complete. A part that is not the last yields no message.
    ///
    /// # Errors
    /// If the bytes are no frame; nothing behind them can be read.
    pub fn next(&mut self, buffer: &mut BytesMut, into: &mut Vec<PeerMessage>) -> Result<bool, FrameError> {
        let Some((length, rest)) = buffer.split_first_chunk::<4>() else { return Ok(false) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        let Some((checksum, rest)) = rest.split_first_chunk::<4>() else { return Ok(false) };
        if rest.len() < length {
            return Ok(false);
        }
        if crc32c::crc32c(&rest[..length]) != u32::from_le_bytes(*checksum) {
            return Err(FrameError::Checksum);
        }
        let payload = buffer.split_to(HEADER_BYTES + length).freeze().slice(HEADER_BYTES..);
        let mut reader = Reader::new(payload);
        match reader.u8("frame kind")? {
            KIND_WHOLE => {
                while reader.remaining() > 0 {
                    into.push(PeerMessage::decode(&mut reader)?);
                }
            }
            KIND_PART => {
                let last = reader.bool("last part")?;
                let part = reader.rest();
                self.parts_bytes += part.len();
                if self.parts_bytes > MESSAGE_BYTES_MAX || self.parts.len() >= PARTS_MAX {
                    return Err(FrameError::MessageTooLong);
                }
                self.parts.push(part);
                if last {
                    let mut whole = BytesMut::with_capacity(std::mem::take(&mut self.parts_bytes));
                    self.parts.drain(..).for_each(|part| whole.put_slice(&part));
                    let mut reader = Reader::new(whole.freeze());
                    into.push(PeerMessage::decode(&mut reader)?);
                    reader.finish()?;
                }
            }
            kind => return Err(FrameError::Kind(kind)),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_node::request::Reply;
    use flotilla_types::{ReplicaId, Version};

    fn reply(id: u64, length: usize) -> PeerMessage {
        let value = Bytes::from(vec![id as u8; length]);
        PeerMessage::Reply { id, reply: Reply::Value { version: Version(id), value }, leader: None }
    }

    fn gone(group: u32) -> PeerMessage {
        PeerMessage::Gone { group: GroupId(group), replica: ReplicaId(1) }
    }

    fn chunk(group: u32, number: u32, length: usize) -> PeerMessage {
        let bytes = Bytes::from(vec![7; length]);
        PeerMessage::SnapshotChunk { group: GroupId(group), from: ReplicaId(1), to: ReplicaId(2), transfer: 1, number, bytes, finish: None }
    }

    fn name(message: &PeerMessage) -> String {
        match message {
            PeerMessage::Reply { id, .. } => format!("reply {id}"),
            PeerMessage::Gone { group, .. } => format!("gone {}", group.0),
            PeerMessage::SnapshotChunk { group, number, .. } => format!("chunk {} {number}", group.0),
            other => panic!("not made here: {other:?}"),
        }
    }

    /// All bytes of the writer, read in pieces of `piece` bytes: the names of the messages in order.
    fn carry(writer: &mut FrameWriter, piece: usize) -> Vec<String> {
        let (mut reader, mut buffer, mut messages) = (FrameReader::default(), BytesMut::new(), Vec::new());
        loop {
            let count = writer.chunk().len().min(piece);
            if count == 0 {
                break;
            }
            buffer.put_slice(&writer.chunk()[..count]);
            writer.advance(count);
            while reader.next(&mut buffer, &mut messages).expect("what was written can be read") {}
        }
        assert_eq!((buffer.len(), writer.pending_bytes()), (0, 0));
        messages.iter().map(name).collect()
    }

    #[test]
    fn messages_arrive_in_order_however_the_bytes_are_cut() {
        for piece in [1, 7, 4096, usize::MAX] {
            let mut writer = FrameWriter::default();
            (0..40).for_each(|id| writer.push(&reply(id, 100 * id as usize)));
            assert_eq!(carry(&mut writer, piece), (0..40).map(|id| format!("reply {id}")).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_large_message_lets_others_pass_but_not_those_of_its_group() {
        let mut writer = FrameWriter::default();
        writer.push(&chunk(5, 0, 3 << 20));
        writer.push(&chunk(5, 1, 1));
        writer.push(&chunk(6, 0, 1));
        writer.push(&gone(5));
        writer.push(&reply(1, 10));
        let (pending, parts) = (writer.pending_bytes(), writer.parts_bytes());
        assert!(parts > 3 << 20 && (1..1000).contains(&(pending - parts)), "{pending} {parts}");
        assert!(writer.holds(&chunk(5, 2, 1)) && !writer.holds(&chunk(6, 1, 1)) && !writer.holds(&gone(5)));
        assert_eq!(carry(&mut writer, 100_000), ["chunk 6 0", "gone 5", "reply 1", "chunk 5 0", "chunk 5 1"]);
        writer.push(&chunk(5, 2, 1));
        assert_eq!(carry(&mut writer, usize::MAX), ["chunk 5 2"]);
    }

    #[test]
    fn small_messages_go_between_the_parts_of_a_large_one() {
        let mut writer = FrameWriter::default();
        writer.push(&reply(1, 1 << 20));
        let first = writer.chunk().len();
        writer.advance(first);
        writer.push(&reply(2, 1));
        assert!(writer.chunk().len() < 1000, "the small message is next");
    }

    #[test]
    fn no_bytes_of_a_peer_pass_unchecked() {
        let mut writer = FrameWriter::default();
        writer.push(&reply(1, 10));
        let frame = writer.chunk().to_vec();
        let read = |bytes: &[u8]| FrameReader::default().next(&mut BytesMut::from(bytes), &mut Vec::new());
        for position in 4..frame.len() {
            let mut damaged = frame.clone();
            damaged[position] ^= 1;
            assert_eq!(read(&damaged), Err(FrameError::Checksum), "byte {position}");
        }
        assert_eq!(read(&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes()), Err(FrameError::TooLong(FRAME_BYTES_MAX + 1)));
        let framed = |payload: &[u8]| [&(payload.len() as u32).to_le_bytes()[..], &crc32c::crc32c(payload).to_le_bytes(), payload].concat();
        assert_eq!(read(&framed(&[9])), Err(FrameError::Kind(9)));
        assert!(matches!(read(&framed(&[])), Err(FrameError::Message(_))));
        assert!(matches!(read(&framed(&[KIND_WHOLE, 255])), Err(FrameError::Message(_))));
    }

    #[test]
    fn a_message_in_parts_is_bounded() {
        let part = [&[KIND_PART, 0][..], &vec![0; FRAME_BYTES_MAX - 2]].concat();
        let frame = [&(part.len() as u32).to_le_bytes()[..], &crc32c::crc32c(&part).to_le_bytes(), &part].concat();
        let mut reader = FrameReader::default();
        let outcome = (0..).find_map(|_| reader.next(&mut BytesMut::from(&frame[..]), &mut Vec::new()).err());
        assert_eq!(outcome, Some(FrameError::MessageTooLong));
    }
}
