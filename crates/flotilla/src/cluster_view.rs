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
    /// The control group.
    pub control: ControlView,
    /// The members.
    pub nodes: Vec<NodeView>,
    /// The shards, in order.
    pub shards: Vec<ShardView>,
    /// Replica moves under way.
    pub moves: Vec<MoveView>,
    /// What is amiss, in the server's words.
    pub health: Vec<String>,
    /// The node whose view it is, and whether it hears from all.
    pub seen_by: String,
    /// See `seen_by`.
    pub authoritative: bool,
}

/// The group that knows the members and where everything is to be.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ControlView {
    /// The node that leads it, if one is known.
    pub leader: Option<String>,
    /// The nodes that vote in it.
    pub voters: Vec<String>,
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

/// A copy on its way.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct MoveView {
    /// The shard; none for the control group.
    pub shard: Option<u64>,
    /// The node that it leaves.
    pub from: Option<String>,
    /// The node that it goes to.
    pub to: Option<String>,
    /// How far it is.
    pub phase: String,
    /// Bytes sent.
    pub bytes_done: Option<u64>,
    /// Bytes to send.
    pub bytes_total: u64,
    /// Milliseconds left.
    pub eta_ms: Option<u64>,
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

    /// How well the cluster is, in sentences: a summary, and what the server says is amiss.
    pub fn health(&self) -> Vec<String> {
        let members = self.members().count();
        let is_down = |name: &str| self.node(name).is_some_and(|node| node.state == "down");
        // Of each shard: voters that are up, and how many more of them may fail.
        let at_hand = |shard: &ShardView| {
            let voters = || shard.replicas.iter().filter(|replica| replica.role == "voter");
            let up = voters().filter(|voter| !is_down(&voter.node)).count();
            (up, up.checked_sub(voters().count() / 2 + 1))
        };
        let (up, spare) = self.shards.iter().map(at_hand).min().unwrap_or_default();
        let summary = match spare {
            // The server's own words begin with it, or say what is lost.
            _ if members <= 2 => None,
            None => None,
            Some(0) if up < 2 => Some(format!("{members} nodes: still spreading the shards over them")),
            Some(0) => Some(format!("{members} nodes: every shard on at least {up} that are up, none of which may fail")),
            Some(spare) => Some(format!("{members} nodes: every shard on at least {up} that are up, any {spare} may fail")),
        };
        let moves = (!self.moves.is_empty()).then(|| format!("{} replica moves under way", self.moves.len()));
        summary.into_iter().chain(self.health.iter().cloned()).chain(moves).collect()
    }
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
        let said = vec!["2 nodes: a copy of everything, no failover yet; a third node brings it".to_owned()];
        assert_eq!(ClusterView { health: said.clone(), ..cluster(2, 1, 1) }.health(), said);
    }

    #[test]
    fn three_nodes_are_settled_with_three_voters() {
        assert!(!cluster(3, 1, 2).is_settled());
        assert!(cluster(3, 3, 0).is_settled());
        let mut one_down = cluster(3, 3, 0);
        one_down.nodes[2].state = "down".into();
        assert!(!one_down.is_settled());
        assert_eq!(cluster(3, 3, 0).health(), ["3 nodes: every shard on at least 3 that are up, any 1 may fail"]);
        assert_eq!(one_down.health(), ["3 nodes: every shard on at least 2 that are up, none of which may fail"]);
        one_down.nodes[1].state = "down".into();
        assert_eq!(one_down.health(), [""; 0], "the server says what is lost");
    }
}
