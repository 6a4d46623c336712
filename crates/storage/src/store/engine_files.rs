//! The engine's files (fjall 3 and its trees), held against the checksums that the engine wrote down but does
//! not look at itself: of a tree's list of tables in `current`, of each table in that list, of each batch in the
//! journals. Pure: it reads through [`Disk`], one per folder.
//!
//! ```text
//! version                    "FJL" 03
//! lock                       empty; its flock is held by the running process
//! <n>.jnl                    journals
//! keyspaces/<id>/current     u64 version, u128 XXH3-128 of the file v<version>, u8 0
//! keyspaces/<id>/v<version>  the tree's tables by level and run, each with its XXH3-128
//! keyspaces/<id>/tables/<n>  a table
//! ```
//!
//! A list or table that is not in force is left over from a crash and removed by the engine when it opens the store.
//! Folder 0 is the engine's own tree, in which it notes what the others are called.

use super::journal::{ItemVisitor, Journals};
use crate::disk::{Disk, DiskError};
use crate::verify::{Audience, FileUse, Finding, READ_BYTES};
use bytes::Bytes;
use flotilla_types::wire::{DecodeError, Reader};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

const MARKER: &[u8] = b"FJL\x03";
const CURRENT_BYTES: usize = 25;
/// The engine's lists of tables are far smaller.
const LIST_BYTES_MAX: u64 = 64 << 20;
/// A block of a table: magic, kind, XXH3-128 of the data, its length twice, low half of an XXH3 over all this.
const BLOCK_HEADER_BYTES: usize = 33;
const BLOCK_MAGIC: &[u8] = b"LSM\x03";
const TRAILER_BYTES: usize = 38;

const RESEED: &str = "start the node: it gives its damaged store up and fetches everything from the other nodes";
const RESEED_TABLE: &str = "start the node: what it cannot read there is never served, and those replicas are fetched from the other nodes";
const LEFT_OVER: &str = "nothing to do: it is removed when the node starts";

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What the engine believes without looking: lists and journals. Tables only by their names.
    Lists,
    /// Every byte.
    All,
}

/// What the files amount to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreReport {
    /// By folder, the tables in force: of each run, from the newest run on, in key order.
    pub trees: BTreeMap<u64, Vec<Vec<TableFile>>>,
    /// Batches in the journals.
    pub batches: u64,
    /// The last journal and from where on it does not count: it is to be cut there before the engine reads it.
    pub cut: Option<(String, u64)>,
    /// Whether the store can be used, once its last journal is cut.
    pub is_whole: bool,
}

/// A table in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFile {
    /// Its number, and the name of its file.
    pub id: u64,
    /// XXH3-128 of the file.
    pub checksum: u128,
    /// Added to the numbers of its rows.
    pub number_base: u64,
}

/// Reads the files of a store. `folder` gives the disk of a folder below it (`""`: itself); nobody may be writing.
pub fn verify<D: Disk>(folder: &dyn Fn(&str) -> D, depth: Depth, audience: &mut dyn Audience) -> StoreReport {
    let mut check = Check { folder, depth, audience, report: StoreReport { is_whole: true, ..StoreReport::default() } };
    let root = folder("");
    if let Err(error) = check.root(&root) {
        check.damage(Finding::unreadable(root.path(""), &error));
    }
    check.report
}

/// Shows the items of all journals of the store whose folder `root` is, the oldest first. Its files must be whole.
///
/// # Errors
/// If the disk does not read.
pub fn visit_journals<D: Disk>(root: &D, visit: ItemVisitor<'_>) -> Result<(), DiskError> {
    Journals::default().read_all(root, &mut Nobody, Some(visit)).map(|_| ())
}

/// Listens to nothing.
struct Nobody;

impl Audience for Nobody {
    fn file(&mut self, _file: FileUse) {}
    fn finding(&mut self, _finding: Finding) {}
    fn progress(&mut self, _bytes: u64) {}
}

struct Check<'a, D: Disk> {
    folder: &'a dyn Fn(&str) -> D,
    depth: Depth,
    audience: &'a mut dyn Audience,
    report: StoreReport,
}

impl<D: Disk> Check<'_, D> {
    fn damage(&mut self, finding: Finding) {
        self.report.is_whole = false;
        self.audience.finding(finding);
    }

    fn root(&mut self, root: &D) -> Result<(), DiskError> {
        let names = root.list()?;
        if !names.iter().any(|name| name == "version") {
            // The marker comes last when a store is made.
            if names.iter().any(|name| name == "keyspaces") && (self.folder)("keyspaces").list()?.iter().any(|name| name != "0") {
                self.damage(Finding::damage(root.path("version"), 0..0, "the store's marker is missing", RESEED));
            }
            return Ok(());
        }
        let marker = whole(root, "version", 64)?;
        self.audience.file(FileUse { file: root.path("version"), bytes: marker.len() as u64, bytes_used: marker.len() as u64 });
        if *marker != *MARKER {
            let what = format!("the store's marker is \"{}\", not \"{}\"", marker.escape_ascii(), MARKER.escape_ascii());
            self.damage(Finding::damage(root.path("version"), 0..marker.len() as u64, what, RESEED));
        }
        let mut journals = Journals::default();
        self.report.is_whole &= journals.read_all(root, self.audience, None)?;
        self.report.batches = journals.batches;
        self.report.cut = journals.cut;
        for name in names.iter().filter(|name| !["version", "keyspaces"].contains(&name.as_str()) && !name.ends_with(".jnl")) {
            self.unused(root, name);
        }
        for name in (self.folder)("keyspaces").list()? {
            match name.parse::<u64>() {
                Ok(id) => self.tree(id)?,
                Err(_) => self.unused(&(self.folder)("keyspaces"), &name),
            }
        }
        Ok(())
    }

    /// A file that nobody reads.
    fn unused(&mut self, disk: &D, name: &str) {
        match disk.open(name).and_then(|file| disk.len(&file)) {
            Ok(bytes) => self.audience.file(FileUse { file: disk.path(name), bytes, bytes_used: 0 }),
            Err(error) => self.damage(Finding::unreadable(disk.path(name), &error)),
        }
    }

    fn tree(&mut self, id: u64) -> Result<(), DiskError> {
        let disk = (self.folder)(&format!("keyspaces/{id}"));
        let names = disk.list()?;
        if !names.iter().any(|name| name == "current") {
            // It is written last when a tree is made, and trees are made before anything is written to them.
            if self.report.batches > 0 {
                self.damage(Finding::damage(disk.path("current"), 0..0, "the file is missing", RESEED));
            } else {
                self.audience.finding(Finding::note(disk.path(""), 0..0, "a tree that was never finished", LEFT_OVER));
            }
            return Ok(());
        }
        let Some((list_name, runs)) = self.list(&disk)? else { return self.unlisted(id) };
        for name in names.iter().filter(|name| !["current", "tables", "blobs"].contains(&name.as_str()) && **name != list_name) {
            self.unused(&disk, name);
        }
        let tables = (self.folder)(&format!("keyspaces/{id}/tables"));
        let present: BTreeSet<String> = tables.list()?.into_iter().collect();
        let wanted: BTreeMap<String, TableFile> = runs.iter().flatten().map(|table| (table.id.to_string(), *table)).collect();
        for name in present.iter().filter(|name| !wanted.contains_key(*name)) {
            self.unused(&tables, name);
        }
        for (name, table) in &wanted {
            if !present.contains(name) {
                self.damage(Finding::damage(tables.path(name), 0..0, "the table is missing", RESEED));
            } else if self.depth == Depth::All
                && let Err(error) = self.table(&tables, name, table)
            {
                self.damage(Finding::unreadable(tables.path(name), &error));
            }
        }
        self.report.trees.insert(id, runs);
        Ok(())
    }

    /// Tables of a list that is damaged: which are in force is not known, nor what their whole checksums are.
    fn unlisted(&mut self, id: u64) -> Result<(), DiskError> {
        let disk = (self.folder)(&format!("keyspaces/{id}/tables"));
        for name in if self.depth == Depth::All { disk.list()? } else { Vec::new() } {
            let file = disk.open(&name)?;
            let length = disk.len(&file)?;
            self.audience.progress(length);
            self.audience.file(FileUse { file: disk.path(&name), bytes: length, bytes_used: length });
            let places = damaged_blocks(&disk, &file, length)?;
            let is_block = |place: &Range<u64>| place.end - place.start >= BLOCK_HEADER_BYTES as u64 && place.end < length;
            let mut damaged: Vec<Range<u64>> = places.into_iter().filter(is_block).collect();
            if damaged.is_empty() && !ends_well(&disk, &file, length)? {
                damaged.push(length.saturating_sub(TRAILER_BYTES as u64)..length);
            }
            for place in damaged {
                self.damage(Finding::damage(disk.path(&name), place, "a block or the end of the file does not match its checksum", RESEED));
            }
        }
        Ok(())
    }

    /// The list of tables in force.
    #[expect(clippy::type_complexity, reason = "a name and what it lists")]
    fn list(&mut self, disk: &D) -> Result<Option<(String, Vec<Vec<TableFile>>)>, DiskError> {
        let current = whole(disk, "current", 4096)?;
        let length = current.len() as u64;
        self.audience.file(FileUse { file: disk.path("current"), bytes: length, bytes_used: length });
        if current.len() != CURRENT_BYTES || current[CURRENT_BYTES - 1] != 0 {
            let what = format!("the file has {length} bytes or names a checksum of another kind; it has {CURRENT_BYTES} and names XXH3");
            self.damage(Finding::damage(disk.path("current"), 0..length, what, RESEED));
            return Ok(None);
        }
        let version = u64::from_le_bytes(current[..8].try_into().expect("eight bytes"));
        let checksum = u128::from_le_bytes(current[8..24].try_into().expect("sixteen bytes"));
        let name = format!("v{version}");
        let bytes = match whole(disk, &name, LIST_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(DiskError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                self.damage(Finding::damage(disk.path("current"), 0..8, format!("it names the list {name}, which is not there"), RESEED));
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let length = bytes.len() as u64;
        self.audience.progress(length);
        self.audience.file(FileUse { file: disk.path(&name), bytes: length, bytes_used: length });
        if xxh3_128(&bytes) != checksum {
            let what = "the list of tables does not match its checksum in the file current, or that checksum is damaged";
            self.damage(Finding::damage(disk.path(&name), 0..length, what, RESEED));
            return Ok(None);
        }
        match runs(&bytes) {
            Ok(runs) => Ok(Some((name, runs))),
            Err(error) => {
                let what = format!("the list of tables is of a form that this version does not know: {error}");
                self.damage(Finding::damage(disk.path(&name), 0..length, what, RESEED));
                Ok(None)
            }
        }
    }

    fn table(&mut self, disk: &D, name: &str, table: &TableFile) -> Result<(), DiskError> {
        let file = disk.open(name)?;
        let length = disk.len(&file)?;
        let mut hash = Xxh3::new();
        let (mut at, mut bytes) = (0, Vec::new());
        while at < length {
            bytes.resize((length - at).min(READ_BYTES as u64) as usize, 0);
            disk.read_at(&file, at, &mut bytes)?;
            hash.update(&bytes);
            at += bytes.len() as u64;
            self.audience.progress(bytes.len() as u64);
        }
        self.audience.file(FileUse { file: disk.path(name), bytes: length, bytes_used: length });
        if hash.digest128() == table.checksum {
            return Ok(());
        }
        let places = damaged_blocks(disk, &file, length)?;
        let what = match places.len() {
            0 => "the file does not match its checksum in the list of tables, though all of its blocks match theirs",
            _ => "a block does not match its checksum, or is none",
        };
        if places.is_empty() {
            self.damage(Finding::damage(disk.path(name), 0..length, what, RESEED_TABLE));
        }
        for place in places {
            self.damage(Finding::damage(disk.path(name), place, what, RESEED_TABLE));
        }
        Ok(())
    }
}

/// All of a file that must be small.
fn whole<D: Disk>(disk: &D, name: &str, bytes_max: u64) -> Result<Bytes, DiskError> {
    let file = disk.open(name)?;
    let length = disk.len(&file)?.min(bytes_max);
    let mut bytes = vec![0; length as usize];
    disk.read_at(&file, 0, &mut bytes)?;
    Ok(bytes.into())
}

/// The tables of each run, the newest run first, from a list whose checksum was right.
fn runs(list: &Bytes) -> Result<Vec<Vec<TableFile>>, DecodeError> {
    let mut reader = Reader::new(section(list, b"tables")?);
    let mut runs = Vec::new();
    for _ in 0..reader.u8("levels")? {
        for _ in 0..reader.u8("runs")? {
            let mut run = Vec::new();
            for _ in 0..reader.u32("tables")? {
                let id = reader.u64("table")?;
                match reader.u8("kind of checksum")? {
                    0 => {}
                    other => return Err(DecodeError::Invalid("kind of checksum", u64::from(other))),
                }
                run.push(TableFile { id, checksum: reader.u128("checksum")?, number_base: reader.u64("base number")? });
            }
            runs.push(run);
        }
    }
    reader.finish()?;
    Ok(runs)
}

/// A section of a file that ends with a table of contents and a trailer (the `sfa` format).
fn section(file: &Bytes, name: &[u8]) -> Result<Bytes, DecodeError> {
    let trailer = file.len().checked_sub(TRAILER_BYTES).ok_or(DecodeError::Invalid("length", file.len() as u64))?;
    let contents = u64::from_le_bytes(file[trailer + 22..trailer + 30].try_into().expect("eight bytes"));
    let place = usize::try_from(contents).ok().filter(|at| at + 4 <= trailer).ok_or(DecodeError::Invalid("place of contents", contents))?;
    let mut reader = Reader::new(file.slice(place + 4..trailer));
    for _ in 0..reader.u32("sections")? {
        let (from, length) = (reader.u64("place")?, reader.u64("length")?);
        let (low, high) = (reader.u8("name length")?, reader.u8("name length")?);
        let mut found = Vec::new();
        for _ in 0..u16::from_le_bytes([low, high]) {
            found.push(reader.u8("name")?);
        }
        if found == name {
            let end = from.checked_add(length).filter(|end| *end <= place as u64).ok_or(DecodeError::Invalid("length", length))?;
            return Ok(file.slice(from as usize..end as usize));
        }
    }
    Err(DecodeError::Invalid("sections without tables", 0))
}

/// Whether a table's contents, at its end, match the trailer behind them.
fn ends_well<D: Disk>(disk: &D, file: &D::File, length: u64) -> Result<bool, DiskError> {
    let Some(at) = length.checked_sub(TRAILER_BYTES as u64) else { return Ok(false) };
    let mut trailer = [0; TRAILER_BYTES];
    disk.read_at(file, at, &mut trailer)?;
    let place = u64::from_le_bytes(trailer[22..30].try_into().expect("eight bytes"));
    if !trailer.starts_with(b"SFA!\x01\x00") || place >= at || at - place > READ_BYTES as u64 {
        return Ok(false);
    }
    let mut contents = vec![0; (at - place) as usize];
    disk.read_at(file, place, &mut contents)?;
    Ok(xxh3_128(&contents).to_le_bytes() == trailer[6..22]
        && u64::from_le_bytes(trailer[30..].try_into().expect("eight bytes")) == at - place)
}

/// Where a damaged table's blocks do not verify. A table is a run of blocks, a few bytes without a checksum of
/// their own, contents and trailer: what is no block is given only if all blocks are whole.
fn damaged_blocks<D: Disk>(disk: &D, file: &D::File, length: u64) -> Result<Vec<Range<u64>>, DiskError> {
    let (mut bad, mut gaps) = (Vec::new(), Vec::<Range<u64>>::new());
    let mut at = 0;
    while at < length {
        match block(disk, file, length, at)? {
            Some((end, true)) => at = end,
            Some((end, false)) => {
                bad.push(at..end);
                at = end;
            }
            None => {
                let next = next_block(disk, file, length, at + 1)?;
                gaps.push(at..next);
                at = next;
            }
        }
    }
    if !bad.is_empty() {
        return Ok(bad);
    }
    // A whole table has gaps too, shorter than a block or behind the last one.
    let is_block = |gap: &&Range<u64>| gap.end - gap.start >= BLOCK_HEADER_BYTES as u64 && gap.end < length;
    let blocks: Vec<Range<u64>> = gaps.iter().filter(is_block).cloned().collect();
    if blocks.is_empty() { Ok(gaps) } else { Ok(blocks) }
}

/// The end of the block at `at` and whether its data match; `None` if no header verifies there.
fn block<D: Disk>(disk: &D, file: &D::File, length: u64, at: u64) -> Result<Option<(u64, bool)>, DiskError> {
    if at + BLOCK_HEADER_BYTES as u64 > length {
        return Ok(None);
    }
    let mut header = [0; BLOCK_HEADER_BYTES];
    disk.read_at(file, at, &mut header)?;
    let field = |from: usize| u32::from_le_bytes(header[from..from + 4].try_into().expect("four bytes"));
    let is_header = header.starts_with(BLOCK_MAGIC) && field(29) == xxh3_128(&header[..29]) as u32;
    let end = at + (BLOCK_HEADER_BYTES as u64) + u64::from(field(21));
    if !is_header || end > length {
        return Ok(None);
    }
    let mut data = vec![0; field(21) as usize];
    disk.read_at(file, at + BLOCK_HEADER_BYTES as u64, &mut data)?;
    let checksum = u128::from_le_bytes(header[5..21].try_into().expect("sixteen bytes"));
    Ok(Some((end, xxh3_128(&data) == checksum)))
}

fn next_block<D: Disk>(disk: &D, file: &D::File, length: u64, mut from: u64) -> Result<u64, DiskError> {
    let mut bytes = Vec::new();
    while from < length {
        bytes.resize((length - from).min(READ_BYTES as u64) as usize, 0);
        disk.read_at(file, from, &mut bytes)?;
        for found in bytes.windows(BLOCK_MAGIC.len()).enumerate().filter(|(_, window)| *window == BLOCK_MAGIC).map(|(at, _)| at) {
            let at = from + found as u64;
            if block(disk, file, length, at)?.is_some() {
                return Ok(at);
            }
        }
        // A magic number may lie across the border.
        from += (bytes.len() as u64).saturating_sub(BLOCK_MAGIC.len() as u64 - 1).max(1);
        if (bytes.len() as u64) < BLOCK_MAGIC.len() as u64 {
            break;
        }
    }
    Ok(length)
}
