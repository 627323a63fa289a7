// SPDX-License-Identifier: Apache-2.0
//! Writing a root: its nodes go into map objects of their own, behind the merge that changes them.
//!
//! Once many nodes are dirty, those are written that end before the leaf at which the merge stands: nothing of them changes any more. A map
//! object is put when it has as many bytes as it may have, or as many records as an index can name. So what is dirty or on its way has a bound
//! that grows neither with the volume nor with what was written to it. Objects that are put and that no manifest names yet are known to the
//! timeline ([`Data::fresh_maps`](crate::timeline::Data)): their nodes may leave RAM, and are found again.
//!
//! Always holds: the indexes of a root grow, and its last object has room for all that may still come. A crash leaves objects that no
//! manifest names. A checkpoint that fails leaves the objects known: the tree leads to them until the volume is opened again.

use super::compact::budget;
use super::merge::{Gathered, SLICE};
use crate::Result;
use crate::map::WriteCursor;
use crate::overlay::Stratum;
use crate::signal::breathe;
use crate::timeline::Timeline;
use varve_format::manifest::MapObject;
use varve_format::page::{MAX_RECORDS, PageBuilder};
use varve_format::{NodePointer, ObjectKind};
use varve_types::RootNumber;
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};

/// Nodes above leaves that a root can write: all that there are.
pub(super) const MOST_INTERIOR: usize = 65_536 + 128 + 1;
/// Objects that a root can have.
const MOST_PARTS: usize = NodePointer::INDEX_END as usize / MAX_RECORDS;

/// A root that is being written.
pub(super) struct RootWriter {
    cursor: WriteCursor,
    parts: Parts,
    /// Most nodes that it can have.
    most: usize,
}

/// Its objects, as far as they are not put.
struct Parts {
    number: RootNumber,
    /// Those that have no room.
    full: Vec<PageBuilder>,
    /// The number of the one that nodes go to.
    part: u8,
    builder: PageBuilder,
}

impl Parts {
    fn new(timeline: &Timeline, number: RootNumber) -> Self {
        Self { number, full: Vec::new(), part: 0, builder: builder(timeline, number, 0) }
    }

    fn push(&mut self, timeline: &Timeline, index: u32, bytes: &[u8]) {
        if self.builder.count() as usize == MAX_RECORDS {
            self.end_part(timeline);
        }
        let record = self.builder.push(bytes);
        debug_assert_eq!(index, u32::from(self.part) << 16 | record);
    }

    fn end_part(&mut self, timeline: &Timeline) {
        self.part += 1;
        self.full.push(std::mem::replace(&mut self.builder, builder(timeline, self.number, self.part)));
    }

    /// The index of the first node of the object that nodes go to.
    fn first_index(&self) -> u32 {
        u32::from(self.part) << 16
    }
}

fn builder(timeline: &Timeline, number: RootNumber, part: u8) -> PageBuilder {
    PageBuilder::new(timeline.object(ObjectKind::Map, u64::from(number.0), part))
}

impl RootWriter {
    /// Writes a root that comes from merging `stratum`.
    pub fn new(timeline: &Timeline, number: RootNumber, stratum: &Stratum) -> Self {
        let cursor = WriteCursor::new(timeline.own, number, 0);
        Self { cursor, parts: Parts::new(timeline, number), most: stratum.leaves + budget(stratum) + MOST_INTERIOR }
    }

    /// Whether the object may end here: those behind it have room for every node that is not written.
    fn may_end_part(&self) -> bool {
        let rest = self.most.saturating_sub(self.cursor.nodes() as usize).max(1);
        rest <= (MOST_PARTS - 1 - usize::from(self.parts.part)) * MAX_RECORDS
    }
}

impl Timeline {
    /// Writes what is dirty before `leaf`, the next to be changed, if that is much.
    pub(super) async fn write_behind_if_due(
        &self,
        writer: &mut RootWriter,
        leaf: u64,
        gathered: &mut Gathered,
    ) -> Result<()> {
        if self.data.borrow().tree.dirty_nodes() < self.context.limits.map_dirty {
            return Ok(());
        }
        reached(Branch::RootWrittenBehind);
        loop {
            let done = {
                let RootWriter { cursor, parts, .. } = writer;
                let emit = &mut |index, _, _, bytes: &[u8]| parts.push(self, index, bytes);
                self.data.borrow_mut().tree.write_behind(cursor, leaf, SLICE, emit)
            };
            self.put_parts(writer, gathered).await?;
            if done {
                return Ok(());
            }
            breathe().await;
        }
    }

    /// Writes what is still dirty. Gives the place of the root.
    pub(super) async fn write_rest(&self, mut writer: RootWriter, gathered: &mut Gathered) -> Result<NodePointer> {
        let written = loop {
            let written = {
                let RootWriter { cursor, parts, .. } = &mut writer;
                let emit = &mut |index, _, _, bytes: &[u8]| parts.push(self, index, bytes);
                self.data.borrow_mut().tree.write_some(cursor, SLICE, emit)
            };
            self.put_parts(&mut writer, gathered).await?;
            if let Some(written) = written {
                break written;
            }
            breathe().await;
        };
        let Parts { number, builder, .. } = writer.parts;
        if !builder.is_empty() {
            self.put_map(number, builder, gathered).await?;
        }
        self.data.borrow_mut().tree.stored();
        Ok(written.root)
    }

    /// Puts the objects that are full, and the one that nodes go to if that is large.
    async fn put_parts(&self, writer: &mut RootWriter, gathered: &mut Gathered) -> Result<()> {
        if writer.parts.builder.bytes() >= self.context.limits.map_object && writer.may_end_part() {
            writer.parts.end_part(self);
            writer.cursor.skip_to(writer.parts.first_index());
        }
        if writer.parts.full.is_empty() {
            return Ok(());
        }
        let number = writer.parts.number;
        let not_put = NodePointer::new(self.own, number, writer.parts.first_index());
        if planted(Mutant::StoredBeforePut) {
            self.data.borrow_mut().tree.stored_before(not_put);
        }
        for part in writer.parts.full.drain(..) {
            self.put_map(number, part, gathered).await?;
        }
        self.data.borrow_mut().tree.stored_before(not_put);
        self.context.fit_maps();
        Ok(())
    }

    async fn put_map(&self, root: RootNumber, builder: PageBuilder, gathered: &mut Gathered) -> Result<()> {
        let records = builder.count();
        let (name, bytes) = builder.finish();
        let bytes = self.put_own(&name, bytes).await?;
        let (part, epoch, writer) = (name.part, self.epoch, self.writer);
        let map = MapObject { root, part, epoch, writer, records, live: records, bytes };
        gathered.maps.push(map);
        self.data.borrow_mut().fresh_maps.push(map);
        Ok(())
    }
}
