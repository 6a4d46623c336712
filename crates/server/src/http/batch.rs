//! `POST /v1/batch`: each operation is one of the node's requests.
//!
//! Operations on one key run one after the other, those on different keys at the same time: what comes
//! together in a turn of the node becomes one Raft entry a shard, here or at the leader it is forwarded to.
//! After a write whose outcome is unknown no other write of its key is tried, since the first may still come.
//!
//! What one batch can hold is bounded: [`CHAINS_MAX`] keys and [`GETS_MAX`] reads under way at once, and
//! [`ANSWER_BYTES_MAX`] of values in the answer.

use super::answer::Answer;
use super::backend::Backend;
use super::door::Door;
use super::handler::{condition_problem, refusal_problem};
use crate::answer_bytes::no_room;
use bytes::Bytes;
use flotilla_api::http::{BatchOp, BatchResult, batch_answer};
use flotilla_api::{ErrorCode, Problem};
use flotilla_node::request::{Failure, Reply, Request, RequestId};
use flotilla_types::{Key, Outcome};
use hyper::StatusCode;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Keys whose operations are under way at once.
const CHAINS_MAX: usize = 1_024;
/// Reads under way at once: each may bring a value of full length.
const GETS_MAX: usize = 64;
/// Values in the answer, in bytes; reads beyond are refused with 413.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What the operations of a batch share.
struct Batch<B> {
    backend: Rc<B>,
    deadline: Instant,
    /// The `Idempotency-Key`, from which each write has an id of its own.
    id: Option<Bytes>,
    gets: Semaphore,
    /// How much the values read from now on may take.
    bytes_left: Cell<usize>,
}

/// The operations on one key, with their places in the batch.
type Chain = Vec<(usize, BatchOp)>;

/// Does the operations, each once.
pub(super) async fn run<B: Backend>(door: &Door<B>, ops: Vec<BatchOp>, id: Option<Bytes>, timeout: Duration) -> Answer {
    let deadline = Instant::now() + timeout;
    let (gets, bytes_left) = (Semaphore::new(GETS_MAX), Cell::new(ANSWER_BYTES_MAX));
    let batch = Rc::new(Batch { backend: door.backend.clone(), deadline, id, gets, bytes_left });
    let mut results: Vec<BatchResult> = ops.iter().map(|op| lost(op.is_write())).collect();
    let mut chains = chains_of(ops).into_iter();
    let mut under_way = JoinSet::new();
    loop {
        while under_way.len() < CHAINS_MAX
            && let Some(chain) = chains.next()
        {
            under_way.spawn_local(batch.clone().run_chain(chain));
        }
        match under_way.join_next().await {
            Some(Ok(done)) => done.into_iter().for_each(|(place, result)| results[place] = result),
            // Its results stay what they were: not known.
            Some(Err(error)) => tracing::error!(%error, "a part of a batch ended before its time"),
            None => break,
        }
    }
    // What was done is told also where there is no room for what was read.
    let answer = door.answers.hold(batch_answer(&results).into()).unwrap_or_else(|| {
        results.iter_mut().filter(|result| matches!(result, BatchResult::Value { .. })).for_each(|result| {
            *result = failed(Problem::new(ErrorCode::Overloaded, no_room().detail), None);
        });
        batch_answer(&results).into()
    });
    Answer::json(StatusCode::OK, answer)
}

/// The operations by key, the keys in the order in which they come first.
fn chains_of(ops: Vec<BatchOp>) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::with_capacity(ops.len());
    let mut chain_of_key: BTreeMap<Key, usize> = BTreeMap::new();
    for (place, op) in ops.into_iter().enumerate() {
        let chain = *chain_of_key.entry(op.key().clone()).or_insert(chains.len());
        match chains.get_mut(chain) {
            Some(chain) => chain.push((place, op)),
            None => chains.push(vec![(place, op)]),
        }
    }
    chains
}

impl<B: Backend> Batch<B> {
    async fn run_chain(self: Rc<Self>, chain: Chain) -> Vec<(usize, BatchResult)> {
        let mut done = Vec::with_capacity(chain.len());
        let mut unknown: Option<ErrorCode> = None;
        for (place, op) in chain {
            let result = match unknown {
                Some(code) if op.is_write() => {
                    let detail = "an earlier write of this key in the batch may still happen: this one was not tried";
                    failed(Problem::new(code, detail), Some(Outcome::NotApplied))
                }
                _ => self.run_one(place, op).await,
            };
            if let BatchResult::Failed { problem, outcome: Some(Outcome::Unknown), .. } = &result {
                unknown = Some(problem.code);
            }
            done.push((place, result));
        }
        done
    }

    async fn run_one(&self, place: usize, op: BatchOp) -> BatchResult {
        let is_write = op.is_write();
        let _permit = if is_write { None } else { self.gets.acquire().await.ok() };
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let problem = Problem::new(ErrorCode::Timeout, "the batch's time ran out before this operation was begun");
            return failed(problem, is_write.then_some(Outcome::NotApplied));
        }
        let request = match op {
            BatchOp::Put { key, value, ttl, condition } => Request::Put { key, value, ttl, condition },
            BatchOp::Get { key } => Request::Get { key },
            BatchOp::Delete { key, condition } => Request::Delete { key, condition },
        };
        let id = self.id.as_ref().filter(|_| is_write).map(|id| RequestId::of_part(id, place as u64));
        self.result_of(self.backend.request(request.once(id), left).await, is_write)
    }

    fn result_of(&self, reply: Reply, is_write: bool) -> BatchResult {
        match reply {
            Reply::Put { version, created } => BatchResult::Put { version, created },
            Reply::Value { version, value } => match self.bytes_left.get().checked_sub(value.len()) {
                Some(left) => {
                    self.bytes_left.set(left);
                    BatchResult::Value { version, value }
                }
                None => {
                    let detail =
                        format!("the values of this batch are more than {ANSWER_BYTES_MAX} bytes together: get this key by itself");
                    failed(Problem::new(ErrorCode::TooLarge, detail), None)
                }
            },
            Reply::Absent => failed(Problem::new(ErrorCode::KeyAbsent, "there is no such key"), None),
            Reply::Deleted { deleted } => BatchResult::Deleted { deleted },
            Reply::ConditionFailed { present } => {
                BatchResult::Failed { problem: condition_problem(), outcome: Some(Outcome::NotApplied), present }
            }
            Reply::Refused(refusal) => failed(refusal_problem(refusal), Some(Outcome::NotApplied)),
            Reply::Failed(Failure { reason, outcome, detail }) => {
                failed(Problem { code: Answer::code_of(reason), detail }, is_write.then_some(outcome))
            }
            _ => lost(is_write),
        }
    }
}

fn failed(problem: Problem, outcome: Option<Outcome>) -> BatchResult {
    BatchResult::Failed { problem, outcome, present: None }
}

/// What is said of an operation that nothing is known of: a bug of ours.
fn lost(is_write: bool) -> BatchResult {
    let problem = Problem::new(ErrorCode::Internal, "the node answered another request than was asked, or none");
    failed(problem, is_write.then_some(Outcome::Unknown))
}
