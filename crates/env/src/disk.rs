// SPDX-License-Identifier: Apache-2.0
//! A disk, or a preallocated file used as one: where a journal lies.

use crate::LocalFuture;
use bytes::Bytes;
use std::io::{self, IoSlice};
use std::ops::Range;

/// A fixed number of bytes that can be written anywhere, and made durable.
///
/// What `write_at` took survives the death of the process; what a later successful [`sync`](Disk::sync) covered survives the loss of power. After a
/// failed sync nothing is known of the writes before it, and a second sync that succeeds proves nothing about them.
pub trait Disk {
    /// Size in bytes. Does not change.
    fn len(&self) -> u64;

    /// Whether it has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands the parts, one behind the other, to the kernel. Returns once the kernel has all of them; does not wait for the device.
    ///
    /// # Errors
    /// When the kernel refuses, or the range lies beyond the end. The range may then be written in part.
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// Hints that what was written in the range should go to the device soon. No promise.
    fn start_writeback(&self, offset: u64, len: u64);

    /// Makes everything durable that `write_at` took before this call.
    fn sync(&self) -> LocalFuture<io::Result<()>>;

    /// Makes durable what reads of the ranges give now, whatever became of it before. A sync that failed, of an earlier process too, can leave in memory what
    /// the medium does not hold, and what no later [`sync`](Disk::sync) writes: whoever builds on what he has read asks for this instead.
    fn settle(&self, ranges: Vec<Range<u64>>) -> LocalFuture<io::Result<()>>;

    /// Reads exactly `len` bytes at `offset`.
    fn read_at(&self, offset: u64, len: usize) -> LocalFuture<io::Result<Bytes>>;
}
