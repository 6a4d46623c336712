//! The bytes of [`PeerMessage`], [`Request`] and [`Reply`] (docs/formats.md, "Messages between nodes").
//!
//! Each begins with a kind byte; what follows is fixed by the kind. Values and Raft entries come out
//! of decoding as slices of the frame that held them.

use crate::admin::{AdminReply, AdminVerdict};
use crate::fitness::Unfit;
use crate::message::{Forward, PeerMessage, ScanForward};
use crate::request::{Failure, FailureReason, JoinRequest, Reply, Request, RequestId, WriteRefusal};
use crate::scan::{ScanAsk, ScanPage, ScanPart};
use bytes::{BufMut, BytesMut};
use flotilla_consensus::{Message, ReadConfirm, ReadConfirmed};
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{Condition, GroupId, Key, LogIndex, Match, NodeId, Outcome, ReplicaId, Term, Timestamp, Version};
use std::time::Duration;

type Result<T> = std::result::Result<T, DecodeError>;

impl PeerMessage {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            PeerMessage::Raft { group, message } => {
                out.put_u8(1);
                out.put_u32_le(group.0);
                message.encode(out);
            }
            PeerMessage::Gone { group, replica } => {
                out.put_u8(2);
                out.put_u32_le(group.0);
                out.put_u64_le(replica.0);
            }
            PeerMessage::Forward(forward) => {
                out.put_u8(3);
                out.put_u64_le(forward.id);
                out.put_u32_le(forward.expires_in_ms);
                out.put_u32_le(forward.group.0);
                out.put_u64_le(forward.term.map_or(0, |term| term.0));
                forward.request.encode(out);
            }
            PeerMessage::Reply { id, reply, leader } => {
                out.put_u8(4);
                out.put_u64_le(*id);
                out.put_u64_le(leader.map_or(0, |node| node.0));
                reply.encode(out);
            }
            PeerMessage::ReadConfirm(question) => {
                out.put_u8(5);
                question.encode(out);
            }
            PeerMessage::ReadConfirmed(answer) => {
                out.put_u8(6);
                answer.encode(out);
            }
            PeerMessage::SnapshotChunk { group, from, to, transfer, number, bytes, finish } => {
                out.put_u8(7);
                out.put_u32_le(group.0);
                out.put_u64_le(from.0);
                out.put_u64_le(to.0);
                out.put_u64_le(*transfer);
                out.put_u32_le(*number);
                out.write_bytes(bytes);
                out.write_bool(finish.is_some());
                if let Some((message, state)) = finish {
                    out.write_bytes(state);
                    message.encode(out);
                }
            }
            PeerMessage::SnapshotTaken { group, transfer, number, accepted } => {
                out.put_u8(8);
                out.put_u32_le(group.0);
                out.put_u64_le(*transfer);
                out.put_u32_le(*number);
                out.write_bool(*accepted);
            }
            PeerMessage::Report(bytes) => {
                out.put_u8(9);
                out.write_bytes(bytes);
            }
            PeerMessage::ControlCopy(bytes) => {
                out.put_u8(10);
                out.write_bytes(bytes);
            }
            PeerMessage::ControlAsk { epoch, orphan } => {
                out.put_u8(11);
                out.put_u64_le(*epoch);
                out.write_bool(orphan.is_some());
                if let Some((group, replica)) = orphan {
                    out.put_u32_le(group.0);
                    out.put_u64_le(replica.0);
                }
            }
            PeerMessage::Checkpoint { group, replica, index, hash } => {
                out.put_u8(12);
                out.put_u32_le(group.0);
                out.put_u64_le(replica.0);
                out.put_u64_le(index.0);
                out.put_u64_le(*hash);
            }
            PeerMessage::ControlEpoch { epoch } => {
                out.put_u8(14);
                out.put_u64_le(*epoch);
            }
            PeerMessage::Scan(ScanForward { number, expires_in_ms, groups, ask }) => {
                out.put_u8(15);
                out.put_u64_le(*number);
                out.put_u32_le(*expires_in_ms);
                out.put_u32_le(groups.len() as u32);
                groups.iter().for_each(|group| out.put_u32_le(group.0));
                ask.encode(out);
            }
            PeerMessage::ScanPart { number, answer } => {
                out.put_u8(16);
                out.put_u64_le(*number);
                out.write_bool(answer.is_ok());
                match answer {
                    Ok(part) => part.encode(out),
                    Err(failure) => encode_failure(failure, out),
                }
            }
            PeerMessage::Scrubbed { group, replica, index, term, hash } => {
                out.put_u8(24);
                out.put_u32_le(group.0);
                out.put_u64_le(replica.0);
                out.put_u64_le(index.0);
                out.put_u64_le(term.0);
                out.write_bool(hash.is_some());
                if let Some(hash) = hash {
                    out.put_u64_le(*hash);
                }
            }
            PeerMessage::Addresses(addresses) => {
                out.put_u8(25);
                out.put_u32_le(addresses.len() as u32);
                for (node, address) in addresses {
                    out.put_u64_le(node.0);
                    out.write_bytes(address.as_bytes());
                }
            }
            PeerMessage::Unfit { reason } => {
                out.put_u8(26);
                out.put_u8(*reason as u8);
            }
            PeerMessage::HoldingsAsk { number } => {
                out.put_u8(30);
                out.put_u64_le(*number);
            }
            PeerMessage::Holdings { number, holdings } => {
                out.put_u8(31);
                out.put_u64_le(*number);
                out.write_bytes(holdings);
            }
            PeerMessage::RecoveryOrder(order) => {
                out.put_u8(32);
                out.write_bytes(order);
            }
            PeerMessage::Clock { wall } => {
                out.put_u8(20);
                out.put_u64_le(wall.0);
            }
            PeerMessage::Diverged { group, replica, index } => {
                out.put_u8(13);
                out.put_u32_le(group.0);
                out.put_u64_le(replica.0);
                out.put_u64_le(index.0);
            }
        }
    }

    /// Reads one message off the front.
    ///
    /// # Errors
    /// If the bytes are no message.
    pub fn decode(reader: &mut Reader) -> Result<PeerMessage> {
        let group = |reader: &mut Reader| Ok(GroupId(reader.u32("group")?));
        let replica = |reader: &mut Reader| Ok(ReplicaId(reader.u64("replica")?));
        Ok(match reader.u8("message kind")? {
            1 => PeerMessage::Raft { group: group(reader)?, message: Message::decode(reader)? },
            2 => PeerMessage::Gone { group: group(reader)?, replica: replica(reader)? },
            3 => PeerMessage::Forward(Forward {
                id: reader.u64("forward id")?,
                expires_in_ms: reader.u32("forward expiry")?,
                group: group(reader)?,
                term: Some(Term(reader.u64("forward term")?)).filter(|term| term.0 != 0),
                request: Request::decode(reader)?,
            }),
            4 => PeerMessage::Reply {
                id: reader.u64("reply id")?,
                leader: Some(NodeId(reader.u64("leader")?)).filter(|node| node.0 != 0),
                reply: Reply::decode(reader)?,
            },
            5 => PeerMessage::ReadConfirm(ReadConfirm::decode(reader)?),
            6 => PeerMessage::ReadConfirmed(ReadConfirmed::decode(reader)?),
            7 => PeerMessage::SnapshotChunk {
                group: group(reader)?,
                from: replica(reader)?,
                to: replica(reader)?,
                transfer: reader.u64("transfer")?,
                number: reader.u32("chunk number")?,
                bytes: reader.bytes("chunk")?,
                finish: if reader.bool("finish")? {
                    let state = reader.bytes("snapshot state")?;
                    Some((Box::new(Message::decode(reader)?), state))
                } else {
                    None
                },
            },
            8 => PeerMessage::SnapshotTaken {
                group: group(reader)?,
                transfer: reader.u64("transfer")?,
                number: reader.u32("chunk number")?,
                accepted: reader.bool("accepted")?,
            },
            9 => PeerMessage::Report(reader.bytes("report")?),
            10 => PeerMessage::ControlCopy(reader.bytes("control copy")?),
            11 => PeerMessage::ControlAsk {
                epoch: reader.u64("epoch")?,
                orphan: if reader.bool("orphan")? { Some((group(reader)?, replica(reader)?)) } else { None },
            },
            12 => PeerMessage::Checkpoint {
                group: group(reader)?,
                replica: replica(reader)?,
                index: LogIndex(reader.u64("index")?),
                hash: reader.u64("hash")?,
            },
            13 => PeerMessage::Diverged { group: group(reader)?, replica: replica(reader)?, index: LogIndex(reader.u64("index")?) },
            14 => PeerMessage::ControlEpoch { epoch: reader.u64("epoch")? },
            15 => PeerMessage::Scan(ScanForward {
                number: reader.u64("scan number")?,
                expires_in_ms: reader.u32("scan expiry")?,
                groups: {
                    let count = reader.count(4, "groups")?;
                    (0..count).map(|_| group(reader)).collect::<Result<_>>()?
                },
                ask: ScanAsk::decode(reader)?,
            }),
            16 => PeerMessage::ScanPart {
                number: reader.u64("scan number")?,
                answer: if reader.bool("scan answer")? { Ok(ScanPart::decode(reader)?) } else { Err(decode_failure(reader)?) },
            },
            24 => PeerMessage::Scrubbed {
                group: group(reader)?,
                replica: replica(reader)?,
                index: LogIndex(reader.u64("index")?),
                term: Term(reader.u64("term")?),
                hash: if reader.bool("hash")? { Some(reader.u64("hash")?) } else { None },
            },
            25 => {
                let count = reader.count(12, "addresses")?;
                let address = |reader: &mut Reader| {
                    let node = NodeId(reader.u64("node id")?);
                    Ok((node, String::from_utf8_lossy(&reader.bytes("address")?).into_owned()))
                };
                PeerMessage::Addresses((0..count).map(|_| address(reader)).collect::<Result<_>>()?)
            }
            26 => PeerMessage::Unfit { reason: Unfit::from_byte(reader.u8("fitness")?)? },
            30 => PeerMessage::HoldingsAsk { number: reader.u64("question number")? },
            31 => PeerMessage::Holdings { number: reader.u64("question number")?, holdings: reader.bytes("holdings")? },
            32 => PeerMessage::RecoveryOrder(reader.bytes("recovery order")?),
            20 => PeerMessage::Clock { wall: Timestamp(reader.u64("wall clock")?) },
            other => return Err(DecodeError::Invalid("message kind", u64::from(other))),
        })
    }
}

impl Request {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Request::Get { key } => {
                out.put_u8(1);
                out.write_bytes(key.as_bytes());
            }
            Request::Put { key, value, ttl, condition } => {
                out.put_u8(if ttl.is_some() { 22 } else { 2 });
                out.write_bytes(key.as_bytes());
                out.write_bytes(value);
                encode_condition(condition, out);
                if let Some(ttl) = ttl {
                    out.put_u64_le(ttl.as_millis() as u64);
                }
            }
            Request::Delete { key, condition } => {
                out.put_u8(3);
                out.write_bytes(key.as_bytes());
                encode_condition(condition, out);
            }
            Request::Join(join) => {
                out.put_u8(4);
                out.write_bytes(&serde_json::to_vec(join).expect("a join request is plain text and numbers"));
            }
            Request::ClusterStatus => out.put_u8(5),
            Request::Increment { key, by, condition } => {
                out.put_u8(20);
                out.write_bytes(key.as_bytes());
                out.put_i64_le(*by);
                encode_condition(condition, out);
            }
            Request::Idempotent { id, write } => {
                out.put_u8(21);
                out.put_u128_le(id.0);
                write.encode(out);
            }
            Request::GetStale { key } => {
                out.put_u8(6);
                out.write_bytes(key.as_bytes());
            }
            Request::Scan(ask) => {
                out.put_u8(16);
                ask.encode(out);
            }
            Request::Admin(admin) => {
                out.put_u8(23);
                out.write_bytes(&serde_json::to_vec(admin).expect("an operator's request is plain text and numbers"));
            }
        }
    }

    /// Reads one request off the front.
    ///
    /// # Errors
    /// If the bytes are no request.
    pub fn decode(reader: &mut Reader) -> Result<Request> {
        let kind = reader.u8("request kind")?;
        if kind != 21 {
            return Request::decode_kind(kind, reader);
        }
        let id = RequestId(reader.u128("request id")?);
        // Not one within another: that would be decoded as deep as a peer likes.
        let kind = reader.u8("request kind")?;
        let write = Request::decode_kind(kind, reader)?;
        if !write.is_write() {
            return Err(DecodeError::Invalid("kind of an idempotent request", u64::from(kind)));
        }
        Ok(write.once(Some(id)))
    }

    fn decode_kind(kind: u8, reader: &mut Reader) -> Result<Request> {
        Ok(match kind {
            1 => Request::Get { key: decode_key(reader)? },
            2 | 22 => Request::Put {
                key: decode_key(reader)?,
                value: reader.bytes("value")?,
                condition: decode_condition(reader)?,
                ttl: if kind == 22 { Some(Duration::from_millis(reader.u64("time to live")?)) } else { None },
            },
            3 => Request::Delete { key: decode_key(reader)?, condition: decode_condition(reader)? },
            4 => {
                let json = reader.bytes("join request")?;
                let join: JoinRequest = serde_json::from_slice(&json).map_err(|_| DecodeError::Invalid("join request", 0))?;
                Request::Join(join)
            }
            5 => Request::ClusterStatus,
            6 => Request::GetStale { key: decode_key(reader)? },
            20 => {
                Request::Increment { key: decode_key(reader)?, by: reader.u64("increment")? as i64, condition: decode_condition(reader)? }
            }
            16 => Request::Scan(ScanAsk::decode(reader)?),
            23 => {
                let json = reader.bytes("operator's request")?;
                Request::Admin(serde_json::from_slice(&json).map_err(|_| DecodeError::Invalid("operator's request", 0))?)
            }
            other => return Err(DecodeError::Invalid("request kind", u64::from(other))),
        })
    }
}

impl Reply {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Reply::Value { version, value } => {
                out.put_u8(1);
                out.put_u64_le(version.0);
                out.write_bytes(value);
            }
            Reply::Absent => out.put_u8(2),
            Reply::Put { version, created } => {
                out.put_u8(3);
                out.put_u64_le(version.0);
                out.write_bool(*created);
            }
            Reply::Deleted { deleted } => {
                out.put_u8(4);
                out.write_bool(*deleted);
            }
            Reply::ConditionFailed { present } => {
                out.put_u8(5);
                out.put_u64_le(present.map_or(0, |version| version.0));
            }
            Reply::Joined { state } => {
                out.put_u8(6);
                out.write_bytes(state);
            }
            Reply::NameTaken { holder, alive } => {
                out.put_u8(7);
                out.put_u64_le(holder.0);
                out.write_bool(*alive);
            }
            Reply::Status(json) => {
                out.put_u8(8);
                out.write_bytes(json);
            }
            Reply::Failed(failure) => {
                out.put_u8(9);
                encode_failure(failure, out);
            }
            Reply::Page(page) => {
                out.put_u8(16);
                page.encode(out);
            }
            Reply::Admin(AdminReply { verdict, body }) => {
                out.put_u8(23);
                out.put_u8(*verdict as u8);
                out.write_bytes(body);
            }
            Reply::Incremented { value, version } => {
                out.put_u8(20);
                out.put_i64_le(*value);
                out.put_u64_le(version.0);
            }
            Reply::Refused(refusal) => {
                out.put_u8(21);
                out.put_u8(*refusal as u8);
            }
            Reply::Stale { lag_ms, reply } => {
                out.put_u8(10);
                out.put_u64_le(*lag_ms);
                reply.encode(out);
            }
        }
    }

    /// Reads one reply off the front.
    ///
    /// # Errors
    /// If the bytes are no reply.
    pub fn decode(reader: &mut Reader) -> Result<Reply> {
        match reader.u8("reply kind")? {
            10 => {
                let lag_ms = reader.u64("lag")?;
                // One inside the other has no meaning, and must not nest without a bound.
                let reply = Box::new(Reply::decode_kind(reader.u8("stale reply kind")?, reader)?);
                Ok(Reply::Stale { lag_ms, reply })
            }
            kind => Reply::decode_kind(kind, reader),
        }
    }

    fn decode_kind(kind: u8, reader: &mut Reader) -> Result<Reply> {
        let version = |reader: &mut Reader| Ok(Version(reader.u64("version")?));
        Ok(match kind {
            1 => Reply::Value { version: version(reader)?, value: reader.bytes("value")? },
            2 => Reply::Absent,
            3 => Reply::Put { version: version(reader)?, created: reader.bool("created")? },
            4 => Reply::Deleted { deleted: reader.bool("deleted")? },
            5 => Reply::ConditionFailed { present: Some(version(reader)?).filter(|version| version.0 != 0) },
            6 => Reply::Joined { state: reader.bytes("control state")? },
            7 => Reply::NameTaken { holder: NodeId(reader.u64("holder")?), alive: reader.bool("alive")? },
            8 => Reply::Status(reader.bytes("status")?),
            9 => Reply::Failed(decode_failure(reader)?),
            20 => Reply::Incremented { value: reader.u64("sum")? as i64, version: version(reader)? },
            21 => Reply::Refused(WriteRefusal::from_byte(reader.u8("refusal")?)?),
            16 => Reply::Page(ScanPage::decode(reader)?),
            23 => {
                Reply::Admin(AdminReply { verdict: AdminVerdict::from_byte(reader.u8("verdict")?)?, body: reader.bytes("verdict's body")? })
            }
            other => return Err(DecodeError::Invalid("reply kind", u64::from(other))),
        })
    }
}

fn encode_failure(failure: &Failure, out: &mut BytesMut) {
    out.put_u8(failure.reason as u8);
    out.write_bool(failure.outcome == Outcome::Unknown);
    out.write_bytes(failure.detail.as_bytes());
}

fn decode_failure(reader: &mut Reader) -> Result<Failure> {
    Ok(Failure {
        reason: decode_reason(reader.u8("failure reason")?)?,
        outcome: if reader.bool("outcome")? { Outcome::Unknown } else { Outcome::NotApplied },
        detail: String::from_utf8_lossy(&reader.bytes("detail")?).into_owned(),
    })
}

fn decode_reason(byte: u8) -> Result<FailureReason> {
    use FailureReason::{Damaged, DiskFull, NoQuorum, NotLeader, NotMember, Overloaded, ShuttingDown, Timeout, TooLarge};
    [NoQuorum, Timeout, Overloaded, DiskFull, Damaged, ShuttingDown, NotMember, NotLeader, TooLarge]
        .into_iter()
        .find(|reason| *reason as u8 == byte)
        .ok_or(DecodeError::Invalid("failure reason", u64::from(byte)))
}

pub(crate) fn decode_key(reader: &mut Reader) -> Result<Key> {
    let bytes = reader.bytes("key")?;
    let length = bytes.len() as u64;
    Key::new(bytes).map_err(|_| DecodeError::Invalid("key length", length))
}

/// One byte a condition: 0 none, 1 any, 2 versions follow.
pub(crate) fn encode_condition(condition: &Condition, out: &mut BytesMut) {
    for side in [&condition.if_match, &condition.if_none_match] {
        match side {
            None => out.put_u8(0),
            Some(Match::Any) => out.put_u8(1),
            Some(Match::Versions(versions)) => {
                out.put_u8(2);
                out.put_u32_le(versions.len() as u32);
                for version in versions {
                    out.put_u64_le(version.0);
                }
            }
        }
    }
}

/// Reads what [`encode_condition`] wrote.
pub(crate) fn decode_condition(reader: &mut Reader) -> Result<Condition> {
    let mut side = || -> Result<Option<Match>> {
        Ok(match reader.u8("condition kind")? {
            0 => None,
            1 => Some(Match::Any),
            2 => {
                let count = reader.count(8, "condition versions")?;
                Some(Match::Versions((0..count).map(|_| Ok(Version(reader.u64("version")?))).collect::<Result<_>>()?))
            }
            other => return Err(DecodeError::Invalid("condition kind", u64::from(other))),
        })
    };
    Ok(Condition { if_match: side()?, if_none_match: side()? })
}
