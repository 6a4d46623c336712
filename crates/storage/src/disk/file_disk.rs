//! A directory of the real file system.
//!
//! Plain positioned writes and fdatasync. No direct I/O and no io_uring: the log writes once per sync,
//! into blocks that exist, and is bound by the device's flush; neither was measured to be faster there.

#![expect(clippy::disallowed_methods, reason = "the one file through which the core's files go")]

use super::{Disk, DiskError};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const LOCK_NAME: &str = "LOCK";
static ZEROS: [u8; 128 << 10] = [0; 128 << 10];

/// A directory on disk.
#[derive(Debug)]
pub struct FileDisk {
    dir: PathBuf,
    is_read_only: bool,
}

/// An open file and the name it was opened by.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    path: PathBuf,
}

impl FileDisk {
    /// The directory `dir`, made if it is not there (its parents too).
    ///
    /// # Errors
    /// If it cannot be made, or its name not be made durable.
    pub fn open(dir: impl Into<PathBuf>) -> Result<FileDisk, DiskError> {
        let dir = dir.into();
        let failed = |attempted, path: &Path| {
            let path = path.display().to_string();
            move |source| DiskError::of(source, attempted, path, 0)
        };
        let missing: Vec<PathBuf> = dir.ancestors().take_while(|a| !a.as_os_str().is_empty() && !a.exists()).map(Path::to_owned).collect();
        fs::create_dir_all(&dir).map_err(failed("create directory", &dir))?;
        // A directory whose name is lost in a power cut takes all that lies in it along.
        for made in missing.iter().rev() {
            let parent = made.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(parent).and_then(|p| p.sync_all()).map_err(failed("sync directory", parent))?;
        }
        Ok(FileDisk { dir, is_read_only: false })
    }

    /// The directory `dir` as it is, to be read: nothing is made, every write fails.
    pub fn read_only(dir: impl Into<PathBuf>) -> FileDisk {
        FileDisk { dir: dir.into(), is_read_only: true }
    }

    fn opened(&self, options: &OpenOptions, name: &str, attempted: &'static str) -> Result<DiskFile, DiskError> {
        let path = self.dir.join(name);
        match options.open(&path) {
            Ok(file) => Ok(DiskFile { file, path }),
            Err(source) => Err(DiskError::of(source, attempted, path.display().to_string(), 0)),
        }
    }

    fn on_name(&self, result: std::io::Result<()>, attempted: &'static str, name: &str) -> Result<(), DiskError> {
        result.map_err(|source| DiskError::of(source, attempted, self.path(name), 0))
    }
}

impl DiskFile {
    fn on<T>(&self, result: std::io::Result<T>, attempted: &'static str, offset: u64) -> Result<T, DiskError> {
        result.map_err(|source| DiskError::of(source, attempted, self.path.display().to_string(), offset))
    }
}

impl Disk for FileDisk {
    type File = DiskFile;
    type Lock = DiskFile;

    /// An flock on a file of its own: it goes with the process, so nothing stale is ever left.
    fn lock(&self) -> Result<DiskFile, DiskError> {
        let mut options = OpenOptions::new();
        // Whoever only reads finds the file of the node that once ran here; an flock needs no more.
        options.read(true).write(!self.is_read_only).create(!self.is_read_only).truncate(false);
        let lock = self.opened(&options, LOCK_NAME, "open lock file")?;
        match lock.file.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => Err(DiskError::Locked { path: self.path(LOCK_NAME) }),
            Err(TryLockError::Error(source)) => lock.on(Err(source), "lock", 0).map(|()| unreachable!("an error stays one")),
        }
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        let read = || -> std::io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&self.dir)? {
                // A name that is no UTF-8 is none of ours.
                names.extend(entry?.file_name().into_string().ok());
            }
            names.sort();
            Ok(names)
        };
        read().map_err(|source| DiskError::of(source, "list directory", self.dir.display().to_string(), 0))
    }

    fn open(&self, name: &str) -> Result<DiskFile, DiskError> {
        self.opened(OpenOptions::new().read(true).write(!self.is_read_only), name, "open")
    }

    fn create(&self, name: &str) -> Result<DiskFile, DiskError> {
        self.opened(OpenOptions::new().read(true).write(true).create(true).truncate(true), name, "create")
    }

    fn len(&self, file: &DiskFile) -> Result<u64, DiskError> {
        file.on(file.file.metadata(), "measure", 0).map(|metadata| metadata.len())
    }

    fn read_at(&self, file: &DiskFile, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        file.on(file.file.read_exact_at(into, offset), "read", offset)
    }

    fn write_at(&self, file: &DiskFile, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        file.on(file.file.write_all_at(bytes, offset), "write", offset)
    }

    fn zero_fill(&self, file: &DiskFile, offset: u64, length: u64) -> Result<(), DiskError> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let count = (end - at).min(ZEROS.len() as u64);
            file.on(file.file.write_all_at(&ZEROS[..count as usize], at), "zero-fill", at)?;
            at += count;
        }
        Ok(())
    }

    fn sync_data(&self, file: &DiskFile) -> Result<(), DiskError> {
        file.on(file.file.sync_data(), "sync", 0)
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| DiskError::of(source, "sync directory", self.dir.display().to_string(), 0))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.on_name(fs::rename(self.dir.join(from), self.dir.join(to)), "rename", from)
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.on_name(fs::remove_file(self.dir.join(name)), "remove", name)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}
