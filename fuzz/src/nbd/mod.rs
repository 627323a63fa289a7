// SPDX-License-Identifier: Apache-2.0
//! The NBD server's byte stream: the real handshake and the real transmission, over a stream in memory and a device in memory.
//!
//! A client that sends anything gets a well-formed stream of replies, or a close. [`replies`] reads the stream as a client would, and holds it against
//! the requests that were sent: no request is answered twice or out of nothing, a read gives the bytes of its range, a request that is in order
//! succeeds, and where the client said good-bye every request was answered. The device holds the other side: it gets valid ranges only, and
//! the payloads that were sent, in their order.

mod device;
pub mod replies;
mod stream;

use crate::choose;
use bytes::BytesMut;
use device::Device;
use replies::Sent;
use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use stream::Stream;
use tokio::runtime::Runtime;
use varve_block::{BlockError, Result};
use varve_nbd::wire::Request;
use varve_nbd::{Closed, ExportInfo, Exports, HandshakeLimits, Negotiated, Outcome, negotiate, serve};
use varve_serve::{Peer, ServeError, Stats, Tuning};
use varve_types::ErrorKind;

/// How the two sides are, from the first bytes of an input.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Size of the device.
    pub size: u64,
    /// Every operation of the device answers later.
    pub later: bool,
    /// Its commits answer later, where its operations do not.
    pub later_commits: bool,
    /// Every so-manieth operation fails; 0 is none.
    pub fail: u8,
    /// The device takes no writes.
    pub read_only: bool,
    /// Structured replies were agreed, where there is no handshake.
    pub structured: bool,
    /// How the bytes are cut into pieces on their way.
    pub pieces: u8,
}

impl Setting {
    const fn new([kind, pieces]: [u8; 2]) -> Self {
        Self {
            size: match kind % 8 {
                0 => 512,
                1 => 5 << 19,
                _ => 64 << 10,
            },
            later: kind & 8 != 0,
            later_commits: kind & 128 != 0,
            fail: if kind & 16 != 0 { 3 } else { 0 },
            read_only: kind & 32 != 0,
            structured: kind & 64 != 0,
            pieces,
        }
    }
}

struct Names(Setting);

impl Exports for Names {
    async fn list(&self) -> Result<Vec<String>> {
        if self.0.fail > 0 {
            return Err(BlockError::new(ErrorKind::Unavailable, "it can not be told now"));
        }
        Ok(["disk", "disk@monday"].map(str::to_owned).to_vec())
    }
    async fn find(&self, name: &str) -> Result<ExportInfo> {
        match name {
            "" | "disk" => Ok(ExportInfo { name: "disk".to_owned(), size: self.0.size, read_only: self.0.read_only }),
            "disk@monday" => Ok(ExportInfo { name: name.to_owned(), size: self.0.size, read_only: true }),
            "away" => Err(BlockError::new(ErrorKind::Unavailable, "its store does not answer")),
            _ => Err(BlockError::new(ErrorKind::NotFound, format!("there is no volume {name:?}"))),
        }
    }
}

thread_local! {
    static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| {
        let make = || tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.get_or_init(make).block_on(future)
    })
}

/// An input: the choice (0 with a handshake, 1 without one), two bytes of [`Setting`], what the client sends.
pub fn check(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 2) else { return };
    let Some((setting, bytes)) = rest.split_first_chunk::<2>() else { return };
    let setting = Setting::new(*setting);
    if choice == 0 {
        with_handshake(setting, bytes);
    } else {
        let mut bytes = bytes.to_vec();
        replies::number(&mut bytes);
        let export = ExportInfo { name: "disk".to_owned(), size: setting.size, read_only: setting.read_only };
        let negotiated = Negotiated { export, structured: setting.structured, block_status: setting.structured };
        let mut stream = Stream::new(bytes, setting.pieces);
        transmission(setting, &mut stream, negotiated, BytesMut::new());
    }
}

fn with_handshake(setting: Setting, bytes: &[u8]) {
    let mut stream = Stream::new(bytes.to_vec(), setting.pieces);
    let peer = Peer::tcp(([127, 0, 0, 1], 1).into());
    let limits = HandshakeLimits { time: Duration::from_secs(60), ..HandshakeLimits::default() };
    let outcome = block_on(negotiate(&mut stream, &peer, &Names(setting), limits));
    let output = std::mem::take(&mut stream.output);
    match outcome {
        Ok(Outcome::Transmission(negotiated, leftover)) => {
            replies::check_handshake(&output, Some(&negotiated));
            assert_eq!(negotiated.export.size, setting.size);
            assert!(!negotiated.block_status || negotiated.structured);
            transmission(setting, &mut stream, negotiated, leftover);
        }
        Ok(Outcome::Left) => replies::check_handshake(&output, None),
        Err(error) => {
            assert!(
                !matches!(error, ServeError::TooSlow(_) | ServeError::Unix { .. } | ServeError::Tcp { .. }),
                "{error}"
            );
            replies::check_handshake(&output, None);
        }
    }
}

fn transmission(setting: Setting, stream: &mut Stream, negotiated: Negotiated, leftover: BytesMut) {
    let input = [&leftover[..], stream.rest()].concat();
    let (requests, good_bye) = replies::requests(&input);
    let device = Rc::new(Device::new(setting, negotiated.export.read_only));
    let stats = Arc::new(Stats::default());
    let tuning = Tuning { spin: Duration::ZERO };
    let shown: Rc<dyn varve_block::BlockDevice> = device.clone();
    let end = block_on(serve(&mut *stream, shown, negotiated.clone(), leftover, stats, tuning));
    if stream.is_full() {
        return;
    }
    if matches!(end, Ok(Closed::Disconnected)) {
        assert!(good_bye, "nobody said good-bye");
    }
    let sent = Sent { setting, negotiated, requests, said_good_bye: matches!(end, Ok(Closed::Disconnected)) };
    replies::check_transmission(&stream.output, &sent);
    device.check_writes(&input, &sent);
}

/// A request as a client sends it, for the corpus and the device.
#[must_use]
pub fn encoded(request: &Request) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    request.encode(&mut bytes);
    bytes.to_vec()
}
