// SPDX-License-Identifier: Apache-2.0
//! Which segments are cleaned: those that cost the least to move for the room that they give, and that would give little more if they waited.
//!
//! An object with `live` blocks alive and `dead` ones dead gives `dead` of room, and costs `live` to move. What has not died for long will not die soon, and is not moved
//! in vain; what is young will have died more if it waits. The cost of a byte that is given back falls as more of the object dies, the slower the older it is, and it is best to take
//! first what has least to win by waiting: the largest `(dead / live)² × age`. Uniform writes cost 2.7 times, those of zipf(0.99) 1.5 times what is written at 80 %
//! occupancy; the well-known `dead × age / (stored + live)` costs 3.0 and 1.8 times. Source: Lomet and Luo, "Efficiently Reclaiming Space in a Log
//! Structured Store" (minimum declining cost), ICDE 2021, section 4.
//!
//! A table is looked through once for each manifest, not for each job: blocks die only with the next one. What was chosen from then on is looked at again before it is
//! taken, so a list that is old costs a worse choice and nothing else.

use super::job::Source;
use crate::signal::breathe;
use crate::table::SegmentTable;
use crate::timeline::Timeline;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use varve_format::ObjectName;
use varve_format::bundle::MAX_SHARES;
use varve_format::manifest::Manifest;
use varve_format::table::{Place, TableEntry};
use varve_types::branch::{Branch, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, MAX_SEGMENT_BLOCKS, Ordinal, Settings, TimelineId};

/// Entries looked at between two looks at other tasks.
const SLICE: usize = 512;
/// Segments of a list, at most, and those of one object more: what is behind them is looked for again.
const MAX_LISTED: usize = 16_384;

/// An object of which something is dead.
#[derive(Clone, Debug, Default)]
struct Sparse {
    ordinals: Vec<Ordinal>,
    stored: u64,
    live: u64,
    /// When the youngest of its segments was sealed, in milliseconds since 1970.
    sealed_ms: u64,
}

impl Sparse {
    /// Whether a twentieth of it can be had back. What has nothing alive goes by itself.
    const fn is_worth_it(&self) -> bool {
        self.live > 0 && (self.stored - self.live) * 20 >= self.stored
    }

    /// See the module; times 2³², for whole numbers.
    fn score(&self, now_ms: u64) -> u128 {
        let age = u128::from(now_ms.saturating_sub(self.sealed_ms).max(1));
        // An object has some 2¹⁷ blocks at most, and it is 2⁴² ms since 1970: all fits.
        let ratio = (u128::from(self.stored - self.live) << 16) / u128::from(self.live.max(1));
        ratio.saturating_mul(ratio).saturating_mul(age)
    }
}

/// Objects that are to be cleaned, the last first.
#[derive(Debug, Default)]
pub(crate) struct Victims {
    /// Number of the manifest whose table was looked through.
    at: u64,
    /// Each with the segments that it has blocks of.
    objects: Vec<(ObjectName, Vec<Ordinal>)>,
    /// Whether there were more.
    is_cut: bool,
}

/// Looks through a table, in steps of the caller's.
#[derive(Default)]
pub(crate) struct Search {
    objects: BTreeMap<ObjectName, Sparse>,
}

impl Search {
    /// Takes in some of the segments below `boundary`, from `first` on; gives where to go on.
    pub fn step(&mut self, id: TimelineId, table: &SegmentTable, first: Ordinal, boundary: Ordinal) -> Option<Ordinal> {
        let (mut seen, mut next) = (0, first);
        for (ordinal, entry) in table.range(first..boundary).take(SLICE) {
            (seen, next) = (seen + 1, ordinal.next());
            self.take_in(id, ordinal, entry);
        }
        (seen == SLICE).then_some(next)
    }

    fn take_in(&mut self, id: TimelineId, ordinal: Ordinal, entry: &TableEntry) {
        if entry.place == Place::Own && entry.live.live() == entry.stored() {
            return;
        }
        let object = self.objects.entry(entry.object(id, ordinal)).or_default();
        object.ordinals.push(ordinal);
        object.stored += u64::from(entry.stored());
        object.live += u64::from(entry.live.live());
        object.sealed_ms = object.sealed_ms.max(entry.sealed_ms);
    }

    /// The objects found some of whose blocks are dead, and some alive: those of which nothing lives go anyway.
    pub fn end(self, at: u64, now_ms: u64, unclean: &BTreeSet<ObjectName>) -> Victims {
        let worth = |(name, sparse): &(ObjectName, Sparse)| sparse.is_worth_it() && !unclean.contains(name);
        let mut all: Vec<_> = self.objects.into_iter().filter(worth).collect();
        all.sort_by_cached_key(|(name, sparse)| (Reverse(sparse.score(now_ms)), *name));
        let (found, mut listed) = (all.len(), 0);
        let mut objects: Vec<_> = all
            .into_iter()
            .map(|(name, sparse)| (name, sparse.ordinals))
            .take_while(|(_, ordinals)| {
                let has_room = listed < MAX_LISTED;
                listed += ordinals.len();
                has_room
            })
            .collect();
        let is_cut = objects.len() < found;
        objects.reverse();
        Victims { at, objects, is_cut }
    }
}

impl Victims {
    /// Whether it is of the table of this manifest, and tells all that is to be said of it.
    fn is_of(&self, number: u64) -> bool {
        self.at == number && !(self.objects.is_empty() && self.is_cut)
    }

    /// Takes what fills an object of a segment's size; nothing where nothing can be gained.
    pub fn take(&mut self, table: &SegmentTable, manifest: &Manifest, settings: &Settings) -> Vec<Source> {
        let most = (settings.segment_size / BLOCK).clamp(1, u64::from(MAX_SEGMENT_BLOCKS));
        let (mut sources, mut live, mut stored) = (Vec::new(), 0, 0);
        while let Some((name, ordinals)) = self.objects.last() {
            let now = look_again(table, name, ordinals);
            let is_full = live + now.live > most || sources.len() + now.ordinals.len() > MAX_SHARES;
            if is_full && !sources.is_empty() {
                break;
            }
            if now.is_worth_it() {
                live += now.live;
                stored += now.stored;
                sources.extend(now.ordinals.iter().filter_map(|ordinal| source(table, manifest, *ordinal)));
            }
            self.objects.pop();
        }
        sources.sort_by_key(|source: &Source| source.ordinal);
        if stored > live { sources } else { Vec::new() }
    }
}

/// What an object is now, that was listed before; of segments that have moved since it has nothing.
fn look_again(table: &SegmentTable, name: &ObjectName, ordinals: &[Ordinal]) -> Sparse {
    let mut now = Search::default();
    for ordinal in ordinals.iter().filter(|ordinal| table.leads_to(**ordinal, name)) {
        if let Some(entry) = table.get(*ordinal) {
            now.take_in(name.timeline, *ordinal, entry);
        }
    }
    now.objects.remove(name).unwrap_or_default()
}

impl Timeline {
    /// What was chosen was not cleaned: it is in the list no more, and is to be chosen again.
    pub(super) fn choose_again(&self) {
        let mut data = self.data.borrow_mut();
        data.victims = Victims::default();
        data.clean_at = None;
    }

    /// Chooses what fills a bundle; nothing where nothing can be gained. Who asks has the turn of cleaning.
    pub(super) async fn choose_sparse(&self) -> Vec<Source> {
        let at = self.data.borrow().manifest.number;
        if !self.data.borrow().victims.is_of(at) {
            let mut search = Search::default();
            let mut from = Some(Ordinal(0));
            while let Some(first) = from {
                {
                    let data = self.data.borrow();
                    from = search.step(self.id, &data.table, first, data.manifest.boundary);
                }
                breathe().await;
            }
            let mut data = self.data.borrow_mut();
            data.victims = search.end(at, self.context.now_ms(), &data.unclean);
        }
        let mut data = self.data.borrow_mut();
        let mut victims = std::mem::take(&mut data.victims);
        let sources = victims.take(&data.table, &data.manifest, &data.settings);
        data.victims = victims;
        sources
    }
}

/// What a job has to know of a segment; `None` where nothing of it lives.
fn source(table: &SegmentTable, manifest: &Manifest, ordinal: Ordinal) -> Option<Source> {
    let entry = table.get(ordinal)?;
    let history = manifest.needs_index(ordinal) && !planted(Mutant::CleanWithoutHistory);
    reached_if(history, Branch::CleanHistory);
    if entry.live.live() == 0 && !history {
        return None;
    }
    Some(Source { ordinal, object: entry.object(manifest.timeline, ordinal), live: entry.live.clone(), history })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse(stored: u64, live: u64, sealed_ms: u64) -> Sparse {
        Sparse { ordinals: vec![Ordinal(1)], stored, live, sealed_ms }
    }

    #[test]
    fn what_is_emptier_and_what_is_older_comes_first() {
        assert!(sparse(1000, 200, 0).score(100) > sparse(1000, 400, 0).score(100));
        assert!(sparse(1000, 500, 0).score(100) > sparse(1000, 500, 50).score(100));
        // Half as full again as the other: it is cleaned first only where it is far older.
        assert!(sparse(1000, 600, 0).score(100) < sparse(1000, 400, 50).score(100));
        assert!(sparse(1000, 600, 0).score(1000) > sparse(1000, 400, 900).score(1000));
        // The largest there is does not overflow into what is small.
        let now_ms = 1 << 42;
        assert!(sparse(1 << 17, 1, 0).score(now_ms) > sparse(1 << 17, 2, 0).score(now_ms));
    }

    #[test]
    fn only_what_gives_back_a_twentieth_is_worth_it() {
        assert!(sparse(100, 95, 0).is_worth_it() && !sparse(100, 96, 0).is_worth_it());
        assert!(!sparse(100, 0, 0).is_worth_it(), "it goes by itself");
    }
}
