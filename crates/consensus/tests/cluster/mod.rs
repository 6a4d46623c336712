//! Several replicas of one group in one thread: a network that can be cut, disks that can stall, and
//! stores that keep what was applied. Everything happens in a fixed order.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use bytes::{Bytes, BytesMut};
use flotilla_consensus::{Group, GroupConfig, Message, RaftRole, Ready, Restored, SnapshotMeta};
use flotilla_types::wire::Reader;
use flotilla_types::{Entry, EntryKind, HardState, LogIndex, Member, Membership, MembershipChange, NodeId, ReplicaId, Rng, Term};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

/// What the scripts' numbers of ticks are reckoned by.
pub const HEARTBEAT_TICKS: usize = 5;
/// Where every group is born: never at an empty log, so that a new replica begins from a snapshot.
pub const BIRTH: (LogIndex, Term) = (LogIndex(1), Term(1));

/// What survives a restart.
#[derive(Default)]
pub struct Disk {
    pub hard_state: HardState,
    pub start: (LogIndex, Term),
    pub entries: Vec<Entry>,
    pub applied: LogIndex,
    pub membership: Membership,
    pub values: Vec<String>,
}

pub struct Replica {
    pub group: Group,
    pub disk: Disk,
    /// Taken and not yet on disk, while the disk is stalled.
    pub waiting: VecDeque<Ready>,
    pub stalled: bool,
}

#[derive(Default)]
pub struct Cluster {
    pub replicas: BTreeMap<u64, Replica>,
    pub network: VecDeque<(u64, u64, Bytes)>,
    pub cut: BTreeSet<u64>,
    /// The rows of snapshots on their way, by receiver and index.
    pub rows: BTreeMap<(u64, LogIndex), Vec<String>>,
    /// What happened, for scripts.
    pub trace: String,
    pub seed: u64,
}

pub fn member(id: u64) -> Member {
    Member { replica: ReplicaId(id), node: NodeId(id + 100) }
}

pub fn membership(voters: &[u64], learners: &[u64]) -> Membership {
    let mut membership = Membership::of_voters(voters.iter().map(|id| member(*id)));
    membership.learners = learners.iter().map(|id| (ReplicaId(*id), NodeId(id + 100))).collect();
    membership
}

pub fn open(id: u64, disk: &Disk, seed: u64) -> Group {
    let restored = Restored {
        hard_state: disk.hard_state,
        membership: disk.membership.clone(),
        applied: disk.applied,
        start: disk.start,
        entries: disk.entries.clone(),
    };
    let config = GroupConfig { replica: ReplicaId(id), heartbeat_ticks: HEARTBEAT_TICKS, ..GroupConfig::default() };
    Group::new(config, restored, Rng::new(seed * 1000 + id)).expect("the disk is sound")
}

impl Cluster {
    pub fn new(voters: &[u64], learners: &[u64]) -> Cluster {
        let mut cluster = Cluster::default();
        for id in voters.iter().chain(learners) {
            let disk = Disk { start: BIRTH, applied: BIRTH.0, membership: membership(voters, learners), ..Disk::default() };
            cluster.add(*id, disk);
        }
        cluster
    }

    pub fn add(&mut self, id: u64, disk: Disk) {
        let group = open(id, &disk, self.seed);
        self.replicas.insert(id, Replica { group, disk, waiting: VecDeque::new(), stalled: false });
    }

    pub fn restart(&mut self, id: u64) {
        let replica = self.replicas.remove(&id).expect("it exists");
        self.add(id, replica.disk);
    }

    pub fn replica(&mut self, id: u64) -> &mut Replica {
        self.replicas.get_mut(&id).expect("it exists")
    }

    pub fn group(&mut self, id: u64) -> &mut Group {
        &mut self.replica(id).group
    }

    /// Takes all there is to do of all replicas and does it.
    pub fn work(&mut self) {
        for id in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.work_of(id);
        }
    }

    fn work_of(&mut self, id: u64) {
        for to in self.group(id).snapshots_wanted() {
            let Replica { group, disk, .. } = &self.replicas[&id];
            let term = group.term_at(disk.applied).expect("an applied entry has a term, also right after its purge");
            let meta = SnapshotMeta { index: disk.applied, term, membership: disk.membership.clone() };
            let rows = disk.values.clone();
            if self.group(id).offer_snapshot(to, &meta) {
                self.rows.insert((to.0, meta.index), rows);
            }
        }
        while let Some(mut ready) = self.group(id).take_ready() {
            self.send(id, std::mem::take(&mut ready.send_now));
            self.replica(id).waiting.push_back(ready);
            if !self.replica(id).stalled {
                self.persist(id);
            }
        }
    }

    /// Writes what waits for the disk, in order.
    pub fn persist(&mut self, id: u64) {
        while let Some(ready) = self.replica(id).waiting.pop_front() {
            self.persist_one(id, ready);
        }
    }

    pub fn persist_one(&mut self, id: u64, ready: Ready) {
        if let Some(meta) = &ready.snapshot {
            let values = self.rows.remove(&(id, meta.index)).expect("the rows came with the snapshot");
            let disk = &mut self.replica(id).disk;
            (disk.start, disk.applied) = ((meta.index, meta.term), meta.index);
            (disk.membership, disk.values) = (meta.membership.clone(), values);
            disk.entries.clear();
            writeln!(self.trace, "n{id} installed snapshot {}", meta.index).expect("strings grow");
            for (other, replica) in &mut self.replicas {
                if *other != id {
                    replica.group.report_snapshot(ReplicaId(id), true);
                }
            }
        }
        let replica = self.replica(id);
        if let Some(first) = ready.entries.first() {
            replica.disk.entries.retain(|entry| entry.index < first.index);
            replica.disk.entries.extend(ready.entries.iter().cloned());
        }
        replica.disk.hard_state = ready.hard_state.unwrap_or(replica.disk.hard_state);
        replica.group.on_persisted(ready.number);
        self.send(id, ready.send_when_persisted);
        self.apply(id, ready.committed);
    }

    fn apply(&mut self, id: u64, committed: Vec<Entry>) {
        let mut trace = String::new();
        let Replica { group, disk, .. } = self.replica(id);
        for entry in committed {
            assert_eq!(entry.index, disk.applied.next(), "entries are applied one by one");
            disk.applied = entry.index;
            let what = match entry.kind {
                EntryKind::Membership => {
                    let change = MembershipChange::decode(entry.data).expect("a change");
                    disk.membership = group.apply_membership(&change);
                    show(&disk.membership)
                }
                EntryKind::Normal if entry.data.is_empty() => "nothing".to_owned(),
                EntryKind::Normal => {
                    let value = String::from_utf8_lossy(&entry.data).into_owned();
                    disk.values.push(value.clone());
                    value
                }
            };
            writeln!(trace, "n{id} applied {} {} {what}", entry.index, entry.term).expect("strings grow");
            group.on_applied(entry.index);
        }
        self.trace += &trace;
    }

    fn send(&mut self, from: u64, messages: Vec<Message>) {
        for message in messages {
            let mut bytes = BytesMut::new();
            message.encode(&mut bytes);
            assert!(bytes.len() <= message.encoded_bytes_max(), "the bound on the length holds");
            self.network.push_back((from, message.to().0, bytes.freeze()));
        }
    }

    /// Delivers what is on the network now, not what that leads to.
    pub fn deliver(&mut self) {
        for (from, to, bytes) in std::mem::take(&mut self.network) {
            let mut reader = Reader::new(bytes);
            let message = Message::decode(&mut reader).expect("our own encoding");
            reader.finish().expect("one message");
            let lost = self.cut.contains(&from) || self.cut.contains(&to) || !self.replicas.contains_key(&to);
            let lost_mark = if lost { " lost" } else { "" };
            writeln!(self.trace, "n{from} → n{to} {}{lost_mark}", describe(&message)).expect("strings grow");
            if !lost {
                if let Err(error) = self.group(to).step(message) {
                    writeln!(self.trace, "n{to} refused: {error}").expect("strings grow");
                }
            } else if message.is_snapshot() {
                self.group(from).report_snapshot(ReplicaId(to), false);
            }
        }
    }

    /// Works and delivers until nothing more happens.
    pub fn settle(&mut self) {
        self.work();
        while !self.network.is_empty() {
            self.deliver();
            self.work();
        }
    }

    pub fn leader(&self) -> Option<u64> {
        self.replicas.iter().filter(|(_, r)| r.group.role() == RaftRole::Leader).max_by_key(|(_, r)| r.group.term()).map(|(id, _)| *id)
    }

    pub fn status(&self) -> String {
        let mut text = String::new();
        for (id, Replica { group, disk, .. }) in &self.replicas {
            let role = format!("{:?}", group.role()).to_lowercase();
            let leader = group.leader().map_or("-".to_owned(), |leader| format!("n{}", leader.0));
            let (term, commit, last) = (group.term(), group.commit(), group.last_index());
            let values = disk.values.join(",");
            writeln!(
                text,
                "n{id} {role} {term} leader={leader} commit={commit} last={last} values=[{values}] {}",
                show(group.membership())
            )
            .expect("strings grow");
        }
        text
    }
}

pub fn show(membership: &Membership) -> String {
    let list = |half: &BTreeMap<ReplicaId, NodeId>| half.keys().map(|r| format!("n{}", r.0)).collect::<Vec<_>>().join(" ");
    let mut text = format!("voters=({})", list(&membership.voters));
    for (name, half) in [("outgoing", &membership.outgoing), ("learners", &membership.learners), ("next", &membership.learners_next)] {
        if !half.is_empty() {
            write!(text, " {name}=({})", list(half)).expect("strings grow");
        }
    }
    text
}

fn describe(message: &Message) -> String {
    let mut text = format!("{:?} {}", message.kind(), message.term());
    if message.entry_count() > 0 {
        write!(text, " entries={}", message.entry_count()).expect("strings grow");
    }
    if let Some(meta) = message.snapshot_meta() {
        write!(text, " {} {}", meta.index, show(&meta.membership)).expect("strings grow");
    }
    text
}
