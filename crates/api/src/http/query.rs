//! A route's query: which parameters it takes, each at most once, and what their values mean.

use super::path::percent_decode;
use crate::{ErrorCode, Problem};
use flotilla_types::ByteSize;
use std::time::Duration;

/// How long a request may take unless it says `?timeout=`.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// The longest `?ttl=`: ten years of 365 days.
pub const TTL_MAX: Duration = Duration::from_secs(3650 * 86_400);
/// The longest `?timeout=`.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Which replicas may answer a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// The answer reflects every write that was acknowledged before.
    #[default]
    Linearizable,
    /// Any replica answers with what it has.
    Stale,
}

/// The parameters of one request, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// In the order in which they came; each name once.
    parameters: Vec<(String, Vec<u8>)>,
}

impl Query {
    /// Reads what stands after the `?`, if anything does. `allowed` are the route's parameters.
    ///
    /// # Errors
    /// If a parameter is unknown, stands twice, or is badly encoded.
    pub fn parse(query: Option<&str>, allowed: &[&str]) -> Result<Query, Problem> {
        let mut parameters: Vec<(String, Vec<u8>)> = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = percent_decode(name.as_bytes(), true)?;
            let Some(name) = allowed.iter().find(|allowed| allowed.as_bytes() == name) else {
                let known = if allowed.is_empty() { "takes none".to_owned() } else { format!("takes {}", allowed.join(", ")) };
                let detail = format!("there is no query parameter {:?} here; this route {known}", String::from_utf8_lossy(&name));
                return Err(Problem::new(ErrorCode::UnknownParameter, detail));
            };
            if parameters.iter().any(|(known, _)| known == name) {
                return Err(Problem::new(ErrorCode::RepeatedParameter, format!("the query parameter {name} stands more than once")));
            }
            parameters.push(((*name).to_owned(), percent_decode(value.as_bytes(), true)?));
        }
        Ok(Query { parameters })
    }

    /// The parameter's value, if it was given.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
    }

    /// `?timeout=`, or the default.
    ///
    /// # Errors
    /// If it is no duration above zero and up to [`TIMEOUT_MAX`].
    pub fn timeout(&self) -> Result<Duration, Problem> {
        let Some(value) = self.value("timeout") else { return Ok(TIMEOUT_DEFAULT) };
        parse_duration(value).filter(|timeout| (Duration::from_millis(1)..=TIMEOUT_MAX).contains(timeout)).ok_or_else(|| {
            Problem::new(ErrorCode::BadParameter, "timeout must be a whole number with its unit, such as 500ms or 5s, from 1ms to 60s")
        })
    }

    /// `?ttl=`, if it is given.
    ///
    /// # Errors
    /// If it is no duration above zero and up to [`TTL_MAX`].
    pub fn ttl(&self) -> Result<Option<Duration>, Problem> {
        let Some(value) = self.value("ttl") else { return Ok(None) };
        let ttl = parse_duration(value).filter(|ttl| (Duration::from_millis(1)..=TTL_MAX).contains(ttl));
        let detail = "ttl must be a whole number with its unit, one of ms, s, m, h, d, such as 30s, from 1ms to 3650d";
        ttl.map(Some).ok_or_else(|| Problem::new(ErrorCode::BadParameter, detail))
    }

    /// `?by=`, or 1.
    ///
    /// # Errors
    /// If it is no decimal integer of 64 bits.
    pub fn by(&self) -> Result<i64, Problem> {
        let Some(value) = self.value("by") else { return Ok(1) };
        let by = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        by.ok_or_else(|| Problem::new(ErrorCode::BadParameter, "by must be a whole number between -2^63 and 2^63 - 1"))
    }

    /// A parameter that is true or false.
    ///
    /// # Errors
    /// If it is neither.
    pub fn switch(&self, name: &str) -> Result<Option<bool>, Problem> {
        match self.value(name) {
            None => Ok(None),
            Some(b"true" | b"1") => Ok(Some(true)),
            Some(b"false" | b"0") => Ok(Some(false)),
            Some(_) => Err(Problem::new(ErrorCode::BadParameter, format!("{name} must be true or false"))),
        }
    }

    /// A parameter that is a number of bytes, such as `64MiB`.
    ///
    /// # Errors
    /// If it is none.
    pub fn size(&self, name: &str) -> Result<Option<ByteSize>, Problem> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let size = std::str::from_utf8(value).map_err(|_| "not UTF-8".to_owned()).and_then(str::parse);
        size.map(Some).map_err(|why| Problem::new(ErrorCode::BadParameter, format!("{name}: {why}")))
    }

    /// A parameter that is text.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<&str>, Problem> {
        let text = self.value(name).map(std::str::from_utf8).transpose();
        text.map_err(|_| Problem::new(ErrorCode::BadParameter, format!("{name} is not UTF-8")))
    }

    /// `?consistency=`, or linearizable.
    ///
    /// # Errors
    /// If it is neither `linearizable` nor `stale`.
    pub fn consistency(&self) -> Result<Consistency, Problem> {
        match self.value("consistency") {
            None | Some(b"linearizable") => Ok(Consistency::Linearizable),
            Some(b"stale") => Ok(Consistency::Stale),
            Some(_) => Err(Problem::new(ErrorCode::BadParameter, "consistency must be linearizable or stale")),
        }
    }
}

/// A whole number with `ms`, `s`, `m`, `h` or `d`.
pub fn parse_duration(text: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(text).ok()?;
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let millis_per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(millis_per_unit).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(query: &str) -> Result<Query, ErrorCode> {
        Query::parse(Some(query), &["timeout", "consistency"]).map_err(|problem| problem.code)
    }

    #[test]
    fn parameters_are_known_and_stand_once() {
        assert_eq!(parse("timeout=1s&consistency=stale").expect("fine").consistency().expect("fine"), Consistency::Stale);
        assert_eq!(parse("%74imeout=1%73").expect("fine").value("timeout"), Some(&b"1s"[..]));
        assert_eq!(Query::parse(None, &[]), Ok(Query::default()));
        assert_eq!(parse("&"), Ok(Query::default()));
        assert_eq!(parse("timeout=1s&timeout=1s"), Err(ErrorCode::RepeatedParameter));
        assert_eq!(parse("timeout=1s&%74imeout=1s"), Err(ErrorCode::RepeatedParameter));
        for unknown in ["x", "x=1", "=1", "Timeout=1s"] {
            assert_eq!(parse(unknown), Err(ErrorCode::UnknownParameter), "{unknown}");
        }
        assert_eq!(parse("timeout=%"), Err(ErrorCode::BadEncoding));
        assert_eq!(parse("%zz=1"), Err(ErrorCode::BadEncoding));
    }

    #[test]
    fn timeouts_have_a_unit_and_bounds() {
        let timeout = |value: &str| parse(&format!("timeout={value}")).expect("known").timeout().map_err(|problem| problem.code);
        assert_eq!(parse("").expect("fine").timeout(), Ok(TIMEOUT_DEFAULT));
        assert_eq!(timeout("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(timeout("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(timeout("1m"), Ok(TIMEOUT_MAX));
        for wrong in ["", "5", "s", "0s", "61s", "60001ms", "-1s", "1.5s", "5S", "5s ", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(timeout(wrong), Err(ErrorCode::BadParameter), "{wrong}");
        }
        assert!(parse("consistency=Stale").expect("known").consistency().is_err());
    }

    proptest! {
        #[test]
        fn never_panics(query in "[a-z%&=+0-9\u{e9}]{0,30}") {
            let _ = parse(&query);
            let _ = parse_duration(query.as_bytes());
        }
    }
}
