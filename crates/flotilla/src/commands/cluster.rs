//! `flotilla cluster`: what the cluster says about itself, as words or, with `--json`, as the HTTP
//! API's own objects; what operators want of it is in `operate`, and in
//! `lost_quorum` what is left to do where a majority is gone.

use super::lost_quorum::RecoverArgs;
use super::operate::{DrainArgs, LeaderArgs, RebalanceCommand, RemoveArgs, ReplaceArgs};
use super::{CommandError, Target, not_built, print, print_line};
use anyhow::Context;
use bytes::Bytes;
use clap::{Args, Subcommand};
use flotilla::client::Client;
use flotilla::cluster_view::{ClusterView, MoveView};
use indicatif::{HumanBytes, HumanDuration};
use serde_json::Value;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

/// How often a watched status is asked for.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Of many moves only these are shown.
const MOVES_SHOWN_MAX: usize = 10;
/// To the top left corner, and nothing below (ECMA-48: CUP, ED).
const CLEAR_SCREEN: &str = "\x1b[H\x1b[J";

#[derive(Args, Debug)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// How the cluster is.
    Status(StatusArgs),
    /// The nodes.
    Nodes(ShowArgs),
    /// The shards, their leaders and replicas.
    Shards(ShowArgs),
    /// Where a key lies.
    Locate {
        key: OsString,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Move everything off a node, then remove it.
    Remove(RemoveArgs),
    /// Move everything off a node that stays a member.
    Drain(DrainArgs),
    /// Remove a node whose place another member takes.
    Replace(ReplaceArgs),
    /// Have another node lead a shard.
    Leader(LeaderArgs),
    /// Pause, resume or bound the moving of replicas.
    #[command(subcommand)]
    Rebalance(RebalanceCommand),
    /// Have shards go on that lost the majority of their copies for good: shows what is left, acts only with --yes.
    Recover(RecoverArgs),
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

#[derive(Args, Debug)]
struct StatusArgs {
    /// Show it again every second, until Ctrl-C.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    show: ShowArgs,
}

#[derive(Args, Debug)]
struct ShowArgs {
    /// Print the HTTP API's JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

impl ClusterArgs {
    pub(super) async fn run(self) -> Result<ExitCode, CommandError> {
        match self.command {
            ClusterCommand::Status(StatusArgs { watch: true, show }) => show.watch().await?,
            ClusterCommand::Status(StatusArgs { watch: false, show }) => show.cluster(None, status).await?,
            ClusterCommand::Nodes(show) => show.cluster(Some("nodes"), |view| table(&nodes(view))).await?,
            ClusterCommand::Shards(show) => show.cluster(Some("shards"), |view| table(&shards(view))).await?,
            ClusterCommand::Locate { key, show } => {
                let body = show.target.client().fetch(&show.target.key_path("/v1/locate", &key)?).await?;
                if show.json {
                    print_json(&body)?;
                } else {
                    print_line(&locate(&serde_json::from_slice(&body).context("the server's answer")?))?;
                }
            }
            ClusterCommand::Remove(args) => args.run().await?,
            ClusterCommand::Drain(args) => args.run().await?,
            ClusterCommand::Replace(args) => args.run().await?,
            ClusterCommand::Leader(args) => args.run().await?,
            ClusterCommand::Rebalance(command) => command.run().await?,
            ClusterCommand::Recover(args) => args.run().await?,
            ClusterCommand::Other(words) => return Err(not_built::refuse_cluster(&words)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ShowArgs {
    /// Prints a field of `/v1/cluster` (all of it without one) as JSON, or what `words` makes of it.
    async fn cluster(self, field: Option<&str>, words: impl FnOnce(&ClusterView) -> String) -> Result<(), CommandError> {
        let body = fetch(&self.target.client()).await?;
        if !self.json {
            return print(words(&serde_json::from_slice(&body).context("the server's answer")?).as_bytes());
        }
        let Some(field) = field else { return print_json(&body) };
        let whole: Value = serde_json::from_slice(&body).context("the server's answer")?;
        print_json(serde_json::to_string(&whole[field])?.as_bytes())
    }

    /// Shows the status anew every second: on a terminal in place of the one before.
    async fn watch(self) -> Result<(), CommandError> {
        let clear = if std::io::stdout().is_terminal() && !self.json { CLEAR_SCREEN } else { "" };
        let client = self.target.client();
        let mut last = None;
        loop {
            match fetch(&client).await {
                Ok(body) if self.json => print_json(&body)?,
                Ok(body) => {
                    let view = serde_json::from_slice(&body).context("the server's answer")?;
                    print(format!("{clear}{}\n", status(&view)).as_bytes())?;
                    last = Some(view);
                }
                // Whoever watches wants to see it come back.
                Err(error) => {
                    let before = last.as_ref().map(status).unwrap_or_default();
                    print(format!("{clear}{before}no answer: {error:#}\n").as_bytes())?;
                }
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }
}

/// What the control group's leader says, or if there is none, what whoever answers sees.
async fn fetch(client: &Client) -> anyhow::Result<Bytes> {
    match client.fetch("/v1/cluster").await {
        Ok(body) => Ok(body),
        Err(error) => client.fetch("/v1/cluster?consistency=stale").await.map_err(|_| error),
    }
}

fn print_json(body: &[u8]) -> Result<(), CommandError> {
    print_line(String::from_utf8_lossy(body).trim_end())
}

fn status(view: &ClusterView) -> String {
    let mut lines = vec![format!("cluster {}", view.cluster_id)];
    lines.extend(view.health());
    if !view.authoritative && !view.seen_by.is_empty() {
        lines.push(format!("this is what {} sees: it does not hear from all", view.seen_by));
    }
    let led = view.shards.iter().filter(|shard| shard.leader.is_some()).count();
    lines.push(format!("{led} of {} shards have a leader; {} copies of each are wanted", view.shards_total, view.replicas_wanted));
    lines.push(String::new());
    let moves = if view.moves.is_empty() { String::new() } else { "\n".to_owned() + &table(&moves(view)) };
    lines.join("\n") + "\n" + &table(&nodes(view)) + &moves
}

/// The moves under way, those that are furthest first.
fn moves(view: &ClusterView) -> Vec<Vec<String>> {
    let head = ["MOVE", "FROM", "TO", "PHASE", "SENT", "OF", "LEFT"].map(str::to_owned).to_vec();
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let bytes = |value: u64| HumanBytes(value).to_string();
    let row = |m: &MoveView| {
        let what = m.shard.map_or_else(|| "control".to_owned(), |shard| format!("s{shard}"));
        let sent = m.bytes_done.map_or_else(|| "-".to_owned(), bytes);
        let left = m.eta_ms.map_or_else(|| "-".to_owned(), |ms| HumanDuration(Duration::from_millis(ms)).to_string());
        vec![what, text(&m.from), text(&m.to), m.phase.clone(), sent, bytes(m.bytes_total), left]
    };
    let mut furthest: Vec<&MoveView> = view.moves.iter().collect();
    furthest.sort_by_key(|m| std::cmp::Reverse(m.bytes_done));
    let (shown, rest) = furthest.split_at(furthest.len().min(MOVES_SHOWN_MAX));
    let more = (!rest.is_empty()).then(|| vec![format!("and {} more", rest.len())]);
    std::iter::once(head).chain(shown.iter().map(|m| row(m))).chain(more).collect()
}

fn nodes(view: &ClusterView) -> Vec<Vec<String>> {
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let head = ["NODE", "STATE", "HTTP", "PEER", "ZONE", "REPLICAS", "LEADERS", "BYTES"].map(str::to_owned).to_vec();
    let row = |node: &flotilla::cluster_view::NodeView| {
        let bytes = node.bytes.map_or_else(|| "-".to_owned(), |bytes| flotilla_types::ByteSize(bytes).to_string());
        let (replicas, leaders) = (number(node.replicas), number(node.leaders));
        vec![node.name.clone(), node.state.clone(), text(&node.http), text(&node.peer), text(&node.zone), replicas, leaders, bytes]
    };
    std::iter::once(head).chain(view.nodes.iter().map(row)).collect()
}

fn shards(view: &ClusterView) -> Vec<Vec<String>> {
    let head = ["SHARD", "SLOTS", "LEADER", "TERM", "REPLICAS"].map(str::to_owned).to_vec();
    let row = |shard: &flotilla::cluster_view::ShardView| {
        let slots: Vec<String> = shard.slots.iter().map(u32::to_string).collect();
        let name = |replica: &flotilla::cluster_view::ReplicaView| match replica.role.as_str() {
            "voter" => replica.node.clone(),
            role => format!("{} ({role})", replica.node),
        };
        let replicas: Vec<String> = shard.replicas.iter().map(name).collect();
        let leader = shard.leader.clone().unwrap_or_else(|| "none".to_owned());
        let term = shard.term.map_or_else(|| "-".to_owned(), |term| term.to_string());
        vec![format!("s{}", shard.id), slots.join("-"), leader, term, replicas.join(", ")]
    };
    std::iter::once(head).chain(view.shards.iter().map(row)).collect()
}

fn locate(place: &Value) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let replicas: Vec<String> = place["replicas"].as_array().into_iter().flatten().map(word).collect();
    let leader = place["leader"].as_str().map_or_else(|| "none known".to_owned(), str::to_owned);
    format!("slot {}, shard s{}, leader {leader}, replicas on {}", place["slot"], place["shard"], replicas.join(", "))
}

/// Columns wide enough for their longest cell; the last is not padded.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(|at| rows.iter().filter_map(|row| row.get(at)).map(String::len).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_contract_is_shown_in_words() {
        let view: ClusterView = serde_json::from_str(
            r#"{"cluster_id":"c1","replicas_wanted":3,"shards_total":1,"control":{"leader":"n1","voters":["n1"]},
            "nodes":[{"name":"n1","id":"x","http":"127.0.0.1:7070","peer":"127.0.0.1:7071","resp":null,"zone":null,"state":"up","replicas":1,"leaders":1,"bytes":2048},
                     {"name":"n2","id":7,"http":"127.0.0.1:7072","peer":null,"resp":null,"zone":"b","state":"up","replicas":1,"leaders":0,"bytes":0}],
            "shards":[{"id":0,"slots":[0,16383],"leader":null,"term":4,"replicas":[{"node":"n1","role":"voter"},{"node":"n2","role":"learner"}]}],
            "moves":[{"shard":0,"from":null,"to":"n2","phase":"catching-up","bytes_done":512,"bytes_total":2048,"eta_ms":3000}],
            "health":["2 nodes: a copy of everything, no failover yet; a third node brings it","1 shard has no leader and answers nothing"],
            "seen_by":"n1","authoritative":true,"later":{"more":true}}"#,
        )
        .expect("the contract's object");
        let text = status(&view);
        assert!(text.contains("2 nodes: a copy of everything, no failover yet"), "{text}");
        assert!(text.contains("1 shard has no leader and answers nothing"), "{text}");
        assert!(
            text.contains("MOVE  FROM  TO  PHASE        SENT   OF        LEFT\ns0    -     n2  catching-up  512 B  2.00 KiB  3 seconds"),
            "{text}"
        );
        assert!(text.contains("n1    up     127.0.0.1:7070  127.0.0.1:7071  -     1         1        2KiB"), "{text}");
        assert_eq!(table(&shards(&view)), "SHARD  SLOTS    LEADER  TERM  REPLICAS\ns0     0-16383  none    4     n1, n2 (learner)\n");
        let place = serde_json::json!({"slot": 12182, "shard": 47, "leader": "n1", "replicas": ["n1", "n2"]});
        assert_eq!(locate(&place), "slot 12182, shard s47, leader n1, replicas on n1, n2");
    }
}
