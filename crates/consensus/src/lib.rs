//! One Raft group behind our own face, over the `raft` crate (decision 1). The only crate that
//! names that library: outside it there are [`Group`], [`Ready`] and [`Message`].
//!
//! How it works: a [`Group`] is given ticks, messages and proposals; [`Group::take_ready`] says
//! what must be written, sent and applied, and in which order. The caller does it, and reports by
//! [`Group::on_persisted`] and [`Group::on_applied`]. Several `Ready`s may be under way at a time.
//!
//! What is fenced here, because the library leaves it to its user:
//! - a `Ready` that changes term or vote releases no message before it is on disk, nor does any
//!   after it until then (`ready.rs`);
//! - election timeouts come from our seeded generator (`election_timer.rs`);
//! - what a peer sends is checked before the library sees it, since it panics on a broken
//!   invariant (`validate.rs`), and its protobuf parser never sees a peer's bytes (`message.rs`);
//! - a refused configuration change is an error, not a silent empty entry (`membership.rs`).
//!
//! What is left out: no I/O, clock, thread or chance of its own; no leases (no clock in the
//! library); no `ReadIndex` of the library: reads are confirmed for all groups of a node together
//! (`read.rs`, decision 2). Snapshots carry only metadata here; the rows travel apart.

mod config;
mod election_timer;
mod entry_cache;
mod error;
mod group;
mod membership;
mod message;
mod read;
mod ready;
mod snapshot;
mod validate;

pub use config::GroupConfig;
pub use error::{ConsensusError, ProposeError, StepError};
pub use group::{Group, Progress, RaftRole, Restored};
pub use message::{Message, MessageKind};
pub use read::{ReadConfirm, ReadConfirmed, ReadRounds, ReadToConfirm, ResolvedRead, confirmed_by};
pub use ready::Ready;
pub use snapshot::SnapshotMeta;
