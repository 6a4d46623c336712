//! Versions rise with every change of a key and never repeat for it, also across delete and
//! re-create; one version stands for one value, whoever is asked.

use super::Violation;
use crate::history::{Answer, Call, KeyNumber, Operation, ValueNumber};
use std::collections::BTreeMap;

const PROPERTY: &str = "versions";
/// A client may keep them in a double (docs/formats.md).
const VERSION_END: u64 = 1 << 53;

/// Checks what every answer says of versions.
///
/// # Errors
/// The first version that stands for two values, does not rise, or is out of range.
pub fn check(operations: &[Operation]) -> Result<(), Violation> {
    let mut values: BTreeMap<(KeyNumber, u64), (ValueNumber, &Operation)> = BTreeMap::new();
    for operation in operations {
        let (version, value) = match (operation.call, operation.answer) {
            (Call::Put { value, .. }, Answer::Put { version, .. }) => (version, value),
            (_, Answer::Value { version, value }) => (version, value),
            _ => continue,
        };
        if version == 0 || version >= VERSION_END {
            return Err(Violation::new(PROPERTY, format!("out of range: {operation}")));
        }
        let (known, first) = *values.entry((operation.key, version)).or_insert((value, operation));
        if known != value {
            return Err(Violation::new(PROPERTY, format!("one version stands for two values: {first} and {operation}")));
        }
    }
    check_rising(operations)
}

/// What is told after another answer came back shows no lower version. Reads count as well: a
/// version once seen is not undercut by a later write.
fn check_rising(operations: &[Operation]) -> Result<(), Violation> {
    let mut told: BTreeMap<KeyNumber, Vec<(&Operation, u64)>> = BTreeMap::new();
    for operation in operations {
        if let Answer::Put { version, .. } | Answer::Value { version, .. } = operation.answer {
            told.entry(operation.key).or_default().push((operation, version));
        }
    }
    for mut told in told.into_values() {
        let mut by_return = told.clone();
        by_return.sort_by_key(|(o, _)| o.returned);
        told.sort_by_key(|(o, _)| o.invoked);
        let mut returned = by_return.into_iter().peekable();
        let mut highest: Option<(&Operation, u64)> = None;
        for (operation, version) in told {
            while let Some(earlier) = returned.next_if(|(o, _)| o.returned.is_some_and(|r| r < operation.invoked)) {
                if highest.is_none_or(|(_, h)| earlier.1 > h) {
                    highest = Some(earlier);
                }
            }
            let writes = matches!(operation.answer, Answer::Put { .. });
            if let Some((earlier, highest)) = highest
                && (version < highest || (writes && version == highest))
            {
                return Err(Violation::new(PROPERTY, format!("does not rise: {earlier}, then {operation}")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::sample::{delete, get, put};
    use super::*;

    #[test]
    fn versions_rise_and_stand_for_one_value() {
        assert!(check(&[put(1, 1, true, 0, 1), get(1, 1, 2, 3), put(2, 2, false, 4, 5)]).is_ok());
        assert!(check(&[put(2, 2, false, 0, 9), put(1, 1, true, 1, 8)]).is_ok(), "side by side any order will do");
        assert!(check(&[put(1, 1, true, 0, 1), get(2, 1, 2, 3)]).is_err(), "two values");
        assert!(check(&[put(1, 2, true, 0, 1), put(2, 1, false, 2, 3)]).is_err(), "falls");
        assert!(check(&[put(1, 2, true, 0, 1), delete(true, 2, 3), put(2, 2, true, 4, 5)]).is_err(), "repeats after a delete");
        assert!(check(&[put(1, 2, true, 0, 1), get(1, 2, 2, 3), get(0, 1, 4, 5)]).is_err(), "a read goes back");
        assert!(check(&[put(1, 1 << 53, true, 0, 1)]).is_err(), "out of range");
    }
}
