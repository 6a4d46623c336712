//! The lines that scans, exports and imports have in common: a JSON object each, with a key and mostly a value.

use anyhow::{Context, anyhow};
use flotilla_api::http::{Text, field_bytes};
use serde::Deserialize;

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The line as it was written, without its end.
    pub line: Vec<u8>,
    /// The key.
    pub key: Vec<u8>,
    /// Its value, unless values are left out.
    pub value: Option<Vec<u8>>,
}

/// The cluster said no, and would again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    key: Option<Text<'a>>,
    key_b64: Option<Text<'a>>,
    value: Option<Text<'a>>,
    value_b64: Option<Text<'a>>,
    error: Option<serde_json::Value>,
}

impl Item {
    /// Reads a line. Other fields than key and value are passed over.
    ///
    /// # Errors
    /// If it is no such line; [`Refused`] if it tells of an error that would come again.
    pub fn parse(text: Vec<u8>) -> anyhow::Result<Item> {
        let line: Line<'_> = serde_json::from_slice(&text).context("not a JSON object with a key")?;
        if let Some(error) = line.error {
            let detail = error["detail"].as_str().unwrap_or("the server gave no reason").to_owned();
            // 5xx of a moment: no quorum, over capacity, out of time.
            let passes = matches!(error["status"].as_u64(), Some(503 | 504));
            return Err(if passes { anyhow!(detail) } else { Refused(detail).into() });
        }
        let key = field_bytes("key", line.key, line.key_b64).map_err(anyhow::Error::msg)?.context("it has no key")?;
        let value = field_bytes("value", line.value, line.value_b64).map_err(anyhow::Error::msg)?;
        Ok(Item { line: text, key, value })
    }
}
