//! A disk in memory that forgets what was not synced, and fails when told to.
//!
//! Each file has what programs see (`current`) and what a power cut leaves (`durable`), and the list
//! of writes between the two. [`SimulatedDisk::crash`] decides sector by sector how many of the writes
//! to it survive, so writes are torn and reordered as a real disk may do it. Names are journaled as
//! file systems do: of the creations, renames and removals since the last `sync_dir` a prefix survives.
//! Everything is decided by the generator given to `crash` and by the calls: the same seed, the same disk.

use super::{Disk, DiskError};
use flotilla_types::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR_BYTES: u64 = 512;

/// A simulated directory. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimulatedDisk(Arc<Mutex<Platter>>);

/// An open file of a [`SimulatedDisk`]; dead after a crash.
#[derive(Debug)]
pub struct SimulatedFile {
    id: u64,
    epoch: u64,
}

/// Who holds a [`SimulatedDisk`].
#[derive(Debug)]
pub struct SimulatedLock {
    disk: SimulatedDisk,
    epoch: u64,
}

#[derive(Debug, Default)]
struct Platter {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    name_changes: Vec<NameChange>,
    next_id: u64,
    /// Raised by each crash: handles of an earlier epoch belong to a process that is dead.
    epoch: u64,
    locked: bool,
    capacity: Option<u64>,
    full_after: Option<u64>,
    fail_syncs: u64,
    ignore_sync: bool,
    calls: u64,
    fail_call: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Content {
    current: Vec<u8>,
    durable: Vec<u8>,
    writes: Vec<(u64, Written)>,
    /// Sectors whose sync failed. The kernel calls them clean from then on: programs read the new
    /// state, a later sync passes them over, a power cut may undo them.
    orphaned: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
enum Written {
    Bytes(Vec<u8>),
    Zeros(u64),
}

#[derive(Clone, Debug)]
enum NameChange {
    Create(String, u64),
    Rename(String, String),
    Remove(String),
}

impl SimulatedDisk {
    /// An empty disk without limits or faults.
    pub fn new() -> SimulatedDisk {
        SimulatedDisk::default()
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Power cut: of what was not synced, `rng` decides what is left. Locks are released and every
    /// open handle goes dead. One in four crashes loses all of it, one in four nothing (the process
    /// died, not the machine), the others keep some sectors.
    pub fn crash(&self, rng: &mut Rng) {
        let mut platter = self.platter();
        let mood = rng.below(4);
        let changes = std::mem::take(&mut platter.name_changes);
        let kept = match mood {
            0 => 0,
            1 => changes.len(),
            _ => rng.below(changes.len() as u64 + 1) as usize,
        };
        let mut names = std::mem::take(&mut platter.durable_names);
        for change in &changes[..kept] {
            change.apply(&mut names);
        }
        platter.names = names.clone();
        platter.durable_names = names;
        platter.forget_nameless();
        for content in platter.files.values_mut() {
            content.crash(mood, rng);
        }
        platter.epoch += 1;
        platter.locked = false;
        platter.fail_syncs = 0;
        platter.fail_call = None;
        platter.full_after = None;
    }

    /// Flips one bit of what lies durable on the disk; says where. `None` if the disk is empty.
    pub fn flip_bit(&self, rng: &mut Rng) -> Option<(String, u64)> {
        self.flip_bit_within(rng, |_, content| content.len() as u64)
    }

    /// Flips one bit among the first `reach(name, content)` bytes of some file; says where. `None` if
    /// nothing is in reach.
    pub fn flip_bit_within(&self, rng: &mut Rng, reach: impl Fn(&str, &[u8]) -> u64) -> Option<(String, u64)> {
        let mut platter = self.platter();
        let reached = |name: &String, id: &u64| (name.clone(), *id, reach(name, &platter.files[id].durable));
        let files: Vec<(String, u64, u64)> = platter.durable_names.iter().map(|(name, id)| reached(name, id)).collect();
        let total: u64 = files.iter().map(|(_, _, length)| length).sum();
        let mut at = if total == 0 { return None } else { rng.below(total) };
        for (name, id, length) in files {
            if at < length {
                let bit = rng.below(8) as u8;
                platter.flip(id, at, bit);
                return Some((name, at));
            }
            at -= length;
        }
        None
    }

    /// Flips bit `bit` of byte `offset` of the file `name`. False if there is no such byte.
    pub fn flip_bit_at(&self, name: &str, offset: u64, bit: u8) -> bool {
        let mut platter = self.platter();
        let Some(id) = platter.names.get(name).copied() else { return false };
        platter.flip(id, offset, bit)
    }

    /// Limits what all files together may hold; `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.platter().capacity = bytes;
    }

    /// The disk is full once `bytes` more have been written (overwriting counts too: think of a file
    /// system that copies on write); `None` ends that.
    pub fn fill_after(&self, bytes: Option<u64>) {
        self.platter().full_after = bytes;
    }

    /// The next `count` syncs fail.
    pub fn fail_syncs(&self, count: u64) {
        self.platter().fail_syncs = count;
    }

    /// The planted fault: syncs say they worked and do nothing.
    pub fn ignore_sync(&self, ignore: bool) {
        self.platter().ignore_sync = ignore;
    }

    /// The call with number `call` fails once (see [`SimulatedDisk::calls`]); a write is then half done.
    pub fn fail_call(&self, call: Option<u64>) {
        self.platter().fail_call = call;
    }

    /// How many calls the disk has had.
    pub fn calls(&self) -> u64 {
        self.platter().calls
    }

    /// What programs see in a file.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let platter = self.platter();
        platter.names.get(name).map(|id| platter.files[id].current.clone())
    }

    /// Puts a whole durable file onto the disk, whatever was there under that name.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut platter = self.platter();
        let id = platter.next_id;
        platter.next_id += 1;
        platter.files.insert(id, Content { current: bytes.to_vec(), durable: bytes.to_vec(), ..Content::default() });
        platter.names.insert(name.to_owned(), id);
        platter.durable_names.insert(name.to_owned(), id);
    }
}

impl Platter {
    /// Counts the call; an error if it is the one that is to fail.
    fn call(&mut self, attempted: &'static str, path: &str) -> Result<(), DiskError> {
        let call = self.calls;
        self.calls += 1;
        if self.fail_call == Some(call) {
            self.fail_call = None;
            return Err(broken(attempted, path));
        }
        Ok(())
    }

    fn name_of(&self, id: u64) -> String {
        self.names.iter().find(|(_, i)| **i == id).map_or_else(|| "a removed file".to_owned(), |(name, _)| name.clone())
    }

    fn file(&mut self, file: &SimulatedFile, attempted: &'static str) -> Result<&mut Content, DiskError> {
        let dead = DiskError::Io { attempted, path: String::new(), offset: 0, source: io::Error::other("the machine crashed since") };
        if file.epoch != self.epoch {
            return Err(dead);
        }
        self.files.get_mut(&file.id).ok_or(dead)
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }

    /// How many of `length` bytes at `offset` can be written.
    fn room(&mut self, file: u64, offset: u64, length: u64) -> u64 {
        let mut room = length;
        if let Some(capacity) = self.capacity {
            let used: u64 = self.names.values().map(|id| self.files[id].current.len() as u64).sum();
            let present = self.files[&file].current.len() as u64;
            let limit = present + capacity.saturating_sub(used);
            room = room.min(limit.saturating_sub(offset));
        }
        if let Some(left) = &mut self.full_after {
            room = room.min(*left);
            *left -= room;
        }
        room
    }

    fn write(&mut self, file: &SimulatedFile, offset: u64, written: Written, attempted: &'static str) -> Result<(), DiskError> {
        let path = self.name_of(file.id);
        self.file(file, attempted)?;
        let length = written.len();
        let failed = self.call(attempted, &path);
        let room = if failed.is_err() { length / 2 } else { self.room(file.id, offset, length) };
        self.file(file, attempted)?.write(offset, written.cut(room));
        failed?;
        if room < length { Err(DiskError::Full { attempted, path }) } else { Ok(()) }
    }

    fn forget_nameless(&mut self) {
        let named: BTreeSet<u64> = self.names.values().chain(self.durable_names.values()).copied().collect();
        self.files.retain(|id, _| named.contains(id));
    }

    fn flip(&mut self, id: u64, offset: u64, bit: u8) -> bool {
        let content = self.files.get_mut(&id).expect("a name has a file");
        let at = offset as usize;
        for bytes in [&mut content.durable, &mut content.current] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        at < content.current.len()
    }
}

impl Content {
    fn write(&mut self, offset: u64, written: Written) {
        overlay(&mut self.current, offset, &written);
        self.writes.push((offset, written));
    }

    fn sectors(&self) -> BTreeSet<u64> {
        let touched = |(offset, written): &(u64, Written)| sectors_of(*offset, written.len());
        self.writes.iter().flat_map(touched).collect()
    }

    fn sync(&mut self) {
        // Only what the writes touched is copied, whole sectors of it: a sync of a large file stays cheap.
        self.durable.resize(self.current.len(), 0);
        for (offset, written) in std::mem::take(&mut self.writes) {
            let from = (offset / SECTOR_BYTES * SECTOR_BYTES) as usize;
            let to = ((offset + written.len()).next_multiple_of(SECTOR_BYTES) as usize).min(self.current.len());
            self.durable[from..to].copy_from_slice(&self.current[from..to]);
            if !self.orphaned.is_empty() {
                for sector in sectors_of(offset, written.len()) {
                    self.orphaned.remove(&sector);
                }
            }
        }
    }

    fn fail_sync(&mut self) {
        let sectors = self.sectors();
        self.orphaned.extend(sectors);
        self.writes.clear();
    }

    fn crash(&mut self, mood: u64, rng: &mut Rng) {
        let writes = std::mem::take(&mut self.writes);
        let orphaned = std::mem::take(&mut self.orphaned);
        if mood == 1 {
            self.durable.clone_from(&self.current);
            return;
        }
        if mood != 0 {
            let mut touching: BTreeMap<u64, Vec<usize>> = orphaned.iter().map(|sector| (*sector, Vec::new())).collect();
            for (number, (offset, written)) in writes.iter().enumerate() {
                sectors_of(*offset, written.len()).for_each(|sector| touching.entry(sector).or_default().push(number));
            }
            for (sector, numbers) in touching {
                let from = sector * SECTOR_BYTES;
                let to = (from + SECTOR_BYTES).min(self.current.len() as u64);
                let kept = rng.below(numbers.len() as u64 + 1 + u64::from(orphaned.contains(&sector))) as usize;
                if kept == 0 {
                    continue;
                }
                if self.durable.len() < to as usize {
                    self.durable.resize(to as usize, 0);
                }
                if kept >= numbers.len() {
                    self.durable[from as usize..to as usize].copy_from_slice(&self.current[from as usize..to as usize]);
                    continue;
                }
                for (offset, written) in numbers[..kept].iter().map(|number| &writes[*number]) {
                    let (low, high) = (from.max(*offset), to.min(offset + written.len()));
                    let part = written.part(low - offset, high - offset);
                    overlay(&mut self.durable, low, &part);
                }
            }
        }
        self.current.clone_from(&self.durable);
    }
}

impl Written {
    fn len(&self) -> u64 {
        match self {
            Written::Bytes(bytes) => bytes.len() as u64,
            Written::Zeros(count) => *count,
        }
    }

    fn cut(self, length: u64) -> Written {
        match self {
            Written::Bytes(mut bytes) => {
                bytes.truncate(length as usize);
                Written::Bytes(bytes)
            }
            Written::Zeros(count) => Written::Zeros(count.min(length)),
        }
    }

    fn part(&self, from: u64, to: u64) -> Written {
        match self {
            Written::Bytes(bytes) => Written::Bytes(bytes[from as usize..to as usize].to_vec()),
            Written::Zeros(_) => Written::Zeros(to - from),
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameChange::Create(name, id) => {
                names.insert(name.clone(), *id);
            }
            NameChange::Rename(from, to) => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
            NameChange::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

fn sectors_of(offset: u64, length: u64) -> impl Iterator<Item = u64> {
    offset / SECTOR_BYTES..(offset + length).div_ceil(SECTOR_BYTES).max(offset / SECTOR_BYTES)
}

fn overlay(bytes: &mut Vec<u8>, offset: u64, written: &Written) {
    let (from, to) = (offset as usize, (offset + written.len()) as usize);
    if bytes.len() < to {
        bytes.resize(to, 0);
    }
    match written {
        Written::Bytes(new) => bytes[from..to].copy_from_slice(new),
        Written::Zeros(_) => bytes[from..to].fill(0),
    }
}

fn broken(attempted: &'static str, path: &str) -> DiskError {
    DiskError::Io { attempted, path: path.to_owned(), offset: 0, source: io::Error::other("a fault was injected") }
}

fn missing(attempted: &'static str, name: &str) -> DiskError {
    DiskError::Io { attempted, path: name.to_owned(), offset: 0, source: io::ErrorKind::NotFound.into() }
}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        let mut platter = self.disk.platter();
        if platter.epoch == self.epoch {
            platter.locked = false;
        }
    }
}

impl Disk for SimulatedDisk {
    type File = SimulatedFile;
    type Lock = SimulatedLock;

    fn lock(&self) -> Result<SimulatedLock, DiskError> {
        let mut platter = self.platter();
        platter.call("lock", "LOCK")?;
        if std::mem::replace(&mut platter.locked, true) {
            return Err(DiskError::Locked { path: "LOCK".to_owned() });
        }
        Ok(SimulatedLock { disk: self.clone(), epoch: platter.epoch })
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        let mut platter = self.platter();
        platter.call("list directory", ".")?;
        Ok(platter.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> Result<SimulatedFile, DiskError> {
        let mut platter = self.platter();
        platter.call("open", name)?;
        let id = *platter.names.get(name).ok_or_else(|| missing("open", name))?;
        Ok(SimulatedFile { id, epoch: platter.epoch })
    }

    fn create(&self, name: &str) -> Result<SimulatedFile, DiskError> {
        let mut platter = self.platter();
        platter.call("create", name)?;
        let id = platter.next_id;
        platter.next_id += 1;
        platter.files.insert(id, Content::default());
        platter.change(NameChange::Create(name.to_owned(), id));
        Ok(SimulatedFile { id, epoch: platter.epoch })
    }

    fn len(&self, file: &SimulatedFile) -> Result<u64, DiskError> {
        let mut platter = self.platter();
        let path = platter.name_of(file.id);
        platter.call("measure", &path)?;
        Ok(platter.file(file, "measure")?.current.len() as u64)
    }

    fn read_at(&self, file: &SimulatedFile, offset: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let mut platter = self.platter();
        let path = platter.name_of(file.id);
        platter.call("read", &path)?;
        let bytes = platter.file(file, "read")?.current.get(offset as usize..offset as usize + into.len());
        let short = || DiskError::Io { attempted: "read", path, offset, source: io::ErrorKind::UnexpectedEof.into() };
        into.copy_from_slice(bytes.ok_or_else(short)?);
        Ok(())
    }

    fn write_at(&self, file: &SimulatedFile, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.platter().write(file, offset, Written::Bytes(bytes.to_vec()), "write")
    }

    fn zero_fill(&self, file: &SimulatedFile, offset: u64, length: u64) -> Result<(), DiskError> {
        self.platter().write(file, offset, Written::Zeros(length), "zero-fill")
    }

    fn sync_data(&self, file: &SimulatedFile) -> Result<(), DiskError> {
        let mut platter = self.platter();
        let path = platter.name_of(file.id);
        let failed = platter.call("sync", &path);
        if failed.is_err() || platter.fail_syncs > 0 {
            platter.fail_syncs = platter.fail_syncs.saturating_sub(1);
            platter.file(file, "sync")?.fail_sync();
            failed?;
            return Err(broken("sync", &path));
        }
        let ignore = platter.ignore_sync;
        let content = platter.file(file, "sync")?;
        if !ignore {
            content.sync();
        }
        Ok(())
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        let mut platter = self.platter();
        platter.call("sync directory", ".")?;
        if !platter.ignore_sync {
            platter.durable_names = platter.names.clone();
            platter.name_changes.clear();
            platter.forget_nameless();
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut platter = self.platter();
        platter.call("rename", from)?;
        if !platter.names.contains_key(from) {
            return Err(missing("rename", from));
        }
        platter.change(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), DiskError> {
        let mut platter = self.platter();
        platter.call("remove", name)?;
        if !platter.names.contains_key(name) {
            return Err(missing("remove", name));
        }
        platter.change(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        name.to_owned()
    }
}
