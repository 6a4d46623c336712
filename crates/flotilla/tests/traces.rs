//! What nodes trace: nothing at INFO while nothing changes, and one line of JSON an event when something does.
#![allow(clippy::disallowed_methods, reason = "processes and clocks are what this is about")]

use flotilla::client::Client;
use flotilla::local_cluster::{NodeProcess, NodeSpec, free_addresses, wait_ready, wait_settled};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TIME_MAX: Duration = Duration::from_secs(60);
/// A cluster that has said nothing for this long is taken to have settled: it plans and reports twice a second.
const QUIET_TIME: Duration = Duration::from_secs(3);

struct Cluster {
    nodes: Vec<(NodeSpec, NodeProcess)>,
}

impl Cluster {
    async fn start(folder: &Path) -> Cluster {
        let binary = Path::new(env!("CARGO_BIN_EXE_flotilla"));
        let addresses = free_addresses(6, None).expect("free ports");
        let mut nodes = Vec::new();
        for at in 0..3 {
            let join = if at == 0 { Vec::new() } else { vec![addresses[0]] };
            let mut spec = NodeSpec::new(&format!("n{}", at + 1), folder, addresses[at], addresses[3 + at], join);
            spec.flags = ["--log-level", "info", "--log-format", "json", "--shards", "8"].map(Into::into).to_vec();
            let mut process = spec.start(binary).expect("it starts");
            wait_ready(&spec, &mut process, TIME_MAX).await.expect("it serves");
            nodes.push((spec, process));
        }
        let endpoints = nodes.iter().map(|(spec, _)| spec.endpoint()).collect();
        wait_settled(&Client::new(endpoints, Duration::from_secs(2)), 3, TIME_MAX).await.expect("it settles");
        Cluster { nodes }
    }

    /// All that a node has traced.
    fn traces(&self, at: usize) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&self.nodes[at].0.output).expect("its output");
        // What it says on standard output, to people, goes to the same file. A line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).expect("one object a line")).collect()
    }

    fn counts(&self) -> Vec<usize> {
        (0..self.nodes.len()).map(|at| self.traces(at).len()).collect()
    }

    /// Waits until no node has traced anything for a while.
    fn wait_quiet(&self) -> Vec<usize> {
        let deadline = Instant::now() + TIME_MAX;
        let (mut counts, mut since) = (self.counts(), Instant::now());
        while since.elapsed() < QUIET_TIME {
            assert!(Instant::now() < deadline, "it is never quiet");
            std::thread::sleep(Duration::from_millis(50));
            let now = self.counts();
            if now != counts {
                (counts, since) = (now, Instant::now());
            }
        }
        counts
    }
}

#[test]
fn traces_are_one_object_an_event_and_none_while_nothing_happens() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut cluster = runtime.block_on(Cluster::start(folder.path()));
    let before = cluster.wait_quiet();
    assert!(before.iter().all(|count| *count >= 2), "a start and links are told of: {before:?}");

    let urls: Vec<String> = cluster.nodes.iter().map(|(spec, _)| format!("http://{}", spec.http)).collect();
    let mut load = Command::new(env!("CARGO_BIN_EXE_flotilla"));
    load.args(["bench", "mixed", "--duration", "4s", "--keys", "1000", "-c", "8", "--endpoint", &urls.join(",")]);
    assert!(load.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("the binary runs").success());
    let said: Vec<_> = (0..3).map(|at| cluster.traces(at).split_off(before[at])).collect();
    assert!(said.iter().all(Vec::is_empty), "nothing changed, and yet: {said:#?}");

    cluster.nodes[2].1.kill();
    let deadline = Instant::now() + TIME_MAX;
    let tells = |trace: &serde_json::Value| trace["peer"] == "n3" && trace["message"].as_str().is_some_and(|m| m.contains("is down"));
    while (0..2).any(|at| !cluster.traces(at).iter().any(tells)) {
        assert!(Instant::now() < deadline, "nobody tells that n3 is gone");
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.wait_quiet();
    for at in 0..2 {
        let traces = cluster.traces(at);
        assert_eq!(traces.iter().filter(|trace| tells(trace)).count(), 1, "told once: {traces:#?}");
        for trace in &traces {
            let fields = ["timestamp", "level", "target", "message"];
            assert!(fields.iter().all(|field| trace[field].is_string()), "{trace}");
            assert!(trace["level"] == "INFO" || trace["level"] == "WARN", "no error: {trace}");
        }
    }
}
