//! Whether what was acknowledged is there, asked of every node, and whether every copy says the same.

use crate::wire::Wire;
use crate::writers::{Record, WriterPlan, key_of, value_of};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// Readers at each node.
const READERS_PER_NODE: usize = 16;
/// Attempts at one read before it counts as refused.
const ATTEMPTS_MAX: u32 = 20;
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How many faults are described; all are counted.
const DESCRIBED_MAX: usize = 20;

/// What must be found under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// This value.
    Value(Vec<u8>),
    /// This value, or nothing; all copies alike.
    ValueOrAbsent(Vec<u8>),
    /// Nothing.
    Absent,
}

/// What the readers found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// Keys asked for, at each node.
    pub keys: usize,
    /// Reads made.
    pub reads: u64,
    /// Acknowledged values that were not there.
    pub lost: u64,
    /// Values that were there and should not be.
    pub wrong: u64,
    /// Keys of which two nodes said different things.
    pub divergent: u64,
    /// Reads that no attempt got an answer to.
    pub refused: u64,
    /// Some of the faults, in words.
    pub described: Vec<String>,
}

impl Verdict {
    /// Whether there is no fault.
    pub fn is_fine(&self) -> bool {
        self.lost == 0 && self.wrong == 0 && self.divergent == 0 && self.refused == 0
    }

    fn describe(&mut self, fault: String) {
        if self.described.len() < DESCRIBED_MAX {
            self.described.push(fault);
        }
    }
}

/// What a record of writes demands.
pub fn expectations(plan: &WriterPlan, tags: &[String], record: &Record) -> Vec<(Vec<u8>, Expected)> {
    let value = |writer, number| value_of(writer, number, plan.value_bytes);
    let acknowledged = record.acknowledged.iter().map(|w| (key_of(tags, w.writer, w.number), Expected::Value(value(w.writer, w.number))));
    let unknown = record.unknown.iter().map(|&(w, n)| (key_of(tags, w, n), Expected::ValueOrAbsent(value(w, n))));
    let not_applied = record.not_applied.iter().map(|&(w, n)| (key_of(tags, w, n), Expected::Absent));
    acknowledged.chain(unknown).chain(not_applied).collect()
}

/// Asks every node for every key; `stale` asks for the node's own copy instead of the newest value.
pub async fn verify(addresses: &[SocketAddr], expected: &Rc<Vec<(Vec<u8>, Expected)>>, stale: bool) -> Verdict {
    let verdict = Rc::new(RefCell::new(Verdict { keys: expected.len(), ..Verdict::default() }));
    // What the first node to answer said: a hash, so that a million values need not be kept.
    let said: Rc<Vec<Cell<Option<u64>>>> = Rc::new(vec![Cell::new(None); expected.len()]);
    let mut tasks = Vec::new();
    for &address in addresses {
        let next = Rc::new(Cell::new(0));
        for _ in 0..READERS_PER_NODE {
            let (expected, verdict, said, next) = (expected.clone(), verdict.clone(), said.clone(), next.clone());
            tasks.push(tokio::task::spawn_local(async move {
                let mut wire = Wire::new(address, Duration::from_secs(5));
                while next.get() < expected.len() {
                    let at = next.replace(next.get() + 1);
                    let (key, expected) = &expected[at];
                    let found = read(&mut wire, key, stale).await;
                    judge(&mut verdict.borrow_mut(), address, key, expected, &said[at], found);
                }
            }));
        }
    }
    for task in tasks {
        task.await.expect("a reader does not panic");
    }
    Rc::try_unwrap(verdict).expect("the readers have ended").into_inner()
}

/// The same of each node's own copy; `None` if the nodes do not serve `?consistency=stale`.
pub async fn verify_own_copies(addresses: &[SocketAddr], expected: &Rc<Vec<(Vec<u8>, Expected)>>) -> Option<Verdict> {
    let mut wire = Wire::new(*addresses.first()?, Duration::from_secs(5));
    let path = "/v1/kv/own-copy?consistency=stale";
    let not_built = wire.exchange("GET", path, b"").await.is_ok_and(|reply| reply.status == 501);
    if not_built { None } else { Some(verify(addresses, expected, true).await) }
}

async fn read(wire: &mut Wire, key: &[u8], stale: bool) -> Result<Option<Vec<u8>>, String> {
    let mut last = String::new();
    for attempt in 0..ATTEMPTS_MAX {
        if attempt > 0 {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        match wire.get(key, stale).await {
            Ok(found) => return Ok(found),
            // Its process has ended: thousands of keys need not all wait for it.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Err(error.to_string()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

fn judge(
    verdict: &mut Verdict,
    node: SocketAddr,
    key: &[u8],
    expected: &Expected,
    said: &Cell<Option<u64>>,
    found: Result<Option<Vec<u8>>, String>,
) {
    verdict.reads += 1;
    let shown = key.escape_ascii();
    let found = match found {
        Ok(found) => found,
        Err(why) => {
            verdict.refused += 1;
            return verdict.describe(format!("{node} does not read {shown}: {why}"));
        }
    };
    match (expected, &found) {
        (Expected::Value(_), None) => {
            verdict.lost += 1;
            verdict.describe(format!("{node} has lost {shown}"));
        }
        (Expected::Value(value) | Expected::ValueOrAbsent(value), Some(other)) if value != other => {
            verdict.wrong += 1;
            verdict.describe(format!("{node} has another value for {shown}"));
        }
        (Expected::Absent, Some(_)) => {
            verdict.wrong += 1;
            verdict.describe(format!("{node} has {shown}, whose write was answered with not-applied"));
        }
        _ => {}
    }
    let hash = fingerprint(found.as_deref());
    match said.get() {
        None => said.set(Some(hash)),
        Some(before) if before != hash => {
            verdict.divergent += 1;
            verdict.describe(format!("{node} says of {shown} what another node does not"));
        }
        Some(_) => {}
    }
}

fn fingerprint(value: Option<&[u8]>) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(expected: Expected, found: &[Option<&str>]) -> (u64, u64, u64) {
        let (mut verdict, said) = (Verdict::default(), Cell::new(None));
        let node = "127.0.0.1:1".parse().expect("an address");
        for found in found {
            judge(&mut verdict, node, b"k", &expected, &said, Ok(found.map(|text| text.as_bytes().to_vec())));
        }
        (verdict.lost, verdict.wrong, verdict.divergent)
    }

    #[test]
    fn faults_are_told_apart() {
        let value = || Expected::Value(b"v".to_vec());
        let perhaps = || Expected::ValueOrAbsent(b"v".to_vec());
        assert_eq!(judged(value(), &[Some("v"), Some("v")]), (0, 0, 0));
        assert_eq!(judged(value(), &[Some("v"), None]), (1, 0, 1));
        assert_eq!(judged(value(), &[Some("x")]), (0, 1, 0));
        assert_eq!(judged(perhaps(), &[None, None]), (0, 0, 0));
        assert_eq!(judged(perhaps(), &[None, Some("v")]), (0, 0, 1));
        assert_eq!(judged(perhaps(), &[Some("x")]), (0, 1, 0));
        assert_eq!(judged(Expected::Absent, &[Some("v")]), (0, 1, 0));
    }
}
