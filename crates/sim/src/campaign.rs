//! Runs of one seed and of many, and what came of them.

use crate::checkers::Violation;
use crate::coverage::Coverage;
use crate::history::Moment;
use crate::scenario::{Family, Scenario};
use crate::trace::Lines;
use crate::world::World;
use flotilla_types::PlantedFault;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The kind of circumstances it stood for.
    pub family: Family,
    /// What was wrong.
    pub violation: Option<Violation>,
    /// Operations that were answered with success.
    pub acknowledged: u64,
    /// Operations asked.
    pub asked: u64,
    /// How long it was, in the world's time.
    pub simulated: Moment,
    /// Happenings in the trace.
    pub happenings: u64,
    /// The hash of the trace.
    pub trace: u64,
    /// What was exercised.
    pub coverage: Coverage,
    /// The trace's lines, if they were kept.
    pub lines: Vec<String>,
}

/// What is fixed beside the seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    /// A fault planted in the nodes.
    pub plant: Option<PlantedFault>,
    /// The kind of circumstances, if the seed is not to choose it.
    pub family: Option<Family>,
    /// Scrubs are switched off.
    pub without_scrubs: bool,
    /// Another size than the seed says: machines and shards.
    pub size: Option<(usize, u32)>,
}

/// Whether a planted fault is what makes a seed fail: it does with it and does not without. One that the nodes
/// are to heal must make it fail only where scrubs, which are to find it, are switched off.
pub fn finds(seed: u64, fault: PlantedFault) -> bool {
    let family = Some(Family::of(fault));
    let fails =
        |plant, without_scrubs| run_seed(seed, Variant { plant, family, without_scrubs, size: None }, Lines::Dropped).violation.is_some();
    match fault.is_to_be_healed() {
        true => !fails(Some(fault), false) && fails(Some(fault), true),
        false => fails(Some(fault), false) && !fails(None, false),
    }
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// From now on a panic of a node is not printed but becomes part of its seed's outcome.
pub fn catch_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !RUNNING.get() {
            return before(info);
        }
        // Only our own frames, and only if RUST_BACKTRACE asks for any.
        let stack = std::backtrace::Backtrace::capture().to_string();
        let ours = stack.lines().filter(|line| line.contains("crates/")).map(str::trim);
        let text = std::iter::once(info.to_string().as_str()).chain(ours).collect::<Vec<_>>().join("\n    ");
        PANIC.with(|panic| *panic.borrow_mut() = Some(text));
    }));
}

/// Runs something of the world; a panic in it is a violation.
pub(crate) fn guarded(run: impl FnOnce() -> Option<Violation>) -> Option<Violation> {
    RUNNING.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    RUNNING.set(false);
    result.unwrap_or_else(|_| {
        let text = PANIC.with(|panic| panic.borrow_mut().take()).unwrap_or_else(|| "somewhere".to_owned());
        Some(Violation::new("no panic", text))
    })
}

/// Runs one seed.
pub fn run_seed(seed: u64, variant: Variant, lines: Lines) -> Outcome {
    let mut scenario = Scenario::draw(seed, variant.plant, variant.family);
    if variant.without_scrubs {
        scenario.node.scrub_bytes_per_second = 0;
    }
    if let Some((hosts, shards)) = variant.size {
        (scenario.hosts, scenario.shards, scenario.replicas, scenario.grows) = (hosts, shards, 3, hosts > 1);
    }
    let family = scenario.family;
    let mut world = World::new(seed, scenario, lines);
    let violation = guarded(|| world.run());
    Outcome {
        seed,
        family,
        violation,
        acknowledged: world.history.acknowledged(),
        asked: world.history.operations().len() as u64,
        simulated: world.now,
        happenings: world.trace.count(),
        trace: world.trace.hash(),
        coverage: world.coverage.clone(),
        lines: world.trace.lines().to_vec(),
    }
}

/// Runs seeds on some threads, each seed on one. `done` is told of each as it ends and says whether to
/// go on. The outcomes come in the order of the seeds.
pub fn run_seeds(seeds: Range<u64>, variant: Variant, jobs: usize, done: impl Fn(&Outcome) -> bool + Sync) -> Vec<Outcome> {
    let next = AtomicU64::new(seeds.start);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run_seed(seed, variant, Lines::Dropped);
                    let go_on = done(&outcome);
                    outcomes.lock().expect("nothing panics while it holds this").push(outcome);
                    if !go_on {
                        next.store(seeds.end, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().expect("nothing panicked while it held this");
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}
