//! How a node makes a group's last copy its only voter, under a new replica id.
//!
//! 1. The old replica is taken leave of. What its log holds behind what is applied goes along: entries that no majority is
//!    known to have may have been acknowledged all the same, so all are kept. Changes of membership among them become empty
//!    entries: the new membership is that of one voter.
//! 2. One durable write of the store applies these, and makes the old replica's state the new one's. This is the moment
//!    that counts: before it, a restart finds the group as it was, after it, as it will be.
//! 3. One write of the log: the new replica, which begins at that index, and the old one's tombstone. A restart in between
//!    finds the new replica's state and the old one's log, and does this step ([`Node::take_over_at_start`]).

use crate::control::{ControlCommand, ControlState};
use crate::effect::StoreJob;
use crate::event::Now;
use crate::message::PeerMessage;
use crate::node::Node;
use crate::notice::Notice;
use crate::state_machine::{ControlRebirth, RebirthJob, ReplicaState, is_scrub_mark};
use bytes::Bytes;
use flotilla_storage::log::{LogRecord, Recovered, RecoveredReplica};
use flotilla_types::{Entry, EntryKind, GroupId, HardState, NodeId, ReplicaKey, Term};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The nodes that are gone may have had leaders of later terms than any that is known here.
const TERM_MARGIN: u64 = 1 << 20;

/// Groups that are being made anew here.
#[derive(Debug, Default)]
pub(crate) struct Rebirths {
    under_way: BTreeMap<GroupId, UnderWay>,
    /// The epoch of the control state by which nothing is to be made here.
    settled: Option<u64>,
}

#[derive(Debug)]
struct UnderWay {
    to: ReplicaKey,
    from: Option<ReplicaKey>,
    /// The old replica's term.
    term: Term,
}

impl Rebirths {
    /// Which they are.
    pub(crate) fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.under_way.keys().copied()
    }
}

impl Node {
    /// Does what the control state wants made anew on this node.
    pub(crate) fn begin_rebirths(&mut self) {
        if self.rebirths.settled == Some(self.control.epoch) {
            return;
        }
        let me = self.identity.node;
        let wanted = self.control.groups.iter().filter_map(|(group, record)| {
            let rebirth = record.rebirth?;
            let is_mine = record.voters.iter().any(|member| member.replica == rebirth.voter && member.node == me);
            // Where the old one is, the new one has never been made. What begins empty may have been here before the log was
            // damaged, and is not made a second time.
            let is_first = rebirth.from.is_some() || self.first_new_replica.is_some_and(|first_new| rebirth.voter.0 >= first_new);
            (is_mine && is_first).then_some((
                ReplicaKey { group: *group, replica: rebirth.voter },
                rebirth.from.map(|replica| ReplicaKey { group: *group, replica }),
            ))
        });
        let is_made = |to: &ReplicaKey| self.replicas.get(&to.group).is_some_and(|replica| replica.key == *to);
        let wanted: Vec<_> = wanted.filter(|(to, _)| !self.tombstones.contains(to) && !is_made(to)).collect();
        if wanted.is_empty() && self.first_new_replica.is_some() {
            self.rebirths.settled = Some(self.control.epoch);
        }
        for (to, from) in wanted {
            self.begin_rebirth(to, from, None);
        }
    }

    /// The control group's own: nobody else's state says that it is wanted.
    pub(super) fn begin_control_rebirth(&mut self, to: ReplicaKey, from: Option<ReplicaKey>, copy: ControlState, command: ControlCommand) {
        // It waits for a first snapshot that will never come.
        let unborn = self.replicas.get(&to.group).filter(|replica| from.is_none() && !replica.is_initialized()).map(|replica| replica.key);
        if let Some(unborn) = unborn {
            self.remove_replica(unborn);
        }
        let control = ControlRebirth { copy: Some(Arc::new(copy)), command };
        self.begin_rebirth(to, from, Some(control));
    }

    /// Begins, if the replica that it is to be made of is here and nothing of it is on its way: else it is asked for again.
    fn begin_rebirth(&mut self, to: ReplicaKey, from: Option<ReplicaKey>, control: Option<ControlRebirth>) {
        let here = self.replicas.get(&to.group);
        if self.rebirths.under_way.contains_key(&to.group) || here.map(|replica| replica.key) != from {
            return;
        }
        let (mut entries, mut term) = (Vec::new(), Term(0));
        if let Some(replica) = here {
            let Some(tail) = replica.group.entries_after(replica.applied).filter(|_| replica.install.is_none()) else { return };
            (entries, term) = (tail.into_iter().map(without_effect_on_members).collect(), replica.group.term());
        }
        if let Some(from) = from {
            self.dismiss(from);
        }
        self.rebirths.under_way.insert(to.group, UnderWay { to, from, term });
        let job = RebirthJob { to, node: self.identity.node, from, entries, control };
        self.out.store.push(StoreJob::Rebirth(Box::new(job)));
    }

    /// The store has it: now the log.
    pub(crate) fn handle_reborn(&mut self, to: ReplicaKey, state: Result<Box<ReplicaState>, String>, now: Now) {
        let Some(UnderWay { from, term, .. }) = self.rebirths.under_way.remove(&to.group).filter(|under_way| under_way.to == to) else {
            return;
        };
        let state = match state {
            Ok(state) => *state,
            Err(why) => {
                self.out.fatal = Some(format!("{} cannot be recovered: {why}; start the node again, and ask again", to.group));
                return;
            }
        };
        self.take_over(to, from, term, state, now);
    }

    fn take_over(&mut self, to: ReplicaKey, from: Option<ReplicaKey>, term: Term, state: ReplicaState, now: Now) {
        let (index, last_term) = state.applied;
        let start = (index, last_term);
        let hard_state = HardState { term: Term(term.max(last_term).0 + TERM_MARGIN), vote: None, commit: index };
        self.log.push(LogRecord::Created { replica: to, start });
        self.log.push(LogRecord::HardState { replica: to, hard_state });
        if let Some(from) = from {
            self.log.push(LogRecord::Tombstone { replica: from });
            self.tombstones.insert(from);
        }
        let line = match from {
            Some(_) => format!("{} was recovered from its copy on this node, up to {index}", to.group),
            None => format!("{} was made anew: no copy of it was left, and it is empty", to.group),
        };
        self.out.notices.push(Notice::warning(line).of_replica(to));
        let control = state.control.clone();
        let recovered = RecoveredReplica { hard_state, start, entries: Vec::new(), install: None, is_lost: false };
        if let Err(error) = self.restore(to, recovered, Some(state), now) {
            self.out.fatal = Some(error.to_string());
            return;
        }
        self.log.wait_for_next(self.replicas.get_mut(&to.group));
        if let Some(replica) = self.replicas.get_mut(&to.group) {
            replica.group.campaign();
        }
        if let Some(control) = control {
            self.adopt_control(&control);
            // Nobody knows yet whom to report to, and so whom to be told by.
            let linked: Vec<NodeId> = self.links.iter().filter(|(_, link)| link.up).map(|(node, _)| *node).collect();
            for node in linked {
                self.send(node, PeerMessage::ControlCopy(self.control.encode()));
            }
        }
        self.report_soon(now);
    }

    /// After a crash: the store has made the new replica, and the log has no word of it yet.
    pub(crate) fn take_over_at_start(&mut self, from: ReplicaKey, old: &RecoveredReplica, to: ReplicaKey, state: ReplicaState, now: Now) {
        self.take_over(to, Some(from), old.hard_state.term, state, now);
    }
}

/// The replica that the store has made of one that only the log still knows.
pub(crate) fn successor(from: ReplicaKey, recovered: &Recovered, states: &BTreeMap<ReplicaKey, ReplicaState>) -> Option<ReplicaKey> {
    if states.contains_key(&from) {
        return None;
    }
    let is_new = |key: &ReplicaKey| !recovered.replicas.contains_key(key) && !recovered.tombstones.contains(key);
    let made = |(key, state): &(&ReplicaKey, &ReplicaState)| key.group == from.group && state.filed_under.is_some() && is_new(key);
    states.iter().find(made).map(|(key, _)| *key)
}

fn without_effect_on_members(entry: Entry) -> Entry {
    // A scrub compares copies, and there is only one.
    let has_none = entry.kind == EntryKind::Membership || is_scrub_mark(&entry.data);
    if has_none { Entry { kind: EntryKind::Normal, data: Bytes::new(), ..entry } } else { entry }
}
