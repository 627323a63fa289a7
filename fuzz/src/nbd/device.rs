// SPDX-License-Identifier: Apache-2.0
//! A device in memory that keeps nothing but a list of what was written: what it reads is a pattern of the place.
//!
//! It asserts what a front end owes every device: valid ranges, no flush over writes that were not committed, no write where none is taken,
//! and at the end that nothing was left uncommitted. As the setting says, its operations are done at once or after some looks, and some of them
//! fail.

use super::Setting;
use super::replies::Sent;
use bytes::{Bytes, BytesMut};
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::task::{Context, Poll};
use varve_block::{BlockDevice, BlockError, Result, StatusExtent, Submit};
use varve_nbd::wire::Command;
use varve_types::ErrorKind;

const SECTOR: u64 = 512;

pub(super) struct Device {
    setting: Setting,
    read_only: bool,
    operations: Cell<u32>,
    uncommitted: Cell<bool>,
    written: RefCell<Vec<(u64, Bytes)>>,
}

/// The byte that stands at a place.
pub(super) const fn pattern(at: u64) -> u8 {
    (at / SECTOR * 31 + at) as u8
}

/// Completes after some looks.
struct Soon<T> {
    looks: u32,
    result: Option<Result<T>>,
}

impl<T: Unpin> Future for Soon<T> {
    type Output = Result<T>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        if self.looks > 0 {
            self.looks -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.result.take().expect("a future that is ready is not asked again"))
    }
}

impl Device {
    pub(super) fn new(setting: Setting, read_only: bool) -> Self {
        let (operations, uncommitted) = (Cell::new(0), Cell::new(false));
        Self { setting, read_only, operations, uncommitted, written: RefCell::default() }
    }

    fn check(&self, offset: u64, len: u64) {
        let end = offset.checked_add(len).expect("a range does not wrap");
        assert!(len > 0 && offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR) && end <= self.setting.size);
    }

    /// What the next operation comes to, and after how many looks if it answers later.
    fn turn<T>(&self, value: T) -> (Result<T>, u32) {
        let turn = self.operations.replace(self.operations.get().wrapping_add(1));
        let fails = self.setting.fail > 0 && turn % u32::from(self.setting.fail) == 1;
        (if fails { Err(BlockError::new(ErrorKind::NoSpace, "it is full")) } else { Ok(value) }, turn % 5)
    }

    fn submit<T: Unpin + 'static>(&self, value: T) -> Submit<T> {
        let (result, looks) = self.turn(value);
        if self.setting.later {
            return Submit::Later(Box::pin(Soon { looks, result: Some(result) }));
        }
        Submit::Done(result)
    }

    fn change(&self) -> Submit<()> {
        assert!(!self.read_only, "a device that takes no writes gets one");
        let submit = self.submit(());
        if matches!(submit, Submit::Done(Ok(()))) {
            self.uncommitted.set(true);
        }
        submit
    }

    /// Asserts that what was written is what the client sent, in its order; of a connection that broke, a first part of it.
    pub(super) fn check_writes(&self, input: &[u8], sent: &Sent) {
        let written = self.written.borrow();
        let mut expected = sent.requests.iter().filter(|sent| {
            sent.request.command == Command::Write && sent.request.length > 0 && sent.is_in_order(self.setting.size)
        });
        for (offset, data) in written.iter() {
            let write = expected.next().expect("more is written than was sent");
            assert_eq!(*offset, write.request.offset);
            assert!(
                data[..] == input[write.payload..write.payload + data.len()],
                "other bytes are written than were sent"
            );
            assert_eq!(data.len(), write.request.length as usize);
        }
        if sent.said_good_bye && !self.read_only {
            assert!(expected.next().is_none(), "a write did not reach the device");
        }
        assert!(!self.uncommitted.get(), "the connection ended before its writes were committed");
    }
}

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        self.setting.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, len: u32, out: &mut BytesMut) -> Submit<Bytes> {
        self.check(offset, u64::from(len));
        let data: Vec<u8> = (offset..offset + u64::from(len)).map(pattern).collect();
        match self.submit(Bytes::from(data)) {
            Submit::Done(Ok(data)) => {
                out.extend_from_slice(&data);
                Submit::Done(Ok(Bytes::new()))
            }
            other => other,
        }
    }

    fn write(&self, offset: u64, data: Bytes, _fua: bool) -> Submit<()> {
        self.check(offset, data.len() as u64);
        self.written.borrow_mut().push((offset, data));
        self.change()
    }

    fn flush(&self) -> Submit<()> {
        assert!(!self.uncommitted.get(), "a flush over writes that are not committed");
        self.submit(())
    }

    fn discard(&self, offset: u64, len: u64, _fua: bool) -> Submit<()> {
        self.check(offset, len);
        self.change()
    }

    fn block_status(&self, offset: u64, len: u64, most: usize) -> Submit<Vec<StatusExtent>> {
        self.check(offset, len);
        assert!(most > 0);
        let sectors = (offset / SECTOR..(offset + len) / SECTOR).take(most);
        self.submit(sectors.map(|sector| StatusExtent { len: SECTOR, hole: sector / 3 % 2 == 0 }).collect())
    }

    fn prefetch(&self, offset: u64, len: u64) -> Submit<()> {
        self.check(offset, len);
        self.submit(())
    }

    fn commit(&self) -> Submit<()> {
        self.uncommitted.set(false);
        if !self.setting.later_commits {
            return Submit::Done(Ok(()));
        }
        let (result, looks) = self.turn(());
        Submit::Later(Box::pin(Soon { looks, result: Some(result) }))
    }
}
