//! Keys that are lent a value for a time: seen expired, it is never seen again, and it does not expire early.

use super::Violation;
use crate::history::{Answer, Call, KeyNumber, Moment, Operation, ValueNumber};
use std::collections::BTreeMap;
use std::time::Duration;

const PROPERTY: &str = "expiry";
/// How much too early a key may expire where no wall clock jumps: they differ by up to 200 ms, what a peer said of
/// its own may have waited, so that it seems to be behind until the next second's, and links are slow.
const EARLY_MAX: Duration = Duration::from_secs(2);

fn lent_by_key(operations: &[Operation]) -> BTreeMap<KeyNumber, Vec<&Operation>> {
    let mut by_key: BTreeMap<KeyNumber, Vec<&Operation>> = BTreeMap::new();
    for operation in operations.iter().filter(|o| matches!(o.call, Call::Lend { .. })) {
        by_key.entry(operation.key).or_default().push(operation);
    }
    for operation in operations.iter().filter(|o| o.call == Call::Get) {
        if let Some(all) = by_key.get_mut(&operation.key) {
            all.push(operation);
        }
    }
    by_key
}

/// A value that was there, and then the key was seen to be absent, is not seen after that.
///
/// # Errors
/// The first value that comes back.
pub fn check_never_back(operations: &[Operation]) -> Result<(), Violation> {
    for operations in lent_by_key(operations).into_values() {
        // When a value was certainly there first, by its write's answer or a read's.
        let mut there: BTreeMap<ValueNumber, Moment> = BTreeMap::new();
        for operation in &operations {
            let seen = match operation.answer {
                Answer::Put { .. } => operation.written(),
                Answer::Value { value, .. } => Some(value),
                _ => None,
            };
            if let (Some(value), Some(returned)) = (seen, operation.returned) {
                let first = there.entry(value).or_insert(returned);
                *first = (*first).min(returned);
            }
        }
        let absent: Vec<&&Operation> = operations.iter().filter(|o| o.answer == Answer::Absent).collect();
        for read in &operations {
            let Answer::Value { value, .. } = read.answer else { continue };
            let gone = absent.iter().find(|a| a.invoked > there[&value] && a.returned.is_some_and(|returned| returned < read.invoked));
            if let Some(gone) = gone {
                return Err(Violation::new(PROPERTY, format!("back again: {gone}, and then {read}")));
            }
        }
    }
    Ok(())
}

/// A value is there until its time is over, unless another may have taken its place.
///
/// # Errors
/// The first that was gone before.
pub fn check_not_early(operations: &[Operation]) -> Result<(), Violation> {
    for operations in lent_by_key(operations).into_values() {
        for write in operations.iter().filter(|o| matches!(o.answer, Answer::Put { .. })) {
            let Call::Lend { ttl_ms, .. } = write.call else { continue };
            let end = write.invoked + Duration::from_millis(ttl_ms);
            let precedes = |a: &Operation, b: &Operation| a.answer != Answer::Unknown && a.returned.is_some_and(|r| r < b.invoked);
            let early = operations.iter().find(|read| {
                let is_early = read.answer == Answer::Absent && precedes(write, read) && read.returned.is_some_and(|r| r + EARLY_MAX < end);
                let another = || {
                    let mut others = operations.iter().filter(|o| o.written().is_some() && o.written() != write.written());
                    others.any(|o| o.answer != Answer::NotApplied && !precedes(o, write) && !precedes(read, o))
                };
                is_early && !another()
            });
            if let Some(read) = early {
                return Err(Violation::new(PROPERTY, format!("too early: {write}, and then {read}")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::sample::{absent, get, op};
    use super::*;

    const MS: u64 = 1_000_000;

    fn lend(value: u64, answer: Answer, from: u64, to: u64) -> Operation {
        op(Call::Lend { value: ValueNumber(value), ttl_ms: 5_000 }, answer, from, to)
    }

    fn lent(value: u64, version: u64, from: u64, to: u64) -> Operation {
        lend(value, Answer::Put { version, created: true }, from, to)
    }

    #[test]
    fn what_was_gone_does_not_come_back() {
        let holds = |operations: &[Operation]| check_never_back(operations).is_ok();
        assert!(holds(&[lent(1, 1, 0, 1), get(1, 1, 2, 3), absent(4, 5), absent(6, 7)]));
        assert!(!holds(&[lent(1, 1, 0, 1), absent(4, 5), get(1, 1, 6, 7)]));
        assert!(holds(&[lent(1, 1, 0, 1), absent(4, 7), get(1, 1, 5, 6)]), "side by side");
        assert!(holds(&[lent(1, 1, 0, 6), absent(4, 5), get(1, 1, 7, 8)]), "it came after");
        let unknown = lend(1, Answer::Unknown, 0, 1);
        assert!(holds(&[unknown, absent(4, 5), get(1, 1, 6, 7)]), "late");
        assert!(!holds(&[unknown, get(1, 1, 2, 3), absent(4, 5), get(1, 1, 6, 7)]));
        assert!(holds(&[lent(1, 1, 0, 1), absent(4, 5), lent(2, 2, 6, 7), get(2, 2, 8, 9)]), "another value");
    }

    #[test]
    fn a_value_has_its_time() {
        let holds = |operations: &[Operation]| check_not_early(operations).is_ok();
        assert!(holds(&[lent(1, 1, 0, MS), absent(4_200 * MS, 4_300 * MS)]));
        assert!(!holds(&[lent(1, 1, 0, MS), absent(2_000 * MS, 2_100 * MS)]));
        let other = lend(2, Answer::Unknown, 0, 2 * MS);
        assert!(holds(&[lent(1, 1, 0, MS), other, absent(2_000 * MS, 2_100 * MS)]), "the other's may be over, or it may have come");
        assert!(holds(&[absent(0, MS), lent(1, 1, 2 * MS, 3 * MS)]));
    }
}
