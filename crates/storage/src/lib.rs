//! Durable bytes, real or simulated: the disk, the Raft log on it, and the state store.

pub mod disk;
pub mod log;
pub mod store;
pub mod verify;
