// SPDX-License-Identifier: Apache-2.0
//! The operations of the node in memory.

use super::{CREATED_MS, Fake, FakePool, State, snapshot_id};
use bytes::Bytes;
use std::collections::BTreeMap;
use varve_server::api::model::{
    CheckReport, Cleaning, CleaningDone, CleaningFailure, CleaningOffer, CleaningProgress, CleaningTaken,
    CleaningTerms, CloneVolume, Cluster, ClusterNode, Coordination, CoordinationKind, ExtentMap, NewPool, NewVolume,
    Origin, Pool, PoolImport, ProgressUnit, Rewind, RewindPoints, Rewound, RollbackReport, Scrub, SetCleaning,
    SetScrub, Snapshot, Status, Target, Volume, VolumeCheck, VolumeCounts,
};
use varve_server::api::{Answer, Control, ControlError, ProgressHandle};
use varve_types::{ClusterId, LeaseId, Name, Overrides};

impl Fake {
    /// Changes the state and answers at once.
    fn now<T: Send + 'static>(&self, change: impl FnOnce(&mut State) -> Result<T, ControlError>) -> Answer<'_, T> {
        let result = change(&mut self.state());
        Box::pin(async { result })
    }
}

fn apply(own: &mut Overrides, settings: &BTreeMap<String, String>) -> Result<(), ControlError> {
    settings.iter().try_for_each(|(key, value)| {
        own.set(key, value).map_err(|error| ControlError::invalid(format!("unchecked setting: {error}")))
    })
}

impl Control for Fake {
    fn volumes(&self) -> Answer<'_, Vec<Volume>> {
        self.now(|state| Ok(state.volumes.keys().map(|name| state.view(name)).collect()))
    }
    fn volume(&self, name: Name) -> Answer<'_, Volume> {
        self.now(|state| state.any(&name).map(|_| ()).map(|()| state.view(&name)))
    }
    fn create_volume(&self, new: NewVolume) -> Answer<'_, Volume> {
        self.now(|state| {
            let pool = new.pool.unwrap_or_else(|| super::name("default"));
            state.make(&new.name, &pool, new.size_bytes)?;
            apply(&mut state.live(&new.name)?.own, &new.settings)?;
            Ok(state.view(&new.name))
        })
    }
    fn resize_volume(&self, name: Name, size_bytes: u64, force: bool) -> Answer<'_, Volume> {
        self.now(|state| {
            let volume = state.live(&name)?;
            let cuts = volume.blocks.keys().any(|block| (block + 1) * varve_types::BLOCK > size_bytes);
            if cuts && !force {
                return Err(ControlError::conflict(format!("volume {name} has data beyond the new end")));
            }
            volume.blocks.retain(|block, _| block * varve_types::BLOCK < size_bytes);
            volume.size = size_bytes;
            Ok(state.view(&name))
        })
    }
    fn rename_volume(&self, name: Name, new: Name) -> Answer<'_, Volume> {
        self.now(|state| {
            state.live(&name)?;
            if state.volumes.contains_key(&new) {
                return Err(ControlError::conflict(format!("there is a volume {new} already")));
            }
            let volume = state.volumes.remove(&name).unwrap();
            state.volumes.insert(new.clone(), volume);
            Ok(state.view(&new))
        })
    }
    fn delete_volume(&self, name: Name) -> Answer<'_, Volume> {
        self.now(|state| {
            if !super::attached(&name).is_empty() {
                return Err(ControlError::conflict(format!("volume {name} is attached")));
            }
            state.live(&name)?.deleted = true;
            Ok(state.view(&name))
        })
    }
    fn undelete_volume(&self, name: Name) -> Answer<'_, Volume> {
        self.now(|state| {
            if !std::mem::take(&mut state.any(&name)?.deleted) {
                return Err(ControlError::conflict(format!("volume {name} is not deleted")));
            }
            Ok(state.view(&name))
        })
    }
    fn detach_volume(&self, name: Name) -> Answer<'_, Volume> {
        self.now(|state| {
            state.live(&name)?;
            Ok(state.view(&name))
        })
    }
    fn take_volume(&self, name: Name, force: bool) -> Answer<'_, Volume> {
        self.now(|state| {
            state.live(&name)?;
            if !force && name.as_str() == "theirs" {
                return Err(ControlError::conflict("what node-2 acknowledged may be lost"));
            }
            Ok(state.view(&name))
        })
    }
    fn make_template(&self, name: Name) -> Answer<'_, Volume> {
        self.now(|state| {
            state.live(&name)?.template = true;
            Ok(state.view(&name))
        })
    }
    fn set_volume(&self, name: Name, settings: BTreeMap<String, String>) -> Answer<'_, Volume> {
        self.now(|state| {
            apply(&mut state.live(&name)?.own, &settings)?;
            Ok(state.view(&name))
        })
    }

    fn pools(&self) -> Answer<'_, Vec<Pool>> {
        self.now(|state| state.pools.keys().map(|name| state.pool_view(name)).collect())
    }
    fn pool(&self, name: Name) -> Answer<'_, Pool> {
        self.now(|state| state.pool_view(&name))
    }
    fn create_pool(&self, new: NewPool) -> Answer<'_, Pool> {
        self.now(|state| {
            if state.pools.contains_key(&new.name) {
                return Err(ControlError::conflict(format!("there is a pool {} already", new.name)));
            }
            state.pools.insert(new.name.clone(), FakePool { store: new.store, own: Overrides::default() });
            state.pool_view(&new.name)
        })
    }
    fn set_pool(&self, name: Name, settings: BTreeMap<String, String>) -> Answer<'_, Pool> {
        self.now(|state| {
            let pool = state.pools.get_mut(&name).ok_or_else(|| ControlError::not_found("pool", &name))?;
            apply(&mut pool.own, &settings)?;
            state.pool_view(&name)
        })
    }
    fn delete_pool(&self, name: Name) -> Answer<'_, Pool> {
        self.now(|state| {
            let view = state.pool_view(&name)?;
            if !view.volumes.is_empty() {
                return Err(ControlError::conflict(format!("pool {name} has volumes")));
            }
            state.pools.remove(&name);
            Ok(view)
        })
    }
    fn import_pool(&self, store: String, progress: ProgressHandle) -> Answer<'_, PoolImport> {
        progress.unit(ProgressUnit::Items);
        progress.total(1);
        progress.add(1);
        self.now(|state| {
            let imported = super::name("imported");
            state.pools.insert(imported.clone(), FakePool { store, own: Overrides::default() });
            state.make(&super::name("found"), &imported, 1 << 20)?;
            Ok(PoolImport { pool: state.pool_view(&imported)?, warnings: vec!["volume x was left out".to_owned()] })
        })
    }

    fn snapshots(&self, volume: Name) -> Answer<'_, Vec<Snapshot>> {
        self.now(|state| Ok(state.live(&volume)?.snapshots.iter().map(|(snapshot, _)| snapshot.clone()).collect()))
    }
    fn create_snapshot(&self, volume: Name, name: Name) -> Answer<'_, Snapshot> {
        self.now(|state| {
            let found = state.live(&volume)?;
            if found.snapshots.iter().any(|(snapshot, _)| snapshot.name == name) {
                return Err(ControlError::conflict(format!("volume {volume} has a snapshot {name} already")));
            }
            let count = found.snapshots.len() as u8;
            let snapshot = Snapshot {
                name,
                id: snapshot_id(count),
                created_ms: CREATED_MS + u64::from(count) * 1000,
                size_bytes: found.size,
                hidden: false,
            };
            found.snapshots.push((snapshot.clone(), found.blocks.clone()));
            Ok(snapshot)
        })
    }
    fn delete_snapshot(&self, volume: Name, name: Name) -> Answer<'_, Snapshot> {
        self.now(|state| {
            let snapshots = &mut state.live(&volume)?.snapshots;
            let index = snapshots.iter().position(|(snapshot, _)| snapshot.name == name);
            let index = index.ok_or_else(|| ControlError::not_found("snapshot", &name))?;
            Ok(snapshots.remove(index).0)
        })
    }
    fn rollback(&self, volume: Name, snapshot: Name, dry_run: bool) -> Answer<'_, RollbackReport> {
        self.now(|state| {
            let found = state.live(&volume)?;
            let index = found.snapshots.iter().position(|(at, _)| at.name == snapshot && !at.hidden);
            let index = index.ok_or_else(|| ControlError::not_found("snapshot", &snapshot))?;
            let hides: Vec<_> = found.snapshots[index + 1..].iter().map(|(snapshot, _)| snapshot.clone()).collect();
            let undo_until_ms = Some(CREATED_MS + 3_600_000);
            if dry_run {
                return Ok(RollbackReport { done: false, hides, undo_until_ms });
            }
            found.snapshots[index + 1..].iter_mut().for_each(|(snapshot, _)| snapshot.hidden = true);
            let (at, blocks) = found.snapshots[index].clone();
            let old = (std::mem::replace(&mut found.size, at.size_bytes), std::mem::replace(&mut found.blocks, blocks));
            found.undo = Some(old);
            Ok(RollbackReport { done: true, hides, undo_until_ms })
        })
    }
    fn undo_rollback(&self, volume: Name) -> Answer<'_, Volume> {
        self.now(|state| {
            let found = state.live(&volume)?;
            let none = || ControlError::conflict(format!("volume {volume} has no rollback to undo"));
            (found.size, found.blocks) = found.undo.take().ok_or_else(none)?;
            found.snapshots.iter_mut().for_each(|(snapshot, _)| snapshot.hidden = false);
            Ok(state.view(&volume))
        })
    }
    fn clone_volume(&self, volume: Name, clone: CloneVolume) -> Answer<'_, Volume> {
        self.now(|state| {
            let target = Target { volume: volume.clone(), snapshot: clone.snapshot.clone() };
            let (size, blocks) = state.contents(&target).map(|(size, blocks)| (size, blocks.clone()))?;
            let pool = state.live(&volume)?.pool.clone();
            state.make(&clone.name, &pool, size)?;
            let made = state.live(&clone.name)?;
            made.blocks = blocks;
            made.origin = Some(Origin { volume: Some(volume), snapshot: clone.snapshot });
            Ok(state.view(&clone.name))
        })
    }
    fn rewind_points(&self, volume: Name, most: u32) -> Answer<'_, RewindPoints> {
        self.now(|state| {
            state.live(&volume)?;
            let all: Vec<u64> = (0..5).map(|at| CREATED_MS + at * 1000).collect();
            let latest_ms = all[all.len().saturating_sub(most as usize)..].to_vec();
            let (count, oldest_ms) = (all.len() as u64, all.first().copied());
            Ok(RewindPoints { window_ms: 3_600_000, count, oldest_ms, latest_ms, held_bytes: 0 })
        })
    }
    fn rewind(&self, volume: Name, rewind: Rewind) -> Answer<'_, Rewound> {
        self.now(|state| {
            let at_ms = rewind.to_ms.unwrap_or(CREATED_MS);
            if at_ms < CREATED_MS {
                return Err(ControlError::not_found("moment", &volume));
            }
            let found = state.live(&volume)?;
            let (pool, size, blocks) = (found.pool.clone(), found.size, found.blocks.clone());
            state.make(&rewind.name, &pool, size)?;
            let made = state.live(&rewind.name)?;
            made.blocks = blocks;
            made.origin = Some(Origin { volume: Some(volume), snapshot: None });
            Ok(Rewound { at_ms, volume: state.view(&rewind.name) })
        })
    }
    fn flatten(&self, volume: Name, progress: ProgressHandle) -> Answer<'_, Volume> {
        progress.total(1 << 20);
        progress.add(1 << 20);
        self.now(|state| {
            state.live(&volume)?.origin = None;
            Ok(state.view(&volume))
        })
    }

    fn nodes(&self) -> Answer<'_, Vec<ClusterNode>> {
        self.now(|state| Ok(state.nodes.clone()))
    }
    fn node(&self, node: Name) -> Answer<'_, ClusterNode> {
        self.now(|state| state.node(&node))
    }
    fn remove_node(&self, node: Name) -> Answer<'_, ClusterNode> {
        self.now(|state| {
            let found = state.node(&node)?;
            if found.alive {
                return Err(ControlError::conflict(format!("the node {node} is alive")));
            }
            state.nodes.retain(|other| other.id != found.id);
            Ok(found)
        })
    }
    fn cluster(&self) -> Answer<'_, Cluster> {
        self.now(|state| {
            let coordination = Coordination {
                kind: CoordinationKind::Etcd,
                endpoints: vec!["http://127.0.0.1:2379".to_owned()],
                prefix: Some("/varve/".to_owned()),
                reachable: true,
                message: None,
            };
            let volumes = VolumeCounts { owned: state.volumes.len() as u64, orphaned: 1, ..VolumeCounts::default() };
            let id = ClusterId::from_bytes([3; 16]);
            Ok(Cluster { id, coordination, nodes: state.nodes.clone(), volumes })
        })
    }

    fn status(&self) -> Answer<'_, Status> {
        self.now(|state| Ok(state.status()))
    }
    fn check(&self, volume: Option<Name>, progress: ProgressHandle) -> Answer<'_, CheckReport> {
        Box::pin(async move {
            let names: Vec<_> = match volume {
                Some(volume) => vec![volume],
                None => self.state().volumes.keys().cloned().collect(),
            };
            let mut report = CheckReport { volumes: Vec::new(), duration_ms: 12 };
            for name in names {
                progress.message(name.as_str());
                if name.as_str() == "held" {
                    self.held.notified().await;
                }
                let mut check = VolumeCheck::new(name.clone());
                check.blocks_verified = self.state().live(&name)?.blocks.len() as u64;
                check.bytes_verified = check.blocks_verified * varve_types::BLOCK;
                check.counts_compared = 3;
                if name.as_str() == "rotten" {
                    check.error("0000/segment/1", "block 3: checksum is wrong");
                }
                report.volumes.push(check);
            }
            Ok(report)
        })
    }
    fn cleaning(&self) -> Answer<'_, Cleaning> {
        self.now(|state| Ok(state.cleaning.clone()))
    }
    fn set_cleaning(&self, set: SetCleaning) -> Answer<'_, Cleaning> {
        self.now(move |state| {
            let now = &mut state.cleaning;
            now.paused = set.paused.unwrap_or(now.paused);
            now.rate_bytes = set.rate_bytes.map_or(now.rate_bytes, |rate| (rate > 0).then_some(rate));
            Ok(now.clone())
        })
    }
    fn cleaning_job(&self, worker: Name) -> Answer<'_, CleaningOffer> {
        self.now(move |state| {
            let job = state.cleaning_job.clone().filter(|_| worker.as_str() != "idle");
            Ok(CleaningOffer { job })
        })
    }
    fn renew_cleaning_job(&self, job: LeaseId, progress: CleaningProgress) -> Answer<'_, CleaningTerms> {
        self.now(move |state| {
            let found = state.cleaning_job.as_ref().filter(|found| found.id == job);
            let found = found.ok_or_else(|| ControlError::not_found("job", job))?;
            let rate_bytes = Some(progress.read_bytes).filter(|read| *read > 0);
            Ok(CleaningTerms { rate_bytes, ..found.terms })
        })
    }
    fn complete_cleaning_job(&self, job: LeaseId, done: CleaningDone) -> Answer<'_, CleaningTaken> {
        self.now(move |state| match &state.cleaning_job {
            Some(found) if found.id == job && found.bundle == done.bundle => {
                Ok(CleaningTaken { segments: done.shares })
            }
            Some(found) if found.id == job => Err(ControlError::invalid("it is another object")),
            _ => Err(ControlError::not_found("job", job)),
        })
    }
    fn fail_cleaning_job(&self, job: LeaseId, failure: CleaningFailure) -> Answer<'_, Cleaning> {
        self.now(move |state| {
            state.cleaning_job.take_if(|found| found.id == job).ok_or_else(|| ControlError::not_found("job", job))?;
            state.cleaning.failed_jobs += u64::from(!failure.given_back);
            Ok(state.cleaning.clone())
        })
    }
    fn scrub(&self) -> Answer<'_, Scrub> {
        self.now(|state| Ok(state.scrub.clone()))
    }
    fn set_scrub(&self, set: SetScrub) -> Answer<'_, Scrub> {
        self.now(move |state| {
            let now = &mut state.scrub;
            now.rate_bytes = set.rate_bytes.map_or(now.rate_bytes, |rate| (rate > 0).then_some(rate));
            now.running |= set.now;
            Ok(now.clone())
        })
    }
    fn metrics(&self) -> Answer<'_, String> {
        let text = format!("# TYPE varve_volumes gauge\nvarve_volumes {}\n# EOF\n", self.state().volumes.len());
        Box::pin(async move { Ok(text) })
    }

    fn read(&self, target: Target, offset: u64, len: u32) -> Answer<'_, Bytes> {
        if target.volume.as_str() == "stuck" {
            self.state().volumes.get_mut(&target.volume).unwrap().reads += 1;
            return Box::pin(std::future::pending());
        }
        self.now(|state| state.read(&target, offset, len))
    }
    fn write(&self, volume: Name, offset: u64, data: Bytes) -> Answer<'_, ()> {
        if volume.as_str() == "stuck" {
            let mut state = self.state();
            let stuck = state.volumes.get_mut(&volume).unwrap();
            stuck.writes += 1;
            stuck.blocks.insert(0, vec![1; varve_types::BLOCK as usize]);
            return Box::pin(std::future::pending());
        }
        self.now(|state| state.write(&volume, offset, &data))
    }
    fn zero(&self, volume: Name, offset: u64, len: u64) -> Answer<'_, ()> {
        self.now(|state| state.zero(&volume, offset, len))
    }
    fn flush(&self, volume: Name) -> Answer<'_, ()> {
        self.now(|state| {
            state.live(&volume)?.flushes += 1;
            Ok(())
        })
    }
    fn extents(&self, target: Target, offset: u64, len: u64) -> Answer<'_, ExtentMap> {
        self.now(|state| state.extents(&target, offset, len))
    }
}
