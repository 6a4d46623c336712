//! What clients see, as codecs only: how a path becomes a key, a header a condition, a failure a
//! problem document. No sockets, no async, no clock: the doors in `server` bring the bytes.
//!
//! [`ErrorCode`] is the one table from a failure to its HTTP status, exit code and advice.

pub mod base64;
mod error_code;
pub mod http;
mod openapi;
mod outcome;
mod problem;

pub use error_code::{Advice, ErrorCode};
pub use openapi::OPENAPI;
pub use outcome::{LAG_HEADER, OUTCOME_HEADER, parse_outcome};
pub use problem::{CONTENT_TYPE as PROBLEM_CONTENT_TYPE, Problem};
