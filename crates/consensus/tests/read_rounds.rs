//! Rounds over several groups: who is asked what, whose answers count, and how rounds end.

mod cluster;

use bytes::{Bytes, BytesMut};
use cluster::membership;
use flotilla_consensus::{ReadConfirm, ReadConfirmed, ReadRounds, ReadToConfirm, ResolvedRead, confirmed_by};
use flotilla_types::wire::Reader;
use flotilla_types::{GroupId, Instant, LogIndex, Membership, NodeId, Term};
use std::time::Duration;

fn read(group: u32, membership: &Membership) -> ReadToConfirm<'_> {
    ReadToConfirm { group: GroupId(group), term: Term(u64::from(group)), read_index: LogIndex(10 + u64::from(group)), membership }
}

fn confirmed(round: u64, group: u32) -> ResolvedRead {
    ResolvedRead { round, group: GroupId(group), term: Term(group.into()), read_index: Some(LogIndex(10 + u64::from(group))) }
}

/// Replica `n` is on node `100 + n`.
fn node(replica: u64) -> NodeId {
    NodeId(100 + replica)
}

#[test]
fn one_question_a_node_lists_the_groups_it_votes_in() {
    let (all, some, alone) = (membership(&[1, 2, 3], &[]), membership(&[1, 3, 4], &[2]), membership(&[1], &[2]));
    let mut rounds = ReadRounds::new(node(1));
    let mut resolved = Vec::new();
    let round = rounds.begin(Instant::ZERO, [read(1, &all), read(2, &alone), read(3, &some)], &mut resolved);
    assert_eq!(resolved, [confirmed(round, 2)], "a lone voter needs nobody");
    let both = vec![(GroupId(1), Term(1)), (GroupId(3), Term(3))];
    let expected = vec![
        (node(2), ReadConfirm { round, groups: both[..1].to_vec() }),
        (node(3), ReadConfirm { round, groups: both.clone() }),
        (node(4), ReadConfirm { round, groups: both[1..].to_vec() }),
    ];
    assert_eq!(rounds.questions(round), expected);

    // Each node's places are counted in its own question: the only group of n4 is the second of n3.
    resolved.clear();
    let yes = |_, _| true;
    rounds.confirm(node(4), &expected[2].1.answer(yes), &mut resolved);
    assert_eq!(resolved, [confirmed(round, 3)]);
    resolved.clear();
    rounds.confirm(node(3), &expected[1].1.answer(|group, _| group == GroupId(3)), &mut resolved);
    assert_eq!(resolved, [], "it was answered already, and n3 does not share the term of the first");
    rounds.confirm(node(2), &expected[0].1.answer(yes), &mut resolved);
    assert_eq!((resolved, rounds.open_count()), (vec![confirmed(round, 1)], 0));
}

#[test]
fn an_answer_counts_for_its_own_round_only() {
    let all = membership(&[1, 2, 3], &[]);
    let mut rounds = ReadRounds::new(node(1));
    let mut resolved = Vec::new();
    let first = rounds.begin(Instant::ZERO, [read(1, &all)], &mut resolved);
    let second = rounds.begin(Instant::ZERO, [read(1, &all)], &mut resolved);
    let answer = |round| ReadConfirmed { round, confirmed: Bytes::from_static(&[1]) };
    rounds.confirm(node(2), &answer(second), &mut resolved);
    assert_eq!(resolved, [confirmed(second, 1)]);
    rounds.confirm(node(2), &answer(second), &mut resolved);
    rounds.confirm(node(9), &answer(first), &mut resolved);
    rounds.confirm(node(2), &ReadConfirmed { round: first, confirmed: Bytes::new() }, &mut resolved);
    rounds.confirm(node(2), &answer(second + 1), &mut resolved);
    assert_eq!(resolved.len(), 1, "repeated, foreign, empty and unknown answers change nothing");
    rounds.confirm(node(3), &answer(first), &mut resolved);
    assert_eq!(resolved[1..], [confirmed(first, 1)]);
}

#[test]
fn rounds_end_by_time_and_by_loss_of_leadership() {
    let all = membership(&[1, 2, 3], &[]);
    let mut rounds = ReadRounds::new(node(1));
    let mut resolved = Vec::new();
    let late = Instant::ZERO + Duration::from_secs(1);
    let first = rounds.begin(Instant::ZERO, [read(1, &all), read(2, &all)], &mut resolved);
    let second = rounds.begin(late, [read(2, &all)], &mut resolved);
    rounds.drop_group(GroupId(1), &mut resolved);
    rounds.expire(late, Duration::from_millis(600), &mut resolved);
    let ended: Vec<_> = resolved.iter().map(|read| (read.round, read.group, read.read_index)).collect();
    assert_eq!(ended, [(first, GroupId(1), None), (first, GroupId(2), None)]);
    assert_eq!(rounds.open_count(), 1);
    rounds.confirm(node(2), &ReadConfirmed { round: second, confirmed: Bytes::from_static(&[1]) }, &mut resolved);
    assert_eq!((resolved.last(), rounds.open_count()), (Some(&confirmed(second, 2)), 0));
}

#[test]
fn a_forwarder_of_three_confirms_on_arrival() {
    let mut joint = membership(&[1, 2, 3], &[4]);
    assert!(confirmed_by(&joint, [node(1), node(2)]));
    assert!(!confirmed_by(&joint, [node(1), node(4)]), "learners do not count");
    joint.outgoing = membership(&[1, 5, 6], &[]).voters;
    assert!(!confirmed_by(&joint, [node(1), node(2)]), "nor does one half");
    assert!(confirmed_by(&joint, [node(1), node(2), node(5)]));
}

#[test]
fn questions_and_answers_are_read_as_written() {
    let question = ReadConfirm { round: 7, groups: (0..9).map(|n| (GroupId(n), Term(u64::from(n) + 1))).collect() };
    let answer = question.answer(|group, term| group.0 % 2 == 0 && term.0 < 9);
    let mut out = BytesMut::new();
    question.encode(&mut out);
    answer.encode(&mut out);
    let mut reader = Reader::new(out.freeze());
    assert_eq!(ReadConfirm::decode(&mut reader), Ok(question));
    assert_eq!(ReadConfirmed::decode(&mut reader), Ok(answer.clone()));
    assert_eq!(&answer.confirmed[..], [0b0101_0101, 0], "bit by bit");
}
