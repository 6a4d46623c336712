//! Increments that happen once: each has an `Idempotency-Key` and is sent twice or more, to any node, at the same
//! time or later, while nodes are killed. The counter must then be the number of increments, and every answer to
//! one of them the same.

use crate::cluster::Cluster;
use crate::wire::Wire;
use anyhow::{Context, ensure};
use flotilla_types::Rng;
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

const KEY: &str = "/v1/kv/counter";
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Attempts at one answer.
const ATTEMPTS_MAX: u32 = 600;

/// How the run goes.
#[derive(Clone, Debug)]
pub struct OncePlan {
    /// Increments.
    pub increments: u64,
    /// Clients at once.
    pub clients: usize,
    /// Between the kills of nodes, which take turns; a killed one is started again at half of it.
    pub kill_every: Duration,
    /// Decides what is sent where.
    pub seed: u64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct OnceReport {
    /// Increments asked for.
    pub increments: u64,
    /// Requests sent for them.
    pub requests: u64,
    /// Of those, how many were not answered or refused.
    pub unanswered: u64,
    /// Kills of nodes.
    pub kills: u64,
    /// Times that a replica began to lead, over the nodes as they ran at the end.
    pub seconds: f64,
    /// What the counter holds.
    pub value: String,
    /// What was wrong, in words.
    pub faults: Vec<String>,
}

impl OnceReport {
    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let first = format!(
            "{} increments by {} requests, {} of them unanswered or refused, in {:.1} s with {} kills: the counter holds {}",
            self.increments, self.requests, self.unanswered, self.seconds, self.kills, self.value
        );
        std::iter::once(first).chain(self.faults.iter().take(20).cloned()).collect()
    }

    /// Whether the counter is right, and every answer was.
    pub fn is_fine(&self) -> bool {
        self.faults.is_empty() && self.value == self.increments.to_string()
    }
}

#[derive(Default)]
struct Shared {
    next: Cell<u64>,
    requests: Cell<u64>,
    unanswered: Cell<u64>,
    faults: RefCell<Vec<String>>,
}

/// Runs it on three nodes with their data in `folder`.
///
/// # Errors
/// If the cluster does not start or does not come back.
pub async fn run(binary: &Path, folder: &Path, plan: &OncePlan) -> anyhow::Result<OnceReport> {
    let mut cluster = Cluster::start(binary, folder).await?;
    let shared = Rc::new(Shared::default());
    let began = Instant::now();
    let clients: Vec<_> = (0..plan.clients)
        .map(|number| {
            let (shared, addresses, increments) = (shared.clone(), cluster.addresses(), plan.increments);
            let rng = Rng::new(plan.seed.wrapping_add(number as u64));
            tokio::task::spawn_local(async move { client(&shared, &addresses, increments, rng).await })
        })
        .collect();
    let mut kills = 0;
    while clients.iter().any(|client| !client.is_finished()) {
        let at = kills as usize % cluster.len();
        cluster.kill(at);
        kills += 1;
        tokio::time::sleep(plan.kill_every / 2).await;
        cluster.launch(at)?;
        cluster.wait_ready(at).await?;
        tokio::time::sleep(plan.kill_every / 2).await;
    }
    for client in clients {
        client.await.context("a client")?;
    }
    cluster.relaunch_missing().await?;
    let mut value = String::new();
    for address in cluster.addresses() {
        let read = Wire::new(address, Duration::from_secs(10)).get(b"counter", false).await?;
        let read = String::from_utf8(read.unwrap_or_default())?;
        ensure!(value.is_empty() || value == read, "two nodes say {value} and {read}");
        value = read;
    }
    cluster.stop();
    let (requests, unanswered) = (shared.requests.get(), shared.unanswered.get());
    let faults = shared.faults.take();
    Ok(OnceReport { increments: plan.increments, requests, unanswered, kills, seconds: began.elapsed().as_secs_f64(), value, faults })
}

/// Takes increments until there are no more.
async fn client(shared: &Rc<Shared>, addresses: &[SocketAddr], increments: u64, mut rng: Rng) {
    while shared.next.get() < increments {
        let number = shared.next.replace(shared.next.get() + 1);
        let mut node = || addresses[rng.below(addresses.len() as u64) as usize];
        let (first, second) = (node(), node());
        // Half of them at once, half one after the other.
        let answers = if rng.below(2) == 0 {
            tokio::join!(ask(shared, addresses, first, number), ask(shared, addresses, second, number))
        } else {
            (ask(shared, addresses, first, number).await, ask(shared, addresses, second, number).await)
        };
        match answers {
            (Some(one), Some(other)) if one == other => {}
            answers => shared.faults.borrow_mut().push(format!("increment {number} was answered {answers:?}")),
        }
    }
}

/// Sends one increment until there is an answer, from this node on to the next; `None` if there never is.
async fn ask(shared: &Shared, addresses: &[SocketAddr], first: SocketAddr, number: u64) -> Option<String> {
    let mut at = addresses.iter().position(|address| *address == first).unwrap_or_default();
    for _ in 0..ATTEMPTS_MAX {
        let mut wire = Wire::new(addresses[at], Duration::from_secs(2));
        shared.requests.set(shared.requests.get() + 1);
        match wire.exchange_with("POST", &format!("{KEY}/incr?timeout=2s"), &format!("idempotency-key: {number}\r\n"), b"").await {
            Ok(reply) if reply.status == 200 => return String::from_utf8(reply.body).ok(),
            Ok(reply) if !matches!(reply.status, 503 | 504) => {
                shared.faults.borrow_mut().push(format!("increment {number}: status {}", reply.status));
                return None;
            }
            _ => shared.unanswered.set(shared.unanswered.get() + 1),
        }
        at = (at + 1) % addresses.len();
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    None
}
