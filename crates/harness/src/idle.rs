//! What three nodes cost that have nothing to do.

use crate::cluster::Cluster;
use flotilla::process_cpu::{processor_times, resident_bytes};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct IdleReport {
    /// Seconds watched.
    pub seconds: f64,
    /// Shards in the cluster.
    pub shards: usize,
    /// Of one core, each node.
    pub cpu_percent: Vec<f64>,
    /// Resident memory, each node.
    pub resident_mib: Vec<f64>,
}

impl IdleReport {
    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let list = |figures: &[f64]| figures.iter().map(|figure| format!("{figure:.1}")).collect::<Vec<_>>().join(", ");
        vec![format!(
            "3 idle nodes with {} shards over {:.0} s: {} % of a core each, {} MiB resident",
            self.shards,
            self.seconds,
            list(&self.cpu_percent),
            list(&self.resident_mib)
        )]
    }
}

/// Runs it on three nodes with their data in `folder`.
///
/// # Errors
/// If the cluster does not start.
pub async fn run(binary: &Path, folder: &Path, duration: Duration) -> anyhow::Result<IdleReport> {
    let mut cluster = Cluster::start(binary, folder).await?;
    let shards = cluster.wait_settled().await?.shards_total;
    let ids: BTreeSet<u32> = cluster.process_ids().into_iter().collect();
    // What starting left to do is not idling.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (before, from) = (processor_times(&ids), Instant::now());
    tokio::time::sleep(duration).await;
    let (after, seconds) = (processor_times(&ids), from.elapsed().as_secs_f64());
    anyhow::ensure!(after.len() == cluster.len(), "a node ended: {}", cluster.unexpectedly_ended().join("; "));
    let cpu_percent = after.iter().map(|(id, time)| time.saturating_sub(before[id]).as_secs_f64() / seconds * 100.0).collect();
    let resident_mib = ids.iter().filter_map(|&id| resident_bytes(id)).map(|bytes| bytes as f64 / f64::from(1 << 20)).collect();
    cluster.stop();
    Ok(IdleReport { seconds, shards, cpu_percent, resident_mib })
}
