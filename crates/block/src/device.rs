// SPDX-License-Identifier: Apache-2.0
//! What a front end (NBD and those that come later) sees: a block device on the shard's own thread.
//!
//! Calls are made in the order of the requests of a connection. Most end at once ([`Submit::Done`]): no task, no
//! allocation. What has to wait for a store, a sync or room ends in a future ([`Submit::Later`]) that the front end
//! polls beside its other work; it needs no further call on the device to make progress, and dropping it harms
//! nothing (the operation may or may not happen then).
//!
//! **Commit.** A write, discard or write-zeroes that is `Done` is applied and ordered, but may be answered to the
//! client only after a [`commit`](BlockDevice::commit) behind it came to `Ok`: a front end handles a batch of requests,
//! commits once, then sends all answers. A `Later` that completed needs no commit.
//!
//! A commit may have to wait too, for another node that has to have the records, say. It begins with the call, and covers what was done between the one
//! before it and itself. Requests behind it go on meanwhile, other commits among them, which may complete before it. A flush behind it covers all
//! that it covers: the device sees to the order, so nobody has to wait for a commit before a flush.

use crate::Result;
use bytes::{Bytes, BytesMut};
use varve_env::LocalFuture;
use varve_types::Sequence;

/// The future of an operation that has to wait.
pub type Later<T> = LocalFuture<Result<T>>;

/// How a request went: done at once, or to be waited for.
pub enum Submit<T> {
    /// It is done.
    Done(Result<T>),
    /// It has to wait.
    Later(Later<T>),
}

impl<T> Submit<T> {
    /// Waits until it is done, if it has to wait.
    ///
    /// # Errors
    /// What the operation came to.
    pub async fn wait(self) -> Result<T> {
        match self {
            Self::Done(done) => done,
            Self::Later(later) => later.await,
        }
    }
}

/// How far a device has come: numbers of its changes, which grow as long as it is open. A device that does not number them is always at the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The last change that was made.
    pub sequence: Sequence,
    /// The last one of which, and of all before it, nothing can be lost any more.
    pub safe: Sequence,
}

/// A run of bytes in the same state, as block status tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Length in bytes, a multiple of 512.
    pub len: u64,
    /// Whether nothing is stored there; it then reads as zeroes.
    pub hole: bool,
}

/// A block device. Offsets and lengths are bytes, multiples of 512, inside the device: else the answer is `Invalid` and nothing happens.
pub trait BlockDevice {
    /// Size in bytes, now; it may change while the device is open.
    fn size(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Reads `len` bytes. `Done(Ok)` has appended exactly `len` bytes to `out`, and its own `Bytes` is empty; `Done(Err)` and `Later` have
    /// left `out` as it was, and the future gives the bytes.
    fn read(&self, offset: u64, len: u32, out: &mut BytesMut) -> Submit<Bytes>;

    /// Writes `data`; with `fua` the answer means that it is on stable media.
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Submit<()>;

    /// Everything answered before this call is on stable media when it completes.
    fn flush(&self) -> Submit<()>;

    /// Frees the range; it reads as zeroes afterwards. Parts of blocks at its ends are written as zeroes.
    fn discard(&self, offset: u64, len: u64, fua: bool) -> Submit<()>;

    /// Makes the range read as zeroes. Costs no space in this engine: the same as a discard, which is always fast.
    fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> Submit<()> {
        self.discard(offset, len, fua)
    }

    /// The state of the range from `offset`, in at most `most` extents that cover a first part of it or all; never empty for `len > 0`.
    fn block_status(&self, offset: u64, len: u64, most: usize) -> Submit<Vec<StatusExtent>>;

    /// How far it has come.
    fn position(&self) -> Position {
        Position::default()
    }

    /// Brings the range into the cache, if that is of use.
    fn prefetch(&self, offset: u64, len: u64) -> Submit<()>;

    /// See the module: completes before the answers of applied writes are sent. An error means that the requests since the last commit have failed: the
    /// journal could not take the records, say.
    fn commit(&self) -> Submit<()>;
}
