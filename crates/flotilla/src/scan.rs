//! A scan as the commands need it: item after item, from whichever endpoint answers.
//!
//! It reads the server's stream of lines. When that breaks off, or an endpoint goes away, it goes on behind
//! the last item: a stream is page after page, so nothing is lost by that, and nothing shown twice.

use crate::client::{Ask, Client, OpenAnswer};
use crate::lines::{Item, Refused};
use crate::text::encode_query;
use anyhow::{Context, bail};
use hyper::Method;
use std::collections::VecDeque;
use std::time::Duration;

/// How often a scan is begun again without an item in between before it fails.
const ATTEMPTS_MAX: u32 = 5;
/// How long it rests before that.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(300);

/// What to scan.
#[derive(Clone, Debug, Default)]
pub struct ScanRequest {
    /// Keys that begin with this.
    pub prefix: Vec<u8>,
    /// Keys from here on.
    pub start: Vec<u8>,
    /// Keys before this; empty: all.
    pub end: Vec<u8>,
    /// The most items.
    pub limit: Option<u64>,
    /// Whether the last key comes first.
    pub reverse: bool,
    /// Whether values are left out.
    pub keys_only: bool,
}

/// A scan under way.
#[derive(Debug)]
pub struct Scan {
    client: Client,
    /// What is left to be scanned.
    request: ScanRequest,
    timeout: Duration,
    answer: Option<OpenAnswer>,
    /// What of the answer was not shown yet; the last line may not be whole.
    lines: VecDeque<Vec<u8>>,
    open_line: Vec<u8>,
    attempts: u32,
}

impl Scan {
    /// A scan that has not begun; `timeout` bounds each page of it.
    pub fn new(client: Client, request: ScanRequest, timeout: Duration) -> Scan {
        Scan { client, request, timeout, answer: None, lines: VecDeque::new(), open_line: Vec::new(), attempts: 0 }
    }

    /// The next item; `None`: that was all.
    ///
    /// # Errors
    /// If the cluster cannot answer, also after some attempts.
    pub async fn next(&mut self) -> anyhow::Result<Option<Item>> {
        loop {
            if self.request.limit == Some(0) {
                return Ok(None);
            }
            match self.read().await {
                Ok(Some(item)) => {
                    self.attempts = 0;
                    self.go_on_behind(&item.key);
                    return Ok(Some(item));
                }
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.answer = None;
                    self.lines.clear();
                    self.open_line.clear();
                    self.attempts += 1;
                    if self.attempts >= ATTEMPTS_MAX || error.downcast_ref::<Refused>().is_some() {
                        return Err(error);
                    }
                    tokio::time::sleep(ATTEMPT_PAUSE).await;
                }
            }
        }
    }

    async fn read(&mut self) -> anyhow::Result<Option<Item>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Item::parse(line).context("the server's answer").map(Some);
            }
            let answer = match &mut self.answer {
                Some(answer) => answer,
                None => self.answer.insert(self.client.open(&self.ask()).await?),
            };
            let Some(piece) = answer.piece().await? else {
                if !self.open_line.is_empty() {
                    bail!("the answer ended in the middle of a line");
                }
                return Ok(None);
            };
            let mut rest = &piece[..];
            while let Some(end) = memchr::memchr(b'\n', rest) {
                self.open_line.extend_from_slice(&rest[..end]);
                self.lines.push_back(std::mem::take(&mut self.open_line));
                rest = &rest[end + 1..];
            }
            self.open_line.extend_from_slice(rest);
        }
    }

    fn ask(&self) -> Ask {
        let request = &self.request;
        // The server bounds a page to a minute.
        let mut path = format!("/v1/kv?timeout={}ms", self.timeout.as_millis().clamp(1, 60_000));
        for (name, value) in [("prefix", &request.prefix), ("start", &request.start), ("end", &request.end)] {
            if !value.is_empty() {
                path += &format!("&{name}={}", encode_query(value));
            }
        }
        if let Some(limit) = request.limit {
            path += &format!("&limit={}", limit.min(u64::from(u32::MAX)));
        }
        for (name, is_set) in [("reverse", request.reverse), ("keys_only", request.keys_only)] {
            if is_set {
                path += &format!("&{name}=true");
            }
        }
        Ask::new(Method::GET, path).header("accept", "application/x-ndjson")
    }

    fn go_on_behind(&mut self, key: &[u8]) {
        if let Some(limit) = &mut self.request.limit {
            *limit -= 1;
        }
        if self.request.reverse {
            self.request.end = key.to_vec();
        } else {
            self.request.start = [key, &[0]].concat();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Endpoint;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Gives the answers in turn, one a connection; tells which targets were asked.
    async fn serve(answers: &'static [&'static str]) -> (Endpoint, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = Endpoint { authority: listener.local_addr().expect("bound").to_string() };
        let served = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut bytes = [0; 4096];
                let count = stream.read(&mut bytes).await.expect("a request");
                let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
                asked.push(text.split(' ').nth(1).unwrap_or_default().to_owned());
                stream.write_all(answer.as_bytes()).await.expect("it is read");
            }
            asked
        });
        (endpoint, served)
    }

    #[test]
    fn a_stream_that_breaks_off_is_taken_up_behind_its_last_item() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            const BROKEN: &str =
                concat!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "1a\r\n{\"key\":\"a\",\"value\":\"1\"}\n{\"\r\n");
            const SORRY: &str = concat!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                "29\r\n{\"error\":{\"status\":503,\"detail\":\"later\"}}\r\n1\r\n\n\r\n"
            );
            const REST: &str = concat!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                "1b\r\n{\"key\":\"b\",\"value_b64\":\"/w=\r\n4\r\n=\"}\n\r\n0\r\n\r\n"
            );
            let (endpoint, served) = serve(&[BROKEN, SORRY, REST]).await;
            let timeout = Duration::from_secs(5);
            let request = ScanRequest { limit: Some(9), ..ScanRequest::default() };
            let mut scan = Scan::new(Client::new(vec![endpoint], timeout), request, timeout);
            let first = scan.next().await.expect("an item").expect("an item");
            assert_eq!((&first.key[..], first.value.as_deref()), (&b"a"[..], Some(&b"1"[..])));
            let second = scan.next().await.expect("an item").expect("an item");
            assert_eq!((&second.key[..], second.value.as_deref()), (&b"b"[..], Some(&b"\xff"[..])));
            assert_eq!(scan.next().await.expect("the end"), None);
            let asked = served.await.expect("served");
            assert_eq!(
                asked,
                ["/v1/kv?timeout=5000ms&limit=9", "/v1/kv?timeout=5000ms&start=a%00&limit=8", "/v1/kv?timeout=5000ms&start=a%00&limit=8"]
            );
        });
    }
}
