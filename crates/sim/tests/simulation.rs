//! The simulation itself: it is deterministic, ordinary seeds pass, and it finds every planted fault.

use flotilla_sim::campaign::{Variant, catch_panics, finds, run_seed, run_seeds};
use flotilla_sim::trace::Lines;
use flotilla_types::PlantedFault;

/// How many seeds every change is tried on; campaigns of thousands run apart (docs/simulation.md).
const SMOKE_SEEDS: u64 = 20;

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 17] {
        let (first, second) = (run_seed(seed, Variant::default(), Lines::Kept), run_seed(seed, Variant::default(), Lines::Kept));
        let differing = first.lines.iter().zip(&second.lines).find(|(a, b)| a != b);
        assert_eq!(differing, None, "seed {seed}");
        assert_eq!(
            (first.trace, first.happenings, first.lines.len()),
            (second.trace, second.happenings, second.lines.len()),
            "seed {seed}"
        );
    }
    assert_ne!(run_seed(3, Variant::default(), Lines::Dropped).trace, run_seed(4, Variant::default(), Lines::Dropped).trace);
}

#[test]
fn ordinary_seeds_pass() {
    catch_panics();
    let outcomes = run_seeds(0..SMOKE_SEEDS, Variant::default(), 2, |_| true);
    let failed: Vec<String> = outcomes.iter().filter_map(|o| Some(format!("seed {}: {}", o.seed, o.violation.as_ref()?))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The seed by which each planted fault was found first (docs/simulation.md); it passes without the fault.
const FOUND_BY: [(PlantedFault, u64); 13] = [
    (PlantedFault::AcknowledgeBeforeSync, 0),
    (PlantedFault::VoteNotPersisted, 5),
    (PlantedFault::LoneVoterSendsBeforeSync, 15),
    (PlantedFault::ReadBeforeOwnTermEntry, 1),
    (PlantedFault::ReadAnsweredByEarlierRound, 0),
    (PlantedFault::ApplyTwiceAfterRestart, 0),
    (PlantedFault::CutBelowSyncMark, 2),
    (PlantedFault::ReseedUnderOldReplicaId, 0),
    (PlantedFault::SnapshotSwitchedBeforeDurable, 2),
    (PlantedFault::ForwardedWriteSentAgain, 0),
    (PlantedFault::TableNotInSnapshot, 0),
    (PlantedFault::RowLost, 0),
    (PlantedFault::RowChanged, 0),
];

/// How far from its seed a fault may be found before this test must be told: a change anywhere in the
/// nodes shifts what a seed is.
const SEEDS_AROUND: u64 = 40;

#[test]
fn every_planted_fault_is_found() {
    catch_panics();
    for fault in PlantedFault::ALL {
        let known = FOUND_BY.iter().find(|(of, _)| *of == fault).map(|(_, seed)| *seed).expect("each fault has its seed");
        let around = std::iter::once(known).chain((known.saturating_sub(SEEDS_AROUND)..known + SEEDS_AROUND).filter(|seed| *seed != known));
        let found = around.into_iter().any(|seed| finds(seed, fault));
        assert!(found, "no seed around {known} finds {}", fault.name());
    }
}
