//! Entity tags (RFC 9110, section 8.8.3): a version, quoted.
//!
//! Tags are opaque: they match when their characters do. A tag that no version would be written as
//! (`"abc"`, `"007"`) is well-formed and matches nothing. `If-Match` compares strongly, so a weak tag
//! never matches there; `If-None-Match` compares weakly (sections 13.1.1 and 13.1.2).

use crate::{ErrorCode, Problem};
use flotilla_types::{Match, Version};

/// Appends the version as an entity tag.
pub fn write_etag(out: &mut Vec<u8>, version: Version) {
    out.push(b'"');
    out.extend_from_slice(itoa::Buffer::new().format(version.0).as_bytes());
    out.push(b'"');
}

/// What the values of all `If-Match` fields name together; `None` if there is none.
///
/// # Errors
/// If they are malformed.
pub fn parse_if_match<'a>(fields: impl Iterator<Item = &'a [u8]>) -> Result<Option<Match>, Problem> {
    parse(fields, "If-Match", |weak| !weak)
}

/// What the values of all `If-None-Match` fields name together; `None` if there is none.
///
/// # Errors
/// If they are malformed.
pub fn parse_if_none_match<'a>(fields: impl Iterator<Item = &'a [u8]>) -> Result<Option<Match>, Problem> {
    parse(fields, "If-None-Match", |_| true)
}

/// Several fields of one name mean the same as one with their values joined by commas.
fn parse<'a>(fields: impl Iterator<Item = &'a [u8]>, name: &str, counts: impl Fn(bool) -> bool) -> Result<Option<Match>, Problem> {
    let malformed = || {
        let detail = format!("{name} must be * or a list of entity tags such as \"42\", with the quotes");
        Problem::new(ErrorCode::BadCondition, detail)
    };
    let (mut any, mut tags, mut present) = (false, 0usize, false);
    let mut versions = Vec::new();
    for field in fields {
        present = true;
        let mut rest = field.trim_ascii();
        if rest == b"*" {
            // `*` stands alone, in one field.
            if any || tags > 0 {
                return Err(malformed());
            }
            any = true;
            continue;
        }
        while !rest.is_empty() {
            // Empty elements of a list are to be ignored (section 5.6.1.2).
            if let Some(after) = rest.strip_prefix(b",") {
                rest = after.trim_ascii_start();
                continue;
            }
            let weak = rest.starts_with(b"W/");
            let quoted = if weak { &rest[2..] } else { rest };
            let inside = quoted.strip_prefix(b"\"").ok_or_else(malformed)?;
            let length = memchr::memchr(b'"', inside).ok_or_else(malformed)?;
            let tag = &inside[..length];
            if !tag.iter().all(|&byte| byte == 0x21 || (0x23..=0x7e).contains(&byte) || byte >= 0x80) {
                return Err(malformed());
            }
            tags += 1;
            if counts(weak) {
                versions.extend(version_of(tag));
            }
            rest = inside[length + 1..].trim_ascii_start();
            if !rest.is_empty() && !rest.starts_with(b",") {
                return Err(malformed());
            }
        }
    }
    match (present, any, tags) {
        (false, ..) => Ok(None),
        (true, true, 0) => Ok(Some(Match::Any)),
        (true, false, 1..) => Ok(Some(Match::Versions(versions))),
        _ => Err(malformed()),
    }
}

/// The version that is written as this tag, if there is one.
fn version_of(tag: &[u8]) -> Option<Version> {
    let digits = std::str::from_utf8(tag).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let canonical = digits == "0" || !digits.starts_with('0');
    digits.parse().ok().filter(|_| canonical).map(Version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn versions(numbers: &[u64]) -> Result<Option<Match>, ErrorCode> {
        Ok(Some(Match::Versions(numbers.iter().copied().map(Version).collect())))
    }

    fn if_match(fields: &[&str]) -> Result<Option<Match>, ErrorCode> {
        parse_if_match(fields.iter().map(|field| field.as_bytes())).map_err(|problem| problem.code)
    }

    #[test]
    fn conditions_are_read_as_rfc_9110_writes_them() {
        assert_eq!(if_match(&[]), Ok(None));
        assert_eq!(if_match(&[" * "]), Ok(Some(Match::Any)));
        assert_eq!(if_match(&["\"7\""]), versions(&[7]));
        assert_eq!(if_match(&["\"7\" , \"8\"", ",,\"9\","]), versions(&[7, 8, 9]));
        assert_eq!(if_match(&["\"abc\",\"007\",\"\",\"99999999999999999999\",\"+1\",\"a,b\""]), versions(&[]), "tags that no version has");
        assert_eq!(if_match(&["W/\"7\", \"8\""]), versions(&[8]), "a weak tag never matches strongly");
        let weak = parse_if_none_match([&b"W/\"7\""[..]].into_iter()).map_err(|problem| problem.code);
        assert_eq!(weak, versions(&[7]), "but it does weakly");
    }

    #[test]
    fn malformed_conditions_are_refused() {
        for field in
            ["", "7", "\"7", "7\"", "\"7\" \"8\"", "\"7\"x", "*,\"7\"", "\"7\",*", "**", "w/\"7\"", "W/7", "W/", ",", "\"a b\"", "'7'"]
        {
            assert_eq!(if_match(&[field]), Err(ErrorCode::BadCondition), "{field}");
        }
        assert_eq!(if_match(&["*", "*"]), Err(ErrorCode::BadCondition));
        assert_eq!(if_match(&["*", "\"7\""]), Err(ErrorCode::BadCondition));
        assert_eq!(if_match(&["\"7\"", "*"]), Err(ErrorCode::BadCondition));
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(number: u64) {
            let mut tag = Vec::new();
            write_etag(&mut tag, Version(number));
            let read = parse_if_match([tag.as_slice()].into_iter()).map_err(|problem| problem.code);
            prop_assert_eq!(read, versions(&[number]));
        }

        #[test]
        fn never_panics(fields in prop::collection::vec("[\"W/*, 0-9a\u{e9}]{0,12}", 0..3)) {
            let _ = parse_if_match(fields.iter().map(String::as_bytes));
            let _ = parse_if_none_match(fields.iter().map(String::as_bytes));
        }
    }
}
