//! Scans and deletes of ranges, as HTTP gives them: a page, a stream of lines, a count.
//!
//! A stream is page after page: the next one is asked for when the client has taken what is there, so that
//! a slow client costs one page of memory and holds nothing at the nodes; all such pages together are bounded. If a page fails in the middle,
//! a last line says so and the body is broken off without its end, so that it cannot be taken for whole.
//!
//! A range is deleted key by key, by ordinary writes, [`DELETES_MAX`] at once: it is not atomic, and where
//! it fails the answer tells how many keys it has deleted.

use super::answer::Answer;
use super::backend::Backend;
use super::body::{Step, StepFuture, Then};
use super::door::Door;
use crate::answer_bytes::no_room;
use crate::metrics::add;
use bytes::Bytes;
use flotilla_api::http::{LIMIT_DEFAULT, NDJSON_CONTENT_TYPE, ScanParameters, error_line, scan_page, write_item};
use flotilla_api::{ErrorCode, Problem};
use flotilla_node::request::{Failure, FailureReason, Reply, Request};
use flotilla_node::scan::{PageFill, ScanAsk, ScanPage};
use flotilla_types::{Condition, Key, KeyRange, Outcome};
use hyper::StatusCode;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Keys and values of a page, about; a single larger item makes a page of its own.
const PAGE_BYTES_MAX: u32 = 1 << 20;
/// Items that a stream asks for at once.
const STREAM_ITEMS_MAX: u32 = 10_000;
/// Keys of a range that are deleted at once.
const DELETES_MAX: usize = 64;

/// Answers a page.
pub(super) async fn page<B: Backend>(door: &Door<B>, parameters: ScanParameters, timeout: Duration) -> Answer {
    let ask = ScanAsk {
        range: parameters.range.clone(),
        reverse: parameters.reverse,
        keys_only: parameters.keys_only,
        items_max: parameters.limit.unwrap_or(LIMIT_DEFAULT),
        bytes_max: PAGE_BYTES_MAX,
        fill: PageFill::Whole,
    };
    match ask_page(&*door.backend, ask, timeout).await {
        Ok(ScanPage { items, rest }) => {
            let cursor = rest.map(|rest| parameters.cursor(rest));
            let items = items.iter().map(|item| (&item.key, item.version, item.value.as_deref()));
            match door.answers.hold(scan_page(items, cursor.as_deref()).into()) {
                Some(json) => Answer::json(StatusCode::OK, json),
                None => Answer::failure(no_room()),
            }
        }
        Err(failure) => Answer::failure(failure),
    }
}

/// Answers with a stream of lines, once its first page is there: until then it can fail as a whole.
pub(super) async fn lines<B: Backend>(door: &Rc<Door<B>>, parameters: ScanParameters, timeout: Duration) -> Answer {
    let ask = ScanAsk {
        range: parameters.range,
        reverse: parameters.reverse,
        keys_only: parameters.keys_only,
        items_max: STREAM_ITEMS_MAX,
        bytes_max: PAGE_BYTES_MAX,
        fill: PageFill::Shares,
    };
    let lines = Lines { door: door.clone(), ask, timeout, left: parameters.limit.map_or(u64::MAX, u64::from) };
    match lines.ask().await {
        Ok(page) => {
            let first = match lines.step(page) {
                Ok(step) => step,
                Err(failure) => return Answer::failure(failure),
            };
            let first: StepFuture = Box::pin(std::future::ready(first));
            Answer { content_type: Some(NDJSON_CONTENT_TYPE), stream: Some(first), close: true, ..Answer::empty(StatusCode::OK) }
        }
        Err(failure) => Answer::failure(failure),
    }
}

/// A stream of lines that goes on.
struct Lines<B> {
    door: Rc<Door<B>>,
    /// What is asked next.
    ask: ScanAsk,
    timeout: Duration,
    /// Lines still wanted.
    left: u64,
}

impl<B: Backend> Lines<B> {
    async fn ask(&self) -> Result<ScanPage, Failure> {
        let items_max = self.left.min(u64::from(self.ask.items_max)) as u32;
        ask_page(&*self.door.backend, ScanAsk { items_max, ..self.ask.clone() }, self.timeout).await
    }

    /// A page as lines, and what follows it.
    fn step(mut self, page: ScanPage) -> Result<Step, Failure> {
        let mut text = Vec::with_capacity(page.items.iter().map(|item| item.bytes() + 32).sum());
        for item in &page.items {
            write_item(&mut text, &item.key, item.version, item.value.as_deref());
            text.push(b'\n');
        }
        let bytes = self.door.answers.hold(text.into()).ok_or_else(no_room)?;
        add(&self.door.metrics.body_bytes_out, bytes.len() as u64);
        self.left -= page.items.len() as u64;
        let then = match page.rest {
            Some(rest) if self.left > 0 => {
                self.ask.range = rest;
                Then::Go(Box::pin(self.next()))
            }
            _ => Then::End,
        };
        Ok(Step { bytes, then })
    }

    async fn next(self) -> Step {
        let step = match self.ask().await {
            Ok(page) => self.step(page),
            Err(failure) => Err(failure),
        };
        match step {
            Ok(step) => step,
            Err(failure) => {
                let problem = Problem { code: Answer::code_of(failure.reason), detail: failure.detail };
                Step { bytes: error_line(&problem).into(), then: Then::Break }
            }
        }
    }
}

/// Deletes every key of a range that is there while it goes on, in time or not at all from then on.
pub(super) async fn delete_range<B: Backend>(backend: &Rc<B>, range: KeyRange, timeout: Duration) -> Answer {
    let deadline = Instant::now() + timeout;
    let mut deletion = Deletion { deleted: 0, failure: None };
    let mut rest = Some(range);
    while let Some(range) = rest.take().filter(|_| deletion.failure.is_none()) {
        let ask = ScanAsk {
            range,
            reverse: false,
            keys_only: true,
            items_max: STREAM_ITEMS_MAX,
            bytes_max: PAGE_BYTES_MAX,
            fill: PageFill::Shares,
        };
        match ask_page(&**backend, ask, deadline.saturating_duration_since(Instant::now())).await {
            Ok(page) => {
                deletion.run(backend, page.items.into_iter().map(|item| item.key), deadline).await;
                rest = page.rest;
            }
            Err(failure) => deletion.failure = Some(failure),
        }
    }
    deletion.answer()
}

/// What became of the keys of a range so far.
struct Deletion {
    deleted: u64,
    /// The first failure, or the first whose outcome is unknown.
    failure: Option<Failure>,
}

impl Deletion {
    async fn run<B: Backend>(&mut self, backend: &Rc<B>, keys: impl Iterator<Item = Key>, deadline: Instant) {
        let mut keys = keys.fuse();
        let mut under_way = JoinSet::new();
        loop {
            while under_way.len() < DELETES_MAX
                && self.failure.is_none()
                && let Some(key) = keys.next()
            {
                let (backend, left) = (backend.clone(), deadline.saturating_duration_since(Instant::now()));
                if left.is_zero() {
                    self.failure = Some(Failure::not_applied(FailureReason::Timeout, "the request's time ran out"));
                    break;
                }
                let delete = Request::Delete { key, condition: Condition::ALWAYS };
                under_way.spawn_local(async move { backend.request(delete, left).await });
            }
            // What was begun is waited for also after a failure, so that the count is right.
            match under_way.join_next().await {
                Some(Ok(reply)) => self.note(reply),
                Some(Err(error)) => self.note(Reply::Failed(Failure::unknown(FailureReason::Timeout, error.to_string()))),
                None => return,
            }
        }
    }

    fn note(&mut self, reply: Reply) {
        match reply {
            Reply::Deleted { deleted } => self.deleted += u64::from(deleted),
            Reply::Failed(failure) if self.failure.as_ref().is_none_or(|known| known.outcome == Outcome::NotApplied) => {
                self.failure = Some(failure);
            }
            _ => {}
        }
    }

    fn answer(self) -> Answer {
        let Some(mut failure) = self.failure else {
            return Answer::json(StatusCode::OK, format!("{{\"deleted\":{}}}\n", self.deleted));
        };
        // Something was done: that the whole did not happen cannot be said.
        if self.deleted > 0 {
            failure.outcome = Outcome::Unknown;
        }
        failure.detail = format!("{} keys were deleted, then: {}", self.deleted, failure.detail);
        let mut answer = Answer::failure(failure);
        let mut json = answer.body.trim_ascii_end().to_vec();
        json.pop();
        json.extend_from_slice(format!(",\"deleted\":{}}}\n", self.deleted).as_bytes());
        answer.body = Bytes::from(json);
        answer
    }
}

async fn ask_page<B: Backend>(backend: &B, ask: ScanAsk, timeout: Duration) -> Result<ScanPage, Failure> {
    if timeout.is_zero() {
        return Err(Failure::not_applied(FailureReason::Timeout, "the request's time ran out"));
    }
    match backend.request(Request::Scan(ask), timeout).await {
        Reply::Page(page) => Ok(page),
        Reply::Failed(failure) => Err(failure),
        _ => Err(Failure::not_applied(FailureReason::Damaged, "the node answered another request than was asked: this is a bug")),
    }
}

/// What a delete of everything would need to be told apart from by mistake.
pub(super) fn unbounded() -> Problem {
    Problem::new(ErrorCode::BadParameter, "give prefix, start or end: a delete without any bound would delete everything")
}
