//! `flotilla export`: every key and value, a JSON object a line, to a file or standard output.
//!
//! A file gets its name only when it is whole. Progress is shown on a terminal, and nothing in a pipe.

use super::scan::RangeArgs;
use super::{CommandError, Target};
use anyhow::Context;
use clap::Args;
use flotilla::scan::Scan;
use indicatif::{HumanBytes, HumanCount, ProgressBar};
use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
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
        let scan = Scan::new(self.target.client(), self.range.request(), self.target.timeout);
        match self.file.filter(|file| file != Path::new("-")) {
            None => write(scan, std::io::stdout().lock(), !std::io::stdout().is_terminal()).await?,
            Some(path) => {
                let mut partial = path.clone().into_os_string();
                partial.push(".partial");
                let partial = PathBuf::from(partial);
                let file = File::create(&partial).with_context(|| format!("creating {}", partial.display()))?;
                write(scan, &file, true).await?;
                file.sync_all().with_context(|| format!("writing {}", partial.display()))?;
                std::fs::rename(&partial, &path).with_context(|| format!("naming {}", path.display()))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn write(mut scan: Scan, out: impl Write, may_show: bool) -> Result<(), CommandError> {
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
