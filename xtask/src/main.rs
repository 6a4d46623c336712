//! Every routine of the project: `cargo xtask ci|tidy|golden|sim|fuzz`.

mod fuzz;
mod tidy;

use anyhow::{Result, bail};
use std::process::Command;

const HELP: &str = "usage: cargo xtask ROUTINE
  ci             everything that must hold before a change lands
  tidy           what the compiler cannot check: crate arrows, the pure core, module docs
  golden         rewrite the outputs of golden scripts (review the diff like code)
  sim [ARGS]     the simulation, in release: --seed N, --seeds A..B, --plant FAULT, ...
  fuzz [TARGET]  the decoders' fuzz targets: --short, --minutes N; with cargo-fuzz if it is there";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let routine = arguments.next();
    let rest: Vec<String> = arguments.collect();
    match routine.as_deref() {
        Some("ci") => ci(),
        Some("tidy") => tidy::run(),
        Some("golden") => {
            let status = Command::new("cargo").args(["test", "--workspace", "--", "golden"]).env("UPDATE_GOLDENFILES", "1").status()?;
            if status.success() { Ok(()) } else { bail!("golden: some scripts failed beside their outputs") }
        }
        Some("fuzz") => fuzz::run(&rest),
        Some("sim") => {
            let mut command = vec!["run", "--release", "--quiet", "--package", "flotilla-sim", "--"];
            command.extend(rest.iter().map(String::as_str));
            cargo(&command)
        }
        _ => {
            eprintln!("{HELP}");
            std::process::exit(2);
        }
    }
}

fn ci() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    tidy::run()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    cargo(&["test", "--workspace"])?;
    fuzz::run(&["--short".to_owned()])
}

fn cargo(arguments: &[&str]) -> Result<()> {
    eprintln!("=== cargo {}", arguments.join(" "));
    let status = Command::new("cargo").args(arguments).status()?;
    if status.success() { Ok(()) } else { bail!("cargo {} failed", arguments.join(" ")) }
}
