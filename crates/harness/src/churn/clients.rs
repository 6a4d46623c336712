//! Clients whose every question and answer is noted, for the checker of linearizability.
//!
//! Each value says which write it is from, so that a read names its write. Whatever is not known to have
//! happened or not stays open: the checker lets it come at any time, or never.

use crate::wire::{Reply, Wire};
use flotilla::text::encode_key;
use flotilla_sim::history::{Answer, Call, Guard, History, KeyNumber, Moment, Operation, ValueNumber};
use flotilla_types::Rng;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What a request is given; a node that stands still costs as much and the grace of [`Wire`].
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Attempts of a read at the end.
const ATTEMPTS_MAX: u32 = 60;
const RETRY_PAUSE: Duration = Duration::from_millis(250);
const DESCRIBED_MAX: usize = 20;

/// What all clients share.
#[derive(Debug)]
pub struct Clients {
    addresses: Vec<SocketAddr>,
    key_count: u32,
    think_time: Duration,
    began: Instant,
    history: RefCell<History>,
    /// The version of each key that was told last, to be asked for in conditions.
    seen: RefCell<BTreeMap<KeyNumber, u64>>,
    next_value: Cell<u64>,
    stop: Cell<bool>,
    /// Answers that no request should get, in words.
    strange: RefCell<Vec<String>>,
    last_success: Cell<Instant>,
    longest_silence: Cell<(Duration, Duration)>,
    /// What the last request that failed was answered.
    last_failure: RefCell<String>,
}

impl Clients {
    /// Clients of these nodes that write and read so many keys, and wait that long after each answer.
    pub fn new(addresses: Vec<SocketAddr>, key_count: u32, think_time: Duration) -> Rc<Clients> {
        let began = Instant::now();
        Rc::new(Clients {
            addresses,
            key_count,
            think_time,
            began,
            history: RefCell::default(),
            seen: RefCell::default(),
            next_value: Cell::new(1),
            stop: Cell::new(false),
            strange: RefCell::default(),
            last_success: Cell::new(began),
            longest_silence: Cell::default(),
            last_failure: RefCell::default(),
        })
    }

    /// One client, until all are told to stop. It stays with a node until that one fails it, and now and then goes to another all the same.
    pub async fn run(self: Rc<Clients>, number: u32, mut rng: Rng) {
        let mut wire = Wire::new(self.draw_address(&mut rng), REQUEST_TIMEOUT);
        while !self.stop.get() {
            let key = KeyNumber(rng.below(u64::from(self.key_count)) as u32);
            let call = self.choose(key, &mut rng);
            let answered = self.ask(&mut wire, number, key, call).await;
            if !answered || rng.chance(1, 50) {
                wire.turn_to(self.draw_address(&mut rng));
            }
            tokio::time::sleep(self.think_time).await;
        }
    }

    /// Lets the requests under way end.
    pub fn stop(&self) {
        self.stop.set(true);
    }

    /// Reads every key at every one of these nodes; nothing runs beside it. Gives the reads that no attempt got an answer to.
    pub async fn read_all(&self, addresses: &[SocketAddr]) -> Vec<String> {
        let mut refused = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            let mut wire = Wire::new(*address, REQUEST_TIMEOUT);
            for key in (0..self.key_count).map(KeyNumber) {
                let mut answered = false;
                for _ in 0..ATTEMPTS_MAX {
                    answered = self.ask(&mut wire, u32::MAX - number as u32, key, Call::Get).await;
                    if answered {
                        break;
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                if !answered {
                    let located = wire.exchange("GET", &format!("/v1/locate/{}", name_of(key)), b"").await;
                    let located = located.map_or_else(|error| error.to_string(), |reply| String::from_utf8_lossy(&reply.body).into_owned());
                    refused.push(format!("{address} did not give key {}: {}; it locates it {located}", key.0, self.last_failure.borrow()));
                }
            }
        }
        refused
    }

    /// Everything that was asked and told.
    pub fn operations(&self) -> Vec<Operation> {
        self.history.borrow().operations().to_vec()
    }

    /// Answers that no request should get.
    pub fn strange(&self) -> Vec<String> {
        self.strange.borrow().clone()
    }

    /// The longest time in which nobody was told anything but a failure: when it began, and how long it was.
    pub fn longest_silence(&self) -> (Duration, Duration) {
        self.longest_silence.get()
    }

    fn draw_address(&self, rng: &mut Rng) -> SocketAddr {
        *rng.pick(&self.addresses).expect("there are nodes")
    }

    fn now(&self) -> Moment {
        Moment(self.began.elapsed().as_nanos() as u64)
    }

    fn choose(&self, key: KeyNumber, rng: &mut Rng) -> Call {
        let seen = self.seen.borrow().get(&key).copied();
        let guard = match (rng.below(3), seen) {
            (0, Some(version)) => Guard::Version(version),
            (1, _) => Guard::Absent,
            _ => Guard::Always,
        };
        match rng.below(20) {
            0..9 => Call::Get,
            9..17 => {
                let value = ValueNumber(self.next_value.replace(self.next_value.get() + 1));
                Call::Put { value, guard: if rng.chance(1, 2) { guard } else { Guard::Always } }
            }
            // `If-None-Match` means nothing to a delete.
            _ => Call::Delete { guard: if guard == Guard::Absent { Guard::Always } else { guard } },
        }
    }

    /// Asks, and notes what comes back. Says whether the node answered the question.
    async fn ask(&self, wire: &mut Wire, client: u32, key: KeyNumber, call: Call) -> bool {
        let (method, headers, body) = match call {
            Call::Get => ("GET", String::new(), Vec::new()),
            Call::Put { value, guard } => ("PUT", header_of(guard), bytes_of(value)),
            Call::Delete { guard } => ("DELETE", header_of(guard), Vec::new()),
            Call::Lend { .. } | Call::Increment { .. } => unreachable!("these are not asked here"),
        };
        let path = format!("/v1/kv/{}?timeout={}ms", name_of(key), REQUEST_TIMEOUT.as_millis());
        let operation = self.history.borrow_mut().invoke(client, key, call, self.now());
        let reply = wire.exchange_with(method, &path, &headers, &body).await;
        match &reply {
            Ok(reply) if reply.status >= 500 => {
                let words = String::from_utf8_lossy(&reply.body);
                self.last_failure.replace(format!("{} {words}", reply.status));
            }
            Ok(_) => {}
            Err(error) => _ = self.last_failure.replace(error.to_string()),
        }
        let answer = answer_of(call, reply).unwrap_or_else(|strange| {
            let mut all = self.strange.borrow_mut();
            if all.len() < DESCRIBED_MAX {
                all.push(format!("{method} {path}: {strange}"));
            }
            if call == Call::Get { Answer::NotApplied } else { Answer::Unknown }
        });
        self.history.borrow_mut().answer(operation, answer, self.now());
        match answer {
            Answer::Put { version, .. } | Answer::Value { version, .. } | Answer::GuardFailed { present: Some(version) } => {
                self.seen.borrow_mut().insert(key, version);
            }
            _ => {}
        }
        let answered = !matches!(answer, Answer::NotApplied | Answer::Unknown);
        if answered {
            let now = Instant::now();
            let last = self.last_success.replace(now);
            if now - last > self.longest_silence.get().1 {
                self.longest_silence.set((last - self.began, now - last));
            }
        }
        answered
    }
}

fn name_of(key: KeyNumber) -> String {
    encode_key(format!("churn/{}", key.0).as_bytes())
}

fn header_of(guard: Guard) -> String {
    match guard {
        Guard::Always => String::new(),
        Guard::Absent => "if-none-match: *\r\n".to_owned(),
        Guard::Present => "if-match: *\r\n".to_owned(),
        Guard::Version(version) => format!("if-match: \"{version}\"\r\n"),
    }
}

fn bytes_of(value: ValueNumber) -> Vec<u8> {
    format!("{};", value.0).repeat(4).into_bytes()
}

fn value_of(bytes: &[u8]) -> Option<ValueNumber> {
    let number = std::str::from_utf8(bytes).ok()?.split(';').next()?.parse().ok()?;
    let value = ValueNumber(number);
    (bytes_of(value) == bytes).then_some(value)
}

/// What a client was told, in the checker's words.
///
/// # Errors
/// If that is no answer to what it asked.
fn answer_of(call: Call, reply: io::Result<Reply>) -> Result<Answer, String> {
    let reply = match reply {
        Ok(reply) => reply,
        // Nothing was sent.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(Answer::NotApplied),
        Err(_) => return Ok(if call == Call::Get { Answer::NotApplied } else { Answer::Unknown }),
    };
    let strange = || format!("{} {}", reply.status, String::from_utf8_lossy(&reply.body));
    let field = |name: &str| serde_json::from_slice::<serde_json::Value>(&reply.body).ok().and_then(|body| body.get(name).cloned());
    match (call, reply.status) {
        (Call::Get, 200) => {
            let value = value_of(&reply.body).ok_or_else(strange)?;
            Ok(Answer::Value { version: reply.version.ok_or_else(strange)?, value })
        }
        (Call::Get, 404) => Ok(Answer::Absent),
        (Call::Put { .. }, 200 | 201) => {
            let version = reply.version.filter(|version| field("version") == Some((*version).into())).ok_or_else(strange)?;
            Ok(Answer::Put { version, created: reply.status == 201 })
        }
        (Call::Delete { .. }, 200) => {
            let deleted = field("deleted").and_then(|deleted| deleted.as_bool()).ok_or_else(strange)?;
            Ok(Answer::Deleted { deleted })
        }
        (Call::Put { .. } | Call::Delete { .. }, 412) => Ok(Answer::GuardFailed { present: reply.version }),
        (Call::Get, 503 | 504) => Ok(Answer::NotApplied),
        (_, 503 | 504) if reply.not_applied => Ok(Answer::NotApplied),
        (_, 503 | 504) => Ok(Answer::Unknown),
        _ => Err(strange()),
    }
}

/// How many requests were answered, and of how many writes nobody knows.
pub fn answered_and_unknown(operations: &[Operation]) -> (usize, usize) {
    let count = |is: fn(Answer) -> bool| operations.iter().filter(|operation| is(operation.answer)).count();
    (count(|answer| !matches!(answer, Answer::NotApplied | Answer::Unknown)), count(|answer| answer == Answer::Unknown))
}

/// Spoils a history as a store would that forgot a write: a read in its second half tells again what an earlier read told, of
/// a version long replaced. `None` if there is no such pair of reads.
pub fn tampered(operations: &[Operation]) -> Option<Vec<Operation>> {
    let mut spoilt = operations.to_vec();
    let version = |operation: &Operation| match operation.answer {
        Answer::Value { version, .. } => Some(version),
        _ => None,
    };
    for late in (operations.len() / 2..operations.len()).rev() {
        let read = &operations[late];
        let Some(newest) = version(read) else { continue };
        let is_old = |old: &&Operation| {
            old.key == read.key && version(old).is_some_and(|version| version < newest) && {
                // Both versions were told of by another before this one asked, in that order: what it is made to say is certainly over.
                let told = |operation: &&Operation| operation.key == read.key && operation.returned.is_some_and(|told| told < read.invoked);
                operations[..late].iter().filter(told).any(|other| version(other) == Some(newest))
            }
        };
        if let Some(old) = operations[..late].iter().find(is_old) {
            spoilt[late].answer = old.answer;
            return Some(spoilt);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_sim::checkers::linearizability;

    fn reply(status: u16, version: Option<u64>, not_applied: bool, body: &[u8]) -> io::Result<Reply> {
        Ok(Reply { status, not_applied, version, body: body.to_vec() })
    }

    fn put(value: u64) -> Call {
        Call::Put { value: ValueNumber(value), guard: Guard::Always }
    }

    #[test]
    fn answers_become_what_the_checker_knows() {
        let of = |call, reply| answer_of(call, reply).expect("an answer");
        assert_eq!(of(put(1), reply(201, Some(7), false, br#"{"version":7}"#)), Answer::Put { version: 7, created: true });
        assert_eq!(of(Call::Get, reply(200, Some(7), false, b"1;1;1;1;")), Answer::Value { version: 7, value: ValueNumber(1) });
        assert_eq!(of(Call::Get, reply(404, None, false, b"")), Answer::Absent);
        assert_eq!(of(put(1), reply(412, None, true, b"")), Answer::GuardFailed { present: None });
        let delete = Call::Delete { guard: Guard::Always };
        assert_eq!(of(delete, reply(200, None, false, br#"{"deleted":true}"#)), Answer::Deleted { deleted: true });
        assert_eq!(of(delete, reply(503, None, true, b"")), Answer::NotApplied);
        assert_eq!(of(delete, reply(504, None, false, b"")), Answer::Unknown);
        assert_eq!(of(put(1), Err(io::ErrorKind::TimedOut.into())), Answer::Unknown);
        assert_eq!(of(put(1), Err(io::ErrorKind::ConnectionRefused.into())), Answer::NotApplied);
        assert_eq!(of(Call::Get, Err(io::ErrorKind::TimedOut.into())), Answer::NotApplied);
    }

    #[test]
    fn what_is_no_answer_is_told() {
        assert!(answer_of(Call::Get, reply(200, Some(1), false, b"1;1;2;1;")).is_err(), "a value that nobody wrote whole");
        assert!(answer_of(Call::Get, reply(200, None, false, b"1;1;1;1;")).is_err(), "no version");
        assert!(answer_of(put(1), reply(200, Some(1), false, br#"{"version":2}"#)).is_err(), "two versions");
        assert!(answer_of(put(1), reply(500, None, false, b"")).is_err());
    }

    #[test]
    fn a_tampered_history_has_no_order() {
        let mut history = History::default();
        let mut note = |call, answer, from| {
            let operation = history.invoke(0, KeyNumber(0), call, Moment(from));
            history.answer(operation, answer, Moment(from + 1));
        };
        let told = |version| Answer::Value { version, value: ValueNumber(version) };
        note(put(1), Answer::Put { version: 1, created: true }, 0);
        note(Call::Get, told(1), 10);
        note(put(2), Answer::Put { version: 2, created: false }, 20);
        note(Call::Get, told(2), 30);
        note(put(9), Answer::Unknown, 40);
        note(Call::Get, told(2), 50);
        assert_eq!(linearizability::check(history.operations()), Ok(()));
        let spoilt = tampered(history.operations()).expect("there is a read to spoil");
        assert!(linearizability::check(&spoilt).is_err());
        assert_eq!(tampered(&history.operations()[..2]).map(|spoilt| spoilt.len()), None, "nothing was replaced yet");
    }
}
