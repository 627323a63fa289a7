// SPDX-License-Identifier: Apache-2.0
//! What the fuzz targets ask of every decoder of bytes from a disk, a network or a person.
//!
//! Each module has one `check`: it takes any bytes, has them decoded, and asserts what must hold of whatever came out. The targets below
//! `targets` hand the fuzzer's bytes to it; `seeds` makes the inputs that the corpus began with, from real encoders. `docs/testing.md` says how
//! all of it is run.
//!
//! What is asserted everywhere: nothing panics; what decodes encodes again to bytes that decode to the same; a decoder allocates no more than a
//! small multiple of its input ([`bounded`]). Where a form is canonical, its bytes come back exactly.
//!
//! An input begins with a byte that chooses a decoder of the target. Structures with a checksum come in two choices, as they are and
//! *mended*: with the checksum made right, for else nothing behind it would ever be reached.

#![allow(clippy::unwrap_used, reason = "an assertion of a fuzz target is a finding")]

pub mod bundle;
pub mod config;
pub mod coord;
pub mod edge;
pub mod journal;
pub mod manifest;
pub mod nbd;
pub mod node;
pub mod page;
pub mod replay;
pub mod samples;
pub mod seeds;
pub mod segment;
pub mod text;

use arbitrary::{Arbitrary, Unstructured};
use peak_alloc::PeakAlloc;
use varve_types::{Epoch, Ordinal, TimelineId, WriterId};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What a decoder may allocate for a byte of its input: items of a list take more room in RAM than in their stored form, and a list doubles.
const BYTES_A_BYTE: usize = 64;
/// What it may allocate besides.
const BYTES_BESIDE: usize = 64 << 10;

/// Runs a decoder over `len` bytes and asserts that it never held more than a small multiple of them.
pub fn bounded<T>(len: usize, decode: impl FnOnce() -> T) -> T {
    bounded_by(len * BYTES_A_BYTE + BYTES_BESIDE, decode)
}

/// Runs a decoder and asserts that it never held more than `most` bytes.
pub fn bounded_by<T>(most: usize, decode: impl FnOnce() -> T) -> T {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let value = decode();
    let held = MEMORY.peak_usage().saturating_sub(before);
    assert!(held <= most, "a decoder held {held} bytes where {most} are allowed");
    value
}

/// The choice that an input begins with, of so many, and the rest of it.
#[must_use]
pub fn choose(data: &[u8], choices: u8) -> Option<(u8, &[u8])> {
    let (choice, rest) = data.split_first()?;
    Some((choice % choices, rest))
}

/// The `N` bytes at `at`, zeroes where there are none.
#[must_use]
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    for (to, from) in array.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    array
}

/// Writes a checksum, or another small number, where it belongs, if the bytes reach so far.
pub fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}

/// A made-up value of any type that can be made up; `None` when the bytes are too few for it.
pub fn made_up<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> Option<T> {
    Unstructured::new(bytes).arbitrary().ok()
}

/// An ordinal that a segment can have.
#[must_use]
pub const fn ordinal(raw: u64) -> Ordinal {
    Ordinal(raw & ((1 << 36) - 1))
}

/// The timeline, epoch and writer of what is made up here.
#[must_use]
pub const fn owner() -> (TimelineId, Epoch, WriterId) {
    (TimelineId::from_bytes([2; 16]), Epoch(4), WriterId(77))
}
