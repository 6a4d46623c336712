//! `flotilla demo`: a cluster of real node processes on this machine. Any of them can be killed, to
//! see what happens.
//!
//! Ports are 7070, 7071… for HTTP if all of them are free, else of the system's choice; with `--dir`
//! they are kept there for the next time, since the nodes know each other by them.

use super::{CommandError, print_line};
use anyhow::Context;
use clap::Args;
use flotilla::client::Client;
use flotilla::local_cluster::{NodeProcess, NodeSpec, free_addresses, wait_ready, wait_settled};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

const FIRST_HTTP_PORT: u16 = 7070;
const FIRST_PEER_PORT: u16 = 7170;
/// How long the nodes may take until they answer, and until every shard has all its copies.
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// How often the nodes are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=25))]
    nodes: u16,
    /// Keep the data here; without it, it lies in a temporary folder and is gone afterwards.
    #[arg(long)]
    dir: Option<PathBuf>,
}

struct Demo {
    binary: PathBuf,
    nodes: Vec<(NodeSpec, Option<NodeProcess>)>,
}

impl DemoArgs {
    pub(super) async fn run(self) -> Result<ExitCode, CommandError> {
        // Before the first child, so that a signal in between does not end this process alone.
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let temporary = match &self.dir {
            Some(dir) => {
                std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
                None
            }
            None => Some(tempfile::Builder::new().prefix("flotilla-demo-").tempdir().context("making a temporary folder")?),
        };
        let folder = temporary.as_ref().map_or_else(|| self.dir.clone().unwrap_or_default(), |folder| folder.path().to_path_buf());
        let mut demo = tokio::select! {
            demo = Demo::start(usize::from(self.nodes), &folder) => demo?,
            () = either(&mut interrupt, &mut terminate) => return Ok(ExitCode::SUCCESS),
        };
        demo.greet(temporary.is_none().then_some(folder.as_path()))?;
        tokio::select! {
            never = demo.watch() => never?,
            () = either(&mut interrupt, &mut terminate) => {}
        }
        demo.stop();
        Ok(ExitCode::SUCCESS)
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

impl Demo {
    async fn start(count: usize, folder: &Path) -> anyhow::Result<Demo> {
        let (first, kept) = match kept_addresses(folder, count)? {
            Some(addresses) => (addresses, true),
            None => (choose_addresses(count, true)?, false),
        };
        match Demo::start_at(&first, folder).await {
            // A port may have been taken between choosing and using it; the system's choice is safer.
            Err(_) if !kept => Demo::start_at(&choose_addresses(count, false)?, folder).await,
            started => started,
        }
    }

    async fn start_at(addresses: &[(SocketAddr, SocketAddr)], folder: &Path) -> anyhow::Result<Demo> {
        std::fs::write(addresses_file(folder), serde_json::to_vec(addresses)?).context("writing down the addresses")?;
        let binary = std::env::current_exe().context("finding this program")?;
        let mut nodes = Vec::new();
        for (at, (http, peer)) in addresses.iter().enumerate() {
            // The first makes the cluster, the others join by it.
            let join = if at == 0 { Vec::new() } else { vec![addresses[0].0] };
            let spec = NodeSpec::new(&format!("n{}", at + 1), folder, *http, *peer, join);
            let process = spec.start(&binary)?;
            nodes.push((spec, Some(process)));
        }
        let mut demo = Demo { binary, nodes };
        for (spec, process) in &mut demo.nodes {
            wait_ready(spec, process.as_mut().context("just started")?, START_TIME_MAX).await?;
        }
        wait_settled(&demo.client(), addresses.len(), START_TIME_MAX).await?;
        Ok(demo)
    }

    fn client(&self) -> Client {
        Client::new(self.nodes.iter().map(|(spec, _)| spec.endpoint()).collect(), Duration::from_secs(2))
    }

    fn greet(&self, kept_in: Option<&Path>) -> Result<(), CommandError> {
        let url = |at: usize| format!("http://{}", self.nodes[at].0.http);
        let last = url(self.nodes.len() - 1);
        print_line(&match self.nodes.len() {
            1 => "A cluster of one node is up.".to_owned(),
            count => format!("A cluster of {count} nodes is up; every key is on {} of them.", count.min(3)),
        })?;
        for at in 0..self.nodes.len() {
            print_line(&url(at))?;
        }
        print_line("\nTry, in another terminal:")?;
        print_line(&format!("  curl -X PUT {}/v1/kv/greeting -d 'hello'", url(0)))?;
        print_line(&format!("  curl {last}/v1/kv/greeting"))?;
        print_line(&format!("  flotilla cluster status --endpoint {}", url(0)))?;
        if let Some((_, Some(victim))) = self.nodes.get(2) {
            print_line(&format!("  kill -9 {}    # one node; the others go on", victim.id()))?;
        }
        print_line(&match kept_in {
            Some(folder) => format!("\nData is kept in {}. Ctrl-C stops the cluster.", folder.display()),
            None => "\nCtrl-C stops the cluster and removes its data.".to_owned(),
        })
    }

    /// Says when a node ends, and how to have it back; never returns by itself.
    async fn watch(&mut self) -> anyhow::Result<()> {
        loop {
            for (spec, process) in &mut self.nodes {
                let Some(status) = process.as_mut().map(NodeProcess::ended).transpose()?.flatten() else { continue };
                *process = None;
                let arguments: Vec<String> = spec.arguments().iter().map(|word| word.to_string_lossy().into_owned()).collect();
                eprintln!("flotilla: node {} at http://{} ended ({status}). To have it back:", spec.name, spec.http);
                eprintln!("  {} {}", self.binary.display(), arguments.join(" "));
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }

    fn stop(&mut self) {
        let running: Vec<&mut NodeProcess> = self.nodes.iter_mut().filter_map(|(_, process)| process.as_mut()).collect();
        // All at once, so that they do not spend their last moments electing each other.
        for process in &running {
            process.signal(libc::SIGTERM);
        }
        for process in running {
            process.stop();
        }
    }
}

fn choose_addresses(count: usize, familiar: bool) -> anyhow::Result<Vec<(SocketAddr, SocketAddr)>> {
    let preferred = |port| familiar.then_some(port);
    let http = free_addresses(count, preferred(FIRST_HTTP_PORT)).context("looking for free ports")?;
    let peer = free_addresses(count, preferred(FIRST_PEER_PORT)).context("looking for free ports")?;
    Ok(http.into_iter().zip(peer).collect())
}

fn addresses_file(folder: &Path) -> PathBuf {
    folder.join("addresses.json")
}

/// The addresses of the cluster whose data is in `folder`, if there is one.
fn kept_addresses(folder: &Path, count: usize) -> anyhow::Result<Option<Vec<(SocketAddr, SocketAddr)>>> {
    let Ok(bytes) = std::fs::read(addresses_file(folder)) else { return Ok(None) };
    let kept: Vec<(SocketAddr, SocketAddr)> =
        serde_json::from_slice(&bytes).with_context(|| format!("reading {}", addresses_file(folder).display()))?;
    anyhow::ensure!(
        kept.len() == count,
        "{} holds a cluster of {} nodes: start it with --nodes {}",
        folder.display(),
        kept.len(),
        kept.len()
    );
    Ok(Some(kept))
}
