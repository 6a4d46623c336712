//! CPU seconds per 100,000 writes: three nodes with 64 groups each in one process and one thread,
//! every message encoded and decoded, no disk and no sockets; the floor under what a node costs.
//!
//! Each client writes 64 bytes to a group of its own choice, one write at a time. As in a node, what
//! the clients of one group ask in one turn is one entry, and a turn's messages are one buffer for
//! each node pair. Time is the thread's time on a CPU as Linux counts it, so that other load does not count.

use bytes::{Bytes, BytesMut};
use flotilla_consensus::{Group, GroupConfig, Message, RaftRole, Restored};
use flotilla_types::wire::Reader;
use flotilla_types::{LogIndex, Member, Membership, NodeId, ReplicaId, Rng, Term};

const NODES: usize = 3;
const GROUPS: usize = 64;
const WRITES: usize = 100_000;
const WRITE_BYTES: usize = 64;

struct Node {
    groups: Vec<Group>,
    /// Encoded messages for each other node.
    outboxes: Vec<BytesMut>,
}

fn main() {
    println!("CPU seconds per {WRITES} writes, {NODES} nodes, {GROUPS} groups, one thread:");
    for clients in [64, 256, 1024] {
        let (seconds, entries) = run(clients);
        println!("{clients:>5} clients: {seconds:.3} s, {entries} entries");
    }
}

fn run(clients: usize) -> (f64, usize) {
    let mut nodes: Vec<Node> = (0..NODES).map(node).collect();
    for group in 0..GROUPS {
        nodes[group % NODES].groups[group].campaign();
    }
    let mut rng = Rng::new(1);
    let mut waiting = vec![0usize; GROUPS];
    while (0..GROUPS).any(|group| nodes[group % NODES].groups[group].role() != RaftRole::Leader) {
        turn(&mut nodes, &mut waiting);
    }
    (0..clients).for_each(|_| waiting[rng.below(GROUPS as u64) as usize] += 1);
    let (mut done, mut entries) = (0, 0);
    let start = cpu_seconds();
    while done < WRITES {
        let before = done;
        for group in 0..GROUPS {
            if waiting[group] > 0 {
                let leader = &mut nodes[group % NODES].groups[group];
                let mut data = BytesMut::zeroed(waiting[group] * WRITE_BYTES);
                data[..8].copy_from_slice(&(waiting[group] as u64).to_le_bytes());
                leader.propose(data.freeze()).expect("the leader takes it");
                waiting[group] = 0;
                entries += 1;
            }
        }
        let mut answered = vec![0; GROUPS];
        turn(&mut nodes, &mut answered);
        for count in answered {
            done += count;
            (0..count).for_each(|_| waiting[rng.below(GROUPS as u64) as usize] += 1);
        }
        assert!(done > before || entries > 0, "writes go on");
    }
    ((cpu_seconds() - start) * WRITES as f64 / done as f64, entries)
}

fn cpu_seconds() -> f64 {
    let statistics = std::fs::read_to_string("/proc/self/schedstat").expect("Linux counts the time of a task");
    statistics.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).expect("it begins with nanoseconds") / 1e9
}

/// One turn of the loop of every node. Adds what the leaders have committed to `answered`.
fn turn(nodes: &mut [Node], answered: &mut [usize]) {
    for from in 0..NODES {
        for to in 0..NODES {
            let frame = std::mem::take(&mut nodes[from].outboxes[to]).freeze();
            deliver(&mut nodes[to], frame);
        }
    }
    for (at, node) in nodes.iter_mut().enumerate() {
        for (number, group) in node.groups.iter_mut().enumerate() {
            while let Some(ready) = group.take_ready() {
                group.on_persisted(ready.number);
                for message in ready.send_now.iter().chain(&ready.send_when_persisted) {
                    let out = &mut node.outboxes[(message.to().0 - 1) as usize];
                    out.extend_from_slice(&(number as u32).to_le_bytes());
                    message.encode(out);
                }
                if let Some(last) = ready.committed.last() {
                    group.on_applied(last.index);
                    if last.index.0 % 64 == 0 {
                        group.purge(LogIndex(last.index.0 - 16));
                    }
                }
                if number % NODES == at {
                    let writes = ready.committed.iter().filter(|entry| !entry.data.is_empty());
                    answered[number] +=
                        writes.map(|entry| u64::from_le_bytes(entry.data[..8].try_into().expect("8 bytes")) as usize).sum::<usize>();
                }
            }
        }
    }
}

fn deliver(node: &mut Node, frame: Bytes) {
    let mut reader = Reader::new(frame);
    while reader.remaining() > 0 {
        let group = reader.u32("group").expect("a whole frame") as usize;
        let message = Message::decode(&mut reader).expect("a whole message");
        node.groups[group].step(message).expect("a correct message");
    }
}

fn node(number: usize) -> Node {
    let groups = (0..GROUPS).map(|group| {
        let members = (1..=NODES as u64).map(|id| Member { replica: ReplicaId(id), node: NodeId(id) });
        let start = (LogIndex(1), Term(1));
        let restored = Restored { membership: Membership::of_voters(members), applied: start.0, start, ..Restored::default() };
        let config = GroupConfig { replica: ReplicaId(number as u64 + 1), ..GroupConfig::default() };
        Group::new(config, restored, Rng::new((number * GROUPS + group) as u64)).expect("a new group")
    });
    Node { groups: groups.collect(), outboxes: vec![BytesMut::new(); NODES] }
}
