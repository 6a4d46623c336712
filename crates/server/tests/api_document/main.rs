//! `docs/api.md` and the OpenAPI document tell the truth: every curl line of the one is run against a real node and has
//! the status that stands behind it; every answer is what the other says; and neither leaves out a route.

mod curl;
mod exchange;
mod schema;

use curl::curl_lines;
use exchange::{Node, with_node};
use schema::Document;
use std::collections::BTreeSet;

async fn document(node: &Node) -> Document {
    let answer = node.ask("GET", "/openapi.json", &[], b"").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    Document(serde_json::from_slice(&answer.body).expect("JSON"))
}

#[test]
fn each_curl_line_of_the_documentation_does_what_it_says() {
    with_node(async |node| {
        let document = document(&node).await;
        let mut shown = BTreeSet::new();
        for mut line in curl_lines(include_str!("../../../../docs/api.md")) {
            // `42` stands for the version that the key has.
            let own_path = line.target.split('?').next().unwrap_or_default().to_owned();
            for (_, value) in line.headers.iter_mut().filter(|(_, value)| value == "\"42\"") {
                let present = node.ask("GET", &own_path, &[], b"").await;
                *value = present.header("etag").expect("a key that the documentation wrote before").to_owned();
            }
            let answer = node.ask(&line.method, &line.target, &line.headers, line.body.as_bytes()).await;
            assert_eq!(answer.status, line.status, "{line:?}: {answer:?}");
            let faults = document.faults(&line.method, &line.target, &answer);
            assert!(faults.is_empty(), "{line:?}: {faults:#?}");
            let (template, _) = document.operation(&line.method, &line.target).expect("just found");
            shown.insert(format!("{} {template}", line.method));
            if line.method == "GET" {
                let head = node.ask("HEAD", &line.target, &line.headers, b"").await;
                assert_eq!((head.status, head.header("etag")), (answer.status, answer.header("etag")), "{line:?}");
                let faults = document.faults("HEAD", &line.target, &head);
                assert!(faults.is_empty() && head.body.is_empty(), "HEAD of {line:?}: {faults:#?}");
            }
        }
        for (template, item) in document.0["paths"].as_object().expect("paths") {
            for method in ["get", "put", "delete", "post"] {
                if item.get(method).is_some_and(|operation| operation["x-not-built"] != true) {
                    let operation = format!("{} {template}", method.to_uppercase());
                    assert!(shown.contains(&operation), "docs/api.md has no curl line for {operation}");
                }
            }
        }
    });
}

#[test]
fn answers_to_bad_requests_are_as_the_document_says() {
    with_node(async |node| {
        let document = document(&node).await;
        node.ask("PUT", "/v1/kv/text", &[], b"no number").await;
        node.ask("PUT", "/v1/kv/most", &[], i64::MAX.to_string().as_bytes()).await;
        node.ask("PUT", "/v1/kv/%ff%00", &[], b"\xff").await;
        let key_4097 = format!("/v1/kv/{}", "k".repeat(4097));
        let header_huge = "x".repeat(90_000);
        type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16);
        let table: &[Row<'_>] = &[
            ("GET", "/v1/kv/none", &[], "", 404),
            ("GET", "/v1/kv/none?consistency=stale", &[], "", 404),
            ("GET", "/v1/kv/a%zz", &[], "", 400),
            ("GET", "/v1/kv/text?timeout=1", &[], "", 400),
            ("GET", "/v1/kv/text", &[("If-Match", "\"9\"")], "", 412),
            ("HEAD", "/v1/kv/none", &[], "", 404),
            ("HEAD", &key_4097, &[], "", 414),
            ("PUT", &key_4097, &[], "v", 414),
            ("PUT", "/v1/kv/text", &[("If-Match", "nonsense")], "v", 400),
            ("PUT", "/v1/kv/text", &[("If-None-Match", "*")], "v", 412),
            ("PUT", "/v1/kv/none", &[("If-Match", "*")], "v", 412),
            ("PUT", "/v1/kv/text", &[("Idempotency-Key", "")], "v", 400),
            ("PUT", "/v1/kv/once", &[("Idempotency-Key", "1")], "v", 201),
            ("PUT", "/v1/kv/once", &[("Idempotency-Key", "1")], "other", 422),
            ("PUT", "/v1/kv/text", &[("X", &header_huge)], "v", 431),
            ("PUT", "/v1/kv/text", &[("Content-Length", "99999999")], "", 413),
            ("DELETE", "/v1/kv/none", &[("If-Match", "*")], "", 412),
            ("DELETE", "/v1/kv/none", &[], "", 200),
            ("POST", "/v1/kv/text/incr", &[], "", 409),
            ("POST", "/v1/kv/most/incr", &[], "", 409),
            ("POST", "/v1/kv/most/incr", &[("Origin", "http://evil.example")], "", 403),
            ("POST", "/v1/kv/most/incr?by=x", &[], "", 400),
            ("GET", "/v1/kv", &[], "", 200),
            ("GET", "/v1/kv", &[("Accept", "application/x-ndjson")], "", 200),
            ("GET", "/v1/kv?limit=0", &[], "", 400),
            ("GET", "/v1/kv?cursor=x", &[], "", 400),
            ("DELETE", "/v1/kv", &[], "", 400),
            ("DELETE", "/v1/kv?prefix=none", &[("Idempotency-Key", "1")], "", 501),
            ("POST", "/v1/batch", &[], "{\"ops\":[{\"get\":{\"key\":\"none\"}},{\"delete\":{\"key\":\"text\",\"if_version\":0}}]}", 200),
            ("POST", "/v1/batch", &[], "{\"ops\":[{\"get\":{\"key\":\"\"}}]}", 400),
            ("POST", "/v1/batch", &[("Origin", "http://evil.example")], "{\"ops\":[]}", 403),
            ("GET", "/v1/cluster?x=1", &[], "", 400),
            ("POST", "/v1/cluster/nodes", &[], "{", 400),
            ("POST", "/v1/cluster/nodes", &[("Origin", "http://evil.example")], "{}", 403),
            ("GET", "/v1/locate/%", &[], "", 400),
            ("GET", "/livez?x=1", &[], "", 400),
            ("GET", "/openapi.json", &[("If-None-Match", "*")], "", 304),
            ("GET", "/openapi.json", &[("If-Match", "\"1\"")], "", 412),
        ];
        for (method, target, headers, body, status) in table {
            let headers: Vec<_> = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let answer = node.ask(method, target, &headers, body.as_bytes()).await;
            let what = format!("{method} {}", &target[..target.len().min(40)]);
            assert_eq!(answer.status, *status, "{what}: {answer:?}");
            let faults = document.faults(method, target, &answer);
            assert!(faults.is_empty(), "{what}: {faults:#?}");
        }
    });
}
