//! Whole servers in one process, on real sockets and disks: a node's life, and what it refuses.
#![allow(clippy::disallowed_methods, reason = "real servers need real folders and time")]

mod servers;

use flotilla_server::{Birth, ServerConfig, Settings};
use servers::{Server, config, on_one_thread, start};
use std::path::Path;
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

/// The cluster as one of its nodes sees it.
async fn status(server: &Server) -> serde_json::Value {
    serde_json::from_str(&server.ask_until(200, "GET", "/v1/cluster", "").await).expect("JSON")
}

/// Waits until each shard, and the control group, has that many voters, and nothing moves.
async fn until_spread(server: &Server, voters: usize) {
    loop {
        let status = status(server).await;
        let whole = |shard: &serde_json::Value| {
            let replicas = shard["replicas"].as_array().expect("replicas");
            shard["leader"].is_string() && replicas.len() == voters && replicas.iter().all(|replica| replica["role"] == "voter")
        };
        let rests = status["moves"].as_array().is_some_and(Vec::is_empty)
            && status["control"]["voters"].as_array().is_some_and(|all| all.len() == voters);
        if rests && status["shards"].as_array().is_some_and(|all| all.iter().all(whole)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn nodes_are_drained_and_removed_and_told_so() {
    on_one_thread(async |folder| {
        let dir = |name: &str| folder.path().join(name);
        let first = start(config(&dir("n1"), |s| s.name = Some("n1".to_owned()))).await.expect("a start");
        first.ask_until(200, "GET", "/readyz", "").await;
        let url = first.url();
        let join = |name: &'static str| config(&dir(name), |s| (s.name, s.join) = (Some(name.to_owned()), Some(url.clone())));
        let alone = first.ask("POST", "/v1/cluster/nodes/n1/drain", "").await;
        assert!(alone.0 == 409 && alone.1.contains("n1 is the last node"), "{alone:?}");
        let second = start(join("n2")).await.expect("n2 joins");
        let third = start(join("n3")).await.expect("n3 joins");
        until_spread(&first, 3).await;
        for key in ["a", "b", "c", "d", "e", "f"] {
            first.put(key, key).await;
        }
        let one_of_three = second.ask("DELETE", "/v1/cluster/nodes/n3", "").await;
        assert!(one_of_three.0 == 409 && one_of_three.1.contains("start another node with --join first"), "{one_of_three:?}");
        let alive = second.ask("DELETE", "/v1/cluster/nodes/n3?force=true", "").await;
        assert!(alive.0 == 409 && alive.1.contains("n3 is up"), "{alive:?}");
        assert_eq!(second.ask("DELETE", "/v1/cluster/nodes/n9", "").await.0, 404);

        let fourth = start(join("n4")).await.expect("n4 joins");
        // Not before it holds something is it counted on.
        let replicas = |status: &serde_json::Value| status["nodes"].as_array().and_then(|nodes| nodes.get(3)?["replicas"].as_u64());
        while replicas(&status(&first).await).is_none_or(|count| count == 0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        until_spread(&first, 3).await;
        let (code, plan) = fourth.ask("DELETE", "/v1/cluster/nodes/n3?dry_run=true", "").await;
        let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
        assert!(code == 200 && plan["state"] == "active" && !plan["plan"].as_array().expect("a plan").is_empty(), "{code} {plan}");
        third.ask("DELETE", "/v1/cluster/nodes/n3", "").await;
        // Asked of the node itself, it might be gone before it answers.
        let removed = first.ask_until(200, "DELETE", "/v1/cluster/nodes/n3", "").await;
        assert!(removed.contains(r#""state":"removed""#), "{removed}");
        let words = third.last_words().await;
        assert!(words.contains("was removed from the cluster: its data may be wiped"), "{words}");
        // Its threads end a moment later than it, and let go of the data-dir then.
        let again = loop {
            match start(join("n3")).await {
                Ok(again) => break again,
                Err(error) => assert!(error.to_string().contains("in use by another process"), "it does not know yet: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(again.last_words().await.contains("was removed from the cluster"));
        for key in ["a", "b", "c", "d", "e", "f"] {
            assert_eq!(fourth.ask_until(200, "GET", &format!("/v1/kv/{key}"), "").await, key);
        }
        for server in [first, second, fourth] {
            server.stop().await;
        }
    });
}

/// What a node says about the quorums; waits until it knows and says this.
async fn until_recovery(server: &Server, is: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    loop {
        let (code, body) = server.ask("POST", "/v1/cluster/recover?dry_run=true", "").await;
        match serde_json::from_str(&body) {
            Ok(plan) if code == 200 && is(&plan) => return plan,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

#[test]
fn what_is_left_of_a_lost_majority_is_recovered_and_copied_to_new_nodes() {
    on_one_thread(async |folder| {
        let dir = |name: &str| folder.path().join(name);
        let first = start(config(&dir("n1"), |s| s.name = Some("n1".to_owned()))).await.expect("a start");
        first.ask_until(200, "GET", "/readyz", "").await;
        let url = first.url();
        let join = |name: &'static str| config(&dir(name), |s| (s.name, s.join) = (Some(name.to_owned()), Some(url.clone())));
        let second = start(join("n2")).await.expect("n2 joins");
        let third = start(join("n3")).await.expect("n3 joins");
        until_spread(&first, 3).await;
        let keys = ["a", "b", "c", "d", "e", "f"];
        for key in keys {
            first.put(key, key).await;
        }
        let none = |plan: &serde_json::Value, what: &str| plan[what].as_array().is_some_and(Vec::is_empty);
        let whole = until_recovery(&second, |plan| none(plan, "lost")).await;
        assert_eq!((whole["whole"].as_u64(), whole["gone"].as_array().map(Vec::len)), (Some(5), Some(0)), "{whole}");
        second.stop().await;
        third.stop().await;
        assert!(matches!(first.ask("PUT", "/v1/kv/a?timeout=1500ms", "x").await.0, 503 | 504));

        let plan = until_recovery(&first, |plan| plan["lost"].as_array().is_some_and(|lost| lost.len() == 5)).await;
        let mut gone: Vec<&str> = plan["gone"].as_array().expect("names").iter().filter_map(|name| name.as_str()).collect();
        gone.sort_unstable();
        assert_eq!(gone, ["n2", "n3"]);
        assert!(
            plan["lost"].as_array().expect("groups").iter().all(|lost| lost["node"] == "n1" && lost["keeps"]["voter"] == true),
            "{plan}"
        );
        let unnamed = first.ask("POST", "/v1/cluster/recover", "").await;
        assert!(unnamed.0 == 409 && unnamed.1.contains("look at the plan first"), "{unnamed:?}");
        let other = first.ask("POST", "/v1/cluster/recover?plan=0123456789abcdef", "").await;
        assert!(other.0 == 409 && other.1.contains("things have changed"), "{other:?}");
        let act = format!("/v1/cluster/recover?plan={}", plan["plan"].as_str().expect("an id"));
        assert_eq!(first.ask("POST", &act, "").await.0, 202);
        until_recovery(&first, |plan| none(plan, "lost") && none(plan, "under_way")).await;
        assert_eq!(first.ask("POST", &act, "").await.0, 200, "there is nothing left to do");
        for key in keys {
            let value = first.ask_until(200, "GET", &format!("/v1/kv/{key}"), "").await;
            // Whatever came of the write that nobody could agree on: it may have been kept.
            assert!(value == key || (key == "a" && value == "x"), "{key}: {value}");
        }
        first.put("g", "after").await;

        let fourth = start(join("n4")).await.expect("n4 joins");
        let fifth = start(join("n5")).await.expect("n5 joins");
        until_spread(&first, 3).await;
        let again = start(join("n2")).await.expect("it does not know yet");
        assert!(again.last_words().await.contains("was removed from the cluster"));
        first.stop().await;
        assert_eq!(fourth.ask_until(200, "GET", "/v1/kv/g", "").await, "after");
        fourth.put("h", "later").await;
        assert_eq!(fifth.ask_until(200, "GET", "/v1/kv/h", "").await, "later");
        fourth.stop().await;
        fifth.stop().await;
    });
}

#[test]
fn nodes_find_each_other_when_all_addresses_have_changed() {
    on_one_thread(async |folder| {
        let dir = |name: &str| folder.path().join(name);
        let node = |name: &'static str, url: Vec<String>| config(&dir(name), |s| (s.name, s.join) = (Some(name.to_owned()), Some(url)));
        let first = start(node("n1", Vec::new())).await.expect("a start");
        first.ask_until(200, "GET", "/readyz", "").await;
        let second = start(node("n2", first.url())).await.expect("n2 joins");
        let third = start(node("n3", first.url())).await.expect("n3 joins");
        until_spread(&first, 3).await;
        first.put("k", "v").await;
        let before = [first.started.peer, second.started.peer, third.started.peer];
        for server in [third, second, first] {
            server.stop().await;
        }
        // Their ports are taken by others, so that none comes back where it was.
        let _taken: Vec<_> = before.iter().map(|address| std::net::TcpListener::bind(address).expect("it is free now")).collect();
        let first = start(node("n1", Vec::new())).await.expect("a start");
        let second = start(node("n2", first.url())).await.expect("a start");
        let third = start(node("n3", first.url())).await.expect("a start");
        assert_eq!(third.ask_until(200, "GET", "/v1/kv/k", "").await, "v");
        loop {
            let status = status(&second).await;
            let peers: Vec<&str> = status["nodes"].as_array().expect("nodes").iter().filter_map(|node| node["peer"].as_str()).collect();
            if [&first, &second, &third].iter().all(|server| peers.contains(&server.started.peer.to_string().as_str())) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for server in [first, second, third] {
            server.stop().await;
        }
    });
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry")) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_files(&from, &to);
        } else {
            std::fs::copy(from, to).expect("a file");
        }
    }
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

        let wrong = |change: fn(&mut Settings, String)| {
            let peer = first.started.peer.to_string();
            config(&dir("n3"), |s| {
                (s.name, s.join) = (Some("n3".to_owned()), Some(url.clone()));
                change(s, peer);
            })
        };
        let nobody = refused(wrong(|s, _| s.advertise_peer = Some("127.0.0.1:1".to_owned()))).await;
        assert!(nobody.contains("n1 does not reach n3 at 127.0.0.1:1 (--advertise-peer") && nobody.contains("refused"), "{nobody}");
        let anothers = refused(wrong(|s, peer| s.advertise_peer = Some(peer))).await;
        assert!(anothers.contains("the address has changed hands"), "{anothers}");
        let no_door = refused(wrong(|s, _| s.advertise_http = Some("127.0.0.1:1".to_owned()))).await;
        assert!(no_door.contains("n1 does not reach n3 at 127.0.0.1:1 (--advertise-http"), "{no_door}");

        let other = start(config(&dir("other"), |s| s.name = Some("n9".to_owned()))).await.expect("another cluster");
        let cluster = other.started.cluster.to_string();
        other.stop().await;
        let elsewhere = refused(config(&dir("other"), |s| s.join = Some(url.clone()))).await;
        assert!(elsewhere.contains(&format!("belongs to cluster {cluster}")), "{elsewhere}");
        copy_files(&dir("n1"), &dir("copy"));
        let copied = refused(config(&dir("copy"), |_| ())).await;
        assert!(copied.contains("is a copy: its node runs at"), "{copied}");
        let renamed = refused(config(&dir("other"), |s| s.name = Some("n8".to_owned()))).await;
        assert!(renamed.contains("is that of node n9"), "{renamed}");
        std::fs::remove_dir_all(dir("other").join("log")).expect("a log");
        let logless = refused(config(&dir("other"), |_| ())).await;
        assert!(logless.contains("a state store but no raft log"), "{logless}");
        first.stop().await;
    });
}
