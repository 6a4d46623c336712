//! The leader's work on keys whose time is over: it has them deleted through its shard's log, in batches, and by
//! the entries that do so moves the shard's clock past their deadlines, so that reads see it also where nobody writes.
//!
//! Which keys those are the apply thread finds out. The leader only knows when it is worth asking: the soonest
//! deadline told by what was applied, or found behind the last batch; after an election it asks at once.

use crate::effect::StoreJob;
use crate::event::Now;
use crate::node::Node;
use crate::state_machine::{ExpiredKeys, GroupApplied, MutationBatch, StopReason};
use flotilla_types::{GroupId, LogIndex, ReplicaKey, Timestamp};

/// Where a replica stands with this. Only a leader acts on it.
#[derive(Debug, Default)]
pub(crate) struct Expiry {
    /// No deadline lies before this; `None`: there is none.
    due: Option<Timestamp>,
    /// The apply thread looks for keys.
    is_finding: bool,
    /// The entry that deletes the last keys found.
    proposed: Option<LogIndex>,
    /// The shard's clock, as last applied here.
    clock: Timestamp,
}

impl Expiry {
    /// Begins anew: what a former leader left is not known here.
    pub(crate) fn begin_to_lead(&mut self) {
        self.due = Some(Timestamp(0));
        self.proposed = None;
    }

    /// Entries were applied.
    pub(crate) fn take_applied(&mut self, applied: &GroupApplied) {
        self.clock = applied.clock;
        if let Some(deadline) = applied.deadline {
            self.due = Some(self.due.map_or(deadline, |due| due.min(deadline)));
        }
        self.proposed = self.proposed.filter(|index| *index > applied.applied.0);
    }
}

impl Node {
    /// Looks for keys whose time is over in the shards led here.
    pub(crate) fn look_for_expired(&mut self, now: Now) {
        if self.unapplied_bytes > self.config.unapplied_bytes_max || self.shutting_down {
            return;
        }
        let wall = self.clock(now);
        for (group, replica) in &mut self.replicas {
            let expiry = &mut replica.expiry;
            let is_idle = !expiry.is_finding && expiry.proposed.is_none();
            let is_due = expiry.due.is_some_and(|due| due <= wall.max(expiry.clock));
            if is_idle && is_due && *group != GroupId::CONTROL && replica.group.serves_reads() && replica.install.is_none() {
                expiry.is_finding = true;
                self.out.store.push(StoreJob::FindExpired { replica: replica.key, clock: wall });
            }
        }
    }

    pub(crate) fn handle_expired_found(&mut self, key: ReplicaKey, found: Result<ExpiredKeys, StopReason>, now: Now) {
        let clock = self.clock(now);
        let Some(replica) = self.replicas.get_mut(&key.group).filter(|replica| replica.key == key) else { return };
        replica.expiry.is_finding = false;
        let found = match found {
            Ok(found) => found,
            Err(reason) => return self.stop_replica(key, &reason),
        };
        if found.keys.is_empty() {
            replica.expiry.due = found.next;
            return;
        }
        // There may be more: the next tick asks again once these are gone.
        replica.expiry.due = Some(Timestamp(0));
        if !replica.is_leader() || replica.diverged {
            return;
        }
        let mut batch = MutationBatch::new();
        for key in &found.keys {
            batch.expire(key);
        }
        if let Ok((_, index)) = replica.group.propose(batch.finish(clock)) {
            self.stats.proposals += 1;
            self.stats.mutations += found.keys.len() as u64;
            replica.expiry.proposed = Some(index);
            self.dirty.insert(key.group);
        }
    }
}
