//! Which nodes should hold which groups, and which of them should lead: pure functions of members,
//! weights, zones and the present placement (decision 6).
//!
//! - [`ring`]: the consistent-hash ring that proposes;
//! - [`spread`]: bounded load and zones on top of it, with the fewest moves;
//! - [`leaders`]: even preferred leaders, and exchanges where some are much busier than others.
//!
//! Left out: copies by bytes or requests. Shards are slices of the same hash space, so counts
//! are a good measure, and they do not swing with traffic; a leader costs nothing to move.

pub mod leaders;
pub mod ring;
pub mod spread;
mod targets;

pub use leaders::{Electorate, assign_leaders, exchange_for_load};
pub use ring::Ring;
pub use spread::{NodeWeight, assign};
