// SPDX-License-Identifier: Apache-2.0
//! Reading and changing the facts of `record.rs` through any [`Coord`].
//!
//! A volume is several keys: its record, the claim to its name, and one key a timeline. They are always changed in one transaction, and which keys
//! belong to a volume follows from its record alone ([`keys_of`]), so no caller can leave one behind. Every change names the revision that the
//! caller has read; whoever comes second gets `Conflict`. After [`CoordError::Unknown`] the caller reads again; nothing here tries again on it.
//!
//! Making a volume rewrites its pool's record as it was: that raises the record's revision, so that a removal of the pool, which found it empty
//! just before, does not go through.

use crate::record::{CLUSTER_KEY, POOL_PREFIX, VOLUME_PREFIX};
use crate::{
    Change, Check, ClusterRecord, Coord, CoordError, NameRecord, Outcome, PoolRecord, Record, Result, ScrubRecord,
    TimelineOwner, VolumeRecord,
};
use std::collections::BTreeSet;
use varve_types::branch::{Branch, reached};
use varve_types::mutant::{Mutant, planted};
use varve_types::{JournalId, Name, TimelineId, VolumeId};

/// How often a change is tried that others keep forestalling.
const MAX_TRIES: usize = 32;

/// The facts in a coordination.
#[derive(Clone, Copy)]
pub struct Records<'a> {
    pub(crate) coord: &'a dyn Coord,
}

impl<'a> Records<'a> {
    /// The facts in `coord`.
    #[must_use]
    pub const fn new(coord: &'a dyn Coord) -> Self {
        Self { coord }
    }

    pub(crate) async fn load<R: Record>(&self, key: &str) -> Result<Option<(R, u64)>> {
        let Some(entry) = self.coord.get(key).await? else { return Ok(None) };
        Ok(Some((R::decode(key, &entry.value)?, entry.revision)))
    }

    pub(crate) async fn list<R: Record>(&self, prefix: &str) -> Result<Vec<(R, u64)>> {
        let listing = self.coord.list(prefix).await?;
        listing.entries.iter().map(|entry| Ok((R::decode(&entry.key, &entry.value)?, entry.revision))).collect()
    }

    /// The cluster's record, if there is one yet.
    ///
    /// # Errors
    /// What coordination says; `Corrupt` or `Invalid` for a record that can not be read. So do all the others.
    pub async fn cluster(&self) -> Result<Option<ClusterRecord>> {
        Ok(self.load(CLUSTER_KEY).await?.map(|(record, _)| record))
    }

    /// The cluster's record; `fresh` becomes it where there is none.
    ///
    /// # Errors
    /// As [`cluster`](Self::cluster).
    pub async fn cluster_or_create(&self, fresh: ClusterRecord) -> Result<ClusterRecord> {
        if let Some(record) = self.cluster().await? {
            return Ok(record);
        }
        let changes = vec![Change::put(CLUSTER_KEY, fresh.encode()?)];
        match self.coord.transact(vec![Check::Absent(CLUSTER_KEY.to_owned())], changes).await? {
            Outcome::Applied { .. } => Ok(fresh),
            Outcome::Refused => {
                self.cluster().await?.ok_or_else(|| CoordError::Changed("the cluster record".to_owned()))
            }
        }
    }

    /// A pool and the revision of its record.
    ///
    /// # Errors
    /// `NotFound` where there is none of this name.
    pub async fn load_pool(&self, name: &Name) -> Result<(PoolRecord, u64)> {
        self.load(&PoolRecord::key_of(name)).await?.ok_or_else(|| CoordError::NotFound(format!("the pool {name}")))
    }

    /// All pools, sorted by name.
    ///
    /// # Errors
    /// As [`cluster`](Self::cluster).
    pub async fn list_pools(&self) -> Result<Vec<(PoolRecord, u64)>> {
        self.list(POOL_PREFIX).await
    }

    /// Makes a pool; gives the revision of its record.
    ///
    /// # Errors
    /// `Conflict` where the name is taken.
    pub async fn create_pool(&self, pool: &PoolRecord) -> Result<u64> {
        let key = pool.key();
        let changes = vec![Change::put(key.as_str(), pool.encode()?)];
        match self.coord.transact(vec![Check::Absent(key)], changes).await? {
            Outcome::Applied { revision } => Ok(revision),
            Outcome::Refused => Err(CoordError::Exists(format!("the pool {}", pool.name))),
        }
    }

    /// Changes a pool whose record was last changed at `revision`; gives the new revision.
    ///
    /// # Errors
    /// `Conflict` where somebody else was faster, `NotFound` where it is gone.
    pub async fn update_pool(&self, revision: u64, pool: &PoolRecord) -> Result<u64> {
        let key = pool.key();
        let changes = vec![Change::put(key.as_str(), pool.encode()?)];
        match self.coord.transact(vec![Check::Revision(key, revision)], changes).await? {
            Outcome::Applied { revision } => Ok(revision),
            Outcome::Refused => Err(self.pool_refused(&pool.name).await),
        }
    }

    /// Removes a pool whose record was last changed at `revision`.
    ///
    /// # Errors
    /// `Conflict` while it has volumes, deleted ones too, or where somebody else was faster; `NotFound` where it is gone.
    pub async fn remove_pool(&self, name: &Name, revision: u64) -> Result<()> {
        let inside = self.list_volumes().await?.into_iter().filter(|(volume, _)| volume.pool == *name).count();
        if inside > 0 {
            let reason = format!("it has {inside} volumes (deleted ones count until their time is over)");
            return Err(CoordError::InUse { what: format!("the pool {name}"), reason });
        }
        let key = PoolRecord::key_of(name);
        match self.coord.transact(vec![Check::Revision(key.clone(), revision)], vec![Change::Delete(key)]).await? {
            Outcome::Applied { .. } => Ok(()),
            Outcome::Refused => Err(self.pool_refused(name).await),
        }
    }

    async fn pool_refused(&self, name: &Name) -> CoordError {
        match self.load_pool(name).await {
            Ok(_) => CoordError::Changed(format!("the pool {name}")),
            Err(error) => error,
        }
    }

    /// A volume and the revision of its record.
    ///
    /// # Errors
    /// `NotFound` where there is none with this id.
    pub async fn load_volume(&self, id: VolumeId) -> Result<(VolumeRecord, u64)> {
        self.load(&VolumeRecord::key_of(id)).await?.ok_or_else(|| CoordError::NotFound(format!("the volume {id}")))
    }

    /// The volume that has the name, and the revision of its record. Deleted volumes have none.
    ///
    /// # Errors
    /// `NotFound` where nobody has it.
    pub async fn find_by_name(&self, name: &Name) -> Result<(VolumeRecord, u64)> {
        let none = || CoordError::NotFound(format!("the volume {name}"));
        for _ in 0..MAX_TRIES {
            let (claim, _): (NameRecord, u64) = self.load(&NameRecord::key_of(name)).await?.ok_or_else(none)?;
            match self.load_volume(claim.volume).await {
                Ok(found) if found.0.name == *name && found.0.deleted.is_none() => return Ok(found),
                // It was renamed, deleted or removed between the two reads: ask for the name again.
                Ok(_) | Err(CoordError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(CoordError::Busy(format!("the volume {name} is changed all the time")))
    }

    /// The volume whose timeline this is.
    ///
    /// # Errors
    /// `NotFound` where no volume has it.
    pub async fn find_timeline(&self, timeline: TimelineId) -> Result<VolumeId> {
        let found: Option<(TimelineOwner, u64)> = self.load(&TimelineOwner::key_of(timeline)).await?;
        found.map(|(owner, _)| owner.volume).ok_or_else(|| CoordError::NotFound(format!("the timeline {timeline}")))
    }

    /// All volumes, deleted ones too, sorted by id.
    ///
    /// # Errors
    /// As [`cluster`](Self::cluster).
    pub async fn list_volumes(&self) -> Result<Vec<(VolumeRecord, u64)>> {
        self.list(VOLUME_PREFIX).await
    }

    /// Makes a volume, if `checks` hold as well (a clone compares the record of its origin); gives the revision of its record.
    ///
    /// # Errors
    /// `NotFound` where its pool is not there, `Conflict` where its name, its id or a timeline of it is taken or one of `checks` does not hold.
    pub async fn create_volume(&self, volume: &VolumeRecord, checks: Vec<Check>) -> Result<u64> {
        for _ in 0..MAX_TRIES {
            let pool = PoolRecord::key_of(&volume.pool);
            let Some(entry) = self.coord.get(&pool).await? else {
                return Err(CoordError::NotFound(readable(&pool)));
            };
            let mut checks = checks.clone();
            checks.push(Check::Revision(pool.clone(), entry.revision));
            let mut changes = vec![Change::put(pool.as_str(), entry.value)];
            for (key, value) in keys_of(volume)? {
                checks.push(Check::Absent(key.clone()));
                changes.push(Change::put(key, value));
            }
            match self.coord.transact(checks.clone(), changes).await? {
                Outcome::Applied { revision } => return Ok(revision),
                Outcome::Refused => match self.why_refused(checks).await? {
                    CoordError::Changed(key) if key == pool => {} // Another volume was made in the pool.
                    error => return Err(error),
                },
            }
        }
        Err(CoordError::Busy(format!("the pool {} is changed all the time", volume.pool)))
    }

    /// Puts `new` in the place of `old`, which was read at `revision`, if `checks` hold as well; gives the new revision. Claims and gives up the
    /// name and the timelines as the two records differ.
    ///
    /// # Errors
    /// `Conflict` where somebody else was faster, or a name or timeline that it newly claims is taken, or one of `checks` does not hold;
    /// `NotFound` where the volume is gone.
    pub async fn update_volume(
        &self,
        old: &VolumeRecord,
        revision: u64,
        new: &VolumeRecord,
        checks: Vec<Check>,
    ) -> Result<u64> {
        if new.id != old.id || new.pool != old.pool {
            return Err(CoordError::Internal(format!("the id and the pool of the volume {} can not change", old.id)));
        }
        if new.epoch < old.epoch || new.show_number < old.show_number {
            return Err(CoordError::Internal(format!(
                "the epoch and show number of the volume {} can not go back",
                old.id
            )));
        }
        let mut checks = checks;
        let as_read = Check::Revision(old.key(), revision);
        checks.insert(0, if planted(Mutant::BlindRecordWrite) { Check::Exists(old.key()) } else { as_read });
        let (mut before, mut changes) = (key_set(old), Vec::new());
        for (key, value) in keys_of(new)? {
            let kept = before.remove(&key);
            if kept && key != new.key() {
                continue; // It names the volume already.
            }
            if !kept {
                checks.push(Check::Absent(key.clone()));
            }
            changes.push(Change::put(key, value));
        }
        changes.extend(before.into_iter().map(Change::Delete));
        match self.coord.transact(checks.clone(), changes).await? {
            Outcome::Applied { revision } => Ok(revision),
            Outcome::Refused => Err(self.why_refused(checks).await?),
        }
    }

    /// Changes a volume by `change`, which is called again with the newest record where somebody else was faster. Gives the new record, its
    /// revision, and what `change` gave. A record that `change` left as it was is not written.
    ///
    /// # Errors
    /// Those of `change`, which are final; those of [`update_volume`](Self::update_volume) but for a lost race; `Busy` after many of these.
    pub async fn modify_volume<T, E: From<CoordError>>(
        &self,
        id: VolumeId,
        change: impl FnMut(&mut VolumeRecord) -> std::result::Result<T, E>,
    ) -> std::result::Result<(VolumeRecord, u64, T), E> {
        self.change_volume(id, change, false).await
    }

    /// The same, but the record is written also where `change` left it as it was: whoever has read it before, and asks for a change of that later, is refused.
    ///
    /// # Errors
    /// As [`modify_volume`](Self::modify_volume).
    pub async fn rewrite_volume<T, E: From<CoordError>>(
        &self,
        id: VolumeId,
        change: impl FnMut(&mut VolumeRecord) -> std::result::Result<T, E>,
    ) -> std::result::Result<(VolumeRecord, u64, T), E> {
        self.change_volume(id, change, true).await
    }

    async fn change_volume<T, E: From<CoordError>>(
        &self,
        id: VolumeId,
        mut change: impl FnMut(&mut VolumeRecord) -> std::result::Result<T, E>,
        always: bool,
    ) -> std::result::Result<(VolumeRecord, u64, T), E> {
        for _ in 0..MAX_TRIES {
            let (old, revision) = self.load_volume(id).await?;
            let mut new = old.clone();
            let given = change(&mut new)?;
            if new == old && !always {
                return Ok((new, revision, given));
            }
            match self.update_volume(&old, revision, &new, Vec::new()).await {
                Ok(revision) => return Ok((new, revision, given)),
                Err(CoordError::Changed(_)) => reached(Branch::RecordChanged),
                Err(error) => return Err(error.into()),
            }
        }
        Err(CoordError::Busy(format!("the volume {id} is changed all the time")).into())
    }

    /// Removes a volume, read at `revision`, with all its keys.
    ///
    /// # Errors
    /// `Conflict` where somebody else was faster, `NotFound` where it is gone.
    pub async fn remove_volume(&self, volume: &VolumeRecord, revision: u64) -> Result<()> {
        let checks = vec![Check::Revision(volume.key(), revision)];
        let changes = key_set(volume).into_iter().map(Change::Delete).collect();
        match self.coord.transact(checks.clone(), changes).await? {
            Outcome::Applied { .. } => Ok(()),
            Outcome::Refused => Err(self.why_refused(checks).await?),
        }
    }

    /// How far the shard with this journal has come with scrubbing, if it has told.
    ///
    /// # Errors
    /// As [`cluster`](Self::cluster).
    pub async fn scrub(&self, journal: JournalId) -> Result<Option<ScrubRecord>> {
        Ok(self.load(&ScrubRecord::key_of(journal)).await?.map(|(record, _)| record))
    }

    /// Keeps how far a shard has come with scrubbing, whatever was kept before: nobody else writes it.
    ///
    /// # Errors
    /// What coordination says.
    pub async fn keep_scrub(&self, record: &ScrubRecord) -> Result<()> {
        self.coord.transact(Vec::new(), vec![Change::put(record.key(), record.encode()?)]).await.map(drop)
    }

    /// The error of a refused transaction: that of the first check that does not hold now.
    async fn why_refused(&self, checks: Vec<Check>) -> Result<CoordError> {
        let mut first = None;
        for check in checks {
            let (Check::Absent(key) | Check::Revision(key, _) | Check::Exists(key)) = &check;
            let found = self.coord.get(key).await?.map(|entry| entry.revision);
            match (&check, found) {
                (Check::Absent(key), Some(_)) => return Ok(CoordError::Exists(readable(key))),
                (Check::Revision(key, _) | Check::Exists(key), None) => return Ok(CoordError::NotFound(readable(key))),
                (Check::Revision(key, wanted), Some(revision)) if *wanted != revision => {
                    return Ok(CoordError::Changed(key.clone()));
                }
                _ => first = first.or(Some(key.clone())),
            }
        }
        // All hold now: what stood in the way has gone since. The caller lost a race, whichever it was.
        Ok(CoordError::Changed(first.unwrap_or_default()))
    }
}

/// Every key of the volume.
fn key_set(volume: &VolumeRecord) -> BTreeSet<String> {
    let claim = volume.deleted.is_none().then(|| NameRecord::key_of(&volume.name));
    let timelines = volume.timelines.iter().map(|timeline| TimelineOwner::key_of(timeline.id));
    timelines.chain(claim).chain([volume.key()]).collect()
}

/// The same with their values; in the order in which a person wants to hear what is taken.
fn keys_of(volume: &VolumeRecord) -> Result<Vec<(String, Vec<u8>)>> {
    let mut keys = vec![(volume.key(), volume.encode()?)];
    if volume.deleted.is_none() {
        let claim = NameRecord { version: NameRecord::VERSION, name: volume.name.clone(), volume: volume.id };
        keys.push((claim.key(), claim.encode()?));
    }
    for timeline in &volume.timelines {
        let owner = TimelineOwner { version: TimelineOwner::VERSION, timeline: timeline.id, volume: volume.id };
        keys.push((owner.key(), owner.encode()?));
    }
    Ok(keys)
}

/// The key as people call the thing: `name/x` is the volume x.
fn readable(key: &str) -> String {
    match key.split_once('/') {
        Some(("name", name)) => format!("the volume {name}"),
        Some((kind, id)) => format!("the {kind} {id}"),
        None => format!("the record {key}"),
    }
}
