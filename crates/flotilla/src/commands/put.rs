//! `flotilla put KEY VALUE`: writes a key and prints the version it has now.

use super::{CommandError, Target, print, print_line};
use anyhow::Context;
use clap::Args;
use flotilla::client::Ask;
use flotilla::text::parse_duration;
use hyper::Method;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Args, Debug)]
pub(crate) struct PutArgs {
    key: OsString,
    /// The value; `-` reads it from standard input.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    value: Option<OsString>,
    /// Read the value from a file.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Write only if this is the key's version.
    #[arg(long, value_name = "VERSION", conflicts_with = "if_absent")]
    if_version: Option<u64>,
    /// Write only if there is no such key.
    #[arg(long)]
    if_absent: bool,
    /// How long the key has the value, such as 30s, 5m, 2h or 7d; then it is gone. For ever if this is left out.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// Print the server's answer, JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

impl PutArgs {
    pub(super) async fn run(self) -> Result<ExitCode, CommandError> {
        let mut path = self.target.key_path("/v1/kv", &self.key)?;
        if let Some(ttl) = self.ttl {
            path += &format!("&ttl={}ms", ttl.as_millis());
        }
        let value = match (&self.file, self.value) {
            (Some(file), _) => std::fs::read(file).with_context(|| format!("reading {}", file.display()))?,
            (None, Some(value)) if value != "-" => value.into_vec(),
            _ => {
                let mut value = Vec::new();
                std::io::stdin().read_to_end(&mut value).context("reading standard input")?;
                value
            }
        };
        let mut ask = Ask::new(Method::PUT, path).body(value);
        if let Some(version) = self.if_version {
            ask = ask.header("if-match", format!("\"{version}\""));
        }
        if self.if_absent {
            ask = ask.header("if-none-match", "*");
        }
        let answer = self.target.send(&ask).await?;
        if self.json {
            print(&answer.body)?;
            return Ok(ExitCode::SUCCESS);
        }
        print_line(&answer.version().context("the server gave no version")?.to_string())?;
        Ok(ExitCode::SUCCESS)
    }
}
