//! `flotilla scan`: keys and values in order. For people a line each, long values cut on a terminal; in a
//! pipe tab-separated and whole, what is not printable escaped; with `--json` the server's lines.

use super::{CommandError, Target};
use clap::Args;
use flotilla::lines::Item;
use flotilla::scan::{Scan, ScanRequest};
use flotilla::text::escape_line;
use std::ffi::OsString;
use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

/// How much of a value is shown on a terminal.
const SHOWN_LETTERS_MAX: usize = 100;

#[derive(Args, Debug)]
pub(crate) struct ScanArgs {
    #[command(flatten)]
    range: RangeArgs,
    /// Stop after so many keys.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Begin with the last key.
    #[arg(long)]
    reverse: bool,
    /// Leave values out.
    #[arg(long)]
    keys_only: bool,
    /// Print a JSON object a line: key, value, version; key_b64 and value_b64 for what is not UTF-8.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// Which keys.
#[derive(Args, Clone, Debug)]
pub(crate) struct RangeArgs {
    /// Only keys that begin with this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: OsString,
    /// Only keys from this one on.
    #[arg(long, value_name = "KEY", default_value = "")]
    start: OsString,
    /// Only keys before this one.
    #[arg(long, value_name = "KEY", default_value = "")]
    end: OsString,
}

impl RangeArgs {
    pub(super) fn request(self) -> ScanRequest {
        let RangeArgs { prefix, start, end } = self;
        ScanRequest { prefix: prefix.into_vec(), start: start.into_vec(), end: end.into_vec(), ..ScanRequest::default() }
    }
}

impl ScanArgs {
    pub(super) async fn run(self) -> Result<ExitCode, CommandError> {
        let ScanArgs { range, limit, reverse, keys_only, json, target } = self;
        let request = ScanRequest { limit, reverse, keys_only, ..range.request() };
        let mut scan = Scan::new(target.client(), request, target.timeout);
        let is_terminal = std::io::stdout().is_terminal();
        let mut out = BufWriter::new(std::io::stdout().lock());
        while let Some(item) = scan.next().await? {
            let written = match json {
                true => out.write_all(&item.line).and_then(|()| out.write_all(b"\n")),
                false => out.write_all(show(&item, is_terminal).as_bytes()),
            };
            // People see a line when it is there.
            match if is_terminal { written.and_then(|()| out.flush()) } else { written } {
                // The reader has seen enough (`| head`).
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
                result => result?,
            }
        }
        match out.flush() {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(ExitCode::SUCCESS),
        }
    }
}

fn show(item: &Item, is_terminal: bool) -> String {
    let key = escape_line(&item.key);
    let Some(value) = &item.value else { return format!("{key}\n") };
    // No more is looked at than is shown.
    let seen = if is_terminal { &value[..value.len().min(4 * SHOWN_LETTERS_MAX)] } else { &value[..] };
    let mut text = escape_line(seen);
    if is_terminal && let Some((end, _)) = text.char_indices().nth(SHOWN_LETTERS_MAX) {
        text.truncate(end);
        text += &format!("… ({} bytes)", value.len());
    }
    format!("{key}\t{text}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_everything_and_a_terminal_a_line() {
        let item = |value: Option<Vec<u8>>| Item { line: Vec::new(), key: b"a\tb".to_vec(), value };
        assert_eq!(show(&item(None), true), "a\\tb\n");
        assert_eq!(show(&item(Some(b"1\n\xff".to_vec())), false), "a\\tb\t1\\n\\xff\n");
        assert_eq!(show(&item(Some(vec![b'v'; 500])), false).len(), 506);
        let shown = show(&item(Some(vec![b'v'; 500])), true);
        assert!(shown.ends_with("v… (500 bytes)\n") && shown.chars().count() < 130, "{shown}");
    }
}
