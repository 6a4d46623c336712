//! `flotilla import`: keys and values from lines of JSON, as `flotilla export` writes them.
//!
//! Beside a file stands `FILE.import` while it goes on: how far everything is acknowledged. The same command
//! goes on from there after Ctrl-C, a crash or a failure. Standard input is read from its beginning each time.
//!
//! Lines between that mark and the interruption are written again; that undoes what others wrote to those keys
//! in between, as the whole import would have.

use super::resume::{beside, interruption, load, remove, save};
use super::{CommandError, Target, print_line};
use anyhow::{Context, anyhow, bail};
use clap::Args;
use flotilla::import::{Import, ImportPlan, Put};
use flotilla::lines::Item;
use flotilla::text::parse_duration;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often progress is shown and the state saved.
const SHOW_EVERY: Duration = Duration::from_millis(200);
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Of the input, so much before the mark tells it from others.
const SAMPLE_BYTES: u64 = 4 << 10;
/// A line longer than this is no line: a value of 64 MiB in base64, and its key.
const LINE_BYTES_MAX: u64 = 96 << 20;

#[derive(Args, Debug)]
pub(crate) struct ImportArgs {
    /// From where; `-` or nothing: standard input.
    file: Option<PathBuf>,
    /// Batches under way at once.
    #[arg(long, value_name = "COUNT", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Leave keys that exist as they are.
    #[arg(long)]
    only_absent: bool,
    /// How long to go on while the cluster takes nothing.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    retry_for: Duration,
    /// Read and check all lines, write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// How far an import came, and of what.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ImportState {
    /// Into which cluster.
    cluster_id: String,
    /// Everything before this byte is acknowledged.
    offset: u64,
    /// Lines before it.
    lines: u64,
    /// Of what stands right before it, CRC-32C: the input must be the same.
    sample: u32,
}

/// The input, line by line.
struct Lines {
    input: Box<dyn BufRead>,
    offset: u64,
    number: u64,
}

/// Where the state of an import is kept.
struct Mark {
    path: PathBuf,
    input: File,
    state: ImportState,
    /// Lines and where they end, of those that are not acknowledged all.
    ends: std::collections::VecDeque<(u64, u64)>,
    saved: Instant,
}

impl ImportArgs {
    pub(super) async fn run(self) -> Result<ExitCode, CommandError> {
        let path = self.file.clone().filter(|file| file != Path::new("-"));
        let mut lines = Lines { input: Box::new(BufReader::new(std::io::stdin())), offset: 0, number: 0 };
        let (mut mark, mut size) = (None, None);
        if let Some(path) = &path {
            let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
            size = Some(file.metadata()?.len());
            if !self.dry_run {
                let cluster_id = self.target.cluster_id().await?;
                let mark = mark.insert(Mark::find(path, file.try_clone()?, cluster_id)?);
                (lines.offset, lines.number) = (mark.state.offset, mark.state.lines);
            }
            file.seek(SeekFrom::Start(lines.offset))?;
            lines.input = Box::new(BufReader::with_capacity(1 << 20, file));
        }
        let resumed_at = lines.offset;
        let bar = progress_bar(size, resumed_at);
        if resumed_at > 0 && std::io::stderr().is_terminal() {
            bar.println(format!("going on at line {}, byte {resumed_at}", lines.number + 1));
        }
        let plan = ImportPlan {
            endpoints: self.target.endpoint.clone(),
            timeout: self.target.timeout,
            lanes: usize::from(self.jobs),
            retry_for: self.retry_for,
            only_absent: self.only_absent,
        };
        let mut import = Import::new(plan, lines.offset);
        let began = Instant::now();
        let first = lines.number;
        let ended = self.work(&mut lines, &mut import, &mut mark, &bar).await;
        if !matches!(ended, Ok(Ended::Whole)) {
            // What is under way may end well; what does not in time is done again.
            let _ = tokio::time::timeout(self.target.timeout, import.settle()).await;
        }
        if let Some(mark) = &mut mark {
            match ended {
                Ok(Ended::Whole) => remove(&mark.path)?,
                _ => mark.save(import.done_up_to())?,
            }
        }
        let (count, checked) = (import.count(), lines.number - first);
        let rate = count.written as f64 / began.elapsed().as_secs_f64().max(0.001);
        bar.finish_and_clear();
        if std::io::stderr().is_terminal() && !self.dry_run {
            eprintln!("{} keys written, {} keys/s", HumanCount(count.written), HumanCount(rate as u64));
        }
        if self.json {
            let whole = matches!(ended, Ok(Ended::Whole));
            let done = serde_json::json!({"lines": checked, "written": count.written, "skipped": count.skipped, "repeated": count.repeated,
                "whole": whole});
            print_line(&done.to_string())?;
        } else if self.dry_run && ended.is_ok() {
            print_line(&format!("{checked} lines are fine"))?;
        }
        let again = || match &path {
            Some(_) => "the same command goes on from there",
            None => "what is written stays; standard input has to be read again from its beginning",
        };
        match ended {
            Ok(Ended::Whole) => Ok(ExitCode::SUCCESS),
            Ok(Ended::Interrupted) => Err(anyhow!("interrupted after {} keys: {}", count.written, again()).into()),
            Err(error) => Err(error.context(format!("ended after {} keys; {}", count.written, again())).into()),
        }
    }

    async fn work(&self, lines: &mut Lines, import: &mut Import, mark: &mut Option<Mark>, bar: &ProgressBar) -> anyhow::Result<Ended> {
        let interruption = interruption()?;
        let mut interrupted = std::pin::pin!(interruption.notified());
        let mut shown = Instant::now();
        while let Some(put) = lines.next()? {
            let key_problem = match put.key.len() {
                1..=flotilla_types::KEY_BYTES_MAX => None,
                bytes => Some(format!("line {}: a key has 1 to {} bytes, this one has {bytes}", put.line, flotilla_types::KEY_BYTES_MAX)),
            };
            if let Some(problem) = key_problem {
                bail!(problem);
            }
            if !self.dry_run {
                if let Some(mark) = mark {
                    mark.ends.push_back((lines.number, lines.offset));
                }
                tokio::select! {
                    biased;
                    () = &mut interrupted => return Ok(Ended::Interrupted),
                    put = import.put(put, lines.offset) => put?,
                }
            }
            // A clock is read often enough this way, and signals and answers are seen.
            if lines.number.is_multiple_of(256) {
                tokio::task::yield_now().await;
                if let Some(mark) = mark {
                    mark.note(import.done_up_to())?;
                }
                if shown.elapsed() >= SHOW_EVERY {
                    shown = Instant::now();
                    bar.set_position(if self.dry_run { lines.offset } else { import.done_up_to() });
                    bar.set_message(format!("{} lines", HumanCount(lines.number)));
                }
            }
        }
        tokio::select! {
            biased;
            () = &mut interrupted => Ok(Ended::Interrupted),
            finished = import.finish() => finished.map(|()| Ended::Whole),
        }
    }
}

/// How an import ended that did not fail.
enum Ended {
    Whole,
    Interrupted,
}

impl Lines {
    /// The next line that is not empty.
    fn next(&mut self) -> anyhow::Result<Option<Put>> {
        loop {
            let (offset, mut text) = (self.offset, Vec::new());
            let read = self.input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut text).context("reading")?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if read as u64 == LINE_BYTES_MAX {
                bail!("line {} is longer than {}: this is no export", self.number, HumanBytes(LINE_BYTES_MAX));
            }
            self.offset += read as u64;
            let at = || format!("line {}", self.number);
            if text.trim_ascii().is_empty() {
                continue;
            }
            let item = Item::parse(text).with_context(at)?;
            let value = item.value.with_context(|| format!("{}: it has no value", at()))?;
            return Ok(Some(Put { offset, line: self.number, key: item.key, value }));
        }
    }
}

impl Mark {
    /// The state of an earlier import of this file, or of none.
    fn find(path: &Path, mut input: File, cluster_id: String) -> anyhow::Result<Mark> {
        let state_path = beside(path, ".import");
        let begin_again = || format!("remove {} to begin again", state_path.display());
        let state = match load::<ImportState>(&state_path)? {
            Some(state) if state.cluster_id != cluster_id => {
                bail!("an import of {} into another cluster ({}) was interrupted: {}", path.display(), state.cluster_id, begin_again())
            }
            Some(state) if sample(&mut input, state.offset)? != Some(state.sample) => {
                bail!("{} has changed since its import was interrupted: {}", path.display(), begin_again())
            }
            Some(state) => state,
            None => ImportState { cluster_id, offset: 0, lines: 0, sample: crc32c::crc32c(b"") },
        };
        Ok(Mark { path: state_path, input, state, ends: std::collections::VecDeque::new(), saved: Instant::now() })
    }

    /// Saves the mark now and then.
    fn note(&mut self, offset: u64) -> anyhow::Result<()> {
        if self.saved.elapsed() < SAVE_EVERY {
            return Ok(());
        }
        self.save(offset)
    }

    fn save(&mut self, offset: u64) -> anyhow::Result<()> {
        self.saved = Instant::now();
        while let Some((line, end)) = self.ends.front().copied().filter(|(_, end)| *end <= offset) {
            (self.state.lines, self.state.offset) = (line, end);
            self.ends.pop_front();
        }
        self.state.sample = sample(&mut self.input, self.state.offset)?.context("the input became shorter while it was read")?;
        save(&self.path, &self.state)
    }
}

/// The checksum of what stands before `offset`; `None` if the file ends before it.
fn sample(input: &mut File, offset: u64) -> anyhow::Result<Option<u32>> {
    use std::os::unix::fs::FileExt;
    let count = offset.min(SAMPLE_BYTES);
    let mut bytes = vec![0; count as usize];
    // Not through the shared position, at which lines are read.
    match input.read_exact_at(&mut bytes, offset - count) {
        Ok(()) => Ok(Some(crc32c::crc32c(&bytes))),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error).context("reading"),
    }
}

fn progress_bar(size: Option<u64>, offset: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let Some(size) = size else { return ProgressBar::new_spinner() };
    let form = "{bar:30} {bytes} of {total_bytes}, {msg}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(form).expect("the template is fixed");
    let bar = ProgressBar::new(size).with_style(style).with_position(offset);
    bar.reset_eta();
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str) -> Lines {
        Lines { input: Box::new(text.as_bytes()), offset: 0, number: 0 }
    }

    #[test]
    fn lines_are_counted_and_placed() {
        let mut lines = lines("{\"key\":\"a\",\"value\":\"1\",\"version\":3}\n\n{\"key_b64\":\"/w==\",\"value_b64\":\"/w==\"}");
        let first = lines.next().expect("fine").expect("a line");
        assert_eq!((first.offset, first.line, &*first.key, &*first.value), (0, 1, &b"a"[..], &b"1"[..]));
        assert_eq!(lines.offset, 36);
        let second = lines.next().expect("fine").expect("a line");
        assert_eq!((second.offset, second.line, &*second.key, &*second.value), (37, 3, &b"\xff"[..], &b"\xff"[..]));
        assert!(lines.next().expect("fine").is_none());
    }

    #[test]
    fn what_is_no_line_of_an_export_is_named_by_its_number() {
        for (text, words) in [
            ("{\"key\":\"a\",\"value\":\"1\"}\nx\n", "line 2: not a JSON object"),
            ("{\"key\":\"a\"}\n", "line 1: it has no value"),
            ("{\"value\":\"a\"}\n", "line 1: it has no key"),
            ("{\"error\":{\"status\":503,\"detail\":\"no quorum\"}}\n", "line 1: no quorum"),
            ("{\"key\":\"a\",\"value\":\"1\"", "line 1: not a JSON object"),
        ] {
            let mut lines = lines(text);
            let error = loop {
                match lines.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("{text:?} was taken"),
                    Err(error) => break format!("{error:#}"),
                }
            };
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_import_goes_on_only_with_the_same_file_and_cluster() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys");
        std::fs::write(&path, "first line\nsecond line\n").expect("it can be written");
        let find = |cluster: &str| Mark::find(&path, File::open(&path).expect("it is there"), cluster.into());
        let mut mark = find("c").expect("none before");
        mark.ends.extend([(1, 11), (2, 23)]);
        mark.save(15).expect("it can be saved");
        assert_eq!(find("c").expect("the same").state, ImportState { offset: 11, lines: 1, ..mark.state });
        assert!(find("d").err().expect("another cluster").to_string().contains("another cluster"));
        std::fs::write(&path, "other line\nsecond line\n").expect("it can be written");
        assert!(find("c").err().expect("another file").to_string().contains("has changed"));
        std::fs::write(&path, "first").expect("it can be written");
        assert!(find("c").err().expect("a shorter file").to_string().contains("has changed"));
    }
}
