//! CPU time of apply, by mutation, on the real store: `cargo bench -p flotilla-node --bench apply`.
//!
//! Jobs of 1, 8 and 64 mutations of one replica (values of 100 bytes, keys drawn from 100,000), then
//! 64 replicas with one mutation each. CPU time of this thread and of the whole process (the engine's
//! own threads included), from /proc; the store lies in a temporary folder.
#![expect(clippy::disallowed_methods, reason = "a bench measures")]
#![expect(clippy::unwrap_used, reason = "a measurement ends when it cannot go on")]

use flotilla_node::state_machine::{Applier, ApplyJob, GroupApply, MutationBatch, ReplicaState, StateMachineFaults, read};
use flotilla_storage::store::layout::Filing;
use flotilla_storage::store::{EngineOptions, EngineStore, StateStore, StoreView, layout};
use flotilla_types::{
    Condition, Entry, EntryKind, GroupId, Key, LogIndex, Member, Membership, NodeId, ReplicaId, ReplicaKey, Rng, Term, Timestamp,
};
use std::time::Instant;

const MUTATIONS: usize = 200_000;
const KEYS: u64 = 100_000;

fn main() {
    println!("{:<28} {:>14} {:>14} {:>14}", "ns a mutation", "wall", "CPU, thread", "CPU, process");
    for count in [1, 8, 64] {
        run(&format!("1 replica x {count}"), 1, count);
    }
    run("64 replicas x 1", 64, 1);
    println!("resident memory {} KiB", resident_kib());
}

fn replica(number: usize) -> ReplicaKey {
    ReplicaKey { group: GroupId(number as u32 + 1), replica: ReplicaId(number as u64 + 1) }
}

fn key(number: u64) -> Key {
    Key::new(format!("user:{number:012}")).unwrap()
}

fn run(name: &str, replicas: usize, mutations_each: usize) {
    let folder = tempfile::tempdir().unwrap();
    let store = EngineStore::open(folder.path(), EngineOptions::default()).unwrap();
    let (mut applier, _) = Applier::open(store, StateMachineFaults::default()).unwrap();
    let members = (1..4).map(|n| Member { replica: ReplicaId(n), node: NodeId(n) });
    let membership = Membership::of_voters(members);
    for number in 0..replicas {
        applier.create(replica(number), ReplicaState::new(membership.clone())).unwrap();
    }
    let mut rng = Rng::new(1);
    let value = [7; 100];
    let jobs = MUTATIONS / (replicas * mutations_each);
    let mut batch = MutationBatch::new();
    let mut job = |index: u64| ApplyJob {
        groups: (0..replicas)
            .map(|number| {
                for _ in 0..mutations_each {
                    batch.put(&key(rng.below(KEYS)), &value, &Condition::ALWAYS);
                }
                let data = batch.finish(Timestamp(index));
                let entry = Entry { index: LogIndex(index), term: Term(1), kind: EntryKind::Normal, data };
                GroupApply { replica: replica(number), entries: vec![entry], memberships: vec![], answers_wanted: true }
            })
            .collect(),
    };
    // The first tenth warms up; making the jobs is not measured.
    let warm = jobs / 10;
    for index in 0..warm {
        applier.apply(job(index as u64 + 1)).unwrap();
    }
    let prepared: Vec<ApplyJob> = (warm..jobs).map(|index| job(index as u64 + 1)).collect();
    let (wall, thread, process) = (Instant::now(), cpu_ns("/proc/thread-self/schedstat"), process_cpu_ns());
    for job in prepared {
        std::hint::black_box(applier.apply(job).unwrap());
    }
    let count = ((jobs - warm) * replicas * mutations_each) as u64;
    let wall_ns = wall.elapsed().as_nanos() as u64;
    let (thread_ns, process_ns) = (cpu_ns("/proc/thread-self/schedstat") - thread, process_cpu_ns() - process);
    println!("{name:<28} {:>14} {:>14} {:>14}", wall_ns / count, thread_ns / count, process_ns / count);
    if replicas == 1 && mutations_each == 64 {
        reads(applier.store());
    }
}

fn reads(store: &EngineStore) {
    let (mut rng, count) = (Rng::new(2), 100_000);
    let mut timed = |name: &str, read: &mut dyn FnMut(&Key)| {
        let before = cpu_ns("/proc/thread-self/schedstat");
        for _ in 0..count {
            read(&key(rng.below(KEYS)));
        }
        println!("{name:<28} {:>14} {:>14}", "", (cpu_ns("/proc/thread-self/schedstat") - before) / count);
    };
    timed("read::get", &mut |key| {
        drop(std::hint::black_box(read::get(store, replica(0), Filing { under: replica(0), generation: 1 }, key).unwrap()))
    });
    timed("a get through a view", &mut |key| {
        let row = layout::key_row(replica(0), 1, key.as_bytes());
        drop(std::hint::black_box(store.view().unwrap().get(&row).unwrap()));
    });
}

/// The first number of a schedstat file: nanoseconds on a CPU.
fn cpu_ns(path: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// All threads, those that still live; fields 14 and 15 of stat are in ticks of 10 ms.
fn process_cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10_000_000
}

fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4
}
