//! What a node says that it holds, for a recovery to be planned by, and its bytes (docs/formats.md, "Holdings").

use crate::control::ControlState;
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{GroupId, LogIndex, Membership, NodeId, ReplicaId, ReplicaKey, Term};

const FORMAT: u8 = 1;

/// What one node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// The nodes that it has a link to.
    pub reaches: Vec<NodeId>,
    /// Its copy of the control state.
    pub control: ControlState,
    /// Groups that are being made anew here at this moment.
    pub under_way: Vec<GroupId>,
    /// Its replicas that have a state, in the order of their groups.
    pub replicas: Vec<HeldReplica>,
}

/// One replica, as its node has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldReplica {
    /// Which.
    pub key: ReplicaKey,
    /// The end of its log.
    pub last: (Term, LogIndex),
    /// Up to where it knows its entries to be committed.
    pub commit: LogIndex,
    /// Up to where they are applied.
    pub applied: LogIndex,
    /// The configuration as applied.
    pub membership: Membership,
    /// How many keys it has.
    pub keys: u64,
    /// How many bytes these and their values have.
    pub bytes: u64,
}

impl Holdings {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        out.put_u32_le(self.reaches.len() as u32);
        self.reaches.iter().for_each(|node| out.put_u64_le(node.0));
        out.write_bytes(&self.control.encode());
        out.put_u32_le(self.under_way.len() as u32);
        self.under_way.iter().for_each(|group| out.put_u32_le(group.0));
        out.put_u32_le(self.replicas.len() as u32);
        for held in &self.replicas {
            out.put_u32_le(held.key.group.0);
            let (term, last) = held.last;
            for number in [held.key.replica.0, term.0, last.0, held.commit.0, held.applied.0, held.keys, held.bytes] {
                out.put_u64_le(number);
            }
            held.membership.encode(&mut out);
        }
        out.freeze()
    }

    /// Reads what [`Holdings::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode(bytes: Bytes) -> Result<Holdings, DecodeError> {
        let mut reader = Reader::new(bytes);
        match reader.u8("holdings format")? {
            FORMAT => {}
            other => return Err(DecodeError::Invalid("holdings format", u64::from(other))),
        }
        let count = reader.count(8, "reached nodes")?;
        let reaches = (0..count).map(|_| reader.u64("node id").map(NodeId)).collect::<Result<_, _>>()?;
        let control = ControlState::decode(reader.bytes("control copy")?)?;
        let count = reader.count(4, "groups under way")?;
        let under_way = (0..count).map(|_| reader.u32("group id").map(GroupId)).collect::<Result<_, _>>()?;
        let count = reader.count(HELD_BYTES_MIN, "held replicas")?;
        let replicas = (0..count).map(|_| HeldReplica::decode(&mut reader)).collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Holdings { reaches, control, under_way, replicas })
    }
}

/// A group, seven numbers and the counts of an empty membership.
const HELD_BYTES_MIN: usize = 4 + 7 * 8 + 4 * 4;

impl HeldReplica {
    fn decode(reader: &mut Reader) -> Result<HeldReplica, DecodeError> {
        let group = GroupId(reader.u32("group id")?);
        let replica = ReplicaId(reader.u64("replica id")?);
        Ok(HeldReplica {
            key: ReplicaKey { group, replica },
            last: (Term(reader.u64("last term")?), LogIndex(reader.u64("last index")?)),
            commit: LogIndex(reader.u64("commit")?),
            applied: LogIndex(reader.u64("applied")?),
            keys: reader.u64("keys")?,
            bytes: reader.u64("bytes")?,
            membership: Membership::decode(reader)?,
        })
    }
}
