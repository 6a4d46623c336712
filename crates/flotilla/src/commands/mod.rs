//! The commands, one file each, and what they share: endpoints, output, errors.

mod bench;
mod check;
mod cluster;
mod del;
mod demo;
mod export;
mod get;
mod help;
mod import;
mod incr;
mod lost_quorum;
mod not_built;
mod operate;
mod put;
mod resume;
mod scan;
mod serve;

use clap::{Args, Subcommand};
use flotilla::client::{Answer, Ask, Client, Endpoint};
use flotilla::cluster_view::ClusterView;
use flotilla::text::{encode_key, parse_duration};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::Duration;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a local cluster in one command; Ctrl-C stops it.
    Demo(demo::DemoArgs),
    /// Run one node.
    Serve(Box<serve::ServeArgs>),
    /// Print the value of a key; exits 3 if there is no such key.
    Get(get::GetArgs),
    /// Write a key.
    Put(put::PutArgs),
    /// Delete a key.
    Del(del::DelArgs),
    /// Add to the integer that a key holds, and print the sum.
    Incr(incr::IncrArgs),
    /// Print keys and values in order.
    Scan(scan::ScanArgs),
    /// Write all keys and values to a file or standard output, a JSON object a line.
    Export(export::ExportArgs),
    /// Write keys and values from lines as `export` writes them; goes on where it was interrupted.
    Import(import::ImportArgs),
    /// Look at the cluster: nodes, shards, where a key lies.
    Cluster(cluster::ClusterArgs),
    /// Verify every checksum and invariant of the data-dir of a node that does not run.
    Check(check::CheckArgs),
    /// Generate load and print latency percentiles.
    Bench(Box<bench::BenchArgs>),
    /// Print the manual of a command, or its manual page.
    Help(help::HelpArgs),
    /// Print a shell's completions of this command line.
    Completions(help::CompletionsArgs),
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) enum CommandError {
    /// It was asked wrongly, or for what is not built: exit code 2.
    Usage(String),
    /// It failed: exit code 1.
    Failed(anyhow::Error),
}

/// Which cluster.
#[derive(Args, Clone, Debug)]
pub(crate) struct Target {
    /// HTTP APIs of the cluster's nodes; any will do, the next is tried if one does not answer.
    #[arg(long, value_name = "URL,URL", env = "FLOTILLA_ENDPOINT", value_delimiter = ',', default_value = "http://127.0.0.1:7070")]
    pub(crate) endpoint: Vec<Endpoint>,
    /// How long a request may take.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5s")]
    pub(crate) timeout: Duration,
}

impl Command {
    pub(crate) fn run(self) -> Result<ExitCode, CommandError> {
        match self {
            Command::Demo(args) => block_on(args.run()),
            Command::Serve(args) => args.run(),
            Command::Get(args) => block_on(args.run()),
            Command::Put(args) => block_on(args.run()),
            Command::Del(args) => block_on(args.run()),
            Command::Incr(args) => block_on(args.run()),
            Command::Scan(args) => block_on(args.run()),
            Command::Export(args) => block_on(args.run()),
            Command::Import(args) => block_on(args.run()),
            Command::Help(args) => args.run(),
            Command::Completions(args) => args.run(),
            Command::Cluster(args) => block_on(args.run()),
            Command::Check(args) => args.run(),
            Command::Bench(args) => block_on(args.run()),
            Command::Other(words) => Err(not_built::refuse(&words)),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for CommandError {
    fn from(error: E) -> CommandError {
        CommandError::Failed(error.into())
    }
}

impl Target {
    pub(crate) fn client(&self) -> Client {
        Client::new(self.endpoint.clone(), self.timeout)
    }

    /// The path of a key, with the time the server may take.
    pub(crate) fn key_path(&self, route: &str, key: &OsStr) -> Result<String, CommandError> {
        if key.is_empty() || key.len() > flotilla_types::KEY_BYTES_MAX {
            return Err(CommandError::Usage(format!("a key has 1 to {} bytes, this one has {}", flotilla_types::KEY_BYTES_MAX, key.len())));
        }
        // The server bounds requests to a minute.
        let milliseconds = self.timeout.as_millis().clamp(1, 60_000);
        Ok(format!("{route}/{}?timeout={milliseconds}ms", encode_key(key.as_bytes())))
    }

    /// Which cluster answers: an import or export is gone on with only at the same one.
    pub(crate) async fn cluster_id(&self) -> Result<String, CommandError> {
        let view: ClusterView = serde_json::from_slice(&self.client().fetch("/v1/cluster").await?)?;
        Ok(view.cluster_id)
    }

    /// Sends a request that either succeeds or fails with the server's reason.
    pub(crate) async fn send(&self, ask: &Ask) -> Result<Answer, CommandError> {
        let answer = self.client().send(ask).await?;
        if answer.is_success() { Ok(answer) } else { Err(CommandError::Failed(anyhow::anyhow!("{}", answer.problem()))) }
    }
}

fn block_on<F: Future<Output = Result<ExitCode, CommandError>>>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// Writes to standard output. A reader that went away (`| head`) is no failure.
pub(crate) fn print(bytes: &[u8]) -> Result<(), CommandError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a line to standard output.
pub(crate) fn print_line(line: &str) -> Result<(), CommandError> {
    print(format!("{line}\n").as_bytes())
}
