//! Keys with a time to live, while nodes are killed and the wall clocks of single nodes leap by an hour forth or back:
//! once seen expired a key must stay so, and none may expire early by more than what is told.
//! Then very many of them, of which nothing may be left in the store.

use crate::cluster::{Cluster, loopback_specs};
use crate::wire::{Wire, WriteEnd};
use anyhow::{Context, ensure};
use flotilla::text::encode_key;
use flotilla_types::Rng;
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What `docs/api.md` tells: a key expires early by less.
const EARLY_MAX: Duration = Duration::from_secs(2);
/// Not told, but more than any failover and any slow machine should cost.
const LATE_MAX: Duration = Duration::from_secs(30);
/// Nodes tell each other their clocks once a second, and believe what they were told for three.
const BETWEEN_LEAPS: Duration = Duration::from_millis(3_500);
/// For so long after it was first seen absent a key is asked for.
const WATCHED_ON: Duration = Duration::from_secs(3);
const ASK_EVERY: Duration = Duration::from_millis(50);
const HOUR_S: i64 = 3_600;
/// How long the store may take to forget what has expired.
const SWEEP_TIME_MAX: Duration = Duration::from_secs(600);
const BATCH: u64 = 1_000;

/// How the run goes.
#[derive(Clone, Debug)]
pub struct ExpiryPlan {
    /// For how long clocks leap and nodes die.
    pub duration: Duration,
    /// Between two such events.
    pub event_every: Duration,
    /// Clients at once, each with a key after the other.
    pub clients: u64,
    /// Keys of the second part.
    pub keys: u64,
    /// How long those live.
    pub keys_ttl: Duration,
    /// Decides events, nodes and times.
    pub seed: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExpiryReport {
    /// Keys that were seen to expire.
    pub expired: u64,
    /// Leaps of single clocks by an hour.
    pub leaps: u64,
    /// Kills of nodes.
    pub kills: u64,
    /// The earliest before its time, in ms.
    pub early_ms_max: u64,
    /// The latest after it, while clocks leapt and nodes were dead, in ms.
    pub late_ms_max: u64,
    /// Keys of the second part.
    pub keys: u64,
    /// From the last of them until a scan showed none, beyond their time.
    pub gone_after_ms: u64,
    /// From then until the nodes' stores held none either.
    pub swept_after_ms: u64,
    /// Rows of each node's store before the keys were written, and after they were swept.
    pub rows: Vec<(u64, u64)>,
    /// What was wrong, in words.
    pub faults: Vec<String>,
}

impl ExpiryReport {
    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        [
            format!(
                "{} keys expired under {} leaps of clocks by an hour and {} kills: at most {} ms early, {} ms late",
                self.expired, self.leaps, self.kills, self.early_ms_max, self.late_ms_max
            ),
            format!(
                "{} keys with a time to live: out of sight {} ms after it, out of the stores {} ms later; rows before and after: {:?}",
                self.keys, self.gone_after_ms, self.swept_after_ms, self.rows
            ),
        ]
        .into_iter()
        .chain(self.faults.iter().take(20).cloned())
        .collect()
    }

    /// Whether nothing was wrong.
    pub fn is_fine(&self) -> bool {
        self.faults.is_empty()
    }
}

/// Runs it on three nodes with their data in `folder`.
///
/// # Errors
/// If the cluster does not start or does not come back, or there is no C compiler.
pub async fn run(binary: &Path, folder: &Path, plan: &ExpiryPlan) -> anyhow::Result<ExpiryReport> {
    let library = library_of_other_clocks(folder)?;
    let mut specs = loopback_specs(folder, 3)?;
    let mut clocks = Vec::new();
    for spec in &mut specs {
        let path = folder.join(format!("{}.clock", spec.name));
        fs::write(&path, 0i64.to_le_bytes())?;
        clocks.push(File::options().write(true).open(&path)?);
        spec.environment.push(("LD_PRELOAD".into(), library.clone().into()));
        spec.environment.push(("CLOCK_OFFSET_FILE".into(), path.into()));
    }
    let mut cluster = Cluster::start_of(binary, specs).await?;
    let mut report = ExpiryReport { keys: plan.keys, ..ExpiryReport::default() };
    leap_and_kill(&mut cluster, &clocks, plan, &mut report).await?;
    for clock in &clocks {
        set(clock, 0)?;
    }
    cluster.relaunch_missing().await?;
    sweep(binary, &mut cluster, plan, &mut report).await?;
    cluster.stop();
    Ok(report)
}

/// What the clients saw.
#[derive(Default)]
struct Seen {
    stop: Cell<bool>,
    expired: Cell<u64>,
    early_max: Cell<Duration>,
    late_max: Cell<Duration>,
    faults: RefCell<Vec<String>>,
}

async fn leap_and_kill(cluster: &mut Cluster, clocks: &[File], plan: &ExpiryPlan, report: &mut ExpiryReport) -> anyhow::Result<()> {
    let (seen, mut rng) = (Rc::new(Seen::default()), Rng::new(plan.seed));
    let clients: Vec<_> = (0..plan.clients)
        .map(|number| {
            let (seen, addresses, rng) = (seen.clone(), cluster.addresses(), rng.fork());
            tokio::task::spawn_local(async move { client(&seen, &addresses, number, rng).await })
        })
        .collect();
    let began = Instant::now();
    let mut dead = None;
    while began.elapsed() < plan.duration {
        tokio::time::sleep(plan.event_every).await;
        if rng.chance(1, 2) {
            // One clock at a time is wrong, also as the others last heard it: two that leap at once would be the majority.
            for clock in clocks {
                set(clock, 0)?;
            }
            tokio::time::sleep(BETWEEN_LEAPS).await;
            set(&clocks[rng.below(clocks.len() as u64) as usize], if rng.chance(1, 2) { HOUR_S } else { -HOUR_S })?;
            report.leaps += 1;
        } else if let Some(at) = dead.take() {
            cluster.launch(at)?;
            cluster.wait_ready(at).await?;
        } else {
            let at = rng.below(cluster.len() as u64) as usize;
            cluster.kill(at);
            dead = Some(at);
            report.kills += 1;
        }
    }
    if let Some(at) = dead {
        cluster.launch(at)?;
        cluster.wait_ready(at).await?;
    }
    seen.stop.set(true);
    for client in clients {
        client.await.context("a client")?;
    }
    report.expired = seen.expired.get();
    report.early_ms_max = seen.early_max.get().as_millis() as u64;
    report.late_ms_max = seen.late_max.get().as_millis() as u64;
    report.faults.append(&mut seen.faults.borrow_mut());
    ensure!(report.expired > 0, "no key was seen to expire");
    Ok(())
}

/// Writes a key, asks for it until it is gone and some time longer, and takes the next.
async fn client(seen: &Seen, addresses: &[SocketAddr], number: u64, mut rng: Rng) {
    for round in 0u64.. {
        if seen.stop.get() {
            return;
        }
        let key = format!("mortal/{number}/{round}");
        let ttl = Duration::from_millis(rng.between(1_500, 5_000));
        let mut wire = Wire::new(addresses[rng.below(addresses.len() as u64) as usize], Duration::from_secs(2));
        let began = Instant::now();
        if put(&mut wire, &key, ttl).await != WriteEnd::Done {
            tokio::time::sleep(ASK_EVERY).await;
            continue;
        }
        let acknowledged = Instant::now();
        let mut gone = None;
        while gone.is_none_or(|gone: Instant| gone.elapsed() < WATCHED_ON) {
            if gone.is_none() && acknowledged.elapsed() > ttl + LATE_MAX {
                seen.faults.borrow_mut().push(format!("{key} with {ttl:?} is there {LATE_MAX:?} after its time"));
                break;
            }
            tokio::time::sleep(ASK_EVERY).await;
            wire.turn_to(addresses[rng.below(addresses.len() as u64) as usize]);
            let value = wire.get(key.as_bytes(), false).await;
            let now = Instant::now();
            match (value, gone) {
                (Ok(None), None) => {
                    gone = Some(now);
                    seen.expired.set(seen.expired.get() + 1);
                    // It cannot have been given its deadline before it was asked for, nor after the answer.
                    let (early, late) = ((began + ttl).saturating_duration_since(now), now.saturating_duration_since(acknowledged + ttl));
                    seen.early_max.set(seen.early_max.get().max(early));
                    seen.late_max.set(seen.late_max.get().max(late));
                    if early > EARLY_MAX {
                        seen.faults.borrow_mut().push(format!("{key} with {ttl:?} expired {early:?} early"));
                    }
                }
                (Ok(Some(_)), Some(_)) => seen.faults.borrow_mut().push(format!("{key} was seen again after it had expired")),
                _ => {}
            }
        }
    }
}

async fn put(wire: &mut Wire, key: &str, ttl: Duration) -> WriteEnd {
    let path = format!("/v1/kv/{}?timeout=2s&ttl={}ms", encode_key(key.as_bytes()), ttl.as_millis());
    match wire.exchange("PUT", &path, b"x").await {
        Ok(reply) if reply.status == 201 => WriteEnd::Done,
        _ => WriteEnd::Unknown,
    }
}

/// Very many keys that expire, and what is left of them.
async fn sweep(binary: &Path, cluster: &mut Cluster, plan: &ExpiryPlan, report: &mut ExpiryReport) -> anyhow::Result<()> {
    let before = rows(binary, cluster).await?;
    let addresses = cluster.addresses();
    let next = Rc::new(Cell::new(0u64));
    let writers: Vec<_> = (0..8)
        .map(|number| {
            let (next, mut wire) = (next.clone(), Wire::new(addresses[number % addresses.len()], Duration::from_secs(60)));
            let (keys, ttl) = (plan.keys, plan.keys_ttl.as_millis());
            tokio::task::spawn_local(async move {
                while next.get() < keys {
                    let first = next.replace(next.get() + BATCH);
                    let op = |number| format!("{{\"put\":{{\"key\":\"mass/{number}\",\"value\":\"x\",\"ttl\":\"{ttl}ms\"}}}}");
                    let ops: Vec<String> = (first..keys.min(first + BATCH)).map(op).collect();
                    let body = format!("{{\"ops\":[{}]}}", ops.join(","));
                    let reply = wire.exchange("POST", "/v1/batch?timeout=60s", body.as_bytes()).await?;
                    let text = String::from_utf8_lossy(&reply.body);
                    ensure!(reply.status == 200 && !text.contains("\"code\""), "a batch was answered {}: {text:.300}", reply.status);
                }
                Ok(())
            })
        })
        .collect();
    for writer in writers {
        writer.await.context("a writer")??;
    }
    tokio::time::sleep(plan.keys_ttl).await;
    let began = Instant::now();
    let mut wire = Wire::new(addresses[0], Duration::from_secs(60));
    let gone = |body: &[u8]| body.starts_with(b"{\"items\":[]");
    while !wire.exchange("GET", "/v1/kv?prefix=mass/&keys_only=true&limit=1&timeout=60s", b"").await.is_ok_and(|reply| gone(&reply.body)) {
        ensure!(began.elapsed() < SWEEP_TIME_MAX, "keys are seen {SWEEP_TIME_MAX:?} after their time");
        tokio::time::sleep(ASK_EVERY).await;
    }
    report.gone_after_ms = began.elapsed().as_millis() as u64;
    let began = Instant::now();
    let mut sum = u64::MAX;
    // Until nothing is swept any more.
    loop {
        let swept = swept_keys(&addresses).await?;
        if swept == sum {
            break;
        }
        sum = swept;
        ensure!(began.elapsed() < SWEEP_TIME_MAX, "keys are swept {SWEEP_TIME_MAX:?} after their time");
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    report.swept_after_ms = began.elapsed().as_millis() as u64;
    let after = rows(binary, cluster).await?;
    report.rows = before.into_iter().zip(after).collect();
    if let Some((before, after)) = report.rows.iter().find(|(before, after)| *after > before + 1_000) {
        report.faults.push(format!("a node's store has {after} rows where {before} were before"));
    }
    Ok(())
}

/// The writes that the nodes have applied, over all of them.
async fn swept_keys(addresses: &[SocketAddr]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for address in addresses {
        let reply = Wire::new(*address, Duration::from_secs(10)).exchange("GET", "/metrics", b"").await?;
        let text = String::from_utf8(reply.body)?;
        let line = text.lines().find_map(|line| line.strip_prefix("flotilla_mutations_total ")).context("a metric is missing")?;
        sum += line.parse::<f64>()? as u64;
    }
    Ok(sum)
}

/// How many rows each node's store has: the nodes are stopped, their folders counted, and started again.
async fn rows(binary: &Path, cluster: &mut Cluster) -> anyhow::Result<Vec<u64>> {
    cluster.stop();
    let mut rows = Vec::new();
    for at in 0..cluster.len() {
        let output = Command::new(binary).arg("check").arg("--json").arg("--data-dir").arg(&cluster.spec(at).data_dir).output()?;
        let text = String::from_utf8(output.stdout)?;
        let summary: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default())
            .with_context(|| format!("what check printed: {text} {}", String::from_utf8_lossy(&output.stderr)))?;
        rows.push(summary["rows"].as_u64().context("check tells no rows")?);
    }
    cluster.relaunch_missing().await?;
    Ok(rows)
}

fn set(clock: &File, offset_s: i64) -> anyhow::Result<()> {
    clock.write_all_at(&offset_s.to_le_bytes(), 0).context("setting a clock")
}

/// Compiles a library by which a process sees a wall clock that is off by what a file says, in seconds.
fn library_of_other_clocks(folder: &Path) -> anyhow::Result<PathBuf> {
    const SOURCE: &str = r#"
        #include <fcntl.h>
        #include <stdlib.h>
        #include <sys/mman.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        static long none;
        static volatile long *offset;
        int clock_gettime(clockid_t clock, struct timespec *at) {
            int result = (int)syscall(SYS_clock_gettime, clock, at);
            if (clock != CLOCK_REALTIME || result != 0) return result;
            if (!offset) {
                const char *path = getenv("CLOCK_OFFSET_FILE");
                int file = path ? open(path, O_RDONLY) : -1;
                void *mapped = file < 0 ? MAP_FAILED : mmap(0, sizeof none, PROT_READ, MAP_SHARED, file, 0);
                offset = mapped == MAP_FAILED ? &none : mapped;
            }
            at->tv_sec += *offset;
            return result;
        }
    "#;
    let (source, library) = (folder.join("clocks.c"), folder.join("clocks.so"));
    fs::write(&source, SOURCE)?;
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output().context("running cc")?;
    ensure!(compiled.status.success(), "cc: {}", String::from_utf8_lossy(&compiled.stderr));
    Ok(library)
}
