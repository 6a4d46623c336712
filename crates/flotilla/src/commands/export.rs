//! `flotilla export`: every key and value, a JSON object a line, to a file or standard output.
//!
//! A file gets its name only when it is whole: until then it is `FILE.partial`, and `FILE.partial.export` says what
//! it is an export of. The same command goes on behind its last whole line. Progress is shown on a
//! terminal, and nothing in a pipe.

use super::resume::{beside, interruption, load, remove, save};
use super::scan::RangeArgs;
use super::{CommandError, Target};
use anyhow::{Context, anyhow, bail};
use clap::Args;
use flotilla::lines::Item;
use flotilla::scan::{Scan, ScanRequest};
use indicatif::{HumanBytes, HumanCount, ProgressBar};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufWriter, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often what is shown changes.
const SHOW_EVERY: Duration = Duration::from_millis(200);
/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;

#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// Where to; `-` or nothing: standard output.
    file: Option<PathBuf>,
    #[command(flatten)]
    range: RangeArgs,
    #[command(flatten)]
    target: Target,
}

/// What a partial file is an export of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ExportState {
    cluster_id: String,
    prefix: Vec<u8>,
    start: Vec<u8>,
    end: Vec<u8>,
}

/// What was written so far, shown now and then.
struct Progress {
    bar: ProgressBar,
    began: Instant,
    shown: Instant,
    keys: u64,
    bytes: u64,
}

impl ExportArgs {
    pub(super) async fn run(self) -> Result<ExitCode, CommandError> {
        let mut request = self.range.request();
        let client = self.target.client();
        let Some(path) = self.file.filter(|file| file != Path::new("-")) else {
            let scan = Scan::new(client, request, self.target.timeout);
            write(scan, std::io::stdout().lock(), !std::io::stdout().is_terminal()).await?;
            return Ok(ExitCode::SUCCESS);
        };
        let partial = beside(&path, ".partial");
        let state_path = beside(&partial, ".export");
        let cluster_id = self.target.cluster_id().await?;
        let state = ExportState { cluster_id, prefix: request.prefix.clone(), start: request.start.clone(), end: request.end.clone() };
        let file = open_partial(&partial, &state_path, &state, &mut request)?;
        let interruption = interruption()?;
        tokio::select! {
            biased;
            // What is not in the file yet is asked for again.
            () = interruption.notified() => {
                return Err(anyhow!("interrupted: the same command goes on behind the last line of {}", partial.display()).into());
            }
            written = write(Scan::new(client, request, self.target.timeout), &file, true) => {
                written.with_context(|| format!("{} is not whole; the same command goes on", partial.display()))?;
            }
        }
        file.sync_all().with_context(|| format!("writing {}", partial.display()))?;
        std::fs::rename(&partial, &path).with_context(|| format!("naming {}", path.display()))?;
        remove(&state_path)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The partial file, new or as an earlier export of the same left it; then `request` begins behind its last line.
fn open_partial(partial: &Path, state_path: &Path, state: &ExportState, request: &mut ScanRequest) -> anyhow::Result<File> {
    let known = load::<ExportState>(state_path)?;
    match known.filter(|_| partial.exists()) {
        Some(known) if known != *state => {
            bail!("{} is of another cluster or other keys: remove it and {} to begin again", partial.display(), state_path.display())
        }
        Some(_) => {
            let at = || format!("going on with {}", partial.display());
            let mut file = File::options().read(true).write(true).open(partial).with_context(at)?;
            if let Some(last) = cut_after_last_line(&mut file).with_context(at)? {
                let last = Item::parse(last).context("its last line is damaged, remove it to begin again").with_context(at)?;
                request.start = [&last.key[..], &[0]].concat();
            }
            Ok(file)
        }
        None => {
            // First, so that no partial file is ever without.
            save(state_path, state)?;
            File::create(partial).with_context(|| format!("creating {}", partial.display()))
        }
    }
}

/// Cuts off what stands behind the last end of a line, and gives the last line; the file is then at its end.
fn cut_after_last_line(file: &mut File) -> anyhow::Result<Option<Vec<u8>>> {
    let mut begin = file.seek(SeekFrom::End(0))?;
    let mut tail = Vec::new();
    // The tail grows backwards until it holds a whole line.
    loop {
        let count = begin.min(1 << 20);
        begin -= count;
        let mut piece = vec![0; count as usize];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(&mut piece)?;
        piece.append(&mut tail);
        tail = piece;
        let end = memchr::memrchr(b'\n', &tail).map_or(0, |end| end + 1);
        let line_begin = tail[..end].strip_suffix(b"\n").and_then(|line| memchr::memrchr(b'\n', line)).map(|last| last + 1);
        if line_begin.is_none() && begin > 0 {
            continue;
        }
        file.set_len(begin + end as u64)?;
        file.seek(SeekFrom::End(0))?;
        return Ok((end > 0).then(|| tail[line_begin.unwrap_or(0)..end - 1].to_vec()));
    }
}

async fn write(mut scan: Scan, out: impl Write, may_show: bool) -> anyhow::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
    let is_shown = may_show && std::io::stderr().is_terminal();
    let now = Instant::now();
    let bar = if is_shown { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    let mut progress = Progress { bar, began: now, shown: now, keys: 0, bytes: 0 };
    while let Some(item) = scan.next().await? {
        out.write_all(&item.line).and_then(|()| out.write_all(b"\n")).context("writing")?;
        progress.keys += 1;
        progress.bytes += item.line.len() as u64 + 1;
        if progress.keys.is_multiple_of(1_000) {
            progress.show();
        }
    }
    out.flush().context("writing")?;
    progress.bar.finish_with_message(progress.text());
    Ok(())
}

impl Progress {
    fn show(&mut self) {
        if self.shown.elapsed() >= SHOW_EVERY {
            self.shown = Instant::now();
            self.bar.set_message(self.text());
            self.bar.tick();
        }
    }

    fn text(&self) -> String {
        let rate = self.keys as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        format!("{} keys, {}, {} keys/s", HumanCount(self.keys), HumanBytes(self.bytes), HumanCount(rate as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(range: &str) -> ScanRequest {
        ScanRequest { start: range.into(), ..ScanRequest::default() }
    }

    #[test]
    fn an_export_goes_on_behind_its_last_whole_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let (partial, state_path) = (folder.path().join("x.partial"), folder.path().join("x.partial.export"));
        let state = |start: &str| ExportState { cluster_id: "c".into(), prefix: Vec::new(), start: start.into(), end: Vec::new() };
        let open = |asked: &str| {
            let mut request = request(asked);
            open_partial(&partial, &state_path, &state(asked), &mut request).map(|file| (file, request.start))
        };
        assert_eq!(open("").expect("new").1, b"");
        let long = format!("{{\"key\":\"b\",\"value\":\"{}\"}}\n", "v".repeat(3 << 20));
        for (content, kept, start) in [
            ("", 0, &b""[..]),
            ("{\"key\":\"a", 0, b""),
            ("{\"key\":\"a\"}\n", 12, b"a\0"),
            ("{\"key\":\"a\"}\n{\"key\":\"b\"}\n{\"ke", 24, b"b\0"),
            (&format!("{{\"key\":\"a\"}}\n{long}{{\"key"), 12 + long.len(), b"b\0"),
        ] {
            std::fs::write(&partial, content).expect("it can be written");
            let (mut file, asked) = open("").expect("it goes on");
            assert_eq!((file.stream_position().expect("a file"), &*asked), (kept as u64, start));
            assert_eq!(std::fs::metadata(&partial).expect("it is there").len(), kept as u64);
        }
        assert!(open("x").expect_err("other keys").to_string().contains("other keys"));
        std::fs::write(&partial, "\0\0\n").expect("it can be written");
        assert!(format!("{:#}", open("").expect_err("damaged")).contains("begin again"));
    }
}
