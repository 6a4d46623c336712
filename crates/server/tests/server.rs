//! Whole servers in one process, on real sockets and disks: a node's life, and what it refuses.
#![allow(clippy::disallowed_methods, reason = "real servers need real folders and time")]

use flotilla_server::{Birth, ServerConfig, ServerError, Settings, Started, run};
use std::future::Future;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};

/// A server in this process.
struct Server {
    started: Started,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), ServerError>>,
}

fn config(data_dir: &Path, change: impl FnOnce(&mut Settings)) -> ServerConfig {
    let address = || Some("127.0.0.1:0".to_owned());
    let mut settings = Settings {
        data_dir: Some(data_dir.to_owned()),
        http_addr: address(),
        peer_addr: address(),
        shards: Some(4),
        ..Settings::default()
    };
    change(&mut settings);
    settings.check().expect("good settings")
}

async fn start(config: ServerConfig) -> Result<Server, ServerError> {
    let (tell, told) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let tell = move |started: &Started| tell.send(started.clone()).expect("the test waits");
    let ended = tokio::task::spawn_local(run(config, tell, async {
        let _ = stopped.await;
    }));
    match told.await {
        Ok(started) => Ok(Server { started, stop, ended }),
        Err(_) => Err(ended.await.expect("no panic").expect_err("it ended before it started")),
    }
}

impl Server {
    async fn stop(self) {
        self.stop.send(()).expect("it runs");
        self.ended.await.expect("no panic").expect("an end in order");
    }

    /// Status and body.
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.started.http).await.expect("it listens");
        let length = body.len();
        let text = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        (head[9..12].parse().expect("a status"), body.to_owned())
    }

    /// Asks until the answer has this status.
    async fn ask_until(&self, wanted: u16, method: &str, path: &str, body: &str) -> String {
        loop {
            let (status, answer) = self.ask(method, path, body).await;
            if status == wanted {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Writes until it is done; a write whose outcome was unknown may have been done before.
    async fn put(&self, key: &str, value: &str) {
        let path = format!("/v1/kv/{key}");
        while !matches!(self.ask("PUT", &path, value).await.0, 200 | 201) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn url(&self) -> Vec<String> {
        vec![format!("http://{}", self.started.http)]
    }
}

/// Runs a test on one thread, as the server does, with a bound on its time.
fn on_one_thread<F: Future<Output = ()>>(test: impl FnOnce(tempfile::TempDir) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bounded = async { tokio::time::timeout(Duration::from_secs(90), test(folder)).await.expect("the test takes its time") };
    LocalSet::new().block_on(&runtime, bounded);
}

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
