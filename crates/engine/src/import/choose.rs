// SPDX-License-Identifier: Apache-2.0
//! Which manifest of a timeline an import takes, and which timelines it leaves out.
//!
//! A listing may lag: the newest manifest found is therefore asked for its successors by name. One that cannot be
//! read is told of, and the next older one of the same opening is taken if every object that it names is still
//! there.
//!
//! A manifest that a writer sent in vain may land when all else of its timeline is deleted for good. It names much, and
//! next to nothing of it is there: that is no volume, nor one that is damaged.

use super::Imported;
use crate::lineage::{load_manifest, load_table_page, map_object, row_name, table_object};
use crate::manifests::reference;
use crate::{EngineError, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use varve_coord::ManifestRef;
use varve_env::ObjectStore;
use varve_format::manifest::{Manifest, TimelineState};
use varve_format::{ObjectKind, ObjectName};
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Epoch, ErrorKind, Ordinal, TimelineId};

/// Numbers that are asked for behind the newest manifest that is found; an opening skips one where a put failed.
const LOOK_AHEAD: u64 = 8;
/// The same where nothing that the listing shows is there: many puts may have failed one after the other.
const LOOK_FAR_AHEAD: u64 = 256;
/// Most successors that are taken: as many are not written while a listing lags.
const MAX_SUCCESSORS: usize = 4096;

/// What was found of a timeline.
pub(super) struct Found {
    /// The manifest that is taken.
    pub manifest: Manifest,
    /// The highest epoch that any of its manifests has.
    pub epoch: Epoch,
    /// The highest number that any of its manifests has.
    pub number: u64,
}

impl Found {
    /// Whether the timeline was deleted for good.
    pub fn is_gone(&self) -> bool {
        self.manifest.state == TimelineState::Tombstone
    }
}

/// Takes a manifest of a timeline. `None` when none of its names is one of a manifest.
pub(super) async fn choose(
    store: &Arc<dyn ObjectStore>,
    timeline: TimelineId,
    mut names: Vec<ObjectName>,
    done: &mut Imported,
) -> Result<Option<Found>> {
    names.retain(|name| name.timeline == timeline && name.kind == ObjectKind::Manifest && name.part == 0);
    names.sort_unstable_by_key(|name| (name.epoch, name.number, name.writer));
    let Some(newest) = names.last().copied() else { return Ok(None) };
    names.extend(successors(store, newest, LOOK_AHEAD).await?);
    let mut found = take(store, &names, done).await?;
    if found.is_none() {
        let newest = names.last().copied().unwrap_or(newest);
        names.extend(successors(store, newest, LOOK_FAR_AHEAD).await?);
        found = take(store, &names, done).await?;
    }
    let missing = match &found {
        None => {
            "none of the manifests that the store lists is there: it was deleted for good a moment ago, or the listing lags; import the pool again in a while"
        }
        Some(found) if is_left_over(store, &found.manifest).await? => {
            reached(Branch::ImportLeavesEnded);
            "next to nothing of what its manifest names is there: it was deleted for good, and the manifest landed late; else it is lost"
        }
        Some(_) => return Ok(found),
    };
    done.fail(format!("timeline {timeline}"), EngineError::new(ErrorKind::NotFound, missing));
    Ok(None)
}

/// Manifests of the same opening behind one, in order, up to where none of the next `ahead` numbers is there.
async fn successors(store: &Arc<dyn ObjectStore>, mut of: ObjectName, ahead: u64) -> Result<Vec<ObjectName>> {
    let mut found = Vec::new();
    if planted(Mutant::ImportTrustsListing) {
        return Ok(found);
    }
    let mut by = 1;
    while by <= ahead && found.len() < MAX_SUCCESSORS {
        let name = ObjectName { number: of.number + by, ..of };
        match store.head(&name.to_string()).await {
            Ok(_) => {
                reached(Branch::ImportBehindListing);
                found.push(name);
                (of, by) = (name, 1);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => by += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// Takes the newest of the names of one timeline, which are sorted, that is there and whole; `None` where none is there.
async fn take(store: &Arc<dyn ObjectStore>, names: &[ObjectName], done: &mut Imported) -> Result<Option<Found>> {
    let Some(newest) = names.last().copied() else { return Ok(None) };
    let number = names.iter().map(|name| name.number).max().unwrap_or_default();
    let mut damaged: Option<EngineError> = None;
    let candidates = names.iter().rev().take_while(|name| (name.epoch, name.writer) == (newest.epoch, newest.writer));
    for name in candidates {
        let wanted = ManifestRef { number: name.number, epoch: name.epoch, writer: name.writer };
        let loaded = match load_manifest(store, name.timeline, wanted).await {
            Ok(manifest) if damaged.is_some() => check_whole(store, &manifest).await.map(|()| manifest),
            loaded => loaded,
        };
        match loaded {
            Ok(manifest) => {
                reached_if(damaged.is_some(), Branch::ImportTakesOlder);
                return Ok(Some(Found { manifest, epoch: newest.epoch, number }));
            }
            // It was deleted since it was listed: a newer one is there, or the listing lags behind a purge.
            Err(error) if error.kind() == ErrorKind::NotFound && damaged.is_none() => {}
            Err(error) if super::passes(&error) => return Err(error),
            Err(error) => {
                done.fail(name, error.clone());
                damaged.get_or_insert(error);
            }
        }
    }
    damaged.map_or(Ok(None), Err)
}

/// The objects that a manifest itself names: maps, tables, and the segments of closed rows.
fn named(manifest: &Manifest) -> Result<BTreeSet<ObjectName>> {
    let mut names = BTreeSet::new();
    for map in &manifest.maps {
        names.insert(map_object(manifest, map.root, map.part)?);
    }
    for table in &manifest.tables {
        names.insert(table_object(manifest, table.number)?);
    }
    for row in &manifest.cuts {
        let first = row.first.max(manifest.boundary);
        names.extend((first.0..row.end.0).map(|ordinal| row_name(manifest, Ordinal(ordinal))));
    }
    Ok(names)
}

/// Whether a manifest is what is left of a timeline that was deleted for good: nothing of what it names is there, or none of its tables, without which nothing is
/// ever opened. (Of what else it names a put may have landed late, too.) What is damaged has lost an object; this has lost every one. One that is held for
/// nothing and names nothing is the last of all, and had nothing to lose.
async fn is_left_over(store: &Arc<dyn ObjectStore>, manifest: &Manifest) -> Result<bool> {
    let mut names = named(manifest)?;
    if !manifest.tables.is_empty() {
        names.retain(|name| name.kind == ObjectKind::Table);
    }
    for name in &names {
        match store.head(&name.to_string()).await {
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    let is_held = matches!(manifest.state, TimelineState::Held { .. });
    Ok(!names.is_empty() || (is_held && manifest.snapshots.is_empty() && manifest.holds.is_empty()))
}

/// Checks that every object is there that a manifest names, and its table.
async fn check_whole(store: &Arc<dyn ObjectStore>, manifest: &Manifest) -> Result<()> {
    let mut names = named(manifest)?;
    for page in &manifest.table {
        let timeline = manifest.timeline;
        let entries = load_table_page(store, manifest, *page).await?;
        names.extend(entries.into_iter().map(|(ordinal, entry)| entry.object(timeline, ordinal)));
    }
    for name in names {
        store.head(&name.to_string()).await.map_err(EngineError::from).map_err(crate::recover::missing_is_corrupt)?;
    }
    Ok(())
}

/// Leaves out clones that their origin holds nothing for: they were never recorded. And what was born from what is left out.
pub(super) fn drop_unborn(timelines: &mut BTreeMap<TimelineId, Found>, done: &mut Imported) {
    loop {
        let unborn = timelines.iter().filter_map(|(id, found)| {
            let birth = found.manifest.birth.filter(|_| !found.is_gone())?;
            let held = timelines
                .get(&birth.origin)
                .is_some_and(|origin| !origin.is_gone() && origin.manifest.holds.iter().any(|hold| hold.clone == *id));
            (!held).then_some((*id, birth.origin))
        });
        let unborn: Vec<_> = unborn.collect();
        if unborn.is_empty() {
            return;
        }
        for (id, origin) in unborn {
            if let Some(found) = timelines.remove(&id) {
                reached(Branch::ImportLeavesUnborn);
                let accepted = reference(&found.manifest);
                let text = format!(
                    "its origin, timeline {origin}, holds nothing for it: it was never recorded, or its origin is lost (manifest {} of epoch {})",
                    accepted.number, accepted.epoch
                );
                done.fail(
                    format!("timeline {id} of volume {}", found.manifest.name),
                    EngineError::new(ErrorKind::NotFound, text),
                );
            }
        }
    }
}
