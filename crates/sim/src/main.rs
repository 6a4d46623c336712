//! `flotilla-sim`: runs seeds of the simulated world and says which of them fail.
#![expect(clippy::disallowed_methods, reason = "the program measures how long a campaign takes; the world it runs does not")]

use clap::{Parser, Subcommand};
use flotilla_sim::campaign::{Outcome, Variant, catch_panics, run_seed, run_seeds};
use flotilla_sim::coverage::Coverage;
use flotilla_sim::fleet::{FleetSize, storm};
use flotilla_sim::moves::{self, Case};
use flotilla_sim::scenario::Family;
use flotilla_sim::trace::Lines;
use flotilla_types::PlantedFault;
use std::io::{IsTerminal, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Whole clusters in one process, under faults, each run decided by its seed.
#[derive(Parser)]
#[command(name = "flotilla-sim", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
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
    /// This many machines and shards, whatever the seed says; far more than a few take their time.
    #[arg(long, num_args = 2, value_names = ["MACHINES", "SHARDS"])]
    size: Option<Vec<u32>>,
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

/// Runs that are not decided by a seed alone.
#[derive(Subcommand)]
enum Command {
    /// Kill those who take part in a move of a replica, at each of its phases.
    Moves {
        /// Every phase with every set of victims, under each of these seeds.
        #[arg(long, value_name = "A..B", value_parser = parse_range, default_value = "0..4")]
        seeds: Range<u64>,
        /// Cases run at a time; as many as there are cores unless given.
        #[arg(long)]
        jobs: Option<usize>,
        /// Plant this fault in the nodes: it fails if no case finds it.
        #[arg(long, value_parser = parse_fault)]
        plant: Option<PlantedFault>,
        /// Only this phase, as the table calls it.
        #[arg(long)]
        phase: Option<String>,
        /// Only these victims: some of S (source), T (target), C (the control group's leader), L (the group's leader).
        #[arg(long)]
        victims: Option<String>,
        /// Print every happening; for one case.
        #[arg(long, requires_all = ["phase", "victims"])]
        trace: bool,
    },
    /// Let nodes join, leave and fail in a fleet too large for whole machines: the planner and the shards' steps are real, the rest a
    /// model.
    Fleet {
        /// Nodes.
        #[arg(long, default_value_t = 100)]
        nodes: u64,
        /// Zones that they are spread over.
        #[arg(long, default_value_t = 10)]
        zones: u64,
        /// Shards.
        #[arg(long, default_value_t = 4096)]
        shards: u32,
        /// Once under each of these seeds.
        #[arg(long, value_name = "A..B", value_parser = parse_range, default_value = "0..1")]
        seeds: Range<u64>,
    },
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
    match arguments.command {
        Some(Command::Moves { seeds, jobs, plant, phase, victims, trace }) => {
            return run_moves(seeds, jobs, plant, (phase, victims), if trace { Lines::Printed } else { Lines::Dropped });
        }
        Some(Command::Fleet { nodes, zones, shards, seeds }) => return run_fleet(seeds, FleetSize { nodes, zones, shards }),
        None => {}
    }
    let size = arguments.size.as_deref().and_then(|size| Some((*size.first()? as usize, *size.get(1)?)));
    let variant = Variant { plant: arguments.plant, family: arguments.family, without_scrubs: arguments.without_scrubs, size };
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

fn run_moves(
    seeds: Range<u64>,
    jobs: Option<usize>,
    plant: Option<PlantedFault>,
    (phase, victims): (Option<String>, Option<String>),
    lines: Lines,
) -> ExitCode {
    let letters = |case: &Case| case.victims.iter().map(|party| party.letter()).collect::<String>();
    let chosen = |case: &Case| {
        phase.as_ref().is_none_or(|name| case.phase.name() == name) && victims.as_ref().is_none_or(|wanted| letters(case) == *wanted)
    };
    let cases: Vec<Case> = moves::cases(&moves::victim_sets(), seeds).into_iter().filter(chosen).collect();
    let jobs = jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let began = Instant::now();
    let replay =
        |case: &Case| format!("moves --phase '{}' --victims {} --seeds {}..{}", case.phase.name(), letters(case), case.seed, case.seed + 1);
    let outcomes = match lines {
        Lines::Dropped => moves::run_cases(&cases, plant, jobs, |outcome| {
            if let Some(violation) = &outcome.violation {
                eprintln!("{}: FAILED: {violation}\nreplay: cargo xtask sim {}", outcome.case.phase.name(), replay(&outcome.case));
            }
        }),
        lines => cases.iter().map(|case| moves::run_case(case, plant, lines)).collect(),
    };
    println!("{}\n", moves::table(&outcomes));
    let failed = outcomes.iter().filter(|outcome| outcome.violation.is_some()).count();
    let mut recovered: Vec<Duration> = outcomes.iter().map(|outcome| outcome.recovered).collect();
    recovered.sort();
    let at = |part: usize| recovered.get((recovered.len() * part / 100).min(recovered.len().max(1) - 1)).copied().unwrap_or_default();
    println!(
        "{} cases, {} blows fell on {} machines, {failed} failed; at rest again after {:.1} s (half of them), {:.1} s (all); {:.1} s",
        outcomes.len(),
        outcomes.iter().filter(|outcome| outcome.died > 0).count(),
        outcomes.iter().map(|outcome| outcome.died).sum::<usize>(),
        at(50).as_secs_f64(),
        at(100).as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    match (plant.is_some(), failed > 0) {
        (false, false) | (true, true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn run_fleet(seeds: Range<u64>, size: FleetSize) -> ExitCode {
    for seed in seeds {
        let (began, mut last) = (Instant::now(), Instant::now());
        println!("seed {seed}: {} nodes in {} zones, {} shards", size.nodes, size.zones, size.shards);
        println!(
            "{:<12}{:>6}{:>8}{:>8}{:>7}{:>9}{:>16}{:>17}{:>7}{:>10}",
            "", "nodes", "moved", "least", "ratio", "rest in", "copies max-min", "leaders max-min", "plans", "each"
        );
        let result = storm::weather(seed, size, |after| {
            let ratio = after.moved_min.filter(|least| *least > 0).map(|least| format!("{:.3}", after.moved as f64 / least as f64));
            let each = last.elapsed().as_secs_f64() * 1_000.0 / after.plans.max(1) as f64;
            last = Instant::now();
            println!(
                "{:<12}{:>6}{:>8}{:>8}{:>7}{:>7} s{:>16}{:>17}{:>7}{:>7.1} ms",
                after.storm.describe(),
                after.nodes,
                after.moved,
                after.moved_min.map(|least| least.to_string()).unwrap_or_default(),
                ratio.unwrap_or_default(),
                after.took.as_secs(),
                after.copies_spread,
                after.leaders_spread,
                after.plans,
                each
            );
        });
        println!("{:.1} s", began.elapsed().as_secs_f64());
        if let Err(detail) = result {
            eprintln!("seed {seed} FAILED: {detail}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// A seed that fails without the planted fault as well does not find it.
fn is_old_news(outcome: &Outcome, variant: Variant) -> bool {
    let without = Variant { plant: None, family: Some(outcome.family), ..variant };
    outcome.violation.is_some() && variant.plant.is_some() && run_seed(outcome.seed, without, Lines::Dropped).violation.is_some()
}

fn describe(outcome: &Outcome) -> String {
    let Outcome { seed, family, acknowledged, asked, simulated, .. } = outcome;
    let verdict = outcome.violation.as_ref().map_or_else(
        || "all is well".to_owned(),
        |violation| format!("FAILED: {violation}\nreplay: cargo xtask sim --seed {seed} --family {}", family.name()),
    );
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
