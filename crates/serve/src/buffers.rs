// SPDX-License-Identifier: Apache-2.0
//! Buffers that sockets are read into, used again.
//!
//! Payloads are slices of these buffers and stay in layers until their segment is in the store; then a whole layer's buffers fall free at
//! once. Given back to the system and asked for again, each page of them would be cleared by the kernel anew, on the shard's thread: a
//! quarter of the cost of a sequential write. So the handle of a spent buffer is kept, and when no payload of it is left, it is filled again.
//!
//! One row a thread, oldest first, of at most [`MOST`] bytes in all, payloads that still live included: beyond that a buffer is simply
//! forgotten, and goes with its last payload. [`trim`] gives back what nobody wanted for a while.

use bytes::BytesMut;
use std::cell::RefCell;
use std::collections::VecDeque;

/// Bytes of buffers whose handles are kept, on each thread.
const MOST: usize = 512 << 20;
/// Handles that are looked at for one buffer.
const LOOKS: usize = 4;

#[derive(Default)]
struct Spent {
    /// Each with the bytes of its allocation.
    row: VecDeque<(usize, BytesMut)>,
    bytes: usize,
    wanted: bool,
}

thread_local! {
    static SPENT: RefCell<Spent> = RefCell::default();
}

/// An empty buffer of at least `room` bytes, and the bytes of its allocation.
pub(crate) fn take(room: usize) -> (usize, BytesMut) {
    SPENT.with_borrow_mut(|spent| spent.take(room)).unwrap_or_else(|| {
        let buffer = BytesMut::with_capacity(room);
        (buffer.capacity(), buffer)
    })
}

/// Takes back a buffer of `allocated` bytes whose payloads have been cut off.
pub(crate) fn give(allocated: usize, buffer: BytesMut) {
    SPENT.with_borrow_mut(|spent| spent.give(allocated, buffer));
}

/// Gives back what is free, if no buffer was asked for since the last call.
pub fn trim() {
    SPENT.with_borrow_mut(Spent::trim);
}

impl Spent {
    fn take(&mut self, room: usize) -> Option<(usize, BytesMut)> {
        self.wanted = true;
        for _ in 0..LOOKS {
            let (allocated, mut buffer) = self.row.pop_front()?;
            buffer.clear();
            if !buffer.try_reclaim(allocated) {
                self.row.push_back((allocated, buffer));
                continue;
            }
            self.bytes -= allocated;
            // One of another size comes from other requests than there are now; it goes.
            if (room..=2 * room).contains(&allocated) {
                return Some((allocated, buffer));
            }
        }
        None
    }

    fn give(&mut self, allocated: usize, buffer: BytesMut) {
        if allocated > 0 && self.bytes + allocated <= MOST {
            self.bytes += allocated;
            self.row.push_back((allocated, buffer));
        }
    }

    fn trim(&mut self) {
        if std::mem::take(&mut self.wanted) {
            return;
        }
        let bytes = &mut self.bytes;
        self.row.retain_mut(|(allocated, buffer)| {
            buffer.clear();
            let free = buffer.try_reclaim(*allocated);
            if free {
                *bytes -= *allocated;
            }
            !free
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(row: &mut Spent, size: usize) -> bytes::Bytes {
        let (allocated, mut buffer) = row.take(size).unwrap_or_else(|| (size, BytesMut::with_capacity(size)));
        buffer.resize(size, 7);
        let payload = buffer.split().freeze();
        row.give(allocated, buffer);
        payload
    }

    #[test]
    fn a_buffer_is_used_again_only_when_its_payloads_are_gone() {
        let mut row = Spent::default();
        let first = spent(&mut row, 1000);
        let place = first.as_ptr();
        let second = spent(&mut row, 1000);
        assert_ne!(second.as_ptr(), place, "the first payload lives");
        assert!(first.iter().all(|byte| *byte == 7));
        drop(first);
        let (_, buffer) = row.take(1000).expect("one is free");
        assert_eq!((buffer.as_ptr(), buffer.len(), buffer.capacity()), (place, 0, 1000));
    }

    #[test]
    fn the_row_is_bounded_and_sizes_change() {
        let mut row = Spent::default();
        let mut held = Vec::new();
        for _ in 0..10 {
            held.push(spent(&mut row, 1000));
        }
        row.give(MOST, BytesMut::new());
        assert_eq!((row.row.len(), row.bytes), (10, 10_000), "what is too much is forgotten");
        drop(held);
        // Requests have become larger: none of the old buffers fits, and all go.
        for _ in 0..3 {
            assert!(row.take(5000).is_none());
        }
        assert_eq!((row.row.len(), row.bytes), (0, 0));
    }

    #[test]
    fn what_nobody_wants_is_given_back() {
        let mut row = Spent::default();
        let held = spent(&mut row, 1000);
        drop(spent(&mut row, 1000));
        row.trim();
        assert_eq!(row.bytes, 2000, "it was wanted since the last time");
        row.trim();
        assert_eq!(row.bytes, 1000, "a payload of one lives");
        drop(held);
        row.trim();
        assert_eq!((row.bytes, row.row.len()), (0, 0));
    }
}
