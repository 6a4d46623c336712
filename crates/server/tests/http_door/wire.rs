//! What HTTP/1.1 itself asks of a door: who is asked for a body, where a request ends, which forms it may have, and
//! who is not waited for.

use super::*;

/// Sends `text` and gives the statuses of all answers up to the end of the connection.
async fn statuses(door: &Door, text: &str) -> Vec<u16> {
    let mut client = door.client().await;
    client.send(text.as_bytes()).await;
    let mut statuses = Vec::new();
    while let Some(answer) = client.answer(!text.starts_with("HEAD")).await {
        statuses.push(answer.status);
    }
    statuses
}

#[test]
fn a_body_that_the_head_already_forbids_is_not_asked_for() {
    let options = HttpOptions { value_bytes_max: 100, body_bytes_max: 50, ..HttpOptions::default() };
    with_door(options, |door| async move {
        let key_long = format!("/v1/kv/{}", "k".repeat(4097));
        for (target, length, status) in [
            ("/v1/kv/a", 101, 413),
            ("/v1/kv/a", 51, 503),
            ("/v1/kv/fail-disk-full", 9, 507),
            (&key_long, 9, 414),
            ("/v1/kv/a?ttl=0s", 9, 400),
            ("/v1/kv/", 9, 400),
        ] {
            let mut client = door.client().await;
            let head = format!("PUT {target} HTTP/1.1\r\nHost: door\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n");
            let answer = client.ask(&head).await;
            assert_eq!((answer.status, answer.header("flotilla-outcome")), (status, Some("not-applied")), "{target}");
            client.0.shutdown().await.unwrap();
            assert!(client.is_closed().await, "what might still come is no request");
        }
        assert_eq!(*door.node.seen.borrow(), []);
    });
}

#[test]
fn a_body_that_was_not_read_is_not_taken_for_requests() {
    with_door(HttpOptions { value_bytes_max: 16, ..HttpOptions::default() }, |door| async move {
        let inner = "PUT /v1/kv/evil HTTP/1.1\r\nHost: door\r\nContent-Length: 1\r\n\r\nx";
        for (head, status) in [
            (format!("PUT /v1/kv/a HTTP/1.1\r\nHost: door\r\nContent-Length: {}\r\n\r\n", inner.len()), 413),
            (format!("PUT /v1/kv/a?x HTTP/1.1\r\nHost: door\r\nContent-Length: {}\r\n\r\n", inner.len()), 400),
            (format!("POST /v1/nothing HTTP/1.1\r\nHost: door\r\nContent-Length: {}\r\n\r\n", inner.len()), 404),
            ("PUT /v1/kv/a?x HTTP/1.1\r\nHost: door\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), 400),
        ] {
            assert_eq!(statuses(&door, &format!("{head}{inner}")).await, [status], "{head}");
        }
        assert_eq!(*door.node.seen.borrow(), []);
    });
}

#[test]
fn a_request_whose_end_could_be_read_in_two_ways_is_its_connections_last() {
    with_door(HttpOptions::default(), |door| async move {
        // Whoever reads only one of the two lengths takes what follows for a request of its own.
        let next = "GET /v1/kv/smuggled HTTP/1.1\r\nHost: door\r\n\r\n";
        for head in [
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5, 6",
            "Content-Length: +5",
            "Content-Length: -5",
            "Content-Length: 0x5",
            "Content-Length: 5 5",
            "Content-Length: 18446744073709551621",
            "Content-Length : 5",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding:\r\n chunked",
            "X: a\rTransfer-Encoding: chunked",
            "X: a\0",
        ] {
            let text = format!("PUT /v1/kv/a HTTP/1.1\r\nHost: door\r\n{head}\r\n\r\n0\r\n\r\n{next}");
            assert_eq!(statuses(&door, &text).await, [400], "{head}");
        }
        assert_eq!(statuses(&door, &format!("PUT /v1/kv/a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{next}")).await, [400]);
        assert_eq!(*door.node.seen.borrow(), []);
        // RFC 9112, section 6.3: the transfer encoding overrides the length, and the connection ends.
        for head in ["Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5"] {
            let text = format!("PUT /v1/kv/a HTTP/1.1\r\nHost: door\r\n{head}\r\n\r\n1\r\nx\r\n0\r\n\r\n{next}");
            assert!(matches!(statuses(&door, &text).await[..], [200 | 201]), "{head}");
        }
        assert_eq!(door.node.seen.borrow().len(), 2);
        // The same length twice is one length.
        let text =
            format!("PUT /v1/kv/a HTTP/1.1\r\nHost: door\r\nContent-Length: 1\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx{next}");
        assert_eq!(statuses(&door, &text).await, [200]);
    });
}

#[test]
fn a_request_names_its_host_once() {
    with_door(HttpOptions::default(), |door| async move {
        for head in ["GET /v1/kv/a HTTP/1.1\r\n", "PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nHost: b\r\n"] {
            let answer = door.client().await.ask(&format!("{head}\r\n")).await;
            assert_eq!((answer.status, answer.code().as_str()), (400, "malformed_request"), "{head}");
        }
        assert_eq!(*door.node.seen.borrow(), []);
    });
}

#[test]
fn every_form_of_a_request_is_understood() {
    with_door(HttpOptions::default(), |door| async move {
        door.ask("PUT", "/v1/kv/a", &[], "v").await;
        for (text, expected) in [
            // An absolute target, as a proxy sends it.
            ("GET http://elsewhere:1/v1/kv/a?timeout=1s HTTP/1.1\r\nHost: door\r\nConnection: close\r\n\r\n", 200),
            // HTTP/1.0 closes by itself, and has no Host.
            ("GET /v1/kv/a HTTP/1.0\r\n\r\n", 200),
            ("HEAD /v1/kv/a HTTP/1.0\r\n\r\n", 200),
            // Lines that end bare, as people type them.
            ("GET /v1/kv/a HTTP/1.1\nHost: door\nConnection: close\n\n", 200),
            ("\r\nGET /v1/kv/a HTTP/1.1\r\nHost: door\r\nConnection: close\r\n\r\n", 200),
            ("OPTIONS * HTTP/1.1\r\nHost: door\r\nConnection: close\r\n\r\n", 404),
            ("CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n", 404),
            ("TRACE /v1/kv/a HTTP/1.1\r\nHost: door\r\nConnection: close\r\n\r\n", 405),
            ("GET /v1/kv/a HTTP/3.0\r\nHost: door\r\n\r\n", 400),
            ("GET v1/kv/a HTTP/1.1\r\nHost: door\r\n\r\n", 400),
        ] {
            assert_eq!(statuses(&door, text).await, [expected], "{text}");
        }
        let mut old = door.client().await;
        for _ in 0..2 {
            let answer = old.ask("GET /v1/kv/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
            assert_eq!((answer.status, answer.header("connection")), (200, Some("keep-alive")));
        }
        // Who speaks HTTP/2 without asking is not answered in it.
        let mut two = door.client().await;
        two.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        two.0.shutdown().await.unwrap();
        assert!(two.answer(true).await.is_none_or(|answer| answer.status == 400));
    });
}

#[test]
fn who_sends_or_reads_too_slowly_is_not_waited_for() {
    // A client of this test may itself be kept waiting between connecting and asking.
    let (short, idle_timeout) = (Duration::from_millis(100), Duration::from_secs(1));
    with_door(HttpOptions { head_timeout: short, idle_timeout, ..HttpOptions::default() }, |door| async move {
        // A byte now and then is no progress of a head.
        let mut drip = door.client().await;
        let mut told = None;
        for byte in b"GET /v1/kv/a HTTP/1.1\r\nX: ".iter().chain(std::iter::repeat(&b'x')) {
            if drip.0.write_all(&[*byte]).await.is_err() {
                break;
            }
            match tokio::time::timeout(Duration::from_millis(10), drip.answer(true)).await {
                Ok(answer) => {
                    told = answer;
                    break;
                }
                Err(_) => continue,
            }
        }
        assert_eq!(told.unwrap().code(), "request_stalled");
        // One that asks for much and reads nothing costs memory: its connection is closed.
        let value = "x".repeat(8 << 20);
        door.ask("PUT", "/v1/kv/big", &[], &value).await;
        let mut deaf = door.client().await;
        deaf.send(b"GET /v1/kv/big HTTP/1.1\r\nHost: door\r\n\r\n").await;
        loop {
            let metrics = String::from_utf8(door.ask("GET", "/metrics", &["Connection: close"], "").await.body).unwrap();
            if metrics.lines().any(|line| line == "flotilla_http_connections 1") {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut read = Vec::new();
        let end = deaf.0.read_to_end(&mut read).await;
        assert!(end.is_err() || read.len() < 8 << 20, "it cannot have come whole");
    });
}

#[cfg(target_os = "linux")]
#[test]
fn the_kernel_holds_little_of_an_answer_that_nobody_reads() {
    /// Bytes that wait in the kernel to be sent from one port to another.
    fn unsent(from: u16, to: u16) -> Option<usize> {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        table.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let port = |field: &str| u16::from_str_radix(field.rsplit(':').next()?, 16).ok();
            let queue = fields[4].split(':').next()?;
            (port(fields[1]) == Some(from) && port(fields[2]) == Some(to)).then(|| usize::from_str_radix(queue, 16).unwrap())
        })
    }
    with_door(HttpOptions::default(), |door| async move {
        door.ask("PUT", "/v1/kv/big", &[], &"x".repeat(8 << 20)).await;
        let mut deaf = door.client().await;
        deaf.send(b"GET /v1/kv/big HTTP/1.1\r\nHost: door\r\n\r\n").await;
        let mut client = door.client().await;
        let mut most = 0;
        for _ in 0..500 {
            assert_eq!(client.ask("GET /livez HTTP/1.1\r\nHost: door\r\n\r\n").await.status, 200);
            most = most.max(unsent(door.address.port(), deaf.0.local_addr().unwrap().port()).unwrap());
        }
        assert!((1..1 << 20).contains(&most), "{most} bytes");
    });
}

#[test]
fn a_full_door_says_so_and_counts_it() {
    with_door(HttpOptions { connections_max: 1, ..HttpOptions::default() }, |door| async move {
        let mut first = door.client().await;
        assert_eq!(first.ask("GET /livez HTTP/1.1\r\nHost: door\r\n\r\n").await.status, 200);
        // Also to one that has sent its request already, and without reading it.
        let refused = door.ask("PUT", "/v1/kv/a", &[], "v").await;
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
        assert_eq!((refused.header("flotilla-outcome"), refused.header("connection")), (Some("not-applied"), Some("close")));
        first.send(b"GET /metrics HTTP/1.1\r\nHost: door\r\n\r\n").await;
        let metrics = String::from_utf8(first.answer(true).await.unwrap().body).unwrap();
        assert!(metrics.contains("\nflotilla_http_connections_refused_total 1\n") && metrics.contains("\nflotilla_http_connections 1\n"));
        assert_eq!(*door.node.seen.borrow(), []);
    });
}
