//! What must not stop a replica: messages that no correct peer sends, and disks that fit badly.

mod cluster;

use bytes::{BufMut, Bytes, BytesMut};
use cluster::{BIRTH, Cluster, HEARTBEAT_TICKS, membership, open};
use flotilla_consensus::{ConsensusError, Group, GroupConfig, Message, ProposeError, RaftRole, Restored, StepError};
use flotilla_types::wire::Reader;
use flotilla_types::{Entry, EntryKind, HardState, LogIndex, ReplicaId, Rng, Term};

fn message(kind: u8, from: u64, to: u64, term: u64, rest: &[u64]) -> Message {
    let mut bytes = BytesMut::new();
    bytes.put_u8(kind);
    [to, from, term].iter().chain(rest).for_each(|number| bytes.put_u64_le(*number));
    Message::decode(&mut Reader::new(bytes.freeze())).expect("a message")
}

fn append(term: u64, log_term: u64, index: u64, commit: u64, entries: &[(u64, EntryKind, &[u8])]) -> Message {
    let mut bytes = BytesMut::new();
    bytes.put_u8(1);
    [2, 1, term, log_term, index, commit].iter().for_each(|number| bytes.put_u64_le(*number));
    bytes.put_u32_le(entries.len() as u32);
    for (term, kind, data) in entries {
        bytes.put_u64_le(*term);
        bytes.put_u8(*kind as u8);
        bytes.put_u32_le(data.len() as u32);
        bytes.put_slice(data);
    }
    Message::decode(&mut Reader::new(bytes.freeze())).expect("a message")
}

/// n2 of three, following n1 in term 2 with entries up to 3, all committed.
fn follower() -> Cluster {
    let mut cluster = Cluster::new(&[1, 2, 3], &[]);
    cluster.group(1).campaign();
    cluster.settle();
    cluster.group(1).propose(Bytes::from_static(b"a")).expect("the leader takes it");
    cluster.settle();
    (0..HEARTBEAT_TICKS).for_each(|_| cluster.group(1).tick());
    cluster.settle();
    assert_eq!(cluster.group(2).commit(), LogIndex(3));
    cluster
}

#[test]
fn impossible_messages_are_refused() {
    let mut cluster = follower();
    let group = cluster.group(2);
    let normal = EntryKind::Normal;
    let claimed = StepError::CommitPastEnd { claimed: LogIndex(9), last: LogIndex(3) };
    assert_eq!(group.step(message(7, 1, 2, 2, &[9])), Err(claimed), "a heartbeat past the end of the log");
    assert_eq!(group.step(message(7, 1, 3, 2, &[3])), Err(StepError::OtherReplica(ReplicaId(3))));
    let invalid = [
        ("a sender that is nobody", message(7, 0, 2, 2, &[3])),
        ("a sender that is the receiver", message(7, 2, 2, 2, &[3])),
        ("term 0", message(7, 1, 2, 0, &[3])),
        ("a term near overflow", message(7, 1, 2, u64::MAX, &[3])),
        ("entries behind a gap, by term 0", append(2, 0, 9, 9, &[(2, normal, b"x")])),
        ("entries of a later term than the leader's", append(2, 2, 3, 3, &[(3, normal, b"x")])),
        ("entries whose terms go back", append(3, 2, 3, 3, &[(3, normal, b"x"), (2, normal, b"y")])),
        ("a position of a later term", append(2, 3, 9, 3, &[])),
        ("a membership entry that cannot be read", append(2, 2, 3, 3, &[(2, EntryKind::Membership, b"?")])),
    ];
    for (what, message) in invalid {
        assert!(matches!(group.step(message), Err(StepError::Invalid(_))), "{what}");
    }
    assert!(!group.has_ready(), "nothing has changed");
}

#[test]
fn a_leader_refuses_acknowledgements_of_what_it_never_sent() {
    let mut cluster = follower();
    let mut bytes = BytesMut::new();
    bytes.put_u8(2);
    [1, 2, 2].iter().for_each(|number| bytes.put_u64_le(*number));
    bytes.put_u8(0);
    [99, 3].iter().for_each(|number| bytes.put_u64_le(*number));
    let answer = Message::decode(&mut Reader::new(bytes.freeze())).expect("a message");
    assert!(matches!(cluster.group(1).step(answer), Err(StepError::Invalid(_))));
    let stranger = message(8, 77, 1, 2, &[3]);
    assert_eq!(cluster.group(1).step(stranger), Err(StepError::UnknownSender(ReplicaId(77))));
}

/// Whatever a peer sends, replicas neither panic nor lose what they had committed.
#[test]
fn garbage_never_stops_a_replica() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut cluster = follower();
        for _ in 0..40 {
            let to = rng.between(1, 3);
            let number = |rng: &mut Rng| if rng.chance(1, 8) { rng.next_u64() } else { rng.below(7) };
            let mut bytes = BytesMut::new();
            bytes.put_u8(rng.between(1, 10) as u8);
            bytes.put_u64_le(to);
            bytes.put_u64_le(rng.below(5));
            bytes.put_u64_le(number(&mut rng));
            // Flags, numbers, counts and entries as chance has them; what does not decode is no message.
            if rng.chance(1, 2) {
                bytes.put_u8(rng.below(2) as u8);
            }
            for _ in 0..rng.below(9) {
                if rng.chance(1, 4) { bytes.put_u32_le(rng.below(3) as u32) } else { bytes.put_u64_le(number(&mut rng)) }
            }
            if let Ok(message) = Message::decode(&mut Reader::new(bytes.freeze()))
                && !message.is_snapshot()
            {
                let _ = cluster.group(to).step(message);
            }
            if rng.chance(1, 3) {
                cluster.group(to).tick();
                cluster.work();
                cluster.deliver();
            }
        }
        for replica in cluster.replicas.values() {
            assert_eq!(replica.disk.values.first().map(String::as_str), Some("a"), "seed {seed}");
        }
    }
}

#[test]
fn truncated_messages_do_not_decode() {
    let mut cluster = follower();
    cluster.group(1).propose(Bytes::from_static(b"value")).expect("the leader takes it");
    let ready = cluster.group(1).take_ready().expect("there is something to send");
    for message in ready.send_now {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        let bytes = bytes.freeze();
        assert_eq!(Message::decode(&mut Reader::new(bytes.clone())), Ok(message), "what was written is read");
        for length in 0..bytes.len() {
            assert!(Message::decode(&mut Reader::new(bytes.slice(..length))).is_err(), "cut at {length}");
        }
    }
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index: LogIndex(index), term: Term(term), kind: EntryKind::Normal, data: Bytes::new() }
}

fn restore(restored: Restored) -> Result<Group, ConsensusError> {
    let config = GroupConfig { replica: ReplicaId(1), ..GroupConfig::default() };
    Group::new(config, Restored { membership: membership(&[1], &[]), start: BIRTH, ..restored }, Rng::new(1))
}

#[test]
fn a_commit_mark_ahead_of_the_log_is_cut() {
    let hard_state = HardState { term: Term(2), vote: None, commit: LogIndex(99) };
    let group = restore(Restored { hard_state, applied: LogIndex(2), entries: vec![entry(2, 1), entry(3, 2)], ..Restored::default() });
    assert_eq!(group.map(|group| group.commit()).ok(), Some(LogIndex(3)));
}

#[test]
fn a_commit_mark_behind_the_store_is_raised() {
    let group = restore(Restored { applied: LogIndex(2), entries: vec![entry(2, 1), entry(3, 2)], ..Restored::default() });
    let group = group.expect("log and store fit");
    assert_eq!((group.commit(), group.term()), (LogIndex(2), Term(2)), "the log's last term was seen");
}

#[test]
fn a_log_that_does_not_fit_the_store_is_damage() {
    let of = |applied, entries| restore(Restored { applied: LogIndex(applied), entries, ..Restored::default() }).err();
    assert_eq!(of(5, vec![]), Some(ConsensusError::AppliedPastEnd { applied: LogIndex(5), last: LogIndex(1) }));
    assert_eq!(of(0, vec![]), Some(ConsensusError::AppliedBeforeStart { applied: LogIndex(0), start: LogIndex(1) }));
    assert_eq!(of(1, vec![entry(3, 1)]), Some(ConsensusError::Entries(LogIndex(3))));
    assert_eq!(of(1, vec![entry(2, 2), entry(3, 1)]), Some(ConsensusError::Entries(LogIndex(3))));
}

#[test]
fn uncommitted_bytes_are_bounded() {
    let config = GroupConfig { replica: ReplicaId(1), uncommitted_bytes_max: 1 << 20, ..GroupConfig::default() };
    let restored = Restored { membership: membership(&[1], &[]), start: BIRTH, applied: BIRTH.0, ..Restored::default() };
    let mut group = Group::new(config, restored, Rng::new(1)).expect("a new group");
    assert_eq!(group.propose(Bytes::new()), Err(ProposeError::NotLeader));
    group.campaign();
    let half = Bytes::from(vec![0; 1 << 19]);
    assert!(group.propose(half.clone()).is_ok() && group.propose(half.clone()).is_ok());
    assert_eq!(group.propose(half.clone()), Err(ProposeError::TooMuchUncommitted));
    let ready = group.take_ready().expect("entries to write");
    group.on_persisted(ready.number);
    assert!(group.take_ready().is_some_and(|ready| ready.committed.len() == 3));
    assert!(group.propose(half).is_ok());
}

#[test]
fn one_seed_gives_one_history() {
    let history = |seed: u64| {
        let mut cluster = Cluster { seed, ..Cluster::default() };
        for id in 1..=3 {
            let disk = cluster::Disk { start: BIRTH, applied: BIRTH.0, membership: membership(&[1, 2, 3], &[]), ..Default::default() };
            cluster.add(id, disk);
        }
        for turn in 0..500 {
            cluster.replicas.values_mut().for_each(|replica| replica.group.tick());
            cluster.settle();
            // Leaders are lost again and again, so that many timeouts are drawn.
            if turn % 90 == 89 {
                cluster.cut.clear();
                cluster.cut.extend(cluster.leader());
            }
        }
        cluster.trace
    };
    assert_eq!(history(1), history(1));
    assert_ne!(history(1), history(2));
}

#[test]
fn election_timeouts_are_within_their_bounds() {
    for seed in 0..50 {
        let disk = cluster::Disk { start: BIRTH, applied: BIRTH.0, membership: membership(&[1, 2, 3], &[]), ..Default::default() };
        let mut group = open(1, &disk, seed);
        let ticks = (1..=61).find(|_| {
            group.tick();
            group.role() == RaftRole::PreCandidate
        });
        assert!(ticks.is_some_and(|ticks| (30..=60).contains(&ticks)), "seed {seed}: {ticks:?}");
    }
}

#[test]
fn a_large_append_on_its_way_is_not_sent_again_on_every_heartbeat() {
    let mut cluster = follower();
    cluster.group(1).report_unreachable(ReplicaId(2));
    cluster.group(1).propose(Bytes::from(vec![7; 100 << 10])).expect("the leader takes it");
    cluster.cut.insert(2);
    cluster.settle();
    let mut appends = |ticks: usize| {
        (0..ticks).for_each(|_| cluster.group(1).tick());
        cluster.group(1).step(message(8, 2, 1, 2, &[3])).expect("an answer that overtook the append's");
        let ready = cluster.group(1).take_ready().expect("heartbeats at least");
        let count = ready.send_now.iter().filter(|message| message.to() == ReplicaId(2) && message.entry_count() > 0).count();
        cluster.persist_one(1, ready);
        count
    };
    let timeout = GroupConfig::default().election_ticks_min;
    assert_eq!((appends(HEARTBEAT_TICKS), appends(HEARTBEAT_TICKS)), (0, 0));
    assert_eq!(appends(timeout - HEARTBEAT_TICKS), 1, "it may be lost");
    assert_eq!(appends(HEARTBEAT_TICKS), 0);
}
