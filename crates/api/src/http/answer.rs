//! JSON answers of the hot path, written by hand: a few copies instead of a serializer.

use crate::base64;
use flotilla_types::{Key, Version};

/// What a successful `PUT` answers: `{"key":...,"version":...}`, with `key_b64` for a key that is not UTF-8.
pub fn put_answer(key: &Key, version: Version) -> Vec<u8> {
    let mut json = Vec::with_capacity(key.as_bytes().len() + 48);
    match std::str::from_utf8(key.as_bytes()) {
        Ok(text) => {
            json.extend_from_slice(b"{\"key\":");
            write_json_string(&mut json, text);
        }
        Err(_) => {
            json.extend_from_slice(b"{\"key_b64\":\"");
            json.extend_from_slice(base64::encode(key.as_bytes()).as_bytes());
            json.push(b'"');
        }
    }
    json.extend_from_slice(b",\"version\":");
    json.extend_from_slice(itoa::Buffer::new().format(version.0).as_bytes());
    json.extend_from_slice(b"}\n");
    json
}

/// What a successful increment answers: `{"value":...,"version":...}`.
pub fn increment_answer(value: i64, version: Version) -> Vec<u8> {
    let mut json = Vec::with_capacity(64);
    json.extend_from_slice(b"{\"value\":");
    json.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    json.extend_from_slice(b",\"version\":");
    json.extend_from_slice(itoa::Buffer::new().format(version.0).as_bytes());
    json.extend_from_slice(b"}\n");
    json
}

/// Appends a JSON string, quotes included (RFC 8259, section 7).
pub fn write_json_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(position) = rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        out.extend_from_slice(&rest[..position]);
        match rest[position] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(DIGITS[usize::from(control >> 4)]);
                out.push(DIGITS[usize::from(control & 15)]);
            }
        }
        rest = &rest[position + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sums_are_numbers() {
        assert_eq!(increment_answer(i64::MIN, Version(7)), b"{\"value\":-9223372036854775808,\"version\":7}\n");
    }

    #[test]
    fn keys_that_are_not_utf8_come_as_base64() {
        let key = Key::new(&b"a\xff"[..]).expect("a key");
        assert_eq!(put_answer(&key, Version(7)), b"{\"key_b64\":\"Yf8=\",\"version\":7}\n");
    }

    proptest! {
        #[test]
        fn answers_are_json(text in ".{1,40}|[\u{0}-\u{7f}]{1,40}", version: u64) {
            let key = Key::new(text.clone()).expect("a key");
            let json: serde_json::Value = serde_json::from_slice(&put_answer(&key, Version(version))).expect("valid JSON");
            prop_assert_eq!(json, serde_json::json!({"key": text, "version": version}));
        }
    }
}
