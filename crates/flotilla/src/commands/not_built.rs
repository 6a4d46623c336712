//! Commands of the contract that are not built yet: one table, one line of refusal.

use super::CommandError;
use std::ffi::OsString;

/// Below `flotilla`.
const NOT_BUILT: &[&str] = &["watch", "txn", "backup", "restore"];

/// The same below `flotilla cluster`.
const CLUSTER_NOT_BUILT: &[&str] = &[];

pub(super) fn refuse(words: &[OsString]) -> CommandError {
    refuse_from("flotilla", NOT_BUILT, words)
}

pub(super) fn refuse_cluster(words: &[OsString]) -> CommandError {
    refuse_from("flotilla cluster", CLUSTER_NOT_BUILT, words)
}

fn refuse_from(program: &str, table: &[&str], words: &[OsString]) -> CommandError {
    let word = words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    CommandError::Usage(if table.contains(&word.as_str()) {
        format!("`{program} {word}` is not built yet")
    } else {
        format!("there is no command `{program} {word}`; `{program} --help` lists them")
    })
}
