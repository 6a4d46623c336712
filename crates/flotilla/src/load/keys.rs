//! Which key comes next.

use crate::cluster_view::ClusterView;
use flotilla_types::{Key, Rng, SLOT_COUNT};
use std::net::SocketAddr;

/// Zipf's exponent, as YCSB sets it.
const ZIPF_THETA: f64 = 0.99;

/// How often each key is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// All alike.
    Uniform,
    /// A few very often: Zipf's law with exponent 0.99.
    Zipfian,
}

/// Which target leads each shard.
#[derive(Clone, Debug)]
pub struct ShardMap {
    /// For each shard, the index of its leader among the targets.
    pub leaders: Vec<usize>,
}

/// Draws key numbers.
#[derive(Clone, Debug)]
pub struct KeyChooser {
    key_count: u64,
    zipf: Option<Zipf>,
}

/// The constants of Gray et al., "Quickly generating billion-record synthetic databases" (1994).
#[derive(Clone, Debug)]
struct Zipf {
    zeta: f64,
    alpha: f64,
    eta: f64,
}

impl KeyChooser {
    /// Chooses among `key_count` keys. Zipf's constants take one step a key.
    ///
    /// # Panics
    /// If there are no keys.
    pub fn new(key_count: u64, distribution: Distribution) -> KeyChooser {
        assert!(key_count > 0, "a load needs keys");
        let zipf = (distribution == Distribution::Zipfian).then(|| {
            let zeta: f64 = (1..=key_count).map(|rank| (rank as f64).powf(-ZIPF_THETA)).sum();
            let zeta_of_2 = 1.0 + 0.5f64.powf(ZIPF_THETA);
            let eta = (1.0 - (2.0 / key_count as f64).powf(1.0 - ZIPF_THETA)) / (1.0 - zeta_of_2 / zeta);
            Zipf { zeta, alpha: 1.0 / (1.0 - ZIPF_THETA), eta }
        });
        KeyChooser { key_count, zipf }
    }

    /// The next key's number.
    pub fn choose(&self, rng: &mut Rng) -> u64 {
        let Some(zipf) = &self.zipf else { return rng.below(self.key_count) };
        let unit = rng.unit();
        let rank = match unit * zipf.zeta {
            uz if uz < 1.0 => 0,
            uz if uz < 1.0 + 0.5f64.powf(ZIPF_THETA) => 1,
            _ => (self.key_count as f64 * (zipf.eta * unit - zipf.eta + 1.0).powf(zipf.alpha)) as u64,
        };
        // The most frequent keys are scattered over the key space, so that they are not neighbours.
        rank.min(self.key_count - 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) % self.key_count
    }
}

/// The key of that number. All have one length, so that requests can be formed ahead.
pub fn key_of(number: u64) -> String {
    format!("bench/{number:012}")
}

impl ShardMap {
    /// Where the leaders are, for targets given by their addresses.
    ///
    /// # Errors
    /// In words, if a shard has no leader, or its leader is none of the targets.
    pub fn of(cluster: &ClusterView, targets: &[SocketAddr]) -> Result<ShardMap, String> {
        let leader_of = |shard: &crate::cluster_view::ShardView| {
            let name = shard.leader.as_deref().ok_or_else(|| format!("shard {} has no leader", shard.id))?;
            let http = cluster.node(name).and_then(|node| node.http.as_deref()).unwrap_or_default();
            let at = targets.iter().position(|target| target.to_string() == http);
            at.ok_or_else(|| format!("shard {} is led by {name} at {http:?}, which is none of the endpoints", shard.id))
        };
        Ok(ShardMap { leaders: cluster.shards.iter().map(leader_of).collect::<Result<_, _>>()? })
    }

    /// The target that leads `key`.
    pub fn target_of(&self, key: &Key) -> usize {
        self.leaders[shard_of(key, self.leaders.len())]
    }
}

/// The shard a key belongs to, of `shard_count`.
pub fn shard_of(key: &Key, shard_count: usize) -> usize {
    usize::from(key.slot().0) * shard_count / SLOT_COUNT as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_prefers_few_keys_and_uniform_none() {
        let hottest = |distribution| {
            let (chooser, mut rng) = (KeyChooser::new(1000, distribution), Rng::new(1));
            let mut counts = vec![0u32; 1000];
            for _ in 0..100_000 {
                counts[chooser.choose(&mut rng) as usize] += 1;
            }
            counts.into_iter().max().expect("there are keys")
        };
        // 1/zeta(1000, 0.99) is 13 %; evenly it would be 0.1 %.
        assert!((11_000..15_000).contains(&hottest(Distribution::Zipfian)));
        assert!(hottest(Distribution::Uniform) < 200);
    }

    #[test]
    fn one_key_is_enough() {
        for distribution in [Distribution::Uniform, Distribution::Zipfian] {
            assert_eq!(KeyChooser::new(1, distribution).choose(&mut Rng::new(7)), 0);
        }
    }

    #[test]
    fn the_last_slot_is_in_the_last_shard() {
        let key = (0..).map(|n: u32| Key::new(n.to_string()).expect("short")).find(|key| u32::from(key.slot().0) == SLOT_COUNT - 1);
        assert_eq!(shard_of(&key.expect("some key has that slot"), 64), 63);
    }
}
