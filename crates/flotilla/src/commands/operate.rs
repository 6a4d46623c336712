//! `flotilla cluster remove|drain|replace|rebalance|leader`: what an operator wants of the cluster.
//!
//! The cluster does the work by itself once it has agreed to it. A command asks again until it is done, and shows how far it
//! is on a terminal; whoever interrupts it interrupts only the showing.

use super::{CommandError, Target, print, print_line};
use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use flotilla::client::{Answer, Ask};
use flotilla::cluster_view::ClusterView;
use flotilla::text::encode_key;
use flotilla_types::ByteSize;
use hyper::Method;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Between two questions how far it is.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// Refusals that pass by themselves (no leader just now) are asked through for this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a request is made and waited for.
#[derive(Args, Debug)]
pub(super) struct Manner {
    /// Only say what would happen.
    #[arg(long)]
    dry_run: bool,
    /// Do not wait until it is done.
    #[arg(long)]
    no_wait: bool,
    /// Print the HTTP API's last answer.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Args, Debug)]
pub(super) struct RemoveArgs {
    /// The node's name.
    node: String,
    /// It is dead and never comes back: remove it at once, and copy what it held from the others.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    manner: Manner,
}

#[derive(Args, Debug)]
pub(super) struct DrainArgs {
    /// The node's name.
    node: String,
    /// Take a drain, or a removal under way, back: the node gets its share again.
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    manner: Manner,
}

#[derive(Args, Debug)]
pub(super) struct ReplaceArgs {
    /// The node that is to go, dead or alive.
    old: String,
    /// The member that takes its place.
    new: String,
    #[command(flatten)]
    manner: Manner,
}

#[derive(Args, Debug)]
pub(super) struct LeaderArgs {
    /// The shard's number.
    shard: String,
    /// The node that shall lead it; any other than now unless it is given.
    #[arg(long)]
    to: Option<String>,
    #[command(flatten)]
    manner: Manner,
}

#[derive(Debug, Subcommand)]
pub(super) enum RebalanceCommand {
    /// No more moves for the sake of balance; those that bring missing copies go on.
    Pause(Manner),
    /// Move for the sake of balance again.
    Resume(Manner),
    /// Bound how fast each node sends replicas on the move.
    Limit {
        /// Bytes a second, such as 64MiB; 0 for no bound.
        rate: ByteSize,
        #[command(flatten)]
        manner: Manner,
    },
    /// Say how it is.
    Status(Manner),
}

/// What the routes about a node answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeTask {
    node: String,
    state: String,
    replicas_left: u64,
    bytes_left: u64,
    warnings: Vec<String>,
    plan: Vec<PlannedChange>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PlannedChange {
    shard: Option<u64>,
    from: Vec<String>,
    to: Vec<String>,
    bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RebalancingTask {
    paused: bool,
    bytes_per_second: u64,
}

impl RemoveArgs {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let path = format!("/v1/cluster/nodes/{}", segment(&self.node));
        let parameters = if self.force { "force=true" } else { "" };
        let done = if self.force { "is removed; what it held is being copied from others" } else { "is removed: its data may be wiped" };
        self.manner.node_task(Method::DELETE, &path, parameters, done).await
    }
}

impl DrainArgs {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let path = format!("/v1/cluster/nodes/{}/drain", segment(&self.node));
        let (parameters, done) =
            if self.undo { ("undo=true", "gets its share again") } else { ("", "holds nothing any more; it is still a member") };
        self.manner.node_task(Method::POST, &path, parameters, done).await
    }
}

impl ReplaceArgs {
    /// The place that the new node takes is the old one's: it has least, so that what is freed goes there.
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let body = self.manner.target.client().fetch("/v1/cluster").await?;
        let view: ClusterView = serde_json::from_slice(&body).context("the server's answer")?;
        let state = |name: &str| view.node(name).map(|node| node.state.as_str()).ok_or_else(|| anyhow!("there is no member {name}"));
        if self.old == self.new {
            return Err(CommandError::Usage(format!(
                "{} cannot take its own place: start the new node under another name first",
                self.old
            )));
        }
        if !matches!(state(&self.new)?, "up" | "joining") {
            return Err(anyhow!("{} is {}: it cannot take over anything; start it with --join first", self.new, state(&self.new)?).into());
        }
        let force = state(&self.old)? == "down";
        let done = format!("is removed; {} and the others hold what it held", self.new);
        let path = format!("/v1/cluster/nodes/{}", segment(&self.old));
        self.manner.node_task(Method::DELETE, &path, if force { "force=true" } else { "" }, &done).await
    }
}

impl LeaderArgs {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let to = self.to.as_ref().map_or_else(String::new, |to| format!("to={}", segment(to)));
        let path = format!("/v1/shards/{}/leader", segment(&self.shard));
        let answer = self.manner.until_done(Method::POST, &path, &to, |_| ()).await?;
        if self.manner.json {
            return print(&answer.body);
        }
        let task: serde_json::Value = serde_json::from_slice(&answer.body).context("the server's answer")?;
        let to = task["to"].as_str().unwrap_or_default();
        let word = if self.manner.dry_run {
            "would lead"
        } else if answer.status == 202 {
            "is to lead"
        } else {
            "leads"
        };
        print_line(&format!("{to} {word} s{}", task["shard"]))
    }
}

impl RebalanceCommand {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let (manner, parameters) = match self {
            RebalanceCommand::Pause(manner) => (manner, "paused=true".to_owned()),
            RebalanceCommand::Resume(manner) => (manner, "paused=false".to_owned()),
            RebalanceCommand::Limit { rate, manner } => (manner, format!("bytes_per_second={}", rate.0)),
            RebalanceCommand::Status(manner) => (manner, String::new()),
        };
        let answer = manner.until_done(Method::POST, "/v1/cluster/rebalance", &parameters, |_| ()).await?;
        if manner.json {
            return print(&answer.body);
        }
        let task: RebalancingTask = serde_json::from_slice(&answer.body).context("the server's answer")?;
        let moves = if task.paused { "moves for the sake of balance rest" } else { "replicas are moved for the sake of balance" };
        let rate = if task.bytes_per_second == 0 {
            "as fast as it goes".to_owned()
        } else {
            format!("{} a second from each node", ByteSize(task.bytes_per_second))
        };
        print_line(&format!("{moves}; what is moved goes at {rate}").replace("at as fast", "as fast"))
    }
}

impl Manner {
    /// Asks until the node's task is done, with a bar on a terminal.
    async fn node_task(self, method: Method, path: &str, parameters: &str, done: &str) -> Result<(), CommandError> {
        let mut shown = Shown::new(!self.json && !self.dry_run);
        let answer = self.until_done(method, path, parameters, |task| shown.show(task)).await?;
        shown.bar.finish_and_clear();
        if self.json {
            return print(&answer.body);
        }
        let task: NodeTask = serde_json::from_slice(&answer.body).context("the server's answer")?;
        for warning in task.warnings.iter().filter(|warning| !shown.warned.contains(warning)) {
            eprintln!("flotilla: {warning}");
        }
        if self.dry_run {
            return print(plan_text(&task).as_bytes());
        }
        if answer.status == 202 {
            return print_line(&format!(
                "{} is {}: {} replicas left; run this again to see how far it is",
                task.node, task.state, task.replicas_left
            ));
        }
        print_line(&format!("{} {done}", task.node))
    }

    /// Asks until the answer is 200; each 202 on the way is shown.
    async fn until_done(
        &self,
        method: Method,
        path: &str,
        parameters: &str,
        mut show: impl FnMut(&NodeTask),
    ) -> Result<Answer, CommandError> {
        let milliseconds = self.target.timeout.as_millis().clamp(1, 60_000);
        let dry = if self.dry_run { "&dry_run=true" } else { "" };
        let parameters = if parameters.is_empty() { String::new() } else { format!("&{parameters}") };
        let ask = Ask::new(method, format!("{path}?timeout={milliseconds}ms{parameters}{dry}"));
        let (mut impatient_at, mut has_answered) = (Instant::now() + PATIENCE, false);
        loop {
            let answer = match self.target.client().send(&ask).await {
                Ok(answer) => answer,
                // What is asked names what is wanted, so it may be asked again whatever became of it.
                Err(_) if has_answered && Instant::now() < impatient_at => {
                    tokio::time::sleep(ASK_INTERVAL).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            has_answered = true;
            match answer.status {
                202 if !self.no_wait => {
                    impatient_at = Instant::now() + PATIENCE;
                    show(&serde_json::from_slice(&answer.body).unwrap_or_default());
                }
                503 | 504 if Instant::now() < impatient_at => {}
                200..300 => return Ok(answer),
                _ => return Err(anyhow!("{}", answer.problem()).into()),
            }
            tokio::time::sleep(ASK_INTERVAL).await;
        }
    }
}

/// How far a task is, on a terminal.
struct Shown {
    bar: ProgressBar,
    began: Instant,
    /// The most replicas that were left.
    most: u64,
    warned: Vec<String>,
}

impl Shown {
    fn new(wanted: bool) -> Shown {
        let draw = if wanted && std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} replicas  {msg}").expect("a fixed template");
        Shown { bar: ProgressBar::with_draw_target(Some(0), draw).with_style(style), began: Instant::now(), most: 0, warned: Vec::new() }
    }

    fn show(&mut self, task: &NodeTask) {
        if task.replicas_left > self.most {
            (self.most, self.began) = (task.replicas_left, Instant::now());
        }
        for warning in &task.warnings {
            if !self.warned.contains(warning) {
                self.bar.suspend(|| eprintln!("flotilla: {warning}"));
                self.warned.push(warning.clone());
            }
        }
        let gone = self.most - task.replicas_left;
        self.bar.set_length(self.most);
        self.bar.set_position(gone);
        let left = self.began.elapsed().checked_div(gone as u32).map(|each| each * task.replicas_left as u32);
        let time = left.map_or_else(String::new, |left| format!(", {} left", HumanDuration(left)));
        self.bar.set_message(format!("{}{time}", HumanBytes(task.bytes_left)));
    }
}

/// What a dry run says.
fn plan_text(task: &NodeTask) -> String {
    let bytes: u64 = task.plan.iter().map(|change| change.bytes).sum();
    let mut text = match task.plan.len() {
        0 => "nothing would move\n".to_owned(),
        count => format!("{count} changes, about {} to copy:\n", HumanBytes(bytes)),
    };
    for change in &task.plan {
        let group = change.shard.map_or_else(|| "control".to_owned(), |shard| format!("s{shard}"));
        let names = |names: &[String]| if names.is_empty() { "-".to_owned() } else { names.join(", ") };
        text += &format!("{group:>7}  {} -> {}  {}\n", names(&change.from), names(&change.to), HumanBytes(change.bytes));
    }
    text
}

/// A name as one segment of a path.
fn segment(name: &str) -> String {
    encode_key(name.as_bytes()).replace('/', "%2F")
}
