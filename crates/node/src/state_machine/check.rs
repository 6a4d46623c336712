//! Whether the rows of a store make sense, looked at one after the other in key order, without the store.
//!
//! Each row must verify and decode; each replica's rows must be those that its state counts: keys and bytes, the
//! chunks of its long values, the index of its deadlines, the control state. A generation that is not in force
//! must be listed as dead. The chained hash cannot be made from rows at rest: it is over what was written, in order.
//!
//! Of each long value, a few dozen bytes are held in memory until its replica's rows are through.

use super::expiry;
use super::generation::decode_state;
use super::idempotency;
use super::rows::KeyHead;
use super::state::ReplicaState;
use crate::control::{ControlState, RowKey};
use bytes::Bytes;
use flotilla_storage::store::layout::{self, Filing, GENERATION_PREFIX_BYTES, REPLICA_PREFIX_BYTES, RowKind};
use flotilla_types::{GroupId, Key, ReplicaKey};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// What is wrong with the rows of one replica, or of none that can be named.
pub type RowVerdict<'a> = &'a mut dyn FnMut(Option<ReplicaKey>, String);

/// Looks at rows in key order.
#[derive(Debug, Default)]
pub struct RowCheck {
    /// The states that verify.
    states: BTreeMap<ReplicaKey, ReplicaState>,
    /// Whose rows in force are filed where; all states come before all other rows.
    in_force: BTreeMap<Filing, ReplicaKey>,
    damaged: BTreeSet<ReplicaKey>,
    rows: u64,
    keys: u64,
    open: Option<Generation>,
    /// Rows of generations that are not in force.
    aside: BTreeMap<(ReplicaKey, u32), u64>,
}

/// The generation in force of which rows are coming.
#[derive(Debug)]
struct Generation {
    replica: ReplicaKey,
    filing: Filing,
    keys: u64,
    bytes: u64,
    long: BTreeMap<Bytes, Long>,
    control: Vec<(RowKey, Bytes)>,
    /// A sum over the deadlines that keys have, less that over those in the index.
    deadlines: u64,
}

#[derive(Debug)]
struct Long {
    head: KeyHead,
    chunks: u32,
    bytes: u64,
}

/// What all rows came to.
#[derive(Debug, Default)]
pub struct CheckedRows {
    /// Of every replica in the store whose rows are whole as far as they can tell.
    pub states: BTreeMap<ReplicaKey, ReplicaState>,
    /// Replicas something is wrong with.
    pub damaged: BTreeSet<ReplicaKey>,
    /// Rows seen.
    pub rows: u64,
    /// Of these, keys of generations in force.
    pub keys: u64,
}

impl RowCheck {
    /// Takes the next row.
    pub fn take(&mut self, key: &[u8], value: &[u8], say: RowVerdict<'_>) {
        self.rows += 1;
        let generation = layout::parse_generation(key);
        match (key.first(), generation) {
            (Some(&layout::TABLE_STATE), _) if key.len() == REPLICA_PREFIX_BYTES => self.state(key, value, say),
            (Some(&layout::TABLE_DATA), Some(generation)) if key.len() > GENERATION_PREFIX_BYTES => self.data(generation, key, value, say),
            (Some(&layout::TABLE_DEAD), Some(generation)) if key.len() == GENERATION_PREFIX_BYTES => {
                self.close(say);
                self.dead(generation, key, value, say);
            }
            _ => say(None, format!("there is a row \"{}\" in no known table", shown(key))),
        }
    }

    /// There are no more rows.
    pub fn finish(mut self, say: RowVerdict<'_>) -> CheckedRows {
        self.close(say);
        for ((replica, generation), rows) in std::mem::take(&mut self.aside) {
            if !self.damaged.contains(&replica) {
                say(Some(replica), format!("{rows} rows of generation {generation}, which is neither in force nor listed as dead"));
            }
        }
        self.states.retain(|replica, _| !self.damaged.contains(replica));
        CheckedRows { states: self.states, damaged: self.damaged, rows: self.rows, keys: self.keys }
    }

    fn blame(&mut self, replica: ReplicaKey, what: String, say: RowVerdict<'_>) {
        self.damaged.insert(replica);
        say(Some(replica), what);
    }

    fn state(&mut self, key: &[u8], value: &[u8], say: RowVerdict<'_>) {
        let Some(replica) = layout::parse_replica(key) else { return };
        match decode_state(key, value) {
            Ok(state) => {
                self.in_force.insert(state.filing(replica), replica);
                self.states.insert(replica, state);
            }
            Err(what) => self.blame(replica, what, say),
        }
    }

    fn dead(&mut self, (under, generation): (ReplicaKey, u32), key: &[u8], value: &[u8], say: RowVerdict<'_>) {
        let holder = self.in_force.get(&Filing { under, generation }).copied();
        let replica = holder.unwrap_or(under);
        if let Err(error) = layout::verify(key, value) {
            self.blame(replica, format!("in the list of dead generations, {error}"), say);
        }
        if holder.is_some() {
            self.blame(replica, format!("generation {generation} is in force and listed as dead"), say);
        }
        self.aside.remove(&(under, generation));
    }

    fn data(&mut self, (under, generation): (ReplicaKey, u32), key: &[u8], value: &[u8], say: RowVerdict<'_>) {
        let filing = Filing { under, generation };
        if self.open.as_ref().is_none_or(|open| open.filing != filing) {
            self.close(say);
            let Some(replica) = self.in_force.get(&filing) else {
                *self.aside.entry((under, generation)).or_default() += 1;
                return;
            };
            self.open = Some(Generation::new(*replica, filing));
        }
        let open = self.open.as_mut().expect("it was just opened");
        let replica = open.replica;
        let (keys, version) = (open.keys, self.states[&replica].version);
        let taken = open.take(&key[GENERATION_PREFIX_BYTES..], value);
        self.keys += open.keys - keys;
        match taken {
            Ok(Some(head)) if head.version > version => {
                let what = format!("the row \"{}\" has version {}, the state knows up to {version}", shown(key), head.version);
                self.blame(replica, what, say);
            }
            Ok(_) => {}
            Err(what) => self.blame(replica, what, say),
        }
    }

    /// The rows of a generation are through, and so is every generation before the next one's.
    fn close(&mut self, say: RowVerdict<'_>) {
        let Some(open) = self.open.take() else { return };
        let replica = open.replica;
        let state = self.states.get_mut(&replica).expect("a generation in force has a state");
        if let Err(what) = open.settle(state) {
            self.blame(replica, what, say);
        }
    }
}

impl Generation {
    fn new(replica: ReplicaKey, filing: Filing) -> Generation {
        Generation { replica, filing, keys: 0, bytes: 0, long: BTreeMap::new(), control: Vec::new(), deadlines: 0 }
    }

    /// Takes a row; gives what a key row says.
    fn take(&mut self, relative_key: &[u8], value: &[u8]) -> Result<Option<KeyHead>, String> {
        let wrong = |what: &str| format!("the row \"{}\" {what}", shown(relative_key));
        let rest = &relative_key[1..];
        let text = |error: flotilla_storage::store::StoreError| error.to_string();
        match RowKind::from_byte(relative_key[0]) {
            Some(RowKind::Key) => {
                let (head, _) = KeyHead::decode(relative_key, Bytes::copy_from_slice(value)).map_err(text)?;
                let key = Key::new(rest.to_vec()).map_err(|error| wrong(&error.to_string()))?;
                self.keys += 1;
                self.bytes += rest.len() as u64 + u64::from(head.value_bytes);
                if let Some(deadline) = head.deadline {
                    self.deadlines = self.deadlines.wrapping_add(xxh3_64(&expiry::index_row(deadline, &key, head.value_bytes)));
                }
                if head.chunks > 0 {
                    self.long.insert(Bytes::copy_from_slice(rest), Long { head, chunks: 0, bytes: 0 });
                }
                return Ok(Some(head));
            }
            Some(RowKind::Chunk) => {
                let body = layout::verify(relative_key, value).map_err(text)?;
                let (key, number) = rest.split_last_chunk::<4>().ok_or_else(|| wrong("has no number"))?;
                let (version, piece) = body.split_first_chunk::<8>().ok_or_else(|| wrong("has no version"))?;
                let long = self.long.get_mut(key).ok_or_else(|| wrong("is a chunk of no value"))?;
                if u64::from_le_bytes(*version) != long.head.version.0 || u32::from_be_bytes(*number) >= long.head.chunks {
                    return Err(wrong("is a chunk of another value"));
                }
                long.chunks += 1;
                long.bytes += piece.len() as u64;
            }
            Some(RowKind::Control) => {
                let body = layout::verify(relative_key, value).map_err(text)?;
                let name = RowKey::decode(rest).map_err(|error| wrong(&error.to_string()))?;
                self.control.push((name, Bytes::copy_from_slice(body)));
            }
            Some(RowKind::Expiry) => {
                let (deadline, key, value_bytes) = expiry::read_index_row(relative_key, value).map_err(text)?;
                self.deadlines = self.deadlines.wrapping_sub(xxh3_64(&expiry::index_row(deadline, &key, value_bytes)));
            }
            Some(RowKind::Idempotency) => idempotency::verify_row(relative_key, value).map_err(text)?,
            Some(RowKind::Intent | RowKind::History) | None => return Err(wrong("is of a kind that this version does not know")),
        }
        Ok(None)
    }

    /// Holds what came against the state.
    fn settle(self, state: &mut ReplicaState) -> Result<(), String> {
        if let Some((key, long)) =
            self.long.iter().find(|(_, long)| (long.chunks, long.bytes) != (long.head.chunks, u64::from(long.head.value_bytes)))
        {
            let Long { head, chunks, bytes } = long;
            return Err(format!(
                "the value of key \"{}\" has {chunks} chunks with {bytes} bytes, not {} with {}",
                shown(key),
                head.chunks,
                head.value_bytes
            ));
        }
        if (self.keys, self.bytes) != (state.keys, state.bytes) {
            return Err(format!(
                "there are {} keys with {} bytes, the state counts {} with {}",
                self.keys, self.bytes, state.keys, state.bytes
            ));
        }
        if self.deadlines != 0 {
            return Err("the index of deadlines is not that of the keys".to_owned());
        }
        if self.replica.group == GroupId::CONTROL && !self.control.is_empty() {
            let control = ControlState::from_rows(self.control).map_err(|error| format!("the control rows: {error}"))?;
            state.control = Some(Arc::new(control));
        }
        Ok(())
    }
}

fn shown(key: &[u8]) -> String {
    key[..key.len().min(64)].escape_ascii().to_string()
}
