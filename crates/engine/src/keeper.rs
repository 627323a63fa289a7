// SPDX-License-Identifier: Apache-2.0
//! Whose the records of a journal are: layers of timelines that are open, and tails of those that are not.
//!
//! Always holds: a record is needed iff a layer that pins the journal has its change, or a tail has it; each layer pins its lowest record. A timeline that is
//! being opened may have both, and both follow what is carried in the same step.

use crate::context::Context;
use crate::journal::{Keeper, Moved, Needed, Stamp};
use crate::journals::Home;
use crate::layer::Layer;
use crate::timeline::{Data, Timeline};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::{Rc, Weak};
use varve_types::TimelineId;

/// The keeper of one of a shard's journals.
pub(crate) struct ShardKeeper {
    pub context: Weak<Context>,
    /// Its number among them.
    pub number: usize,
}

impl ShardKeeper {
    /// The journal, and the timelines that use it.
    fn all<T>(&self, ask: impl FnOnce(&Home, &[Rc<Timeline>]) -> T) -> Option<T> {
        let context = self.context.upgrade()?;
        let home = context.journals.home(self.number)?;
        let mut timelines = context.open_timelines();
        timelines.retain(|timeline| Rc::ptr_eq(&timeline.journal, &home.journal));
        Some(ask(home, &timelines))
    }
}

impl Data {
    /// Its layers.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.sealed.iter().map(|sealed| &sealed.layer).chain([&self.open])
    }

    fn layers_mut(&mut self) -> impl Iterator<Item = &mut Layer> {
        self.sealed.iter_mut().map(|sealed| &mut sealed.layer).chain([&mut self.open])
    }
}

impl Timeline {
    /// What the trim has to tell of it: where it has segments that no manifest names, and where records were carried.
    fn evidence(&self) -> Option<Stamp> {
        let data = self.data.borrow();
        let named = data.manifest.cuts.iter().map(|cut| cut.last).max().unwrap_or_default().max(data.manifest.merged);
        let has_unnamed = data.counted > named && data.stopped.is_none();
        let is_carried = data.layers().any(|layer| layer.carried);
        // What a store that loses a segment, or a disk that loses a copy, has nobody else to tell on.
        let flushed = if is_carried { data.flushed } else { data.counted };
        let sequence = flushed.max(data.counted);
        let stamp = Stamp { timeline: self.id, epoch: self.epoch, sequence, flushed_through: sequence };
        (has_unnamed || is_carried).then_some(stamp)
    }

    /// Follows records that were carried.
    fn follow(&self, moved: &[Moved]) {
        let mut before = Vec::new();
        for layer in self.data.borrow_mut().layers_mut() {
            let pin = layer.pin;
            if layer.follow(moved) {
                before.extend(pin);
                layer.pin.into_iter().for_each(|pin| self.journal.pin(pin));
            }
        }
        before.into_iter().for_each(|pin| self.journal.unpin(pin));
    }

    /// Gives up what it needs of the journal: its opening has failed, and another one begins with the tail; or another node runs it by now.
    pub fn let_go(&self) {
        let mut pins = Vec::new();
        for layer in self.data.borrow_mut().layers_mut() {
            pins.extend(layer.pin.take());
        }
        pins.into_iter().for_each(|pin| self.journal.unpin(pin));
    }
}

impl Keeper for ShardKeeper {
    fn evidence(&self) -> Vec<Stamp> {
        let ask = |home: &Home, timelines: &[Rc<Timeline>]| {
            let mut stamps: Vec<_> = timelines.iter().filter_map(|timeline| timeline.evidence()).collect();
            stamps.extend(home.tails.evidence());
            stamps
        };
        self.all(ask).unwrap_or_default()
    }

    fn needed_bytes(&self) -> u64 {
        let of = |timeline: &Rc<Timeline>| timeline.data.borrow().layers().map(Layer::recorded).sum::<u64>();
        let ask = |home: &Home, timelines: &[Rc<Timeline>]| timelines.iter().map(of).sum::<u64>() + home.tails.bytes();
        self.all(ask).unwrap_or(u64::MAX)
    }

    fn needed(&self, part: Range<u64>) -> Vec<Needed> {
        let ask = |home: &Home, timelines: &[Rc<Timeline>]| {
            let mut needed = Vec::new();
            home.tails.needed(&part, &mut needed);
            for timeline in timelines {
                for layer in timeline.data.borrow().layers() {
                    let (id, epoch) = (timeline.id, layer.epoch);
                    let record = |(position, sequence)| Needed { position, timeline: id, epoch, sequence };
                    needed.extend(layer.records_in(part.clone()).map(record));
                }
            }
            needed
        };
        let mut needed = self.all(ask).unwrap_or_default();
        needed.sort_unstable_by_key(|it| it.position);
        // One that has both a layer and a tail.
        needed.dedup_by_key(|it| it.position);
        needed
    }

    fn moved(&self, moved: &[Moved]) {
        let mut by_timeline: BTreeMap<TimelineId, Vec<Moved>> = BTreeMap::new();
        for it in moved {
            by_timeline.entry(it.timeline).or_default().push(*it);
        }
        self.all(|home, timelines| {
            for (timeline, moved) in &by_timeline {
                home.tails.follow(&home.journal, *timeline, moved);
            }
            for timeline in timelines {
                if let Some(moved) = by_timeline.get(&timeline.id) {
                    timeline.follow(moved);
                }
            }
        });
    }
}
