//! `flotilla`: a node (`serve`), a whole local cluster (`demo`), and the client commands.
//!
//! One file a command under `commands/`. Results go to standard output, everything else to standard
//! error. Exit codes: 0 fine, 1 failed, 2 bad usage, and 3 where `get` finds no such key.
#![allow(clippy::disallowed_methods, reason = "outside of the core: clocks, files and processes are what this is about")]

mod commands;

use clap::Parser;
use commands::{Command, CommandError};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A replicated, sharded key-value store that goes on answering while nodes fail.
#[derive(Debug, Parser)]
#[command(name = "flotilla", version, max_term_width = 110, disable_help_subcommand = true)]
struct Flotilla {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match Flotilla::parse().command.run() {
        Ok(code) => code,
        Err(CommandError::Usage(message)) => {
            eprintln!("flotilla: {message}");
            ExitCode::from(2)
        }
        Err(CommandError::Failed(error)) => {
            eprintln!("flotilla: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}
