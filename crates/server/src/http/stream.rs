//! The socket as hyper sees it. It notes progress for the sweep, and it makes hyper's own bare error
//! answers (a head that is no HTTP, or too large) into ours: every error to a write must say its outcome.
//!
//! To tell hyper's answers from the handler's it follows the framing of what is written: a head that
//! begins when no answer of the handler is outstanding is hyper's. A stored value that looks like a
//! head is never mistaken for one, because it is inside an answer of known length.
//!
//! One case stays as hyper wrote it: a malformed request pipelined behind answers without bodies that the
//! socket has not taken yet. It is safe, only barer.

#![expect(unsafe_code, reason = "hyper hands out its read buffer uninitialized; filling it without a copy needs its unsafe face")]

use super::answer::raw_problem;
use super::door::{ConnectionState, DoorState, Phase, Verdict};
use flotilla_api::{ErrorCode, Problem};
use hyper::rt::{Read, ReadBufCursor, Write};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How long a closing connection reads on, so that the client can read its answer: closing with unread
/// bytes makes TCP reset the connection, which throws away what was sent.
const LINGER_MS: u64 = 2_000;

/// The most that is read at once: hyper's buffer grows to about this, and a connection keeps it for its life. Larger ones
/// would spare few calls.
const READ_BYTES_MAX: usize = 32 << 10;

/// A connection's socket.
pub(super) struct DoorStream {
    socket: TcpStream,
    door: Rc<DoorState>,
    state: Rc<ConnectionState>,
    framing: Framing,
    /// Our text in place of hyper's, and how much of it is written.
    replacement: Option<(Vec<u8>, usize)>,
    write_is_shut: bool,
}

/// Where in the sequence of answers the next byte to write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// Before a head.
    Start,
    /// Inside a head.
    Head {
        /// How many bytes of the empty line that ends it were just seen.
        matched: u8,
        /// The tenth byte of a head is the first digit of its status: how many bytes are seen, up to ten.
        seen: u8,
        /// It is `1`: no answer, only `100 Continue`.
        interim: bool,
    },
    /// Inside a body with so many bytes to come; for a stream, after which the connection ends, as many as can be.
    Body(u64),
}

impl DoorStream {
    pub(super) fn new(socket: TcpStream, door: Rc<DoorState>, state: Rc<ConnectionState>) -> DoorStream {
        DoorStream { socket, door, state, framing: Framing::Start, replacement: None, write_is_shut: false }
    }

    fn note_progress(&self) {
        self.state.progress_ms.set(self.door.now_ms.get());
    }

    fn note_written(&mut self, bytes: &[u8]) {
        self.framing = self.framing.after(bytes, || self.state.answers.borrow_mut().pop_front());
    }

    fn is_between_answers(&self) -> bool {
        self.framing == Framing::Start && self.state.answers.borrow().is_empty()
    }

    /// Our text for hyper's own answer, if that is what `head` begins.
    fn replacement_for(&self, head: &[u8]) -> Option<Vec<u8>> {
        if !self.is_between_answers() {
            return None;
        }
        let problem = match head.strip_prefix(b"HTTP/1.1 ")?.get(..3)? {
            b"400" => Problem::new(ErrorCode::MalformedRequest, "the request's head is no HTTP/1.1 that this server understands"),
            b"414" => Problem::new(ErrorCode::KeyTooLong, "the request's path is longer than that of any key"),
            b"431" => Problem::new(ErrorCode::HeadersTooLarge, "the request's head has too many bytes or too many fields"),
            _ => return None,
        };
        Some(raw_problem(&problem))
    }

    fn poll_replacement(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((text, written)) = &mut self.replacement {
            if *written == text.len() {
                break;
            }
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, &text[*written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *written += count;
        }
        Poll::Ready(Ok(()))
    }
}

impl Read for DoorStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut cursor: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.state.verdict.get() == Some(Verdict::HeadStalled) && self.state.phase.get() == Phase::Head {
            if self.is_between_answers() {
                let problem = Problem::new(ErrorCode::RequestStalled, "the request's head did not come in time");
                // Whether a client this slow still listens is its own affair: nothing is waited for.
                let _ = self.socket.try_write(&raw_problem(&problem));
            }
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        // SAFETY: `ReadBuf` only ever writes initialized bytes into the slice, and never uninitializes it.
        let space = unsafe { cursor.as_mut() };
        let space_bytes = space.len().min(READ_BYTES_MAX);
        let mut buffer = ReadBuf::uninit(&mut space[..space_bytes]);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer))?;
        let count = buffer.filled().len();
        // SAFETY: the first `count` bytes are those that `ReadBuf` says are filled.
        unsafe { cursor.advance(count) };
        if count > 0 {
            self.note_progress();
            if self.state.phase.get() == Phase::Head && self.state.head_began_ms.get().is_none() {
                self.state.head_began_ms.set(Some(self.door.now_ms.get()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for DoorStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.replacement.is_none()
            && let Some(text) = self.replacement_for(bytes)
        {
            self.state.unread.set(true);
            self.replacement = Some((text, 0));
        }
        if self.replacement.is_some() {
            ready!(self.poll_replacement(cx))?;
            return Poll::Ready(Ok(bytes.len()));
        }
        let count = ready!(Pin::new(&mut self.socket).poll_write(cx, bytes))?;
        self.note_progress();
        self.note_written(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        // A head alone, as most writes are that have no body, takes the cheaper call.
        if let [bytes] = slices {
            return self.poll_write(cx, bytes);
        }
        if self.replacement.is_some() || slices.first().is_some_and(|head| self.replacement_for(head).is_some()) {
            let Some(bytes) = slices.iter().find(|slice| !slice.is_empty()) else { return Poll::Ready(Ok(0)) };
            return self.poll_write(cx, bytes);
        }
        let count = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, slices))?;
        self.note_progress();
        let mut left = count;
        for slice in slices {
            let taken = left.min(slice.len());
            self.note_written(&slice[..taken]);
            left -= taken;
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_replacement(cx))?;
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        self.state.note_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_replacement(cx))?;
        if !self.write_is_shut {
            ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
            self.write_is_shut = true;
            self.state.phase.set(Phase::Linger { deadline_ms: self.door.now_ms.get() + LINGER_MS });
        }
        if self.state.unread.get() {
            let mut scratch = [0; 16 << 10];
            // Bounded in time by the sweep, which closes the connection; in work by yielding after each turn.
            for _ in 0..16 {
                let mut buffer = ReadBuf::new(&mut scratch);
                match ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer)) {
                    Ok(()) if !buffer.filled().is_empty() => {}
                    _ => return Poll::Ready(Ok(())),
                }
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl Framing {
    /// Where the next byte is once `bytes` are written; `next_body` gives the length of the next answer's body.
    fn after(self, mut bytes: &[u8], mut next_body: impl FnMut() -> Option<u64>) -> Framing {
        let mut framing = self;
        while let Some((&byte, rest)) = bytes.split_first() {
            framing = match framing {
                // Nearly always a head is written in one piece; looking for its end at once is far
                // cheaper than byte by byte.
                Framing::Start => match bytes.windows(4).position(|end| end == b"\r\n\r\n") {
                    Some(end) => {
                        let interim = bytes.get(9) == Some(&b'1');
                        bytes = &bytes[end + 4..];
                        if interim { Framing::Start } else { Framing::body(next_body().unwrap_or(u64::MAX)) }
                    }
                    None => Framing::Head { matched: 0, seen: 0, interim: false },
                },
                Framing::Head { matched, seen, interim } => {
                    bytes = rest;
                    let seen = (seen + 1).min(11);
                    let interim = if seen == 10 { byte == b'1' } else { interim };
                    match (byte, matched) {
                        (b'\r', 2) => Framing::Head { matched: 3, seen, interim },
                        (b'\r', _) => Framing::Head { matched: 1, seen, interim },
                        (b'\n', 1) => Framing::Head { matched: 2, seen, interim },
                        (b'\n', 3) if interim => Framing::Start,
                        // An answer that is not the handler's is hyper's last word.
                        (b'\n', 3) => Framing::body(next_body().unwrap_or(u64::MAX)),
                        _ => Framing::Head { matched: 0, seen, interim },
                    }
                }
                Framing::Body(left) => {
                    let taken = left.min(bytes.len() as u64);
                    bytes = &bytes[taken as usize..];
                    Framing::body(left - taken)
                }
            };
        }
        framing
    }

    fn body(left: u64) -> Framing {
        if left == 0 { Framing::Start } else { Framing::Body(left) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_is_followed_however_the_bytes_are_cut() {
        let text = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\na: b\r\n\r\nHTTP/1.1 4\r\n\r\nHTTP/1.1 304 Not Modified\r\n\r\n";
        for cut in 1..text.len() {
            let mut lengths = [14, 0].into_iter();
            let mut framing = Framing::Start;
            for piece in text.chunks(cut) {
                framing = framing.after(piece, || lengths.next());
            }
            assert_eq!((framing, lengths.next()), (Framing::Start, None), "cut into pieces of {cut}");
        }
        let inside = Framing::Start.after(b"HTTP/1.1 200 OK\r\n\r\nHTTP", || Some(14));
        assert_eq!(inside, Framing::Body(10));
    }
}
