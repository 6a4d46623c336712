//! The headers of our own: whether a failed write can have happened, and how stale a read may be.

use flotilla_types::Outcome;

/// Stands on every non-2xx answer to a write, in lower case as HTTP libraries want it: `Flotilla-Outcome`.
pub const OUTCOME_HEADER: &str = "flotilla-outcome";

/// Stands on answers that may be stale: for how many milliseconds at most.
pub const LAG_HEADER: &str = "flotilla-lag-ms";

/// The outcome that a header's value names; `None` for anything that is not ours.
pub fn parse_outcome(value: &str) -> Option<Outcome> {
    [Outcome::NotApplied, Outcome::Unknown].into_iter().find(|outcome| outcome.as_str() == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for outcome in [Outcome::NotApplied, Outcome::Unknown] {
            assert_eq!(parse_outcome(outcome.as_str()), Some(outcome));
        }
        assert_eq!(parse_outcome("applied"), None);
    }
}
