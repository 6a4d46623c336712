//! `cargo xtask fuzz`: the fuzz targets under cargo-fuzz where it and nightly are there, else over mutated seeds on stable.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Of each target in a short run.
const SHORT_SECONDS: u64 = 2;
/// What a target may hold before libFuzzer calls it a fault, in MiB; the targets' own bound is far below.
const RSS_MIB_MAX: u64 = 1024;

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    targets: Vec<String>,
    seconds: u64,
    /// On stable in any case.
    stable: bool,
}

impl Plan {
    fn parse(arguments: &[String]) -> Result<Plan> {
        let mut plan = Plan { targets: Vec::new(), seconds: SHORT_SECONDS, stable: false };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut number = || -> Result<u64> { Ok(arguments.next().with_context(|| format!("{argument} wants a number"))?.parse()?) };
            match argument.as_str() {
                "--short" => plan.seconds = SHORT_SECONDS,
                "--seconds" => plan.seconds = number()?,
                "--minutes" => plan.seconds = number()? * 60,
                "--stable" => plan.stable = true,
                flag if flag.starts_with('-') => bail!("fuzz: there is no {flag}: give --short, --seconds N, --minutes N or --stable"),
                target => plan.targets.push(target.to_owned()),
            }
        }
        Ok(plan)
    }
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let plan = Plan::parse(arguments)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace lies above xtask")?;
    crate::cargo(&["build", "--quiet", "--workspace", "--bin", "flotilla-fuzz"])?;
    // Beside this program, wherever the target folder is.
    let on_stable = std::env::current_exe()?.with_file_name("flotilla-fuzz");
    if plan.stable || !has_cargo_fuzz(root) {
        println!("fuzz: mutated seeds on stable, {} s a target (cargo-fuzz with nightly would follow branches)", plan.seconds);
        let seconds = plan.seconds.to_string();
        return succeed(Command::new(on_stable).args(&plan.targets).args(["--seconds", &seconds]));
    }
    println!("fuzz: cargo-fuzz on nightly, {} s a target", plan.seconds);
    let targets = if plan.targets.is_empty() { targets_in(root)? } else { plan.targets };
    let corpus = root.join("fuzz/corpus");
    for target in targets {
        succeed(Command::new(&on_stable).arg(&target).arg("--write-seeds").arg(&corpus))?;
        let (time, memory) = (format!("-max_total_time={}", plan.seconds), format!("-rss_limit_mb={RSS_MIB_MAX}"));
        let mut fuzz = Command::new("cargo");
        fuzz.args(["+nightly", "fuzz", "run", &target, "--", &time, &memory, "-print_final_stats=1"]).current_dir(root);
        succeed(&mut fuzz)?;
    }
    Ok(())
}

fn has_cargo_fuzz(root: &Path) -> bool {
    let mut ask = Command::new("cargo");
    ask.args(["+nightly", "fuzz", "--version"]).current_dir(root).stdout(Stdio::null()).stderr(Stdio::null());
    ask.status().is_ok_and(|status| status.success())
}

fn targets_in(root: &Path) -> Result<Vec<String>> {
    let files = std::fs::read_dir(root.join("fuzz/fuzz_targets"))?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    let mut names: Vec<String> = files.iter().filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

fn succeed(command: &mut Command) -> Result<()> {
    if command.status()?.success() { Ok(()) } else { bail!("{command:?} failed") }
}
