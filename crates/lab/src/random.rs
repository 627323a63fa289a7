// SPDX-License-Identifier: Apache-2.0
//! Choices of a load that can be made again: the same seed gives the same ones. Who makes them prints the seed.
//!
//! xorshift64* (S. Vigna: An experimental exploration of Marsaglia's xorshift generators, scrambled, ACM TOMS 42(4), 2016). Nothing here is secret.

use std::hash::{BuildHasher, Hasher, RandomState};

/// See the module.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Those of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A seed that is another each time, or `VARVE_SEED`.
    #[must_use]
    #[allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "a load is another each time unless a person says so"
    )]
    pub fn seed() -> u64 {
        let given = std::env::var("VARVE_SEED").ok().and_then(|seed| seed.parse().ok());
        given.unwrap_or_else(|| RandomState::new().build_hasher().finish())
    }

    /// The next number, of 53 bits.
    #[allow(clippy::should_implement_trait, reason = "it has no end, and nobody iterates over it")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// One of `0..below`.
    pub fn below(&mut self, below: u64) -> u64 {
        self.next() % below
    }

    /// Puts things in an order that nobody expects.
    pub fn shuffle<T>(&mut self, things: &mut [T]) {
        for at in (1..things.len()).rev() {
            things.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}
