//! The runs of the harness, short: seconds instead of minutes, the same checks.
#![allow(clippy::disallowed_methods, reason = "real processes and files")]

use flotilla_harness::{
    binary::flotilla_binary, browser, bulk, damage, dashboard, expiry, gaps, kill, move_cost, moves, once, pressure, real_data, scan_load,
    weather,
};
use std::path::Path;
use std::time::Duration;

fn with_folder<T>(run: impl AsyncFnOnce(&Path, &Path) -> anyhow::Result<T>) -> T {
    let binary = flotilla_binary().expect("the binary");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, run(&binary, folder.path())).expect("the run itself does not fail")
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let second = Duration::from_secs(1);
    let plan = kill::KillPlan { kills: 3, quiet: second, down: second, writers_per_shard: 1, think_time: second / 20, timeout: 2 * second };
    let report = with_folder(async |binary, folder| kill::run(binary, folder, &plan).await);
    assert!(report.is_fine(), "{:#?}", report.lines());
    assert!(report.acknowledged > 1000, "{:#?}", report.lines());
}

#[test]
fn real_data_survives_a_kill() {
    if real_data::packages().is_err() {
        eprintln!("no apt on this machine: nothing to write");
        return;
    }
    let plan = real_data::RealDataPlan { connections: 32, packages_max: Some(2000) };
    let report = with_folder(async |binary, folder| real_data::run(binary, folder, &plan).await);
    assert!(report.verdict.is_fine(), "{:#?}", report.lines());
}

#[test]
fn the_dashboard_tells_what_happens() {
    if browser::find_chromium().is_err() {
        eprintln!("no Chromium on this machine: nothing to look with");
        return;
    }
    let cases = with_folder(async |binary, folder| dashboard::run(binary, folder, &dashboard::DashboardPlan { screenshots: None }).await);
    assert!(cases.iter().all(|case| case.fine), "{cases:#?}");
}

#[test]
fn imports_and_exports_go_on_where_they_were_interrupted() {
    if real_data::packages().is_err() {
        eprintln!("no apt on this machine: nothing to import");
        return;
    }
    let report = with_folder(async |binary, folder| bulk::run(binary, folder, Some(10_000)).await);
    assert!(report.is_fine() && report.packages > 0, "{:#?}", report.lines());
}

#[test]
fn increments_that_are_sent_twice_count_once() {
    let plan = once::OncePlan { increments: 500, clients: 4, kill_every: Duration::from_secs(1), seed: 1 };
    let report = with_folder(async |binary, folder| once::run(binary, folder, &plan).await);
    assert!(report.is_fine() && report.requests >= 1000 && report.kills > 0, "{:#?}", report.lines());
}

#[test]
fn long_scans_are_whole_and_in_order() {
    let plan = scan_load::ScanPlan { keys: 30_000, value_bytes: 200, stall: Duration::from_secs(1) };
    let report = with_folder(async |binary, folder| scan_load::run(binary, folder, &plan).await);
    assert!(report.is_fine(), "{:#?}", report.lines());
}

#[test]
fn keys_expire_once_and_for_all_whatever_clocks_say() {
    let seconds = Duration::from_secs;
    let plan =
        expiry::ExpiryPlan { duration: seconds(6), event_every: seconds(1), clients: 12, keys: 5_000, keys_ttl: seconds(5), seed: 1 };
    let report = with_folder(async |binary, folder| expiry::run(binary, folder, &plan).await);
    assert!(report.is_fine(), "{:#?}", report.lines());
}

#[test]
fn damage_on_disk_is_found_and_never_served() {
    let plan =
        damage::DamagePlan { stopped: 12, running: 6, at_once: 3, keys: 300, long_keys: 20, seed: 5, time_max: Duration::from_secs(120) };
    let report = with_folder(async |binary, folder| damage::run(binary, folder, &plan, |line| eprintln!("{line}")).await);
    assert!(report.is_fine(), "{:#?}", report.lines());
    assert!(report.flips + report.cuts >= 6, "{:#?}", report.lines());
}

#[test]
fn pressure_costs_a_bounded_memory_and_small_requests_are_served() {
    let plan = pressure::PressurePlan {
        duration: Duration::from_secs(8),
        factor: 50.0,
        flooding: 100,
        idle: 300,
        dripping: 50,
        large: 3,
        deaf: 12,
    };
    let report = with_folder(async |binary, folder| pressure::run(binary, folder, &plan).await);
    assert!(report.is_fine(), "{:#?}", report.lines());
}

#[test]
fn moves_end_though_nodes_are_killed() {
    let plan = moves::MovesPlan {
        rounds: 2,
        nodes: 4,
        ballast_keys: 1_000,
        bytes_per_second: 8 << 20,
        rest_time_max: Duration::from_secs(60),
        think_time: Duration::from_millis(100),
        seed: 1,
    };
    let report = with_folder(async |binary, folder| moves::run(binary, folder, &plan, |line| eprintln!("{line}")).await);
    assert!(report.is_fine(), "{:#?}", report.lines());
}

#[test]
fn nothing_is_lost_when_a_node_is_stopped_or_killed_under_a_closed_loop() {
    let plan = gaps::GapsPlan { stops: 1, window: Duration::from_secs(2), think_time: Duration::from_millis(10) };
    let report = with_folder(async |binary, folder| gaps::run(binary, folder, &plan, |line| eprintln!("{line}")).await);
    // The bars are for a release build on a machine that does nothing else.
    assert!(report.verdict.is_fine() && report.stopped.away.count == 64 && report.killed.away.count == 64, "{:#?}", report.lines());
}

#[test]
fn what_moves_is_measured_beside_the_load() {
    let plan = move_cost::MoveCostPlan {
        ballast_keys: 500,
        ballast_value_bytes: 4 << 10,
        joining: 1,
        clients: 8,
        keys: 100,
        value_bytes: 256,
        quiet: Duration::from_secs(1),
        bytes_per_second: None,
    };
    let report = with_folder(async |binary, folder| move_cost::run(binary, folder, &plan, |line| eprintln!("{line}")).await);
    let went_on = |part: &move_cost::Part| part.reads_per_second > 0.0 && part.writes_per_second > 0.0 && part.failed == 0;
    assert!(went_on(&report.quiet) && went_on(&report.after) && report.copies == 48, "{:#?}", report.lines());
    assert!(report.bytes_moved > 1 << 20, "{:#?}", report.lines());
}

#[test]
fn hopeless_starts_end_in_one_line() {
    let cases = with_folder(async |binary, folder| weather::run(binary, folder, false).await);
    let wrong: Vec<_> = cases.iter().filter(|case| !case.fine).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
