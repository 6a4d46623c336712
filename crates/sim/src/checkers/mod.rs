//! The properties that every run must have, one file each. A checker sees what clients saw, or what
//! the nodes show of themselves, and knows nothing of how either came about.

pub mod convergence;
pub mod durability;
pub mod exactly_once;
pub mod expiry;
pub mod honest_outcomes;
pub mod linearizability;
pub mod one_leader;
pub mod replica_agreement;
pub mod versions;

use std::fmt;

/// A property that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which property.
    pub property: &'static str,
    /// What was seen, for people.
    pub detail: String,
}

impl Violation {
    /// A breach of `property`.
    pub fn new(property: &'static str, detail: impl Into<String>) -> Violation {
        Violation { property, detail: detail.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.detail)
    }
}

/// Short histories for the checkers' own tests.
#[cfg(test)]
pub(crate) mod sample {
    use crate::history::{Answer, Call, Guard, KeyNumber, Moment, Operation, ValueNumber};

    pub(crate) fn op(call: Call, answer: Answer, from: u64, to: u64) -> Operation {
        Operation { client: 0, key: KeyNumber(0), call, invoked: Moment(from), returned: Some(Moment(to)), answer }
    }

    pub(crate) fn put(value: u64, version: u64, created: bool, from: u64, to: u64) -> Operation {
        op(Call::Put { value: ValueNumber(value), guard: Guard::Always }, Answer::Put { version, created }, from, to)
    }

    pub(crate) fn lost_put(value: u64, from: u64, to: u64) -> Operation {
        op(Call::Put { value: ValueNumber(value), guard: Guard::Always }, Answer::Unknown, from, to)
    }

    pub(crate) fn get(value: u64, version: u64, from: u64, to: u64) -> Operation {
        op(Call::Get, Answer::Value { version, value: ValueNumber(value) }, from, to)
    }

    pub(crate) fn absent(from: u64, to: u64) -> Operation {
        op(Call::Get, Answer::Absent, from, to)
    }

    pub(crate) fn delete(deleted: bool, from: u64, to: u64) -> Operation {
        op(Call::Delete { guard: Guard::Always }, Answer::Deleted { deleted }, from, to)
    }
}
