//! `flotilla check` on the data-dir of a real node: whole, flipped, in use, and none at all.
#![allow(clippy::disallowed_methods, reason = "processes and files are what this is about")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flotilla::local_cluster::{NodeSpec, free_addresses, wait_ready};

const BINARY: &str = env!("CARGO_BIN_EXE_flotilla");

/// Exit code, standard output and standard error.
fn flotilla(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(BINARY).args(arguments).env_remove("FLOTILLA_ENDPOINT").output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().expect("it was not killed"), text(output.stdout), text(output.stderr))
}

fn flip(file: &Path, offset: usize) {
    let mut bytes = std::fs::read(file).expect("readable");
    bytes[offset] ^= 0x10;
    std::fs::write(file, bytes).expect("writable");
}

#[test]
fn a_data_dir_is_checked_while_its_node_does_not_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let addresses = free_addresses(2, None).expect("free ports");
    let mut spec = NodeSpec::new("n1", folder.path(), addresses[0], addresses[1], Vec::new());
    spec.flags = ["--shards", "4"].map(Into::into).to_vec();
    let mut node = spec.start(Path::new(BINARY)).expect("it starts");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(wait_ready(&spec, &mut node, Duration::from_secs(60))).expect("it is ready");
    let url = format!("http://{}", spec.http);
    let long = "x".repeat(100_000);
    for key in ["a", "b", "c", "d", "e"] {
        assert_eq!(flotilla(&["put", key, &long, "--endpoint", &url]).0, 0);
        assert_eq!(flotilla(&["put", &format!("{key}-short"), "y", "--ttl", "1h", "--endpoint", &url]).0, 0);
    }
    let dir = spec.data_dir.to_str().expect("text").to_owned();
    let (code, _, error) = flotilla(&["check", "--data-dir", &dir]);
    assert_eq!(code, 1);
    assert!(error.contains("a node runs on the data-dir") && error.lines().count() == 1, "{error}");
    assert!(node.stop(), "it ends by itself");

    let before = listing(&spec.data_dir);
    let (code, out, error) = flotilla(&["check", "--data-dir", &dir]);
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    assert!(out.ends_with(": no damage\n") && out.contains("of which 10 are keys"), "{out}");
    let (code, json, _) = flotilla(&["check", "--data-dir", &dir, "--json"]);
    let summary: serde_json::Value = serde_json::from_str(json.lines().last().expect("a summary")).expect("JSON");
    assert_eq!((code, summary["keys"].as_u64(), summary["damages"].as_u64()), (0, Some(10), Some(0)), "{json}");
    assert_eq!(listing(&spec.data_dir), before, "a check changes nothing");

    let segment = spec.data_dir.join("log/0000000000000001.log");
    flip(&segment, 200);
    flip(&spec.data_dir.join("store/version"), 1);
    let (code, out, _) = flotilla(&["check", "--data-dir", &dir]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains(&format!("damage: {} at byte 192", segment.display())), "{out}");
    assert!(out.contains("store/version bytes 0 to 4"), "{out}");
    flip(&segment, 200);
    flip(&spec.data_dir.join("store/version"), 1);
    assert_eq!(flotilla(&["check", "--data-dir", &dir]).0, 0);
}

#[test]
fn what_is_no_data_dir_is_bad_usage() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (code, _, error) = flotilla(&["check", "--data-dir", folder.path().to_str().expect("text")]);
    assert_eq!((code, error.lines().count()), (2, 1), "{error}");
    assert_eq!(flotilla(&["check", "--data-dir", "/nonexistent/folder"]).0, 2);
    assert_eq!(flotilla(&["check"]).0, 2);
}

/// Names, lengths and contents of all files, and when they were last written.
fn listing(folder: &Path) -> Vec<(std::path::PathBuf, std::time::SystemTime, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("readable") {
            let path = entry.expect("readable").path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let written = path.metadata().and_then(|metadata| metadata.modified()).expect("it has a time");
                    found.push((path.clone(), written, std::fs::read(&path).expect("readable")));
                }
            }
        }
    }
    found.sort();
    found
}
