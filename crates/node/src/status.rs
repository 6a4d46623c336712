//! The one read-only view of the cluster that `/v1/cluster`, the command line, the dashboard and the
//! metrics show: plain data, computed once.

use crate::control::{GroupReport, NodeHealth, NodeState, Sending, moves};
use crate::event::Now;
use crate::keyspace;
use crate::node::Node;
use crate::scrub::{ScrubReport, ScrubResult};
use bytes::Bytes;
use flotilla_consensus::RaftRole;
use flotilla_types::{ClusterId, GroupId, Key, LogIndex, Membership, NodeId, ReplicaId, Role, ShardId, Slot, Term};
use serde::Serialize;

/// The whole cluster, as the contract's `GET /v1/cluster` gives it.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Copies wanted of each shard.
    pub replicas_wanted: u32,
    /// Number of shards.
    pub shards_total: u32,
    /// The control group.
    pub control: ControlStatus,
    /// Members, by name.
    pub nodes: Vec<NodeStatus>,
    /// Shards, by id.
    pub shards: Vec<ShardStatus>,
    /// What is under way.
    pub moves: Vec<MoveStatus>,
    /// Which node made this view, and whether it leads the control group (else it may be behind).
    pub seen_by: String,
    /// Whether the view is the control group's leader's.
    pub authoritative: bool,
    /// The state in words, one sentence each; empty if all is well.
    pub health: Vec<String>,
}

/// The control group.
#[derive(Clone, Debug, Serialize)]
pub struct ControlStatus {
    /// Its leader's name.
    pub leader: Option<String>,
    /// Its voters' names.
    pub voters: Vec<String>,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: NodeId,
    /// HOST:PORT of its HTTP API.
    pub http: Option<String>,
    /// HOST:PORT for other nodes.
    pub peer: Option<String>,
    /// HOST:PORT of its Redis door.
    pub resp: Option<String>,
    /// Its failure zone.
    pub zone: String,
    /// up, down, joining, draining or removed.
    pub state: &'static str,
    /// Replicas it holds, the control group's aside.
    pub replicas: u64,
    /// Shards it leads.
    pub leaders: u64,
    /// Bytes of keys and values it holds.
    pub bytes: u64,
}

/// One shard.
#[derive(Clone, Debug, Serialize)]
pub struct ShardStatus {
    /// Its number.
    pub id: ShardId,
    /// Its first and last slot.
    pub slots: [u16; 2],
    /// Its leader's name.
    pub leader: Option<String>,
    /// The leader's term.
    pub term: u64,
    /// Its copies.
    pub replicas: Vec<ReplicaStatus>,
    /// How its rows were compared between its copies; null where its leader's report is not at hand.
    pub scrub: Option<ScrubStatus>,
}

/// The scrubs of one shard, since its present leader leads.
#[derive(Clone, Debug, Serialize)]
pub struct ScrubStatus {
    /// The last one that ended.
    pub last: Option<LastScrubStatus>,
    /// The one under way.
    pub running: Option<ScrubProgress>,
}

/// A scrub that ended.
#[derive(Clone, Debug, Serialize)]
pub struct LastScrubStatus {
    /// The log index at which the rows were compared.
    pub index: u64,
    /// When it ended, in ms since 1970, by the leader's clock.
    pub at_ms: u64,
    /// agreed, incomplete, differed or undecided.
    pub result: &'static str,
    /// How many copies were compared.
    pub copies: u32,
}

/// A scrub under way.
#[derive(Clone, Debug, Serialize)]
pub struct ScrubProgress {
    /// Bytes that the leader has read.
    pub bytes_done: u64,
    /// About how many there are.
    pub bytes_total: u64,
}

/// One copy of a shard.
#[derive(Clone, Debug, Serialize)]
pub struct ReplicaStatus {
    /// The node it is on.
    pub node: String,
    /// voter or learner.
    pub role: &'static str,
}

/// A copy on its way.
#[derive(Clone, Debug, Serialize)]
pub struct MoveStatus {
    /// The shard; null for the control group.
    pub shard: Option<ShardId>,
    /// Where it leaves.
    pub from: Option<String>,
    /// Where it goes.
    pub to: Option<String>,
    /// waiting, adding, catching-up, switching or removing.
    pub phase: String,
    /// Bytes sent; null if not known here.
    pub bytes_done: Option<u64>,
    /// Bytes to send.
    pub bytes_total: u64,
    /// Time left; null if not known.
    pub eta_ms: Option<u64>,
}

/// Where a key lives.
#[derive(Clone, Debug, Serialize)]
pub struct Location {
    /// Its hash slot.
    pub slot: u16,
    /// Its shard.
    pub shard: ShardId,
    /// The shard's leader, by name.
    pub leader: Option<String>,
    /// The nodes that hold it, by name.
    pub replicas: Vec<String>,
}

/// One replica, for the simulation's checkers.
#[derive(Clone, Debug)]
pub struct GroupView {
    /// The group.
    pub group: GroupId,
    /// The replica here.
    pub replica: ReplicaId,
    /// What Raft makes of it.
    pub role: RaftRole,
    /// Its term.
    pub term: Term,
    /// The leader it knows.
    pub leader: Option<ReplicaId>,
    /// Applied up to here.
    pub applied: LogIndex,
    /// Committed up to here.
    pub commit: LogIndex,
    /// The generation of rows in force.
    pub generation: u32,
    /// Its configuration.
    pub membership: Membership,
}

impl ClusterStatus {
    /// The contract's JSON.
    pub fn to_json(&self) -> Bytes {
        serde_json::to_vec(self).expect("plain data with text keys").into()
    }
}

impl Node {
    /// The cluster as this node sees it. Only the control group's leader hears from all.
    pub fn cluster_status(&self, now: Now) -> ClusterStatus {
        let authoritative = self.replicas.get(&GroupId::CONTROL).is_some_and(|replica| replica.is_leader());
        let mut observed = self.observed(now);
        for (group, replica) in self.replicas.iter().filter(|(_, replica)| replica.is_initialized()) {
            // What a replica here knows fills in for reports that do not reach this node.
            let leader = if replica.is_leader() { Some(self.id()) } else { replica.leader_node() };
            let known = observed.groups.get(group).map(|report| report.term);
            if let Some(leader) = leader.filter(|_| known.is_none_or(|term| term < replica.group.term())) {
                let report = GroupReport {
                    leader,
                    term: replica.group.term(),
                    membership: replica.group.membership().clone(),
                    change_pending: false,
                    record_epoch: 0,
                    bytes: replica.bytes,
                    scrub: if replica.is_leader() { self.scrub_report(replica) } else { ScrubReport::default() },
                    sending: self.transfers.sending(*group, now.instant),
                };
                observed.groups.insert(*group, report);
            }
        }
        let name = |node: NodeId| self.name_of(node);
        let is_up = |node: NodeId| {
            if authoritative { observed.nodes.get(&node) == Some(&NodeHealth::Up) } else { node == self.id() || self.link_is_up(node) }
        };
        let leader_of = |group: GroupId| {
            let leaderless =
                self.replicas.get(&group).is_some_and(|replica| replica.is_initialized() && replica.leaderless_since.is_some());
            observed.groups.get(&group).filter(|report| is_up(report.leader) && !leaderless).map(|report| report.leader)
        };
        let shards: Vec<GroupId> = self.control.groups.keys().copied().filter(|group| *group != GroupId::CONTROL).collect();
        let nodes = self.control.members().map(|(id, record)| {
            let replicas = shards
                .iter()
                .filter(|group| observed.groups.get(group).is_some_and(|report| report.membership.replica_on(id).is_some()))
                .count();
            let state = match record.state {
                NodeState::Removed => "removed",
                NodeState::Draining | NodeState::Leaving if is_up(id) => "draining",
                NodeState::Active if is_up(id) && replicas == 0 => "joining",
                _ if is_up(id) => "up",
                _ => "down",
            };
            NodeStatus {
                name: record.profile.name.clone(),
                id,
                http: record.profile.http.clone(),
                peer: Some(record.profile.peer.clone()),
                resp: record.profile.resp.clone(),
                zone: record.profile.zone.clone(),
                state,
                replicas: replicas as u64,
                leaders: shards.iter().filter(|group| leader_of(**group) == Some(id)).count() as u64,
                bytes: if id == self.id() {
                    self.replicas.values().map(|replica| replica.bytes).sum()
                } else {
                    self.supervision.reports.get(&id).map_or(0, |(_, report)| report.bytes)
                },
            }
        });
        let mut nodes: Vec<NodeStatus> = nodes.collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let shard = |group: &GroupId| {
            let id = group.shard()?;
            let report = observed.groups.get(group);
            let (Slot(first), Slot(last)) = keyspace::slots_of(id, self.control.shards_total);
            let replicas = match report {
                Some(report) => replicas_of(&report.membership, &name),
                None => {
                    self.control.groups[group].wanted().map(|member| ReplicaStatus { node: name(member.node), role: "voter" }).collect()
                }
            };
            let leader = leader_of(*group).map(name);
            let scrub = report.map(scrub_of);
            Some(ShardStatus { id, slots: [first, last], leader, term: report.map_or(0, |report| report.term.0), replicas, scrub })
        };
        let shards: Vec<ShardStatus> = shards.iter().filter_map(shard).collect();
        let moves = moves(&self.control, &observed).into_iter().map(|m| {
            let report = observed.groups.get(&m.group);
            let bytes_total = report.map_or(0, |report| report.bytes);
            let sending = report.and_then(|report| report.sending).filter(|sending| Some(sending.to) == m.to);
            // As fast as so far.
            let eta = |sending: Sending| {
                let left = bytes_total.saturating_sub(sending.bytes_done);
                (sending.elapsed.as_millis() * u128::from(left)).checked_div(u128::from(sending.bytes_done)).map(|eta| eta as u64)
            };
            MoveStatus {
                shard: m.group.shard(),
                from: m.from.map(name),
                to: m.to.map(name),
                phase: m.phase.to_string(),
                bytes_done: sending.map(|sending| sending.bytes_done.min(bytes_total)),
                bytes_total,
                eta_ms: sending.and_then(eta),
            }
        });
        let control = ControlStatus {
            leader: leader_of(GroupId::CONTROL).map(name),
            voters: observed.groups.get(&GroupId::CONTROL).map_or_else(
                || self.control.groups[&GroupId::CONTROL].voters.iter().map(|m| name(m.node)).collect(),
                |report| report.membership.voters.values().map(|node| name(*node)).collect(),
            ),
        };
        let health = health(&nodes, &shards, &control);
        ClusterStatus {
            cluster_id: self.control.cluster,
            replicas_wanted: self.control.replicas_wanted,
            shards_total: self.control.shards_total,
            control,
            nodes,
            shards,
            moves: moves.collect(),
            seen_by: self.identity.name.clone(),
            authoritative,
            health,
        }
    }

    /// Where a key lives.
    pub fn locate(&self, key: &Key) -> Location {
        let shard = keyspace::shard_of(key, self.control.shards_total);
        let group = shard.group();
        let replica = self.replicas.get(&group).filter(|replica| replica.is_initialized());
        let leader = if replica.is_some_and(|replica| replica.is_leader()) { Some(self.id()) } else { self.leader_of(group) };
        let replicas: Vec<NodeId> = match replica {
            Some(replica) => replica.group.membership().members().into_values().collect(),
            None => self.control.groups.get(&group).map(|record| record.wanted().map(|member| member.node).collect()).unwrap_or_default(),
        };
        let mut replicas: Vec<String> = replicas.into_iter().map(|node| self.name_of(node)).collect();
        replicas.sort_unstable();
        Location { slot: key.slot().0, shard, leader: leader.map(|node| self.name_of(node)), replicas }
    }

    /// The replicas on this node.
    pub fn inspect(&self) -> impl Iterator<Item = GroupView> + '_ {
        self.replicas.iter().map(|(group, replica)| GroupView {
            group: *group,
            replica: replica.key.replica,
            role: replica.group.role(),
            term: replica.group.term(),
            leader: replica.group.leader(),
            applied: replica.applied,
            commit: replica.group.commit(),
            generation: replica.generation,
            membership: replica.group.membership().clone(),
        })
    }
}

fn scrub_of(report: &GroupReport) -> ScrubStatus {
    ScrubStatus {
        last: report.scrub.last.map(|last| LastScrubStatus {
            index: last.index.0,
            at_ms: last.at.0,
            result: last.result.as_str(),
            copies: last.copies,
        }),
        running: report.scrub.bytes_done.map(|bytes_done| ScrubProgress { bytes_done, bytes_total: report.bytes }),
    }
}

fn replicas_of(membership: &Membership, name: &impl Fn(NodeId) -> String) -> Vec<ReplicaStatus> {
    let role = |id: ReplicaId| if membership.role_of(id) == Some(Role::Voter) { "voter" } else { "learner" };
    membership.members().into_iter().map(|(id, node)| ReplicaStatus { node: name(node), role: role(id) }).collect()
}

/// What an operator should know, in words.
fn health(nodes: &[NodeStatus], shards: &[ShardStatus], control: &ControlStatus) -> Vec<String> {
    let mut lines = Vec::new();
    let is_down = |name: &str| nodes.iter().any(|node| node.name == name && node.state == "down");
    for node in nodes.iter().filter(|node| node.state == "down") {
        let weakened = shards.iter().filter(|shard| shard.replicas.iter().any(|replica| replica.node == node.name)).count();
        lines.push(format!("{} is down: {weakened} shards are short of a copy", node.name));
    }
    let leaderless = shards.iter().filter(|shard| shard.leader.is_none()).count();
    if leaderless > 0 {
        lines.push(format!("{leaderless} shards have no leader and answer nothing"));
    }
    if control.leader.is_none() {
        lines.push("the control group has no leader that this node can reach: nodes cannot join and nothing is moved".to_owned());
    }
    let undecided = |shard: &&ShardStatus| {
        shard.scrub.as_ref().and_then(|scrub| scrub.last.as_ref()).is_some_and(|last| last.result == ScrubResult::Undecided.as_str())
    };
    for shard in shards.iter().filter(undecided) {
        lines.push(format!("the copies of {} differ and no majority agrees: it takes no writes", shard.id));
    }
    let voters = |shard: &ShardStatus| shard.replicas.iter().filter(|r| r.role == "voter" && !is_down(&r.node)).count();
    match nodes.len() {
        1 => lines.push("1 node: no copy and no failover; start further nodes with --join".to_owned()),
        2 => lines.push("2 nodes: a copy of everything, no failover yet; a third node brings it".to_owned()),
        _ if shards.iter().any(|shard| voters(shard) < 2) => {
            lines.push("some shards have a single voter so far: no failover for these yet".to_owned())
        }
        _ => {}
    }
    lines
}
