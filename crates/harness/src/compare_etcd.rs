//! Flotilla beside etcd: three members each, on this machine, the same load by the same generator
//! over HTTP/1.1 with keep-alive: the same connections, keys, values, and linearizable reads. etcd is
//! driven by the JSON gateway of its v3 API, which costs it more than its native gRPC would; the
//! report says so. Runs of the two take turns, so that a slow moment of the machine meets both, and begin when
//! neither works any more.

use crate::cluster::Cluster;
use crate::kill::quantile;
use anyhow::{Context, bail};
use flotilla::client::{Client, Endpoint};
use flotilla::load::{Distribution, LoadPlan, LoadReport, Mix, Protocol, preload, run as run_load};
use flotilla::local_cluster::{free_addresses, spawn_bound};
use flotilla::process_cpu::{listening_processes, processor_time_between, processor_times};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How the comparison goes.
#[derive(Clone, Debug)]
pub struct ComparePlan {
    /// Runs of each store and load.
    pub runs: usize,
    /// How long each measures.
    pub duration: Duration,
    /// Connections, one load each.
    pub connections: Vec<usize>,
    /// Different keys.
    pub keys: u64,
}

/// Medians of one store under one load.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Medians {
    /// Operations a second.
    pub operations_per_s: f64,
    /// Median latency, in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile, in milliseconds.
    pub p99_ms: f64,
    /// Processor seconds of all three servers for 100,000 operations.
    pub server_cpu_s_per_100k: f64,
    /// Failures in all runs together.
    pub failures: u64,
}

/// One load.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// `put` or `get`.
    pub workload: &'static str,
    /// Connections.
    pub connections: usize,
    /// Flotilla's medians.
    pub flotilla: Medians,
    /// etcd's medians.
    pub etcd: Medians,
    /// Flotilla's operations a second over etcd's.
    pub throughput_ratio: f64,
    /// Every run.
    pub flotilla_runs: Vec<LoadReport>,
    /// Every run.
    pub etcd_runs: Vec<LoadReport>,
}

/// The whole comparison.
#[derive(Clone, Debug, Serialize)]
pub struct CompareReport {
    /// What `etcd --version` says first.
    pub etcd_version: String,
    /// Processors of this machine.
    pub processors: usize,
    /// Runs of each.
    pub runs: usize,
    /// The loads.
    pub comparisons: Vec<Comparison>,
}

impl CompareReport {
    /// A table for `docs/benchmarks.md`.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("Flotilla and {}, three members each on {} processors, medians of {} runs, 256-byte values, etcd by its JSON gateway:", self.etcd_version, self.processors, self.runs),
            String::new(),
            "| load | connections | Flotilla op/s | etcd op/s | ratio | Flotilla p50 / p99 ms | etcd p50 / p99 ms | Flotilla CPU s/100k | etcd CPU s/100k |".to_owned(),
            "|---|---|---|---|---|---|---|---|---|".to_owned(),
        ];
        lines.extend(self.comparisons.iter().map(|c| {
            let (f, e) = (&c.flotilla, &c.etcd);
            format!(
                "| {} | {} | {:.0} | {:.0} | {:.2} | {:.2} / {:.2} | {:.2} / {:.2} | {:.2} | {:.2} |",
                c.workload,
                c.connections,
                f.operations_per_s,
                e.operations_per_s,
                c.throughput_ratio,
                f.p50_ms,
                f.p99_ms,
                e.p50_ms,
                e.p99_ms,
                f.server_cpu_s_per_100k,
                e.server_cpu_s_per_100k
            )
        }));
        let failures: u64 = self.comparisons.iter().map(|c| c.flotilla.failures + c.etcd.failures).sum();
        if failures > 0 {
            lines.push(format!("\n{failures} requests failed in these runs."));
        }
        lines
    }
}

/// Three members of etcd; killed when dropped.
struct Etcd {
    members: Vec<Child>,
    clients: Vec<SocketAddr>,
}

impl Etcd {
    async fn start(folder: &Path) -> anyhow::Result<Etcd> {
        let addresses = free_addresses(6, None)?;
        let (clients, peers) = addresses.split_at(3);
        let cluster: Vec<String> = peers.iter().enumerate().map(|(at, peer)| format!("e{at}=http://{peer}")).collect();
        let mut etcd = Etcd { members: Vec::new(), clients: clients.to_vec() };
        for at in 0..3 {
            let (client, peer) = (format!("http://{}", clients[at]), format!("http://{}", peers[at]));
            let output = File::create(folder.join(format!("e{at}.output")))?;
            let mut command = Command::new("etcd");
            command.args(["--name", &format!("e{at}"), "--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"]);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args(["--logger", "zap", "--log-level", "error", "--data-dir"]).arg(folder.join(format!("e{at}")));
            command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
            etcd.members.push(spawn_bound(&mut command).context("starting etcd (Debian: etcd-server)")?);
        }
        let client = Client::new(vec![Endpoint { authority: clients[2].to_string() }], Duration::from_secs(2));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !client.fetch("/health").await.is_ok_and(|body| body.starts_with(br#"{"health":"true"#)) {
            if Instant::now() > deadline {
                bail!("etcd is not healthy after a minute");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(etcd)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// Runs it, with the data of both in `folder`; `tell` is given each run as it ends.
///
/// # Errors
/// If one of the stores does not start, or a key cannot be written.
pub async fn run(binary: &Path, folder: &Path, plan: &ComparePlan, tell: impl Fn(String)) -> anyhow::Result<CompareReport> {
    let version = Command::new("etcd").arg("--version").output().context("running etcd (Debian: etcd-server)")?;
    let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or("etcd").replace("etcd Version:", "etcd");
    let etcd = Etcd::start(folder).await?;
    let mut cluster = Cluster::start(binary, folder).await?;
    let load = |protocol, mix, connections| LoadPlan {
        targets: if protocol == Protocol::Flotilla { cluster.addresses() } else { etcd.clients.clone() },
        protocol,
        connections,
        rate_per_s: None,
        duration: plan.duration,
        operations_max: None,
        warmup: Duration::from_secs(1),
        mix,
        key_count: plan.keys,
        distribution: Distribution::Uniform,
        value_bytes: 256,
        leaders: None,
        seed: 1,
    };
    for protocol in [Protocol::Flotilla, Protocol::EtcdGateway] {
        preload(&load(protocol, Mix::Put, 256), |_| ()).await?;
    }
    let servers = listening_processes(&[cluster.addresses(), etcd.clients.clone()].concat());
    let mut comparisons = Vec::new();
    for (workload, mix) in [("put", Mix::Put), ("get", Mix::Get)] {
        for &connections in &plan.connections {
            let (mut flotilla_runs, mut etcd_runs) = (Vec::new(), Vec::new());
            for round in 0..plan.runs {
                for (name, protocol, runs) in
                    [("flotilla", Protocol::Flotilla, &mut flotilla_runs), ("etcd", Protocol::EtcdGateway, &mut etcd_runs)]
                {
                    wait_at_rest(&servers).await;
                    let report = run_load(load(protocol, mix, connections), |_, _| ()).await?;
                    tell(format!("{workload}, {connections} connections, run {}: {name} {:.0} op/s", round + 1, report.operations_per_s));
                    runs.push(report);
                }
            }
            let (flotilla, etcd) = (medians(&flotilla_runs), medians(&etcd_runs));
            let throughput_ratio = flotilla.operations_per_s / etcd.operations_per_s.max(1e-9);
            comparisons.push(Comparison { workload, connections, flotilla, etcd, throughput_ratio, flotilla_runs, etcd_runs });
        }
    }
    cluster.stop();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    Ok(CompareReport { etcd_version: version, processors, runs: plan.runs, comparisons })
}

/// Waits until none of the servers works off what the last load left behind, so that nobody pays for the
/// other's; half a minute at most.
async fn wait_at_rest(servers: &BTreeSet<u32>) {
    const LOOK: Duration = Duration::from_millis(500);
    const AT_REST: Duration = Duration::from_millis(100);
    let mut before = processor_times(servers);
    for _ in 0..60 {
        tokio::time::sleep(LOOK).await;
        let now = processor_times(servers);
        if processor_time_between(&before, &now).is_none_or(|spent| spent <= AT_REST) {
            return;
        }
        before = now;
    }
}

fn medians(runs: &[LoadReport]) -> Medians {
    let median = |figure: &dyn Fn(&LoadReport) -> f64| {
        let mut figures: Vec<f64> = runs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        quantile(&figures, 0.5)
    };
    Medians {
        operations_per_s: median(&|run| run.operations_per_s),
        p50_ms: median(&|run| run.latency.p50),
        p99_ms: median(&|run| run.latency.p99),
        server_cpu_s_per_100k: median(&|run| run.server_cpu_s_per_100k.unwrap_or(0.0)),
        failures: runs.iter().map(LoadReport::failure_count).sum(),
    }
}
