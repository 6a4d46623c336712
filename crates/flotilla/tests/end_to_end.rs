//! The binary as a user meets it: a demo cluster, the client commands, exit codes.
#![allow(clippy::disallowed_methods, reason = "processes and clocks are what this is about")]

use flotilla::process_cpu::{listening_processes, processor_times};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn flotilla(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flotilla")).args(arguments).env_remove("FLOTILLA_ENDPOINT").output().expect("the binary runs")
}

/// Exit code, standard output and standard error.
fn outcome(arguments: &[&str]) -> (i32, String, String) {
    let output = flotilla(arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().expect("it was not killed"), text(output.stdout), text(output.stderr))
}

/// A demo cluster; ended in order when dropped.
struct Demo {
    process: Child,
    output: BufReader<ChildStdout>,
    urls: Vec<String>,
}

impl Demo {
    fn start(nodes: usize) -> Demo {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flotilla"));
        command.args(["demo", "--nodes", &nodes.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let mut process = command.spawn().expect("the binary runs");
        let mut output = BufReader::new(process.stdout.take().expect("piped"));
        let mut urls = Vec::new();
        while urls.len() < nodes {
            let mut line = String::new();
            assert!(output.read_line(&mut line).expect("text") > 0, "the demo ended: {:?}", process.wait());
            urls.extend(line.starts_with("http://").then(|| line.trim().to_owned()));
        }
        Demo { process, output, urls }
    }

    /// SIGTERM, as Ctrl-C; gives the rest of what it said.
    fn end(mut self) -> String {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").arg(&id).status().expect("kill is there").success());
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.process.try_wait().expect("our child").is_none() {
            assert!(Instant::now() < deadline, "the demo does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).expect("text");
        rest
    }
}

#[test]
fn a_demo_cluster_serves_every_command() {
    let demo = Demo::start(3);
    let (first, last) = (demo.urls[0].clone(), demo.urls[2].clone());
    let all = demo.urls.join(",");

    let (code, version, _) = outcome(&["put", "a key/ä", "hello", "--endpoint", &first]);
    assert_eq!(code, 0);
    assert_eq!(outcome(&["get", "a key/ä", "--endpoint", &last]), (0, "hello".into(), String::new()));
    assert_eq!(outcome(&["get", "nothing", "--endpoint", &last]).0, 3);

    assert_eq!(outcome(&["put", "a key/ä", "x", "--if-absent", "--endpoint", &last]).0, 1);
    assert_eq!(outcome(&["put", "a key/ä", "x", "--if-version", "999999", "--endpoint", &last]).0, 1);
    assert_eq!(outcome(&["put", "a key/ä", "world", "--if-version", version.trim(), "--endpoint", &last]).0, 0);
    assert_eq!(outcome(&["get", "a key/ä", "--endpoint", &first]).1, "world");

    let mut piped = Command::new(env!("CARGO_BIN_EXE_flotilla"));
    let mut piped =
        piped.args(["put", "bytes", "-", "--endpoint", &first]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
    piped.stdin.take().expect("piped").write_all(b"\0\xff\n").expect("it reads");
    assert!(piped.wait().expect("our child").success());
    assert_eq!(flotilla(&["get", "bytes", "--endpoint", &last]).stdout, b"\0\xff\n");

    assert_eq!(outcome(&["del", "bytes", "--endpoint", &first]), (0, "deleted\n".into(), String::new()));
    assert_eq!(outcome(&["del", "bytes", "--endpoint", &last]).1, "no such key\n");

    check_scans(&first, &last);

    assert_eq!(outcome(&["incr", "visits/today", "--endpoint", &first]), (0, "1\n".into(), String::new()));
    assert_eq!(outcome(&["incr", "visits/today", "--by", "-43", "--endpoint", &last]).1, "-42\n");
    assert_eq!(outcome(&["get", "visits/today", "--endpoint", &first]).1, "-42");
    let json = |arguments: &[&str]| -> serde_json::Value {
        let (code, text, error) = outcome(&[arguments, &["--json", "--endpoint", &last]].concat());
        assert_eq!((code, error.as_str()), (0, ""));
        serde_json::from_str(&text).expect("JSON")
    };
    let version = json(&["put", "a/json", "v"])["version"].clone();
    assert_eq!(json(&["get", "a/json"]), serde_json::json!({"key": "a/json", "value": "v", "version": version}));
    assert_eq!(json(&["del", "a/json"]), serde_json::json!({"deleted": true}));
    assert_eq!(json(&["incr", "visits/today"])["value"], -41);
    assert_eq!(outcome(&["incr", "visits/today", "--by", "-1", "--endpoint", &first]).1, "-42\n");
    let (code, _, error) = outcome(&["incr", "a key/ä", "--endpoint", &first]);
    assert!(code == 1 && error.contains("not_an_integer") && error.contains("it did not happen"), "{code} {error}");

    assert_eq!(outcome(&["put", "brief", "here", "--ttl", "50ms", "--endpoint", &first]).0, 0);
    assert!((0..100).any(|_| outcome(&["get", "brief", "--endpoint", &last]).0 == 3), "it stays");

    let (code, status, _) = outcome(&["cluster", "status", "--endpoint", &all]);
    assert!(code == 0 && status.contains("3 nodes: every shard on at least 3"), "{status}");
    let nodes: serde_json::Value = serde_json::from_str(&outcome(&["cluster", "nodes", "--json", "--endpoint", &all]).1).expect("JSON");
    assert_eq!(nodes.as_array().map(Vec::len), Some(3));
    assert!(outcome(&["cluster", "locate", "foo", "--endpoint", &all]).1.starts_with("slot 12182, shard s47, leader n"));

    let bench =
        ["bench", "mixed", "--ops", "500", "--duration", "20s", "--warmup", "0s", "--keys", "100", "-c", "8", "--json", "--endpoint"];
    for extra in [&["--leader-direct"][..], &["--rate", "1000"]] {
        let (code, report, error) = outcome(&[&bench[..], &[&all], extra].concat());
        let report: serde_json::Value = serde_json::from_str(&report).unwrap_or_else(|_| panic!("exit {code}: {report} {error}"));
        assert_eq!((code, &report["failures"], &report["server_processes"]), (0, &serde_json::json!({}), &serde_json::json!(3)));
    }

    let addresses: Vec<_> = demo.urls.iter().map(|url| url.trim_start_matches("http://").parse().expect("an address")).collect();
    let nodes = listening_processes(&addresses);
    assert_eq!(processor_times(&nodes).len(), 3);
    demo.end();
    assert!(processor_times(&nodes).is_empty(), "the nodes outlive the demo");
}

/// Keys of all shards, in order, whichever node is asked.
fn check_scans(first: &str, last: &str) {
    for number in 0..12 {
        assert_eq!(outcome(&["put", &format!("s/{number:02}"), &format!("v\t{number}"), "--endpoint", first]).0, 0);
    }
    let all: String = (0..12).map(|number| format!("s/{number:02}\tv\\t{number}\n")).collect();
    for endpoint in [first, last] {
        assert_eq!(outcome(&["scan", "--prefix", "s/", "--endpoint", endpoint]), (0, all.clone(), String::new()));
    }
    let some = ["scan", "--start", "s/03", "--end", "s/11", "--reverse", "--limit", "2", "--keys-only", "--endpoint", last];
    assert_eq!(outcome(&some), (0, "s/10\ns/09\n".into(), String::new()));
    let (_, line, _) = outcome(&["scan", "--prefix", "s/07", "--json", "--endpoint", last]);
    let item: serde_json::Value = serde_json::from_str(&line).expect("a line of JSON");
    assert_eq!((&item["key"], &item["value"]), (&"s/07".into(), &"v\t7".into()), "{line}");

    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("all.ndjson");
    assert_eq!(outcome(&["export", &file.display().to_string(), "--endpoint", last]), (0, String::new(), String::new()));
    let exported = std::fs::read_to_string(&file).expect("it was written");
    let key = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["key"].as_str().map(str::to_owned);
    let keys: Vec<_> = exported.lines().map(key).collect();
    assert!(keys.is_sorted() && keys.len() == 13 && keys[0].as_deref() == Some("a key/ä"), "{keys:?}");
    assert_eq!(outcome(&["export", "--endpoint", first]), (0, exported.clone(), String::new()));

    let mut socket = std::net::TcpStream::connect(first.trim_start_matches("http://")).expect("it listens");
    socket.write_all(b"DELETE /v1/kv?prefix=s/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("text");
    assert!(answer.ends_with("{\"deleted\":12}\n"), "{answer}");
    assert_eq!(outcome(&["scan", "--prefix", "s/", "--endpoint", last]), (0, String::new(), String::new()));

    let path = file.display().to_string();
    let (code, done, _) = outcome(&["import", &path, "--json", "--endpoint", first]);
    assert_eq!((code, done.as_str()), (0, "{\"lines\":13,\"repeated\":0,\"skipped\":0,\"whole\":true,\"written\":13}\n"));
    let without_versions = |text: &str| -> Vec<serde_json::Value> {
        let item = |line| {
            let mut item: serde_json::Value = serde_json::from_str(line).expect("JSON");
            item.as_object_mut().expect("an object").remove("version");
            item
        };
        text.lines().map(item).collect()
    };
    let (code, again, _) = outcome(&["export", "--endpoint", last]);
    assert_eq!((code, without_versions(&again)), (0, without_versions(&exported)));
    let (code, done, _) = outcome(&["import", &path, "--only-absent", "--json", "--endpoint", last]);
    assert!(code == 0 && done.contains("\"skipped\":13") && done.contains("\"written\":0"), "{done}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("our folder").count(), 1, "nothing is left beside a file that is whole");

    // It goes on where it was interrupted: nothing of what the mark covers is written again.
    let seven = exported.split_inclusive('\n').take(7).collect::<String>();
    let mut broken = seven.clone();
    broken.push_str("no line\n");
    std::fs::write(&file, &broken).expect("it can be written");
    let (code, _, error) = outcome(&["import", &path, "--endpoint", first]);
    assert!(code == 1 && error.contains("line 8") && error.contains("the same command goes on"), "{error}");
    std::fs::write(&file, exported.as_bytes()).expect("it can be written");
    let (code, done, _) = outcome(&["import", &path, "--json", "--endpoint", first]);
    assert!(code == 0 && done.contains("\"whole\":true"), "{done}");
    assert_eq!(without_versions(&outcome(&["export", "--endpoint", last]).1), without_versions(&exported));
}

#[test]
fn help_is_a_manual_and_completions_are_scripts() {
    let (code, text, _) = outcome(&["help", "cluster", "shards"]);
    assert!(code == 0 && text.contains("Usage: flotilla cluster shards"), "{text}");
    assert!(outcome(&["help", "put", "--man"]).1.contains(".TH flotilla-put 1"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    assert_eq!(outcome(&["help", "--man-dir", &folder.path().display().to_string()]).0, 0);
    assert!(folder.path().join("flotilla-import.1").exists());
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = outcome(&["completions", shell]);
        assert!(code == 0 && script.contains("only-absent"), "{shell}");
    }
    assert_eq!(outcome(&["help", "no-such-command"]).0, 2);
}

#[test]
fn bad_usage_exits_2_in_one_line() {
    for arguments in
        [&["watch"][..], &["backup"], &["no-such-command"], &["get", ""], &["serve"], &["serve", "--data-dir", "/x", "--replicas", "2"]]
    {
        let (code, out, error) = outcome(arguments);
        assert_eq!((code, out.as_str(), error.lines().count()), (2, "", 1), "{arguments:?}: {error}");
    }
    let (code, _, error) = outcome(&["serve", "--data-dir", "/x", "--http-addr", "0.0.0.0:1", "--advertise-http", "h:1"]);
    assert!(code == 2 && error.contains("--insecure"), "{code} {error}");
}

#[test]
fn flags_win_over_environment_and_that_over_the_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("flotilla.toml");
    // Each layer names a zone that is refused, so that the message shows whose it was.
    std::fs::write(&file, "data-dir = \"/x\"\nzone = \"of file\"\n").expect("written");
    let zone_refused = |environment: Option<&str>, flag: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flotilla"));
        command.args(["serve", "--config"]).arg(&file).args(flag.into_iter().flat_map(|zone| ["--zone", zone]));
        command.envs(environment.map(|zone| ("FLOTILLA_ZONE", zone)));
        String::from_utf8(command.output().expect("it runs").stderr).expect("text")
    };
    assert!(zone_refused(None, None).contains("of file"));
    assert!(zone_refused(Some("of environment"), None).contains("of environment"));
    assert!(zone_refused(Some("of environment"), Some("of flag")).contains("of flag"));
}

#[test]
fn an_address_in_use_ends_a_node_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data_dir = folder.path().join("data").display().to_string();
    let (code, _, error) = outcome(&["serve", "--data-dir", &data_dir, "--http-addr", &address, "--peer-addr", "127.0.0.1:0"]);
    assert!(code == 1 && error.lines().count() == 1 && error.contains("in use"), "{code} {error}");
}
