//! How much memory processes have resident, watched while something goes on.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;

const EVERY: Duration = Duration::from_millis(100);

/// Resident bytes of a process, from `/proc`; `None` if it has ended.
pub fn resident_bytes(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// The same of several, in MiB.
pub fn resident_mib(processes: &[u32]) -> Vec<f64> {
    processes.iter().map(|&process| resident_bytes(process).unwrap_or(0) as f64 / f64::from(1 << 20)).collect()
}

/// Remembers the most that each process had.
#[derive(Debug)]
pub struct MemoryWatch {
    most: Rc<RefCell<Vec<f64>>>,
    stop: Rc<Cell<bool>>,
    task: JoinHandle<()>,
}

impl MemoryWatch {
    /// Begins to watch. Runs inside a `LocalSet`.
    pub fn start(processes: Vec<u32>) -> MemoryWatch {
        let (most, stop) = (Rc::new(RefCell::new(resident_mib(&processes))), Rc::new(Cell::new(false)));
        let (seen, stopped) = (most.clone(), stop.clone());
        let task = tokio::task::spawn_local(async move {
            while !stopped.get() {
                for (most, now) in seen.borrow_mut().iter_mut().zip(resident_mib(&processes)) {
                    *most = most.max(now);
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        MemoryWatch { most, stop, task }
    }

    /// Ends it; the most of each process, in MiB.
    pub async fn end(self) -> Vec<f64> {
        self.stop.set(true);
        let _ = self.task.await;
        self.most.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        assert!(resident_bytes(std::process::id()).is_some_and(|bytes| bytes > 1 << 20));
    }
}
