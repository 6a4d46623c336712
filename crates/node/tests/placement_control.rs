//! The planner and the shard leaders' steps together, in a small model of a cluster: golden scripts
//! under `testscripts/placement`, and a property test of the steps under crashes and new wishes.

use flotilla_node::control::*;
use flotilla_types::{ClusterId, GroupId, MemberStep, Membership, MembershipChange, NodeId, ReplicaId, Rng, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write;
use std::time::Duration;

/// A group as it is. Changes are applied at once; a learner has its data one round after it came.
struct Group {
    membership: Membership,
    leader: ReplicaId,
    term: Term,
    with_data: BTreeSet<ReplicaId>,
}

impl Group {
    fn lone(replica: ReplicaId, node: NodeId) -> Group {
        let membership = Membership { voters: BTreeMap::from([(replica, node)]), ..Membership::default() };
        Group { membership, leader: replica, term: Term(1), with_data: BTreeSet::from([replica]) }
    }

    /// Gives learners on nodes that are up their data and, if the leader is down, elects another.
    /// False: there is no quorum.
    fn settle_down(&mut self, is_up: &dyn Fn(NodeId) -> bool) -> bool {
        if !self.membership.is_quorum(|_, node| is_up(node)) {
            return false;
        }
        let is_fit = |r: &ReplicaId, n: &NodeId| is_up(*n) && self.with_data.contains(r);
        let voters = || self.membership.voters.iter().chain(&self.membership.outgoing);
        if !voters().any(|(r, n)| *r == self.leader && is_fit(r, n)) {
            self.leader = *voters().find(|(r, n)| is_fit(r, n)).expect("a quorum is up and every voter has the data").0;
            self.term = Term(self.term.0 + 1);
        }
        true
    }

    fn receive_data(&mut self, is_up: &dyn Fn(NodeId) -> bool) {
        self.with_data.extend(self.membership.members().into_iter().filter(|(_, n)| is_up(*n)).map(|(r, _)| r));
    }

    /// Takes one step; what it was, if there was one.
    fn step(&mut self, wanted: &GroupRecord, is_up: &dyn Fn(NodeId) -> bool) -> Option<Step> {
        if !self.settle_down(is_up) {
            return None;
        }
        let (membership, with_data) = (&self.membership, &self.with_data);
        let caught_up = |r: ReplicaId| with_data.contains(&r) && membership.node_of(r).is_some_and(is_up);
        let step = next_step(wanted, membership, self.leader, caught_up, false)?;
        match &step {
            Step::TransferLeadership(to) => {
                assert!(self.membership.voters.contains_key(to) && caught_up(*to), "{to} cannot lead");
                self.leader = *to;
                self.term = Term(self.term.0 + 1);
            }
            Step::LeaveJoint => self.change(&MembershipChange::leave_joint(), wanted),
            Step::Propose(change) => self.change(change, wanted),
        }
        Some(step)
    }

    fn change(&mut self, change: &MembershipChange, wanted: &GroupRecord) {
        let before = self.membership.clone();
        self.membership = apply(&before, change);
        let now = &self.membership;
        assert!(now.voters.len() >= before.voters.len().min(wanted.voters.len()), "{before:?} to {now:?}: too few voters");
        assert!(now.voters.keys().all(|r| self.with_data.contains(r)), "{now:?}: a voter lacks the data");
        let voters = |m: &Membership| m.voters.keys().copied().collect::<BTreeSet<_>>();
        let differing = voters(&before).symmetric_difference(&voters(now)).count();
        assert!(differing <= 1 || now.is_joint(), "{before:?} to {now:?} is more than one step");
        assert!(before.is_joint() || !now.is_joint() || now.outgoing == before.voters);
        assert!(now.role_of(self.leader).is_some_and(|role| role == flotilla_types::Role::Voter), "the leader took itself out");
    }
}

/// What Raft makes of a change.
fn apply(before: &Membership, change: &MembershipChange) -> Membership {
    let mut m = before.clone();
    if change.steps.is_empty() {
        assert!(m.is_joint(), "there is nothing to leave");
        m.outgoing.clear();
        m.learners.append(&mut m.learners_next);
        return m;
    }
    assert!(!m.is_joint(), "a change in a joint configuration");
    if change.steps.len() > 1 {
        m.outgoing = m.voters.clone();
    }
    for step in &change.steps {
        match step {
            MemberStep::AddVoter(member) => {
                m.learners.remove(&member.replica);
                m.voters.insert(member.replica, member.node);
            }
            MemberStep::AddLearner(member) => {
                m.voters.remove(&member.replica);
                let later = m.outgoing.contains_key(&member.replica);
                if later { &mut m.learners_next } else { &mut m.learners }.insert(member.replica, member.node);
            }
            MemberStep::Remove(replica) => {
                m.voters.remove(replica);
                m.learners.remove(replica);
            }
        }
    }
    m
}

fn profile(name: &str, zone: &str, weight: u32) -> NodeProfile {
    NodeProfile {
        name: name.to_owned(),
        http: None,
        peer: format!("{name}:1"),
        resp: None,
        zone: zone.to_owned(),
        weight,
        formats: Formats { min: 1, max: 1 },
    }
}

/// From whatever configuration, with crashes, new leaders and new wishes between the steps, the steps
/// end in what is wanted; `Group::change` checks every configuration on the way.
#[test]
fn steps_always_end_in_what_is_wanted() {
    for seed in 0..3000 {
        let mut rng = Rng::new(seed);
        let mut state = ControlState::genesis(ClusterId(1), NodeId(1), profile("n1", "z", 1), 1, 3);
        for n in 2..=6 {
            state.apply(&ControlCommand::AddNode { node: NodeId(n), profile: profile(&format!("n{n}"), "z", 1), replaces: None });
        }
        let id = GroupId(1);
        let mut group = Group::lone(state.groups[&id].voters[0].replica, NodeId(1));
        let mut up: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
        for _ in 0..60 {
            match rng.below(8) {
                0 => {
                    let mut nodes: Vec<NodeId> = state.nodes.keys().copied().collect();
                    for i in (1..nodes.len()).rev() {
                        nodes.swap(i, rng.below(i as u64 + 1) as usize);
                    }
                    let voters = nodes.split_off(rng.below(5) as usize + 1);
                    let learners = nodes.split_off(nodes.len().saturating_sub(rng.below(3) as usize));
                    let preferred_leader = rng.pick(&voters).copied().filter(|_| rng.chance(1, 2));
                    let expected_epoch = state.groups[&id].epoch;
                    state.apply(&ControlCommand::SetGroup { group: id, expected_epoch, voters, learners, preferred_leader });
                }
                1 => _ = up.remove(&NodeId(rng.between(1, 6))),
                2 => _ = up.insert(NodeId(rng.between(1, 6))),
                3 => {
                    // Another fit voter of either half is elected.
                    let fit = |(r, n): (&ReplicaId, &NodeId)| (up.contains(n) && group.with_data.contains(r)).then_some(*r);
                    let all: Vec<ReplicaId> = group.membership.voters.iter().chain(&group.membership.outgoing).filter_map(fit).collect();
                    group.leader = rng.pick(&all).copied().unwrap_or(group.leader);
                }
                4 => {
                    let voters = &state.groups[&id].voters;
                    let replica = rng.pick(voters).map_or(ReplicaId(1), |m| m.replica);
                    if rng.chance(1, 4) {
                        state.apply(&ControlCommand::ReseedReplica { group: id, replica });
                    }
                }
                5 => {
                    let expected_epoch = state.groups[&id].epoch;
                    let gone = state.groups[&id].going().map(|m| m.replica).filter(|r| !group.membership.contains(*r)).collect();
                    state.apply(&ControlCommand::ConfirmLeft { group: id, expected_epoch, replicas: gone });
                }
                _ => {
                    let is_up = |n: NodeId| up.contains(&n);
                    group.step(&state.groups[&id], &is_up);
                    if rng.chance(1, 2) {
                        group.receive_data(&is_up);
                    }
                }
            }
        }
        let mut steps = 0;
        group.receive_data(&|_| true);
        while group.step(&state.groups[&id], &|_| true).is_some() {
            group.receive_data(&|_| true);
            steps += 1;
            assert!(steps < 60, "seed {seed} never ends: {:?} {:?}", state.groups[&id], group.membership);
        }
        let record = &state.groups[&id];
        assert!(reconcile::is_settled(record, &group.membership), "seed {seed}: {record:?} {:?}", group.membership);
        if let Some(node) = record.preferred_leader {
            assert_eq!(group.membership.node_of(group.leader), Some(node), "seed {seed}");
        }
    }
}

struct Cluster {
    state: ControlState,
    groups: BTreeMap<GroupId, Group>,
    down: BTreeSet<NodeId>,
    /// Down for longer than anybody waits.
    lost: BTreeSet<NodeId>,
    limits: PlanLimits,
}

impl Cluster {
    fn new(shards: u32, replicas: u32, zone: &str) -> Cluster {
        let state = ControlState::genesis(ClusterId(1), NodeId(1), profile("n1", zone, 100), shards, replicas);
        let groups = state.groups.iter().map(|(g, r)| (*g, Group::lone(r.voters[0].replica, NodeId(1)))).collect();
        Cluster { state, groups, down: BTreeSet::new(), lost: BTreeSet::new(), limits: PlanLimits::default() }
    }

    fn observed(&mut self) -> Observed {
        let mut observed = Observed::default();
        for node in self.state.nodes.keys() {
            let for_time = if self.lost.contains(node) { Duration::MAX } else { Duration::ZERO };
            let health = if self.down.contains(node) { NodeHealth::Down { for_time } } else { NodeHealth::Up };
            observed.nodes.insert(*node, health);
        }
        for (id, group) in &mut self.groups {
            if group.settle_down(&|n| !self.down.contains(&n)) {
                let leader = group.membership.node_of(group.leader).expect("the leader is a member");
                let record_epoch = self.state.groups[id].epoch;
                let membership = group.membership.clone();
                observed.groups.insert(
                    *id,
                    GroupReport {
                        leader,
                        term: group.term,
                        membership,
                        change_pending: false,
                        record_epoch,
                        bytes: 0,
                        scrub: Default::default(),
                        load: None,
                        sending: None,
                    },
                );
            }
        }
        observed
    }

    /// One second: a plan, and a step of every group.
    fn tick(&mut self, out: &mut String) -> bool {
        let observed = self.observed();
        let commands = plan(&self.state, &observed, &self.limits);
        let mut busy = !commands.is_empty();
        for command in commands {
            let applied = self.state.apply(&command);
            assert!(
                matches!(applied.answer, ControlAnswer::GroupSet { .. } | ControlAnswer::NodeUpdated { .. }),
                "{command:?}: {applied:?}"
            );
            writeln!(out, "plan {}", self.show(&command)).expect("a string takes all");
        }
        for (id, group) in &mut self.groups {
            if let Some(step) = group.step(&self.state.groups[id], &|n| !self.down.contains(&n)) {
                busy = true;
                writeln!(out, "{id} {}", show_step(&step)).expect("a string takes all");
            }
            group.receive_data(&|n| !self.down.contains(&n));
        }
        busy
    }

    fn show(&self, command: &ControlCommand) -> String {
        match command {
            ControlCommand::SetGroup { group, voters, learners, preferred_leader, .. } => {
                let leader = preferred_leader.map(|n| format!(" leader={}", name(n))).unwrap_or_default();
                format!("{group} voters={} learners={}{leader}", names(voters.iter().copied()), names(learners.iter().copied()))
            }
            ControlCommand::ConfirmLeft { group, replicas, .. } => format!("{group} left={replicas:?}"),
            other => format!("{other:?}"),
        }
    }
}

fn show_step(step: &Step) -> String {
    match step {
        Step::LeaveJoint => "leaves joint".to_owned(),
        Step::TransferLeadership(to) => format!("hands leadership to {to}"),
        Step::Propose(change) => {
            let show = |s: &MemberStep| match s {
                MemberStep::AddVoter(m) => format!("voter {}@{}", m.replica, name(m.node)),
                MemberStep::AddLearner(m) => format!("learner {}@{}", m.replica, name(m.node)),
                MemberStep::Remove(r) => format!("remove {r}"),
            };
            change.steps.iter().map(show).collect::<Vec<_>>().join(", ")
        }
    }
}

fn name(node: NodeId) -> String {
    format!("n{}", node.0)
}

fn names(nodes: impl IntoIterator<Item = NodeId>) -> String {
    nodes.into_iter().map(name).collect::<Vec<_>>().join(",")
}

struct Script(Option<Cluster>);

fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(
    args: &mut goldenscript::ArgumentConsumer,
    key: &str,
) -> Result<Option<T>, Box<dyn Error>> {
    Ok(args.take_key(key).map(str::parse).transpose()?)
}

impl goldenscript::Runner for Script {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let mut out = String::new();
        if command.name == "cluster" {
            let zone = args.take_key("zone").unwrap_or("z").to_owned();
            self.0 = Some(Cluster::new(number(&mut args, "shards")?.unwrap_or(4), number(&mut args, "replicas")?.unwrap_or(3), &zone));
            args.reject_next()?;
            return Ok(out);
        }
        let cluster = self.0.as_mut().ok_or("no cluster yet")?;
        let node = |text: &str| -> Result<NodeId, Box<dyn Error>> { Ok(NodeId(text.trim_start_matches('n').parse()?)) };
        match command.name.as_str() {
            // join NODE [zone=Z] [weight=W] [replaces=NODE]
            "join" => {
                let joiner = args.next_pos().ok_or("which node?")?.to_owned();
                let (zone, weight) = (args.take_key("zone").unwrap_or("z").to_owned(), number(&mut args, "weight")?.unwrap_or(100));
                let replaces = args.take_key("replaces").map(node).transpose()?;
                let held = replaces.map_or_else(|| joiner.clone(), name);
                let answer = cluster
                    .state
                    .apply(&ControlCommand::AddNode { node: node(&joiner)?, profile: profile(&held, &zone, weight), replaces })
                    .answer;
                if !matches!(answer, ControlAnswer::NodeAdded { .. }) {
                    writeln!(out, "{answer:?}")?;
                }
            }
            "limits" => {
                cluster.limits.motions_max = number(&mut args, "all")?.unwrap_or(cluster.limits.motions_max);
                cluster.limits.motions_per_node_max = number(&mut args, "per-node")?.unwrap_or(cluster.limits.motions_per_node_max);
            }
            "down" => _ = cluster.down.insert(node(args.next_pos().ok_or("which node?")?)?),
            "lost" => {
                let node = node(args.next_pos().ok_or("which node?")?)?;
                cluster.down.insert(node);
                cluster.lost.insert(node);
            }
            "up" => {
                let node = node(args.next_pos().ok_or("which node?")?)?;
                cluster.down.remove(&node);
                cluster.lost.remove(&node);
            }
            "leave" => {
                let node = node(args.next_pos().ok_or("which node?")?)?;
                cluster.state.apply(&ControlCommand::LeaveNode { node });
            }
            "drain" => {
                let node = node(args.next_pos().ok_or("which node?")?)?;
                cluster.state.apply(&ControlCommand::DrainNode { node });
            }
            "remove" => {
                let node = node(args.next_pos().ok_or("which node?")?)?;
                writeln!(out, "{:?}", cluster.state.apply(&ControlCommand::RemoveNode { node, removal: Removal::Drained }).answer)?;
            }
            "reseed" => {
                let group = GroupId(args.next_pos().ok_or("which group?")?.parse()?);
                let replica = ReplicaId(args.next_pos().ok_or("which replica?")?.parse()?);
                cluster.state.apply(&ControlCommand::ReseedReplica { group, replica });
            }
            // One second, shown in full.
            "tick" => _ = cluster.tick(&mut out),
            // Until nothing happens any more.
            "settle" => {
                let mut rounds = 0;
                while cluster.tick(&mut String::new()) {
                    rounds += 1;
                    if rounds > 10_000 {
                        return Err("it never settles".into());
                    }
                }
                writeln!(out, "settled")?;
            }
            "moves" => {
                let observed = cluster.observed();
                for m in moves(&cluster.state, &observed) {
                    let show = |n: Option<NodeId>| n.map_or("-".to_owned(), name);
                    writeln!(out, "{} {} → {} {}", m.group, show(m.from), show(m.to), m.phase)?;
                }
            }
            "show" => {
                for (id, group) in &cluster.groups {
                    let m = &group.membership;
                    let leader = m.node_of(group.leader).map_or("-".to_owned(), name);
                    let mut voters: Vec<NodeId> = m.voters.values().copied().collect();
                    voters.sort_unstable();
                    writeln!(out, "{id} voters={} learners={} leader={leader}", names(voters), names(m.learners.values().copied()))?;
                }
            }
            "load" => {
                for (id, record) in cluster.state.members() {
                    let held = cluster.groups.iter().filter(|(g, _)| **g != GroupId::CONTROL);
                    let count = held.clone().filter(|(_, g)| g.membership.replica_on(id).is_some()).count();
                    let leads = held.filter(|(_, g)| g.membership.node_of(g.leader) == Some(id)).count();
                    writeln!(out, "{} {} replicas={count} leaders={leads}", name(id), record.profile.zone)?;
                }
            }
            other => return Err(format!("unknown command {other}").into()),
        }
        args.reject_next()?;
        Ok(out)
    }
}

#[test]
fn scripts() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testscripts/placement");
    let mut paths: Vec<_> = std::fs::read_dir(folder).expect("the scripts are there").map(|e| e.expect("readable").path()).collect();
    paths.sort();
    for path in paths {
        goldenscript::run(&mut Script(None), &path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
