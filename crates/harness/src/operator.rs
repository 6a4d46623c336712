//! What an operator does to a cluster that is being broken: asks at whichever node answers, again and
//! again, for what is wanted, and waits until everything is where it belongs.

use crate::wire::{Reply, Wire};
use anyhow::{Context, bail};
use flotilla::cluster_view::{ClusterView, NodeView};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What a request may take; a node that stands still costs as much and the grace of [`Wire`].
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How often something is asked for while waiting for it.
pub const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// One who asks the nodes in turn.
#[derive(Clone, Debug)]
pub struct Operator {
    addresses: Vec<SocketAddr>,
    turn: usize,
}

impl Operator {
    /// Asks these nodes.
    pub fn new(addresses: Vec<SocketAddr>) -> Operator {
        Operator { addresses, turn: 0 }
    }

    /// Asks the nodes in turn, until one answers with something else than "not now". Only for what does no harm when it
    /// is asked twice.
    ///
    /// # Errors
    /// If none does, in one round.
    pub async fn ask(&mut self, method: &str, path: &str) -> anyhow::Result<Reply> {
        let mut last = String::new();
        for _ in 0..self.addresses.len() {
            let mut wire = Wire::new(self.addresses[self.turn % self.addresses.len()], REQUEST_TIMEOUT);
            let bounded = format!("{path}{}timeout={}ms", if path.contains('?') { '&' } else { '?' }, REQUEST_TIMEOUT.as_millis());
            match wire.exchange(method, &bounded, b"").await {
                Ok(reply) if !matches!(reply.status, 500 | 503 | 504) => return Ok(reply),
                Ok(reply) => last = format!("{} {}", reply.status, String::from_utf8_lossy(&reply.body)),
                Err(error) => last = error.to_string(),
            }
            self.turn += 1;
        }
        bail!("{method} {path}: {last}")
    }

    /// The same until the answer has one of these statuses.
    ///
    /// # Errors
    /// If that takes too long, with the last answer.
    pub async fn ask_until(&mut self, method: &str, path: &str, statuses: &[u16], time_max: Duration) -> anyhow::Result<Reply> {
        let deadline = Instant::now() + time_max;
        loop {
            let last = match self.ask(method, path).await {
                Ok(reply) if statuses.contains(&reply.status) => return Ok(reply),
                Ok(reply) => format!("{} {}", reply.status, String::from_utf8_lossy(&reply.body)),
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                bail!("{method} {path} after {} s: {last}", time_max.as_secs());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// The cluster as the control group's leader sees it.
    ///
    /// # Errors
    /// If no node gives it.
    pub async fn view(&mut self) -> anyhow::Result<ClusterView> {
        let reply = self.ask("GET", "/v1/cluster").await?;
        serde_json::from_slice(&reply.body).context("the answer of /v1/cluster")
    }

    /// Waits until `is_so`.
    ///
    /// # Errors
    /// If that takes too long, with what there is instead.
    pub async fn wait_until(&mut self, time_max: Duration, is_so: impl Fn(&ClusterView) -> bool) -> anyhow::Result<ClusterView> {
        let deadline = Instant::now() + time_max;
        loop {
            let last = match self.view().await {
                Ok(view) if is_so(&view) => return Ok(view),
                Ok(view) => describe(&view),
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                bail!("after {} s: {last}", time_max.as_secs());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until `nodes` of them hold everything, evenly, and nothing moves.
    ///
    /// # Errors
    /// As there.
    pub async fn wait_even(&mut self, nodes: usize, time_max: Duration) -> anyhow::Result<ClusterView> {
        self.wait_until(time_max, |view| view.members().count() == nodes && is_even(view)).await
    }
}

/// Whether everything is where it belongs, and copies and leaders are even within one.
fn is_even(view: &ClusterView) -> bool {
    let even = |of: fn(&NodeView) -> Option<u64>| spread(view, of).is_some_and(|(fewest, most)| most - fewest <= 1);
    view.is_settled() && even(|node| node.replicas) && even(|node| node.leaders)
}

/// The fewest and the most of something that a member has.
pub fn spread(view: &ClusterView, of: impl Fn(&NodeView) -> Option<u64>) -> Option<(u64, u64)> {
    let counts: Vec<u64> = view.members().filter_map(of).collect();
    Some((*counts.iter().min()?, *counts.iter().max()?))
}

/// What is not as it should be, for a message.
pub fn describe(view: &ClusterView) -> String {
    let node = |node: &NodeView| {
        format!("{} {} with {} copies, {} leaders", node.name, node.state, node.replicas.unwrap_or(0), node.leaders.unwrap_or(0))
    };
    let nodes: Vec<String> = view.members().map(node).collect();
    let moves: Vec<String> = view.moves.iter().take(6).map(|one| format!("{one:?}")).collect();
    format!("{}; {}; moves: {}", view.health().join("; "), nodes.join(", "), moves.join(" "))
}
