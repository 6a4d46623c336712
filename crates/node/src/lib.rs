//! Everything a node decides, as a deterministic machine: [`Event`]s in, [`Effects`] out, time as an
//! argument. It holds no clock, socket, thread, file or chance of its own; `flotilla-server` runs it
//! in the real world, `flotilla-sim` many of it under one seed.
//!
//! - [`node`]: the machine; `requests` (routing, forwarding, time running out), `reading`
//!   (linearizable reads), `replication` (Raft's Ready to log, links and apply), `transfer`
//!   (snapshots), `expiry` (keys whose time is over), `clocks` (what time it is), `supervise` (reports, plans,
//!   members), `divergence` (replicas that differ) and [`scrub`] (comparing what is stored) are its parts;
//! - [`scan`]: ordered scans over all shards;
//! - [`state_machine`]: what committed entries do to the keys; [`store_worker`] runs its jobs;
//! - [`control`], [`placement`]: who the members are and where replicas should be; [`admin`]: what operators ask of them;
//! - [`recovery`]: groups that lost their quorum for good;
//! - [`check`]: whether log and store are of one piece;
//! - [`event`], [`effect`], [`notice`], [`message`], [`request`]: the vocabularies; [`status`]: what is shown; `stats`: what is counted.

pub mod admin;
mod apply_queue;
pub mod boot;
pub mod check;
mod clocks;
mod codec;
pub mod control;
mod divergence;
pub mod effect;
pub mod event;
mod expiry;
pub mod fitness;
pub mod fuzzing;
pub mod keyspace;
pub mod message;
pub mod node;
pub mod notice;
pub mod placement;
mod reading;
pub mod recovery;
mod replica;
mod replication;
mod report;
pub mod request;
mod requests;
pub mod scan;
pub mod scrub;
pub mod state_machine;
mod stats;
pub mod status;
pub mod store_worker;
mod supervise;
mod transfer;

pub use effect::{Effects, ReadJob, ReplyTo, StoreJob};
pub use event::{Event, Now, StoreEvent, Ticket};
pub use message::PeerMessage;
pub use node::{Node, NodeConfig, StartError};
pub use request::{Failure, FailureReason, JoinRequest, Reply, Request};
pub use state_machine::run_scan;
pub use stats::NodeStats;
pub use status::{ClusterStatus, Location};
pub use store_worker::{StoreWorker, run_read};
