//! Groups that lost their quorum for good (decision record 0017).
//!
//! - [`plan`]: what is left, what each group would go on with; a pure function of what the nodes that answer hold;
//! - [`holdings`]: what a node says that it holds;
//! - `rebirth`: how a node makes a group's last copy its only voter.
//!
//! The node that is asked asks all that it has links to, so it needs no quorum and no leader. Acting takes the id of the plan
//! that was shown. What is decided becomes one command of the control group: proposed where that group has a quorum, applied
//! at its own last copy where it has none. From then on the control state says what is wanted, and each node does its part
//! by itself, also after a restart; nothing here is remembered.

pub mod holdings;
pub mod plan;
mod rebirth;

use crate::admin::{AdminReply, AdminVerdict};
use crate::control::{ControlCommand, ControlState};
use crate::event::{Now, Ticket};
use crate::message::PeerMessage;
use crate::node::Node;
use crate::notice::Notice;
use crate::request::{Failure, FailureReason, Reply};
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{GroupId, Instant, NodeId, ReplicaId, ReplicaKey, ShardId};
use holdings::{HeldReplica, Holdings};
use plan::{LostGroup, RecoveryPlan, Survey, latest_control, plan_recovery};
pub(crate) use rebirth::{Rebirths, successor};
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long the others are waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A node that has just started has no links yet, and must not take that for a loss.
const LINKS_SETTLE: Duration = Duration::from_secs(3);
/// Surveys at once; one more is refused.
const SURVEYS_MAX: usize = 8;

/// What an operator asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecoverRequest {
    /// Only say what would be done.
    pub(crate) dry_run: bool,
    /// The plan that was shown.
    pub(crate) plan: Option<String>,
}

/// Questions to the others that are under way.
#[derive(Debug)]
pub(crate) struct Surveys {
    next: u64,
    open: Vec<OpenSurvey>,
}

#[derive(Debug)]
struct OpenSurvey {
    number: u64,
    ticket: Ticket,
    request: RecoverRequest,
    until: Instant,
    asked: BTreeSet<NodeId>,
    found: Survey,
}

impl Surveys {
    /// None yet; numbers rise from here.
    pub(crate) fn starting_at(next: u64) -> Surveys {
        Surveys { next, open: Vec::new() }
    }
}

/// What one node tells another to do about a recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// The control group's command.
    command: Bytes,
    /// Where that group lost its quorum: what it goes on with.
    control: Option<ControlOrder>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ControlOrder {
    voter: ReplicaId,
    from: Option<ReplicaId>,
    /// The latest copy of the control state that any node has, encoded.
    copy: Bytes,
}

impl Order {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.write_bytes(&self.command);
        out.write_bool(self.control.is_some());
        if let Some(ControlOrder { voter, from, copy }) = &self.control {
            out.put_u64_le(voter.0);
            out.put_u64_le(from.map_or(0, |replica| replica.0));
            out.write_bytes(copy);
        }
        out.freeze()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Order, DecodeError> {
        let mut r = Reader::new(bytes);
        let command = r.bytes("control command")?;
        let control = if r.bool("control group lost")? {
            let (voter, from) = (ReplicaId(r.u64("replica id")?), r.u64("replica id")?);
            let from = (from > 0).then_some(ReplicaId(from));
            Some(ControlOrder { voter, from, copy: r.bytes("control copy")? })
        } else {
            None
        };
        r.finish()?;
        Ok(Order { command, control })
    }
}

impl Node {
    /// An operator asks what is lost, or for the plan to be carried out.
    pub(crate) fn handle_recover(&mut self, ticket: Ticket, request: RecoverRequest, expires: Instant, now: Now) {
        let has_others = self.control.members().count() > 1;
        if has_others && now.instant.saturating_since(self.started) < LINKS_SETTLE {
            let detail = "this node has just started and does not know yet whom it reaches: ask again in a few seconds";
            return self.answer_local(ticket, Reply::Failed(Failure::not_applied(FailureReason::NoQuorum, detail)));
        }
        if self.surveys.open.len() >= SURVEYS_MAX {
            let detail = "others ask the same of this node at this moment: try again shortly";
            return self.answer_local(ticket, Reply::Failed(Failure::not_applied(FailureReason::Overloaded, detail)));
        }
        let number = self.surveys.next;
        self.surveys.next += 1;
        let asked: BTreeSet<NodeId> = self.links.iter().filter(|(_, link)| link.up).map(|(node, _)| *node).collect();
        for node in &asked {
            self.send(*node, PeerMessage::HoldingsAsk { number });
        }
        let found = Survey::from([(self.identity.node, self.holdings())]);
        let until = expires.min(now.instant + ANSWER_WITHIN);
        self.surveys.open.push(OpenSurvey { number, ticket, request, until, asked, found });
        self.conclude_surveys(now);
    }

    fn holdings(&self) -> Holdings {
        let held = self.replicas.values().filter(|replica| replica.is_initialized()).map(|replica| {
            let last = replica.group.last_index();
            HeldReplica {
                key: replica.key,
                last: (replica.group.term_at(last).unwrap_or_default(), last),
                commit: replica.group.commit(),
                applied: replica.applied,
                membership: replica.group.membership().clone(),
                keys: replica.keys,
                bytes: replica.bytes,
            }
        });
        Holdings {
            reaches: self.links.iter().filter(|(_, link)| link.up).map(|(node, _)| *node).collect(),
            control: self.control.clone(),
            under_way: self.rebirths.groups().collect(),
            replicas: held.collect(),
        }
    }

    pub(crate) fn handle_holdings_ask(&mut self, from: NodeId, number: u64) {
        let holdings = self.holdings().encode();
        self.send(from, PeerMessage::Holdings { number, holdings });
    }

    pub(crate) fn handle_holdings(&mut self, from: NodeId, number: u64, bytes: Bytes, now: Now) {
        match Holdings::decode(bytes) {
            Ok(holdings) if holdings.control.cluster == self.control.cluster => {
                if let Some(survey) = self.surveys.open.iter_mut().find(|survey| survey.number == number && survey.asked.contains(&from)) {
                    survey.found.insert(from, holdings);
                }
                self.conclude_surveys(now);
            }
            _ => {
                let line = "what it says that it holds could not be read";
                self.out.notices.push(Notice::warning(line).of_peer(self.name_of(from)));
            }
        }
    }

    /// Answers those whose question everybody has answered, or whose time is over.
    pub(crate) fn conclude_surveys(&mut self, now: Now) {
        let has_all = |survey: &OpenSurvey| survey.asked.iter().all(|node| survey.found.contains_key(node));
        let done: Vec<OpenSurvey> = self.surveys.open.extract_if(.., |survey| survey.until <= now.instant || has_all(survey)).collect();
        for survey in done {
            let reply = self.conclude(&survey);
            self.answer_local(survey.ticket, reply);
        }
    }

    fn conclude(&mut self, survey: &OpenSurvey) -> Reply {
        let refusal = |line: String| Reply::Admin(AdminReply { verdict: AdminVerdict::Unsafe, body: Bytes::from(line) });
        let silent: Vec<String> =
            survey.asked.iter().filter(|node| !survey.found.contains_key(node)).map(|node| self.name_of(*node)).collect();
        if !silent.is_empty() {
            return refusal(format!("{} is connected and did not say in time what it holds: ask again", silent.join(", ")));
        }
        let plan = plan_recovery(&survey.found);
        // Whoever decides on a loss must see all that is there.
        if let Some((hidden, by)) = plan.reached_elsewhere.first_key_value() {
            let (hidden, by) = (self.name_of(*hidden), self.name_of(*by));
            return refusal(format!("{hidden} does not answer this node, but it does answer {by}: ask {by}, or mend the network first"));
        }
        let shown = self.describe_recovery(&plan, &survey.found);
        let answer = |verdict| {
            let body = serde_json::to_vec(&shown).expect("plain data with text keys").into();
            Reply::Admin(AdminReply { verdict, body })
        };
        if survey.request.dry_run || plan.lost.is_empty() {
            return answer(if plan.under_way.is_empty() { AdminVerdict::Done } else { AdminVerdict::UnderWay });
        }
        if survey.request.plan.as_ref() != Some(&shown.plan) {
            return refusal(match &survey.request.plan {
                Some(_) => format!("things have changed since that plan was shown; it is {} now: look at it first", shown.plan),
                None => format!("a recovery may lose data: look at the plan first (dry_run=true), and name it (plan={})", shown.plan),
            });
        }
        match self.begin_recovery(&plan, &survey.found) {
            Ok(()) => answer(AdminVerdict::UnderWay),
            Err(line) => Reply::Failed(Failure::not_applied(FailureReason::NoQuorum, line)),
        }
    }

    /// Has the plan carried out by whoever can.
    fn begin_recovery(&mut self, plan: &RecoveryPlan, survey: &Survey) -> Result<(), String> {
        let recovery = plan.command(survey);
        let control = plan.control().zip(latest_control(survey)).and_then(|(lost, (_, latest))| {
            let reborn = recovery.groups.iter().find(|reborn| reborn.group == GroupId::CONTROL)?;
            let order = ControlOrder { voter: reborn.voter.replica, from: reborn.from, copy: latest.encode() };
            Some((lost.node, order))
        });
        let executor = match &control {
            Some((node, _)) => Some(*node),
            None if self.leads_control() => Some(self.identity.node),
            None => self.leader_of(GroupId::CONTROL).filter(|node| self.link_is_up(*node)),
        };
        let Some(executor) = executor else {
            return Err("the control group has a quorum and no leader just now: ask again".to_owned());
        };
        let names: Vec<String> = plan.gone.iter().map(|node| self.name_of(*node)).collect();
        let line = format!("an operator has {} groups recovered, and gives up {} for good", plan.lost.len(), names.join(", "));
        self.out.notices.push(Notice::warning(line));
        let order = Order { command: ControlCommand::Recover(recovery).encode(), control: control.map(|(_, order)| order) };
        if executor == self.identity.node {
            self.handle_recovery_order(order.encode());
        } else {
            self.send(executor, PeerMessage::RecoveryOrder(order.encode()));
        }
        Ok(())
    }

    /// Carried out here: by the control group's leader, or by the node that its last copy is on.
    pub(crate) fn handle_recovery_order(&mut self, order: Bytes) {
        let decoded = Order::decode(order).and_then(|order| Ok((ControlCommand::decode(order.command)?, order.control)));
        let (command, control) = match decoded {
            Ok((command @ ControlCommand::Recover(_), control)) => (command, control),
            Ok(_) => return,
            Err(error) => return self.out.notices.push(Notice::warning(format!("an order to recover could not be read: {error}"))),
        };
        let Some(ControlOrder { voter, from, copy }) = control else {
            // Asked again by the operator if it comes to nothing; a second one is refused by the records' epochs.
            self.propose_control(&command);
            return;
        };
        match ControlState::decode(copy) {
            Ok(copy) if copy.cluster == self.control.cluster => {
                let key = |replica| ReplicaKey { group: GroupId::CONTROL, replica };
                self.begin_control_rebirth(key(voter), from.map(key), copy, command);
            }
            _ => self.out.notices.push(Notice::warning("an order to recover came with no copy of this cluster's state".to_owned())),
        }
    }

    fn describe_recovery(&self, plan: &RecoveryPlan, survey: &Survey) -> ShownPlan {
        let names = latest_control(survey).map_or(&self.control, |(_, control)| control);
        let name = |node: &NodeId| names.node_record(*node).map_or_else(|| node.to_string(), |record| record.profile.name.clone());
        let all = |nodes: &BTreeSet<NodeId>| nodes.iter().map(name).collect::<Vec<_>>();
        let shown = |lost: &LostGroup| ShownGroup {
            shard: lost.group.shard(),
            node: name(&lost.node),
            keeps: lost.kept.map(|kept| ShownCopy {
                voter: kept.is_voter,
                keys: kept.keys,
                bytes: kept.bytes,
                term: kept.last.0.0,
                index: kept.last.1.0,
                agreed: kept.commit.0,
            }),
            gone: all(&lost.gone),
        };
        ShownPlan {
            plan: plan.id(),
            gone: all(&plan.gone),
            absent: all(&plan.absent),
            whole: plan.whole,
            under_way: plan.under_way.iter().map(|group| group.shard()).collect(),
            lost: plan.lost.iter().map(shown).collect(),
        }
    }
}

/// The plan as it is answered (docs/api.md, "Recovery").
#[derive(Debug, Serialize)]
struct ShownPlan {
    /// Acting takes this.
    plan: String,
    /// Members that would be given up for good.
    gone: Vec<String>,
    /// Members that do not answer either, and that nothing depends on.
    absent: Vec<String>,
    /// Groups that have a quorum.
    whole: usize,
    /// Groups that a recovery is under way for; null: the control group.
    under_way: Vec<Option<ShardId>>,
    lost: Vec<ShownGroup>,
}

#[derive(Debug, Serialize)]
struct ShownGroup {
    /// Null: the control group.
    shard: Option<ShardId>,
    /// Where it goes on.
    node: String,
    /// What it keeps; null: nothing is left, and it begins empty.
    keeps: Option<ShownCopy>,
    /// Members that had a copy and do not answer.
    gone: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ShownCopy {
    /// Whether the copy had a vote; one that had none may be further behind.
    voter: bool,
    keys: u64,
    bytes: u64,
    /// The end of its log; all of it is kept.
    term: u64,
    index: u64,
    /// Up to where it is known to be what a majority agreed on.
    agreed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_back() {
        let control = ControlOrder { voter: ReplicaId(9), from: None, copy: Bytes::from_static(b"copy") };
        for control in [None, Some(control.clone()), Some(ControlOrder { from: Some(ReplicaId(3)), ..control })] {
            let order = Order { command: Bytes::from_static(b"command"), control };
            assert_eq!(Order::decode(order.encode()), Ok(order));
        }
        assert!(Order::decode(Bytes::from_static(b"\x01")).is_err());
    }
}
