// SPDX-License-Identifier: Apache-2.0
//! What tells one protocol of requests and replies from another.

use bytes::BytesMut;
use varve_block::{BlockDevice, Position};
use varve_types::ErrorKind;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Give bytes.
    Read,
    /// Take bytes.
    Write,
    /// Make what was answered stable.
    Flush,
    /// Free a range.
    Discard,
    /// Make a range zero.
    WriteZeroes,
    /// Tell what a range holds.
    Status,
    /// Bring a range into the cache.
    Prefetch,
    /// Answer at once, whatever else waits.
    Ping,
    /// The client leaves: the last request.
    Leave,
}

/// A request, in whatever protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// What its client calls it.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes; of a read or a write at most 2^32 − 1.
    pub length: u64,
    /// Of a change: answer when it is on stable media.
    pub fua: bool,
    /// Of a status: one extent. Of a read: its data in one piece.
    pub one: bool,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of the error.
    pub kind: ErrorKind,
    /// Why.
    pub text: &'static str,
}

/// A protocol: how requests and replies look. Decoding allocates nothing; everything that is put is appended to `out`.
pub trait Dialect {
    /// A request without its payload, as it was sent.
    type Head: Copy;
    /// Bytes of it.
    const HEAD_BYTES: usize;

    /// The request at the beginning of `bytes`, or none while there are too few.
    ///
    /// # Errors
    /// What is wrong with them: nothing behind them can be understood.
    fn decode(&self, bytes: &[u8]) -> Result<Option<Self::Head>, String>;

    /// Bytes of its payload.
    fn payload(&self, head: &Self::Head) -> u64;

    /// Whether it may be acted on.
    ///
    /// # Errors
    /// Why not.
    fn check(&self, head: &Self::Head, device: &dyn BlockDevice) -> Result<(), Refusal>;

    /// Proves its payload.
    ///
    /// # Errors
    /// What is wrong with it: nothing of this connection is to be believed any more.
    fn prove(&self, head: &Self::Head, payload: &[u8]) -> Result<(), String>;

    /// What it asks for.
    fn request(&self, head: &Self::Head) -> Request;

    /// Who is served with what, for logs.
    fn name(&self) -> &str;

    /// Whether the data of a large read may be told in pieces.
    fn pieces(&self) -> bool;

    /// Puts the success of a request whose reply has no data.
    fn put_done(&self, out: &mut BytesMut, cookie: u64, at: Position);

    /// Puts the success of a request of no bytes.
    fn put_nothing(&self, out: &mut BytesMut, cookie: u64, at: Position) {
        self.put_done(out, cookie, at);
    }

    /// Puts a failure; of one piece of a read where `piece` says at which offset, and whether it is the last.
    fn put_failed(&self, out: &mut BytesMut, cookie: u64, failed: Failed<'_>, at: Position);

    /// Bytes that [`put_data_head`](Self::put_data_head) puts.
    fn data_head_bytes(&self) -> usize;

    /// Puts what stands before `length` bytes of data; `last` if no piece follows.
    fn put_data_head(&self, out: &mut BytesMut, cookie: u64, offset: u64, length: u32, last: bool, at: Position);

    /// The data stand behind their head now; `reply` is both.
    fn end_data(&self, reply: &mut [u8]) {
        let _ = reply;
    }

    /// Puts the extents of a range: the length of each, and whether it is a hole.
    fn put_status(&self, out: &mut BytesMut, cookie: u64, extents: &[(u64, bool)], at: Position);

    /// The size of the device that the client was told, in bytes.
    fn told_size(&self, device: &dyn BlockDevice) -> u64 {
        device.size()
    }

    /// Puts the new size of the device, in bytes, where the protocol can tell it unasked.
    fn put_size(&self, out: &mut BytesMut, size: u64, at: Position) {
        let _ = (out, size, at);
    }
}

/// A failure, to be told.
#[derive(Clone, Copy, Debug)]
pub struct Failed<'a> {
    /// The kind of the error.
    pub kind: ErrorKind,
    /// What went wrong.
    pub text: &'a str,
    /// Of one piece of a read: its offset, and whether no other piece follows.
    pub piece: Option<(u64, bool)>,
}
