//! What clients do: each asks one thing at a time of a random node, waits for the answer or until it
//! has had enough, thinks, and asks again. A few hot keys, on which all meet, and many cold ones.

use crate::history::{Answer, Call, Guard, KeyNumber, ValueNumber};
use bytes::Bytes;
use flotilla_node::request::RequestId;
use flotilla_node::{Reply, Request};
use flotilla_types::{Condition, Key, Match, Outcome, Rng, Version};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

/// How clients behave in a run.
#[derive(Clone, Debug)]
pub struct WorkloadConfig {
    /// How many there are.
    pub clients: u32,
    /// Keys on which all meet.
    pub hot_keys: u32,
    /// Keys beside those.
    pub cold_keys: u32,
    /// Of 100 requests, how many go to a hot key.
    pub hot_percent: u64,
    /// Of 100 requests, how many are reads.
    pub get_percent: u64,
    /// Of 100 writes, how many are deletes.
    pub delete_percent: u64,
    /// Of 100 writes, how many have a guard.
    pub guard_percent: u64,
    /// Longest pause between two requests, in milliseconds.
    pub think_ms_max: u64,
    /// Shortest and longest time a client gives a request, in milliseconds.
    pub timeout_ms: (u64, u64),
    /// Of 100 requests, how many increment a counter under an idempotency key, for the first time or again.
    pub increment_percent: u64,
    /// Of 100 requests, how many are about keys that expire.
    pub lend_percent: u64,
    /// Most values are small; one in sixteen has up to this many bytes.
    pub value_bytes_max: usize,
}

/// The clients' common knowledge: which values they gave, which versions they saw.
#[derive(Debug)]
pub struct Workload {
    config: WorkloadConfig,
    next_value: u64,
    lengths: BTreeMap<ValueNumber, usize>,
    seen: BTreeMap<KeyNumber, u64>,
    next_id: u64,
    /// Increments that are to be asked again, and how often.
    repeats: Vec<(KeyNumber, u64, u64)>,
}

/// Keys that are only incremented, behind all others.
const COUNTERS: Range<u32> = u32::MAX - 3..u32::MAX;
/// Keys that are only lent a value, before those.
const LENT: Range<u32> = COUNTERS.start - 4..COUNTERS.start;
/// The longest time to live.
pub const TTL_MAX: Duration = Duration::from_secs(8);
/// Increments under way or to be asked again.
const REPEATS_MAX: usize = 60;

impl Workload {
    /// A workload that has not begun.
    pub fn new(config: WorkloadConfig) -> Workload {
        Workload { config, next_value: 1, lengths: BTreeMap::new(), seen: BTreeMap::new(), next_id: 1, repeats: Vec::new() }
    }

    /// Whether the key is one that is only incremented.
    pub fn is_counter(key: KeyNumber) -> bool {
        COUNTERS.contains(&key.0)
    }

    /// How many keys there are.
    pub fn key_count(&self) -> u32 {
        self.config.hot_keys + self.config.cold_keys
    }

    /// Whether the key is only written for a time.
    pub fn is_lent(key: KeyNumber) -> bool {
        LENT.contains(&key.0)
    }

    /// Whether the key is one of those that keep what they are given.
    pub fn is_lasting(key: KeyNumber) -> bool {
        key.0 < LENT.start
    }

    /// The bytes of a key.
    pub fn key(number: KeyNumber) -> Key {
        Key::new(format!("k{}", number.0)).expect("a short key is a key")
    }

    /// What a client asks next.
    pub fn choose(&mut self, rng: &mut Rng) -> (KeyNumber, Call) {
        if self.config.increment_percent > 0 && rng.chance(self.config.increment_percent, 100) {
            return self.choose_increment(rng);
        }
        if self.config.lend_percent > 0 && rng.chance(self.config.lend_percent, 100) {
            return self.choose_lending(rng);
        }
        let config = &self.config;
        let is_hot = config.cold_keys == 0 || rng.chance(config.hot_percent, 100);
        let key = match is_hot {
            true => KeyNumber(rng.below(u64::from(config.hot_keys)) as u32),
            false => KeyNumber(config.hot_keys + rng.below(u64::from(config.cold_keys)) as u32),
        };
        if rng.chance(config.get_percent, 100) {
            return (key, Call::Get);
        }
        let guard = if rng.chance(config.guard_percent, 100) { self.choose_guard(key, rng) } else { Guard::Always };
        if rng.chance(self.config.delete_percent, 100) {
            return (key, Call::Delete { guard });
        }
        (key, self.put(guard, rng))
    }

    /// A write of a value that was never written before.
    pub fn put(&mut self, guard: Guard, rng: &mut Rng) -> Call {
        Call::Put { value: self.draw_value(rng), guard }
    }

    fn draw_value(&mut self, rng: &mut Rng) -> ValueNumber {
        let value = ValueNumber(self.next_value);
        self.next_value += 1;
        let length = if rng.chance(1, 16) { rng.between(8, self.config.value_bytes_max.max(8) as u64) } else { rng.between(8, 64) };
        self.lengths.insert(value, length as usize);
        value
    }

    /// A write for a time, mostly a short one, or a read of what may be there.
    fn choose_lending(&mut self, rng: &mut Rng) -> (KeyNumber, Call) {
        let key = KeyNumber(LENT.start + rng.below(LENT.len() as u64) as u32);
        if rng.chance(3, 4) {
            return (key, Call::Get);
        }
        let ttl_ms = rng.between(50, TTL_MAX.as_millis() as u64).min(rng.between(50, TTL_MAX.as_millis() as u64));
        (key, Call::Lend { value: self.draw_value(rng), ttl_ms })
    }

    /// An increment that was not asked before, or one that was: perhaps answered, perhaps still under way.
    fn choose_increment(&mut self, rng: &mut Rng) -> (KeyNumber, Call) {
        let count = self.repeats.len();
        if count >= REPEATS_MAX || (count > 0 && rng.chance(1, 2)) {
            let place = rng.below(count as u64) as usize;
            let (key, id, left) = &mut self.repeats[place];
            let (key, id) = (*key, *id);
            *left -= 1;
            if *left == 0 {
                self.repeats.swap_remove(place);
            }
            return (key, Call::Increment { id });
        }
        let (key, id) = (KeyNumber(COUNTERS.start + rng.below(COUNTERS.len() as u64) as u32), self.next_id);
        self.next_id += 1;
        self.repeats.push((key, id, rng.between(1, 3)));
        (key, Call::Increment { id })
    }

    fn choose_guard(&self, key: KeyNumber, rng: &mut Rng) -> Guard {
        match (rng.below(4), self.seen.get(&key)) {
            (0, _) => Guard::Absent,
            (1, _) => Guard::Present,
            (_, Some(version)) => Guard::Version(*version),
            (_, None) => Guard::Absent,
        }
    }

    /// The request as a node is asked it.
    pub fn request(&self, key: KeyNumber, call: Call) -> Request {
        let key = Workload::key(key);
        match call {
            Call::Get => Request::Get { key },
            Call::Put { value, guard } => Request::Put { key, value: self.bytes(value), ttl: None, condition: condition(guard) },
            Call::Lend { value, ttl_ms } => {
                let ttl = Some(Duration::from_millis(ttl_ms));
                Request::Put { key, value: self.bytes(value), ttl, condition: Condition::ALWAYS }
            }
            Call::Delete { guard } => Request::Delete { key, condition: condition(guard) },
            Call::Increment { id } => {
                Request::Increment { key, by: 1, condition: Condition::ALWAYS }.once(Some(RequestId::of(&id.to_le_bytes())))
            }
        }
    }

    /// The bytes of a value: its number, then bytes that follow from it.
    pub fn bytes(&self, value: ValueNumber) -> Bytes {
        let length = self.lengths[&value];
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&value.0.to_le_bytes());
        bytes.extend((8..length).map(|i| (value.0 as usize).wrapping_mul(31).wrapping_add(i) as u8));
        bytes.into()
    }

    /// The value that bytes are; `None` if no client ever gave those.
    pub fn value(&self, bytes: &[u8]) -> Option<ValueNumber> {
        let value = ValueNumber(u64::from_le_bytes(*bytes.first_chunk()?));
        (self.lengths.contains_key(&value) && self.bytes(value) == bytes).then_some(value)
    }

    /// What a node's reply tells a client.
    ///
    /// # Errors
    /// If no node may ever answer that.
    pub fn answer(&mut self, key: KeyNumber, call: Call, reply: &Reply) -> Result<Answer, String> {
        let answer = match (call, reply) {
            (Call::Get, Reply::Value { version, value }) => {
                let Some(number) = self.value(value) else {
                    return Err(format!("a read of key {} gave {} bytes that nobody wrote", key.0, value.len()));
                };
                Answer::Value { version: version.0, value: number }
            }
            (Call::Get, Reply::Absent) => Answer::Absent,
            (Call::Put { .. } | Call::Lend { .. }, Reply::Put { version, created }) => {
                Answer::Put { version: version.0, created: *created }
            }
            (Call::Delete { .. }, Reply::Deleted { deleted }) => Answer::Deleted { deleted: *deleted },
            (Call::Increment { .. }, Reply::Incremented { value, version }) => Answer::Incremented { value: *value, version: version.0 },
            (Call::Put { .. } | Call::Delete { .. }, Reply::ConditionFailed { present }) => {
                Answer::GuardFailed { present: present.map(|v| v.0) }
            }
            (Call::Get, Reply::Failed(_)) => Answer::NotApplied,
            (_, Reply::Failed(failure)) if failure.outcome == Outcome::NotApplied => Answer::NotApplied,
            (_, Reply::Failed(_)) => Answer::Unknown,
            _ => return Err(format!("{call:?} was answered with {reply:?}")),
        };
        if let Answer::Value { version, .. } | Answer::Put { version, .. } = answer {
            let seen = self.seen.entry(key).or_default();
            *seen = (*seen).max(version);
        }
        Ok(answer)
    }
}

fn condition(guard: Guard) -> Condition {
    match guard {
        Guard::Always => Condition::ALWAYS,
        Guard::Absent => Condition { if_match: None, if_none_match: Some(Match::Any) },
        Guard::Present => Condition { if_match: Some(Match::Any), if_none_match: None },
        Guard::Version(version) => Condition { if_match: Some(Match::Versions(vec![Version(version)])), if_none_match: None },
    }
}
