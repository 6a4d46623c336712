//! A scan of very many keys as a stream: its rate, what memory it costs the nodes, and whether a client that stops
//! reading does harm to others.

use crate::cluster::Cluster;
use crate::kill::quantile;
use crate::memory::{MemoryWatch, resident_mib};
use crate::wire::Wire;
use anyhow::{Context, ensure};
use flotilla::import::{Import, ImportPlan, Put};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How the run goes.
#[derive(Clone, Debug)]
pub struct ScanPlan {
    /// Keys in the cluster.
    pub keys: u64,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// How long a client stops reading.
    pub stall: Duration,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct ScanReport {
    /// Keys in the cluster.
    pub keys: u64,
    /// Seconds it took to write them, in batches.
    pub load_seconds: f64,
    /// Seconds of the scan that nobody held up.
    pub scan_seconds: f64,
    /// Its keys a second.
    pub scan_keys_per_second: f64,
    /// Its bytes a second, in MiB.
    pub scan_mib_per_second: f64,
    /// Resident memory of each node before the scan, the most during it, and after it, in MiB.
    pub memory_mib: [Vec<f64>; 3],
    /// The most while a client did not read.
    pub memory_mib_stalled: Vec<f64>,
    /// Gets and puts of others without a scan: 99th percentile of their time, in ms.
    pub others_ms_p99_before: f64,
    /// The same while a client did not read.
    pub others_ms_p99_stalled: f64,
    /// Of those, failed.
    pub others_failed: u64,
    /// What was wrong, in words.
    pub faults: Vec<String>,
}

impl ScanReport {
    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let mib = |figures: &[f64]| figures.iter().map(|mib| format!("{mib:.0}")).collect::<Vec<_>>().join("/");
        let [before, during, after] = &self.memory_mib;
        [
            format!("{} keys written in {:.1} s, in batches", self.keys, self.load_seconds),
            format!(
                "scanned as lines in {:.1} s: {:.0} keys/s, {:.1} MiB/s",
                self.scan_seconds, self.scan_keys_per_second, self.scan_mib_per_second
            ),
            format!(
                "resident MiB of each node: before {}, most during {}, after {}; most while a client stopped reading {}",
                mib(before),
                mib(during),
                mib(after),
                mib(&self.memory_mib_stalled)
            ),
            format!(
                "gets and puts of others, 99th percentile: {:.1} ms before, {:.1} ms while a client stopped reading; {} failed",
                self.others_ms_p99_before, self.others_ms_p99_stalled, self.others_failed
            ),
        ]
        .into_iter()
        .chain(self.faults.iter().cloned())
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
/// If the cluster does not start, or the keys cannot be written.
pub async fn run(binary: &Path, folder: &Path, plan: &ScanPlan) -> anyhow::Result<ScanReport> {
    let mut cluster = Cluster::start(binary, folder).await?;
    let processes = cluster.process_ids();
    let load_seconds = load(&cluster, plan).await?;
    let (quiet, _) = Others::start(&cluster).end_after(Duration::from_secs(10)).await;
    let before = resident_mib(&processes);
    let mut faults = Vec::new();

    let watch = MemoryWatch::start(processes.clone());
    let began = Instant::now();
    let mut stream = ScanStream::open(cluster.addresses()[0]).await?;
    stream.read_to_end().await?;
    let scan_seconds = began.elapsed().as_secs_f64();
    let during = watch.end().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = resident_mib(&processes);
    stream.judge(plan.keys, &mut faults);
    let (lines, bytes) = (stream.lines, stream.bytes);

    let watch = MemoryWatch::start(processes.clone());
    let others = Others::start(&cluster);
    let mut stalled = ScanStream::open(cluster.addresses()[0]).await?;
    stalled.read(1 << 20).await?;
    let (slow, failed) = others.end_after(plan.stall).await;
    let memory_mib_stalled = watch.end().await;
    match stalled.read_to_end().await {
        Ok(()) => stalled.judge(plan.keys, &mut faults),
        // Its connection may be closed as idle; then it must not look whole.
        Err(error) => ensure!(stalled.lines < plan.keys, "a stream that was given up was whole: {error}"),
    }
    ensure!(cluster.unexpectedly_ended().is_empty(), "a node ended");
    cluster.stop();
    if failed > 0 {
        faults.push(format!("{failed} requests of others failed while a client stopped reading"));
    }
    Ok(ScanReport {
        keys: plan.keys,
        load_seconds,
        scan_seconds,
        scan_keys_per_second: lines as f64 / scan_seconds,
        scan_mib_per_second: bytes as f64 / f64::from(1 << 20) / scan_seconds,
        memory_mib: [before, during, after],
        memory_mib_stalled,
        others_ms_p99_before: quiet,
        others_ms_p99_stalled: slow,
        others_failed: failed,
        faults,
    })
}

/// Writes the keys in batches; the seconds it took.
pub async fn load(cluster: &Cluster, plan: &ScanPlan) -> anyhow::Result<f64> {
    let began = Instant::now();
    let endpoints = (0..cluster.len()).map(|at| cluster.spec(at).endpoint()).collect();
    let minute = Duration::from_secs(60);
    let import = ImportPlan { endpoints, timeout: minute, lanes: 8, retry_for: minute, only_absent: false };
    let mut import = Import::new(import, 0);
    for number in 0..plan.keys {
        let put = Put { offset: number, line: number + 1, key: key_of(number), value: vec![b'v'; plan.value_bytes] };
        import.put(put, number + 1).await.context("writing the keys")?;
    }
    import.finish().await.context("writing the keys")?;
    Ok(began.elapsed().as_secs_f64())
}

fn key_of(number: u64) -> Vec<u8> {
    format!("key/{number:010}").into_bytes()
}

/// A stream of lines over a raw connection: chunks are taken apart, lines counted, their order held against the last.
struct ScanStream {
    socket: TcpStream,
    buffer: Vec<u8>,
    /// What of a chunk is still to come; `None`: its length.
    chunk_left: Option<usize>,
    line: Vec<u8>,
    last: Vec<u8>,
    lines: u64,
    bytes: u64,
    disordered: u64,
    is_whole: bool,
}

impl ScanStream {
    async fn open(address: SocketAddr) -> anyhow::Result<ScanStream> {
        let mut socket = TcpStream::connect(address).await?;
        let request = "GET /v1/kv?prefix=key/&timeout=60s HTTP/1.1\r\nhost: x\r\naccept: application/x-ndjson\r\n\r\n";
        socket.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.context("reading the head of a scan")?);
        }
        ensure!(head.starts_with(b"HTTP/1.1 200 "), "a scan was answered {}", head.escape_ascii());
        let (buffer, line, last) = (Vec::new(), Vec::new(), Vec::new());
        Ok(ScanStream { socket, buffer, chunk_left: None, line, last, lines: 0, bytes: 0, disordered: 0, is_whole: false })
    }

    async fn read_to_end(&mut self) -> anyhow::Result<()> {
        self.read(u64::MAX).await
    }

    /// Reads until so many bytes of lines have come, or the end.
    async fn read(&mut self, bytes_max: u64) -> anyhow::Result<()> {
        while self.bytes < bytes_max && !self.is_whole {
            ensure!(self.socket.read_buf(&mut self.buffer).await? > 0, "the stream broke off after {} lines", self.lines);
            self.take_chunks()?;
        }
        Ok(())
    }

    fn take_chunks(&mut self) -> anyhow::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = &buffer[..];
        loop {
            match self.chunk_left {
                None => {
                    let Some(end) = rest.windows(2).position(|end| end == b"\r\n") else { break };
                    let length = usize::from_str_radix(std::str::from_utf8(&rest[..end])?, 16).context("a chunk's length")?;
                    rest = &rest[end + 2..];
                    if length == 0 {
                        self.is_whole = true;
                        break;
                    }
                    self.chunk_left = Some(length);
                }
                Some(0) => {
                    if rest.len() < 2 {
                        break;
                    }
                    rest = &rest[2..];
                    self.chunk_left = None;
                }
                Some(left) => {
                    let taken = left.min(rest.len());
                    if taken == 0 {
                        break;
                    }
                    self.take_lines(&rest[..taken]);
                    rest = &rest[taken..];
                    self.chunk_left = Some(left - taken);
                }
            }
        }
        self.buffer = rest.to_vec();
        Ok(())
    }

    fn take_lines(&mut self, text: &[u8]) {
        self.bytes += text.len() as u64;
        for piece in text.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.ends_with(b"\n") {
                // `{"key":"key/0000000000",`: as text in the order of the keys.
                let key = self.line.get(8..22).unwrap_or_default();
                self.disordered += u64::from(key <= &self.last[..]);
                self.last = key.to_vec();
                self.lines += 1;
                self.line.clear();
            }
        }
    }

    fn judge(&self, keys: u64, faults: &mut Vec<String>) {
        if self.lines != keys || self.disordered > 0 || !self.is_whole {
            faults.push(format!(
                "a scan showed {} of {keys} keys, {} of them out of order, whole: {}",
                self.lines, self.disordered, self.is_whole
            ));
        }
    }
}

/// Some clients that put and get small values, one request after the other.
pub struct Others {
    stop: Rc<Cell<bool>>,
    times_ms: Rc<RefCell<Vec<f64>>>,
    failed: Rc<Cell<u64>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Others {
    /// Four at each node. Runs inside a `LocalSet`.
    pub fn start(cluster: &Cluster) -> Others {
        let (stop, times_ms, failed) = (Rc::new(Cell::new(false)), Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(0)));
        let client = |number: usize, address: SocketAddr| {
            let (stop, times_ms, failed) = (stop.clone(), times_ms.clone(), failed.clone());
            tokio::task::spawn_local(async move {
                let mut wire = Wire::new(address, Duration::from_secs(5));
                for round in 0u64.. {
                    if stop.get() {
                        return;
                    }
                    let (path, began) = (format!("/v1/kv/other/{number}/{}", round % 100), Instant::now());
                    let reply =
                        wire.exchange(if round % 2 == 0 { "PUT" } else { "GET" }, &path, if round % 2 == 0 { b"x" } else { b"" }).await;
                    times_ms.borrow_mut().push(began.elapsed().as_secs_f64() * 1e3);
                    if reply.is_ok_and(|reply| !matches!(reply.status, 200 | 201 | 404)) {
                        failed.set(failed.get() + 1);
                    }
                    // A part of what the nodes can do: what is looked for is harm, not the rate.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        };
        let tasks = (0..4).flat_map(|_| cluster.addresses()).enumerate().map(|(number, address)| client(number, address)).collect();
        Others { stop, times_ms, failed, tasks }
    }

    /// Lets them go on for a while and ends them: the 99th percentile of their times in ms, and how many failed.
    pub async fn end_after(self, duration: Duration) -> (f64, u64) {
        tokio::time::sleep(duration).await;
        self.stop.set(true);
        for task in self.tasks {
            task.await.expect("a client does not panic");
        }
        let mut times = self.times_ms.take();
        times.sort_by(f64::total_cmp);
        (quantile(&times, 0.99), self.failed.get())
    }
}
