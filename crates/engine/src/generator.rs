// SPDX-License-Identifier: Apache-2.0
//! Segments that nobody wrote: how a measuring program fills a volume that no disk at hand could hold.
//!
//! A generated segment enters where a put one does, at the end of the row of sealed layers, and counts, waits for
//! a full overlay and causes checkpoints as that does. So the
//! map, the segment table, the kills and the checkpoints are those of a volume that was written; only layer and
//! journal are passed by, and the program's own store
//! answers for the object's bytes. Built with the feature `generator` alone, which nothing that ships turns on.
//!
//! Always holds: a generated segment takes the next ordinal and as many sequence numbers as it has blocks, so rows
//! and ranges stay unbroken.
//!
//! After a crash a generated segment is found again like any other: by its name, in the store.

use crate::context::damaged;
use crate::layer::Layer;
use crate::seal::PutSegment;
use crate::timeline::{PutState, Sealed, Timeline};
use crate::volume::Volume;
use crate::{EngineError, Result, Shard};
use std::rc::Rc;
use varve_format::ObjectKind;
use varve_format::chunk::RAW_BLOCK;
use varve_format::segment::{Codec, SegmentFacts, SegmentHeader, SegmentIndex, encode_head};
use varve_types::{Ordinal, Sequence};

impl Shard {
    /// Flips a bit of a cached block, chosen by `place`, as RAM that fails does. Tells whether there was one.
    pub fn spoil_cache(&self, place: u64) -> bool {
        self.context.cache.borrow_mut().spoil(place)
    }
}

impl Volume {
    /// Takes in a segment of raw blocks that stands in the store under the name that `announce` is told the facts
    /// of, and waits until it counts. Its blocks can be
    /// read from then on.
    ///
    /// # Errors
    /// `Invalid` for an index without data, or with holes, marks or chunks; those of a volume that has stopped.
    pub async fn take_generated(&self, index: SegmentIndex, announce: impl FnOnce(&SegmentFacts)) -> Result<()> {
        self.shown().take_generated(index, announce).await
    }

    /// Puts what is in layers, and merges all that counts into the map.
    ///
    /// # Errors
    /// Those of a checkpoint.
    pub async fn merge_all(&self) -> Result<()> {
        let timeline = self.shown();
        timeline.drain().await?;
        timeline.checkpoint().await
    }
}

impl Timeline {
    async fn take_generated(self: &Rc<Self>, index: SegmentIndex, announce: impl FnOnce(&SegmentFacts)) -> Result<()> {
        let blocks: u64 = index.extents.iter().map(|extent| extent.blocks).sum();
        let plain = index.marks.is_empty() && index.chunks.is_empty() && index.extents.iter().all(|e| !e.hole);
        if blocks == 0 || !plain {
            return Err(EngineError::invalid("a generated segment has raw blocks and nothing else"));
        }
        self.seal_now();
        let last = {
            let mut data = self.data.borrow_mut();
            data.check()?;
            let (ordinal, first): (Ordinal, Sequence) = (data.next_ordinal, data.last.next());
            let last = Sequence(data.last.0 + blocks);
            let facts = SegmentFacts {
                timeline: self.id,
                ordinal,
                epoch: self.epoch,
                writer: self.writer,
                stream_epoch: self.epoch,
                first,
                last,
                sealed_ms: self.context.now_ms(),
            };
            let name = self.object(ObjectKind::Segment, ordinal.0, 0);
            let head = encode_head(&facts, Codec::Raw, &index, blocks * RAW_BLOCK as u64);
            let header = SegmentHeader::decode(&head).map_err(damaged(name))?;
            announce(&facts);
            data.next_ordinal = ordinal.next();
            data.last = last;
            data.touched = self.context.env.now();
            let put = PutState::Done(Box::new(PutSegment { name, header, index }));
            data.sealed.push_back(Sealed { ordinal, layer: Layer::new(self.epoch), put });
            last
        };
        self.count_ready();
        self.checkpoint_if_due();
        self.until_counted(last).await
    }
}
