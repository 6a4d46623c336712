//! Nodes join, leave, are drained and forced out all the time, while nodes are killed, stand still and are
//! cut off from each other; clients read, write, delete and write on condition, and the history of every
//! key must be linearizable. In the end all is mended, and everything must come to rest in bounded time.
//! Each node has a network of its own. Needs root.
//!
//! - [`clients`]: what they ask and what they are told;
//! - `faults`: what befalls single nodes; `operators`: who change the membership; `world`: what these share.

pub mod clients;
mod faults;
mod operators;
mod world;

use crate::cluster::{Cluster, flags};
use crate::networks::{HTTP_PORT, Networks, PEER_PORT};
use crate::operator::Operator;
use crate::scan_load::{ScanPlan, load};
use anyhow::{Context, ensure};
use clients::Clients;
use flotilla::local_cluster::NodeSpec;
use flotilla_sim::checkers::linearizability;
use flotilla_types::Rng;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use world::World;

/// How often it is looked whether a node has ended by itself.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// How the run goes.
#[derive(Clone, Debug)]
pub struct ChurnPlan {
    /// How long things are broken and changed.
    pub duration: Duration,
    /// Nodes; of these two at most are away at once.
    pub nodes: usize,
    /// Clients.
    pub clients: u32,
    /// Keys that they read and write.
    pub keys: u32,
    /// How long a client waits after each answer.
    pub think_time: Duration,
    /// Keys written before, so that there is something to move.
    pub ballast_keys: u64,
    /// The longest pause between two changes of one operator; there are two of them.
    pub change_every: Duration,
    /// The longest pause between two faults of one kind of luck; there are two of them as well.
    pub fault_every: Duration,
    /// How long it may take in the end until everything is at rest.
    pub rest_time_max: Duration,
    /// Everything drawn by chance comes from it; what the machine does in between does not.
    pub seed: u64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct ChurnReport {
    /// The seed.
    pub seed: u64,
    /// What was done, with its number.
    pub events: BTreeMap<&'static str, u64>,
    /// Questions of clients.
    pub operations: usize,
    /// Those that were answered.
    pub answered: usize,
    /// Writes of which nobody knows.
    pub unknown: usize,
    /// When the longest time began in which no client was answered anything, in seconds, and how long it was.
    pub longest_silence_seconds: (f64, f64),
    /// From the end of the last fault until all was at rest and even.
    pub rest_seconds: Option<f64>,
    /// What of the history has no order.
    pub violation: Option<String>,
    /// Whether the checker finds a read that was made stale on purpose.
    pub planted_found: bool,
    /// Whatever else was wrong.
    pub wrong: Vec<String>,
    /// What was done, in order; shown if something was wrong.
    pub told: Vec<String>,
}

impl ChurnReport {
    /// Whether the store kept its promises.
    pub fn is_fine(&self) -> bool {
        self.rest_seconds.is_some() && self.violation.is_none() && self.planted_found && self.wrong.is_empty()
    }

    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let events: Vec<String> = self.events.iter().map(|(event, count)| format!("{count} {event}")).collect();
        let mut lines = vec![
            events.join(", "),
            format!(
                "{} requests, {} answered, {} writes of unknown outcome; longest time without any answer {:.1} s, at {:.1} s",
                self.operations, self.answered, self.unknown, self.longest_silence_seconds.1, self.longest_silence_seconds.0
            ),
            match self.rest_seconds {
                Some(seconds) => format!("at rest and even {seconds:.1} s after the last fault"),
                None => "never came to rest".to_owned(),
            },
            match &self.violation {
                Some(violation) => format!("seed {}: {violation}", self.seed),
                None => "the history of every key is linearizable".to_owned(),
            },
            format!("a read made stale on purpose was {}", if self.planted_found { "found" } else { "NOT found" }),
        ];
        lines.extend(self.wrong.iter().map(|wrong| format!("WRONG: {wrong}")));
        lines
    }
}

/// Runs it, with the data in `folder`. Needs root.
///
/// # Errors
/// If the networks cannot be made, or the cluster does not start.
pub async fn run(binary: &Path, folder: &Path, plan: &ChurnPlan) -> anyhow::Result<ChurnReport> {
    ensure!(plan.nodes > 3, "three nodes exist always, so four are needed for one to go");
    let networks = Networks::create(plan.nodes)?;
    let at = |node: usize, port: u16| (networks.address(node), port).into();
    let spec = |node: usize| {
        let join = if node == 0 { Vec::new() } else { vec![at(0, HTTP_PORT)] };
        let mut spec = NodeSpec::new(&format!("n{}", node + 1), folder, at(node, HTTP_PORT), at(node, PEER_PORT), join);
        spec.flags = flags(&["--insecure", "--log-level", "info"]);
        spec.wrapper = networks.wrapper(node).map(Into::into).to_vec();
        spec
    };
    let cluster = Cluster::start_of(binary, (0..plan.nodes).map(spec).collect()).await?;
    load(&cluster, &ScanPlan { keys: plan.ballast_keys, value_bytes: 1_000, stall: Duration::ZERO }).await?;
    let world = Rc::new(World::new(cluster, networks));
    let addresses = world.addresses();
    Operator::new(addresses.clone()).wait_even(plan.nodes, plan.rest_time_max).await.context("before anything was broken")?;

    let mut rng = Rng::new(plan.seed);
    let clients = Clients::new(addresses.clone(), plan.keys, plan.think_time);
    let asking: Vec<_> = (0..plan.clients).map(|number| tokio::task::spawn_local(Rc::clone(&clients).run(number, rng.fork()))).collect();
    let fault_ms = plan.fault_every.as_millis() as u64;
    let befalling: Vec<_> = (0..2).map(|_| tokio::task::spawn_local(faults::befall(Rc::clone(&world), 2, fault_ms, rng.fork()))).collect();
    let change_ms = plan.change_every.as_millis() as u64;
    let operating: Vec<_> =
        (0..2).map(|_| tokio::task::spawn_local(operators::operate(Rc::clone(&world), change_ms, rng.fork()))).collect();

    let end = Instant::now() + plan.duration;
    while Instant::now() < end {
        tokio::time::sleep(WATCH_INTERVAL).await;
        world.mind_all()?;
    }
    // What is broken is mended first, so that whatever the operators still want can come to its end.
    world.stop_faults.set(true);
    for task in befalling {
        task.await.context("a fault panicked")??;
    }
    world.tell("the last fault is over".into());
    let mended = Instant::now();
    world.stop_operators.set(true);
    for task in operating {
        task.await.context("an operator panicked")??;
    }
    let rest_seconds = come_to_rest(&world, plan, mended).await?;
    clients.stop();
    for task in asking {
        task.await.context("a client panicked")?;
    }
    let refused = clients.read_all(&addresses).await;
    refused.into_iter().take(10).for_each(|words| world.blame(words));
    clients.strange().into_iter().for_each(|words| world.blame(words));
    world.mind_all()?;
    world.cluster.borrow_mut().stop();

    let operations = clients.operations();
    let violation = linearizability::check(&operations).err().map(|violation| violation.to_string());
    let planted_found = clients::tampered(&operations).is_some_and(|spoilt| linearizability::check(&spoilt).is_err());
    let (silence_began, silence) = clients.longest_silence();
    let (answered, unknown) = clients::answered_and_unknown(&operations);
    Ok(ChurnReport {
        seed: plan.seed,
        events: world.events(),
        operations: operations.len(),
        answered,
        unknown,
        longest_silence_seconds: (silence_began.as_secs_f64(), silence.as_secs_f64()),
        rest_seconds,
        violation,
        planted_found,
        wrong: world.wrong(),
        told: world.told(),
    })
}

/// Nothing is broken any more and nobody wants anything: how long until all is even?
async fn come_to_rest(world: &World, plan: &ChurnPlan, mended: Instant) -> anyhow::Result<Option<f64>> {
    let mut operator = Operator::new(world.addresses());
    let deadline = Instant::now() + plan.rest_time_max;
    loop {
        world.mind_all()?;
        let waited = operator.wait_even(plan.nodes, WATCH_INTERVAL).await;
        match waited {
            Ok(_) => return Ok(Some(mended.elapsed().as_secs_f64())),
            Err(error) if Instant::now() > deadline => {
                world.blame(format!("not at rest {error:#}"));
                return Ok(None);
            }
            Err(_) => {}
        }
    }
}
