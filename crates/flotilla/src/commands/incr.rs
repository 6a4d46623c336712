//! `flotilla incr KEY [--by N]`: adds to the integer that a key holds and prints the sum.

use super::{CommandError, Target, print, print_line};
use anyhow::Context;
use clap::Args;
use flotilla::client::Ask;
use hyper::Method;
use std::ffi::OsString;
use std::process::ExitCode;

#[derive(Args, Debug)]
pub(crate) struct IncrArgs {
    key: OsString,
    /// What is added; a key that is absent counts from 0.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    by: i64,
    /// Add only if this is the key's version.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Print the server's answer, JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

impl IncrArgs {
    pub(super) async fn run(self) -> Result<ExitCode, CommandError> {
        let path = self.target.key_path("/v1/kv", &self.key)?;
        let (key, query) = path.split_once('?').context("a path has its timeout behind it")?;
        let mut ask = Ask::new(Method::POST, format!("{key}/incr?{query}&by={}", self.by));
        if let Some(version) = self.if_version {
            ask = ask.header("if-match", format!("\"{version}\""));
        }
        let answer = self.target.send(&ask).await?;
        if self.json {
            print(&answer.body)?;
            return Ok(ExitCode::SUCCESS);
        }
        let document: serde_json::Value = serde_json::from_slice(&answer.body).context("the server's answer")?;
        print_line(&document["value"].as_i64().context("the server gave no value")?.to_string())?;
        Ok(ExitCode::SUCCESS)
    }
}
