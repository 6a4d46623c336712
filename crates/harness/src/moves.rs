//! Replicas are moved all the time, and kill -9 hits the node they leave, the node they come to, the leader
//! of the control group, or several at once, at every phase of a move: each move must be finished or undone in
//! bounded time, and nothing that was acknowledged may be lost.

use crate::cluster::{Cluster, flags, loopback_specs};
use crate::kill::{own_copies_line, verdict_line};
use crate::operator::{Operator, describe, spread};
use crate::scan_load::{ScanPlan, load};
use crate::verify::{Verdict, expectations, verify, verify_own_copies};
use crate::writers::{WriterPlan, Writers};
use anyhow::Context;
use flotilla::cluster_view::{ClusterView, MoveView};
use flotilla_types::Rng;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a step of an operator may take to be granted.
const GRANT_TIME_MAX: Duration = Duration::from_secs(60);
/// How long the phase that a kill is meant for is waited for, before any other will do.
const AIM_TIME_MAX: Duration = Duration::from_millis(1_500);
/// How long anything at all may take to begin to move.
const BEGIN_TIME_MAX: Duration = Duration::from_secs(10);
const AIM_INTERVAL: Duration = Duration::from_millis(10);
/// Beyond the bound, so that what is slow can be told from what is stuck for ever.
const STUCK_TIME_MAX: Duration = Duration::from_secs(120);
/// Phases that kills are meant for, in turn; those that last longest come by themselves.
const AIMS: [&str; 4] = ["catching-up", "switching", "removing", "adding"];
/// A move that has not begun.
const WAITING: &str = "waiting";

/// How the run goes.
#[derive(Clone, Debug)]
pub struct MovesPlan {
    /// Kills; of one node or of several at once.
    pub rounds: usize,
    /// Nodes.
    pub nodes: usize,
    /// Keys of 4 KiB that are written before. Shards below 1 MiB are all moved at once, which leaves little to hit.
    pub ballast_keys: u64,
    /// What each node may send of replicas on the move, so that they are long enough under way.
    pub bytes_per_second: u64,
    /// By when everything must be at rest after the last killed node was started again.
    pub rest_time_max: Duration,
    /// Between a writer's requests; one a shard.
    pub think_time: Duration,
    /// Everything drawn by chance comes from it.
    pub seed: u64,
}

/// Who is killed, as seen from one of the moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Source,
    Target,
    Controller,
}

use Role::{Controller, Source, Target};

const VICTIMS: [(&str, &[Role]); 7] = [
    ("source", &[Source]),
    ("target", &[Target]),
    ("controller", &[Controller]),
    ("source and target", &[Source, Target]),
    ("source and controller", &[Source, Controller]),
    ("target and controller", &[Target, Controller]),
    ("all three", &[Source, Target, Controller]),
];

/// What became of the kills of one set of victims.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VictimReport {
    /// Rounds.
    pub rounds: usize,
    /// Rounds in which a move of the victims was under way when they were killed.
    pub under_way: usize,
    /// Moves that the victims had part in, by phase.
    pub phases: BTreeMap<String, usize>,
    /// From the start of the last killed node until all was at rest, the longest.
    pub rest_seconds_worst: f64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct MovesReport {
    /// By victims.
    pub victims: BTreeMap<&'static str, VictimReport>,
    /// Over all rounds, from the start of the last killed node until all was at rest: the median.
    pub rest_seconds_median: f64,
    /// The longest.
    pub rest_seconds_worst: f64,
    /// Rounds after which something did not come to rest in time, in words.
    pub stuck: Vec<String>,
    /// Writes acknowledged.
    pub acknowledged: usize,
    /// The newest values, asked of every node.
    pub linearizable: Verdict,
    /// Each node's own copy.
    pub own_copies: Option<Verdict>,
    /// Nodes that ended though nobody ended them.
    pub unexpectedly_ended: Vec<String>,
}

impl MovesReport {
    /// Whether the store kept its promises.
    pub fn is_fine(&self) -> bool {
        self.stuck.is_empty()
            && self.linearizable.is_fine()
            && self.own_copies.as_ref().is_none_or(Verdict::is_fine)
            && self.unexpectedly_ended.is_empty()
    }

    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let line = |(victims, report): (&&str, &VictimReport)| {
            let phases: Vec<String> = report.phases.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
            format!(
                "killed {victims}: {} rounds, {} with a move of theirs under way ({}); at rest after {:.1} s at worst",
                report.rounds,
                report.under_way,
                phases.join(", "),
                report.rest_seconds_worst
            )
        };
        let mut lines: Vec<String> = self.victims.iter().map(line).collect();
        lines.push(format!("at rest after a median of {:.1} s, {:.1} s at worst", self.rest_seconds_median, self.rest_seconds_worst));
        lines.push(format!("{} writes acknowledged; newest values: {}", self.acknowledged, verdict_line(&self.linearizable)));
        lines.push(format!("own copies: {}", own_copies_line(self.own_copies.as_ref())));
        let faults = self.stuck.iter().chain(&self.unexpectedly_ended).chain(&self.linearizable.described);
        lines.extend(faults.chain(self.own_copies.iter().flat_map(|verdict| &verdict.described)).cloned());
        lines
    }
}

/// Runs it with all data in `folder`; `say` is told of each round.
///
/// # Errors
/// If the cluster does not start, or no operator is heard.
pub async fn run(binary: &Path, folder: &Path, plan: &MovesPlan, say: impl Fn(String)) -> anyhow::Result<MovesReport> {
    let mut specs = loopback_specs(folder, plan.nodes)?;
    specs.iter_mut().for_each(|spec| spec.flags = flags(&["--log-level", "info"]));
    let mut cluster = Cluster::start_of(binary, specs).await?;
    let mut operator = Operator::new(cluster.addresses());
    load(&cluster, &ScanPlan { keys: plan.ballast_keys, value_bytes: 4 << 10, stall: Duration::ZERO }).await?;
    let limit = format!("/v1/cluster/rebalance?bytes_per_second={}", plan.bytes_per_second);
    operator.ask_until("POST", &limit, &[200], GRANT_TIME_MAX).await?;
    let shards = operator.wait_even(plan.nodes, GRANT_TIME_MAX).await.context("at the start")?.shards_total;
    let mut writer_plan = WriterPlan::new(cluster.addresses(), shards);
    writer_plan.think_time = plan.think_time;
    let writers = Writers::start(writer_plan);

    let mut rng = Rng::new(plan.seed);
    let (mut victims, mut rests, mut stuck, mut ended) = (BTreeMap::<_, VictimReport>::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        ended.extend(cluster.unexpectedly_ended());
        let (set, roles) = VICTIMS[round % VICTIMS.len()];
        let step = Step { node: format!("n{}", round / 2 % plan.nodes + 1), drains: round % 2 == 0 };
        operator.ask_until("POST", &step.path(), &[200, 202], GRANT_TIME_MAX).await?;
        let hit = aim(&mut operator, AIMS[round % AIMS.len()], roles, &mut rng).await?;
        let places: Vec<usize> = (0..cluster.len()).filter(|at| hit.victims.contains(&cluster.spec(*at).name)).collect();
        cluster.kill_some(&places);
        relaunch_after_a_while(&mut cluster, &places, &mut rng).await?;

        let started = Instant::now();
        let mut rest = operator.wait_until(plan.rest_time_max, |view| step.is_at_rest(view)).await.map(|_| ());
        if let Err(late) = &rest {
            stuck.push(format!("round {round}, {} {}, killed {set} ({}): {late:#}", step.word(), step.node, hit.words()));
            say(format!("{stuck:?}"));
            rest = operator.wait_until(STUCK_TIME_MAX, |view| step.is_at_rest(view)).await.map(|_| ());
        }
        let seconds = started.elapsed().as_secs_f64();
        say(format!("round {round}: {} {}, killed {set}: {}; at rest after {seconds:.1} s", step.word(), step.node, hit.words()));
        rests.push(seconds);
        let report = victims.entry(set).or_default();
        report.rounds += 1;
        report.under_way += usize::from(!hit.phases.is_empty());
        report.rest_seconds_worst = report.rest_seconds_worst.max(seconds);
        hit.phases.iter().for_each(|(phase, count)| *report.phases.entry(phase.clone()).or_default() += count);
        if let Err(error) = rest {
            stuck.push(format!("round {round}: stuck for good: {error:#}"));
            break;
        }
    }
    for at in 0..cluster.len() {
        let undo = Step { node: cluster.spec(at).name.clone(), drains: false };
        operator.ask_until("POST", &undo.path(), &[200, 202], GRANT_TIME_MAX).await?;
    }
    if let Err(error) = operator.wait_even(plan.nodes, plan.rest_time_max).await {
        stuck.push(format!("at the end: {error:#}"));
    }
    let (writer_plan, tags, record) = writers.stop().await;
    let expected = Rc::new(expectations(&writer_plan, &tags, &record));
    let linearizable = verify(&cluster.addresses(), &expected, false).await;
    let own_copies = verify_own_copies(&cluster.addresses(), &expected).await;
    ended.extend(cluster.unexpectedly_ended());
    cluster.stop();
    rests.sort_by(f64::total_cmp);
    Ok(MovesReport {
        victims,
        rest_seconds_median: crate::kill::quantile(&rests, 0.5),
        rest_seconds_worst: crate::kill::quantile(&rests, 1.0),
        stuck,
        acknowledged: record.acknowledged.len(),
        linearizable,
        own_copies,
        unexpectedly_ended: ended,
    })
}

/// What makes replicas move: a node is emptied, or gets its share again.
struct Step {
    node: String,
    drains: bool,
}

impl Step {
    fn path(&self) -> String {
        format!("/v1/cluster/nodes/{}/drain{}", self.node, if self.drains { "" } else { "?undo=true" })
    }

    fn word(&self) -> &'static str {
        if self.drains { "draining" } else { "undraining" }
    }

    /// Whether everything is as it was asked for. What was undone would not be: the operator still wants it.
    fn is_at_rest(&self, view: &ClusterView) -> bool {
        if !self.drains {
            // Leaders follow at leisure; they are waited for in the end.
            return view.is_settled() && spread(view, |node| node.replicas).is_some_and(|(fewest, most)| most - fewest <= 1);
        }
        let is_whole = |shard: &flotilla::cluster_view::ShardView| {
            shard.leader.is_some() && shard.replicas.len() == view.replicas_wanted && shard.replicas.iter().all(|r| r.role == "voter")
        };
        let is_emptied = |name: &str| view.node(name).is_some_and(|node| node.state == "draining" && node.replicas == Some(0));
        view.moves.is_empty()
            && is_emptied(&self.node)
            && view.members().all(|node| node.name == self.node || node.state == "up")
            && view.shards.len() == view.shards_total
            && view.shards.iter().all(is_whole)
    }
}

/// What a kill is to hit.
struct Hit {
    victims: BTreeSet<String>,
    /// Moves that they have part in and that are under way.
    phases: BTreeMap<String, usize>,
}

impl Hit {
    fn words(&self) -> String {
        let names: Vec<&str> = self.victims.iter().map(String::as_str).collect();
        let phases: Vec<String> = self.phases.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
        format!("{} with {}", names.join(", "), if phases.is_empty() { "nothing under way".into() } else { phases.join(", ") })
    }
}

/// Waits for a move in the phase `wanted` that has all the roles; after a while for any move, and then for nothing.
async fn aim(operator: &mut Operator, wanted: &str, roles: &[Role], rng: &mut Rng) -> anyhow::Result<Hit> {
    let began = Instant::now();
    loop {
        let view = operator.view().await?;
        let moves = view.moves.clone();
        let suits = |one: &&MoveView| {
            let is_there = |role: &Role| match role {
                Source => one.from.is_some(),
                Target => one.to.is_some(),
                Controller => true,
            };
            one.phase != WAITING && roles.iter().all(is_there)
        };
        let suitable: Vec<&MoveView> = moves.iter().filter(suits).collect();
        let aimed: Vec<&MoveView> = suitable.iter().copied().filter(|one| one.phase == wanted).collect();
        let among = if aimed.is_empty() && began.elapsed() > AIM_TIME_MAX { &suitable } else { &aimed };
        if let Some(one) = rng.pick(among) {
            return Ok(hit_of(&view, &moves, one, roles));
        }
        // Nothing moves any more: a node is killed all the same.
        if began.elapsed() > BEGIN_TIME_MAX {
            let leader = view.control.leader.clone().with_context(|| format!("nobody leads the control group: {}", describe(&view)))?;
            return Ok(Hit { victims: [leader].into(), phases: BTreeMap::new() });
        }
        tokio::time::sleep(AIM_INTERVAL).await;
    }
}

fn hit_of(view: &ClusterView, moves: &[MoveView], one: &MoveView, roles: &[Role]) -> Hit {
    let name = |role: &Role| match role {
        Source => one.from.clone(),
        Target => one.to.clone(),
        Controller => view.control.leader.clone(),
    };
    let victims: BTreeSet<String> = roles.iter().filter_map(name).collect();
    let controls = view.control.leader.as_ref().is_some_and(|leader| victims.contains(leader));
    let has_part = |one: &&MoveView| controls || one.from.iter().chain(&one.to).any(|node| victims.contains(node));
    let mut phases = BTreeMap::new();
    for one in moves.iter().filter(has_part).filter(|one| one.phase != WAITING) {
        *phases.entry(one.phase.clone()).or_default() += 1;
    }
    Hit { victims, phases }
}

/// Each after a time of its own.
async fn relaunch_after_a_while(cluster: &mut Cluster, places: &[usize], rng: &mut Rng) -> anyhow::Result<()> {
    let killed = Instant::now();
    let mut times: Vec<(Duration, usize)> = places.iter().map(|at| (Duration::from_millis(rng.between(200, 3_000)), *at)).collect();
    times.sort();
    for (time, at) in times {
        tokio::time::sleep(time.saturating_sub(killed.elapsed())).await;
        cluster.launch(at)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hit_counts_the_moves_that_its_victims_have_part_in() {
        let one = |from: &str, to: &str, phase: &str| MoveView {
            from: Some(from.into()),
            to: Some(to.into()),
            phase: phase.into(),
            ..MoveView::default()
        };
        let moves = [one("n1", "n2", "switching"), one("n1", "n3", "waiting"), one("n4", "n2", "adding"), one("n4", "n5", "removing")];
        let mut view = ClusterView::default();
        view.control.leader = Some("n5".into());
        let hit = |roles: &[Role]| {
            let hit = hit_of(&view, &moves, &moves[0], roles);
            (hit.victims.into_iter().collect::<Vec<_>>().join(" "), hit.phases.values().sum::<usize>())
        };
        assert_eq!(hit(&[Source]), ("n1".into(), 1));
        assert_eq!(hit(&[Target]), ("n2".into(), 2));
        assert_eq!(hit(&[Controller]), ("n5".into(), 3));
        assert_eq!(hit(&[Source, Target]), ("n1 n2".into(), 2));
    }
}
