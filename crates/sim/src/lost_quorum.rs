//! A majority of the machines is lost for good; an operator has the groups recovered from what is left, while the survivors
//! themselves lose their power now and then.

use crate::history::{KeyNumber, Moment};
use crate::host::Process;
use crate::network::HostNumber;
use crate::scenario::{Family, Scenario};
use crate::trace::Lines;
use crate::verdict::views;
use crate::workload::Workload;
use crate::world::{Happening, Load, World};
use bytes::Bytes;
use flotilla_node::Reply;
use flotilla_node::admin::{AdminAction, AdminRequest, AdminVerdict};
use flotilla_node::keyspace::shard_of;
use flotilla_node::state_machine::{VERSION_MARGIN, read};
use flotilla_types::{GroupId, ReplicaKey, Rng, Version};
use std::collections::BTreeMap;
use std::time::Duration;

const HOSTS: usize = 5;
const SEEDS: u64 = 2;

/// What a group held on a machine.
type Held = BTreeMap<(GroupId, HostNumber), BTreeMap<u32, (Version, Bytes)>>;

struct Disaster {
    world: World,
    chance: Rng,
    survivors: Vec<HostNumber>,
}

fn scenario(seed: u64) -> Scenario {
    let mut scenario = Scenario::draw(seed, None, Some(Family::Mixed));
    (scenario.hosts, scenario.grows, scenario.shards, scenario.replicas) = (HOSTS, false, 6, 3);
    scenario.faults = vec![crate::coverage::Fault::Growth];
    scenario.workload.lend_percent = 0;
    scenario
}

impl Disaster {
    fn run(&mut self, time: Duration) {
        self.world.run_until(self.world.now + time);
        self.check();
    }

    fn check(&self) {
        assert_eq!(self.world.violation.as_ref().map(ToString::to_string), None);
    }

    /// Asks a survivor; gives the verdict and the plan.
    fn ask(&mut self, host: HostNumber, plan: Option<&str>) -> Option<(AdminVerdict, serde_json::Value)> {
        self.world.told = None;
        let action = AdminAction::Recover { plan: plan.map(str::to_owned) };
        self.world.ask_of(host, AdminRequest { action, dry_run: plan.is_none() });
        while self.world.told.is_none() {
            self.run(Duration::from_millis(20));
        }
        match self.world.told.take()? {
            Reply::Admin(reply) if matches!(reply.verdict, AdminVerdict::Done | AdminVerdict::UnderWay) => {
                Some((reply.verdict, serde_json::from_slice(&reply.body).expect("JSON")))
            }
            _ => None,
        }
    }

    fn held(&self) -> Held {
        let mut held = Held::new();
        for (host, view) in views(&self.world) {
            let Some(shard) = view.group.shard() else { continue };
            let replica = ReplicaKey { group: view.group, replica: view.replica };
            let keys = (0..self.world.workload.key_count()).filter(|key| shard_of(&Workload::key(KeyNumber(*key)), 6) == shard);
            let value = |key: u32| {
                let found = read::get(&self.world.hosts[host].store, replica, view.filing, &Workload::key(KeyNumber(key)));
                Some((key, found.expect("it can be read")?))
            };
            held.insert((view.group, host), keys.filter_map(value).collect());
        }
        held
    }

    /// Power comes and goes at a survivor.
    fn flicker(&mut self) {
        let host = *self.chance.pick(&self.survivors).expect("some are left");
        self.world.kill(host, true);
        self.run(Duration::from_millis(200));
        self.world.plan(Duration::from_millis(1), Happening::Start(host, self.world.hosts[host].life));
    }
}

fn a_majority_is_lost_and_what_is_left_goes_on(seed: u64) {
    let mut chance = Rng::new(seed);
    let mut hosts: Vec<HostNumber> = (0..HOSTS).collect();
    let survivors: Vec<HostNumber> = (0..2).map(|_| hosts.remove(chance.below(hosts.len() as u64) as usize)).collect();
    let mut at = Disaster { world: World::new(seed, scenario(seed), Lines::Dropped), chance, survivors };
    at.world.run_until(Moment(0) + Duration::from_secs(20));
    at.check();
    for victim in &hosts {
        at.world.kill(*victim, true);
    }
    // Clients go on for a while: entries are proposed that nobody can agree on.
    at.run(Duration::from_secs(2));
    at.world.load = Load::Nothing;
    at.run(Duration::from_secs(10));
    // What a client still waits for would be written as soon as there is a quorum.
    let began = at.world.now;
    while at.world.list_under_way > 0 {
        at.run(Duration::from_secs(1));
        assert!(at.world.now.since(began) < Duration::from_secs(60), "seed {seed}: {} clients wait", at.world.list_under_way);
    }

    let asked = at.survivors[0];
    let (verdict, plan) = at.ask(asked, None).unwrap_or_else(|| panic!("seed {seed}: no plan"));
    assert_eq!(verdict, AdminVerdict::Done);
    let lost = plan["lost"].as_array().expect("a list").clone();
    assert!(!lost.is_empty() && !plan["gone"].as_array().expect("a list").is_empty(), "{plan}");
    assert!(at.ask(asked, Some("0000000000000000")).is_none(), "another plan's id is refused");
    let before = at.held();
    at.run(Duration::from_secs(1));
    assert_eq!(at.held(), before, "a plan changes nothing");

    let mut rounds = 0;
    loop {
        rounds += 1;
        assert!(rounds < 30, "it does not end");
        let host = at.survivors[at.chance.below(2) as usize];
        let Some((_, now)) = at.ask(host, None) else {
            at.run(Duration::from_secs(1));
            continue;
        };
        let is_empty = |what: &str| now[what].as_array().is_some_and(Vec::is_empty);
        if is_empty("lost") && is_empty("under_way") {
            break;
        }
        if !is_empty("lost") {
            at.ask(host, now["plan"].as_str());
        }
        let soon = Duration::from_micros(at.chance.below(400_000));
        // What the old replicas had at an index need not be what the new ones have there.
        at.world.run_until(at.world.now + soon);
        at.world.hashes = Default::default();
        if at.chance.chance(2, 3) {
            at.flicker();
        }
        at.run(Duration::from_secs(8));
        at.world.hashes = Default::default();
    }

    let after = at.held();
    let names: Vec<String> = at.world.hosts.iter().map(|host| host.name.clone()).collect();
    for group in lost {
        let Some(shard) = group["shard"].as_u64() else { continue };
        let group_id = GroupId(shard as u32 + 1);
        let host = names.iter().position(|name| group["node"].as_str() == Some(name)).expect("a name");
        let Some(Process::Running(running)) = &at.world.hosts[host].process else { panic!("it runs") };
        let view = running.node.inspect().find(|view| view.group == group_id).expect("it is recovered there");
        let now = &after[&(group_id, host)];
        if group["keeps"].is_null() {
            assert!(now.is_empty(), "it begins empty");
        } else {
            for (key, (version, value)) in &before[&(group_id, host)] {
                // What its log held beyond that has come since, and may have changed or deleted it.
                let has_more = group["keeps"]["index"] != group["keeps"]["agreed"];
                let kept = now.get(key);
                let is_later = has_more && kept.is_none_or(|(now, _)| now > version);
                assert!(
                    is_later || kept == Some(&(*version, value.clone())),
                    "seed {seed}: {group_id}: key {key} had {version}, and has {kept:?}"
                );
            }
        }
        let state = crate::process::read_state(&at.world.hosts[host].store, ReplicaKey { group: group_id, replica: view.replica });
        assert!(state.expect("a state").expect("a state").version.0 >= VERSION_MARGIN, "{group_id}: versions rise above all that were");
    }

    // The others come back after all, one by one, and are told that they are none of them any more: they are wiped.
    for victim in hosts {
        at.world.plan(Duration::from_millis(1), Happening::Start(victim, at.world.hosts[victim].life));
        let began = at.world.now;
        while !at.world.hosts[victim].replaces {
            at.run(Duration::from_millis(100));
            assert!(at.world.now.since(began) < Duration::from_secs(20), "n{} is not told", victim + 1);
        }
        at.run(Duration::from_secs(5));
    }
    at.world.heal();
    at.world.rest();
    at.check();
    at.world.last_load();
    at.world.rest();
    at.check();
    let leads = |group: GroupId| views(&at.world).iter().any(|(_, view)| view.group == group && view.membership.voters.len() >= 3);
    assert!((0..=6).all(|group| leads(GroupId(group))), "each group has its copies again");
}

#[test]
fn what_is_left_after_the_loss_of_a_majority_goes_on() {
    for seed in 0..SEEDS {
        a_majority_is_lost_and_what_is_left_goes_on(seed);
    }
}
