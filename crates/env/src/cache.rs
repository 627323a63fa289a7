// SPDX-License-Identifier: Apache-2.0
//! A device for copies of what is elsewhere too: where a read cache lies.

use crate::LocalFuture;
use bytes::Bytes;
use std::io;

/// A fixed number of bytes that may be lost at any time, of which nobody waits to be durable.
///
/// Neither call may hold up the thread of the caller: a device that hangs is a future that does not end.
pub trait CacheDevice {
    /// Size in bytes. Does not change.
    fn len(&self) -> u64;

    /// Whether it has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads exactly `len` bytes at `offset`; both are multiples of 4096.
    fn read_at(&self, offset: u64, len: usize) -> LocalFuture<io::Result<Bytes>>;

    /// Writes at `offset`; it and the length are multiples of 4096. When it fails any part may be written.
    fn write_at(&self, offset: u64, data: Bytes) -> LocalFuture<io::Result<()>>;
}
