//! Whether a joining node is reached where it says it is. A wrong address would otherwise be found out only when the new
//! member holds copies that nobody can send anything to.
//!
//! The member that is asked to take it in dials it; the joiner, which has no cluster yet, answers that it is joining.
//!
//! And whether a node runs already when a second one starts on a copy of its data-dir: both would vote with one id.

use super::handshake::{self, Answer, Hello};
use super::{Links, socket};
use flotilla_node::message::Channel;
use flotilla_types::{ClusterId, NodeId};
use std::io;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// How long a joiner waits for the hello of whoever has connected; others wait meanwhile.
const GREETING_TIME_MAX: Duration = Duration::from_millis(500);
/// How long a node that starts asks whether it runs already.
const RUNS_TIME_MAX: Duration = Duration::from_secs(1);
/// How long a member tries to reach a joiner.
const REACH_TIME_MAX: Duration = Duration::from_secs(3);

/// Answers whoever dials a node that is joining, for as long as it is polled.
pub async fn answer_while_joining(listener: &TcpListener, node: NodeId) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: it passes, and a busy loop would not help.
            tokio::time::sleep(GREETING_TIME_MAX).await;
            continue;
        };
        let greeting = async {
            let hello = handshake::accept(&mut stream).await?;
            let answer = match hello.check(hello.cluster, node) {
                Ok(_) => Answer::Joining,
                Err(reason) => Answer::Refused { reason },
            };
            handshake::answer(&mut stream, &answer).await
        };
        if let Ok(Err(error)) = timeout(GREETING_TIME_MAX, greeting).await {
            tracing::debug!("a connection while joining: {error}");
        }
    }
}

/// Whether a node of this id runs at `address`.
pub async fn runs_at(address: &str, cluster: ClusterId, node: NodeId) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        socket::tune(&stream).ok()?;
        let hello = Hello {
            formats: handshake::LINK_FORMATS,
            cluster,
            node,
            to: node,
            incarnation: 0,
            number: 0,
            channel: Channel::Main,
            address: None,
        };
        handshake::dial(&mut stream, &hello).await.ok()
    };
    matches!(timeout(RUNS_TIME_MAX, ask).await, Ok(Some(Answer::Yourself)))
}

impl Links {
    /// Tries to reach a node that wants to join at the addresses that it says it has.
    ///
    /// # Errors
    /// If one of them does not lead to it: which, and what was found there.
    pub async fn reach(&self, node: NodeId, peer: &str, http: &str) -> Result<(), String> {
        let late = || "no answer".to_owned();
        let found = timeout(REACH_TIME_MAX, self.reach_peer(node, peer)).await.unwrap_or_else(|_| Err(late()));
        found.map_err(|found| format!("{peer} (--advertise-peer, or --peer-addr): {found}"))?;
        // Its door is not open yet, but the system takes connections for it.
        let connected = timeout(REACH_TIME_MAX, TcpStream::connect(http)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map(|_| ()).map_err(|error| format!("{http} (--advertise-http, or --http-addr): {error}"))
    }

    async fn reach_peer(&self, node: NodeId, address: &str) -> Result<(), String> {
        let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        socket::tune(&stream).map_err(|error| error.to_string())?;
        let options = &self.0.options;
        let hello = Hello {
            formats: handshake::LINK_FORMATS,
            cluster: options.cluster,
            node: options.node,
            to: node,
            incarnation: self.0.incarnation,
            // Older than any: should a member be there after all, its connections stay.
            number: 0,
            channel: Channel::Main,
            address: None,
        };
        match handshake::dial(&mut stream, &hello).await {
            Ok(Answer::Joining) => Ok(()),
            // It became a member in the meantime: the same join was asked of two members.
            Ok(Answer::Accepted { .. }) => Ok(()),
            Ok(Answer::Refused { reason }) => Err(reason),
            Ok(Answer::Removed | Answer::Yourself) => Err("another cluster's node".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}
