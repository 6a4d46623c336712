//! `flotilla bench`: drives a cluster and says how fast it was, and what that cost the servers.

use super::{CommandError, Target, print_line};
use anyhow::Context;
use clap::{Args, ValueEnum};
use flotilla::client::Endpoint;
use flotilla::cluster_view::ClusterView;
use flotilla::load::{Distribution, LoadPlan, Mix, Protocol, ShardMap, preload, run};
use flotilla::text::parse_duration;
use flotilla_types::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// What to ask.
    #[arg(value_enum, default_value = "mixed")]
    workload: Workload,
    /// Reads in a mixed workload, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    read_percent: u8,
    /// Connections, spread over the endpoints.
    #[arg(long, short = 'c', default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Requests a second, whatever the server does (open loop); without it each connection sends when its last request is answered.
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// How long to measure.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s")]
    duration: Duration,
    /// Stop after this many requests.
    #[arg(long)]
    ops: Option<u64>,
    /// Sent before measuring begins.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s")]
    warmup: Duration,
    /// Different keys.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    keys: u64,
    /// How often each key is asked for.
    #[arg(long, value_enum, default_value = "uniform")]
    distribution: DistributionArg,
    /// Size of each value.
    #[arg(long, value_name = "SIZE", default_value = "256B")]
    value_size: ByteSize,
    /// Send each key to the node that leads its shard (all nodes must be endpoints).
    #[arg(long)]
    leader_direct: bool,
    /// Do not write every key before a workload with reads.
    #[arg(long)]
    no_load: bool,
    /// All nodes to spread the connections over; the same as --endpoint.
    #[arg(long, value_name = "URL,URL", value_delimiter = ',')]
    endpoints: Vec<Endpoint>,
    /// What everything drawn by chance comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Workload {
    Put,
    Get,
    Mixed,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DistributionArg {
    Uniform,
    Zipfian,
}

impl BenchArgs {
    pub(super) async fn run(self) -> Result<ExitCode, CommandError> {
        if self.rate.is_some_and(|rate| !(rate > 0.0 && rate <= 1e7)) {
            return Err(CommandError::Usage("--rate must be above 0 and at most 10,000,000".to_owned()));
        }
        let plan = self.plan().await?;
        let bar = progress_bar();
        if self.workload != Workload::Put && !self.no_load {
            bar.set_message("writing the keys");
            preload(&plan, |share| bar.set_position((share * 1000.0) as u64)).await?;
        }
        bar.set_message("measuring");
        let report = run(plan, |share, operations| {
            bar.set_position((share * 1000.0) as u64);
            bar.set_message(format!("{operations} operations"));
        })
        .await?;
        bar.finish_and_clear();
        if self.json {
            print_line(&serde_json::to_string_pretty(&report)?)?;
        } else {
            for line in report.lines() {
                print_line(&line)?;
            }
        }
        Ok(if report.operations == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    async fn plan(&self) -> Result<LoadPlan, CommandError> {
        let endpoints = if self.endpoints.is_empty() { &self.target.endpoint } else { &self.endpoints };
        let targets: Vec<SocketAddr> = endpoints.iter().map(resolve).collect::<Result<_, _>>()?;
        let leaders = if self.leader_direct {
            let body = self.target.client().fetch("/v1/cluster").await?;
            let view: ClusterView = serde_json::from_slice(&body).context("the answer of /v1/cluster")?;
            Some(ShardMap::of(&view, &targets).map_err(|why| CommandError::Usage(format!("--leader-direct: {why}")))?)
        } else {
            None
        };
        Ok(LoadPlan {
            targets,
            protocol: Protocol::Flotilla,
            connections: usize::from(self.connections),
            rate_per_s: self.rate,
            duration: self.duration,
            operations_max: self.ops,
            warmup: self.warmup,
            mix: match self.workload {
                Workload::Put => Mix::Put,
                Workload::Get => Mix::Get,
                Workload::Mixed => Mix::Mixed(self.read_percent),
            },
            key_count: self.keys,
            distribution: match self.distribution {
                DistributionArg::Uniform => Distribution::Uniform,
                DistributionArg::Zipfian => Distribution::Zipfian,
            },
            value_bytes: self.value_size.0 as usize,
            leaders,
            seed: self.seed,
        })
    }
}

fn resolve(endpoint: &Endpoint) -> anyhow::Result<SocketAddr> {
    let addresses = endpoint.authority.to_socket_addrs().with_context(|| format!("looking up {}", endpoint.authority))?;
    // Of `localhost`, the address a node listens on by default.
    let addresses: Vec<SocketAddr> = addresses.collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    first.copied().with_context(|| format!("{} has no address", endpoint.authority))
}

/// On a terminal only.
fn progress_bar() -> ProgressBar {
    let draw = if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} % {msg}").expect("the template is right");
    ProgressBar::with_draw_target(Some(1000), draw).with_style(style)
}
