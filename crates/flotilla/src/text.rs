//! How durations and keys are written on a command line and in a URL.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use std::time::Duration;

/// What may stand as itself in the path of a key: the unreserved characters of RFC 3986, and `/`.
const KEY_IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// A key as it stands in a URL's path.
pub fn encode_key(key: &[u8]) -> String {
    // A path segment of dots alone is taken away by clients and proxies that tidy paths.
    if key.split(|&byte| byte == b'/').any(|segment| segment == b"." || segment == b"..") {
        return percent_encode(key, KEY_IN_PATH).to_string().replace('.', "%2E");
    }
    percent_encode(key, KEY_IN_PATH).to_string()
}

/// Reads `150ms`, `30s`, `5m`, `1h`, `7d`; a bare number is seconds.
///
/// # Errors
/// What is wrong with `text`, in words.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: give a number with ms, s, m, h or d, such as 30s");
    let (digits, seconds) = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0)]
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
        .unwrap_or((text, 1.0));
    let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

/// A duration as people write it: `1.5 s`, `12.3 ms`, `450 µs`.
pub fn show_duration(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds if seconds >= 0.001 => format!("{:.2} ms", seconds * 1e3),
        seconds => format!("{:.0} µs", seconds * 1e6),
    }
}

/// Bytes as they stand in a query's value.
pub fn encode_query(bytes: &[u8]) -> String {
    percent_encode(bytes, NON_ALPHANUMERIC).to_string()
}

/// Bytes on one line, without tabs: what is not printable is escaped as in `\n`, `\t`, `\\`, `\xff`.
pub fn escape_line(bytes: &[u8]) -> String {
    let mut line = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\\' => line.push_str("\\\\"),
                '\n' => line.push_str("\\n"),
                '\r' => line.push_str("\\r"),
                '\t' => line.push_str("\\t"),
                control if control.is_control() => line.extend(control.to_string().bytes().map(|byte| format!("\\x{byte:02x}"))),
                letter => line.push(letter),
            }
        }
        line.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_a_path() {
        assert_eq!(encode_key(b"a/b c?d#e%f"), "a/b%20c%3Fd%23e%25f");
        assert_eq!(encode_key(b"\xff\0"), "%FF%00");
        assert_eq!(encode_key(b"a/../b"), "a/%2E%2E/b");
        assert_eq!(encode_key(b"a..b"), "a..b");
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(parse_duration("150ms"), Ok(Duration::from_millis(150)));
        assert_eq!(parse_duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        assert!(parse_duration("soon").is_err() && parse_duration("-1s").is_err() && parse_duration("").is_err());
    }

    #[test]
    fn a_line_shows_every_byte() {
        assert_eq!(escape_line("a\tä\n\\".as_bytes()), "a\\tä\\n\\\\");
        assert_eq!(escape_line(b"\xff\0"), "\\xff\\x00");
    }
}
