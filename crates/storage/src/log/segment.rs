//! The bytes of a segment file but for the records: its header, and the frame of a batch
//! (docs/formats.md, "The Raft log").
//!
//! Every frame names its segment, its own offset and the run (the opening of the log) that wrote it.
//! So nothing that an earlier use of the file left behind, nor a tail that was cut at an earlier
//! opening, can pass for a batch of the present one.

/// The newest format this program writes and reads.
pub(super) const FORMAT: u32 = 1;
/// Bytes before a segment's first batch.
pub(super) const SEGMENT_HEADER_BYTES: u32 = 64;
/// Bytes before a batch's first record.
pub(super) const BATCH_HEADER_BYTES: u32 = 32;
/// Batches begin at multiples of this, so that the search behind damage knows where to look.
pub(super) const ALIGNMENT: u32 = 8;

/// What is wrong with a segment whose file has not the size it was made with.
pub(super) const CUT_SHORT: &str = "the file has another size than it was made with";

const SEGMENT_MAGIC: [u8; 8] = *b"FLOTILOG";
const BATCH_MAGIC: u32 = 0xF107_B47C;

/// What a segment file is called.
pub(super) fn segment_name(number: u64) -> String {
    format!("{number:016x}.log")
}

/// The number of the segment that is called so.
pub(super) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (segment_name(number) == name && number > 0).then_some(number)
}

/// What a spare file is called: zero-filled or used before, to become a segment.
pub(super) fn spare_name(number: u64) -> String {
    format!("{number:016x}.spare")
}

/// The number of the spare file that is called so.
pub(super) fn spare_number(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".spare")?, 16).ok()
}

/// Appends a segment's header.
pub(super) fn encode_segment_header(number: u64, size: u32, out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend_from_slice(&SEGMENT_MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&size.to_le_bytes());
    out.resize(begin + SEGMENT_HEADER_BYTES as usize, 0);
    let crc = segment_header_crc(&out[begin..], &SEGMENT_MAGIC);
    out[begin + 12..begin + 16].copy_from_slice(&crc.to_le_bytes());
}

/// What a segment's header turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderCheck {
    /// Ours, of this number and size.
    Good,
    /// Ours, but of another format.
    Format(u32),
    /// Ours once, and damaged.
    Damaged(&'static str),
    /// Nothing of ours.
    Foreign,
}

/// Looks at the first bytes of the file that is to be segment `number` and has `file_len` bytes.
pub(super) fn check_segment_header(bytes: &[u8], number: u64, file_len: u64) -> HeaderCheck {
    let Some(header) = bytes.get(..SEGMENT_HEADER_BYTES as usize) else {
        // Of a header that is cut short, what is left must be the front of ours.
        let magic = bytes.len().min(SEGMENT_MAGIC.len());
        return if bytes[..magic] == SEGMENT_MAGIC[..magic] { HeaderCheck::Damaged(CUT_SHORT) } else { HeaderCheck::Foreign };
    };
    let verifies = segment_header_crc(header, &SEGMENT_MAGIC) == u32_at(header, 12);
    match (header[..8] == SEGMENT_MAGIC, verifies) {
        (false, false) => HeaderCheck::Foreign,
        (false, true) => HeaderCheck::Damaged("the magic number of the segment header is wrong"),
        (true, false) => HeaderCheck::Damaged("the checksum of the segment header does not match"),
        (true, true) if u32_at(header, 8) != FORMAT => HeaderCheck::Format(u32_at(header, 8)),
        (true, true) if u64_at(header, 16) != number => HeaderCheck::Damaged("the segment header names another segment"),
        (true, true) if u64::from(u32_at(header, 24)) != file_len => HeaderCheck::Damaged(CUT_SHORT),
        (true, true) => HeaderCheck::Good,
    }
}

/// The checksum of a header as if its magic number were `magic`: so a flipped bit in the magic number
/// is known from a file that is none of ours. Its place and extent hold for every format.
fn segment_header_crc(header: &[u8], magic: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(magic), &header[8..12]);
    crc32c::crc32c_append(crc, &header[16..SEGMENT_HEADER_BYTES as usize])
}

/// The frame of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Header, records and padding together.
    pub(super) bytes: u32,
    /// Everything before this offset of the segment was known to be synced when the batch was written.
    pub(super) synced: u32,
    /// Which opening of the log wrote it.
    pub(super) run: u32,
}

/// Empties the buffer but for the place of a batch's header.
pub(super) fn begin_batch(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize(BATCH_HEADER_BYTES as usize, 0);
}

/// Pads the batch that begins at `begin` of the buffer and fills in its header.
pub(super) fn finish_batch(buffer: &mut Vec<u8>, begin: usize, segment: u64, offset: u32, run: u32, synced: u32) {
    let length = padded(buffer.len() - begin);
    buffer.resize(begin + length as usize, 0);
    let batch = &mut buffer[begin..];
    batch[0..4].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
    batch[8..12].copy_from_slice(&length.to_le_bytes());
    batch[12..16].copy_from_slice(&offset.to_le_bytes());
    batch[16..24].copy_from_slice(&segment.to_le_bytes());
    batch[24..28].copy_from_slice(&synced.to_le_bytes());
    batch[28..32].copy_from_slice(&run.to_le_bytes());
    let crc = crc32c::crc32c(&batch[8..]);
    batch[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// A batch's length with its padding.
pub(super) fn padded(length: usize) -> u32 {
    u32::try_from(length).expect("a batch is shorter than 4 GiB").next_multiple_of(ALIGNMENT)
}

/// Checks the batch at `offset` of a segment's bytes; `bytes` begin at `base` of the segment.
pub(super) fn check_batch(bytes: &[u8], base: u32, offset: u32, segment: u64) -> Result<Frame, &'static str> {
    let batch = &bytes[(offset - base) as usize..];
    let Some(header) = batch.get(..BATCH_HEADER_BYTES as usize) else { return Err("there is no room for a batch") };
    if u32_at(header, 0) != BATCH_MAGIC {
        return Err("no batch begins here");
    }
    if u32_at(header, 12) != offset || u64_at(header, 16) != segment {
        return Err("the batch belongs elsewhere");
    }
    let length = u32_at(header, 8);
    let Some(whole) = batch.get(..length as usize).filter(|_| length >= BATCH_HEADER_BYTES && length.is_multiple_of(ALIGNMENT)) else {
        return Err("the batch has an impossible length");
    };
    if crc32c::crc32c(&whole[8..]) != u32_at(header, 4) {
        return Err("the checksum of the batch does not match");
    }
    // The next opening is numbered one higher.
    let run = u32_at(header, 28);
    if run == u32::MAX {
        return Err("the batch names an impossible opening");
    }
    Ok(Frame { bytes: length, synced: u32_at(header, 24), run })
}

/// What is wrong with the batch that was to follow at `offset`; `None` if none was begun there.
pub(super) fn torn_batch(bytes: &[u8], offset: u32, segment: u64) -> Option<&'static str> {
    let header = bytes.get(offset as usize..)?.get(..BATCH_HEADER_BYTES as usize)?;
    let is_of_this_place = [u32_at(header, 0) == BATCH_MAGIC, u32_at(header, 12) == offset, u64_at(header, 16) == segment];
    if is_of_this_place.iter().filter(|holds| **holds).count() < 2 {
        return None;
    }
    check_batch(bytes, 0, offset, segment).err()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes are four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes are eight bytes"))
}
