//! Answers: how replies and problems become HTTP responses.

use super::body::{AnswerBody, StepFuture};
use super::door::ConnectionState;
use bytes::Bytes;
use flotilla_api::http::write_etag;
use flotilla_api::{ErrorCode, LAG_HEADER, OUTCOME_HEADER, PROBLEM_CONTENT_TYPE, Problem};
use flotilla_node::request::{Failure, FailureReason};
use flotilla_types::{Outcome, Version};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use std::rc::Rc;

const OUTCOME: HeaderName = HeaderName::from_static(OUTCOME_HEADER);
const LAG: HeaderName = HeaderName::from_static(LAG_HEADER);

/// An answer before it is one of hyper's.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    /// In place of `body`: what is written piece by piece. Its connection is closed after it.
    pub(super) stream: Option<StepFuture>,
    pub(super) content_type: Option<&'static str>,
    pub(super) etag: Option<Version>,
    /// Whether a write happened, if this answer is an error to one.
    pub(super) outcome: Option<Outcome>,
    pub(super) allow: Option<&'static str>,
    /// How far the replica that was read may be behind.
    pub(super) lag_ms: Option<u64>,
    pub(super) retry_after_seconds: Option<u32>,
    /// Further headers, their names in small letters.
    pub(super) headers: &'static [(&'static str, &'static str)],
    /// The connection cannot be used again.
    pub(super) close: bool,
}

impl Answer {
    pub(super) fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
        Answer { content_type: Some(content_type), body: body.into(), ..Answer::empty(status) }
    }

    pub(super) fn empty(status: StatusCode) -> Answer {
        Answer {
            status,
            body: Bytes::new(),
            stream: None,
            content_type: None,
            etag: None,
            outcome: None,
            allow: None,
            lag_ms: None,
            retry_after_seconds: None,
            headers: &[],
            close: false,
        }
    }

    /// JSON of a success.
    pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Answer {
        Answer::new(status, "application/json", body)
    }

    /// A problem that is certainly not the answer to a write that happened.
    pub(super) fn problem(problem: &Problem) -> Answer {
        let status = StatusCode::from_u16(problem.code.status()).expect("the table holds only valid statuses");
        Answer {
            outcome: Some(Outcome::NotApplied),
            retry_after_seconds: problem.code.retry_after_seconds(),
            ..Answer::new(status, PROBLEM_CONTENT_TYPE, problem.to_json())
        }
    }

    /// A request that the node failed.
    pub(super) fn failure(failure: Failure) -> Answer {
        let code = Answer::code_of(failure.reason);
        Answer { outcome: Some(failure.outcome), ..Answer::problem(&Problem { code, detail: failure.detail }) }
    }

    /// The code of a failure.
    pub(super) fn code_of(reason: FailureReason) -> ErrorCode {
        match reason {
            // `NotLeader` is between nodes; should one come through, it is a matter of routing that passes.
            FailureReason::NoQuorum | FailureReason::NotLeader => ErrorCode::NoQuorum,
            FailureReason::Timeout => ErrorCode::Timeout,
            FailureReason::Overloaded => ErrorCode::Overloaded,
            FailureReason::DiskFull => ErrorCode::DiskFull,
            FailureReason::Damaged => ErrorCode::Damaged,
            FailureReason::ShuttingDown => ErrorCode::ShuttingDown,
            FailureReason::NotMember => ErrorCode::NotMember,
            FailureReason::TooLarge => ErrorCode::TooLarge,
        }
    }

    pub(super) fn with_etag(mut self, version: Option<Version>) -> Answer {
        self.etag = version;
        self
    }

    /// The response. `headers` is an empty map, the request's own for its memory.
    pub(super) fn into_response(self, mut headers: HeaderMap, connection: &Rc<ConnectionState>) -> Response<AnswerBody> {
        debug_assert!(headers.is_empty());
        if let Some(content_type) = self.content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        if let Some(version) = self.etag {
            let mut tag = Vec::with_capacity(22);
            write_etag(&mut tag, version);
            headers.insert(ETAG, HeaderValue::from_maybe_shared(Bytes::from(tag)).expect("digits and quotes are visible ASCII"));
        }
        if let Some(outcome) = self.outcome {
            headers.insert(OUTCOME, HeaderValue::from_static(outcome.as_str()));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(lag_ms) = self.lag_ms {
            headers.insert(LAG, HeaderValue::from(lag_ms));
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        for (name, value) in self.headers {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let body = match self.stream {
            Some(first) => AnswerBody::stream(first, connection.clone()),
            None => AnswerBody::new(self.body),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = headers;
        response
    }
}

/// A problem as bytes on a socket, for where there is no request to answer: the connection closes after it.
/// It bears an outcome because nobody knows whether a write was meant.
pub(super) fn raw_problem(problem: &Problem) -> Vec<u8> {
    let (json, status) = (problem.to_json(), problem.code.status());
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    let retry_after = problem.code.retry_after_seconds().map_or_else(String::new, |seconds| format!("retry-after: {seconds}\r\n"));
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: {PROBLEM_CONTENT_TYPE}\r\ncontent-length: {}\r\n{OUTCOME_HEADER}: {}\r\n\
         {retry_after}connection: close\r\n\r\n",
        json.len(),
        Outcome::NotApplied,
    );
    [head.into_bytes(), json].concat()
}
