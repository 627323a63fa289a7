// SPDX-License-Identifier: Apache-2.0
//! The ends of timelines: what nobody needs any more is deleted for ever, in the background, however much it is.
//!
//! A timeline of 64 TiB has a million objects. So an end is a row of slices: some pages of the segment table are loaded, and what they name is deleted,
//! a few requests at a time.
//!
//! Always holds:
//! - Nothing is deleted before the tombstone of the timeline is accepted, and before every slice a look says that the pool is still this cluster's.
//! - The tombstone that was accepted last names whatever is left, itself apart: after so many objects another is written that has only the pages that were
//!   not worked off. So an end goes on where it was, after a crash too; what is deleted twice does no harm.
//! - In RAM are the tombstone, the names of one slice and of one page of a listing, never those of all.
//! - Ends of one pool have their turns slice by slice, so a small one is soon done beside a large one; no end has a turn of anything else while it
//!   deletes, so nothing waits for it: no write, no read, no end of another pool, no import.
//! - A store that refuses ends the try. What is left is told to people, with the reason, until a later look at windows has brought it to its end.

use crate::context::Context;
use crate::error::MayPass;
use crate::lineage::{load_table_page, map_name, table_name};
use crate::manifests::PoolStore;
use crate::signal::breathe;
use crate::{EngineError, Result};
use futures_util::StreamExt as _;
use futures_util::stream;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use varve_env::ObjectStore;
use varve_format::manifest::Manifest;
use varve_format::table::PAGE_ORDINALS;
use varve_format::{ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::{ErrorKind, Name, TimelineId, VolumeId};

/// Deletes under way at once, for one pool: a quarter of the requests that a store may be asked at once.
const DELETES: usize = 16;
/// Names of a slice, about: no more than this and those of one page.
const SLICE: usize = 256;
/// Ends of one pool that are under way at once; of others a later look takes care.
const MOST_ENDS: u32 = 64;
/// For how long an end is let be that another node has taken over: it may be at it.
const TAKEN_OVER: Duration = Duration::from_secs(60);

/// A volume, or a history of one, that is being deleted for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The volume.
    pub volume: VolumeId,
    /// What it is called, or was.
    pub name: Name,
    /// The timeline by which the end is known: the one that a deleted volume has shown last, or a hidden one of a volume that stays.
    pub timeline: TimelineId,
    /// Whether the volume itself goes.
    pub whole: bool,
    /// When this process took it up, in milliseconds since 1970.
    pub since_ms: u64,
    /// Deletes that this process has sent for it and that were answered.
    pub deleted: u64,
    /// Objects that are left, at most.
    pub left: u64,
    /// Why it has to wait; nothing while it goes on.
    pub waits: Option<String>,
}

/// Numbers of ends since the shard began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndCounts {
    /// Those that have begun and are not over.
    pub endings: u64,
    /// Objects that they have left, at most.
    pub objects_left: u64,
    /// Deletes that were answered, of all ends.
    pub deleted: u64,
}

/// The ends of a shard.
#[derive(Default)]
pub(crate) struct Ends {
    /// Those that somebody is at.
    under_way: RefCell<BTreeSet<TimelineId>>,
    /// Those that have begun and are not over, for people.
    told: RefCell<BTreeMap<TimelineId, Ending>>,
    /// Those that are let be until then.
    resting: RefCell<BTreeMap<TimelineId, Duration>>,
    deleted: Cell<u64>,
    stopping: Cell<bool>,
}

impl Ends {
    /// Ends nothing any more, after the slices that are under way.
    pub fn stop(&self) {
        self.stopping.set(true);
    }

    /// Whether somebody is at the end of a timeline.
    pub fn is_under_way(&self, id: TimelineId) -> bool {
        self.under_way.borrow().contains(&id)
    }

    pub fn counts(&self) -> EndCounts {
        let told = self.told.borrow();
        let left = told.values().map(|ending| ending.left).sum();
        EndCounts { endings: told.len() as u64, objects_left: left, deleted: self.deleted.get() }
    }

    pub fn list(&self) -> Vec<Ending> {
        self.told.borrow().values().cloned().collect()
    }

    /// Takes an end up, unless somebody is at it, it is let be, or there are enough of the pool.
    pub fn begin(&self, context: &Context, pool: &PoolStore, id: TimelineId) -> bool {
        let rests = self.resting.borrow().get(&id).is_some_and(|until| *until > context.env.now());
        if self.stopping.get() || rests || pool.ends.under_way.get() >= MOST_ENDS || self.is_under_way(id) {
            return false;
        }
        pool.ends.under_way.set(pool.ends.under_way.get() + 1);
        self.resting.borrow_mut().remove(&id);
        self.under_way.borrow_mut().insert(id)
    }

    /// Notes how a try ended that [`begin`](Self::begin) has begun.
    pub fn finish(&self, context: &Context, pool: &PoolStore, id: TimelineId, result: &Result<()>) {
        pool.ends.under_way.set(pool.ends.under_way.get().saturating_sub(1));
        self.under_way.borrow_mut().remove(&id);
        match result {
            Ok(()) => drop(self.told.borrow_mut().remove(&id)),
            Err(error) => {
                if error.kind() == ErrorKind::Fenced {
                    self.resting.borrow_mut().insert(id, context.env.now() + TAKEN_OVER);
                }
                self.note(id, |ending| ending.waits = Some(error.to_string()));
            }
        }
    }

    /// Tells people of an end. One that was tried before goes on counting.
    pub fn tell(&self, ending: Ending) {
        self.told.borrow_mut().entry(ending.timeline).or_insert(ending).waits = None;
    }

    /// Forgets ends of timelines that are not known any more: another node has brought them to their end.
    pub fn keep(&self, known: &BTreeSet<TimelineId>) {
        self.told.borrow_mut().retain(|id, _| known.contains(id) || self.is_under_way(*id));
        self.resting.borrow_mut().retain(|id, _| known.contains(id));
    }

    fn note(&self, id: TimelineId, change: impl FnOnce(&mut Ending)) {
        if let Some(ending) = self.told.borrow_mut().get_mut(&id) {
            change(ending);
        }
    }
}

/// One end, as it deletes.
pub(crate) struct End<'a> {
    pub context: &'a Context,
    pub pool: &'a PoolStore,
    /// By which it is known.
    pub key: TimelineId,
}

impl End<'_> {
    /// Deletes by name everything that the tombstone of a timeline names, itself apart: a listing may lag behind what is young. What it can not name (it was
    /// put in vain) is for a listing to show. `shrink` has a tombstone accepted that has only so many pages of the table, and gives it. Gives the newest one.
    pub async fn remove_named(
        &self,
        mut tombstone: Rc<Manifest>,
        shrink: impl AsyncFn(usize) -> Result<Rc<Manifest>>,
    ) -> Result<Rc<Manifest>> {
        let id = tombstone.timeline;
        let (mut pages, mut since) = (tombstone.table.len(), 0);
        let most = self.context.limits.end_objects;
        self.left(&tombstone, pages, 0);
        // Segments first: only the pages know their names.
        while pages > 0 {
            let mut names = BTreeSet::new();
            while pages > 0 && names.len() < SLICE.min(most) {
                pages -= 1;
                names.append(&mut self.named_in(&tombstone, pages).await?);
            }
            since += names.len();
            self.delete(names.into_iter().map(|name| name.to_string()).collect()).await?;
            self.left(&tombstone, pages, 0);
            if since >= most && pages > 0 {
                reached(Branch::EndShrinks);
                since = 0;
                tombstone = shrink(pages).await?;
            }
        }
        let maps = tombstone.maps.iter().map(|map| map_name(id, map));
        let tables = tombstone.tables.iter().map(|table| table_name(id, table));
        let others: Vec<_> = maps.chain(tables).chain(tombstone.dead.iter().map(|dead| dead.name)).collect();
        for (at, slice) in others.chunks(SLICE).enumerate() {
            self.delete(slice.iter().map(ToString::to_string).collect()).await?;
            self.left(&tombstone, 0, at * SLICE + slice.len());
        }
        Ok(tombstone)
    }

    /// The objects that a page of the table names: several segments may live in one bundle.
    async fn named_in(&self, tombstone: &Manifest, page: usize) -> Result<BTreeSet<ObjectName>> {
        let id = tombstone.timeline;
        match load_table_page(&self.pool.store, tombstone, tombstone.table[page]).await {
            Ok(entries) => Ok(entries.iter().map(|(ordinal, entry)| entry.object(id, *ordinal)).collect()),
            Err(error) if error.may_pass() => Err(error),
            // An earlier try has come so far, or it is damaged: what it named is listed, sooner or later.
            Err(error) => {
                tracing::debug!(timeline = %id, %error, "a page of what has ended is not there");
                Ok(BTreeSet::new())
            }
        }
    }

    /// Deletes every object of a timeline that a listing shows, but for the manifest with the number `keep`.
    pub async fn remove_listed(&self, timeline: TimelineId, keep: Option<u64>) -> Result<()> {
        let prefix = format!("{timeline}/");
        let mut after: Option<String> = None;
        loop {
            let listed = self.pool.store.list(&prefix, after.as_deref()).await?;
            let Some(last) = listed.last() else { return Ok(()) };
            after = Some(last.name.clone());
            let is_kept = |name: &str| {
                keep.is_some()
                    && ObjectName::parse(name)
                        .is_some_and(|name| name.kind == ObjectKind::Manifest && Some(name.number) == keep)
            };
            let names: Vec<_> = listed.into_iter().map(|info| info.name).filter(|name| !is_kept(name)).collect();
            for slice in names.chunks(SLICE) {
                self.delete(slice.to_vec()).await?;
            }
        }
    }

    /// Deletes one slice.
    async fn delete(&self, names: Vec<String>) -> Result<()> {
        {
            let _turn = self.pool.ends.turn.take().await;
            let ends = &self.context.ends;
            if ends.stopping.get() {
                return Err(EngineError::new(ErrorKind::Busy, "the node stops"));
            }
            self.pool.check().await?;
            delete_all(&*self.pool.store, names, |_| {
                ends.deleted.set(ends.deleted.get() + 1);
                ends.note(self.key, |ending| {
                    ending.deleted += 1;
                    ending.left = ending.left.saturating_sub(1);
                });
            })
            .await?;
        }
        // Whoever waits for the turn has it now.
        breathe().await;
        Ok(())
    }

    /// Tells how much is left of a tombstone: so many pages, and of what else it names all but the first.
    fn left(&self, tombstone: &Manifest, pages: usize, done: usize) {
        let others = tombstone.maps.len() + tombstone.tables.len() + tombstone.dead.len();
        let left = pages as u64 * PAGE_ORDINALS + others.saturating_sub(done) as u64;
        self.context.ends.note(self.key, |ending| ending.left = left);
    }
}

/// What a pool's ends share.
#[derive(Default)]
pub(crate) struct PoolEnds {
    turn: crate::context::Turn,
    under_way: Cell<u32>,
}

/// Deletes objects, some at a time, and tells of each. The first error ends it: what is left is tried again by the caller, sooner or later.
pub(crate) async fn delete_all<T: ToString>(
    store: &dyn ObjectStore,
    names: Vec<T>,
    mut done: impl FnMut(T),
) -> Result<()> {
    let delete = async |name: T| store.delete(&name.to_string()).await.map(|()| name);
    let mut deletes = stream::iter(names).map(delete).buffer_unordered(DELETES);
    while let Some(deleted) = deletes.next().await {
        done(deleted?);
    }
    Ok(())
}

/// The pages of a tombstone that are left to work off.
pub(crate) fn shrink(manifest: &mut Manifest, pages: usize) {
    // Whoever else is at it may be further.
    reached_if(manifest.table.len() < pages, Branch::EndOvertaken);
    manifest.table.truncate(pages);
}
