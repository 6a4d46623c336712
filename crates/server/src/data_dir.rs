//! The data-dir as a whole: whose it is, in which format, and who uses it.
//!
//! ```text
//! DIR/flotilla-data   one line: what this is and its format; written once, before anything else
//! DIR/log/            the Raft log, the node's identity in it; its LOCK keeps a second process out
//! DIR/store/          the state store
//! DIR/store-suspect   why the store failed when it was last used; it is verified whole before it is used again
//! DIR/store-damaged/  a store that was given up, until what lay in it is on its way from the other nodes
//! ```

use flotilla_types::Rng;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// Format of the data-dir's layout.
const FORMAT: u32 = 1;
const MARKER: &str = "flotilla-data";
const MARKER_START: &str = "flotilla data-dir, format ";

/// A data-dir that is ours.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
}

/// Why a folder cannot be used as data-dir: one line each, with the next step.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It holds something else.
    #[error("{0} is not empty and no Flotilla data-dir: give an empty or a new folder")]
    Foreign(String),
    /// A newer version wrote it.
    #[error("data-dir {path} has format {found}, this version knows up to {FORMAT}: run the version that wrote it, or a newer one")]
    Newer {
        /// The data-dir.
        path: String,
        /// Its format.
        found: u32,
    },
    /// Its marker is unreadable.
    #[error("{0} is damaged: it should be one line, \"{MARKER_START}{FORMAT}\"")]
    Damaged(String),
    /// The file system said no.
    #[error("cannot {attempted} {path}: {}", advice(source))]
    Io {
        /// What was attempted.
        attempted: &'static str,
        /// On what.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
}

impl DataDir {
    /// Takes the folder, or makes it.
    ///
    /// # Errors
    /// If it is not ours to use.
    pub fn open(path: &Path) -> Result<DataDir, DataDirError> {
        let failed = |attempted, path: &Path| {
            let path = path.display().to_string();
            move |source| DataDirError::Io { attempted, path, source }
        };
        fs::create_dir_all(path).map_err(failed("make the data-dir", path))?;
        let marker = path.join(MARKER);
        match fs::read_to_string(&marker) {
            Ok(text) => check_marker(path, &marker, &text)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let mut found = fs::read_dir(path).map_err(failed("list the data-dir", path))?;
                // A marker that was being written when the machine went down is no data.
                let ours = |entry: &fs::DirEntry| entry.file_name() == temporary(&marker).file_name().unwrap_or_default();
                if found.any(|entry| entry.is_ok_and(|entry| !ours(&entry))) {
                    return Err(DataDirError::Foreign(path.display().to_string()));
                }
                write_marker(path, &marker).map_err(failed("write", &marker))?;
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => return Err(DataDirError::Damaged(marker.display().to_string())),
            Err(error) => return Err(failed("read", &marker)(error)),
        }
        Ok(DataDir { path: path.to_owned() })
    }

    /// Where a data-dir's marker lies.
    pub fn marker(path: &Path) -> PathBuf {
        path.join(MARKER)
    }

    /// What stands in it.
    pub fn marker_content() -> String {
        format!("{MARKER_START}{FORMAT}\n")
    }

    /// What is remembered of a store that failed.
    pub fn suspect(&self) -> Suspect {
        Suspect { path: self.path.join("store-suspect") }
    }

    /// Puts the damaged store aside, durably: the next one begins empty.
    ///
    /// # Errors
    /// If the file system says no.
    pub fn put_store_aside(&self) -> io::Result<()> {
        self.remove_store_aside()?;
        fs::rename(self.store(), self.aside())?;
        File::open(&self.path)?.sync_all()
    }

    /// Removes the store that was put aside, if there is one.
    ///
    /// # Errors
    /// If the file system says no.
    pub fn remove_store_aside(&self) -> io::Result<()> {
        ignore_absent(fs::remove_dir_all(self.aside()))
    }

    fn aside(&self) -> PathBuf {
        self.path.join("store-damaged")
    }

    /// The Raft log's folder.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The state store's folder.
    pub fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// The data-dir itself.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A note in the data-dir that the store failed while it was used: a block that cannot be read may be one that the
/// engine meets again whenever it merges tables, so it must be looked for before that.
#[derive(Clone, Debug)]
pub struct Suspect {
    path: PathBuf,
}

impl Suspect {
    /// Leaves the note. Failing to is no reason to do anything else: the next start fails as this one did.
    pub fn note(&self, reason: &str) {
        let written = File::create(&self.path).and_then(|mut file| {
            file.write_all(reason.as_bytes())?;
            file.sync_all()
        });
        if let Err(error) = written {
            tracing::warn!("cannot write {}: {error}", self.path.display());
        }
    }

    /// What was noted.
    pub fn reason(&self) -> Option<String> {
        fs::read(&self.path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The store was verified, or is gone.
    ///
    /// # Errors
    /// If the file system says no.
    pub fn clear(&self) -> io::Result<()> {
        ignore_absent(fs::remove_file(&self.path))
    }
}

fn ignore_absent(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// A generator seeded by the operating system: for ids that must never occur twice.
///
/// # Errors
/// If the operating system gives no randomness.
pub fn random() -> io::Result<Rng> {
    let mut seed = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(Rng::new(u64::from_le_bytes(seed)))
}

fn check_marker(path: &Path, marker: &Path, text: &str) -> Result<(), DataDirError> {
    let format = text.strip_suffix('\n').and_then(|line| line.strip_prefix(MARKER_START)).and_then(|format| format.parse::<u32>().ok());
    match format {
        Some(FORMAT) => Ok(()),
        Some(found) if found > FORMAT => Err(DataDirError::Newer { path: path.display().to_string(), found }),
        _ => Err(DataDirError::Damaged(marker.display().to_string())),
    }
}

fn temporary(marker: &Path) -> PathBuf {
    marker.with_extension("new")
}

/// The marker is there wholly or not at all, and before anything else of the node.
fn write_marker(path: &Path, marker: &Path) -> io::Result<()> {
    let temporary = temporary(marker);
    let mut file = File::create(&temporary)?;
    file.write_all(DataDir::marker_content().as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, marker)?;
    File::open(path)?.sync_all()?;
    if let Some(parent) = path.canonicalize()?.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn advice(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => "permission denied; the data-dir must belong to the user that runs this".to_owned(),
        ErrorKind::ReadOnlyFilesystem => "the file system is read-only; mount it for writing, or give another data-dir".to_owned(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "the disk is full; free some space and start again".to_owned(),
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => "there is a file in the way; give a folder".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    fn refused(path: &Path) -> String {
        DataDir::open(path).expect_err("it is to be refused").to_string()
    }

    #[test]
    fn a_folder_is_made_and_found_again() {
        let folder = folder();
        let path = folder.path().join("a/b");
        DataDir::open(&path).expect("a new folder");
        fs::create_dir(path.join("log")).expect("a log");
        DataDir::open(&path).expect("our folder");
    }

    #[test]
    fn a_start_that_was_cut_short_is_taken_up() {
        let folder = folder();
        fs::write(temporary(&folder.path().join(MARKER)), "flot").expect("a file");
        DataDir::open(folder.path()).expect("nothing of worth is in it");
    }

    #[test]
    fn what_is_not_ours_is_refused_and_named() {
        let folder = folder();
        fs::write(folder.path().join("thesis.txt"), "x").expect("a file");
        assert!(refused(folder.path()).contains("not empty"));
        assert!(refused(&folder.path().join("thesis.txt")).contains("a file in the way"));
        let marker = folder.path().join(MARKER);
        fs::write(&marker, format!("{MARKER_START}2\n")).expect("a file");
        assert!(refused(folder.path()).contains("format 2"));
        fs::write(&marker, "flotilla data-dir, for").expect("a file");
        assert!(refused(folder.path()).contains("damaged"));
    }
}
