// SPDX-License-Identifier: Apache-2.0
//! Writing manifests and having them accepted, and the deletes that follow.
//!
//! A manifest is put under a number that was never used, then coordination is asked to name it in the volume's
//! record, if the volume is still owned by this epoch and writer. Where that answer is unknown the manifest counts
//! as not accepted: nothing is deleted for it, and the next one is written from the state before it.
//!
//! An object goes when the manifest that stopped needing it, *and one after that*, were accepted, after a grace,
//! and after a look whether the pool still belongs to this cluster.

use crate::context::{Context, Held};
use crate::ends::{PoolEnds, delete_all};
use crate::lineage::manifest_name;
use crate::proof::proved;
use crate::timeline::{Data, Timeline, fenced};
use crate::{EngineError, Result};
use bytes::Bytes;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use varve_coord::{CoordError, ManifestRef, Records, VolumeRecord};
use varve_env::{Env, ObjectStore, Payload, PutOutcome};
use varve_format::ObjectName;
use varve_format::manifest::{DeadObject, Manifest};
use varve_format::owner::OwnerRecord;
use varve_types::branch::{Branch, reached, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{ErrorKind, TimelineId, VolumeId};

/// A pool's store, and the number under which it belongs to this cluster.
pub struct PoolStore {
    /// The store.
    pub store: Arc<dyn ObjectStore>,
    /// Number of the owner record that is ours.
    pub owner: u64,
    lost: Cell<bool>,
    /// The ends of its timelines.
    pub(crate) ends: PoolEnds,
}

impl PoolStore {
    /// A pool whose owner record `owner` is ours.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, owner: u64) -> Self {
        Self { store, owner, lost: Cell::new(false), ends: PoolEnds::default() }
    }

    /// Looks whether another cluster has taken the pool over.
    ///
    /// # Errors
    /// `Fenced` when it has; those of the store.
    pub async fn check(&self) -> Result<()> {
        if planted(Mutant::IgnorePoolOwner) {
            return Ok(());
        }
        if !self.lost.get() {
            match self.store.head(&OwnerRecord::name(self.owner + 1)).await {
                Ok(_) => self.lost.set(true),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        reached(Branch::PoolLost);
        Err(fenced("the pool was imported by another cluster: this one serves it no more"))
    }
}

/// Numbers to try for a manifest behind number `last`: one after the other, and then some from anywhere further on, so that however many were put in
/// vain one is found that is free.
pub(crate) fn numbers_behind(env: &dyn Env, last: u64) -> impl Iterator<Item = u64> {
    let mut random = [0; 8];
    env.random(&mut random);
    let far = NEAR + u64::from_le_bytes(random) % FAR;
    (1..=NEAR).chain(far..far + NEAR).map(move |step| last.saturating_add(step))
}

/// Numbers that are tried one after the other, each time.
const NEAR: u64 = 32;
/// How far the further ones go.
const FAR: u64 = 1 << 20;

/// Objects that are deleted between two looks whether it may go on.
const SLICE: usize = 64;

/// Tries to find out whether a transaction was applied whose answer was lost.
const MAX_UNKNOWN: u32 = 16;
/// Between two of them, longer each time.
const UNKNOWN_WAIT: Duration = Duration::from_millis(50);

/// Puts a manifest under its name, which was never used before.
pub(crate) async fn put_manifest(store: &dyn ObjectStore, manifest: &Manifest) -> Result<()> {
    let (name, bytes) = (manifest.object_name().to_string(), Bytes::from(manifest.encode()));
    let payload = Payload::from(bytes.clone());
    let is_taken = store.put(&name, payload).await? == PutOutcome::Exists && !planted(Mutant::TakeAnyObject);
    if !is_taken {
        return Ok(());
    }
    let ask = async || match store.get_head(&name, u64::MAX >> 1).await? == bytes {
        true => Ok(()),
        false => Err(EngineError::corrupt(format!("{name}: another object stands under its name"))),
    };
    proved(ask).await
}

/// Puts a manifest under the first number, behind its own, that an earlier try of this writer has not taken in vain.
pub(crate) async fn put_numbered(env: &dyn Env, store: &dyn ObjectStore, manifest: &mut Manifest) -> Result<()> {
    for number in numbers_behind(env, manifest.number) {
        manifest.number = number;
        match put_manifest(store, manifest).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => reached(Branch::ManifestNumberTaken),
            done => return done,
        }
    }
    let what = format!("timeline {}: no number is free for a manifest", manifest.timeline);
    Err(EngineError::new(ErrorKind::Busy, what))
}

/// The name of a manifest in the volume's record.
pub(crate) const fn reference(manifest: &Manifest) -> ManifestRef {
    ManifestRef { number: manifest.number, epoch: manifest.epoch, writer: manifest.writer }
}

/// Whether an object may be deleted: the manifest that stopped needing it, and one after that up to number `newest`, were accepted.
pub(crate) fn may_go(dead: &DeadObject, newest: u64) -> bool {
    dead.since < newest || (dead.since == newest && planted(Mutant::DeleteBeforeSecondManifest))
}

/// Has a manifest accepted, with other changes of the record in the same step.
pub(crate) async fn accept(
    context: &Context,
    volume: VolumeId,
    manifest: &Manifest,
    mut also: impl FnMut(&mut VolumeRecord) -> Result<()>,
) -> Result<VolumeRecord> {
    let (timeline, epoch, writer) = (manifest.timeline, manifest.epoch, manifest.writer);
    let tries = Cell::new(0);
    let mut change = |record: &mut VolumeRecord| -> std::result::Result<(), Refused> {
        if (record.epoch != epoch || record.writer != writer) && !planted(Mutant::BlindManifest) {
            let what = format!("volume {volume}: it was opened elsewhere, in epoch {}", record.epoch);
            return Err(fenced(what).into());
        }
        let Some(entry) = record.timeline_mut(timeline) else {
            let what = format!("volume {volume}: timeline {timeline} is not part of it any more");
            return Err(fenced(what).into());
        };
        if entry.manifest == Some(reference(manifest)) {
            // No manifest has this name but this one: an earlier try was applied though its answer was lost.
            reached(Branch::UnknownApplied);
            return Ok(());
        }
        reached_if(tries.get() > 0, Branch::UnknownNotApplied);
        entry.manifest = Some(reference(manifest));
        Ok(also(record)?)
    };
    let records = Records::new(&*context.coord);
    loop {
        match records.modify_volume(volume, &mut change).await {
            Ok((record, _, ())) => return Ok(record),
            // A switch of what is shown must not be left open: whoever goes on with the old state would lose what is written to it.
            Err(Refused::Coord(error)) if error.is_unknown() && tries.get() < MAX_UNKNOWN => tries.set(tries.get() + 1),
            Err(Refused::Coord(error)) => return Err(error.into()),
            Err(Refused::Engine(error)) => return Err(error),
        }
        context.env.sleep(UNKNOWN_WAIT * tries.get()).await;
    }
}

/// Why a manifest was not accepted.
enum Refused {
    Coord(CoordError),
    Engine(EngineError),
}

impl From<CoordError> for Refused {
    fn from(error: CoordError) -> Self {
        Self::Coord(error)
    }
}

impl From<EngineError> for Refused {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

/// Deletes a manifest of a timeline that ends, by name: a listing may lag behind it.
pub(crate) async fn remove_manifest(pool: &PoolStore, timeline: TimelineId, named: Option<ManifestRef>) -> Result<()> {
    if let Some(named) = named {
        pool.store.delete(&manifest_name(timeline, named).to_string()).await?;
    }
    Ok(())
}

impl Timeline {
    /// Writes a manifest that differs from the last by `edit`, and has it accepted.
    pub async fn write_manifest(
        self: &Rc<Self>,
        edit: impl Fn(&mut Manifest, &mut Data),
        also: impl FnMut(&mut VolumeRecord) -> Result<()>,
    ) -> Result<VolumeRecord> {
        let turn = self.manifests.take().await;
        self.write_manifest_in_turn(&turn, edit, also).await
    }

    /// The same for who has the turn already.
    pub async fn write_manifest_in_turn(
        self: &Rc<Self>,
        _turn: &Held<'_>,
        edit: impl Fn(&mut Manifest, &mut Data),
        also: impl FnMut(&mut VolumeRecord) -> Result<()>,
    ) -> Result<VolumeRecord> {
        let manifest = self.next_manifest(edit)?;
        if !planted(Mutant::AcceptBeforePut) {
            put_manifest(&*self.pool.store, &manifest).await?;
        }
        let accepted = accept(&self.context, self.volume, &manifest, also).await;
        let record = accepted.inspect_err(|error| {
            if error.kind() == ErrorKind::Fenced {
                reached(Branch::ManifestFenced);
                self.stop(error.clone());
            }
        })?;
        if planted(Mutant::AcceptBeforePut) {
            put_manifest(&*self.pool.store, &manifest).await?;
        }
        {
            let mut data = self.data.borrow_mut();
            data.previous_manifest = Some(data.manifest.object_name());
            data.manifest = manifest;
        }
        self.changed.ring();
        self.start_deletes();
        Ok(record)
    }

    fn next_manifest(&self, edit: impl Fn(&mut Manifest, &mut Data)) -> Result<Manifest> {
        let mut data = self.data.borrow_mut();
        data.check()?;
        data.manifest_number += 1;
        let mut manifest = data.manifest.clone();
        manifest.number = data.manifest_number;
        manifest.epoch = self.epoch;
        manifest.writer = self.writer;
        manifest.written_ms = self.context.now_ms();
        // Marks below are in the list, or were deleted: they are not to be looked at again.
        manifest.marks_through = data.counted_end.max(manifest.marks_through);
        manifest.snapshots = data.snapshots.clone();
        manifest.dead.retain(|dead| !data.deleted.contains(&dead.name));
        if let Some(name) = data.previous_manifest
            && !manifest.dead.iter().any(|dead| dead.name == name)
        {
            manifest.dead.push(DeadObject { name, since: data.manifest.number });
        }
        edit(&mut manifest, &mut data);
        Ok(manifest)
    }

    /// Begins to delete what no manifest needs any more.
    pub fn start_deletes(self: &Rc<Self>) {
        {
            let mut data = self.data.borrow_mut();
            let number = data.manifest.number;
            let due = data.manifest.dead.iter().any(|d| may_go(d, number) && !data.deleted.contains(&d.name));
            if !due || std::mem::replace(&mut data.deleting, true) {
                return;
            }
        }
        let this = Rc::clone(self);
        self.context.env.spawn(Box::pin(async move {
            if let Err(error) = this.delete_dead().await {
                tracing::warn!(timeline = %this.id, %error, "objects could not be deleted; it will be tried again");
            }
            this.data.borrow_mut().deleting = false;
        }));
    }

    async fn delete_dead(self: &Rc<Self>) -> Result<()> {
        self.context.env.sleep(Duration::from_millis(self.context.limits.delete_grace_ms)).await;
        let due: Vec<ObjectName> = {
            let data = self.data.borrow();
            data.check()?;
            let number = data.manifest.number;
            let due = data.manifest.dead.iter().filter(|d| may_go(d, number) && !data.deleted.contains(&d.name));
            due.map(|dead| dead.name).collect()
        };
        self.pool.check().await.inspect_err(|error| {
            if error.kind() == ErrorKind::Fenced {
                self.stop(error.clone());
            }
        })?;
        for slice in due.chunks(SLICE) {
            self.data.borrow().check()?;
            delete_all(&*self.pool.store, slice.to_vec(), |name| {
                reached(Branch::DeadDeleted);
                self.data.borrow_mut().deleted.insert(name);
            })
            .await?;
        }
        Ok(())
    }
}
