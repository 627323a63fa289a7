// SPDX-License-Identifier: Apache-2.0
//! Importing a pool: from its store alone, into a coordination that knows nothing of it.
//!
//! 1. The next owner record, `owner/N+1`, is put, conditionally: from then on every other cluster stops before its
//!    next delete ([`crate::PoolStore::check`]).
//! 2. Only then, and only here, names are listed: all manifests, timeline by timeline. What else counts is asked for
//!    by name.
//! 3. Of each timeline the manifest with the highest (epoch, number) is taken; of each volume the timeline with the
//!    highest show number is shown.
//! 4. The row of segments behind a shown timeline's manifest is walked to its end, and a manifest that cuts it there
//!    is put, in a new epoch: the journals of the old node are not here, so a cut that counted on them is drawn back
//!    to what the store has. The volume's record names that manifest.
//!
//! **Why the highest manifest is right**, though nobody knows which one was accepted: a manifest is put after
//! everything that it names, so the state that it describes is whole in the store. Were it never accepted, then
//! what only its predecessor needs is still there too, as garbage. A manifest of a later epoch whose writer put
//! nothing is the one before it with a cut. What it describes may be a step whose answer was never given, which may
//! have happened or not. The exception is a clone that was never recorded: its origin lets go of what it was born
//! with. So a clone whose origin holds nothing for it is not imported.
//!
//! A damaged manifest is told by name. The one before it is used only if the same opening wrote it (else segments
//! of the later one would be lost unseen) and every object that it names is there.
//!
//! A crash anywhere leaves an import that can be begun again: volumes that were recorded are passed over.

mod choose;
mod volume;

use crate::{EngineError, Result};
use bytes::Bytes;
use choose::Found;
use std::collections::BTreeMap;
use std::sync::Arc;
use varve_coord::{Coord, PoolRecord, Record, Records};
use varve_env::{Env, ObjectStore, Payload, PutOutcome};
use varve_format::ObjectName;
use varve_format::owner::OwnerRecord;
use varve_types::{ClusterId, Epoch, ErrorKind, Name, Overrides, TimelineId, VolumeId};

/// Most owner records of a pool.
const MAX_OWNERS: u64 = 1 << 20;
/// Bytes of an owner record, at most.
const OWNER_BYTES: u64 = 4096;

/// What an import needs.
pub struct PoolImport<'a> {
    /// Time and randomness.
    pub env: &'a dyn Env,
    /// Where the records go.
    pub coord: &'a dyn Coord,
    /// The pool's store.
    pub store: Arc<dyn ObjectStore>,
    /// This cluster.
    pub cluster: ClusterId,
    /// What the pool is to be called here.
    pub pool: Name,
    /// The store's address for the pool's record, without secrets.
    pub url: String,
    /// Settings of the pool here.
    pub settings: Overrides,
}

/// A volume that was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedVolume {
    /// Its id.
    pub id: VolumeId,
    /// Its name here.
    pub name: Name,
    /// The name that it had, if somebody has that here.
    pub was: Option<Name>,
    /// Its epoch here; opening it raises it.
    pub epoch: Epoch,
    /// Whether it is deleted, and waits for its window to end.
    pub deleted: bool,
    /// When the newest thing was written that the store has of it, in milliseconds since 1970: what came later was only in the old node's journal.
    pub newest_ms: u64,
}

/// Something that could not be imported.
#[derive(Clone, Debug)]
pub struct ImportFailure {
    /// What: an object, a timeline or a volume, for people.
    pub what: String,
    /// Why.
    pub error: EngineError,
}

/// What an import found.
#[derive(Clone, Debug, Default)]
pub struct Imported {
    /// Number of the owner record by which the pool is this cluster's.
    pub owner: u64,
    /// Volumes that are there now, deleted ones too.
    pub volumes: Vec<ImportedVolume>,
    /// Volumes that this coordination had already.
    pub known: Vec<VolumeId>,
    /// What could not be imported, or only from an older manifest.
    pub failures: Vec<ImportFailure>,
}

impl Imported {
    fn fail(&mut self, what: impl std::fmt::Display, error: EngineError) {
        tracing::warn!(%what, %error, "not imported");
        self.failures.push(ImportFailure { what: what.to_string(), error });
    }
}

/// Imports a pool. `progress` is told volumes: done, and in all (0 while it is not known yet).
///
/// # Errors
/// `NotFound` when the store has no pool; `Conflict` when the pool's name or store is another pool's here, or another cluster imports it at the same time; those of
/// store and coordination. What concerns one volume alone is in [`Imported::failures`].
pub async fn import_pool(import: PoolImport<'_>, mut progress: impl FnMut(u64, u64)) -> Result<Imported> {
    progress(0, 0);
    check_pool_free(&import).await?;
    let owner = take_over(&import).await?;
    record_pool(&import, owner).await?;
    let mut done = Imported { owner, ..Imported::default() };
    let mut timelines = BTreeMap::new();
    for (timeline, names) in list_manifests(&import.store).await? {
        match choose::choose(&import.store, timeline, names, &mut done).await {
            Ok(Some(found)) => {
                timelines.insert(timeline, found);
            }
            Ok(None) => {}
            Err(error) if passes(&error) => return Err(error),
            Err(error) => done.fail(format!("timeline {timeline}"), error),
        }
    }
    choose::drop_unborn(&mut timelines, &mut done);
    let mut volumes: BTreeMap<VolumeId, Vec<Found>> = BTreeMap::new();
    for found in timelines.into_values() {
        volumes.entry(found.manifest.volume).or_default().push(found);
    }
    let total = volumes.len() as u64;
    let mut ordered = Vec::new();
    for (id, timelines) in volumes {
        ordered.push((volume::sign_of_use(&import.store, &timelines).await?, id, timelines));
    }
    // Of several with one name the one that was used has it: the others may be what a creation has left that was never answered.
    ordered.sort_by_key(|(signs, ..)| std::cmp::Reverse(*signs));
    for (count, (_, id, timelines)) in (0..).zip(ordered) {
        progress(count, total);
        match volume::import_volume(&import, id, timelines, &mut done).await {
            Ok(()) => {}
            Err(error) if passes(&error) => return Err(error),
            Err(error) => done.fail(format!("volume {id}"), error),
        }
    }
    progress(total, total);
    Ok(done)
}

/// Whether an error is one of the store or coordination as a whole: the import ends and is begun again later.
fn passes(error: &EngineError) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::NoSpace | ErrorKind::Busy | ErrorKind::Fenced)
}

/// Refuses a name or a store that another pool has here.
async fn check_pool_free(import: &PoolImport<'_>) -> Result<()> {
    for (pool, _) in Records::new(import.coord).list_pools().await? {
        if (pool.name == import.pool) != (pool.store == import.url) {
            let text = format!("there is a pool {} at {} already", pool.name, pool.store);
            return Err(EngineError::new(ErrorKind::Conflict, text));
        }
    }
    Ok(())
}

/// Makes the pool this cluster's. Gives the number of the owner record.
async fn take_over(import: &PoolImport<'_>) -> Result<u64> {
    let store = &*import.store;
    let mut last = 0;
    while last < MAX_OWNERS {
        match store.head(&OwnerRecord::name(last + 1)).await {
            Ok(_) => last += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            Err(error) => return Err(error.into()),
        }
    }
    if last == 0 {
        return Err(EngineError::new(ErrorKind::NotFound, format!("there is no pool at {}", import.url)));
    }
    // A damaged record says nothing of who has the pool: it is taken over like somebody else's.
    let now = OwnerRecord::decode(&store.get_head(&OwnerRecord::name(last), OWNER_BYTES).await?);
    if now.as_ref().is_ok_and(|owner| owner.cluster == import.cluster && owner.number == last) {
        return Ok(last);
    }
    let number = last + 1;
    let record = OwnerRecord { number, cluster: import.cluster, created_ms: import.env.wall_ms() };
    let name = OwnerRecord::name(number);
    if store.put(&name, Payload::from(Bytes::from(record.encode()))).await? == PutOutcome::Exists {
        let there = OwnerRecord::decode(&store.get_head(&name, OWNER_BYTES).await?);
        if !there.is_ok_and(|there| there.cluster == import.cluster) {
            let text = format!("the pool at {} was imported by another cluster at this moment", import.url);
            return Err(EngineError::new(ErrorKind::Conflict, text));
        }
    }
    Ok(number)
}

/// Makes the pool's record, or brings it up to date.
async fn record_pool(import: &PoolImport<'_>, owner: u64) -> Result<()> {
    let records = Records::new(import.coord);
    match records.load_pool(&import.pool).await {
        Ok((pool, _)) if pool.owner_number == owner => Ok(()),
        Ok((pool, revision)) => {
            records.update_pool(revision, &PoolRecord { owner_number: owner, ..pool }).await?;
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let pool = PoolRecord {
                version: PoolRecord::VERSION,
                name: import.pool.clone(),
                store: import.url.clone(),
                owner_number: owner,
                settings: import.settings,
                created_ms: import.env.wall_ms(),
            };
            records.create_pool(&pool).await?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// The names of all manifests, by timeline. Other objects are passed over, a kind at a time.
async fn list_manifests(store: &Arc<dyn ObjectStore>) -> Result<BTreeMap<TimelineId, Vec<ObjectName>>> {
    let mut all: BTreeMap<TimelineId, Vec<ObjectName>> = BTreeMap::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list("", after.as_deref()).await?;
        let Some(first) = page.first() else { return Ok(all) };
        let dir = first.name.split('/').next().unwrap_or_default();
        if let Ok(timeline) = dir.parse::<TimelineId>() {
            let names = list_timeline(store, timeline).await?;
            if !names.is_empty() {
                all.insert(timeline, names);
            }
        }
        // `0` is the character behind `/`: what comes next is in no directory of this name.
        after = Some(format!("{dir}0"));
    }
}

async fn list_timeline(store: &Arc<dyn ObjectStore>, timeline: TimelineId) -> Result<Vec<ObjectName>> {
    let prefix = ObjectName::prefix(timeline, varve_format::ObjectKind::Manifest);
    let (mut names, mut after): (Vec<ObjectName>, Option<String>) = (Vec::new(), None);
    loop {
        let page = store.list(&prefix, after.as_deref()).await?;
        let Some(last) = page.last() else { return Ok(names) };
        after = Some(last.name.clone());
        names.extend(page.iter().filter_map(|info| ObjectName::parse(&info.name)));
    }
}
