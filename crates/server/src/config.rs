//! What `serve` is told: [`Settings`] as they stand in flags, environment and file, each optional, and
//! [`ServerConfig`], the same checked and complete. Only the latter travels further.
//!
//! `config/flotilla.toml` documents every key; a test reads it.

use flotilla_types::ByteSize;
use serde::{Deserialize, Deserializer};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

/// Largest value that may be configured: what links and log are laid out for.
const VALUE_BYTES_CEILING: u64 = 64 << 20;
/// Smallest room for the Raft log: a few segments.
const LOG_BYTES_MIN: u64 = 256 << 20;
/// Nobody reads faster than this.
const SCRUB_BYTES_CEILING: u64 = 1 << 40;
const NAME_BYTES_MAX: usize = 63;
/// What a node weighs that says nothing.
pub const WEIGHT_DEFAULT: u32 = 100;
const WEIGHT_MAX: u32 = 1_000_000;
const REPLACE_AFTER_DEFAULT: &str = "5m";
/// A node that restarts must not find its place taken.
const REPLACE_AFTER_MIN: Duration = Duration::from_secs(10);
const REPLACE_AFTER_MAX: Duration = Duration::from_secs(365 * 86_400);

/// Settings from one source. The keys of the file are the flags' names.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Where everything is kept.
    pub data_dir: Option<PathBuf>,
    /// Stable node name.
    pub name: Option<String>,
    /// Client HTTP API, HOST:PORT.
    pub http_addr: Option<String>,
    /// Node to node, HOST:PORT.
    pub peer_addr: Option<String>,
    /// Redis protocol, HOST:PORT.
    pub resp_addr: Option<String>,
    /// Where others reach the HTTP API, HOST:PORT.
    pub advertise_http: Option<String>,
    /// Where other nodes reach this one, HOST:PORT.
    pub advertise_peer: Option<String>,
    /// Where others reach the Redis protocol, HOST:PORT.
    pub advertise_resp: Option<String>,
    /// HTTP APIs of members.
    #[serde(deserialize_with = "one_or_many")]
    pub join: Option<Vec<String>>,
    /// Allow addresses other than loopback without TLS and authentication.
    pub insecure: Option<bool>,
    /// Remove the dead holder of the name first.
    pub replace: Option<bool>,
    /// Shards, when the cluster is created.
    pub shards: Option<u32>,
    /// Copies of each shard, when the cluster is created.
    pub replicas: Option<u32>,
    /// Failure zone.
    pub zone: Option<String>,
    /// Its share of the replicas, relative to other nodes.
    pub weight: Option<u32>,
    /// How long a node may be down before the others take over what it holds; 0s: for ever.
    pub replace_after: Option<String>,
    /// What is traced, as a filter.
    pub log_level: Option<String>,
    /// How it is traced.
    pub log_format: Option<LogFormat>,
    /// Longest value.
    #[serde(deserialize_with = "size")]
    pub value_bytes_max: Option<ByteSize>,
    /// Requests under way at once.
    pub requests_max: Option<usize>,
    /// Bytes in requests under way at once.
    #[serde(deserialize_with = "size")]
    pub request_bytes_max: Option<ByteSize>,
    /// HTTP connections at once.
    pub http_connections_max: Option<usize>,
    /// Committed bytes that wait to be applied.
    #[serde(deserialize_with = "size")]
    pub unapplied_bytes_max: Option<ByteSize>,
    /// Room for the Raft log.
    #[serde(deserialize_with = "size")]
    pub log_bytes_max: Option<ByteSize>,
    /// Bytes waiting to be sent to one peer.
    #[serde(deserialize_with = "size")]
    pub link_bytes_max: Option<ByteSize>,
    /// Memory for blocks read from the store.
    #[serde(deserialize_with = "size")]
    pub store_cache_bytes: Option<ByteSize>,
    /// How much scrubs read a second; 0: none.
    #[serde(deserialize_with = "size")]
    pub scrub_bytes_per_second: Option<ByteSize>,
}

/// How traces are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A checked, complete configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// The name given; `None`: the one kept in the data-dir, or one that is made.
    pub name: Option<String>,
    /// Client HTTP API.
    pub http_addr: SocketAddr,
    /// Node to node.
    pub peer_addr: SocketAddr,
    /// Where others reach the HTTP API; `None`: at its address.
    pub advertise_http: Option<String>,
    /// Where other nodes reach this one; `None`: at its address.
    pub advertise_peer: Option<String>,
    /// HTTP APIs of members, HOST:PORT each.
    pub join: Vec<String>,
    /// Remove the dead holder of the name first.
    pub replace: bool,
    /// Shards, when the cluster is created.
    pub shards: u32,
    /// Copies of each shard, when the cluster is created.
    pub replicas: u32,
    /// Failure zone.
    pub zone: String,
    /// Its share of the replicas, relative to other nodes.
    pub weight: u32,
    /// How long a node may be down before the others take over what it holds; `None`: for ever.
    pub replace_after: Option<Duration>,
    /// What is bounded.
    pub limits: Limits,
}

/// The bounds of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest value.
    pub value_bytes_max: ByteSize,
    /// Requests under way at once.
    pub requests_max: usize,
    /// Bytes in requests under way at once.
    pub request_bytes_max: ByteSize,
    /// HTTP connections at once.
    pub http_connections_max: usize,
    /// Committed bytes that wait to be applied; past it writes are refused.
    pub unapplied_bytes_max: ByteSize,
    /// Room for the Raft log before what it still needs is moved together.
    pub log_bytes_max: ByteSize,
    /// Bytes waiting to be sent to one peer.
    pub link_bytes_max: ByteSize,
    /// Memory for blocks read from the store.
    pub store_cache_bytes: ByteSize,
    /// How much scrubs read a second; 0: none.
    pub scrub_bytes_per_second: ByteSize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            value_bytes_max: ByteSize(8 << 20),
            requests_max: 16_384,
            request_bytes_max: ByteSize(256 << 20),
            http_connections_max: 16_384,
            unapplied_bytes_max: ByteSize(64 << 20),
            log_bytes_max: ByteSize(512 << 20),
            link_bytes_max: ByteSize(64 << 20),
            store_cache_bytes: ByteSize(32 << 20),
            scrub_bytes_per_second: ByteSize(8 << 20),
        }
    }
}

/// Why settings make no configuration: bad usage, one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file is no TOML or holds what it must not.
    #[error("{0}")]
    File(String),
    /// A setting that must be given is not.
    #[error("{0} must be given")]
    Missing(&'static str),
    /// A setting holds what it must not.
    #[error("{setting} is {value:?}: {wanted}")]
    Invalid {
        /// The flag.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        wanted: String,
    },
    /// An address that strangers can reach.
    #[error(
        "{setting} {address} is not on loopback, and there is no TLS and no authentication yet: use a loopback address, or give --insecure if the network is trusted"
    )]
    NotLoopback {
        /// The flag.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// A promised part that does not exist yet.
    #[error("{0} is not built yet")]
    NotBuilt(&'static str),
}

impl Settings {
    /// Reads a file's settings.
    ///
    /// # Errors
    /// If it is no TOML, or has a key that means nothing.
    pub fn from_toml(text: &str) -> Result<Settings, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::File(error.to_string().trim_end().to_owned()))
    }

    /// These settings, and those of `lower` where these say nothing.
    #[must_use]
    pub fn over(self, lower: Settings) -> Settings {
        macro_rules! each {
            ($($field:ident),* $(,)?) => { Settings { $($field: self.$field.or(lower.$field)),* } };
        }
        each!(
            data_dir,
            name,
            http_addr,
            peer_addr,
            resp_addr,
            advertise_http,
            advertise_peer,
            advertise_resp,
            join,
            insecure,
            replace,
            shards,
            replicas,
            zone,
            weight,
            replace_after,
            log_level,
            log_format,
            value_bytes_max,
            requests_max,
            request_bytes_max,
            http_connections_max,
            unapplied_bytes_max,
            log_bytes_max,
            link_bytes_max,
            store_cache_bytes,
            scrub_bytes_per_second,
        )
    }

    /// Fills in what is not given and checks everything.
    ///
    /// # Errors
    /// At the first setting that cannot be used.
    pub fn check(self) -> Result<ServerConfig, ConfigError> {
        if self.resp_addr.is_some() || self.advertise_resp.is_some() {
            return Err(ConfigError::NotBuilt("the Redis protocol (--resp-addr)"));
        }
        let data_dir = self.data_dir.filter(|dir| !dir.as_os_str().is_empty()).ok_or(ConfigError::Missing("--data-dir"))?;
        if let Some(name) = &self.name {
            check_word("--name", name)?;
        }
        let zone = self.zone.unwrap_or_else(|| "default".to_owned());
        check_word("--zone", &zone)?;
        let http_addr = address("--http-addr", self.http_addr.as_deref().unwrap_or("127.0.0.1:7070"))?;
        let peer_addr = address("--peer-addr", self.peer_addr.as_deref().unwrap_or("127.0.0.1:7071"))?;
        if !self.insecure.unwrap_or(false) {
            for (setting, address) in [("--http-addr", http_addr), ("--peer-addr", peer_addr)] {
                if !address.ip().is_loopback() {
                    return Err(ConfigError::NotLoopback { setting, address });
                }
            }
        }
        let advertise_http = advertised("--advertise-http", self.advertise_http, "--http-addr", http_addr)?;
        let advertise_peer = advertised("--advertise-peer", self.advertise_peer, "--peer-addr", peer_addr)?;
        let join = self.join.unwrap_or_default().iter().map(|url| join_target(url)).collect::<Result<Vec<String>, _>>()?;
        let shards = in_range("--shards", self.shards.unwrap_or(64), 1, 16_384)?;
        let replicas = in_range("--replicas", self.replicas.unwrap_or(3), 1, 7)?;
        if replicas % 2 == 0 {
            let wanted = "give an odd number: an even one survives no more failures than the odd one below it".to_owned();
            return Err(ConfigError::Invalid { setting: "--replicas", value: replicas.to_string(), wanted });
        }
        let weight = in_range("--weight", self.weight.unwrap_or(WEIGHT_DEFAULT), 1, WEIGHT_MAX)?;
        let replace_after = self.replace_after.as_deref().unwrap_or(REPLACE_AFTER_DEFAULT);
        let replace_after = match flotilla_api::http::parse_duration(replace_after.as_bytes()) {
            Some(Duration::ZERO) => None,
            Some(time) if (REPLACE_AFTER_MIN..=REPLACE_AFTER_MAX).contains(&time) => Some(time),
            _ => {
                return invalid(
                    "--replace-after",
                    replace_after,
                    "give a time with its unit from 10s to 365d, such as 5m, or 0s for never",
                );
            }
        };
        let usual = Limits::default();
        let limits = Limits {
            value_bytes_max: bytes("--value-bytes-max", self.value_bytes_max, usual.value_bytes_max, 1, VALUE_BYTES_CEILING)?,
            requests_max: in_range("--requests-max", self.requests_max.unwrap_or(usual.requests_max), 1, 1 << 20)?,
            request_bytes_max: bytes("--request-bytes-max", self.request_bytes_max, usual.request_bytes_max, 1 << 20, u64::MAX)?,
            http_connections_max: in_range(
                "--http-connections-max",
                self.http_connections_max.unwrap_or(usual.http_connections_max),
                1,
                1 << 20,
            )?,
            unapplied_bytes_max: bytes("--unapplied-bytes-max", self.unapplied_bytes_max, usual.unapplied_bytes_max, 1 << 20, u64::MAX)?,
            log_bytes_max: bytes("--log-bytes-max", self.log_bytes_max, usual.log_bytes_max, LOG_BYTES_MIN, u64::MAX)?,
            link_bytes_max: bytes("--link-bytes-max", self.link_bytes_max, usual.link_bytes_max, 1 << 20, u64::MAX)?,
            store_cache_bytes: bytes("--store-cache-bytes", self.store_cache_bytes, usual.store_cache_bytes, 1 << 20, u64::MAX)?,
            scrub_bytes_per_second: bytes(
                "--scrub-bytes-per-second",
                self.scrub_bytes_per_second,
                usual.scrub_bytes_per_second,
                0,
                SCRUB_BYTES_CEILING,
            )?,
        };
        Ok(ServerConfig {
            data_dir,
            name: self.name,
            http_addr,
            peer_addr,
            advertise_http,
            advertise_peer,
            join,
            replace: self.replace.unwrap_or(false),
            shards,
            replicas,
            zone,
            weight,
            replace_after,
            limits,
        })
    }
}

fn invalid<T>(setting: &'static str, value: impl ToString, wanted: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid { setting, value: value.to_string(), wanted: wanted.into() })
}

/// Names stand in URLs, files and on screens.
fn check_word(setting: &'static str, word: &str) -> Result<(), ConfigError> {
    let fits = (1..=NAME_BYTES_MAX).contains(&word.len())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && word.as_bytes()[0].is_ascii_alphanumeric();
    let wanted = || format!("give 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' or '.', the first a letter or digit");
    if fits { Ok(()) } else { invalid(setting, word, wanted()) }
}

fn address(setting: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    found.map_or_else(|| invalid(setting, text, "give HOST:PORT, HOST a name or address of this machine, such as 127.0.0.1:7070"), Ok)
}

/// HOST:PORT that others are told.
fn advertised(
    setting: &'static str,
    given: Option<String>,
    bound_setting: &'static str,
    bound: SocketAddr,
) -> Result<Option<String>, ConfigError> {
    let Some(text) = given else {
        if bound.ip().is_unspecified() {
            return invalid(
                bound_setting,
                bound,
                format!("others cannot reach that address, so {setting} HOST:PORT must say where they can"),
            );
        }
        return Ok(None);
    };
    match host_and_port(&text) {
        Some(_) => Ok(Some(text)),
        None => invalid(setting, text, "give HOST:PORT as other machines can reach it"),
    }
}

fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    (!host.is_empty() && !host.contains(['/', '@', ' ']) && text.parse::<SocketAddr>().is_ok_and(|a| !a.ip().is_unspecified())
        || !host.contains([':', '/', '@', ' ']) && !host.is_empty() && text.parse::<SocketAddr>().is_err())
    .then_some((host, port))
}

/// `http://HOST:PORT` as HOST:PORT.
fn join_target(url: &str) -> Result<String, ConfigError> {
    let url = url.trim();
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    match host_and_port(authority) {
        Some(_) => Ok(authority.to_owned()),
        None => invalid("--join", url, "give the HTTP address of a member, http://HOST:PORT; several with commas between"),
    }
}

fn in_range<T: PartialOrd + ToString + Copy>(setting: &'static str, value: T, low: T, high: T) -> Result<T, ConfigError> {
    let wanted = || format!("give a number from {} to {}", low.to_string(), high.to_string());
    if value < low || value > high { invalid(setting, value, wanted()) } else { Ok(value) }
}

fn bytes(setting: &'static str, given: Option<ByteSize>, usual: ByteSize, low: u64, high: u64) -> Result<ByteSize, ConfigError> {
    let size = given.unwrap_or(usual);
    if size.0 < low {
        return invalid(setting, size, format!("give at least {}", ByteSize(low)));
    }
    if size.0 > high {
        return invalid(setting, size, format!("give at most {}", ByteSize(high)));
    }
    Ok(size)
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteSize>, D::Error> {
    String::deserialize(deserializer)?.parse().map(Some).map_err(serde::de::Error::custom)
}

/// A list, or one text with commas between, as the flag has it.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Urls {
        One(String),
        Many(Vec<String>),
    }
    Ok(Some(match Urls::deserialize(deserializer)? {
        Urls::One(text) => text.split(',').map(str::to_owned).collect(),
        Urls::Many(list) => list,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(change: impl FnOnce(&mut Settings)) -> Settings {
        let mut settings = Settings { data_dir: Some("data".into()), ..Settings::default() };
        change(&mut settings);
        settings
    }

    fn refused(change: impl FnOnce(&mut Settings)) -> String {
        settings(change).check().expect_err("it is to be refused").to_string()
    }

    #[test]
    fn the_sample_file_documents_every_key_with_its_default() {
        let text = include_str!("../../../config/flotilla.toml");
        // Each key stands in it, commented out where there is no default.
        let uncommented: String = text
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| rest.contains(" = ") && !rest.starts_with(' ')).unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let all = Settings::from_toml(&uncommented).expect("the sample can be read with every key in force");
        let debug = format!("{all:?}");
        assert!(!debug.contains("None"), "a key is missing from the sample: {debug}");
        let sample = Settings::from_toml(text).expect("the sample can be read");
        assert_eq!(sample.clone().over(settings(|_| ())).check(), settings(|s| s.data_dir = sample.data_dir).check());
    }

    #[test]
    fn a_file_with_an_unknown_key_is_refused() {
        assert!(Settings::from_toml("data-dri = \"x\"").is_err());
    }

    #[test]
    fn flags_win_over_the_file() {
        let flags = settings(|s| s.shards = Some(8));
        let file = Settings { shards: Some(16), replicas: Some(1), ..Settings::default() };
        let merged = flags.over(file);
        assert_eq!((merged.shards, merged.replicas), (Some(8), Some(1)));
    }

    #[test]
    fn no_port_is_opened_to_strangers_by_accident() {
        for open in ["0.0.0.0:7070", "[::]:7070", "192.0.2.1:7070"] {
            assert!(refused(|s| s.http_addr = Some(open.to_owned())).contains("--insecure"), "{open}");
            assert!(refused(|s| s.peer_addr = Some(open.to_owned())).contains("--insecure"), "{open}");
        }
        let insecure = settings(|s| (s.insecure, s.http_addr) = (Some(true), Some("192.0.2.1:7070".to_owned())));
        assert!(insecure.check().is_ok());
    }

    #[test]
    fn an_address_that_means_every_interface_needs_one_to_tell_others() {
        let open = |s: &mut Settings| (s.insecure, s.peer_addr) = (Some(true), Some("0.0.0.0:7071".to_owned()));
        assert!(refused(open).contains("--advertise-peer"));
        let told = settings(|s| {
            open(s);
            s.advertise_peer = Some("db1.example:7071".to_owned());
        });
        assert_eq!(told.check().map(|c| c.advertise_peer), Ok(Some("db1.example:7071".to_owned())));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        assert_eq!(Settings::default().check(), Err(ConfigError::Missing("--data-dir")));
        assert!(refused(|s| s.resp_addr = Some("127.0.0.1:6380".to_owned())).contains("not built yet"));
        assert!(refused(|s| s.name = Some("a b".to_owned())).contains("--name"));
        assert!(refused(|s| s.replicas = Some(2)).contains("odd"));
        assert!(refused(|s| s.shards = Some(0)).contains("--shards"));
        assert!(refused(|s| s.value_bytes_max = Some(ByteSize(65 << 20))).contains("at most 64MiB"));
        for join in ["http://", "nonsense", "http://a:1/path", "http://a:0", "https://a:1"] {
            assert!(refused(|s| s.join = Some(vec![join.to_owned()])).contains("--join"), "{join}");
        }
        let join = |url: &str| settings(|s| s.join = Some(vec![url.to_owned()])).check().map(|c| c.join);
        assert_eq!(join("http://[::1]:7070/"), Ok(vec!["[::1]:7070".to_owned()]));
        assert_eq!(join("db1:7070"), Ok(vec!["db1:7070".to_owned()]));
    }
}
