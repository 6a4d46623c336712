//! Problem documents (RFC 9457): the body of every HTTP error.

use crate::{ErrorCode, http::write_json_string};

/// The `Content-Type` of a problem document.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// A failure as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The kind.
    pub code: ErrorCode,
    /// This one, for people: what was attempted, what was found, what to do.
    pub detail: String,
}

impl Problem {
    /// A problem of this kind.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Problem {
        Problem { code, detail: detail.into() }
    }

    /// The document: `{"status","title","detail","code"}`.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = Vec::with_capacity(96 + self.detail.len());
        json.extend_from_slice(b"{\"status\":");
        json.extend_from_slice(itoa::Buffer::new().format(self.code.status()).as_bytes());
        json.extend_from_slice(b",\"title\":");
        write_json_string(&mut json, self.code.title());
        json.extend_from_slice(b",\"detail\":");
        write_json_string(&mut json, &self.detail);
        json.extend_from_slice(b",\"code\":");
        write_json_string(&mut json, self.code.as_str());
        json.extend_from_slice(b"}\n");
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_json_whatever_the_detail_says() {
        let problem = Problem::new(ErrorCode::Damaged, "a \"quote\", a \\ and a \u{1} control");
        let json: serde_json::Value = serde_json::from_slice(&problem.to_json()).expect("valid JSON");
        assert_eq!(
            json,
            serde_json::json!({"status": 500, "title": "Stored data is damaged", "detail": problem.detail, "code": "damaged"})
        );
    }
}
