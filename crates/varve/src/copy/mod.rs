// SPDX-License-Identifier: Apache-2.0
//! Image files to volumes and back.
//!
//! The file is the client's, so its bytes go through the API: pieces of [`PIECE`] bytes, [`IN_FLIGHT`] of them under way. What is zero is neither
//! sent nor written, on both ways: holes of the file and of the volume are passed over without being read, and blocks of zeroes are found in what is
//! read. Formats other than raw are converted by `qemu-img`, to or from a sparse temporary file beside the image.
//!
//! A copy that fails or is interrupted leaves nothing behind: an import deletes the volume that it made, an export never shows a file that is not whole.

pub mod export;
pub mod import;
mod qemu;
mod sparse;

use crate::failure::{Failure, Result};
use clap::ValueEnum;
use std::future::Future;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Bytes of one request.
const PIECE: u64 = 4 << 20;
/// Requests under way.
const IN_FLIGHT: usize = 4;

/// Format of an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
    /// QEMU's enhanced disk.
    Qed,
    /// VMware's disk.
    Vmdk,
    /// VirtualBox's disk.
    Vdi,
    /// Hyper-V's disk.
    Vhdx,
    /// Virtual PC's disk.
    Vpc,
}

impl Format {
    /// What qemu-img calls it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qed => "qed",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
        }
    }
}

/// Watches for signals that end a copy. One that comes while nothing can be given up is not lost: it counts at the next step.
struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    fn watch() -> Result<Self> {
        let catch = |kind| signal(kind).map_err(|error| Failure::io("catching signals", &error));
        Ok(Self { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// Runs a step until it ends or somebody wants it to end.
    async fn unless<T>(&mut self, step: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            result = step => result,
            _ = self.interrupt.recv() => Err(Failure::failed("interrupted")),
            _ = self.terminate.recv() => Err(Failure::failed("interrupted")),
        }
    }
}

/// Runs what blocks (file I/O) beside the requests.
async fn blocking<T: Send + 'static>(job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(job).await {
        Ok(result) => result,
        Err(error) => Err(Failure::failed(format!("a defect of Varve: {error}"))),
    }
}
