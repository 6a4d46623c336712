//! The bodies of `POST /v1/cluster/nodes`, for the door and for the joiner: JSON, with the control
//! group's state as base64.

use flotilla_api::{ErrorCode, Problem, base64};
use flotilla_node::request::JoinRequest;
use flotilla_types::NodeId;

#[derive(serde::Serialize, serde::Deserialize)]
struct JoinAnswer {
    state_b64: String,
}

/// What a joiner sends.
pub fn encode_request(request: &JoinRequest) -> Vec<u8> {
    serde_json::to_vec(request).expect("text, numbers and a bool are JSON")
}

/// Reads what a joiner sent.
///
/// # Errors
/// If it is no join request.
pub fn decode_request(json: &[u8]) -> Result<JoinRequest, Problem> {
    serde_json::from_slice(json).map_err(|error| Problem::new(ErrorCode::BadBody, format!("the body is no join request: {error}")))
}

/// What a joiner is answered: the control group's state in its own encoding.
pub fn encode_answer(state: &[u8]) -> Vec<u8> {
    serde_json::to_vec(&JoinAnswer { state_b64: base64::encode(state) }).expect("text is JSON")
}

/// Reads the control group's state out of a 200 answer; `None` if it is not there.
pub fn decode_answer(json: &[u8]) -> Option<Vec<u8>> {
    let answer: JoinAnswer = serde_json::from_slice(json).ok()?;
    base64::decode(&answer.state_b64)
}

pub(super) fn name_taken(holder: NodeId, alive: bool) -> Problem {
    let detail = if alive {
        format!("node {holder} has this name and is up: choose another name")
    } else {
        format!(
            "node {holder} has this name and is not up: start with --replace to remove it and join in its place, or choose another name"
        )
    };
    Problem::new(ErrorCode::NameTaken, detail)
}
