//! Whole servers in one process, on real sockets and disks: a node's life, and what it refuses.
#![allow(clippy::disallowed_methods, reason = "real servers need real folders and time")]

mod servers;

use flotilla_server::{Birth, ServerConfig};
use servers::{config, on_one_thread, start};
use std::time::Duration;

async fn refused(config: ServerConfig) -> String {
    match start(config).await {
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains('\n'), "one line: {line}");
            line
        }
        Ok(server) => panic!("{:?} started", server.started),
    }
}

#[test]
fn one_node_serves_and_keeps_what_it_was_given() {
    on_one_thread(async |folder| {
        let config = || config(folder.path(), |_| ());
        let first = start(config()).await.expect("a start");
        assert_eq!(first.started.birth, Birth::Created);
        first.ask_until(200, "GET", "/readyz", "").await;
        assert_eq!(first.ask("PUT", "/v1/kv/a", "1").await.0, 201);
        assert_eq!(first.ask("GET", "/v1/kv/a", "").await, (200, "1".to_owned()));
        assert_eq!(first.ask("POST", "/v1/kv/n/incr?by=2", "").await.0, 200);
        assert_eq!(first.ask("PUT", "/v1/kv/for-a-while?ttl=300ms", "2").await.0, 201);
        first.ask_until(404, "GET", "/v1/kv/for-a-while", "").await;
        assert_eq!(first.ask("GET", "/metrics", "").await.0, 200);
        let before = first.started.clone();
        first.stop().await;
        let again = start(config()).await.expect("a second start");
        assert_eq!(again.started.birth, Birth::Restarted);
        assert_eq!((again.started.node, again.started.cluster, &again.started.name), (before.node, before.cluster, &before.name));
        again.ask_until(200, "GET", "/readyz", "").await;
        assert_eq!(again.ask("GET", "/v1/kv/a", "").await, (200, "1".to_owned()));
        assert_eq!(again.ask("GET", "/v1/kv/n", "").await, (200, "2".to_owned()));
        assert_eq!(again.ask("GET", "/v1/kv/for-a-while", "").await.0, 404);
        again.stop().await;
    });
}

#[test]
fn three_nodes_become_one_cluster_that_survives_one_of_them() {
    on_one_thread(async |folder| {
        let dir = |name: &str| folder.path().join(name);
        let first = start(config(&dir("n1"), |s| s.name = Some("n1".to_owned()))).await.expect("a start");
        first.ask_until(200, "GET", "/readyz", "").await;
        let url = first.url();
        let join = |name: &'static str| config(&dir(name), |s| (s.name, s.join) = (Some(name.to_owned()), Some(url.clone())));
        let second = start(join("n2")).await.expect("n2 joins");
        let third = start(join("n3")).await.expect("n3 joins");
        assert_eq!(second.started.birth, Birth::Joined);
        assert_eq!(third.started.cluster, first.started.cluster);
        third.put("k", "v").await;
        assert_eq!(second.ask_until(200, "GET", "/v1/kv/k", "").await, "v");
        // Until each shard has three voters; at that moment changes of members may still be under way,
        // and the first node must not end in the midst of one.
        loop {
            let status = third.ask_until(200, "GET", "/v1/cluster", "").await;
            let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
            let voters = |shard: &serde_json::Value| {
                shard["replicas"].as_array().is_some_and(|all| all.len() == 3 && all.iter().all(|replica| replica["role"] == "voter"))
            };
            let control = status["control"]["voters"].as_array().is_some_and(|all| all.len() == 3);
            if control && status["shards"].as_array().is_some_and(|all| all.iter().all(voters)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        first.stop().await;
        for key in ["a", "b", "c", "d", "e", "f"] {
            second.put(key, key).await;
            assert_eq!(third.ask_until(200, "GET", &format!("/v1/kv/{key}"), "").await, key);
        }
        third.stop().await;
        // The last one alone has no majority, and says what it has only to whom that is good enough.
        assert_eq!(second.ask("GET", "/v1/kv/a?timeout=1500ms", "").await.0, 503);
        assert_eq!(second.ask("GET", "/v1/kv/a?consistency=stale", "").await, (200, "a".to_owned()));
        second.stop().await;
    });
}

#[test]
fn what_cannot_start_says_why_in_one_line() {
    on_one_thread(async |folder| {
        let dir = |name: &str| folder.path().join(name);
        let first = start(config(&dir("n1"), |s| s.name = Some("n1".to_owned()))).await.expect("a start");
        first.ask_until(200, "GET", "/readyz", "").await;
        let http = first.started.http.to_string();
        let port_taken = refused(config(&dir("x"), |s| s.http_addr = Some(http.clone()))).await;
        assert!(port_taken.contains("--http-addr") && port_taken.contains("in use by another process"), "{port_taken}");
        let dir_taken = refused(config(&dir("n1"), |_| ())).await;
        assert!(dir_taken.contains("is in use by another process"), "{dir_taken}");
        let url = first.url();
        let name_taken = refused(config(&dir("n2"), |s| (s.name, s.join) = (Some("n1".to_owned()), Some(url.clone())))).await;
        assert!(name_taken.contains("has this name and is up"), "{name_taken}");

        let other = start(config(&dir("other"), |s| s.name = Some("n9".to_owned()))).await.expect("another cluster");
        let cluster = other.started.cluster.to_string();
        other.stop().await;
        let elsewhere = refused(config(&dir("other"), |s| s.join = Some(url.clone()))).await;
        assert!(elsewhere.contains(&format!("belongs to cluster {cluster}")), "{elsewhere}");
        let renamed = refused(config(&dir("other"), |s| s.name = Some("n8".to_owned()))).await;
        assert!(renamed.contains("is that of node n9"), "{renamed}");
        std::fs::remove_dir_all(dir("other").join("log")).expect("a log");
        let logless = refused(config(&dir("other"), |_| ())).await;
        assert!(logless.contains("a state store but no raft log"), "{logless}");
        first.stop().await;
    });
}
