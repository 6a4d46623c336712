//! Bulk writes: lines of keys and values become batches, several under way at once.
//!
//! A key always goes the same lane, and a lane sends one batch at a time: so the lines of one key take
//! effect in their order, though lanes overtake each other. What fails for a moment is sent again, also when
//! it is not known whether it happened: a line says what its key's value is to be, so twice is as once.
//!
//! [`Import::done_up_to`] is the place in the input before which everything is acknowledged; an import that is
//! begun again there loses nothing.

use crate::client::{Ask, Client, Endpoint};
use anyhow::anyhow;
use flotilla_api::http::write_put_op;
use hyper::Method;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// A batch is sent when it has so many bytes of keys and values.
const BATCH_BYTES: usize = 512 << 10;
/// Or so many lines.
const BATCH_LINES: usize = 1_000;
/// The rest before what failed is sent again, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How to import.
#[derive(Clone, Debug)]
pub struct ImportPlan {
    /// Which cluster.
    pub endpoints: Vec<Endpoint>,
    /// How long a batch may take.
    pub timeout: Duration,
    /// Batches under way at once.
    pub lanes: usize,
    /// How long a batch of which nothing more succeeds is sent again.
    pub retry_for: Duration,
    /// Leave keys that exist as they are.
    pub only_absent: bool,
}

/// A line to be written.
#[derive(Clone, Debug)]
pub struct Put {
    /// Where the line begins in the input, in bytes.
    pub offset: u64,
    /// Which line it is, from 1 on.
    pub line: u64,
    /// The key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// What an import has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportCount {
    /// Keys written.
    pub written: u64,
    /// Keys that existed and were left alone.
    pub skipped: u64,
    /// Operations that were sent again.
    pub repeated: u64,
}

/// An import under way.
pub struct Import {
    plan: ImportPlan,
    lanes: Vec<Lane>,
    under_way: JoinSet<(usize, anyhow::Result<ImportCount>)>,
    count: ImportCount,
    /// Behind the last line taken in.
    offset: u64,
}

#[derive(Default)]
struct Lane {
    gathered: Vec<Put>,
    gathered_bytes: usize,
    /// Where the first line of the batch under way begins.
    busy_from: Option<u64>,
}

#[derive(Deserialize)]
struct Answer {
    results: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    status: u16,
    detail: Option<String>,
}

impl Import {
    /// An import that has taken nothing in, from the input's `offset` on. Runs inside a `LocalSet`.
    pub fn new(plan: ImportPlan, offset: u64) -> Import {
        let lanes = (0..plan.lanes.max(1)).map(|_| Lane::default()).collect();
        Import { plan, lanes, under_way: JoinSet::new(), count: ImportCount::default(), offset }
    }

    /// Takes a line in; waits while its lane has as much as it may.
    ///
    /// # Errors
    /// If a batch failed for good, this line's or another's.
    pub async fn put(&mut self, put: Put, end_offset: u64) -> anyhow::Result<()> {
        let lane = crc32c::crc32c(&put.key) as usize % self.lanes.len();
        self.offset = end_offset;
        self.lanes[lane].gathered_bytes += put.key.len() + put.value.len();
        self.lanes[lane].gathered.push(put);
        while self.lanes[lane].is_full() {
            if self.lanes[lane].busy_from.is_none() {
                self.send(lane);
            } else {
                self.wait().await?;
            }
        }
        while let Some(done) = self.under_way.try_join_next() {
            self.note(done)?;
        }
        Ok(())
    }

    /// Sends what is gathered and waits for everything.
    ///
    /// # Errors
    /// If a batch failed for good.
    pub async fn finish(&mut self) -> anyhow::Result<()> {
        loop {
            for lane in 0..self.lanes.len() {
                if self.lanes[lane].busy_from.is_none() && !self.lanes[lane].gathered.is_empty() {
                    self.send(lane);
                }
            }
            if self.under_way.is_empty() {
                return Ok(());
            }
            self.wait().await?;
        }
    }

    /// Waits for the batches under way and sends nothing more: for an import that is to end early.
    pub async fn settle(&mut self) {
        while let Some(done) = self.under_way.join_next().await {
            // It ends anyhow; what failed is not counted as done.
            let _ = self.note(done);
        }
    }

    /// Before this offset everything is acknowledged.
    pub fn done_up_to(&self) -> u64 {
        let begun = self.lanes.iter().flat_map(|lane| [lane.busy_from, lane.gathered.first().map(|put| put.offset)]);
        begun.flatten().min().unwrap_or(self.offset)
    }

    /// What was done so far.
    pub fn count(&self) -> ImportCount {
        self.count
    }

    async fn wait(&mut self) -> anyhow::Result<()> {
        match self.under_way.join_next().await {
            Some(done) => self.note(done),
            None => Ok(()),
        }
    }

    fn note(&mut self, done: Result<(usize, anyhow::Result<ImportCount>), tokio::task::JoinError>) -> anyhow::Result<()> {
        let (lane, count) = done?;
        // A lane whose batch failed keeps its place: nothing behind it counts as done.
        let count = count?;
        self.lanes[lane].busy_from = None;
        self.count.written += count.written;
        self.count.skipped += count.skipped;
        self.count.repeated += count.repeated;
        Ok(())
    }

    fn send(&mut self, number: usize) {
        let lane = &mut self.lanes[number];
        let puts = std::mem::take(&mut lane.gathered);
        lane.gathered_bytes = 0;
        lane.busy_from = puts.first().map(|put| put.offset);
        let mut plan = self.plan.clone();
        // Every node gets its share.
        let first = number % plan.endpoints.len();
        plan.endpoints.rotate_left(first);
        self.under_way.spawn_local(async move { (number, plan.send(puts).await) });
    }
}

impl Lane {
    fn is_full(&self) -> bool {
        self.gathered_bytes >= BATCH_BYTES || self.gathered.len() >= BATCH_LINES
    }
}

impl ImportPlan {
    /// Sends a batch until all of it is done.
    async fn send(mut self, mut puts: Vec<Put>) -> anyhow::Result<ImportCount> {
        let mut count = ImportCount::default();
        let (mut pause, mut progress) = (PAUSE.0, Instant::now());
        loop {
            let tried = puts.len();
            let trouble = match self.try_once(&mut puts, &mut count).await {
                Ok(trouble) => trouble,
                Err(Trouble::ForGood(error)) => return Err(error),
                Err(Trouble::Passing(error)) => Some(error),
            };
            let Some(first) = puts.first() else { return Ok(count) };
            if puts.len() < tried {
                (pause, progress) = (PAUSE.0, Instant::now());
            }
            count.repeated += puts.len() as u64;
            if progress.elapsed() > self.retry_for {
                let trouble = trouble.unwrap_or_else(|| anyhow!("the cluster did not say why"));
                return Err(trouble.context(format!("line {} could not be written for {:?}", first.line, self.retry_for)));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
            self.endpoints.rotate_left(1);
        }
    }

    /// Sends what is left of a batch once and takes out what was done; tells why something is left.
    async fn try_once(&self, puts: &mut Vec<Put>, count: &mut ImportCount) -> Result<Option<anyhow::Error>, Trouble> {
        let mut body = b"{\"ops\":[".to_vec();
        for (number, put) in puts.iter().enumerate() {
            body.extend_from_slice(if number == 0 { b"\n" } else { b",\n" });
            write_put_op(&mut body, &put.key, &put.value, self.only_absent.then_some(0));
        }
        body.extend_from_slice(b"]}\n");
        let milliseconds = self.timeout.as_millis().clamp(1, 60_000);
        let ask =
            Ask::new(Method::POST, format!("/v1/batch?timeout={milliseconds}ms")).header("content-type", "application/json").body(body);
        let answer = Client::new(self.endpoints.clone(), self.timeout).send(&ask).await.map_err(Trouble::Passing)?;
        if !answer.is_success() {
            let error = anyhow!("{}", answer.problem());
            return Err(if passes(answer.status) { Trouble::Passing(error) } else { Trouble::ForGood(error) });
        }
        let results = serde_json::from_slice::<Answer>(&answer.body).map_err(|error| Trouble::ForGood(error.into()))?.results;
        if results.len() != puts.len() {
            return Err(Trouble::ForGood(anyhow!("the server answered {} of {} operations", results.len(), puts.len())));
        }
        let (mut left, mut trouble): (Vec<Put>, _) = (Vec::new(), None);
        // A later line of a key must not be overtaken by an earlier one that is sent again.
        let mut keys_left: BTreeSet<Vec<u8>> = BTreeSet::new();
        for (put, result) in puts.drain(..).zip(results) {
            match result.status {
                200..300 if keys_left.contains(&put.key) => left.push(put),
                200..300 => count.written += 1,
                412 if self.only_absent => count.skipped += 1,
                status => {
                    let detail = result.detail.unwrap_or_else(|| "the server gave no reason".to_owned());
                    let error = anyhow!("{detail} (status {status})");
                    if !passes(status) {
                        return Err(Trouble::ForGood(error.context(format!("line {} was refused", put.line))));
                    }
                    trouble.get_or_insert(error);
                    keys_left.insert(put.key.clone());
                    left.push(put);
                }
            }
        }
        *puts = left;
        Ok(trouble)
    }
}

/// Why a batch is not done.
enum Trouble {
    /// It would fail again.
    ForGood(anyhow::Error),
    /// It may not.
    Passing(anyhow::Error),
}

/// Whether a status tells of something that passes by itself: stalls, load, no quorum, no time, no room.
fn passes(status: u16) -> bool {
    matches!(status, 408 | 429 | 503 | 504 | 507)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    /// Answers batches in turn, each with these statuses; hangs up where there are none. Gives the bodies it was sent.
    async fn serve(answers: &'static [&'static [u16]]) -> (Endpoint, Rc<RefCell<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = Endpoint { authority: listener.local_addr().expect("bound").to_string() };
        let bodies = Rc::new(RefCell::new(Vec::new()));
        let asked = bodies.clone();
        tokio::task::spawn_local(async move {
            for statuses in answers {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut text = String::new();
                while !text.ends_with("]}\n") {
                    let mut bytes = [0; 4096];
                    let count = stream.read(&mut bytes).await.expect("a request");
                    text += std::str::from_utf8(&bytes[..count]).expect("text");
                }
                asked.borrow_mut().push(text.split("\r\n\r\n").nth(1).expect("a body").to_owned());
                if statuses.is_empty() {
                    continue;
                }
                let results: Vec<String> = statuses.iter().map(|status| format!("{{\"status\":{status},\"detail\":\"so\"}}")).collect();
                let body = format!("{{\"results\":[{}]}}", results.join(","));
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.expect("it listens");
            }
        });
        (endpoint, bodies)
    }

    fn put(line: u64, key: &str, value: &str) -> Put {
        Put { offset: line * 10, line, key: key.into(), value: value.into() }
    }

    fn import(endpoint: Endpoint, only_absent: bool) -> Import {
        let (timeout, retry_for) = (Duration::from_secs(20), Duration::from_secs(60));
        Import::new(ImportPlan { endpoints: vec![endpoint], timeout, lanes: 1, retry_for, only_absent }, 0)
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn what_failed_is_sent_again_and_what_stands_behind_it_under_its_key() {
        run(async {
            let (endpoint, bodies) = serve(&[&[], &[503, 200, 200], &[201, 200]]).await;
            let mut import = import(endpoint, false);
            for (line, (key, value)) in [("a", "1"), ("b", "1"), ("a", "2")].into_iter().enumerate() {
                import.put(put(line as u64, key, value), line as u64 * 10 + 10).await.expect("taken in");
            }
            assert_eq!(import.done_up_to(), 0);
            import.finish().await.expect("in the end");
            assert_eq!(import.done_up_to(), 30);
            assert_eq!(import.count(), ImportCount { written: 3, skipped: 0, repeated: 5 });
            let bodies = bodies.borrow();
            assert_eq!(bodies[0], bodies[1], "an answer that never came is no answer");
            assert_eq!(bodies[2], "{\"ops\":[\n{\"put\":{\"key\":\"a\",\"value\":\"1\"}},\n{\"put\":{\"key\":\"a\",\"value\":\"2\"}}]}\n");
        });
    }

    #[test]
    fn what_is_refused_for_good_ends_it_with_the_line() {
        run(async {
            let (endpoint, _) = serve(&[&[200, 413]]).await;
            let mut import = import(endpoint, false);
            for line in 1..3 {
                import.put(put(line, &format!("k{line}"), "v"), line * 10 + 10).await.expect("taken in");
            }
            let error = import.finish().await.expect_err("refused");
            assert_eq!(format!("{error:#}"), "line 2 was refused: so (status 413)");
            assert_eq!(import.done_up_to(), 10, "the batch counts as a whole");
        });
    }

    #[test]
    fn keys_that_exist_are_left_alone_if_so_asked() {
        run(async {
            let (endpoint, bodies) = serve(&[&[412]]).await;
            let mut import = import(endpoint, true);
            import.put(put(1, "k", "v"), 20).await.expect("taken in");
            import.finish().await.expect("fine");
            assert_eq!(import.count().skipped, 1);
            assert!(bodies.borrow()[0].contains("\"if_version\":0"));
        });
    }
}
