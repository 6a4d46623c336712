//! What clients asked and were told: the only thing that the checkers of outcomes look at.
//!
//! Keys and values stand here as numbers. The workload makes a key's and a value's bytes from its
//! number and checks, when bytes come back, that they are exactly those (see [`crate::workload`]).

use std::fmt;
use std::ops::Add;
use std::time::Duration;

/// A moment of the world, in nanoseconds: not any node's clock, which may drift.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

/// The number of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyNumber(pub u32);

/// The number of a value; no two writes share one. 0 is never given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueNumber(pub u64);

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Nothing.
    Always,
    /// The key is absent.
    Absent,
    /// The key is present.
    Present,
    /// The key has this version.
    Version(u64),
}

/// What a client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Read the key.
    Get,
    /// Write the key.
    Put {
        /// The new value.
        value: ValueNumber,
        /// What must hold.
        guard: Guard,
    },
    /// Delete the key.
    Delete {
        /// What must hold.
        guard: Guard,
    },
    /// Write the key for a time.
    Lend {
        /// The new value.
        value: ValueNumber,
        /// For how many milliseconds.
        ttl_ms: u64,
    },
    /// Add 1 to the key, once for each id however often that is asked.
    Increment {
        /// The request's id.
        id: u64,
    },
}

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The key has this version and value.
    Value {
        /// Its version.
        version: u64,
        /// Its value.
        value: ValueNumber,
    },
    /// The key is absent.
    Absent,
    /// The write happened.
    Put {
        /// The version it gave the key.
        version: u64,
        /// Whether the key was absent before.
        created: bool,
    },
    /// The delete happened.
    Deleted {
        /// Whether the key was present.
        deleted: bool,
    },
    /// The increment happened, now or when its id was asked first.
    Incremented {
        /// What it made of the key.
        value: i64,
        /// The version it gave the key.
        version: u64,
    },
    /// The guard did not hold.
    GuardFailed {
        /// The version that was there.
        present: Option<u64>,
    },
    /// It failed, and certainly has not happened (or it was a read that failed).
    NotApplied,
    /// It failed, may have happened, may happen yet; or no answer came.
    Unknown,
}

/// One request of a client.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// The client.
    pub client: u32,
    /// The key.
    pub key: KeyNumber,
    /// What it asked.
    pub call: Call,
    /// When it asked.
    pub invoked: Moment,
    /// When it was told; `None`: never.
    pub returned: Option<Moment>,
    /// What it was told.
    pub answer: Answer,
}

/// All requests of a run, in the order in which they were made.
#[derive(Clone, Debug, Default)]
pub struct History {
    operations: Vec<Operation>,
    /// What scans told of keys.
    observed: Vec<Operation>,
}

impl History {
    /// Notes that a client asks; gives the operation's number.
    pub fn invoke(&mut self, client: u32, key: KeyNumber, call: Call, now: Moment) -> usize {
        self.operations.push(Operation { client, key, call, invoked: now, returned: None, answer: Answer::Unknown });
        self.operations.len() - 1
    }

    /// Notes what it was told.
    pub fn answer(&mut self, operation: usize, answer: Answer, now: Moment) {
        let operation = &mut self.operations[operation];
        assert!(operation.returned.is_none(), "an operation is answered once");
        operation.returned = Some(now);
        operation.answer = answer;
    }

    /// All operations.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Notes what a scan told: a read of each key that it covered.
    pub fn observe(&mut self, reads: Vec<Operation>) {
        self.observed.extend(reads);
    }

    /// All operations and what scans told, for the checkers.
    pub fn told(&self) -> Vec<Operation> {
        let mut told: Vec<Operation> = self.operations.iter().chain(&self.observed).copied().collect();
        told.sort_by_key(|operation| operation.invoked);
        told
    }

    /// How many writes and reads were answered with success.
    pub fn acknowledged(&self) -> u64 {
        self.operations.iter().filter(|o| !matches!(o.answer, Answer::NotApplied | Answer::Unknown)).count() as u64
    }
}

impl Operation {
    /// The value that it was to give the key.
    pub fn written(&self) -> Option<ValueNumber> {
        match self.call {
            Call::Put { value, .. } | Call::Lend { value, .. } => Some(value),
            Call::Get | Call::Delete { .. } | Call::Increment { .. } => None,
        }
    }

    /// A write that certainly changed the key.
    pub fn certainly_wrote(&self) -> bool {
        matches!(self.answer, Answer::Put { .. } | Answer::Deleted { deleted: true })
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Moment {
    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000_000, self.0 / 1_000 % 1_000_000)
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} key {} {:?} -> {:?} [{} .. ", self.client, self.key.0, self.call, self.answer, self.invoked)?;
        match self.returned {
            Some(returned) => write!(f, "{returned}]"),
            None => f.write_str("never]"),
        }
    }
}
