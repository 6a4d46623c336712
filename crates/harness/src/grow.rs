//! A cluster that grows from one node to three and five, and shrinks to three again, while clients write real data: is
//! anything refused or lost, how much is moved, and is the load even afterwards?

use crate::cluster::{Cluster, loopback_specs};
use crate::kill::verdict_line;
use crate::operator::spread;
use crate::real_data::packages;
use crate::verify::{Expected, Verdict, verify};
use crate::wire::Wire;
use anyhow::{Context, bail};
use flotilla::cluster_view::ClusterView;
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long one step may take.
const STEP_TIME_MAX: Duration = Duration::from_secs(300);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// The nodes there are in the end at most, and which of them go again: the first, which made the cluster, among them.
const NODES_MAX: usize = 5;
const LEAVING: [usize; 2] = [0, 3];

/// How the run goes.
#[derive(Clone, Debug)]
pub struct GrowPlan {
    /// Clients that write, each its own share of the packages, version after version.
    pub clients: usize,
    /// Of the packages, the first so many; `None`: all.
    pub packages_max: Option<usize>,
}

/// One step.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// What was done.
    pub what: String,
    /// Seconds until everything was where it belongs.
    pub seconds: f64,
    /// Copies of shards that came to another node.
    pub moved: usize,
    /// How many had to.
    pub minimum: usize,
    /// Snapshots that were installed meanwhile, the control group's among them.
    pub snapshots: u64,
    /// The fewest and the most copies of a node afterwards.
    pub replicas: (u64, u64),
    /// The same of leaders.
    pub leaders: (u64, u64),
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct GrowReport {
    /// Packages, and the versions of each that were written at least.
    pub packages: usize,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Writes refused with 503 and sent again.
    pub retried: u64,
    /// Anything else that was no acknowledgement, in words, with its number.
    pub failed: BTreeMap<String, u64>,
    /// The steps.
    pub steps: Vec<Step>,
    /// Every key asked of every node that is left.
    pub verdict: Verdict,
    /// Nodes that ended though nobody ended them.
    pub unexpectedly_ended: Vec<String>,
}

impl GrowReport {
    /// Whether nothing was refused or lost, and all is even.
    pub fn is_fine(&self) -> bool {
        let even = |(fewest, most): (u64, u64)| most - fewest <= 1;
        self.failed.is_empty()
            && self.verdict.is_fine()
            && self.unexpectedly_ended.is_empty()
            && self.steps.iter().all(|step| even(step.replicas) && even(step.leaders) && step.moved * 10 <= step.minimum * 11)
    }

    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let step = |step: &Step| {
            format!(
                "{}: {:.1} s; {} copies moved, {} had to, {} snapshots; {} to {} copies and {} to {} leaders a node",
                step.what,
                step.seconds,
                step.moved,
                step.minimum,
                step.snapshots,
                step.replicas.0,
                step.replicas.1,
                step.leaders.0,
                step.leaders.1
            )
        };
        let writes = format!(
            "{} packages, {} writes acknowledged, {} refused with 503 and sent again, {} failed otherwise",
            self.packages,
            self.acknowledged,
            self.retried,
            self.failed.values().sum::<u64>()
        );
        let failed = self.failed.iter().map(|(what, count)| format!("{count} times {what}"));
        self.steps
            .iter()
            .map(step)
            .chain([writes])
            .chain(failed)
            .chain([verdict_line(&self.verdict)])
            .chain(self.verdict.described.iter().chain(&self.unexpectedly_ended).cloned())
            .collect()
    }
}

/// What the clients share.
struct Load {
    source: Vec<(Vec<u8>, Vec<u8>)>,
    /// The version of each package that was acknowledged last, and the one after it if nobody knows.
    written: RefCell<Vec<(u32, Option<u32>)>>,
    /// Nodes that may be asked: those that are to stay.
    addresses: RefCell<Vec<SocketAddr>>,
    acknowledged: Cell<u64>,
    retried: Cell<u64>,
    failed: RefCell<BTreeMap<String, u64>>,
    stop: Cell<bool>,
}

/// A package's value in one of its versions.
fn version_of(value: &[u8], version: u32) -> Vec<u8> {
    [format!("Flotilla-Version: {version}\n").as_bytes(), value].concat()
}

/// Runs it with all data in `folder`.
///
/// # Errors
/// If a step does not come to its end.
pub async fn run(binary: &Path, folder: &Path, plan: &GrowPlan, say: impl Fn(String)) -> anyhow::Result<GrowReport> {
    let source: Vec<_> = packages()?.into_iter().take(plan.packages_max.unwrap_or(usize::MAX)).collect();
    let specs = loopback_specs(folder, NODES_MAX)?;
    let mut cluster = Cluster::start_of(binary, vec![specs[0].clone()]).await?;
    let load = Rc::new(Load {
        written: RefCell::new(vec![(0, None); source.len()]),
        source,
        addresses: RefCell::new(vec![specs[0].http]),
        acknowledged: Cell::new(0),
        retried: Cell::new(0),
        failed: RefCell::default(),
        stop: Cell::new(false),
    });
    let clients: Vec<_> = (0..plan.clients).map(|number| tokio::task::spawn_local(write(Rc::clone(&load), number, plan.clients))).collect();
    let mut steps = Vec::new();
    for grown in [3, NODES_MAX] {
        // As much again is written first, so that there is something to move.
        until_written(&load, load.acknowledged.get() + load.source.len() as u64 / 2).await?;
        let mut step = Watch::begin(&cluster, &load, format!("{} to {grown} nodes", cluster.len())).await?;
        for spec in &specs[cluster.len()..grown] {
            let mut spec = spec.clone();
            spec.join = vec![specs[0].http];
            cluster.add(spec)?;
        }
        cluster.wait_all_ready().await?;
        load.addresses.replace(specs[..grown].iter().map(|spec| spec.http).collect());
        steps.push(step.end(grown).await?);
        say(format!("{grown} nodes"));
    }
    until_written(&load, load.acknowledged.get() + load.source.len() as u64 / 2).await?;
    let stay: Vec<SocketAddr> = (0..NODES_MAX).filter(|at| !LEAVING.contains(at)).map(|at| specs[at].http).collect();
    load.addresses.replace(stay.clone());
    let mut step = Watch::begin(&cluster, &load, format!("{NODES_MAX} to {} nodes", stay.len())).await?;
    let mut operator = Wire::new(stay[0], Duration::from_secs(10));
    for at in LEAVING {
        let path = format!("/v1/cluster/nodes/{}", specs[at].name);
        let deadline = Instant::now() + STEP_TIME_MAX;
        loop {
            match operator.exchange("DELETE", &path, b"").await {
                Ok(reply) if reply.status == 200 => break,
                Ok(reply) if matches!(reply.status, 202 | 503 | 504) && Instant::now() < deadline => {}
                Ok(reply) => bail!("removing {}: {} {}", specs[at].name, reply.status, String::from_utf8_lossy(&reply.body)),
                Err(error) if Instant::now() > deadline => bail!("removing {}: {error}", specs[at].name),
                Err(_) => {}
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        // It says that it was removed, and ends by itself.
        while !cluster.has_ended(at) {
            if Instant::now() > deadline {
                bail!("{} was removed and does not end", specs[at].name);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        cluster.kill(at);
        say(format!("{} is gone", specs[at].name));
    }
    steps.push(step.end(stay.len()).await?);
    load.stop.set(true);
    for client in clients {
        client.await.context("a client panicked")?;
    }
    let written = load.written.borrow().clone();
    // What nobody knows of is counted as failed already.
    let known = load.source.iter().zip(&written).filter(|(_, (_, unknown))| unknown.is_none());
    let expected = known.map(|((key, value), (version, _))| {
        let expected = if *version == 0 { Expected::Absent } else { Expected::Value(version_of(value, *version)) };
        (key.clone(), expected)
    });
    let expected = Rc::new(expected.collect());
    let verdict = verify(&stay, &expected, false).await;
    let unexpectedly_ended = cluster.unexpectedly_ended();
    cluster.stop();
    Ok(GrowReport {
        packages: load.source.len(),
        acknowledged: load.acknowledged.get(),
        retried: load.retried.get(),
        failed: load.failed.borrow().clone(),
        steps,
        verdict,
        unexpectedly_ended,
    })
}

/// One client: its share of the packages, a version of each after the other.
async fn write(load: Rc<Load>, number: usize, clients: usize) {
    let address = |turn: usize| {
        let addresses = load.addresses.borrow();
        addresses[turn % addresses.len()]
    };
    let (mut turn, mut at) = (number, address(number));
    let mut wire = Wire::new(at, Duration::from_secs(10));
    for version in 1.. {
        for place in (number..load.source.len()).step_by(clients) {
            let (key, value) = &load.source[place];
            let value = version_of(value, version);
            let path = format!("/v1/kv/{}", flotilla::text::encode_key(key));
            loop {
                if load.stop.get() {
                    return;
                }
                // Its node may be about to go.
                if !load.addresses.borrow().contains(&at) {
                    (turn, at) = (turn + 1, address(turn + 1));
                    wire.turn_to(at);
                }
                let answer = wire.exchange("PUT", &path, &value).await;
                let written = |to: (u32, Option<u32>)| load.written.borrow_mut()[place] = to;
                match answer {
                    Ok(reply) if (200..300).contains(&reply.status) => {
                        written((version, None));
                        load.acknowledged.set(load.acknowledged.get() + 1);
                        break;
                    }
                    Ok(reply) if reply.status == 503 && reply.not_applied => load.retried.set(load.retried.get() + 1),
                    other => {
                        let what = match other {
                            Ok(reply) => format!("status {}: {}", reply.status, String::from_utf8_lossy(&reply.body)),
                            Err(error) => error.to_string(),
                        };
                        *load.failed.borrow_mut().entry(what).or_default() += 1;
                        // Written again with the same value, which does no harm.
                        written((version - 1, Some(version)));
                    }
                }
                (turn, at) = (turn + 1, address(turn + 1));
                wire.turn_to(at);
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
        // A share of nothing would never wait.
        tokio::task::yield_now().await;
    }
}

async fn until_written(load: &Load, count: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + STEP_TIME_MAX;
    while load.acknowledged.get() < count {
        if Instant::now() > deadline {
            bail!("{} of {count} writes were acknowledged in {} s", load.acknowledged.get(), STEP_TIME_MAX.as_secs());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// A step while it lasts.
struct Watch {
    what: String,
    client: flotilla::client::Client,
    began: Instant,
    before: BTreeSet<(u64, String)>,
    load: Rc<Load>,
}

impl Watch {
    async fn begin(cluster: &Cluster, load: &Rc<Load>, what: String) -> anyhow::Result<Watch> {
        let client = cluster.client();
        let before = copies(&view(&client).await?);
        Ok(Watch { what, client, began: Instant::now(), before, load: Rc::clone(load) })
    }

    /// Waits until that many nodes hold everything, evenly.
    async fn end(&mut self, nodes: usize) -> anyhow::Result<Step> {
        let deadline = self.began + STEP_TIME_MAX;
        // Whoever joined since is asked too.
        let addresses = self.load.addresses.borrow().clone();
        let endpoints = addresses.iter().map(|address| flotilla::client::Endpoint { authority: address.to_string() }).collect();
        self.client = flotilla::client::Client::new(endpoints, Duration::from_secs(5));
        loop {
            if let Ok(view) = view(&self.client).await
                && view.members().count() == nodes
                && view.is_settled()
                && spread(&view, |node| node.leaders).is_some_and(|(fewest, most)| most - fewest <= 1)
            {
                return self.report(&view, &addresses).await;
            }
            if Instant::now() > deadline {
                bail!("{}: not even in {} s: {:?}", self.what, STEP_TIME_MAX.as_secs(), view(&self.client).await.map(|view| view.health()));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn report(&self, view: &ClusterView, addresses: &[SocketAddr]) -> anyhow::Result<Step> {
        let after = copies(view);
        let moved = after.difference(&self.before).count();
        let members: BTreeSet<&str> = view.members().map(|node| node.name.as_str()).collect();
        let had: BTreeSet<&str> = self.before.iter().map(|(_, node)| node.as_str()).collect();
        let newcomers = members.iter().filter(|name| !had.contains(*name)).count();
        // What left must be somewhere else; whoever came gets at least its share, rounded down; and copies that were missing.
        let left = self.before.iter().filter(|(_, node)| !members.contains(node.as_str())).count();
        let share = after.len() / members.len();
        let minimum = left.max(newcomers * share);
        Ok(Step {
            what: self.what.clone(),
            seconds: self.began.elapsed().as_secs_f64(),
            moved,
            minimum,
            snapshots: snapshots_installed(addresses).await?,
            replicas: spread(view, |node| node.replicas).unwrap_or_default(),
            leaders: spread(view, |node| node.leaders).unwrap_or_default(),
        })
    }
}

async fn view(client: &flotilla::client::Client) -> anyhow::Result<ClusterView> {
    Ok(serde_json::from_slice(&client.fetch("/v1/cluster").await?)?)
}

/// Which node has a copy of which shard.
fn copies(view: &ClusterView) -> BTreeSet<(u64, String)> {
    view.shards.iter().flat_map(|shard| shard.replicas.iter().map(|replica| (shard.id, replica.node.clone()))).collect()
}

/// How many snapshots these nodes have installed since they started.
async fn snapshots_installed(addresses: &[SocketAddr]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for address in addresses {
        let reply = Wire::new(*address, Duration::from_secs(5)).exchange("GET", "/metrics", b"").await?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("flotilla_snapshots_installed_total "));
        sum += line.and_then(|value| value.trim().parse::<f64>().ok()).unwrap_or(0.0) as u64;
    }
    Ok(sum)
}
