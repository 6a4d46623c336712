//! Which bit of which file, and the deed.

use anyhow::Context;
use flotilla_types::Rng;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A file, how long it is, and how much of it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) file: PathBuf,
    pub(super) bytes: u64,
    pub(super) bytes_used: u64,
}

/// One damage.
#[derive(Clone, Debug)]
pub(super) struct Damage {
    pub(super) target: Target,
    /// The byte, or the length that is left.
    pub(super) offset: u64,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Flip { bit: u8 },
    Cut,
}

/// A file that has not been damaged yet, and what is done to it. Half of the time any file is as likely as the
/// next, half of the time any byte that counts is; one time in five a file is cut.
pub(super) fn choose(rng: &mut Rng, files: &[Target], spoilt: &[PathBuf], done: &[Damage]) -> Option<Damage> {
    let taken: Vec<&Path> =
        spoilt.iter().map(PathBuf::as_path).chain(done.iter().map(|damage| damage.target.file.as_path())).map(unit).collect();
    let is_free = |target: &&Target| target.bytes > 0 && !taken.contains(&unit(&target.file));
    let free: Vec<&Target> = files.iter().filter(is_free).collect();
    let target = if rng.chance(1, 2) {
        *rng.pick(&free)?
    } else {
        let total: u64 = free.iter().map(|target| target.bytes_used).sum();
        let mut at = rng.below(total.max(1));
        *free.iter().find(|target| {
            let is_here = at < target.bytes_used;
            at = at.saturating_sub(target.bytes_used);
            is_here
        })?
    };
    // Of files that are filled ahead of need most is unused: damage there is of interest, but not that often.
    let reach = if rng.chance(4, 5) && target.bytes_used > 0 { target.bytes_used } else { target.bytes };
    let kind = if rng.chance(1, 5) { Kind::Cut } else { Kind::Flip { bit: rng.below(8) as u8 } };
    Some(Damage { target: target.clone(), offset: rng.below(reach), kind })
}

/// What damage to a file is told of: a list of tables and the file `current`, which has its checksum, are of one piece.
fn unit(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder.parent().is_some_and(|above| above.ends_with("keyspaces")) => folder,
        _ => file,
    }
}

/// All files below a folder; of a running node nobody can say how much counts.
pub(super) fn files_of(folder: &Path) -> anyhow::Result<Vec<Target>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
            let path = entry?.path();
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => folders.push(path),
                // The store's journals and the log's files are zeros for the most part.
                Ok(metadata) => found.push(Target { bytes: metadata.len(), bytes_used: metadata.len().min(8 << 20), file: path }),
                // The node has removed it meanwhile.
                Err(_) => {}
            }
        }
    }
    found.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(found)
}

impl Damage {
    /// Does it; gives what stood around the place.
    pub(super) fn inflict(&self) -> anyhow::Result<Vec<u8>> {
        let path = &self.target.file;
        let file = OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("opening {}", path.display()))?;
        let mut around = vec![0; (self.offset.min(16) + 16) as usize];
        let read = file.read_at(&mut around, self.offset - self.offset.min(16))?;
        around.truncate(read);
        match self.kind {
            Kind::Flip { bit } => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, self.offset)?;
                byte[0] ^= 1 << bit;
                file.write_all_at(&byte, self.offset)?;
            }
            Kind::Cut => file.set_len(self.offset)?,
        }
        Ok(around)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Target { file, bytes, bytes_used } = &self.target;
        let file = file.display();
        match self.kind {
            Kind::Flip { bit } => write!(f, "bit {bit} of byte {} of {file} ({bytes} bytes, {bytes_used} used)", self.offset),
            Kind::Cut => write!(f, "{file} cut from {bytes} to {} bytes ({bytes_used} used)", self.offset),
        }
    }
}
