//! The applier's part that has a group go on which lost its quorum for good (decision record 0017): what is left of it, or
//! nothing, becomes a replica of its own, the group's only voter.
//!
//! All of it is one write of the store. Rows stay where they are; the new replica's state says where that is. So it costs
//! the same however much the shard holds, and a crash leaves either the old replica or the new one.

use super::apply::{Applier, ApplyError, GroupApply, Live};
use super::state::ReplicaState;
use crate::boot::GENESIS_START;
use crate::control::{ControlAnswer, ControlCommand, ControlState};
use bytes::Bytes;
use flotilla_storage::store::{StateStore, layout};
use flotilla_types::{Entry, Member, Membership, NodeId, ReplicaKey, Version};
use std::sync::Arc;

/// By how much a recovered shard's version counter rises: nobody knows how far it had come on the nodes that are gone.
/// At a million writes a second it takes twelve days to use it up; 2^53 leaves room for thousands of recoveries.
pub const VERSION_MARGIN: u64 = 1 << 40;

/// Replica ids leave a gap of this many at each recovery, so that these bits count the recoveries.
pub(crate) const REPLICA_MARGIN_BITS: u32 = 20;

/// What is to be made, of what.
#[derive(Debug)]
pub struct RebirthJob {
    /// The new replica, of an id that was never used.
    pub to: ReplicaKey,
    /// The node of both.
    pub node: NodeId,
    /// The replica that it is made of; `None`: it begins empty.
    pub from: Option<ReplicaKey>,
    /// The entries of its log that may not be applied yet, to its end. None changes the membership.
    pub entries: Vec<Entry>,
    /// In the control group, what changes with it.
    pub control: Option<ControlRebirth>,
}

/// How the control group's state goes on.
#[derive(Debug)]
pub struct ControlRebirth {
    /// The latest copy that any node has: taken if it is later than what the replica holds.
    pub copy: Option<Arc<ControlState>>,
    /// Applied last.
    pub command: ControlCommand,
}

impl<S: StateStore> Applier<S> {
    /// Makes the new replica and forgets the old one, durably. Gives the new state, or why it cannot be: then nothing
    /// was written, and this applier must not be used again.
    ///
    /// # Errors
    /// If the store fails.
    pub fn rebirth(&mut self, job: RebirthJob) -> Result<Result<ReplicaState, String>, ApplyError> {
        self.check()?;
        if let Some(state) = self.state(job.to) {
            return Ok(Ok(state.clone()));
        }
        let made = match job.from {
            Some(from) => self.rebirth_of(from, job),
            None => self.rebirth_empty(job),
        };
        self.failed |= !matches!(made, Ok(Ok(_)));
        made
    }

    fn rebirth_of(&mut self, from: ReplicaKey, job: RebirthJob) -> Result<Result<ReplicaState, String>, ApplyError> {
        let RebirthJob { to, node, entries, control, .. } = job;
        let tail = GroupApply { replica: from, entries, memberships: Vec::new(), answers_wanted: false };
        let applied = self.apply_group(tail, &mut false)?;
        if let Some(reason) = applied.stopped {
            return Ok(Err(format!("{from} cannot be brought to the end of its log: {reason}")));
        }
        let Live { state, prefix, idempotency, .. } = self.replicas.remove(&from).expect("it was just applied to");
        let mut state = ReplicaState { filed_under: Some(state.filing(from).under.replica), ..first_state(state, to, node) };
        if let Some(control) = control {
            let was = state.control.take();
            match after_recovery(was, control) {
                Ok(control) => state.control = Some(Arc::new(control)),
                Err(why) => return Ok(Err(why)),
            }
        }
        if let Some(control) = &state.control {
            for key in control.row_keys() {
                let value = control.encode_row(key).expect("row_keys lists rows that exist");
                state.hash = self.writer.put_control(&prefix, &key.encode(), &value, state.hash);
            }
        }
        self.writer.batch.delete(Bytes::copy_from_slice(&layout::state_key(from)));
        self.writer.put_own(&layout::state_key(to), |out| state.encode_into(out));
        // A key, or a row of the control state, may have been written twice.
        self.writer.batch.keep_last_of_each_key();
        self.store.write(std::mem::take(&mut self.writer.batch))?;
        self.store.persist()?;
        self.scrubs.remove(&from);
        // What was being installed is on the dead list already.
        self.installing.retain(|(replica, _), _| *replica != from);
        self.replicas.insert(to, Live::new(to, state.clone(), idempotency));
        Ok(Ok(state))
    }

    fn rebirth_empty(&mut self, job: RebirthJob) -> Result<Result<ReplicaState, String>, ApplyError> {
        let RebirthJob { to, node, control, .. } = job;
        let blank = ReplicaState { applied: GENESIS_START, ..ReplicaState::new(Membership::default()) };
        let mut state = first_state(blank, to, node);
        if let Some(control) = control {
            match after_recovery(None, control) {
                Ok(control) => state.control = Some(Arc::new(control)),
                Err(why) => return Ok(Err(why)),
            }
        }
        self.create(to, state.clone())?;
        self.store.persist()?;
        Ok(Ok(state))
    }
}

/// The state with which the new replica begins.
fn first_state(state: ReplicaState, to: ReplicaKey, node: NodeId) -> ReplicaState {
    // Of a shard that is made anew, nothing says how far it was; but not how often that happened before.
    let recoveries = to.replica.0 >> REPLICA_MARGIN_BITS;
    let floor = recoveries.saturating_mul(VERSION_MARGIN).min(VERSION_FLOOR_MAX);
    ReplicaState {
        membership: Membership::of_voters([Member { replica: to.replica, node }]),
        version: Version((state.version.0 + VERSION_MARGIN).max(floor)),
        ..state
    }
}

/// Half of all versions: so many recoveries that the floor would come here are not to be expected, and must not use them up.
const VERSION_FLOOR_MAX: u64 = 1 << 52;

fn after_recovery(was: Option<Arc<ControlState>>, control: ControlRebirth) -> Result<ControlState, String> {
    let ControlRebirth { copy, command } = control;
    let latest = match (was, copy) {
        (Some(was), Some(copy)) if copy.epoch > was.epoch => copy,
        (Some(was), _) => was,
        (None, Some(copy)) => copy,
        (None, None) => return Err("no node has a copy of the control state".to_owned()),
    };
    let mut control = Arc::unwrap_or_clone(latest);
    match control.apply(&command).answer {
        ControlAnswer::Refused(refusal) => Err(format!("the control state does not take the recovery: {refusal}")),
        _ => Ok(control),
    }
}
