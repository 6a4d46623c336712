//! What a node does beside serving requests: it reports to the control group, plans if it leads that
//! group, brings the groups it leads to their wanted members, keeps the store durable enough for the
//! log to be purged, and watches over leaders that went away.
//!
//! Nothing here is remembered that must survive: the control group's state and each group's Raft
//! configuration say everything, so any leader goes on where another stopped.

use crate::admin::Admins;
use crate::control::{
    ControlAnswer, ControlCommand, ControlState, Formats, GroupReport, NodeHealth, NodeProfile, NodeState, Observed, PlanLimits, Refusal,
    Standing, Step, next_step, plan,
};
use crate::effect::{Peers, StoreJob};
use crate::event::Now;
use crate::message::PeerMessage;
use crate::node::{Link, Node, REMOVED};
use crate::notice::Notice;
use crate::replica::{Replica, Waiter};
use crate::report::Report;
use crate::request::{Failure, FailureReason, JoinRequest, Reply};
use flotilla_storage::log::LogRecord;
use flotilla_types::{GroupId, Instant, LogIndex, MembershipChange, NodeId, ReplicaId, ReplicaKey, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How often each node reports and the control group's leader plans.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// The same, when something has just changed.
const REPORT_SOON: Duration = Duration::from_millis(60);
/// While no group holds more than this, groups need not move a few at a time.
const SMALL_GROUP_BYTES: u64 = 1 << 20;
/// How often leaders look whether their groups' members are the wanted ones.
const RECONCILE_INTERVAL: Duration = Duration::from_millis(100);
/// A node that has not reported for this long counts as down.
const REPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// For how long the control leader's word that a copy is the latest is good enough to change members by.
const EPOCH_CONFIRMED_FOR: Duration = Duration::from_secs(3);
/// A link that was lost must stay so for this long before others campaign in the leader's place.
const LOST_LEADER_GRACE: Duration = Duration::from_millis(100);
/// A replica without a leader for this long asks whether it is still wanted (10 election timeouts).
const ORPHAN_AFTER: Duration = Duration::from_secs(12);
/// How long a node that came up is spared leadership transfers to it.
const SETTLE_BEFORE_LEADING: Duration = Duration::from_secs(2);
/// Entries a follower may lack to count as caught up.
const CAUGHT_UP_ENTRIES: u64 = 1000;
/// Leaderships handed over on purpose by one node in one round of looking.
const TRANSFERS_AT_ONCE: usize = 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct Supervision {
    next_report: Instant,
    next_reconcile: Instant,
    pub(crate) last_persist: Instant,
    persisting: bool,
    /// Applied since the store was last made durable.
    pub(crate) applied_bytes: usize,
    /// The last report of each node, and when it came (kept by every control voter).
    pub(crate) reports: BTreeMap<NodeId, (Instant, Report)>,
    /// Joins proposed to the control group: who is told, and what is answered.
    joins: Vec<(LogIndex, Term, Waiter)>,
    /// Operators' requests.
    pub(crate) admins: Admins,
    /// Since when this node has seen to the others without a break, and heard most of them.
    watching_since: Instant,
    last_watch: Instant,
    /// When the control group's leader last said that the copy here is the latest.
    epoch_confirmed: Option<Instant>,
    /// Replicas given up here for damage, to be replaced.
    pub(crate) reseeds: BTreeSet<ReplicaKey>,
    /// Where members say that they are reached, unless that is agreed on.
    addresses: BTreeMap<NodeId, String>,
    /// When leadership of a group was last handed over on purpose.
    pub(crate) transferred: BTreeMap<GroupId, Instant>,
}

impl Supervision {
    pub(crate) fn new(now: Instant) -> Supervision {
        Supervision {
            next_report: now,
            next_reconcile: now,
            last_persist: now,
            persisting: false,
            applied_bytes: 0,
            reports: BTreeMap::new(),
            joins: Vec::new(),
            admins: Admins::default(),
            watching_since: now,
            last_watch: now,
            epoch_confirmed: None,
            reseeds: BTreeSet::new(),
            addresses: BTreeMap::new(),
            transferred: BTreeMap::new(),
        }
    }
}

impl Node {
    pub(crate) fn supervise(&mut self, now: Now) {
        self.make_durable(now);
        if now.instant >= self.supervision.next_reconcile {
            self.supervision.next_reconcile = now.instant + RECONCILE_INTERVAL;
            self.expire_transfers(now.instant);
            self.watch(now.instant);
            self.expire_joins(now.instant);
            self.expire_admins(now);
            self.hand_over_if_unfit(now.instant);
            self.reconcile(now);
            self.begin_and_end_scrubs(now);
            if self.shutting_down {
                self.hand_over(now); // A transfer may have failed, or a leadership come late.
            }
            self.ask_about_orphans(now);
            self.begin_rebirths();
        }
        if now.instant >= self.supervision.next_report {
            self.supervision.next_report = now.instant + REPORT_INTERVAL;
            self.report(now);
            self.plan(now);
            self.out.store.push(StoreJob::Sweep);
        }
    }

    fn make_durable(&mut self, now: Now) {
        let applied = self.supervision.applied_bytes;
        let due = applied >= self.config.persist_bytes
            || (applied > 0 && now.instant.saturating_since(self.supervision.last_persist) >= self.config.persist_interval);
        if due && !self.supervision.persisting {
            self.supervision.persisting = true;
            self.supervision.applied_bytes = 0;
            self.supervision.last_persist = now.instant;
            self.out.store.push(StoreJob::Persist);
        }
    }

    pub(crate) fn persist_is_done(&mut self) {
        self.supervision.persisting = false;
    }

    /// Members have changed: whoever plans should hear of it, and go on, without waiting for the next round.
    pub(crate) fn report_soon(&mut self, now: Now) {
        self.supervision.next_report = self.supervision.next_report.min(now.instant + REPORT_SOON);
    }

    // ---- links ----

    pub(crate) fn handle_link_up(&mut self, peer: NodeId, now: Now) {
        if self.is_removed(peer) {
            return; // The news of its link was on its way when it was removed.
        }
        self.links.insert(peer, Link { up: true, since: now.instant });
        self.out.notices.push(Notice::info("the link is up").of_peer(self.name_of(peer)));
        self.send(peer, PeerMessage::Clock { wall: now.wall });
        // The copy kept over a restart may be old, and may not even say who the control voters are.
        self.send(peer, PeerMessage::ControlAsk { epoch: self.control.epoch, orphan: None });
        self.tell_addresses(peer);
        for replica in self.replicas.values_mut() {
            if replica.leader_node() == Some(peer) {
                replica.campaign_at = None;
            }
        }
    }

    pub(crate) fn handle_link_down(&mut self, peer: NodeId, refused: bool, now: Now) {
        let before = self.links.insert(peer, Link { up: false, since: now.instant });
        let line = if refused { "the link is down: its process is gone" } else { "the link is down" };
        // Told once, however much is learnt of it afterwards.
        let notice = if before.is_some_and(|link| link.up) { Notice::info(line) } else { Notice::debug(line) };
        self.out.notices.push(notice.of_peer(self.name_of(peer)));
        self.fail_forwards_to(peer);
        self.drop_transfers_to(peer);
        for replica in self.replicas.values_mut() {
            if let Some(there) = replica.group.membership().replica_on(peer)
                && replica.is_leader()
            {
                replica.group.report_unreachable(there);
                replica.group.abandon_transfer_to(there);
            }
            if refused && replica.leader_node() == Some(peer) {
                replica.campaign_at = Some(now.instant + LOST_LEADER_GRACE);
            }
        }
    }

    fn is_removed(&self, node: NodeId) -> bool {
        self.control.nodes.get(&node).is_some_and(|record| record.state == NodeState::Removed)
    }

    /// Who was removed is no peer any more, and no news of its link will come: taken for linked, it would be forwarded to for ever
    /// by whoever heard last of it as a shard's leader.
    fn forget_links_of_the_removed(&mut self) {
        let removed: Vec<NodeId> = self.links.keys().copied().filter(|node| self.is_removed(*node)).collect();
        for node in removed {
            self.links.remove(&node);
            self.fail_forwards_to(node);
            self.drop_transfers_to(node);
        }
    }

    /// A leader whose process is gone need not be waited for: its followers forget it, and one of
    /// them, another for each group, campaigns at once. Pre-votes and votes decide as always.
    pub(crate) fn campaign_in_place_of_the_dead(&mut self, now: Now) {
        let me = self.identity.node;
        for (group, replica) in &mut self.replicas {
            if replica.campaign_at.is_none_or(|at| at > now.instant) {
                continue;
            }
            replica.campaign_at = None;
            let Some(lost) = replica.leader_node() else { continue };
            if self.links.get(&lost).is_some_and(|link| link.up) {
                continue;
            }
            replica.group.forget_leader();
            let survivors: Vec<NodeId> = replica.group.membership().voters.values().copied().filter(|node| *node != lost).collect();
            if !survivors.is_empty() && survivors[group.0 as usize % survivors.len()] == me {
                replica.group.campaign();
            }
            self.dirty.insert(*group);
        }
    }

    // ---- reports and the plan ----

    pub(crate) fn leads_control(&self) -> bool {
        self.replicas.get(&GroupId::CONTROL).is_some_and(Replica::is_leader)
    }

    /// Tells whoever may plan how this node is.
    fn report(&mut self, now: Now) {
        if self.first_new_replica.is_none() && self.knows_control_now() {
            self.first_new_replica = Some(self.control.next_replica);
        }
        // Given up here but still wanted: asked for again after a restart too, when only the tombstone tells.
        let given_up = self.tombstones.iter().filter(|key| matches!(self.control.standing(**key), Standing::Wanted(_)));
        self.supervision.reseeds.extend(given_up);
        for replica in self.replicas.values_mut() {
            let leads = replica.is_leader();
            replica.load.measure(leads, now.instant);
        }
        let report = self.make_report(now.instant);
        let encoded = report.encode();
        for voter in self.control.planners() {
            if voter == self.identity.node {
                self.supervision.reports.insert(voter, (now.instant, report.clone()));
            } else if self.link_is_up(voter) {
                self.send(voter, PeerMessage::Report(encoded.clone()));
            }
        }
    }

    fn make_report(&self, now: Instant) -> Report {
        let led = |replica: &Replica| GroupReport {
            leader: self.identity.node,
            term: replica.group.term(),
            membership: replica.group.membership().clone(),
            change_pending: replica.change_pending(),
            record_epoch: self.control.groups.get(&replica.key.group).map_or(0, |record| record.epoch),
            bytes: replica.bytes,
            load: replica.load.get(now),
            scrub: self.scrub_report(replica),
            sending: self.transfers.sending(replica.key.group, now),
        };
        Report {
            epoch: self.control.epoch,
            replicas: self.replicas.len() as u64,
            bytes: self.replicas.values().map(|replica| replica.bytes).sum(),
            keys: self.replicas.values().map(|replica| replica.keys).sum(),
            shutting_down: self.shutting_down,
            reseeds: self.supervision.reseeds.iter().copied().collect(),
            groups: self
                .replicas
                .iter()
                .filter(|(_, replica)| replica.is_leader())
                .map(|(group, replica)| (*group, led(replica)))
                .collect(),
        }
    }

    pub(crate) fn handle_report(&mut self, from: NodeId, bytes: &bytes::Bytes, now: Now) {
        let Ok(report) = Report::decode(bytes.clone()) else {
            return self.out.notices.push(Notice::warning("its report could not be read").of_peer(self.name_of(from)));
        };
        // Whoever is asked, not the leader alone: who was away may know none of the present voters.
        if report.epoch < self.control.epoch && !self.holds_control(from) {
            self.send(from, PeerMessage::ControlCopy(self.control.encode()));
        }
        if self.knows_control_now() {
            self.send(from, PeerMessage::ControlEpoch { epoch: self.control.epoch });
        }
        let led = |report: &Report| {
            report.groups.iter().map(|(group, led)| (*group, led.membership.clone(), led.record_epoch)).collect::<Vec<_>>()
        };
        let before = self.supervision.reports.get(&from).map(|(_, report)| led(report));
        if self.leads_control() && before.as_ref() != Some(&led(&report)) {
            self.report_soon(now);
        }
        self.supervision.reports.insert(from, (now.instant, report));
    }

    fn holds_control(&self, node: NodeId) -> bool {
        self.replicas.get(&GroupId::CONTROL).is_some_and(|replica| replica.group.membership().replica_on(node).is_some())
    }

    /// What the reports add up to.
    pub(crate) fn observed(&self, now: Now) -> Observed {
        let mut observed = Observed::default();
        for node in self.control.nodes.keys() {
            let health = match self.supervision.reports.get(node) {
                _ if *node == self.identity.node => NodeHealth::Up,
                Some((at, _)) if now.instant.saturating_since(*at) < REPORT_TIMEOUT => NodeHealth::Up,
                Some((at, _)) => NodeHealth::Down { for_time: now.instant.saturating_since((*at).max(self.supervision.watching_since)) },
                None => NodeHealth::Down { for_time: now.instant.saturating_since(self.started.max(self.supervision.watching_since)) },
            };
            observed.nodes.insert(*node, health);
        }
        for (_, report) in self.supervision.reports.values() {
            for (group, led) in &report.groups {
                if observed.groups.get(group).is_none_or(|known| known.term < led.term) {
                    observed.groups.insert(*group, led.clone());
                }
            }
        }
        observed
    }

    fn plan(&mut self, now: Now) {
        // A new leader first hears how things are.
        if !self.knows_control_now() {
            return;
        }
        let mut commands = Vec::new();
        let reports = self.supervision.reports.values();
        for key in reports.flat_map(|(_, report)| &report.reseeds).chain(&self.supervision.reseeds).copied().collect::<BTreeSet<_>>() {
            if matches!(self.control.standing(key), Standing::Wanted(_)) {
                commands.push(ControlCommand::ReseedReplica { group: key.group, replica: key.replica });
            }
        }
        if commands.is_empty() {
            let observed = self.observed(now);
            commands = plan(&self.control, &observed, &self.plan_limits(&observed));
        }
        for command in commands {
            if self.propose_control(&command).is_none() {
                break;
            }
        }
    }

    pub(crate) fn plan_limits(&self, observed: &Observed) -> PlanLimits {
        let replace_after = self.config.replace_after;
        let small = observed.groups.values().all(|report| report.bytes <= SMALL_GROUP_BYTES);
        match small {
            true => PlanLimits { motions_max: 128, motions_per_node_max: 128, commands_max: 256, replace_after },
            false => PlanLimits { replace_after, ..PlanLimits::default() },
        }
    }

    /// Notes since when this node is a good judge of who is down: one that stood still, or was cut off itself, has heard
    /// nobody and knows nothing.
    fn watch(&mut self, now: Instant) {
        let stood_still = now.saturating_since(self.supervision.last_watch) > REPORT_TIMEOUT;
        self.supervision.last_watch = now;
        let members = self.control.members().count();
        let is_heard = |node: &NodeId| {
            let heard = self.supervision.reports.get(node).is_some_and(|(at, _)| now.saturating_since(*at) < REPORT_TIMEOUT);
            heard || *node == self.identity.node
        };
        let heard = self.control.members().filter(|(node, _)| is_heard(node)).count();
        if stood_still || heard * 2 <= members {
            self.supervision.watching_since = now;
        }
    }

    // ---- the wanted members of the groups led here ----

    fn reconcile(&mut self, now: Now) {
        // An old copy would turn members back that were changed since, even to the cluster's first node.
        let confirmed = self.supervision.epoch_confirmed.is_some_and(|at| now.instant.saturating_since(at) < EPOCH_CONFIRMED_FOR);
        if !confirmed && !self.knows_control_now() {
            return;
        }
        let mut transfers = 0;
        let led: Vec<GroupId> = self.replicas.iter().filter(|(_, replica)| replica.is_leader()).map(|(group, _)| *group).collect();
        for group in led {
            let (Some(replica), Some(record)) = (self.replicas.get(&group), self.control.groups.get(&group)) else { continue };
            if replica.group.is_transferring() || self.shutting_down {
                continue;
            }
            let last = replica.group.last_index();
            let caught_up = |id: ReplicaId| {
                let near = replica
                    .group
                    .progress(id)
                    .is_some_and(|p| p.recently_active && !p.in_snapshot && p.matched.0 + CAUGHT_UP_ENTRIES >= last.0);
                near && replica.node_of(id).is_some_and(|node| self.has_settled(node, now.instant))
            };
            match next_step(record, replica.group.membership(), replica.key.replica, caught_up, replica.change_pending()) {
                Some(Step::Propose(change)) => self.propose_membership(group, &change),
                Some(Step::LeaveJoint) => self.propose_membership(group, &MembershipChange::leave_joint()),
                Some(Step::TransferLeadership(to)) => {
                    let fit = replica.node_of(to).is_some_and(|node| self.is_fit_peer(node, now.instant));
                    if transfers < TRANSFERS_AT_ONCE && fit && self.has_rested(group, now.instant) {
                        transfers += 1;
                        self.supervision.transferred.insert(group, now.instant);
                        self.transfer(group, to);
                    }
                }
                None => {}
            }
        }
    }

    /// Whether a node has been linked for long enough to be given leadership.
    fn has_settled(&self, node: NodeId, now: Instant) -> bool {
        self.links.get(&node).is_some_and(|link| link.up && now.saturating_since(link.since) >= SETTLE_BEFORE_LEADING)
    }

    /// Whether a group's leadership was not handed over on purpose just now.
    pub(crate) fn has_rested(&self, group: GroupId, now: Instant) -> bool {
        self.supervision.transferred.get(&group).is_none_or(|at| now.saturating_since(*at) > 2 * SETTLE_BEFORE_LEADING)
    }

    fn propose_membership(&mut self, group: GroupId, change: &MembershipChange) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if let Ok((_, index)) = replica.group.propose_membership(change) {
            replica.change_at = Some(index);
            self.dirty.insert(group);
        }
    }

    fn transfer(&mut self, group: GroupId, to: ReplicaId) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.group.transfer_leadership(to);
            self.dirty.insert(group);
        }
    }

    /// Hands every leadership over before the process ends.
    pub(crate) fn hand_over(&mut self, now: Now) {
        self.shutting_down = true;
        // First of all: else the new leaders hand back what they get, since this is the node that should have it.
        self.look_after_fitness(now);
        let led: Vec<GroupId> = self.replicas.iter().filter(|(_, replica)| replica.is_leader()).map(|(group, _)| *group).collect();
        for group in led {
            self.hand_over_group(group, now.instant);
        }
        self.report(now);
    }

    /// Hands the leadership of a group over, if another voter is there.
    pub(crate) fn hand_over_group(&mut self, group: GroupId, now: Instant) {
        if self.replicas.get(&group).is_none_or(|replica| replica.group.is_transferring()) {
            return;
        }
        if let Some((to, _)) = self.best_successor(group, now) {
            self.transfer(group, to);
        }
    }

    /// The voter, and its node, that should lead a group if this node should not: a fit one before others, then the one that has most
    /// of the log.
    pub(crate) fn best_successor(&self, group: GroupId, now: Instant) -> Option<(ReplicaId, NodeId)> {
        let replica = self.replicas.get(&group)?;
        let progress = |id: ReplicaId| replica.group.progress(id).filter(|p| p.recently_active && !p.in_snapshot);
        let others = replica.group.membership().voters.iter().filter(|(id, _)| **id != replica.key.replica);
        let candidates = others.filter_map(|(id, node)| Some((self.is_fit_peer(*node, now), progress(*id)?.matched, *id, *node)));
        candidates.max().map(|(_, _, id, node)| (id, node))
    }

    /// Whether leadership of anything that others could lead is still here.
    pub fn has_handed_over(&self) -> bool {
        !self.replicas.values().any(|replica| replica.is_leader() && replica.group.membership().voters.len() > 1)
    }

    // ---- the control group's state ----

    /// Takes a newer control state up, wherever it came from.
    pub(crate) fn adopt_control(&mut self, control: &ControlState) {
        if control.epoch < self.control.epoch {
            return;
        }
        let peers_before = self.peers();
        self.control = control.clone();
        // What is agreed on need not be remembered; nor can what was said of a node that moved again be told from the truth.
        let agreed = |node: &NodeId, address: &String| control.nodes.get(node).is_some_and(|record| record.profile.peer == *address);
        self.supervision.addresses.retain(|node, address| !agreed(node, address));
        if self.peers() != peers_before {
            self.update_peers();
            self.forget_links_of_the_removed();
            // How the others are reached must survive a restart, also where no control replica is.
            self.identity.control = self.control.encode();
            self.log.push(LogRecord::Identity(self.identity.encode()));
        }
        if self.control.nodes.get(&self.identity.node).is_some_and(|record| record.state == NodeState::Removed) {
            self.out.fatal = Some(REMOVED.to_owned());
        }
        let standing = |key: &ReplicaKey| self.control.standing(*key);
        let reseeded: Vec<ReplicaKey> =
            self.supervision.reseeds.iter().filter(|key| !matches!(standing(key), Standing::Wanted(_))).copied().collect();
        for key in reseeded {
            self.supervision.reseeds.remove(&key);
        }
        // One that knows it was removed, or was a learner, hears no more and misses no leader: it would
        // stay for ever, and send requests to whoever led last.
        let gone: Vec<ReplicaKey> =
            self.replicas.values().map(|replica| replica.key).filter(|key| self.control.standing(*key) == Standing::Removed).collect();
        for key in gone {
            self.remove_replica(key);
        }
        if self.leads_control() {
            let others: Vec<NodeId> = self.control.members().map(|(node, _)| node).filter(|node| *node != self.identity.node).collect();
            for node in others {
                if self.link_is_up(node) && !self.holds_control(node) {
                    self.send(node, PeerMessage::ControlCopy(self.control.encode()));
                }
            }
        }
    }

    pub(crate) fn handle_control_copy(&mut self, bytes: bytes::Bytes, _now: Now) {
        match ControlState::decode(bytes) {
            Ok(control) if control.cluster == self.control.cluster => self.adopt_control(&control),
            Ok(_) => self.out.notices.push(Notice::warning("a copy of another cluster's control state was refused".to_owned())),
            Err(error) => self.out.notices.push(Notice::warning(format!("a copy of the control state could not be read: {error}"))),
        }
    }

    /// Whether the control group is led here and all that it agreed on before is applied.
    pub(crate) fn knows_control_now(&self) -> bool {
        self.replicas
            .get(&GroupId::CONTROL)
            .is_some_and(|replica| replica.group.serves_reads() && replica.applied >= replica.group.commit())
    }

    pub(crate) fn handle_control_epoch(&mut self, from: NodeId, epoch: u64, now: Now) {
        if epoch <= self.control.epoch {
            self.supervision.epoch_confirmed = Some(now.instant);
            self.first_new_replica.get_or_insert(self.control.next_replica);
        } else if !self.replicas.contains_key(&GroupId::CONTROL) {
            // Whoever is recorded as a voter is sent no copies; one that has lost its replica needs them.
            self.send(from, PeerMessage::ControlAsk { epoch: self.control.epoch, orphan: None });
        }
    }

    pub(crate) fn handle_control_ask(&mut self, from: NodeId, epoch: u64, orphan: Option<(GroupId, ReplicaId)>) {
        // First the copy: by it alone the asking node believes what comes behind.
        if epoch < self.control.epoch {
            self.send(from, PeerMessage::ControlCopy(self.control.encode()));
        }
        if let Some((group, replica)) = orphan
            && self.control.standing(ReplicaKey { group, replica }) == Standing::Removed
        {
            self.send(from, PeerMessage::Gone { group, replica });
        }
    }

    /// Somebody says that a replica of ours is gone. Only the control group's word counts.
    pub(crate) fn ask_if_removed(&mut self, group: GroupId, replica: ReplicaId) {
        let key = ReplicaKey { group, replica };
        if self.replicas.get(&group).is_some_and(|here| here.key == key) && self.control.standing(key) == Standing::Removed {
            self.remove_replica(key);
        }
    }

    fn ask_about_orphans(&mut self, now: Now) {
        // One that has applied its own removal never campaigns, and so never loses the leader it knew.
        let outside = |replica: &Replica| replica.is_initialized() && !replica.group.membership().contains(replica.key.replica);
        let leaderless =
            |replica: &Replica| replica.leaderless_since.is_some_and(|since| now.instant.saturating_since(since) > ORPHAN_AFTER);
        let orphaned = |replica: &Replica| outside(replica) || leaderless(replica);
        let orphans: Vec<ReplicaKey> = self.replicas.values().filter(|replica| orphaned(replica)).map(|replica| replica.key).collect();
        let asked = self.control.planners();
        for key in orphans {
            if self.control.standing(key) == Standing::Removed {
                self.remove_replica(key);
                continue;
            }
            if let Some(replica) = self.replicas.get_mut(&key.group) {
                replica.leaderless_since = Some(now.instant);
            }
            for node in &asked {
                if *node != self.identity.node && self.link_is_up(*node) {
                    let orphan = Some((key.group, key.replica));
                    self.send(*node, PeerMessage::ControlAsk { epoch: self.control.epoch, orphan });
                }
            }
        }
    }

    /// A replica that its own applied configuration no longer holds, and the control group does not
    /// want, has nothing left to do.
    pub(crate) fn leave_if_removed(&mut self, group: GroupId, _now: Now) {
        let Some(replica) = self.replicas.get(&group) else { return };
        if replica.is_initialized()
            && !replica.group.membership().contains(replica.key.replica)
            && self.control.standing(replica.key) == Standing::Removed
        {
            self.remove_replica(replica.key);
        }
    }

    /// Leaves a tombstone and forgets the replica and its rows.
    pub(crate) fn remove_replica(&mut self, key: ReplicaKey) {
        self.out.notices.push(Notice::info(format!("{key} was moved away from this node")).of_replica(key));
        self.tombstones.insert(key);
        self.log.push(LogRecord::Tombstone { replica: key });
        self.out.store.push(StoreJob::Destroy { replica: key });
        self.dismiss(key);
    }

    /// Takes leave of a replica in memory: whatever waits for it goes elsewhere or is answered, and what
    /// it holds of the node's bounds is given back.
    pub(crate) fn dismiss(&mut self, key: ReplicaKey) {
        if self.replicas.get(&key.group).is_none_or(|replica| replica.key != key) {
            return;
        }
        self.drop_transfers_of(key.group);
        self.reroute_reads(key.group);
        let Some(mut replica) = self.replicas.remove(&key.group) else { return };
        self.apply.forget(key);
        self.scrubs.forget(key);
        self.unapplied_bytes -= replica.applying.iter().map(|(_, bytes)| bytes).sum::<usize>();
        let pending = replica.take_pending();
        self.reroute(key.group, pending);
        let reads: Vec<_> = replica.reads_at.drain(..).map(|(_, read)| read).collect();
        self.reroute_waiting(key.group, reads);
        for Waiter { to, .. } in replica.proposed.into_iter().flat_map(|proposed| proposed.waiters).flatten() {
            let detail = "the shard's replica on this node was moved away while the write was under way";
            self.answer(to, Reply::Failed(Failure::unknown(FailureReason::Timeout, detail)));
        }
    }

    /// Whether the control group wants this replica on this very node.
    pub(crate) fn is_wanted_here(&self, key: ReplicaKey) -> bool {
        self.control.replicas_on(self.identity.node).any(|(wanted, standing)| wanted == key && matches!(standing, Standing::Wanted(_)))
    }

    fn peers(&self) -> Peers {
        let others = self.control.members().filter(|(node, _)| *node != self.identity.node);
        let address = |node: NodeId, known: &str| self.supervision.addresses.get(&node).map_or(known, String::as_str).to_owned();
        Peers {
            linked: others.map(|(node, record)| (node, address(node, &record.profile.peer))).collect(),
            removed: self.control.nodes.iter().filter(|(_, r)| r.state == NodeState::Removed).map(|(node, _)| *node).collect(),
        }
    }

    /// Where a member is reached, as it, or another member, says before it is agreed on: all may have moved at once, and then
    /// nothing can be agreed on before they have found each other.
    pub(crate) fn note_address(&mut self, node: NodeId, address: String) {
        let Some((_, record)) = self.control.members().find(|(member, _)| *member == node && node != self.identity.node) else { return };
        let is_news = match self.supervision.addresses.get(&node) {
            Some(noted) => *noted != address,
            None => record.profile.peer != address,
        };
        if !is_news {
            return;
        }
        self.supervision.addresses.insert(node, address);
        self.update_peers();
        let linked: Vec<NodeId> = self.links.iter().filter(|(_, link)| link.up).map(|(node, _)| *node).collect();
        for peer in linked {
            self.tell_addresses(peer);
        }
    }

    /// Tells a peer where others are reached that it may not find.
    pub(crate) fn tell_addresses(&mut self, peer: NodeId) {
        let noted: Vec<(NodeId, String)> =
            self.supervision.addresses.iter().filter(|(node, _)| **node != peer).map(|(node, address)| (*node, address.clone())).collect();
        if !noted.is_empty() {
            self.send(peer, PeerMessage::Addresses(noted));
        }
    }

    /// What a peer says of others counts where they are not reached.
    pub(crate) fn handle_addresses(&mut self, addresses: Vec<(NodeId, String)>) {
        for (node, address) in addresses {
            if !self.link_is_up(node) {
                self.note_address(node, address);
            }
        }
    }

    pub(crate) fn update_peers(&mut self) {
        self.out.peers = Some(self.peers());
    }

    // ---- joins ----

    pub(crate) fn accept_join(&mut self, waiter: Waiter, join: JoinRequest, now: Now) {
        let holder = self.control.node_by_name(&join.name).filter(|(id, record)| *id != join.id && record.state != NodeState::Removed);
        let replaces = holder.map(|(id, _)| id);
        if let Some(holder) = replaces {
            let alive = self.observed(now).nodes.get(&holder) == Some(&NodeHealth::Up);
            if !join.replace || alive {
                return self.answer(waiter.to, Reply::NameTaken { holder, alive });
            }
        }
        let command = ControlCommand::AddNode { node: join.id, profile: profile_of(&join), replaces };
        match self.propose_control(&command) {
            Some((index, term)) => self.supervision.joins.push((index, term, waiter)),
            None => self.refuse(waiter.to, FailureReason::NoQuorum, "the control group has no leader here: try again"),
        }
    }

    /// Answers a join, once the state that it made is adopted.
    pub(crate) fn handle_control_answer(&mut self, index: LogIndex, term: Term, answer: &ControlAnswer) {
        let Some(place) = self.supervision.joins.iter().position(|(at, in_term, _)| *at == index && *in_term == term) else { return };
        let (_, _, waiter) = self.supervision.joins.swap_remove(place);
        match answer {
            ControlAnswer::Refused(Refusal::NameTaken { holder, .. }) => {
                self.answer(waiter.to, Reply::NameTaken { holder: *holder, alive: true })
            }
            ControlAnswer::Refused(refusal) => {
                self.refuse(waiter.to, FailureReason::NotMember, format!("the node was not taken in: {refusal}"))
            }
            _ => self.answer(waiter.to, Reply::Joined { state: self.control.encode() }),
        }
    }

    /// Joins that wait for longer than their time.
    pub(crate) fn expire_joins(&mut self, now: Instant) {
        let late: Vec<Waiter> =
            self.supervision.joins.extract_if(.., |(_, _, waiter)| waiter.expires <= now).map(|(_, _, waiter)| waiter).collect();
        for waiter in late {
            self.answer(
                waiter.to,
                Reply::Failed(Failure::unknown(FailureReason::Timeout, "the join was not agreed on in time: ask again")),
            );
        }
    }

    /// Whether this node knows the leader of every shard.
    pub fn is_ready(&self) -> bool {
        let knows = |group: &GroupId| match self.replicas.get(group) {
            Some(replica) if replica.is_initialized() => replica.is_leader() || replica.leader_node().is_some(),
            _ => self.leader_of(*group).is_some(),
        };
        !self.shutting_down && self.control.groups.keys().all(knows)
    }
}

/// The profile that a joiner presents.
pub(crate) fn profile_of(join: &JoinRequest) -> NodeProfile {
    NodeProfile {
        name: join.name.clone(),
        http: Some(join.http.clone()),
        peer: join.peer.clone(),
        resp: join.resp.clone(),
        zone: join.zone.clone(),
        weight: join.weight,
        formats: Formats { min: join.formats.0, max: join.formats.1 },
    }
}
