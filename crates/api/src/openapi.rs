//! The OpenAPI 3.1 document of the HTTP API, as `GET /openapi.json` serves it.
//!
//! It is written by hand, in `openapi.json` beside this file. Tests hold it against what is there: here, its problems
//! against the table of codes; in `server`, its paths against the routes, and real answers against its schemas.

/// The document, JSON.
pub const OPENAPI: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorCode;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    #[test]
    fn each_status_bears_the_codes_of_the_table() {
        let document: Value = serde_json::from_str(OPENAPI).expect("JSON");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let problems = document["components"]["responses"].as_object().expect("answers");
        let statuses: BTreeSet<u16> = ErrorCode::ALL.iter().map(|code| code.status()).collect();
        let named: Vec<String> = statuses.iter().map(|status| format!("Problem{status}")).collect();
        assert!(named.iter().eq(problems.keys()), "{:?} are not {named:?}", problems.keys());
        for status in statuses {
            let own = &problems[&format!("Problem{status}")]["content"][crate::PROBLEM_CONTENT_TYPE]["schema"]["allOf"][1]["properties"];
            let codes: Vec<_> = ErrorCode::ALL.iter().filter(|code| code.status() == status).map(|code| code.as_str()).collect();
            assert_eq!(*own, json!({"status": {"const": status}, "code": {"enum": codes}}), "Problem{status}");
        }
    }
}
