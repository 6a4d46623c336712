//! The control group: who the nodes are and where each group's replicas are wanted.
//!
//! - `state`: the state machine of group 0; `command`, `row`: its commands and its stored form;
//!
//! The control group says what is wanted; a group's own Raft configuration says what is. Nothing here
//! sends, waits or asks the time.

mod command;
mod row;
mod state;
#[cfg(test)]
mod tests;

pub use command::{ControlAnswer, ControlCommand, Refusal};
pub use row::{RowKey, decode_rows, encode_rows};
pub use state::{Applied, ControlState, Formats, GroupRecord, NodeProfile, NodeRecord, NodeState, Rebalancing, Removal, Standing};
