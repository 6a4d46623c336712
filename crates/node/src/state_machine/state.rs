//! What a replica knows of itself besides its keys: how far it has applied, its configuration, its
//! counters and clock. It is stored in one row, written in the same batch as the data, so that a
//! crash cannot separate them.

use crate::control::ControlState;
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_storage::store::layout::Filing;
use flotilla_types::wire::{DecodeError, Reader};
use flotilla_types::{LogIndex, Membership, ReplicaId, ReplicaKey, Term, Timestamp, Version};
use std::sync::Arc;

/// The chained hash is reported at indexes that are multiples of this.
pub const CHECKPOINT_EVERY: u64 = 256;

const FORMAT: u8 = 1;
/// The same, with the id that the rows are filed under behind it.
const FORMAT_FILED: u8 = 2;

/// A replica's state, as its state row holds it.
///
/// Invariants: all but `generation`, `generation_highest`, `filed_under` and `control` follow from the entries
/// applied, so that replicas at one index are equal in them; `generation` <= `generation_highest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaState {
    /// Under which generation the rows in force are filed. This replica's own affair.
    pub generation: u32,
    /// The highest generation ever begun here; the next install takes one above it.
    pub generation_highest: u32,
    /// The replica id that the rows in force are filed under; `None`: its own. Set where the replica was made of an
    /// earlier one on this node (a recovery); the next install ends it.
    pub filed_under: Option<ReplicaId>,
    /// The last entry applied.
    pub applied: (LogIndex, Term),
    /// The configuration as applied.
    pub membership: Membership,
    /// The highest version given to a key.
    pub version: Version,
    /// The shard's clock: never goes back, moves only by entries.
    pub clock: Timestamp,
    /// The hash chained over all that was applied.
    pub hash: u64,
    /// The latest index that is a multiple of [`CHECKPOINT_EVERY`], and the hash right behind it.
    pub checkpoint: Option<(LogIndex, u64)>,
    /// How many keys there are.
    pub keys: u64,
    /// How many bytes keys and values have.
    pub bytes: u64,
    /// The control group's state; `None` in any other group, and in a control replica that waits
    /// for its first snapshot. Stored in rows of its own.
    pub control: Option<Arc<ControlState>>,
}

impl ReplicaState {
    /// The state of a replica that has applied nothing: a voter of a new group, or a learner that
    /// waits for what its leader sends.
    pub fn new(membership: Membership) -> ReplicaState {
        ReplicaState {
            generation: 1,
            generation_highest: 1,
            filed_under: None,
            applied: (LogIndex(0), Term(0)),
            membership,
            version: Version(0),
            clock: Timestamp(0),
            hash: 0,
            checkpoint: None,
            keys: 0,
            bytes: 0,
            control: None,
        }
    }

    /// The generation that the next install must use.
    pub fn next_generation(&self) -> u32 {
        self.generation_highest + 1
    }

    /// Where the rows in force are, if this is the state of `replica`.
    pub fn filing(&self, replica: ReplicaKey) -> Filing {
        let under = ReplicaKey { replica: self.filed_under.unwrap_or(replica.replica), ..replica };
        Filing { under, generation: self.generation }
    }

    /// The encoding (docs/formats.md, "The state store"), without the control state.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(192);
        self.encode_into(&mut out);
        out.freeze()
    }

    /// Appends the encoding.
    pub fn encode_into(&self, out: &mut BytesMut) {
        out.put_u8(if self.filed_under.is_some() { FORMAT_FILED } else { FORMAT });
        out.put_u32_le(self.generation);
        out.put_u32_le(self.generation_highest);
        let (index, hash) = self.checkpoint.unwrap_or_default();
        let (applied, term) = self.applied;
        for number in [applied.0, term.0, self.version.0, self.clock.0, self.hash, index.0, hash, self.keys, self.bytes] {
            out.put_u64_le(number);
        }
        self.membership.encode(out);
        if let Some(replica) = self.filed_under {
            out.put_u64_le(replica.0);
        }
    }

    /// Reads what [`ReplicaState::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are no state that this version knows.
    pub fn decode(bytes: Bytes) -> Result<ReplicaState, DecodeError> {
        let mut reader = Reader::new(bytes);
        let r = &mut reader;
        let is_filed = match r.u8("state format")? {
            FORMAT => false,
            FORMAT_FILED => true,
            other => return Err(DecodeError::Invalid("state format", u64::from(other))),
        };
        let mut state = ReplicaState {
            generation: r.u32("generation")?,
            generation_highest: r.u32("highest generation")?,
            applied: (LogIndex(r.u64("applied index")?), Term(r.u64("applied term")?)),
            version: Version(r.u64("version")?),
            clock: Timestamp(r.u64("clock")?),
            hash: r.u64("hash")?,
            checkpoint: Some((LogIndex(r.u64("checkpoint index")?), r.u64("checkpoint hash")?)).filter(|(index, _)| index.0 > 0),
            keys: r.u64("keys")?,
            bytes: r.u64("bytes")?,
            membership: Membership::decode(r)?,
            filed_under: None,
            control: None,
        };
        if is_filed {
            state.filed_under = Some(ReplicaId(r.u64("replica id of the rows")?));
        }
        reader.finish()?;
        Ok(state)
    }
}
