//! A connection for the pressure run: it keeps of an answer what its head says, and throws the body away as it comes, so that
//! thousands of connections cost the client little.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpSocket, TcpStream};

/// What an answer's head says.
#[derive(Clone, Debug)]
pub(crate) struct AnswerHead {
    pub(crate) status: u16,
    pub(crate) has_retry_after: bool,
    pub(crate) has_outcome: bool,
    pub(crate) not_applied: bool,
    /// A problem's code.
    pub(crate) code: String,
    /// The whole head.
    pub(crate) text: String,
    length: usize,
    closes: bool,
}

/// What the kernel keeps for one connection of a client that writes or reads less than it could. All clients and nodes share
/// this machine's memory for sockets; on machines of their own, clients would not use up the nodes'.
const SOCKET_BYTES: u32 = 64 << 10;

/// A connection with little memory of its own.
pub(crate) async fn connect_small(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_send_buffer_size(SOCKET_BYTES)?;
    socket.set_recv_buffer_size(SOCKET_BYTES)?;
    socket.connect(address).await
}

/// The kernel's memory for TCP on this machine, in MiB; 0 where it does not say.
pub(crate) fn tcp_memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let pages = text.lines().find(|line| line.starts_with("TCP:")).and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4 / 1024
}

/// A connection, made when it is needed.
pub(crate) struct Raw<S = TcpStream> {
    address: Option<SocketAddr>,
    stream: Option<S>,
    /// Read and not yet used.
    rest: Vec<u8>,
}

impl Raw<TcpStream> {
    pub(crate) fn new(address: SocketAddr) -> Raw<TcpStream> {
        Raw { address: Some(address), stream: None, rest: Vec::new() }
    }

    /// Sends a request and reads its answer.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<AnswerHead> {
        if self.stream.is_none() {
            let address = self.address.ok_or(io::ErrorKind::NotConnected)?;
            self.rest.clear();
            self.stream = Some(TcpStream::connect(address).await?);
        }
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        // A refusal may come before all is written.
        let written = stream.write_all(request).await;
        let answer = match self.answer().await {
            Ok(answer) => answer,
            Err(error) => {
                self.stream = None;
                return Err(written.err().unwrap_or(error));
            }
        };
        if answer.closes || written.is_err() {
            self.stream = None;
        }
        Ok(answer)
    }
}

impl Raw<OwnedReadHalf> {
    pub(crate) fn of(stream: OwnedReadHalf) -> Raw<OwnedReadHalf> {
        Raw { address: None, stream: Some(stream), rest: Vec::new() }
    }
}

impl<S: AsyncRead + Unpin> Raw<S> {
    /// Reads the next answer to its end.
    pub(crate) async fn answer(&mut self) -> io::Result<AnswerHead> {
        let head_end = loop {
            if let Some(end) = self.rest.windows(4).position(|end| end == b"\r\n\r\n") {
                break end + 4;
            }
            self.read_more().await?;
        };
        let head: Vec<u8> = self.rest.drain(..head_end).collect();
        let mut answer =
            parse(&head).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, String::from_utf8_lossy(&head).into_owned()))?;
        let mut left = answer.length;
        loop {
            let taken = left.min(self.rest.len());
            if answer.status >= 400 && taken == answer.length {
                answer.code = code_of(&self.rest[..taken]);
            }
            self.rest.drain(..taken);
            left -= taken;
            if left == 0 {
                return Ok(answer);
            }
            self.read_more().await?;
        }
    }

    async fn read_more(&mut self) -> io::Result<()> {
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let mut piece = [0; 8 << 10];
        let count = Pin::new(stream).read(&mut piece).await?;
        self.rest.extend_from_slice(&piece[..count]);
        if count == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

fn parse(head: &[u8]) -> Option<AnswerHead> {
    let text = std::str::from_utf8(head).ok()?.to_owned();
    let status = text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let field = |name: &str| {
        text.lines()
            .skip(1)
            .find_map(|line| line.split_once(':').filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()))
    };
    let length = field("content-length").map_or(Some(0), |length| length.parse().ok())?;
    let outcome = field("flotilla-outcome");
    Some(AnswerHead {
        status,
        has_retry_after: field("retry-after").is_some(),
        has_outcome: outcome.is_some(),
        not_applied: outcome == Some("not-applied"),
        code: String::new(),
        length,
        closes: field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
        text: text.clone(),
    })
}

/// A problem document's code.
fn code_of(body: &[u8]) -> String {
    let problem: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    // Numbers aside, a detail is one of few.
    let text = |problem: &serde_json::Value, name: &str| problem[name].as_str().map(|text| text.replace(|c: char| c.is_ascii_digit(), ""));
    problem.and_then(|problem| Some(format!("{} ({})", text(&problem, "code")?, text(&problem, "detail")?))).unwrap_or_default()
}
