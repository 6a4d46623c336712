//! `flotilla get KEY`: the value's bytes, as they are, on standard output; with an end of line behind them on a terminal.

use super::{CommandError, Target, print};
use anyhow::Context;
use clap::Args;
use flotilla::client::Ask;
use flotilla_api::http::write_item;
use flotilla_types::{Key, Version};
use hyper::Method;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

/// What `get` exits with if there is no such key.
const EXIT_ABSENT: u8 = 3;

#[derive(Args, Debug)]
pub(crate) struct GetArgs {
    key: OsString,
    /// Accept what any replica has, however old.
    #[arg(long)]
    stale: bool,
    /// Print a JSON object: key, value, version; key_b64 and value_b64 for what is not UTF-8.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

impl GetArgs {
    pub(super) async fn run(self) -> Result<ExitCode, CommandError> {
        let consistency = if self.stale { "&consistency=stale" } else { "" };
        let path = self.target.key_path("/v1/kv", &self.key)? + consistency;
        let answer = self.target.client().send(&Ask::new(Method::GET, path)).await?;
        match answer.status {
            200 => {
                let mut text = answer.body.to_vec();
                if self.json {
                    let version = answer.version().context("the server gave no version")?;
                    text.clear();
                    write_item(&mut text, &Key::new(self.key.into_vec())?, Version(version), Some(&answer.body));
                }
                if self.json || (std::io::stdout().is_terminal() && !text.ends_with(b"\n")) {
                    text.push(b'\n');
                }
                print(&text).map(|()| ExitCode::SUCCESS)
            }
            404 => {
                eprintln!("flotilla: no such key");
                Ok(ExitCode::from(EXIT_ABSENT))
            }
            _ => Err(CommandError::Failed(anyhow::anyhow!("{}", answer.problem()))),
        }
    }
}
