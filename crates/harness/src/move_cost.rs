//! What it costs clients that a gigabyte moves: reads and writes in a closed loop before, while nodes that
//! joined get their share, and afterwards, all in one run on one machine.

use crate::cluster::{Cluster, loopback_specs};
use crate::kill::quantile;
use crate::operator::Operator;
use crate::scan_load::{ScanPlan, load as load_ballast};
use crate::wire::{Wire, WriteEnd};
use anyhow::{Context, ensure};
use flotilla::process_cpu::{processor_time_between, processor_times};
use flotilla::text::encode_key;
use flotilla_types::Rng;
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Nodes at the start.
const NODES: usize = 3;
const STEP_TIME_MAX: Duration = Duration::from_secs(540);
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Bars: what is left of the rate, and how much longer the slowest hundredth may take.
const RATE_SHARE_MIN: f64 = 0.7;
const P99_FACTOR_MAX: f64 = 3.0;

/// How the run goes.
#[derive(Clone, Debug)]
pub struct MoveCostPlan {
    /// Values that are there to be moved.
    pub ballast_keys: u64,
    /// Bytes of each.
    pub ballast_value_bytes: usize,
    /// Nodes that join.
    pub joining: usize,
    /// Clients, half of whose requests are reads.
    pub clients: usize,
    /// Keys that they read and write.
    pub keys: u64,
    /// Bytes of each of these.
    pub value_bytes: usize,
    /// How long it is measured before and after.
    pub quiet: Duration,
    /// What each node may send of replicas on the move; `None`: as it is without being asked for.
    pub bytes_per_second: Option<u64>,
}

/// What the clients saw in one part of the run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Part {
    /// How long it was.
    pub seconds: f64,
    /// Reads a second.
    pub reads_per_second: f64,
    /// Writes a second.
    pub writes_per_second: f64,
    /// Of reads: median and 99th percentile.
    pub read_ms: (f64, f64),
    /// The same of writes.
    pub write_ms: (f64, f64),
    /// Requests that failed.
    pub failed: u64,
    /// The share of the machine's time that others took from it.
    pub stolen: f64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct MoveCostReport {
    /// Before.
    pub quiet: Part,
    /// While moves were under way.
    pub moving: Part,
    /// Afterwards.
    pub after: Part,
    /// Seconds to write what was moved.
    pub load_seconds: f64,
    /// Copies that came to a joiner.
    pub copies: u64,
    /// Bytes of keys and values that the joiners hold.
    pub bytes_moved: u64,
    /// Moving against the mean of before and after: the rate of reads, and of writes.
    pub rate_shares: (f64, f64),
    /// The same of the 99th percentile.
    pub p99_factors: (f64, f64),
    /// What failed, in words, with its number.
    pub failures: BTreeMap<String, u64>,
    /// CPU seconds of all nodes a second, before and while moves were under way.
    pub servers_cpu: (f64, f64),
    /// Nodes that ended though nobody ended them.
    pub unexpectedly_ended: Vec<String>,
}

impl MoveCostReport {
    /// Whether the bars are kept.
    pub fn is_fine(&self) -> bool {
        let ((reads, writes), (read_p99, write_p99)) = (self.rate_shares, self.p99_factors);
        reads.min(writes) >= RATE_SHARE_MIN && read_p99.max(write_p99) < P99_FACTOR_MAX && self.unexpectedly_ended.is_empty()
    }

    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let part = |name: &str, part: &Part| {
            format!(
                "{name}, {:.0} s: {:.0} reads/s (median {:.1} ms, p99 {:.1} ms), {:.0} writes/s (median {:.1} ms, p99 {:.1} ms), {} failed, {:.0} % stolen",
                part.seconds,
                part.reads_per_second,
                part.read_ms.0,
                part.read_ms.1,
                part.writes_per_second,
                part.write_ms.0,
                part.write_ms.1,
                part.failed,
                part.stolen * 100.0
            )
        };
        let mib = self.bytes_moved as f64 / f64::from(1 << 20);
        let lines = vec![
            part("quiet", &self.quiet),
            part("moving", &self.moving),
            part("after", &self.after),
            format!(
                "{} copies with {mib:.0} MiB came to the joiners: {:.0} MiB/s; written in {:.0} s",
                self.copies,
                mib / self.moving.seconds,
                self.load_seconds
            ),
            format!(
                "while they did: {:.0} % of the reads and {:.0} % of the writes (70 % wanted); p99 of reads {:.1} times, of writes {:.1} times (below 3 wanted)",
                self.rate_shares.0 * 100.0,
                self.rate_shares.1 * 100.0,
                self.p99_factors.0,
                self.p99_factors.1
            ),
            format!("the nodes took {:.2} processors before, {:.2} meanwhile", self.servers_cpu.0, self.servers_cpu.1),
        ];
        let failures = self.failures.iter().map(|(words, count)| format!("{count} times {words}"));
        lines.into_iter().chain(failures).chain(self.unexpectedly_ended.iter().cloned()).collect()
    }
}

/// One answered request.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    took: Duration,
    is_read: bool,
    is_fine: bool,
}

/// What the clients share.
struct Load {
    addresses: Vec<SocketAddr>,
    keys: u64,
    value: Vec<u8>,
    samples: RefCell<Vec<Sample>>,
    failures: RefCell<BTreeMap<String, u64>>,
    stop: Cell<bool>,
}

/// A moment with what the machine had done by then.
struct Mark {
    at: Instant,
    machine: (u64, u64),
    servers: BTreeMap<u32, Duration>,
}

/// Runs it with all data in `folder`; `say` is told of each part.
///
/// # Errors
/// If the cluster does not start, or what joins does not get its share.
pub async fn run(binary: &Path, folder: &Path, plan: &MoveCostPlan, say: impl Fn(String)) -> anyhow::Result<MoveCostReport> {
    let specs = loopback_specs(folder, NODES + plan.joining)?;
    let mut cluster = Cluster::start_of(binary, specs[..NODES].to_vec()).await?;
    let mut operator = Operator::new(cluster.addresses());
    if let Some(limit) = plan.bytes_per_second {
        operator.ask_until("POST", &format!("/v1/cluster/rebalance?bytes_per_second={limit}"), &[200], STEP_TIME_MAX).await?;
    }
    let ballast = ScanPlan { keys: plan.ballast_keys, value_bytes: plan.ballast_value_bytes, stall: Duration::ZERO };
    let load_seconds = load_ballast(&cluster, &ballast).await?;
    operator.wait_even(NODES, STEP_TIME_MAX).await?;
    say(format!("{} values written in {load_seconds:.0} s", plan.ballast_keys));
    let load = Rc::new(Load {
        addresses: cluster.addresses(),
        keys: plan.keys,
        value: vec![b'v'; plan.value_bytes],
        samples: RefCell::default(),
        failures: RefCell::default(),
        stop: Cell::default(),
    });
    write_all(&load, plan.clients).await?;
    let clients: Vec<_> = (0..plan.clients).map(|client| tokio::task::spawn_local(ask(Rc::clone(&load), client))).collect();
    // As long again to get warm.
    tokio::time::sleep(plan.quiet / 3).await;
    let quiet_began = mark(&cluster);
    tokio::time::sleep(plan.quiet).await;
    let quiet_ended = mark(&cluster);
    say("quiet measured".into());

    for spec in &specs[NODES..] {
        let mut spec = spec.clone();
        spec.join = vec![specs[0].http];
        cluster.add(spec)?;
    }
    operator.wait_until(STEP_TIME_MAX, |view| !view.moves.is_empty()).await.context("nothing begins to move")?;
    let moving_began = mark(&cluster);
    let deadline = Instant::now() + STEP_TIME_MAX;
    loop {
        let view = operator.view().await?;
        if view.members().count() == cluster.len() && view.is_settled() {
            break;
        }
        ensure!(Instant::now() < deadline, "still {} moves after {} s", view.moves.len(), STEP_TIME_MAX.as_secs());
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
    let moving_ended = mark(&cluster);
    say(format!("moved in {:.0} s", (moving_ended.at - moving_began.at).as_secs_f64()));
    let view = operator.wait_even(cluster.len(), STEP_TIME_MAX).await?;
    let after_began = mark(&cluster);
    tokio::time::sleep(plan.quiet).await;
    let after_ended = mark(&cluster);
    load.stop.set(true);
    for client in clients {
        client.await.context("a client panicked")?;
    }
    let samples = load.samples.borrow();
    let quiet = part_of(&samples, &quiet_began, &quiet_ended);
    let moving = part_of(&samples, &moving_began, &moving_ended);
    let after = part_of(&samples, &after_began, &after_ended);
    let joiners = view.nodes.iter().filter(|node| specs[NODES..].iter().any(|spec| spec.name == node.name));
    let (copies, bytes_moved) =
        joiners.fold((0, 0), |(copies, bytes), node| (copies + node.replicas.unwrap_or(0), bytes + node.bytes.unwrap_or(0)));
    let unexpectedly_ended = cluster.unexpectedly_ended();
    cluster.stop();
    // The machine is not the same from one minute to the next.
    let share = |of: fn(&Part) -> f64| of(&moving) / ((of(&quiet) + of(&after)) / 2.0);
    Ok(MoveCostReport {
        load_seconds,
        copies,
        bytes_moved,
        rate_shares: (share(|part| part.reads_per_second), share(|part| part.writes_per_second)),
        p99_factors: (share(|part| part.read_ms.1), share(|part| part.write_ms.1)),
        servers_cpu: (cpu_between(&quiet_began, &quiet_ended), cpu_between(&moving_began, &moving_ended)),
        quiet,
        moving,
        after,
        failures: load.failures.borrow().clone(),
        unexpectedly_ended,
    })
}

async fn write_all(load: &Rc<Load>, clients: usize) -> anyhow::Result<()> {
    let share = |client: usize| {
        let load = Rc::clone(load);
        async move {
            let mut wire = Wire::new(load.addresses[client % load.addresses.len()], REQUEST_TIMEOUT);
            for number in (client as u64..load.keys).step_by(clients) {
                ensure!(wire.put(&key_of(number), &load.value).await == WriteEnd::Done, "key {number} was not written");
            }
            Ok(())
        }
    };
    let writing: Vec<_> = (0..clients).map(|client| tokio::task::spawn_local(share(client))).collect();
    for client in writing {
        client.await.context("a client panicked")??;
    }
    Ok(())
}

fn key_of(number: u64) -> Vec<u8> {
    format!("load/{number:08}").into_bytes()
}

/// One client: reads and writes by the toss of a coin, at one node as long as that serves it.
async fn ask(load: Rc<Load>, client: usize) {
    let mut rng = Rng::new(client as u64);
    let mut turn = client;
    let mut wire = Wire::new(load.addresses[turn % load.addresses.len()], REQUEST_TIMEOUT);
    while !load.stop.get() {
        let (key, is_read, asked) = (key_of(rng.below(load.keys)), rng.chance(1, 2), Instant::now());
        let path = format!("/v1/kv/{}?timeout={}ms", encode_key(&key), REQUEST_TIMEOUT.as_millis());
        let (method, body): (_, &[u8]) = if is_read { ("GET", b"") } else { ("PUT", &load.value) };
        let failure = match wire.exchange(method, &path, body).await {
            Ok(reply) if (200..300).contains(&reply.status) => None,
            Ok(reply) => Some(format!("{method}: {} {}", reply.status, String::from_utf8_lossy(&reply.body).trim_end())),
            Err(error) => Some(format!("{method}: {error}")),
        };
        let is_fine = failure.is_none();
        if let Some(words) = failure {
            *load.failures.borrow_mut().entry(words).or_default() += 1;
        }
        let at = Instant::now();
        load.samples.borrow_mut().push(Sample { at, took: at - asked, is_read, is_fine });
        if !is_fine {
            turn += 1;
            wire.turn_to(load.addresses[turn % load.addresses.len()]);
        }
    }
}

fn mark(cluster: &Cluster) -> Mark {
    let servers = processor_times(&cluster.process_ids().into_iter().collect());
    Mark { at: Instant::now(), machine: machine_times(), servers }
}

/// How many processors the nodes that ran all the time took.
fn cpu_between(from: &Mark, to: &Mark) -> f64 {
    processor_time_between(&from.servers, &to.servers).unwrap_or_default().as_secs_f64() / (to.at - from.at).as_secs_f64()
}

/// Of all processors together: the ticks that others took, and all ticks.
fn machine_times() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = text.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    (ticks.get(7).copied().unwrap_or(0), ticks.iter().take(8).sum())
}

fn part_of(samples: &[Sample], from: &Mark, to: &Mark) -> Part {
    let seconds = (to.at - from.at).as_secs_f64();
    let first = samples.partition_point(|sample| sample.at < from.at);
    let last = samples.partition_point(|sample| sample.at <= to.at);
    let within = &samples[first..last];
    let figures = |reads: bool| {
        let mut ms: Vec<f64> =
            within.iter().filter(|s| s.is_fine && s.is_read == reads).map(|sample| sample.took.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        (ms.len() as f64 / seconds, (quantile(&ms, 0.5), quantile(&ms, 0.99)))
    };
    let ((reads_per_second, read_ms), (writes_per_second, write_ms)) = (figures(true), figures(false));
    let all = (to.machine.1 - from.machine.1).max(1);
    Part {
        seconds,
        reads_per_second,
        writes_per_second,
        read_ms,
        write_ms,
        failed: within.iter().filter(|sample| !sample.is_fine).count() as u64,
        stolen: (to.machine.0 - from.machine.0) as f64 / all as f64,
    }
}
