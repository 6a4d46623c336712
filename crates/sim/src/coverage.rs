//! Which capabilities were exercised under which faults: what a campaign of seeds has shown, and
//! what it has not.

use crate::history::Moment;
use std::fmt::Write;
use std::time::Duration;

/// What the world does to the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Fault {
    /// One process dies.
    Crash,
    /// All machines lose power at once.
    PowerCut,
    /// A process stands still.
    Pause,
    /// The nodes fall into two parts.
    Partition,
    /// One node hears another, which does not hear it.
    OneWayCut,
    /// One node is cut off from all others.
    Isolation,
    /// Links drop Raft messages.
    Loss,
    /// Links are slow.
    Delay,
    /// Connections break; Raft messages of the old one come again on the new one.
    Reconnect,
    /// A disk is slow, or stands still.
    SlowDisk,
    /// A store is slow, or stands still.
    SlowStore,
    /// Clocks run fast or slow, wall clocks jump.
    Clock,
    /// A data-dir is lost; its node comes back as a new one.
    Wipe,
    /// A bit flips in a log on disk.
    BitFlip,
    /// Nodes are added under load.
    Growth,
    /// An operator drains a node, removes one, moves a leader or pauses balancing.
    Operator,
}

/// What the nodes can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Capability {
    /// A read was answered.
    Get,
    /// A write was acknowledged.
    Put,
    /// A delete was acknowledged.
    Delete,
    /// A guard held or failed.
    Guard,
    /// A request was answered by another node than the one asked.
    Forward,
    /// A group got a leader.
    Election,
    /// A configuration changed.
    Membership,
    /// A snapshot was installed.
    Snapshot,
    /// The log was purged.
    Purge,
    /// A scan was answered.
    Scan,
    /// All replicas of a shard were compared row by row, and agreed.
    Scrub,
    /// A process came back on its data.
    Recovery,
    /// A node joined.
    Join,
    /// A node was drained and removed, and was told so.
    Removal,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 16] = [
        Fault::Crash,
        Fault::PowerCut,
        Fault::Pause,
        Fault::Partition,
        Fault::OneWayCut,
        Fault::Isolation,
        Fault::Loss,
        Fault::Delay,
        Fault::Reconnect,
        Fault::SlowDisk,
        Fault::SlowStore,
        Fault::Clock,
        Fault::Wipe,
        Fault::BitFlip,
        Fault::Growth,
        Fault::Operator,
    ];
}

impl Capability {
    /// All of them.
    pub const ALL: [Capability; 14] = [
        Capability::Get,
        Capability::Put,
        Capability::Delete,
        Capability::Guard,
        Capability::Forward,
        Capability::Election,
        Capability::Membership,
        Capability::Snapshot,
        Capability::Purge,
        Capability::Scan,
        Capability::Scrub,
        Capability::Recovery,
        Capability::Join,
        Capability::Removal,
    ];
}

/// Its effects are counted as long as a fault lasts and for this long after.
const AFTERMATH: Duration = Duration::from_secs(3);

/// Counts by fault and capability.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    counts: [[u64; Capability::ALL.len()]; Fault::ALL.len()],
    until: [Moment; Fault::ALL.len()],
}

impl Coverage {
    /// A fault begins and lasts until `until`.
    pub fn fault(&mut self, fault: Fault, until: Moment) {
        let place = &mut self.until[fault as usize];
        *place = (*place).max(until + AFTERMATH);
    }

    /// A capability was exercised.
    pub fn capability(&mut self, capability: Capability, now: Moment) {
        for (counts, until) in self.counts.iter_mut().zip(&self.until) {
            counts[capability as usize] += u64::from(now <= *until);
        }
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Coverage) {
        for (counts, others) in self.counts.iter_mut().zip(&other.counts) {
            for (count, other) in counts.iter_mut().zip(others) {
                *count += other;
            }
        }
    }

    /// Pairs that never came together.
    pub fn missing(&self) -> Vec<(Fault, Capability)> {
        let pairs = Fault::ALL.iter().flat_map(|f| Capability::ALL.iter().map(move |c| (*f, *c)));
        pairs.filter(|(f, c)| self.counts[*f as usize][*c as usize] == 0).collect()
    }

    /// The table, for people.
    pub fn table(&self) -> String {
        let mut text = format!("{:<12}", "");
        for capability in Capability::ALL {
            let _ = write!(text, "{:>11}", format!("{capability:?}"));
        }
        for (fault, counts) in Fault::ALL.iter().zip(&self.counts) {
            let _ = write!(text, "\n{:<12}", format!("{fault:?}"));
            for count in counts {
                let _ = write!(text, "{count:>11}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_counts_under_the_faults_of_the_moment() {
        let mut coverage = Coverage::default();
        coverage.fault(Fault::Crash, Moment(10));
        coverage.capability(Capability::Put, Moment(5));
        coverage.capability(Capability::Put, Moment(60_000_000_000));
        assert_eq!(coverage.missing().len(), Fault::ALL.len() * Capability::ALL.len() - 1);
        assert!(!coverage.missing().contains(&(Fault::Crash, Capability::Put)));
    }
}
