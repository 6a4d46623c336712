//! Runs a plan.

use super::keys::{KeyChooser, key_of};
use super::pace::Pace;
use super::report::{LatencyMs, LoadReport, per_100k};
use super::request::Requests;
use super::{LoadPlan, Mix};
use crate::connection::Connection;
use crate::process_cpu::{listening_processes, processor_time_between, processor_times};
use flotilla_types::{Key, Rng};
use hdrhistogram::Histogram;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::LocalSet;

/// Longest latency told apart from longer ones, in nanoseconds.
const LATENCY_NANOS_MAX: u64 = 120_000_000_000;
/// How long a connection that broke waits before it is made again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// How long answers are awaited after the last request was sent.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No server answers there.
    #[error("cannot connect to {target}")]
    Connect {
        /// Where.
        target: std::net::SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The timer of the open loop failed.
    #[error("the timer failed")]
    Timer(#[source] io::Error),
    /// A key could not be written before the run.
    #[error("loading key {key}: {problem}")]
    Preload {
        /// Which.
        key: String,
        /// The answer, or how the connection broke.
        problem: String,
    },
}

/// What all connections count together; one thread, so plain cells do.
struct Tally {
    measuring: Cell<bool>,
    sent: Cell<u64>,
    operations: Cell<u64>,
    misses: Cell<u64>,
    failures: RefCell<BTreeMap<u16, u64>>,
    latency: RefCell<Histogram<u64>>,
    service_time: RefCell<Histogram<u64>>,
}

struct Worker {
    plan: Rc<LoadPlan>,
    chooser: Rc<KeyChooser>,
    /// For each key, the target that leads it.
    leader_of_key: Option<Rc<Vec<u8>>>,
    target: usize,
    rng: Rng,
    tally: Rc<Tally>,
    pace: Option<Rc<Pace>>,
    end: Instant,
}

/// Runs `plan`; `progress` is told now and then how far it is, from 0 to 1, and the operations so far.
///
/// # Errors
/// If a target cannot be reached at the start. What goes wrong later is counted in the report.
pub async fn run(plan: LoadPlan, progress: impl Fn(f64, u64)) -> Result<LoadReport, LoadError> {
    let mut connections = Vec::with_capacity(plan.connections);
    for index in 0..plan.connections {
        let target = plan.targets[index % plan.targets.len()];
        connections.push(Connection::open(target).await.map_err(|source| LoadError::Connect { target, source })?);
    }
    let plan = Rc::new(plan);
    let chooser = Rc::new(KeyChooser::new(plan.key_count, plan.distribution));
    let leader_of_key = plan.leaders.as_ref().map(|map| {
        let leader = |number| map.target_of(&Key::new(key_of(number)).expect("a short key")) as u8;
        Rc::new((0..plan.key_count).map(leader).collect::<Vec<u8>>())
    });
    let tally = Rc::new(Tally::new());
    let start = Instant::now();
    let (measure_from, end) = (start + plan.warmup, start + plan.warmup + plan.duration);
    let pace = plan.rate_per_s.map(|rate| Rc::new(Pace::new(start, rate)));
    let processes = listening_processes(&plan.targets);
    let mut rng = Rng::new(plan.seed);

    let local = LocalSet::new();
    let mut tasks = Vec::new();
    for (index, connection) in connections.into_iter().enumerate() {
        let worker = Worker {
            plan: plan.clone(),
            chooser: chooser.clone(),
            leader_of_key: leader_of_key.clone(),
            target: index % plan.targets.len(),
            rng: rng.fork(),
            tally: tally.clone(),
            pace: pace.clone(),
            end,
        };
        tasks.push(local.spawn_local(worker.work(connection)));
    }
    if let Some(pace) = pace {
        local.spawn_local(async move { pace.drive().await });
    }
    local
        .run_until(async {
            tokio::time::sleep_until(measure_from.into()).await;
            tally.measuring.set(true);
            let (measured_from, servers_before, client_before) = (Instant::now(), processor_times(&processes), own_processor_time());
            while Instant::now() < end && tasks.iter().any(|task| !task.is_finished()) {
                tokio::time::sleep(Duration::from_millis(100).min(end.saturating_duration_since(Instant::now()))).await;
                progress(measured_from.elapsed().as_secs_f64() / plan.duration.as_secs_f64(), tally.operations.get());
            }
            let seconds = measured_from.elapsed().as_secs_f64();
            let operations = tally.operations.get();
            let server_time = processor_time_between(&servers_before, &processor_times(&processes));
            let client_time = own_processor_time().saturating_sub(client_before);
            // Answers still awaited count with their latency, or a stall at the end would vanish.
            let drained = tokio::time::timeout(DRAIN_TIME_MAX, async {
                for task in &mut tasks {
                    let _ = task.await;
                }
            })
            .await;
            if drained.is_err() {
                let stuck = tasks.iter().filter(|task| !task.is_finished()).count() as u64;
                *tally.failures.borrow_mut().entry(0).or_default() += stuck;
            }
            Ok(tally.report(seconds, operations, &plan, processes.len(), server_time, client_time))
        })
        .await
}

/// Writes every key of `plan` once, so that reads find them.
///
/// # Errors
/// If a target cannot be reached or a write fails.
pub async fn preload(plan: &LoadPlan, progress: impl Fn(f64)) -> Result<(), LoadError> {
    let next = Rc::new(Cell::new(0u64));
    let local = LocalSet::new();
    let tasks: Vec<_> = (0..plan.connections.min(plan.key_count as usize))
        .map(|index| {
            let (target, next, key_count) = (plan.targets[index % plan.targets.len()], next.clone(), plan.key_count);
            let requests = Requests::new(plan.protocol, target, plan.value_bytes, plan.seed);
            local.spawn_local(async move {
                let mut connection = Connection::open(target).await.map_err(|source| LoadError::Connect { target, source })?;
                let mut buffer = Vec::new();
                while next.get() < key_count {
                    let number = next.replace(next.get() + 1);
                    requests.write(&mut buffer, true, number);
                    let problem = match connection.exchange(&buffer).await {
                        Ok(answer) if (200..300).contains(&answer.status) => continue,
                        Ok(answer) => format!("status {}: {}", answer.status, String::from_utf8_lossy(connection.body(&answer))),
                        Err(error) => error.to_string(),
                    };
                    return Err(LoadError::Preload { key: key_of(number), problem });
                }
                Ok(())
            })
        })
        .collect();
    local
        .run_until(async {
            while tasks.iter().any(|task| !task.is_finished()) {
                tokio::time::sleep(Duration::from_millis(50)).await;
                progress(next.get() as f64 / plan.key_count as f64);
            }
            for task in tasks {
                task.await.expect("a loading task does not panic")?;
            }
            Ok(())
        })
        .await
}

impl Worker {
    async fn work(mut self, connection: Connection) {
        let address = self.plan.targets[self.target];
        let requests = Requests::new(self.plan.protocol, address, self.plan.value_bytes, self.plan.seed);
        let mut connection = Some(connection);
        let mut buffer = Vec::new();
        while Instant::now() < self.end && self.plan.operations_max.is_none_or(|max| self.tally.sent.get() < max) {
            let due = match &self.pace {
                Some(pace) => match tokio::time::timeout_at(self.end.into(), pace.next()).await {
                    Ok(due) => Some(due),
                    Err(_) => return,
                },
                None => None,
            };
            if connection.is_none() {
                match Connection::open(address).await {
                    Ok(opened) => connection = Some(opened),
                    Err(_) => {
                        self.tally.fail(0);
                        tokio::time::sleep(RECONNECT_PAUSE).await;
                        continue;
                    }
                }
            }
            let Some(open) = &mut connection else { continue };
            let is_put = match self.plan.mix {
                Mix::Put => true,
                Mix::Get => false,
                Mix::Mixed(read_percent) => !self.rng.chance(u64::from(read_percent), 100),
            };
            requests.write(&mut buffer, is_put, choose_key(&self.chooser, self.leader_of_key.as_deref(), self.target, &mut self.rng));
            self.tally.sent.set(self.tally.sent.get() + 1);
            let sent = Instant::now();
            match open.exchange(&buffer).await {
                Ok(answer) => {
                    self.tally.count(answer.status, is_put, sent, due);
                    if !answer.keep_alive {
                        connection = None;
                    }
                }
                Err(_) => {
                    self.tally.fail(0);
                    connection = None;
                }
            }
        }
    }
}

/// With leaders known, only keys that this connection's node leads.
fn choose_key(chooser: &KeyChooser, leader_of_key: Option<&Vec<u8>>, target: usize, rng: &mut Rng) -> u64 {
    const DRAWS_MAX: usize = 1000;
    let mut number = chooser.choose(rng);
    let Some(leaders) = leader_of_key else { return number };
    for _ in 0..DRAWS_MAX {
        if usize::from(leaders[number as usize]) == target {
            break;
        }
        number = chooser.choose(rng);
    }
    // A node that leads next to nothing is sent something all the same: it will forward it.
    number
}

impl Tally {
    fn new() -> Tally {
        let histogram = || RefCell::new(Histogram::new_with_max(LATENCY_NANOS_MAX, 3).expect("three digits and a range are fine"));
        Tally {
            measuring: Cell::new(false),
            sent: Cell::new(0),
            operations: Cell::new(0),
            misses: Cell::new(0),
            failures: RefCell::default(),
            latency: histogram(),
            service_time: histogram(),
        }
    }

    fn count(&self, status: u16, is_put: bool, sent: Instant, due: Option<Instant>) {
        if !self.measuring.get() {
            return;
        }
        match status {
            200..300 => {}
            404 if !is_put => self.misses.set(self.misses.get() + 1),
            _ => return self.fail(status),
        }
        self.operations.set(self.operations.get() + 1);
        let now = Instant::now();
        let nanos_since = |earlier| u64::try_from(now.saturating_duration_since(earlier).as_nanos()).unwrap_or(u64::MAX);
        self.latency.borrow_mut().saturating_record(nanos_since(due.unwrap_or(sent)));
        if due.is_some() {
            self.service_time.borrow_mut().saturating_record(nanos_since(sent));
        }
    }

    fn fail(&self, status: u16) {
        if self.measuring.get() {
            *self.failures.borrow_mut().entry(status).or_default() += 1;
        }
    }

    fn report(
        &self,
        seconds: f64,
        operations: u64,
        plan: &LoadPlan,
        server_processes: usize,
        server: Option<Duration>,
        client: Duration,
    ) -> LoadReport {
        LoadReport {
            operations,
            misses: self.misses.get(),
            seconds,
            operations_per_s: operations as f64 / seconds.max(1e-9),
            failures: self.failures.borrow().clone(),
            latency: LatencyMs::of(&self.latency.borrow()),
            service_time: plan.rate_per_s.map(|_| LatencyMs::of(&self.service_time.borrow())),
            server_processes,
            server_cpu_s_per_100k: server.and_then(|time| per_100k(time, operations)),
            client_cpu_s_per_100k: per_100k(client, operations),
        }
    }
}

fn own_processor_time() -> Duration {
    processor_times(&BTreeSet::from([std::process::id()])).into_values().sum()
}

#[cfg(test)]
mod tests {
    use super::super::{Distribution, Protocol};
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers everything with 200; each thousandth request only after a stall.
    async fn fake_server(stall: Duration) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut bytes, mut count) = ([0; 4096], 0);
                    while stream.read(&mut bytes).await.is_ok_and(|length| length > 0) {
                        count += 1;
                        if count % 1000 == 0 {
                            tokio::time::sleep(stall).await;
                        }
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
                    }
                });
            }
        });
        address
    }

    fn plan(target: std::net::SocketAddr) -> LoadPlan {
        LoadPlan {
            targets: vec![target],
            protocol: Protocol::Flotilla,
            connections: 1,
            rate_per_s: None,
            duration: Duration::from_secs(20),
            operations_max: Some(1500),
            warmup: Duration::ZERO,
            mix: Mix::Mixed(50),
            key_count: 100,
            distribution: Distribution::Zipfian,
            value_bytes: 10,
            leaders: None,
            seed: 1,
        }
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
    }

    #[test]
    fn a_closed_loop_counts_every_operation() {
        block_on(async {
            let report = run(plan(fake_server(Duration::ZERO).await), |_, _| {}).await.expect("the server answers");
            assert_eq!(report.failure_count(), 0);
            // The first may be answered before measuring begins.
            assert!((1490..=1500).contains(&report.operations), "{report:?}");
        });
    }

    #[test]
    fn an_open_loop_charges_a_stall_to_all_it_held_up() {
        block_on(async {
            let target = fake_server(Duration::from_millis(300)).await;
            let report = run(LoadPlan { rate_per_s: Some(2000.0), ..plan(target) }, |_, _| {}).await.expect("the server answers");
            let service_time = report.service_time.expect("an open loop");
            // 600 of 1500 fell due while the server stalled; only one of them waited for its own answer.
            assert!(report.latency.p90 > 100.0, "{:?}", report.latency);
            assert!(service_time.p90 < 100.0, "{service_time:?}");
        });
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error() {
        block_on(async {
            let target = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("bound");
            assert!(matches!(run(plan(target), |_, _| {}).await, Err(LoadError::Connect { .. })));
        });
    }
}
