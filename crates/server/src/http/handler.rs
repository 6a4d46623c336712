//! From a request to its answer.

use super::admin;
use super::answer::Answer;
use super::backend::Backend;
use super::batch;
use super::body::{AnswerBody, read_body};
use super::door::{ConnectionState, Door, Phase, Reservation};
use super::join;
use super::openapi;
use super::route::Route;
use super::scan;
use crate::metrics::{self, Exposition, add, increment};
use bytes::Bytes;
use flotilla_api::http::{
    Consistency, LIMIT_MAX, Query, ScanParameters, decode_key, increment_answer, parse_batch, parse_if_match, parse_if_none_match,
    parse_range, put_answer, wants_lines,
};
use flotilla_api::{ErrorCode, Problem};
use flotilla_node::request::{Reply, Request as NodeRequest, RequestId, WriteRefusal};
use flotilla_types::{Condition, Key, Outcome};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_RANGE, EXPECT, HOST, HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH, ORIGIN};
use hyper::{Method, Request, Response, StatusCode, Version};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// `/v1/stats` shows counts only, and a node's page shows those of other nodes beside its own.
const ANY_ORIGIN: &[(&str, &str)] = &[("access-control-allow-origin", "*")];
/// A join is some names and addresses.
const JOIN_BYTES_MAX: usize = 64 << 10;

/// Takes one from the requests in flight when the answer is made, or the client has gone.
struct InFlight<'a>(&'a Cell<u64>);

/// Answers one request.
pub(super) async fn handle<B: Backend>(
    door: Rc<Door<B>>,
    connection: Rc<ConnectionState>,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    let began = Instant::now();
    connection.head_began_ms.set(None);
    connection.phase.set(Phase::Node);
    increment(&door.metrics.requests_in_flight);
    let in_flight = InFlight(&door.metrics.requests_in_flight);
    let (parts, body) = request.into_parts();
    let mut headers = parts.headers;
    let route = Route::of(&parts.method, parts.uri.path());
    let exchange = Exchange { door: &door, connection: &connection, method: &parts.method, version: parts.version, headers: &headers };
    let unread = Cell::new(false);
    let mut answer = match exchange.answer(route, parts.uri.query(), body, &unread).await {
        Ok(answer) => answer,
        Err(problem) => Answer::problem(&problem),
    };
    // Reads have no outcome; neither have writes that did what they were asked.
    if answer.status.as_u16() < 400 || !is_write(&parts.method) {
        answer.outcome = None;
    }
    if unread.get() {
        // What is left of the body would be taken for the next request.
        answer.close = true;
        connection.unread.set(true);
    }
    drop(in_flight);
    headers.clear();
    door.metrics.record(route.kind(), answer.status, answer.outcome == Some(Outcome::Unknown), began.elapsed());
    let response = answer.into_response(headers, &connection);
    let has_body = parts.method != Method::HEAD && response.status() != StatusCode::NOT_MODIFIED;
    let length = if has_body { response.body().len() } else { Some(0) };
    // A stream counts its pieces itself, and nothing follows it on its connection.
    add(&door.metrics.body_bytes_out, length.unwrap_or(0));
    connection.answers.borrow_mut().push_back(length.unwrap_or(u64::MAX));
    connection.progress_ms.set(door.shared.now_ms.get());
    connection.phase.set(Phase::Head);
    response
}

/// Whether the method may change something, so that an error to it must say its outcome.
fn is_write(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::CONNECT)
}

/// A request being answered.
struct Exchange<'a, B> {
    door: &'a Rc<Door<B>>,
    connection: &'a ConnectionState,
    method: &'a Method,
    version: Version,
    headers: &'a HeaderMap,
}

impl<B: Backend> Exchange<'_, B> {
    /// Sets `unread` unless the whole body was read.
    async fn answer(&self, route: Route<'_>, query: Option<&str>, body: Incoming, unread: &Cell<bool>) -> Result<Answer, Problem> {
        // hyper knows without reading when there is no body.
        unread.set(!hyper::body::Body::is_end_stream(&body));
        let mut hosts = self.headers.get_all(HOST).into_iter();
        if (self.version == Version::HTTP_11 && hosts.next().is_none()) || hosts.next().is_some() {
            // RFC 9112, section 3.2: whoever stands between might have understood another request.
            return Err(Problem::new(ErrorCode::MalformedRequest, "a request has exactly one Host header"));
        }
        let query = match (route.parameters(), query) {
            (Some(allowed), Some(_)) => Query::parse(query, allowed)?,
            _ => Query::default(),
        };
        // Silently written once more, or kept for ever, would be worse than refused.
        let takes_ids = matches!(route, Route::KvPut(_) | Route::KvDelete(_) | Route::KvIncrement(_) | Route::Batch);
        // What is refused anyway has a better reason for it.
        let is_route = !matches!(route, Route::WrongMethod(_) | Route::Unknown);
        if is_write(self.method) && is_route && !takes_ids && self.headers.contains_key(IDEMPOTENCY_KEY) {
            return Err(not_built("the header Idempotency-Key on this route"));
        }
        match route {
            Route::KvGet(key) => {
                let key = decode_key(key)?;
                let (condition, timeout) = (self.condition()?, query.timeout()?);
                let request = match query.consistency()? {
                    Consistency::Linearizable => NodeRequest::Get { key },
                    Consistency::Stale => NodeRequest::GetStale { key },
                };
                Ok(read_answer(self.door.backend.request(request, timeout).await, &condition))
            }
            Route::KvPut(key) => {
                let key = decode_key(key)?;
                let (condition, id, timeout) = (self.condition()?, self.request_id()?, query.timeout()?);
                let ttl = query.ttl()?;
                if self.headers.contains_key(CONTENT_RANGE) {
                    // RFC 9110, section 14.5: a part must not be taken for the whole.
                    return Err(Problem::new(ErrorCode::BadBody, "a PUT with Content-Range is not a whole value"));
                }
                if self.headers.contains_key(EXPECT)
                    && let Some(refusal) = self.door.backend.refusal_of_put(&key)
                {
                    return Ok(Answer::failure(refusal));
                }
                let began_ms = self.door.shared.now_ms.get();
                let (value, _reservation) = self.read_body(body, self.door.options.value_bytes_max, timeout).await?;
                unread.set(false);
                let timeout = self.rest_of(timeout, began_ms)?;
                let put = NodeRequest::Put { key: key.clone(), value, ttl, condition }.once(id);
                Ok(write_answer(self.door.backend.request(put, timeout).await, &key))
            }
            Route::KvDelete(key) => {
                let key = decode_key(key)?;
                let (condition, id, timeout) = (self.condition()?, self.request_id()?, query.timeout()?);
                let delete = NodeRequest::Delete { key: key.clone(), condition }.once(id);
                Ok(write_answer(self.door.backend.request(delete, timeout).await, &key))
            }
            Route::Scan => {
                let timeout = query.timeout()?;
                let accept = self.headers.get_all(ACCEPT).into_iter().map(hyper::header::HeaderValue::as_bytes);
                if wants_lines(accept) {
                    return Ok(scan::lines(self.door, ScanParameters::parse(&query, u32::MAX)?, timeout).await);
                }
                Ok(scan::page(self.door, ScanParameters::parse(&query, LIMIT_MAX)?, timeout).await)
            }
            Route::DeleteRange => {
                let (range, timeout) = (parse_range(&query)?.ok_or_else(scan::unbounded)?, query.timeout()?);
                if !self.condition()?.is_always() {
                    return Err(Problem::new(ErrorCode::BadCondition, "a range cannot be deleted on a condition"));
                }
                Ok(scan::delete_range(&self.door.backend, range, timeout).await)
            }
            Route::KvIncrement(key) => {
                self.check_origin()?;
                let key = decode_key(key)?;
                let (condition, id, timeout) = (self.condition()?, self.request_id()?, query.timeout()?);
                let by = query.by()?;
                if unread.get() {
                    return Err(Problem::new(ErrorCode::BadBody, "an increment takes no body: say ?by=N"));
                }
                let increment = NodeRequest::Increment { key: key.clone(), by, condition }.once(id);
                Ok(write_answer(self.door.backend.request(increment, timeout).await, &key))
            }
            Route::Batch => {
                self.check_origin()?;
                let (id, timeout) = (self.idempotency_key()?, query.timeout()?);
                if !self.condition()?.is_always() {
                    return Err(Problem::new(ErrorCode::BadCondition, "a batch has its conditions in its operations: if_version"));
                }
                let value_bytes_max = self.door.options.value_bytes_max;
                let began_ms = self.door.shared.now_ms.get();
                // A value of full length in base64 fits in with room to spare.
                let (json, _reservation) = self.read_body(body, 2 * value_bytes_max, timeout).await?;
                unread.set(false);
                let ops = parse_batch(&json, value_bytes_max)?;
                drop(json);
                let timeout = self.rest_of(timeout, began_ms)?;
                Ok(batch::run(self.door, ops, id.map(Bytes::copy_from_slice), timeout).await)
            }
            Route::Cluster => {
                let timeout = query.timeout()?;
                if query.consistency()? == Consistency::Stale {
                    return Ok(Answer::json(StatusCode::OK, self.door.backend.cluster_view()));
                }
                let reply = self.door.backend.request(NodeRequest::ClusterStatus, timeout).await;
                Ok(match reply {
                    Reply::Status(json) => Answer::json(StatusCode::OK, json),
                    other => unexpected(other, Outcome::NotApplied),
                })
            }
            Route::Join => {
                self.check_origin()?;
                let timeout = query.timeout()?;
                let began_ms = self.door.shared.now_ms.get();
                let (json, _reservation) = self.read_body(body, JOIN_BYTES_MAX, timeout).await?;
                unread.set(false);
                let join = join::decode_request(&json)?;
                self.door.backend.reach(&join).await.map_err(|found| Problem::new(ErrorCode::AddressUnreachable, found))?;
                let timeout = self.rest_of(timeout, began_ms)?;
                Ok(match self.door.backend.request(NodeRequest::Join(join), timeout).await {
                    Reply::Joined { state } => Answer::json(StatusCode::OK, join::encode_answer(&state)),
                    Reply::NameTaken { holder, alive } => Answer::problem(&join::name_taken(holder, alive)),
                    other => unexpected(other, Outcome::Unknown),
                })
            }
            Route::NodeRemove(_) | Route::NodeDrain(_) | Route::ShardLeader(_) | Route::Rebalance | Route::Recover => {
                self.check_origin()?;
                let request = NodeRequest::Admin(admin::request(route, &query)?);
                Ok(match self.door.backend.request(request, query.timeout()?).await {
                    Reply::Admin(reply) => admin::answer(reply),
                    other => unexpected(other, Outcome::Unknown),
                })
            }
            Route::Locate(key) => {
                query.timeout()?;
                let location = self.door.backend.locate(&decode_key(key)?);
                let json = serde_json::to_vec(&location).map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))?;
                Ok(Answer::json(StatusCode::OK, json))
            }
            Route::Stats => {
                query.timeout()?;
                let json = self.door.recent.to_json(&self.door.backend.name());
                Ok(Answer { headers: ANY_ORIGIN, ..Answer::json(StatusCode::OK, json) })
            }
            Route::Livez => Ok(Answer::new(StatusCode::OK, "text/plain", "ok\n")),
            Route::Readyz => match self.door.backend.ready() {
                Ok(()) => Ok(Answer::new(StatusCode::OK, "text/plain", "ok\n")),
                Err(missing) => Err(Problem::new(ErrorCode::NotReady, missing)),
            },
            Route::Metrics => {
                let mut exposition = Exposition::default();
                self.door.metrics.write(&mut exposition, self.door.shared.connection_count(), self.door.shared.body_bytes.get());
                self.door.backend.write_metrics(&mut exposition);
                Ok(Answer::new(StatusCode::OK, metrics::CONTENT_TYPE, exposition.into_text()))
            }
            Route::OpenApi => Ok(openapi::answer(&self.condition()?)),
            Route::Dashboard(file) => Ok(file.answer()),
            Route::NotBuilt => Err(not_built("this route")),
            Route::WrongMethod(allow) => {
                let problem = Problem::new(ErrorCode::MethodNotAllowed, format!("this path takes {allow}, not {}", self.method));
                Ok(Answer { allow: Some(allow), ..Answer::problem(&problem) })
            }
            Route::Unknown => Err(Problem::new(ErrorCode::NoRoute, "there is no such path; see docs/api.md for those there are")),
        }
    }

    fn condition(&self) -> Result<Condition, Problem> {
        let fields = |name: HeaderName| self.headers.get_all(name).into_iter().map(hyper::header::HeaderValue::as_bytes);
        Ok(Condition { if_match: parse_if_match(fields(IF_MATCH))?, if_none_match: parse_if_none_match(fields(IF_NONE_MATCH))? })
    }

    /// Under which id the write is to be done once, if it is to be.
    fn request_id(&self) -> Result<Option<RequestId>, Problem> {
        Ok(self.idempotency_key()?.map(RequestId::of))
    }

    fn idempotency_key(&self) -> Result<Option<&[u8]>, Problem> {
        let mut fields = self.headers.get_all(IDEMPOTENCY_KEY).into_iter().map(hyper::header::HeaderValue::as_bytes);
        let Some(key) = fields.next() else { return Ok(None) };
        if fields.next().is_some() || !(1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) {
            let detail = format!("an Idempotency-Key stands once and has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes");
            return Err(Problem::new(ErrorCode::BadIdempotencyKey, detail));
        }
        Ok(Some(key))
    }

    async fn read_body(&self, body: Incoming, bytes_max: usize, timeout: Duration) -> Result<(Bytes, Reservation), Problem> {
        let read = read_body(body, bytes_max, timeout, &self.door.shared, self.connection, &self.door.options).await;
        self.connection.phase.set(Phase::Node);
        if let Ok((bytes, _)) = &read {
            add(&self.door.metrics.body_bytes_in, bytes.len() as u64);
        }
        read
    }

    /// What the reading of the body, which began at `began_ms`, left of a request's time.
    fn rest_of(&self, timeout: Duration, began_ms: u64) -> Result<Duration, Problem> {
        let taken = Duration::from_millis(self.door.shared.now_ms.get() - began_ms);
        timeout
            .checked_sub(taken)
            .filter(|rest| !rest.is_zero())
            .ok_or_else(|| Problem::new(ErrorCode::Timeout, "the request's time ran out before its body had come"))
    }

    /// A page of another origin may send a `POST` without asking first, so it must not be able to do harm by it.
    fn check_origin(&self) -> Result<(), Problem> {
        let Some(origin) = self.headers.get(ORIGIN) else { return Ok(()) };
        let host = self.headers.get(HOST).map_or(&b""[..], |host| host.as_bytes());
        let is_own = [&b"http://"[..], b"https://"].iter().any(|scheme| origin.as_bytes().strip_prefix(*scheme) == Some(host));
        if is_own { Ok(()) } else { Err(Problem::new(ErrorCode::CrossOrigin, "a page of another origin must not send this")) }
    }
}

pub(super) fn read_answer(reply: Reply, condition: &Condition) -> Answer {
    match reply {
        Reply::Stale { lag_ms, reply } => Answer { lag_ms: Some(lag_ms), ..read_answer(*reply, condition) },
        Reply::Value { version, value } => {
            // RFC 9110, section 13.2.2: `If-Match` first.
            let if_match = Condition { if_match: condition.if_match.clone(), if_none_match: None };
            let answer = if condition.is_always() || condition.holds(Some(version)) {
                Answer::new(StatusCode::OK, "application/octet-stream", value)
            } else if if_match.holds(Some(version)) {
                Answer::empty(StatusCode::NOT_MODIFIED)
            } else {
                condition_failed()
            };
            answer.with_etag(Some(version))
        }
        Reply::Absent if condition.if_match.is_some() => condition_failed(),
        Reply::Absent => Answer::problem(&Problem::new(ErrorCode::KeyAbsent, "there is no such key")),
        other => unexpected(other, Outcome::NotApplied),
    }
}

fn write_answer(reply: Reply, key: &Key) -> Answer {
    match reply {
        Reply::Put { version, created } => {
            let status = if created { StatusCode::CREATED } else { StatusCode::OK };
            Answer::json(status, put_answer(key, version)).with_etag(Some(version))
        }
        Reply::Deleted { deleted: true } => Answer::json(StatusCode::OK, "{\"deleted\":true}\n"),
        Reply::Deleted { deleted: false } => Answer::json(StatusCode::OK, "{\"deleted\":false}\n"),
        Reply::ConditionFailed { present } => condition_failed().with_etag(present),
        Reply::Incremented { value, version } => Answer::json(StatusCode::OK, increment_answer(value, version)).with_etag(Some(version)),
        Reply::Refused(refusal) => Answer::problem(&refusal_problem(refusal)),
        other => unexpected(other, Outcome::Unknown),
    }
}

/// What certainly did not happen because of what is there.
pub(super) fn refusal_problem(refusal: WriteRefusal) -> Problem {
    match refusal {
        WriteRefusal::NotAnInteger => {
            Problem::new(ErrorCode::NotAnInteger, "the key's value is no decimal integer of 64 bits; nothing was written")
        }
        WriteRefusal::Overflow => {
            Problem::new(ErrorCode::IncrementOverflow, "the sum would not fit into a signed integer of 64 bits; nothing was written")
        }
        WriteRefusal::IdReused => {
            Problem::new(ErrorCode::IdempotencyKeyReused, "another request bore this Idempotency-Key before; nothing was written")
        }
        WriteRefusal::TableFull => {
            let detail = "the key's shard remembers as many requests with an Idempotency-Key as it may; nothing was written";
            Problem::new(ErrorCode::IdempotencyTableFull, detail)
        }
    }
}

fn condition_failed() -> Answer {
    Answer::problem(&condition_problem())
}

pub(super) fn condition_problem() -> Problem {
    Problem::new(ErrorCode::ConditionFailed, "the key's version is not what the condition asks for; nothing was written")
}

/// A failure; or a reply to another request, which is a bug of ours and tells nothing of what happened.
fn unexpected(reply: Reply, outcome: Outcome) -> Answer {
    match reply {
        Reply::Failed(failure) => Answer::failure(failure),
        _ => Answer {
            outcome: Some(outcome),
            ..Answer::problem(&Problem::new(ErrorCode::Internal, "the node answered another request than was asked"))
        },
    }
}

fn not_built(what: &str) -> Problem {
    Problem::new(ErrorCode::NotBuilt, format!("{what} is not built yet"))
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
