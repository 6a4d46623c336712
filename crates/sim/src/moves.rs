//! A move of a replica, with those who take part in it killed at each of its phases: source, target, the control group's leader
//! and the group's leader, one at a time, in pairs, in threes and all together.
//!
//! Each case is a small world of its own: five machines, two shards under the load of clients, logs so short that a new replica
//! needs a snapshot of several chunks. An operator drains a node that has a copy of the first shard; [`crate::ambush`] strikes at
//! the phase; the dead come back. Then the cluster must come to rest with the operator's wish fulfilled: the node holds nothing,
//! no replica is leaving, no row of a snapshot that was given up is left in any store; and all that clients saw is judged as in
//! any other run. A case in which the ambush did not strike is a failure.

use crate::ambush::{Ambush, Party, Phase, State};
use crate::campaign::guarded;
use crate::checkers::Violation;
use crate::history::Moment;
use crate::scenario::{Family, Scenario};
use crate::trace::Lines;
use crate::verdict;
use crate::world::{Load, World};
use flotilla_node::admin::AdminAction;
use flotilla_types::{GroupId, NodeId, PlantedFault};
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// One case: when, whom, and under which seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The phase of the move.
    pub phase: Phase,
    /// Who dies.
    pub victims: Vec<Party>,
    /// Decides the rest: latencies, load, who is who, whether power is lost, for how long the dead are away.
    pub seed: u64,
}

/// What came of a case.
#[derive(Clone, Debug)]
pub struct CaseOutcome {
    /// The case.
    pub case: Case,
    /// What was wrong, if anything was.
    pub violation: Option<Violation>,
    /// How many machines died; fewer than victims where one was two of them.
    pub died: usize,
    /// From the blow until the cluster was at rest again, the dead being back.
    pub recovered: Duration,
    /// The trace's lines, if they were kept.
    pub lines: Vec<String>,
}

/// How long everything before the blow may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Operations that must be acknowledged before the move begins, so that there is something to move.
const OPERATIONS_BEFORE: u64 = 150;
/// Clients go on for this long after the blow.
const AFTERWARDS: Duration = Duration::from_secs(10);
/// How often a case is tried in which a victim is not there when it should die.
const ATTEMPTS_MAX: u64 = 5;
/// What is said of a case in which nobody died.
const NO_BLOW: &str = "ambush";
/// The group whose move is watched.
const GROUP: GroupId = GroupId(1);

/// Every set of victims but the empty one, the small ones first.
pub fn victim_sets() -> Vec<Vec<Party>> {
    let chosen = |bits: u32| Party::ALL.into_iter().enumerate().filter(|(place, _)| bits & 1 << place != 0).map(|(_, p)| p).collect();
    let mut sets: Vec<Vec<Party>> = (1..1 << Party::ALL.len()).map(chosen).collect();
    sets.sort_by_key(Vec::len);
    sets
}

/// Every phase with each of these sets of victims, under each seed.
pub fn cases(sets: &[Vec<Party>], seeds: std::ops::Range<u64>) -> Vec<Case> {
    let mut cases = Vec::new();
    for seed in seeds {
        for phase in Phase::ALL {
            cases.extend(sets.iter().map(|victims| Case { phase, victims: victims.clone(), seed }));
        }
    }
    cases
}

fn scenario(case: &Case, plant: Option<PlantedFault>) -> Scenario {
    let mut scenario = Scenario::draw(case.seed, plant, Some(Family::Snapshots));
    scenario.hosts = 5;
    scenario.grows = false;
    scenario.shards = 2;
    scenario.replicas = 3;
    scenario.faults = Vec::new();
    scenario.node.snapshot_chunk_bytes = 400;
    scenario.node.transfers_max = 4;
    // Chunks and syncs that take their time, so that what happens meanwhile happens meanwhile.
    scenario.workload.cold_keys = scenario.workload.cold_keys.max(40);
    scenario.workload.value_bytes_max = 1 << 10;
    scenario.workload.think_ms_max = 60;
    scenario
}

/// Runs one case. Where the blow cannot fall, since the control group had no leader just then, the same is tried elsewhere.
pub fn run_case(case: &Case, plant: Option<PlantedFault>, lines: Lines) -> CaseOutcome {
    let is_missed = |outcome: &CaseOutcome| outcome.violation.as_ref().is_some_and(|violation| violation.property == NO_BLOW);
    let first = try_case(case, 0, plant, lines);
    if !is_missed(&first) {
        return first;
    }
    (1..ATTEMPTS_MAX).map(|attempt| try_case(case, attempt, plant, lines)).find(|outcome| !is_missed(outcome)).unwrap_or(first)
}

fn try_case(case: &Case, attempt: u64, plant: Option<PlantedFault>, lines: Lines) -> CaseOutcome {
    // The same seed at another phase is another run, though of the same kind.
    let place = Phase::ALL.iter().position(|phase| *phase == case.phase).expect("one of them") as u64;
    let salt = case.victims.iter().fold(place + (attempt << 8), |sum, party| sum * 31 + 1 + *party as u64);
    let mut world = World::new(case.seed ^ (salt << 32), scenario(case, plant), lines);
    let violation = guarded(|| world.run_ambush(case));
    let (died, struck) = match world.ambush.as_ref().map(|ambush| &ambush.state) {
        Some(State::Struck(hosts, at)) => (hosts.len(), *at),
        _ => (0, world.now),
    };
    let recovered = world.at_rest_again.map_or(Duration::ZERO, |at| at.since(struck));
    CaseOutcome { case: case.clone(), violation, died, recovered, lines: world.trace.lines().to_vec() }
}

/// Runs cases on some threads. The outcomes come in the order of the cases.
pub fn run_cases(cases: &[Case], plant: Option<PlantedFault>, jobs: usize, done: impl Fn(&CaseOutcome) + Sync) -> Vec<CaseOutcome> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(place) else { return };
                    let outcome = run_case(case, plant, Lines::Dropped);
                    done(&outcome);
                    outcomes.lock().expect("nothing panics while it holds this").push((place, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().expect("nothing panicked while it held this");
    outcomes.sort_by_key(|(place, _)| *place);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

impl World {
    fn run_ambush(&mut self, case: &Case) -> Option<Violation> {
        // No faults but this one.
        self.healed = true;
        self.grow_until_loaded();
        if self.violation.is_some() {
            return self.violation.clone();
        }
        let Some((name, source)) = self.choose_source(case.seed) else {
            self.fail("moves", "the group has no replica to move");
            return self.violation.clone();
        };
        let mut ambush = Ambush::new(case.phase, &case.victims, GROUP, source);
        ambush.power_lost = self.chance.faults.chance(1, 2);
        // Half of the blows fall at once, the others while what the phase began is under way.
        ambush.late = Duration::from_micros(if self.chance.faults.chance(1, 2) { 0 } else { self.chance.faults.between(100, 8_000) });
        self.ambush = Some(ambush);
        let began = self.now;
        let mut asked: Option<Moment> = None;
        while self.violation.is_none() && !matches!(self.ambush.as_ref().map(|a| &a.state), Some(State::Struck(..) | State::Missed(_))) {
            // What is asked of a node that does not answer is asked again.
            if asked.is_none_or(|at| self.now.since(at) > Duration::from_secs(4)) {
                asked = Some(self.now);
                self.ask_as_operator(AdminAction::Drain { node: name.clone() });
            }
            self.run_until(self.now + Duration::from_millis(200));
            if self.now.since(began) > PATIENCE {
                let state = self.ambush.as_ref().map(|ambush| ambush.state.clone());
                self.fail(NO_BLOW, format!("no blow fell: {:?} never came, {state:?}", case.phase));
            }
        }
        if let Some(State::Missed(party)) = self.ambush.as_ref().map(|ambush| &ambush.state) {
            let detail = format!("no blow fell: there was no {party:?} at {:?}", case.phase);
            self.fail(NO_BLOW, detail);
        }
        self.run_until(self.now + AFTERWARDS);
        self.load = Load::List(Default::default());
        self.rest();
        self.at_rest_again = Some(self.now);
        self.last_load();
        self.rest();
        if self.violation.is_none() {
            self.violation = self.check().err();
        }
        self.violation.clone()
    }

    /// Until all copies are where they are wanted and clients have written enough to be worth a snapshot.
    fn grow_until_loaded(&mut self) {
        let began = self.now;
        loop {
            self.run_until(self.now + Duration::from_millis(200));
            if self.violation.is_some() || (self.history.acknowledged() >= OPERATIONS_BEFORE && verdict::is_placed(self)) {
                return;
            }
            if self.now.since(began) > PATIENCE {
                return self.fail("moves", "the cluster did not get ready");
            }
        }
    }

    /// A node with a copy of the group: its leader under some seeds, a follower under others.
    fn choose_source(&self, seed: u64) -> Option<(String, NodeId)> {
        let mut views: Vec<_> = verdict::views(self).into_iter().filter(|(_, view)| view.group == GROUP).collect();
        views.sort_by_key(|(_, view)| view.leader == Some(view.replica));
        let (number, _) = if seed.is_multiple_of(3) { views.last()? } else { views.first()? };
        Some((self.hosts[*number].name.clone(), self.hosts[*number].node_id()?))
    }
}

/// How often the blow fell, by phase and victims; in brackets how many of those cases failed.
pub fn table(outcomes: &[CaseOutcome]) -> String {
    let mut sets: Vec<Vec<Party>> = Vec::new();
    for outcome in outcomes {
        if !sets.contains(&outcome.case.victims) {
            sets.push(outcome.case.victims.clone());
        }
    }
    let mut text = format!("{:<15}", "");
    for set in &sets {
        let _ = write!(text, "{:>7}", set.iter().map(|party| party.letter()).collect::<String>());
    }
    for phase in Phase::ALL {
        let _ = write!(text, "\n{:<15}", phase.name());
        for set in &sets {
            let these = || outcomes.iter().filter(|o| o.case.phase == phase && o.case.victims == *set);
            let (struck, failed) = (these().filter(|o| o.died > 0).count(), these().filter(|o| o.violation.is_some()).count());
            let _ = write!(text, "{:>7}", if failed > 0 { format!("{struck}({failed})") } else { struck.to_string() });
        }
    }
    text
}
