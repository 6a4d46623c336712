//! One node, and what others would say to it: no disk, no network.

use super::*;
use crate::boot::Identity;
use crate::control::{ControlState, Formats, GroupRecord, NodeProfile};
use crate::event::Event;
use crate::fitness::Unfit;
use crate::node::{Link, NodeConfig};
use bytes::{BufMut, BytesMut};
use flotilla_storage::log::{Damage, Recovered, RecoveredReplica};
use flotilla_types::wire::Reader;
use flotilla_types::{ClusterId, HardState, Instant, Member, Membership, ReplicaId, Rng, Timestamp};
use std::time::Duration;

const SHARD: ReplicaKey = ReplicaKey { group: GroupId(1), replica: ReplicaId(1) };
/// Where the shard's log began.
const BIRTH: (LogIndex, Term) = (LogIndex(1), Term(1));

fn at(seconds: u64) -> Now {
    Now { instant: Instant::ZERO + Duration::from_secs(seconds), wall: Timestamp(1) }
}

fn start(recovered: Recovered, states: BTreeMap<ReplicaKey, ReplicaState>, config: NodeConfig) -> Node {
    let (text, formats) = (|text: &str| text.to_owned(), Formats { min: 1, max: 1 });
    let profile = NodeProfile { name: text("n"), http: None, peer: text("h:1"), resp: None, zone: text("z"), weight: 100, formats };
    let control = ControlState::genesis(ClusterId(1), NodeId(1), profile, 1, 1).encode();
    let identity = Identity { cluster: Some(ClusterId(1)), control, ..Identity::new(NodeId(1), text("n")) };
    Node::start(config, identity, recovered, states, Rng::new(1), at(0)).expect("it starts")
}

/// A node that is wanted to hold replica 2, and whose log knows of none.
fn empty(damage: Vec<Damage>) -> Node {
    let recovered = Recovered { identity: None, replicas: BTreeMap::new(), tombstones: Default::default(), damage };
    start(recovered, BTreeMap::new(), NodeConfig::default())
}

fn members() -> Vec<Member> {
    (1..=3).map(|id| Member { replica: ReplicaId(id), node: NodeId(id) }).collect()
}

/// What a replica of the shard says to this one in term 2: a kind, and what belongs to it.
fn said(from: u64, kind: u8, rest: &[&[u8]]) -> Message {
    let mut bytes = BytesMut::new();
    bytes.put_u8(kind);
    [SHARD.replica.0, from, 2].into_iter().for_each(|number| bytes.put_u64_le(number));
    rest.iter().for_each(|rest| bytes.put_slice(rest));
    Message::decode(&mut Reader::new(bytes.freeze())).expect("a message")
}

/// "My log is yours up to here."
fn matches(from: u64, index: u64) -> Message {
    said(from, 2, &[&[0], &index.to_le_bytes(), &0_u64.to_le_bytes()])
}

/// A node that leads the shard with voters on nodes 1, 2 and 3, its log kept within `keep_bytes`.
fn leading(keep_bytes: usize) -> Node {
    let shard = RecoveredReplica {
        hard_state: HardState { term: BIRTH.1, commit: BIRTH.0, ..HardState::default() },
        start: BIRTH,
        entries: Vec::new(),
        install: None,
        is_lost: false,
    };
    let state = ReplicaState { applied: BIRTH, ..ReplicaState::new(Membership::of_voters(members())) };
    let recovered = Recovered { identity: None, replicas: [(SHARD, shard)].into(), tombstones: Default::default(), damage: Vec::new() };
    let mut node = start(recovered, [(SHARD, state)].into(), NodeConfig { log_keep_bytes: keep_bytes, ..NodeConfig::default() });
    let record = node.control.groups.get_mut(&SHARD.group).expect("genesis makes it");
    *record = GroupRecord { voters: members(), ..record.clone() };
    for peer in [NodeId(2), NodeId(3)] {
        node.links.insert(peer, Link { up: true, since: Instant::ZERO });
    }
    shard_of(&mut node).group.campaign();
    turn(&mut node);
    for kind in [4, 6] {
        // The answers to a pre-vote and to a vote.
        node.handle_raft(NodeId(2), SHARD.group, said(2, kind, &[&[0], &[0; 16]]), at(0));
        turn(&mut node);
    }
    assert!(shard_of(&mut node).is_leader());
    // Both have its first entry: from here on they are sent all that comes, unasked.
    for follower in [2, 3] {
        node.handle_raft(NodeId(follower), SHARD.group, matches(follower, 2), at(0));
    }
    turn(&mut node);
    node
}

fn shard_of(node: &mut Node) -> &mut Replica {
    node.replicas.get_mut(&SHARD.group).expect("it is here")
}

/// What a turn sends to each node about the shard, as the number of entries of each append; its log job is done at once.
fn turn(node: &mut Node) -> BTreeMap<NodeId, Vec<usize>> {
    let mut sent: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    loop {
        let effects = node.flush(at(0));
        for (to, message) in effects.messages {
            if let PeerMessage::Raft { message, .. } = message
                && message.entry_count() > 0
            {
                sent.entry(to).or_default().push(message.entry_count());
            }
        }
        let Some(job) = effects.log else { return sent };
        node.handle(Event::LogSynced { job: job.number }, at(0));
    }
}

/// Proposes an entry of so many bytes; gives what the turn sends.
fn propose(node: &mut Node, bytes: usize) -> BTreeMap<NodeId, Vec<usize>> {
    shard_of(node).group.propose(Bytes::from(vec![0; bytes])).expect("it leads");
    node.dirty.insert(SHARD.group);
    turn(node)
}

#[test]
fn what_a_damaged_log_may_have_lost_is_not_made_anew() {
    let key = ReplicaKey { group: GroupId(1), replica: ReplicaId(2) };
    let mut sound = empty(Vec::new());
    assert!(sound.ensure_replica(key, NodeId(2), at(0)), "wanted, and never here");

    let damage = Damage { file: "1.log".to_owned(), offset: 7, reason: "a flipped bit".to_owned(), replicas: Vec::new() };
    let mut damaged = empty(vec![damage]);
    assert!(!damaged.ensure_replica(key, NodeId(2), at(0)));
    assert!(damaged.tombstones.is_empty(), "what the cluster looks like now is not known yet");
    // Its replica of the control group is gone, and it is recorded as one that needs no copies.
    damaged.handle_control_epoch(NodeId(2), 9, at(0));
    assert!(matches!(damaged.out.messages.as_slice(), [.., (NodeId(2), PeerMessage::ControlAsk { .. })]));
    damaged.handle_control_epoch(NodeId(2), 1, at(0));
    assert!(!damaged.ensure_replica(key, NodeId(2), at(0)));
    assert!(damaged.tombstones.contains(&key) && damaged.supervision.reseeds.contains(&key), "it is asked for under another id");
    // Given out after the confirmation: it was never here.
    damaged.first_new_replica = Some(2);
    damaged.tombstones.clear();
    assert!(damaged.ensure_replica(key, NodeId(2), at(0)));
}

#[test]
fn an_append_that_was_not_sent_is_sent_again() {
    let mut node = leading(usize::MAX);
    let all = |entries: usize| [2, 3].map(|id| (NodeId(id), vec![entries])).into();
    assert_eq!(propose(&mut node, 10), all(1));
    assert_eq!(propose(&mut node, 10), all(1), "only what is new");
    node.handle(Event::AppendUnsent { group: SHARD.group, to: ReplicaId(3) }, at(0));
    assert_eq!(propose(&mut node, 10), [(NodeId(2), vec![1]), (NodeId(3), vec![3])].into());
}

#[test]
fn how_much_is_kept_for_slow_followers_depends_on_how_much_is_kept_in_all() {
    // The log's first entries: what each follower has, how much is kept, and how far it may then be purged of 4, 5, 6 and 7.
    let purged = |keep_bytes: usize, answers: &[(u64, u64)], later: u64| {
        let mut node = leading(keep_bytes);
        (0..4).for_each(|_| drop(propose(&mut node, 1000)));
        for (follower, index) in answers {
            node.handle_raft(NodeId(*follower), SHARD.group, matches(*follower, *index), at(later));
        }
        turn(&mut node);
        let persisted = shard_of(&mut node).group.commit();
        shard_of(&mut node).group.on_applied(persisted);
        node.handle_persisted(&[(SHARD, persisted)].into(), at(later));
        shard_of(&mut node).group.first_index().0
    };
    let (both, one_behind, one_gone) = ([(2, 6), (3, 6)], [(2, 6), (3, 4)], [(2, 6)]);
    assert_eq!(purged(1 << 20, &one_behind, 0), 2, "there is room for all");
    assert_eq!(purged(3000, &both, 0), 7, "nobody lacks what is purged");
    assert_eq!(purged(3000, &one_behind, 0), 5, "what a follower that answers lacks is kept");
    assert_eq!(purged(3000, &one_gone, 5), 7, "one that does not answer is not waited for");
    assert_eq!(purged(1000, &one_behind, 0), 7, "more than twice the bound: it gets a snapshot");
}

#[test]
fn damaged_rows_are_given_up_only_where_enough_other_copies_answer() {
    let damage = |node: &mut Node, now: Now| node.handle_damaged_rows(SHARD, "a flipped bit".to_owned(), now);
    let mut node = leading(usize::MAX);
    damage(&mut node, at(1));
    assert!(node.tombstones.contains(&SHARD), "both others have answered within three seconds");

    let mut node = leading(usize::MAX);
    damage(&mut node, at(9));
    assert!(node.tombstones.is_empty(), "their nodes are up, their replicas are not heard");
    node.handle_raft(NodeId(2), SHARD.group, matches(2, 2), at(9));
    damage(&mut node, at(9));
    assert!(node.tombstones.is_empty(), "one of three is no majority");
    node.handle_raft(NodeId(3), SHARD.group, matches(3, 2), at(9));
    damage(&mut node, at(9));
    assert!(node.tombstones.contains(&SHARD));
}

#[test]
fn a_request_is_not_forwarded_to_a_node_that_was_removed() {
    let mut node = empty(Vec::new());
    let mut control = node.control.clone();
    let mut others = control.nodes[&NodeId(1)].clone();
    for (id, name) in [(2, "n2"), (3, "n3")] {
        others.profile.name = name.to_owned();
        control.nodes.insert(NodeId(id), others.clone());
    }
    control.groups.get_mut(&SHARD.group).expect("genesis makes it").voters = members()[1..].to_vec();
    control.epoch += 1;
    node.adopt_control(&control);
    node.handle(Event::LinkUp { peer: NodeId(2) }, at(0));
    node.handle(Event::LinkUp { peer: NodeId(3) }, at(0));
    node.note_not_leader(SHARD.group, NodeId(3), Some(NodeId(2)), at(0));

    control.nodes.get_mut(&NodeId(2)).expect("just made").state = crate::control::NodeState::Removed;
    control.epoch += 1;
    node.adopt_control(&control);
    // Late news.
    node.handle(Event::LinkUp { peer: NodeId(2) }, at(0));
    let request = Request::Get { key: flotilla_types::Key::new("k").expect("short") };
    node.handle_request(crate::event::Ticket(1), request, at(5).instant, at(0));
    let forwarded = node.out.messages.iter().filter(|(_, message)| matches!(message, PeerMessage::Forward(_)));
    assert_eq!(forwarded.map(|(to, _)| *to).collect::<Vec<_>>(), [NodeId(3)]);
}

#[test]
fn nothing_is_handed_to_a_node_that_leaves_or_is_gone() {
    let mut node = leading(1 << 20);
    node.control.groups.get_mut(&SHARD.group).expect("genesis makes it").preferred_leader = Some(NodeId(2));
    node.handle_unfit(NodeId(2), Unfit::ShuttingDown, at(5));
    node.handle_control_epoch(NodeId(2), 0, at(5));
    node.supervise(at(5));
    assert!(!shard_of(&mut node).group.is_transferring());
    // It is silent about that: it was started again.
    node.handle_control_epoch(NodeId(2), 0, at(9));
    node.supervise(at(9));
    assert!(shard_of(&mut node).group.is_transferring());
    node.handle(Event::LinkDown { peer: NodeId(2), refused: true }, at(9));
    assert!(!shard_of(&mut node).group.is_transferring());
}

#[test]
fn a_node_that_leaves_says_so_before_it_hands_anything_over() {
    let mut node = leading(1 << 20);
    node.handle(Event::ShutDown, at(5));
    let messages = node.flush(at(5)).messages;
    assert!(matches!(messages.first(), Some((_, PeerMessage::Unfit { reason: Unfit::ShuttingDown }))), "{messages:?}");
    assert!(messages.iter().any(|(_, message)| matches!(message, PeerMessage::Raft { .. })), "{messages:?}");
}
