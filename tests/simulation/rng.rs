//! Randomness from one seed: every concern draws from a stream of its own, so that one more draw here changes nothing
//! there.

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

    /// Mostly small, sometimes up to `max`.
    pub fn size(&mut self, max: usize) -> usize {
        let max = if self.chance(85) { max.min(200) } else { max };
        self.below(max + 1)
    }
}

/// FNV-1a over whatever happened.
pub struct Trace(pub u64);

impl Trace {
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub fn number(&mut self, number: u64) {
        self.add(&number.to_le_bytes());
    }
}
