//! How long a shard acknowledges no write when a node goes: stopped in order (SIGTERM), or killed (-9). Each
//! shard has one client, which writes one request after the other at a node that stays. The time in which
//! the node comes back and takes its share of leaders again is told apart, and so is a quiet time, for a
//! busy machine makes gaps of its own.

use crate::cluster::Cluster;
use crate::keyspace::tag_of_each_shard;
use crate::kill::{quantile, verdict_line};
use crate::operator::Operator;
use crate::verify::{Expected, Verdict, verify};
use crate::wire::{Wire, WriteEnd};
use crate::writers::{key_of, value_of};
use anyhow::{Context, ensure};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What a request may take: longer than any gap should be, so that a client does not give up what comes late.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(5);
/// Keys of each client, written over and over.
const KEYS_PER_CLIENT: u32 = 100;
const VALUE_BYTES: usize = 100;
const SETTLE_TIME_MAX: Duration = Duration::from_secs(120);

/// How the run goes.
#[derive(Clone, Debug)]
pub struct GapsPlan {
    /// How often a node is stopped in order, and how often one is killed; they take turns.
    pub stops: usize,
    /// How long it is quiet before, and how long a node stays away.
    pub window: Duration,
    /// Between an answer and a client's next request.
    pub think_time: Duration,
}

/// Gaps of many shards and times.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Gaps {
    /// How many.
    pub count: usize,
    /// The median.
    pub ms_median: f64,
    /// The 99th percentile.
    pub ms_p99: f64,
    /// The longest.
    pub ms_worst: f64,
}

/// One way to go.
#[derive(Clone, Debug, Serialize)]
pub struct WayReport {
    /// From the signal until the node is started again: each shard's longest gap, of each time.
    pub away: Gaps,
    /// The same of the shards alone that the node led.
    pub away_led: Gaps,
    /// From then until it has its share of leaders again.
    pub back: Gaps,
    /// As long a time before, in which nothing happened.
    pub quiet: Gaps,
    /// The longest gap of each time.
    pub away_ms_worst_of_each: Vec<f64>,
    /// Gaps above the bar.
    pub above_bar: usize,
    /// From the signal until the process was gone, the longest.
    pub ended_ms_worst: f64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct GapsReport {
    /// Stopped in order.
    pub stopped: WayReport,
    /// Killed.
    pub killed: WayReport,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Writes that did not happen, with the reason.
    pub not_applied: u64,
    /// Writes of which nobody knows.
    pub unknown: u64,
    /// Every key asked of every node.
    pub verdict: Verdict,
    /// Nodes that ended though nobody ended them.
    pub unexpectedly_ended: Vec<String>,
}

/// Bars: a node that is stopped, always; one that is killed, 99 of 100 times, and always.
const STOPPED_MS_MAX: f64 = 100.0;
const KILLED_MS_P99: f64 = 1_500.0;
const KILLED_MS_MAX: f64 = 3_000.0;

impl GapsReport {
    /// Whether nothing was lost and no bar missed.
    pub fn is_fine(&self) -> bool {
        self.verdict.is_fine()
            && self.unexpectedly_ended.is_empty()
            && self.stopped.away.ms_worst < STOPPED_MS_MAX
            && self.killed.away.ms_p99 <= KILLED_MS_P99
            && self.killed.away.ms_worst <= KILLED_MS_MAX
    }

    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let way = |name: &str, way: &WayReport| {
            vec![
                format!("{name}, each shard's longest gap: {}; {} above the bar", way.away.words(), way.above_bar),
                format!("  of the shards that the node led: {}", way.away_led.words()),
                format!("  when it came back: {}; quiet before: {}", way.back.words(), way.quiet.words()),
                format!(
                    "  the process was gone after {:.0} ms at worst; worst gap of each time, ms: {:.0?}",
                    way.ended_ms_worst, way.away_ms_worst_of_each
                ),
            ]
        };
        let mut lines = way("stopped", &self.stopped);
        lines.extend(way("killed", &self.killed));
        lines.push(format!("{} writes acknowledged, {} refused, {} unknown", self.acknowledged, self.not_applied, self.unknown));
        lines.push(verdict_line(&self.verdict));
        lines.extend(self.verdict.described.iter().chain(&self.unexpectedly_ended).cloned());
        lines
    }
}

impl Gaps {
    fn of(gaps: impl Iterator<Item = f64>) -> Gaps {
        let mut sorted: Vec<f64> = gaps.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share| quantile(&sorted, share);
        Gaps { count: sorted.len(), ms_median: at(0.5), ms_p99: at(0.99), ms_worst: at(1.0) }
    }

    fn words(&self) -> String {
        let Gaps { count, ms_median, ms_p99, ms_worst } = self;
        format!("median {ms_median:.0} ms, p99 {ms_p99:.0} ms, worst {ms_worst:.0} ms of {count}")
    }
}

/// What the clients share.
struct Load {
    tags: Vec<String>,
    /// Nodes that may be asked: those that are to stay.
    addresses: RefCell<Vec<SocketAddr>>,
    /// Of each shard, when something was acknowledged.
    acknowledged: Vec<RefCell<Vec<Instant>>>,
    acknowledged_count: Cell<u64>,
    not_applied: Cell<u64>,
    unknown: Cell<u64>,
    /// Of each key, the number that was acknowledged last, and whether one after it may be there.
    written: RefCell<BTreeMap<(u32, u32), (u32, bool)>>,
    stop: Cell<bool>,
}

/// Runs it on three nodes with their data in `folder`; `say` is told of each time.
///
/// # Errors
/// If the cluster does not start, or does not come back.
pub async fn run(binary: &Path, folder: &Path, plan: &GapsPlan, say: impl Fn(String)) -> anyhow::Result<GapsReport> {
    let mut cluster = Cluster::start(binary, folder).await?;
    let nodes = cluster.len();
    let mut operator = Operator::new(cluster.addresses());
    let shards = operator.wait_even(nodes, SETTLE_TIME_MAX).await?.shards_total;
    let load = Rc::new(Load {
        tags: tag_of_each_shard(shards),
        addresses: RefCell::new(cluster.addresses()),
        acknowledged: (0..shards).map(|_| RefCell::default()).collect(),
        acknowledged_count: Cell::default(),
        not_applied: Cell::default(),
        unknown: Cell::default(),
        written: RefCell::default(),
        stop: Cell::default(),
    });
    let clients: Vec<_> =
        (0..shards as u32).map(|client| tokio::task::spawn_local(write(Rc::clone(&load), client, plan.think_time))).collect();
    let (mut stopped, mut killed, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    for time in 0..2 * plan.stops {
        let (victim, kills) = (time / 2 % nodes, time % 2 == 1);
        ended.extend(cluster.unexpectedly_ended());
        let view = operator.wait_even(nodes, SETTLE_TIME_MAX).await.context("before a node goes")?;
        let name = cluster.spec(victim).name.clone();
        let led: Vec<bool> = view.shards.iter().map(|shard| shard.leader.as_ref() == Some(&name)).collect();
        let stay = cluster.addresses().into_iter().enumerate().filter(|(at, _)| *at != victim).map(|(_, address)| address);
        load.addresses.replace(stay.collect());
        load.forget();
        let quiet = Instant::now();
        tokio::time::sleep(plan.window).await;
        ensure!(load.acknowledged.iter().all(|acks| acks.borrow().len() > 1), "some shard acknowledges nothing");

        let gone = Instant::now();
        // The signal alone: the clients must not wait for the process's end, which would look like a gap.
        cluster.signal(victim, if kills { libc::SIGKILL } else { libc::SIGTERM });
        let deadline = gone + SETTLE_TIME_MAX;
        while !cluster.has_ended(victim) {
            ensure!(Instant::now() < deadline, "{name} does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let ended_ms = gone.elapsed().as_secs_f64() * 1e3;
        cluster.kill(victim);
        tokio::time::sleep(plan.window).await;
        let back = Instant::now();
        cluster.launch(victim)?;
        operator.wait_even(nodes, SETTLE_TIME_MAX).await.context("after a node came back")?;
        let even = Instant::now();
        let one = Time { led, quiet: load.gaps_ms(quiet, gone), away: load.gaps_ms(gone, back), back: load.gaps_ms(back, even), ended_ms };
        let worst = |gaps: &[f64]| gaps.iter().copied().fold(0.0, f64::max);
        say(format!(
            "{} of {name}: worst gap {:.0} ms; {:.0} ms when it came back, {:.0} ms while it was quiet; even after {:.1} s",
            if kills { "kill -9" } else { "stop" },
            worst(&one.away),
            worst(&one.back),
            worst(&one.quiet),
            (even - back).as_secs_f64()
        ));
        if kills { killed.push(one) } else { stopped.push(one) }
    }
    load.addresses.replace(cluster.addresses());
    load.stop.set(true);
    for client in clients {
        client.await.context("a client panicked")?;
    }
    let expected = load.expected();
    let verdict = verify(&cluster.addresses(), &Rc::new(expected), false).await;
    ended.extend(cluster.unexpectedly_ended());
    cluster.stop();
    Ok(GapsReport {
        stopped: report_of(&stopped, STOPPED_MS_MAX),
        killed: report_of(&killed, KILLED_MS_P99),
        acknowledged: load.acknowledged_count.get(),
        not_applied: load.not_applied.get(),
        unknown: load.unknown.get(),
        verdict,
        unexpectedly_ended: ended,
    })
}

/// One time that a node went.
struct Time {
    /// Shards that it led.
    led: Vec<bool>,
    /// Gaps by shard.
    quiet: Vec<f64>,
    away: Vec<f64>,
    back: Vec<f64>,
    ended_ms: f64,
}

fn report_of(times: &[Time], bar_ms: f64) -> WayReport {
    let all = |of: fn(&Time) -> &Vec<f64>| Gaps::of(times.iter().flat_map(of).copied());
    let led = times.iter().flat_map(|time| time.away.iter().zip(&time.led).filter(|(_, led)| **led).map(|(gap, _)| *gap));
    WayReport {
        away: all(|time| &time.away),
        away_led: Gaps::of(led),
        back: all(|time| &time.back),
        quiet: all(|time| &time.quiet),
        away_ms_worst_of_each: times.iter().map(|time| time.away.iter().copied().fold(0.0, f64::max)).collect(),
        above_bar: times.iter().flat_map(|time| &time.away).filter(|gap| **gap >= bar_ms).count(),
        ended_ms_worst: times.iter().map(|time| time.ended_ms).fold(0.0, f64::max),
    }
}

impl Load {
    /// For each shard, the longest time within these moments in which nothing of it was acknowledged.
    fn gaps_ms(&self, from: Instant, to: Instant) -> Vec<f64> {
        self.acknowledged.iter().map(|acks| longest_gap(&acks.borrow(), from, to).as_secs_f64() * 1e3).collect()
    }

    /// What must be there. A key of which nobody knows may hold either of two values.
    fn expected(&self) -> Vec<(Vec<u8>, Expected)> {
        let written = self.written.borrow();
        let known = written.iter().filter(|(_, (_, unknown))| !unknown);
        let expect = |((client, place), (number, _)): (&(u32, u32), &(u32, bool))| {
            (key_of(&self.tags, *client, *place), Expected::Value(value_of(*client, *number, VALUE_BYTES)))
        };
        known.map(expect).collect()
    }

    /// Only one time's moments are kept.
    fn forget(&self) {
        self.acknowledged.iter().for_each(|acks| acks.borrow_mut().clear());
    }
}

/// Gaps that the window cuts count whole on the side before it, and up to its end on the other.
fn longest_gap(acks: &[Instant], from: Instant, to: Instant) -> Duration {
    let first = acks.partition_point(|at| *at < from);
    let last = acks.partition_point(|at| *at <= to);
    let begin = first.checked_sub(1).map_or(from, |before| acks[before]);
    let mut at = begin;
    let mut longest = Duration::ZERO;
    for ack in acks[first..last].iter().chain([&to]) {
        longest = longest.max(*ack - at);
        at = *ack;
    }
    longest
}

async fn write(load: Rc<Load>, client: u32, think_time: Duration) {
    let mut turn = client as usize;
    let address = |turn: usize| {
        let addresses = load.addresses.borrow();
        addresses[turn % addresses.len()]
    };
    let mut at = address(turn);
    let mut wire = Wire::new(at, REQUEST_TIMEOUT);
    for number in 0.. {
        if load.stop.get() {
            return;
        }
        // Its node may be about to go.
        if !load.addresses.borrow().contains(&at) {
            turn += 1;
            at = address(turn);
            wire.turn_to(at);
        }
        let place = number % KEYS_PER_CLIENT;
        let end = wire.put(&key_of(&load.tags, client, place), &value_of(client, number, VALUE_BYTES)).await;
        match end {
            WriteEnd::Done => {
                load.acknowledged[client as usize].borrow_mut().push(Instant::now());
                load.acknowledged_count.set(load.acknowledged_count.get() + 1);
                load.written.borrow_mut().insert((client, place), (number, false));
            }
            WriteEnd::NotApplied => load.not_applied.set(load.not_applied.get() + 1),
            WriteEnd::Unknown => {
                load.unknown.set(load.unknown.get() + 1);
                load.written.borrow_mut().entry((client, place)).or_default().1 = true;
            }
        }
        if end != WriteEnd::Done {
            turn += 1;
            at = address(turn);
            wire.turn_to(at);
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        if !think_time.is_zero() {
            tokio::time::sleep(think_time).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_that_begins_before_the_window_counts_whole_and_one_that_never_ends_up_to_its_end() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let acks = [at(10), at(90), at(300), at(310)];
        let gap = |from, to| longest_gap(&acks, at(from), at(to)).as_millis();
        assert_eq!(gap(100, 311), 210);
        assert_eq!(gap(305, 1_000), 690);
        assert_eq!(gap(0, 95), 80);
        assert_eq!(longest_gap(&[], at(0), at(7)).as_millis(), 7);
    }

    #[test]
    fn a_report_counts_what_is_above_the_bar() {
        let time = Time { led: vec![true, false], quiet: vec![1.0, 1.0], away: vec![150.0, 20.0], back: vec![2.0, 3.0], ended_ms: 40.0 };
        let report = report_of(&[time], 100.0);
        assert_eq!((report.above_bar, report.away.count, report.away_led.count), (1, 2, 1));
        assert_eq!((report.away.ms_worst, report.away.ms_median, report.ended_ms_worst), (150.0, 20.0, 40.0));
    }
}
