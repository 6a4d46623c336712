//! `flotilla check`: every checksum and invariant of a data-dir whose node does not run.
//!
//! It only reads, and holds the data-dir's lock meanwhile, so that no node starts under it. First the marker, then
//! the log as recovery would read it, then the store's files byte by byte; then, if these are whole, the rows,
//! and what log and store say of each other. A line a finding: file, place, what it is, what to do.

use super::{CommandError, print_line};
use anyhow::anyhow;
use clap::Args;
use flotilla_node::boot::Identity;
use flotilla_node::check::hold_together;
use flotilla_node::state_machine::check::{CheckedRows, RowCheck};
use flotilla_server::data_dir::DataDir;
use flotilla_storage::disk::{Disk, DiskError, FileDisk};
use flotilla_storage::log::{self, LogReport};
use flotilla_storage::store::engine_files::{self, Depth, StoreReport};
use flotilla_storage::store::engine_rows;
use flotilla_storage::verify::{Audience, FileUse, Finding, Weight};
use indicatif::{HumanBytes, HumanCount, ProgressBar};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{ErrorKind, IsTerminal};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const SHOW_EVERY: Duration = Duration::from_millis(200);
/// Rows of a replica that are wrong are described up to this many times.
const ROWS_SHOWN_MAX: u32 = 10;
const RESEED: &str = "start the node: it re-seeds that replica from the other nodes";
const PEERLESS: &str = "no other node knows what belongs there: restore the data-dir, or start an empty one with --join and --replace";

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// The data-dir of a node that does not run.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// A JSON object a line: each file, each finding, the summary.
    #[arg(long)]
    json: bool,
}

/// Prints findings as they come, and counts.
struct Report {
    json: bool,
    bar: ProgressBar,
    shown: Instant,
    files: u64,
    bytes: u64,
    notes: u64,
    damages: u64,
    /// The first failure to print.
    failed: Option<CommandError>,
}

impl CheckArgs {
    pub(super) fn run(self) -> Result<ExitCode, CommandError> {
        let dir = &self.data_dir;
        if !dir.is_dir() {
            return Err(CommandError::Usage(format!("{} is no folder", dir.display())));
        }
        let _lock = lock(dir)?;
        let is_shown = std::io::stderr().is_terminal();
        let bar = if is_shown { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        let mut report = Report { json: self.json, bar, shown: Instant::now(), files: 0, bytes: 0, notes: 0, damages: 0, failed: None };
        report.marker(dir)?;
        let log =
            if dir.join("log").is_dir() { log::verify(&FileDisk::read_only(dir.join("log")), &mut report) } else { LogReport::default() };
        let store_folder = dir.join("store");
        let store = match store_folder.is_dir() {
            true => engine_files::verify(&|name| FileDisk::read_only(store_folder.join(name)), Depth::All, &mut report),
            // A node that was killed while it was born.
            false => StoreReport { is_whole: true, ..StoreReport::default() },
        };
        let rows = report.rows(&store_folder, &log, &store)?;
        report.summary(&log, &store, rows.as_ref())?;
        match report.failed.take() {
            Some(error) => Err(error),
            None => Ok(if report.damages == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        }
    }
}

/// Keeps nodes out; refuses if one is in.
fn lock(dir: &Path) -> Result<Option<<FileDisk as Disk>::Lock>, CommandError> {
    match FileDisk::read_only(dir.join("log")).lock() {
        Ok(lock) => Ok(Some(lock)),
        Err(DiskError::Locked { .. }) => {
            Err(CommandError::Failed(anyhow!("a node runs on the data-dir {}: end it first, or check a copy", dir.display())))
        }
        Err(DiskError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CommandError::Failed(error.into())),
    }
}

impl Report {
    /// The file that says what the folder is.
    fn marker(&mut self, dir: &Path) -> Result<(), CommandError> {
        let marker = DataDir::marker(dir);
        let bytes = match std::fs::read(&marker) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound && !dir.join("log").is_dir() => {
                return Err(CommandError::Usage(format!("{} is no data-dir of a node", dir.display())));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(anyhow::Error::from(error).context(format!("reading {}", marker.display())).into()),
        };
        let (file, length) = (marker.display().to_string(), bytes.len() as u64);
        self.file(FileUse { file: file.clone(), bytes: length, bytes_used: length });
        if bytes != DataDir::marker_content().as_bytes() {
            let what = format!("the marker of the data-dir is \"{}\"", bytes[..bytes.len().min(64)].escape_ascii());
            self.finding(Finding::damage(file, 0..length, what, "write the line \"flotilla data-dir, format 1\" into it, with a newline"));
        }
        Ok(())
    }

    /// The rows, if all files they lie in are whole; and what the log says of them.
    fn rows(&mut self, folder: &Path, log: &LogReport, store: &StoreReport) -> Result<Option<CheckedRows>, CommandError> {
        if !store.is_whole {
            return Ok(None);
        }
        let (mut check, mut said) = (RowCheck::default(), BTreeMap::<_, u32>::new());
        let store_name = folder.display().to_string();
        let mut say = |report: &mut Report, replica: Option<_>, what: String| {
            let count = said.entry(replica).or_default();
            *count += 1;
            let what = replica.map_or(what.clone(), |replica| format!("{replica}: {what}"));
            if *count <= ROWS_SHOWN_MAX {
                report.finding(Finding::damage(&store_name, 0..0, what, RESEED));
            } else {
                report.damages += 1;
            }
        };
        let visited = engine_rows::visit(folder, store, &mut |key, value| {
            check.take(key, value, &mut |replica, what| say(self, replica, what));
            self.progress(0);
            Ok(ControlFlow::Continue(()))
        });
        if let Err(error) = visited {
            self.finding(Finding::damage(&store_name, 0..0, error.to_string(), RESEED));
            return Ok(None);
        }
        let rows = check.finish(&mut |replica, what| say(self, replica, what));
        let Some(recovered) = &log.recovered else { return Ok(Some(rows)) };
        let log_name = folder.with_file_name("log").display().to_string();
        let identity = match recovered.identity.clone().map(Identity::decode) {
            Some(Ok(identity)) => Some(identity),
            Some(Err(error)) => {
                self.finding(Finding::damage(&log_name, 0..0, format!("the node's identity cannot be read: {error}"), PEERLESS));
                None
            }
            None if rows.rows > 0 => {
                self.finding(Finding::damage(&log_name, 0..0, "there are rows, and no log that says whose", PEERLESS));
                None
            }
            None => None,
        };
        hold_together(identity.as_ref(), recovered, &rows.states, &rows.damaged, &mut |replica, what| say(self, Some(replica), what));
        Ok(Some(rows))
    }

    fn summary(&mut self, log: &LogReport, store: &StoreReport, rows: Option<&CheckedRows>) -> Result<(), CommandError> {
        self.bar.finish_and_clear();
        let (row_count, key_count) = rows.map_or((None, None), |rows| (Some(rows.rows), Some(rows.keys)));
        if self.json {
            let line = json!({
                "kind": "summary", "files": self.files, "bytes": self.bytes, "log_batches": log.batches, "log_records": log.records,
                "store_batches": store.batches, "rows": row_count, "keys": key_count, "notes": self.notes, "damages": self.damages,
            });
            return print_line(&line.to_string());
        }
        let rows = match (row_count, key_count) {
            (Some(rows), Some(keys)) => format!("{} rows of which {} are keys", HumanCount(rows), HumanCount(keys)),
            _ => "rows not looked at, since files that hold them are damaged".to_owned(),
        };
        let found = match self.damages {
            0 => "no damage".to_owned(),
            1 => "1 damage".to_owned(),
            count => format!("{} damages", HumanCount(count)),
        };
        print_line(&format!(
            "{} files, {}; log: {} batches, {} records; store: {} journal batches, {rows}: {found}",
            self.files,
            HumanBytes(self.bytes),
            HumanCount(log.batches),
            HumanCount(log.records),
            HumanCount(store.batches),
        ))
    }

    fn print(&mut self, line: &str) {
        let printed = self.bar.suspend(|| print_line(line));
        if let Err(error) = printed {
            self.failed.get_or_insert(error);
        }
    }
}

impl Audience for Report {
    fn file(&mut self, file: FileUse) {
        self.files += 1;
        self.bytes += file.bytes;
        if self.json {
            let FileUse { file, bytes, bytes_used } = file;
            self.print(&json!({ "kind": "file", "file": file, "bytes": bytes, "bytes_used": bytes_used }).to_string());
        }
    }

    fn finding(&mut self, finding: Finding) {
        let kind = match finding.weight {
            Weight::Note => "note",
            Weight::Damage => "damage",
        };
        *(if finding.weight == Weight::Note { &mut self.notes } else { &mut self.damages }) += 1;
        let Finding { file, bytes, what, advice, .. } = finding;
        let line = if self.json {
            json!({ "kind": kind, "file": file, "from": bytes.start, "to": bytes.end, "what": what, "advice": advice }).to_string()
        } else {
            let place =
                if bytes.is_empty() { format!("at byte {}", bytes.start) } else { format!("bytes {} to {}", bytes.start, bytes.end) };
            format!("{kind}: {file} {place}: {what}; {advice}")
        };
        self.print(&line);
    }

    fn progress(&mut self, _bytes: u64) {
        if self.shown.elapsed() >= SHOW_EVERY && !self.bar.is_hidden() {
            self.shown = Instant::now();
            self.bar.set_message(format!("{} files, {} read", self.files, HumanBytes(self.bytes)));
            self.bar.tick();
        }
    }
}
