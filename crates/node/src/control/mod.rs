//! The control group: who the nodes are and where each group's replicas are wanted.
//!
//! - `state`: the state machine of group 0; `command`, `row`: its commands and its stored form; `recovery`: what is
//!   decided when groups have lost their quorum;
//! - [`planner`]: what the control group's leader proposes, from the state and what is reported;
//! - [`moves()`]: what is under way, derived for people and never stored;
//! - [`reconcile`]: what a group's leader does next to bring Raft's configuration to what is wanted.
//!
//! The control group says what is wanted; a group's own Raft configuration says what is. Nothing here
//! sends, waits or asks the time.

mod command;
mod moves;
pub mod planner;
pub mod reconcile;
mod recovery;
mod row;
mod state;
#[cfg(test)]
mod tests;

pub use command::{ControlAnswer, ControlCommand, Refusal};
pub use moves::{Move, Phase, moves};
pub use planner::{Change, GroupReport, NodeHealth, Observed, PlanLimits, Sending, plan, preview};
pub use reconcile::{Step, next_step};
pub use recovery::{RebornGroup, Recovery};
pub use row::{RowKey, decode_rows, encode_rows};
pub use state::{
    Applied, ControlState, Formats, GroupRecord, MOVE_BYTES_PER_SECOND, NodeProfile, NodeRecord, NodeState, Rebalancing, Rebirth, Removal,
    Standing,
};
