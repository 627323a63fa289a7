// SPDX-License-Identifier: Apache-2.0
//! Data of volumes through the API: devices that live from one request to the next.
//!
//! An import or an export is a row of requests, each of which knows nothing of the others. A device for each would
//! detach between them, which seals a layer; so devices are kept for a while, by target. They are given up by a
//! flush (the end of an import), after some seconds without a request, and at once for an operation that wants the
//! volume detached, unless a request is under way.
//!
//! Bounds: [`MOST_DEVICES`] are kept, the one not used for longest goes first. A crash ends them; what was flushed
//! is durable.

use super::connections::check_free;
use super::local::Local;
use crate::api::model::{Extent, ExtentMap, Target};
use crate::api::{ControlError, MAX_EXTENTS};
use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use varve_engine::{BlockDevice, Device, EngineError, Submit};
use varve_types::{ErrorKind, Name};

/// Devices that are kept.
const MOST_DEVICES: usize = 64;
/// How long one is kept that nobody uses.
const IDLE_TIME: Duration = Duration::from_secs(5);
/// How often that is looked at.
pub(super) const LOOK_TIME: Duration = Duration::from_secs(1);

struct Kept {
    device: Rc<Device>,
    used: Instant,
}

/// The devices that are kept, by target and whether they write.
#[derive(Default)]
pub(super) struct Sessions {
    kept: RefCell<BTreeMap<(String, bool), Kept>>,
}

impl Sessions {
    async fn device(&self, local: &Local, target: &Target, writes: bool) -> Result<Rc<Device>, EngineError> {
        let key = (target.to_string(), writes);
        self.kept.borrow_mut().retain(|_, kept| !local.is_lost(kept.device.volume().id()));
        if let Some(kept) = self.kept.borrow_mut().get_mut(&key) {
            kept.used = Instant::now();
            return Ok(Rc::clone(&kept.device));
        }
        let volume = local.find(&target.volume).await?;
        let who = if writes { "api import" } else { "api export" }.to_owned();
        let device = match &target.snapshot {
            Some(snapshot) => volume.snapshot_device(snapshot, who).await?,
            None => {
                let device = volume.device(who).await?.0;
                if writes {
                    // Only now: an edge may have got it while this waited.
                    check_free(&volume)?;
                }
                device
            }
        };
        let device = Rc::new(device);
        let mut kept = self.kept.borrow_mut();
        if kept.len() >= MOST_DEVICES
            && let Some(oldest) = kept.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| key.clone())
        {
            kept.remove(&oldest);
        }
        kept.insert(key, Kept { device: Rc::clone(&device), used: Instant::now() });
        Ok(device)
    }

    /// Gives up the devices of a volume that no request uses now.
    pub(super) fn release(&self, volume: &Name) {
        self.kept
            .borrow_mut()
            .retain(|_, kept| Rc::strong_count(&kept.device) > 1 || kept.device.volume().name() != *volume);
    }

    /// Gives up those that nobody has used for a while.
    pub(super) fn release_idle(&self) {
        self.kept.borrow_mut().retain(|_, kept| Rc::strong_count(&kept.device) > 1 || kept.used.elapsed() < IDLE_TIME);
    }

    /// Gives up all.
    pub(super) fn end(&self) {
        self.kept.borrow_mut().clear();
    }
}

/// Waits for an operation; one that is done at once is committed.
async fn finish(device: &Device, submit: Submit<()>) -> Result<(), EngineError> {
    match submit {
        Submit::Done(result) => {
            result?;
            device.commit().wait().await
        }
        Submit::Later(later) => later.await,
    }
}

/// Reads exactly `len` bytes.
pub(super) async fn read(local: &Local, target: &Target, offset: u64, len: u32) -> Result<Bytes, ControlError> {
    let device = local.sessions.device(local, target, false).await?;
    let mut out = BytesMut::with_capacity(len as usize);
    let bytes = match device.read(offset, len, &mut out) {
        Submit::Done(result) => {
            result?;
            out.freeze()
        }
        Submit::Later(later) => later.await?,
    };
    if bytes.len() != len as usize {
        return Err(ControlError::new(ErrorKind::Internal, "the device read another length than was asked"));
    }
    Ok(bytes)
}

/// Writes.
pub(super) async fn write(local: &Local, volume: Name, offset: u64, data: Bytes) -> Result<(), ControlError> {
    let device = local.sessions.device(local, &Target { volume, snapshot: None }, true).await?;
    let submit = device.write(offset, data, false);
    Ok(finish(&device, submit).await?)
}

/// Frees a range.
pub(super) async fn zero(local: &Local, volume: Name, offset: u64, len: u64) -> Result<(), ControlError> {
    let device = local.sessions.device(local, &Target { volume, snapshot: None }, true).await?;
    let submit = device.write_zeroes(offset, len, false);
    Ok(finish(&device, submit).await?)
}

/// Makes durable what was written, and gives the device up.
pub(super) async fn flush(local: &Local, volume: Name) -> Result<(), ControlError> {
    let device = local.sessions.device(local, &Target { volume: volume.clone(), snapshot: None }, true).await?;
    let submit = device.flush();
    let result = finish(&device, submit).await;
    drop(device);
    local.sessions.release(&volume);
    Ok(result?)
}

/// Which parts of a range hold data.
pub(super) async fn extents(local: &Local, target: &Target, offset: u64, len: u64) -> Result<ExtentMap, ControlError> {
    let device = local.sessions.device(local, target, false).await?;
    let size_bytes = device.size();
    if len == 0 {
        return Ok(ExtentMap { size_bytes, offset_bytes: offset, extents: Vec::new() });
    }
    let found = match device.block_status(offset, len, MAX_EXTENTS) {
        Submit::Done(result) => result?,
        Submit::Later(later) => later.await?,
    };
    let mut extents: Vec<Extent> = Vec::with_capacity(found.len());
    for extent in found {
        match extents.last_mut() {
            Some(last) if last.hole == extent.hole => last.len_bytes += extent.len,
            _ => extents.push(Extent { len_bytes: extent.len, hole: extent.hole }),
        }
    }
    Ok(ExtentMap { size_bytes, offset_bytes: offset, extents })
}
