//! `flotilla cluster`: what the cluster says about itself, as words or, with `--json`, as the HTTP
//! API's own objects; what operators want of it is in `operate`.

use super::operate::{DrainArgs, LeaderArgs, RebalanceCommand, RemoveArgs, ReplaceArgs};
use super::{CommandError, Target, not_built, print, print_line};
use anyhow::Context;
use clap::{Args, Subcommand};
use flotilla::cluster_view::ClusterView;
use serde_json::Value;
use std::ffi::OsString;
use std::process::ExitCode;

#[derive(Args, Debug)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// How the cluster is.
    Status(ShowArgs),
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
    #[command(external_subcommand)]
    Other(Vec<OsString>),
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
            ClusterCommand::Status(show) => show.cluster(None, status).await?,
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
            ClusterCommand::Other(words) => return Err(not_built::refuse_cluster(&words)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ShowArgs {
    /// Prints a field of `/v1/cluster` (all of it without one) as JSON, or what `words` makes of it.
    async fn cluster(self, field: Option<&str>, words: impl FnOnce(&ClusterView) -> String) -> Result<(), CommandError> {
        let body = self.target.client().fetch("/v1/cluster").await?;
        if !self.json {
            return print(words(&serde_json::from_slice(&body).context("the server's answer")?).as_bytes());
        }
        let Some(field) = field else { return print_json(&body) };
        let whole: Value = serde_json::from_slice(&body).context("the server's answer")?;
        print_json(serde_json::to_string(&whole[field])?.as_bytes())
    }
}

fn print_json(body: &[u8]) -> Result<(), CommandError> {
    print_line(String::from_utf8_lossy(body).trim_end())
}

fn status(view: &ClusterView) -> String {
    let mut lines = vec![format!("cluster {}", view.cluster_id)];
    lines.extend(view.health());
    let led = view.shards.iter().filter(|shard| shard.leader.is_some()).count();
    lines.push(format!("{led} of {} shards have a leader; {} copies of each are wanted", view.shards_total, view.replicas_wanted));
    lines.push(String::new());
    lines.join("\n") + "\n" + &table(&nodes(view))
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
            "moves":[],"later":{"more":true}}"#,
        )
        .expect("the contract's object");
        let text = status(&view);
        assert!(text.contains("2 nodes: a copy of everything, no failover yet"), "{text}");
        assert!(text.contains("1 of 1 shards have no leader"), "{text}");
        assert!(text.contains("n1    up     127.0.0.1:7070  127.0.0.1:7071  -     1         1        2KiB"), "{text}");
        assert_eq!(table(&shards(&view)), "SHARD  SLOTS    LEADER  TERM  REPLICAS\ns0     0-16383  none    4     n1, n2 (learner)\n");
        let place = serde_json::json!({"slot": 12182, "shard": 47, "leader": "n1", "replicas": ["n1", "n2"]});
        assert_eq!(locate(&place), "slot 12182, shard s47, leader n1, replicas on n1, n2");
    }
}
