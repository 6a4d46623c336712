//! Watches one move of a replica from outside, and kills who takes part in it at a chosen phase.
//!
//! Nothing in the nodes knows of this: phases are read off what nodes show of themselves, the records that their logs are given,
//! the jobs that their stores have done and the messages that they send. Whoever is to die dies right behind the happening that
//! showed the phase, or a little later, and comes back after a while.

use crate::history::Moment;
use crate::network::HostNumber;
use crate::verdict;
use crate::world::{Happening, World};
use flotilla_node::status::GroupView;
use flotilla_node::{PeerMessage, StoreEvent};
use flotilla_storage::log::LogRecord;
use flotilla_types::{EntryKind, GroupId, MemberStep, MembershipChange, NodeId, ReplicaId, ReplicaKey};
use std::collections::BTreeSet;
use std::time::Duration;

/// How far a move is, in the order in which it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The control group's leader has applied the new wish.
    Wanted,
    /// The group's leader has applied that the target is a learner.
    LearnerAdded,
    /// The first chunk of the snapshot leaves, and is not the last.
    FirstChunk,
    /// One leaves that is neither the first nor the last.
    MiddleChunk,
    /// The last one leaves.
    LastChunk,
    /// The target's log was given `installing`, and has not synced it.
    Installing,
    /// The target's store has switched to the new rows; its log does not know.
    Switched,
    /// The target's log was given `installed`, and has not synced it.
    Installed,
    /// The target has applied all that its leader knows to be committed.
    CaughtUp,
    /// The leader's log was given the joint change, and has not synced it.
    JointProposed,
    /// The leader has applied it.
    JointApplied,
    /// The leader's log was given the end of the joint configuration, and has not synced it.
    LeavingJoint,
    /// The leader has applied a configuration without the source.
    SourceRemoved,
    /// The control group's leader has applied that the source has left.
    Confirmed,
}

impl Phase {
    /// All of them.
    pub const ALL: [Phase; 14] = [
        Phase::Wanted,
        Phase::LearnerAdded,
        Phase::FirstChunk,
        Phase::MiddleChunk,
        Phase::LastChunk,
        Phase::Installing,
        Phase::Switched,
        Phase::Installed,
        Phase::CaughtUp,
        Phase::JointProposed,
        Phase::JointApplied,
        Phase::LeavingJoint,
        Phase::SourceRemoved,
        Phase::Confirmed,
    ];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Wanted => "wanted",
            Phase::LearnerAdded => "learner added",
            Phase::FirstChunk => "first chunk",
            Phase::MiddleChunk => "middle chunk",
            Phase::LastChunk => "last chunk",
            Phase::Installing => "installing",
            Phase::Switched => "switched",
            Phase::Installed => "installed",
            Phase::CaughtUp => "caught up",
            Phase::JointProposed => "joint proposed",
            Phase::JointApplied => "joint applied",
            Phase::LeavingJoint => "leaving joint",
            Phase::SourceRemoved => "source removed",
            Phase::Confirmed => "confirmed",
        }
    }
}

/// Who takes part in a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// The node that loses its replica.
    Source,
    /// The node that gains one.
    Target,
    /// The leader of the control group.
    Controller,
    /// The leader of the group that moves.
    Leader,
}

impl Party {
    /// All of them.
    pub const ALL: [Party; 4] = [Party::Source, Party::Target, Party::Controller, Party::Leader];

    /// Its letter in the table.
    pub fn letter(self) -> char {
        match self {
            Party::Source => 'S',
            Party::Target => 'T',
            Party::Controller => 'C',
            Party::Leader => 'L',
        }
    }
}

/// When to strike, and whom.
#[derive(Clone, Debug)]
pub(crate) struct Ambush {
    pub(crate) phase: Phase,
    pub(crate) victims: Vec<Party>,
    /// Whether machines lose power, or processes die alone.
    pub(crate) power_lost: bool,
    /// How long behind the phase.
    pub(crate) late: Duration,
    pub(crate) group: GroupId,
    pub(crate) source: NodeId,
    /// Known once it is wanted.
    target: Option<(NodeId, ReplicaId)>,
    pub(crate) state: State,
}

/// How far an ambush is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The phase has not come.
    Lying,
    /// It has just come.
    Seen,
    /// The blow is planned.
    Raised,
    /// These died, at that moment.
    Struck(BTreeSet<HostNumber>, Moment),
    /// One of the victims was not there.
    Missed(Party),
}

impl Ambush {
    pub(crate) fn new(phase: Phase, victims: &[Party], group: GroupId, source: NodeId) -> Ambush {
        Ambush {
            phase,
            victims: victims.to_vec(),
            power_lost: false,
            late: Duration::ZERO,
            group,
            source,
            target: None,
            state: State::Lying,
        }
    }

    fn sees(&mut self, phase: Phase) {
        if self.phase == phase && self.state == State::Lying {
            self.state = State::Seen;
        }
    }

    fn target_key(&self) -> Option<ReplicaKey> {
        self.target.map(|(_, replica)| ReplicaKey { group: self.group, replica })
    }

    /// What a node shows after a turn, if it leads the control group or the group that moves.
    fn look(&mut self, node: &flotilla_node::Node) {
        let leads = |group: GroupId| node.inspect().find(|view| view.group == group && view.leader == Some(view.replica));
        let record = node.control().groups.get(&self.group);
        if leads(GroupId::CONTROL).is_some()
            && let Some(record) = record
        {
            let goes = record.going().any(|member| member.node == self.source);
            let newest = record.wanted().max_by_key(|member| member.replica).filter(|_| goes);
            if let (None, Some(newest)) = (self.target, newest) {
                self.target = Some((newest.node, newest.replica));
                self.sees(Phase::Wanted);
            }
            if self.target.is_some() && record.all().all(|member| member.node != self.source) {
                self.sees(Phase::Confirmed);
            }
        }
        let (Some(view), Some((_, target))) = (leads(self.group), self.target) else { return };
        let GroupView { membership, .. } = &view;
        if membership.learners.contains_key(&target) {
            self.sees(Phase::LearnerAdded);
        }
        if membership.is_joint() && membership.voters.contains_key(&target) {
            self.sees(Phase::JointApplied);
        }
        if !membership.is_joint() && membership.voters.contains_key(&target) && membership.replica_on(self.source).is_none() {
            self.sees(Phase::SourceRemoved);
        }
    }
}

impl World {
    /// After a turn of a node.
    pub(crate) fn ambush_turn(&mut self, number: HostNumber) {
        let Some(ambush) = self.ambush.as_mut().filter(|ambush| ambush.state == State::Lying) else { return };
        let Some(running) = self.hosts[number].running() else { return };
        ambush.look(&running.node);
        if ambush.phase == Phase::CaughtUp {
            self.ambush_caught_up();
        }
    }

    fn ambush_caught_up(&mut self) {
        let Some((target, replica)) = self.ambush.as_ref().and_then(|ambush| ambush.target) else { return };
        let group = self.ambush.as_ref().map(|ambush| ambush.group);
        let views: Vec<(HostNumber, GroupView)> = verdict::views(self).into_iter().filter(|(_, view)| Some(view.group) == group).collect();
        let at = |(number, view): &&(HostNumber, GroupView)| self.hosts[*number].node_id() == Some(target) && view.replica == replica;
        let there = views.iter().find(at).map(|(_, view)| view.applied);
        let leader = views.iter().filter(|(_, view)| view.leader == Some(view.replica)).max_by_key(|(_, view)| view.term);
        let is_learner = leader.is_some_and(|(_, view)| view.membership.learners.contains_key(&replica));
        let commit = leader.map(|(_, view)| view.commit);
        if is_learner && commit.is_some_and(|commit| commit.0 > 0 && there >= Some(commit)) {
            self.ambush.as_mut().expect("just seen").sees(Phase::CaughtUp);
        }
    }

    /// A message leaves.
    pub(crate) fn ambush_message(&mut self, message: &PeerMessage) {
        let Some(ambush) = self.ambush.as_mut().filter(|ambush| ambush.state == State::Lying) else { return };
        let PeerMessage::SnapshotChunk { group, to, number, finish, .. } = message else { return };
        if ambush.target_key() != Some(ReplicaKey { group: *group, replica: *to }) {
            return;
        }
        match (number, finish) {
            (_, Some(_)) => ambush.sees(Phase::LastChunk),
            (0, None) => ambush.sees(Phase::FirstChunk),
            (_, None) => ambush.sees(Phase::MiddleChunk),
        }
    }

    /// A log is given a record.
    pub(crate) fn ambush_record(&mut self, record: &LogRecord) {
        let Some(ambush) = self.ambush.as_mut().filter(|ambush| ambush.state == State::Lying) else { return };
        let is_target = |replica: &ReplicaKey| ambush.target_key() == Some(*replica);
        match record {
            LogRecord::Installing { replica, .. } if is_target(replica) => ambush.sees(Phase::Installing),
            LogRecord::Installed { replica, .. } if is_target(replica) => ambush.sees(Phase::Installed),
            LogRecord::Entries { replica, entries } if replica.group == ambush.group => {
                let Some((_, target)) = ambush.target else { return };
                for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Membership) {
                    let Ok(change) = MembershipChange::decode(entry.data.clone()) else { continue };
                    let promotes = |step: &MemberStep| matches!(step, MemberStep::AddVoter(member) if member.replica == target);
                    if change.steps.iter().any(promotes) {
                        ambush.sees(Phase::JointProposed);
                    } else if change.steps.is_empty() {
                        ambush.sees(Phase::LeavingJoint);
                    }
                }
            }
            _ => {}
        }
    }

    /// A store has done a job.
    pub(crate) fn ambush_store(&mut self, event: &StoreEvent) {
        let Some(ambush) = self.ambush.as_mut().filter(|ambush| ambush.state == State::Lying) else { return };
        if let StoreEvent::SnapshotInstalled { replica, state: Some(_), .. } = event
            && ambush.target_key() == Some(*replica)
        {
            ambush.sees(Phase::Switched);
        }
    }

    /// After a happening: if it showed the phase, the blow falls, or is planned.
    pub(crate) fn ambush_after(&mut self) {
        let Some(ambush) = self.ambush.as_mut().filter(|ambush| ambush.state == State::Seen) else { return };
        ambush.state = State::Raised;
        let late = ambush.late;
        match late.is_zero() {
            true => self.strike(),
            false => self.plan(late, Happening::Strike),
        }
    }

    /// Kills whoever is to die, all in this moment, and plans when each comes back.
    pub(crate) fn strike(&mut self) {
        let Some(ambush) = self.ambush.clone() else { return };
        let leads = |group: GroupId| {
            let views = verdict::views(self);
            let leaders = views.into_iter().filter(|(_, view)| view.group == group && view.leader == Some(view.replica));
            leaders.max_by_key(|(_, view)| view.term).map(|(number, _)| number)
        };
        let on = |node: NodeId| self.hosts.iter().position(|host| host.node_id() == Some(node));
        let mut struck = BTreeSet::new();
        for party in &ambush.victims {
            let found = match party {
                Party::Source => on(ambush.source),
                Party::Target => ambush.target.and_then(|(node, _)| on(node)),
                Party::Controller => leads(GroupId::CONTROL),
                Party::Leader => leads(ambush.group),
            };
            match found {
                Some(number) => _ = struck.insert(number),
                None => {
                    self.ambush.as_mut().expect("just cloned").state = State::Missed(*party);
                    return;
                }
            }
        }
        self.trace.note(self.now, "strike", &[], || format!("at {:?}: {struck:?}", ambush.phase));
        for number in &struck {
            self.kill(*number, ambush.power_lost);
            // Before an election, or long after it.
            let away_ms = match self.chance.faults.below(3) {
                0 => self.chance.faults.between(20, 400),
                1 => self.chance.faults.between(400, 3_000),
                _ => self.chance.faults.between(3_000, 9_000),
            };
            self.plan(Duration::from_millis(away_ms), Happening::Start(*number, self.hosts[*number].life));
        }
        let now = self.now;
        self.ambush.as_mut().expect("just cloned").state = State::Struck(struck, now);
    }

    /// What is still to be done of what the move was for.
    pub(crate) fn ambush_amiss(&self) -> Vec<String> {
        let Some(ambush) = &self.ambush else { return Vec::new() };
        let holds = |(number, view): &(HostNumber, GroupView)| {
            (self.hosts[*number].node_id() == Some(ambush.source)).then(|| format!("{} still lies on {}", view.group, ambush.source))
        };
        verdict::views(self).iter().filter_map(holds).collect()
    }
}
