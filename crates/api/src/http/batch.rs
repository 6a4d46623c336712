//! A batch: its body as JSON, and its results.
//!
//! The body is `{"ops":[{"put":{...}},{"get":{...}},{"delete":{...}}]}`. What is malformed anywhere in it
//! refuses the whole, before anything is done. Strings are taken from the body without a copy of their own
//! where JSON allows it, and no more than [`BATCH_OPS_MAX`] operations are ever built.

use super::field::{Text, field_bytes};
use super::path::key_of;
use super::query::{TTL_MAX, parse_duration};
use super::scan::write_bytes_field;
use crate::{ErrorCode, Problem};
use bytes::Bytes;
use flotilla_types::{Condition, Key, Match, Outcome, Version};
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// The parameters of a batch.
pub const BATCH_PARAMETERS: &[&str] = &["timeout"];
/// The most operations of a batch.
pub const BATCH_OPS_MAX: usize = 10_000;

/// One operation of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchOp {
    /// Write a key.
    Put {
        /// The key.
        key: Key,
        /// Its value.
        value: Bytes,
        /// How long it has it; `None`: for ever.
        ttl: Option<Duration>,
        /// What must hold.
        condition: Condition,
    },
    /// Read a key.
    Get {
        /// The key.
        key: Key,
    },
    /// Delete a key.
    Delete {
        /// The key.
        key: Key,
        /// What must hold.
        condition: Condition,
    },
}

/// What became of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchResult {
    /// It was written.
    Put {
        /// The version it has now.
        version: Version,
        /// Whether there was no such key before.
        created: bool,
    },
    /// It was read.
    Value {
        /// Its version.
        version: Version,
        /// Its value.
        value: Bytes,
    },
    /// It was deleted, if it was there.
    Deleted {
        /// Whether it was.
        deleted: bool,
    },
    /// It was not done, or may not have been.
    Failed {
        /// Why.
        problem: Problem,
        /// Of a write: whether it can have happened.
        outcome: Option<Outcome>,
        /// Of a failed condition: the version that is there.
        present: Option<Version>,
    },
}

impl BatchOp {
    /// The key it is about.
    pub fn key(&self) -> &Key {
        match self {
            BatchOp::Put { key, .. } | BatchOp::Get { key } | BatchOp::Delete { key, .. } => key,
        }
    }

    /// Whether it changes something.
    pub fn is_write(&self) -> bool {
        !matches!(self, BatchOp::Get { .. })
    }
}

/// Reads the body of a batch. No value may be longer than `value_bytes_max`.
///
/// # Errors
/// If it is no batch; the place is named.
pub fn parse_batch(json: &[u8], value_bytes_max: usize) -> Result<Vec<BatchOp>, Problem> {
    let body: Body<'_> = serde_json::from_slice(json).map_err(|error| bad(format!("the body is no batch: {error}")))?;
    let ops = body.ops.0.into_iter().enumerate().map(|(place, op)| {
        op.check(value_bytes_max).map_err(|problem| Problem { detail: format!("ops[{place}]: {}", problem.detail), ..problem })
    });
    ops.collect()
}

/// Appends an operation that writes a key, as [`parse_batch`] reads it; `if_version` 0 only if there is none.
pub fn write_put_op(out: &mut Vec<u8>, key: &[u8], value: &[u8], if_version: Option<u64>) {
    out.extend_from_slice(b"{\"put\":{");
    write_bytes_field(out, "key", key);
    out.push(b',');
    write_bytes_field(out, "value", value);
    if let Some(version) = if_version {
        out.extend_from_slice(b",\"if_version\":");
        out.extend_from_slice(itoa::Buffer::new().format(version).as_bytes());
    }
    out.extend_from_slice(b"}}");
}

/// The answer: `{"results":[...]}`, one for each operation, in their order.
pub fn batch_answer(results: &[BatchResult]) -> Vec<u8> {
    let bytes = results.iter().map(|result| if let BatchResult::Value { value, .. } = result { 48 + value.len() } else { 48 });
    let mut json = Vec::with_capacity(16 + bytes.sum::<usize>());
    json.extend_from_slice(b"{\"results\":[");
    for (number, result) in results.iter().enumerate() {
        json.extend_from_slice(if number == 0 { b"\n" } else { b",\n" });
        write_result(&mut json, result);
    }
    json.extend_from_slice(b"]}\n");
    json
}

fn write_result(json: &mut Vec<u8>, result: &BatchResult) {
    let write_version = |json: &mut Vec<u8>, version: Version| {
        json.extend_from_slice(b",\"version\":");
        json.extend_from_slice(itoa::Buffer::new().format(version.0).as_bytes());
    };
    match result {
        BatchResult::Put { version, created } => {
            json.extend_from_slice(if *created { b"{\"status\":201" } else { b"{\"status\":200" });
            write_version(json, *version);
        }
        BatchResult::Value { version, value } => {
            json.extend_from_slice(b"{\"status\":200,");
            write_bytes_field(json, "value", value);
            write_version(json, *version);
        }
        BatchResult::Deleted { deleted: true } => json.extend_from_slice(b"{\"status\":200,\"deleted\":true"),
        BatchResult::Deleted { deleted: false } => json.extend_from_slice(b"{\"status\":200,\"deleted\":false"),
        BatchResult::Failed { problem, outcome, present } => {
            json.extend_from_slice(b"{\"status\":");
            json.extend_from_slice(itoa::Buffer::new().format(problem.code.status()).as_bytes());
            json.push(b',');
            write_bytes_field(json, "code", problem.code.as_str().as_bytes());
            json.push(b',');
            write_bytes_field(json, "detail", problem.detail.as_bytes());
            if let Some(outcome) = outcome {
                json.push(b',');
                write_bytes_field(json, "outcome", outcome.as_str().as_bytes());
            }
            if let Some(version) = present {
                write_version(json, *version);
            }
        }
    }
    json.push(b'}');
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow)]
    ops: Ops<'a>,
}

/// A list that is refused while it is read once it grows too long.
struct Ops<'a>(Vec<Op<'a>>);

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Op<'a> {
    #[serde(borrow)]
    Put(Put<'a>),
    Get(Get<'a>),
    Delete(Delete<'a>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Put<'a> {
    #[serde(borrow)]
    key: Option<Text<'a>>,
    key_b64: Option<Text<'a>>,
    value: Option<Text<'a>>,
    value_b64: Option<Text<'a>>,
    ttl: Option<Text<'a>>,
    if_version: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Get<'a> {
    #[serde(borrow)]
    key: Option<Text<'a>>,
    key_b64: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Delete<'a> {
    #[serde(borrow)]
    key: Option<Text<'a>>,
    key_b64: Option<Text<'a>>,
    if_version: Option<u64>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Ops<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ops<'a>, D::Error> {
        struct Bounded<'a>(PhantomData<Op<'a>>);
        impl<'de: 'a, 'a> Visitor<'de> for Bounded<'a> {
            type Value = Ops<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {BATCH_OPS_MAX} operations")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ops<'a>, A::Error> {
                let mut ops = Vec::new();
                while let Some(op) = list.next_element()? {
                    if ops.len() == BATCH_OPS_MAX {
                        return Err(serde::de::Error::invalid_length(ops.len() + 1, &self));
                    }
                    ops.push(op);
                }
                Ok(Ops(ops))
            }
        }
        deserializer.deserialize_seq(Bounded(PhantomData))
    }
}

impl Op<'_> {
    fn check(self, value_bytes_max: usize) -> Result<BatchOp, Problem> {
        Ok(match self {
            Op::Put(put) => {
                let value = bytes_of("value", put.value, put.value_b64)?;
                if value.len() > value_bytes_max {
                    let detail = format!("the value has {} bytes, more than the {value_bytes_max} that one may have", value.len());
                    return Err(Problem::new(ErrorCode::TooLarge, detail));
                }
                let ttl = put.ttl.map(|text| {
                    let ttl = parse_duration(text.0.as_bytes()).filter(|ttl| (Duration::from_millis(1)..=TTL_MAX).contains(ttl));
                    ttl.ok_or_else(|| {
                        bad("ttl must be a whole number with its unit, one of ms, s, m, h, d, such as 30s, from 1ms to 3650d")
                    })
                });
                BatchOp::Put {
                    key: key_of(bytes_of("key", put.key, put.key_b64)?)?,
                    value: value.into(),
                    ttl: ttl.transpose()?,
                    condition: condition(put.if_version),
                }
            }
            Op::Get(get) => BatchOp::Get { key: key_of(bytes_of("key", get.key, get.key_b64)?)? },
            Op::Delete(delete) => {
                BatchOp::Delete { key: key_of(bytes_of("key", delete.key, delete.key_b64)?)?, condition: condition(delete.if_version) }
            }
        })
    }
}

/// Version 0 is that of no key: it stands for absence.
fn condition(if_version: Option<u64>) -> Condition {
    match if_version {
        None => Condition::ALWAYS,
        Some(0) => Condition { if_match: None, if_none_match: Some(Match::Any) },
        Some(version) => Condition { if_match: Some(Match::Versions(vec![Version(version)])), if_none_match: None },
    }
}

fn bytes_of(name: &str, text: Option<Text<'_>>, coded: Option<Text<'_>>) -> Result<Vec<u8>, Problem> {
    field_bytes(name, text, coded).map_err(bad)?.ok_or_else(|| bad(format!("{name} or {name}_b64 is missing")))
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::BadBody, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(json: &str) -> Result<Vec<BatchOp>, Problem> {
        parse_batch(json.as_bytes(), 8)
    }

    #[test]
    fn operations_are_read_in_order() {
        let key = |text: &'static [u8]| Key::new(text).expect("a key");
        let ops = parse(
            r#"{"ops":[{"put":{"key":"a","value":"\u00e4","ttl":"30s"}},{"get":{"key_b64":"/w=="}},
                {"put":{"key":"a","value_b64":"AAE=","if_version":7}},{"delete":{"key":"a","if_version":0}},{"delete":{"key":"a"}}]}"#,
        );
        let version_7 = Condition { if_match: Some(Match::Versions(vec![Version(7)])), if_none_match: None };
        let absent = Condition { if_match: None, if_none_match: Some(Match::Any) };
        let ttl = Some(Duration::from_secs(30));
        assert_eq!(
            ops.expect("a batch"),
            [
                BatchOp::Put { key: key(b"a"), value: "ä".into(), ttl, condition: Condition::ALWAYS },
                BatchOp::Get { key: key(b"\xff") },
                BatchOp::Put { key: key(b"a"), value: Bytes::from_static(&[0, 1]), ttl: None, condition: version_7 },
                BatchOp::Delete { key: key(b"a"), condition: absent },
                BatchOp::Delete { key: key(b"a"), condition: Condition::ALWAYS },
            ]
        );
        assert_eq!(parse(r#"{"ops":[]}"#), Ok(Vec::new()));
    }

    #[test]
    fn what_is_malformed_is_refused_and_named() {
        for (body, code, words) in [
            ("", ErrorCode::BadBody, "EOF"),
            ("[]", ErrorCode::BadBody, "no batch"),
            (r#"{"ops":[]}x"#, ErrorCode::BadBody, "trailing"),
            (r#"{"ops":[],"more":1}"#, ErrorCode::BadBody, "more"),
            (r#"{"ops":[],"ops":[]}"#, ErrorCode::BadBody, "duplicate"),
            (r#"{"ops":[{"incr":{"key":"a"}}]}"#, ErrorCode::BadBody, "incr"),
            (r#"{"ops":[{"get":{"key":"a"},"put":{}}]}"#, ErrorCode::BadBody, "no batch"),
            (r#"{"ops":[{"get":{"key":"a"}},{"get":{}}]}"#, ErrorCode::BadBody, "ops[1]: key or key_b64 is missing"),
            (r#"{"ops":[{"get":{"key":"a","key_b64":"YQ=="}}]}"#, ErrorCode::BadBody, "not both"),
            (r#"{"ops":[{"get":{"key_b64":"YQ"}}]}"#, ErrorCode::BadBody, "base64"),
            (r#"{"ops":[{"put":{"key":"a","value":"123456789"}}]}"#, ErrorCode::TooLarge, "ops[0]"),
            (r#"{"ops":[{"put":{"key":"a"}}]}"#, ErrorCode::BadBody, "value or value_b64"),
            (r#"{"ops":[{"put":{"key":"a","value":"v","ttl":"0s"}}]}"#, ErrorCode::BadBody, "ttl"),
            (r#"{"ops":[{"put":{"key":"a","value":"v","if_version":-1}}]}"#, ErrorCode::BadBody, "no batch"),
            (r#"{"ops":[{"get":{"key":""}}]}"#, ErrorCode::KeyEmpty, "ops[0]"),
        ] {
            let problem = parse(body).expect_err(body);
            assert_eq!(problem.code, code, "{body}");
            assert!(problem.detail.contains(words), "{body}: {}", problem.detail);
        }
        let long = format!(r#"{{"ops":[{{"get":{{"key":"{}"}}}}]}}"#, "k".repeat(5_000));
        assert_eq!(parse(&long).expect_err("too long").code, ErrorCode::KeyTooLong);
    }

    #[test]
    fn no_more_operations_are_built_than_a_batch_may_have() {
        let of = |count: usize| format!(r#"{{"ops":[{}]}}"#, vec![r#"{"get":{"key":"a"}}"#; count].join(","));
        assert_eq!(parse(&of(BATCH_OPS_MAX)).expect("as many as may be").len(), BATCH_OPS_MAX);
        let problem = parse(&of(BATCH_OPS_MAX + 1)).expect_err("one too many");
        assert!(problem.detail.contains("at most 10000 operations"), "{}", problem.detail);
    }

    #[test]
    fn results_are_json() {
        let failed =
            |outcome, present| BatchResult::Failed { problem: Problem::new(ErrorCode::ConditionFailed, "a \"d\""), outcome, present };
        let results = [
            BatchResult::Put { version: Version(1), created: true },
            BatchResult::Put { version: Version(2), created: false },
            BatchResult::Value { version: Version(2), value: Bytes::from_static(b"\xff") },
            BatchResult::Deleted { deleted: false },
            failed(Some(Outcome::NotApplied), Some(Version(2))),
            failed(None, None),
        ];
        let json: serde_json::Value = serde_json::from_slice(&batch_answer(&results)).expect("valid JSON");
        let condition = serde_json::json!({"status":412,"code":"condition_failed","detail":"a \"d\""});
        let mut with_outcome = condition.clone();
        with_outcome["outcome"] = "not-applied".into();
        with_outcome["version"] = 2.into();
        assert_eq!(
            json["results"],
            serde_json::json!([{"status":201,"version":1},{"status":200,"version":2},{"status":200,"value_b64":"/w==","version":2},
                {"status":200,"deleted":false}, with_outcome, condition])
        );
    }

    proptest! {
        #[test]
        fn an_operation_is_read_as_it_is_written(key in prop::collection::vec(any::<u8>(), 1..9), value in prop::collection::vec(any::<u8>(), 0..9),
            only_absent: bool) {
            let mut json = b"{\"ops\":[".to_vec();
            write_put_op(&mut json, &key, &value, only_absent.then_some(0));
            json.extend_from_slice(b"]}");
            let put = BatchOp::Put {
                key: Key::new(key).expect("a key"),
                value: value.into(),
                ttl: None,
                condition: condition(only_absent.then_some(0)),
            };
            prop_assert_eq!(parse_batch(&json, 9), Ok(vec![put]));
        }

        #[test]
        fn never_panics(json in r#"\{"ops":\[(\{"(put|get|delete)":\{("(key|key_b64|value|ttl|if_version)":("[a-z=0-9]{0,5}"|[0-9]{1,3}),?){0,3}\}\},?){0,3}\]\}"#) {
            let _ = parse(&json);
        }
    }
}
