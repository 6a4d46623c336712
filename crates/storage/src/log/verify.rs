//! Reading a log as recovery would, without changing anything: for a check of a data-dir at rest.
//!
//! What counts in a file is its front: up to the end that the next segment states, or, in the newest one, up to
//! the last batch that counts. Behind it lie zeros or leftovers of an earlier use, which nobody ever reads as
//! anything else; spare files are such throughout. A batch of the present segment that does not verify right
//! behind the end is a write that was under way in a crash, and is noted.

use super::recovery::{self, Recovered};
use super::replay::Replay;
use super::segment;
use super::{Damage, LogError};
use crate::disk::Disk;
use crate::verify::{Audience, FileUse, Finding};
use std::collections::BTreeMap;

const RESEED: &str = "start the node: it names its replicas there and re-seeds them from the other nodes";
const REJOIN: &str =
    "the node cannot start from this log: put the file back, or start an empty data-dir under the node's name with --join and --replace";
const CUT: &str = "nothing to do: recovery cuts it, and nothing that was acknowledged lies there";

/// What the log amounts to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogReport {
    /// What recovery would find; `None` if it would refuse the log.
    pub recovered: Option<Recovered>,
    /// Batches that verify.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
}

/// Reads the whole log on `disk`. Nobody may be writing to it.
pub fn verify<D: Disk>(disk: &D, audience: &mut dyn Audience) -> LogReport {
    let mut report = LogReport::default();
    let names = match disk.list() {
        Ok(names) => names,
        Err(error) => {
            audience.finding(Finding::unreadable(disk.path(""), &error));
            return report;
        }
    };
    for name in names.iter().filter(|name| segment::segment_number(name).is_none()) {
        other_file(disk, name, audience);
    }
    let numbers: Vec<u64> = names.iter().filter_map(|name| segment::segment_number(name)).collect();
    if numbers.is_empty() {
        // A node that was killed while it was born has none.
        report.recovered = Some(Recovered::default());
        return report;
    }
    if let Err(error) = segments(disk, &numbers, &mut report, audience) {
        audience.finding(refusal(disk, numbers[0], &error));
    }
    report
}

fn segments<D: Disk>(disk: &D, numbers: &[u64], report: &mut LogReport, audience: &mut dyn Audience) -> Result<(), LogError> {
    let (mut replay, mut files) = (Replay::default(), BTreeMap::new());
    let (walked, newest) = recovery::replay_all(disk, &mut files, &mut replay, numbers, &mut |loaded, walked| {
        let bytes = loaded.bytes.len() as u64;
        audience.progress(bytes);
        audience.file(FileUse { file: loaded.path.clone(), bytes, bytes_used: u64::from(walked.end).min(bytes) });
    })?;
    if let Some(reason) = segment::torn_batch(&newest.bytes, walked.end, newest.number) {
        let at = u64::from(walked.end);
        audience.finding(Finding::note(&newest.path, at..at, format!("the last write is not whole: {reason}"), CUT));
    }
    (report.batches, report.records) = (replay.batches, replay.records);
    let oldest = disk.path(&segment::segment_name(numbers[0]));
    let concluded = replay.conclude(&oldest);
    let recovered = match concluded {
        Ok(()) => Some(recovery::materialise(disk, &files, &mut replay)?),
        Err(_) => None,
    };
    let advice = if recovered.is_some() { RESEED } else { REJOIN };
    for Damage { file, offset, reason, replicas } in &replay.damage {
        let whose: Vec<String> = replicas.iter().map(ToString::to_string).collect();
        let whose = if whose.is_empty() { String::new() } else { format!("; it concerns {}", whose.join(", ")) };
        audience.finding(Finding::damage(file, *offset..*offset, format!("{reason}{whose}"), advice));
    }
    concluded?;
    report.recovered = recovered;
    Ok(())
}

/// A file that is no segment.
fn other_file<D: Disk>(disk: &D, name: &str, audience: &mut dyn Audience) {
    let length = disk.open(name).and_then(|file| disk.len(&file));
    match length {
        Ok(bytes) => audience.file(FileUse { file: disk.path(name), bytes, bytes_used: 0 }),
        Err(error) => audience.finding(Finding::unreadable(disk.path(name), &error)),
    }
}

/// What recovery would end with.
fn refusal<D: Disk>(disk: &D, oldest: u64, error: &LogError) -> Finding {
    let (file, offset) = match error {
        LogError::Unrecoverable { file, offset, .. } | LogError::Damaged { file, offset, .. } => (file.clone(), *offset),
        LogError::NewerFormat { file, .. } | LogError::Foreign { file } => (file.clone(), 0),
        LogError::Disk(error) | LogError::Full(error) => return Finding::unreadable(disk.path(&segment::segment_name(oldest)), error),
        LogError::Poisoned | LogError::NotInLog { .. } => (disk.path(&segment::segment_name(oldest)), 0),
    };
    Finding::damage(file, offset..offset, error.to_string(), REJOIN)
}
