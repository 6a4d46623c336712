//! The load generator: many connections, one thread, raw HTTP/1.1.
//!
//! Closed loop: each connection sends its next request when the last is answered. Open loop: requests
//! fall due at a fixed rate whatever the server does, and latency counts from the moment one fell
//! due, so that a stall shows in every request it held up (coordinated omission). Keys are chosen
//! evenly or by Zipf's law, seeded. It speaks Flotilla's API, and etcd's JSON gateway for comparison.

mod keys;
mod pace;
mod report;
mod request;
mod run;

pub use keys::{Distribution, KeyChooser, ShardMap, key_of, shard_of};
pub use report::{LatencyMs, LoadReport};
pub use request::{Protocol, Requests};
pub use run::{LoadError, preload, run};

use std::net::SocketAddr;
use std::time::Duration;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Writes only.
    Put,
    /// Reads only.
    Get,
    /// This percentage of reads, the rest writes.
    Mixed(u8),
}

/// All that decides a run.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// The servers; connections are spread over them in turn.
    pub targets: Vec<SocketAddr>,
    /// What is spoken.
    pub protocol: Protocol,
    /// Connections, all targets together.
    pub connections: usize,
    /// Requests a second; `None`: as fast as answers come.
    pub rate_per_s: Option<f64>,
    /// How long requests are sent and measured.
    pub duration: Duration,
    /// Ends the run earlier, after this many requests.
    pub operations_max: Option<u64>,
    /// Sent before measuring begins.
    pub warmup: Duration,
    /// What is asked.
    pub mix: Mix,
    /// How many different keys.
    pub key_count: u64,
    /// How often each.
    pub distribution: Distribution,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Sends each key to the node that leads its shard.
    pub leaders: Option<ShardMap>,
    /// Everything drawn by chance comes from it.
    pub seed: u64,
}
