//! Whether log and store are of one piece: asked when a node starts, and by a check of a data-dir at rest.

use crate::boot::{self, Identity};
use crate::control::ControlState;
use crate::node::Node;
use crate::recovery::successor;
use crate::state_machine::ReplicaState;
use flotilla_storage::log::{InstallPhase, Recovered, RecoveredReplica};
use flotilla_types::{LogIndex, NodeId, ReplicaKey};
use std::collections::{BTreeMap, BTreeSet};

/// What makes it impossible that the state in the store is what this log led to, if anything does.
pub fn contradiction(recovered: &RecoveredReplica, state: Option<&ReplicaState>) -> Option<String> {
    let (mut begins, mut ends) = (recovered.start.0, recovered.entries.last().map_or(recovered.start.0, |entry| entry.index));
    match recovered.install {
        // The store switched before the crash: the log is to follow.
        Some((InstallPhase::Installing, install)) if state.is_some_and(|state| state.generation == install.generation) => {
            (begins, ends) = (install.index, install.index);
        }
        Some((InstallPhase::Installed, install)) if state.is_none_or(|state| state.generation < install.generation) => {
            return Some(format!("the log recorded generation {} as installed and the store does not have it", install.generation));
        }
        _ => {}
    }
    let applied = state.map_or(LogIndex(0), |state| state.applied.0);
    if applied < begins {
        return Some(format!("the store has applied up to {applied}, and the log begins after {begins}"));
    }
    (applied > ends).then(|| format!("the store has applied up to {applied}, and the log ends at {ends}"))
}

/// Whether a replica of `node` can be given up: the other voters alone are a majority, or it is no voter.
pub fn others_suffice(control: &ControlState, node: NodeId, key: ReplicaKey) -> bool {
    let Some(record) = control.groups.get(&key.group) else { return false };
    let others = record.voters.iter().filter(|member| member.node != node).count();
    let is_voter = record.voters.iter().any(|member| member.replica == key.replica);
    !is_voter || others > record.voters.len() / 2
}

/// Holds what a log and a store hold against each other; `damaged` are replicas whose rows are known to be. Says
/// what does not fit.
pub fn hold_together(
    identity: Option<&Identity>,
    recovered: &Recovered,
    states: &BTreeMap<ReplicaKey, ReplicaState>,
    damaged: &BTreeSet<ReplicaKey>,
    say: &mut dyn FnMut(ReplicaKey, String),
) {
    let genesis = identity.and_then(Identity::genesis_state);
    for (key, replica) in recovered.replicas.iter().filter(|(key, replica)| !replica.is_lost && !damaged.contains(key)) {
        let state = states.get(key);
        // What it became is in the store, and the log hears of it when the node starts.
        if successor(*key, recovered, states).is_some() {
            continue;
        }
        // It is made when the node starts.
        let is_unborn = state.is_none()
            && (replica.start == Node::NOWHERE
                || (replica.start == boot::GENESIS_START
                    && genesis.as_ref().is_some_and(|genesis| genesis.groups.contains_key(&key.group))));
        if is_unborn {
            continue;
        }
        if state.is_none() {
            say(*key, "the log has this replica, and the store has no rows of it".to_owned());
        } else if let Some(what) = contradiction(replica, state) {
            say(*key, what);
        }
    }
}
