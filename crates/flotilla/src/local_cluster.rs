//! Nodes as processes of this machine: started from the same binary, watched, stopped by their id.
//!
//! A child never outlives the thread that started it: the kernel kills it then (`PR_SET_PDEATHSIG`),
//! which a store that survives kill -9 can bear. Each has a process group of its own, so that Ctrl-C
//! on a terminal reaches only the one that started them, which then stops them in order.
#![allow(unsafe_code, reason = "prctl between fork and exec, and signals to a known id, have no safe face in std")]

use crate::client::{Client, Endpoint};
use crate::cluster_view::ClusterView;
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a node has to end after it was asked to, before it is killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);
/// How often the state of something is asked for while waiting for it.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How a node is started; the same on each restart.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// Its stable name.
    pub name: String,
    /// Its data folder.
    pub data_dir: PathBuf,
    /// Where its standard output and error go, added to on each start.
    pub output: PathBuf,
    /// Its HTTP API.
    pub http: SocketAddr,
    /// Its node-to-node door.
    pub peer: SocketAddr,
    /// HTTP APIs of members to join by; none: it makes the cluster.
    pub join: Vec<SocketAddr>,
    /// Further flags of `serve`.
    pub flags: Vec<OsString>,
    /// Put before the binary, such as `ip netns exec NAME`.
    pub wrapper: Vec<OsString>,
    /// Added to its environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// A running node; killed when dropped.
#[derive(Debug)]
pub struct NodeProcess {
    child: Child,
}

impl NodeSpec {
    /// A node on loopback, its folder and output under `folder`.
    pub fn new(name: &str, folder: &Path, http: SocketAddr, peer: SocketAddr, join: Vec<SocketAddr>) -> NodeSpec {
        let (data_dir, output) = (folder.join(name), folder.join(format!("{name}.output")));
        NodeSpec {
            name: name.to_owned(),
            data_dir,
            output,
            http,
            peer,
            join,
            flags: Vec::new(),
            wrapper: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// What follows the binary's name.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["serve".into(), "--data-dir".into(), self.data_dir.clone().into()];
        let mut flag = |name: &str, value: String| arguments.extend([name.into(), value.into()]);
        flag("--name", self.name.clone());
        flag("--http-addr", self.http.to_string());
        flag("--peer-addr", self.peer.to_string());
        if !self.join.is_empty() {
            let urls: Vec<String> = self.join.iter().map(|address| format!("http://{address}")).collect();
            flag("--join", urls.join(","));
        }
        arguments.extend(self.flags.iter().cloned());
        arguments
    }

    /// Where clients reach it.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint { authority: self.http.to_string() }
    }

    /// The last lines it wrote, for an error message.
    pub fn output_tail(&self) -> String {
        let text = fs::read(&self.output).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// Starts the node.
    ///
    /// # Errors
    /// If the process cannot be made; what it then does is its own affair.
    pub fn start(&self, binary: &Path) -> anyhow::Result<NodeProcess> {
        let output =
            File::options().create(true).append(true).open(&self.output).with_context(|| format!("opening {}", self.output.display()))?;
        let mut words = self.wrapper.iter().cloned().chain([binary.into()]).chain(self.arguments());
        let program = words.next().context("a program to start")?;
        let mut command = Command::new(&program);
        command.args(words).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Settings meant for another node must not reach this one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FLOTILLA_")) {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().cloned());
        Ok(NodeProcess { child: spawn_bound(&mut command).with_context(|| format!("starting {}", program.display()))? })
    }
}

impl NodeProcess {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal, such as `SIGSTOP`.
    pub fn signal(&self, signal: i32) {
        // SAFETY: no memory is involved; the id is that of our own child, which has not been waited
        // for while `self.child` is borrowed, so that it cannot have been given to another process.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Asks it to end, waits, and kills it if that takes too long. Says whether it ended by itself.
    pub fn stop(&mut self) -> bool {
        if matches!(self.ended(), Ok(None)) {
            self.signal(libc::SIGTERM);
        }
        let deadline = Instant::now() + STOP_TIME_MAX;
        while Instant::now() < deadline {
            if !matches!(self.ended(), Ok(None)) {
                return true;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        self.kill();
        false
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a process that dies with the calling thread, in a process group of its own.
///
/// # Errors
/// If it cannot be started.
pub fn spawn_bound(command: &mut Command) -> std::io::Result<Child> {
    command.process_group(0);
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The parent may have ended before the line above.
            if libc::getppid() as u32 != parent {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        });
    }
    command.spawn()
}

/// `count` addresses of loopback that nobody listens on: `preferred` onwards if all of those are
/// free, else of the system's choice. They can be taken before they are used; then the node says so.
///
/// # Errors
/// If there are none.
pub fn free_addresses(count: usize, preferred: Option<u16>) -> std::io::Result<Vec<SocketAddr>> {
    let bind = |port: u16| TcpListener::bind(("127.0.0.1", port));
    let run = preferred.and_then(|first| (0..count as u16).map(|i| bind(first + i)).collect::<Result<Vec<_>, _>>().ok());
    let listeners = run.map_or_else(|| (0..count).map(|_| bind(0)).collect(), Ok)?;
    listeners.iter().map(TcpListener::local_addr).collect()
}

/// Waits until `/readyz` of a node is 200.
///
/// # Errors
/// If that takes longer than `time_max`, or the process ends.
pub async fn wait_ready(spec: &NodeSpec, process: &mut NodeProcess, time_max: Duration) -> anyhow::Result<()> {
    let client = Client::new(vec![spec.endpoint()], Duration::from_secs(1));
    let deadline = Instant::now() + time_max;
    let mut last = String::new();
    while Instant::now() < deadline {
        if let Some(status) = process.ended()? {
            bail!("{} ended ({status}): {}", spec.name, spec.output_tail());
        }
        match client.fetch("/readyz").await {
            Ok(_) => return Ok(()),
            Err(error) => last = format!("{error:#}"),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    bail!("{} was not ready after {time_max:?}: {last}; {}", spec.name, spec.output_tail())
}

/// Waits until every shard has its leader and all its copies, on `node_count` nodes that are up.
///
/// # Errors
/// If that takes longer than `time_max`.
pub async fn wait_settled(client: &Client, node_count: usize, time_max: Duration) -> anyhow::Result<ClusterView> {
    let deadline = Instant::now() + time_max;
    let mut last = String::new();
    while Instant::now() < deadline {
        match client.fetch("/v1/cluster").await {
            Ok(body) => {
                let view: ClusterView = serde_json::from_slice(&body).context("the answer of /v1/cluster")?;
                if view.is_settled() && view.members().count() == node_count {
                    return Ok(view);
                }
                last = view.health().join("; ");
            }
            Err(error) => last = format!("{error:#}"),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    bail!("the cluster was not settled on {node_count} nodes after {time_max:?}: {last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_dies_with_the_thread_that_started_it() {
        let id = std::thread::spawn(|| spawn_bound(Command::new("sleep").arg("600")).expect("sleep is there")).join().expect("no panic");
        let mut child = id;
        let deadline = Instant::now() + Duration::from_secs(10);
        while child.try_wait().expect("our child").is_none() {
            assert!(Instant::now() < deadline, "it lives on");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    #[test]
    fn taken_ports_are_passed_over() {
        let taken =
            TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().map(|address| (TcpListener::bind(address), address));
        let (_, address) = taken.expect("bound");
        let listener = TcpListener::bind(address).expect("just let go");
        let found = free_addresses(2, Some(address.port().saturating_sub(1).max(1024))).expect("free ports");
        assert!(!found.contains(&listener.local_addr().expect("bound")));
    }
}
