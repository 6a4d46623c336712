//! How much processor time the servers under load used: the process behind each listening port is
//! found in `/proc`, and its user and system time read before and after. Only for servers on this
//! machine, under Linux; elsewhere there is simply no figure.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

/// The processes that listen on the ports of `addresses`, by id; empty if none is on this machine.
pub fn listening_processes(addresses: &[SocketAddr]) -> BTreeSet<u32> {
    let ports: BTreeSet<u16> = addresses.iter().filter(|address| address.ip().is_loopback()).map(SocketAddr::port).collect();
    let inodes = listening_inodes(&ports);
    let mut found = BTreeSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let descriptors = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        if descriptors.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| inodes.contains(target.to_string_lossy().as_ref())) {
            found.insert(id);
        }
    }
    found
}

/// Processor time used so far by each of `processes` that still runs.
pub fn processor_times(processes: &BTreeSet<u32>) -> BTreeMap<u32, Duration> {
    processes.iter().filter_map(|&id| Some((id, processor_time(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)?))).collect()
}

/// Processor time that `later` shows and `earlier` does not; `None` if a process ended in between.
pub fn processor_time_between(earlier: &BTreeMap<u32, Duration>, later: &BTreeMap<u32, Duration>) -> Option<Duration> {
    if earlier.is_empty() {
        return None;
    }
    earlier.iter().map(|(id, before)| later.get(id).map(|after| after.saturating_sub(*before))).sum()
}

/// The resident memory of a process, in bytes.
pub fn resident_bytes(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Sockets as `/proc/*/fd` links name them.
fn listening_inodes(ports: &BTreeSet<u16>) -> BTreeSet<String> {
    const LISTEN: &str = "0A";
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|path| fs::read_to_string(path).ok());
    let mut inodes = BTreeSet::new();
    for table in tables {
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (Some(local), Some(&LISTEN), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else { continue };
            let port = local.rsplit(':').next().and_then(|digits| u16::from_str_radix(digits, 16).ok());
            if port.is_some_and(|port| ports.contains(&port)) {
                inodes.insert(format!("socket:[{inode}]"));
            }
        }
    }
    inodes
}

/// User and system time in a line of `/proc/PID/stat` (proc(5), fields 14 and 15).
fn processor_time(stat: &str) -> Option<Duration> {
    // Linux has shown these in units of 1/100 s on every architecture for decades (USER_HZ).
    const TICK: Duration = Duration::from_millis(10);
    // The second field is the command in parentheses and may hold anything, spaces and parentheses too.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(TICK * (user + system))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn finds_the_process_behind_a_port() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let found = listening_processes(&[address]);
        assert_eq!(found, BTreeSet::from([std::process::id()]));
        assert_eq!(processor_times(&found).len(), 1);
        assert!(resident_bytes(std::process::id()).expect("this process runs") > 1 << 16);
    }

    #[test]
    fn reads_the_two_times_past_an_odd_command() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 1 2 3";
        assert_eq!(processor_time(stat), Some(Duration::from_secs(3)));
    }
}
