//! How long a node with much data takes to be of use again after a restart, and a whole cluster.

use crate::cluster::Cluster;
use crate::keyspace::tag_of_each_shard;
use crate::wire::Wire;
use anyhow::ensure;
use flotilla::load::{Distribution, LoadPlan, Mix, Protocol, preload};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long all shards together may take to be readable.
const READ_TIME_MAX: Duration = Duration::from_secs(120);

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct RestartReport {
    /// Keys in the cluster.
    pub keys: u64,
    /// Seconds it took to write them.
    pub load_seconds: f64,
    /// From the start of one node after kill -9 until its `/readyz` is 200.
    pub one_ready_ms: f64,
    /// From the start of all nodes after kill -9 of all until a key of every shard was read.
    pub all_readable_ms: f64,
}

impl RestartReport {
    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        vec![
            format!("{} keys written in {:.1} s", self.keys, self.load_seconds),
            format!("one node restarted: ready after {:.0} ms", self.one_ready_ms),
            format!("all nodes restarted: every shard readable after {:.0} ms", self.all_readable_ms),
        ]
    }
}

/// Runs it on three nodes with their data in `folder`.
///
/// # Errors
/// If the cluster does not start, or does not come back.
pub async fn run(binary: &Path, folder: &Path, keys: u64) -> anyhow::Result<RestartReport> {
    let mut cluster = Cluster::start(binary, folder).await?;
    let shards = cluster.wait_settled().await?.shards_total;
    let tags = tag_of_each_shard(shards);
    let mut wire = Wire::new(cluster.addresses()[0], Duration::from_secs(5));
    for tag in &tags {
        let end = wire.put(format!("{{{tag}}}").as_bytes(), tag.as_bytes()).await;
        ensure!(end == crate::wire::WriteEnd::Done, "writing one key of each shard: {end:?}");
    }
    let started = Instant::now();
    preload(&load_plan(&cluster, keys), |_| ()).await?;
    let load_seconds = started.elapsed().as_secs_f64();

    cluster.kill(1);
    let started = Instant::now();
    cluster.launch(1)?;
    cluster.wait_ready(1).await?;
    let one_ready_ms = started.elapsed().as_secs_f64() * 1e3;
    cluster.wait_settled().await?;

    cluster.kill_all();
    let started = Instant::now();
    for at in 0..cluster.len() {
        cluster.launch(at)?;
    }
    // All shards at once, as clients would ask.
    let address = cluster.addresses()[0];
    let reads: Vec<_> = tags.into_iter().map(|tag| tokio::task::spawn_local(read_until_there(address, tag, started))).collect();
    for read in reads {
        ensure!(read.await?, "a shard was not readable after {READ_TIME_MAX:?}");
    }
    let all_readable_ms = started.elapsed().as_secs_f64() * 1e3;
    cluster.stop();
    Ok(RestartReport { keys, load_seconds, one_ready_ms, all_readable_ms })
}

async fn read_until_there(address: std::net::SocketAddr, tag: String, started: Instant) -> bool {
    let mut wire = Wire::new(address, Duration::from_secs(1));
    while started.elapsed() < READ_TIME_MAX {
        if wire.get(format!("{{{tag}}}").as_bytes(), false).await.is_ok_and(|value| value.as_deref() == Some(tag.as_bytes())) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

fn load_plan(cluster: &Cluster, keys: u64) -> LoadPlan {
    LoadPlan {
        targets: cluster.addresses(),
        protocol: Protocol::Flotilla,
        connections: 256,
        rate_per_s: None,
        duration: Duration::ZERO,
        operations_max: None,
        warmup: Duration::ZERO,
        mix: Mix::Put,
        key_count: keys,
        distribution: Distribution::Uniform,
        value_bytes: 256,
        leaders: None,
        seed: 1,
    }
}
