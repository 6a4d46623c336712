//! A machine: its disks, its clocks, and the process on it, which is the node as `server` would run
//! it: the loop, the log thread and the apply thread, each with its queue.

use crate::clock::Clock;
use crate::history::Moment;
use flotilla_node::boot::Identity;
use flotilla_node::effect::LogJob;
use flotilla_node::{Event, Node, StoreEvent, StoreJob, StoreWorker};
use flotilla_storage::disk::SimulatedDisk;
use flotilla_storage::log::RaftLog;
use flotilla_storage::store::SimulatedStore;
use flotilla_types::NodeId;
use std::collections::{BTreeSet, VecDeque};

/// A machine.
pub struct Host {
    /// The stable name of its node.
    pub name: String,
    /// The disk of its Raft log.
    pub disk: SimulatedDisk,
    /// The disk of its state store.
    pub store: SimulatedStore,
    /// Its clocks.
    pub clock: Clock,
    /// What runs on it.
    pub process: Option<Process>,
    /// Counts processes: what was planned for an earlier one is void.
    pub life: u64,
    /// It stands still until then.
    pub paused_until: Moment,
    /// Its log thread is slowed until then, by this factor.
    pub slow_disk: (Moment, u64),
    /// Its apply thread is slowed until then, by this factor.
    pub slow_store: (Moment, u64),
    /// Whether it has been switched on for the first time.
    pub exists: bool,
    /// Its data-dir is new in place of a lost one: it joins with `replace`.
    pub replaces: bool,
    /// With a fault planted: the id that the new data-dir takes over from the lost one.
    pub kept_id: Option<NodeId>,
    /// A bit was flipped on its disk, so that its log may refuse to open.
    pub damaged: bool,
}

/// The process on a machine.
#[expect(clippy::large_enum_variant, reason = "a handful of machines, each running for most of the time")]
pub enum Process {
    /// It asks to be taken in.
    Joining {
        /// Who it is.
        identity: Identity,
        /// Its log, which holds nothing but that.
        log: Box<RaftLog<SimulatedDisk>>,
    },
    /// It is a node.
    Running(Box<Running>),
}

/// A running node.
pub struct Running {
    /// The machine under test.
    pub node: Node,
    /// Its id.
    pub id: NodeId,
    /// The loop's inbox.
    pub inbox: Vec<Event>,
    /// A turn of the loop is planned.
    pub turn_planned: bool,
    /// The timer that is planned.
    pub timer_planned: Moment,
    /// The log thread's log.
    pub log: RaftLog<SimulatedDisk>,
    /// What waits for the log thread.
    pub log_queue: VecDeque<LogJob>,
    /// What the log thread is at: last number, whether to sync. Written, not yet synced.
    pub log_busy: Option<(u64, bool)>,
    /// The apply thread's work.
    pub worker: StoreWorker<SimulatedStore>,
    /// What waits for the apply thread.
    pub store_queue: VecDeque<StoreJob>,
    /// What the apply thread is at.
    pub store_busy: Option<StoreJob>,
    /// Peers it wants links with, by the number of the machine it was told.
    pub peers: Vec<(NodeId, usize)>,
    /// Nodes that it knows to be members no more.
    pub removed: BTreeSet<NodeId>,
    /// Elections won, as last looked at.
    pub elections_won: u64,
    /// Scrubs in which all took part and agreed, likewise.
    pub scrubs_whole: u64,
}

impl Host {
    /// The running node.
    pub fn running(&mut self) -> Option<&mut Running> {
        match &mut self.process {
            Some(Process::Running(running)) => Some(running),
            _ => None,
        }
    }

    /// The running node's id.
    pub fn node_id(&self) -> Option<NodeId> {
        match &self.process {
            Some(Process::Running(running)) => Some(running.id),
            _ => None,
        }
    }
}

impl Running {
    /// What the apply thread's last job came to.
    pub fn finish_store_job(&mut self) -> Vec<StoreEvent> {
        let Some(job) = self.store_busy.take() else { return Vec::new() };
        let event = self.worker.run(job);
        event.into_iter().chain(self.worker.take_damage()).collect()
    }
}
