//! Linearizability of each key (Herlihy and Wing, 1990): there is one order of a key's operations,
//! each between its call and its return, in which every answer is right.
//!
//! The search is that of Wing and Gong with Lowe's memo of (operations done, state). What makes it
//! fast are rules that lose no order:
//! - an operation that changes nothing and whose answer is right now is taken at once;
//! - a write whose version is known (told to its client, or seen by a read together with its unique
//!   value) must come in the order of the versions, so at most one such is to be tried;
//! - writes of unknown outcome that nobody saw have no deadline and leave nothing to tell them apart
//!   by, so of those with the same guard only the one called first is to be tried.
//!
//! The versions are not trusted: an order in which they do not rise is no order, and two versions
//! for one value are a violation here as well. A write of unknown outcome that no one saw may come
//! at any time after its call or never; its version is then open until an answer names one.

use super::Violation;
use crate::history::{Answer, Call, Guard, KeyNumber, Operation, ValueNumber};
use std::collections::BTreeMap;
#[expect(clippy::disallowed_types, reason = "asked for members only, in the hottest loop: its order is never seen")]
use std::collections::HashSet;

const PROPERTY: &str = "linearizability";

/// How many steps a key's search may take. Far above what any real history took; a search that meets
/// it is a failure too, since it shows nothing.
const STEPS_MAX: u64 = 2_000_000;

/// Checks every key.
///
/// # Errors
/// The first key for which there is no such order.
pub fn check(operations: &[Operation]) -> Result<(), Violation> {
    let mut by_key: BTreeMap<KeyNumber, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        let says_nothing = operation.answer == Answer::NotApplied || (operation.call == Call::Get && operation.answer == Answer::Unknown);
        if !says_nothing {
            by_key.entry(operation.key).or_default().push(operation);
        }
    }
    by_key.into_iter().try_for_each(|(key, operations)| Search::new(key, operations)?.run())
}

/// A present version, which may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Present {
    Nothing,
    Known(u64),
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct State {
    present: Present,
    value: ValueNumber,
    /// The highest version given so far.
    last: u64,
}

/// Why a step was possible: what it leaves behind.
struct Step {
    operation: usize,
    after: State,
}

struct Frame {
    before: State,
    done_before: usize,
    choices: Vec<Step>,
}

struct Search<'a> {
    key: KeyNumber,
    operations: Vec<&'a Operation>,
    /// Must come at some time: was answered, or its value was seen.
    required: Vec<bool>,
    /// Known version of a put.
    version: Vec<Option<u64>>,
    /// Puts of known version, in that order.
    ordered: Vec<usize>,
    /// Place of a put in `ordered`.
    next_ordered: usize,
    /// Operations that are not done, as a doubly linked list in order of their calls; the last
    /// element is the anchor.
    next: Vec<usize>,
    previous: Vec<usize>,
    done: Vec<usize>,
    required_left: usize,
    fingerprint: u128,
    state: State,
}

impl<'a> Search<'a> {
    fn new(key: KeyNumber, mut operations: Vec<&'a Operation>) -> Result<Search<'a>, Violation> {
        operations.sort_by_key(|o| o.invoked);
        let count = operations.len();
        let writer: BTreeMap<ValueNumber, usize> = operations
            .iter()
            .enumerate()
            .filter_map(|(i, o)| if let Call::Put { value, .. } = o.call { Some((value, i)) } else { None })
            .collect();
        let mut version: Vec<Option<u64>> = vec![None; count];
        let wrong = |detail: String| Err(Violation::new(PROPERTY, format!("key {}: {detail}", key.0)));
        for (i, operation) in operations.iter().enumerate() {
            let (writer, seen) = match operation.answer {
                Answer::Put { version, .. } => (i, version),
                Answer::Value { version, value } => match writer.get(&value) {
                    Some(writer) => (*writer, version),
                    None => return wrong(format!("a value that nobody wrote: {operation}")),
                },
                _ => continue,
            };
            match version[writer] {
                Some(known) if known != seen => return wrong(format!("one write has versions {known} and {seen}: {}", operations[writer])),
                _ => version[writer] = Some(seen),
            }
        }
        let mut ordered: Vec<usize> = (0..count).filter(|i| version[*i].is_some()).collect();
        ordered.sort_by_key(|i| version[*i]);
        if let Some(pair) = ordered.windows(2).find(|pair| version[pair[0]] == version[pair[1]]) {
            return wrong(format!("two writes have one version: {} and {}", operations[pair[0]], operations[pair[1]]));
        }
        let required: Vec<bool> = (0..count).map(|i| operations[i].answer != Answer::Unknown || version[i].is_some()).collect();
        Ok(Search {
            key,
            required_left: required.iter().filter(|r| **r).count(),
            required,
            version,
            ordered,
            next_ordered: 0,
            next: (0..=count).map(|i| if i == count { 0 } else { i + 1 }).collect(),
            previous: (0..=count).map(|i| if i == 0 { count } else { i - 1 }).collect(),
            done: Vec::with_capacity(count),
            fingerprint: 0,
            state: State { present: Present::Nothing, value: ValueNumber(0), last: 0 },
            operations,
        })
    }

    fn run(mut self) -> Result<(), Violation> {
        let mut stack: Vec<Frame> = Vec::new();
        #[expect(clippy::disallowed_types, reason = "asked for members only: its order is never seen")]
        let mut seen: HashSet<(u128, State)> = HashSet::new();
        let mut furthest = (0, String::new());
        for _ in 0..STEPS_MAX {
            self.take_what_changes_nothing();
            if self.required_left == 0 {
                return Ok(());
            }
            if self.done.len() >= furthest.0 {
                furthest = (self.done.len() + 1, self.describe());
            }
            let fresh = seen.insert((self.fingerprint, self.state));
            let choices = if fresh { self.choices() } else { Vec::new() };
            stack.push(Frame { before: self.state, done_before: self.done.len(), choices });
            loop {
                let Some(frame) = stack.last_mut() else {
                    return Err(Violation::new(PROPERTY, format!("key {}: no order explains {}", self.key.0, furthest.1)));
                };
                self.state = frame.before;
                let done_before = frame.done_before;
                let step = frame.choices.pop();
                self.undo(done_before);
                if let Some(step) = step {
                    self.take(step.operation);
                    self.state = step.after;
                    break;
                }
                stack.pop();
            }
        }
        Err(Violation::new(PROPERTY, format!("key {}: the search gave up after {STEPS_MAX} steps at {}", self.key.0, furthest.1)))
    }

    fn take(&mut self, operation: usize) {
        let (previous, next) = (self.previous[operation], self.next[operation]);
        self.next[previous] = next;
        self.previous[next] = previous;
        self.done.push(operation);
        self.fingerprint ^= fingerprint(operation);
        self.required_left -= usize::from(self.required[operation]);
        self.next_ordered += usize::from(self.version[operation].is_some());
    }

    fn undo(&mut self, done_count: usize) {
        while self.done.len() > done_count {
            let operation = self.done.pop().expect("there are more than done_count");
            let (previous, next) = (self.previous[operation], self.next[operation]);
            self.next[previous] = operation;
            self.previous[next] = operation;
            self.fingerprint ^= fingerprint(operation);
            self.required_left += usize::from(self.required[operation]);
            self.next_ordered -= usize::from(self.version[operation].is_some());
        }
    }

    /// Those that may come next: called before any that is not done had returned.
    fn candidates(&self) -> Vec<usize> {
        let anchor = self.operations.len();
        let mut at = self.next[anchor];
        let mut first_return = None;
        let mut candidates = Vec::new();
        while at != anchor {
            let operation = self.operations[at];
            if first_return.is_some_and(|returned| operation.invoked > returned) {
                break;
            }
            candidates.push(at);
            if operation.answer != Answer::Unknown
                && let Some(returned) = operation.returned
            {
                first_return = Some(first_return.map_or(returned, |r| std::cmp::min(r, returned)));
            }
            at = self.next[at];
        }
        candidates
    }

    fn take_what_changes_nothing(&mut self) {
        loop {
            let right_now: Vec<usize> = self.candidates().into_iter().filter(|i| self.changes_nothing_and_is_right(*i)).collect();
            if right_now.is_empty() {
                return;
            }
            right_now.into_iter().for_each(|i| self.take(i));
        }
    }

    fn changes_nothing_and_is_right(&self, i: usize) -> bool {
        let operation = self.operations[i];
        let present = self.state.present;
        match operation.answer {
            Answer::Value { version, value } => present == Present::Known(version) && self.state.value == value,
            Answer::Absent | Answer::Deleted { deleted: false } => present == Present::Nothing,
            Answer::GuardFailed { present: None } => present == Present::Nothing && guard(operation.call) != Guard::Absent,
            Answer::GuardFailed { present: Some(version) } => present == Present::Known(version) && fails(guard(operation.call), version),
            _ => false,
        }
    }

    /// Writes that may come next, the most promising last.
    fn choices(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let mut unseen: Vec<(bool, Guard)> = Vec::new();
        for operation in self.candidates() {
            if !self.required[operation] {
                let call = self.operations[operation].call;
                let kind = (matches!(call, Call::Put { .. }), guard(call));
                if unseen.contains(&kind) {
                    continue;
                }
                unseen.push(kind);
            }
            if let Some(after) = self.after(operation) {
                steps.push(Step { operation, after });
            }
        }
        // What was answered first; among those what returned first.
        steps.sort_by_key(|s| {
            let o = self.operations[s.operation];
            (self.required[s.operation], std::cmp::Reverse(o.returned.filter(|_| o.answer != Answer::Unknown)))
        });
        steps
    }

    fn after(&self, i: usize) -> Option<State> {
        let operation = self.operations[i];
        let mut state = self.state;
        match (operation.call, operation.answer) {
            (Call::Put { value, guard }, answer @ (Answer::Put { .. } | Answer::Unknown)) => {
                self.hold(guard, &mut state)?;
                if let Answer::Put { created, .. } = answer
                    && created != (state.present == Present::Nothing)
                {
                    return None;
                }
                state.value = value;
                match self.version[i] {
                    Some(version) => {
                        if version <= state.last || self.ordered[self.next_ordered] != i {
                            return None;
                        }
                        state.present = Present::Known(version);
                        state.last = version;
                    }
                    // Nobody ever read this value, so it need not be told from others.
                    None => (state.present, state.value) = (Present::Open, ValueNumber(0)),
                }
                Some(state)
            }
            (Call::Delete { guard }, Answer::Deleted { deleted: true } | Answer::Unknown) => {
                self.hold(guard, &mut state)?;
                if state.present == Present::Nothing {
                    return None;
                }
                state.present = Present::Nothing;
                state.value = ValueNumber(0);
                Some(state)
            }
            // An answer that names the version of a write that had none so far.
            (call, Answer::GuardFailed { present: Some(version) }) if state.present == Present::Open && fails(guard(call), version) => {
                self.name(version, &mut state)?;
                Some(state)
            }
            _ => None,
        }
    }

    fn hold(&self, guard: Guard, state: &mut State) -> Option<()> {
        let holds = match (guard, state.present) {
            (Guard::Always, _) | (Guard::Absent, Present::Nothing) | (Guard::Present, Present::Known(_) | Present::Open) => true,
            (Guard::Version(wanted), Present::Known(version)) => wanted == version,
            (Guard::Version(wanted), Present::Open) => return self.name(wanted, state),
            _ => false,
        };
        holds.then_some(())
    }

    fn name(&self, version: u64, state: &mut State) -> Option<()> {
        let taken = self.ordered.binary_search_by_key(&Some(version), |i| self.version[*i]).is_ok();
        if taken || version <= state.last {
            return None;
        }
        state.present = Present::Known(version);
        state.last = version;
        Some(())
    }

    fn describe(&self) -> String {
        let mut text = format!("these, with the key at {:?} after {} operations:", self.state, self.done.len());
        for i in self.done.iter().rev().take(3).rev() {
            text += &format!("\n    done      {}", self.operations[*i]);
        }
        for i in self.candidates().into_iter().take(12) {
            text += &format!("\n    {} {}", if self.required[i] { "must come " } else { "may come  " }, self.operations[i]);
        }
        text
    }
}

fn guard(call: Call) -> Guard {
    match call {
        Call::Get | Call::Increment { .. } | Call::Lend { .. } => Guard::Always,
        Call::Put { guard, .. } | Call::Delete { guard } => guard,
    }
}

/// Whether the guard fails for a key that is present with this version.
fn fails(guard: Guard, present: u64) -> bool {
    match guard {
        Guard::Always | Guard::Present => false,
        Guard::Absent => true,
        Guard::Version(wanted) => wanted != present,
    }
}

/// 128 bits that stand for an operation; the set of those done is the xor of theirs.
fn fingerprint(operation: usize) -> u128 {
    let mut rng = flotilla_types::Rng::new(operation as u64 ^ 0x6f70_6572_6174_696f);
    (u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64())
}

#[cfg(test)]
mod tests {
    use super::super::sample::{absent, delete, get, lost_put, op, put};
    use super::*;
    use crate::history::Moment;

    fn holds(operations: &[Operation]) -> bool {
        check(operations).is_ok()
    }

    #[test]
    fn an_ordinary_history_has_an_order() {
        assert!(holds(&[
            absent(0, 1),
            put(1, 5, true, 2, 6),
            put(2, 7, false, 3, 8),
            get(2, 7, 4, 9),
            delete(true, 10, 11),
            absent(12, 13)
        ]));
    }

    #[test]
    fn a_stale_read_has_none() {
        assert!(!holds(&[put(1, 1, true, 0, 1), put(2, 2, false, 2, 3), get(1, 1, 4, 5)]));
        assert!(!holds(&[put(1, 1, true, 0, 1), absent(2, 3)]));
        assert!(!holds(&[put(1, 1, true, 0, 1), delete(true, 2, 3), get(1, 1, 4, 5)]));
    }

    #[test]
    fn reads_may_not_go_back() {
        let slow = put(2, 2, false, 2, 100);
        assert!(holds(&[put(1, 1, true, 0, 1), slow, get(1, 1, 3, 4), get(2, 2, 5, 6)]));
        assert!(!holds(&[put(1, 1, true, 0, 1), slow, get(2, 2, 3, 4), get(1, 1, 5, 6)]));
    }

    #[test]
    fn an_unknown_write_may_come_late_or_never_but_once() {
        let base = [put(1, 1, true, 0, 1), lost_put(9, 2, 3)];
        let with = |more: &[Operation]| holds(&[&base[..], more].concat());
        assert!(with(&[get(1, 1, 4, 5)]));
        assert!(with(&[get(1, 1, 4, 5), get(9, 2, 6, 7)]));
        assert!(with(&[put(2, 3, false, 4, 5), get(2, 3, 6, 7)]));
        assert!(!with(&[get(9, 2, 4, 5), put(2, 3, false, 6, 7), get(9, 4, 8, 9)]), "it cannot come twice");
        assert!(!with(&[get(9, 2, 4, 5), get(1, 1, 6, 7)]), "it cannot go away");
    }

    #[test]
    fn an_unknown_write_that_no_one_saw_explains_what_was_found() {
        let lost = lost_put(9, 0, 1);
        assert!(holds(&[lost, put(1, 5, false, 2, 3)]), "it was there to be replaced");
        assert!(!holds(&[put(1, 5, false, 2, 3)]));
        let refused = |present| op(Call::Put { value: ValueNumber(3), guard: Guard::Absent }, Answer::GuardFailed { present }, 2, 3);
        assert!(holds(&[lost, refused(Some(4))]));
        assert!(!holds(&[lost, refused(None)]));
        assert!(!holds(&[lost, refused(Some(4)), op(Call::Delete { guard: Guard::Version(5) }, Answer::Deleted { deleted: true }, 4, 5)]));
    }

    #[test]
    fn guards_are_checked_against_the_version_that_is_there() {
        let swap = |value, from, to, version| {
            op(
                Call::Put { value: ValueNumber(value), guard: Guard::Version(from) },
                Answer::Put { version: to, created: false },
                version,
                version + 1,
            )
        };
        assert!(holds(&[put(1, 1, true, 0, 1), swap(2, 1, 2, 2), swap(3, 2, 3, 4)]));
        assert!(!holds(&[put(1, 1, true, 0, 1), swap(2, 1, 2, 2), swap(3, 1, 3, 2)]), "two writers cannot both replace version 1");
    }

    #[test]
    fn versions_are_not_trusted() {
        assert!(!holds(&[put(1, 5, true, 0, 1), put(2, 4, false, 2, 3)]), "they rise");
        assert!(!holds(&[put(1, 5, true, 0, 9), put(2, 5, false, 0, 9)]), "they differ");
        assert!(!holds(&[put(1, 5, true, 0, 1), get(1, 6, 2, 3)]), "one write has one");
        assert!(!holds(&[get(1, 6, 2, 3)]), "someone wrote it");
    }

    #[test]
    fn many_unknown_writes_do_not_stop_the_search() {
        let mut operations = vec![put(1, 1, true, 0, 1)];
        for i in 0..60 {
            operations.push(lost_put(100 + i, 2 + i, 3 + i));
            operations.push(Operation { returned: None, ..op(Call::Delete { guard: Guard::Always }, Answer::Unknown, 2 + i, 0) });
        }
        for i in 0..300 {
            operations.push(Operation { invoked: Moment(1000 + 10 * i), ..put(1000 + i, 1000 + i, i % 7 == 3, 0, 1010 + 10 * i) });
        }
        assert!(holds(&operations));
    }
}
