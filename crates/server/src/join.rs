//! Asking a running cluster to take this node in, and which cluster it is.
//!
//! One HTTP request on a connection of its own, written and read here: it needs no more of HTTP than
//! the status and a body whose length is told.

use crate::http::join::{decode_answer, encode_request};
use bytes::Bytes;
use flotilla_node::control::ControlState;
use flotilla_node::request::JoinRequest;
use flotilla_types::{ClusterId, NodeId};
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// How long a cluster is asked before the start fails.
pub const JOIN_TIME_MAX: Duration = Duration::from_secs(60);
/// One question; longer than a member may take to find the control group's leader.
const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(12);
/// Between two rounds over all addresses.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long a node that shall replace another waits for the cluster to see that the other is gone: it may have been stopped
/// a moment ago.
const REPLACE_WAIT_MAX: Duration = Duration::from_secs(15);
/// How long a node that has data asks which cluster it is told to belong to.
const LOOK_TIME_MAX: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Why no cluster took the node in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A member refused for good.
    #[error("{target} refuses the join: {reason}")]
    Refused {
        /// The member.
        target: String,
        /// What it said.
        reason: String,
    },
    /// Nobody at all answered as a node does.
    #[error("{0}: give the HTTP address of a member (its --http-addr) to --join")]
    NoNode(String),
    /// Nobody could do it in time.
    #[error("no member took this node in within {} s; last: {last}", limit.as_secs())]
    OutOfTime {
        /// How long it was tried.
        limit: Duration,
        /// The last failure.
        last: String,
    },
}

/// An HTTP answer.
#[derive(Debug)]
struct HttpAnswer {
    status: u16,
    body: Vec<u8>,
}

/// Asks each of `targets` in turn, again and again, until one of them has made the node a member.
///
/// # Errors
/// If one refuses for good, none is a node, or `limit` passes.
pub async fn join(targets: &[String], request: &JoinRequest, limit: Duration) -> Result<ControlState, JoinError> {
    let body = encode_request(request);
    let (began, deadline) = (Instant::now(), Instant::now() + limit);
    loop {
        let mut strangers = Vec::new();
        let mut last = String::new();
        for target in targets {
            let time = EXCHANGE_TIME_MAX.min(deadline.saturating_duration_since(Instant::now()));
            let answer = match timeout(time, exchange(target, "POST", "/v1/cluster/nodes?timeout=10s", &body)).await {
                Err(_) => {
                    last = format!("{target} did not answer in time");
                    continue;
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    strangers.push(format!("{target} answers, but not as a Flotilla node ({error})"));
                    continue;
                }
                Ok(Err(error)) => {
                    last = format!("cannot reach {target}: {error}");
                    continue;
                }
                Ok(Ok(answer)) => answer,
            };
            if answer.status == 200 {
                let state = decode_answer(&answer.body).and_then(|state| ControlState::decode(Bytes::from(state)).ok());
                match state {
                    Some(state) => return Ok(state),
                    None => strangers.push(format!("{target} answers, but not as a Flotilla node of this format")),
                }
                continue;
            }
            match problem(&answer) {
                // It may be a matter of time: no leader yet, too much to do, shutting down.
                Some((_, reason)) if answer.status >= 500 || matches!(answer.status, 408 | 429) => last = format!("{target}: {reason}"),
                Some((code, reason)) if request.replace && code == "name_taken" && began.elapsed() < REPLACE_WAIT_MAX => {
                    last = format!("{target}: {reason}");
                }
                Some((_, reason)) => return Err(JoinError::Refused { target: target.clone(), reason }),
                None => strangers.push(format!("{target} answers with status {}, but not as a Flotilla node", answer.status)),
            }
        }
        if last.is_empty() {
            return Err(JoinError::NoNode(strangers.join("; ")));
        }
        tracing::debug!("not yet joined: {last}");
        if Instant::now() + RETRY_INTERVAL >= deadline {
            return Err(JoinError::OutOfTime { limit, last });
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Tells one node how another is reached. Whether that can be agreed on now is another matter.
///
/// # Errors
/// If it cannot be told.
pub async fn introduce(target: &str, request: &JoinRequest) -> io::Result<()> {
    let body = encode_request(request);
    let told = exchange(target, "POST", "/v1/cluster/nodes?timeout=500ms", &body);
    timeout(LOOK_TIME_MAX, told).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(|_| ())
}

/// What one of `targets` says of its cluster.
pub struct Look {
    /// Which of them.
    pub target: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// Where the asking node is reached, as far as that one knows.
    pub own_peer: Option<String>,
}

/// What the first of `targets` says that can do so soon, to a node with data.
pub async fn look(targets: &[String], node: NodeId) -> Option<Look> {
    let look = async {
        for target in targets {
            let asked = timeout(LOOK_TIME_MAX / 2, exchange(target, "GET", "/v1/cluster?timeout=1s", &[])).await;
            if let Ok(Ok(HttpAnswer { status: 200, body })) = asked
                && let Ok(serde_json::Value::Object(status)) = serde_json::from_slice(&body)
                && let Some(cluster) = status.get("cluster_id").and_then(|id| id.as_str()?.parse().ok())
            {
                let nodes = status.get("nodes").and_then(serde_json::Value::as_array).into_iter().flatten();
                let is_own = |entry: &&serde_json::Value| entry["id"].as_str() == Some(&node.to_string());
                let own_peer = nodes.filter(is_own).find_map(|entry| entry["peer"].as_str().map(str::to_owned));
                return Some(Look { target: target.clone(), cluster, own_peer });
            }
        }
        None
    };
    timeout(LOOK_TIME_MAX, look).await.ok().flatten()
}

/// A node's refusal: its code, and what it says; `None` if that was no node's.
fn problem(answer: &HttpAnswer) -> Option<(String, String)> {
    let fields: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&answer.body).ok()?;
    // Every problem of ours has a code.
    let code = fields.get("code")?.as_str()?.to_owned();
    let text =
        |name: &str| fields.get(name).and_then(|value| value.as_str()).map(|text| text.chars().filter(|c| !c.is_control()).collect());
    Some((code, text("detail").or_else(|| text("title"))?))
}

/// One request on a connection of its own.
async fn exchange(target: &str, method: &str, path: &str, body: &[u8]) -> io::Result<HttpAnswer> {
    let mut stream = TcpStream::connect(target).await?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\nAccept: application/json\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    parse(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no HTTP answer with a body of known length"))
}

fn parse(answer: &[u8]) -> Option<HttpAnswer> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let length: usize = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Some(0), |(_, value)| value.trim().parse().ok())?;
    let body = answer.get(end + 4..)?.get(..length)?.to_vec();
    Some(HttpAnswer { status, body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn request() -> JoinRequest {
        JoinRequest {
            id: NodeId(1),
            name: "n2".to_owned(),
            http: "127.0.0.1:1".to_owned(),
            peer: "127.0.0.1:2".to_owned(),
            resp: None,
            zone: "default".to_owned(),
            weight: 100,
            formats: (1, 1),
            replace: false,
        }
    }

    /// Joins by a server that always answers the same.
    async fn join_by(answer: &str) -> String {
        refusal(request(), answer).await
    }

    async fn refusal(request: JoinRequest, answer: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let target = listener.local_addr().expect("an address").to_string();
        let serve = async {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut asked = [0; 4096];
                let _ = stream.read(&mut asked).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        };
        let targets = [target.clone()];
        let joined = tokio::select! {
            joined = join(&targets, &request, Duration::from_millis(600)) => joined,
            () = serve => unreachable!("it serves for ever"),
        };
        joined.expect_err("it must fail").to_string().replace(&target, "TARGET")
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn each_way_to_fail_is_told_apart() {
        let no_node = join_by("HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nnginx").await;
        assert!(no_node.starts_with("TARGET answers with status 404, but not as a Flotilla node"), "{no_node}");
        let no_http = join_by("SSH-2.0-OpenSSH_9.9\r\n").await;
        assert!(no_http.starts_with("TARGET answers, but not as a Flotilla node"), "{no_http}");
        let taken = join_by(&answer("409 Conflict", r#"{"code":"name_taken","detail":"start with --replace"}"#)).await;
        assert_eq!(taken, "TARGET refuses the join: start with --replace");
        let replace = JoinRequest { replace: true, ..request() };
        let still_up = refusal(replace, &answer("409 Conflict", r#"{"code":"name_taken","detail":"it is up"}"#)).await;
        assert_eq!(still_up, "no member took this node in within 0 s; last: TARGET: it is up");
        let not_yet = join_by(&answer("503 Busy", r#"{"code":"no_quorum","detail":"later"}"#)).await;
        assert_eq!(not_yet, "no member took this node in within 0 s; last: TARGET: later");
    }
}
