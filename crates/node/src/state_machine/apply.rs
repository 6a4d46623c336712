//! The [`Applier`]: turns committed entries into rows. It belongs to the apply thread, since the
//! store may block.
//!
//! A job holds entries of any number of replicas and becomes one store batch: all their row writes and,
//! for each replica touched, its state row with the applied index. So data and applied index cannot
//! part in a crash. Within a job later mutations see earlier ones through an overlay, because the
//! batch is not in the store yet.
//!
//! Three kinds of failure. What a client asked and did not get is an answer ([`MutationResult`]).
//! What concerns one replica (an entry it does not know, a damaged row) stops that replica at the entry
//! before, and the others go on ([`StopReason`]). When the store itself fails, the whole applier is
//! done ([`ApplyError`]): what it holds in memory is ahead of what is stored.

use super::change::Overlaid;
use super::expiry::ExpirySweep;
use super::idempotency::IdempotencyTable;
use super::mutation::{Mutation, MutationError, Mutations};
use super::rows::RowWriter;
use super::scrub::{self, Scrub, ScrubMark};
use super::snapshot::Incoming;
use super::state::{CHECKPOINT_EVERY, ReplicaState};
use crate::control::{ControlAnswer, ControlCommand, ControlState};
use crate::request::WriteRefusal;
use bytes::Bytes;
use flotilla_storage::store::layout::{self, Filing, GENERATION_PREFIX_BYTES};
use flotilla_storage::store::{StateStore, StoreError};
use flotilla_types::wire::DecodeError;
use flotilla_types::{Entry, EntryKind, GroupId, Key, LogIndex, Membership, ReplicaKey, Term, Timestamp, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Versions stay below this, so that they are exact in every JSON reader.
const VERSION_END: u64 = 1 << 53;

/// What is to be applied together.
#[derive(Clone, Debug, Default)]
pub struct ApplyJob {
    /// Each replica at most once.
    pub groups: Vec<GroupApply>,
}

/// Committed entries of one replica.
#[derive(Clone, Debug)]
pub struct GroupApply {
    /// Whose.
    pub replica: ReplicaKey,
    /// In order, without a gap; those at or below the applied index are passed over.
    pub entries: Vec<Entry>,
    /// The resulting configuration at each membership entry.
    pub memberships: Vec<(LogIndex, Membership)>,
    /// Whether somebody waits for the results (on the leader).
    pub answers_wanted: bool,
}

impl GroupApply {
    /// Adds the same replica's next entries.
    pub fn extend(&mut self, next: GroupApply) {
        self.entries.extend(next.entries);
        self.memberships.extend(next.memberships);
        self.answers_wanted |= next.answers_wanted;
    }
}

/// What came of a [`GroupApply`].
#[derive(Clone, Debug)]
pub struct GroupApplied {
    /// Whose.
    pub replica: ReplicaKey,
    /// The last entry applied now.
    pub applied: (LogIndex, Term),
    /// Results by entry, in the order of its mutations; empty unless wanted.
    pub answers: Vec<(LogIndex, Term, Vec<MutationResult>)>,
    /// The control group's state, if this job changed it.
    pub control: Option<Arc<ControlState>>,
    /// Answers to control commands by entry; empty unless wanted.
    pub control_answers: Vec<(LogIndex, Term, ControlAnswer)>,
    /// The last checkpoint that this job passed, to be compared between replicas.
    pub checkpoint: Option<(LogIndex, u64)>,
    /// The last scrub's mark that this job passed.
    pub scrub: Option<ScrubMark>,
    /// How many keys there are now.
    pub keys: u64,
    /// How many bytes keys and values have now.
    pub bytes: u64,
    /// The shard's clock now.
    pub clock: Timestamp,
    /// The soonest deadline that a key got by these entries.
    pub deadline: Option<Timestamp>,
    /// Why the replica has stopped; it applies nothing more.
    pub stopped: Option<StopReason>,
}

/// What a mutation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MutationResult {
    /// The key has the value.
    Put {
        /// The version it got.
        version: Version,
        /// Whether the key was absent before.
        created: bool,
    },
    /// The key is absent.
    Deleted {
        /// Whether it was there before.
        deleted: bool,
    },
    /// The condition did not hold; nothing happened.
    ConditionFailed {
        /// The present version; `None`: absent.
        present: Option<Version>,
    },
    /// The key holds the sum.
    Incremented {
        /// What it holds now.
        value: i64,
        /// The version it got.
        version: Version,
    },
    /// The state did not allow it; nothing happened.
    Refused(WriteRefusal),
}

/// Why one replica cannot go on while the others can.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// An entry holds what this version does not know. Every replica of this version stops there.
    #[error("entry {index} cannot be applied")]
    UnknownEntry {
        /// Which.
        index: LogIndex,
        /// Why.
        #[source]
        source: MutationError,
    },
    /// A control command holds what this version does not know.
    #[error("control command {index} cannot be applied")]
    UnknownCommand {
        /// Which.
        index: LogIndex,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// A control command came before the control state did.
    #[error("control command {0} came to a replica that has no control state yet")]
    NoControlState(LogIndex),
    /// A row of this replica is damaged here. Others may be whole: re-seed it.
    #[error("{0}")]
    Damaged(String),
    /// There is no state of that replica, or no longer.
    #[error("the replica has no state here")]
    NoState,
}

/// Why nothing more can be applied on this node.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store failed earlier.
    #[error("the state store failed before: nothing more is applied until it is opened anew")]
    FailedBefore,
}

/// Faults planted on purpose, so that the simulation can show that it would find them. All false
/// in real life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateMachineFaults {
    /// After a restart the last entry is taken for not applied.
    pub apply_twice_after_restart: bool,
    /// The applied index is written in a batch of its own behind the data.
    pub applied_index_apart: bool,
    /// A snapshot's generation is switched to before its rows are durable.
    pub snapshot_switched_before_durable: bool,
    /// Writes happen whether or not their condition holds.
    pub conditions_ignored: bool,
    /// Snapshots lack the table of idempotent requests.
    pub table_not_in_snapshot: bool,
}

/// Applies entries to the store and keeps the state of every replica on this node.
#[derive(Debug)]
pub struct Applier<S: StateStore> {
    pub(super) store: S,
    pub(super) replicas: BTreeMap<ReplicaKey, Live>,
    /// Generations to be swept, among them those that are being installed: if we crash, they are dead.
    pub(super) dead: BTreeSet<(ReplicaKey, u32)>,
    pub(super) installing: BTreeMap<(ReplicaKey, u32), Incoming>,
    /// Where the sweep goes on within the first dead generation.
    pub(super) sweep_from: Option<((ReplicaKey, u32), Bytes)>,
    /// Dead generations of which a row cannot be read.
    pub(super) unsweepable: BTreeSet<(ReplicaKey, u32)>,
    /// Views taken at scrubs' marks.
    pub(super) scrubs: BTreeMap<ReplicaKey, Scrub<S::View>>,
    pub(super) failed: bool,
    damaged: Vec<(ReplicaKey, String)>,
    pub(super) writer: RowWriter,
    overlay: BTreeMap<Key, Overlaid>,
    row_key: Vec<u8>,
    pub(super) faults: StateMachineFaults,
}

/// A replica at work.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) state: ReplicaState,
    pub(super) prefix: [u8; GENERATION_PREFIX_BYTES],
    pub(super) stopped: Option<StopReason>,
    /// A copy of rows. It may be ahead of them where the replica has stopped, and is asked no more then.
    pub(super) idempotency: IdempotencyTable,
    pub(super) expiry: ExpirySweep,
}

/// What an entry may change of a state, to be put back if the entry cannot be applied.
#[derive(Clone, Copy)]
struct Counters {
    version: Version,
    clock: Timestamp,
    hash: u64,
    keys: u64,
    bytes: u64,
}

/// Why an entry was not applied.
pub(super) enum EntryError {
    Stop(StopReason),
    Store(StoreError),
}

impl From<StoreError> for EntryError {
    fn from(error: StoreError) -> EntryError {
        match error {
            // Found while reading this replica's rows, so it is this replica's damage.
            StoreError::Damaged(detail) => EntryError::Stop(StopReason::Damaged(detail)),
            error => EntryError::Store(error),
        }
    }
}

impl Live {
    pub(super) fn new(replica: ReplicaKey, state: ReplicaState, idempotency: IdempotencyTable) -> Live {
        let Filing { under, generation } = state.filing(replica);
        Live { prefix: layout::data_prefix(under, generation), state, stopped: None, idempotency, expiry: ExpirySweep::default() }
    }
}

impl<S: StateStore> Applier<S> {
    /// Opens what the store holds: the state of every replica. A replica whose own rows are damaged
    /// is not among them but in [`Applier::damaged`].
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn open(store: S, faults: StateMachineFaults) -> Result<(Applier<S>, BTreeMap<ReplicaKey, ReplicaState>), ApplyError> {
        let super::generation::Found { mut replicas, mut idempotency, dead, damaged } = super::generation::read_states(&store)?;
        if faults.apply_twice_after_restart {
            for state in replicas.values_mut() {
                state.applied.0 = LogIndex(state.applied.0.0.saturating_sub(1));
            }
        }
        let mut live = |(replica, state): (&ReplicaKey, &ReplicaState)| {
            let table = idempotency.remove(replica).unwrap_or_default();
            (*replica, Live::new(*replica, state.clone(), table))
        };
        let applier = Applier {
            store,
            replicas: replicas.iter().map(&mut live).collect(),
            dead,
            installing: BTreeMap::new(),
            sweep_from: None,
            unsweepable: BTreeSet::new(),
            scrubs: BTreeMap::new(),
            failed: false,
            damaged,
            writer: RowWriter::default(),
            overlay: BTreeMap::new(),
            row_key: Vec::new(),
            faults,
        };
        Ok((applier, replicas))
    }

    /// Replicas whose state could not be read when the store was opened, and why: to be re-seeded
    /// under new ids. Their rows stay until [`Applier::destroy`].
    pub fn damaged(&self) -> &[(ReplicaKey, String)] {
        &self.damaged
    }

    /// A replica's state, all that was applied so far included.
    pub fn state(&self, replica: ReplicaKey) -> Option<&ReplicaState> {
        self.replicas.get(&replica).map(|live| &live.state)
    }

    /// The store underneath.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Applies a job: one store batch for all of it.
    ///
    /// # Errors
    /// If the store fails; then this applier is done.
    ///
    /// # Panics
    /// If entries leave a gap, or a membership entry comes without its configuration.
    pub fn apply(&mut self, job: ApplyJob) -> Result<Vec<GroupApplied>, ApplyError> {
        self.check()?;
        let result = self.apply_unchecked(job);
        self.failed |= result.is_err();
        result
    }

    fn apply_unchecked(&mut self, job: ApplyJob) -> Result<Vec<GroupApplied>, ApplyError> {
        let mut results = Vec::with_capacity(job.groups.len());
        let mut seen_twice = false;
        for group in job.groups {
            let result = self.apply_group(group, &mut seen_twice)?;
            if !self.faults.applied_index_apart {
                self.put_state(result.replica);
            }
            results.push(result);
        }
        if seen_twice {
            self.writer.batch.keep_last_of_each_key();
        }
        if self.faults.applied_index_apart {
            self.store.write(std::mem::take(&mut self.writer.batch))?;
            results.iter().for_each(|result| self.put_state(result.replica));
        }
        self.store.write(std::mem::take(&mut self.writer.batch))?;
        Ok(results)
    }

    /// The state row goes behind its group's rows, not behind all groups': a mark may end the batch in between.
    fn put_state(&mut self, replica: ReplicaKey) {
        if let Some(live) = self.replicas.get(&replica) {
            self.writer.put_own(&layout::state_key(replica), |out| live.state.encode_into(out));
        }
    }

    /// Makes all that was applied durable, and says up to where, by replica.
    ///
    /// # Errors
    /// If the store fails; then this applier is done.
    pub fn persist(&mut self) -> Result<BTreeMap<ReplicaKey, LogIndex>, ApplyError> {
        self.check()?;
        self.store.persist().inspect_err(|_| self.failed = true)?;
        Ok(self.replicas.iter().map(|(replica, live)| (*replica, live.state.applied.0)).collect())
    }

    pub(super) fn check(&self) -> Result<(), ApplyError> {
        if self.failed { Err(ApplyError::FailedBefore) } else { Ok(()) }
    }

    pub(super) fn apply_group(&mut self, group: GroupApply, seen_twice: &mut bool) -> Result<GroupApplied, ApplyError> {
        let replica = group.replica;
        let mut result = GroupApplied {
            replica,
            applied: (LogIndex(0), Term(0)),
            answers: Vec::new(),
            control: None,
            control_answers: Vec::new(),
            checkpoint: None,
            scrub: None,
            keys: 0,
            bytes: 0,
            clock: Timestamp(0),
            deadline: None,
            stopped: None,
        };
        let Some(live) = self.replicas.get_mut(&replica) else {
            result.stopped = Some(StopReason::NoState);
            return Ok(result);
        };
        self.overlay.clear();
        let mut memberships = group.memberships.into_iter();
        let mut work = Work {
            store: &self.store,
            writer: &mut self.writer,
            overlay: &mut self.overlay,
            row_key: &mut self.row_key,
            conditions_ignored: self.faults.conditions_ignored,
            seen_twice: false,
            has_recorded: false,
            has_swept: false,
        };
        for entry in group.entries {
            let applied = live.state.applied.0;
            if live.stopped.is_some() || entry.index <= applied {
                continue;
            }
            assert!(entry.index == applied.next(), "{replica}: entry {} came after {applied}", entry.index);
            let (index, term) = (entry.index, entry.term);
            let mark = (work.writer.batch.len(), live.counters());
            live.state.hash = chain_entry(live.state.hash, index, term);
            let mut is_mark = false;
            let outcome = match entry.kind {
                EntryKind::Membership => {
                    let (_, membership) = memberships
                        .find(|(at, _)| *at == index)
                        .unwrap_or_else(|| panic!("{replica}: membership entry {index} came without its configuration"));
                    live.state.membership = membership;
                    live.state.hash = xxh3_64_with_seed(&entry.data, live.state.hash);
                    Ok(())
                }
                // A new leader's no-op.
                EntryKind::Normal if entry.data.is_empty() => Ok(()),
                EntryKind::Normal if scrub::is_mark(&entry.data) => {
                    is_mark = true;
                    Ok(())
                }
                EntryKind::Normal if replica.group == GroupId::CONTROL => work.apply_command(live, index, entry.data).map(|answer| {
                    result.control = live.state.control.clone();
                    if group.answers_wanted {
                        result.control_answers.push((index, term, answer));
                    }
                }),
                EntryKind::Normal => work.apply_mutations(live, index, entry.data, group.answers_wanted).map(|answers| {
                    if group.answers_wanted {
                        result.answers.push((index, term, answers));
                    }
                }),
            };
            match outcome {
                Ok(()) => {}
                Err(EntryError::Stop(reason)) => {
                    work.writer.batch.truncate(mark.0);
                    live.restore(mark.1);
                    live.stopped = Some(reason);
                    continue;
                }
                Err(EntryError::Store(error)) => return Err(error.into()),
            }
            live.state.applied = (index, term);
            if index.0 % CHECKPOINT_EVERY == 0 {
                live.state.checkpoint = Some((index, live.state.hash));
                result.checkpoint = live.state.checkpoint;
            }
            if is_mark {
                // What was applied so far is written, whole, and nothing behind it, so that the view is at this entry.
                work.writer.put_own(&layout::state_key(replica), |out| live.state.encode_into(out));
                work.writer.batch.keep_last_of_each_key();
                self.store.write(std::mem::take(&mut work.writer.batch))?;
                result.scrub = Some(scrub::open(&mut self.scrubs, self.store.view()?, replica, &live.state));
            }
        }
        *seen_twice |= work.seen_twice;
        result.applied = live.state.applied;
        result.keys = live.state.keys;
        result.bytes = live.state.bytes;
        result.clock = live.state.clock;
        result.deadline = live.expiry.soonest_written.take();
        result.stopped = live.stopped.clone();
        Ok(result)
    }
}

/// Takes an entry's place in the log into the hash.
fn chain_entry(hash: u64, index: LogIndex, term: Term) -> u64 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&index.0.to_le_bytes());
    place[8..].copy_from_slice(&term.0.to_le_bytes());
    xxh3_64_with_seed(&place, hash)
}

impl Live {
    fn counters(&self) -> Counters {
        let ReplicaState { version, clock, hash, keys, bytes, .. } = self.state;
        Counters { version, clock, hash, keys, bytes }
    }

    fn restore(&mut self, counters: Counters) {
        let Counters { version, clock, hash, keys, bytes } = counters;
        self.state = ReplicaState { version, clock, hash, keys, bytes, ..self.state.clone() };
    }

    pub(super) fn next_version(&mut self) -> Version {
        self.state.version.0 += 1;
        assert!(self.state.version.0 < VERSION_END, "the shard has given out all versions below 2^53");
        self.state.version
    }
}

/// The parts of the applier that work on one group's entries. What a mutation does to its key is in [`super::change`].
pub(super) struct Work<'a, S> {
    pub(super) store: &'a S,
    pub(super) writer: &'a mut RowWriter,
    pub(super) overlay: &'a mut BTreeMap<Key, Overlaid>,
    pub(super) row_key: &'a mut Vec<u8>,
    pub(super) conditions_ignored: bool,
    /// Whether a key was written twice, so that the batch may hold a row twice.
    pub(super) seen_twice: bool,
    /// Whether the answer to an idempotent request was recorded.
    pub(super) has_recorded: bool,
    /// Whether one was forgotten.
    pub(super) has_swept: bool,
}

impl<S: StateStore> Work<'_, S> {
    fn apply_command(&mut self, live: &mut Live, index: LogIndex, data: Bytes) -> Result<ControlAnswer, EntryError> {
        let stop = |source| EntryError::Stop(StopReason::UnknownCommand { index, source });
        let command = ControlCommand::decode(data).map_err(stop)?;
        let Some(control) = &mut live.state.control else {
            return Err(EntryError::Stop(StopReason::NoControlState(index)));
        };
        let applied = Arc::make_mut(control).apply(&command);
        for row in &applied.rows {
            let value = control.encode_row(*row).expect("a row that a command changed exists");
            live.state.hash = self.writer.put_control(&live.prefix, &row.encode(), &value, live.state.hash);
            // A node's row may change with every command.
            self.seen_twice = true;
        }
        Ok(applied.answer)
    }

    fn apply_mutations(
        &mut self,
        live: &mut Live,
        index: LogIndex,
        data: Bytes,
        answers_wanted: bool,
    ) -> Result<Vec<MutationResult>, EntryError> {
        let stop = |source| EntryError::Stop(StopReason::UnknownEntry { index, source });
        let mut mutations = Mutations::decode(data).map_err(stop)?;
        live.state.clock = live.state.clock.max(mutations.clock());
        self.sweep_records(live);
        let mut answers = Vec::new();
        while let Some(mutation) = mutations.next_mutation().map_err(stop)? {
            let answer = self.apply_mutation(live, mutation)?;
            if answers_wanted {
                answers.push(answer);
            }
        }
        Ok(answers)
    }

    fn apply_mutation(&mut self, live: &mut Live, mutation: Mutation) -> Result<MutationResult, EntryError> {
        match mutation {
            Mutation::Put { key, value, ttl, condition } => self.put(live, key, &value, ttl, &condition),
            Mutation::Expire { key } => self.expire(live, key),
            Mutation::Delete { key, condition } => self.delete(live, key, &condition),
            Mutation::Increment { key, by, condition } => self.increment(live, key, by, &condition),
            Mutation::Idempotent { id, fingerprint, mutation } => {
                if let Some(answer) = Self::first_answer(live, id, fingerprint) {
                    return Ok(answer);
                }
                let answer = self.apply_mutation(live, *mutation)?;
                self.record(live, id, fingerprint, answer);
                Ok(answer)
            }
        }
    }
}
