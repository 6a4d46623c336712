//! Chunks of several nodes into one page.
//!
//! A chunk that says `more` knows nothing of what lies behind its last item, so the page must end there
//! at the latest: a smaller key than any other chunk's next one may follow.

use super::{ScanAsk, ScanChunk, ScanItem, ScanPage};
use flotilla_types::Key;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A key in the order of the scan: what comes first compares as the greatest, as a heap wants it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Falling(Key),
    Rising(Reverse<Key>),
}

/// Merges sorted chunks, which share no keys, into a page within the bounds of `ask`.
pub fn merge(chunks: Vec<ScanChunk>, ask: &ScanAsk) -> ScanPage {
    let place = |item: &ScanItem| {
        let key = item.key.clone();
        if ask.reverse { Place::Falling(key) } else { Place::Rising(Reverse(key)) }
    };
    let mut sources: Vec<_> = chunks.into_iter().map(|chunk| (chunk.items.into_iter().peekable(), chunk.more)).collect();
    let mut next: BinaryHeap<(Place, usize)> =
        sources.iter_mut().enumerate().filter_map(|(number, (items, _))| Some((place(items.peek()?), number))).collect();
    let (mut items, mut bytes) = (Vec::new(), 0);
    let mut is_over = true;
    while let Some((_, number)) = next.pop() {
        let (source, more) = &mut sources[number];
        let is_full = |item: &ScanItem| items.len() >= ask.items_max as usize || bytes + item.bytes() > ask.bytes_max as usize;
        let Some(item) = source.next_if(|item| items.is_empty() || !is_full(item)) else {
            is_over = false;
            break;
        };
        bytes += item.bytes();
        items.push(item);
        match source.peek() {
            Some(item) => next.push((place(item), number)),
            None if *more => {
                is_over = false;
                break;
            }
            None => {}
        }
    }
    let rest = items.last().filter(|_| !is_over).map(|last| ask.rest_behind(&last.key));
    ScanPage { items, rest }
}

#[cfg(test)]
mod tests {
    use super::super::PageFill;
    use super::*;
    use bytes::Bytes;
    use flotilla_types::{KeyRange, Version};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn item(name: u16) -> ScanItem {
        let value = Bytes::from(vec![0; usize::from(name % 7) * 10]);
        ScanItem { key: Key::new(format!("{name:05}")).expect("a key"), version: Version(u64::from(name)), value: Some(value) }
    }

    /// What a node that holds `keys` answers.
    fn chunk(keys: &BTreeSet<u16>, ask: &ScanAsk, share: usize) -> ScanChunk {
        let mut items: Vec<ScanItem> = keys.iter().map(|name| item(*name)).filter(|i| ask.range.contains(i.key.as_bytes())).collect();
        if ask.reverse {
            items.reverse();
        }
        let mut bytes = 0;
        let fits = |item: &&ScanItem| {
            bytes += item.bytes();
            bytes <= ask.bytes_max as usize
        };
        let count = items.iter().take((ask.items_max as usize).min(share)).take_while(fits).count().max(1).min(items.len());
        let more = items.len() > count;
        items.truncate(count);
        ScanChunk { items, more }
    }

    proptest! {
        /// Page after page gives every key once and in order, whoever holds it and wherever pages end.
        #[test]
        fn pages_show_everything_in_order(
            nodes in prop::collection::vec(prop::collection::btree_set(0u16..500, 0..40), 1..5),
            items_max in 1u32..30, bytes_max in 1u32..2_000, share in 1usize..40, reverse: bool,
        ) {
            // Nodes share no keys.
            let mut taken = BTreeSet::new();
            let nodes: Vec<BTreeSet<u16>> =
                nodes.into_iter().map(|keys| keys.into_iter().filter(|key| taken.insert(*key)).collect()).collect();
            let mut expected: Vec<Key> = taken.iter().map(|name| item(*name).key).collect();
            if reverse {
                expected.reverse();
            }
            let range = KeyRange::default();
            let mut ask = ScanAsk { range, reverse, keys_only: false, items_max, bytes_max, fill: PageFill::Whole };
            let mut seen = Vec::new();
            loop {
                let page = merge(nodes.iter().map(|keys| chunk(keys, &ask, share)).collect(), &ask);
                prop_assert!(page.items.len() <= items_max as usize);
                let bytes: usize = page.items.iter().map(ScanItem::bytes).sum();
                prop_assert!(bytes <= bytes_max as usize || page.items.len() == 1);
                seen.extend(page.items.into_iter().map(|item| item.key));
                match page.rest {
                    Some(rest) => ask.range = rest,
                    None => break,
                }
            }
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn a_full_page_that_holds_everything_is_the_last() {
        let ask =
            ScanAsk { range: KeyRange::default(), reverse: false, keys_only: false, items_max: 3, bytes_max: 9_999, fill: PageFill::Whole };
        let holding = |names: &[u16]| ScanChunk { items: names.iter().map(|name| item(*name)).collect(), more: false };
        assert_eq!(merge(vec![holding(&[1, 3]), holding(&[2])], &ask).rest, None);
        assert!(merge(vec![holding(&[1, 3]), holding(&[2, 4])], &ask).rest.is_some());
        assert_eq!(merge(vec![], &ask), ScanPage { items: Vec::new(), rest: None });
    }
}
