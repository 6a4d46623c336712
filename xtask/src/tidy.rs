//! What the compiler cannot check: which crate may depend on which, that the core stays pure, that
//! every module says what it is.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Each crate and the crates of ours that it may name; every arrow points down.
const ARROWS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("consensus", &["types"]),
    ("storage", &["types"]),
    ("api", &["types"]),
    ("node", &["types", "consensus", "storage"]),
    ("server", &["types", "storage", "node", "api"]),
    ("fuzzing", &["types", "consensus", "storage", "node", "api", "server", "flotilla"]),
    ("sim", &["types", "storage", "node", "consensus"]),
    ("flotilla", &["types", "storage", "node", "api", "server"]),
    ("harness", &["types", "api", "node", "server", "flotilla", "sim"]),
];

/// Crates whose code may hold no clock, thread, socket, file, environment or unseeded chance.
const PURE: &[&str] = &["types", "consensus", "node", "api", "storage"];
/// The files of these that are the real world.
const REAL: &[&str] =
    &["crates/storage/src/disk/file_disk.rs", "crates/storage/src/store/engine.rs", "crates/storage/src/store/engine_rows.rs"];
/// Only this file may name the engine, only this crate the consensus library.
const ENGINE: (&str, &str) = ("fjall::", "crates/storage/src/store/engine.rs");
const LIBRARY: (&str, &str) = ("raft::", "crates/consensus/");

const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::thread",
    "std::env::",
    "std::process",
    "Instant::now",
    "SystemTime",
    "HashMap",
    "HashSet",
    "thread_rng",
    "rand::",
    "tokio",
    "async fn",
];

pub(crate) fn run() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace lies above xtask")?;
    let mut faults = Vec::new();
    for (name, allowed) in ARROWS {
        let manifest = root.join("crates").join(name).join("Cargo.toml");
        let Ok(text) = fs::read_to_string(&manifest) else { continue };
        let dependencies = text.split("[dev-dependencies]").next().unwrap_or_default();
        for (other, _) in ARROWS {
            let named = dependencies
                .lines()
                .any(|line| line.starts_with(&format!("flotilla-{other}.")) || (*other == "flotilla" && line.starts_with("flotilla.")));
            if named && !allowed.contains(other) {
                faults.push(format!("crates/{name} must not depend on {other}"));
            }
        }
    }
    let mut files = Vec::new();
    collect(&root.join("crates"), &mut files)?;
    collect(&root.join("xtask"), &mut files)?;
    for path in files {
        let relative = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(&path)?;
        check_file(&relative, &text, &mut faults);
    }
    if faults.is_empty() {
        eprintln!("tidy: fine");
        return Ok(());
    }
    for fault in &faults {
        eprintln!("tidy: {fault}");
    }
    bail!("{} things are not tidy", faults.len())
}

fn check_file(relative: &str, text: &str, faults: &mut Vec<String>) {
    let is_source = relative.contains("/src/");
    if is_source && !text.starts_with("//!") && !relative.ends_with("/tests.rs") {
        faults.push(format!("{relative}: begins without a module doc (//!)"));
    }
    for (name, home) in [ENGINE, LIBRARY] {
        if is_source && !relative.starts_with("xtask") && !relative.starts_with(home) && code_lines(text).any(|(_, line)| names(line, name))
        {
            faults.push(format!("{relative}: names {name} outside {home}"));
        }
    }
    let pure = PURE.iter().any(|name| relative.starts_with(&format!("crates/{name}/src/")));
    if !pure || REAL.contains(&relative) {
        return;
    }
    for (number, line) in code_lines(text) {
        for word in IMPURE {
            if names(line, word) {
                faults.push(format!("{relative}:{number}: `{word}` in the pure core"));
            }
        }
    }
}

/// The word, not the end of a longer one.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Lines of code before the unit tests, without comments.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.trim_start().starts_with("#[cfg(test)]"))
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}
