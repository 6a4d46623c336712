//! Whole servers in one process, for tests.
#![allow(dead_code, reason = "each test uses some of it")]

use flotilla_server::{ServerConfig, ServerError, Settings, Started, run};
use std::future::Future;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};

/// A server in this process.
pub(crate) struct Server {
    pub(crate) started: Started,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), ServerError>>,
}

pub(crate) fn config(data_dir: &Path, change: impl FnOnce(&mut Settings)) -> ServerConfig {
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

pub(crate) async fn start(config: ServerConfig) -> Result<Server, ServerError> {
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
    pub(crate) async fn stop(self) {
        self.stop.send(()).expect("it runs");
        self.ended.await.expect("no panic").expect("an end in order");
    }

    /// Waits until it ends by itself, and says what with.
    pub(crate) async fn last_words(self) -> String {
        self.ended.await.expect("no panic").expect_err("it was not asked to end").to_string()
    }

    /// Status and body.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
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
    pub(crate) async fn ask_until(&self, wanted: u16, method: &str, path: &str, body: &str) -> String {
        loop {
            let (status, answer) = self.ask(method, path, body).await;
            if status == wanted {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Writes until it is done; a write whose outcome was unknown may have been done before.
    pub(crate) async fn put(&self, key: &str, value: &str) {
        let path = format!("/v1/kv/{key}");
        while !matches!(self.ask("PUT", &path, value).await.0, 200 | 201) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn url(&self) -> Vec<String> {
        vec![format!("http://{}", self.started.http)]
    }
}

/// Runs a test on one thread, as the server does, with a bound on its time.
pub(crate) fn on_one_thread<F: Future<Output = ()>>(test: impl FnOnce(tempfile::TempDir) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bounded = async { tokio::time::timeout(Duration::from_secs(90), test(folder)).await.expect("the test takes its time") };
    LocalSet::new().block_on(&runtime, bounded);
}
