//! How `import` and `export` go on where they were interrupted: a small file beside the data says how far it
//! came, and of what.

use anyhow::{Context, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// `path` with something behind its name.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Reads a state file; `None` if there is none.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        bytes => bytes.with_context(|| format!("reading {}", path.display()))?,
    };
    match serde_json::from_slice(&bytes) {
        Ok(state) => Ok(Some(state)),
        Err(error) => bail!("{} is no record of how far it came ({error}): remove it to begin again", path.display()),
    }
}

/// Writes a state file in place of the one before, whole or not at all.
pub(super) fn save<T: Serialize>(path: &Path, state: &T) -> anyhow::Result<()> {
    let new = beside(path, ".new");
    let write = || {
        std::fs::write(&new, serde_json::to_vec(state)?)?;
        std::fs::rename(&new, path)?;
        anyhow::Ok(())
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Removes a state file that is no longer needed.
pub(super) fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| format!("removing {}", path.display())),
        _ => Ok(()),
    }
}

/// Is notified at Ctrl-C or SIGTERM; the second one ends the process at once.
pub(super) fn interruption() -> anyhow::Result<Rc<Notify>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let notify = Rc::new(Notify::new());
    let notified = notify.clone();
    tokio::task::spawn_local(async move {
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        notified.notify_one();
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        std::process::exit(1);
    });
    Ok(notify)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_written_and_damage_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        assert_eq!(load::<u64>(&path).expect("none is fine"), None);
        save(&path, &7u64).expect("it can be written");
        save(&path, &8u64).expect("and again");
        assert_eq!(load::<u64>(&path).expect("it is there"), Some(8));
        std::fs::write(&path, "{").expect("it can be written");
        assert!(load::<u64>(&path).expect_err("damaged").to_string().contains("remove it"));
        remove(&path).expect("it can be removed");
        remove(&path).expect("also when it is gone");
    }
}
