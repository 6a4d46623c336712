//! Ordered scans over all shards.
//!
//! A scan gives one page. The node that a client asked sends one request to each node that leads shards
//! of the range (`coordinator`); that node has its leadership of those shards confirmed like a read's,
//! merges their rows through one view of its store ([`crate::state_machine::run_scan`]) and gives a
//! bounded, sorted chunk (`part`); the asking node merges the chunks ([`merge`]). Shards whose leader
//! turned out to be elsewhere are asked for again; a scan is a read, so that does no harm.
//!
//! A page shows each shard at one moment after the request began: no shard is asked on within a page.
//! Where a page ends the rest of the range is given, and nothing is kept for it anywhere: the next page
//! is a scan of its own. So a cursor holds no view, and a slow client costs nothing here.
//!
//! Memory: a node asks for [`SCANS_MAX`] pages at once; a chunk holds up to the asked bytes, or one item.

mod coordinator;
mod merge;
mod part;

pub(crate) use coordinator::Scans;
pub use merge::merge;

use crate::request::Failure;
use bytes::{BufMut, Bytes, BytesMut};
use flotilla_storage::store::layout::Filing;
use flotilla_types::wire::{DecodeError, Reader, Write};
use flotilla_types::{GroupId, Key, KeyRange, NodeId, ReplicaKey, Version};

/// Pages that one node's clients may have under way; what comes beyond waits for its turn.
pub const SCANS_MAX: usize = 8;
/// What an item counts beside the bytes of its key and value.
pub const ITEM_BYTES: usize = 32;

/// How a page's bounds are shared out among the nodes that are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFill {
    /// Each node may be asked for the whole page, so that only the bounds or the end of the range end it.
    Whole,
    /// Each node is asked for its share, so that nothing much is read in vain; the page ends where the
    /// first share does. For whoever goes on asking.
    Shares,
}

/// What a client asks of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanAsk {
    /// Which keys.
    pub range: KeyRange,
    /// Whether the last key comes first.
    pub reverse: bool,
    /// Whether values are left out.
    pub keys_only: bool,
    /// The most items; at least 1.
    pub items_max: u32,
    /// The most bytes; a page holds at least one item all the same.
    pub bytes_max: u32,
    /// How the bounds are shared out.
    pub fill: PageFill,
}

/// One key that a scan found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanItem {
    /// The key.
    pub key: Key,
    /// Its version.
    pub version: Version,
    /// Its value, unless values are left out.
    pub value: Option<Bytes>,
}

/// What some shards hold of a range, in the order of the scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanChunk {
    /// The items.
    pub items: Vec<ScanItem>,
    /// Whether the shards hold more of the range behind the last item. Then there is one.
    pub more: bool,
}

/// What a scan answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage {
    /// The items, in the order of the scan.
    pub items: Vec<ScanItem>,
    /// What is left of the range; `None`: this was the last page.
    pub rest: Option<KeyRange>,
}

/// What one node answers for the shards it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPart {
    /// What it read.
    pub chunk: ScanChunk,
    /// Shards that are not in it, since another node leads them, and which one does, if that is known.
    pub refused: Vec<(GroupId, Option<NodeId>)>,
}

/// A scan of some shards on this node that is safe to run: whatever was committed before the request is
/// applied.
#[derive(Clone, Debug)]
pub struct ScanJob {
    /// Comes back with what was read.
    pub part: u64,
    /// The replicas, and where their rows in force are.
    pub shards: Vec<(ReplicaKey, Filing)>,
    /// What to read of them.
    pub ask: ScanAsk,
}

/// What came of a [`ScanJob`]: what was read, and the groups whose replica was replaced meanwhile.
pub type Scanned = Result<(ScanChunk, Vec<GroupId>), (Failure, Option<ReplicaKey>)>;

impl ScanItem {
    /// How much memory it counts for.
    pub fn bytes(&self) -> usize {
        ITEM_BYTES + self.key.as_bytes().len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

impl ScanAsk {
    /// What is left of the range behind the item that was shown last.
    pub(crate) fn rest_behind(&self, last: &Key) -> KeyRange {
        if self.reverse { self.range.before(last.as_bytes()) } else { self.range.behind(last.as_bytes()) }
    }

    /// Appends the encoding.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        encode_range(&self.range, out);
        out.write_bool(self.reverse);
        out.write_bool(self.keys_only);
        out.put_u32_le(self.items_max);
        out.put_u32_le(self.bytes_max);
        out.write_bool(self.fill == PageFill::Shares);
    }

    /// Reads one off the front.
    pub(crate) fn decode(reader: &mut Reader) -> Result<ScanAsk, DecodeError> {
        Ok(ScanAsk {
            range: decode_range(reader)?,
            reverse: reader.bool("reverse")?,
            keys_only: reader.bool("keys only")?,
            items_max: reader.u32("items at most")?,
            bytes_max: reader.u32("bytes at most")?,
            fill: if reader.bool("fill")? { PageFill::Shares } else { PageFill::Whole },
        })
    }
}

impl ScanPart {
    /// Appends the encoding.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        encode_items(&self.chunk.items, out);
        out.write_bool(self.chunk.more);
        out.put_u32_le(self.refused.len() as u32);
        for (group, leader) in &self.refused {
            out.put_u32_le(group.0);
            out.put_u64_le(leader.map_or(0, |node| node.0));
        }
    }

    /// Reads one off the front.
    pub(crate) fn decode(reader: &mut Reader) -> Result<ScanPart, DecodeError> {
        let chunk = ScanChunk { items: decode_items(reader)?, more: reader.bool("more")? };
        if chunk.more && chunk.items.is_empty() {
            return Err(DecodeError::Invalid("a chunk that goes on and begins nowhere", 0));
        }
        let count = reader.count(12, "refused groups")?;
        let refused = (0..count)
            .map(|_| Ok((GroupId(reader.u32("refused group")?), Some(NodeId(reader.u64("its leader")?)).filter(|node| node.0 != 0))))
            .collect::<Result<_, DecodeError>>()?;
        Ok(ScanPart { chunk, refused })
    }
}

impl ScanPage {
    /// Appends the encoding.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        encode_items(&self.items, out);
        out.write_bool(self.rest.is_some());
        if let Some(rest) = &self.rest {
            encode_range(rest, out);
        }
    }

    /// Reads one off the front.
    pub(crate) fn decode(reader: &mut Reader) -> Result<ScanPage, DecodeError> {
        let items = decode_items(reader)?;
        Ok(ScanPage { items, rest: if reader.bool("rest")? { Some(decode_range(reader)?) } else { None } })
    }
}

fn encode_range(range: &KeyRange, out: &mut BytesMut) {
    out.write_bytes(&range.start);
    out.write_bool(range.end.is_some());
    if let Some(end) = &range.end {
        out.write_bytes(end);
    }
}

fn decode_range(reader: &mut Reader) -> Result<KeyRange, DecodeError> {
    let start = reader.bytes("range start")?;
    Ok(KeyRange { start, end: if reader.bool("range end")? { Some(reader.bytes("range end")?) } else { None } })
}

fn encode_items(items: &[ScanItem], out: &mut BytesMut) {
    out.put_u32_le(items.len() as u32);
    for ScanItem { key, version, value } in items {
        out.write_bytes(key.as_bytes());
        out.put_u64_le(version.0);
        out.write_bool(value.is_some());
        if let Some(value) = value {
            out.write_bytes(value);
        }
    }
}

fn decode_items(reader: &mut Reader) -> Result<Vec<ScanItem>, DecodeError> {
    let count = reader.count(14, "items")?;
    let item = |reader: &mut Reader| {
        Ok(ScanItem {
            key: crate::codec::decode_key(reader)?,
            version: Version(reader.u64("version")?),
            value: if reader.bool("value")? { Some(reader.bytes("value")?) } else { None },
        })
    };
    (0..count).map(|_| item(reader)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_and_its_answers_are_read_as_written() {
        let range = KeyRange { start: Bytes::from_static(b"a\xff"), end: Some(Bytes::new()) };
        let fill = PageFill::Shares;
        let ask = ScanAsk { range: range.clone(), reverse: true, keys_only: false, items_max: 7, bytes_max: 9, fill };
        let key = Key::new(&b"k"[..]).expect("a key");
        let items = vec![
            ScanItem { key: key.clone(), version: Version(3), value: Some(Bytes::new()) },
            ScanItem { key, version: Version(4), value: None },
        ];
        let chunk = ScanChunk { items: items.clone(), more: true };
        let part = ScanPart { chunk, refused: vec![(GroupId(1), None), (GroupId(2), Some(NodeId(5)))] };
        let page = ScanPage { items, rest: Some(range) };

        let mut out = BytesMut::new();
        ask.encode(&mut out);
        part.encode(&mut out);
        page.encode(&mut out);
        let whole = out.freeze();
        let mut reader = Reader::new(whole.clone());
        assert_eq!(ScanAsk::decode(&mut reader), Ok(ask));
        assert_eq!(ScanPart::decode(&mut reader), Ok(part));
        assert_eq!(ScanPage::decode(&mut reader), Ok(page));
        assert_eq!(reader.remaining(), 0);
        for length in 0..whole.len() {
            let mut reader = Reader::new(whole.slice(..length));
            let all =
                ScanAsk::decode(&mut reader).is_ok() && ScanPart::decode(&mut reader).is_ok() && ScanPage::decode(&mut reader).is_ok();
            assert!(!all, "cut to {length} bytes");
        }
    }
}
