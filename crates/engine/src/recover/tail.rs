// SPDX-License-Identifier: Apache-2.0
//! The tail of a timeline: its changes that no segment has, from the journals into layers.
//!
//! What counts of it sequence numbers say, and nothing else: where a record stands in a journal, and in which, says nothing, because records are carried.
//!
//! Always holds: what other journals have of the tail is in the timeline's own, and on stable media there, before any layer is made of it; the layers pin what
//! they need in the very step in which they are made.

use crate::journal::{Moved, Needed, Replayed};
use crate::layer::{Layer, Piece, Sums};
use crate::recover::Tail;
use crate::seal::seal;
use crate::timeline::{Data, NUMBER_GAP, Timeline};
use crate::{EngineError, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use varve_format::journal::Body;
use varve_format::manifest::Manifest;
use varve_format::mark::Mark;
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, Epoch, Ordinal, Sequence};

/// The last change of an epoch that may count; `None` where none does.
fn limit(manifest: &Manifest, epoch: Epoch) -> Option<Sequence> {
    if epoch == manifest.epoch || planted(Mutant::ReplayBeyondCut) {
        // Also where a cut names this epoch: a timeline that was hidden, put whole, and shown again within one epoch goes on from there.
        return Some(Sequence(u64::MAX));
    }
    manifest.cuts.iter().filter(|cut| cut.epoch == epoch).map(|cut| cut.last).max()
}

impl Timeline {
    /// Copies what other journals have of the tail into the timeline's own.
    pub(super) async fn gather_strays(self: &Rc<Self>, manifest: &Manifest) -> Result<()> {
        let strays = self.context.journals.strays(self.id, &self.journal);
        if strays.is_empty() {
            return Ok(());
        }
        let tails = self.context.journals.tails(&self.journal);
        let key = |it: &Replayed| (it.record.epoch, it.record.sequence, it.record.body == Body::Counted);
        let mut has: BTreeSet<_> = tails.of(self.id).iter().map(key).collect();
        let counted = self.data.borrow().counted;
        for (other, mut records) in strays {
            records.retain(|it| {
                let record = &it.record;
                let counts = limit(manifest, record.epoch).is_some_and(|limit| record.sequence <= limit);
                counts && record.sequence > counted && has.insert(key(it))
            });
            let needed = |it: &Replayed| Needed {
                position: it.record.position,
                timeline: self.id,
                epoch: it.record.epoch,
                sequence: it.record.sequence,
            };
            let needed: Vec<_> = records.iter().map(needed).collect();
            let take = |moved: &[Moved]| {
                for (it, moved) in records.iter_mut().zip(moved) {
                    it.place = moved.to + (it.place - moved.from);
                    it.record.position = moved.to;
                }
                tails.add(&self.journal, self.id, records);
            };
            if !needed.is_empty() {
                reached(Branch::TailGathered);
                self.journal.take_over(&other, &needed, take).await?;
            }
        }
        Ok(())
    }

    /// The changes in the journal behind the last segment.
    pub(super) fn load_tail(&self, manifest: &Manifest, found: Vec<Replayed>, tail: Tail) -> Result<()> {
        let mut data = self.data.borrow_mut();
        let counted = data.counted;
        let mut promised = manifest.cuts.iter().map(|cut| cut.last).max().unwrap_or_default();
        let mut was_stable = Sequence(0);
        let mut changes: BTreeMap<Sequence, Replayed> = BTreeMap::new();
        for replayed in found {
            let record = &replayed.record;
            let limit = limit(manifest, record.epoch);
            reached_if(limit.is_some_and(|limit| record.sequence > limit), Branch::ChangeBehindCut);
            if limit.is_some_and(|limit| record.sequence <= limit) {
                was_stable = was_stable.max(record.flushed_through);
                if record.sequence > counted && record.body != Body::Counted {
                    let mut place = record.sequence;
                    if planted(Mutant::ReplayInRingOrder) {
                        place = Sequence(record.position % self.journal.usage().0);
                    }
                    changes.insert(place, replayed);
                }
            }
        }
        let first = data.next_ordinal.max(manifest.first_ordinal);
        data.next_ordinal = Ordinal(first.0 + NUMBER_GAP);
        if planted(Mutant::ReuseOrdinal) {
            data.next_ordinal = manifest.first_ordinal.max(manifest.boundary);
        }
        reached_if(!changes.is_empty(), Branch::TailOfJournal);
        for replayed in changes.into_values() {
            if replayed.record.sequence != data.last.next() && !planted(Mutant::ReplayPastGap) {
                reached(Branch::TailGap);
                break;
            }
            self.replay(&mut data, replayed);
        }
        // Of what was carried a later change may stand before an earlier one: the lowest of a layer is known when it is whole.
        data.layers().filter_map(|layer| layer.pin).for_each(|pin| self.journal.pin(pin));
        reached_if(data.last == manifest.merged, Branch::NothingBehindManifest);
        match tail {
            Tail::Left if was_stable > data.last => {
                reached(Branch::LossForced);
                tracing::warn!(timeline = %self.id, last = %data.last, lost = %was_stable, "changes that were flushed are lost: the take-over was forced");
            }
            Tail::Left => {}
            Tail::Whole | Tail::None => promised = promised.max(was_stable),
        }
        if data.last < promised && !planted(Mutant::ServePastLoss) {
            reached(Branch::LossRefused);
            let what = format!(
                "timeline {}: change {} is missing, though changes up to {promised} were on stable media",
                self.id,
                data.last.next()
            );
            return Err(EngineError::corrupt(what));
        }
        data.flushed = data.last;
        Ok(())
    }

    fn replay(&self, data: &mut Data, Replayed { record, place }: Replayed) {
        if data.open_epoch != record.epoch {
            // Not before the first of them.
            reached_if(data.last > data.counted, Branch::TailOfEpochs);
            seal(data);
            data.open_epoch = record.epoch;
            data.open = Layer::new(record.epoch);
        }
        let (now, pin, sequence) = (self.context.env.now(), Some(record.position), record.sequence);
        let most_runs = self.context.limits.layer_runs;
        let mut ends = false;
        match record.body {
            Body::Write { start, crcs } => {
                let piece = Piece::Journal { place, sums: Sums::new(&crcs) };
                data.open.insert(sequence, pin, now, start, crcs.len() as u64, piece);
                ends = data.open.blocks() * BLOCK >= data.settings.segment_size || data.open.runs() >= most_runs;
            }
            Body::Hole { start, blocks } => {
                data.open.insert(sequence, pin, now, start, blocks, Piece::Hole);
                ends = data.open.runs() >= most_runs;
            }
            Body::Mark(mark) => {
                match &mark {
                    Mark::Size { size, .. } => data.size = *size,
                    Mark::Snapshot { .. } => ends = true,
                }
                data.open.mark(mark, pin, now);
            }
            Body::Pad | Body::Counted => return,
        }
        data.last = sequence;
        if ends {
            seal(data);
        }
    }
}
