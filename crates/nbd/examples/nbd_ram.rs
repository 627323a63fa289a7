// SPDX-License-Identifier: Apache-2.0
//! A disk in RAM over NBD, on one thread: what the front end alone costs. `nbd_ram SOCKET MIB [SPIN_US]`, then
//! `fio --ioengine=nbd --uri='nbd+unix:///ram?socket=SOCKET' …`, beside `nbdkit memory`.
//!
//! The disk is one `Vec` that forgets everything when the program ends; a write is one copy into it, a read one copy out of it. Every call of the
//! device is done at once, so nothing is measured here but receiving, acting and answering.

use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use varve_block::{BlockDevice, Result, StatusExtent, Submit};
use varve_nbd::{Accepted, ExportInfo, Exports, HandshakeLimits, NbdGreeter, serve};
use varve_serve::{Endpoint, Listener, Slots, Stats, Tuning};

struct Ram(RefCell<Vec<u8>>);

impl BlockDevice for Ram {
    fn size(&self) -> u64 {
        self.0.borrow().len() as u64
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, len: u32, out: &mut BytesMut) -> Submit<Bytes> {
        let start = offset as usize;
        out.extend_from_slice(&self.0.borrow()[start..start + len as usize]);
        Submit::Done(Ok(Bytes::new()))
    }
    fn write(&self, offset: u64, data: Bytes, _: bool) -> Submit<()> {
        let start = offset as usize;
        self.0.borrow_mut()[start..start + data.len()].copy_from_slice(&data);
        Submit::Done(Ok(()))
    }
    fn flush(&self) -> Submit<()> {
        Submit::Done(Ok(()))
    }
    fn discard(&self, offset: u64, len: u64, _: bool) -> Submit<()> {
        self.0.borrow_mut()[offset as usize..(offset + len) as usize].fill(0);
        Submit::Done(Ok(()))
    }
    fn block_status(&self, _: u64, len: u64, _: usize) -> Submit<Vec<StatusExtent>> {
        Submit::Done(Ok(vec![StatusExtent { len, hole: false }]))
    }
    fn prefetch(&self, _: u64, _: u64) -> Submit<()> {
        Submit::Done(Ok(()))
    }
    fn commit(&self) -> Submit<()> {
        Submit::Done(Ok(()))
    }
}

struct One(u64);

impl Exports for One {
    async fn list(&self) -> Result<Vec<String>> {
        Ok(vec!["ram".to_owned()])
    }
    async fn find(&self, _: &str) -> Result<ExportInfo> {
        Ok(ExportInfo { name: "ram".to_owned(), size: self.0, read_only: false })
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = PathBuf::from(arguments.next().ok_or("usage: nbd_ram SOCKET MIB [SPIN_US]")?);
    let size = arguments.next().ok_or("how many MiB?")?.parse::<u64>()? << 20;
    let mut tuning = Tuning::default();
    if let Some(spin) = arguments.next() {
        tuning.spin = Duration::from_micros(spin.parse()?);
    }
    let device: Rc<dyn BlockDevice> = Rc::new(Ram(RefCell::new(vec![0; usize::try_from(size)?])));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let listener = Listener::open(&Endpoint::Unix(socket)).await?;
        let (sender, mut receiver) = mpsc::channel::<Accepted>(64);
        let deliver = move |accepted| {
            let sender = sender.clone();
            async move { drop(sender.send(accepted).await) }
        };
        let stop = async { drop(tokio::signal::ctrl_c().await) };
        tokio::task::spawn_local(async move {
            let stats = Arc::new(Stats::default());
            while let Some(accepted) = receiver.recv().await {
                let Ok(local) = accepted.into_local() else { continue };
                let (device, stats) = (Rc::clone(&device), Arc::clone(&stats));
                tokio::task::spawn_local(async move {
                    let _slot = local.slot;
                    drop(serve(local.socket, device, local.negotiated, local.leftover, stats, tuning).await);
                });
            }
        });
        let greeter = NbdGreeter::new(One(size), HandshakeLimits::default());
        listener.run(Arc::new(greeter), Slots::default(), deliver, stop).await
    })?;
    Ok(())
}
