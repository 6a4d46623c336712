//! The HTTP door: hyper on the node's own thread, one task a connection.
//!
//! A request is parsed, turned into one of the node's, and its reply into an answer; nothing is
//! decided here but what HTTP itself asks for. [`Backend`] is what stands behind. `route` and `handler`
//! hold the contract's table; what is not built yet is refused there with 501.
//!
//! Everything a stranger can make grow is bounded by [`HttpOptions`]: connections, heads, bodies one by
//! one and together, and the time that each may take. Not here: TLS and authentication (a later release), and
//! text forms, which are `flotilla_api`'s.

mod admin;
mod answer;
mod backend;
mod batch;
mod body;
mod connection;
mod dashboard;
mod door;
mod door_metrics;
mod handler;
pub mod join;
mod openapi;
mod options;
mod recent_stats;
mod route;
mod scan;
mod stream;

pub use backend::Backend;
pub use options::HttpOptions;

use crate::answer_bytes::AnswerBytes;
use crate::metrics::increment;
use answer::raw_problem;
use connection::serve_connection;
use door::{Door, DoorState};
use door_metrics::DoorMetrics;
use flotilla_api::{ErrorCode, Problem};
use recent_stats::RecentStats;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// What the kernel takes of an answer beyond what is on its way. Without this it takes megabytes for each client that does not
/// read, of memory that all connections of the machine share: when it is used up, those between nodes stand still, too.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 128 << 10;
/// How many connections past the bound are told so at once; those past this are just closed.
const REFUSALS_MAX: usize = 64;
/// How long a refused connection may take to read its refusal.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves HTTP on `listener` until `shutdown` resolves and what is under way has ended or had its time.
/// Runs inside a `LocalSet`.
pub async fn serve<B: Backend>(listener: TcpListener, backend: Rc<B>, options: HttpOptions, shutdown: impl Future<Output = ()>) {
    let shared = Rc::new(DoorState::default());
    let answers = AnswerBytes::new(options.answer_bytes_max);
    let door = Rc::new(Door { backend, options, metrics: DoorMetrics::default(), recent: RecentStats::default(), answers, shared });
    let began = Instant::now();
    let mut sweeps = tokio::time::interval(door.options.sweep_interval());
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connections = JoinSet::new();
    let mut refusals = JoinSet::new();
    let mut deadline = None;
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            _ = sweeps.tick() => {
                let elapsed = began.elapsed();
                let now_ms = elapsed.as_millis() as u64;
                door.shared.sweep(now_ms, &door.options);
                door.recent.sample(now_ms, &door.metrics);
                if deadline.is_some_and(|deadline| elapsed >= deadline) {
                    break;
                }
            }
            () = &mut shutdown, if deadline.is_none() => {
                deadline = Some(began.elapsed() + door.options.drain_timeout);
                door.shared.drain();
            }
            accepted = listener.accept(), if deadline.is_none() => match accepted {
                Ok((socket, _)) => {
                    tune(&socket);
                    if connections.len() < door.options.connections_max {
                        connections.spawn_local(serve_connection(door.clone(), socket, door.shared.register()));
                    } else {
                        increment(&door.metrics.connections_refused);
                        if refusals.len() < REFUSALS_MAX {
                            refusals.spawn_local(refuse(socket));
                        }
                    }
                }
                Err(error) => {
                    // Out of descriptors, mostly: it passes when connections end.
                    tracing::warn!(%error, "could not accept an HTTP connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            Some(_) = refusals.join_next() => {}
            else => break,
        }
        if deadline.is_some() && connections.is_empty() {
            break;
        }
    }
}

/// Sets what every connection has. None of it is worth refusing a client for.
fn tune(socket: &TcpStream) {
    // An answer is one write; waiting for more to send only delays it.
    let _ = socket.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
}

/// Tells a connection past the bound to come back later.
async fn refuse(socket: TcpStream) {
    let problem = Problem::new(ErrorCode::Overloaded, "this node has as many connections as it takes; try another or come back");
    let _ = socket.try_write(&raw_problem(&problem));
    let mut socket = socket;
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut socket).await;
    // Until the client has read it: closing with its request unread would throw the answer away.
    let read_on = async { while matches!(tokio::io::AsyncReadExt::read(&mut socket, &mut [0; 1024]).await, Ok(1..)) {} };
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, read_on).await;
}
