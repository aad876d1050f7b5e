//! Randomness from one seed: every concern draws from a stream of its own, so that one more draw here changes nothing
//! there.

use rustc_hash::FxHasher;
use std::hash::Hasher;

/// SplitMix64.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    /// The stream of `concern` number `index`.
    pub fn stream(seed: u64, concern: u64, index: u64) -> Self {
        let mut rng = Self(seed ^ concern.wrapping_mul(0xA076_1D64_78BD_642F));
        let mixed = rng.next() ^ index.wrapping_mul(0xE703_7ED1_A0B4_28DB);
        Self(mixed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// From `low` up to and with `high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True in `percent` of 100.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// True in `rate` of 10,000.
    pub fn now_and_then(&mut self, rate: usize) -> bool {
        self.below(10_000) < rate
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Mostly small, sometimes up to `max`.
    pub fn size(&mut self, max: usize) -> usize {
        let max = if self.chance(85) { max.min(200) } else { max };
        self.below(max + 1)
    }
}

/// A hash of whatever happened, in order.
#[derive(Default)]
pub struct Trace(FxHasher);

impl Trace {
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub fn number(&mut self, number: u64) {
        self.0.write_u64(number);
    }

    pub fn hash(&self) -> u64 {
        self.0.finish()
    }
}
