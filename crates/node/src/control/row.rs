//! The stored form of the control state: one row for the header, one for each node and each group,
//! so that a command writes what it changed and not 16,384 groups. A snapshot, a pushed copy and a
//! whole encoded state are lists of the same rows.
//!
//! A row's value is a format byte and then fixed-width fields (docs/formats.md, "Control rows").

use super::command::expect_format;
use super::state::{ControlState, Formats, GroupRecord, MOVE_BYTES_PER_SECOND, NodeProfile, NodeRecord, NodeState, Rebalancing, Rebirth};
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{ClusterId, GroupId, Member, NodeId, ReplicaId};
use std::collections::BTreeMap;

/// Which row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowKey {
    /// All that is neither a node nor a group.
    Header,
    /// A node's record.
    Node(NodeId),
    /// A group's record.
    Group(GroupId),
}

const ROW_FORMAT: u8 = 1;
const ROWS_FORMAT: u8 = 1;

impl RowKey {
    /// The key's bytes, which sort as the keys do.
    pub fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(9);
        match self {
            RowKey::Header => out.put_u8(0),
            RowKey::Node(node) => {
                out.put_u8(1);
                out.put_u64(node.0);
            }
            RowKey::Group(group) => {
                out.put_u8(2);
                out.put_u32(group.0);
            }
        }
        out.freeze()
    }

    /// Reads what [`RowKey::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are no row key.
    pub fn decode(bytes: &[u8]) -> Result<RowKey, DecodeError> {
        match bytes {
            [0] => Ok(RowKey::Header),
            [1, id @ ..] => Ok(RowKey::Node(NodeId(u64::from_be_bytes(id.try_into().map_err(|_| DecodeError::Short("node row key"))?)))),
            [2, id @ ..] => Ok(RowKey::Group(GroupId(u32::from_be_bytes(id.try_into().map_err(|_| DecodeError::Short("group row key"))?)))),
            [kind, ..] => Err(DecodeError::Invalid("control row kind", u64::from(*kind))),
            [] => Err(DecodeError::Short("control row key")),
        }
    }
}

impl ControlState {
    /// The value of a row; `None` if there is no such row.
    pub fn encode_row(&self, key: RowKey) -> Option<Bytes> {
        let mut out = BytesMut::with_capacity(128);
        out.put_u8(ROW_FORMAT);
        match key {
            RowKey::Header => {
                out.put_u128_le(self.cluster.0);
                out.put_u32_le(self.shards_total);
                out.put_u32_le(self.replicas_wanted);
                out.put_u32_le(self.format_level);
                out.put_u64_le(self.epoch);
                out.put_u64_le(self.next_replica);
                out.put_u8(self.rebalancing.to_byte());
                out.put_u64_le(self.move_bytes_per_second);
            }
            RowKey::Node(node) => {
                let record = self.nodes.get(&node)?;
                out.put_u64_le(record.epoch);
                out.put_u8(record.state.to_byte());
                put_profile(&mut out, &record.profile);
            }
            RowKey::Group(group) => {
                let record = self.groups.get(&group)?;
                out.put_u64_le(record.epoch);
                for members in [&record.voters, &record.learners, &record.leaving, &record.lost] {
                    put_members(&mut out, members);
                }
                put_optional_node(&mut out, record.preferred_leader);
                if let Some(Rebirth { voter, from }) = record.rebirth {
                    out.put_u64_le(voter.0);
                    out.put_u64_le(from.map_or(0, |replica| replica.0));
                }
            }
        }
        Some(out.freeze())
    }

    /// The keys of all rows, in order.
    pub fn row_keys(&self) -> impl Iterator<Item = RowKey> {
        let nodes = self.nodes.keys().map(|n| RowKey::Node(*n));
        let groups = self.groups.keys().map(|g| RowKey::Group(*g));
        std::iter::once(RowKey::Header).chain(nodes).chain(groups)
    }

    /// The keys of the rows that changed after `epoch`: what a copy at that epoch lacks.
    pub fn row_keys_since(&self, epoch: u64) -> Vec<RowKey> {
        self.row_keys()
            .filter(|key| match key {
                RowKey::Header => self.epoch > epoch,
                RowKey::Node(node) => self.nodes[node].epoch > epoch,
                RowKey::Group(group) => self.groups[group].epoch > epoch,
            })
            .collect()
    }

    /// The state that the stored rows make up, in any order.
    ///
    /// # Errors
    /// If a row cannot be read, or the header or a group is missing.
    pub fn from_rows(rows: impl IntoIterator<Item = (RowKey, Bytes)>) -> Result<ControlState, DecodeError> {
        let mut state = ControlState {
            cluster: ClusterId(0),
            shards_total: 0,
            replicas_wanted: 0,
            format_level: 0,
            epoch: 0,
            rebalancing: Rebalancing::On,
            move_bytes_per_second: MOVE_BYTES_PER_SECOND,
            nodes: BTreeMap::new(),
            groups: BTreeMap::new(),
            next_replica: 0,
        };
        for (key, value) in rows {
            state.put_row(key, value)?;
        }
        state.check_complete()?;
        Ok(state)
    }

    /// Brings a copy up to date with the rows that a newer one changed after `since`. They are taken
    /// as a whole or not at all; `false`: they are not newer, or leave a gap (`since` is above the
    /// epoch here), and the sender must begin at this copy's epoch.
    ///
    /// # Errors
    /// If a row cannot be read or the rows do not make up a state with those here.
    pub fn absorb(&mut self, since: u64, rows: impl IntoIterator<Item = (RowKey, Bytes)>) -> Result<bool, DecodeError> {
        if since > self.epoch {
            return Ok(false);
        }
        let mut newer = self.clone();
        for (key, value) in rows {
            newer.put_row(key, value)?;
        }
        newer.check_complete()?;
        if newer.cluster != self.cluster || newer.epoch <= self.epoch {
            return Ok(false);
        }
        *self = newer;
        Ok(true)
    }

    /// The whole state as one byte string: a list of rows.
    pub fn encode(&self) -> Bytes {
        encode_rows(self.row_keys().map(|key| (key, self.encode_row(key).expect("row_keys lists rows that exist"))))
    }

    /// Reads what [`ControlState::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are no control state.
    pub fn decode(bytes: Bytes) -> Result<ControlState, DecodeError> {
        ControlState::from_rows(decode_rows(bytes)?)
    }

    fn check_complete(&self) -> Result<(), DecodeError> {
        if self.shards_total == 0 {
            return Err(DecodeError::Short("control header"));
        }
        let last = self.groups.last_key_value().map_or(0, |(g, _)| g.0);
        if self.groups.len() as u64 != u64::from(self.shards_total) + 1 || last != self.shards_total {
            return Err(DecodeError::Short("control groups"));
        }
        Ok(())
    }

    fn put_row(&mut self, key: RowKey, value: Bytes) -> Result<(), DecodeError> {
        let mut r = Reader::new(value);
        expect_format(&mut r, "control row format", ROW_FORMAT)?;
        match key {
            RowKey::Header => {
                self.cluster = ClusterId(r.u128("cluster id")?);
                self.shards_total = r.u32("shards total")?;
                self.replicas_wanted = r.u32("replicas wanted")?;
                self.format_level = r.u32("format level")?;
                self.epoch = r.u64("epoch")?;
                self.next_replica = r.u64("next replica")?;
                self.rebalancing = Rebalancing::from_byte(r.u8("rebalancing")?)?;
                // Absent in the rows of the first clusters.
                self.move_bytes_per_second = if r.remaining() == 0 { MOVE_BYTES_PER_SECOND } else { r.u64("move rate")? };
            }
            RowKey::Node(node) => {
                let epoch = r.u64("epoch")?;
                let state = NodeState::from_byte(r.u8("node state")?)?;
                self.nodes.insert(node, NodeRecord { epoch, state, profile: get_profile(&mut r)? });
            }
            RowKey::Group(group) => {
                let record = GroupRecord {
                    epoch: r.u64("epoch")?,
                    voters: get_members(&mut r)?,
                    learners: get_members(&mut r)?,
                    leaving: get_members(&mut r)?,
                    lost: get_members(&mut r)?,
                    preferred_leader: get_optional_node(&mut r)?,
                    // Absent unless a recovery is under way.
                    rebirth: if r.remaining() == 0 { None } else { Some(get_rebirth(&mut r)?) },
                };
                self.groups.insert(group, record);
            }
        }
        r.finish()
    }
}

/// Rows as one byte string, as they are pushed to other nodes and put into snapshots.
pub fn encode_rows(rows: impl IntoIterator<Item = (RowKey, Bytes)>) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(ROWS_FORMAT);
    for (key, value) in rows {
        out.write_bytes(&key.encode());
        out.write_bytes(&value);
    }
    out.freeze()
}

/// Reads what [`encode_rows`] wrote.
///
/// # Errors
/// If the bytes are no list of rows.
pub fn decode_rows(bytes: Bytes) -> Result<Vec<(RowKey, Bytes)>, DecodeError> {
    let mut r = Reader::new(bytes);
    expect_format(&mut r, "control rows format", ROWS_FORMAT)?;
    let mut rows = Vec::new();
    while r.remaining() > 0 {
        let key = RowKey::decode(&r.bytes("control row key")?)?;
        rows.push((key, r.bytes("control row")?));
    }
    Ok(rows)
}

impl NodeProfile {
    /// Appends the encoding, as in a node's row.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        put_profile(out, self);
    }

    /// Reads what [`NodeProfile::encode`] wrote.
    pub(crate) fn decode(reader: &mut Reader) -> Result<NodeProfile, DecodeError> {
        get_profile(reader)
    }
}

pub(super) fn put_profile(out: &mut BytesMut, profile: &NodeProfile) {
    out.write_bytes(profile.name.as_bytes());
    put_optional_text(out, profile.http.as_deref());
    out.write_bytes(profile.peer.as_bytes());
    put_optional_text(out, profile.resp.as_deref());
    out.write_bytes(profile.zone.as_bytes());
    out.put_u32_le(profile.weight);
    out.put_u32_le(profile.formats.min);
    out.put_u32_le(profile.formats.max);
}

pub(super) fn get_profile(r: &mut Reader) -> Result<NodeProfile, DecodeError> {
    Ok(NodeProfile {
        name: get_text(r, "node name")?,
        http: get_optional_text(r, "HTTP address")?,
        peer: get_text(r, "peer address")?,
        resp: get_optional_text(r, "RESP address")?,
        zone: get_text(r, "zone")?,
        weight: r.u32("weight")?,
        formats: Formats { min: r.u32("oldest format")?, max: r.u32("newest format")? },
    })
}

fn get_text(r: &mut Reader, what: &'static str) -> Result<String, DecodeError> {
    let bytes = r.bytes(what)?;
    std::str::from_utf8(&bytes).map(str::to_owned).map_err(|e| DecodeError::Invalid(what, u64::from(bytes[e.valid_up_to()])))
}

fn put_optional_text(out: &mut BytesMut, text: Option<&str>) {
    out.write_bool(text.is_some());
    if let Some(text) = text {
        out.write_bytes(text.as_bytes());
    }
}

fn get_optional_text(r: &mut Reader, what: &'static str) -> Result<Option<String>, DecodeError> {
    if r.bool(what)? { get_text(r, what).map(Some) } else { Ok(None) }
}

pub(super) fn put_optional_node(out: &mut BytesMut, node: Option<NodeId>) {
    out.write_bool(node.is_some());
    if let Some(node) = node {
        out.put_u64_le(node.0);
    }
}

pub(super) fn get_optional_node(r: &mut Reader) -> Result<Option<NodeId>, DecodeError> {
    if r.bool("optional node id")? { r.u64("node id").map(|n| Some(NodeId(n))) } else { Ok(None) }
}

pub(super) fn put_nodes(out: &mut BytesMut, nodes: &[NodeId]) {
    put_u64s(out, nodes.iter().map(|n| n.0));
}

pub(super) fn get_nodes(r: &mut Reader) -> Result<Vec<NodeId>, DecodeError> {
    (0..r.count(8, "node ids")?).map(|_| r.u64("node id").map(NodeId)).collect()
}

pub(super) fn put_replicas(out: &mut BytesMut, replicas: &[ReplicaId]) {
    put_u64s(out, replicas.iter().map(|n| n.0));
}

pub(super) fn get_replicas(r: &mut Reader) -> Result<Vec<ReplicaId>, DecodeError> {
    (0..r.count(8, "replica ids")?).map(|_| r.u64("replica id").map(ReplicaId)).collect()
}

fn put_u64s(out: &mut BytesMut, ids: impl ExactSizeIterator<Item = u64>) {
    out.put_u32_le(ids.len() as u32);
    for id in ids {
        out.put_u64_le(id);
    }
}

fn put_members(out: &mut BytesMut, members: &[Member]) {
    out.put_u32_le(members.len() as u32);
    for member in members {
        out.put_u64_le(member.replica.0);
        out.put_u64_le(member.node.0);
    }
}

fn get_members(r: &mut Reader) -> Result<Vec<Member>, DecodeError> {
    let count = r.count(16, "members")?;
    (0..count).map(|_| Ok(Member { replica: ReplicaId(r.u64("replica id")?), node: NodeId(r.u64("node id")?) })).collect()
}

fn get_rebirth(r: &mut Reader) -> Result<Rebirth, DecodeError> {
    let (voter, from) = (r.u64("replica id")?, r.u64("replica id")?);
    Ok(Rebirth { voter: ReplicaId(voter), from: (from > 0).then_some(ReplicaId(from)) })
}

impl NodeState {
    pub(super) fn to_byte(self) -> u8 {
        match self {
            NodeState::Active => 0,
            NodeState::Draining => 1,
            NodeState::Removed => 2,
            NodeState::Leaving => 3,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Result<NodeState, DecodeError> {
        match byte {
            0 => Ok(NodeState::Active),
            1 => Ok(NodeState::Draining),
            2 => Ok(NodeState::Removed),
            3 => Ok(NodeState::Leaving),
            other => Err(DecodeError::Invalid("node state", u64::from(other))),
        }
    }
}

impl Rebalancing {
    pub(super) fn to_byte(self) -> u8 {
        match self {
            Rebalancing::On => 0,
            Rebalancing::Paused => 1,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Result<Rebalancing, DecodeError> {
        match byte {
            0 => Ok(Rebalancing::On),
            1 => Ok(Rebalancing::Paused),
            other => Err(DecodeError::Invalid("rebalancing", u64::from(other))),
        }
    }
}
