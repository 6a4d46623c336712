//! Fuzz targets: for every decoder a function that takes any bytes. It must not panic, not allocate beyond a bound, and what was
//! decoded must come out the same when it is encoded and decoded again.
//!
//! The functions are plain, so that they run in two ways: under libFuzzer, which follows the branches that an input takes
//! (`fuzz/`, needs nightly and cargo-fuzz), and on stable over mutated seeds ([`generate`]), which every machine can do.
//! `cargo xtask fuzz` chooses. Where a format has checksums the targets put them right first: what is behind them is the point.
//!
//! Left out: sockets and hyper's own parser, which its authors fuzz.

pub mod allocations;
pub mod generate;
mod targets;

pub use targets::TARGETS;

/// A decoder under test.
pub struct Target {
    /// Its name, also of its file in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Tries one input.
    pub run: fn(&[u8]),
    /// Inputs that are accepted, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target may allocate this much at once, and [`ALLOCATED_PER_BYTE`] for each byte of its input.
pub const ALLOCATED_MAX: usize = 8 << 20;
/// Decoded things are larger than their bytes, and are held twice to be compared.
pub const ALLOCATED_PER_BYTE: usize = 128;

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Tries one input, and that it costs no more memory than it may.
///
/// # Panics
/// If the target finds a fault, or if there is no such target.
pub fn run(name: &str, input: &[u8]) {
    let target = target(name).unwrap_or_else(|| panic!("there is no target {name}"));
    let peak = allocations::peak_of(|| (target.run)(input));
    let bound = ALLOCATED_MAX + ALLOCATED_PER_BYTE * input.len();
    assert!(peak <= bound, "{name} allocated {peak} bytes for an input of {}", input.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_target_takes_its_seeds_and_what_they_are_mutated_to() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{} has no seeds", target.name);
            seeds.iter().for_each(|seed| run(target.name, seed));
            let mut inputs = generate::Inputs::new(seeds, 1);
            (0..300).for_each(|_| run(target.name, inputs.next_input()));
        }
    }

    #[test]
    fn cargo_fuzz_knows_every_target() {
        let manifest = include_str!("../../../fuzz/Cargo.toml");
        let named: BTreeSet<&str> = manifest.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"')).collect();
        let targets: BTreeSet<&str> = TARGETS.iter().map(|target| target.name).chain(["flotilla-fuzz-targets"]).collect();
        assert_eq!(named, targets);
    }
}
