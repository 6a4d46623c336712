//! `flotilla-fuzz`: the targets on stable Rust, over mutated seeds. `cargo xtask fuzz` runs it where there is no cargo-fuzz.
#![allow(clippy::disallowed_methods, reason = "outside of the core: clocks and files are what this is about")]

use clap::Parser;
use flotilla_fuzzing::allocations::Counting;
use flotilla_fuzzing::generate::Inputs;
use flotilla_fuzzing::{TARGETS, Target, run, target};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tries decoders with mutated inputs.
#[derive(Debug, Parser)]
#[command(name = "flotilla-fuzz")]
struct Arguments {
    /// Which; all unless given.
    targets: Vec<String>,
    /// How long each.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// What decides everything that is drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only write each target's seeds below this folder, as cargo-fuzz wants them.
    #[arg(long)]
    write_seeds: Option<PathBuf>,
    /// Only try the input in this file, with the one target named.
    #[arg(long)]
    input: Option<PathBuf>,
}

fn main() -> ExitCode {
    match work(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("flotilla-fuzz: {error}");
            ExitCode::from(2)
        }
    }
}

fn work(arguments: &Arguments) -> Result<bool, String> {
    let chosen: Vec<&Target> = match arguments.targets.as_slice() {
        [] => TARGETS.iter().collect(),
        names => {
            let known = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
            names
                .iter()
                .map(|name| target(name).ok_or_else(|| format!("there is no target {name}; there are {}", known())))
                .collect::<Result<_, _>>()?
        }
    };
    if let Some(path) = &arguments.input {
        let input = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        chosen.iter().for_each(|target| run(target.name, &input));
        return Ok(true);
    }
    if let Some(folder) = &arguments.write_seeds {
        for target in chosen {
            write_seeds(&folder.join(target.name), target).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        return Ok(true);
    }
    let fine = chosen.into_iter().filter(|target| is_fine(target, arguments)).count();
    Ok(fine == if arguments.targets.is_empty() { TARGETS.len() } else { arguments.targets.len() })
}

/// Tries a target for its time. A fault's input is written beside where this runs, with the command that tries it again.
fn is_fine(target: &Target, arguments: &Arguments) -> bool {
    let mut inputs = Inputs::new((target.seeds)(), arguments.seed);
    let (began, mut count) = (Instant::now(), 0u64);
    while began.elapsed() < Duration::from_secs(arguments.seconds) {
        let input = inputs.next_input();
        count += 1;
        if catch_unwind(AssertUnwindSafe(|| run(target.name, input))).is_err() {
            let file = format!("fault-{}-{}", target.name, crc32c::crc32c(input));
            let told = std::fs::write(&file, input).map_or_else(|error| error.to_string(), |()| format!("its input: {file}"));
            eprintln!("{}: input {count} of seed {} found a fault; {told}", target.name, arguments.seed);
            return false;
        }
    }
    println!("{:<16} {count:>9} inputs, no fault", target.name);
    true
}

fn write_seeds(folder: &std::path::Path, target: &Target) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (number, seed) in (target.seeds)().into_iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{number}")), seed)?;
    }
    Ok(())
}
