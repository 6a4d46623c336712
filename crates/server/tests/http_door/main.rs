//! The HTTP door over raw sockets, with a fake node behind it: what is answered, byte by byte where it
//! matters, and that nothing malformed, cut short or too large ever reaches the node.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod wire;

use flotilla_node::Location;
use flotilla_node::request::{Failure, FailureReason, JoinRequest, Reply, Request, RequestId, WriteRefusal};
use flotilla_server::http::{Backend, HttpOptions, serve};
use flotilla_server::metrics::Exposition;
use flotilla_types::{Key, NodeId, ShardId, Version};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::LocalSet;

/// A node of one map, without a cluster. Keys that begin with `fail-` fail in the way they name.
#[derive(Default)]
struct FakeNode {
    rows: RefCell<BTreeMap<Vec<u8>, (Version, bytes::Bytes)>>,
    writes: Cell<u64>,
    seen: RefCell<Vec<Request>>,
    /// While set, no request is answered.
    held: Cell<bool>,
    released: Notify,
}

impl Backend for FakeNode {
    async fn request(&self, request: Request, _timeout: Duration) -> Reply {
        self.seen.borrow_mut().push(request.clone());
        while self.held.get() {
            self.released.notified().await;
        }
        if let Some(reason) = request.key().and_then(|key| failure(key.as_bytes())) {
            let write = request.is_write() && reason == FailureReason::Timeout;
            return Reply::Failed(if write { Failure::unknown(reason, "no answer") } else { Failure::not_applied(reason, "refused") });
        }
        // Whether it was done before is for the node to know; the door hands it over.
        let request = match request {
            Request::Idempotent { id, .. } if id == RequestId::of(b"reused") => return Reply::Refused(WriteRefusal::IdReused),
            Request::Idempotent { id, .. } if id == RequestId::of(b"full") => return Reply::Refused(WriteRefusal::TableFull),
            Request::Idempotent { write, .. } => *write,
            request => request,
        };
        let mut rows = self.rows.borrow_mut();
        let present = request.key().and_then(|key| rows.get(key.as_bytes())).map(|row| row.0);
        match request {
            Request::Get { key } => match rows.get(key.as_bytes()) {
                Some((version, value)) => Reply::Value { version: *version, value: value.clone() },
                None => Reply::Absent,
            },
            Request::GetStale { .. } => Reply::Stale { lag_ms: 17, reply: Box::new(Reply::Absent) },
            Request::Put { condition, .. } | Request::Delete { condition, .. } | Request::Increment { condition, .. }
                if !condition.holds(present) =>
            {
                Reply::ConditionFailed { present }
            }
            Request::Put { key, value, .. } => {
                self.writes.set(self.writes.get() + 1);
                let version = Version(self.writes.get());
                let created = rows.insert(key.as_bytes().to_vec(), (version, value)).is_none();
                Reply::Put { version, created }
            }
            Request::Delete { key, .. } => Reply::Deleted { deleted: rows.remove(key.as_bytes()).is_some() },
            Request::Increment { key, by, .. } => {
                let before = rows.get(key.as_bytes()).map_or("0".into(), |(_, value)| String::from_utf8_lossy(value).into_owned());
                let Ok(before) = before.parse::<i64>() else { return Reply::Refused(WriteRefusal::NotAnInteger) };
                let Some(value) = before.checked_add(by) else { return Reply::Refused(WriteRefusal::Overflow) };
                self.writes.set(self.writes.get() + 1);
                let version = Version(self.writes.get());
                rows.insert(key.as_bytes().to_vec(), (version, value.to_string().into()));
                Reply::Incremented { value, version }
            }
            Request::Idempotent { .. } => unreachable!("one lay in another"),
            Request::Join(join) if join.name == "taken" => Reply::NameTaken { holder: NodeId(7), alive: false },
            Request::Join(_) => Reply::Joined { state: bytes::Bytes::from_static(b"state\xff") },
            Request::ClusterStatus => Reply::Status(bytes::Bytes::from_static(b"{\"nodes\":[]}")),
            Request::Scan(_) | Request::Admin(_) => panic!("they have tests of their own"),
        }
    }

    fn refusal_of_put(&self, key: &Key) -> Option<Failure> {
        let is_full = failure(key.as_bytes()) == Some(FailureReason::DiskFull);
        is_full.then(|| Failure::not_applied(FailureReason::DiskFull, "full"))
    }

    async fn reach(&self, _: &JoinRequest) -> Result<(), String> {
        Ok(())
    }

    fn name(&self) -> String {
        "n1".to_owned()
    }

    fn cluster_view(&self) -> bytes::Bytes {
        bytes::Bytes::from_static(b"{\"nodes\":[],\"authoritative\":false}")
    }

    fn locate(&self, key: &Key) -> Location {
        Location { slot: key.slot().0, shard: ShardId(3), leader: None, replicas: vec!["n1".into()] }
    }

    fn ready(&self) -> Result<(), String> {
        if self.held.get() { Err("no leader of s3 is known".into()) } else { Ok(()) }
    }

    fn write_metrics(&self, _exposition: &mut Exposition) {}
}

fn failure(key: &[u8]) -> Option<FailureReason> {
    Some(match key {
        b"fail-no-quorum" => FailureReason::NoQuorum,
        b"fail-timeout" => FailureReason::Timeout,
        b"fail-overloaded" => FailureReason::Overloaded,
        b"fail-disk-full" => FailureReason::DiskFull,
        b"fail-damaged" => FailureReason::Damaged,
        b"fail-shutting-down" => FailureReason::ShuttingDown,
        b"fail-not-member" => FailureReason::NotMember,
        b"fail-too-large" => FailureReason::TooLarge,
        _ => return None,
    })
}

/// A door on a free port.
struct Door {
    address: SocketAddr,
    node: Rc<FakeNode>,
    shutdown: Rc<Notify>,
    served: tokio::task::JoinHandle<()>,
}

/// An answer taken apart.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .skip(1)
            .find_map(|line| line.split_once(": ").filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value))
    }

    fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["status"], self.status);
        problem["code"].as_str().unwrap().to_owned()
    }
}

struct Client(TcpStream);

impl Client {
    async fn send(&mut self, text: &[u8]) {
        self.0.write_all(text).await.unwrap();
    }

    /// The next answer; `None` if the connection was closed instead.
    async fn answer(&mut self, has_body: bool) -> Option<Answer> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match self.0.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) if head.is_empty() => return None,
                Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&head)),
            }
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: Vec::new() };
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        if has_body {
            answer.body = vec![0; length];
            self.0.read_exact(&mut answer.body).await.unwrap();
        }
        Some(answer)
    }

    async fn ask(&mut self, text: &str) -> Answer {
        self.send(text.as_bytes()).await;
        self.answer(!text.starts_with("HEAD")).await.unwrap()
    }

    async fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 1]).await, Ok(0) | Err(_))
    }
}

impl Door {
    async fn open(options: HttpOptions) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (node, shutdown) = (Rc::new(FakeNode::default()), Rc::new(Notify::new()));
        let signal = shutdown.clone();
        let served = tokio::task::spawn_local(serve(listener, node.clone(), options, async move { signal.notified().await }));
        Door { address, node, shutdown, served }
    }

    async fn client(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    /// One request on a connection of its own.
    async fn ask(&self, method: &str, target: &str, headers: &[&str], body: &str) -> Answer {
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: door\r\n");
        for header in headers {
            text += &format!("{header}\r\n");
        }
        if !body.is_empty() {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        self.client().await.ask(&format!("{text}\r\n{body}")).await
    }
}

/// Runs a test with a door in front of a fake node; every wait in it is bounded.
fn with_door<F: Future<Output = ()>>(options: HttpOptions, test: impl FnOnce(Door) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async { test(Door::open(options).await).await };
    let bounded = async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs") };
    LocalSet::new().block_on(&runtime, bounded);
}

#[test]
fn keys_are_written_read_and_deleted() {
    with_door(HttpOptions::default(), |door| async move {
        let made = door.ask("PUT", "/v1/kv/a%2Fb/%00", &[], "one").await;
        assert_eq!((made.status, made.header("etag")), (201, Some("\"1\"")));
        assert_eq!(made.body, b"{\"key\":\"a/b/\\u0000\",\"version\":1}\n");
        assert_eq!(door.ask("PUT", "/v1/kv/a/b/%00", &[], "two").await.status, 200);
        let got = door.ask("GET", "/v1/kv/a/b%2f%00?consistency=linearizable&timeout=5s", &[], "").await;
        assert_eq!((got.status, got.header("etag"), got.body.as_slice()), (200, Some("\"2\""), &b"two"[..]));
        assert_eq!(got.header("flotilla-lag-ms"), None);
        let stale = door.ask("GET", "/v1/kv/a?consistency=stale", &[], "").await;
        assert_eq!((stale.status, stale.header("flotilla-lag-ms")), (404, Some("17")));
        assert_eq!(got.header("content-type"), Some("application/octet-stream"));
        assert_eq!(got.header("flotilla-outcome"), None);
        let head = door.ask("HEAD", "/v1/kv/a/b/%00", &[], "").await;
        assert_eq!((head.status, head.header("content-length"), head.header("etag")), (200, Some("3"), Some("\"2\"")));
        let empty = door.ask("PUT", "/v1/kv/%FF", &["Content-Length: 0"], "").await;
        assert_eq!((empty.status, empty.body.as_slice()), (201, &b"{\"key_b64\":\"/w==\",\"version\":3}\n"[..]));
        let got = door.ask("GET", "/v1/kv/%ff", &[], "").await;
        assert_eq!((got.status, got.header("content-length")), (200, Some("0")));
        assert_eq!(door.ask("DELETE", "/v1/kv/%ff", &[], "").await.body, b"{\"deleted\":true}\n");
        assert_eq!(door.ask("DELETE", "/v1/kv/%ff", &[], "").await.body, b"{\"deleted\":false}\n");
        let absent = door.ask("GET", "/v1/kv/%ff", &[], "").await;
        assert_eq!((absent.status, absent.code().as_str(), absent.header("flotilla-outcome")), (404, "key_absent", None));
        assert_eq!(door.ask("HEAD", "/v1/kv/%ff", &[], "").await.status, 404);
    });
}

#[test]
fn integers_are_incremented() {
    with_door(HttpOptions::default(), |door| async move {
        let first = door.ask("POST", "/v1/kv/n/incr", &[], "").await;
        assert_eq!((first.status, first.header("etag")), (200, Some("\"1\"")));
        assert_eq!(first.body, b"{\"value\":1,\"version\":1}\n");
        assert_eq!(door.ask("POST", "/v1/kv/n/incr?by=-43&timeout=5s", &[], "").await.body, b"{\"value\":-42,\"version\":2}\n");
        assert_eq!(door.ask("POST", "/v1/kv/n/incr", &["If-Match: \"1\""], "").await.status, 412);
        assert_eq!(door.ask("GET", "/v1/kv/n", &[], "").await.body, b"-42");
        door.ask("PUT", "/v1/kv/text", &[], "seven").await;
        door.ask("PUT", "/v1/kv/most", &[], &i64::MAX.to_string()).await;
        for (key, code) in [("text", "not_an_integer"), ("most", "increment_overflow")] {
            let refused = door.ask("POST", &format!("/v1/kv/{key}/incr"), &[], "").await;
            assert_eq!((refused.status, refused.code().as_str()), (409, code));
            assert_eq!(refused.header("flotilla-outcome"), Some("not-applied"));
        }
    });
}

#[test]
fn an_idempotency_key_goes_with_the_write() {
    with_door(HttpOptions::default(), |door| async move {
        let id = "Idempotency-Key: \"9f1c\"";
        for (method, target) in [("PUT", "/v1/kv/k"), ("POST", "/v1/kv/n/incr"), ("DELETE", "/v1/kv/k")] {
            assert!(door.ask(method, target, &[id], "").await.status < 300);
        }
        // It says nothing about a read.
        assert_eq!(door.ask("GET", "/v1/kv/n", &[id], "").await.body, b"1");
        let ids = door
            .node
            .seen
            .borrow()
            .iter()
            .map(|r| if let Request::Idempotent { id, .. } = r { Some(*id) } else { None })
            .collect::<Vec<_>>();
        let known = Some(RequestId::of(b"\"9f1c\""));
        assert_eq!(ids, [known, known, known, None]);
        for (id, status, code) in [("reused", 422, "idempotency_key_reused"), ("full", 503, "idempotency_table_full")] {
            let refused = door.ask("PUT", "/v1/kv/k", &[&format!("Idempotency-Key: {id}")], "v").await;
            assert_eq!((refused.status, refused.code().as_str()), (status, code));
            assert_eq!(refused.header("flotilla-outcome"), Some("not-applied"));
            assert_eq!(refused.header("retry-after").is_some(), status == 503);
        }
    });
}

#[test]
fn a_time_to_live_goes_with_the_write() {
    with_door(HttpOptions::default(), |door| async move {
        let seconds = Duration::from_secs;
        for (ttl, expected) in
            [("1ms", Duration::from_millis(1)), ("30s", seconds(30)), ("2m", seconds(120)), ("3650d", seconds(315_360_000))]
        {
            assert_eq!(door.ask("PUT", &format!("/v1/kv/a?ttl={ttl}"), &[], "v").await.status / 100, 2);
            let seen = door.node.seen.borrow_mut().pop();
            assert!(matches!(seen, Some(Request::Put { ttl: Some(ttl), .. }) if ttl == expected), "{ttl}: {seen:?}");
        }
    });
}

#[test]
fn conditions_are_kept() {
    with_door(HttpOptions::default(), |door| async move {
        door.ask("PUT", "/v1/kv/k", &[], "v").await;
        let table = [
            // method, header, key, status, etag
            ("PUT", "If-None-Match: *", "k", 412, Some("\"1\"")),
            ("PUT", "If-Match: *", "absent", 412, None),
            ("PUT", "If-Match: \"9\"", "k", 412, Some("\"1\"")),
            ("PUT", "If-Match: W/\"1\"", "k", 412, Some("\"1\"")),
            ("DELETE", "If-Match: \"9\"", "k", 412, Some("\"1\"")),
            ("DELETE", "If-Match: *", "absent", 412, None),
            ("GET", "If-None-Match: \"1\"", "k", 304, Some("\"1\"")),
            ("GET", "If-None-Match: W/\"1\"", "k", 304, Some("\"1\"")),
            ("GET", "If-None-Match: *", "k", 304, Some("\"1\"")),
            ("GET", "If-None-Match: \"2\"", "k", 200, Some("\"1\"")),
            ("GET", "If-Match: \"2\"", "k", 412, Some("\"1\"")),
            ("GET", "If-Match: \"2\"", "absent", 412, None),
            ("GET", "If-Match: \"2\", \"1\"", "k", 200, Some("\"1\"")),
            ("GET", "If-None-Match: *", "absent", 404, None),
            ("PUT", "If-Match: \"1\"", "k", 200, Some("\"2\"")),
            ("PUT", "If-None-Match: *", "new", 201, Some("\"3\"")),
            ("DELETE", "If-Match: \"2\"", "k", 200, None),
        ];
        for (method, header, key, status, etag) in table {
            let answer = door.ask(method, &format!("/v1/kv/{key}"), &[header], "").await;
            assert_eq!((answer.status, answer.header("etag")), (status, etag), "{method} {header} of {key}: {answer:?}");
            let outcome = (method != "GET" && status == 412).then_some("not-applied");
            assert_eq!(answer.header("flotilla-outcome"), outcome, "{method} {header}");
            if status == 304 {
                assert!(answer.body.is_empty());
            }
        }
    });
}

#[test]
fn bad_requests_are_refused_and_never_reach_the_node() {
    with_door(HttpOptions { value_bytes_max: 16, ..HttpOptions::default() }, |door| async move {
        let key_4097 = format!("/v1/kv/{}", "k".repeat(4097));
        let key_encoded = format!("/v1/kv/{}", "%41".repeat(4097));
        let key_huge = format!("/v1/kv/{}", "k".repeat(70_000));
        let header_huge = format!("X: {}", "x".repeat(90_000));
        let id_256 = format!("Idempotency-Key: {}", "i".repeat(256));
        let many: Vec<String> = (0..120).map(|n| format!("X-{n}: 1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        type Row<'a> = (&'a str, &'a str, &'a [&'a str], &'a str, u16, &'a str);
        let table: &[Row<'_>] = &[
            ("PUT", "/v1/kv/", &[], "v", 400, "key_empty"),
            ("GET", "/v1/kv/", &[], "", 400, "key_empty"),
            ("DELETE", "/v1/kv/", &[], "", 400, "key_empty"),
            ("PUT", &key_4097, &[], "v", 414, "key_too_long"),
            ("GET", &key_encoded, &[], "", 414, "key_too_long"),
            ("PUT", &key_huge, &[], "v", 414, "key_too_long"),
            ("PUT", "/v1/kv/a%2", &[], "v", 400, "bad_encoding"),
            ("PUT", "/v1/kv/a%zz", &[], "v", 400, "bad_encoding"),
            ("PUT", "/v1/kv/a?x=1", &[], "v", 400, "unknown_parameter"),
            ("GET", "/v1/kv/a?ttl=1s", &[], "", 400, "unknown_parameter"),
            ("PUT", "/v1/kv/a?consistency=stale", &[], "v", 400, "unknown_parameter"),
            ("DELETE", "/v1/kv/a?timeout=1s&timeout=2s", &[], "", 400, "repeated_parameter"),
            ("PUT", "/v1/kv/a?timeout=61s", &[], "v", 400, "bad_parameter"),
            ("PUT", "/v1/kv/a?timeout=5", &[], "v", 400, "bad_parameter"),
            ("PUT", "/v1/kv/a?timeout=0s", &[], "v", 400, "bad_parameter"),
            ("GET", "/v1/kv/a?consistency=eventual", &[], "", 400, "bad_parameter"),
            ("GET", "/v1/cluster?x", &[], "", 400, "unknown_parameter"),
            ("GET", "/livez?x", &[], "", 400, "unknown_parameter"),
            ("PUT", "/v1/kv/a", &["If-Match: 7"], "v", 400, "bad_condition"),
            ("PUT", "/v1/kv/a", &["If-None-Match: "], "v", 400, "bad_condition"),
            ("GET", "/v1/kv/a", &["If-None-Match: \"7"], "", 400, "bad_condition"),
            ("DELETE", "/v1/kv/a", &["If-Match: *", "If-Match: \"1\""], "", 400, "bad_condition"),
            ("PUT", "/v1/kv/a", &["Content-Range: bytes 0-1/9"], "v", 400, "bad_body"),
            ("PUT", "/v1/kv/a", &[], "seventeen bytes!!", 413, "too_large"),
            ("PUT", "/v1/kv/a", &["Content-Length: 99999999999"], "", 413, "too_large"),
            ("PUT", "/v1/kv/a?ttl=30", &[], "v", 400, "bad_parameter"),
            ("PUT", "/v1/kv/a?ttl=0s", &[], "v", 400, "bad_parameter"),
            ("PUT", "/v1/kv/a?ttl=3651d", &[], "v", 400, "bad_parameter"),
            ("PUT", "/v1/kv/a", &["Idempotency-Key: "], "v", 400, "bad_idempotency_key"),
            ("DELETE", "/v1/kv/a", &["Idempotency-Key: 1", "Idempotency-Key: 1"], "", 400, "bad_idempotency_key"),
            ("POST", "/v1/kv/a/incr", &[&id_256], "", 400, "bad_idempotency_key"),
            ("POST", "/v1/cluster/nodes", &["Idempotency-Key: 1"], "{}", 501, "not_built"),
            ("POST", "/v1/kv//incr?by=1", &[], "", 405, "method_not_allowed"),
            ("POST", "/v1/kv/a/incr?by=1.5", &[], "", 400, "bad_parameter"),
            ("POST", "/v1/kv/a/incr?by=9223372036854775808", &[], "", 400, "bad_parameter"),
            ("POST", "/v1/kv/a/incr", &["If-Match: 7"], "", 400, "bad_condition"),
            ("POST", "/v1/kv/a/incr", &[], "{\"by\":2}", 400, "bad_body"),
            ("POST", "/v1/kv/a/incr", &["Origin: http://evil.example"], "", 403, "cross_origin"),
            ("GET", "/v1/kv?limit=0", &[], "", 400, "bad_parameter"),
            ("GET", "/v1/kv?start=b&end=a", &[], "", 400, "bad_parameter"),
            ("GET", "/v1/kv?cursor=abcd", &[], "", 400, "bad_parameter"),
            ("GET", "/v1/kv?cursor=abcd", &["Accept: application/x-ndjson"], "", 400, "bad_parameter"),
            ("GET", "/v1/kv?after=a", &[], "", 400, "unknown_parameter"),
            ("DELETE", "/v1/kv", &[], "", 400, "bad_parameter"),
            ("DELETE", "/v1/kv?prefix=&start=", &[], "", 400, "bad_parameter"),
            ("DELETE", "/v1/kv?prefix=a&limit=1", &[], "", 400, "unknown_parameter"),
            ("DELETE", "/v1/kv?prefix=a", &["If-Match: *"], "", 400, "bad_condition"),
            ("POST", "/v1/kv", &[], "", 405, "method_not_allowed"),
            ("POST", "/v1/txn", &[], "{}", 501, "not_built"),
            ("POST", "/v1/cluster/nodes/n1/drain", &["Origin: http://evil.example"], "", 403, "cross_origin"),
            ("POST", "/v1/cluster/nodes/n1/drain?undo=perhaps", &[], "", 400, "bad_parameter"),
            ("DELETE", "/v1/cluster/nodes/%ff", &[], "", 400, "bad_encoding"),
            ("POST", "/v1/shards/x/leader", &[], "", 404, "shard_absent"),
            ("POST", "/v1/cluster/rebalance?bytes_per_second=fast", &[], "", 400, "bad_parameter"),
            ("GET", "/v1/nothing", &[], "", 404, "no_route"),
            ("POST", "/v1/nothing", &[], "{}", 404, "no_route"),
            ("POST", "/v1/kv/a", &[], "v", 405, "method_not_allowed"),
            ("PATCH", "/v1/cluster", &[], "", 405, "method_not_allowed"),
            ("QUERY", "/v1/kv/a", &["Idempotency-Key: 1"], "", 405, "method_not_allowed"),
            ("OPTIONS", "/v1/kv/a", &[], "", 405, "method_not_allowed"),
            ("POST", "/v1/cluster/nodes", &[], "{", 400, "bad_body"),
            ("POST", "/v1/cluster/nodes", &["Origin: http://evil.example"], "{}", 403, "cross_origin"),
            ("PUT", "/v1/kv/a", &[&header_huge], "v", 431, "headers_too_large"),
            ("PUT", "/v1/kv/a", &many, "v", 431, "headers_too_large"),
            ("PUT", "/v1/kv/a", &["Content-Length: x"], "", 400, "malformed_request"),
            ("PUT", "/v1/kv/a", &["Content-Length: 1", "Transfer-Encoding: chunked, gzip"], "", 400, "malformed_request"),
            ("PUT", "/v1/kv/a b", &[], "v", 400, "malformed_request"),
            ("P T", "/v1/kv/a", &[], "v", 400, "malformed_request"),
        ];
        for (method, target, headers, body, status, code) in table {
            let answer = door.ask(method, target, headers, body).await;
            let what = format!("{method} {}", &target[..target.len().min(40)]);
            assert_eq!((answer.status, answer.code().as_str()), (*status, *code), "{what}");
            // What is not even HTTP may have been meant as a write.
            let read = matches!(*method, "GET" | "OPTIONS");
            assert_eq!(answer.header("flotilla-outcome"), (!read).then_some("not-applied"), "{what}");
            assert_eq!(answer.header("allow").is_some(), *status == 405, "{what}");
        }
        assert_eq!(*door.node.seen.borrow(), [], "nothing of this is for the node");
        let wrong = door.ask("POST", "/v1/kv/a", &[], "").await;
        assert_eq!(wrong.header("allow"), Some("GET, HEAD, PUT, DELETE"));
    });
}

#[test]
fn a_body_over_the_limit_or_cut_short_changes_nothing() {
    with_door(HttpOptions { value_bytes_max: 16, ..HttpOptions::default() }, |door| async move {
        let chunked = "PUT /v1/kv/a HTTP/1.1\r\nHost: door\r\nTransfer-Encoding: chunked\r\n\r\n";
        let over = door.client().await.ask(&format!("{chunked}a\r\n0123456789\r\n7\r\n0123456\r\n")).await;
        assert_eq!((over.status, over.code().as_str(), over.header("flotilla-outcome")), (413, "too_large", Some("not-applied")));
        for text in [
            format!("{chunked}a\r\n01234"),
            format!("{chunked}zz\r\n"),
            "PUT /v1/kv/a HTTP/1.1\r\nHost: door\r\nContent-Length: 9\r\n\r\n0123".to_owned(),
        ] {
            let mut client = door.client().await;
            client.send(text.as_bytes()).await;
            client.0.shutdown().await.unwrap();
            let cut = client.answer(true).await.unwrap();
            assert_eq!(
                (cut.status, cut.code().as_str(), cut.header("flotilla-outcome")),
                (400, "body_cut_short", Some("not-applied")),
                "{text}"
            );
            assert!(client.is_closed().await);
        }
        assert_eq!(*door.node.seen.borrow(), []);
        let exact = door.client().await.ask(&format!("{chunked}a\r\n0123456789\r\n6;x=y\r\n012345\r\n0\r\nTrailer: 1\r\n\r\n")).await;
        assert_eq!(exact.status, 201);
        assert_eq!(door.ask("GET", "/v1/kv/a", &[], "").await.body, b"0123456789012345");
    });
}

#[test]
fn a_refusal_is_read_although_the_client_is_still_sending() {
    with_door(HttpOptions { value_bytes_max: 1 << 20, ..HttpOptions::default() }, |door| async move {
        let mut client = door.client().await;
        client.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: door\r\nContent-Length: 4194304\r\n\r\n").await;
        client.send(&vec![b'x'; 4 << 20]).await;
        assert_eq!(client.answer(true).await.unwrap().status, 413);
    });
}

#[test]
fn values_of_any_size_come_back_as_they_were() {
    with_door(HttpOptions::default(), |door| async move {
        for length in [1, 4095, 8192, 65_536, 65_537, 1 << 20, 8 << 20] {
            let value: String = (0..length).map(|n| char::from(b'a' + (n * 7 / 3 % 26) as u8)).collect();
            assert!(matches!(door.ask("PUT", "/v1/kv/big", &[], &value).await.status, 200 | 201));
            assert!(door.ask("GET", "/v1/kv/big", &[], "").await.body == value.as_bytes(), "{length} bytes");
        }
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    with_door(HttpOptions::default(), |door| async move {
        let mut client = door.client().await;
        let put = "PUT /v1/kv/a HTTP/1.1\r\nHost: door\r\nContent-Length: 44\r\n\r\nHTTP/1.1 431 as a value\r\ncontent-length: 0\r\n\r\n";
        let get = "GET /v1/kv/a HTTP/1.1\r\nHost: door\r\n\r\n";
        client.send(format!("{put}{get}HEAD{}{get}P T / HTTP/1.1\r\n\r\n", &get[3..]).as_bytes()).await;
        assert_eq!(client.answer(true).await.unwrap().status, 201);
        assert!(client.answer(true).await.unwrap().body.starts_with(b"HTTP/1.1 431"), "a value is never taken for an answer");
        assert_eq!(client.answer(false).await.unwrap().header("content-length"), Some("44"));
        assert_eq!(client.answer(true).await.unwrap().body.len(), 44);
        assert_eq!(client.answer(true).await.unwrap().code(), "malformed_request");
        assert!(client.is_closed().await);
    });
}

#[test]
fn a_body_is_asked_for_only_if_it_is_wanted() {
    with_door(HttpOptions { value_bytes_max: 16, ..HttpOptions::default() }, |door| async move {
        let mut client = door.client().await;
        let go_on = client.ask("PUT /v1/kv/a HTTP/1.1\r\nHost: door\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").await;
        assert_eq!(go_on.status, 100);
        client.send(b"abc").await;
        assert_eq!(client.answer(true).await.unwrap().status, 201);
        assert_eq!(client.ask("GET /v1/kv/a HTTP/1.1\r\nHost: door\r\n\r\n").await.body, b"abc");
        for target in ["/v1/kv/a", "/v1/kv/?", "/v1/nothing"] {
            let mut client = door.client().await;
            let refused =
                client.ask(&format!("PUT {target} HTTP/1.1\r\nHost: door\r\nContent-Length: 99\r\nExpect: 100-continue\r\n\r\n")).await;
            assert!(matches!(refused.status, 400 | 404 | 413), "{target}: {refused:?}");
        }
    });
}

#[test]
fn failures_of_the_node_have_their_status_and_outcome() {
    with_door(HttpOptions::default(), |door| async move {
        for (key, status, code, retry) in [
            ("fail-no-quorum", 503, "no_quorum", true),
            ("fail-timeout", 504, "timeout", false),
            ("fail-overloaded", 503, "overloaded", true),
            ("fail-disk-full", 507, "disk_full", false),
            ("fail-damaged", 500, "damaged", false),
            ("fail-shutting-down", 503, "shutting_down", true),
            ("fail-not-member", 503, "not_member", true),
            ("fail-too-large", 413, "too_large", false),
        ] {
            for method in ["GET", "PUT", "DELETE"] {
                let answer = door.ask(method, &format!("/v1/kv/{key}"), &[], "").await;
                assert_eq!((answer.status, answer.code().as_str()), (status, code));
                assert_eq!(answer.header("retry-after").is_some(), retry, "{key}");
                let outcome = if status == 504 { "unknown" } else { "not-applied" };
                assert_eq!(answer.header("flotilla-outcome"), (method != "GET").then_some(outcome), "{method} {key}");
            }
        }
    });
}

#[test]
fn the_cluster_is_shown_and_joined() {
    with_door(HttpOptions::default(), |door| async move {
        assert_eq!(door.ask("GET", "/v1/cluster", &[], "").await.body, b"{\"nodes\":[]}");
        let located: serde_json::Value = serde_json::from_slice(&door.ask("GET", "/v1/locate/foo", &[], "").await.body).unwrap();
        assert_eq!(located, serde_json::json!({"slot": 12182, "shard": 3, "leader": null, "replicas": ["n1"]}));
        let join = |name| {
            format!(
                r#"{{"id":"00000000000000ab","name":"{name}","http":"h:1","peer":"h:2","resp":null,"zone":"","formats":[1,1],"replace":false}}"#
            )
        };
        let joined = door.ask("POST", "/v1/cluster/nodes", &["Origin: http://door"], &join("n4")).await;
        assert_eq!(joined.status, 200);
        assert_eq!(flotilla_server::http::join::decode_answer(&joined.body).as_deref(), Some(&b"state\xff"[..]));
        let taken = door.ask("POST", "/v1/cluster/nodes", &[], &join("taken")).await;
        assert_eq!((taken.status, taken.code().as_str(), taken.header("flotilla-outcome")), (409, "name_taken", Some("not-applied")));
        let own_view = door.ask("GET", "/v1/cluster?consistency=stale", &[], "").await;
        assert_eq!(own_view.body, b"{\"nodes\":[],\"authoritative\":false}");
        let stats = door.ask("GET", "/v1/stats", &[], "").await;
        assert_eq!((stats.status, stats.header("access-control-allow-origin")), (200, Some("*")));
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&stats.body).unwrap()["node"], "n1");
        assert_eq!(door.ask("GET", "/livez", &[], "").await.status, 200);
        assert_eq!(door.ask("GET", "/readyz", &[], "").await.status, 200);
        door.node.held.set(true);
        let not_ready = door.ask("GET", "/readyz", &[], "").await;
        assert_eq!((not_ready.status, not_ready.code().as_str()), (503, "not_ready"));
        let page = door.ask("GET", "/", &[], "").await;
        assert!(page.header("content-type").unwrap().starts_with("text/html") && page.body.starts_with(b"<!doctype html>"));
        assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'; script-src 'self';"));
        for (path, kind) in [("/dashboard.js", "text/javascript"), ("/style.css", "text/css")] {
            let named = String::from_utf8_lossy(&page.body).contains(&format!("\"{path}\""));
            let file = door.ask("GET", path, &[], "").await;
            assert!(named && file.status == 200 && file.header("content-type").unwrap().starts_with(kind), "{path}");
        }
        let metrics = String::from_utf8(door.ask("GET", "/metrics", &[], "").await.body).unwrap();
        for line in [
            "# TYPE flotilla_http_requests_total counter",
            "flotilla_http_requests_total{route=\"cluster\",status=\"2xx\",outcome=\"ok\"} 5",
            "flotilla_http_requests_total{route=\"cluster\",status=\"4xx\",outcome=\"not-applied\"} 1",
            "flotilla_http_request_duration_seconds_count{route=\"cluster\"} 6",
            "flotilla_http_requests_in_flight 1",
        ] {
            assert!(metrics.lines().any(|found| found == line), "{line} is missing in:\n{metrics}");
        }
    });
}

#[test]
fn whoever_stalls_is_told_so_and_closed() {
    let short = Duration::from_millis(40);
    let options = HttpOptions { head_timeout: short, body_timeout: short, idle_timeout: short, ..HttpOptions::default() };
    with_door(options, |door| async move {
        let mut idle = door.client().await;
        assert!(idle.is_closed().await, "without a word, as nothing was asked");
        let mut slow_head = door.client().await;
        slow_head.send(b"PUT /v1/kv/a HTTP/1.1\r\nHo").await;
        let answer = slow_head.answer(true).await.unwrap();
        assert_eq!(
            (answer.status, answer.code().as_str(), answer.header("flotilla-outcome")),
            (408, "request_stalled", Some("not-applied"))
        );
        assert!(slow_head.is_closed().await);
        let mut slow_body = door.client().await;
        slow_body.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: door\r\nContent-Length: 9\r\n\r\n0123").await;
        let answer = slow_body.answer(true).await.unwrap();
        assert_eq!(
            (answer.status, answer.code().as_str(), answer.header("flotilla-outcome")),
            (408, "request_stalled", Some("not-applied"))
        );
        assert!(slow_body.is_closed().await);
        assert_eq!(*door.node.seen.borrow(), []);
    });
}

#[test]
fn a_body_must_come_within_the_requests_own_timeout() {
    with_door(HttpOptions { head_timeout: Duration::from_millis(40), ..HttpOptions::default() }, |door| async move {
        let mut client = door.client().await;
        client.send(b"PUT /v1/kv/a?timeout=30ms HTTP/1.1\r\nHost: door\r\nContent-Length: 9\r\n\r\n0123").await;
        let answer = client.answer(true).await.unwrap();
        assert_eq!((answer.status, answer.code().as_str(), answer.header("flotilla-outcome")), (504, "timeout", Some("not-applied")));
        assert_eq!(*door.node.seen.borrow(), []);
    });
}

#[test]
fn connections_and_bodies_under_way_are_bounded() {
    with_door(HttpOptions { connections_max: 2, body_bytes_max: 8, ..HttpOptions::default() }, |door| async move {
        let (mut first, mut second) = (door.client().await, door.client().await);
        let get = "GET /v1/kv/a HTTP/1.1\r\nHost: door\r\n\r\n";
        assert_eq!((first.ask(get).await.status, second.ask(get).await.status), (404, 404));
        let mut third = door.client().await;
        let refused = third.answer(true).await.unwrap();
        assert_eq!((refused.status, refused.code().as_str()), (503, "overloaded"));
        assert!(refused.header("retry-after").is_some() && third.is_closed().await);

        door.node.held.set(true);
        let put = "PUT /v1/kv/a HTTP/1.1\r\nHost: door\r\nContent-Length: 6\r\n\r\n012345";
        first.send(put.as_bytes()).await;
        while door.node.seen.borrow().len() < 3 {
            tokio::task::yield_now().await;
        }
        let over = second.ask(put).await;
        assert_eq!((over.status, over.code().as_str(), over.header("flotilla-outcome")), (503, "overloaded", Some("not-applied")));
        door.node.held.set(false);
        door.node.released.notify_waiters();
        assert_eq!(first.answer(true).await.unwrap().status, 201);
        assert_eq!(first.ask(put).await.status, 200, "what was reserved is given back");
    });
}

#[test]
fn shutting_down_ends_what_is_under_way_first() {
    with_door(HttpOptions::default(), |door| async move {
        let (mut idle, mut busy) = (door.client().await, door.client().await);
        assert_eq!(idle.ask("GET /livez HTTP/1.1\r\nHost: door\r\n\r\n").await.status, 200);
        door.node.held.set(true);
        busy.send(b"PUT /v1/kv/a HTTP/1.1\r\nHost: door\r\nContent-Length: 1\r\n\r\nx").await;
        while door.node.seen.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        door.shutdown.notify_one();
        assert!(idle.is_closed().await);
        door.node.held.set(false);
        door.node.released.notify_waiters();
        assert_eq!(busy.answer(true).await.unwrap().status, 201);
        assert!(busy.is_closed().await);
        door.served.await.unwrap();
    });
}
