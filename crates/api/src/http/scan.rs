//! Scans in HTTP's text forms: the parameters, the cursor, a page, a line.
//!
//! A cursor is what is left of the range, a fingerprint of the scan that it continues, and a checksum, as
//! URL-safe base64. It is opaque to clients and refers to nothing that a server keeps; so it never
//! expires, and any node takes it. The fingerprint is of `prefix`, `start`, `end` and `reverse`: a cursor
//! goes with these or stands alone.

use super::answer::write_json_string;
use super::query::Query;
use crate::{ErrorCode, Problem, base64};
use bytes::Bytes;
use flotilla_types::wire::{Reader, Write};
use flotilla_types::{Key, KeyRange, Version};

/// The parameters of a scan.
pub const SCAN_PARAMETERS: &[&str] = &["prefix", "start", "end", "limit", "reverse", "keys_only", "cursor", "timeout"];
/// The parameters of a delete of a range.
pub const DELETE_RANGE_PARAMETERS: &[&str] = &["prefix", "start", "end", "timeout"];
/// Items of a page unless `limit` says otherwise.
pub const LIMIT_DEFAULT: u32 = 100;
/// The most items of a page.
pub const LIMIT_MAX: u32 = 10_000;
/// The `Content-Type` of a stream of items.
pub const NDJSON_CONTENT_TYPE: &str = "application/x-ndjson";

const CURSOR_FORMAT: u8 = 1;

/// What is asked of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanParameters {
    /// Which keys; with a cursor, what is left of them.
    pub range: KeyRange,
    /// `limit`, if it was given.
    pub limit: Option<u32>,
    /// Whether the last key comes first.
    pub reverse: bool,
    /// Whether values are left out.
    pub keys_only: bool,
    /// What tells this scan from others, in its cursors.
    fingerprint: u32,
}

impl ScanParameters {
    /// Reads the parameters of a page; `limit_max` bounds its `limit`.
    ///
    /// # Errors
    /// If one is malformed, they contradict each other, or the cursor is damaged or of another scan.
    pub fn parse(query: &Query, limit_max: u32) -> Result<ScanParameters, Problem> {
        let limit = query.value("limit").map(|value| parse_limit(value, limit_max)).transpose()?;
        let (reverse, keys_only) = (query.switch("reverse")?, query.switch("keys_only")?.unwrap_or(false));
        let bounds = parse_range(query)?;
        let asked = (bounds.is_some() || reverse.is_some()).then(|| {
            let (range, reverse) = (bounds.unwrap_or_default(), reverse.unwrap_or(false));
            (fingerprint(&range, reverse), range, reverse)
        });
        let Some(cursor) = given(query, "cursor") else {
            let (fingerprint, range, reverse) =
                asked.unwrap_or_else(|| (fingerprint(&KeyRange::default(), false), KeyRange::default(), false));
            return Ok(ScanParameters { range, limit, reverse, keys_only, fingerprint });
        };
        let cursor = Cursor::decode(cursor).ok_or_else(|| bad("cursor is none that this cluster gave, or was changed on its way"))?;
        if asked.is_some_and(|(fingerprint, ..)| fingerprint != cursor.fingerprint) {
            return Err(bad(
                "cursor belongs to another scan: give prefix, start, end and reverse as in the first request, or none of them",
            ));
        }
        Ok(ScanParameters { range: cursor.rest, limit, reverse: cursor.reverse, keys_only, fingerprint: cursor.fingerprint })
    }

    /// The cursor that goes on with what is left.
    pub fn cursor(&self, rest: KeyRange) -> String {
        Cursor { reverse: self.reverse, fingerprint: self.fingerprint, rest }.encode()
    }
}

/// The range that `prefix`, `start` and `end` name together; `None` if there is none of them. Empty ones
/// count as not given.
///
/// # Errors
/// If they contradict each other or are longer than any key.
pub fn parse_range(query: &Query) -> Result<Option<KeyRange>, Problem> {
    let (prefix, start, end) = (given(query, "prefix"), given(query, "start"), given(query, "end"));
    for (name, value) in [("prefix", prefix), ("start", start), ("end", end)] {
        if value.is_some_and(|value| value.len() > KeyRange::BOUND_BYTES_MAX) {
            return Err(bad(format!("{name} is longer than any key")));
        }
    }
    if prefix.is_none() && start.is_none() && end.is_none() {
        return Ok(None);
    }
    let bounds = KeyRange { start: Bytes::copy_from_slice(start.unwrap_or_default()), end: end.map(Bytes::copy_from_slice) };
    if end.is_some_and(|end| *end < *bounds.start) {
        return Err(bad("start lies behind end: no key can be between them; reverse=true turns the order, not the bounds"));
    }
    let Some(prefix) = prefix else { return Ok(Some(bounds)) };
    let range = bounds.intersection(&KeyRange::of_prefix(prefix));
    if range.is_empty() && !bounds.is_empty() {
        return Err(bad("no key with this prefix can lie between start and end"));
    }
    Ok(Some(range))
}

/// Whether an `Accept` asks for lines instead of a page: it names their type, and not with `q=0`.
pub fn wants_lines<'a>(accept: impl Iterator<Item = &'a [u8]>) -> bool {
    let names_lines = |range: &[u8]| {
        let mut parts = range.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
        let is_lines = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(NDJSON_CONTENT_TYPE.as_bytes()));
        let is_refused = parts.any(|part| {
            let weight = part.strip_prefix(b"q=").or_else(|| part.strip_prefix(b"Q="));
            weight.is_some_and(|weight| weight.starts_with(b"0") && weight.iter().all(|byte| matches!(byte, b'0' | b'.')))
        });
        is_lines && !is_refused
    };
    accept.flat_map(|field| field.split(|&byte| byte == b',')).any(names_lines)
}

/// Appends an item: `{"key","value","version"}`, `key_b64` and `value_b64` for what is not UTF-8, without
/// a value if it is left out.
pub fn write_item(out: &mut Vec<u8>, key: &Key, version: Version, value: Option<&[u8]>) {
    out.push(b'{');
    write_bytes_field(out, "key", key.as_bytes());
    if let Some(value) = value {
        out.push(b',');
        write_bytes_field(out, "value", value);
    }
    out.extend_from_slice(b",\"version\":");
    out.extend_from_slice(itoa::Buffer::new().format(version.0).as_bytes());
    out.push(b'}');
}

/// A page: `{"items":[...],"cursor":...}`.
pub fn scan_page<'a>(items: impl Iterator<Item = (&'a Key, Version, Option<&'a [u8]>)>, cursor: Option<&str>) -> Vec<u8> {
    let mut json = b"{\"items\":[".to_vec();
    for (number, (key, version, value)) in items.enumerate() {
        json.extend_from_slice(if number == 0 { b"\n" } else { b",\n" });
        write_item(&mut json, key, version, value);
    }
    json.extend_from_slice(b"],\"cursor\":");
    match cursor {
        Some(cursor) => write_json_string(&mut json, cursor),
        None => json.extend_from_slice(b"null"),
    }
    json.extend_from_slice(b"}\n");
    json
}

/// The last line of a stream that could not be finished: `{"error":{...}}`.
pub fn error_line(problem: &Problem) -> Vec<u8> {
    [&b"{\"error\":"[..], problem.to_json().trim_ascii_end(), b"}\n"].concat()
}

/// Appends `"name":"..."`, or `"name_b64":"..."` if the bytes are not UTF-8.
pub(super) fn write_bytes_field(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            out.extend_from_slice(b"\":");
            write_json_string(out, text);
        }
        Err(_) => {
            out.extend_from_slice(b"_b64\":\"");
            out.extend_from_slice(base64::encode(bytes).as_bytes());
            out.push(b'"');
        }
    }
}

fn given<'a>(query: &'a Query, name: &str) -> Option<&'a [u8]> {
    query.value(name).filter(|value| !value.is_empty())
}

fn parse_limit(value: &[u8], limit_max: u32) -> Result<u32, Problem> {
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let limit = digits.and_then(|digits| digits.parse().ok()).filter(|limit| (1..=limit_max).contains(limit));
    limit.ok_or_else(|| bad(format!("limit must be a whole number from 1 to {limit_max}")))
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::BadParameter, detail)
}

fn fingerprint(range: &KeyRange, reverse: bool) -> u32 {
    let mut bytes = vec![u8::from(reverse)];
    write_range(&mut bytes, range);
    crc32c::crc32c(&bytes)
}

fn write_range(out: &mut Vec<u8>, range: &KeyRange) {
    out.write_bytes(&range.start);
    out.write_bool(range.end.is_some());
    out.write_bytes(range.end.as_deref().unwrap_or_default());
}

/// Where a scan goes on: u8 format, bool reverse, u32 fingerprint, the range, u32 CRC-32C of all before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cursor {
    reverse: bool,
    fingerprint: u32,
    rest: KeyRange,
}

impl Cursor {
    fn encode(&self) -> String {
        let mut bytes = vec![CURSOR_FORMAT, u8::from(self.reverse)];
        bytes.extend_from_slice(&self.fingerprint.to_le_bytes());
        write_range(&mut bytes, &self.rest);
        let sum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        base64::encode(&bytes).trim_end_matches('=').replace('+', "-").replace('/', "_")
    }

    fn decode(text: &[u8]) -> Option<Cursor> {
        let text = std::str::from_utf8(text).ok().filter(|text| !text.contains(['+', '/', '=']))?;
        let padding = text.len().next_multiple_of(4) - text.len();
        let bytes = base64::decode(&(text.replace('-', "+").replace('_', "/") + &"===="[..padding]))?;
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
            return None;
        }
        let mut reader = Reader::new(Bytes::copy_from_slice(body));
        if reader.u8("format").ok()? != CURSOR_FORMAT {
            return None;
        }
        let (reverse, fingerprint) = (reader.bool("reverse").ok()?, reader.u32("fingerprint").ok()?);
        let (start, has_end, end) = (reader.bytes("start").ok()?, reader.bool("end").ok()?, reader.bytes("end").ok()?);
        reader.finish().ok()?;
        let rest = KeyRange { start, end: has_end.then_some(end) };
        let is_possible =
            rest.start.len() <= KeyRange::BOUND_BYTES_MAX && rest.end.as_ref().is_none_or(|end| end.len() <= KeyRange::BOUND_BYTES_MAX);
        is_possible.then_some(Cursor { reverse, fingerprint, rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(query: &str) -> Result<ScanParameters, String> {
        let query = Query::parse(Some(query), SCAN_PARAMETERS).map_err(|problem| problem.detail)?;
        ScanParameters::parse(&query, LIMIT_MAX).map_err(|problem| {
            assert_eq!(problem.code, ErrorCode::BadParameter);
            problem.detail
        })
    }

    fn range(query: &str) -> KeyRange {
        parse(query).expect(query).range
    }

    #[test]
    fn bounds_are_one_range() {
        assert_eq!(range(""), KeyRange::default());
        assert_eq!(range("prefix=&start=&end=&cursor="), KeyRange::default(), "empty ones are not given");
        assert_eq!(range("prefix=a%2Fb"), KeyRange::of_prefix(b"a/b"));
        let b_to_c = KeyRange { start: Bytes::from_static(b"b"), end: Some(Bytes::from_static(b"c")) };
        assert_eq!(range("start=b&end=c"), b_to_c);
        assert_eq!(range("prefix=b&end=d"), b_to_c);
        assert!(range("start=b&end=b").is_empty());
        assert_eq!(parse("limit=7&reverse=true&keys_only=1").map(|p| (p.limit, p.reverse, p.keys_only)), Ok((Some(7), true, true)));
        assert_eq!(parse("reverse=false&keys_only=0").map(|p| (p.limit, p.reverse, p.keys_only)), Ok((None, false, false)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [
            "start=c&end=b",
            "prefix=b&start=c",
            "prefix=b&end=b",
            "prefix=b&start=c&end=d",
            "limit=0",
            "limit=10001",
            "limit=",
            "limit=-1",
            "limit=1e3",
            "limit=99999999999999999999",
            "reverse=",
            "reverse=yes",
            "keys_only=2",
            "cursor=x",
            "cursor=AAAA",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse(&format!("prefix={}", "k".repeat(KeyRange::BOUND_BYTES_MAX + 1))).is_err());
    }

    #[test]
    fn a_cursor_goes_on_with_its_own_scan_only() {
        let first = parse("prefix=a&reverse=true").expect("fine");
        let rest = first.range.before(b"ab");
        let cursor = first.cursor(rest.clone());
        for query in [format!("cursor={cursor}"), format!("prefix=a&reverse=true&limit=5&cursor={cursor}")] {
            let next = parse(&query).expect("it goes on");
            assert_eq!((&next.range, next.reverse), (&rest, true));
            assert_eq!(next.cursor(next.range.before(b"aa")), first.cursor(first.range.before(b"aa")), "and on");
        }
        for foreign in ["prefix=b&reverse=true", "prefix=a", "prefix=a&reverse=false", "reverse=true", "start=a&end=ab&reverse=true"] {
            assert!(parse(&format!("{foreign}&cursor={cursor}")).is_err(), "{foreign}");
        }
        for place in 0..cursor.len() {
            for other in ["A", "-", "_", "", "%00", "AB"] {
                let wrong = format!("{}{other}{}", &cursor[..place], &cursor[place + 1..]);
                assert!(wrong == cursor || parse(&format!("cursor={wrong}")).is_err(), "{wrong}");
            }
        }
    }

    #[test]
    fn lines_are_asked_for_by_name() {
        for (accept, lines) in [
            (&["application/x-ndjson"][..], true),
            (&["text/html, Application/X-NDJSON;q=0.5"], true),
            (&["text/html", "application/x-ndjson ; q=1"], true),
            (&["application/x-ndjson;q=0"], false),
            (&["application/x-ndjson;q=0.000"], false),
            (&["*/*"], false),
            (&["application/json"], false),
            (&[], false),
        ] {
            assert_eq!(wants_lines(accept.iter().map(|field| field.as_bytes())), lines, "{accept:?}");
        }
    }

    proptest! {
        #[test]
        fn a_page_is_json(key in prop::collection::vec(any::<u8>(), 1..9), value in prop::option::of(prop::collection::vec(any::<u8>(), 0..9)), version: u64) {
            let key = Key::new(key).expect("a key");
            let page = scan_page([(&key, Version(version), value.as_deref()); 2].into_iter(), Some("c"));
            let page: serde_json::Value = serde_json::from_slice(&page).expect("valid JSON");
            prop_assert_eq!(&page["cursor"], "c");
            let item = page["items"][1].as_object().expect("an item");
            let field = |name: &str| match (item.get(name), item.get(&format!("{name}_b64"))) {
                (Some(text), None) => Some(text.as_str().expect("text").as_bytes().to_vec()),
                (None, Some(text)) => base64::decode(text.as_str().expect("text")),
                _ => None,
            };
            prop_assert_eq!(field("key"), Some(key.as_bytes().to_vec()));
            prop_assert_eq!(field("value"), value);
            prop_assert_eq!(&item["version"], version);
        }

        #[test]
        fn a_cursor_is_read_as_written(start: Vec<u8>, end in prop::option::of(any::<Vec<u8>>()), reverse: bool, fingerprint: u32) {
            let cursor = Cursor { reverse, fingerprint, rest: KeyRange { start: start.into(), end: end.map(Bytes::from) } };
            let text = cursor.encode();
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
            prop_assert_eq!(Cursor::decode(text.as_bytes()), Some(cursor));
        }

        #[test]
        fn never_panics(cursor in "[A-Za-z0-9_=+-]{0,80}", query in "(prefix|start|end|limit|cursor|reverse)=[a-z0-9&=]{0,20}") {
            let _ = Cursor::decode(cursor.as_bytes());
            let _ = parse(&query);
        }
    }
}
