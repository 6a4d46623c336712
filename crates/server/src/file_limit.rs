//! The bound on open files: the usual soft bound of 1024 is less than the connections a node accepts.
#![allow(unsafe_code, reason = "the bound of the process has no safe face in std")]

/// Raises the soft bound to the hard one. If that is not allowed, the process goes on with what it has.
pub(crate) fn raise() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call fills in the struct, which is ours alone.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0;
    if known && limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the call only reads the struct.
        let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0;
        tracing::debug!(raised, files = limit.rlim_cur, "bound on open files");
    }
}
