//! Why a node could not be started or had to end. Start-up and the end of a process are read by a
//! person: each error is one line that names the thing concerned and the next step.

/// An error with all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        next = cause.source();
    }
    line
}
