//! The vocabulary of Flotilla: ids, keys, log entries, memberships, time, sizes and the seeded
//! generator. Plain values with their encodings; no policy, no I/O, no clock.
//!
//! Words are used as `docs/glossary.md` gives them.

mod entry;
mod fault;
mod id;
mod key;
mod key_range;
mod membership;
mod outcome;
mod rng;
mod size;
mod time;
pub mod wire;

pub use entry::{Entry, EntryKind, HardState, LogIndex, Term};
pub use fault::PlantedFault;
pub use id::{ClusterId, GroupId, NodeId, ReplicaId, ReplicaKey, ShardId};
pub use key::{Condition, KEY_BYTES_MAX, Key, KeyError, Match, SLOT_COUNT, Slot, VALUE_BYTES_DEFAULT_MAX, Version};
pub use key_range::KeyRange;
pub use membership::{Member, MemberStep, Membership, MembershipChange, Role};
pub use outcome::Outcome;
pub use rng::Rng;
pub use size::ByteSize;
pub use time::{Instant, Timestamp};
