//! The targets, by the crate whose decoders they try.

mod api;
mod lines;
mod node;
mod server;
mod storage;

use crate::Target;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "base64", run: api::base64, seeds: api::base64_seeds },
    Target { name: "key_path", run: api::key_path, seeds: api::key_path_seeds },
    Target { name: "query", run: api::query, seeds: api::query_seeds },
    Target { name: "cursor", run: api::cursor, seeds: api::cursor_seeds },
    Target { name: "etag", run: api::etag, seeds: api::etag_seeds },
    Target { name: "json_answers", run: api::json_answers, seeds: api::json_answers_seeds },
    Target { name: "batch", run: api::batch, seeds: api::batch_seeds },
    Target { name: "ndjson_line", run: lines::ndjson_line, seeds: lines::ndjson_line_seeds },
    Target { name: "log_record", run: storage::log_record, seeds: storage::log_record_seeds },
    Target { name: "log_recovery", run: storage::log_recovery, seeds: storage::log_recovery_seeds },
    Target { name: "mutations", run: node::mutations, seeds: node::mutations_seeds },
    Target { name: "rows", run: node::rows, seeds: node::rows_seeds },
    Target { name: "snapshot_chunk", run: node::snapshot_chunk, seeds: node::snapshot_chunk_seeds },
    Target { name: "control", run: node::control, seeds: node::control_seeds },
    Target { name: "node_state", run: node::node_state, seeds: node::node_state_seeds },
    Target { name: "peer_message", run: node::peer_message, seeds: node::peer_message_seeds },
    Target { name: "peer_frames", run: server::peer_frames, seeds: server::peer_frames_seeds },
    Target { name: "handshake", run: server::handshake, seeds: server::handshake_seeds },
    Target { name: "join", run: server::join, seeds: server::join_seeds },
];
