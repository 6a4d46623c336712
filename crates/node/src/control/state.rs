//! The control group's state machine: deterministic, a function of its commands alone.
//!
//! It stores what is *wanted*. A replica that is no longer wanted stays listed as `leaving` until its
//! group's leader has reported a configuration without it: only then is it [`Standing::Removed`], and
//! only then may a node delete its rows. So a voter is never told that it is gone while it still
//! counts, and a leaving replica that is wanted again keeps its id, since it cannot have been deleted.
//!
//! Rows are never deleted (a removed node stays as such), and each carries the epoch of its last
//! change, so that a pushed copy is brought up to date by the rows above its epoch.
//!
//! Left out: what is observed (up, down, leaders, progress). That is reported, changes all the time
//! and is not worth a log entry.

use super::command::{ControlAnswer, ControlCommand, Refusal};
use super::row::RowKey;
use flotilla_types::{ClusterId, GroupId, Member, NodeId, ReplicaId, ReplicaKey, Role};
use std::collections::{BTreeMap, BTreeSet};

/// What each node sends of snapshots in a second unless told otherwise.
pub const MOVE_BYTES_PER_SECOND: u64 = 64 << 20;

/// What the control group agrees on. Invariants, kept by [`ControlState::apply`]:
/// - groups 0 to `shards_total` exist from the start, each with at least one voter;
/// - within a group no two wanted members share a node or an id;
/// - every replica id given is below `next_replica`, and none is given twice;
/// - no two nodes that are not removed share a name;
/// - no row's epoch is above `epoch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlState {
    /// The cluster.
    pub cluster: ClusterId,
    /// How many shards there are; fixed at birth.
    pub shards_total: u32,
    /// How many copies of each shard are wanted once there are nodes enough.
    pub replicas_wanted: u32,
    /// The format that may be proposed and sent; every member speaks it (decision 13).
    pub format_level: u32,
    /// Raised by each command that changed something.
    pub epoch: u64,
    /// Whether replicas are moved for the sake of balance.
    pub rebalancing: Rebalancing,
    /// How many bytes of snapshots each node sends in a second; 0: as many as it can.
    pub move_bytes_per_second: u64,
    /// All nodes there ever were.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// All groups, the control group itself included.
    pub groups: BTreeMap<GroupId, GroupRecord>,
    /// The next replica id to give.
    pub next_replica: u64,
}

/// What a node says of itself when it joins and after each restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeProfile {
    /// Stable and unique among nodes that are not removed.
    pub name: String,
    /// HOST:PORT of its HTTP door.
    pub http: Option<String>,
    /// HOST:PORT for other nodes.
    pub peer: String,
    /// HOST:PORT of its RESP door.
    pub resp: Option<String>,
    /// Replicas of one group are spread over zones.
    pub zone: String,
    /// Its share of the replicas, relative to other nodes; 0 holds none.
    pub weight: u32,
    /// The formats it speaks.
    pub formats: Formats,
}

/// A range of formats, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    /// The oldest.
    pub min: u32,
    /// The newest.
    pub max: u32,
}

/// A node as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// The state's epoch when this record last changed.
    pub epoch: u64,
    /// What it said of itself.
    pub profile: NodeProfile,
    /// What the cluster wants of it.
    pub state: NodeState,
}

/// What the cluster wants of a node. Whether it is up is observed, not agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Holds its share.
    Active,
    /// Its replicas are to go elsewhere; it stays a member.
    Draining,
    /// The same, and it is removed once it holds nothing any more.
    Leaving,
    /// No member any more, for ever.
    Removed,
}

/// Whether replicas are moved for the sake of balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebalancing {
    /// Yes.
    On,
    /// No new moves; those under way go on.
    Paused,
}

/// On what ground a node is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It was drained: refused while it holds a replica.
    Drained,
    /// It is dead: whoever asks vouches that it never comes back. Its replicas are replaced afterwards.
    Dead,
}

/// Where a group's replicas are wanted. Raft's own configuration says where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRecord {
    /// The state's epoch when this record last changed.
    pub epoch: u64,
    /// The voters, in the order of their nodes.
    pub voters: Vec<Member>,
    /// The learners, in the order of their nodes.
    pub learners: Vec<Member>,
    /// No longer wanted, but not yet known to be out of Raft's configuration.
    pub leaving: Vec<Member>,
    /// The same, but damaged: replaced under another id and never wanted again.
    pub lost: Vec<Member>,
    /// The node that should lead, so that leaders are spread evenly.
    pub preferred_leader: Option<NodeId>,
    /// Set by a recovery, until the group's leader has reported.
    pub rebirth: Option<Rebirth>,
}

/// How a group that lost its quorum goes on (decision record 0017): one of its voters is made anew, alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebirth {
    /// The voter that it begins with.
    pub voter: ReplicaId,
    /// The replica on the same node that it is made of; `None`: no copy was left, it begins empty.
    pub from: Option<ReplicaId>,
}

/// What the control group says about one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It should exist, in this role.
    Wanted(Role),
    /// It is to go, but may still count in its group: it must go on and keep its data.
    Leaving,
    /// It is out for ever: it leaves a tombstone, never votes again, and its rows may be deleted.
    Removed,
    /// This copy of the control state has never heard of it, perhaps because it is behind: ask again.
    Unknown,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The answer to whoever proposed it.
    pub answer: ControlAnswer,
    /// The rows that changed and must be written; empty if nothing did.
    pub rows: Vec<RowKey>,
}

impl ControlState {
    /// The state of a cluster's first moment: one node, which holds a lone voter of every group.
    /// Replica ids are given in the order of the groups, from 1.
    ///
    /// # Panics
    /// If there are no shards or no replicas wanted.
    pub fn genesis(cluster: ClusterId, node: NodeId, profile: NodeProfile, shards: u32, replicas: u32) -> ControlState {
        assert!(shards > 0 && replicas > 0, "a cluster has shards and each has a replica");
        let format_level = profile.formats.max;
        let epoch = 1;
        let group = |number: u32| {
            let voter = Member { replica: ReplicaId(u64::from(number) + 1), node };
            let record = GroupRecord {
                epoch,
                voters: vec![voter],
                learners: vec![],
                leaving: vec![],
                lost: vec![],
                preferred_leader: Some(node),
                rebirth: None,
            };
            (GroupId(number), record)
        };
        ControlState {
            cluster,
            shards_total: shards,
            replicas_wanted: replicas,
            format_level,
            epoch,
            rebalancing: Rebalancing::On,
            move_bytes_per_second: MOVE_BYTES_PER_SECOND,
            nodes: BTreeMap::from([(node, NodeRecord { epoch, profile, state: NodeState::Active })]),
            groups: (0..=shards).map(group).collect(),
            next_replica: u64::from(shards) + 2,
        }
    }

    /// Applies a committed command. Refusals are answers: every replica comes to the same.
    pub fn apply(&mut self, command: &ControlCommand) -> Applied {
        let mut rows = Vec::new();
        let result = match command {
            ControlCommand::AddNode { node, profile, replaces } => self.apply_add_node(*node, profile, *replaces, &mut rows),
            ControlCommand::UpdateNode { node, profile } => self.apply_update_node(*node, profile, &mut rows),
            ControlCommand::DrainNode { node } => self.apply_node_state(*node, NodeState::Draining, &mut rows),
            ControlCommand::ActivateNode { node } => self.apply_node_state(*node, NodeState::Active, &mut rows),
            ControlCommand::LeaveNode { node } => self.apply_node_state(*node, NodeState::Leaving, &mut rows),
            ControlCommand::RemoveNode { node, removal } => self.apply_remove_node(*node, *removal, &mut rows),
            ControlCommand::SetGroup { group, expected_epoch, voters, learners, preferred_leader } => {
                self.apply_set_group(*group, *expected_epoch, voters, learners, *preferred_leader, &mut rows)
            }
            ControlCommand::ReseedReplica { group, replica } => self.apply_reseed(*group, *replica, &mut rows),
            ControlCommand::ConfirmLeft { group, expected_epoch, replicas } => {
                self.apply_confirm_left(*group, *expected_epoch, replicas, &mut rows)
            }
            ControlCommand::RaiseFormat { level } => self.apply_raise_format(*level, &mut rows),
            ControlCommand::SetRebalancing { rebalancing } => Ok(self.apply_rebalancing(*rebalancing, &mut rows)),
            ControlCommand::SetMoveRate { bytes_per_second } => Ok(self.apply_move_rate(*bytes_per_second, &mut rows)),
            ControlCommand::Recover(recovery) => self.apply_recovery(recovery, &mut rows),
        };
        let answer = result.unwrap_or_else(ControlAnswer::Refused);
        if !rows.is_empty() {
            assert!(
                !matches!(answer, ControlAnswer::Unchanged | ControlAnswer::Refused(_)),
                "{command:?} changed {rows:?}, says {answer:?}"
            );
            self.epoch += 1;
            for row in &rows {
                self.stamp(*row);
            }
            if !rows.contains(&RowKey::Header) {
                rows.push(RowKey::Header);
            }
        }
        Applied { answer, rows }
    }

    fn stamp(&mut self, row: RowKey) {
        match row {
            RowKey::Header => {}
            RowKey::Node(node) => self.nodes.get_mut(&node).expect("a changed node exists").epoch = self.epoch,
            RowKey::Group(group) => self.groups.get_mut(&group).expect("a changed group exists").epoch = self.epoch,
        }
    }

    /// A join is keyed by the joiner's id: asked again it gets the same answer.
    fn apply_add_node(
        &mut self,
        node: NodeId,
        profile: &NodeProfile,
        replaces: Option<NodeId>,
        rows: &mut Vec<RowKey>,
    ) -> Result<ControlAnswer, Refusal> {
        if let Some(record) = self.nodes.get(&node) {
            if record.state == NodeState::Removed {
                return Err(Refusal::NodeRemoved { node });
            }
            self.check_profile(node, profile, None)?;
            if record.profile != *profile {
                self.update_profile(node, profile, rows);
            }
            return Ok(ControlAnswer::NodeAdded { node });
        }
        self.check_profile(node, profile, replaces)?;
        if let Some(dead) = replaces
            && let Some(record) = self.nodes.get_mut(&dead)
            && record.state != NodeState::Removed
        {
            record.state = NodeState::Removed;
            rows.push(RowKey::Node(dead));
        }
        self.nodes.insert(node, NodeRecord { epoch: 0, profile: profile.clone(), state: NodeState::Active });
        rows.push(RowKey::Node(node));
        Ok(ControlAnswer::NodeAdded { node })
    }

    fn apply_update_node(&mut self, node: NodeId, profile: &NodeProfile, rows: &mut Vec<RowKey>) -> Result<ControlAnswer, Refusal> {
        let record = self.member(node)?;
        if record.profile == *profile {
            return Ok(ControlAnswer::Unchanged);
        }
        self.check_profile(node, profile, None)?;
        self.update_profile(node, profile, rows);
        Ok(ControlAnswer::NodeUpdated { node })
    }

    fn update_profile(&mut self, node: NodeId, profile: &NodeProfile, rows: &mut Vec<RowKey>) {
        self.nodes.get_mut(&node).expect("looked up by the caller").profile = profile.clone();
        rows.push(RowKey::Node(node));
    }

    /// Whether a node may be a member under this profile. `replaces`: the holder of the name that is to go.
    fn check_profile(&self, node: NodeId, profile: &NodeProfile, replaces: Option<NodeId>) -> Result<(), Refusal> {
        if let Some((holder, record)) = self.node_by_name(&profile.name)
            && holder != node
            && replaces != Some(holder)
        {
            return Err(Refusal::NameTaken { holder, holder_state: record.state });
        }
        if let Some(replaced) = replaces {
            let record = self.nodes.get(&replaced).ok_or(Refusal::UnknownNode { node: replaced })?;
            if record.profile.name != profile.name {
                return Err(Refusal::NotTheHolder { node: replaced });
            }
        }
        if profile.formats.min > self.format_level || profile.formats.max < self.format_level {
            return Err(Refusal::FormatNotSpoken { node, level: self.format_level });
        }
        Ok(())
    }

    fn apply_node_state(&mut self, node: NodeId, state: NodeState, rows: &mut Vec<RowKey>) -> Result<ControlAnswer, Refusal> {
        if self.member(node)?.state == state {
            return Ok(ControlAnswer::Unchanged);
        }
        self.nodes.get_mut(&node).expect("just found").state = state;
        rows.push(RowKey::Node(node));
        Ok(ControlAnswer::NodeUpdated { node })
    }

    fn apply_remove_node(&mut self, node: NodeId, removal: Removal, rows: &mut Vec<RowKey>) -> Result<ControlAnswer, Refusal> {
        let record = self.nodes.get(&node).ok_or(Refusal::UnknownNode { node })?;
        if record.state == NodeState::Removed {
            return Ok(ControlAnswer::Unchanged);
        }
        if removal == Removal::Drained {
            let count = self.replicas_on(node).count() as u64;
            if count > 0 {
                return Err(Refusal::StillHoldsReplicas { node, count });
            }
        }
        self.nodes.get_mut(&node).expect("just found").state = NodeState::Removed;
        rows.push(RowKey::Node(node));
        Ok(ControlAnswer::NodeUpdated { node })
    }

    fn apply_set_group(
        &mut self,
        group: GroupId,
        expected_epoch: u64,
        voters: &[NodeId],
        learners: &[NodeId],
        preferred_leader: Option<NodeId>,
        rows: &mut Vec<RowKey>,
    ) -> Result<ControlAnswer, Refusal> {
        let record = self.groups.get(&group).ok_or(Refusal::UnknownGroup { group })?;
        if record.epoch != expected_epoch {
            return Err(Refusal::StaleEpoch { group, epoch: record.epoch });
        }
        let nodes: BTreeSet<NodeId> = voters.iter().chain(learners).copied().collect();
        if voters.is_empty() || nodes.len() != voters.len() + learners.len() || preferred_leader.is_some_and(|l| !voters.contains(&l)) {
            return Err(Refusal::BadMembers { group });
        }
        for node in &nodes {
            // A replica that a removed node still has may stay wanted until it is replaced.
            let state = self.nodes.get(node).ok_or(Refusal::UnknownNode { node: *node })?.state;
            if state == NodeState::Removed && record.wanted_on(*node).is_none() {
                return Err(Refusal::NodeRemoved { node: *node });
            }
        }
        let mut next_replica = self.next_replica;
        let mut member_on = |node: NodeId| {
            let kept = record.wanted_on(node).map(|(m, _)| m).or_else(|| record.leaving.iter().find(|m| m.node == node).copied());
            kept.unwrap_or_else(|| {
                next_replica += 1;
                Member { replica: ReplicaId(next_replica - 1), node }
            })
        };
        let mut wanted = |list: &[NodeId]| -> Vec<Member> {
            let sorted: BTreeSet<NodeId> = list.iter().copied().collect();
            sorted.into_iter().map(&mut member_on).collect()
        };
        let (voters, learners) = (wanted(voters), wanted(learners));
        let kept: BTreeSet<ReplicaId> = voters.iter().chain(&learners).map(|m| m.replica).collect();
        let leaving = record.wanted().chain(&record.leaving).filter(|m| !kept.contains(&m.replica)).copied().collect();
        let changed = GroupRecord {
            epoch: record.epoch,
            voters,
            learners,
            leaving,
            lost: record.lost.clone(),
            preferred_leader,
            rebirth: record.rebirth,
        };
        if changed == *record {
            return Ok(ControlAnswer::Unchanged);
        }
        self.groups.insert(group, changed);
        self.next_replica = next_replica;
        rows.push(RowKey::Group(group));
        Ok(ControlAnswer::GroupSet { group, epoch: self.epoch + 1 })
    }

    fn apply_reseed(&mut self, group: GroupId, replica: ReplicaId, rows: &mut Vec<RowKey>) -> Result<ControlAnswer, Refusal> {
        let next = ReplicaId(self.next_replica);
        let record = self.groups.get_mut(&group).ok_or(Refusal::UnknownGroup { group })?;
        let Some(member) = record.voters.iter_mut().chain(&mut record.learners).find(|m| m.replica == replica) else {
            return Ok(ControlAnswer::Unchanged);
        };
        let damaged = *member;
        member.replica = next;
        record.lost.push(damaged);
        self.next_replica += 1;
        rows.push(RowKey::Group(group));
        Ok(ControlAnswer::GroupSet { group, epoch: self.epoch + 1 })
    }

    fn apply_confirm_left(
        &mut self,
        group: GroupId,
        expected_epoch: u64,
        replicas: &[ReplicaId],
        rows: &mut Vec<RowKey>,
    ) -> Result<ControlAnswer, Refusal> {
        let record = self.groups.get_mut(&group).ok_or(Refusal::UnknownGroup { group })?;
        if record.epoch != expected_epoch {
            return Err(Refusal::StaleEpoch { group, epoch: record.epoch });
        }
        // Whoever reports is born.
        let was_reborn = record.rebirth.take().is_some();
        if !was_reborn && !record.going().any(|m| replicas.contains(&m.replica)) {
            return Ok(ControlAnswer::Unchanged);
        }
        record.leaving.retain(|m| !replicas.contains(&m.replica));
        record.lost.retain(|m| !replicas.contains(&m.replica));
        rows.push(RowKey::Group(group));
        Ok(ControlAnswer::GroupSet { group, epoch: self.epoch + 1 })
    }

    fn apply_raise_format(&mut self, level: u32, rows: &mut Vec<RowKey>) -> Result<ControlAnswer, Refusal> {
        if level <= self.format_level {
            return Ok(ControlAnswer::Unchanged);
        }
        let speaks = |r: &NodeRecord| r.profile.formats.min <= level && level <= r.profile.formats.max;
        if let Some((node, _)) = self.members().find(|(_, record)| !speaks(record)) {
            return Err(Refusal::FormatNotSpoken { node, level });
        }
        self.format_level = level;
        rows.push(RowKey::Header);
        Ok(ControlAnswer::FormatRaised { level })
    }

    fn apply_rebalancing(&mut self, rebalancing: Rebalancing, rows: &mut Vec<RowKey>) -> ControlAnswer {
        if self.rebalancing == rebalancing {
            return ControlAnswer::Unchanged;
        }
        self.rebalancing = rebalancing;
        rows.push(RowKey::Header);
        ControlAnswer::RebalancingSet
    }

    fn apply_move_rate(&mut self, bytes_per_second: u64, rows: &mut Vec<RowKey>) -> ControlAnswer {
        if self.move_bytes_per_second == bytes_per_second {
            return ControlAnswer::Unchanged;
        }
        self.move_bytes_per_second = bytes_per_second;
        rows.push(RowKey::Header);
        ControlAnswer::RebalancingSet
    }

    fn member(&self, node: NodeId) -> Result<&NodeRecord, Refusal> {
        match self.nodes.get(&node) {
            None => Err(Refusal::UnknownNode { node }),
            Some(record) if record.state == NodeState::Removed => Err(Refusal::NodeRemoved { node }),
            Some(record) => Ok(record),
        }
    }

    /// The nodes that are not removed.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &NodeRecord)> {
        self.nodes.iter().filter(|(_, r)| r.state != NodeState::Removed).map(|(n, r)| (*n, r))
    }

    /// The member of this name.
    pub fn node_by_name(&self, name: &str) -> Option<(NodeId, &NodeRecord)> {
        self.members().find(|(_, record)| record.profile.name == name)
    }

    /// A node, removed or not.
    pub fn node_record(&self, node: NodeId) -> Option<&NodeRecord> {
        self.nodes.get(&node)
    }

    /// Where a group's replicas are wanted.
    pub fn group_record(&self, group: GroupId) -> Option<&GroupRecord> {
        self.groups.get(&group)
    }

    /// The nodes that may lead the control group: its wanted voters, and those that have not left it yet, one of which leads it
    /// until the others have caught up.
    pub fn planners(&self) -> BTreeSet<NodeId> {
        let record = self.groups.get(&GroupId::CONTROL);
        record.map(|record| record.voters.iter().chain(record.going()).map(|member| member.node).collect()).unwrap_or_default()
    }

    /// What is to become of a replica. The question of one that has heard no leader for long.
    pub fn standing(&self, key: ReplicaKey) -> Standing {
        let Some(record) = self.groups.get(&key.group) else { return Standing::Unknown };
        match record.role_of(key.replica) {
            Some(role) => Standing::Wanted(role),
            None if record.going().any(|m| m.replica == key.replica) => Standing::Leaving,
            None if key.replica.0 < self.next_replica => Standing::Removed,
            None => Standing::Unknown,
        }
    }

    /// Whether a replica should exist.
    pub fn is_wanted(&self, key: ReplicaKey) -> bool {
        matches!(self.standing(key), Standing::Wanted(_))
    }

    /// Whether a recovery has its node make this replica of what is left there.
    pub fn is_to_be_reborn(&self, key: ReplicaKey) -> bool {
        let rebirth = self.groups.get(&key.group).and_then(|record| record.rebirth);
        rebirth.is_some_and(|rebirth| rebirth.voter == key.replica)
    }

    /// The replicas that are wanted on a node or have not left it yet, in the order of their groups.
    /// Looks at every group.
    pub fn replicas_on(&self, node: NodeId) -> impl Iterator<Item = (ReplicaKey, Standing)> {
        self.groups.iter().flat_map(move |(group, record)| {
            let here = record.all().filter(move |m| m.node == node);
            here.map(|m| {
                let standing = record.role_of(m.replica).map_or(Standing::Leaving, Standing::Wanted);
                (ReplicaKey { group: *group, replica: m.replica }, standing)
            })
        })
    }
}

impl GroupRecord {
    /// The wanted member on a node and its role.
    pub fn wanted_on(&self, node: NodeId) -> Option<(Member, Role)> {
        let voter = self.voters.iter().find(|m| m.node == node).map(|m| (*m, Role::Voter));
        voter.or_else(|| self.learners.iter().find(|m| m.node == node).map(|m| (*m, Role::Learner)))
    }

    /// The role in which a replica is wanted.
    pub fn role_of(&self, replica: ReplicaId) -> Option<Role> {
        if self.voters.iter().any(|m| m.replica == replica) {
            Some(Role::Voter)
        } else if self.learners.iter().any(|m| m.replica == replica) {
            Some(Role::Learner)
        } else {
            None
        }
    }

    /// The wanted members: voters, then learners.
    pub fn wanted(&self) -> impl Iterator<Item = &Member> {
        self.voters.iter().chain(&self.learners)
    }

    /// Those that are to go and are not yet known to be out of Raft's configuration.
    pub fn going(&self) -> impl Iterator<Item = &Member> {
        self.leaving.iter().chain(&self.lost)
    }

    /// The wanted members and those that have not left yet.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.wanted().chain(self.going())
    }
}
