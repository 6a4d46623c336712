//! Runs against real processes: nodes are killed, cut off, cut from power, and what was acknowledged
//! is asked for again afterwards. It knows a node only from outside: the binary, its ports, its
//! folders. Every server is on loopback or in a network of its own, on ports of the system's choice,
//! and is stopped by its id by whoever started it. What can be had without real processes is in
//! `crates/sim`, where a run can be repeated exactly; here it is about the disk, the kernel and the clock.
#![allow(clippy::disallowed_methods, reason = "outside of the core: clocks, files and processes are what this is about")]

pub mod binary;
pub mod browser;
pub mod bulk;
pub mod churn;
pub mod cluster;
pub mod compare_etcd;
pub mod cut_off;
pub mod damage;
pub mod dashboard;
pub mod expiry;
pub mod gaps;
pub mod grow;
pub mod idle;
pub mod keyspace;
pub mod kill;
pub mod memory;
pub mod move_cost;
pub mod moves;
pub mod networks;
pub mod once;
pub mod operator;
pub mod power;
pub mod pressure;
mod pressure_client;
pub mod real_data;
pub mod restart;
pub mod scan_load;
pub mod verify;
pub mod weather;
pub mod wire;
pub mod writers;
