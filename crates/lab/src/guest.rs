// SPDX-License-Identifier: Apache-2.0
//! Linux guests in QEMU: machines that a test can boot in seconds, talk to, and cut the power of.
//!
//! A guest is for what the host cannot do: use a volume as the disk of a real kernel, and lose a page cache. A process that
//! is killed on the host loses nothing that it wrote, so only a server inside a guest shows whether it flushed what it
//! promised. [`Kernel::find`] has the kernel, [`Initramfs`] what is on board, [`Guest::boot`] the life; a guest has no root
//! disk, so after a kill the same archive boots again on the same disks. Nothing here sleeps: every wait has a deadline and
//! ends with the console's tail in its error.
//!
//! ```no_run
//! use std::time::Duration;
//! use varve_lab::guest::{Disk, Guest, GuestConfig, Initramfs, Kernel, RawCache};
//!
//! # fn main() -> anyhow::Result<()> {
//! let soon = Duration::from_secs(60);
//! let directory = tempfile::tempdir()?;
//! let kernel = Kernel::find()?;
//! let initramfs = Initramfs::builder()
//!     .program("mkfs.ext4") // from the host, with its libraries
//!     .program("/work/target/debug/varve") // env!("CARGO_BIN_EXE_varve") in a test of that package
//!     .build(&kernel, directory.path())?;
//!
//! // /dev/vda is a volume that a server on the host serves, /dev/vdb a raw file.
//! let mut config = GuestConfig::new(kernel, initramfs, directory.path());
//! config.disks.push(Disk::nbd(directory.path().join("nbd.sock"), "vol1"));
//! config.disks.push(Disk::create_raw(directory.path().join("disk.raw"), 1 << 30, RawCache::Volatile)?);
//! config.forward_ports.push(10809); // for a client on the host of a server in the guest
//!
//! let mut guest = Guest::boot(config.clone())?;
//! guest.check("mkfs.ext4 -q /dev/vda && mount -t ext4 /dev/vda /mnt && echo hello >/mnt/file && sync", soon)?;
//!
//! // A load goes on in the background and reports what it knows to be safe.
//! guest.keep_writes_in_memory()?;
//! guest.check(
//!     "mkfs.ext4 -q /dev/vdb && mkdir /data && mount -t ext4 /dev/vdb /data
//!      varve up --data /data --volume v:64M --nbd-listen 0.0.0.0:10809 >/data/log 2>&1 &
//!      { i=0; while :; do i=$((i + 1)); dd if=/dev/zero of=/mnt/$i bs=4k count=1 conv=fsync; echo $i >/dev/report; done; } &",
//!     soon,
//! )?;
//! let address = guest.forwarded(10809)?; // 127.0.0.1 and a port of the host
//! guest.reports().wait_for_count(100, soon)?;
//! guest.kill()?; // the power cut
//! let promised = guest.reports().lines();
//!
//! let mut guest = Guest::boot(config)?;
//! guest.check("mount -t ext4 /dev/vda /mnt", soon)?;
//! for name in promised {
//!     guest.check(&format!("test -s /mnt/{name}"), soon)?;
//! }
//! # let _ = address;
//! # Ok(()) }
//! ```

mod channel;
mod cpio;
mod initramfs;
mod kernel;
mod machine;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use channel::{LineLog, Output};
pub use initramfs::{Initramfs, InitramfsBuilder};
pub use kernel::Kernel;
pub use machine::Guest;

/// How a guest is built.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// The kernel.
    pub kernel: Kernel,
    /// What is on board.
    pub initramfs: Initramfs,
    /// Where `console.log`, `qemu.log` and `disk<n>.log` are kept; further boots are appended.
    pub directory: PathBuf,
    /// RAM, MiB; the archive lies in it. 512 at first.
    pub memory_mb: u32,
    /// Processors; each is a thread of QEMU. 1 at first, which also boots fastest. A guest of two has hung before
    /// its user space in CI, and elsewhere it is known to; the cause was never seen.
    pub cpus: u32,
    /// The disks, `/dev/vda` first.
    pub disks: Vec<Disk>,
    /// TCP ports of the guest that the host can reach; see [`Guest::forwarded`]. A server has to listen on 0.0.0.0 or on
    /// 10.0.2.15. The guest itself reaches nothing. Without ports it has no network but its loopback.
    pub forward_ports: Vec<u16>,
    /// More words for the kernel's command line.
    pub append: String,
}

impl GuestConfig {
    /// A guest with 512 MiB, one processor and no disks.
    pub fn new(kernel: Kernel, initramfs: Initramfs, directory: &Path) -> Self {
        Self {
            kernel,
            initramfs,
            directory: directory.to_path_buf(),
            memory_mb: 512,
            cpus: 1,
            disks: Vec::new(),
            forward_ports: Vec::new(),
            append: String::new(),
        }
    }
}

/// A disk of a guest. All have a write cache that the guest flushes.
#[derive(Debug, Clone)]
pub enum Disk {
    /// A raw file on the host.
    Raw {
        /// The file.
        path: PathBuf,
        /// How QEMU writes it.
        cache: RawCache,
    },
    /// An export of an NBD server on a unix socket. The server has to be there at boot.
    Nbd {
        /// The server's socket.
        socket: PathBuf,
        /// The export's name.
        export: String,
        /// For so long requests wait while the server is away, seconds; then they fail. 0: they fail at once.
        reconnect_delay_s: u32,
    },
}

impl Disk {
    /// An export that may be away for 60 s.
    pub fn nbd(socket: impl Into<PathBuf>, export: &str) -> Self {
        Self::Nbd { socket: socket.into(), export: export.to_owned(), reconnect_delay_s: 60 }
    }

    /// A new raw file of that size without any blocks.
    ///
    /// # Errors
    /// When it exists or cannot be made.
    pub fn create_raw(path: impl Into<PathBuf>, size_bytes: u64, cache: RawCache) -> Result<Self> {
        let path = path.into();
        let file = File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.set_len(size_bytes)?;
        Ok(Self::Raw { path, cache })
    }
}

/// How QEMU writes a raw file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawCache {
    /// Through the host's page cache; a flush is an `fdatasync`.
    Writeback,
    /// Past the host's page cache (`O_DIRECT`), still with flushes.
    Direct,
    /// As a disk whose cache dies with the power: what the guest wrote is in the file only once the guest flushed the disk
    /// after it. [`Guest::kill`] loses the rest. Flushes are slow, and discards do not free space of the file. The strictest
    /// power cut: it tells a missing flush of the disk, which the other modes forgive.
    Volatile,
}
