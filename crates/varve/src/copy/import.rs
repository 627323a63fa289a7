// SPDX-License-Identifier: Apache-2.0
//! An image file becomes a volume.
//!
//! Order: open the image (and convert it), make the volume, send what is not zero, flush, and only then say that it is there. The volume has the
//! size of the disk in the image, rounded up to whole sectors. A failure after the volume was made, or a signal, deletes it again and says
//! so; only SIGKILL, or a node that is gone, leaves an unfinished one. The image is read by its open file, so that renaming it does no harm;
//! one that shrinks meanwhile is an error.

use super::{Format, IN_FLIGHT, Interrupt, PIECE, blocking, qemu, sparse};
use crate::client::{Body, Client};
use crate::commands::volume;
use crate::failure::{Failure, Result};
use crate::out;
use crate::progress::Bar;
use bytes::{Bytes, BytesMut};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use hyper::Method;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tempfile::NamedTempFile;
use varve_server::api::model::{NewVolume, Volume};
use varve_types::{MAX_VOLUME, Name, SECTOR, format_size};

/// What to import.
#[derive(Debug, Args)]
pub struct Import {
    /// The image file, or a block device
    file: PathBuf,
    /// Name of the volume
    name: Name,
    /// The pool that is to keep it
    #[arg(long, default_value = "default")]
    pool: Name,
    /// Format of the file [default: what its first bytes say]
    #[arg(long, hide_possible_values = true, value_name = "raw|qcow2|qed|vmdk|vdi|vhdx|vpc")]
    format: Option<Format>,
}

/// What was imported.
#[derive(Debug, Serialize)]
struct Imported {
    /// The volume.
    volume: Volume,
    /// Bytes that were sent; the rest is zero.
    data_bytes: u64,
    /// How long it took.
    duration_ms: u64,
}

/// An image, opened: a raw file and its length. Holds the file that a conversion made.
struct Image {
    file: Arc<File>,
    len: u64,
    _converted: Option<NamedTempFile>,
}

/// Imports it.
pub async fn run(import: Import, client: &Client, json: bool) -> Result<()> {
    let start = Instant::now();
    let mut interrupt = Interrupt::watch()?;
    let image = interrupt.unless(open(&import.file, import.format)).await?;
    let size_bytes = image.len.next_multiple_of(SECTOR);
    let new = NewVolume { name: import.name.clone(), size_bytes, pool: Some(import.pool), settings: BTreeMap::new() };
    volume::create(client, new).await?;
    let copied = interrupt.unless(copy(&image, &import.name, client)).await;
    let data_bytes = match copied {
        Ok(data_bytes) => data_bytes,
        Err(failure) => {
            let ended = volume::delete(client, &import.name).await;
            return Err(match ended {
                Ok(_) => failure.and("the unfinished volume was deleted"),
                Err(why) => failure.and(&format!("the unfinished volume {} is left: {}", import.name, why.message)),
            });
        }
    };
    let volume = client.get(&format!("/v1/volumes/{}", import.name)).await?;
    let duration_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    out::show(json, &Imported { volume, data_bytes, duration_ms }, |done| {
        let (data, time) = (format_size(done.data_bytes), out::duration(done.duration_ms));
        let rate = out::rate(done.data_bytes, done.duration_ms);
        format!("{}{data} of data in {time}, {rate}\n", volume::made("imported", &done.volume))
    })
}

async fn open(path: &Path, format: Option<Format>) -> Result<Image> {
    let fail = |error| Failure::io(path.display(), &error);
    let mut file = File::open(path).map_err(fail)?;
    if file.metadata().map_err(fail)?.is_dir() {
        return Err(Failure::usage(format!("{} is a directory", path.display())));
    }
    let format = match format {
        Some(format) => format,
        None => qemu::detect(&file).map_err(fail)?,
    };
    let mut converted = None;
    if format != Format::Raw {
        let temporary = temporary_beside(path)?;
        qemu::convert(path, format, temporary.path(), Format::Raw).await?;
        // By name: qemu-img may have made the file anew.
        file = File::open(temporary.path()).map_err(|error| Failure::io(temporary.path().display(), &error))?;
        converted = Some(temporary);
    }
    // The end of a block device is found only this way.
    let len = file.seek(SeekFrom::End(0)).map_err(fail)?;
    if len == 0 || len > MAX_VOLUME {
        let what = if len == 0 { "is empty" } else { "is larger than 64 TiB" };
        return Err(Failure::usage(format!("{} {what}: no volume can be made of it", path.display())));
    }
    Ok(Image { file: Arc::new(file), len, _converted: converted })
}

/// Beside the image, where there is likely room; else where temporary files go.
fn temporary_beside(path: &Path) -> Result<NamedTempFile> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".varve-import-").suffix(".raw");
    let made = builder.tempfile_in(dir).or_else(|_| builder.tempfile());
    made.map_err(|error| Failure::io("a temporary file for the conversion", &error))
}

/// Pieces of the file that hold data, found as they are asked for.
struct Pieces {
    file: Arc<File>,
    len: u64,
    at: u64,
    data: Range<u64>,
}

impl Iterator for Pieces {
    type Item = std::io::Result<Range<u64>>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.data.is_empty() {
            match sparse::next_data(&self.file, self.at, self.len) {
                Ok(Some(data)) => self.data = data,
                Ok(None) => return None,
                Err(error) => {
                    self.at = self.len;
                    return Some(Err(error));
                }
            }
        }
        // Pieces end at multiples of their size, so that blocks are not cut.
        let end = ((self.data.start / PIECE + 1) * PIECE).min(self.data.end);
        let piece = self.data.start..end;
        self.data.start = end;
        self.at = end;
        Some(Ok(piece))
    }
}

impl Image {
    fn pieces(&self) -> Pieces {
        Pieces { file: Arc::clone(&self.file), len: self.len, at: 0, data: 0..0 }
    }
}

/// Sends the data, makes it durable, and says how much it was.
async fn copy(image: &Image, name: &Name, client: &Client) -> Result<u64> {
    let reading = |error| Failure::io("reading the image", &error);
    let total = image.pieces().try_fold(0, |sum, piece| piece.map(|piece| sum + (piece.end - piece.start)));
    let bar = Bar::bytes(&format!("importing {name}"), total.map_err(reading)?);
    let pieces = stream::iter(image.pieces()).map(|piece| {
        let (file, len, bar) = (Arc::clone(&image.file), image.len, &bar);
        async move {
            let piece = piece.map_err(reading)?;
            let range = piece.clone();
            let bytes = blocking(move || read(&file, range, len).map_err(reading)).await?;
            let mut sent = 0;
            for run in sparse::data_runs(&bytes) {
                sent += run.len() as u64;
                let offset = piece.start + run.start as u64;
                let path = format!("/v1/volumes/{name}/data?offset={offset}");
                client.send(Method::PUT, &path, Body::Data(bytes.slice(run))).await?;
            }
            bar.add(piece.end - piece.start);
            Ok::<u64, Failure>(sent)
        }
    });
    let sent = pieces.buffer_unordered(IN_FLIGHT).try_fold(0u64, |sum, sent| async move { Ok(sum + sent) }).await?;
    client.send(Method::POST, &format!("/v1/volumes/{name}/flush"), Body::Empty).await?;
    Ok(sent)
}

/// Reads a piece; behind the end of the file, up to a whole sector, are zeroes.
fn read(file: &File, piece: Range<u64>, len: u64) -> std::io::Result<Bytes> {
    let here = piece.end.min(len) - piece.start;
    let want = usize::try_from(here.next_multiple_of(SECTOR)).map_err(std::io::Error::other)?;
    let here = usize::try_from(here).map_err(std::io::Error::other)?;
    let mut bytes = BytesMut::zeroed(want);
    file.read_exact_at(&mut bytes[..here], piece.start)?;
    Ok(bytes.freeze())
}
