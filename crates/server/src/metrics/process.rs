//! What the operating system says of this process, under the names that all Prometheus clients use.

use super::{Exposition, MetricKind, MetricValue, Sample};
use crate::file_limit;
use std::time::{SystemTime, UNIX_EPOCH};

/// Ticks a second in `/proc/self/stat`: part of Linux's interface, whatever the kernel itself counts in.
const TICKS_PER_SECOND: f64 = 100.0;

/// Writes what can be found out; on a system without `/proc` that is little.
pub(super) fn write(exposition: &mut Exposition, since: SystemTime) {
    let started = since.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    exposition.sample(&Sample::measure("process_start_time_seconds", "When the process began to serve, in Unix time.", started));
    if let Some(seconds) = std::fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(cpu_seconds) {
        let (name, help) = ("process_cpu_seconds_total", "Processor time spent, user and system together.");
        exposition.sample(&Sample { name, help, kind: MetricKind::Counter, labels: &[], value: MetricValue::Real(seconds) });
    }
    if let Some(files) = open_files() {
        exposition.sample(&Sample::gauge("process_open_fds", "Open files and sockets.", files));
    }
    if let Some(files) = file_limit::files_max() {
        exposition.sample(&Sample::gauge("process_max_fds", "How many files and sockets may be open.", files));
    }
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return };
    let sizes = [
        ("VmSize:", "process_virtual_memory_bytes", "Address space in use."),
        ("VmRSS:", "process_resident_memory_bytes", "Memory in use."),
        ("VmHWM:", "process_resident_memory_peak_bytes", "The most memory that was ever in use."),
    ];
    for (field, name, help) in sizes {
        if let Some(bytes) = size_of(&status, field) {
            exposition.sample(&Sample::gauge(name, help, bytes));
        }
    }
}

/// How many files the process has open.
fn open_files() -> Option<u64> {
    let folder = "/proc/self/fd";
    // Since Linux 6.2 the folder's size is their number. Counting them one by one takes milliseconds of the loop
    // where connections are many, so that is only for older kernels.
    match std::fs::metadata(folder).ok()?.len() {
        0 => Some(std::fs::read_dir(folder).ok()?.count() as u64),
        files => Some(files),
    }
}

/// User and system time from the line of `/proc/self/stat`.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // The process's name may hold anything, but no field behind it has a parenthesis.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

/// A size from `/proc/self/status`, which gives them in kB.
fn size_of(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        let stat = "12 (a )b) S 1 12 12 0 -1 4194560 1037 0 0 0 250 50 0 0 20 0 7 0 1 2 3\n";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(size_of("Name:\tx\nVmRSS:\t    1024 kB\n", "VmRSS:"), Some(1 << 20));
        assert_eq!((cpu_seconds(""), size_of("VmRSS: many", "VmRSS:")), (None, None));
    }
}
