//! The lines that scans, exports and imports have in common: a JSON object each, with a key and mostly a value.

use anyhow::{Context, anyhow};
use flotilla_api::base64;
use serde::Deserialize;
use std::borrow::Cow;

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

/// serde borrows inside an `Option` only through a type of one's own.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

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
        let bytes = |text: Option<Text<'_>>, coded: Option<Text<'_>>, name: &str| match (text, coded) {
            (Some(text), None) => Ok(Some(text.0.into_owned().into_bytes())),
            (None, Some(coded)) => Ok(Some(base64::decode(&coded.0).ok_or_else(|| anyhow!("{name}_b64 is no standard base64"))?)),
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(anyhow!("it has both {name} and {name}_b64")),
        };
        let key = bytes(line.key, line.key_b64, "key")?.ok_or_else(|| anyhow!("it has no key"))?;
        let value = bytes(line.value, line.value_b64, "value")?;
        Ok(Item { line: text, key, value })
    }
}
