//! A cluster of node processes on loopback, to be broken.

use anyhow::Context;
use flotilla::client::Client;
use flotilla::cluster_view::ClusterView;
use flotilla::local_cluster::{NodeProcess, NodeSpec, free_addresses, wait_ready, wait_settled};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a node may take to be ready, and a cluster to be settled.
pub const START_TIME_MAX: Duration = Duration::from_secs(90);

/// The nodes; `None` for one that does not run.
#[derive(Debug)]
pub struct Cluster {
    binary: PathBuf,
    nodes: Vec<(NodeSpec, Option<NodeProcess>)>,
}

impl Cluster {
    /// Starts three nodes with their data in `folder`, and waits until every shard is on all of them.
    ///
    /// # Errors
    /// If they do not come up in time.
    pub async fn start(binary: &Path, folder: &Path) -> anyhow::Result<Cluster> {
        Cluster::start_of(binary, loopback_specs(folder, 3)?).await
    }

    /// The same with nodes given.
    ///
    /// # Errors
    /// If they do not come up in time.
    pub async fn start_of(binary: &Path, specs: Vec<NodeSpec>) -> anyhow::Result<Cluster> {
        let mut cluster = Cluster { binary: binary.to_owned(), nodes: specs.into_iter().map(|spec| (spec, None)).collect() };
        for at in 0..cluster.nodes.len() {
            cluster.launch(at)?;
        }
        cluster.wait_all_ready().await?;
        cluster.wait_settled().await?;
        Ok(cluster)
    }

    /// How many nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How node `at` is started.
    pub fn spec(&self, at: usize) -> &NodeSpec {
        &self.nodes[at].0
    }

    /// The same, to change it before the next start.
    pub fn spec_mut(&mut self, at: usize) -> &mut NodeSpec {
        &mut self.nodes[at].0
    }

    /// The HTTP APIs.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|(spec, _)| spec.http).collect()
    }

    /// The process ids of those that run.
    pub fn process_ids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|(_, process)| process.as_ref().map(NodeProcess::id)).collect()
    }

    /// A client of all nodes.
    pub fn client(&self) -> Client {
        Client::new(self.nodes.iter().map(|(spec, _)| spec.endpoint()).collect(), Duration::from_secs(5))
    }

    /// Adds a node, starts it and does not wait.
    ///
    /// # Errors
    /// If the process cannot be made.
    pub fn add(&mut self, spec: NodeSpec) -> anyhow::Result<()> {
        self.nodes.push((spec, None));
        self.launch(self.nodes.len() - 1)
    }

    /// Starts node `at` and does not wait.
    ///
    /// # Errors
    /// If the process cannot be made.
    pub fn launch(&mut self, at: usize) -> anyhow::Result<()> {
        let (spec, process) = &mut self.nodes[at];
        *process = Some(spec.start(&self.binary)?);
        Ok(())
    }

    /// kill -9.
    pub fn kill(&mut self, at: usize) {
        self.nodes[at].1 = None;
    }

    /// Sends a signal to node `at`, if it runs.
    pub fn signal(&self, at: usize, signal: i32) {
        if let Some(process) = &self.nodes[at].1 {
            process.signal(signal);
        }
    }

    /// kill -9 of all, the signals sent before any death is awaited.
    pub fn kill_all(&mut self) {
        self.kill_some(&(0..self.nodes.len()).collect::<Vec<_>>());
    }

    /// The same of these.
    pub fn kill_some(&mut self, places: &[usize]) {
        places.iter().for_each(|at| self.signal(*at, libc::SIGKILL));
        places.iter().for_each(|at| self.kill(*at));
    }

    /// Starts those that do not run, and waits until all is as at the start.
    ///
    /// # Errors
    /// If they do not come up in time.
    pub async fn relaunch_missing(&mut self) -> anyhow::Result<()> {
        for at in 0..self.nodes.len() {
            if self.nodes[at].1.is_none() {
                self.launch(at)?;
            }
        }
        self.wait_all_ready().await?;
        self.wait_settled().await?;
        Ok(())
    }

    /// Asks all to end; those that did not by themselves are named.
    pub fn stop(&mut self) -> Vec<String> {
        for (_, process) in &self.nodes {
            if let Some(process) = process {
                process.signal(libc::SIGTERM);
            }
        }
        let mut forced = Vec::new();
        for (spec, process) in &mut self.nodes {
            if process.take().is_some_and(|mut process| !process.stop()) {
                forced.push(spec.name.clone());
            }
        }
        forced
    }

    /// Asks node `at` to end, and waits for it.
    pub fn stop_one(&mut self, at: usize) {
        if let Some(mut process) = self.nodes[at].1.take() {
            process.stop();
        }
    }

    /// Whether node `at` was started and has not been taken away since; it may have ended by itself.
    pub fn is_running(&self, at: usize) -> bool {
        self.nodes[at].1.is_some()
    }

    /// Whether node `at` has ended.
    pub fn has_ended(&mut self, at: usize) -> bool {
        self.nodes[at].1.as_mut().is_none_or(|process| !matches!(process.ended(), Ok(None)))
    }

    /// Waits until node `at` is ready.
    ///
    /// # Errors
    /// If it ends, or takes too long.
    pub async fn wait_ready(&mut self, at: usize) -> anyhow::Result<()> {
        let (spec, process) = &mut self.nodes[at];
        let process = process.as_mut().with_context(|| format!("{} was not started", spec.name))?;
        wait_ready(spec, process, START_TIME_MAX).await
    }

    /// The same for all.
    ///
    /// # Errors
    /// If one ends, or takes too long.
    pub async fn wait_all_ready(&mut self) -> anyhow::Result<()> {
        for at in 0..self.nodes.len() {
            self.wait_ready(at).await?;
        }
        Ok(())
    }

    /// Waits until every shard is on all nodes and has a leader.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn wait_settled(&self) -> anyhow::Result<ClusterView> {
        wait_settled(&self.client(), self.nodes.len(), START_TIME_MAX).await
    }

    /// Nodes that ended though nobody ended them, with their last words.
    pub fn unexpectedly_ended(&mut self) -> Vec<String> {
        let ended = |(spec, process): &mut (NodeSpec, Option<NodeProcess>)| {
            let status = process.as_mut()?.ended().ok()??;
            Some(format!("{} ended ({status}): {}", spec.name, spec.output_tail()))
        };
        self.nodes.iter_mut().filter_map(ended).collect()
    }
}

/// `count` nodes `n1`, `n2`… on ports of the system's choice; the first makes the cluster.
///
/// # Errors
/// If there are no ports.
pub fn loopback_specs(folder: &Path, count: usize) -> anyhow::Result<Vec<NodeSpec>> {
    let addresses = free_addresses(2 * count, None).context("looking for free ports")?;
    let join = |at: usize| if at == 0 { Vec::new() } else { vec![addresses[0]] };
    Ok((0..count).map(|at| NodeSpec::new(&format!("n{}", at + 1), folder, addresses[at], addresses[count + at], join(at))).collect())
}

/// Flags from text.
pub fn flags(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}
