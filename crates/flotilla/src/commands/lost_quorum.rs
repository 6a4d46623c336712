//! `flotilla cluster recover`: groups that lost the majority of their copies for good go on with what is left.
//!
//! The plan is always shown first. With `--yes` exactly that plan is carried out: if the cluster has changed since, it
//! refuses, and the next plan is to be looked at.

use super::{CommandError, Target, print, print_line};
use anyhow::{Context, anyhow};
use clap::Args;
use flotilla::client::{Answer, Ask};
use hyper::Method;
use indicatif::HumanBytes;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two questions how far it is.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// If nothing was heard of a plan for this long, it is sent again, which does no harm.
const SEND_AGAIN: Duration = Duration::from_secs(5);
/// For this long it may take until every group has a leader again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Shards named one by one in a line; of more the first and the count are told.
const NAMED_MAX: usize = 12;

#[derive(Args, Debug)]
pub(super) struct RecoverArgs {
    /// Carry the plan out that is shown. What it says is lost is lost for good.
    #[arg(long)]
    yes: bool,
    /// Print the plan as the HTTP API gives it.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// What the route answers.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Plan {
    plan: String,
    gone: Vec<String>,
    absent: Vec<String>,
    whole: u64,
    under_way: Vec<Option<u64>>,
    lost: Vec<Lost>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Lost {
    /// None: the control group.
    shard: Option<u64>,
    node: String,
    keeps: Option<Kept>,
    gone: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Kept {
    voter: bool,
    keys: u64,
    bytes: u64,
}

impl RecoverArgs {
    pub(super) async fn run(self) -> Result<(), CommandError> {
        let shown = self.ask("dry_run=true").await?;
        let plan = decode(&shown)?;
        if self.json {
            print(&shown.body)?;
        } else {
            print(plan.text().as_bytes())?;
        }
        if plan.lost.is_empty() && plan.under_way.is_empty() {
            return Ok(());
        }
        if !self.yes {
            if !self.json && !plan.lost.is_empty() {
                print_line("nothing was changed; to carry this out, run the same with --yes")?;
            }
            return Ok(());
        }
        let recovered = self.carry_out(&plan).await?;
        if self.json {
            return print(&recovered.body);
        }
        print_line(&plan.what_is_next())
    }

    /// Sends the plan, and waits until nothing of it is left to do.
    async fn carry_out(&self, plan: &Plan) -> Result<Answer, CommandError> {
        let act = format!("plan={}", plan.plan);
        let began = Instant::now();
        let mut sent_at = began;
        if !plan.lost.is_empty() {
            self.ask(&act).await?;
        }
        loop {
            tokio::time::sleep(ASK_INTERVAL).await;
            let answer = self.ask("dry_run=true").await?;
            let now = decode(&answer)?;
            if now.lost.is_empty() && now.under_way.is_empty() {
                return Ok(answer);
            }
            if !now.lost.is_empty() && now.plan != plan.plan {
                return Err(anyhow!("more was lost meanwhile: run this again and look at the new plan").into());
            }
            if began.elapsed() > PATIENCE {
                let left = now.lost.len() + now.under_way.len();
                return Err(anyhow!("{left} groups are not recovered yet: run this again to see how far it is").into());
            }
            if !now.lost.is_empty() && sent_at.elapsed() > SEND_AGAIN {
                sent_at = Instant::now();
                self.ask(&act).await?;
            }
        }
    }

    async fn ask(&self, parameters: &str) -> Result<Answer, CommandError> {
        let milliseconds = self.target.timeout.as_millis().clamp(1, 60_000);
        let ask = Ask::new(Method::POST, format!("/v1/cluster/recover?timeout={milliseconds}ms&{parameters}"));
        let impatient_at = Instant::now() + Duration::from_secs(15);
        loop {
            let answer = self.target.client().send(&ask).await?;
            match answer.status {
                200..300 => return Ok(answer),
                // It has just started, or nobody leads the control group at this moment.
                503 if Instant::now() < impatient_at => tokio::time::sleep(ASK_INTERVAL).await,
                _ => return Err(anyhow!("{}", answer.problem()).into()),
            }
        }
    }
}

fn decode(answer: &Answer) -> Result<Plan, CommandError> {
    Ok(serde_json::from_slice(&answer.body).context("the server's answer")?)
}

impl Plan {
    /// The plan for people: a line for each kind of fate, not for each shard.
    fn text(&self) -> String {
        let mut lines = Vec::new();
        if self.lost.is_empty() && self.under_way.is_empty() {
            let away = if self.absent.is_empty() { String::new() } else { format!(" ({} is away)", self.absent.join(", ")) };
            return format!("every group has a quorum: nothing to recover{away}\n");
        }
        if !self.under_way.is_empty() {
            lines.push(format!("{} being recovered at this moment", are(&self.under_way)));
        }
        if self.lost.is_empty() {
            return lines.join("\n") + "\n";
        }
        lines.push(format!("plan {}", self.plan));
        lines.push(format!("gone for good: {}; if one of them can come back, start it instead", self.gone.join(", ")));
        if !self.absent.is_empty() {
            lines.push(format!("away, but nothing depends on it: {}", self.absent.join(", ")));
        }
        lines.push(format!("{} groups have a quorum and stay as they are", self.whole));
        for ((node, gone, fate), group) in self.fates() {
            let shards: Vec<Option<u64>> = group.iter().map(|lost| lost.shard).collect();
            let kept = || group.iter().filter_map(|lost| lost.keeps.as_ref());
            let (keys, bytes) = (kept().map(|kept| kept.keys).sum::<u64>(), kept().map(|kept| kept.bytes).sum::<u64>());
            lines.push(match fate {
                Fate::Voter => format!(
                    "{} go on with the copy on {node}: {keys} keys, {} are kept; lost may be the last writes that only {gone} had",
                    named(&shards),
                    HumanBytes(bytes)
                ),
                Fate::Learner => format!(
                    "{} go on with the copy on {node}, which had no vote: {keys} keys, {} are kept; lost is whatever it had not been sent yet by {gone}",
                    named(&shards),
                    HumanBytes(bytes)
                ),
                Fate::Empty if shards == [None] => {
                    format!("the control group goes on on {node} with the last copy of its state that any node has; all of its own were on {gone}")
                }
                Fate::Empty => format!("{} ARE LOST: all copies were on {gone}; they begin EMPTY on {node}", named(&shards)),
            });
        }
        lines.join("\n") + "\n"
    }

    /// Groups of the same fate together: where, who is gone, and how.
    fn fates(&self) -> BTreeMap<(String, String, Fate), Vec<&Lost>> {
        let mut fates: BTreeMap<_, Vec<&Lost>> = BTreeMap::new();
        for lost in &self.lost {
            let fate = match &lost.keeps {
                Some(kept) if kept.voter => Fate::Voter,
                Some(_) => Fate::Learner,
                None => Fate::Empty,
            };
            let gone = if lost.gone.is_empty() { "nodes that are gone".to_owned() } else { lost.gone.join(", ") };
            fates.entry((lost.node.clone(), gone, fate)).or_default().push(lost);
        }
        fates
    }

    fn what_is_next(&self) -> String {
        format!(
            "every group has a quorum again; copies are made as soon as there are nodes for them: start new ones with --join\n\
             {} must not come back: wipe their data-dirs; `flotilla cluster status` shows how things are",
            if self.gone.is_empty() { "the nodes that are gone".to_owned() } else { self.gone.join(", ") }
        )
    }
}

/// What becomes of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Voter,
    Learner,
    Empty,
}

/// Groups by their names, or how many they are.
fn named(shards: &[Option<u64>]) -> String {
    let name = |shard: &Option<u64>| shard.map_or_else(|| "the control group".to_owned(), |shard| format!("s{shard}"));
    match shards.len() {
        count if count > NAMED_MAX => {
            let first: Vec<String> = shards.iter().take(3).map(name).collect();
            format!("{count} groups ({}, ...)", first.join(", "))
        }
        _ => shards.iter().map(name).collect::<Vec<_>>().join(", "),
    }
}

fn are(shards: &[Option<u64>]) -> String {
    format!("{} {}", named(shards), if shards.len() == 1 { "is" } else { "are" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: serde_json::Value) -> Plan {
        serde_json::from_value(json).expect("a plan")
    }

    #[test]
    fn what_is_lost_is_said_once_for_all_shards_alike() {
        let kept = serde_json::json!({"voter": true, "keys": 10, "bytes": 1024, "term": 2, "index": 9, "agreed": 9});
        let like = |shard: Option<u64>, keeps: &serde_json::Value| serde_json::json!({"shard": shard, "node": "n1", "keeps": keeps, "gone": ["n2", "n3"]});
        let mut lost: Vec<_> = (0..61).map(|shard| like(Some(shard), &kept)).collect();
        lost.push(like(Some(61), &serde_json::json!({"voter": false, "keys": 1, "bytes": 2})));
        lost.push(like(Some(62), &serde_json::Value::Null));
        lost.push(like(Some(63), &serde_json::Value::Null));
        let plan =
            plan(serde_json::json!({"plan": "00ff", "gone": ["n2", "n3"], "absent": ["n9"], "whole": 1, "under_way": [], "lost": lost}));
        let text = plan.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 7, "{text}");
        assert_eq!(lines[1], "gone for good: n2, n3; if one of them can come back, start it instead");
        assert!(
            lines[4].starts_with("61 groups (s0, s1, s2, ...) go on with the copy on n1: 610 keys, 61.00 KiB are kept; lost may be"),
            "{text}"
        );
        assert!(lines[5].starts_with("s61 go on with the copy on n1, which had no vote"), "{text}");
        assert_eq!(lines[6], "s62, s63 ARE LOST: all copies were on n2, n3; they begin EMPTY on n1");
    }

    #[test]
    fn nothing_lost_is_one_line() {
        let whole = plan(serde_json::json!({"plan": "00", "gone": [], "absent": ["n3"], "whole": 65, "under_way": [], "lost": []}));
        assert_eq!(whole.text(), "every group has a quorum: nothing to recover (n3 is away)\n");
        let under_way = plan(serde_json::json!({"plan": "00", "whole": 1, "under_way": [null, 3]}));
        assert_eq!(under_way.text(), "the control group, s3 are being recovered at this moment\n");
    }
}
