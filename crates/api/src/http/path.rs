//! Keys in URL paths.
//!
//! A key stands percent-encoded; `/` may stand as itself, and so may every other byte that HTTP lets
//! through: whatever is not `%` is taken as it is (`+` too). Any byte may come, `%00` included.

use crate::{ErrorCode, Problem};
use flotilla_types::{KEY_BYTES_MAX, Key, KeyError};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// Everything but RFC 3986's unreserved characters and `/`. Dots are left alone only by
/// [`encode_key`]'s check: a client's URL library would resolve the segments `.` and `..`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~').remove(b'/').remove(b'.');

/// The key that the rest of a path names.
///
/// # Errors
/// If the encoding is bad, or the bytes are no key.
pub fn decode_key(path: &str) -> Result<Key, Problem> {
    // Before decoding, so that a huge path is refused without being copied.
    if path.len() > 3 * KEY_BYTES_MAX {
        return Err(too_long(path.len() / 3));
    }
    key_of(percent_decode(path.as_bytes(), false)?)
}

/// The key of these bytes.
pub(super) fn key_of(bytes: Vec<u8>) -> Result<Key, Problem> {
    Key::new(bytes).map_err(|error| match error {
        KeyError::Empty => Problem::new(ErrorCode::KeyEmpty, error.to_string()),
        KeyError::TooLong(length) => too_long(length),
    })
}

/// One segment of a path as text, such as a node's name.
///
/// # Errors
/// If the encoding is bad, or the text is not UTF-8.
pub fn decode_segment(segment: &str) -> Result<String, Problem> {
    String::from_utf8(percent_decode(segment.as_bytes(), false)?)
        .map_err(|_| Problem::new(ErrorCode::BadEncoding, "a name in the path is not UTF-8"))
}

/// The key as it stands in a path, with `/` as itself.
pub fn encode_key(key: &Key) -> String {
    let text = percent_encode(key.as_bytes(), ENCODED).to_string();
    // URL libraries and curl resolve dot segments and empty ones before sending, or may.
    if text.split('/').any(|segment| matches!(segment, "" | "." | "..")) { text.replace('/', "%2F").replace('.', "%2E") } else { text }
}

/// Undoes percent-encoding; in a query's values `+` is a space.
pub(super) fn percent_decode(text: &[u8], plus_is_space: bool) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.iter().position(|&byte| byte == b'%' || (plus_is_space && byte == b'+')) {
        bytes.extend_from_slice(&rest[..position]);
        if rest[position] == b'+' {
            bytes.push(b' ');
            rest = &rest[position + 1..];
            continue;
        }
        let digits = rest.get(position + 1..position + 3).and_then(|digits| Some((hex(digits[0])?, hex(digits[1])?)));
        let Some((high, low)) = digits else {
            return Err(Problem::new(ErrorCode::BadEncoding, "a % must be followed by two hexadecimal digits; write a % itself as %25"));
        };
        bytes.push(high << 4 | low);
        rest = &rest[position + 3..];
    }
    bytes.extend_from_slice(rest);
    Ok(bytes)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

fn too_long(length: usize) -> Problem {
    Problem::new(ErrorCode::KeyTooLong, format!("the key has {length} bytes or more: a key has 1 to {KEY_BYTES_MAX} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(path: &str) -> Result<Vec<u8>, ErrorCode> {
        decode_key(path).map(|key| key.as_bytes().to_vec()).map_err(|problem| problem.code)
    }

    #[test]
    fn any_bytes_may_stand_in_a_path() {
        for (path, bytes) in [
            ("a", &b"a"[..]),
            ("a/b//c/", b"a/b//c/"),
            ("a%2Fb", b"a/b"),
            ("%00%fF", b"\0\xff"),
            ("a+b", b"a+b"),
            ("%25", b"%"),
            ("/", b"/"),
            ("..", b".."),
        ] {
            assert_eq!(decoded(path), Ok(bytes.to_vec()), "{path}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for path in ["%", "%1", "%zz", "a%2", "%+1", "%-1", "a%"] {
            assert_eq!(decoded(path), Err(ErrorCode::BadEncoding), "{path}");
        }
        assert_eq!(decoded(""), Err(ErrorCode::KeyEmpty));
        assert!(decoded(&"k".repeat(KEY_BYTES_MAX)).is_ok() && decoded(&"%41".repeat(KEY_BYTES_MAX)).is_ok());
        assert_eq!(decoded(&"k".repeat(KEY_BYTES_MAX + 1)), Err(ErrorCode::KeyTooLong));
        assert_eq!(decoded(&"%41".repeat(KEY_BYTES_MAX + 1)), Err(ErrorCode::KeyTooLong));
    }

    #[test]
    fn what_a_url_library_would_resolve_is_encoded() {
        for (bytes, path) in [("a/b.c", "a/b.c"), ("a/../b", "a%2F%2E%2E%2Fb"), (".", "%2E"), ("/a", "%2Fa"), ("a b?", "a%20b%3F")] {
            assert_eq!(encode_key(&Key::new(bytes).expect("a key")), path);
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
            prop_assert_eq!(decoded(&encode_key(&Key::new(bytes.clone()).expect("a key"))), Ok(bytes));
        }

        #[test]
        fn never_panics(path in "[%0-9a-fG+/\u{e9}]{0,20}") {
            let _ = decode_key(&path);
            let _ = decode_segment(&path);
        }
    }
}
