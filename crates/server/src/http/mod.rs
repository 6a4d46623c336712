//! The HTTP door.

mod backend;

pub use backend::{Backend, Location};
