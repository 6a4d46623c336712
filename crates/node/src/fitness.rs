//! Whether this node should lead. A disk or a process that stands still makes every client of what is led there wait, where
//! another replica would answer at once; and a leader without room on its disk refuses what another could take.
//!
//! So an unfit node hands over what it leads and campaigns late, as long as a fit voter could lead instead: where there is none, a
//! slow leader is better than no leader. It tells its peers, so that nobody hands it a leadership meanwhile.

use crate::event::Now;
use crate::message::PeerMessage;
use crate::node::Node;
use crate::notice::Notice;
use flotilla_types::wire::DecodeError;
use flotilla_types::{GroupId, Instant, NodeId};
use std::collections::BTreeMap;
use std::time::Duration;

/// A log job that takes this long, in ticks of a running process, is a stall of the disk: 760 ms.
const STALL_TICKS: u32 = 38;
/// A process whose timer comes later than this has stood still.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Two pauses within this time are no accident.
const PAUSES_WITHIN: Duration = Duration::from_secs(10);
/// What was slow is not trusted for this long afterwards.
const UNFIT_TIME: Duration = Duration::from_secs(10);
/// How often peers are told.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// For so long what a peer said counts: some messages may be late.
const FRESH_TIME: Duration = Duration::from_secs(3);

/// Why a node should not lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Unfit {
    /// The log's disk took too long to sync.
    SlowDisk = 1,
    /// The process stood still, again and again.
    StandsStill = 2,
    /// There is no room on the disk.
    DiskFull = 3,
    /// The process is about to end.
    ShuttingDown = 4,
}

impl Unfit {
    pub(crate) fn from_byte(byte: u8) -> Result<Unfit, DecodeError> {
        let known =
            [Unfit::SlowDisk, Unfit::StandsStill, Unfit::DiskFull, Unfit::ShuttingDown].into_iter().find(|unfit| *unfit as u8 == byte);
        known.ok_or(DecodeError::Invalid("fitness", u64::from(byte)))
    }

    /// For programs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Unfit::SlowDisk => "slow-disk",
            Unfit::StandsStill => "stands-still",
            Unfit::DiskFull => "disk-full",
            Unfit::ShuttingDown => "shutting-down",
        }
    }

    /// For people, behind a node's name.
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Unfit::SlowDisk => "has a slow disk",
            Unfit::StandsStill => "stands still now and then",
            Unfit::DiskFull => "has no room on its disk",
            Unfit::ShuttingDown => "is shutting down",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Fitness {
    last_timer: Instant,
    last_pause: Option<Instant>,
    /// The oldest job at the log, and for how many ticks it has been that.
    oldest_job: Option<(u64, u32)>,
    slow: Option<(Unfit, Instant)>,
    next_tell: Instant,
    was_unfit: Option<Unfit>,
    /// What peers said of themselves, and when.
    peers: BTreeMap<NodeId, (Unfit, Instant)>,
}

impl Fitness {
    pub(crate) fn new(now: Instant) -> Fitness {
        Fitness { last_timer: now, last_pause: None, oldest_job: None, slow: None, next_tell: now, was_unfit: None, peers: BTreeMap::new() }
    }

    /// The timer came; `oldest` is the number of the oldest job at the log.
    fn note(&mut self, oldest: Option<u64>, now: Instant) {
        if now.saturating_since(std::mem::replace(&mut self.last_timer, now)) >= PAUSE_MIN {
            let before = self.last_pause.replace(now);
            if before.is_some_and(|before| now.saturating_since(before) <= PAUSES_WITHIN) {
                self.slow = Some((Unfit::StandsStill, now + UNFIT_TIME));
            }
        }
        self.oldest_job = match (oldest, self.oldest_job) {
            (Some(job), Some((same, ticks))) if job == same => Some((job, ticks + 1)),
            (oldest, _) => oldest.map(|job| (job, 0)),
        };
        if self.oldest_job.is_some_and(|(_, ticks)| ticks >= STALL_TICKS) {
            self.slow = Some((Unfit::SlowDisk, now + UNFIT_TIME));
        }
        self.slow.take_if(|(_, until)| *until <= now);
    }
}

impl Node {
    /// Why this node should not lead, if it should not.
    pub(crate) fn unfit(&self) -> Option<Unfit> {
        let full = self.log_is_full || self.disk_is_low;
        let leaves = self.shutting_down.then_some(Unfit::ShuttingDown);
        leaves.or(full.then_some(Unfit::DiskFull)).or(self.fitness.slow.map(|(unfit, _)| unfit))
    }

    /// Whether a peer is there and has not said that it should not lead.
    pub(crate) fn is_fit_peer(&self, node: NodeId, now: Instant) -> bool {
        self.link_is_up(node) && self.why_unfit(node, now).is_none()
    }

    /// Why a node should not lead, as it last said.
    pub(crate) fn why_unfit(&self, node: NodeId, now: Instant) -> Option<Unfit> {
        if node == self.identity.node {
            return self.unfit();
        }
        self.fitness.peers.get(&node).filter(|(_, at)| now.saturating_since(*at) <= FRESH_TIME).map(|(unfit, _)| *unfit)
    }

    pub(crate) fn handle_unfit(&mut self, from: NodeId, reason: Unfit, now: Now) {
        self.fitness.peers.insert(from, (reason, now.instant));
    }

    /// Looks how this node does, and tells the others if it should not lead.
    pub(crate) fn look_after_fitness(&mut self, now: Now) {
        self.fitness.note(self.log.oldest_job(), now.instant);
        let unfit = self.unfit();
        let before = std::mem::replace(&mut self.fitness.was_unfit, unfit);
        match (before, unfit) {
            (_, Some(Unfit::ShuttingDown)) => {}
            (None, Some(unfit)) => {
                let line = format!("this node {}: others that can lead its shards shall do so", unfit.in_words());
                self.out.notices.push(Notice::warning(line));
            }
            (Some(_), None) => self.out.notices.push(Notice::info("this node is fit to lead again".to_owned())),
            _ => {}
        }
        let Some(reason) = unfit else { return };
        if before != unfit || now.instant >= self.fitness.next_tell {
            self.fitness.next_tell = now.instant + TELL_INTERVAL;
            let peers: Vec<NodeId> = self.links.iter().filter(|(_, link)| link.up).map(|(node, _)| *node).collect();
            for peer in peers {
                self.send(peer, PeerMessage::Unfit { reason });
            }
        }
    }

    /// One tick of time for each replica. Those of an unfit node wait longer before they campaign, if another could.
    pub(crate) fn tick_replicas(&mut self, now: Instant) {
        let fit: Option<Vec<NodeId>> =
            self.unfit().map(|_| self.links.keys().copied().filter(|node| self.is_fit_peer(*node, now)).collect());
        for (group, replica) in &mut self.replicas {
            let yields = fit.as_ref().is_some_and(|fit| replica.group.membership().voters.values().any(|node| fit.contains(node)));
            match replica.ticks_to_skip.checked_sub(1) {
                Some(left) => replica.ticks_to_skip = left,
                None if yields => replica.group.tick_patiently(),
                None => replica.group.tick(),
            }
            if replica.group.has_ready() || !replica.pending.is_empty() {
                self.dirty.insert(*group);
            }
        }
    }

    /// Hands over what is led here and a fit voter could lead.
    pub(crate) fn hand_over_if_unfit(&mut self, now: Instant) {
        if self.unfit().is_none() || self.shutting_down {
            return;
        }
        let led = self.replicas.iter().filter(|(_, replica)| replica.is_leader() && !replica.group.is_transferring());
        let handed: Vec<GroupId> = led
            .filter(|(group, _)| self.has_rested(**group, now))
            .filter(|(group, _)| {
                let fit = |node: NodeId| self.is_fit_peer(node, now);
                self.best_successor(**group, now).is_some_and(|(_, node)| fit(node))
            })
            .map(|(group, _)| *group)
            .collect();
        for group in handed {
            self.supervision.transferred.insert(group, now);
            self.hand_over_group(group, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::TICK;

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    /// Lets the timer come every tick from one moment to another.
    fn run(fitness: &mut Fitness, from_ms: u64, to_ms: u64, oldest: Option<u64>) {
        for ms in (from_ms..to_ms).step_by(TICK.as_millis() as usize) {
            fitness.note(oldest, at(ms));
        }
    }

    #[test]
    fn a_disk_that_stands_still_is_slow_until_it_was_quick_for_a_while() {
        let mut fitness = Fitness::new(at(0));
        let stall = TICK.as_millis() as u64 * u64::from(STALL_TICKS);
        run(&mut fitness, 0, stall - 20, Some(1));
        // Another job is the oldest: the disk goes on.
        run(&mut fitness, stall - 20, 2 * stall - 40, Some(2));
        assert_eq!(fitness.slow, None);
        run(&mut fitness, 2 * stall - 40, 2 * stall + 40, Some(2));
        assert!(matches!(fitness.slow, Some((Unfit::SlowDisk, _))), "{fitness:?}");
        run(&mut fitness, 2 * stall + 40, 2 * stall + 10_000, None);
        assert!(fitness.slow.is_some());
        run(&mut fitness, 2 * stall + 10_000, 2 * stall + 10_100, None);
        assert_eq!(fitness.slow, None);
    }

    #[test]
    fn one_pause_is_an_accident_and_no_stall_of_the_disk() {
        let mut fitness = Fitness::new(at(0));
        run(&mut fitness, 0, 100, Some(1));
        run(&mut fitness, 5_000, 5_100, Some(1));
        assert_eq!(fitness.slow, None);
        run(&mut fitness, 6_000, 6_100, None);
        assert!(matches!(fitness.slow, Some((Unfit::StandsStill, _))), "{fitness:?}");
    }
}
