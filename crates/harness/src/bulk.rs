//! Real data through `flotilla import` and `export`, both interrupted: by Ctrl-C, by kill -9 of the command, and by
//! kill -9 of a node; each time the same command is given again. Then the export must hold what was imported.
//! Meanwhile others write, and whole scans must stay complete and in order.

use crate::cluster::Cluster;
use crate::real_data::packages;
use crate::wire::{Wire, WriteEnd};
use anyhow::{Context, bail, ensure};
use flotilla::client::Client;
use flotilla::lines::Item;
use flotilla::local_cluster::spawn_bound;
use flotilla::scan::{Scan, ScanRequest};
use flotilla_api::http::write_item;
use flotilla_types::{Key, Version};
use serde::Serialize;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// All that a command may take.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(5);
/// What others write meanwhile lies before all packages.
const OTHERS: &str = "!other/";

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BulkReport {
    /// Packages imported.
    pub packages: usize,
    /// Bytes of the imported file.
    pub file_bytes: u64,
    /// Starts of `import` and `export` until they were through.
    pub import_starts: usize,
    /// The same of `export`.
    pub export_starts: usize,
    /// Seconds, the interruptions included.
    pub import_seconds: f64,
    /// The same of `export`.
    pub export_seconds: f64,
    /// What the last `import` printed: lines that it wrote, of all.
    pub lines_of_last_import: u64,
    /// Whole scans made while others wrote.
    pub scans: usize,
    /// Keys that others wrote meanwhile.
    pub written_by_others: u64,
    /// What was wrong, in words.
    pub faults: Vec<String>,
}

impl BulkReport {
    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let first = format!(
            "{} packages, {:.1} MiB of lines: imported in {:.1} s with {} starts (the last wrote {} lines), exported in {:.1} s with {} starts",
            self.packages,
            self.file_bytes as f64 / f64::from(1 << 20),
            self.import_seconds,
            self.import_starts,
            self.lines_of_last_import,
            self.export_seconds,
            self.export_starts
        );
        let second =
            format!("{} whole scans while others wrote {} keys: {} faults in all", self.scans, self.written_by_others, self.faults.len());
        [first, second].into_iter().chain(self.faults.iter().take(20).cloned()).collect()
    }

    /// Whether nothing was wrong.
    pub fn is_fine(&self) -> bool {
        self.faults.is_empty()
    }
}

/// How a command is ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interruption {
    CtrlC,
    Kill9,
    /// It is let run; a node is killed.
    NodeKilled(usize),
}

/// Runs it on three nodes with their data in `folder`; of the packages at most `packages_max`.
///
/// # Errors
/// If the cluster does not start, or a command fails otherwise than it may.
pub async fn run(binary: &Path, folder: &Path, packages_max: Option<usize>) -> anyhow::Result<BulkReport> {
    let source: BTreeMap<Vec<u8>, Vec<u8>> = packages()?.into_iter().take(packages_max.unwrap_or(usize::MAX)).collect();
    let source = Rc::new(source);
    let (imported, exported) = (folder.join("packages.ndjson"), folder.join("again.ndjson"));
    fs::write(&imported, lines_of(&source)).context("writing the file to import")?;
    let mut cluster = Cluster::start(binary, folder).await?;
    let endpoints: Vec<String> = cluster.addresses().iter().map(|address| format!("http://{address}")).collect();
    let endpoints = endpoints.join(",");
    let mut report = BulkReport { packages: source.len(), file_bytes: fs::metadata(&imported)?.len(), ..BulkReport::default() };

    let begun = Instant::now();
    let state = folder.join("packages.ndjson.import");
    for (interruption, part) in
        [(Interruption::CtrlC, 0.2), (Interruption::Kill9, 0.4), (Interruption::NodeKilled(1), 0.6), (Interruption::NodeKilled(0), 1.1)]
    {
        let mark = (part * report.file_bytes as f64) as u64;
        let reached = || fs::read(&state).ok().and_then(|json| offset_of(&json)).is_some_and(|offset| offset >= mark);
        report.import_starts += 1;
        let mut command = Command::new(binary);
        command.arg("import").arg(&imported).args(["--json", "--jobs", "4", "--endpoint", &endpoints]);
        let text = through(command, interruption, reached, &mut cluster).await?;
        let Some(text) = text else { continue };
        let done: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("what import printed: {text:?}"))?;
        ensure!(done["whole"] == true, "import ended well and is not whole: {text}");
        report.lines_of_last_import = done["lines"].as_u64().unwrap_or_default();
        break;
    }
    report.import_seconds = begun.elapsed().as_secs_f64();
    cluster.relaunch_missing().await?;
    ensure!(!state.exists(), "an import that is through leaves no state");

    // Scans while others write, among them to keys that the scans see.
    let others = Others::start(&cluster);
    for _ in 0..3 {
        report.scans += 1;
        check_scan(&cluster.client(), &source, &mut report.faults).await?;
    }

    let begun = Instant::now();
    let partial = folder.join("again.ndjson.partial");
    for (interruption, part) in
        [(Interruption::CtrlC, 0.2), (Interruption::Kill9, 0.4), (Interruption::NodeKilled(2), 0.6), (Interruption::CtrlC, 2.0)]
    {
        let mark = (part * report.file_bytes as f64) as u64;
        let reached = || fs::metadata(&partial).is_ok_and(|partial| partial.len() >= mark);
        report.export_starts += 1;
        // What the packages are, not what others write.
        let mut command = Command::new(binary);
        command.arg("export").arg(&exported).args(["--start", "0", "--endpoint", &endpoints]);
        if through(command, interruption, reached, &mut cluster).await?.is_some() {
            break;
        }
    }
    report.export_seconds = begun.elapsed().as_secs_f64();
    report.written_by_others = others.end().await;
    cluster.relaunch_missing().await?;
    compare(&exported, &source, &mut report.faults)?;
    cluster.stop();
    Ok(report)
}

/// What a scan of everything shows, while others write: all of the source, in order, each key once.
async fn check_scan(client: &Client, source: &BTreeMap<Vec<u8>, Vec<u8>>, faults: &mut Vec<String>) -> anyhow::Result<()> {
    let mut scan = Scan::new(client.clone(), ScanRequest::default(), Duration::from_secs(30));
    let (mut last, mut seen) = (Vec::new(), 0);
    while let Some(item) = scan.next().await? {
        if item.key <= last {
            faults.push(format!("a scan shows {} behind {}", item.key.escape_ascii(), last.escape_ascii()));
        }
        if let Some(value) = source.get(&item.key) {
            seen += 1;
            if item.value.as_ref() != Some(value) {
                faults.push(format!("a scan shows another value of {}", item.key.escape_ascii()));
            }
        }
        last = item.key;
    }
    if seen != source.len() {
        faults.push(format!("a scan shows {seen} of {} keys", source.len()));
    }
    Ok(())
}

fn compare(exported: &Path, source: &BTreeMap<Vec<u8>, Vec<u8>>, faults: &mut Vec<String>) -> anyhow::Result<()> {
    let text = fs::read(exported).with_context(|| format!("reading {}", exported.display()))?;
    let mut expected = source.iter();
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let item = Item::parse(line.trim_ascii_end().to_vec())?;
        match expected.next() {
            Some((key, value)) if *key == item.key && Some(value) == item.value.as_ref() => {}
            other => faults.push(format!(
                "the export has {} where {} was imported, or with another value",
                item.key.escape_ascii(),
                other.map_or("nothing".to_owned(), |(key, _)| key.escape_ascii().to_string())
            )),
        }
    }
    let missing = expected.count();
    if missing > 0 {
        faults.push(format!("the export lacks the last {missing} keys"));
    }
    Ok(())
}

fn lines_of(source: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in source {
        write_item(&mut text, &Key::new(key.clone()).expect("a package has a name"), Version(1), Some(value));
        text.push(b'\n');
    }
    text
}

/// Runs a command to its end or its interruption, once `reached` holds. Gives what it printed if it went through.
async fn through(
    mut command: Command,
    interruption: Interruption,
    reached: impl Fn() -> bool,
    cluster: &mut Cluster,
) -> anyhow::Result<Option<String>> {
    let mut child = spawn_bound(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let deadline = Instant::now() + COMMAND_TIME_MAX;
    let mut done = false;
    while child.try_wait()?.is_none() {
        ensure!(Instant::now() < deadline, "a command takes longer than {COMMAND_TIME_MAX:?}");
        if !done && reached() {
            done = true;
            match interruption {
                Interruption::CtrlC => signal(child.id(), libc::SIGINT),
                Interruption::Kill9 => signal(child.id(), libc::SIGKILL),
                Interruption::NodeKilled(at) => cluster.kill(at),
            }
        }
        tokio::time::sleep(POLL).await;
    }
    let output = child.wait_with_output()?;
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() {
        return Ok(Some(String::from_utf8(output.stdout)?));
    }
    match (done, interruption) {
        (true, Interruption::CtrlC) if words.contains("interrupted") && words.lines().count() == 1 => Ok(None),
        (true, Interruption::Kill9) => Ok(None),
        _ => bail!("a command failed ({}): {words}", output.status),
    }
}

#[expect(unsafe_code, reason = "a signal to a child that has not been waited for has no safe face in std")]
fn signal(process: u32, signal: i32) {
    // SAFETY: no memory is involved.
    unsafe { libc::kill(process as libc::pid_t, signal) };
}

fn offset_of(state: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(state).ok()?["offset"].as_u64()
}

/// A writer of other keys.
struct Others {
    stop: Rc<Cell<bool>>,
    task: tokio::task::JoinHandle<u64>,
}

impl Others {
    fn start(cluster: &Cluster) -> Others {
        let (stop, addresses) = (Rc::new(Cell::new(false)), cluster.addresses());
        let stopped = stop.clone();
        let task = tokio::task::spawn_local(async move {
            let (mut written, mut at) = (0, 0);
            let mut wire = Wire::new(addresses[0], Duration::from_secs(2));
            while !stopped.get() {
                if wire.put(format!("{OTHERS}{written:08}").as_bytes(), b"x").await == WriteEnd::Done {
                    written += 1;
                } else {
                    at = (at + 1) % addresses.len();
                    wire.turn_to(addresses[at]);
                }
            }
            written
        });
        Others { stop, task }
    }

    async fn end(self) -> u64 {
        self.stop.set(true);
        self.task.await.expect("a writer does not panic")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("x");
        let source: BTreeMap<Vec<u8>, Vec<u8>> = [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"\xff".to_vec())].into();
        let faults = |text: &[u8]| {
            fs::write(&file, text).expect("it can be written");
            let mut faults = Vec::new();
            compare(&file, &source, &mut faults).expect("lines");
            faults.len()
        };
        let whole = lines_of(&source);
        assert_eq!(faults(&whole), 0);
        assert_eq!(faults(whole[..whole.len() / 2 + 1].split_inclusive(|&b| b == b'\n').next().expect("a line")), 1);
        assert!(faults(&lines_of(&[(b"a".to_vec(), b"2".to_vec())].into())) >= 2);
    }
}
