//! The one read-only view of the cluster that `/v1/cluster`, the command line, the dashboard and the
//! metrics show: plain data, computed once.

use crate::control::{GroupReport, NodeHealth, NodeState, Sending, moves};
use crate::event::Now;
use crate::fitness::Unfit;
use crate::keyspace;
use crate::node::Node;
use crate::scrub::{ScrubReport, ScrubResult};
use bytes::Bytes;
use flotilla_consensus::RaftRole;
use flotilla_storage::store::layout::Filing;
use flotilla_types::{ClusterId, GroupId, Key, LogIndex, Membership, NodeId, ReplicaId, Role, ShardId, Slot, Term};
use serde::Serialize;
use std::collections::BTreeMap;

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
    /// For how long it has been down; null if it is not, or where only the control group's leader could tell.
    pub down_for_ms: Option<u64>,
    /// Why it should not lead: slow-disk, stands-still, disk-full or shutting-down; null if it may.
    pub unfit: Option<&'static str>,
    #[serde(skip)]
    unfit_in_words: Option<&'static str>,
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
    /// Where the rows in force are.
    pub filing: Filing,
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
                    load: None,
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
            let down_for_ms = match observed.nodes.get(&id) {
                Some(NodeHealth::Down { for_time }) if authoritative && state == "down" => Some(for_time.as_millis() as u64),
                _ => None,
            };
            let unfit = self.why_unfit(id, now.instant).filter(|_| state != "down");
            NodeStatus {
                name: record.profile.name.clone(),
                id,
                http: record.profile.http.clone(),
                peer: Some(record.profile.peer.clone()),
                resp: record.profile.resp.clone(),
                zone: record.profile.zone.clone(),
                state,
                down_for_ms,
                unfit: unfit.map(Unfit::as_str),
                unfit_in_words: unfit.map(Unfit::in_words),
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
        let health = health(&nodes, &shards, &control, self.control.replicas_wanted, &self.identity.name);
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
            filing: replica.filing,
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

/// What an operator should know, in words, as the node `seen_by` sees it.
fn health(nodes: &[NodeStatus], shards: &[ShardStatus], control: &ControlStatus, wanted: u32, seen_by: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let is_down = |name: &str| nodes.iter().any(|node| node.name == name && node.state == "down");
    let down = absences(nodes, seen_by);
    let short = shortages(nodes, shards, wanted);
    match (down.is_empty(), short.is_empty()) {
        (false, false) => lines.push(format!("{}: {}", down.join(", "), short.join(", "))),
        (false, true) => lines.push(format!("{}: every shard has its replicas elsewhere", down.join(", "))),
        (true, false) => lines.push(format!("replicas are missing: {}", short.join(", "))),
        (true, true) => {}
    }
    for node in nodes {
        lines.extend(node.unfit_in_words.map(|words| format!("{} {words}: what another node can lead it does not lead", node.name)));
    }
    let leaderless = shards.iter().filter(|shard| shard.leader.is_none()).count();
    if leaderless > 0 {
        let (have, answer) = if leaderless == 1 { ("has", "answers") } else { ("have", "answer") };
        lines.push(format!("{} {have} no leader and {answer} nothing", shards_in_words(leaderless)));
    }
    if control.leader.is_none() {
        lines.push(format!("the control group has no leader that {seen_by} can reach: nodes cannot join and nothing is moved"));
    }
    let undecided = |shard: &&ShardStatus| {
        shard.scrub.as_ref().and_then(|scrub| scrub.last.as_ref()).is_some_and(|last| last.result == ScrubResult::Undecided.as_str())
    };
    for shard in shards.iter().filter(undecided) {
        lines.push(format!("the copies of {} differ and no majority agrees: it takes no writes", shard.id));
    }
    let voters = |shard: &ShardStatus| shard.replicas.iter().filter(|r| r.role == "voter" && !is_down(&r.node)).count();
    match nodes.iter().filter(|node| node.state != "removed").count() {
        1 => lines.push("1 node: no copy and no failover; start further nodes with --join".to_owned()),
        2 => lines.push("2 nodes: a copy of everything, no failover yet; a third node brings it".to_owned()),
        _ if shards.iter().any(|shard| shard.leader.is_some() && voters(shard) < 2) => {
            lines.push("some shards have a single voter so far: no failover for these yet".to_owned())
        }
        _ => {}
    }
    lines
}

/// Such as `n3 is down for 40 s`. Only the control group's leader hears from all; another node knows whom it reaches.
fn absences(nodes: &[NodeStatus], seen_by: &str) -> Vec<String> {
    let (known, unreached): (Vec<_>, Vec<_>) =
        nodes.iter().filter(|node| node.state == "down").partition(|node| node.down_for_ms.is_some());
    let known = known.iter().map(|node| format!("{} is down for {}", node.name, time_in_words(node.down_for_ms.unwrap_or(0) / 1000)));
    let mut words: Vec<String> = known.collect();
    if !unreached.is_empty() {
        let names: Vec<&str> = unreached.iter().map(|node| node.name.as_str()).collect();
        words.push(format!("{seen_by} cannot reach {}", names.join(", ")));
    }
    words
}

/// Such as `21 shards have 2 of 3 replicas`, for each number of replicas on nodes that run, fewest first.
fn shortages(nodes: &[NodeStatus], shards: &[ShardStatus], wanted: u32) -> Vec<String> {
    let members = nodes.iter().filter(|node| node.state != "removed").count();
    let wanted = members.min(wanted as usize);
    let runs = |name: &str| nodes.iter().any(|node| node.name == name && !matches!(node.state, "down" | "removed"));
    let mut shards_with = BTreeMap::new();
    for shard in shards {
        let at_hand = shard.replicas.iter().filter(|replica| runs(&replica.node)).count();
        *shards_with.entry(at_hand).or_insert(0) += 1;
    }
    let short = shards_with.into_iter().filter(|(replicas, _)| *replicas < wanted);
    short
        .map(|(replicas, count)| {
            let have = if count == 1 { "has" } else { "have" };
            format!("{} {have} {replicas} of {wanted} replicas", shards_in_words(count))
        })
        .collect()
}

fn shards_in_words(count: usize) -> String {
    if count == 1 { "1 shard".to_owned() } else { format!("{count} shards") }
}

fn time_in_words(seconds: u64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, state: &'static str, down_for_ms: Option<u64>) -> NodeStatus {
        let (name, zone) = (name.to_owned(), String::new());
        NodeStatus {
            name,
            id: NodeId(1),
            http: None,
            peer: None,
            resp: None,
            zone,
            state,
            down_for_ms,
            unfit: None,
            unfit_in_words: None,
            replicas: 0,
            leaders: 0,
            bytes: 0,
        }
    }

    fn shard(id: u32, leader: Option<&str>, on: &[&str]) -> ShardStatus {
        let replicas = on.iter().map(|node| ReplicaStatus { node: (*node).to_owned(), role: "voter" }).collect();
        ShardStatus { id: ShardId(id), slots: [0, 0], leader: leader.map(str::to_owned), term: 1, replicas, scrub: None }
    }

    fn lines(nodes: &[NodeStatus], shards: &[ShardStatus], control: Option<&str>) -> Vec<String> {
        let control = ControlStatus { leader: control.map(str::to_owned), voters: Vec::new() };
        health(nodes, shards, &control, 3, "n1")
    }

    #[test]
    fn nothing_is_said_when_all_is_well() {
        let nodes = ["n1", "n2", "n3"].map(|name| node(name, "up", None));
        assert!(lines(&nodes, &[shard(0, Some("n1"), &["n1", "n2", "n3"])], Some("n1")).is_empty());
    }

    #[test]
    fn who_is_down_and_what_it_costs() {
        let nodes = [node("n1", "up", None), node("n2", "up", None), node("n3", "down", Some(40_900)), node("n4", "down", Some(7_300_000))];
        let shards =
            [shard(0, Some("n1"), &["n1", "n2", "n3"]), shard(1, Some("n2"), &["n1", "n2", "n4"]), shard(2, None, &["n1", "n3", "n4"])];
        let expected = [
            "n3 is down for 40 s, n4 is down for 2 h: 1 shard has 1 of 3 replicas, 2 shards have 2 of 3 replicas",
            "1 shard has no leader and answers nothing",
        ];
        assert_eq!(lines(&nodes, &shards, Some("n1")), expected);
    }

    #[test]
    fn a_node_that_does_not_lead_says_only_what_it_sees() {
        let nodes = [node("n1", "up", None), node("n2", "down", None), node("n3", "down", None)];
        let said = lines(&nodes, &[shard(0, None, &["n1", "n2", "n3"])], None);
        assert_eq!(said[0], "n1 cannot reach n2, n3: 1 shard has 1 of 3 replicas");
        assert!(said[2].starts_with("the control group has no leader that n1 can reach"), "{said:?}");
    }

    #[test]
    fn copies_that_are_still_to_be_made_are_missing() {
        let nodes = ["n1", "n2", "n3", "n4"].map(|name| node(name, "up", None));
        let said = lines(&nodes, &[shard(0, Some("n1"), &["n1", "n2"])], Some("n1"));
        assert_eq!(said, ["replicas are missing: 1 shard has 2 of 3 replicas"]);
    }
}
