//! `flotilla get KEY`: the value's bytes, as they are, on standard output.

use super::{CommandError, Target, print};
use clap::Args;
use flotilla::client::Ask;
use hyper::Method;
use std::ffi::OsString;
use std::process::ExitCode;

/// What `get` exits with if there is no such key.
const EXIT_ABSENT: u8 = 3;

#[derive(Args, Debug)]
pub(crate) struct GetArgs {
    key: OsString,
    /// Accept what any replica has, however old.
    #[arg(long)]
    stale: bool,
    #[command(flatten)]
    target: Target,
}

impl GetArgs {
    pub(super) async fn run(self) -> Result<ExitCode, CommandError> {
        let consistency = if self.stale { "&consistency=stale" } else { "" };
        let path = self.target.key_path("/v1/kv", &self.key)? + consistency;
        let answer = self.target.client().send(&Ask::new(Method::GET, path)).await?;
        match answer.status {
            200 => print(&answer.body).map(|()| ExitCode::SUCCESS),
            404 => {
                eprintln!("flotilla: no such key");
                Ok(ExitCode::from(EXIT_ABSENT))
            }
            _ => Err(CommandError::Failed(anyhow::anyhow!("{}", answer.problem()))),
        }
    }
}
