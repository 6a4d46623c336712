//! What the fuzz targets (`crates/fuzzing`) try of the log, whose decoders are its own: not for other use.

use super::segment::{BATCH_HEADER_BYTES, SEGMENT_HEADER_BYTES, encode_segment_header, finish_batch, segment_name};
use super::{LogOptions, LogRecord, RaftLog, record};
use crate::disk::SimulatedDisk;
use bytes::Bytes;
use flotilla_types::wire::Reader;

const SEGMENT_BYTES: u32 = 4096;

/// Reads records until one is none, and the entries of each.
pub fn records(bytes: Bytes) {
    let mut reader = Reader::new(bytes);
    loop {
        let mut entries = reader.clone();
        if record::entries_record_len(&entries.clone().rest()).is_some() {
            let _ = record::decode_entries(&mut entries, 0, u64::MAX, &mut Vec::new(), |_| true);
        }
        let before = reader.remaining();
        match record::decode(&mut reader) {
            Ok(Some(_)) => assert!(reader.remaining() < before, "a record has bytes"),
            Ok(None) | Err(_) => return,
        }
    }
}

/// A record's bytes.
pub fn encoded(record: &LogRecord) -> Vec<u8> {
    let mut out = Vec::new();
    record.encode(1, &mut out);
    out
}

/// Opens a log of one segment that holds this behind its header, with the checksums put right; then once more, since what
/// an opening writes must be readable.
pub fn recover(content: &[u8]) {
    let mut bytes = Vec::new();
    encode_segment_header(1, SEGMENT_BYTES, &mut bytes);
    bytes.extend_from_slice(&content[..content.len().min((SEGMENT_BYTES - SEGMENT_HEADER_BYTES) as usize)]);
    bytes.resize(SEGMENT_BYTES as usize, 0);
    put_right(&mut bytes);
    let disk = SimulatedDisk::new();
    disk.put(&segment_name(1), &bytes);
    let options = LogOptions { segment_bytes: u64::from(SEGMENT_BYTES), ..LogOptions::default() };
    if let Ok((log, _)) = RaftLog::open(disk.clone(), options.clone()) {
        drop(log);
        let _ = RaftLog::open(disk, options);
    }
}

/// What lies behind the header of the first segment on this disk, up to the last byte that is not zero.
pub fn segment_of(disk: &SimulatedDisk) -> Vec<u8> {
    let bytes = disk.content(&segment_name(1)).expect("a log has a first segment");
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    bytes.get(SEGMENT_HEADER_BYTES as usize..end).map(<[u8]>::to_vec).unwrap_or_default()
}

/// Gives each batch, as far as their lengths lead, its place and its checksum.
fn put_right(bytes: &mut [u8]) {
    let mut offset = SEGMENT_HEADER_BYTES as usize;
    while let Some(header) = bytes.get(offset..offset + BATCH_HEADER_BYTES as usize) {
        let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (length, synced, run) = (number(8) as usize, number(24), number(28));
        if length < BATCH_HEADER_BYTES as usize || !length.is_multiple_of(8) || offset + length > bytes.len() {
            return;
        }
        let mut batch = bytes[offset..offset + length].to_vec();
        finish_batch(&mut batch, 0, 1, offset as u32, run, synced);
        bytes[offset..offset + length].copy_from_slice(&batch);
        offset += length;
    }
}
