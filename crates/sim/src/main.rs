//! `flotilla-sim`: runs seeds of the simulated world and says which of them fail.
#![expect(clippy::disallowed_methods, reason = "the program measures how long a campaign takes; the world it runs does not")]

use clap::Parser;
use flotilla_sim::campaign::{Outcome, Variant, catch_panics, run_seed, run_seeds};
use flotilla_sim::coverage::Coverage;
use flotilla_sim::scenario::Family;
use flotilla_sim::trace::Lines;
use flotilla_types::PlantedFault;
use std::io::{IsTerminal, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Whole clusters in one process, under faults, each run decided by its seed.
#[derive(Parser)]
#[command(name = "flotilla-sim")]
struct Arguments {
    /// Run these seeds; the last is not included.
    #[arg(long, value_name = "A..B", value_parser = parse_range, default_value = "0..100", conflicts_with = "seed")]
    seeds: Range<u64>,
    /// Run this seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds run at a time; as many as there are cores unless given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Plant this fault in the nodes: then the seeds are expected to find it, and it fails if none does. Of row-lost and
    /// row-changed the nodes are expected to heal, in every seed.
    #[arg(long, value_parser = parse_fault)]
    plant: Option<PlantedFault>,
    /// Only this kind of circumstances.
    #[arg(long, value_parser = parse_family)]
    family: Option<Family>,
    /// Switch scrubs off.
    #[arg(long)]
    without_scrubs: bool,
    /// Print every happening.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("{text:?} is no range of seeds: write 0..2000");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    match (from.parse(), to.parse()) {
        (Ok(from), Ok(to)) if from < to => Ok(from..to),
        _ => Err(wrong()),
    }
}

fn parse_fault(text: &str) -> Result<PlantedFault, String> {
    let names = || PlantedFault::ALL.map(PlantedFault::name).join(", ");
    PlantedFault::ALL.into_iter().find(|fault| fault.name() == text).ok_or_else(|| format!("no such fault; there are {}", names()))
}

fn parse_family(text: &str) -> Result<Family, String> {
    let names = || Family::ALL.map(Family::name).join(", ");
    Family::ALL.into_iter().find(|family| family.name() == text).ok_or_else(|| format!("no such family; there are {}", names()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    catch_panics();
    let variant = Variant { plant: arguments.plant, family: arguments.family, without_scrubs: arguments.without_scrubs };
    if let Some(seed) = arguments.seed {
        let outcome = run_seed(seed, variant, if arguments.trace { Lines::Printed } else { Lines::Dropped });
        println!("{}", describe(&outcome));
        println!("trace {:016x}, {} happenings", outcome.trace, outcome.happenings);
        return judge(variant, &[outcome]);
    }
    let jobs = arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let (began, done) = (Instant::now(), AtomicU64::new(0));
    let total = arguments.seeds.end - arguments.seeds.start;
    let outcomes = run_seeds(arguments.seeds, variant, jobs, |outcome| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if outcome.violation.is_some() {
            eprintln!("\r{}", describe(outcome));
        }
        if std::io::stderr().is_terminal() {
            eprint!("\r{done} of {total} seeds, {:.1} a second ", done as f64 / began.elapsed().as_secs_f64());
            let _ = std::io::stderr().flush();
        }
        outcome.violation.is_none() || arguments.keep_going || is_old_news(outcome, variant)
    });
    summarize(&outcomes, began.elapsed().as_secs_f64());
    judge(variant, &outcomes)
}

/// A seed that fails without the planted fault as well does not find it.
fn is_old_news(outcome: &Outcome, variant: Variant) -> bool {
    let without = Variant { plant: None, family: Some(outcome.family), ..variant };
    outcome.violation.is_some() && variant.plant.is_some() && run_seed(outcome.seed, without, Lines::Dropped).violation.is_some()
}

fn describe(outcome: &Outcome) -> String {
    let Outcome { seed, family, acknowledged, asked, simulated, .. } = outcome;
    let verdict = outcome
        .violation
        .as_ref()
        .map_or_else(|| "all is well".to_owned(), |violation| format!("FAILED: {violation}\nreplay: cargo xtask sim --seed {seed}"));
    format!("seed {seed} ({family:?}): {acknowledged} of {asked} operations acknowledged in {simulated} s: {verdict}")
}

fn summarize(outcomes: &[Outcome], seconds: f64) {
    let mut coverage = Coverage::default();
    outcomes.iter().for_each(|outcome| coverage.add(&outcome.coverage));
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let failed = outcomes.iter().filter(|outcome| outcome.violation.is_some()).count();
    println!("\n{}\n", coverage.table());
    let missing: Vec<String> = coverage.missing().iter().map(|(fault, capability)| format!("{fault:?} x {capability:?}")).collect();
    if !missing.is_empty() {
        println!("never together: {}", missing.join(", "));
    }
    println!(
        "{} seeds, {failed} failed; {} operations acknowledged of {}, {} simulated seconds in {seconds:.1} s",
        outcomes.len(),
        sum(|o| o.acknowledged),
        sum(|o| o.asked),
        sum(|o| o.simulated.0 / 1_000_000_000),
    );
}

fn judge(variant: Variant, outcomes: &[Outcome]) -> ExitCode {
    let failed = outcomes.iter().filter(|outcome| outcome.violation.is_some() && !is_old_news(outcome, variant));
    let failed: Vec<u64> = failed.map(|outcome| outcome.seed).collect();
    // What the nodes are to heal must not make any seed fail.
    match (variant.plant.filter(|fault| !fault.is_to_be_healed()), failed.first()) {
        (Some(fault), None) => {
            eprintln!("the planted fault {} was not found", fault.name());
            ExitCode::FAILURE
        }
        (Some(fault), Some(seed)) => {
            println!("the planted fault {} was found by seed {seed}", fault.name());
            ExitCode::SUCCESS
        }
        (None, None) => ExitCode::SUCCESS,
        (None, Some(_)) => {
            eprintln!("failed seeds: {failed:?}");
            ExitCode::FAILURE
        }
    }
}
