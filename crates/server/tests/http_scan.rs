//! Scans and deletes of ranges at the HTTP door, over raw sockets, with a fake node behind it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use flotilla_node::Location;
use flotilla_node::request::{Failure, FailureReason, JoinRequest, Reply, Request};
use flotilla_node::scan::{PageFill, ScanAsk, ScanItem, ScanPage};
use flotilla_server::http::{Backend, HttpOptions, serve};
use flotilla_server::metrics::Exposition;
use flotilla_types::{Key, Version};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

/// A node of one map. A page that would begin with the key `fail`, and its delete, fail.
struct FakeNode {
    rows: RefCell<BTreeMap<Vec<u8>, Bytes>>,
    pages: Cell<usize>,
    /// Items of a page of a stream.
    share: Cell<u32>,
    deletes_at_once: Cell<usize>,
    deletes_at_once_max: Cell<usize>,
}

impl Backend for FakeNode {
    async fn request(&self, request: Request, _timeout: Duration) -> Reply {
        match request {
            Request::Scan(ask) => self.page(&ask),
            Request::Delete { key, .. } => {
                self.deletes_at_once.set(self.deletes_at_once.get() + 1);
                self.deletes_at_once_max.set(self.deletes_at_once_max.get().max(self.deletes_at_once.get()));
                tokio::task::yield_now().await;
                self.deletes_at_once.set(self.deletes_at_once.get() - 1);
                if key.as_bytes() == b"fail" {
                    return Reply::Failed(Failure::not_applied(FailureReason::NoQuorum, "no leader"));
                }
                Reply::Deleted { deleted: self.rows.borrow_mut().remove(key.as_bytes()).is_some() }
            }
            other => panic!("{other:?}"),
        }
    }

    async fn reach(&self, _: &JoinRequest) -> Result<(), String> {
        Ok(())
    }

    fn name(&self) -> String {
        "n1".to_owned()
    }

    fn cluster_view(&self) -> Bytes {
        Bytes::from_static(b"{\"nodes\":[],\"authoritative\":false}")
    }

    fn locate(&self, _key: &Key) -> Location {
        unreachable!("not asked")
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn write_metrics(&self, _exposition: &mut Exposition) {}
}

impl FakeNode {
    fn page(&self, ask: &ScanAsk) -> Reply {
        self.pages.set(self.pages.get() + 1);
        let rows = self.rows.borrow();
        let mut within: Vec<_> = rows.iter().filter(|(key, _)| ask.range.contains(key)).collect();
        if ask.reverse {
            within.reverse();
        }
        if !ask.keys_only && within.first().is_some_and(|(key, _)| *key == b"fail") {
            return Reply::Failed(Failure::not_applied(FailureReason::NoQuorum, "no leader"));
        }
        let count = if ask.fill == PageFill::Shares { ask.items_max.min(self.share.get()) } else { ask.items_max } as usize;
        let is_last = within.len() <= count;
        let item = |(key, value): (&Vec<u8>, &Bytes)| ScanItem {
            key: Key::new(key.clone()).unwrap(),
            version: Version(7),
            value: (!ask.keys_only).then(|| value.clone()),
        };
        let items: Vec<ScanItem> = within.into_iter().take(count).map(item).collect();
        let last = items.last().filter(|_| !is_last).map(|item| item.key.as_bytes());
        let rest = last.map(|last| if ask.reverse { ask.range.before(last) } else { ask.range.behind(last) });
        Reply::Page(ScanPage { items, rest })
    }
}

/// Runs a test with a door in front of a node that holds these keys, each its own value.
fn with_keys<F: Future<Output = ()>>(keys: &[&[u8]], test: impl FnOnce(SocketAddr, Rc<FakeNode>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Streams get small pages, so that they have several.
    let node = Rc::new(FakeNode {
        rows: RefCell::default(),
        pages: Cell::new(0),
        share: Cell::new(2),
        deletes_at_once: Cell::new(0),
        deletes_at_once_max: Cell::new(0),
    });
    node.rows.borrow_mut().extend(keys.iter().map(|key| (key.to_vec(), Bytes::copy_from_slice(key))));
    let bounded = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(serve(listener, node.clone(), HttpOptions::default(), std::future::pending()));
        tokio::time::timeout(Duration::from_secs(60), test(address, node)).await.expect("the test hangs");
    };
    LocalSet::new().block_on(&runtime, bounded);
}

/// All that a server says to one request: head and body as they came.
async fn ask(address: SocketAddr, method: &str, target: &str, header: &str) -> (String, Vec<u8>) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let text = format!("{method} {target} HTTP/1.1\r\nHost: door\r\nConnection: close\r\n{header}\r\n");
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    (String::from_utf8(answer[..end].to_vec()).unwrap(), answer[end..].to_vec())
}

async fn json(address: SocketAddr, target: &str) -> serde_json::Value {
    serde_json::from_slice(&ask(address, "GET", target, "").await.1).unwrap()
}

const NDJSON: &str = "Accept: application/x-ndjson\r\n";

/// The chunks of a chunked body, and whether its end is there.
fn unchunk(mut body: &[u8]) -> (String, bool) {
    let mut text = Vec::new();
    while let Some(end) = body.windows(2).position(|end| end == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return (String::from_utf8(text).unwrap(), true);
        }
        text.extend_from_slice(&body[end + 2..][..length]);
        body = &body[end + 2 + length + 2..];
    }
    (String::from_utf8(text).unwrap(), false)
}

#[test]
fn pages_follow_each_other_by_cursor() {
    with_keys(&[b"a", b"b/1", b"b/2", b"b/3", b"c\xff"], |address, _| async move {
        let page = json(address, "/v1/kv?prefix=b%2F&limit=2").await;
        let item = |key: &str| serde_json::json!({"key": key, "value": key, "version": 7});
        assert_eq!(page["items"], serde_json::json!([item("b/1"), item("b/2")]));
        let cursor = page["cursor"].as_str().unwrap();
        for target in [format!("/v1/kv?cursor={cursor}"), format!("/v1/kv?prefix=b/&limit=5&cursor={cursor}")] {
            assert_eq!(json(address, &target).await, serde_json::json!({"items": [item("b/3")], "cursor": null}));
        }
        let foreign = json(address, &format!("/v1/kv?prefix=c&cursor={cursor}")).await;
        assert_eq!(foreign["code"], "bad_parameter");

        let last = json(address, "/v1/kv?start=b%2F3&reverse=true&keys_only=true").await;
        assert_eq!(last["items"], serde_json::json!([{"key_b64": "Y/8=", "version": 7}, {"key": "b/3", "version": 7}]));
        let bytes = json(address, "/v1/kv?start=c").await;
        assert_eq!(bytes["items"], serde_json::json!([{"key_b64": "Y/8=", "value_b64": "Y/8=", "version": 7}]));
        assert_eq!(json(address, "/v1/kv?prefix=nothing").await, serde_json::json!({"items": [], "cursor": null}));
    });
}

#[test]
fn a_stream_gives_every_line_and_ends() {
    with_keys(&[b"a", b"b", b"c", b"d", b"e"], |address, node| async move {
        let (head, body) = ask(address, "GET", "/v1/kv?keys_only=true", NDJSON).await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-type: application/x-ndjson\r\n"), "{head}");
        assert!(head.contains("transfer-encoding: chunked\r\n") && head.contains("connection: close\r\n"), "{head}");
        let (text, whole) = unchunk(&body);
        let keys = ["a", "b", "c", "d", "e"].map(|key| format!("{{\"key\":\"{key}\",\"version\":7}}\n"));
        assert_eq!((text, whole, node.pages.get()), (keys.concat(), true, 3));
        let (text, whole) = unchunk(&ask(address, "GET", "/v1/kv?keys_only=true&limit=3&reverse=true", NDJSON).await.1);
        assert_eq!((text.lines().count(), text.lines().next(), whole), (3, Some("{\"key\":\"e\",\"version\":7}"), true));
        assert_eq!(unchunk(&ask(address, "GET", "/v1/kv?prefix=x", NDJSON).await.1), (String::new(), true));
    });
}

#[test]
fn a_stream_that_fails_says_so_and_has_no_end() {
    with_keys(&[b"a", b"b", b"fail", b"z"], |address, _| async move {
        let (text, whole) = unchunk(&ask(address, "GET", "/v1/kv", NDJSON).await.1);
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((text.lines().count(), &last["error"]["code"], whole), (3, &"no_quorum".into(), false), "{text}");
        // Before the first page it fails as any request does.
        let (head, body) = ask(address, "GET", "/v1/kv?start=c", NDJSON).await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap()["code"], "no_quorum");
    });
}

#[test]
fn a_client_that_does_not_read_is_asked_for_no_more_pages() {
    let big = vec![b'v'; 1 << 20];
    let keys: Vec<Vec<u8>> = (0..100u8).map(|number| vec![number + 1]).collect();
    with_keys(&keys.iter().map(Vec::as_slice).collect::<Vec<_>>(), |address, node| async move {
        node.rows.borrow_mut().values_mut().for_each(|value| *value = Bytes::from(big.clone()));
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(format!("GET /v1/kv HTTP/1.1\r\nHost: door\r\n{NDJSON}\r\n").as_bytes()).await.unwrap();
        let mut byte = [0];
        socket.read_exact(&mut byte).await.unwrap();
        // Others are served meanwhile, and give the stream every chance to go on.
        for _ in 0..50 {
            assert!(ask(address, "GET", "/livez", "").await.0.starts_with("HTTP/1.1 200 "));
        }
        let pages = node.pages.get();
        assert!(pages < 20, "{pages} pages of 2 MiB were asked for, and nobody reads");
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        assert!(node.pages.get() == 50 && rest.ends_with(b"0\r\n\r\n") && rest.len() > 100 << 20);
    });
}

#[test]
fn a_range_is_deleted_and_counted() {
    let keys: Vec<Vec<u8>> = (0..300).map(|number| format!("x{number:03}").into_bytes()).chain([b"y".to_vec()]).collect();
    with_keys(&keys.iter().map(Vec::as_slice).collect::<Vec<_>>(), |address, node| async move {
        node.share.set(200);
        let (head, body) = ask(address, "DELETE", "/v1/kv?prefix=x", "").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(body, b"{\"deleted\":300}\n");
        assert_eq!(node.rows.borrow().len(), 1);
        assert_eq!(node.deletes_at_once_max.get(), 64, "bounded, and not one by one");
        assert_eq!(ask(address, "DELETE", "/v1/kv?prefix=x", "").await.1, b"{\"deleted\":0}\n");
    });
}

#[test]
fn a_range_that_cannot_be_deleted_whole_says_how_far_it_came() {
    with_keys(&[b"a", b"b", b"fail"], |address, _| async move {
        let (head, body) = ask(address, "DELETE", "/v1/kv?end=z", "").await;
        assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("flotilla-outcome: unknown\r\n"), "{head}");
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&problem["deleted"], &problem["code"]), (&2.into(), &"no_quorum".into()), "{problem}");
        let (head, body) = ask(address, "DELETE", "/v1/kv?end=z", "").await;
        assert!(head.contains("flotilla-outcome: not-applied\r\n"), "nothing was left to delete: {head}");
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap()["deleted"], 0);
    });
}
