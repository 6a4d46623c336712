//! Moves of replicas with those who take part in them killed, and a fleet of nodes that join, leave and fail: short forms of
//! `flotilla-sim moves` and `flotilla-sim fleet` (docs/simulation.md).

use flotilla_sim::ambush::{Party, Phase};
use flotilla_sim::campaign::catch_panics;
use flotilla_sim::fleet::{FleetSize, storm};
use flotilla_sim::moves::{Case, cases, run_case, run_cases, table};
use flotilla_sim::trace::Lines;
use flotilla_types::PlantedFault;

/// Each party alone, and all of them at once; the long form has the pairs and threes as well.
#[test]
fn a_move_is_finished_or_undone_whoever_dies_at_whichever_phase() {
    catch_panics();
    let mut sets: Vec<Vec<Party>> = Party::ALL.into_iter().map(|party| vec![party]).collect();
    sets.push(Party::ALL.to_vec());
    let outcomes = run_cases(&cases(&sets, 1..2), None, 2, |_| {});
    let failed: Vec<String> = outcomes.iter().filter_map(|o| Some(format!("{:?}: {}", o.case, o.violation.as_ref()?))).collect();
    assert!(failed.is_empty(), "{}\n{}", failed.join("\n"), table(&outcomes));
    assert!(outcomes.iter().all(|outcome| outcome.died > 0), "a blow did not fall:\n{}", table(&outcomes));
    assert_eq!(outcomes.len(), Phase::ALL.len() * sets.len());
}

/// The same with a replica that switches to a snapshot before that is durable: whoever kills the target there must see it.
#[test]
fn a_switch_that_is_not_durable_is_found_where_the_target_dies() {
    catch_panics();
    let plant = Some(PlantedFault::SnapshotSwitchedBeforeDurable);
    let case = |seed| Case { phase: Phase::Installed, victims: vec![Party::Target], seed };
    let found = (0..12).find(|seed| run_case(&case(*seed), plant, Lines::Dropped).violation.is_some());
    let seed = found.expect("the planted fault is found");
    assert_eq!(run_case(&case(seed), None, Lines::Dropped).violation, None, "seed {seed} passes without it");
}

#[test]
fn nodes_join_leave_and_fail_and_the_fleet_ends_even_and_complete() {
    for seed in 0..2 {
        let mut storms = 0;
        let result = storm::weather(seed, FleetSize { nodes: 16, zones: 4, shards: 96 }, |_| storms += 1);
        assert_eq!(result, Ok(()), "seed {seed}");
        assert_eq!(storms, storm::Storm::ALL.len(), "seed {seed}");
    }
}
