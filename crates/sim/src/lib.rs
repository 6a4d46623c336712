//! The simulated world: whole nodes, the code of production, many in one thread, under one seed.
//!
//! The seed decides everything: topology, settings, load, faults, and how long each thing takes. The
//! same seed gives the same run, byte for byte, so a failure is replayed by its number.

pub mod checkers;
pub mod history;
