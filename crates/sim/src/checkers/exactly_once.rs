//! Exactly once: an increment under an idempotency key takes effect at most once however often it is asked,
//! all its answers are the same, and those that were answered are in the total.
//!
//! Each increment adds 1, so the values that a counter passed through say which increments took effect.

use super::Violation;
use crate::history::{Answer, Call, KeyNumber, Moment, Operation};
use std::collections::BTreeMap;

const PROPERTY: &str = "exactly once";

/// What the counters hold at the end.
pub type Counters = BTreeMap<KeyNumber, i64>;

/// What is known of one id.
struct Request<'a> {
    key: KeyNumber,
    first_asked: Moment,
    /// The first answer.
    done: Option<(&'a Operation, i64, u64)>,
    may_be_done: bool,
}

fn requests(operations: &[Operation]) -> Result<BTreeMap<u64, Request<'_>>, Violation> {
    let mut requests: BTreeMap<u64, Request<'_>> = BTreeMap::new();
    for operation in operations {
        let Call::Increment { id } = operation.call else { continue };
        let new = Request { key: operation.key, first_asked: operation.invoked, done: None, may_be_done: false };
        let request = requests.entry(id).or_insert(new);
        match (operation.answer, request.done) {
            (Answer::Incremented { value, version }, None) => request.done = Some((operation, value, version)),
            (Answer::Incremented { value, version }, Some((first, was, was_version))) => {
                if (value, version) != (was, was_version) {
                    return Err(Violation::new(PROPERTY, format!("one request, two answers: {first} and {operation}")));
                }
                if operation.returned < first.returned {
                    request.done = Some((operation, value, version));
                }
            }
            (Answer::Unknown, _) => request.may_be_done = true,
            _ => {}
        }
    }
    Ok(requests)
}

/// Checks what was answered.
///
/// # Errors
/// The first request with two answers, or two requests whose answers no order explains.
pub fn check_answers(operations: &[Operation]) -> Result<(), Violation> {
    let mut by_key: BTreeMap<KeyNumber, Vec<(Moment, i64, u64, &Operation)>> = BTreeMap::new();
    for request in requests(operations)?.into_values() {
        if let Some((operation, value, version)) = request.done {
            by_key.entry(request.key).or_default().push((request.first_asked, value, version, operation));
        }
    }
    for mut done in by_key.into_values() {
        done.sort_by_key(|(_, value, _, _)| *value);
        if let Some(pair) = done.windows(2).find(|pair| pair[0].1 == pair[1].1 || pair[0].2 >= pair[1].2) {
            return Err(Violation::new(PROPERTY, format!("no order explains {} and {}", pair[0].3, pair[1].3)));
        }
        // In the order of values: none may have been asked only after one of a higher value was answered.
        let mut earliest: Option<&Operation> = None;
        for (first_asked, _, _, operation) in done.iter().rev() {
            if let Some(higher) = earliest.filter(|higher| higher.returned.is_some_and(|returned| returned < *first_asked)) {
                return Err(Violation::new(PROPERTY, format!("went back: {higher}, then {operation}")));
            }
            if earliest.is_none_or(|higher| operation.returned < higher.returned) {
                earliest = Some(operation);
            }
        }
    }
    Ok(())
}

/// Compares the answers with what is there at the end.
///
/// # Errors
/// The first counter that lacks an increment that was answered, or has more than were asked.
pub fn check_totals(operations: &[Operation], counters: &Counters) -> Result<(), Violation> {
    let mut bounds: BTreeMap<KeyNumber, (i64, i64)> = BTreeMap::new();
    for request in requests(operations)?.into_values() {
        let (least, most) = bounds.entry(request.key).or_default();
        *least += i64::from(request.done.is_some());
        *most += i64::from(request.done.is_some() || request.may_be_done);
    }
    for (key, (least, most)) in bounds {
        let total = counters.get(&key).copied().unwrap_or(0);
        if !(least..=most).contains(&total) {
            let detail = format!("counter {} is {total}; {least} increments were answered, at most {most} can have happened", key.0);
            return Err(Violation::new(PROPERTY, detail));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::sample::op;
    use super::*;

    fn increment(id: u64, answer: Option<i64>, from: u64, to: u64) -> Operation {
        let answer = answer.map_or(Answer::Unknown, |value| Answer::Incremented { value, version: 10 + value as u64 });
        op(Call::Increment { id }, answer, from, to)
    }

    fn holds(operations: &[Operation], total: i64) -> bool {
        let counters = Counters::from([(KeyNumber(0), total)]);
        check_answers(operations).is_ok() && check_totals(operations, &counters).is_ok()
    }

    #[test]
    fn an_increment_counts_once() {
        let (first, second) = (increment(1, Some(1), 0, 1), increment(2, Some(2), 2, 3));
        assert!(holds(&[first, second, increment(1, Some(1), 4, 5)], 2));
        assert!(!holds(&[first, second, increment(1, Some(3), 4, 5)], 3), "done twice");
        assert!(!holds(&[first, second], 3), "one that nobody asked");
        assert!(!holds(&[first, second], 1), "lost");
        assert!(!holds(&[first, increment(2, Some(1), 2, 3)], 2), "one value for two");
        assert!(!holds(&[increment(1, Some(2), 0, 1), increment(2, Some(1), 2, 3)], 2), "went back");
        assert!(holds(&[increment(1, Some(2), 0, 3), increment(2, Some(1), 2, 4)], 2), "side by side");
    }

    #[test]
    fn what_is_unknown_may_count_or_not() {
        let (known, unknown) = (increment(1, Some(1), 0, 1), increment(2, None, 2, 3));
        assert!(holds(&[known, unknown], 1) && holds(&[known, unknown], 2) && !holds(&[known, unknown], 3));
        assert!(holds(&[known, unknown, increment(2, Some(2), 4, 5)], 2));
        assert!(!holds(&[known, op(Call::Increment { id: 2 }, Answer::NotApplied, 2, 3)], 2));
    }
}
