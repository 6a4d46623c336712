//! From key to shard (decision 6): fixed for the life of a cluster.

use flotilla_types::{Key, SLOT_COUNT, ShardId, Slot};

/// The shard that holds a key: slot x shards / 16384.
pub fn shard_of(key: &Key, shards_total: u32) -> ShardId {
    shard_of_slot(key.slot(), shards_total)
}

/// The shard that holds a slot.
pub fn shard_of_slot(slot: Slot, shards_total: u32) -> ShardId {
    ShardId(u32::from(slot.0) * shards_total / SLOT_COUNT)
}

/// The first and the last slot of a shard.
pub fn slots_of(shard: ShardId, shards_total: u32) -> (Slot, Slot) {
    let first = |shard: u32| (u64::from(shard) * u64::from(SLOT_COUNT)).div_ceil(u64::from(shards_total));
    let (low, next) = (first(shard.0), first(shard.0 + 1));
    (Slot(low as u16), Slot((next - 1) as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_lies_in_the_run_of_its_shard() {
        for shards_total in [1, 3, 64, 100, 16_384] {
            for slot in (0..SLOT_COUNT as u16).map(Slot) {
                let (first, last) = slots_of(shard_of_slot(slot, shards_total), shards_total);
                assert!(first <= slot && slot <= last, "slot {slot:?} of {shards_total} shards");
            }
        }
    }
}
