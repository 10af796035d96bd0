//! Randomness from a seed: small, fast, the same on every machine. Each part of the world draws from a stream of its own, so that taking
//! a kind of fault away changes as little of the rest as can be.

use std::time::Duration;

/// A stream of numbers (xorshift over a splitmix seed).
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// A stream.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: mix(seed) | 1 }
    }

    /// The stream of this part of the world.
    #[must_use]
    pub fn of(seed: u64, part: &str) -> Self {
        let part = part.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        Self::new(seed ^ part)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        mix(self.state)
    }

    /// A number below `bound` (0 for 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// True in `of` of a thousand cases.
    pub fn per_mille(&mut self, of: u64) -> bool {
        self.below(1000) < of
    }

    /// A span between the two, in microseconds.
    pub fn span(&mut self, from: Duration, to: Duration) -> Duration {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(micros(from) + self.below(micros(to).saturating_sub(micros(from)) + 1))
    }

    /// A span between the two, in milliseconds.
    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        self.span(Duration::from_millis(from), Duration::from_millis(to))
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }
}

fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
