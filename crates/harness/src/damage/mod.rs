//! Flipped bits and cut files in one node's data-dir, the node stopped or running: each must be found by
//! `flotilla check` or be shown to lie where nobody reads, none may be served, and the node must heal from its peers.
//!
//! A round damages a few files of one node, has it read or started, waits until every shard is on all nodes again,
//! and asks each node for every key: the newest value, and the node's own copy. A node that ends is
//! started again, as a supervisor would; one that asks for a new data-dir with `--replace` is given that.

mod inflict;
mod judge;

use crate::cluster::{Cluster, START_TIME_MAX, flags};
use crate::kill::verdict_line;
use crate::verify::{Expected, Verdict, verify, verify_own_copies};
use crate::wire::{Wire, WriteEnd};
use anyhow::{Context, bail, ensure};
use flotilla_types::Rng;
use inflict::{Damage, Kind};
use judge::{Checked, Fate, check};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often a node that ended is started again before it counts as not healing.
const STARTS_MAX: usize = 4;
/// Longer than a node takes to report what it has given up, and the cluster to begin to replace it.
const WHOLE_FOR: Duration = Duration::from_millis(1500);
/// How far a copy may be behind at most once all writes are done.
const LAG_MAX: Duration = Duration::from_secs(10);
/// A key whose value lies in chunks.
const LONG_BYTES: usize = 300 << 10;

/// How the run goes.
#[derive(Clone, Debug)]
pub struct DamagePlan {
    /// Damages while the node is stopped.
    pub stopped: usize,
    /// Damages while it runs.
    pub running: usize,
    /// Damages at a time, each in a file of its own.
    pub at_once: usize,
    /// Keys with values of some hundred bytes.
    pub keys: usize,
    /// Keys with values of 300 KiB.
    pub long_keys: usize,
    /// What is damaged follows from it.
    pub seed: u64,
    /// No round begins after this.
    pub time_max: Duration,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DamageReport {
    /// Bits flipped.
    pub flips: usize,
    /// Files cut short.
    pub cuts: usize,
    /// Of the damages to a stopped node: what became of them.
    pub fates: BTreeMap<Fate, usize>,
    /// Damages to a running node.
    pub while_running: usize,
    /// Damages that `check` did not find and that are not shown to be harmless.
    pub missed: Vec<String>,
    /// Starts after a round that went well at once.
    pub starts_at_once: usize,
    /// Starts that took more than one attempt, and what the node ended with.
    pub ended_with: Vec<String>,
    /// Nodes that ended while they ran on damage.
    pub ended_running: usize,
    /// Nodes that were replaced, as they asked for.
    pub replaced: usize,
    /// Replicas that were re-seeded, and stores given up.
    pub reseeded: usize,
    /// Stores given up as a whole.
    pub stores_given_up: usize,
    /// Panics and nodes that did not heal.
    pub failures: Vec<String>,
    /// All reads of newest values.
    pub linearizable: Verdict,
    /// All reads of nodes' own copies.
    pub own_copies: Verdict,
    /// Damage that `check` still finds at the end, in files that nothing has read since.
    pub left: usize,
    /// Rounds made.
    pub rounds: usize,
}

impl DamageReport {
    /// Whether nothing went by, nothing was served, and everything healed.
    pub fn is_fine(&self) -> bool {
        self.missed.is_empty() && self.failures.is_empty() && self.linearizable.is_fine() && self.own_copies.is_fine()
    }

    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let fates: Vec<String> = self.fates.iter().map(|(fate, count)| format!("{count} {}", fate.words())).collect();
        let mut lines = vec![
            format!(
                "{} bits flipped and {} files cut in {} rounds, {} of them while the node ran",
                self.flips, self.cuts, self.rounds, self.while_running
            ),
            format!("{} nodes ended for damage while they ran", self.ended_running),
            format!("check: {}; {} missed", fates.join(", "), self.missed.len()),
            format!(
                "{} starts went well at once, {} took more than one; {} replicas re-seeded, {} stores given up, {} nodes replaced as they asked",
                self.starts_at_once,
                self.ended_with.len(),
                self.reseeded,
                self.stores_given_up,
                self.replaced
            ),
            format!("newest values: {}", verdict_line(&self.linearizable)),
            format!("own copies: {}", verdict_line(&self.own_copies)),
            format!("{} damages still on disk at the end, not read by anyone since", self.left),
        ];
        let verdicts = self.linearizable.described.iter().chain(&self.own_copies.described);
        lines.extend(self.missed.iter().map(|line| format!("MISSED {line}")));
        lines.extend(self.failures.iter().map(|line| format!("FAILED {line}")));
        lines.extend(verdicts.map(|line| format!("SERVED {line}")));
        lines.extend(self.ended_with.iter().map(|line| format!("ended with: {line}")));
        lines
    }
}

struct Run<'a> {
    binary: &'a Path,
    cluster: Cluster,
    rng: Rng,
    expected: Rc<Vec<(Vec<u8>, Expected)>>,
    report: DamageReport,
    /// How much of each node's output was looked at.
    read: Vec<usize>,
}

/// Runs it on three nodes with their data in `folder`; `tell` is given a line now and then.
///
/// # Errors
/// If what is not under test fails.
pub async fn run(binary: &Path, folder: &Path, plan: &DamagePlan, mut tell: impl FnMut(String)) -> anyhow::Result<DamageReport> {
    let cluster = Cluster::start(binary, folder).await?;
    let began = Instant::now();
    let expected = Rc::new(Vec::new());
    let read = vec![0; cluster.len()];
    let mut run = Run { binary, cluster, rng: Rng::new(plan.seed), expected, report: DamageReport::default(), read };
    run.fill(plan).await?;
    run.verify().await;
    let (mut stopped, mut running) = (plan.stopped, plan.running);
    while (stopped > 0 || running > 0) && began.elapsed() < plan.time_max {
        let victim = run.report.rounds % run.cluster.len();
        run.report.rounds += 1;
        // In turns, so that a run that is cut short has seen both.
        let runs = running > 0 && (stopped == 0 || run.report.rounds.is_multiple_of(2));
        let left = if runs { &mut running } else { &mut stopped };
        let count = plan.at_once.min(*left);
        *left -= count;
        let damages = if runs { run.damage_running(victim, count).await? } else { run.damage_stopped(victim, count).await? };
        let described: Vec<String> = damages.iter().map(Damage::to_string).collect();
        let failures = run.report.failures.len();
        run.heal(victim).await?;
        run.verify().await;
        // Reading may have met what the start did not; another node's damage on top would be one too many.
        run.heal(victim).await?;
        tell(format!("round {}: n{}: {}", run.report.rounds, victim + 1, described.join("; ")));
        if run.report.failures.len() > failures || !run.report.is_fine() {
            break;
        }
    }
    run.cluster.stop();
    for at in 0..run.cluster.len() {
        run.report.left += check(binary, &run.cluster.spec(at).data_dir)?.damages();
    }
    Ok(run.report)
}

impl Run<'_> {
    async fn fill(&mut self, plan: &DamagePlan) -> anyhow::Result<()> {
        let mut expected = Vec::new();
        for number in 0..plan.keys + plan.long_keys {
            let length = if number < plan.keys { 100 + self.rng.below(900) as usize } else { LONG_BYTES + number };
            expected.push((format!("key{number}").into_bytes(), Expected::Value(self.value(length))));
        }
        self.write(expected).await
    }

    fn value(&mut self, length: usize) -> Vec<u8> {
        (0..length.div_ceil(8)).flat_map(|_| self.rng.next_u64().to_le_bytes()).take(length).collect()
    }

    /// Writes keys, a few at a time, and expects them from then on.
    async fn write(&mut self, more: Vec<(Vec<u8>, Expected)>) -> anyhow::Result<()> {
        let addresses = self.cluster.addresses();
        let more = Rc::new(more);
        let writers: Vec<_> = (0..16)
            .map(|writer| {
                let (more, addresses) = (Rc::clone(&more), addresses.clone());
                let address = addresses[writer % addresses.len()];
                tokio::task::spawn_local(async move {
                    let mut wire = Wire::new(address, Duration::from_secs(5));
                    for (key, expected) in more.iter().skip(writer).step_by(16) {
                        let Expected::Value(value) = expected else { continue };
                        let mut attempts = 0;
                        while wire.put(key, value).await != WriteEnd::Done {
                            attempts += 1;
                            if attempts > 60 {
                                bail!("{} cannot be written", key.escape_ascii());
                            }
                            // This node may be the one that has ended.
                            wire.turn_to(addresses[(writer + attempts) % addresses.len()]);
                            tokio::time::sleep(Duration::from_millis(250)).await;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        for writer in writers {
            writer.await??;
        }
        let more = Rc::try_unwrap(more).map_err(|_| anyhow::anyhow!("the writers have ended"))?;
        let mut expected = (*self.expected).clone();
        expected.extend(more);
        self.expected = Rc::new(expected);
        Ok(())
    }

    async fn verify(&mut self) {
        let addresses = self.cluster.addresses();
        self.verify_at(&addresses, true, true).await;
    }

    /// `must_answer`: these nodes run, and stay. `copies`: own copies too, which may lag behind what was just written.
    async fn verify_at(&mut self, addresses: &[SocketAddr], must_answer: bool, copies: bool) {
        let forgive = |mut verdict: Verdict| {
            if !must_answer {
                verdict.refused = 0;
                verdict.described.retain(|fault| !fault.contains("does not read"));
            }
            verdict
        };
        let newest = verify(addresses, &self.expected, false).await;
        add(&mut self.report.linearizable, forgive(newest));
        let began = Instant::now();
        while copies && let Some(own) = verify_own_copies(addresses, &self.expected).await {
            let own = forgive(own);
            // A copy may be behind for a moment; it never holds what was not written.
            if own.is_fine() || own.wrong > 0 || began.elapsed() > LAG_MAX {
                add(&mut self.report.own_copies, own);
                break;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Asks the node under which files were damaged, which may end for it, and then the others, which may not.
    async fn verify_under_damage(&mut self, victim: usize, copies: bool) {
        let all = self.cluster.addresses();
        let ends = self.cluster.has_ended(victim);
        if !ends {
            self.verify_at(&all[victim..=victim], false, copies).await;
        }
        let others: Vec<SocketAddr> = all.iter().copied().filter(|address| *address != all[victim]).collect();
        self.verify_at(&others, true, copies).await;
    }

    /// Stops the node, damages files one after the other, and has each damage looked for.
    async fn damage_stopped(&mut self, victim: usize, count: usize) -> anyhow::Result<Vec<Damage>> {
        self.cluster.stop_one(victim);
        let folder = self.cluster.spec(victim).data_dir.clone();
        let mut before = check(self.binary, &folder)?;
        let mut damages = Vec::new();
        for _ in 0..count {
            let Some(damage) = inflict::choose(&mut self.rng, &before.files, &before.damaged_files(), &damages) else { break };
            let original = damage.inflict()?;
            let after = check(self.binary, &folder)?;
            self.judge(&damage, &before, &after, &original);
            before = after.with_files_of(before);
            damages.push(damage);
        }
        judge::follow_advice(&folder)?;
        Ok(damages)
    }

    fn judge(&mut self, damage: &Damage, before: &Checked, after: &Checked, original: &[u8]) {
        self.count(damage);
        match judge::fate(damage, before, after, original) {
            Some(fate) => *self.report.fates.entry(fate).or_default() += 1,
            None => self.report.missed.push(format!("{damage}; check said: {}", after.findings_text())),
        }
    }

    fn count(&mut self, damage: &Damage) {
        match damage.kind {
            Kind::Flip { .. } => self.report.flips += 1,
            Kind::Cut => self.report.cuts += 1,
        }
    }

    /// Damages files under the running node, then has it read and write.
    async fn damage_running(&mut self, victim: usize, count: usize) -> anyhow::Result<Vec<Damage>> {
        let files = inflict::files_of(&self.cluster.spec(victim).data_dir)?;
        let mut damages = Vec::new();
        for _ in 0..count {
            let Some(damage) = inflict::choose(&mut self.rng, &files, &[], &damages) else { break };
            // A file that the node has removed meanwhile is none.
            if damage.inflict().is_ok() {
                self.count(&damage);
                self.report.while_running += 1;
                damages.push(damage);
            }
        }
        let number = self.report.rounds;
        let more = (0..50).map(|at| (format!("r{number}-{at}").into_bytes(), Expected::Value(self.value(500)))).collect();
        self.verify_under_damage(victim, true).await;
        self.write(more).await?;
        self.verify_under_damage(victim, false).await;
        if self.cluster.has_ended(victim) {
            self.report.ended_running += 1;
        }
        self.cluster.stop_one(victim);
        judge::follow_advice(&self.cluster.spec(victim).data_dir)?;
        Ok(damages)
    }

    /// Starts the node until it stays, and waits until everything is on all nodes again.
    async fn heal(&mut self, victim: usize) -> anyhow::Result<()> {
        for attempt in 1..=STARTS_MAX {
            let is_started = attempt > 1 || !self.cluster.is_running(victim);
            if is_started {
                self.cluster.launch(victim)?;
            }
            let ready = match self.cluster.wait_ready(victim).await {
                Ok(()) => self.wait_whole().await,
                Err(error) => Err(error),
            };
            let said = self.said(victim)?;
            self.report.reseeded += said.matches("will be re-seeded").count();
            self.report.stores_given_up += said.matches("damaged state store is given up").count();
            if said.contains("panicked") {
                self.report.failures.push(format!("n{} panicked: {said}", victim + 1));
                bail!("n{} panicked: {said}", victim + 1);
            }
            let Err(error) = ready else {
                self.report.starts_at_once += usize::from(attempt == 1 && is_started);
                self.cluster.spec_mut(victim).flags.clear();
                return Ok(());
            };
            ensure!(self.cluster.has_ended(victim), "n{} neither heals nor ends: {error:#}; {said}", victim + 1);
            let last = said.lines().rfind(|line| line.starts_with("flotilla: ")).unwrap_or("nothing").to_owned();
            if last.contains("--replace") {
                self.replace(victim)?;
            }
            self.report.ended_with.push(last);
        }
        let said = self.report.ended_with.last().cloned().unwrap_or_default();
        self.report.failures.push(format!("n{} did not heal in {STARTS_MAX} starts: {said}", victim + 1));
        bail!("n{} did not heal in {STARTS_MAX} starts: {said}", victim + 1)
    }

    /// Waits until every group, the control group too, has three voters, and stays so: what a node has just given up
    /// is reported a moment later.
    async fn wait_whole(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIME_MAX;
        let (client, mut whole_since, mut last) = (self.cluster.client(), None, String::new());
        while Instant::now() < deadline {
            self.cluster.wait_settled().await?;
            let status: serde_json::Value = serde_json::from_slice(&client.fetch("/v1/cluster").await?)?;
            let voters = status["control"]["voters"].as_array().map_or(0, Vec::len);
            if voters < self.cluster.len() || status["moves"].as_array().is_none_or(|moves| !moves.is_empty()) {
                (whole_since, last) = (None, format!("control: {}, moves: {}", status["control"], status["moves"]));
            } else if whole_since.get_or_insert_with(Instant::now).elapsed() > WHOLE_FOR {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("not every group has its voters after {START_TIME_MAX:?}: {last}")
    }

    /// What a person does who is told to join anew.
    fn replace(&mut self, victim: usize) -> anyhow::Result<()> {
        self.report.replaced += 1;
        let others: Vec<_> = (0..self.cluster.len()).filter(|at| *at != victim).map(|at| self.cluster.spec(at).http).collect();
        let spec = self.cluster.spec_mut(victim);
        spec.join = others;
        spec.flags = flags(&["--replace"]);
        std::fs::remove_dir_all(&spec.data_dir).with_context(|| format!("removing {}", spec.data_dir.display()))
    }

    /// What the node wrote since it was asked last.
    fn said(&mut self, at: usize) -> anyhow::Result<String> {
        let output = std::fs::read(&self.cluster.spec(at).output)?;
        let said = String::from_utf8_lossy(&output[self.read[at].min(output.len())..]).into_owned();
        self.read[at] = output.len();
        Ok(said)
    }
}

fn add(sum: &mut Verdict, one: Verdict) {
    sum.keys = one.keys;
    sum.reads += one.reads;
    sum.lost += one.lost;
    sum.wrong += one.wrong;
    sum.divergent += one.divergent;
    sum.refused += one.refused;
    sum.described.extend(one.described);
}
