// SPDX-License-Identifier: Apache-2.0
//! Volumes and snapshots as block devices.
//!
//! A device is an attachment: while it lives the volume is attached, and
//! what it shows can not be changed for another timeline. Dropping it
//! detaches.
//!
//! What a device answers may need the owner's lease (see [`crate::mirror`]): that of an edge that has the volume for itself never does, nor that of a snapshot.
//!
//! Reads, writes and discards take their turn under the limits of the volume, before anything of them begins; changes also that which is left to them while
//! the store does not keep up.

use crate::timeline::Timeline;
use crate::volume::{Attachment, Volume};
use crate::{BlockDevice, Position, Result, StatusExtent, Submit};
use bytes::{Bytes, BytesMut};
use std::rc::Rc;
use std::time::Duration;
use varve_types::{BLOCK, Name};

/// An attached volume, or a snapshot of one.
pub struct Device {
    volume: Rc<Volume>,
    timeline: Rc<Timeline>,
    attachment: u64,
    pub(crate) read_only: bool,
    /// Whether who uses it can not tell an owner from one that was taken over.
    pub(crate) needs_lease: bool,
}

impl Volume {
    /// Attaches somebody to the volume. Gives the device, and who else is attached.
    ///
    /// # Errors
    /// When the volume has stopped serving.
    pub async fn device(self: &Rc<Self>, peer: String) -> Result<(Device, Vec<Attachment>)> {
        let _turn = self.changes.take().await;
        let timeline = self.shown();
        timeline.data.borrow().check()?;
        Ok(self.attach_device(&timeline, peer))
    }

    /// Attaches somebody to what is shown. Who asks has the turn of changes.
    pub(crate) fn attach_device(self: &Rc<Self>, timeline: &Rc<Timeline>, peer: String) -> (Device, Vec<Attachment>) {
        let read_only = self.check_writable().is_err();
        let (attachment, others) = self.attach(peer);
        let (volume, timeline) = (Rc::clone(self), Rc::clone(timeline));
        // A node by itself has nobody who could take over, and its answers go no longer way for that.
        let needs_lease = self.context.mirrors.borrow().is_some();
        (Device { volume, timeline, attachment, read_only, needs_lease }, others)
    }

    /// Attaches somebody to a snapshot of the volume, read-only.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub async fn snapshot_device(self: &Rc<Self>, name: &Name, peer: String) -> Result<Device> {
        let _turn = self.changes.take().await;
        let timeline = self.snapshot_view(name).await?;
        let (attachment, _) = self.attach(format!("{peer} (snapshot {name})"));
        Ok(Device { volume: Rc::clone(self), timeline, attachment, read_only: true, needs_lease: false })
    }
}

impl Device {
    /// The volume that it belongs to.
    pub fn volume(&self) -> &Rc<Volume> {
        &self.volume
    }

    /// Begins a change of so many bytes, or waits until the limits of the volume allow it, and the journal has what it needs without haste.
    fn limited(&self, bytes: u64, begin: impl FnOnce(&Rc<Timeline>) -> Submit<()> + 'static) -> Submit<()> {
        let (held_back, slowed) = (self.held_back(bytes), self.timeline.slowed(bytes.max(BLOCK)));
        if held_back.is_none() && slowed.is_none() {
            return begin(&self.timeline);
        }
        let (volume, timeline) = (Rc::clone(&self.volume), Rc::clone(&self.timeline));
        Submit::Later(Box::pin(async move {
            if let Some(wait) = held_back {
                volume.rate.wait(&*volume.context.env, wait, bytes).await;
            }
            if let Some(wait) = slowed {
                timeline.wait_slowed(wait).await;
            }
            match begin(&timeline) {
                Submit::Done(done) => {
                    done?;
                    timeline.commit().wait().await
                }
                Submit::Later(later) => later.await,
            }
        }))
    }

    /// For how long a request of so many bytes has to wait, if it has to.
    fn held_back(&self, bytes: u64) -> Option<Duration> {
        Some(self.volume.rate.take(&*self.volume.context.env, bytes)).filter(|wait| !wait.is_zero())
    }

    /// Answers what was found, once it may be answered.
    fn answer<T: 'static>(&self, found: Submit<T>) -> Submit<T> {
        if !self.needs_lease {
            return found;
        }
        let timeline = Rc::clone(&self.timeline);
        match found {
            Submit::Done(Ok(_)) if timeline.lease_holds() => found,
            Submit::Done(Ok(found)) => Submit::Later(Box::pin(async move { timeline.lease().await.map(|()| found) })),
            Submit::Done(Err(_)) => found,
            Submit::Later(later) => Submit::Later(Box::pin(async move {
                let found = later.await?;
                if !timeline.lease_holds() {
                    timeline.lease().await?;
                }
                Ok(found)
            })),
        }
    }

    /// Answers a change: one that is done by its commit.
    fn changed(&self, made: Submit<()>) -> Submit<()> {
        if matches!(made, Submit::Done(_)) { made } else { self.answer(made) }
    }

    fn read_found(&self, offset: u64, len: u32, out: &mut BytesMut) -> Submit<Bytes> {
        let bytes = u64::from(len);
        let Some(wait) = self.held_back(bytes) else { return self.timeline.read(offset, len, out) };
        let (volume, timeline) = (Rc::clone(&self.volume), Rc::clone(&self.timeline));
        Submit::Later(Box::pin(async move {
            volume.rate.wait(&*volume.context.env, wait, bytes).await;
            let mut out = BytesMut::new();
            match timeline.read(offset, len, &mut out) {
                Submit::Done(done) => done.map(|_| out.freeze()),
                Submit::Later(later) => later.await,
            }
        }))
    }

    fn refuse<T>(&self) -> Option<Submit<T>> {
        self.read_only.then(|| Submit::Done(Err(crate::write::read_only(&format!("volume {}", self.volume.name())))))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.volume.detach(self.attachment);
    }
}

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        self.timeline.data.borrow().size
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read(&self, offset: u64, len: u32, out: &mut BytesMut) -> Submit<Bytes> {
        let start = out.len();
        match self.read_found(offset, len, out) {
            Submit::Done(Ok(_)) if self.needs_lease && !self.timeline.lease_holds() => {
                self.answer(Submit::Done(Ok(out.split_off(start).freeze())))
            }
            Submit::Done(done) => Submit::Done(done),
            later => self.answer(later),
        }
    }
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Submit<()> {
        let bytes = data.len() as u64;
        self.refuse()
            .unwrap_or_else(|| self.changed(self.limited(bytes, move |timeline| timeline.write(offset, data, fua))))
    }
    fn flush(&self) -> Submit<()> {
        if self.read_only { Submit::Done(Ok(())) } else { self.timeline.flush() }
    }
    fn discard(&self, offset: u64, len: u64, fua: bool) -> Submit<()> {
        self.refuse()
            .unwrap_or_else(|| self.changed(self.limited(0, move |timeline| timeline.discard(offset, len, fua))))
    }
    fn block_status(&self, offset: u64, len: u64, most: usize) -> Submit<Vec<StatusExtent>> {
        self.answer(self.timeline.block_status(offset, len, most))
    }
    fn prefetch(&self, offset: u64, len: u64) -> Submit<()> {
        if let Err(error) = self.timeline.check_range(offset, len) {
            return Submit::Done(Err(error));
        }
        let timeline = Rc::clone(&self.timeline);
        Submit::Later(Box::pin(async move {
            const STEP: u64 = 1 << 20;
            let mut at = offset;
            while at < offset + len {
                let part = STEP.min(offset + len - at);
                timeline.read_waiting(at, part).await?;
                at += part;
            }
            Ok(())
        }))
    }
    fn position(&self) -> Position {
        self.timeline.position()
    }
    fn commit(&self) -> Submit<()> {
        if self.read_only {
            return Submit::Done(Ok(()));
        }
        match self.timeline.commit() {
            done @ Submit::Done(_) => self.answer(done),
            // The mirror itself says so.
            later @ Submit::Later(_) => later,
        }
    }
}
