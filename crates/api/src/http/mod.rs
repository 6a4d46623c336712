//! HTTP's text forms: a path and its key, a query, conditions, a duration, a scan and its cursor, a batch, JSON answers.
//!
//! Everything here reads bytes that a stranger sent: it returns a [`crate::Problem`], never panics,
//! and allocates no more than a small multiple of its input.

mod answer;
mod batch;
mod etag;
mod field;
mod path;
mod query;
mod scan;

pub use answer::{increment_answer, put_answer, write_json_string};
pub use batch::{BATCH_OPS_MAX, BATCH_PARAMETERS, BatchOp, BatchResult, batch_answer, parse_batch, write_put_op};
pub use etag::{parse_if_match, parse_if_none_match, write_etag};
pub use field::{Text, field_bytes};
pub use path::{decode_key, decode_segment, encode_key};
pub use query::{Consistency, Query, TIMEOUT_DEFAULT, TIMEOUT_MAX, TTL_MAX, parse_duration};
pub use scan::{
    DELETE_RANGE_PARAMETERS, LIMIT_DEFAULT, LIMIT_MAX, NDJSON_CONTENT_TYPE, SCAN_PARAMETERS, ScanParameters, error_line, parse_range,
    scan_page, wants_lines, write_item,
};
