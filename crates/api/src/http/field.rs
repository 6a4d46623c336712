//! Bytes in JSON: a field as text, or under its name and `_b64` where they are not UTF-8.

use crate::base64;
use serde::Deserialize;
use std::borrow::Cow;

/// A string of JSON, without a copy of its own where it has no escapes. serde borrows inside an `Option` only through a
/// type of one's own.
#[derive(Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// The bytes of a field that stands as text or coded; `None` if it stands in neither form.
///
/// # Errors
/// If it stands in both, or is no standard base64; in words.
pub fn field_bytes(name: &str, text: Option<Text<'_>>, coded: Option<Text<'_>>) -> Result<Option<Vec<u8>>, String> {
    match (text, coded) {
        (Some(text), None) => Ok(Some(text.0.into_owned().into_bytes())),
        (None, Some(coded)) => match base64::decode(&coded.0) {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(format!("{name}_b64 is no standard base64 (RFC 4648, section 4, with padding)")),
        },
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(format!("give {name} or {name}_b64, not both")),
    }
}
