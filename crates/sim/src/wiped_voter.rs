//! A voter that lost its data-dir: an acknowledged entry was on it and on the leader alone, and the leader dies right behind it.
//! Three voters, of which one is empty and one lacks the entry, would elect each other if the empty one were still a voter.

use crate::history::Moment;
use crate::network::HostNumber;
use crate::scenario::{Family, Scenario};
use crate::trace::Lines;
use crate::verdict;
use crate::world::{Happening, World};
use bytes::Bytes;
use flotilla_node::{Event, Reply, Request, Ticket};
use flotilla_types::{Condition, GroupId, Key, NodeId, PlantedFault};
use std::time::Duration;

const GROUP: GroupId = GroupId(1);
const VALUE: &[u8] = b"acknowledged";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A world of three voters without faults but those that the test makes.
fn three_voters(seed: u64, plant: Option<PlantedFault>) -> World {
    let mut scenario = Scenario::draw(seed, plant, Some(Family::Wipes));
    (scenario.hosts, scenario.grows, scenario.shards, scenario.replicas) = (3, false, 1, 3);
    scenario.faults = Vec::new();
    scenario.workload.clients = 0;
    scenario.drift_ppm_max = 0;
    let mut world = World::new(seed, scenario, Lines::Dropped);
    world.healed = true;
    while !verdict::is_placed(&world) {
        world.run_until(world.now + Duration::from_millis(200));
        assert!(world.now < Moment(0) + seconds(60), "three nodes become three voters");
    }
    world
}

fn leader(world: &World, group: GroupId) -> Option<HostNumber> {
    let leaders = verdict::views(world).into_iter().filter(|(_, view)| view.group == group && view.leader == Some(view.replica));
    leaders.max_by_key(|(_, view)| view.term).map(|(number, _)| number)
}

fn key() -> Key {
    Key::new("the key").expect("a short key is a key")
}

/// Asks a node and waits for its answer, as a client would.
fn ask(world: &mut World, number: HostNumber, request: Request, patience: Duration) -> Option<Reply> {
    let ticket = Ticket((1 << 60) + world.now.0);
    let until = world.now + patience;
    let expires = world.hosts[number].clock.now(world.now).instant + patience;
    world.watched = Some((ticket.0, None));
    world.give(number, Event::Request { ticket, request, expires });
    while world.now < until && world.violation.is_none() {
        world.run_until(world.now + Duration::from_millis(5));
        if let Some((_, Some(_))) = &world.watched {
            break;
        }
    }
    world.watched.take().and_then(|(_, reply)| reply)
}

/// What came of it.
struct Seen {
    /// Who led the group while neither of those that had the entry was there.
    usurper: Option<HostNumber>,
    /// The old and the new id of the node that lost its data.
    ids: (NodeId, Option<NodeId>),
    /// What is read in the end, everyone being back.
    value: Option<Bytes>,
    /// What the checkers say of it.
    violation: Option<String>,
}

/// The leader and one follower have the entry, the other follower is `deaf`; the follower that has it loses its data-dir and
/// comes back empty; the leader dies before (`rejoins_first` is false) or just after that node was taken in again.
fn wiped_voter(seed: u64, rejoins_first: bool, plant: Option<PlantedFault>) -> Seen {
    let mut world = three_voters(seed, plant);
    let leads = leader(&world, GROUP).expect("a group at rest has a leader");
    // The control group is to go on without the one that is wiped, so that it can be taken in again.
    let [wiped, deaf] = [1, 2].map(|step| (leads + step) % 3);
    world.deaf = Some((GROUP, deaf));
    let put = Request::Put { key: key(), value: VALUE.into(), ttl: None, condition: Condition::ALWAYS };
    let reply = ask(&mut world, leads, put, seconds(5));
    assert!(matches!(reply, Some(Reply::Put { .. })), "seed {seed}: two of three have it: {reply:?}");

    let old = world.hosts[wiped].node_id().expect("it runs");
    if plant == Some(PlantedFault::ReseedUnderOldReplicaId) {
        world.hosts[wiped].kept_id = Some(old);
    }
    world.kill(wiped, true);
    world.empty_data_dir(wiped);
    world.plan(Duration::from_millis(20), Happening::Start(wiped, world.hosts[wiped].life));
    if rejoins_first {
        let until = world.now + seconds(30);
        while !world.is_member(wiped) {
            world.run_until(world.now + Duration::from_millis(1));
            assert!(world.now < until && world.violation.is_none(), "seed {seed}: it joins: {:?}", world.violation);
        }
    }
    let new = rejoins_first.then(|| world.hosts[wiped].node_id().expect("it runs"));
    world.kill(leads, true);
    world.deaf = None;

    let mut usurper = None;
    let until = world.now + seconds(40);
    while world.now < until && world.violation.is_none() {
        world.run_until(world.now + Duration::from_millis(100));
        usurper = usurper.or(leader(&world, GROUP));
    }
    world.plan(Duration::ZERO, Happening::Start(leads, world.hosts[leads].life));
    world.run_until(world.now + seconds(1));
    world.rest();
    let value = match ask(&mut world, deaf, Request::Get { key: key() }, seconds(10)) {
        Some(Reply::Value { value, .. }) => Some(value),
        _ => None,
    };
    let ids = (old, new.or(world.hosts[wiped].node_id()));
    Seen { usurper, ids, value, violation: world.violation.map(|violation| violation.to_string()) }
}

#[test]
fn an_entry_that_only_the_leader_and_a_wiped_voter_had_survives_the_leaders_death() {
    for seed in 0..8 {
        for rejoins_first in [false, true] {
            let seen = wiped_voter(seed, rejoins_first, None);
            assert_eq!(seen.violation, None, "seed {seed}, {rejoins_first}");
            assert_eq!(seen.usurper, None, "seed {seed}, {rejoins_first}: somebody led without the entry");
            assert_ne!(Some(seen.ids.0), seen.ids.1, "seed {seed}, {rejoins_first}: a wiped node is another node");
            assert_eq!(seen.value.as_deref(), Some(VALUE), "seed {seed}, {rejoins_first}: the entry is there again");
        }
    }
}

/// The same with a node that comes back empty under its old id, and so as the voter it was: the test can fail.
#[test]
fn a_wiped_node_under_its_old_id_does_harm() {
    let plant = Some(PlantedFault::ReseedUnderOldReplicaId);
    let does_harm = |seed: &u64| {
        let seen = wiped_voter(*seed, true, plant);
        seen.usurper.is_some() || seen.violation.is_some() || seen.value.as_deref() != Some(VALUE)
    };
    assert!((0..8).any(|seed| does_harm(&seed)), "nothing is lost");
}
