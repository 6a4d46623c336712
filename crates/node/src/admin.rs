//! What operators ask of a running cluster: to drain and remove nodes, to move a leader, to pause balancing.
//!
//! The control group's leader judges each against what is agreed and what was last reported. What would lose data, a quorum
//! or failover is refused with the reason and the way out; the rest becomes one command of the control group, and planner and
//! leaders do the work. A request names what is wanted, so asking again does no harm: it tells how far it is. One is judged at
//! a time, since what is safe by itself may not be so behind another that is not applied yet.

use crate::control::{
    Change, ControlAnswer, ControlCommand, ControlState, GroupRecord, GroupReport, NodeHealth, NodeState, Observed, Rebalancing, Refusal,
    Removal, preview,
};
use crate::event::Now;
use crate::node::Node;
use crate::replica::Waiter;
use crate::request::{Failure, FailureReason, Reply};
use bytes::Bytes;
use flotilla_types::wire::DecodeError;
use flotilla_types::{GroupId, LogIndex, Membership, NodeId, ShardId, Term};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// An operator's request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminRequest {
    /// What is wanted.
    pub action: AdminAction,
    /// Only say what would happen.
    pub dry_run: bool,
}

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminAction {
    /// A node to go: drained first, or at once if it is dead.
    Remove {
        /// Its name.
        node: String,
        /// The operator vouches that it is dead and never comes back.
        force: bool,
    },
    /// A node to hold nothing, and to stay a member.
    Drain {
        /// Its name.
        node: String,
    },
    /// A node that was drained, or is on its way out, to hold its share again.
    Undrain {
        /// Its name.
        node: String,
    },
    /// Another node to lead a shard.
    MoveLeader {
        /// The shard.
        shard: u32,
        /// The node's name; `None`: any other that can.
        to: Option<String>,
    },
    /// Groups that lost their quorum for good to go on with what is left ([`crate::recovery`]). Asked of any node.
    Recover {
        /// The id of the plan that was shown; acting takes it.
        plan: Option<String>,
    },
    /// How balancing goes; what is `None` stays as it is.
    SetRebalancing {
        /// Whether moves for the sake of balance rest.
        paused: Option<bool>,
        /// How many bytes each node may send in a second; 0: as many as it can.
        bytes_per_second: Option<u64>,
    },
}

/// What became of an operator's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminReply {
    /// The kind of answer.
    pub verdict: AdminVerdict,
    /// With `Done` and `UnderWay` a JSON object, else one line for people.
    pub body: Bytes,
}

/// The kinds of answer to an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AdminVerdict {
    /// It is as was wanted (or, of a dry run: this would happen).
    Done = 1,
    /// It is being done; ask again.
    UnderWay = 2,
    /// There is no such member.
    NodeAbsent = 3,
    /// There is no such shard.
    ShardAbsent = 4,
    /// Refused: it would lose something, or is not what it says.
    Unsafe = 5,
}

impl AdminVerdict {
    pub(crate) fn from_byte(byte: u8) -> Result<AdminVerdict, DecodeError> {
        use AdminVerdict::{Done, NodeAbsent, ShardAbsent, UnderWay, Unsafe};
        let known = [Done, UnderWay, NodeAbsent, ShardAbsent, Unsafe].into_iter().find(|verdict| *verdict as u8 == byte);
        known.ok_or(DecodeError::Invalid("verdict", u64::from(byte)))
    }
}

/// How far a node's draining or removal is.
#[derive(Debug, Serialize)]
struct NodeTask {
    node: String,
    /// active, draining or removed.
    state: &'static str,
    /// Replicas that it holds or is still a member with, the control group's included.
    replicas_left: usize,
    /// What the shards among them hold.
    bytes_left: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Vec<PlannedChange>>,
}

/// One line of a dry run.
#[derive(Debug, Serialize)]
struct PlannedChange {
    /// Null: the control group.
    shard: Option<ShardId>,
    from: Vec<String>,
    to: Vec<String>,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct LeaderTask {
    shard: ShardId,
    leader: Option<String>,
    to: String,
}

#[derive(Debug, Serialize)]
struct RebalancingTask {
    paused: bool,
    bytes_per_second: u64,
}

/// Requests that wait: the first one's command is on its way, if `proposed` says so.
#[derive(Debug, Default)]
pub(crate) struct Admins {
    waiting: VecDeque<(Waiter, AdminRequest)>,
    proposed: Option<(LogIndex, Term)>,
}

/// What is to be done about a request.
enum Judgement {
    Answer(AdminReply),
    Propose(ControlCommand, Option<Vec<Change>>),
}

/// What is answered when a request cannot be granted.
type Refused = AdminReply;

fn reply(verdict: AdminVerdict, line: impl Into<String>) -> AdminReply {
    AdminReply { verdict, body: Bytes::from(line.into()) }
}

fn unsafe_step(line: impl Into<String>) -> AdminReply {
    reply(AdminVerdict::Unsafe, line)
}

fn json(verdict: AdminVerdict, body: &impl Serialize) -> AdminReply {
    AdminReply { verdict, body: serde_json::to_vec(body).expect("plain data with text keys").into() }
}

impl Node {
    pub(crate) fn accept_admin(&mut self, waiter: Waiter, request: AdminRequest, now: Now) {
        self.supervision.admins.waiting.push_back((waiter, request));
        self.judge_admins(now);
    }

    /// Judges what waits, until something has to be agreed on.
    pub(crate) fn judge_admins(&mut self, now: Now) {
        while self.supervision.admins.proposed.is_none()
            && let Some((waiter, request)) = self.supervision.admins.waiting.front().cloned()
        {
            if !self.knows_control_now() {
                if !self.leads_control() {
                    return self.refuse_admins();
                }
                return;
            }
            match self.judge(&request.action, now) {
                Judgement::Propose(command, plan) if request.dry_run => {
                    let answer = self.describe_dry_run(&request.action, &command, plan.unwrap_or_default(), now);
                    self.answer_admin(waiter, answer);
                }
                Judgement::Propose(command, _) => {
                    self.supervision.admins.proposed = self.propose_control(&command);
                    if self.supervision.admins.proposed.is_none() {
                        return self.refuse_admins();
                    }
                }
                Judgement::Answer(answer) => self.answer_admin(waiter, answer),
            }
        }
    }

    fn answer_admin(&mut self, waiter: Waiter, answer: AdminReply) {
        self.supervision.admins.waiting.pop_front();
        self.answer(waiter.to, Reply::Admin(answer));
    }

    /// What was proposed is applied: judged again, the request finds it done, or under way.
    pub(crate) fn handle_admin_answer(&mut self, index: LogIndex, term: Term, answer: &ControlAnswer, now: Now) {
        if self.supervision.admins.proposed.take_if(|proposed| *proposed == (index, term)).is_none() {
            return;
        }
        match answer {
            // What it was judged by has changed meanwhile.
            ControlAnswer::Refused(Refusal::StaleEpoch { .. }) => {}
            ControlAnswer::Refused(refusal) => {
                if let Some((waiter, _)) = self.supervision.admins.waiting.front().cloned() {
                    self.answer_admin(waiter, unsafe_step(refusal.to_string()));
                }
            }
            _ => {}
        }
        self.judge_admins(now);
    }

    /// Takes care of requests whose leader is no longer here, or whose time is over.
    pub(crate) fn expire_admins(&mut self, now: Now) {
        if !self.leads_control() {
            return self.refuse_admins();
        }
        let admins = &mut self.supervision.admins;
        let late: Vec<Waiter> = admins.waiting.iter().map(|(waiter, _)| *waiter).filter(|waiter| waiter.expires <= now.instant).collect();
        if admins.waiting.front().is_some_and(|(waiter, _)| waiter.expires <= now.instant) {
            admins.proposed = None;
        }
        admins.waiting.retain(|(waiter, _)| waiter.expires > now.instant);
        for waiter in late {
            let failure = Failure::unknown(FailureReason::Timeout, "it was not agreed on in time: ask again, which does no harm");
            self.answer(waiter.to, Reply::Failed(failure));
        }
        self.judge_admins(now);
    }

    fn refuse_admins(&mut self) {
        let Admins { waiting, proposed } = std::mem::take(&mut self.supervision.admins);
        for (place, (waiter, _)) in waiting.into_iter().enumerate() {
            let detail = "the control group's leader changed: ask again, which does no harm";
            let failure = match proposed {
                Some(_) if place == 0 => Failure::unknown(FailureReason::NoQuorum, detail),
                _ => Failure::not_applied(FailureReason::NoQuorum, detail),
            };
            self.answer(waiter.to, Reply::Failed(failure));
        }
    }

    fn judge(&self, action: &AdminAction, now: Now) -> Judgement {
        let judged = match action {
            AdminAction::Remove { node, force } => self.judge_removal(node, *force, now),
            AdminAction::Drain { node } => self.judge_drain(node, now),
            AdminAction::Undrain { node } => self.judge_undrain(node, now),
            AdminAction::MoveLeader { shard, to } => self.judge_leader(*shard, to.as_deref(), now),
            AdminAction::SetRebalancing { paused, bytes_per_second } => Ok(self.judge_rebalancing(*paused, *bytes_per_second)),
            // The node that is asked sees to it, and forwards nothing.
            AdminAction::Recover { .. } => Err(unsafe_step("a recovery is not judged by the control group")),
        };
        judged.unwrap_or_else(Judgement::Answer)
    }

    fn member_named(&self, name: &str) -> Result<(NodeId, NodeState), Refused> {
        let found = self.control.node_by_name(name).map(|(node, record)| (node, record.state));
        found.ok_or_else(|| {
            let names: Vec<&str> = self.control.members().map(|(_, record)| record.profile.name.as_str()).collect();
            reply(AdminVerdict::NodeAbsent, format!("there is no member {name}; there are {}", names.join(", ")))
        })
    }

    fn judge_removal(&self, name: &str, force: bool, now: Now) -> Result<Judgement, Refused> {
        let was_removed =
            |(_, record): &(&NodeId, &crate::control::NodeRecord)| record.state == NodeState::Removed && record.profile.name == name;
        let (node, state) = match self.member_named(name) {
            Ok(member) => member,
            // Whoever asks until it is done must be told that it is.
            Err(_) if self.control.nodes.iter().any(|entry| was_removed(&entry)) => {
                let task =
                    NodeTask { node: name.to_owned(), state: "removed", replicas_left: 0, bytes_left: 0, warnings: Vec::new(), plan: None };
                return Ok(Judgement::Answer(json(AdminVerdict::Done, &task)));
            }
            Err(absent) => return Err(absent),
        };
        let observed = self.observed(now);
        let down = down_for(&observed, node);
        if force {
            let Some(_) = down else {
                return Err(unsafe_step(format!("{name} is up: ask without force, so that it is drained first")));
            };
            self.can_lose(node, name, &observed)?;
            let plan = self.changes_with(node, NodeState::Removed, &observed);
            return Ok(Judgement::Propose(ControlCommand::RemoveNode { node, removal: Removal::Dead }, Some(plan)));
        }
        if state == NodeState::Leaving {
            return Ok(Judgement::Answer(self.describe_node(node, now)));
        }
        if let Some(seconds) = down {
            return Err(unsafe_step(format!(
                "{name} is down for {seconds} s: start it, and it is drained first; or ask with force if it will never come back"
            )));
        }
        let plan = self.can_empty(node, name, &observed)?;
        Ok(Judgement::Propose(ControlCommand::LeaveNode { node }, Some(plan)))
    }

    fn judge_drain(&self, name: &str, now: Now) -> Result<Judgement, Refused> {
        let (node, state) = self.member_named(name)?;
        if matches!(state, NodeState::Draining | NodeState::Leaving) {
            return Ok(Judgement::Answer(self.describe_node(node, now)));
        }
        let plan = self.can_empty(node, name, &self.observed(now))?;
        Ok(Judgement::Propose(ControlCommand::DrainNode { node }, Some(plan)))
    }

    fn judge_undrain(&self, name: &str, now: Now) -> Result<Judgement, Refused> {
        let (node, state) = self.member_named(name)?;
        if state == NodeState::Active {
            return Ok(Judgement::Answer(json(AdminVerdict::Done, &self.node_task(node, now))));
        }
        let plan = self.changes_with(node, NodeState::Active, &self.observed(now));
        Ok(Judgement::Propose(ControlCommand::ActivateNode { node }, Some(plan)))
    }

    fn judge_leader(&self, shard: u32, to: Option<&str>, now: Now) -> Result<Judgement, Refused> {
        let shard = ShardId(shard);
        let group = shard.group();
        let absent = || reply(AdminVerdict::ShardAbsent, format!("there is no shard {}; there are {}", shard.0, self.control.shards_total));
        let record = self.control.groups.get(&group).filter(|_| shard.0 < self.control.shards_total).ok_or_else(absent)?;
        let observed = self.observed(now);
        let leader = observed.groups.get(&group).map(|report| report.leader);
        let name = |node: NodeId| self.name_of(node);
        let is_up = |node: NodeId| down_for(&observed, node).is_none();
        let voters = || record.voters.iter().map(|member| member.node);
        let to = match to {
            Some(to) => {
                let node = self.member_named(to)?.0;
                if !voters().any(|voter| voter == node) {
                    let names: Vec<String> = voters().map(name).collect();
                    return Err(unsafe_step(format!("{to} has no vote in {shard}: {} can lead it", names.join(", "))));
                }
                if !is_up(node) {
                    return Err(unsafe_step(format!("{to} is down: start it, or name another")));
                }
                node
            }
            // Asked again, it must not wander on.
            None if record.preferred_leader.is_some() && record.preferred_leader != leader => record.preferred_leader.expect("just seen"),
            None => {
                let led = |node: NodeId| observed.groups.values().filter(|report| report.leader == node).count();
                let others = voters().filter(|node| Some(*node) != leader && is_up(*node));
                others.min_by_key(|node| led(*node)).ok_or_else(|| unsafe_step(format!("no other node with a vote in {shard} is up")))?
            }
        };
        let task = LeaderTask { shard, leader: leader.map(name), to: name(to) };
        if record.preferred_leader == Some(to) {
            let verdict = if leader == Some(to) { AdminVerdict::Done } else { AdminVerdict::UnderWay };
            return Ok(Judgement::Answer(json(verdict, &task)));
        }
        let command = ControlCommand::SetGroup {
            group,
            expected_epoch: record.epoch,
            voters: voters().collect(),
            learners: record.learners.iter().map(|member| member.node).collect(),
            preferred_leader: Some(to),
        };
        Ok(Judgement::Propose(command, None))
    }

    fn judge_rebalancing(&self, paused: Option<bool>, bytes_per_second: Option<u64>) -> Judgement {
        let wanted = paused.map(|paused| if paused { Rebalancing::Paused } else { Rebalancing::On });
        if let Some(rebalancing) = wanted.filter(|wanted| *wanted != self.control.rebalancing) {
            return Judgement::Propose(ControlCommand::SetRebalancing { rebalancing }, None);
        }
        if let Some(bytes_per_second) = bytes_per_second.filter(|wanted| *wanted != self.control.move_bytes_per_second) {
            return Judgement::Propose(ControlCommand::SetMoveRate { bytes_per_second }, None);
        }
        let task = RebalancingTask {
            paused: self.control.rebalancing == Rebalancing::Paused,
            bytes_per_second: self.control.move_bytes_per_second,
        };
        Judgement::Answer(json(AdminVerdict::Done, &task))
    }

    /// What would move if the node held nothing any more.
    ///
    /// # Errors
    /// If something would be lost by it, now or at the next failure.
    fn can_empty(&self, node: NodeId, name: &str, observed: &Observed) -> Result<Vec<Change>, Refused> {
        let active = self.control.members().filter(|(other, record)| *other != node && record.state == NodeState::Active);
        let (up, away): (Vec<_>, Vec<_>) = active.partition(|(other, _)| down_for(observed, *other).is_none());
        let others = up.len();
        if up.is_empty() && away.is_empty() {
            return Err(unsafe_step(format!("{name} is the last node that holds anything: start another one with --join first")));
        }
        let changes = self.changes_with(node, NodeState::Draining, observed);
        let weakened = changes.iter().filter(|change| change.weakens && change.loses.contains(&node)).count();
        if weakened > 0 {
            let wanted = self.control.replicas_wanted;
            // One that has just joined is not heard of yet.
            let names: Vec<&str> = away.iter().map(|(_, record)| record.profile.name.as_str()).collect();
            let way_out = match names.is_empty() {
                true => "start another node with --join first".to_owned(),
                false => format!("{} is not up: wait for it, or start another node with --join first", names.join(", ")),
            };
            return Err(unsafe_step(format!(
                "without {name}, {others} nodes are up for {wanted} copies: {weakened} groups would lose their failover; {way_out}"
            )));
        }
        Ok(changes)
    }

    /// Whether a dead node may be forgotten: every group that it is in must go on without it.
    fn can_lose(&self, node: NodeId, name: &str, observed: &Observed) -> Result<(), Refused> {
        let is_there = |other: NodeId| other != node && down_for(observed, other).is_none();
        let goes_on = |group: &GroupId| {
            observed.groups.get(group).is_some_and(|report| needs_none_but(&self.control.groups[group], report, is_there))
        };
        let holds = self.control.replicas_on(node).map(|(key, _)| key.group);
        let stuck: Vec<String> = holds.filter(|group| !goes_on(group)).map(|group| group.to_string()).collect();
        if stuck.is_empty() {
            return Ok(());
        }
        let some = if stuck.len() > 5 { format!("{}, ...", stuck[..5].join(", ")) } else { stuck.join(", ") };
        Err(unsafe_step(format!(
            "{} groups ({some}) have no majority without {name}: bring it or another of their nodes back; if that can never be, see `flotilla cluster recover`",
            stuck.len()
        )))
    }

    /// What would be changed in the end if a node were in this state.
    fn changes_with(&self, node: NodeId, state: NodeState, observed: &Observed) -> Vec<Change> {
        let mut control: ControlState = self.control.clone();
        if let Some(record) = control.nodes.get_mut(&node) {
            record.state = state;
        }
        preview(&control, observed, &self.plan_limits(observed))
    }

    fn describe_node(&self, node: NodeId, now: Now) -> AdminReply {
        let task = self.node_task(node, now);
        json(if task.replicas_left == 0 && task.state != "removing" { AdminVerdict::Done } else { AdminVerdict::UnderWay }, &task)
    }

    fn node_task(&self, node: NodeId, now: Now) -> NodeTask {
        let observed = self.observed(now);
        let left: Vec<GroupId> = self.control.replicas_on(node).map(|(key, _)| key.group).collect();
        let bytes = |group: &GroupId| observed.groups.get(group).map_or(0, |report| report.bytes);
        let record = self.control.node_record(node);
        let down: Vec<String> = self
            .control
            .members()
            .filter(|(other, _)| *other != node && down_for(&observed, *other).is_some())
            .map(|(_, record)| record.profile.name.clone())
            .collect();
        let mut warnings = Vec::new();
        if !left.is_empty() && !down.is_empty() {
            warnings.push(format!("shards with a copy on a node that is down wait for it: {}", down.join(", ")));
        }
        let alone_in_zone = record.filter(|record| {
            let mut others = self.control.members().filter(|(other, record)| *other != node && record.state == NodeState::Active);
            record.state != NodeState::Active && !others.any(|(_, other)| other.profile.zone == record.profile.zone)
        });
        if let Some(record) = alone_in_zone {
            warnings.push(format!("it is the last node of zone {}: copies are spread over fewer zones without it", record.profile.zone));
        }
        NodeTask {
            node: self.name_of(node),
            state: match record.map(|record| record.state) {
                Some(NodeState::Active) => "active",
                Some(NodeState::Draining) => "draining",
                Some(NodeState::Leaving) => "removing",
                Some(NodeState::Removed) | None => "removed",
            },
            bytes_left: left.iter().map(bytes).sum(),
            replicas_left: left.len(),
            warnings,
            plan: None,
        }
    }

    fn describe_dry_run(&self, action: &AdminAction, command: &ControlCommand, changes: Vec<Change>, now: Now) -> AdminReply {
        let observed = self.observed(now);
        let names = |nodes: &[NodeId]| nodes.iter().map(|node| self.name_of(*node)).collect::<Vec<_>>();
        let planned = |change: Change| PlannedChange {
            shard: change.group.shard(),
            from: names(&change.loses),
            to: names(&change.gains),
            bytes: observed.groups.get(&change.group).map_or(0, |report| report.bytes) * change.gains.len() as u64,
        };
        match (action, command) {
            (AdminAction::SetRebalancing { paused, bytes_per_second }, _) => {
                let task = RebalancingTask {
                    paused: paused.unwrap_or(self.control.rebalancing == Rebalancing::Paused),
                    bytes_per_second: bytes_per_second.unwrap_or(self.control.move_bytes_per_second),
                };
                json(AdminVerdict::Done, &task)
            }
            (AdminAction::MoveLeader { .. }, ControlCommand::SetGroup { group, preferred_leader: Some(to), .. }) => {
                let leader = observed.groups.get(group).map(|report| self.name_of(report.leader));
                let task = LeaderTask { shard: group.shard().expect("a shard was asked for"), leader, to: self.name_of(*to) };
                json(AdminVerdict::Done, &task)
            }
            (AdminAction::Remove { node, .. } | AdminAction::Drain { node } | AdminAction::Undrain { node }, _) => {
                let Ok((id, _)) = self.member_named(node) else {
                    return reply(AdminVerdict::NodeAbsent, format!("there is no member {node}"));
                };
                let task = NodeTask { plan: Some(changes.into_iter().map(planned).collect()), ..self.node_task(id, now) };
                json(AdminVerdict::Done, &task)
            }
            (AdminAction::MoveLeader { .. } | AdminAction::Recover { .. }, other) => unreachable!("this is not done by {other:?}"),
        }
    }
}

/// Whether a group can do with these nodes: as its leader reported it, and at every step from there to what is wanted, which it may
/// have taken since. A leader that works towards an older wish may go anywhere.
fn needs_none_but(record: &GroupRecord, report: &GroupReport, is_there: impl Fn(NodeId) -> bool) -> bool {
    let wanted = Membership::of_voters(record.voters.iter().copied());
    let goes_on = |membership: &Membership| membership.is_quorum(|_, voter| is_there(voter));
    report.record_epoch == record.epoch && is_there(report.leader) && goes_on(&report.membership) && goes_on(&wanted)
}

/// For how many seconds a node is down; `None`: it is up.
fn down_for(observed: &Observed, node: NodeId) -> Option<u64> {
    match observed.nodes.get(&node) {
        Some(NodeHealth::Up) => None,
        Some(NodeHealth::Down { for_time }) => Some(for_time.as_secs()),
        None => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_types::{Member, ReplicaId};

    fn members(nodes: &[u64]) -> Vec<Member> {
        nodes.iter().map(|node| Member { replica: ReplicaId(*node), node: NodeId(*node) }).collect()
    }

    fn without(removed: u64, present: &[u64], wanted: &[u64], up: &[u64]) -> bool {
        let record = GroupRecord {
            epoch: 7,
            voters: members(wanted),
            learners: vec![],
            leaving: vec![],
            lost: vec![],
            rebirth: None,
            preferred_leader: None,
        };
        let report = GroupReport {
            leader: NodeId(present[0]),
            term: Term(2),
            membership: Membership::of_voters(members(present)),
            change_pending: false,
            record_epoch: 7,
            bytes: 0,
            load: None,
            scrub: Default::default(),
            sending: None,
        };
        let is_there = |node: NodeId| node.0 != removed && up.contains(&node.0);
        let older = GroupReport { record_epoch: 6, ..report.clone() };
        assert!(!needs_none_but(&record, &older, is_there), "it may become anything");
        needs_none_but(&record, &report, is_there)
    }

    #[test]
    fn a_node_is_forgotten_only_where_what_its_groups_become_can_do_without_it() {
        assert!(without(3, &[1, 2, 3], &[1, 2, 3], &[1, 2]));
        assert!(!without(3, &[1, 2, 3], &[1, 2, 3], &[1]), "no majority is left");
        assert!(!without(1, &[1, 2, 3], &[1, 2, 3], &[2, 3]), "its leader is the one");
        assert!(without(4, &[1, 2, 3], &[1, 2, 4], &[1, 2, 3]), "a move that was under way to it");
        assert!(!without(2, &[1], &[2], &[1]), "the only voter goes to it, and may be there by now");
    }
}
