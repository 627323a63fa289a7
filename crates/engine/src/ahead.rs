// SPDX-License-Identifier: Apache-2.0
//! Read-ahead: who reads a volume from front to back finds what comes next in RAM.
//!
//! A few streams are known for each timeline: where each goes on, and up to where was read ahead. Reads of a stream may pass each
//! other a little, as those of a deep queue do. The first reads of one fetch nothing more than they ask for; from then on as much
//! again as was read so far, up to a bound, in parts that are fetched beside each other.
//!
//! Always holds: what is read ahead lies behind a read that was asked for, within the volume, and each part once; so many parts are on
//! their way at most in a shard. Who then wants what is on its way waits for it ([`crate::fetch`]).

use crate::timeline::Timeline;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use varve_types::branch::{Branch, reached};
use varve_types::{BLOCK, CacheMode};

/// Streams of a timeline that are told apart; of more, the one that was not seen for longest is forgotten.
const STREAMS: usize = 8;
/// Bytes that a read of a stream may be in front of, or behind, where it goes on.
const NEAR: u64 = 256 << 10;
/// Bytes that must be read of a stream before anything is read ahead.
const LEAST: u64 = 128 << 10;
/// Most bytes that are read ahead of a stream.
const MOST: u64 = 8 << 20;
/// Bytes of a part, which is fetched by itself.
const PART: u64 = 1 << 20;
/// Parts on their way in a shard, at most.
const MOST_PARTS: usize = 16;
/// Which part of the cache in RAM may be read ahead for one stream.
const CACHE_PART: u64 = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// Where it began.
    begin: u64,
    /// Where it goes on.
    next: u64,
    /// Up to where was read ahead.
    ahead: u64,
    /// Bytes that were read of it.
    bytes: u64,
}

/// The streams of a timeline, the one seen last in front.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    known: RefCell<Vec<Stream>>,
}

impl Streams {
    /// Takes in a read, of which `most` bytes may be read ahead; gives what is to be read ahead now.
    fn seen(&self, read: &Range<u64>, most: u64) -> Option<Range<u64>> {
        let mut known = self.known.borrow_mut();
        let goes_on = |stream: &Stream| {
            read.start <= stream.next + NEAR && stream.next.saturating_sub(NEAR).max(stream.begin) <= read.start
        };
        let Some(at) = known.iter().position(goes_on) else {
            known.truncate(STREAMS - 1);
            known
                .insert(0, Stream { begin: read.start, next: read.end, ahead: read.end, bytes: read.end - read.start });
            return None;
        };
        known[..=at].rotate_right(1);
        let stream = &mut known[0];
        stream.next = stream.next.max(read.end);
        stream.bytes += read.end - read.start;
        stream.ahead = stream.ahead.max(stream.next);
        let so_far = stream.next - stream.begin;
        let wanted = stream.next + so_far.min(most);
        // In parts, so that not each read asks for a little.
        // Who reads here and there comes near himself now and then.
        let is_dense = stream.bytes >= so_far / 2;
        if so_far < LEAST || !is_dense || wanted < stream.ahead + PART.min(so_far / 2).max(1) {
            return None;
        }
        Some(std::mem::replace(&mut stream.ahead, wanted)..wanted)
    }
}

impl Timeline {
    /// Takes in that a guest reads, and fetches what it will want next.
    pub fn note_read(self: &Rc<Self>, offset: u64, len: u64) {
        let most = MOST.min(self.context.limits.cache_ram / CACHE_PART);
        let Some(ahead) = self.streams.seen(&(offset..offset + len), most) else { return };
        if self.settings().cache == CacheMode::None {
            return;
        }
        let end = ahead.end.min(self.data.borrow().size);
        let mut at = ahead.start / BLOCK * BLOCK;
        while at < end {
            let part = (PART - at % PART).min(end - at);
            self.read_ahead(at, part);
            at += part;
        }
    }

    fn read_ahead(self: &Rc<Self>, offset: u64, len: u64) {
        let under_way = &self.context.fetches.ahead;
        if under_way.get() >= MOST_PARTS {
            return;
        }
        reached(Branch::ReadAhead);
        under_way.set(under_way.get() + 1);
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move {
            if let Err(error) = this.warm(offset, len).await {
                tracing::debug!(timeline = %this.id, %error, "nothing was read ahead");
            }
            let under_way: &Cell<usize> = &this.context.fetches.ahead;
            under_way.set(under_way.get() - 1);
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_stream_is_read_ahead_each_byte_once_and_never_far() {
        let (streams, mut ahead) = (Streams::default(), 0);
        for at in (0..64 * MIB).step_by(64 << 10) {
            let read = at..at + (64 << 10);
            if let Some(range) = streams.seen(&read, MOST) {
                assert!(range.start >= read.end && range.start == ahead.max(range.start), "{range:?} after {ahead}");
                assert!(range.end <= read.end + MOST && range.end - read.end <= read.end, "{range:?} for {read:?}");
                ahead = range.end;
            }
            assert!(at < MIB || ahead >= read.end + MIB.min(at / 4), "{ahead} at {at}");
        }
    }

    #[test]
    fn a_deep_queue_and_several_readers_are_streams_too() {
        let streams = Streams::default();
        let mut found = [0u64; 4];
        for step in 0..512u64 {
            for reader in 0..4u64 {
                // Two by two in the wrong order.
                let at = reader * (1 << 40) + (step ^ 1) * 16384;
                if let Some(range) = streams.seen(&(at..at + 16384), MOST) {
                    assert_eq!(range.start >> 40, reader);
                    found[reader as usize] += range.end - range.start;
                }
            }
        }
        assert!(found.iter().all(|bytes| *bytes > 8 * MIB), "{found:?}");
    }

    #[test]
    fn who_jumps_about_is_none() {
        let streams = Streams::default();
        let mut at = 1u64;
        for _ in 0..10_000 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let offset = (at >> 24) / 4096 * 4096;
            assert_eq!(streams.seen(&(offset..offset + 4096), MOST), None);
        }
        // One place again and again is none either.
        (0..1000).for_each(|_| assert_eq!(streams.seen(&(0..65536), MOST), None));
    }
}
