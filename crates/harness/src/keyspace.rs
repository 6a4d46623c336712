//! Keys that lie in a shard of one's choice.

use flotilla::load::shard_of;
use flotilla_types::Key;

/// A hash tag for each of `shard_count` shards: a key that holds it in braces lies in that shard.
pub fn tag_of_each_shard(shard_count: usize) -> Vec<String> {
    let mut tags = vec![None; shard_count];
    let mut missing = shard_count;
    for number in 0u64.. {
        let tag = format!("t{number}");
        let shard = shard_of(&Key::new(tag.clone()).expect("a short key"), shard_count);
        if tags[shard].is_none() {
            tags[shard] = Some(tag);
            missing -= 1;
        }
        if missing == 0 {
            break;
        }
    }
    tags.into_iter().map(|tag| tag.expect("the loop ends when none is missing")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_with_the_tag_lies_in_the_shard() {
        for (shard, tag) in tag_of_each_shard(64).iter().enumerate() {
            assert_eq!(shard_of(&Key::new(format!("w{{{tag}}}/7")).expect("short"), 64), shard);
        }
    }
}
