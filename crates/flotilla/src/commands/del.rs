//! `flotilla del KEY`: deletes a key and says whether it was there.

use super::{CommandError, Target, print, print_line};
use anyhow::Context;
use clap::Args;
use flotilla::client::Ask;
use hyper::Method;
use std::ffi::OsString;
use std::process::ExitCode;

#[derive(Args, Debug)]
pub(crate) struct DelArgs {
    key: OsString,
    /// Delete only if this is the key's version.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Print the server's answer, JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

impl DelArgs {
    pub(super) async fn run(self) -> Result<ExitCode, CommandError> {
        let mut ask = Ask::new(Method::DELETE, self.target.key_path("/v1/kv", &self.key)?);
        if let Some(version) = self.if_version {
            ask = ask.header("if-match", format!("\"{version}\""));
        }
        let answer = self.target.send(&ask).await?;
        if self.json {
            print(&answer.body)?;
            return Ok(ExitCode::SUCCESS);
        }
        let document: serde_json::Value = serde_json::from_slice(&answer.body).context("the server's answer")?;
        print_line(if document["deleted"] == true { "deleted" } else { "no such key" })?;
        Ok(ExitCode::SUCCESS)
    }
}
