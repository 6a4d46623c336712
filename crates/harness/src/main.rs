//! `flotilla-harness`: one subcommand a run. Figures go to standard output as text, or as JSON with
//! `--json`; it exits with 1 if the store broke a promise.
#![allow(clippy::disallowed_methods, reason = "outside of the core: clocks, files and processes are what this is about")]

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use flotilla::text::parse_duration;
use flotilla_harness::{
    binary::flotilla_binary, bulk, churn, compare_etcd, cut_off, damage, dashboard, expiry, gaps, grow, idle, kill, move_cost, moves, once,
    power, pressure, real_data, restart, scan_load, weather,
};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Breaks real clusters on purpose, and measures them.
#[derive(Debug, Parser)]
#[command(name = "flotilla-harness")]
struct Harness {
    #[command(subcommand)]
    run: Run,
    /// Print the report as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Keep all data and output here; without it, it lies in a temporary folder and is gone afterwards.
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Run {
    /// kill -9 of a node under load, again and again.
    Kill {
        #[arg(long, default_value_t = 20)]
        kills: usize,
        #[arg(long, value_parser = parse_duration, default_value = "3s")]
        quiet: Duration,
        #[arg(long, value_parser = parse_duration, default_value = "3s")]
        down: Duration,
        #[arg(long, default_value_t = 1)]
        writers_per_shard: usize,
        #[arg(long, value_parser = parse_duration, default_value = "20ms")]
        think_time: Duration,
        #[arg(long, value_parser = parse_duration, default_value = "5s")]
        timeout: Duration,
    },
    /// Power loss, each node on a file system of its own (root).
    Power {
        #[arg(long, default_value_t = 20)]
        all: usize,
        #[arg(long, default_value_t = 20)]
        one: usize,
        #[arg(long, value_parser = parse_duration, default_value = "3s")]
        load: Duration,
        /// Make syncs of the log do nothing: the run must then fail.
        #[arg(long)]
        no_sync: bool,
    },
    /// What apt knows of every package, written while a node is killed.
    RealData {
        #[arg(long, default_value_t = 64)]
        connections: usize,
        #[arg(long)]
        packages: Option<usize>,
    },
    /// The same through `import` and `export`, which are interrupted.
    Bulk {
        #[arg(long)]
        packages: Option<usize>,
    },
    /// A scan of very many keys, and a client that stops reading.
    Scan {
        #[arg(long, default_value_t = 1_000_000)]
        keys: u64,
        #[arg(long, default_value_t = 100)]
        value_bytes: usize,
        #[arg(long, value_parser = parse_duration, default_value = "60s")]
        stall: Duration,
    },
    /// Increments that are sent twice, while nodes are killed.
    Once {
        #[arg(long, default_value_t = 10_000)]
        increments: u64,
        #[arg(long, default_value_t = 32)]
        clients: usize,
        #[arg(long, value_parser = parse_duration, default_value = "3s")]
        kill_every: Duration,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Keys that expire, while clocks leap and nodes are killed.
    Expiry {
        #[arg(long, value_parser = parse_duration, default_value = "2m")]
        duration: Duration,
        #[arg(long, value_parser = parse_duration, default_value = "2s")]
        event_every: Duration,
        #[arg(long, default_value_t = 48)]
        clients: u64,
        #[arg(long, default_value_t = 1_000_000)]
        keys: u64,
        #[arg(long, value_parser = parse_duration, default_value = "2m")]
        keys_ttl: Duration,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Nodes join, leave and are forced out, and fail in every way meanwhile (root).
    Churn {
        #[arg(long, value_parser = parse_duration, default_value = "10m")]
        duration: Duration,
        #[arg(long, default_value_t = 5)]
        nodes: usize,
        #[arg(long, default_value_t = 16)]
        clients: u32,
        #[arg(long, default_value_t = 36)]
        keys: u32,
        #[arg(long, value_parser = parse_duration, default_value = "20ms")]
        think_time: Duration,
        #[arg(long, default_value_t = 20_000)]
        ballast_keys: u64,
        #[arg(long, value_parser = parse_duration, default_value = "4s")]
        change_every: Duration,
        #[arg(long, value_parser = parse_duration, default_value = "3s")]
        fault_every: Duration,
        #[arg(long, value_parser = parse_duration, default_value = "2m")]
        rest_time_max: Duration,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Replicas on the move, while the nodes they leave, those they come to and the controller are killed.
    Moves {
        #[arg(long, default_value_t = 60)]
        rounds: usize,
        #[arg(long, default_value_t = 5)]
        nodes: usize,
        #[arg(long, default_value_t = 24_000)]
        ballast_keys: u64,
        /// What each node may send of replicas on the move.
        #[arg(long, default_value_t = 8 << 20)]
        bytes_per_second: u64,
        #[arg(long, value_parser = parse_duration, default_value = "60s")]
        rest_time_max: Duration,
        #[arg(long, value_parser = parse_duration, default_value = "200ms")]
        think_time: Duration,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// How long each shard acknowledges no write when a node is stopped, and when one is killed.
    Gaps {
        #[arg(long, default_value_t = 20)]
        stops: usize,
        #[arg(long, value_parser = parse_duration, default_value = "4s")]
        window: Duration,
        #[arg(long, value_parser = parse_duration, default_value = "0ms")]
        think_time: Duration,
    },
    /// What it costs clients that a gigabyte moves.
    MoveCost {
        #[arg(long, default_value_t = 250_000)]
        ballast_keys: u64,
        #[arg(long, default_value_t = 4 << 10)]
        ballast_value_bytes: usize,
        /// Nodes that join three others.
        #[arg(long, default_value_t = 2)]
        joining: usize,
        #[arg(long, default_value_t = 64)]
        clients: usize,
        #[arg(long, default_value_t = 10_000)]
        keys: u64,
        #[arg(long, default_value_t = 256)]
        value_bytes: usize,
        #[arg(long, value_parser = parse_duration, default_value = "30s")]
        quiet: Duration,
        /// What each node may send of replicas on the move; else the cluster's own limit.
        #[arg(long)]
        bytes_per_second: Option<u64>,
    },
    /// A node cut off from the others (root).
    CutOff {
        #[arg(long, value_parser = parse_duration, default_value = "10s")]
        brief: Duration,
        #[arg(long, value_parser = parse_duration, default_value = "60s")]
        long: Duration,
        #[arg(long, default_value_t = 10)]
        kills: usize,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Flipped bits and cut files in a node's data-dir.
    Damage {
        /// Damages while the node is stopped.
        #[arg(long, default_value_t = 350)]
        stopped: usize,
        /// Damages while it runs.
        #[arg(long, default_value_t = 150)]
        running: usize,
        #[arg(long, default_value_t = 5)]
        at_once: usize,
        #[arg(long, default_value_t = 2000)]
        keys: usize,
        #[arg(long, default_value_t = 300)]
        long_keys: usize,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, value_parser = parse_duration, default_value = "60m")]
        time_max: Duration,
    },
    /// Starts that cannot go well.
    Weather {
        /// Also what takes minutes or needs root.
        #[arg(long)]
        slow: bool,
    },
    /// One node becomes three and five and three again, under load with real data.
    Grow {
        #[arg(long, default_value_t = 64)]
        clients: usize,
        #[arg(long)]
        packages: Option<usize>,
    },
    /// The dashboard in a real browser, while nodes are killed (Chromium).
    Dashboard {
        /// Keep pictures of the page here.
        #[arg(long, value_name = "DIR")]
        screenshots: Option<PathBuf>,
    },
    /// How long restarts take.
    Restart {
        #[arg(long, default_value_t = 1_000_000)]
        keys: u64,
    },
    /// What three idle nodes cost.
    Idle {
        #[arg(long, value_parser = parse_duration, default_value = "30s")]
        duration: Duration,
    },
    /// Far more than the cluster can do, beside idle, slow and deaf connections.
    Pressure {
        #[arg(long, value_parser = parse_duration, default_value = "120s")]
        duration: Duration,
        /// Times the measured capacity.
        #[arg(long, default_value_t = 50.0)]
        factor: f64,
        #[arg(long, default_value_t = 2000)]
        flooding: usize,
        #[arg(long, default_value_t = 10_000)]
        idle: usize,
        #[arg(long, default_value_t = 500)]
        dripping: usize,
        #[arg(long, default_value_t = 24)]
        large: usize,
        #[arg(long, default_value_t = 300)]
        deaf: usize,
    },
    /// The same load on Flotilla and on etcd.
    CompareEtcd {
        #[arg(long, default_value_t = 5)]
        runs: usize,
        #[arg(long, value_parser = parse_duration, default_value = "10s")]
        duration: Duration,
        #[arg(long, value_delimiter = ',', default_values_t = [64, 256])]
        connections: Vec<usize>,
        #[arg(long, default_value_t = 10_000)]
        keys: u64,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let harness = Harness::parse();
    let binary = flotilla_binary()?;
    let temporary = match &harness.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
            None
        }
        None => Some(tempfile::Builder::new().prefix("flotilla-harness-").tempdir().context("making a temporary folder")?),
    };
    let folder = temporary.as_ref().map_or_else(|| harness.dir.clone().unwrap_or_default(), |folder| folder.path().to_path_buf());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Whoever is interrupted must still stop its nodes and take its networks and disks away.
    let fine = tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::select! {
            fine = run(harness.run, harness.json, &binary, &folder) => fine,
            interrupted = interrupted() => interrupted.and_then(|()| bail!("interrupted")),
        }
    })?;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ends when the program is asked to end.
async fn interrupted() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminate.recv() => Ok(()),
    }
}

/// Says whether the store kept its promises.
async fn run(run: Run, json: bool, binary: &Path, folder: &Path) -> anyhow::Result<bool> {
    match run {
        Run::Kill { kills, quiet, down, writers_per_shard, think_time, timeout } => {
            let plan = kill::KillPlan { kills, quiet, down, writers_per_shard, think_time, timeout };
            let report = kill::run(binary, folder, &plan).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::Power { all, one, load, no_sync } => {
            let plan = power::PowerPlan { cuts_of_all: all, cuts_of_one: one, load, no_sync };
            let report = power::run_power(binary, folder, &plan).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::RealData { connections, packages } => {
            let report = real_data::run(binary, folder, &real_data::RealDataPlan { connections, packages_max: packages }).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.verdict.is_fine())
        }
        Run::Bulk { packages } => {
            let report = bulk::run(binary, folder, packages).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::Scan { keys, value_bytes, stall } => {
            let report = scan_load::run(binary, folder, &scan_load::ScanPlan { keys, value_bytes, stall }).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::Once { increments, clients, kill_every, seed } => {
            let report = once::run(binary, folder, &once::OncePlan { increments, clients, kill_every, seed }).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::Expiry { duration, event_every, clients, keys, keys_ttl, seed } => {
            let plan = expiry::ExpiryPlan { duration, event_every, clients, keys, keys_ttl, seed };
            let report = expiry::run(binary, folder, &plan).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::Churn { duration, nodes, clients, keys, think_time, ballast_keys, change_every, fault_every, rest_time_max, seed } => {
            let plan = churn::ChurnPlan {
                duration,
                nodes,
                clients,
                keys,
                think_time,
                ballast_keys,
                change_every,
                fault_every,
                rest_time_max,
                seed,
            };
            let report = churn::run(binary, folder, &plan).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::Moves { rounds, nodes, ballast_keys, bytes_per_second, rest_time_max, think_time, seed } => {
            let plan = moves::MovesPlan { rounds, nodes, ballast_keys, bytes_per_second, rest_time_max, think_time, seed };
            let report = moves::run(binary, folder, &plan, |line| eprintln!("{line}")).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::Gaps { stops, window, think_time } => {
            let plan = gaps::GapsPlan { stops, window, think_time };
            let report = gaps::run(binary, folder, &plan, |line| eprintln!("{line}")).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::MoveCost { ballast_keys, ballast_value_bytes, joining, clients, keys, value_bytes, quiet, bytes_per_second } => {
            let plan =
                move_cost::MoveCostPlan { ballast_keys, ballast_value_bytes, joining, clients, keys, value_bytes, quiet, bytes_per_second };
            let report = move_cost::run(binary, folder, &plan, |line| eprintln!("{line}")).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::CutOff { brief, long, kills, seed } => {
            let plan = cut_off::CutOffPlan { brief, long, kills_during_install: kills, seed };
            let report = cut_off::run_cut_off(binary, folder, &plan).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::Damage { stopped, running, at_once, keys, long_keys, seed, time_max } => {
            let plan = damage::DamagePlan { stopped, running, at_once, keys, long_keys, seed, time_max };
            let report = damage::run(binary, folder, &plan, |line| eprintln!("{line}")).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::Weather { slow } => {
            let cases = weather::run(binary, folder, slow).await?;
            show_cases(&cases, json)
        }
        Run::Dashboard { screenshots } => {
            let cases = dashboard::run(binary, folder, &dashboard::DashboardPlan { screenshots }).await?;
            show_cases(&cases, json)
        }
        Run::Grow { clients, packages } => {
            let plan = grow::GrowPlan { clients, packages_max: packages };
            let report = grow::run(binary, folder, &plan, |line| eprintln!("{line}")).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::Restart { keys } => {
            let report = restart::run(binary, folder, keys).await?;
            show(&report, &report.lines(), json)?;
            Ok(true)
        }
        Run::Idle { duration } => {
            let report = idle::run(binary, folder, duration).await?;
            show(&report, &report.lines(), json)?;
            Ok(true)
        }
        Run::Pressure { duration, factor, flooding, idle, dripping, large, deaf } => {
            let plan = pressure::PressurePlan { duration, factor, flooding, idle, dripping, large, deaf };
            let report = pressure::run(binary, folder, &plan).await?;
            show(&report, &report.lines(), json)?;
            Ok(report.is_fine())
        }
        Run::CompareEtcd { runs, duration, connections, keys } => {
            let plan = compare_etcd::ComparePlan { runs, duration, connections, keys };
            let report = compare_etcd::run(binary, folder, &plan, |line| eprintln!("{line}")).await?;
            show(&report, &report.lines(), json)?;
            Ok(true)
        }
    }
}

/// Shows them, and says whether all are fine.
fn show_cases(cases: &[weather::Case], json: bool) -> anyhow::Result<bool> {
    let line = |case: &weather::Case| format!("{}  {}: {}", if case.fine { "fine " } else { "WRONG" }, case.name, case.words);
    show(&cases, &cases.iter().map(line).collect::<Vec<_>>(), json)?;
    Ok(cases.iter().all(|case| case.fine))
}

fn show(report: &impl Serialize, lines: &[String], json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        println!("{}", lines.join("\n"));
    }
    Ok(())
}
