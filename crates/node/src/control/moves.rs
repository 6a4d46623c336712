//! What is under way, for `/v1/cluster`: derived from what is wanted and what was reported, and never
//! stored, so it cannot disagree with either.

use super::planner::{NodeHealth, Observed, joining};
use super::state::{ControlState, GroupRecord};
use flotilla_types::{GroupId, Membership, NodeId};
use std::collections::BTreeSet;
use std::fmt;

/// One replica on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The group.
    pub group: GroupId,
    /// The node it leaves; `None` for an additional copy.
    pub from: Option<NodeId>,
    /// The node it comes to; `None` for a copy too many.
    pub to: Option<NodeId>,
    /// How far it is.
    pub phase: Phase,
}

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No leader has reported, or the target is down.
    Waiting,
    /// The target is to become a member.
    Adding,
    /// The target is a learner and gets the data, or waits for the others.
    CatchingUp,
    /// The configuration is joint.
    Switching,
    /// What is to go is still a member, or not yet confirmed to have left.
    Removing,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Waiting => "waiting",
            Phase::Adding => "adding",
            Phase::CatchingUp => "catching-up",
            Phase::Switching => "switching",
            Phase::Removing => "removing",
        })
    }
}

/// All that is under way, in the order of the groups.
pub fn moves(state: &ControlState, observed: &Observed) -> Vec<Move> {
    let nothing = Membership::default();
    let mut all = Vec::new();
    for (group, record) in &state.groups {
        let report = observed.groups.get(group).map(|r| &r.membership);
        let coming: BTreeSet<NodeId> = report.map(|actual| joining(record, actual).collect()).unwrap_or_default();
        let going: BTreeSet<NodeId> = record.going().map(|m| m.node).collect();
        let mut to = coming.into_iter();
        let mut from = going.into_iter();
        loop {
            let (from, to) = (from.next(), to.next());
            if from.is_none() && to.is_none() {
                break;
            }
            let phase = phase(record, report.unwrap_or(&nothing), to, observed);
            all.push(Move { group: *group, from, to, phase });
        }
    }
    all
}

fn phase(record: &GroupRecord, actual: &Membership, to: Option<NodeId>, observed: &Observed) -> Phase {
    let is_down = |node: NodeId| observed.nodes.get(&node) != Some(&NodeHealth::Up);
    if actual.voters.is_empty() || to.is_some_and(is_down) {
        Phase::Waiting
    } else if actual.is_joint() {
        Phase::Switching
    } else if let Some(target) = to {
        let replica = record.wanted_on(target).map(|(m, _)| m.replica);
        if replica.is_some_and(|r| actual.contains(r)) { Phase::CatchingUp } else { Phase::Adding }
    } else {
        Phase::Removing
    }
}
