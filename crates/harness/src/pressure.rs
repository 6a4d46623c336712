//! Many times what the cluster can do, offered for minutes, beside everything that costs a server memory for nothing: idle
//! connections, heads that drip in, large values, clients that ask for them and do not read.
//!
//! Nobody may be served well then. But memory stays under a bound that follows from the configuration, whoever is refused is
//! told so (429 or 503 with `Retry-After`, and of a write that it was not applied), and small requests go on being served.

use crate::cluster::Cluster;
use crate::pressure_client::{AnswerHead, Raw, connect_small, tcp_memory_mib};
use flotilla::process_cpu::resident_bytes;
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::sleep;

const MIB: u64 = 1 << 20;
/// Of each large value.
const LARGE_BYTES: usize = 8 << 20;
/// Of each small one.
const SMALL_BYTES: usize = 100;
/// A connection that floods writes so many requests at once.
const FLOOD_DEPTH: usize = 32;
/// Clients that ask for small things and wait for each answer.
const SMALL_CLIENTS: usize = 16;
/// What a small client waits between two requests.
const THINK_TIME: Duration = Duration::from_millis(50);
/// A small request may take this long; the server is told so.
const SMALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How hard.
#[derive(Clone, Debug)]
pub struct PressurePlan {
    /// How long the pressure lasts.
    pub duration: Duration,
    /// How many times the measured capacity is offered.
    pub factor: f64,
    /// Connections that offer it, without waiting for answers.
    pub flooding: usize,
    /// Connections that do nothing.
    pub idle: usize,
    /// Connections whose head drips in.
    pub dripping: usize,
    /// Connections that write and read large values.
    pub large: usize,
    /// Connections that ask for large values and do not read.
    pub deaf: usize,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PressureReport {
    /// Small writes a second that the cluster answers to 64 clients that wait for each answer.
    pub capacity_per_s: f64,
    /// Requests that fell due, and those of them that sockets took.
    pub offered: u64,
    /// Sent by the flood.
    pub sent: u64,
    /// Answers to the flood by status, and by code if they were refusals.
    pub flood_answers: BTreeMap<String, u64>,
    /// Answers to large requests.
    pub large_answers: BTreeMap<String, u64>,
    /// Answers to small requests; `none`: no answer came.
    pub small_answers: BTreeMap<String, u64>,
    /// Small requests, in milliseconds.
    pub small_p50_ms: f64,
    /// The same.
    pub small_p99_ms: f64,
    /// The most memory of each node, before and under pressure.
    pub resident_mib_before: Vec<u64>,
    /// The same.
    pub resident_mib_max: Vec<u64>,
    /// What it may be.
    pub resident_mib_bound: u64,
    /// The most memory that the kernel had for TCP, of nodes and clients together.
    pub tcp_mib_max: u64,
    /// Idle connections that were there at the end.
    pub idle_alive: usize,
    /// Refusals that lack what a refusal must say.
    pub bad_refusals: Vec<String>,
    /// Nodes that ended.
    pub ended: Vec<String>,
    /// Whether a write and a read worked as ever right after.
    pub recovered: bool,
    /// Of small requests, those that must succeed at least.
    pub small_share_floor: f64,
}

impl PressureReport {
    /// Whether all was kept.
    pub fn is_fine(&self) -> bool {
        self.bad_refusals.is_empty()
            && self.ended.is_empty()
            && self.recovered
            && self.resident_mib_max.iter().all(|mib| *mib <= self.resident_mib_bound)
            && self.small_share() >= self.small_share_floor
    }

    /// Of small requests, those that were served.
    pub fn small_share(&self) -> f64 {
        let all: u64 = self.small_answers.values().sum();
        let served: u64 = self.small_answers.iter().filter(|(answer, _)| answer.starts_with('2')).map(|(_, count)| count).sum();
        served as f64 / all.max(1) as f64
    }

    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let list = |figures: &[u64]| figures.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let mut lines = vec![
            format!("capacity: {:.0} small writes a second; offered {}, taken by sockets {}", self.capacity_per_s, self.offered, self.sent),
            format!("answers to the flood: {}", counts(&self.flood_answers)),
            format!("answers to large requests: {}", counts(&self.large_answers)),
            format!(
                "small requests: {}; {:.2} % served, floor {:.0} %; p50 {:.0} ms, p99 {:.0} ms",
                counts(&self.small_answers),
                100.0 * self.small_share(),
                100.0 * self.small_share_floor,
                self.small_p50_ms,
                self.small_p99_ms
            ),
            format!(
                "resident MiB: {} before, {} at most; the bound is {}; the kernel's for TCP: {} at most",
                list(&self.resident_mib_before),
                list(&self.resident_mib_max),
                self.resident_mib_bound,
                self.tcp_mib_max
            ),
            format!("{} idle connections at the end; served as ever afterwards: {}", self.idle_alive, self.recovered),
        ];
        lines.extend(self.bad_refusals.iter().take(5).map(|line| format!("BAD REFUSAL: {line}")));
        lines.extend(self.ended.iter().map(|line| format!("ENDED: {line}")));
        lines
    }
}

fn counts(answers: &BTreeMap<String, u64>) -> String {
    let each: Vec<String> = answers.iter().map(|(answer, count)| format!("{answer} {count} times")).collect();
    if each.is_empty() { "none".to_owned() } else { each.join(", ") }
}

/// What the connections of a run count together.
#[derive(Default)]
struct Tally {
    report: RefCell<PressureReport>,
    small_ms: RefCell<Vec<f64>>,
    idle_alive: Cell<usize>,
}

impl Tally {
    fn note(&self, answers: impl FnOnce(&mut PressureReport) -> &mut BTreeMap<String, u64>, answer: &AnswerHead, is_write: bool) {
        let mut report = self.report.borrow_mut();
        let kind = if answer.code.is_empty() { answer.status.to_string() } else { format!("{} {}", answer.status, answer.code) };
        *answers(&mut report).entry(kind).or_default() += 1;
        let refusal_lacks = matches!(answer.status, 429 | 503) && (!answer.has_retry_after || (is_write && !answer.not_applied));
        if refusal_lacks || (is_write && answer.status >= 400 && !answer.has_outcome) {
            let line = format!("{} without what it must say: {}", answer.status, answer.text);
            report.bad_refusals.push(line);
        }
    }
}

/// What a node may hold with the default configuration: what `docs/operations.md` adds up, in MiB.
fn resident_bound(connections: usize) -> u64 {
    let requests = 2 * 256;
    let (answers, scans) = (256, 256);
    let links = 2 * 2 * 64;
    let (unapplied, entries, program) = (64, 128, 64);
    let (cache, memtables, merges, freed) = (32, 256, 256, 256);
    let store = cache + memtables + merges;
    requests + answers + scans + links + unapplied + entries + store + freed + program + connections as u64 * 90 / 1024
}

/// Runs it on three nodes with their data in `folder`.
///
/// # Errors
/// If the cluster does not start, or this process cannot open as many connections.
pub async fn run(binary: &Path, folder: &Path, plan: &PressurePlan) -> anyhow::Result<PressureReport> {
    let mut cluster = Cluster::start(binary, folder).await?;
    let addresses = cluster.addresses();
    let tally = Rc::new(Tally::default());
    let capacity = capacity(&addresses).await;
    let ids = cluster.process_ids();
    let resident = || ids.iter().map(|id| resident_bytes(*id).unwrap_or(0) / MIB).collect::<Vec<u64>>();
    let before = resident();

    let until = Instant::now() + plan.duration;
    let mut tasks = JoinSet::new();
    let at = |number: usize| addresses[number % addresses.len()];
    let connections = plan.idle + plan.flooding + plan.dripping + plan.large + plan.deaf;
    // Connections that are slow to come would be refused by the kernel when all come at once.
    for number in 0..plan.idle {
        tasks.spawn_local(stay_idle(at(number), until, tally.clone()));
        if number % 256 == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
    for number in 0..plan.dripping {
        tasks.spawn_local(drip(at(number), until));
    }
    for number in 0..plan.large {
        tasks.spawn_local(ask_large(at(number), number, until, tally.clone()));
    }
    for number in 0..plan.deaf {
        tasks.spawn_local(ask_and_not_read(at(number), number % plan.large.max(1), until));
    }
    let rate = capacity * plan.factor / plan.flooding.max(1) as f64;
    for number in 0..plan.flooding {
        tasks.spawn_local(flood(at(number), number, rate, until, tally.clone()));
    }
    for number in 0..SMALL_CLIENTS {
        tasks.spawn_local(ask_small(at(number), number, until, tally.clone()));
    }
    let (mut resident_max, mut tcp_mib_max) = (before.clone(), 0);
    while Instant::now() < until {
        sleep(Duration::from_millis(250)).await;
        for (most, now) in resident_max.iter_mut().zip(resident()) {
            *most = now.max(*most);
        }
        tcp_mib_max = tcp_memory_mib().max(tcp_mib_max);
    }
    let idle_alive = tally.idle_alive.get();
    tasks.shutdown().await;

    let ended = cluster.unexpectedly_ended();
    let recovered = ended.is_empty() && serves_again(&addresses).await;
    cluster.stop();
    let mut small_ms = tally.small_ms.take();
    small_ms.sort_by(f64::total_cmp);
    let percentile = |share: f64| small_ms.get(((small_ms.len() as f64 * share) as usize).min(small_ms.len().saturating_sub(1))).copied();
    Ok(PressureReport {
        capacity_per_s: capacity,
        offered: (capacity * plan.factor * plan.duration.as_secs_f64()) as u64,
        small_p50_ms: percentile(0.5).unwrap_or(f64::NAN),
        small_p99_ms: percentile(0.99).unwrap_or(f64::NAN),
        resident_mib_before: before,
        resident_mib_max: resident_max,
        tcp_mib_max,
        resident_mib_bound: resident_bound(connections / addresses.len()),
        idle_alive,
        ended,
        recovered,
        small_share_floor: 0.8,
        ..tally.report.take()
    })
}

fn put(key: &str, value: &[u8], query: &str) -> Vec<u8> {
    let head = format!("PUT /v1/kv/{key}{query} HTTP/1.1\r\nhost: pressure\r\ncontent-length: {}\r\n\r\n", value.len());
    [head.as_bytes(), value].concat()
}

fn get(key: &str, query: &str) -> Vec<u8> {
    format!("GET /v1/kv/{key}{query} HTTP/1.1\r\nhost: pressure\r\n\r\n").into_bytes()
}

/// Small writes a second, of 64 clients that wait for each answer.
async fn capacity(addresses: &[SocketAddr]) -> f64 {
    let (done, seconds) = (Rc::new(Cell::new(0u64)), 3.0);
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let mut tasks = JoinSet::new();
    for number in 0..64 {
        let (address, done) = (addresses[number % addresses.len()], done.clone());
        tasks.spawn_local(async move {
            let mut raw = Raw::new(address);
            for round in 0u64.. {
                if Instant::now() >= until {
                    return;
                }
                let request = put(&format!("small/{number}/{}", round % 100), &[b's'; SMALL_BYTES], "");
                if raw.exchange(&request).await.is_ok_and(|answer| answer.status < 300) {
                    done.set(done.get() + 1);
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    done.get() as f64 / seconds
}

/// Keeps a connection and says nothing; the server may end it for that.
async fn stay_idle(address: SocketAddr, until: Instant, tally: Rc<Tally>) {
    while Instant::now() < until {
        let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else {
            sleep(Duration::from_millis(200)).await;
            continue;
        };
        tally.idle_alive.set(tally.idle_alive.get() + 1);
        let _ = stream.read(&mut [0; 512]).await;
        tally.idle_alive.set(tally.idle_alive.get() - 1);
        sleep(Duration::from_millis(100)).await;
    }
}

/// Sends a head byte by byte, slowly.
async fn drip(address: SocketAddr, until: Instant) {
    while Instant::now() < until {
        if let Ok(mut stream) = tokio::net::TcpStream::connect(address).await {
            for byte in b"PUT /v1/kv/drip HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'x')) {
                if stream.write_all(&[*byte]).await.is_err() || Instant::now() >= until {
                    break;
                }
                sleep(Duration::from_secs(1)).await;
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Writes a large value and reads it, in turns.
async fn ask_large(address: SocketAddr, number: usize, until: Instant, tally: Rc<Tally>) {
    let (key, value) = (format!("large/{number}"), vec![b'l'; LARGE_BYTES]);
    let (put, get) = (put(&key, &value, "?timeout=20s"), get(&key, "?timeout=20s"));
    let mut raw = Raw::new(address);
    while Instant::now() < until {
        for (request, is_write) in [(&put, true), (&get, false)] {
            match raw.exchange(request).await {
                Ok(answer) => tally.note(|report| &mut report.large_answers, &answer, is_write),
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// Asks for a large value and reads nothing of it.
async fn ask_and_not_read(address: SocketAddr, number: usize, until: Instant) {
    while Instant::now() < until {
        if let Ok(mut stream) = connect_small(address).await
            && stream.write_all(&get(&format!("large/{number}"), "")).await.is_ok()
        {
            // Longer than a server may be expected to wait; then a new one.
            sleep(Duration::from_secs(20)).await;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Offers small writes at a rate, whatever comes of those before.
async fn flood(address: SocketAddr, number: usize, rate: f64, until: Instant, tally: Rc<Tally>) {
    let requests: Vec<u8> =
        (0..FLOOD_DEPTH).flat_map(|key| put(&format!("small/{number}/{key}"), &[b'f'; SMALL_BYTES], "?timeout=2s")).collect();
    let interval = Duration::from_secs_f64(FLOOD_DEPTH as f64 / rate.max(1.0));
    while Instant::now() < until {
        let Ok(stream) = connect_small(address).await else {
            sleep(Duration::from_millis(200)).await;
            continue;
        };
        let (reading, mut writing) = stream.into_split();
        let write = async {
            let mut due = Instant::now();
            while Instant::now() < until && writing.write_all(&requests).await.is_ok() {
                tally.report.borrow_mut().sent += FLOOD_DEPTH as u64;
                due += interval;
                tokio::time::sleep_until(due.into()).await;
            }
        };
        let read = async {
            let mut raw = Raw::of(reading);
            while let Ok(answer) = raw.answer().await {
                tally.note(|report| &mut report.flood_answers, &answer, true);
            }
        };
        // Whichever ends first: the server has closed the connection, or the time is over.
        tokio::select! {
            () = write => {}
            () = read => {}
        }
    }
}

/// Asks for small things, one after the other, as an ordinary client does.
async fn ask_small(address: SocketAddr, number: usize, until: Instant, tally: Rc<Tally>) {
    let mut raw = Raw::new(address);
    for round in 0u64.. {
        if Instant::now() >= until {
            return;
        }
        let key = format!("asked/{number}/{}", round % 10);
        let is_write = round % 2 == 0;
        let request = if is_write { put(&key, &[b'a'; SMALL_BYTES], "?timeout=10s") } else { get(&key, "?timeout=10s") };
        let began = Instant::now();
        let answer = tokio::time::timeout(SMALL_TIMEOUT + Duration::from_secs(2), raw.exchange(&request)).await;
        match answer {
            Ok(Ok(mut answer)) => {
                // The key of a read may have been refused when it was to be written.
                if answer.status == 404 {
                    (answer.status, answer.code) = (200, String::new());
                }
                tally.small_ms.borrow_mut().push(began.elapsed().as_secs_f64() * 1000.0);
                tally.note(|report| &mut report.small_answers, &answer, is_write);
            }
            _ => {
                raw = Raw::new(address);
                *tally.report.borrow_mut().small_answers.entry("none".to_owned()).or_default() += 1;
            }
        }
        sleep(THINK_TIME).await;
    }
}

/// Whether every node writes and reads as if nothing had been, soon after.
async fn serves_again(addresses: &[SocketAddr]) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    for address in addresses {
        loop {
            let mut raw = Raw::new(*address);
            let wrote = raw.exchange(&put("after", b"all", "?timeout=2s")).await.is_ok_and(|answer| answer.status < 300);
            if wrote && raw.exchange(&get("after", "?timeout=2s")).await.is_ok_and(|answer| answer.status == 200) {
                break;
            }
            if Instant::now() > deadline {
                return false;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
    true
}
