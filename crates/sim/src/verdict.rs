//! How a run ends: the faults stop, the cluster must come to rest, clients write to every shard and
//! read every key once more, and then the checkers look at all that was seen.

use crate::checkers::convergence::{self, ReplicaSeen, Wanted};
use crate::checkers::durability::{self, Survivors};
use crate::checkers::exactly_once::Counters;
use crate::checkers::replica_agreement::{self, ReplicaRows};
use crate::checkers::{Violation, exactly_once, expiry, honest_outcomes, linearizability, versions};
use crate::coverage::Fault;
use crate::history::{KeyNumber, Moment};
use crate::host::Process;
use crate::network::HostNumber;
use crate::process::{LARGE, read_state};
use crate::workload::{TTL_MAX, Workload};
use crate::world::{Happening, Load, World};
use bytes::Bytes;
use flotilla_node::admin::AdminAction;
use flotilla_node::control::{ControlState, NodeState, Rebalancing};
use flotilla_node::keyspace::shard_of;
use flotilla_node::state_machine::read;
use flotilla_node::status::GroupView;
use flotilla_storage::store::layout::{self, Filing};
use flotilla_storage::store::{StateStore, StoreView};
use flotilla_types::{GroupId, NodeId, PlantedFault, ReplicaKey};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

/// The cluster must be at rest this long after everything was healed, and once more after the last load.
const REST_MAX: Duration = Duration::from_secs(90);
/// Clients go on for this long after the faults have stopped.
const CALM: Duration = Duration::from_secs(3);
/// What was lent is gone this long after its time, leaders there being.
const LENT_LATE_MAX: Duration = Duration::from_secs(2);
/// Below this many acknowledged operations a run has shown nothing.
const ACKNOWLEDGED_MIN: u64 = 50;

impl World {
    /// Runs to the end; says what was wrong, if anything was.
    pub fn run(&mut self) -> Option<Violation> {
        self.run_until(Moment(0) + self.scenario.safety);
        self.heal();
        self.run_until(self.now + CALM);
        self.load = Load::List(Default::default());
        self.rest();
        if let Some(fault) = self.scenario.plant.filter(|fault| fault.is_to_be_healed()) {
            self.tamper_and_wait(fault);
        }
        self.last_load();
        if self.scenario.workload.lend_percent > 0 {
            self.run_until(self.now + TTL_MAX + LENT_LATE_MAX);
        }
        self.rest();
        if self.violation.is_none() {
            let verdict = self.check();
            self.violation = verdict.err();
        }
        self.violation.clone()
    }

    /// Waits until the cluster is at rest.
    pub(crate) fn rest(&mut self) {
        let began = self.now;
        loop {
            self.run_until(self.now + Duration::from_millis(500));
            if self.violation.is_some() {
                return;
            }
            let mut amiss = match wanted(self) {
                Some((control, wanted)) => {
                    let mut amiss = convergence::amiss(&wanted, &seen(self));
                    amiss.extend(members_amiss(self, &control));
                    amiss.extend(self.ambush_amiss());
                    if amiss.is_empty() {
                        amiss = leftover_rows(self);
                    }
                    amiss
                }
                None => vec!["nobody leads the control group".to_owned()],
            };
            if self.list_under_way > 0 {
                amiss.push(format!("{} requests wait for an answer", self.list_under_way));
            }
            if amiss.is_empty() {
                return;
            }
            if self.ambush.is_none() {
                self.take_back_operators();
            }
            if self.now.since(began) > REST_MAX {
                return self.note_violation(convergence::violation(&amiss, self.now.since(began)));
            }
        }
    }

    /// What operators began and did not take back is taken back.
    fn take_back_operators(&mut self) {
        let Some((control, _)) = wanted(self) else { return };
        if control.rebalancing == Rebalancing::Paused {
            self.ask_as_operator(AdminAction::SetRebalancing { paused: Some(false), bytes_per_second: None });
        }
        let drained = control.members().filter(|(_, record)| matches!(record.state, NodeState::Draining | NodeState::Leaving));
        let names: Vec<String> = drained.map(|(_, record)| record.profile.name.clone()).collect();
        for node in names {
            self.ask_as_operator(AdminAction::Undrain { node });
        }
    }

    /// Takes away or changes a row of a replica that does not lead, and waits until it is replaced.
    fn tamper_and_wait(&mut self, fault: PlantedFault) {
        if self.violation.is_some() {
            return;
        }
        let follows = |view: &GroupView| view.leader != Some(view.replica) && view.membership.voters.len() >= 3;
        let mut places = Vec::new();
        for (number, view) in views(self).into_iter().filter(|(_, view)| follows(view)) {
            let prefix = layout::data_prefix(view.filing.under, view.filing.generation);
            let rows = self.hosts[number].store.rows().into_iter().filter(|(key, _)| key.starts_with(&prefix));
            places.extend(rows.map(|row| (number, view.group, view.replica, row)));
        }
        let Some((number, group, replica, (key, value))) = self.chance.faults.pick(&places).cloned() else {
            return self.fail("scrub", "there is no row to tamper with");
        };
        self.trace.note(self.now, "tamper", &[number as u64], || format!("n{}: {fault:?} {}", number + 1, key.escape_ascii()));
        let changed = (fault == PlantedFault::RowChanged).then(|| {
            let relative_key = &key[layout::GENERATION_PREFIX_BYTES..];
            let mut body = value[layout::CHECKSUM_BYTES..].to_vec();
            match body.last_mut() {
                Some(last) => *last ^= 1,
                None => body.push(1),
            }
            layout::seal(relative_key, &body)
        });
        self.hosts[number].store.tamper(&key, changed);
        let began = self.now;
        while views(self).iter().any(|(_, view)| (view.group, view.replica) == (group, replica)) {
            self.run_until(self.now + Duration::from_millis(500));
            if self.violation.is_some() {
                return;
            }
            if self.now.since(began) > REST_MAX {
                return self.fail("scrub", format!("{group}/{replica} differs in the row {}, and nobody finds it", key.escape_ascii()));
            }
        }
        self.rest();
    }

    /// A write to every shard, then a read of every key; each must succeed.
    pub(crate) fn last_load(&mut self) {
        if self.violation.is_some() {
            return;
        }
        let shards = self.scenario.shards;
        let mut missing: BTreeSet<u32> = (0..shards).collect();
        let mut keys: Vec<KeyNumber> = (0..self.workload.key_count()).map(KeyNumber).collect();
        let mut writes = Vec::new();
        for number in 0.. {
            if missing.is_empty() {
                break;
            }
            if missing.remove(&shard_of(&Workload::key(KeyNumber(number)), shards).0) {
                writes.push((KeyNumber(number), true));
                if number >= self.workload.key_count() {
                    keys.push(KeyNumber(number));
                }
            }
        }
        self.work_off(writes);
        self.work_off(keys.into_iter().map(|key| (key, false)).collect());
    }

    fn work_off(&mut self, list: Vec<(KeyNumber, bool)>) {
        let began = self.now;
        self.load = Load::List(list.into());
        for client in 0..self.scenario.workload.clients {
            self.plan(Duration::from_millis(u64::from(client)), Happening::Ask(client));
        }
        loop {
            self.run_until(self.now + Duration::from_millis(50));
            let Load::List(list) = &self.load else { return };
            if self.violation.is_some() || (list.is_empty() && self.list_under_way == 0) {
                return;
            }
            if self.now.since(began) > REST_MAX {
                let detail = format!("{} requests still fail with nothing broken; next is {:?}", list.len(), list.front());
                return self.fail("convergence", detail);
            }
        }
    }

    pub(crate) fn check(&mut self) -> Result<(), Violation> {
        let operations = self.history.told();
        let keys: BTreeSet<KeyNumber> = operations.iter().map(|o| o.key).collect();
        exactly_once::check_answers(&operations)?;
        expiry::check_never_back(&operations)?;
        if self.clocks_are_right() {
            expiry::check_not_early(&operations)?;
        }
        let (survivors, counters) = self.check_stores(&keys)?;
        if self.history.acknowledged() < ACKNOWLEDGED_MIN {
            return Err(Violation::new("load", format!("only {} operations were acknowledged", self.history.acknowledged())));
        }
        versions::check(&operations)?;
        honest_outcomes::check(&operations, &survivors)?;
        exactly_once::check_totals(&operations, &counters)?;
        let lasting: Vec<_> = operations.iter().copied().filter(|o| Workload::is_lasting(o.key)).collect();
        durability::check(&lasting, &survivors)?;
        linearizability::check(&lasting)
    }

    /// Whether no wall clock jumps in this run.
    fn clocks_are_right(&self) -> bool {
        !self.scenario.faults.contains(&Fault::Clock)
    }

    /// Compares the rows of all replicas, and gives what the leaders' stores hold.
    fn check_stores(&mut self, keys: &BTreeSet<KeyNumber>) -> Result<(Survivors, Counters), Violation> {
        let wrong = |detail: String| Violation::new("stores", detail);
        let shards = self.scenario.shards;
        let (mut survivors, mut counters) = (Survivors::new(), Counters::new());
        let mut by_group: BTreeMap<GroupId, Vec<ReplicaRows>> = BTreeMap::new();
        for (number, view) in views(self) {
            let replica = ReplicaKey { group: view.group, replica: view.replica };
            let store = self.hosts[number].store.clone();
            let state = read_state(&store, replica).map_err(wrong)?.ok_or_else(|| wrong(format!("{replica} has no state row")))?;
            let rows = rows(&store, view.filing).map_err(|error| wrong(error.to_string()))?;
            by_group.entry(view.group).or_default().push(ReplicaRows { replica: view.replica, applied: view.applied, rows });
            let Some(shard) = view.group.shard().filter(|_| view.leader == Some(view.replica)) else { continue };
            let (mut present, mut lent) = (0, 0);
            for number in keys.iter().filter(|key| shard_of(&Workload::key(**key), shards) == shard) {
                let found = read::get(&store, replica, view.filing, &Workload::key(*number)).map_err(|error| wrong(error.to_string()))?;
                let Some((version, bytes)) = found else { continue };
                present += 1;
                lent += u64::from(Workload::is_lent(*number));
                if Workload::is_counter(*number) {
                    let total = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok());
                    counters.insert(*number, total.ok_or_else(|| wrong(format!("key {} holds no integer", number.0)))?);
                } else {
                    let value =
                        self.workload.value(&bytes).ok_or_else(|| wrong(format!("key {} holds bytes that nobody wrote", number.0)))?;
                    if Workload::is_lasting(*number) {
                        survivors.insert(*number, (version.0, value));
                    }
                }
            }
            // A shard's clock that has leapt ahead with a wall clock stands until that is past; so do its deadlines.
            if !self.clocks_are_right() {
                let rows = &by_group[&view.group].last().expect("just pushed").rows;
                present = rows.iter().filter(|(key, _)| key[0] == layout::RowKind::Key as u8).count() as u64;
            } else if lent > 0 {
                return Err(wrong(format!("{replica} still holds {lent} keys whose time is over")));
            }
            if state.keys != present {
                return Err(wrong(format!("{replica} counts {} keys and holds {present} that clients know", state.keys)));
            }
        }
        for (group, rows) in &by_group {
            replica_agreement::check_rows(*group, rows)?;
        }
        Ok((survivors, counters))
    }
}

/// Whether every group lies where it is wanted, with as many voters as a loss needs.
pub(crate) fn is_placed(world: &World) -> bool {
    let Some((control, wanted)) = wanted(world) else { return false };
    let enough = wanted.values().all(|group| group.voters.len() >= 3);
    enough && members_amiss(world, &control).is_empty() && convergence::misplaced(&wanted, &seen(world)).is_empty()
}

/// The control group's state at its leader of the highest term, and where groups are wanted.
fn wanted(world: &World) -> Option<(ControlState, BTreeMap<GroupId, Wanted>)> {
    let all = views(world);
    let leaders = all.iter().filter(|(_, view)| view.group == GroupId::CONTROL && view.leader == Some(view.replica));
    let (number, _) = leaders.max_by_key(|(_, view)| view.term)?;
    let Some(Process::Running(running)) = &world.hosts[*number].process else { return None };
    let control = running.node.control().clone();
    let nodes = |members: &[flotilla_types::Member]| members.iter().map(|member| member.node).collect();
    let groups =
        control.groups.iter().map(|(group, record)| (*group, Wanted { voters: nodes(&record.voters), learners: nodes(&record.learners) }));
    let groups = groups.collect();
    Some((control, groups))
}

fn members_amiss(world: &World, control: &ControlState) -> Vec<String> {
    let members: BTreeSet<NodeId> = control.members().map(|(node, _)| node).collect();
    let running: BTreeSet<NodeId> = world.hosts.iter().filter_map(|host| host.node_id()).collect();
    let mut amiss = Vec::new();
    if members != running || running.len() != world.hosts.len() {
        amiss.push(format!("members are {members:?}, running are {running:?} on {} machines", world.hosts.len()));
    }
    let copies = world.hosts.len().min(world.scenario.replicas as usize);
    for (group, record) in &control.groups {
        if record.voters.len() + record.learners.len() < copies && *group != GroupId::CONTROL {
            amiss.push(format!("{group} is wanted in {} copies, not {copies}", record.voters.len() + record.learners.len()));
        }
        if record.going().next().is_some() {
            let going: Vec<_> = record.going().collect();
            amiss.push(format!("{group} has replicas leaving: {going:?}"));
        }
    }
    if world.hosts.len() >= LARGE {
        let mut held: BTreeMap<NodeId, usize> = members.iter().map(|node| (*node, 0)).collect();
        let shards = control.groups.iter().filter(|(group, _)| **group != GroupId::CONTROL);
        shards.flat_map(|(_, record)| record.wanted()).for_each(|member| *held.entry(member.node).or_default() += 1);
        let (least, most) = (held.values().min().copied().unwrap_or(0), held.values().max().copied().unwrap_or(0));
        if most - least > 1 {
            amiss.push(format!("nodes hold from {least} to {most} copies"));
        }
    }
    amiss
}

pub(crate) fn views(world: &World) -> Vec<(HostNumber, GroupView)> {
    let mut views = Vec::new();
    for (number, host) in world.hosts.iter().enumerate() {
        if let Some(Process::Running(running)) = &host.process {
            views.extend(running.node.inspect().map(|view| (number, view)));
        }
    }
    views
}

/// Generations in the stores that are not in force: what a snapshot that was given up, or a replica that is gone, left behind.
fn leftover_rows(world: &World) -> Vec<String> {
    let views = views(world);
    let mut leftover = BTreeMap::new();
    for (number, host) in world.hosts.iter().enumerate() {
        let here = views.iter().filter(|(at, _)| *at == number);
        let in_force: BTreeSet<_> = here.map(|(_, view)| layout::data_prefix(view.filing.under, view.filing.generation)).collect();
        for (key, _) in host.store.rows() {
            if key[0] == layout::TABLE_DATA && !in_force.contains(&key[..layout::GENERATION_PREFIX_BYTES]) {
                let generation = key.slice(..layout::GENERATION_PREFIX_BYTES);
                *leftover.entry((number, generation)).or_insert(0) += 1;
            }
        }
    }
    let show = |((number, generation), count): ((HostNumber, Bytes), usize)| {
        format!("n{} holds {count} rows of {}, which is not in force", number + 1, generation.escape_ascii())
    };
    leftover.into_iter().map(show).collect()
}

fn seen(world: &World) -> Vec<ReplicaSeen> {
    let nodes = |half: &BTreeMap<_, NodeId>| half.values().copied().collect();
    let seen = views(world).into_iter().map(|(number, view)| ReplicaSeen {
        group: view.group,
        replica: view.replica,
        node: world.hosts[number].node_id().expect("a view comes from a running node"),
        term: view.term,
        leads: view.leader == Some(view.replica),
        applied: view.applied,
        commit: view.commit,
        voters: nodes(&view.membership.voters),
        learners: nodes(&view.membership.learners),
        joint: view.membership.is_joint(),
    });
    seen.collect()
}

/// The rows in which replicas of a group differ now, for the reader of a violation. Replicas that have
/// not applied as much differ by that as well.
pub(crate) fn differing_rows(world: &World, group: GroupId) -> String {
    let mut holders: BTreeMap<(Bytes, Bytes), Vec<String>> = BTreeMap::new();
    let views: Vec<(HostNumber, GroupView)> = views(world).into_iter().filter(|(_, view)| view.group == group).collect();
    for (number, view) in &views {
        for row in rows(&world.hosts[*number].store, view.filing).unwrap_or_default() {
            holders.entry(row).or_default().push(view.replica.to_string());
        }
    }
    let differing = holders.into_iter().filter(|(_, holders)| holders.len() < views.len());
    let show = |((key, value), holders): ((Bytes, Bytes), Vec<String>)| {
        let head = value.slice(..value.len().min(24));
        format!("\n    {} -> {} ({} bytes) at {}", key.escape_ascii(), head.escape_ascii(), value.len(), holders.join(", "))
    };
    differing.take(12).map(show).collect()
}

fn rows(store: &impl StateStore, filing: Filing) -> Result<Vec<(Bytes, Bytes)>, flotilla_storage::store::StoreError> {
    let prefix = layout::data_prefix(filing.under, filing.generation);
    let mut rows = Vec::new();
    store.view()?.scan(&prefix, &layout::prefix_end(&prefix), &mut |key, value| {
        rows.push((Bytes::copy_from_slice(&key[prefix.len()..]), Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}
