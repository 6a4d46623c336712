//! A node cut off from the others: three nodes in networks of their own, joined by a bridge that can
//! be broken for one of them. Clients still reach the node that is cut off; it must refuse them in
//! bounded time, while the others go on. Needs root and `ip` and `iptables`.

use crate::cluster::{Cluster, flags};
use crate::kill::{own_copies_line, verdict_line};
use crate::networks::{HTTP_PORT, Networks, PEER_PORT};
use crate::verify::{Verdict, expectations, verify, verify_own_copies};
use crate::wire::{Wire, WriteEnd};
use crate::writers::{WriterPlan, Writers};
use anyhow::{Context as _, ensure};
use flotilla::local_cluster::NodeSpec;
use flotilla_types::Rng;
use serde::Serialize;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

const NODE_COUNT: usize = 3;
/// What a request to the node that is cut off is given, and what it may take beyond that.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_GRACE_MS: f64 = 1000.0;

/// How the run goes.
#[derive(Clone, Debug)]
pub struct CutOffPlan {
    /// How long a node is cut off the first time, so that the log still reaches back.
    pub brief: Duration,
    /// How long the second time, with large values, so that a snapshot is needed.
    pub long: Duration,
    /// How often a node is killed while it catches up by a snapshot.
    pub kills_during_install: usize,
    /// Everything drawn by chance comes from it.
    pub seed: u64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct CutOffReport {
    /// Answers of the node that was cut off: to a read and a write of each of some shards.
    pub refusals: Vec<String>,
    /// The longest of these took so long.
    pub refusal_ms_worst: f64,
    /// Reads or writes that it did not refuse, or whose refusal was wrong, in words.
    pub not_refused: Vec<String>,
    /// Shards that acknowledged writes while it was cut off.
    pub shards_alive: usize,
    /// Shards there are.
    pub shards: usize,
    /// From the end of the brief cut until every node is settled again.
    pub brief_recovery_ms: f64,
    /// The same after the long one.
    pub long_recovery_ms: f64,
    /// Kills while it caught up.
    pub kills_during_install: usize,
    /// Writes acknowledged.
    pub acknowledged: usize,
    /// Snapshots that the victim installed after the long cut, in all its lives.
    pub snapshots_installed: u64,
    /// The newest values, asked of every node.
    pub linearizable: Verdict,
    /// Each node's own copy.
    pub own_copies: Option<Verdict>,
}

impl CutOffReport {
    /// Whether the store kept its promises.
    pub fn is_fine(&self) -> bool {
        self.not_refused.is_empty()
            && self.refusal_ms_worst < REQUEST_TIMEOUT.as_secs_f64() * 1e3 + ANSWER_GRACE_MS
            && self.shards_alive == self.shards
            && self.snapshots_installed > 0
            && self.linearizable.is_fine()
            && self.own_copies.as_ref().is_none_or(Verdict::is_fine)
    }

    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "cut off: {} requests refused, the slowest after {:.0} ms; {} not refused rightly",
                self.refusals.len(),
                self.refusal_ms_worst,
                self.not_refused.len()
            ),
            format!("the others acknowledged writes to {} of {} shards meanwhile", self.shards_alive, self.shards),
            format!(
                "settled {:.0} ms after a brief cut, {:.0} ms after a long one with {} snapshots and {} kills on the way",
                self.brief_recovery_ms, self.long_recovery_ms, self.snapshots_installed, self.kills_during_install
            ),
            format!("{} writes acknowledged; newest values: {}", self.acknowledged, verdict_line(&self.linearizable)),
            format!("own copies: {}", own_copies_line(self.own_copies.as_ref())),
        ];
        lines.extend(
            self.not_refused
                .iter()
                .chain(&self.linearizable.described)
                .chain(self.own_copies.iter().flat_map(|verdict| &verdict.described))
                .cloned(),
        );
        lines.extend(self.refusals.first().cloned());
        lines
    }
}

/// Runs it, with the data in `folder`. Needs root.
///
/// # Errors
/// If the networks cannot be made, or the cluster does not come back.
pub async fn run_cut_off(binary: &Path, folder: &Path, plan: &CutOffPlan) -> anyhow::Result<CutOffReport> {
    let networks = Networks::create(NODE_COUNT)?;
    let at = |node: usize, port: u16| (networks.address(node), port).into();
    let spec = |node: usize| {
        let join = if node == 0 { Vec::new() } else { vec![at(0, HTTP_PORT)] };
        let mut spec = NodeSpec::new(&format!("n{}", node + 1), folder, at(node, HTTP_PORT), at(node, PEER_PORT), join);
        spec.flags = flags(&["--insecure"]);
        spec.wrapper = networks.wrapper(node).map(Into::into).to_vec();
        spec
    };
    let mut cluster = Cluster::start_of(binary, (0..NODE_COUNT).map(spec).collect()).await?;
    let shards = cluster.wait_settled().await?.shards_total;
    let victim = NODE_COUNT - 1;
    let mut rng = Rng::new(plan.seed);
    // The writers keep to the two that stay together: the third refuses, as is asked of it separately.
    let mut writer_plan = WriterPlan::new(cluster.addresses()[..victim].to_vec(), shards);
    let writers = Writers::start(writer_plan.clone());
    tokio::time::sleep(Duration::from_secs(2)).await;

    networks.cut_off(victim)?;
    // It may serve until it must have noticed, and what it serves then is the newest: nobody else leads yet.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let since = Instant::now();
    let (refusals, not_refused, refusal_ms_worst) = ask_the_one_cut_off(cluster.addresses()[victim]).await;
    tokio::time::sleep(plan.brief).await;
    let shards_alive = writers.shards_alive_since(since);
    networks.heal(victim)?;
    let healed = Instant::now();
    cluster.wait_settled().await?;
    let brief_recovery_ms = healed.elapsed().as_secs_f64() * 1e3;
    let (first_plan, tags, record) = writers.stop().await;
    let mut expected = expectations(&first_plan, &tags, &record);
    let mut acknowledged = record.acknowledged.len();

    // Away for longer than the log reaches back; then killed at moments of the snapshot's arrival.
    (writer_plan.value_bytes, writer_plan.think_time) = (16 << 10, Duration::from_millis(5));
    let writers = Writers::start_numbered(writer_plan, 1);
    networks.cut_off(victim)?;
    tokio::time::sleep(plan.long).await;
    networks.heal(victim)?;
    let healed = Instant::now();
    let address = cluster.addresses()[victim];
    let mut snapshots_installed = 0;
    for _ in 0..plan.kills_during_install {
        tokio::time::sleep(Duration::from_millis(rng.between(50, 1500))).await;
        snapshots_installed += snapshots_installed_at(address).await.unwrap_or(0);
        cluster.kill(victim);
        cluster.launch(victim)?;
    }
    cluster.wait_ready(victim).await?;
    cluster.wait_settled().await?;
    let long_recovery_ms = healed.elapsed().as_secs_f64() * 1e3;
    snapshots_installed += snapshots_installed_at(address).await.context("the victim's metrics")?;
    let (second_plan, tags, record) = writers.stop().await;
    expected.extend(expectations(&second_plan, &tags, &record));
    acknowledged += record.acknowledged.len();

    let ended = cluster.unexpectedly_ended();
    ensure!(ended.is_empty(), "{}", ended.join("; "));
    let expected = Rc::new(expected);
    let linearizable = verify(&cluster.addresses(), &expected, false).await;
    let own_copies = verify_own_copies(&cluster.addresses(), &expected).await;
    cluster.stop();
    let kills_during_install = plan.kills_during_install;
    Ok(CutOffReport {
        refusals,
        refusal_ms_worst,
        not_refused,
        shards_alive,
        shards,
        brief_recovery_ms,
        long_recovery_ms,
        kills_during_install,
        snapshots_installed,
        acknowledged,
        linearizable,
        own_copies,
    })
}

/// How many snapshots a node has installed since it was started.
async fn snapshots_installed_at(address: std::net::SocketAddr) -> Option<u64> {
    let reply = Wire::new(address, REQUEST_TIMEOUT).exchange("GET", "/metrics", b"").await.ok()?;
    let text = String::from_utf8(reply.body).ok()?;
    text.lines().find_map(|line| line.strip_prefix("flotilla_snapshots_installed_total "))?.parse().ok()
}

/// Refusals, what was not refused rightly, and how long the slowest took.
async fn ask_the_one_cut_off(address: std::net::SocketAddr) -> (Vec<String>, Vec<String>, f64) {
    let (mut refusals, mut wrong, mut worst_ms) = (Vec::new(), Vec::new(), 0.0f64);
    let mut wire = Wire::new(address, REQUEST_TIMEOUT);
    for number in 0..8 {
        let key = format!("cut-off-{number}");
        let asked = Instant::now();
        match wire.get(key.as_bytes(), false).await {
            Ok(found) => wrong.push(format!("it read {key}: {found:?}")),
            Err(error) => refusals.push(error.to_string()),
        }
        worst_ms = worst_ms.max(asked.elapsed().as_secs_f64() * 1e3);
        let asked = Instant::now();
        match wire.put(key.as_bytes(), b"1").await {
            WriteEnd::Done => wrong.push(format!("it wrote {key}")),
            end => refusals.push(format!("write: {end:?}")),
        }
        worst_ms = worst_ms.max(asked.elapsed().as_secs_f64() * 1e3);
    }
    wrong.extend(refusals.iter().filter(|words| words.starts_with("status") && !words.starts_with("status 50")).cloned());
    (refusals, wrong, worst_ms)
}
