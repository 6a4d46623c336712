//! Snapshots as Raft sees them: a position and a membership. The rows travel apart (decision 8).

use crate::membership;
use bytes::BytesMut;
use flotilla_types::wire::Reader;
use flotilla_types::{LogIndex, Membership, Term};
use raft::eraftpb;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry whose effect is in it.
    pub index: LogIndex,
    /// That entry's term.
    pub term: Term,
    /// The membership as of that entry.
    pub membership: Membership,
}

impl SnapshotMeta {
    /// The library's form. Our membership, with its nodes, rides in `data`.
    pub(crate) fn to_raft(&self) -> eraftpb::Snapshot {
        let mut data = BytesMut::new();
        self.membership.encode(&mut data);
        let mut snapshot = eraftpb::Snapshot { data: data.freeze(), ..Default::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = self.index.0;
        metadata.term = self.term.0;
        metadata.set_conf_state(membership::to_conf_state(&self.membership));
        snapshot
    }

    /// Back from the library's form, which only [`SnapshotMeta::to_raft`] makes.
    pub(crate) fn from_raft(snapshot: &eraftpb::Snapshot) -> SnapshotMeta {
        let metadata = snapshot.get_metadata();
        let membership = Membership::decode(&mut Reader::new(snapshot.data.clone())).expect("the data is our own encoding");
        SnapshotMeta { index: LogIndex(metadata.index), term: Term(metadata.term), membership }
    }
}
