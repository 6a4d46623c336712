//! Whether a failed write can have happened.

use std::fmt;

/// Stands on every failed write. The layer that knows sets it; no layer above upgrades it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write did not happen and never will.
    NotApplied,
    /// The write may have happened, or may yet.
    Unknown,
}

impl Outcome {
    /// The value of the `Flotilla-Outcome` header.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::NotApplied => "not-applied",
            Outcome::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
