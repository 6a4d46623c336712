//! One connection: hyper over the socket, until the client, the sweep or the door ends it.

use super::backend::Backend;
use super::door::{Door, Registration, Verdict};
use super::handler::handle;
use super::stream::DoorStream;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use tokio::net::TcpStream;

/// Longest head of a request: room for the longest key, encoded, and far more header than anyone sends.
const HEAD_BYTES_MAX: usize = 80 << 10;
/// hyper's buffer holds a whole head. It does not grow beyond what one read gives, which [`DoorStream`] bounds: an idle
/// connection keeps its buffer.
const BUFFER_BYTES_MAX: usize = 96 << 10;

/// Serves a connection to its end.
pub(super) async fn serve_connection<B: Backend>(door: Rc<Door<B>>, socket: TcpStream, registration: Registration) {
    let state = registration.state.clone();
    let stream = DoorStream::new(socket, door.shared.clone(), state.clone());
    let service = service_fn(|request| {
        let answer = handle(door.clone(), state.clone(), request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        // A client that has sent all it wants to send may still want the answer (`nc`).
        .half_close(true)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .header_read_timeout(None)
        .serve_connection(stream, service);
    let mut connection = pin!(connection);
    let mut draining = false;
    poll_fn(|cx| {
        state.set_waker(cx.waker());
        if state.verdict.get() == Some(Verdict::Close) {
            return Poll::Ready(());
        }
        if door.shared.draining.get() && !draining {
            draining = true;
            connection.as_mut().graceful_shutdown();
        }
        // How a connection ended is the client's affair: it was answered or it went away.
        connection.as_mut().poll(cx).map(drop)
    })
    .await;
}
