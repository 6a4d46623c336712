//! The real world that runs a node: sockets, disks, clocks, threads. The one home of tokio.
//!
//! One thread runs the node's loop, the doors and the links, so that a request costs no wake-up of
//! another thread; what may block has threads of its own.
//!
//! - [`server`]: start-up, as a list of the parts, and the end; [`config`], [`data_dir`], [`join`];
//! - `driver`: the loop; [`handle`]: what the doors hold of it; `threads`: log, apply, slow reads;
//! - [`peer`]: links to other nodes; [`http`]: the HTTP door; [`metrics`]: their numbers.
#![allow(clippy::disallowed_methods, reason = "the real world: its clocks, files and threads are what this is about")]

mod answer_bytes;
mod backend;
pub mod clock;
pub mod config;
pub mod data_dir;
mod disk_room;
mod driver;
pub mod error;
mod file_limit;
pub mod handle;
pub mod http;
mod job_queue;
pub mod join;
mod mailbox;
pub mod metrics;
pub mod peer;
pub mod server;
pub mod shutdown;
mod threads;
mod tickets;

pub use config::{ConfigError, LogFormat, ServerConfig, Settings};
pub use handle::NodeHandle;
pub use server::{Birth, ServerError, Started, run, serve_blocking};
