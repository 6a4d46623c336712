//! One keep-alive HTTP/1.1 connection, as cheap as it gets: the caller gives the request's bytes as
//! they go on the wire, and the answer is read into one buffer that is used again. No pipelining, no
//! redirects, no compression, no TLS: the load generator shares its cores with the servers it
//! measures, so each cycle here is one the measurement lacks.

use memchr::memmem;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest answer read, in bytes: the largest value there can be (64 MiB, base64 in JSON) and its head.
const ANSWER_BYTES_MAX: usize = 96 << 20;

/// An open connection and the buffer its answers are read into.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    end: usize,
}

/// What was answered; the body's bytes are with [`Connection::body`] until the next request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Whether the answer bears `Flotilla-Outcome: not-applied`.
    pub not_applied: bool,
    /// Whether the server will take another request on this connection.
    pub keep_alive: bool,
    body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Body {
    Plain(Range<usize>),
    /// Decoded from chunks; the server did not state a length.
    Chunks(Vec<u8>),
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn open(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: vec![0; 4096], end: 0 })
    }

    /// Sends `request` and reads its answer. After an error the connection is of no more use, and
    /// whether the request was carried out is unknown.
    ///
    /// # Errors
    /// Those of the socket; `UnexpectedEof` if the server hung up, `InvalidData` if it does not speak HTTP/1.1.
    pub async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(request).await?;
        self.end = 0;
        loop {
            if self.end == self.buffer.len() {
                if self.end >= ANSWER_BYTES_MAX {
                    return Err(invalid("the answer is too long"));
                }
                self.buffer.resize(self.end * 2, 0);
            }
            match self.stream.read(&mut self.buffer[self.end..]).await? {
                0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server hung up before it answered")),
                count => self.end += count,
            }
            if let Some(answer) = parse_answer(&self.buffer[..self.end])? {
                return Ok(answer);
            }
        }
    }

    /// A header of the last answer; looked for only when it is asked for. `name` is in lower case and ends with a colon.
    pub fn header(&self, name: &[u8]) -> Option<&[u8]> {
        let head = &self.buffer[..memmem::find(&self.buffer[..self.end], b"\r\n\r\n")?];
        head.split(|&byte| byte == b'\n').skip(1).find_map(|line| header(line.trim_ascii_end(), name))
    }

    /// The bytes of the body of `answer`, which must be the last one given.
    pub fn body<'a>(&'a self, answer: &'a Answer) -> &'a [u8] {
        match &answer.body {
            Body::Plain(range) => &self.buffer[range.clone()],
            Body::Chunks(bytes) => bytes,
        }
    }
}

/// The answer that `bytes` hold; `None` if more of it has to come.
fn parse_answer(bytes: &[u8]) -> io::Result<Option<Answer>> {
    let Some(head_end) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let (head, body_start) = (&bytes[..head_end], head_end + 4);
    let digits = head.get(9..12).filter(|_| head.starts_with(b"HTTP/1.1 ")).ok_or_else(|| invalid("the answer is not HTTP/1.1"))?;
    let status: u16 = decimal(digits).ok_or_else(|| invalid("the answer has no status"))? as u16;
    let (mut length, mut chunked, mut not_applied, mut keep_alive) = (None, false, false, true);
    for line in head.split(|&byte| byte == b'\n').skip(1) {
        let line = line.trim_ascii_end();
        if let Some(value) = header(line, b"content-length:") {
            length = Some(decimal(value).ok_or_else(|| invalid("the answer's length is no number"))?);
        } else if let Some(value) = header(line, b"transfer-encoding:") {
            chunked = value.eq_ignore_ascii_case(b"chunked");
        } else if let Some(value) = header(line, b"flotilla-outcome:") {
            not_applied = value == b"not-applied";
        } else if let Some(value) = header(line, b"connection:") {
            keep_alive = !value.eq_ignore_ascii_case(b"close");
        }
    }
    let body = if chunked {
        match parse_chunks(&bytes[body_start..])? {
            Some(decoded) => Body::Chunks(decoded),
            None => return Ok(None),
        }
    } else {
        let bodiless = status == 204 || status == 304;
        let length = if bodiless { 0 } else { length.ok_or_else(|| invalid("the answer states no length"))? };
        match body_start.checked_add(length) {
            Some(body_end) if body_end <= bytes.len() => Body::Plain(body_start..body_end),
            _ => return Ok(None),
        }
    };
    Ok(Some(Answer { status, not_applied, keep_alive, body }))
}

fn parse_chunks(mut bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut decoded = Vec::new();
    loop {
        let Some(line_end) = memmem::find(bytes, b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&bytes[..line_end]).ok().and_then(|line| line.split(';').next()).map(str::trim);
        let size = size.and_then(|digits| usize::from_str_radix(digits, 16).ok()).filter(|&size| size <= ANSWER_BYTES_MAX);
        let size = size.ok_or_else(|| invalid("a chunk's size is no number"))?;
        let rest = &bytes[line_end + 2..];
        if rest.len() < size + 2 {
            return Ok(None);
        }
        if size == 0 {
            return Ok(Some(decoded));
        }
        decoded.extend_from_slice(&rest[..size]);
        bytes = &rest[size + 2..];
    }
}

fn header<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

fn decimal(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every prefix of an answer must be "more to come", and the whole must be read alike.
    fn parse_in_pieces(text: &str) -> (u16, bool, String) {
        for end in 0..text.len() {
            assert_eq!(parse_answer(&text.as_bytes()[..end]).expect("a prefix is no error"), None, "at {end}");
        }
        let answer = parse_answer(text.as_bytes()).expect("a good answer").expect("a whole answer");
        let body = match &answer.body {
            Body::Plain(range) => text.as_bytes()[range.clone()].to_vec(),
            Body::Chunks(bytes) => bytes.clone(),
        };
        (answer.status, answer.not_applied, String::from_utf8(body).expect("text"))
    }

    #[test]
    fn an_answer_is_whole_only_with_its_last_byte() {
        assert_eq!(parse_in_pieces("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), (200, false, "hello".into()));
        assert_eq!(parse_in_pieces("HTTP/1.1 503 x\r\ncontent-length:0\r\nFlotilla-Outcome: not-applied\r\n\r\n"), (503, true, "".into()));
        assert_eq!(parse_in_pieces("HTTP/1.1 504 x\r\ncontent-length:0\r\nFlotilla-Outcome: unknown\r\n\r\n"), (504, false, "".into()));
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n";
        assert_eq!(parse_in_pieces(chunks), (200, false, "hello!".into()));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for text in ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 2x0 OK\r\ncontent-length: 1\r\n\r\n."] {
            assert!(parse_answer(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
