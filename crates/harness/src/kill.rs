//! kill -9 of one node after the other under load: how long does each shard acknowledge nothing, and
//! is everything there afterwards?

use crate::cluster::Cluster;
use crate::verify::{Verdict, expectations, verify, verify_own_copies};
use crate::writers::{Acknowledged, WriterPlan, Writers};
use anyhow::ensure;
use serde::Serialize;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How the run goes.
#[derive(Clone, Debug)]
pub struct KillPlan {
    /// How often a node is killed; they take turns.
    pub kills: usize,
    /// Writes go on for so long before the first kill, and after each recovery.
    pub quiet: Duration,
    /// How long a killed node stays down.
    pub down: Duration,
    /// Writers of each shard.
    pub writers_per_shard: usize,
    /// Between a writer's requests.
    pub think_time: Duration,
    /// What a write may take before its writer turns to another node.
    pub timeout: Duration,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct KillReport {
    /// Kills made.
    pub kills: usize,
    /// Shards under load.
    pub shards: usize,
    /// Longest time without an acknowledged write, over each shard and kill: the median.
    pub gap_ms_median: f64,
    /// The 99th percentile.
    pub gap_ms_p99: f64,
    /// The longest.
    pub gap_ms_worst: f64,
    /// The longest gap of any shard, of each kill.
    pub gap_ms_worst_of_each_kill: Vec<f64>,
    /// From the start of a killed node until it was ready, the longest.
    pub ready_ms_worst: f64,
    /// Writes acknowledged.
    pub acknowledged: usize,
    /// Writes whose outcome is unknown.
    pub unknown: usize,
    /// Writes that were refused.
    pub not_applied: usize,
    /// The newest values, asked of every node.
    pub linearizable: Verdict,
    /// Each node's own copy.
    pub own_copies: Option<Verdict>,
    /// Nodes that ended though nobody ended them.
    pub unexpectedly_ended: Vec<String>,
}

impl KillReport {
    /// Whether nothing was lost.
    pub fn is_fine(&self) -> bool {
        self.linearizable.is_fine() && self.own_copies.as_ref().is_none_or(Verdict::is_fine) && self.unexpectedly_ended.is_empty()
    }

    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        vec![
            format!(
                "{} kills under load of {} shards: {} writes acknowledged, {} unknown, {} refused",
                self.kills, self.shards, self.acknowledged, self.unknown, self.not_applied
            ),
            format!(
                "longest gap of acknowledged writes, per shard and kill: median {:.0} ms, p99 {:.0} ms, worst {:.0} ms",
                self.gap_ms_median, self.gap_ms_p99, self.gap_ms_worst
            ),
            format!("a restarted node was ready after {:.0} ms at worst", self.ready_ms_worst),
            format!("newest values: {}", verdict_line(&self.linearizable)),
            format!("own copies: {}", own_copies_line(self.own_copies.as_ref())),
        ]
        .into_iter()
        .chain(
            self.linearizable
                .described
                .iter()
                .chain(self.own_copies.iter().flat_map(|verdict| &verdict.described))
                .chain(&self.unexpectedly_ended)
                .cloned(),
        )
        .collect()
    }
}

/// A verdict in one line.
pub fn verdict_line(verdict: &Verdict) -> String {
    let Verdict { keys, reads, lost, wrong, divergent, refused, .. } = verdict;
    format!("{reads} reads of {keys} keys, {lost} lost, {wrong} wrong, {divergent} divergent, {refused} refused")
}

/// The same of each node's own copy.
pub fn own_copies_line(verdict: Option<&Verdict>) -> String {
    verdict.map_or_else(|| "not asked".to_owned(), verdict_line)
}

/// Runs it on three nodes with their data in `folder`.
///
/// # Errors
/// If the cluster does not start, or does not come back after a kill.
pub async fn run(binary: &Path, folder: &Path, plan: &KillPlan) -> anyhow::Result<KillReport> {
    let mut cluster = Cluster::start(binary, folder).await?;
    let shards = cluster.wait_settled().await?.shards_total;
    let mut writer_plan = WriterPlan::new(cluster.addresses(), shards);
    (writer_plan.writers_per_shard, writer_plan.think_time, writer_plan.timeout) = (plan.writers_per_shard, plan.think_time, plan.timeout);
    let writers = Writers::start(writer_plan);
    tokio::time::sleep(plan.quiet).await;

    let (mut kills, mut ready_ms_worst, mut ended) = (Vec::new(), 0.0f64, Vec::new());
    for kill in 0..plan.kills {
        let victim = kill % cluster.len();
        ended.extend(cluster.unexpectedly_ended());
        let killed = Instant::now();
        cluster.kill(victim);
        tokio::time::sleep(plan.down).await;
        let restarted = Instant::now();
        cluster.launch(victim)?;
        cluster.wait_ready(victim).await?;
        ready_ms_worst = ready_ms_worst.max(restarted.elapsed().as_secs_f64() * 1e3);
        cluster.wait_settled().await?;
        tokio::time::sleep(plan.quiet).await;
        kills.push((killed, Instant::now()));
        ensure!(writers.acknowledged_count() > 0, "nothing was acknowledged");
    }
    let (writer_plan, tags, record) = writers.stop().await;
    let gaps: Vec<Vec<f64>> = kills.iter().map(|window| gaps_ms(&record.acknowledged, &writer_plan, *window)).collect();
    let mut all: Vec<f64> = gaps.iter().flatten().copied().collect();
    all.sort_by(f64::total_cmp);

    cluster.wait_settled().await?;
    let expected = Rc::new(expectations(&writer_plan, &tags, &record));
    let linearizable = verify(&cluster.addresses(), &expected, false).await;
    let own_copies = verify_own_copies(&cluster.addresses(), &expected).await;
    ended.extend(cluster.unexpectedly_ended());
    cluster.stop();
    Ok(KillReport {
        kills: plan.kills,
        shards,
        gap_ms_median: quantile(&all, 0.5),
        gap_ms_p99: quantile(&all, 0.99),
        gap_ms_worst: quantile(&all, 1.0),
        gap_ms_worst_of_each_kill: gaps.iter().map(|gaps| gaps.iter().copied().fold(0.0, f64::max)).collect(),
        ready_ms_worst,
        acknowledged: record.acknowledged.len(),
        unknown: record.unknown.len(),
        not_applied: record.not_applied.len(),
        linearizable,
        own_copies,
        unexpectedly_ended: ended,
    })
}

/// For each shard, the longest time within the window in which nothing of it was acknowledged.
fn gaps_ms(acknowledged: &[Acknowledged], plan: &WriterPlan, (from, to): (Instant, Instant)) -> Vec<f64> {
    let (mut last, mut longest) = (vec![from; plan.shard_count], vec![Duration::ZERO; plan.shard_count]);
    for write in acknowledged.iter().filter(|write| write.at >= from && write.at <= to) {
        let shard = plan.shard_of(write.writer);
        longest[shard] = longest[shard].max(write.at - last[shard]);
        last[shard] = write.at;
    }
    // A shard that never came back has its gap up to the end of the window.
    longest.iter().zip(&last).map(|(longest, last)| (*longest).max(to - *last).as_secs_f64() * 1e3).collect()
}

/// Of sorted figures; 0 if there are none.
pub fn quantile(sorted: &[f64], quantile: f64) -> f64 {
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_counted_from_the_kill_and_up_to_the_end() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let plan = WriterPlan::new(vec!["127.0.0.1:1".parse().expect("an address")], 3);
        let ack = |writer, ms| Acknowledged { writer, number: 0, at: at(ms) };
        // Shard 0 pauses in the middle, shard 1 dies, shard 2 never answers.
        let acks = [ack(0, 50), ack(1, 90), ack(0, 110), ack(1, 120), ack(0, 400), ack(0, 450), ack(0, 900)];
        assert_eq!(gaps_ms(&acks, &plan, (at(100), at(500))), [290.0, 380.0, 400.0]);
    }

    #[test]
    fn quantiles_are_figures_that_occur() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        assert_eq!((quantile(&sorted, 0.5), quantile(&sorted, 0.99), quantile(&sorted, 1.0), quantile(&[], 0.5)), (2.0, 4.0, 4.0, 0.0));
    }
}
