// SPDX-License-Identifier: Apache-2.0
//! Single requests and operations, outside the batches: each is tried until it is answered, and then it is in the model.

use super::admin::Kind;
use super::batch::Batch;
use super::disk::Change;
use super::line::Made;
use super::run::{Died, Run, write};
use super::stamp::bytes_of;
use crate::node::{finish, wait};
use std::rc::Rc;
use std::time::Duration;
use varve_engine::BlockDevice;

impl Run {
    pub(super) fn write_one(&mut self, vol: usize, offset: u64, len: u64) {
        let name = self.vols[vol].name.clone();
        self.stamps += 1;
        let stamp = self.stamps;
        self.alive(|this| {
            let device = this.device(&name)?;
            this.insist("write", move || write(Rc::clone(&device), offset, bytes_of(stamp, offset, len).into(), false))
        });
        self.was_answered(vol, Change::Write { offset, len, stamp });
    }

    pub(super) fn discard(&mut self, vol: usize, offset: u64, len: u64) {
        let name = self.vols[vol].name.clone();
        self.alive(|this| {
            let device = this.device(&name)?;
            this.insist("discard", move || {
                let device = Rc::clone(&device);
                async move { finish(&device, device.discard(offset, len, false)).await }
            })
        });
        self.was_answered(vol, Change::Zero { offset, len });
    }

    pub(super) fn flush(&mut self, vol: usize) -> Result<(), Died> {
        let name = self.vols[vol].name.clone();
        let device = self.device(&name)?;
        self.insist("flush", move || {
            let device = Rc::clone(&device);
            async move { wait(device.flush()).await }
        })
    }

    /// An operation on a volume, for itself; what is attached lets go of the volume first.
    pub(super) fn do_one(&mut self, kind: Kind, vol: usize) {
        self.detach(vol);
        let mut batch = Batch::default();
        self.add_admin(kind, vol, Duration::ZERO, &mut batch);
        let done = self.run_batch(batch);
        self.alive(|_| done);
    }

    fn was_answered(&mut self, vol: usize, change: Change) {
        self.vols[vol].line.add(vec![Made { change, answered: true, stable: false }]);
    }
}
