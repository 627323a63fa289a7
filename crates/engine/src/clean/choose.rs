// SPDX-License-Identifier: Apache-2.0
//! Which segments are cleaned: those where most is gained for what is read and written, the older the sooner.
//!
//! An object with a share `u` of its blocks alive gives `1 − u` of its room, and costs `1 + u` to read and write. What has not died for long will not die soon,
//! and is not moved in vain; what is young will have died more if it waits. So the best is the largest `(1 − u) × age / (1 + u)`. Source: Rosenblum and
//! Ousterhout, "The Design and Implementation of a Log-Structured File System", 1992, section 3.6.

use super::job::Source;
use crate::signal::breathe;
use crate::timeline::{Data, Timeline};
use std::collections::BTreeMap;
use varve_format::ObjectName;
use varve_format::bundle::MAX_SHARES;
use varve_format::table::Place;
use varve_types::branch::{Branch, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{BLOCK, MAX_SEGMENT_BLOCKS, Ordinal};

/// Entries looked at between two looks at other tasks.
const SLICE: usize = 4096;

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

    /// See the module; times a million, for whole numbers.
    fn score(&self, now_ms: u64) -> u64 {
        let age = now_ms.saturating_sub(self.sealed_ms).max(1);
        (u128::from(self.stored - self.live) * u128::from(age) * 1_000_000 / u128::from(self.stored + self.live))
            .try_into()
            .unwrap_or(u64::MAX)
    }
}

impl Timeline {
    /// Chooses what fills a bundle; nothing where nothing can be gained.
    pub(super) async fn choose_sparse(&self) -> Vec<Source> {
        let objects = self.sparse_objects().await;
        let now_ms = self.context.now_ms();
        let mut all: Vec<_> = objects.into_iter().collect();
        all.sort_by_cached_key(|(name, sparse)| (std::cmp::Reverse(sparse.score(now_ms)), *name));
        let data = self.data.borrow();
        let most = (data.settings.segment_size / BLOCK).clamp(1, u64::from(MAX_SEGMENT_BLOCKS));
        let (mut sources, mut live, mut stored) = (Vec::new(), 0, 0);
        for (_, sparse) in all {
            let is_full = live + sparse.live > most || sources.len() + sparse.ordinals.len() > MAX_SHARES;
            if is_full && !sources.is_empty() {
                break;
            }
            live += sparse.live;
            stored += sparse.stored;
            sources.extend(sparse.ordinals.iter().filter_map(|ordinal| source(self, &data, *ordinal)));
        }
        sources.sort_by_key(|source| source.ordinal);
        if stored > live { sources } else { Vec::new() }
    }

    /// Objects below the boundary some of whose blocks are dead, and some alive: those of which nothing lives go anyway.
    async fn sparse_objects(&self) -> BTreeMap<ObjectName, Sparse> {
        let mut objects = BTreeMap::new();
        let mut from = Some(Ordinal(0));
        while let Some(first) = from {
            from = self.gather_sparse(first, &mut objects);
            breathe().await;
        }
        let data = self.data.borrow();
        objects.retain(|name, sparse| sparse.is_worth_it() && !data.unclean.contains(name));
        objects
    }

    /// Takes in some of the segments from `first` on; gives where to go on.
    fn gather_sparse(&self, first: Ordinal, objects: &mut BTreeMap<ObjectName, Sparse>) -> Option<Ordinal> {
        let data = self.data.borrow();
        let (mut seen, mut next) = (0, first);
        for (ordinal, entry) in data.table.range(first..data.manifest.boundary).take(SLICE) {
            (seen, next) = (seen + 1, ordinal.next());
            if entry.place == Place::Own && entry.live.live() == entry.stored() {
                continue;
            }
            let object = objects.entry(entry.object(self.id, ordinal)).or_default();
            object.ordinals.push(ordinal);
            object.stored += u64::from(entry.stored());
            object.live += u64::from(entry.live.live());
            object.sealed_ms = object.sealed_ms.max(entry.sealed_ms);
        }
        (seen == SLICE).then_some(next)
    }
}

/// What a job has to know of a segment; `None` where nothing of it lives.
fn source(timeline: &Timeline, data: &Data, ordinal: Ordinal) -> Option<Source> {
    let entry = data.table.get(ordinal)?;
    let history = data.manifest.needs_index(ordinal) && !planted(Mutant::CleanWithoutHistory);
    reached_if(history, Branch::CleanHistory);
    if entry.live.live() == 0 && !history {
        return None;
    }
    Some(Source { ordinal, object: entry.object(timeline.id, ordinal), live: entry.live.clone(), history })
}
