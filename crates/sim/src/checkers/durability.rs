//! Durability: after everything has healed, each acknowledged write is there, or a later write or a
//! delete that may have come after it took its place.
//!
//! Linearizability with a last read of every key says as much; this says it of what lies in the
//! stores, without a search, and so catches what a wrong read would hide.

use super::Violation;
use crate::history::{Answer, Call, KeyNumber, Operation, ValueNumber};
use std::collections::BTreeMap;

const PROPERTY: &str = "durability";

/// What is there at the end: version and value of each present key.
pub type Survivors = BTreeMap<KeyNumber, (u64, ValueNumber)>;

/// Compares what was acknowledged with what is there.
///
/// # Errors
/// The first write that is lost, or the first row that nobody wrote.
pub fn check(operations: &[Operation], survivors: &Survivors) -> Result<(), Violation> {
    let mut newest: BTreeMap<KeyNumber, (u64, &Operation)> = BTreeMap::new();
    let mut writer: BTreeMap<ValueNumber, &Operation> = BTreeMap::new();
    for operation in operations {
        if let Call::Put { value, .. } = operation.call {
            writer.insert(value, operation);
        }
        if let Answer::Put { version, .. } = operation.answer {
            let newest = newest.entry(operation.key).or_insert((version, operation));
            if version >= newest.0 {
                *newest = (version, operation);
            }
        }
    }
    for (key, (version, write)) in &newest {
        let replaced = match survivors.get(key) {
            Some((present, _)) => present >= version,
            None => operations.iter().any(|o| o.key == *key && may_have_deleted(o) && !precedes(o, write)),
        };
        if !replaced {
            let found = survivors.get(key).map_or("nothing".to_owned(), |(version, value)| format!("version {version}, value {}", value.0));
            return Err(Violation::new(PROPERTY, format!("lost: {write}; found {found}")));
        }
    }
    for (key, (version, value)) in survivors {
        let wrong =
            |detail: String| Err(Violation::new(PROPERTY, format!("key {} holds value {} at version {version}: {detail}", key.0, value.0)));
        match writer.get(value) {
            Some(write) if write.key != *key => return wrong(format!("that was written elsewhere: {write}")),
            Some(write) => {
                if let Answer::Put { version: given, .. } = write.answer
                    && given != *version
                {
                    return wrong(format!("that was given another version: {write}"));
                }
            }
            None => return wrong("nobody wrote that".to_owned()),
        }
        let deleted =
            operations.iter().find(|o| o.key == *key && o.answer == Answer::Deleted { deleted: true } && precedes(writer[value], o));
        if let Some(delete) = deleted {
            return wrong(format!("deleted since by {delete}"));
        }
    }
    Ok(())
}

fn may_have_deleted(operation: &Operation) -> bool {
    matches!(operation.call, Call::Delete { .. }) && matches!(operation.answer, Answer::Deleted { deleted: true } | Answer::Unknown)
}

/// Whether `first` was certainly over before `second` began.
fn precedes(first: &Operation, second: &Operation) -> bool {
    first.answer != Answer::Unknown && first.returned.is_some_and(|returned| returned < second.invoked)
}

#[cfg(test)]
mod tests {
    use super::super::sample::{delete, lost_put, put};
    use super::*;

    fn holds(operations: &[Operation], survivor: Option<(u64, u64)>) -> bool {
        let survivors = survivor.map(|(version, value)| (KeyNumber(0), (version, ValueNumber(value)))).into_iter().collect();
        check(operations, &survivors).is_ok()
    }

    #[test]
    fn a_write_stays_until_something_takes_its_place() {
        let write = put(1, 1, true, 0, 1);
        assert!(holds(&[write], Some((1, 1))));
        assert!(!holds(&[write], None), "lost");
        assert!(holds(&[write, put(2, 2, false, 2, 3)], Some((2, 2))));
        assert!(!holds(&[write, put(2, 2, false, 2, 3)], Some((1, 1))), "the later one is lost");
        assert!(holds(&[write, lost_put(2, 2, 3)], Some((2, 2))), "an unknown write may have happened");
        assert!(holds(&[write, lost_put(2, 2, 3)], Some((1, 1))), "or not");
        assert!(holds(&[write, delete(true, 2, 3)], None));
        assert!(!holds(&[delete(true, 0, 1), put(1, 1, true, 2, 3)], None), "deleted before it was written");
    }

    #[test]
    fn nothing_comes_from_nowhere_or_from_the_dead() {
        assert!(!holds(&[put(1, 1, true, 0, 1)], Some((1, 7))), "nobody wrote it");
        assert!(!holds(&[put(1, 1, true, 0, 1)], Some((3, 1))), "applied twice");
        assert!(!holds(&[put(1, 1, true, 0, 1), delete(true, 2, 3)], Some((1, 1))), "deleted");
    }
}
