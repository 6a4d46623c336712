//! Bytes of large answers on their way to clients, over all connections: each counts from when it is read until the last who
//! holds it, mostly a socket that does not take more yet, has let go of it. Past the bound large answers are refused: what
//! clients do not read must not fill the memory of a node. Small ones are not counted; their number is bounded.

use bytes::Bytes;
use flotilla_node::request::{Failure, FailureReason, Reply};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Up to here an answer is small: as many as there may be connections are no burden.
const SMALL_BYTES_MAX: usize = 8 << 10;

/// The bound and what is held; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct AnswerBytes {
    held: Arc<AtomicUsize>,
    max: usize,
}

/// Bytes that count.
struct Held {
    bytes: Bytes,
    count: Arc<AtomicUsize>,
}

impl AnswerBytes {
    /// Nothing is held yet.
    pub(crate) fn new(max: usize) -> AnswerBytes {
        AnswerBytes { held: Arc::default(), max }
    }

    /// The same bytes, counted; `None` if there is no room for them. A single answer has room when there is no other.
    pub(crate) fn hold(&self, bytes: Bytes) -> Option<Bytes> {
        if bytes.len() <= SMALL_BYTES_MAX {
            return Some(bytes);
        }
        let before = self.held.fetch_add(bytes.len(), Ordering::Relaxed);
        let held = Held { bytes, count: Arc::clone(&self.held) };
        // Dropped, it gives back what it took.
        (before == 0 || before + held.bytes.len() <= self.max).then(|| Bytes::from_owner(held))
    }

    /// The reply, its value counted; or in its place that there is no room for it.
    pub(crate) fn hold_reply(&self, reply: Reply) -> Reply {
        match reply {
            Reply::Value { version, value } => match self.hold(value) {
                Some(value) => Reply::Value { version, value },
                None => Reply::Failed(no_room()),
            },
            Reply::Stale { lag_ms, reply } => match self.hold_reply(*reply) {
                failed @ Reply::Failed(_) => failed,
                reply => Reply::Stale { lag_ms, reply: Box::new(reply) },
            },
            other => other,
        }
    }
}

/// Why a large answer is not given. Only reads have one.
pub(crate) fn no_room() -> Failure {
    Failure::not_applied(FailureReason::Overloaded, "too many bytes of answers wait for their clients at this node: try again shortly")
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_types::Version;

    fn value(length: usize) -> Reply {
        Reply::Value { version: Version(1), value: vec![7; length].into() }
    }

    #[test]
    fn large_answers_count_until_nobody_holds_them() {
        let answers = AnswerBytes::new(100_000);
        let first = answers.hold_reply(value(60_000));
        let second = first.clone();
        assert_eq!(first, value(60_000));
        assert_eq!(answers.hold_reply(value(60_000)), Reply::Failed(no_room()));
        let stale = Reply::Stale { lag_ms: 1, reply: Box::new(value(60_000)) };
        assert_eq!(answers.hold_reply(stale), Reply::Failed(no_room()));
        assert_eq!(answers.hold_reply(value(SMALL_BYTES_MAX)), value(SMALL_BYTES_MAX), "small ones always pass");
        drop(first);
        assert_eq!(answers.hold_reply(value(60_000)), Reply::Failed(no_room()));
        drop(second);
        assert_eq!(answers.hold_reply(value(60_000)), value(60_000));
        assert_eq!(answers.hold_reply(value(200_000)), value(200_000), "one larger than the bound, when it is the only one");
    }
}
