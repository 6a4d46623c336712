//! What a data-dir says of itself, and the log batches with which a node is born: all that must be
//! on disk before its first message leaves (decision 9).

use crate::control::{ControlState, NodeProfile};
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_storage::log::{LogBatch, LogRecord};
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{ClusterId, GroupId, LogIndex, Member, Membership, NodeId, ReplicaId, ReplicaKey, Term};

/// The format of everything that this version stores and sends.
pub const FORMAT: u32 = 1;

/// Where the log of a group that is born with the cluster begins: its first state counts as the
/// entry before its first one, so that every later replica starts from a snapshot.
pub const GENESIS_START: (LogIndex, Term) = (LogIndex(1), Term(1));

/// The data-dir's own record, the latest one in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Made at random with the data-dir.
    pub node: NodeId,
    /// The stable name.
    pub name: String,
    /// The cluster it belongs to; `None` until it created or joined one.
    pub cluster: Option<ClusterId>,
    /// Set if this node created the cluster: what its groups are born from.
    pub genesis: Option<Genesis>,
    /// The last copy of the control group's state that was worth keeping (how a joined node finds
    /// its peers again), encoded; empty on the first node.
    pub control: Bytes,
}

/// What a cluster is created with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// Number of shards, fixed for ever.
    pub shards: u32,
    /// Copies wanted of each shard.
    pub replicas: u32,
    /// The first node.
    pub profile: NodeProfile,
}

impl Identity {
    /// The identity of a fresh data-dir.
    pub fn new(node: NodeId, name: String) -> Identity {
        Identity { node, name, cluster: None, genesis: None, control: Bytes::new() }
    }

    /// Its bytes in the log (docs/formats.md, "Identity").
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u32_le(FORMAT);
        out.put_u64_le(self.node.0);
        out.write_bytes(self.name.as_bytes());
        out.write_bool(self.cluster.is_some());
        out.put_u128_le(self.cluster.map_or(0, |cluster| cluster.0));
        out.write_bytes(&self.control);
        out.write_bool(self.genesis.is_some());
        if let Some(genesis) = &self.genesis {
            out.put_u32_le(genesis.shards);
            out.put_u32_le(genesis.replicas);
            genesis.profile.encode(&mut out);
        }
        out.freeze()
    }

    /// Reads what [`Identity::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are no identity, or one of a later format.
    pub fn decode(bytes: Bytes) -> Result<Identity, DecodeError> {
        let mut reader = Reader::new(bytes);
        let format = reader.u32("identity format")?;
        if format != FORMAT {
            return Err(DecodeError::Invalid("identity format", u64::from(format)));
        }
        let node = NodeId(reader.u64("node id")?);
        let name = String::from_utf8(reader.bytes("node name")?.to_vec()).map_err(|_| DecodeError::Invalid("node name", 0))?;
        let has_cluster = reader.bool("cluster")?;
        let cluster = Some(ClusterId(reader.u128("cluster id")?)).filter(|_| has_cluster);
        let control = reader.bytes("control copy")?;
        let genesis = if reader.bool("genesis")? {
            let (shards, replicas) = (reader.u32("shards")?, reader.u32("replicas")?);
            Some(Genesis { shards, replicas, profile: NodeProfile::decode(&mut reader)? })
        } else {
            None
        };
        reader.finish()?;
        Ok(Identity { node, name, cluster, genesis, control })
    }

    /// The control state a created cluster begins with; `None` on a node that joined.
    pub fn genesis_state(&self) -> Option<ControlState> {
        let (genesis, cluster) = (self.genesis.as_ref()?, self.cluster?);
        Some(ControlState::genesis(cluster, self.node, genesis.profile.clone(), genesis.shards, genesis.replicas))
    }

    /// The control state as this node last kept it; `None` before it has a cluster.
    ///
    /// # Errors
    /// If the kept copy cannot be read.
    pub fn last_control(&self) -> Result<Option<ControlState>, DecodeError> {
        if self.control.is_empty() { Ok(self.genesis_state()) } else { ControlState::decode(self.control.clone()).map(Some) }
    }

    fn record(&self) -> LogRecord {
        LogRecord::Identity(self.encode())
    }
}

/// The batch that makes a fresh data-dir a node: synced before its first request leaves.
pub fn new_identity(identity: &Identity) -> LogBatch {
    LogBatch { records: vec![identity.record()] }
}

/// Creates a cluster of one node: identity, control group and all shards in one synced log write.
pub fn genesis(identity: Identity, cluster: ClusterId, profile: NodeProfile, shards: u32, replicas: u32) -> (Identity, LogBatch) {
    let identity = Identity { cluster: Some(cluster), genesis: Some(Genesis { shards, replicas, profile }), ..identity };
    let state = identity.genesis_state().expect("cluster and genesis were just set");
    let created = state
        .groups
        .iter()
        .flat_map(|(group, record)| record.voters.iter().map(|member| ReplicaKey { group: *group, replica: member.replica }));
    let mut records = vec![identity.record()];
    records.extend(created.map(|replica| LogRecord::Created { replica, start: GENESIS_START }));
    (identity, LogBatch { records })
}

/// Makes a node a member of the cluster that took it in.
pub fn joined(identity: Identity, state: &ControlState) -> (Identity, LogBatch) {
    let identity = Identity { cluster: Some(state.cluster), control: state.encode(), ..identity };
    let batch = LogBatch { records: vec![identity.record()] };
    (identity, batch)
}

/// The configuration of a group at genesis.
pub fn genesis_membership(state: &ControlState, group: GroupId) -> Option<(ReplicaId, Membership)> {
    let record = state.groups.get(&group)?;
    let voter: &Member = record.voters.first()?;
    Some((voter.replica, Membership::of_voters([*voter])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Formats;

    #[test]
    fn an_identity_is_read_back() {
        let profile = NodeProfile {
            name: "n1".to_owned(),
            http: Some("127.0.0.1:1".to_owned()),
            peer: "127.0.0.1:2".to_owned(),
            resp: None,
            zone: "a".to_owned(),
            weight: 1,
            formats: Formats { min: FORMAT, max: FORMAT },
        };
        let fresh = Identity::new(NodeId(7), "n1".to_owned());
        let (created, batch) = genesis(fresh.clone(), ClusterId(9), profile, 4, 3);
        assert_eq!(batch.records.len(), 1 + 5, "the identity, the control group and four shards");
        let state = created.genesis_state().expect("it created a cluster");
        let (member, _) = joined(fresh.clone(), &state);
        for identity in [fresh, created, member] {
            assert_eq!(Identity::decode(identity.encode()), Ok(identity));
        }
    }
}
