//! Committed entries on their way to the apply thread.
//!
//! Where somebody waits for what an entry leads to, it goes with the turn that committed it. A follower's
//! entries nobody waits for: they gather until the next tick, so that many small runs become one batch
//! of the store, with one state row for each group.

use crate::state_machine::GroupApply;
use flotilla_types::ReplicaKey;
use std::collections::BTreeMap;

/// So many gathered bytes do not wait for the tick.
const GATHERED_BYTES_MAX: usize = 1 << 20;

/// The entries that the apply thread does not have yet, each replica's in order and in one place.
#[derive(Debug, Default)]
pub(crate) struct ApplyQueue {
    due: BTreeMap<ReplicaKey, GroupApply>,
    gathering: BTreeMap<ReplicaKey, GroupApply>,
    gathered_bytes: usize,
}

impl ApplyQueue {
    /// Adds a replica's next entries, of `bytes`.
    pub(crate) fn push(&mut self, run: GroupApply, bytes: usize, is_awaited: bool) {
        let key = run.replica;
        if is_awaited && let Some(earlier) = self.gathering.remove(&key) {
            self.due.insert(key, earlier);
        }
        let runs = if is_awaited || self.due.contains_key(&key) { &mut self.due } else { &mut self.gathering };
        match runs.get_mut(&key) {
            Some(earlier) => earlier.extend(run),
            None => drop(runs.insert(key, run)),
        }
        self.gathered_bytes += bytes;
    }

    /// The replica is gone.
    pub(crate) fn forget(&mut self, replica: ReplicaKey) {
        self.due.remove(&replica);
        self.gathering.remove(&replica);
    }

    /// Nothing waits any longer.
    pub(crate) fn hurry(&mut self) {
        self.due.append(&mut self.gathering);
    }

    /// What is to be applied now.
    pub(crate) fn take_due(&mut self) -> Vec<GroupApply> {
        if self.gathered_bytes >= GATHERED_BYTES_MAX {
            self.hurry();
        }
        if self.gathering.is_empty() {
            self.gathered_bytes = 0;
        }
        std::mem::take(&mut self.due).into_values().collect()
    }
}
