//! What stands outside of a cluster and drives it: the HTTP client of the commands, the load
//! generator of `flotilla bench`, and how to find a server's processes. A library beside the binary
//! because the fault runs in `crates/harness` use the same parts.
//!
//! It knows a cluster only by `docs`' HTTP API: nothing here depends on how a node is built.
#![allow(clippy::disallowed_methods, reason = "outside of the core: clocks, files and processes are what this is about")]

pub mod client;
pub mod cluster_view;
pub mod connection;
pub mod import;
pub mod lines;
pub mod load;
pub mod local_cluster;
pub mod process_cpu;
pub mod scan;
pub mod text;
