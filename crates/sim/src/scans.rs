//! Clients' scans: what they ask, and what a page tells of every key that it covers.
//!
//! A page that covers a key is a read of that key which began and ended with the scan: it shows a version
//! and a value, or by leaving the key out that it was absent. So the checkers of reads judge scans as
//! well; what is a scan's own (order, bounds, keys that exist) is checked here.

use crate::history::{Answer, Call, KeyNumber, Moment, Operation};
use crate::workload::Workload;
use flotilla_node::Request;
use flotilla_node::scan::{PageFill, ScanAsk, ScanPage};
use flotilla_types::{KeyRange, Rng};
use std::collections::BTreeMap;

/// Of so many requests one is a scan.
const ONE_IN: u64 = 40;

/// A scan under way.
#[derive(Clone, Debug)]
pub(crate) struct AskedScan {
    pub(crate) client: u32,
    pub(crate) ask: ScanAsk,
    pub(crate) invoked: Moment,
}

/// Draws a scan now and then.
pub(crate) fn choose(rng: &mut Rng) -> Option<ScanAsk> {
    if !rng.chance(1, ONE_IN) {
        return None;
    }
    let prefix = match rng.below(4) {
        0 => format!("k{}", rng.below(10)),
        1 => format!("k{}", rng.below(200)),
        _ => "k".to_owned(),
    };
    Some(ScanAsk {
        range: KeyRange::of_prefix(prefix.as_bytes()),
        reverse: rng.chance(1, 2),
        keys_only: false,
        items_max: if rng.chance(1, 2) { rng.between(1, 30) as u32 } else { 1_000 },
        bytes_max: if rng.chance(1, 4) { rng.between(1, 5_000) as u32 } else { 1 << 20 },
        fill: if rng.chance(1, 2) { PageFill::Whole } else { PageFill::Shares },
    })
}

impl AskedScan {
    pub(crate) fn request(&self) -> Request {
        Request::Scan(self.ask.clone())
    }

    /// The page as reads of every key that it covers.
    ///
    /// # Errors
    /// If no node may ever answer that.
    pub(crate) fn reads(&self, page: &ScanPage, workload: &Workload, now: Moment) -> Result<Vec<Operation>, String> {
        let AskedScan { client, ask, invoked } = self;
        let in_order =
            |pair: &[flotilla_node::scan::ScanItem]| if ask.reverse { pair[0].key > pair[1].key } else { pair[0].key < pair[1].key };
        if !page.items.windows(2).all(in_order) {
            return Err(format!("{ask:?} was answered out of order: {:?}", page.items));
        }
        let bytes: usize = page.items.iter().map(flotilla_node::scan::ScanItem::bytes).sum();
        if page.items.len() > ask.items_max as usize || (bytes > ask.bytes_max as usize && page.items.len() > 1) {
            return Err(format!("{ask:?} was answered with {} items of {bytes} bytes", page.items.len()));
        }
        let mut found = BTreeMap::new();
        for item in &page.items {
            let name = std::str::from_utf8(item.key.as_bytes()).ok().and_then(|name| name.strip_prefix('k')?.parse().ok());
            let (Some(number), Some(bytes)) = (name, &item.value) else { return Err(format!("{ask:?} found {item:?}")) };
            // Counters hold what nobody wrote; other checks are about them.
            if Workload::is_counter(KeyNumber(number)) {
                continue;
            }
            let Some(value) = workload.value(bytes) else { return Err(format!("a scan found bytes under {} that nobody wrote", item.key)) };
            if !ask.range.contains(item.key.as_bytes()) || page.rest.as_ref().is_some_and(|rest| rest.contains(item.key.as_bytes())) {
                return Err(format!("{ask:?} found {} and goes on with {:?}", item.key, page.rest));
            }
            found.insert(KeyNumber(number), Answer::Value { version: item.version.0, value });
        }
        let covers = |key: &KeyNumber| {
            let key = Workload::key(*key);
            ask.range.contains(key.as_bytes()) && page.rest.as_ref().is_none_or(|rest| !rest.contains(key.as_bytes()))
        };
        let absent = (0..workload.key_count()).map(KeyNumber).filter(|key| covers(key) && !found.contains_key(key));
        let absent: Vec<_> = absent.map(|key| (key, Answer::Absent)).collect();
        let read = |(key, answer)| Operation { client: *client, key, call: Call::Get, invoked: *invoked, returned: Some(now), answer };
        Ok(found.into_iter().chain(absent).map(read).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Guard, ValueNumber};
    use crate::workload::WorkloadConfig;
    use flotilla_node::scan::ScanItem;
    use flotilla_types::Version;

    #[test]
    fn a_page_says_something_of_every_key_that_it_covers() {
        let config = WorkloadConfig {
            clients: 1,
            hot_keys: 4,
            cold_keys: 0,
            hot_percent: 100,
            get_percent: 0,
            delete_percent: 0,
            guard_percent: 0,
            increment_percent: 0,
            lend_percent: 0,
            think_ms_max: 1,
            timeout_ms: (1, 1),
            value_bytes_max: 9,
        };
        let mut workload = Workload::new(config);
        let Call::Put { value, .. } = workload.put(Guard::Always, &mut Rng::new(1)) else { panic!("it is a put") };
        let item = |number| ScanItem { key: Workload::key(KeyNumber(number)), version: Version(7), value: Some(workload.bytes(value)) };
        let fill = PageFill::Whole;
        let ask = ScanAsk { range: KeyRange::of_prefix(b"k"), reverse: false, keys_only: false, items_max: 2, bytes_max: 9_999, fill };
        let asked = AskedScan { client: 0, ask, invoked: Moment(1) };
        let reads = |items: Vec<ScanItem>, rest| {
            let reads = asked.reads(&ScanPage { items, rest }, &workload, Moment(2))?;
            Ok::<_, String>(reads.into_iter().map(|read| (read.key.0, read.answer)).collect::<Vec<_>>())
        };
        let there = Answer::Value { version: 7, value: ValueNumber(1) };
        let rest = asked.ask.range.behind(b"k2");
        assert_eq!(reads(vec![item(2)], Some(rest.clone())), Ok(vec![(2, there), (0, Answer::Absent), (1, Answer::Absent)]));
        assert_eq!(reads(vec![item(2)], None).map(|reads| reads.len()), Ok(4));
        assert!(reads(vec![item(2), item(1)], None).is_err(), "out of order");
        assert!(reads(vec![item(1), item(2), item(3)], None).is_err(), "too many");
        assert!(reads(vec![item(3)], Some(rest)).is_err(), "behind its own end");
    }
}
