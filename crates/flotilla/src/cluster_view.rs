//! `GET /v1/cluster` as the commands read it, and the words they put to it. Fields may be added to
//! that object; those not named here are passed over.

use serde::Deserialize;

/// The whole answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ClusterView {
    /// The cluster's id.
    pub cluster_id: String,
    /// How many copies of each shard there are to be.
    pub replicas_wanted: usize,
    /// How many shards there are.
    pub shards_total: usize,
    /// The members.
    pub nodes: Vec<NodeView>,
    /// The shards, in order.
    pub shards: Vec<ShardView>,
    /// Replica moves under way.
    pub moves: Vec<serde_json::Value>,
}

/// One member.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// HOST:PORT of its HTTP API.
    pub http: Option<String>,
    /// HOST:PORT of its node-to-node door.
    pub peer: Option<String>,
    /// HOST:PORT of its Redis door.
    pub resp: Option<String>,
    /// Its failure zone.
    pub zone: Option<String>,
    /// `up`, `down`, `joining`, `draining` or `removed`.
    pub state: String,
    /// Replicas on it.
    pub replicas: Option<u64>,
    /// Shards it leads.
    pub leaders: Option<u64>,
    /// Bytes it stores.
    pub bytes: Option<u64>,
}

/// One shard.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ShardView {
    /// Its number.
    pub id: u64,
    /// Its first and last slot.
    pub slots: Vec<u32>,
    /// The node that leads it, if one is known.
    pub leader: Option<String>,
    /// The leader's term.
    pub term: Option<u64>,
    /// Its copies.
    pub replicas: Vec<ReplicaView>,
}

/// One copy of a shard.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ReplicaView {
    /// The node it is on.
    pub node: String,
    /// `voter` or `learner`.
    pub role: String,
}

impl ClusterView {
    /// Nodes that are members still.
    pub fn members(&self) -> impl Iterator<Item = &NodeView> {
        self.nodes.iter().filter(|node| node.state != "removed")
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&NodeView> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Whether every shard has a leader and as many copies as this many members can hold, and
    /// nothing is being moved.
    pub fn is_settled(&self) -> bool {
        let members = self.members().count();
        let wanted = members.min(self.replicas_wanted.max(1));
        // An even number of voters bears no more failures than one less, so an even copy is a learner.
        let voters_wanted = if wanted.is_multiple_of(2) { wanted - 1 } else { wanted };
        let is_whole = |shard: &ShardView| {
            let voters = shard.replicas.iter().filter(|replica| replica.role == "voter").count();
            shard.leader.is_some() && shard.replicas.len() >= wanted && voters >= voters_wanted
        };
        !self.shards.is_empty()
            && self.shards.len() == self.shards_total
            && self.moves.is_empty()
            && self.members().all(|node| node.state == "up")
            && self.shards.iter().all(is_whole)
    }

    /// How well the cluster is, in sentences; the first one is the summary.
    pub fn health(&self) -> Vec<String> {
        let members = self.members().count();
        let mut words = vec![match (members, self.shards.iter().map(voter_count).min().unwrap_or(0)) {
            (1, _) => "1 node: no copy of anything; two more nodes make it survive the loss of one".to_owned(),
            (2, _) => "2 nodes: a copy of everything, no failover yet; a third node brings it".to_owned(),
            (_, voters) if voters >= 3 => {
                format!("{members} nodes: every shard on at least {voters} of them, any {} may fail", (voters - 1) / 2)
            }
            _ => format!("{members} nodes: still spreading the shards over them, no failover yet for some"),
        }];
        let down: Vec<&str> = self.members().filter(|node| node.state == "down").map(|node| node.name.as_str()).collect();
        if !down.is_empty() {
            words.push(format!("down: {}", down.join(", ")));
        }
        let leaderless = self.shards.iter().filter(|shard| shard.leader.is_none()).count();
        if leaderless > 0 {
            words.push(format!("{leaderless} of {} shards have no leader: their keys cannot be read or written", self.shards.len()));
        }
        if !self.moves.is_empty() {
            words.push(format!("{} replica moves under way", self.moves.len()));
        }
        words
    }
}

fn voter_count(shard: &ShardView) -> usize {
    shard.replicas.iter().filter(|replica| replica.role == "voter").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(node_count: usize, voters: usize, learners: usize) -> ClusterView {
        let node = |i| NodeView { name: format!("n{i}"), state: "up".into(), ..NodeView::default() };
        let roles = std::iter::repeat_n("voter", voters).chain(std::iter::repeat_n("learner", learners));
        let replicas = roles.enumerate().map(|(i, role)| ReplicaView { node: format!("n{i}"), role: role.into() }).collect();
        ClusterView {
            replicas_wanted: 3,
            shards_total: 1,
            nodes: (0..node_count).map(node).collect(),
            shards: vec![ShardView { leader: Some("n0".into()), replicas, ..ShardView::default() }],
            ..ClusterView::default()
        }
    }

    #[test]
    fn two_nodes_are_settled_with_a_learner_and_say_what_they_lack() {
        assert!(!cluster(2, 1, 0).is_settled());
        assert!(cluster(2, 1, 1).is_settled());
        assert_eq!(cluster(2, 1, 1).health(), ["2 nodes: a copy of everything, no failover yet; a third node brings it"]);
    }

    #[test]
    fn three_nodes_are_settled_with_three_voters() {
        assert!(!cluster(3, 1, 2).is_settled());
        assert!(cluster(3, 3, 0).is_settled());
        let mut one_down = cluster(3, 3, 0);
        one_down.nodes[2].state = "down".into();
        assert!(!one_down.is_settled());
        assert_eq!(one_down.health()[1], "down: n2");
    }
}
