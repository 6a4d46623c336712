//! Batches at the HTTP door, over raw sockets, with a fake node behind it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use flotilla_node::Location;
use flotilla_node::request::{Failure, FailureReason, JoinRequest, Reply, Request};
use flotilla_server::http::{Backend, HttpOptions, serve};
use flotilla_server::metrics::Exposition;
use flotilla_types::{Key, Outcome, Version};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

/// A node of one map, whose versions count its writes. Writes to the key `unknown` have that outcome, each request
/// waits until `together` are there, and `big` is half of what the values of a batch may have together, and more.
#[derive(Default)]
struct FakeNode {
    rows: RefCell<BTreeMap<Vec<u8>, (Version, Bytes)>>,
    writes: Cell<u64>,
    asked: RefCell<Vec<Request>>,
    together: Cell<usize>,
    gets_at_once: Cell<usize>,
    gets_at_once_max: Cell<usize>,
}

impl Backend for FakeNode {
    async fn request(&self, request: Request, _timeout: Duration) -> Reply {
        self.asked.borrow_mut().push(request.clone());
        while self.asked.borrow().len() < self.together.get() {
            tokio::task::yield_now().await;
        }
        let request = match request {
            Request::Idempotent { write, .. } => *write,
            request => request,
        };
        if request.is_write() && request.key().unwrap().as_bytes() == b"unknown" {
            return Reply::Failed(Failure::unknown(FailureReason::Timeout, "no answer"));
        }
        let mut rows = self.rows.borrow_mut();
        match request {
            Request::Get { key } if key.as_bytes() == b"big" => {
                Reply::Value { version: Version(1), value: Bytes::from(vec![b'v'; 9 << 20]) }
            }
            Request::Get { key } => {
                drop(rows);
                self.gets_at_once.set(self.gets_at_once.get() + 1);
                self.gets_at_once_max.set(self.gets_at_once_max.get().max(self.gets_at_once.get()));
                tokio::task::yield_now().await;
                self.gets_at_once.set(self.gets_at_once.get() - 1);
                match self.rows.borrow().get(key.as_bytes()) {
                    Some((version, value)) => Reply::Value { version: *version, value: value.clone() },
                    None => Reply::Absent,
                }
            }
            Request::Put { key, value, condition, .. } => {
                let present = rows.get(key.as_bytes()).map(|(version, _)| *version);
                if !condition.holds(present) {
                    return Reply::ConditionFailed { present };
                }
                self.writes.set(self.writes.get() + 1);
                let version = Version(self.writes.get());
                Reply::Put { version, created: rows.insert(key.as_bytes().to_vec(), (version, value)).is_none() }
            }
            Request::Delete { key, .. } => Reply::Deleted { deleted: rows.remove(key.as_bytes()).is_some() },
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

fn with_node<F: Future<Output = ()>>(test: impl FnOnce(SocketAddr, Rc<FakeNode>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let node = Rc::new(FakeNode::default());
    let bounded = async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn_local(serve(listener, node.clone(), HttpOptions::default(), std::future::pending()));
        tokio::time::timeout(Duration::from_secs(60), test(address, node)).await.expect("the test hangs");
    };
    LocalSet::new().block_on(&runtime, bounded);
}

/// Sends a batch; the head and the JSON of what is answered.
async fn post(address: SocketAddr, header: &str, body: &Value) -> (String, Value) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let body = body.to_string();
    let head = format!("POST /v1/batch HTTP/1.1\r\nHost: door\r\nConnection: close\r\n{header}Content-Length: {}\r\n\r\n", body.len());
    socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    (String::from_utf8(answer[..end].to_vec()).unwrap(), serde_json::from_slice(&answer[end..]).unwrap())
}

async fn results(address: SocketAddr, ops: Value) -> Vec<Value> {
    let (head, answer) = post(address, "", &json!({"ops": ops})).await;
    assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("flotilla-outcome"), "{head}");
    answer["results"].as_array().unwrap().clone()
}

#[test]
fn each_operation_has_its_own_result_and_those_of_a_key_their_order() {
    with_node(|address, _| async move {
        let done = results(
            address,
            json!([{"get":{"key":"a"}}, {"put":{"key":"a","value":"1"}}, {"put":{"key":"b","value":"2","if_version":7}},
                {"get":{"key":"a"}}, {"put":{"key":"a","value":"3","if_version":0}}, {"delete":{"key":"a"}}, {"get":{"key":"a"}}]),
        )
        .await;
        assert_eq!((&done[0]["status"], &done[0]["code"], &done[0]["outcome"]), (&json!(404), &json!("key_absent"), &Value::Null));
        assert_eq!(done[1], json!({"status":201,"version":1}));
        assert_eq!((&done[2]["status"], &done[2]["outcome"], &done[2]["version"]), (&json!(412), &json!("not-applied"), &Value::Null));
        assert_eq!(done[3], json!({"status":200,"value":"1","version":1}));
        assert_eq!((&done[4]["code"], &done[4]["version"]), (&json!("condition_failed"), &json!(1)), "the present version is told");
        assert_eq!(done[5], json!({"status":200,"deleted":true}));
        assert_eq!(done[6]["status"], 404);
    });
}

#[test]
fn different_keys_go_to_the_node_at_once_in_their_order() {
    with_node(|address, node| async move {
        // None is answered before all are there: one after the other would hang.
        node.together.set(500);
        let puts: Vec<Value> = (0..500).map(|n| json!({"put":{"key":format!("k{n}"),"value":"v"}})).collect();
        let done = results(address, json!(puts)).await;
        let rows = node.rows.borrow();
        for (n, (result, asked)) in done.iter().zip(&*node.asked.borrow()).enumerate() {
            let key = format!("k{n}");
            assert_eq!(asked.key().map(Key::as_bytes), Some(key.as_bytes()), "they are begun in their order");
            assert_eq!(result["version"], json!(rows[key.as_bytes()].0.0), "results stand where their operations stood");
        }
    });
}

#[test]
fn reads_under_way_at_once_and_the_bytes_they_bring_are_bounded() {
    with_node(|address, node| async move {
        let gets: Vec<Value> = (0..300).map(|n| json!({"get":{"key":format!("k{n}")}})).collect();
        assert_eq!(results(address, json!(gets)).await.len(), 300);
        assert_eq!(node.gets_at_once_max.get(), 64);
        let done = results(address, json!([{"get":{"key":"big"}}, {"get":{"key":"big"}}, {"get":{"key":"k"}}])).await;
        assert_eq!((&done[0]["status"], &done[1]["status"], &done[2]["status"]), (&json!(200), &json!(413), &json!(404)));
    });
}

#[test]
fn after_an_unknown_outcome_no_write_of_that_key_is_tried() {
    with_node(|address, node| async move {
        let done = results(
            address,
            json!([{"put":{"key":"unknown","value":"1"}}, {"put":{"key":"unknown","value":"2"}}, {"get":{"key":"unknown"}},
                {"put":{"key":"other","value":"1"}}]),
        )
        .await;
        assert_eq!((&done[0]["outcome"], &done[1]["outcome"]), (&json!(Outcome::Unknown.as_str()), &json!("not-applied")));
        assert_eq!((&done[2]["status"], &done[3]["status"]), (&json!(404), &json!(201)));
        assert_eq!(node.asked.borrow().iter().filter(|request| request.is_write()).count(), 2);
    });
}

#[test]
fn one_idempotency_key_names_each_write_differently_and_the_same_again() {
    with_node(|address, node| async move {
        let batch = json!({"ops": [{"put":{"key":"a","value":"1"}}, {"get":{"key":"a"}}, {"put":{"key":"a","value":"1"}}]});
        for _ in 0..2 {
            post(address, "Idempotency-Key: x\r\n", &batch).await;
        }
        let asked = node.asked.borrow();
        let ids: Vec<_> =
            asked.iter().filter_map(|request| if let Request::Idempotent { id, .. } = request { Some(*id) } else { None }).collect();
        assert_eq!(ids.len(), 4);
        assert_eq!(ids[..2], ids[2..]);
        assert_ne!(ids[0], ids[1]);
    });
}

#[test]
fn a_malformed_batch_does_nothing() {
    with_node(|address, node| async move {
        for (header, body, status, code) in [
            ("", json!({"ops":[{"put":{"key":"a","value":"v"}}, {"put":{"key":"","value":"v"}}]}), 400, "key_empty"),
            ("", json!({"ops":[{"put":{"key":"a","value":"v"}}, {"append":{"key":"a"}}]}), 400, "bad_body"),
            ("If-Match: \"1\"\r\n", json!({"ops":[]}), 400, "bad_condition"),
            ("Origin: http://elsewhere\r\n", json!({"ops":[]}), 403, "cross_origin"),
        ] {
            let (head, problem) = post(address, header, &body).await;
            assert!(head.contains("flotilla-outcome: not-applied"), "{head}");
            assert_eq!((&problem["status"], &problem["code"]), (&json!(status), &json!(code)));
        }
        assert!(node.asked.borrow().is_empty());
    });
}
