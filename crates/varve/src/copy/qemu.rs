// SPDX-License-Identifier: Apache-2.0
//! `qemu-img`, for the formats that are not raw.
//!
//! The format is always named to it and never left to its own guess. It is killed when the conversion is given up.

use super::Format;
use crate::failure::{Failure, Result};
use crate::progress::Bar;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(20);

/// The format of a file by its first bytes; raw where they say nothing.
pub fn detect(file: &File) -> std::io::Result<Format> {
    let mut head = [0u8; 512];
    let mut have = 0;
    while have < head.len() {
        match file.read_at(&mut head[have..], have as u64)? {
            0 => break,
            more => have += more,
        }
    }
    let magic = |at: usize, bytes: &[u8]| head[at..].starts_with(bytes);
    Ok(match () {
        () if magic(0, b"QFI\xfb") => Format::Qcow2,
        () if magic(0, b"QED\0") => Format::Qed,
        () if magic(0, b"KDMV") || magic(0, b"# Disk DescriptorFile") => Format::Vmdk,
        () if magic(0, b"vhdxfile") => Format::Vhdx,
        () if magic(0, b"conectix") => Format::Vpc,
        () if magic(64, &[0x7f, 0x10, 0xda, 0xbe]) => Format::Vdi,
        () => Format::Raw,
    })
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, or its end is wanted; there is nothing to do about a failure.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Converts one image file to another; `to` is overwritten and sparse.
pub async fn convert(from: &Path, from_format: Format, to: &Path, to_format: Format) -> Result<()> {
    let said = tempfile::tempfile().map_err(|error| Failure::io("a temporary file", &error))?;
    let copy = said.try_clone().map_err(|error| Failure::io("a temporary file", &error))?;
    let mut command = Command::new("qemu-img");
    command
        .args(["convert", "-f", from_format.as_str(), "-O", to_format.as_str()])
        .arg(file_name(from))
        .arg(file_name(to));
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(copy).spawn();
    let child = child.map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            let format = if from_format == Format::Raw { to_format } else { from_format };
            let format = format.as_str();
            Failure::failed(format!("{format} needs the program qemu-img, which is not installed (Debian: qemu-utils)"))
        }
        _ => Failure::io("qemu-img", &error),
    })?;
    let mut running = Running(child);
    let _bar = Bar::open("converting with qemu-img");
    let status = loop {
        match running.0.try_wait().map_err(|error| Failure::io("qemu-img", &error))? {
            Some(status) => break status,
            None => tokio::time::sleep(PAUSE).await,
        }
    };
    if status.success() {
        return Ok(());
    }
    Err(Failure::failed(format!("qemu-img failed ({status}): {}", text(said).trim())))
}

/// The path so that qemu-img takes it neither for an option nor for a URL.
fn file_name(path: &Path) -> std::path::PathBuf {
    if path.is_absolute() { path.to_owned() } else { Path::new(".").join(path) }
}

fn text(mut file: File) -> String {
    let mut bytes = Vec::new();
    // Where it can not be read, the status has to do.
    let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(4096).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}
