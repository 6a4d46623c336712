//! Inputs without a fuzzer: seeds, mutated by chance under a seed, so that a failure can be had again.

use flotilla_types::Rng;

/// Longer inputs are cut.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// Numbers at which decoders go wrong.
const EDGES: [u64; 12] = [0, 1, 2, 7, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, 0xffff_ffff_ffff_ffff];

/// A stream of inputs.
pub struct Inputs {
    seeds: Vec<Vec<u8>>,
    rng: Rng,
    input: Vec<u8>,
}

impl Inputs {
    /// Inputs made of these.
    pub fn new(mut seeds: Vec<Vec<u8>>, seed: u64) -> Inputs {
        seeds.push(Vec::new());
        Inputs { seeds, rng: Rng::new(seed), input: Vec::new() }
    }

    /// The next one.
    pub fn next_input(&mut self) -> &[u8] {
        let seed = self.any_seed();
        self.input.clone_from(&seed);
        for _ in 0..self.rng.between(1, 6) {
            self.mutate();
        }
        self.input.truncate(INPUT_BYTES_MAX);
        &self.input
    }

    fn any_seed(&mut self) -> Vec<u8> {
        self.rng.pick(&self.seeds).cloned().unwrap_or_default()
    }

    fn mutate(&mut self) {
        let length = self.input.len() as u64;
        let at = self.rng.below(length + 1) as usize;
        match self.rng.below(9) {
            0 if length > 0 => self.input[at.min(length as usize - 1)] ^= 1 << self.rng.below(8),
            1 if length > 0 => self.input[at.min(length as usize - 1)] = self.rng.next_u64() as u8,
            2 => self.input.truncate(at),
            3 => {
                let bytes = self.rng.next_u64().to_le_bytes();
                let count = self.rng.between(1, 8) as usize;
                self.input.splice(at..at, bytes[..count].iter().copied());
            }
            4 => {
                let end = at + self.rng.below(length - at as u64 + 1).min(16) as usize;
                self.input.drain(at..end);
            }
            5 => {
                let end = at + self.rng.below(length - at as u64 + 1) as usize;
                let copy = self.input[at..end].to_vec();
                self.input.extend_from_slice(&copy);
            }
            6 => {
                let other = self.any_seed();
                let from = self.rng.below(other.len() as u64 + 1) as usize;
                self.input.truncate(at);
                self.input.extend_from_slice(&other[from..]);
            }
            _ => {
                let edge = self.rng.pick(&EDGES).copied().unwrap_or_default();
                let width = 1 << self.rng.below(4);
                let end = (at + width).min(self.input.len());
                self.input.splice(at..end, edge.to_le_bytes()[..width].iter().copied());
            }
        }
    }
}
