//! Clients that write for as long as they are let, each key once, and remember what became of it.

use crate::keyspace::tag_of_each_shard;
use crate::wire::{Wire, WriteEnd};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How the writers write.
#[derive(Clone, Debug)]
pub struct WriterPlan {
    /// The nodes; a writer starts at one and turns to the next when that one fails it.
    pub addresses: Vec<SocketAddr>,
    /// Shards of the cluster; each has the same number of writers, that write to it alone.
    pub shard_count: usize,
    /// Writers of each shard.
    pub writers_per_shard: usize,
    /// Between an answer and the next request.
    pub think_time: Duration,
    /// What a request may take.
    pub timeout: Duration,
    /// Bytes of each value.
    pub value_bytes: usize,
}

/// One write that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    /// The writer, which decides the shard and the key.
    pub writer: u32,
    /// Counted by the writer.
    pub number: u32,
    /// When.
    pub at: Instant,
}

/// What has been written so far.
#[derive(Debug, Default)]
pub struct Record {
    /// Acknowledged: must be there.
    pub acknowledged: Vec<Acknowledged>,
    /// Writes that did not happen, and must not be there.
    pub not_applied: Vec<(u32, u32)>,
    /// Writes of which nobody knows.
    pub unknown: Vec<(u32, u32)>,
}

/// Running writers.
#[derive(Debug)]
pub struct Writers {
    /// How they write.
    pub plan: WriterPlan,
    tags: Rc<Vec<String>>,
    record: Rc<RefCell<Record>>,
    stop: Rc<Cell<bool>>,
    tasks: Vec<JoinHandle<()>>,
}

impl WriterPlan {
    /// One writer a shard, 50 requests a second each at most.
    pub fn new(addresses: Vec<SocketAddr>, shard_count: usize) -> WriterPlan {
        let (think_time, timeout) = (Duration::from_millis(20), Duration::from_secs(5));
        WriterPlan { addresses, shard_count, writers_per_shard: 1, think_time, timeout, value_bytes: 100 }
    }

    /// The shard that `writer` writes to.
    pub fn shard_of(&self, writer: u32) -> usize {
        writer as usize % self.shard_count
    }
}

/// Key of a write.
pub fn key_of(tags: &[String], writer: u32, number: u32) -> Vec<u8> {
    format!("w{writer}{{{}}}/{number}", tags[writer as usize % tags.len()]).into_bytes()
}

/// Value of a write: different for each, so that a mix-up shows.
pub fn value_of(writer: u32, number: u32, value_bytes: usize) -> Vec<u8> {
    format!("{writer}/{number};").into_bytes().into_iter().cycle().take(value_bytes).collect()
}

impl Writers {
    /// Starts them; must be called inside a `LocalSet`.
    pub fn start(plan: WriterPlan) -> Writers {
        Writers::start_numbered(plan, 0)
    }

    /// The same, with keys that no other round writes.
    pub fn start_numbered(plan: WriterPlan, round: u32) -> Writers {
        let tags = Rc::new(tag_of_each_shard(plan.shard_count));
        let (record, stop) = (Rc::<RefCell<Record>>::default(), Rc::<Cell<bool>>::default());
        let count = (plan.shard_count * plan.writers_per_shard) as u32;
        let tasks = (round * count..(round + 1) * count)
            .map(|writer| tokio::task::spawn_local(write(plan.clone(), tags.clone(), writer, record.clone(), stop.clone())))
            .collect();
        Writers { plan, tags, record, stop, tasks }
    }

    /// Writes acknowledged so far.
    pub fn acknowledged_count(&self) -> usize {
        self.record.borrow().acknowledged.len()
    }

    /// Shards that acknowledged something after `since`.
    pub fn shards_alive_since(&self, since: Instant) -> usize {
        let record = self.record.borrow();
        let mut alive = vec![false; self.plan.shard_count];
        for write in record.acknowledged.iter().rev().take_while(|write| write.at > since) {
            alive[self.plan.shard_of(write.writer)] = true;
        }
        alive.into_iter().filter(|alive| *alive).count()
    }

    /// Lets the requests under way end, and gives what was written, with the hash tags of its keys.
    ///
    /// # Panics
    /// If a writer did.
    pub async fn stop(self) -> (WriterPlan, Rc<Vec<String>>, Record) {
        self.stop.set(true);
        for task in self.tasks {
            task.await.expect("a writer does not panic");
        }
        let record = std::mem::take(&mut *self.record.borrow_mut());
        (self.plan, self.tags, record)
    }
}

async fn write(plan: WriterPlan, tags: Rc<Vec<String>>, writer: u32, record: Rc<RefCell<Record>>, stop: Rc<Cell<bool>>) {
    let mut at = writer as usize % plan.addresses.len();
    let mut wire = Wire::new(plan.addresses[at], plan.timeout);
    for number in 0.. {
        if stop.get() {
            return;
        }
        let end = wire.put(&key_of(&tags, writer, number), &value_of(writer, number, plan.value_bytes)).await;
        {
            let mut record = record.borrow_mut();
            match end {
                WriteEnd::Done => record.acknowledged.push(Acknowledged { writer, number, at: Instant::now() }),
                WriteEnd::NotApplied => record.not_applied.push((writer, number)),
                WriteEnd::Unknown => record.unknown.push((writer, number)),
            }
        }
        if end != WriteEnd::Done {
            at = (at + 1) % plan.addresses.len();
            wire.turn_to(plan.addresses[at]);
        }
        tokio::time::sleep(plan.think_time).await;
    }
}
