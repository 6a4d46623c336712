//! The bound on open files: the usual soft bound of 1024 is less than the connections a node accepts.
#![allow(unsafe_code, reason = "the bound of the process has no safe face in std")]

/// Files that the node opens itself: segments, tables, links. Of a small bound a quarter.
const OWN_FILES: u64 = 2048;

/// Raises the soft bound to the hard one. If that is not allowed, the process goes on with what it has.
pub(crate) fn raise() {
    let Some(mut limit) = look() else { return };
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the call only reads the struct.
        let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0;
        tracing::debug!(raised, files = limit.rlim_cur, "bound on open files");
    }
}

/// Of `wanted` connections as many as leave files for the node itself: one that cannot open its own ends.
pub(crate) fn for_connections(wanted: usize) -> usize {
    let allowed = look().map_or(u64::MAX, |limit| connections_of(limit.rlim_cur));
    let connections = wanted.min(usize::try_from(allowed).unwrap_or(usize::MAX));
    if connections < wanted {
        tracing::info!(connections, wanted, "fewer connections than configured: the bound on open files (ulimit -n) allows no more");
    }
    connections
}

/// How many files this process may have open.
pub(crate) fn files_max() -> Option<u64> {
    look().map(|limit| limit.rlim_cur)
}

fn connections_of(files: u64) -> u64 {
    files - OWN_FILES.min(files / 4)
}

fn look() -> Option<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call fills in the struct, which is ours alone.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    known.then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_node() {
        assert_eq!((connections_of(1024), connections_of(20_000), connections_of(0)), (768, 17_952, 0));
        assert!(for_connections(1 << 20) <= 1 << 20 && for_connections(1) == 1);
    }
}
