//! What a node tells the control group's voters of itself, twice a second, and its bytes.

use crate::control::{GroupReport, Sending};
use crate::scrub::{LastScrub, ScrubReport, ScrubResult};
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{GroupId, LogIndex, Membership, NodeId, ReplicaId, ReplicaKey, Term, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// One node's report. Not agreed on, not stored; the latest counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// The epoch of the control state that it knows.
    pub(crate) epoch: u64,
    pub(crate) replicas: u64,
    pub(crate) bytes: u64,
    pub(crate) keys: u64,
    pub(crate) shutting_down: bool,
    /// Replicas given up for damage, to be replaced.
    pub(crate) reseeds: Vec<ReplicaKey>,
    /// The groups it leads.
    pub(crate) groups: BTreeMap<GroupId, GroupReport>,
}

const FORMAT: u8 = 3;

impl Report {
    /// The encoding (docs/formats.md, "Messages between nodes").
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64 + self.groups.len() * 128);
        out.put_u8(FORMAT);
        for number in [self.epoch, self.replicas, self.bytes, self.keys] {
            out.put_u64_le(number);
        }
        out.write_bool(self.shutting_down);
        out.put_u32_le(self.reseeds.len() as u32);
        for key in &self.reseeds {
            out.put_u32_le(key.group.0);
            out.put_u64_le(key.replica.0);
        }
        out.put_u32_le(self.groups.len() as u32);
        for (group, led) in &self.groups {
            out.put_u32_le(group.0);
            out.put_u64_le(led.leader.0);
            out.put_u64_le(led.term.0);
            out.write_bool(led.change_pending);
            out.put_u64_le(led.record_epoch);
            out.put_u64_le(led.bytes);
            out.put_u64_le(led.load.map_or(u64::MAX, |load| load.min(u64::MAX - 1)));
            encode_scrub(&led.scrub, &mut out);
            out.write_bool(led.sending.is_some());
            if let Some(Sending { to, bytes_done, elapsed }) = led.sending {
                out.put_u64_le(to.0);
                out.put_u64_le(bytes_done);
                out.put_u64_le(elapsed.as_millis() as u64);
            }
            led.membership.encode(&mut out);
        }
        out.freeze()
    }

    /// Reads what [`Report::encode`] wrote.
    pub(crate) fn decode(bytes: Bytes) -> Result<Report, DecodeError> {
        let mut reader = Reader::new(bytes);
        let r = &mut reader;
        match r.u8("report format")? {
            FORMAT => {}
            other => return Err(DecodeError::Invalid("report format", u64::from(other))),
        }
        let (epoch, replicas, bytes, keys) = (r.u64("epoch")?, r.u64("replicas")?, r.u64("bytes")?, r.u64("keys")?);
        let shutting_down = r.bool("shutting down")?;
        let reseeds = (0..r.count(12, "reseeds")?)
            .map(|_| Ok(ReplicaKey { group: GroupId(r.u32("group")?), replica: ReplicaId(r.u64("replica")?) }))
            .collect::<Result<_, DecodeError>>()?;
        let mut groups = BTreeMap::new();
        for _ in 0..r.count(64, "groups led")? {
            let group = GroupId(r.u32("group")?);
            let led = GroupReport {
                leader: NodeId(r.u64("leader")?),
                term: Term(r.u64("term")?),
                change_pending: r.bool("change pending")?,
                record_epoch: r.u64("record epoch")?,
                bytes: r.u64("bytes")?,
                load: Some(r.u64("load")?).filter(|load| *load != u64::MAX),
                scrub: decode_scrub(r)?,
                sending: if r.bool("snapshot under way")? { Some(decode_sending(r)?) } else { None },
                membership: Membership::decode(r)?,
            };
            groups.insert(group, led);
        }
        reader.finish()?;
        Ok(Report { epoch, replicas, bytes, keys, shutting_down, reseeds, groups })
    }
}

fn decode_sending(r: &mut Reader) -> Result<Sending, DecodeError> {
    let (to, bytes_done) = (NodeId(r.u64("receiver")?), r.u64("bytes sent")?);
    Ok(Sending { to, bytes_done, elapsed: Duration::from_millis(r.u64("time taken")?) })
}

fn encode_scrub(scrub: &ScrubReport, out: &mut BytesMut) {
    let result = scrub.last.map_or(0, |last| match last.result {
        ScrubResult::Agreed => 1,
        ScrubResult::Incomplete => 2,
        ScrubResult::Differed => 3,
        ScrubResult::Undecided => 4,
    });
    out.put_u8(result);
    if let Some(last) = scrub.last {
        out.put_u64_le(last.index.0);
        out.put_u64_le(last.at.0);
        out.put_u32_le(last.copies);
    }
    out.write_bool(scrub.bytes_done.is_some());
    if let Some(bytes) = scrub.bytes_done {
        out.put_u64_le(bytes);
    }
}

fn decode_scrub(r: &mut Reader) -> Result<ScrubReport, DecodeError> {
    let result = match r.u8("scrub result")? {
        0 => None,
        1 => Some(ScrubResult::Agreed),
        2 => Some(ScrubResult::Incomplete),
        3 => Some(ScrubResult::Differed),
        4 => Some(ScrubResult::Undecided),
        other => return Err(DecodeError::Invalid("scrub result", u64::from(other))),
    };
    let last = match result {
        Some(result) => Some(LastScrub {
            index: LogIndex(r.u64("scrub index")?),
            at: Timestamp(r.u64("scrub time")?),
            copies: r.u32("copies compared")?,
            result,
        }),
        None => None,
    };
    Ok(ScrubReport { last, bytes_done: if r.bool("scrub under way")? { Some(r.u64("scrubbed bytes")?) } else { None } })
}
