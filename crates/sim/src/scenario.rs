//! What a seed stands for: topology, settings, load, and which faults come how often.
//!
//! A planted fault steers the draw towards circumstances in which it can show (a family of scenarios
//! each). The same families run without the fault as well, in every campaign: see [`Family`].

use crate::coverage::Fault;
use crate::workload::WorkloadConfig;
use flotilla_node::NodeConfig;
use flotilla_storage::log::LogOptions;
use flotilla_types::{PlantedFault, Rng};
use std::time::Duration;

/// A kind of circumstances, made to be hard on one mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Anything.
    Mixed,
    /// All machines lose power, again and again, under writes.
    PowerCuts,
    /// Elections under crashes: votes and terms are what matters.
    Elections,
    /// One node alone, then a second and a third; crashes in between.
    LoneVoter,
    /// Hot keys, leaders that change, links that delay: reads are what matters.
    Reads,
    /// Bits flip on the disks of a minority.
    Damage,
    /// Data-dirs are lost, one after the other.
    Wipes,
    /// Small logs and slow followers: snapshots are what matters.
    Snapshots,
    /// Connections break all the time: forwarding is what matters.
    Forwarding,
    /// Writes come again under their idempotency keys, to other leaders and behind snapshots.
    Retries,
    /// Nodes are drained, removed and added anew.
    Members,
}

impl Family {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Family::Mixed => "mixed",
            Family::PowerCuts => "power-cuts",
            Family::Elections => "elections",
            Family::LoneVoter => "lone-voter",
            Family::Reads => "reads",
            Family::Damage => "damage",
            Family::Wipes => "wipes",
            Family::Snapshots => "snapshots",
            Family::Forwarding => "forwarding",
            Family::Retries => "retries",
            Family::Members => "members",
        }
    }

    /// All of them.
    pub const ALL: [Family; 11] = [
        Family::Mixed,
        Family::PowerCuts,
        Family::Elections,
        Family::LoneVoter,
        Family::Reads,
        Family::Damage,
        Family::Wipes,
        Family::Snapshots,
        Family::Forwarding,
        Family::Retries,
        Family::Members,
    ];

    /// The family in which a planted fault shows soonest.
    pub fn of(fault: PlantedFault) -> Family {
        match fault {
            PlantedFault::AcknowledgeBeforeSync => Family::PowerCuts,
            PlantedFault::VoteNotPersisted => Family::Elections,
            PlantedFault::LoneVoterSendsBeforeSync => Family::LoneVoter,
            PlantedFault::ReadBeforeOwnTermEntry | PlantedFault::ReadAnsweredByEarlierRound => Family::Reads,
            PlantedFault::ApplyTwiceAfterRestart => Family::PowerCuts,
            PlantedFault::CutBelowSyncMark => Family::Damage,
            PlantedFault::ReseedUnderOldReplicaId => Family::Wipes,
            PlantedFault::SnapshotSwitchedBeforeDurable => Family::Snapshots,
            PlantedFault::ForwardedWriteSentAgain => Family::Forwarding,
            PlantedFault::TableNotInSnapshot => Family::Retries,
            PlantedFault::RowLost | PlantedFault::RowChanged => Family::Damage,
        }
    }
}

/// How long things take on a machine or a link, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// At least this.
    pub min_us: u64,
    /// Usually at most this.
    pub max_us: u64,
}

/// All that a seed decides beforehand.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The kind of circumstances.
    pub family: Family,
    /// The fault planted in the nodes.
    pub plant: Option<PlantedFault>,
    /// Machines, the first of which creates the cluster.
    pub hosts: usize,
    /// Whether the others join under load, spread over the run, or at once.
    pub grows: bool,
    /// Number of shards.
    pub shards: u32,
    /// Copies wanted.
    pub replicas: u32,
    /// The nodes' settings.
    pub node: NodeConfig,
    /// The logs' settings.
    pub log: LogOptions,
    /// The load.
    pub workload: WorkloadConfig,
    /// The faults that come.
    pub faults: Vec<Fault>,
    /// Mean time between two of them.
    pub fault_interval: Duration,
    /// How long the faults go on.
    pub safety: Duration,
    /// Of links.
    pub link: Latency,
    /// What goes whole on a link; larger messages are slower, and passed by these.
    pub whole_bytes_max: usize,
    /// Of a log write with its sync.
    pub disk: Latency,
    /// Of a store job.
    pub store: Latency,
    /// How far monotonic clocks drift, either way, in millionths.
    pub drift_ppm_max: u64,
}

impl Scenario {
    /// What `seed` stands for, in a family if one is given. The same seed, family and all, with and
    /// without a planted fault is the same but for the fault.
    pub fn draw(seed: u64, plant: Option<PlantedFault>, family: Option<Family>) -> Scenario {
        let mut rng = Rng::new(seed ^ 0x7363_656e_6172_696f);
        let drawn = if rng.chance(1, 2) { Family::Mixed } else { *rng.pick(&Family::ALL).expect("there are families") };
        let family = family.or_else(|| plant.map(Family::of)).unwrap_or(drawn);
        let hosts = match family {
            Family::Mixed => rng.between(1, 5).max(rng.between(1, 5)) as usize,
            Family::LoneVoter => rng.between(2, 3) as usize,
            Family::Members => rng.between(4, 5) as usize,
            _ => rng.between(3, 5).min(rng.between(3, 5)) as usize,
        };
        let grows = hosts > 1 && (family == Family::LoneVoter || rng.chance(1, 4));
        let shards = 1 + rng.below(4).min(rng.below(8)) as u32;
        let mut scenario = Scenario {
            family,
            plant,
            hosts,
            grows,
            shards,
            replicas: if hosts == 5 && rng.chance(1, 4) { 5 } else { 3 },
            node: draw_node_config(&mut rng, plant),
            log: LogOptions {
                segment_bytes: 1 << rng.between(16, 19),
                segment_count_max: rng.between(2, 8),
                spare_count_max: rng.below(3) as usize,
                cuts_below_sync_mark: plant == Some(PlantedFault::CutBelowSyncMark),
            },
            workload: draw_workload(&mut rng),
            faults: Vec::new(),
            fault_interval: Duration::from_millis(rng.between(1_000, 5_000)),
            safety: Duration::from_secs(rng.between(60, 75)),
            link: Latency { min_us: rng.between(20, 500), max_us: rng.between(600, 10_000) },
            whole_bytes_max: 1 << rng.between(8, 13),
            disk: Latency { min_us: rng.between(20, 300), max_us: rng.between(400, 12_000) },
            store: Latency { min_us: rng.between(5, 100), max_us: rng.between(150, 4_000) },
            drift_ppm_max: *rng.pick(&[0, 50, 500, 5_000]).expect("not empty"),
        };
        scenario.faults = draw_faults(&scenario, &mut rng);
        scenario.steer(&mut rng);
        // Answers are remembered for 15 minutes by clocks of which a majority is right: a leap of some clocks by an
        // hour is beyond what is promised.
        let may_repeat = matches!(family, Family::Mixed | Family::Retries) && !scenario.faults.contains(&Fault::Clock);
        scenario.workload.increment_percent = match family {
            _ if !may_repeat => 0,
            Family::Retries => 50,
            _ => 15,
        };
        scenario.workload.lend_percent = if matches!(family, Family::Mixed | Family::Retries) { 12 } else { 0 };
        scenario
    }

    /// Bends what was drawn towards the family.
    fn steer(&mut self, rng: &mut Rng) {
        let ms = Duration::from_millis;
        match self.family {
            Family::Mixed => {}
            Family::PowerCuts => self.fault_interval = ms(rng.between(1_500, 3_000)),
            Family::Elections => self.fault_interval = ms(rng.between(500, 1_500)),
            Family::LoneVoter => self.fault_interval = ms(rng.between(700, 2_000)),
            Family::Reads => {
                self.fault_interval = ms(rng.between(800, 2_500));
                self.workload.hot_percent = 90;
                self.workload.hot_keys = self.workload.hot_keys.min(3);
                self.workload.get_percent = 60;
                self.link.max_us = rng.between(5_000, 40_000);
            }
            Family::Damage | Family::Wipes => self.fault_interval = ms(rng.between(2_000, 4_000)),
            Family::Members => {
                self.fault_interval = ms(rng.between(1_000, 3_000));
                // What is down for as long as this is given up, and comes back.
                self.node.replace_after = Some(ms(rng.between(4_000, 20_000)));
            }
            Family::Snapshots | Family::Retries => {
                self.fault_interval = ms(rng.between(800, 2_500));
                self.node.log_keep_bytes = rng.between(1 << 9, 4 << 10) as usize;
                self.node.persist_interval = ms(rng.between(50, 400));
                self.node.persist_bytes = 1 << 10;
                self.node.snapshot_chunk_bytes = rng.between(200, 4_000) as usize;
            }
            Family::Forwarding => {
                self.fault_interval = ms(rng.between(300, 1_200));
                self.link.max_us = rng.between(5_000, 40_000);
            }
        }
    }
}

fn draw_node_config(rng: &mut Rng, fault: Option<PlantedFault>) -> NodeConfig {
    // Every shard again and again within a run, several steps each.
    let (scrub_bytes_per_second, scrub_interval) = (256 << 10, Duration::from_secs(4));
    let mut config = NodeConfig { fault, scrub_bytes_per_second, scrub_interval, ..NodeConfig::default() };
    if rng.chance(3, 4) {
        config.log_keep_bytes = 1 << rng.between(10, 16);
        config.persist_bytes = 1 << rng.between(10, 15);
        config.persist_interval = Duration::from_millis(rng.between(100, 3_000));
    }
    config.snapshot_chunk_bytes = 1 << rng.between(9, 16);
    config.transfers_max = rng.between(1, 4) as usize;
    if rng.chance(1, 4) {
        config.requests_max = rng.between(2, 8) as usize;
    }
    if rng.chance(1, 8) {
        config.unapplied_bytes_max = 1 << rng.between(10, 16);
    }
    let group = &mut config.group;
    group.message_bytes_max = 1 << rng.between(10, 18);
    group.inflight_messages_max = rng.between(2, 64) as usize;
    group.committed_bytes_per_ready_max = 1 << rng.between(10, 20);
    group.uncommitted_bytes_max = (1 << rng.between(14, 22)).max(2 * group.message_bytes_max);
    group.commit_broadcast = rng.chance(1, 2);
    config
}

fn draw_workload(rng: &mut Rng) -> WorkloadConfig {
    WorkloadConfig {
        clients: rng.between(4, 8) as u32,
        hot_keys: rng.between(2, 6) as u32,
        cold_keys: rng.between(20, 120) as u32,
        hot_percent: rng.between(30, 70),
        get_percent: rng.between(25, 50),
        delete_percent: rng.between(5, 25),
        guard_percent: rng.between(5, 40),
        increment_percent: 0,
        lend_percent: 0,
        think_ms_max: rng.between(60, 160),
        timeout_ms: (rng.between(100, 1_000), rng.between(2_000, 6_000)),
        value_bytes_max: if rng.chance(1, 8) { 40_000 } else { 1 << rng.between(7, 11) },
    }
}

fn draw_faults(scenario: &Scenario, rng: &mut Rng) -> Vec<Fault> {
    use Fault::*;
    let alone = scenario.hosts == 1;
    // Those that come first make the family; a kind that stands there twice comes twice as often.
    let mut faults = match scenario.family {
        Family::Mixed => Vec::new(),
        Family::PowerCuts => vec![PowerCut, PowerCut, PowerCut, Crash, SlowDisk],
        Family::Elections => vec![Crash, Crash, PowerCut, Pause, Isolation, SlowDisk],
        Family::LoneVoter => vec![Crash, Crash, PowerCut, SlowDisk, SlowDisk, Pause],
        Family::Reads => vec![Pause, Pause, Pause, Isolation, Partition, OneWayCut, Delay, SlowStore, Crash],
        Family::Damage => vec![BitFlip, BitFlip, BitFlip, Crash, Partition],
        Family::Wipes => vec![Wipe, Wipe, Wipe, Isolation, Crash],
        Family::Snapshots => vec![Crash, PowerCut, Isolation, Isolation, Pause, SlowStore],
        Family::Forwarding => vec![Reconnect, Reconnect, Reconnect, Crash, Delay],
        Family::Retries => vec![Isolation, Isolation, Pause, SlowStore, Crash],
        Family::Members => vec![Operator, Operator, Operator, Operator, Crash, Isolation, Pause],
    };
    let kinds = faults.len() + rng.between(if faults.is_empty() { 3 } else { 0 }, 5) as usize;
    let usable: Vec<Fault> = match alone {
        true => vec![Crash, PowerCut, Pause, SlowDisk, SlowStore, Clock, Operator],
        false => Fault::ALL.into_iter().filter(|f| *f != Growth && (*f != Clock || scenario.family != Family::Retries)).collect(),
    };
    if alone {
        faults.retain(|f| usable.contains(f));
    }
    while faults.len() < kinds {
        let fault = *rng.pick(&usable).expect("there are faults");
        if !faults.contains(&fault) || faults.len() >= usable.len() {
            faults.push(fault);
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_seed_brings_three_kinds_of_faults_and_a_minute() {
        for seed in 0..2_000 {
            let scenario = Scenario::draw(seed, None, None);
            assert!(scenario.faults.iter().collect::<BTreeSet<_>>().len() >= 3, "seed {seed}: {:?}", scenario.faults);
            assert!(scenario.safety >= Duration::from_secs(60) && scenario.link.min_us <= scenario.link.max_us);
        }
    }
}
