//! Text that clients send, and the JSON that is made of their bytes.

use flotilla_api::http::{
    BatchOp, DELETE_RANGE_PARAMETERS, LIMIT_MAX, Query, SCAN_PARAMETERS, ScanParameters, decode_key, decode_segment, encode_key,
    increment_answer, parse_batch, parse_if_match, parse_if_none_match, parse_range, put_answer, scan_page, wants_lines, write_etag,
    write_item, write_put_op,
};
use flotilla_api::{ErrorCode, Problem, base64 as base64_of};
use flotilla_node::request::RequestId;
use flotilla_types::{Key, Version};

fn text(input: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(input)
}

fn seeds(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub(super) fn base64(input: &[u8]) {
    assert_eq!(base64_of::decode(&base64_of::encode(input)).as_deref(), Some(input));
    if let Some(bytes) = base64_of::decode(&text(input)) {
        assert_eq!(base64_of::encode(&bytes), text(input), "bytes have one text only");
    }
}

pub(super) fn base64_seeds() -> Vec<Vec<u8>> {
    seeds(&["", "QQ==", "QUI=", "QUJD", "/+8="])
}

pub(super) fn key_path(input: &[u8]) {
    let _ = decode_segment(&text(input));
    if let Ok(key) = decode_key(&text(input)) {
        assert_eq!(decode_key(&encode_key(&key)), Ok(key));
    }
    if let Ok(key) = Key::new(input.to_vec()) {
        assert_eq!(decode_key(&encode_key(&key)), Ok(key));
    }
    assert_eq!(RequestId::of(input), RequestId::of(input));
}

pub(super) fn key_path_seeds() -> Vec<Vec<u8>> {
    seeds(&["greeting", "a/b//c/", "%00%fF%25", "a/../b", "{tag}x"])
}

pub(super) fn query(input: &[u8]) {
    let text = text(input);
    for allowed in [&["timeout", "consistency", "ttl", "by"][..], SCAN_PARAMETERS, DELETE_RANGE_PARAMETERS] {
        let Ok(query) = Query::parse(Some(&text), allowed) else { continue };
        let _ = (query.timeout(), query.ttl(), query.by(), query.consistency(), parse_range(&query));
        let _ = ScanParameters::parse(&query, LIMIT_MAX);
    }
    wants_lines(input.split(|&byte| byte == b'\n'));
}

pub(super) fn query_seeds() -> Vec<Vec<u8>> {
    seeds(&[
        "timeout=5s&consistency=stale",
        "ttl=30s&by=-9223372036854775808",
        "prefix=user%2F&start=a&end=b&limit=10&reverse=true&keys_only=1",
        "text/html, application/x-ndjson;q=0.5",
    ])
}

pub(super) fn batch(input: &[u8]) {
    const VALUE_BYTES_MAX: usize = 64 << 10;
    let Ok(ops) = parse_batch(input, VALUE_BYTES_MAX) else { return };
    let puts: Vec<BatchOp> =
        ops.into_iter().filter(|op| matches!(op, BatchOp::Put { ttl: None, condition, .. } if condition.is_always())).collect();
    let mut json = b"{\"ops\":[".to_vec();
    for (number, op) in puts.iter().enumerate() {
        let BatchOp::Put { key, value, .. } = op else { continue };
        json.extend_from_slice(if number == 0 { b"" } else { b"," });
        write_put_op(&mut json, key.as_bytes(), value, None);
    }
    json.extend_from_slice(b"]}");
    assert_eq!(parse_batch(&json, VALUE_BYTES_MAX), Ok(puts));
}

pub(super) fn batch_seeds() -> Vec<Vec<u8>> {
    seeds(&[
        r#"{"ops":[]}"#,
        r#"{"ops":[{"put":{"key":"a","value":"1"}},{"get":{"key":"a"}},{"delete":{"key":"b","if_version":0}}]}"#,
        r#"{"ops":[{"put":{"key_b64":"/w==","value_b64":"AAE=","ttl":"30s","if_version":42}}]}"#,
    ])
}

pub(super) fn cursor(input: &[u8]) {
    let query = format!("cursor={}", text(input));
    let Ok(query) = Query::parse(Some(&query), SCAN_PARAMETERS) else { return };
    let Ok(parameters) = ScanParameters::parse(&query, LIMIT_MAX) else { return };
    let again = format!("cursor={}", parameters.cursor(parameters.range.clone()));
    let again = Query::parse(Some(&again), SCAN_PARAMETERS).and_then(|query| ScanParameters::parse(&query, LIMIT_MAX));
    assert_eq!(again, Ok(parameters));
}

pub(super) fn cursor_seeds() -> Vec<Vec<u8>> {
    let texts = ["prefix=user/", "start=a&end=b&reverse=true", ""];
    let cursor = |text: &&str| {
        let query = Query::parse(Some(text), SCAN_PARAMETERS).expect("a query");
        let parameters = ScanParameters::parse(&query, LIMIT_MAX).expect("a scan");
        parameters.cursor(parameters.range.behind(b"user/7")).into_bytes()
    };
    texts.iter().map(cursor).collect()
}

pub(super) fn etag(input: &[u8]) {
    let fields = || input.split(|&byte| byte == b'\n');
    let _ = (parse_if_match(fields()), parse_if_none_match(fields()));
    let Some(number) = input.first_chunk::<8>() else { return };
    let mut tag = Vec::new();
    write_etag(&mut tag, Version(u64::from_le_bytes(*number)));
    let read = parse_if_match([tag.as_slice()].into_iter());
    assert!(read.is_ok_and(|read| read.is_some()));
}

pub(super) fn etag_seeds() -> Vec<Vec<u8>> {
    seeds(&["*", "\"42\"", "W/\"7\", \"8\"\n,,\"9\",", "\"abc\",\"007\""])
}

/// Whatever keys, values and details hold, an answer is JSON.
pub(super) fn json_answers(input: &[u8]) {
    let is_json = |bytes: Vec<u8>| serde_json::from_slice::<serde_json::Value>(&bytes).expect("an answer is JSON");
    let problem = Problem::new(ErrorCode::Internal, text(input));
    assert_eq!(is_json(problem.to_json())["detail"], *text(input));
    let (head, tail) = input.split_at(input.len() / 2);
    let Ok(key) = Key::new(head.to_vec()) else { return };
    let version = Version(input.len() as u64);
    is_json(put_answer(&key, version));
    is_json(increment_answer(i64::from(tail.len() as u32), version));
    is_json(scan_page([(&key, version, Some(tail)), (&key, version, None)].into_iter(), Some("c")));
    let mut item = Vec::new();
    write_item(&mut item, &key, version, Some(tail));
    let item = is_json(item);
    let value = item["value"].as_str().map(|text| text.as_bytes().to_vec());
    assert_eq!(value.or_else(|| base64_of::decode(item["value_b64"].as_str().expect("one of both"))).as_deref(), Some(tail));
}

pub(super) fn json_answers_seeds() -> Vec<Vec<u8>> {
    let mut seeds = seeds(&["key and value", "\"\\/\u{8}\u{c}\n\r\t", "ä€𝄞\u{7f}\u{0}"]);
    seeds.push(vec![0xff, 0xfe, 0x00, b'a']);
    seeds
}
