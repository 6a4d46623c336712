//! What is going to happen, in order of time; of things at one moment, the first to be planned comes first.

use crate::history::Moment;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// The queue. Its order depends on nothing but the calls.
#[derive(Debug)]
pub struct Queue<T> {
    order: BinaryHeap<Reverse<(Moment, u64)>>,
    planned: BTreeMap<u64, T>,
    next: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue { order: BinaryHeap::new(), planned: BTreeMap::new(), next: 0 }
    }
}

impl<T> Queue<T> {
    /// Plans something.
    pub fn push(&mut self, at: Moment, what: T) {
        self.order.push(Reverse((at, self.next)));
        self.planned.insert(self.next, what);
        self.next += 1;
    }

    /// The next thing and when it happens.
    pub fn pop(&mut self) -> Option<(Moment, T)> {
        let Reverse((at, number)) = self.order.pop()?;
        Some((at, self.planned.remove(&number).expect("what is in order is planned")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_decides_and_then_who_came_first() {
        let mut queue = Queue::default();
        for (at, what) in [(5, "c"), (1, "a"), (5, "d"), (1, "b")] {
            queue.push(Moment(at), what);
        }
        let order: String = std::iter::from_fn(|| queue.pop()).map(|(_, what)| what).collect();
        assert_eq!(order, "abcd");
    }
}
