//! A Raft message between two replicas of a group, and its bytes (docs/formats.md, "Raft messages").
//!
//! The library's protobuf is not used: its version 2 parser must never see a peer's bytes, and only
//! the fields that each kind of message uses are sent. An entry's bytes are slices of the frame they
//! came in. Forwarded proposals, read requests and forwarded transfers do not exist between nodes.

use crate::membership;
use crate::snapshot::SnapshotMeta;
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{Entry, EntryKind, LogIndex, Membership, ReplicaId, Term};
use raft::CAMPAIGN_TRANSFER;
use raft::eraftpb::{self, EntryType, MessageType};

/// A message to or from a replica of the same group; only [`crate::Group`] looks inside.
#[derive(Clone, Debug, PartialEq)]
pub struct Message(pub(crate) eraftpb::Message);

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageKind {
    /// Entries from the leader, or a probe for where the logs agree.
    Append = 1,
    /// The answer to an append or a snapshot.
    AppendAnswer = 2,
    /// Asks whether an election could be won.
    PreVote = 3,
    /// The answer to a pre-vote.
    PreVoteAnswer = 4,
    /// Asks for a vote.
    Vote = 5,
    /// The answer to a vote.
    VoteAnswer = 6,
    /// The leader is there, and how far entries are committed.
    Heartbeat = 7,
    /// The answer to a heartbeat.
    HeartbeatAnswer = 8,
    /// The follower needs a snapshot; this is its metadata.
    Snapshot = 9,
    /// The follower shall campaign at once: leadership is handed to it.
    CampaignNow = 10,
}

const FLAG_REJECT: u8 = 1;

impl MessageKind {
    fn of(kind: MessageType) -> Option<MessageKind> {
        Some(match kind {
            MessageType::MsgAppend => MessageKind::Append,
            MessageType::MsgAppendResponse => MessageKind::AppendAnswer,
            MessageType::MsgRequestPreVote => MessageKind::PreVote,
            MessageType::MsgRequestPreVoteResponse => MessageKind::PreVoteAnswer,
            MessageType::MsgRequestVote => MessageKind::Vote,
            MessageType::MsgRequestVoteResponse => MessageKind::VoteAnswer,
            MessageType::MsgHeartbeat => MessageKind::Heartbeat,
            MessageType::MsgHeartbeatResponse => MessageKind::HeartbeatAnswer,
            MessageType::MsgSnapshot => MessageKind::Snapshot,
            MessageType::MsgTimeoutNow => MessageKind::CampaignNow,
            _ => return None,
        })
    }

    fn from_byte(byte: u8) -> Option<(MessageKind, MessageType)> {
        Some(match byte {
            1 => (MessageKind::Append, MessageType::MsgAppend),
            2 => (MessageKind::AppendAnswer, MessageType::MsgAppendResponse),
            3 => (MessageKind::PreVote, MessageType::MsgRequestPreVote),
            4 => (MessageKind::PreVoteAnswer, MessageType::MsgRequestPreVoteResponse),
            5 => (MessageKind::Vote, MessageType::MsgRequestVote),
            6 => (MessageKind::VoteAnswer, MessageType::MsgRequestVoteResponse),
            7 => (MessageKind::Heartbeat, MessageType::MsgHeartbeat),
            8 => (MessageKind::HeartbeatAnswer, MessageType::MsgHeartbeatResponse),
            9 => (MessageKind::Snapshot, MessageType::MsgSnapshot),
            10 => (MessageKind::CampaignNow, MessageType::MsgTimeoutNow),
            _ => return None,
        })
    }
}

impl Message {
    /// What the library wants sent.
    pub(crate) fn from_raft(message: eraftpb::Message) -> Message {
        assert!(MessageKind::of(message.msg_type).is_some(), "{:?} never leaves a replica", message.msg_type);
        Message(message)
    }

    /// Which replica sent it.
    pub fn from(&self) -> ReplicaId {
        ReplicaId(self.0.from)
    }

    /// Which replica it is for.
    pub fn to(&self) -> ReplicaId {
        ReplicaId(self.0.to)
    }

    /// The sender's term; a candidate's own, also in the answer to a pre-vote.
    pub fn term(&self) -> Term {
        Term(self.0.term)
    }

    /// What it is for.
    pub fn kind(&self) -> MessageKind {
        MessageKind::of(self.0.msg_type).expect("no other kind is ever made into a message")
    }

    /// Whether it announces a snapshot.
    pub fn is_snapshot(&self) -> bool {
        self.0.msg_type == MessageType::MsgSnapshot
    }

    /// The snapshot it announces.
    pub fn snapshot_meta(&self) -> Option<SnapshotMeta> {
        self.0.snapshot.as_ref().map(SnapshotMeta::from_raft)
    }

    /// How many entries it carries.
    pub fn entry_count(&self) -> usize {
        self.0.entries.len()
    }

    /// The bytes of its entries.
    pub fn entries_bytes(&self) -> usize {
        self.0.entries.iter().map(|e| e.data.len() + e.context.len()).sum()
    }

    /// Roughly the length of the encoding, never less.
    pub fn encoded_bytes_max(&self) -> usize {
        const FIXED: usize = 80;
        let snapshot = self.0.snapshot.as_ref().map_or(0, |s| s.data.len());
        FIXED + snapshot + self.entries_bytes() + self.0.entries.len() * 13
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut BytesMut) {
        let m = &self.0;
        out.reserve(self.encoded_bytes_max());
        out.put_u8(self.kind() as u8);
        out.put_u64_le(m.to);
        out.put_u64_le(m.from);
        out.put_u64_le(m.term);
        match self.kind() {
            MessageKind::Append => {
                out.put_u64_le(m.log_term);
                out.put_u64_le(m.index);
                out.put_u64_le(m.commit);
                out.put_u32_le(m.entries.len() as u32);
                let continues = m.entries.iter().zip(m.index.saturating_add(1)..).all(|(entry, index)| entry.index == index);
                assert!(continues, "entries are numbered by the message's position, {}, and do not follow it", m.index);
                for entry in &m.entries {
                    let (kind, data) = kind_and_data(entry);
                    out.put_u64_le(entry.term);
                    out.put_u8(kind as u8);
                    out.write_bytes(data);
                }
            }
            MessageKind::AppendAnswer => {
                out.put_u8(if m.reject { FLAG_REJECT } else { 0 });
                out.put_u64_le(m.index);
                out.put_u64_le(m.commit);
                if m.reject {
                    out.put_u64_le(m.reject_hint);
                    out.put_u64_le(m.log_term);
                    out.put_u64_le(m.request_snapshot);
                }
            }
            MessageKind::PreVote | MessageKind::Vote => {
                out.write_bool(m.context == CAMPAIGN_TRANSFER);
                out.put_u64_le(m.index);
                out.put_u64_le(m.log_term);
                out.put_u64_le(m.commit);
                out.put_u64_le(m.commit_term);
                out.put_i64_le(m.priority);
            }
            MessageKind::PreVoteAnswer | MessageKind::VoteAnswer => {
                out.put_u8(if m.reject { FLAG_REJECT } else { 0 });
                out.put_u64_le(m.commit);
                out.put_u64_le(m.commit_term);
            }
            MessageKind::Heartbeat | MessageKind::HeartbeatAnswer => out.put_u64_le(m.commit),
            MessageKind::Snapshot => {
                let metadata = m.get_snapshot().get_metadata();
                out.put_u64_le(metadata.index);
                out.put_u64_le(metadata.term);
                // Our membership, in its own encoding.
                out.put_slice(&m.get_snapshot().data);
            }
            MessageKind::CampaignNow => {}
        }
    }

    /// Reads what [`Message::encode`] wrote, off the front of `reader`.
    ///
    /// # Errors
    /// If the bytes are no message. Whether a message makes sense is checked by [`crate::Group::step`].
    pub fn decode(reader: &mut Reader) -> Result<Message, DecodeError> {
        let byte = reader.u8("message kind")?;
        let (kind, msg_type) = MessageKind::from_byte(byte).ok_or(DecodeError::Invalid("message kind", u64::from(byte)))?;
        let mut m = eraftpb::Message { msg_type, ..Default::default() };
        m.to = reader.u64("receiver")?;
        m.from = reader.u64("sender")?;
        m.term = reader.u64("term")?;
        match kind {
            MessageKind::Append => {
                m.log_term = reader.u64("term of the entry before")?;
                m.index = reader.u64("index of the entry before")?;
                m.commit = reader.u64("commit")?;
                let count = reader.count(13, "entries")?;
                let mut entries = Vec::with_capacity(count);
                for position in 0..count as u64 {
                    let index = m.index.checked_add(1 + position).ok_or(DecodeError::Invalid("index of the entry before", m.index))?;
                    let term = Term(reader.u64("entry term")?);
                    let byte = reader.u8("entry kind")?;
                    let kind = EntryKind::from_byte(byte).ok_or(DecodeError::Invalid("entry kind", u64::from(byte)))?;
                    let data = reader.bytes("entry data")?;
                    entries.push(entry_to_raft(Entry { index: LogIndex(index), term, kind, data }));
                }
                m.entries = entries.into();
            }
            MessageKind::AppendAnswer => {
                m.reject = flags(reader)?;
                m.index = reader.u64("index")?;
                m.commit = reader.u64("commit")?;
                if m.reject {
                    m.reject_hint = reader.u64("hint")?;
                    m.log_term = reader.u64("term of the hint")?;
                    m.request_snapshot = reader.u64("requested snapshot")?;
                }
            }
            MessageKind::PreVote | MessageKind::Vote => {
                if reader.bool("transfer")? {
                    m.context = Bytes::from_static(CAMPAIGN_TRANSFER);
                }
                m.index = reader.u64("last index")?;
                m.log_term = reader.u64("last term")?;
                m.commit = reader.u64("commit")?;
                m.commit_term = reader.u64("term of the commit")?;
                m.priority = reader.u64("priority")? as i64;
            }
            MessageKind::PreVoteAnswer | MessageKind::VoteAnswer => {
                m.reject = flags(reader)?;
                m.commit = reader.u64("commit")?;
                m.commit_term = reader.u64("term of the commit")?;
            }
            MessageKind::Heartbeat | MessageKind::HeartbeatAnswer => m.commit = reader.u64("commit")?,
            MessageKind::Snapshot => {
                let index = LogIndex(reader.u64("snapshot index")?);
                let term = Term(reader.u64("snapshot term")?);
                let membership = Membership::decode(reader)?;
                if membership::contradiction(&membership).is_some() {
                    return Err(DecodeError::Invalid("snapshot membership", index.0));
                }
                m.set_snapshot(SnapshotMeta { index, term, membership }.to_raft());
            }
            MessageKind::CampaignNow => {}
        }
        Ok(Message(m))
    }
}

fn flags(reader: &mut Reader) -> Result<bool, DecodeError> {
    match reader.u8("flags")? {
        0 => Ok(false),
        FLAG_REJECT => Ok(true),
        other => Err(DecodeError::Invalid("flags", u64::from(other))),
    }
}

fn kind_and_data(entry: &eraftpb::Entry) -> (EntryKind, &Bytes) {
    match entry.entry_type {
        EntryType::EntryNormal => (EntryKind::Normal, &entry.data),
        // Our encoding rides in the context; `data` holds the library's, and only where it was proposed.
        _ => (EntryKind::Membership, &entry.context),
    }
}

/// Our form of the library's entry; the bytes are shared.
pub(crate) fn entry_from_raft(entry: &eraftpb::Entry) -> Entry {
    let (kind, data) = kind_and_data(entry);
    Entry { index: LogIndex(entry.index), term: Term(entry.term), kind, data: data.clone() }
}

/// The library's form of our entry; the bytes are shared.
pub(crate) fn entry_to_raft(entry: Entry) -> eraftpb::Entry {
    let mut raft = eraftpb::Entry { term: entry.term.0, index: entry.index.0, ..Default::default() };
    match entry.kind {
        EntryKind::Normal => raft.data = entry.data,
        EntryKind::Membership => {
            raft.entry_type = EntryType::EntryConfChangeV2;
            raft.context = entry.data;
        }
    }
    raft
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by fuzzing: what could be read could not be written.
    #[test]
    fn a_probe_at_the_last_index_is_written_again() {
        let probe = eraftpb::Message { msg_type: MessageType::MsgAppend, index: u64::MAX, ..Default::default() };
        let mut out = BytesMut::new();
        Message(probe).encode(&mut out);
        let read = Message::decode(&mut Reader::new(out.freeze())).expect("our own bytes");
        assert_eq!((read.0.index, read.entry_count()), (u64::MAX, 0));
    }
}
