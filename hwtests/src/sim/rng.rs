//! The simulator's own source of chance: the same seed gives the same numbers on every machine.

/// SplitMix64: one word of state, good enough to draw graphs and faults from.
#[derive(Clone, Debug)]
pub struct Rng(u64);

/// Mixes words into one; the simulator's stand-in for what functions compute.
pub fn mix(words: &[u64]) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for &word in words {
        state = finish(state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
    finish(state)
}

const fn finish(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// Starts at `seed`.
    pub const fn new(seed: u64) -> Self {
        Rng(seed)
    }
    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        finish(self.0)
    }
    /// A number below `end` (0 if that is 0).
    pub fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.bits() % end }
    }
    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}
