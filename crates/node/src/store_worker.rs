//! Runs store jobs one after the other, on the apply thread of the server or inline in the
//! simulation. All of a node's writes to its store go through here.

use crate::effect::{ReadJob, StoreJob};
use crate::event::{SnapshotRead, StoreEvent};
use crate::request::{Failure, FailureReason, Reply};
use crate::state_machine::{Applier, ApplyError, ApplyJob, InstallError, ReplicaState, SnapshotReader, StateMachineFaults, read};
use flotilla_storage::log::{Damage, Recovered, RecoveredReplica};
use flotilla_storage::store::layout::RowKind;
use flotilla_storage::store::{StateStore, StoreError};
use flotilla_types::{HardState, LogIndex, PlantedFault, ReplicaKey, Term};
use std::collections::BTreeMap;

/// Rows of dead generations deleted by one sweep job.
const SWEEP_ROWS: usize = 2000;

/// The apply thread's work, without the thread.
#[derive(Debug)]
pub struct StoreWorker<S: StateStore> {
    applier: Applier<S>,
    /// Views of snapshots being sent.
    sending: BTreeMap<u64, SnapshotReader<S::View>>,
    /// A planted fault.
    table_not_in_snapshot: bool,
    /// Found while doing a job, to be told besides what came of it.
    damage: Option<StoreEvent>,
}

impl<S: StateStore> StoreWorker<S> {
    /// Takes the store up. Gives the state of every replica in it; one whose own state cannot be
    /// read is not among them (its rows are swept when it is re-seeded).
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn open(store: S, fault: Option<PlantedFault>) -> Result<(StoreWorker<S>, BTreeMap<ReplicaKey, ReplicaState>), ApplyError> {
        let faults = StateMachineFaults {
            apply_twice_after_restart: fault == Some(PlantedFault::ApplyTwiceAfterRestart),
            snapshot_switched_before_durable: fault == Some(PlantedFault::SnapshotSwitchedBeforeDurable),
            table_not_in_snapshot: fault == Some(PlantedFault::TableNotInSnapshot),
            ..StateMachineFaults::default()
        };
        let (applier, states) = Applier::open(store, faults)?;
        Ok((StoreWorker { applier, sending: BTreeMap::new(), table_not_in_snapshot: faults.table_not_in_snapshot, damage: None }, states))
    }

    /// The store underneath, for reads.
    pub fn store(&self) -> &S {
        self.applier.store()
    }

    /// Marks the replicas whose state could not be read as lost, so that the node re-seeds them.
    pub fn mark_damaged(&self, recovered: &mut Recovered) {
        for (key, detail) in self.applier.damaged() {
            let replica = recovered.replicas.entry(*key).or_insert_with(|| RecoveredReplica {
                hard_state: HardState::default(),
                start: (LogIndex(0), Term(0)),
                entries: Vec::new(),
                install: None,
                is_lost: true,
            });
            replica.is_lost = true;
            recovered.damage.push(Damage { replicas: vec![*key], file: "store".to_owned(), offset: 0, reason: detail.clone() });
        }
    }

    /// Damage that the last job met without failing.
    pub fn take_damage(&mut self) -> Option<StoreEvent> {
        self.damage.take()
    }

    /// Does one job; gives what the node is to be told.
    pub fn run(&mut self, job: StoreJob) -> Option<StoreEvent> {
        match self.try_run(job) {
            Ok(event) => event,
            Err(error) => Some(StoreEvent::Failed { replica: None, disk_full: is_disk_full(&error), detail: describe(&error) }),
        }
    }

    fn try_run(&mut self, job: StoreJob) -> Result<Option<StoreEvent>, ApplyError> {
        Ok(match job {
            StoreJob::Apply(groups) => Some(StoreEvent::Applied(self.applier.apply(ApplyJob { groups })?)),
            StoreJob::Persist => Some(StoreEvent::Persisted(self.applier.persist()?)),
            StoreJob::Create { replica, state } => {
                self.applier.create(replica, *state)?;
                None
            }
            StoreJob::Rebirth(job) => {
                let replica = job.to;
                Some(StoreEvent::Reborn { replica, state: self.applier.rebirth(*job)?.map(Box::new) })
            }
            StoreJob::Destroy { replica } => {
                self.applier.destroy(replica)?;
                Some(StoreEvent::Destroyed { replica })
            }
            StoreJob::ReadSnapshot { transfer, replica, first, bytes_max } => {
                Some(StoreEvent::SnapshotChunk { transfer, chunk: self.read_snapshot(transfer, replica, first, bytes_max)? })
            }
            StoreJob::CloseSnapshot { transfer } => {
                self.sending.remove(&transfer);
                None
            }
            StoreJob::InstallRows { replica, generation, first, chunk } => {
                let begun = if first { self.applier.begin_install(replica, generation) } else { Ok(()) };
                let accepted = accepted(begun.and_then(|()| self.applier.install_rows(replica, generation, chunk)))?.is_some();
                Some(StoreEvent::SnapshotRows { replica, generation, accepted })
            }
            StoreJob::FinishInstall { replica, generation, state } => {
                let state = accepted(self.applier.finish_install(replica, generation, *state))?.map(Box::new);
                Some(StoreEvent::SnapshotInstalled { replica, generation, state })
            }
            StoreJob::AbortInstall { replica, generation } => {
                self.applier.abort_install(replica, generation);
                None
            }
            StoreJob::Scrub { replica, index, bytes_max } => {
                let step = self.applier.scrub(replica, index, bytes_max)?;
                Some(StoreEvent::Scrubbed { replica, index, step })
            }
            StoreJob::CloseScrub { replica } => {
                self.applier.close_scrub(replica);
                None
            }
            StoreJob::FindExpired { replica, clock } => {
                let found = self.applier.find_expired(replica, clock)?;
                Some(StoreEvent::ExpiredFound { replica, found })
            }
            StoreJob::Sweep => {
                self.applier.sweep(SWEEP_ROWS)?;
                None
            }
        })
    }

    fn read_snapshot(
        &mut self,
        transfer: u64,
        replica: ReplicaKey,
        first: bool,
        bytes_max: usize,
    ) -> Result<Option<SnapshotRead>, ApplyError> {
        if first {
            let Some(mut reader) = SnapshotReader::open(self.applier.store().view()?, replica)? else { return Ok(None) };
            if self.table_not_in_snapshot {
                reader.leave_out(RowKind::Idempotency);
            }
            self.sending.insert(transfer, reader);
        }
        let Some(reader) = self.sending.get_mut(&transfer) else { return Ok(None) };
        let chunk = match reader.next_chunk(bytes_max) {
            Ok(chunk) => chunk,
            // Damage is not passed on.
            Err(StoreError::Damaged(detail)) => {
                self.damage = Some(StoreEvent::Damaged { replica, detail });
                None
            }
            Err(error) => return Err(error.into()),
        };
        let Some(bytes) = chunk else {
            self.sending.remove(&transfer);
            return Ok(None);
        };
        Ok(Some(SnapshotRead { group: replica.group, state: reader.state().clone(), bytes, last: reader.is_finished() }))
    }
}

/// A refused chunk is an ordinary answer (`None`); a failed store is not.
fn accepted<T>(result: Result<T, InstallError>) -> Result<Option<T>, ApplyError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(InstallError::Apply(error)) => Err(error),
        Err(InstallError::Refused { .. } | InstallError::NotUnderWay { .. }) => Ok(None),
    }
}

fn is_disk_full(error: &ApplyError) -> bool {
    matches!(error, ApplyError::Store(StoreError::DiskFull(_)))
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Runs a point read, on any thread. What the node must be told besides: that rows are damaged.
pub fn run_read<S: StateStore>(store: &S, job: &ReadJob) -> (Reply, Option<StoreEvent>) {
    let mut damage = None;
    let reply = read_reply(store, job, &mut damage);
    (reply, damage)
}

fn read_reply<S: StateStore>(store: &S, job: &ReadJob, damage: &mut Option<StoreEvent>) -> Reply {
    let found = read::get(store, job.replica, job.filing, &job.key);
    // What is missing may have been swept, if a snapshot or a move has overtaken this read.
    if !matches!(found, Ok(Some(_))) && matches!(read::is_in_force(store, job.replica, job.filing.generation), Ok(false)) {
        let detail = "the shard's replica on this node was replaced or moved away: ask again";
        return Reply::Failed(Failure::not_applied(FailureReason::NoQuorum, detail));
    }
    let reply = match found {
        Ok(Some((version, value))) => Reply::Value { version, value },
        Ok(None) => Reply::Absent,
        Err(error) => {
            let detail = format!("reading {} from {}: {}", job.key, job.replica, describe(&error));
            if let read::ReadError::Store(StoreError::Damaged(_)) = error {
                *damage = Some(StoreEvent::Damaged { replica: job.replica, detail: detail.clone() });
            }
            return Reply::Failed(Failure::not_applied(FailureReason::Damaged, detail));
        }
    };
    match job.lag_ms {
        Some(lag_ms) => Reply::Stale { lag_ms, reply: Box::new(reply) },
        None => reply,
    }
}
