//! Bodies: the answer's, one piece of bytes or a stream of them; and the reading of a request's, bounded in size, in time
//! and over all connections.

use super::door::{ConnectionState, DoorState, Phase, Reservation, Verdict};
use super::options::HttpOptions;
use bytes::{Bytes, BytesMut};
use flotilla_api::{ErrorCode, Problem};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Up to here a body is copied out of hyper's read buffer, so that a stored value does not keep a whole
/// buffer alive; beyond, the copy would cost more than the rest of the buffer.
const COPIED_BYTES_MAX: usize = 64 << 10;
/// No more is allocated for a body on its `Content-Length`'s word alone.
const TRUSTED_LENGTH_MAX: usize = 1 << 20;

/// An answer's body.
pub(super) enum AnswerBody {
    /// Bytes of known length.
    Whole(Bytes),
    /// Pieces, as they come.
    Stream(AnswerStream),
}

/// A body that is made while it is written, piece by piece as the client takes them.
pub(super) struct AnswerStream {
    next: Then,
    connection: Rc<ConnectionState>,
}

/// The making of a piece.
pub(super) type StepFuture = Pin<Box<dyn Future<Output = Step>>>;

/// A piece of a stream.
pub(super) struct Step {
    pub(super) bytes: Bytes,
    pub(super) then: Then,
}

/// What follows a piece.
pub(super) enum Then {
    /// Another.
    Go(StepFuture),
    /// The end.
    End,
    /// It breaks off: no end is written, so that nobody takes it for whole.
    Break,
}

/// Why a stream has no end: what went wrong was its last line.
#[derive(Debug, thiserror::Error)]
#[error("the answer could not be finished")]
pub(super) struct BrokenOff;

impl AnswerBody {
    pub(super) fn new(bytes: Bytes) -> AnswerBody {
        AnswerBody::Whole(bytes)
    }

    pub(super) fn stream(first: StepFuture, connection: Rc<ConnectionState>) -> AnswerBody {
        AnswerBody::Stream(AnswerStream { next: Then::Go(first), connection })
    }

    /// Its length, if that is known.
    pub(super) fn len(&self) -> Option<u64> {
        match self {
            AnswerBody::Whole(bytes) => Some(bytes.len() as u64),
            AnswerBody::Stream(_) => None,
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let stream = match &mut *self {
            AnswerBody::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                return Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))));
            }
            AnswerBody::Stream(stream) => stream,
        };
        loop {
            let step = match &mut stream.next {
                Then::Go(step) => std::task::ready!(step.as_mut().poll(cx)),
                Then::End => return Poll::Ready(None),
                // What is written before must reach the socket: hyper drops what it still holds.
                Then::Break => return stream.connection.poll_flushed().map(|()| Some(Err(BrokenOff))),
            };
            stream.next = step.then;
            if !step.bytes.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(step.bytes))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Whole(bytes) => bytes.is_empty(),
            AnswerBody::Stream(stream) => matches!(stream.next, Then::End),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.len().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Reads a request's whole body. On an error nothing of it may be used. The reservation is to be held
/// as long as the bytes are.
pub(super) async fn read_body(
    mut body: Incoming,
    bytes_max: usize,
    timeout: Duration,
    door: &Rc<DoorState>,
    connection: &ConnectionState,
    options: &HttpOptions,
) -> Result<(Bytes, Reservation), Problem> {
    let mut reservation = door.reserve();
    if body.is_end_stream() {
        return Ok((Bytes::new(), reservation));
    }
    let announced = body.size_hint().exact();
    if announced.is_some_and(|announced| announced > bytes_max as u64) {
        return Err(too_large(bytes_max));
    }
    // Before a byte of it is asked for. What is announced is not counted before it comes: announcing costs a client nothing.
    if announced.is_some_and(|announced| !reservation.would_fit(announced, options.body_bytes_max)) {
        return Err(too_many());
    }
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    connection.phase.set(Phase::Body { deadline_ms: door.now_ms.get().saturating_add(timeout_ms) });
    let mut whole = Bytes::new();
    let mut collected = BytesMut::new();
    loop {
        let frame = poll_fn(|cx| match connection.verdict.get() {
            Some(verdict) => Poll::Ready(Err(verdict)),
            None => Pin::new(&mut body).poll_frame(cx).map(Ok),
        });
        let frame = match frame.await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                return Err(Problem::new(ErrorCode::BodyCutShort, format!("the body ended before its end or is malformed: {error}")));
            }
            Err(verdict) => {
                connection.verdict.set(None);
                return Err(stalled(verdict));
            }
        };
        // Trailers say nothing that this server wants to know.
        let Ok(data) = frame.into_data() else { continue };
        let so_far = whole.len() + collected.len();
        if data.len() > bytes_max - so_far {
            return Err(too_large(bytes_max));
        }
        if !reservation.grow(data.len(), options.body_bytes_max) {
            return Err(too_many());
        }
        if so_far == 0 {
            whole = data;
        } else {
            if collected.capacity() - collected.len() < data.len() {
                // Twice what has come; where a length is announced, more at first, and no more than is to come.
                let announced = announced.and_then(|announced| usize::try_from(announced).ok());
                let room = announced.map_or(2 * so_far, |announced| announced.min((2 * so_far).max(TRUSTED_LENGTH_MAX)));
                let room = room.max(so_far + data.len());
                let mut larger = BytesMut::with_capacity(room);
                larger.extend_from_slice(&collected);
                collected = larger;
            }
            collected.extend_from_slice(&std::mem::take(&mut whole));
            collected.extend_from_slice(&data);
        }
        if body.is_end_stream() {
            break;
        }
    }
    let bytes = match (collected.is_empty(), whole.len()) {
        (false, _) => collected.freeze(),
        (true, ..=COPIED_BYTES_MAX) => Bytes::copy_from_slice(&whole),
        (true, _) => whole,
    };
    Ok((bytes, reservation))
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(ErrorCode::TooLarge, format!("the body is larger than {bytes_max} bytes"))
}

fn too_many() -> Problem {
    Problem::new(ErrorCode::Overloaded, "too many bytes of request bodies are under way on this node")
}

fn stalled(verdict: Verdict) -> Problem {
    match verdict {
        Verdict::OutOfTime => Problem::new(ErrorCode::Timeout, "the request's time ran out before its body had come"),
        Verdict::Close | Verdict::HeadStalled | Verdict::BodyStalled => {
            Problem::new(ErrorCode::RequestStalled, "no more of the request's body came for too long")
        }
    }
}
