//! A copy that is damaged where there is no other: a scrub finds it, the node goes on and takes no more writes.

use crate::history::Moment;
use crate::host::Process;
use crate::scenario::{Family, Scenario};
use crate::trace::Lines;
use crate::world::World;
use flotilla_node::{Event, FailureReason, Reply, Request, Ticket};
use flotilla_storage::store::layout::{self, RowKind};
use flotilla_types::{Condition, Key, PlantedFault};
use std::time::Duration;

#[test]
fn a_damaged_lone_copy_takes_no_writes_and_its_node_goes_on() {
    let mut scenario = Scenario::draw(1, Some(PlantedFault::RowLost), Some(Family::Damage));
    (scenario.hosts, scenario.grows, scenario.shards) = (1, false, 1);
    scenario.faults = vec![crate::coverage::Fault::Growth];
    let mut world = World::new(1, scenario, Lines::Dropped);
    world.run_until(Moment(0) + Duration::from_secs(5));
    let put = |world: &mut World, ticket: u64| {
        let now = world.hosts[0].clock.now(world.now);
        let Some(Process::Running(running)) = &mut world.hosts[0].process else { panic!("it runs") };
        let key = Key::new("a key that no client asks for").expect("a key");
        let request = Request::Put { key, value: "x".into(), ttl: None, condition: Condition::ALWAYS };
        running.node.handle(Event::Request { ticket: Ticket(ticket), request, expires: now.instant + Duration::from_secs(5) }, now);
        let effects = running.node.flush(now);
        let reply = effects.replies.into_iter().find(|(to, _)| *to == Ticket(ticket)).map(|(_, reply)| reply);
        running.log_queue.extend(effects.log);
        running.store_queue.extend(effects.store);
        reply
    };
    assert!(put(&mut world, 1 << 60).is_none(), "taken: it is answered later");
    let rows = world.hosts[0].store.rows();
    let is_key = |row: &[u8]| row[0] == layout::TABLE_DATA && row[layout::GENERATION_PREFIX_BYTES] == RowKind::Key as u8;
    let (row, _) = rows.iter().find(|(row, _)| is_key(row)).expect("clients have written");
    world.hosts[0].store.tamper(row, None);
    world.run_until(world.now + Duration::from_secs(12));
    assert_eq!(world.violation.as_ref().map(ToString::to_string), None, "it goes on");
    let reply = put(&mut world, (1 << 60) + 1);
    assert!(matches!(&reply, Some(Reply::Failed(failure)) if failure.reason == FailureReason::Damaged), "{reply:?}");
}
