//! `flotilla serve`: one node. Flags win over `FLOTILLA_*` variables, which win over the file that
//! `--config` names; what they mean, and what may stand in them, is the server's to say.

use super::{CommandError, print_line};
use anyhow::Context;
use clap::{Args, ValueEnum};
use flotilla_server::server::{Birth, Started, serve_blocking};
use flotilla_server::{ConfigError, LogFormat, Settings};
use flotilla_types::ByteSize;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// Where everything is kept.
    #[arg(long, value_name = "DIR", env = "FLOTILLA_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Stable node name; without it one is made once and kept in the data folder.
    #[arg(long, env = "FLOTILLA_NAME")]
    name: Option<String>,
    /// Client HTTP API, dashboard, metrics [default: 127.0.0.1:7070].
    #[arg(long, value_name = "HOST:PORT", env = "FLOTILLA_HTTP_ADDR")]
    http_addr: Option<String>,
    /// Node to node [default: 127.0.0.1:7071].
    #[arg(long, value_name = "HOST:PORT", env = "FLOTILLA_PEER_ADDR")]
    peer_addr: Option<String>,
    /// Redis protocol; not served unless given.
    #[arg(long, value_name = "HOST:PORT", env = "FLOTILLA_RESP_ADDR")]
    resp_addr: Option<String>,
    /// Where others reach the HTTP API [default: its address].
    #[arg(long, value_name = "HOST:PORT", env = "FLOTILLA_ADVERTISE_HTTP")]
    advertise_http: Option<String>,
    /// Where other nodes reach this one [default: its address].
    #[arg(long, value_name = "HOST:PORT", env = "FLOTILLA_ADVERTISE_PEER")]
    advertise_peer: Option<String>,
    /// Where others reach the Redis protocol [default: its address].
    #[arg(long, value_name = "HOST:PORT", env = "FLOTILLA_ADVERTISE_RESP")]
    advertise_resp: Option<String>,
    /// Join an existing cluster; any member will do. Tried for 60 s.
    #[arg(long, value_name = "URL,URL", env = "FLOTILLA_JOIN", value_delimiter = ',')]
    join: Option<Vec<String>>,
    /// Allow addresses other than loopback without TLS and authentication.
    #[arg(long, env = "FLOTILLA_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure: Option<bool>,
    /// Remove the dead holder of the name, and join as a new node.
    #[arg(long, env = "FLOTILLA_REPLACE", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    replace: Option<bool>,
    /// Shards, fixed when the first node creates the cluster [default: 64].
    #[arg(long, env = "FLOTILLA_SHARDS")]
    shards: Option<u32>,
    /// Copies of each shard, fixed when the first node creates the cluster [default: 3].
    #[arg(long, env = "FLOTILLA_REPLICAS")]
    replicas: Option<u32>,
    /// Failure zone; replicas are spread over zones.
    #[arg(long, env = "FLOTILLA_ZONE")]
    zone: Option<String>,
    /// Its share of the replicas relative to other nodes, such as the size of its disk [default: 100].
    #[arg(long, value_name = "NUMBER", env = "FLOTILLA_WEIGHT")]
    weight: Option<u32>,
    /// How long a node may be down before the others take over what it holds; 0s: for ever [default: 5m].
    #[arg(long, value_name = "TIME", env = "FLOTILLA_REPLACE_AFTER")]
    replace_after: Option<String>,
    /// A file with any of these settings, by their names here.
    #[arg(long, value_name = "FILE.toml", env = "FLOTILLA_CONFIG")]
    config: Option<PathBuf>,
    /// What is traced to standard error: error, warn, info, debug, trace or off, or a filter by module such as
    /// info,flotilla_server::peer=debug [default: warn].
    #[arg(long, value_name = "FILTER", env = "FLOTILLA_LOG_LEVEL")]
    log_level: Option<String>,
    /// How it is traced [default: text].
    #[arg(long, value_enum, env = "FLOTILLA_LOG_FORMAT")]
    log_format: Option<LogFormatArg>,
    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Limits of this process")]
struct LimitArgs {
    /// Longest value.
    #[arg(long, value_name = "SIZE", env = "FLOTILLA_VALUE_BYTES_MAX")]
    value_bytes_max: Option<ByteSize>,
    /// Requests under way at once.
    #[arg(long, value_name = "COUNT", env = "FLOTILLA_REQUESTS_MAX")]
    requests_max: Option<usize>,
    /// Bytes in requests under way at once.
    #[arg(long, value_name = "SIZE", env = "FLOTILLA_REQUEST_BYTES_MAX")]
    request_bytes_max: Option<ByteSize>,
    /// HTTP connections at once.
    #[arg(long, value_name = "COUNT", env = "FLOTILLA_HTTP_CONNECTIONS_MAX")]
    http_connections_max: Option<usize>,
    /// Committed bytes that wait to be applied.
    #[arg(long, value_name = "SIZE", env = "FLOTILLA_UNAPPLIED_BYTES_MAX")]
    unapplied_bytes_max: Option<ByteSize>,
    /// Room for the Raft log.
    #[arg(long, value_name = "SIZE", env = "FLOTILLA_LOG_BYTES_MAX")]
    log_bytes_max: Option<ByteSize>,
    /// Bytes waiting to be sent to one peer.
    #[arg(long, value_name = "SIZE", env = "FLOTILLA_LINK_BYTES_MAX")]
    link_bytes_max: Option<ByteSize>,
    /// Memory for blocks read from the store.
    #[arg(long, value_name = "SIZE", env = "FLOTILLA_STORE_CACHE_BYTES")]
    store_cache_bytes: Option<ByteSize>,
    /// How much is read a second to compare what the copies hold; 0: nothing [default: 8MiB].
    #[arg(long, value_name = "SIZE", env = "FLOTILLA_SCRUB_BYTES_PER_SECOND")]
    scrub_bytes_per_second: Option<ByteSize>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum LogFormatArg {
    Text,
    Json,
}

impl ServeArgs {
    pub(super) fn run(self) -> Result<ExitCode, CommandError> {
        let file = match &self.config {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
                Settings::from_toml(&text).map_err(|error| usage(&ConfigError::File(format!("{}: {error}", path.display()))))?
            }
            None => Settings::default(),
        };
        let settings = self.settings().over(file);
        let format = settings.log_format.unwrap_or(LogFormat::Text);
        trace_to_stderr(settings.log_level.as_deref().unwrap_or("warn"), format)?;
        let config = settings.check().map_err(|error| usage(&error))?;
        let data_dir = config.data_dir.clone();
        match serve_blocking(config, |started| announce(started, &data_dir)) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            // Said once, and so that whoever reads the traces by machine reads this too.
            Err(error) if format == LogFormat::Json && tracing::enabled!(tracing::Level::ERROR) => {
                tracing::error!("{error}");
                Ok(ExitCode::FAILURE)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn settings(self) -> Settings {
        let limits = self.limits;
        Settings {
            data_dir: self.data_dir,
            name: self.name,
            http_addr: self.http_addr,
            peer_addr: self.peer_addr,
            resp_addr: self.resp_addr,
            advertise_http: self.advertise_http,
            advertise_peer: self.advertise_peer,
            advertise_resp: self.advertise_resp,
            join: self.join,
            insecure: self.insecure,
            replace: self.replace,
            shards: self.shards,
            replicas: self.replicas,
            zone: self.zone,
            weight: self.weight,
            replace_after: self.replace_after,
            log_level: self.log_level,
            log_format: self.log_format.map(|format| match format {
                LogFormatArg::Text => LogFormat::Text,
                LogFormatArg::Json => LogFormat::Json,
            }),
            value_bytes_max: limits.value_bytes_max,
            requests_max: limits.requests_max,
            request_bytes_max: limits.request_bytes_max,
            http_connections_max: limits.http_connections_max,
            unapplied_bytes_max: limits.unapplied_bytes_max,
            log_bytes_max: limits.log_bytes_max,
            link_bytes_max: limits.link_bytes_max,
            store_cache_bytes: limits.store_cache_bytes,
            scrub_bytes_per_second: limits.scrub_bytes_per_second,
        }
    }
}

/// Bad settings are bad usage, in one line also where TOML's own message draws the place.
fn usage(error: &ConfigError) -> CommandError {
    let lines: Vec<String> = error.to_string().lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
    CommandError::Usage(lines.join(" "))
}

/// What runs where, and what to type next. A node serves even if nobody reads this.
fn announce(started: &Started, data_dir: &Path) {
    let how = match started.birth {
        Birth::Created => "has created cluster",
        Birth::Joined => "has joined cluster",
        Birth::Restarted => "is back in cluster",
    };
    let (http, peer) = (started.http, started.peer);
    let _ = print_line(&format!("node {} {how} {}; its data is in {}", started.name, started.cluster, data_dir.display()));
    let _ = print_line(&format!("http://{http}  (other nodes reach it at {peer})"));
    if started.birth == Birth::Created {
        let (next_http, next_peer) = (http.port().saturating_add(2), peer.port().saturating_add(2));
        let _ = print_line("Two more nodes make it survive the loss of one. The next one, on this machine:");
        let _ = print_line(&format!(
            "  flotilla serve --data-dir {}-2 --http-addr 127.0.0.1:{next_http} --peer-addr 127.0.0.1:{next_peer} --join http://{http}",
            data_dir.display()
        ));
    }
}

fn trace_to_stderr(level: &str, format: LogFormat) -> Result<(), CommandError> {
    let filter = parse_filter(level).map_err(|error| CommandError::Usage(format!("--log-level {level:?}: {error}")))?;
    let traces = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => traces.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => traces.json().flatten_event(true).with_span_list(false).with_current_span(false).init(),
    }
    Ok(())
}

/// Levels and `module=level`, with commas between.
fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    for part in &parts {
        // The library takes a misspelt level for the name of a module.
        let level = part.rsplit_once('=').map_or(*part, |(_, level)| level);
        if !["off", "error", "warn", "info", "debug", "trace"].contains(&level.to_ascii_lowercase().as_str()) {
            return Err(format!("{level:?} is no level; give error, warn, info, debug, trace or off, or MODULE=LEVEL"));
        }
    }
    EnvFilter::try_new(parts.join(",")).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_and_modules() {
        for filter in ["info", "INFO", "off", "warn,flotilla_server::peer=debug", "info, flotilla_node=trace"] {
            assert!(parse_filter(filter).is_ok(), "{filter}");
        }
        for filter in ["", "wran", "flotilla_node", "info,", "flotilla_node=loud", "info;debug"] {
            assert!(parse_filter(filter).is_err(), "{filter}");
        }
    }
}
