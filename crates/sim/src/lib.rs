//! The simulated world: whole nodes, the code of production, many in one thread, under one seed.
//!
//! The seed decides everything: topology, settings, load, faults, and how long each thing takes. The
//! same seed gives the same run, byte for byte, so a failure is replayed by its number.
//!
//! - [`scenario`]: what a seed stands for; [`campaign`]: runs of one seed and of many;
//! - [`world`]: the queue of happenings, links and clients; [`host`] and `process`: a machine and the
//!   node on it; `injection`: the faults; `verdict`: how a run ends;
//! - [`network`], [`clock`], [`queue`], [`workload`], `scans`, [`history`], [`trace`], [`coverage`]: its parts;
//! - [`checkers`]: the properties that every run must have.
//!
//! Left out: threads (each is a queue here, and interleaves by the seed), sockets and their
//! handshakes, the doors, and a full disk.

pub mod ambush;
pub mod campaign;
pub mod checkers;
pub mod clock;
pub mod coverage;
pub mod fleet;
pub mod history;
pub mod host;
mod injection;
#[cfg(test)]
mod lone_copy;
#[cfg(test)]
mod lost_quorum;
pub mod moves;
pub mod network;
mod process;
pub mod queue;
mod scans;
pub mod scenario;
pub mod trace;
mod verdict;
#[cfg(test)]
mod wiped_voter;
pub mod workload;
pub mod world;
