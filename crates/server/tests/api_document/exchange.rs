//! A node of its own in this process, and single requests to it.

use flotilla_server::{Settings, Started, run};
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// A running node.
pub(crate) struct Node {
    started: Started,
}

/// An answer taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        fields.find_map(|(found, value)| found.eq_ignore_ascii_case(name).then_some(value))
    }
}

/// Runs `test` with a node that serves, bounded in time.
pub(crate) fn with_node<F: Future<Output = ()>>(test: impl FnOnce(Node) -> F) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let address = || Some("127.0.0.1:0".to_owned());
    let settings = Settings {
        data_dir: Some(folder.path().to_owned()),
        http_addr: address(),
        peer_addr: address(),
        shards: Some(4),
        ..Settings::default()
    };
    let config = settings.check().expect("good settings");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let bounded = async {
        let (tell, told) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let tell = move |started: &Started| tell.send(started.clone()).expect("the test waits");
        let ended = tokio::task::spawn_local(run(config, tell, async {
            let _ = stopped.await;
        }));
        let node = Node { started: told.await.expect("it starts") };
        while node.ask("GET", "/readyz", &[], b"").await.status != 200 {
            tokio::task::yield_now().await;
        }
        test(node).await;
        stop.send(()).expect("it runs");
        ended.await.expect("no panic").expect("an end in order");
    };
    let bounded = async { tokio::time::timeout(Duration::from_secs(90), bounded).await.expect("the test hangs") };
    LocalSet::new().block_on(&runtime, bounded);
}

impl Node {
    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, method: &str, target: &str, headers: &[(String, String)], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.started.http).await.expect("it listens");
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        stream.write_all(&[text.as_bytes(), b"\r\n", body].concat()).await.expect("it reads");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect("it answers");
        let head_end = bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..head_end].to_vec()).expect("text");
        let status = head[9..12].parse().expect("a status");
        let answer = Answer { status, head, body: bytes[head_end + 4..].to_vec() };
        match answer.header("transfer-encoding") {
            Some(_) => Answer { body: unchunked(&answer.body), ..answer },
            None => answer,
        }
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line_end = rest.windows(2).position(|end| end == b"\r\n").expect("a chunk's size");
        let size = std::str::from_utf8(&rest[..line_end]).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let (start, size) = (line_end + 2, size.expect("a number"));
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[start..start + size]);
        rest = &rest[start + size + 2..];
    }
}
