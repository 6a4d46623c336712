//! What nodes store and say to each other.

use bytes::{Bytes, BytesMut};
use flotilla_node::boot::{Genesis, Identity};
use flotilla_node::control::{
    ControlAnswer, ControlCommand, ControlState, Formats, NodeProfile, Refusal, Removal, RowKey, decode_rows, encode_rows,
};
use flotilla_node::fitness::Unfit;
use flotilla_node::fuzzing;
use flotilla_node::message::{Forward, PeerMessage, ScanForward};
use flotilla_node::request::{Failure, FailureReason, Reply, Request, RequestId};
use flotilla_node::scan::{PageFill, ScanAsk, ScanChunk, ScanItem, ScanPart};
use flotilla_node::state_machine::{Mutation, MutationBatch, Mutations, ReplicaState};
use flotilla_types::wire::Reader;
use flotilla_types::{
    ClusterId, Condition, GroupId, Key, KeyRange, LogIndex, Match, Membership, MembershipChange, NodeId, ReplicaId, Timestamp, Version,
};
use std::time::Duration;

fn key(text: &'static str) -> Key {
    Key::new(text).expect("a key")
}

fn condition() -> Condition {
    Condition { if_match: Some(Match::Versions(vec![Version(7)])), if_none_match: Some(Match::Any) }
}

pub(super) fn mutations(input: &[u8]) {
    let Some((clock, read)) = read_mutations(Bytes::copy_from_slice(input)) else { return };
    let mut batch = MutationBatch::new();
    for mutation in &read {
        write_mutation(&mut batch, mutation);
    }
    // Nothing at all is written as nothing at all.
    if !read.is_empty() {
        assert_eq!(read_mutations(batch.finish(clock)), Some((clock, read)));
    }
}

fn read_mutations(data: Bytes) -> Option<(Timestamp, Vec<Mutation>)> {
    let mut mutations = Mutations::decode(data).ok()?;
    let mut read = Vec::new();
    while let Some(mutation) = mutations.next_mutation().ok()? {
        read.push(mutation);
    }
    Some((mutations.clock(), read))
}

/// Gives its position in the batch.
fn write_mutation(batch: &mut MutationBatch, mutation: &Mutation) -> usize {
    match mutation {
        Mutation::Put { key, value, ttl: None, condition } => batch.put(key, value, condition),
        Mutation::Put { key, value, ttl: Some(ttl), condition } => batch.put_expiring(key, value, *ttl, condition),
        Mutation::Expire { key } => batch.expire(key),
        Mutation::Delete { key, condition } => batch.delete(key, condition),
        Mutation::Increment { key, by, condition } => batch.increment(key, *by, condition),
        Mutation::Idempotent { id, mutation, .. } => {
            batch.idempotent(*id);
            write_mutation(batch, mutation)
        }
    }
}

pub(super) fn mutations_seeds() -> Vec<Vec<u8>> {
    let write = |write: &dyn Fn(&mut MutationBatch) -> usize| {
        let mut batch = MutationBatch::new();
        write(&mut batch);
        batch.finish(Timestamp(42)).to_vec()
    };
    vec![
        write(&|batch| batch.put(&key("a"), b"value", &condition())),
        write(&|batch| batch.put_expiring(&key("a"), b"value", Duration::from_secs(1), &Condition::ALWAYS)),
        write(&|batch| batch.delete(&key("b"), &condition())),
        write(&|batch| batch.increment(&key("n"), -2, &Condition::ALWAYS)),
        write(&|batch| {
            batch.expire(&key("e"));
            batch.idempotent(RequestId(43));
            batch.delete(&key("c"), &Condition::ALWAYS)
        }),
    ]
}

/// The first byte says how long the row's key is.
pub(super) fn rows(input: &[u8]) {
    let Some((&length, rest)) = input.split_first() else { return };
    let (relative_key, body) = rest.split_at(usize::from(length).min(rest.len()));
    fuzzing::row(relative_key, body);
}

pub(super) fn rows_seeds() -> Vec<Vec<u8>> {
    let row = |relative_key: &[u8], body: &[u8]| [&[relative_key.len() as u8], relative_key, body].concat();
    vec![
        row(b"\x01key", &[&[0][..], &[9; 8], b"value"].concat()),
        row(b"\x01key", &[&[1][..], &[9; 8], &[0, 0, 2, 0, 2, 0, 0, 0]].concat()),
        row(b"\x01key", &[&[0x80][..], &[9; 8], &[7; 8], b"value"].concat()),
        row(&[&[3][..], &[5; 16]].concat(), &[&[6; 24][..], &[1], &[1; 8], &[1]].concat()),
        row(&[&[4][..], &[0; 8], b"key"].concat(), &[5, 0, 0, 0]),
    ]
}

pub(super) fn snapshot_chunk(input: &[u8]) {
    fuzzing::snapshot_chunks(input);
}

pub(super) fn snapshot_chunk_seeds() -> Vec<Vec<u8>> {
    let chunk = |kind: u8, number: u8, body: &[u8]| {
        let bytes = [&[1, kind, number, 0, 0, 0], body].concat();
        [&(bytes.len() as u16).to_le_bytes(), bytes.as_slice()].concat()
    };
    let first = [fuzzing::row_in_chunk(b"\x01a", b"body"), fuzzing::row_in_chunk(b"\x01b", b"body")].concat();
    let bytes = 2 * (2 + 4 + 4u64);
    let end = [2u64.to_le_bytes(), bytes.to_le_bytes()].concat();
    vec![chunk(0, 0, &first), [chunk(0, 0, &first), chunk(1, 1, &end)].concat()]
}

/// The control group's rows, commands and answers.
pub(super) fn control(input: &[u8]) {
    let bytes = || Bytes::copy_from_slice(input);
    if let Ok(command) = ControlCommand::decode(bytes()) {
        assert_eq!(ControlCommand::decode(command.encode()), Ok(command));
    }
    if let Ok(answer) = ControlAnswer::decode(bytes()) {
        assert_eq!(ControlAnswer::decode(answer.encode()), Ok(answer));
    }
    if let Ok(key) = RowKey::decode(input) {
        assert_eq!(RowKey::decode(&key.encode()), Ok(key));
    }
    if let Ok(rows) = decode_rows(bytes()) {
        assert_eq!(decode_rows(encode_rows(rows.iter().cloned())), Ok(rows));
    }
    if let Ok(state) = ControlState::decode(bytes()) {
        assert_eq!(ControlState::decode(state.encode()), Ok(state));
    }
}

fn profile() -> NodeProfile {
    NodeProfile {
        name: "n1".into(),
        http: Some("h:1".into()),
        peer: "h:2".into(),
        resp: None,
        zone: "z".into(),
        weight: 1,
        formats: Formats { min: 1, max: 1 },
    }
}

pub(super) fn control_seeds() -> Vec<Vec<u8>> {
    let (node, group) = (NodeId(7), GroupId(2));
    let commands = [
        ControlCommand::AddNode { node, profile: profile(), replaces: Some(NodeId(6)) },
        ControlCommand::RemoveNode { node, removal: Removal::Dead },
        ControlCommand::SetGroup { group, expected_epoch: 3, voters: vec![node], learners: vec![NodeId(8)], preferred_leader: Some(node) },
        ControlCommand::ReseedReplica { group, replica: ReplicaId(9) },
        ControlCommand::ConfirmLeft { group, expected_epoch: 3, replicas: vec![ReplicaId(9)] },
        ControlCommand::RaiseFormat { level: 1 },
    ];
    let answers = [
        ControlAnswer::NodeAdded { node },
        ControlAnswer::GroupSet { group, epoch: 4 },
        ControlAnswer::Refused(Refusal::UnknownNode { node }),
    ];
    let mut seeds: Vec<Vec<u8>> = commands.iter().map(|command| command.encode().to_vec()).collect();
    seeds.extend(answers.iter().map(|answer| answer.encode().to_vec()));
    seeds.push(ControlState::genesis(ClusterId(1), node, profile(), 2, 3).encode().to_vec());
    seeds
}

/// A node's identity, a replica's state, a report, what it holds, an order to recover, a membership.
pub(super) fn node_state(input: &[u8]) {
    let bytes = || Bytes::copy_from_slice(input);
    if let Ok(identity) = Identity::decode(bytes()) {
        assert_eq!(Identity::decode(identity.encode()), Ok(identity));
    }
    if let Ok(state) = ReplicaState::decode(bytes()) {
        assert_eq!(ReplicaState::decode(state.encode()), Ok(state));
    }
    if let Ok(change) = MembershipChange::decode(bytes()) {
        assert_eq!(MembershipChange::decode(change.encode()), Ok(change));
    }
    if let Ok(membership) = Membership::decode(&mut Reader::new(bytes())) {
        let mut out = BytesMut::new();
        membership.encode(&mut out);
        assert_eq!(Membership::decode(&mut Reader::new(out.freeze())), Ok(membership));
    }
    fuzzing::report(bytes());
    fuzzing::recovery(bytes());
}

pub(super) fn node_state_seeds() -> Vec<Vec<u8>> {
    let genesis = Genesis { shards: 2, replicas: 3, profile: profile() };
    let created = Identity { cluster: Some(ClusterId(3)), genesis: Some(genesis), ..Identity::new(NodeId(7), "n1".into()) };
    let mut membership = Membership::default();
    membership.voters.insert(ReplicaId(1), NodeId(7));
    membership.learners.insert(ReplicaId(2), NodeId(8));
    let mut state = ReplicaState::new(membership.clone());
    state.checkpoint = Some((LogIndex(5), 6));
    let mut out = BytesMut::new();
    membership.encode(&mut out);
    vec![created.encode().to_vec(), state.encode().to_vec(), out.to_vec(), fuzzing::report_seed().to_vec()]
}

/// Everything that a frame may hold: Raft's messages, requests, replies, scans.
pub(super) fn peer_message(input: &[u8]) {
    let Ok(message) = PeerMessage::decode(&mut Reader::new(Bytes::copy_from_slice(input))) else { return };
    let once = encoded(&message);
    let mut reader = Reader::new(once.clone());
    let again = PeerMessage::decode(&mut reader).expect("our own bytes");
    reader.finish().expect("nothing is left over");
    assert_eq!(encoded(&again), once);
}

pub(super) fn encoded(message: &PeerMessage) -> Bytes {
    let mut out = BytesMut::new();
    message.encode(&mut out);
    out.freeze()
}

pub(super) fn messages() -> Vec<PeerMessage> {
    let group = GroupId(2);
    let forward = |request| PeerMessage::Forward(Forward { id: 5, expires_in_ms: 1000, group, term: None, request });
    let reply = |reply| PeerMessage::Reply { id: 5, reply, leader: Some(NodeId(7)) };
    let ask = ScanAsk {
        range: KeyRange::of_prefix(b"user/"),
        reverse: true,
        keys_only: false,
        items_max: 100,
        bytes_max: 1 << 20,
        fill: PageFill::Shares,
    };
    let item = ScanItem { key: key("k"), version: Version(7), value: Some(Bytes::from_static(b"value")) };
    let put =
        Request::Put { key: key("k"), value: Bytes::from_static(b"value"), ttl: Some(Duration::from_secs(1)), condition: condition() };
    vec![
        PeerMessage::Gone { group, replica: ReplicaId(3) },
        forward(Request::Get { key: key("k") }),
        forward(put.clone()),
        forward(put.once(Some(RequestId(9)))),
        forward(Request::Delete { key: key("k"), condition: Condition::ALWAYS }),
        forward(Request::Increment { key: key("k"), by: -1, condition: Condition::ALWAYS }),
        reply(Reply::Value { version: Version(7), value: Bytes::from_static(b"value") }),
        reply(Reply::Put { version: Version(7), created: true }),
        reply(Reply::Stale { lag_ms: 3, reply: Box::new(Reply::Absent) }),
        reply(Reply::Failed(Failure::unknown(FailureReason::Timeout, "no answer"))),
        PeerMessage::SnapshotTaken { group, transfer: 9, number: 1, accepted: true },
        PeerMessage::SnapshotChunk {
            group,
            from: ReplicaId(1),
            to: ReplicaId(2),
            transfer: 9,
            number: 0,
            bytes: Bytes::from_static(b"rows"),
            finish: None,
        },
        PeerMessage::ControlAsk { epoch: 3, orphan: Some((group, ReplicaId(3))) },
        PeerMessage::Checkpoint { group, replica: ReplicaId(3), index: LogIndex(9), hash: 1 },
        PeerMessage::Clock { wall: Timestamp(1) },
        PeerMessage::Unfit { reason: Unfit::SlowDisk },
        PeerMessage::Scan(ScanForward { number: 4, expires_in_ms: 1000, groups: vec![group, GroupId(3)], ask }),
        PeerMessage::ScanPart {
            number: 4,
            answer: Ok(ScanPart { chunk: ScanChunk { items: vec![item], more: true }, refused: vec![(group, Some(NodeId(7)))] }),
        },
        PeerMessage::ScanPart { number: 4, answer: Err(Failure::not_applied(FailureReason::NoQuorum, "none")) },
    ]
}

/// The first byte of a Raft message between nodes.
const RAFT: u8 = 1;

pub(super) fn peer_message_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = messages().iter().map(|message| encoded(message).to_vec()).collect();
    // Raft messages, as docs/formats.md draws them: their kind, to, from, term, and what the kind adds.
    let numbers = |count: u64| (1..=count).flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
    let entry = [&numbers(1)[..], &[0, 4, 0, 0, 0], b"data"].concat();
    let membership = [&[1, 0, 0, 0][..], &numbers(2), &[0; 12]].concat();
    let rests = [
        (1, [&numbers(3)[..], &[1, 0, 0, 0], &entry].concat()),
        (2, [&[1][..], &numbers(5)].concat()),
        (3, [&[0][..], &numbers(5)].concat()),
        (6, [&[0][..], &numbers(2)].concat()),
        (7, numbers(1)),
        (9, [&numbers(2)[..], &membership].concat()),
        (10, Vec::new()),
    ];
    seeds.extend(rests.map(|(kind, rest)| [&[RAFT, 2, 0, 0, 0, kind][..], &numbers(3), &rest].concat()));
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_a_message() {
        for seed in peer_message_seeds() {
            let mut reader = Reader::new(Bytes::from(seed.clone()));
            let read = PeerMessage::decode(&mut reader).map(|_| reader.remaining());
            assert_eq!(read, Ok(0), "{seed:?}");
        }
    }
}
