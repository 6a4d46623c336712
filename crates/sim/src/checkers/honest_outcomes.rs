//! A write that was answered "not applied" never appears, anywhere, at any time.

use super::Violation;
use super::durability::Survivors;
use crate::history::{Answer, Operation, ValueNumber};
use std::collections::BTreeMap;

/// Looks for values of refused writes in every answer and in what is there at the end.
///
/// # Errors
/// The first such value.
pub fn check(operations: &[Operation], survivors: &Survivors) -> Result<(), Violation> {
    let refused: BTreeMap<ValueNumber, &Operation> = operations
        .iter()
        .filter(|o| matches!(o.answer, Answer::NotApplied | Answer::GuardFailed { .. }))
        .filter_map(|o| Some((o.written()?, o)))
        .collect();
    let wrong = |write: &Operation, place: String| Err(Violation::new("honest outcomes", format!("{write}, and yet its value is {place}")));
    for operation in operations {
        if let Answer::Value { value, .. } = operation.answer
            && let Some(write) = refused.get(&value)
        {
            return wrong(write, format!("read by {operation}"));
        }
    }
    for (key, (version, value)) in survivors {
        if let Some(write) = refused.get(value) {
            return wrong(write, format!("under key {} at version {version}", key.0));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::sample::{get, op};
    use super::*;
    use crate::history::{Call, Guard, KeyNumber};

    #[test]
    fn a_refused_write_is_seen_nowhere() {
        let none = Survivors::new();
        for answer in [Answer::NotApplied, Answer::GuardFailed { present: None }] {
            let refused = op(Call::Put { value: ValueNumber(1), guard: Guard::Present }, answer, 0, 1);
            assert!(check(&[refused], &none).is_ok());
            assert!(check(&[refused, get(1, 1, 2, 3)], &none).is_err());
            assert!(check(&[refused], &Survivors::from([(KeyNumber(0), (1, ValueNumber(1)))])).is_err());
        }
        let unknown = op(Call::Put { value: ValueNumber(1), guard: Guard::Always }, Answer::Unknown, 0, 1);
        assert!(check(&[unknown, get(1, 1, 2, 3)], &none).is_ok());
    }
}
