// SPDX-License-Identifier: Apache-2.0
//! A server for the tests: the control runtime on one thread, a shard on another, as in the real one. It ends when it is dropped.

use super::ram::{Control, devices};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc as channel, oneshot};
use varve_block::{BlockError, Result};
use varve_lab::process::wait_until;
use varve_nbd::{Accepted, ExportInfo, Exports, HandshakeLimits, NbdGreeter, serve};
use varve_serve::{Endpoint, Listener, Slots, Stats, Tuning};
use varve_types::ErrorKind;

/// How long anything may take that is waited for.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A server with the exports `disk`, `other`, `disk@monday` (read-only) and `away` (which can not be had now).
pub struct Server {
    /// The knobs of the devices.
    pub control: Arc<Control>,
    /// The counters of the shard.
    pub stats: Arc<Stats>,
    /// The places for connections.
    pub slots: Slots,
    /// Its TCP port.
    pub port: u16,
    directory: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// How a server is to be.
pub struct Wish {
    /// Size of the devices in bytes.
    pub size: u64,
    /// Most connections.
    pub most: usize,
    /// Time for a handshake.
    pub handshake: Duration,
}

impl Default for Wish {
    fn default() -> Self {
        Self { size: 64 << 20, most: 4096, handshake: Duration::from_secs(10) }
    }
}

struct Names(Arc<Control>);

impl Exports for Names {
    async fn list(&self) -> Result<Vec<String>> {
        Ok(["disk", "other", "disk@monday", "away"].map(str::to_owned).to_vec())
    }
    async fn find(&self, name: &str) -> Result<ExportInfo> {
        let size = self.0.size.load(std::sync::atomic::Ordering::SeqCst);
        let info = |name: &str, read_only| Ok(ExportInfo { name: name.to_owned(), size, read_only });
        match name {
            "" | "disk" => info("disk", false),
            "other" => info("other", false),
            "disk@monday" => info("disk@monday", true),
            "away" => Err(BlockError::new(ErrorKind::Unavailable, "its store does not answer")),
            _ => Err(BlockError::new(ErrorKind::NotFound, format!("there is no volume {name:?}"))),
        }
    }
}

impl Server {
    pub fn start() -> Self {
        Self::with(Wish::default())
    }

    pub fn with(wish: Wish) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let control = Arc::new(Control::default());
        control.size.store(wish.size, std::sync::atomic::Ordering::SeqCst);
        let stats = Arc::new(Stats::default());
        let handshake = HandshakeLimits { time: wish.handshake, ..HandshakeLimits::default() };
        let slots = Slots::new(wish.most);
        let (to_shard, from_control) = channel::channel(64);
        let (stop, stopped) = oneshot::channel();
        let (port_out, port_in) = mpsc::channel();
        let unix = Endpoint::Unix(directory.path().join("nbd.sock"));
        let greeter = Arc::new(NbdGreeter::new(Names(Arc::clone(&control)), handshake));
        let places = slots.clone();
        let threads = vec![
            std::thread::spawn(move || run_control(&unix, greeter, places, to_shard, stopped, &port_out)),
            std::thread::spawn({
                let (control, stats) = (Arc::clone(&control), Arc::clone(&stats));
                move || run_shard(&control, stats, from_control)
            }),
        ];
        let port = port_in.recv_timeout(DEADLINE).unwrap();
        Self { control, stats, slots, port, directory, stop: Some(stop), threads }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd.sock")
    }

    /// The URI of an export over the unix socket.
    pub fn unix(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// The URI of an export over TCP.
    pub fn tcp(&self, export: &str) -> String {
        format!("nbd://127.0.0.1:{}/{export}", self.port)
    }

    /// Waits until no connection is left and every place is free again.
    pub fn wait_until_idle(&self, most: usize) {
        wait_until(DEADLINE, "the connections to end", || {
            Ok(self.stats.counts().connections == 0 && self.slots.free() == most)
        })
        .unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let socket = self.socket();
        self.stop.take().map(|stop| stop.send(()));
        let ends: Vec<_> = self.threads.drain(..).map(JoinHandle::join).collect();
        if !std::thread::panicking() {
            assert!(ends.iter().all(|end| end.is_ok()), "a thread of the server panicked");
            assert!(!socket.exists(), "a server that is stopped removes its socket");
            let breaches = self.control.breaches.load(std::sync::atomic::Ordering::SeqCst);
            assert_eq!(breaches, 0, "the front end broke the rules of the device");
        }
    }
}

fn run_control(
    unix: &Endpoint,
    greeter: Arc<NbdGreeter<Names>>,
    slots: Slots,
    to_shard: channel::Sender<Accepted>,
    stopped: oneshot::Receiver<()>,
    port: &mpsc::Sender<u16>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let unix = Listener::open(unix).await.unwrap();
        let tcp = Listener::open(&Endpoint::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
        let Endpoint::Tcp(address) = tcp.endpoint() else { panic!("a TCP listener has an address") };
        port.send(address.port()).unwrap();
        let deliver = move |accepted| {
            let to_shard = to_shard.clone();
            async move { to_shard.send(accepted).await.unwrap() }
        };
        let (tcp_stop, tcp_stopped) = oneshot::channel::<()>();
        let tcp = tcp.run(Arc::clone(&greeter), slots.clone(), deliver.clone(), async { drop(tcp_stopped.await) });
        let unix = async {
            let result = unix.run(greeter, slots, deliver, async { drop(stopped.await) }).await;
            drop(tcp_stop);
            result
        };
        let (unix, tcp) = tokio::join!(unix, tcp);
        unix.unwrap();
        tcp.unwrap();
    });
}

fn run_shard(control: &Arc<Control>, stats: Arc<Stats>, mut from_control: channel::Receiver<Accepted>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let devices = devices(control);
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        while let Some(accepted) = from_control.recv().await {
            let local = accepted.into_local().unwrap();
            let device = Rc::clone(&devices[local.negotiated.export.name.as_str()]);
            let stats = Arc::clone(&stats);
            tokio::task::spawn_local(async move {
                let _slot = local.slot;
                let (socket, leftover) = (local.socket, local.leftover);
                drop(serve(socket, device, local.negotiated, leftover, stats, Tuning::default()).await);
            });
        }
    });
}
