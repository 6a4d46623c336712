//! The engine's journal (fjall 3), read without the engine: to find damage that the engine would pass over in silence.
//!
//! The engine reads a journal up to the first batch that it cannot read, and cuts the file there. That is right
//! for what a crash left at the very end, and loses what follows if it is damage. And it never checks a batch's
//! number, by which it decides which of two values is the newer one. So a journal is held against what is known
//! of it: each batch has a checksum, numbers rise, journals before the last are whole.
//!
//! Of the last one nobody knows how much was synced: a power cut may leave a hole with whole batches behind it. So it
//! is cut at the first batch that is not as it must be, whatever the reason. What is left is a prefix, which is all
//! that the store promises: what is missing lies in the Raft log, or the log says that its replicas have lost it.
//!
//! ```text
//! batch  u8 1, u32 items, u64 number; the items; u8 3, u64 XXH3-64 of the items, "FJL" 03
//! item   u8 2, u8 type, u8 compression (0), u64 keyspace, u16 key length, u32 value length, again, key, value
//! clear  u8 4, u64 keyspace
//! ```

use crate::disk::{Disk, DiskError};
use crate::verify::{Audience, FileUse, Finding, READ_BYTES};
use xxhash_rust::xxh3::Xxh3;

static ZEROS: [u8; READ_BYTES] = [0; READ_BYTES];

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const START_BYTES: usize = 13;
const ITEM_HEAD_BYTES: usize = 21;
const CLEAR_BYTES: usize = 9;
const END_BYTES: usize = 13;
const END_MAGIC: &[u8] = b"FJL\x03";
/// Between two batches the engine takes a number for each change of its list of tables. More than this
/// many would take days in which nothing is written.
const NUMBERS_SKIPPED_MAX: u64 = 4096;

const RESEED: &str = "start the node: it gives its damaged store up and fetches everything from the other nodes";
const CUT: &str =
    "start the node: the journal is cut there, and what lay behind is applied again from the log, or its replicas are re-seeded";

/// Is shown the number of a batch and one of its items.
pub type ItemVisitor<'a> = &'a mut dyn FnMut(u64, Item<'_>);

/// A row write in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// The engine's number of the set of rows.
    pub keyspace: u64,
    /// The row's key.
    pub key: &'a [u8],
    /// Its value; `None` deletes it.
    pub value: Option<&'a [u8]>,
}

/// All journals of a store, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Journals {
    /// The last batch's number.
    number: Option<u64>,
    /// From where on the newest journal must not be read.
    pub(super) cut: Option<(String, u64)>,
    pub(super) batches: u64,
}

/// A part of a file.
struct Window<'a, D: Disk> {
    disk: &'a D,
    file: D::File,
    length: u64,
    base: u64,
    bytes: Vec<u8>,
}

struct Batch {
    number: u64,
    end: u64,
}

/// Why no batch was read: damage, or a disk that does not read.
enum Failure {
    Bad(&'static str),
    Disk(DiskError),
}

impl From<DiskError> for Failure {
    fn from(error: DiskError) -> Failure {
        Failure::Disk(error)
    }
}

impl<D: Disk> Window<'_, D> {
    /// The `count` bytes from `at` on; fails if the file ends before.
    fn bytes(&mut self, at: u64, count: usize) -> Result<&[u8], Failure> {
        if at + count as u64 > self.length {
            return Err(Failure::Bad("the file ends in the middle of a batch"));
        }
        if at < self.base || at + count as u64 > self.base + self.bytes.len() as u64 {
            let length = (self.length - at).min(count.max(READ_BYTES) as u64);
            self.bytes.resize(length as usize, 0);
            self.base = at;
            self.disk.read_at(&self.file, at, &mut self.bytes)?;
        }
        let from = (at - self.base) as usize;
        Ok(&self.bytes[from..from + count])
    }

    /// The batch at `at`; its items are shown if it is whole.
    fn batch(&mut self, at: u64, visit: &mut Option<ItemVisitor<'_>>) -> Result<Batch, Failure> {
        let head = self.bytes(at, START_BYTES)?;
        if head[0] != START {
            return Err(Failure::Bad("no batch begins here"));
        }
        let (items, number) = (u32_at(head, 1), u64_at(head, 5));
        let mut hash = Xxh3::new();
        let first = at + START_BYTES as u64;
        let mut next = first;
        for _ in 0..items {
            let length = self.item_bytes(next)?;
            hash.update(self.bytes(next, length)?);
            next += length as u64;
        }
        let end = self.bytes(next, END_BYTES)?;
        if end[0] != END || &end[9..] != END_MAGIC {
            return Err(Failure::Bad("the batch does not end where it must"));
        }
        if u64_at(end, 1) != hash.digest() {
            return Err(Failure::Bad("the checksum of the batch does not match"));
        }
        let end = next + END_BYTES as u64;
        if let Some(visit) = visit {
            let mut next = first;
            for _ in 0..items {
                let length = self.item_bytes(next)?;
                let bytes = self.bytes(next, length)?;
                if bytes[0] == ITEM {
                    let (key, value) = bytes[ITEM_HEAD_BYTES..].split_at(usize::from(u16_at(bytes, 11)));
                    visit(number, Item { keyspace: u64_at(bytes, 3), key, value: (bytes[1] == 0).then_some(value) });
                }
                next += length as u64;
            }
        }
        Ok(Batch { number, end })
    }

    fn item_bytes(&mut self, at: u64) -> Result<usize, Failure> {
        match self.bytes(at, 1)?[0] {
            CLEAR => Ok(CLEAR_BYTES),
            ITEM => {
                let head = self.bytes(at, ITEM_HEAD_BYTES)?;
                let (key, value, stored) = (usize::from(u16_at(head, 11)), u32_at(head, 13), u32_at(head, 17));
                if head[2] != 0 || value != stored {
                    return Err(Failure::Bad("an item says it is compressed, which we never ask for"));
                }
                Ok(ITEM_HEAD_BYTES + key + value as usize)
            }
            _ => Err(Failure::Bad("no item of the batch begins where one must")),
        }
    }

    /// Where the next whole batch begins, from `at` on.
    fn next_batch(&mut self, mut at: u64) -> Result<Option<u64>, DiskError> {
        while at + (START_BYTES + END_BYTES) as u64 <= self.length {
            let count = (self.length - at).min(READ_BYTES as u64) as usize;
            let found = match self.bytes(at, count) {
                Ok(bytes) => memchr::memchr(START, bytes),
                Err(Failure::Disk(error)) => return Err(error),
                Err(Failure::Bad(_)) => return Ok(None),
            };
            let Some(found) = found else {
                at += count as u64;
                continue;
            };
            at += found as u64;
            match self.batch(at, &mut None) {
                // An empty batch is never written, and looks like few bytes of anything.
                Ok(batch) if batch.end > at + (START_BYTES + END_BYTES) as u64 => return Ok(Some(at)),
                Err(Failure::Disk(error)) => return Err(error),
                _ => at += 1,
            }
        }
        Ok(None)
    }

    fn is_zero_from(&mut self, mut at: u64) -> Result<bool, DiskError> {
        while at < self.length {
            let count = (self.length - at).min(READ_BYTES as u64) as usize;
            match self.bytes(at, count) {
                Ok(bytes) if bytes == &ZEROS[..count] => at += count as u64,
                Err(Failure::Disk(error)) => return Err(error),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}

impl Journals {
    /// Reads all journals in the folder, the oldest first; false if one is damaged.
    pub(super) fn read_all<D: Disk>(
        &mut self,
        disk: &D,
        audience: &mut dyn Audience,
        mut visit: Option<ItemVisitor<'_>>,
    ) -> Result<bool, DiskError> {
        let names = disk.list()?;
        let number = |name: &String| name.strip_suffix(".jnl")?.parse::<u64>().ok();
        let mut journals: Vec<(u64, &String)> = names.iter().filter_map(|name| Some((number(name)?, name))).collect();
        journals.sort_unstable();
        let mut is_whole = true;
        for (at, (_, name)) in journals.iter().enumerate() {
            is_whole &= self.read(disk, name, at + 1 == journals.len(), audience, &mut visit)?;
        }
        Ok(is_whole)
    }

    /// Reads the journal `name`; false if it is damaged.
    fn read<D: Disk>(
        &mut self,
        disk: &D,
        name: &str,
        is_newest: bool,
        audience: &mut dyn Audience,
        visit: &mut Option<ItemVisitor<'_>>,
    ) -> Result<bool, DiskError> {
        let file = disk.open(name)?;
        let length = disk.len(&file)?;
        let path = disk.path(name);
        let mut window = Window { disk, file, length, base: 0, bytes: Vec::new() };
        let (mut at, mut is_whole) = (0, true);
        let end = loop {
            let batch = match window.batch(at, &mut None) {
                Ok(batch) => batch,
                Err(Failure::Disk(error)) => return Err(error),
                Err(Failure::Bad(_)) if window.is_zero_from(at)? => break at,
                Err(Failure::Bad(reason)) if is_newest => {
                    let what = match window.next_batch(at + 1)? {
                        Some(_) => format!("{reason}, and whole batches follow, as a power cut may leave it; or it is damage"),
                        None => format!("the last write is not whole: {reason}"),
                    };
                    audience.finding(Finding::note(&path, at..length, what, CUT));
                    self.cut = Some((name.to_owned(), at));
                    break at;
                }
                Err(Failure::Bad(reason)) => {
                    is_whole = false;
                    let next = window.next_batch(at + 1)?;
                    audience.finding(Finding::damage(&path, at..next.unwrap_or(length), format!("{reason}; more follows"), RESEED));
                    match next {
                        Some(next) => at = next,
                        None => break at,
                    }
                    continue;
                }
            };
            if let Some(what) = self.misplaced(batch.number) {
                audience.finding(Finding::damage(&path, at..batch.end, what, if is_newest { CUT } else { RESEED }));
                if is_newest {
                    self.cut = Some((name.to_owned(), at));
                    break at;
                }
                is_whole = false;
            }
            if visit.is_some() {
                drop(window.batch(at, visit));
            }
            self.number = Some(batch.number);
            self.batches += 1;
            at = batch.end;
        };
        audience.progress(length);
        audience.file(FileUse { file: path, bytes: length, bytes_used: end });
        Ok(is_whole)
    }

    fn misplaced(&self, number: u64) -> Option<String> {
        let last = self.number?;
        if number <= last {
            return Some(format!("the batch has number {number} and stands behind number {last}"));
        }
        let skipped = number - last - 1;
        (skipped > NUMBERS_SKIPPED_MAX).then(|| format!("{skipped} batches are missing before number {number}"))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes are two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes are four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes are eight bytes"))
}
