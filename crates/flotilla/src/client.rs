//! The HTTP client behind the commands: a list of endpoints, tried in turn.
//!
//! A request goes to the next endpoint only when it certainly did not happen: the connection was
//! refused, or the answer says so. A write whose outcome is unknown is never sent again: that is for
//! the user to decide, who knows whether doing it twice does harm. Each request has a connection of
//! its own, since a command makes one or two.

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request, Uri};
use std::io;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// How long a connection may take to be made.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// What a request may take beyond the time the server was given, so that its own answer arrives first.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

/// Where a node's HTTP API is: `http://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// HOST:PORT.
    pub authority: String,
}

/// Endpoints and the time a request may take.
#[derive(Clone, Debug)]
pub struct Client {
    endpoints: Vec<Endpoint>,
    timeout: Duration,
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// An answer whose body comes piece by piece. Its connection ends when it is dropped.
#[derive(Debug)]
pub struct OpenAnswer {
    body: Incoming,
    driver: JoinHandle<hyper::Result<()>>,
    /// How long a piece may take.
    timeout: Duration,
}

/// One request, before it is sent anywhere.
#[derive(Clone, Debug)]
pub struct Ask {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

/// How an attempt at one endpoint went wrong.
enum Attempt {
    /// Nothing was sent.
    NotSent(anyhow::Error),
    /// Something may have been.
    Unknown(anyhow::Error),
}

impl std::str::FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        let wrong = |why: &str| format!("{text:?} is no endpoint ({why}): give http://HOST:PORT");
        let uri: Uri = text.parse().map_err(|_| wrong("not a URL"))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("it must begin with http://"));
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(wrong("it must end after the port"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("no host"))?;
        let port = authority.port_u16().unwrap_or(80);
        Ok(Endpoint { authority: format!("{}:{port}", authority.host()) })
    }
}

impl Ask {
    /// A request without headers or body. `path` begins with `/` and is percent-encoded already.
    pub fn new(method: Method, path: impl Into<String>) -> Ask {
        Ask { method, path: path.into(), headers: Vec::new(), body: Bytes::new() }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Ask {
        self.headers.push((name, value.into()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Ask {
        self.body = body.into();
        self
    }

    fn is_write(&self) -> bool {
        self.method != Method::GET && self.method != Method::HEAD
    }
}

impl Answer {
    /// Whether the status is 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// What a failed request's problem document says, in one line; the status if it says nothing.
    pub fn problem(&self) -> String {
        let document: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let field = |name: &str| document.get(name).and_then(|value| value.as_str()).filter(|text| !text.is_empty());
        let words = field("detail").or(field("title")).map_or_else(|| "the server gave no reason".to_owned(), str::to_owned);
        let code = field("code").map_or_else(String::new, |code| format!(", {code}"));
        let outcome = match self.outcome() {
            Some("unknown") => "; whether it happened is unknown",
            Some("not-applied") => "; it did not happen",
            _ => "",
        };
        format!("{words} (status {}{code}){outcome}", self.status).replace('\n', " ")
    }

    /// The version that its `ETag` names.
    pub fn version(&self) -> Option<u64> {
        self.headers.get("etag")?.to_str().ok()?.trim_matches('"').parse().ok()
    }

    fn outcome(&self) -> Option<&str> {
        self.headers.get("flotilla-outcome")?.to_str().ok()
    }
}

impl Client {
    /// A client of `endpoints`, in that order, whose requests take at most about `timeout`.
    ///
    /// # Panics
    /// If there are no endpoints.
    pub fn new(endpoints: Vec<Endpoint>, timeout: Duration) -> Client {
        assert!(!endpoints.is_empty(), "a client needs an endpoint");
        Client { endpoints, timeout }
    }

    /// Sends `ask` to the first endpoint that takes it.
    ///
    /// # Errors
    /// If no endpoint answered; for a write it says whether it can have happened.
    pub async fn send(&self, ask: &Ask) -> anyhow::Result<Answer> {
        let mut last = None;
        for endpoint in &self.endpoints {
            match self.send_to(endpoint, ask).await {
                Ok(answer) if answer.status == 503 && (!ask.is_write() || answer.outcome() == Some("not-applied")) => {
                    last = Some(Ok(answer))
                }
                Ok(answer) => return Ok(answer),
                Err(Attempt::NotSent(error)) => last = Some(last.and_then(Result::ok).ok_or(error)),
                Err(Attempt::Unknown(error)) if ask.is_write() => {
                    return Err(error.context("the answer did not come: whether it happened is unknown, it is not sent again"));
                }
                Err(Attempt::Unknown(error)) => last = Some(last.and_then(Result::ok).ok_or(error)),
            }
        }
        last.unwrap_or_else(|| Err(anyhow!("no endpoint")))
    }

    /// Sends a GET and returns the body of its 200.
    ///
    /// # Errors
    /// If no endpoint answered, or the answer is not 2xx.
    pub async fn fetch(&self, path: &str) -> anyhow::Result<Bytes> {
        let answer = self.send(&Ask::new(Method::GET, path)).await?;
        if answer.is_success() { Ok(answer.body) } else { bail!("{}", answer.problem()) }
    }

    /// Sends a GET to the first endpoint that takes it, for an answer that may have no end; each piece
    /// of it may take the client's time.
    ///
    /// # Errors
    /// If no endpoint answered, or the answer is not 2xx.
    pub async fn open(&self, ask: &Ask) -> anyhow::Result<OpenAnswer> {
        let mut last = anyhow!("no endpoint");
        for endpoint in &self.endpoints {
            let opened = async {
                let (stream, request) = self.connect(endpoint, ask).await.map_err(Attempt::into_error)?;
                let opened = tokio::time::timeout(self.timeout + ANSWER_GRACE, open(stream, request, self.timeout + ANSWER_GRACE));
                opened.await.map_err(|_| anyhow!("http://{} did not answer in time", endpoint.authority))?
            };
            match opened.await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(answer)) if answer.status == 503 => last = anyhow!("{}", answer.problem()),
                Ok(Err(answer)) => bail!("{}", answer.problem()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect(&self, endpoint: &Endpoint, ask: &Ask) -> Result<(TcpStream, Request<Full<Bytes>>), Attempt> {
        let at = || format!("http://{}", endpoint.authority);
        let connect = tokio::time::timeout(CONNECT_TIME_MAX.min(self.timeout), TcpStream::connect(&endpoint.authority));
        let stream = match connect.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(Attempt::NotSent(anyhow::Error::new(error).context(format!("cannot connect to {}", at())))),
            Err(_) => return Err(Attempt::NotSent(anyhow!("cannot connect to {}: no answer in {CONNECT_TIME_MAX:?}", at()))),
        };
        let mut request = Request::builder().method(&ask.method).uri(&ask.path).header("host", &endpoint.authority);
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(ask.body.clone())).map_err(|error| Attempt::NotSent(error.into()))?;
        Ok((stream, request))
    }

    async fn send_to(&self, endpoint: &Endpoint, ask: &Ask) -> Result<Answer, Attempt> {
        let at = || format!("http://{}", endpoint.authority);
        let (stream, request) = self.connect(endpoint, ask).await?;
        match tokio::time::timeout(self.timeout + ANSWER_GRACE, exchange(stream, request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Attempt::Unknown(error.context(format!("{} broke off", at())))),
            Err(_) => Err(Attempt::Unknown(anyhow!("{} did not answer in {:?}", at(), self.timeout + ANSWER_GRACE))),
        }
    }
}

async fn exchange(stream: TcpStream, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
    let (mut sender, connection) = http1::handshake(Socket(stream)).await.context("HTTP handshake")?;
    let driver = tokio::spawn(connection);
    let answer = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        anyhow::Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.collect().await?.to_bytes() })
    };
    let answer = answer.await;
    driver.abort();
    answer
}

/// As [`exchange`], as far as the head of a success; any other answer whole.
async fn open(stream: TcpStream, request: Request<Full<Bytes>>, timeout: Duration) -> anyhow::Result<Result<OpenAnswer, Answer>> {
    let (mut sender, connection) = http1::handshake(Socket(stream)).await.context("HTTP handshake")?;
    let driver = tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await?.into_parts();
    let opened = OpenAnswer { body, driver, timeout };
    if head.status.is_success() {
        return Ok(Ok(opened));
    }
    let body = opened.whole().await?;
    Ok(Err(Answer { status: head.status.as_u16(), headers: head.headers, body }))
}

impl OpenAnswer {
    /// The next piece; `None`: the answer is whole.
    ///
    /// # Errors
    /// If it broke off, or nothing came for too long.
    pub async fn piece(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            let frame = tokio::time::timeout(self.timeout, self.body.frame()).await;
            match frame.map_err(|_| anyhow!("nothing of the answer came for {:?}", self.timeout))? {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(bytes) = frame.context("the answer broke off")?.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    async fn whole(mut self) -> anyhow::Result<Bytes> {
        let mut whole = Vec::new();
        while let Some(piece) = self.piece().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.into())
    }
}

impl Drop for OpenAnswer {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Attempt {
    fn into_error(self) -> anyhow::Error {
        match self {
            Attempt::NotSent(error) | Attempt::Unknown(error) => error,
        }
    }
}

/// A tokio socket in hyper's traits; hyper-util would bring it, and a good deal more.
struct Socket(TcpStream);

impl hyper::rt::Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, mut cursor: hyper::rt::ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        // Through a buffer of our own: filling hyper's uninitialised one directly would take unsafe
        // code, and a command reads one answer.
        let mut bytes = [0u8; 16 << 10];
        let wanted = bytes.len().min(cursor.remaining());
        let mut buffer = ReadBuf::new(&mut bytes[..wanted]);
        std::task::ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer))?;
        cursor.put_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A server that reads a request and gives `answer`, or hangs up if that is empty; counts requests.
    async fn serve(answer: &'static str) -> (Endpoint, Rc<Cell<u32>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = Endpoint { authority: listener.local_addr().expect("bound").to_string() };
        let asked = Rc::new(Cell::new(0));
        let count = asked.clone();
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut bytes = [0; 4096];
                let _ = stream.read(&mut bytes).await;
                count.set(count.get() + 1);
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (endpoint, asked)
    }

    /// An address nobody listens on: bound once, then let go.
    async fn nobody() -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Endpoint { authority: listener.local_addr().expect("bound").to_string() }
    }

    fn run<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, future)
    }

    const FINE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    const REFUSED: &str = "HTTP/1.1 503 x\r\nflotilla-outcome: not-applied\r\ncontent-length: 0\r\n\r\n";
    const UNSURE: &str = "HTTP/1.1 503 x\r\nflotilla-outcome: unknown\r\ncontent-length: 0\r\n\r\n";

    fn put() -> Ask {
        Ask::new(Method::PUT, "/v1/kv/a").body("1")
    }

    #[test]
    fn a_write_goes_on_to_the_next_endpoint_only_if_it_did_not_happen() {
        run(async {
            let (good, asked) = serve(FINE).await;
            let (refusing, _) = serve(REFUSED).await;
            let client = Client::new(vec![nobody().await, refusing, good.clone()], Duration::from_secs(5));
            assert_eq!(client.send(&put()).await.expect("the third takes it").status, 200);
            assert_eq!(asked.get(), 1);

            let (unsure, _) = serve(UNSURE).await;
            let client = Client::new(vec![unsure, good.clone()], Duration::from_secs(5));
            assert_eq!(client.send(&put()).await.expect("an answer").status, 503);
            let (hanging_up, _) = serve("").await;
            let client = Client::new(vec![hanging_up, good], Duration::from_secs(5));
            let error = client.send(&put()).await.expect_err("nobody knows");
            assert!(error.to_string().contains("unknown"), "{error}");
            assert_eq!(asked.get(), 1, "a write of unknown outcome was sent again");
        });
    }

    #[test]
    fn a_read_goes_on_after_anything() {
        run(async {
            let (good, _) = serve(FINE).await;
            let (hanging_up, _) = serve("").await;
            let client = Client::new(vec![hanging_up, good], Duration::from_secs(5));
            assert_eq!(client.fetch("/v1/kv/a").await.expect("the second answers"), "ok");
        });
    }

    #[test]
    fn endpoints_are_plain_urls() {
        let authority = |text: &str| text.parse::<Endpoint>().map(|endpoint| endpoint.authority);
        assert_eq!(authority("http://localhost:7070"), Ok("localhost:7070".into()));
        assert_eq!(authority("http://10.0.0.1:7070/"), Ok("10.0.0.1:7070".into()));
        for wrong in ["localhost:7070", "https://a:1", "http://a:1/b", ""] {
            assert!(authority(wrong).is_err(), "{wrong}");
        }
    }
}
