//! The state machine of a replica: what a committed entry does to the keys of its shard.
//!
//! - [`mutation`]: what an entry holds, encoded once by the leader;
//! - [`apply`]: the [`Applier`], which turns committed entries of all replicas of a node into one
//!   batch of rows, the applied index among them; `change` is what each mutation does to its key, `idempotency`
//!   remembers what was answered under an `Idempotency-Key`, [`expiry`] knows which keys' time is over; [`generation`] is its part that creates, installs
//!   and sweeps; `rebirth` its part that makes a group's last copy its only voter; [`rows`] builds the rows and chains the hash over them;
//! - [`state`]: what a replica knows of itself besides its keys, stored in one row;
//! - [`read`]: point reads, on any thread;
//! - [`check`]: whether the rows of a store at rest make sense;
//! - [`scan`]: ranges of keys in order, likewise; [`scrub`]: all rows at one index, to be compared;
//! - [`snapshot`]: a replica's rows as a stream of checked chunks, and back.
//!
//! Applying depends on the state and the entry, on nothing else: no clock, no chance, no node's own
//! ids. What an entry does is the same on each replica and in whatever company it is applied.

pub mod apply;
mod change;
pub mod check;
pub mod expiry;
pub(crate) mod fuzzing;
pub mod generation;
mod idempotency;
pub mod mutation;
pub mod read;
mod rebirth;
pub mod rows;
pub mod scan;
pub mod scrub;
pub mod snapshot;
pub mod state;

pub use apply::{Applier, ApplyError, ApplyJob, GroupApplied, GroupApply, MutationResult, StateMachineFaults, StopReason};
pub use expiry::ExpiredKeys;
pub use generation::InstallError;
pub use idempotency::{RECORDS_MAX, RETENTION_MS};
pub use mutation::{
    ENTRY_BYTES_MAX, ENTRY_KEYS_MAX, IDEMPOTENT_BYTES, INCREMENT_BYTES, Mutation, MutationBatch, MutationError, Mutations, TTL_BYTES,
};
pub use read::ReadError;
pub(crate) use rebirth::REPLICA_MARGIN_BITS;
pub use rebirth::{ControlRebirth, RebirthJob, VERSION_MARGIN};
pub use scan::run_scan;
pub use scrub::{ScrubMark, ScrubStep};
pub(crate) use scrub::{is_mark as is_scrub_mark, mark as scrub_mark};
pub use snapshot::{ChunkError, SnapshotReader};
pub use state::{CHECKPOINT_EVERY, ReplicaState};
