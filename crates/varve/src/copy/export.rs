// SPDX-License-Identifier: Apache-2.0
//! A volume or a snapshot becomes an image file.
//!
//! The file is written under a temporary name beside its own, made durable, and renamed: under its own name it is whole or not there, whatever
//! ends the program but SIGKILL, which leaves the temporary file. A file that is there is replaced only with `--force`, and only if it is a
//! regular file. The volume may be in use: what is exported is then a mixture of moments, so export a snapshot of it.
//!
//! The map of extents says which ranges to ask for; it comes in parts, and the next is asked for once there is room for more requests.

use super::{Format, IN_FLIGHT, Interrupt, PIECE, blocking, qemu, sparse};
use crate::client::{Body, Client};
use crate::failure::{Failure, Result};
use crate::out;
use crate::progress::Bar;
use bytes::Bytes;
use clap::Args;
use futures_util::{TryStreamExt, stream};
use hyper::Method;
use serde::Serialize;
use std::fs::{File, Permissions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tempfile::NamedTempFile;
use varve_server::api::model::{ExtentMap, Target};
use varve_types::{ErrorKind, format_size};

/// What to export.
#[derive(Debug, Args)]
pub struct Export {
    /// What to export
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    target: Target,
    /// The image file
    file: PathBuf,
    /// Format of the file: raw or qcow2 [default: qcow2 when its name ends so, else raw]
    #[arg(long, hide_possible_values = true, value_name = "raw|qcow2", value_parser = parse_format)]
    format: Option<Format>,
    /// Replace the file when there is one
    #[arg(long)]
    force: bool,
}

fn parse_format(text: &str) -> std::result::Result<Format, String> {
    match text {
        "raw" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        _ => Err("it is raw or qcow2".to_owned()),
    }
}

/// What was exported.
#[derive(Debug, Serialize)]
struct Exported {
    /// What it was, as `VOLUME` or `VOLUME@SNAPSHOT`.
    source: String,
    /// The file.
    file: PathBuf,
    /// Its format.
    format: &'static str,
    /// Size of the disk.
    size_bytes: u64,
    /// Bytes that were written; the rest is a hole.
    data_bytes: u64,
    /// How long it took.
    duration_ms: u64,
}

/// Exports it.
pub async fn run(export: Export, client: &Client, json: bool) -> Result<()> {
    let start = Instant::now();
    let by_name = export.file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("qcow2"));
    let format = export.format.unwrap_or(if by_name { Format::Qcow2 } else { Format::Raw });
    check_free(&export.file, export.force)?;
    let (size_bytes, data_bytes) = Interrupt::watch()?.unless(write(&export, format, client)).await?;
    let duration_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let source = export.target.to_string();
    let done = Exported { source, file: export.file, format: format.as_str(), size_bytes, data_bytes, duration_ms };
    out::show(json, &done, |done| {
        let (size, data) = (format_size(done.size_bytes), format_size(done.data_bytes));
        let (time, rate) = (out::duration(done.duration_ms), out::rate(done.data_bytes, done.duration_ms));
        format!("exported {} to {}: {size}\n{data} of data in {time}, {rate}\n", done.source, done.file.display())
    })
}

/// A file that is there is replaced only when asked, and only if it is one: not a device, not a directory.
fn check_free(path: &Path, force: bool) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::io(path.display(), &error)),
        Ok(metadata) if !metadata.is_file() => {
            Err(Failure::new(ErrorKind::Conflict, format!("{} is there and is no regular file", path.display())))
        }
        Ok(_) if force => Ok(()),
        Ok(_) => {
            Err(Failure::new(ErrorKind::Conflict, format!("{} is there already; --force replaces it", path.display())))
        }
    }
}

async fn write(export: &Export, format: Format, client: &Client) -> Result<(u64, u64)> {
    let size = extents(&export.target, 0..0, client).await?.size_bytes;
    let raw = temporary(&export.file)?;
    let into = raw.as_file().try_clone().map_err(|error| Failure::io(raw.path().display(), &error))?;
    into.set_len(size).map_err(|error| Failure::io(raw.path().display(), &error))?;
    let into = Arc::new(into);
    let data = copy(&export.target, size, &into, client).await?;
    if format == Format::Raw {
        finish(raw, &export.file, export.force).await?;
    } else {
        let converted = temporary(&export.file)?;
        qemu::convert(raw.path(), Format::Raw, converted.path(), format).await?;
        finish(converted, &export.file, export.force).await?;
    }
    Ok((size, data))
}

fn temporary(beside: &Path) -> Result<NamedTempFile> {
    let dir = beside.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // As any new file: what the umask leaves of it.
    builder.prefix(".varve-export-").permissions(Permissions::from_mode(0o666));
    builder.tempfile_in(dir).map_err(|error| Failure::io(dir.display(), &error))
}

/// Makes the file durable and gives it its name.
async fn finish(made: NamedTempFile, path: &Path, force: bool) -> Result<()> {
    let path = path.to_owned();
    blocking(move || {
        let fail = |error| Failure::io(path.display(), &error);
        // By name: qemu-img may have made the file anew.
        File::open(made.path()).and_then(|file| file.sync_all()).map_err(fail)?;
        let named = if force { made.persist(&path) } else { made.persist_noclobber(&path) };
        named.map_err(|error| match error.error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::new(ErrorKind::Conflict, format!("{} has come to be there meanwhile", path.display()))
            }
            _ => fail(error.error),
        })?;
        Ok(())
    })
    .await
}

async fn extents(target: &Target, range: Range<u64>, client: &Client) -> Result<ExtentMap> {
    let len = range.end - range.start;
    client.get(&format!("/v1/volumes/{target}/extents?offset={}&len={len}", range.start)).await
}

/// Copies everything that holds data, and says how much was written.
async fn copy(target: &Target, size: u64, into: &Arc<File>, client: &Client) -> Result<u64> {
    let bar = &Bar::bytes(&format!("exporting {target}"), size);
    let maps = stream::try_unfold(0u64, move |at| async move {
        if at >= size {
            return Ok::<_, Failure>(None);
        }
        let map = extents(target, at..size, client).await?;
        let (pieces, next) = pieces(&map, at, size)?;
        let data: u64 = pieces.iter().map(|piece| piece.end - piece.start).sum();
        bar.add(next - at - data);
        Ok(Some((stream::iter(pieces.into_iter().map(Ok::<_, Failure>)), next)))
    });
    let writes = maps.try_flatten().map_ok(|piece| {
        let into = Arc::clone(into);
        async move {
            let len = piece.end - piece.start;
            let path = format!("/v1/volumes/{target}/data?offset={}&len={len}", piece.start);
            let bytes = client.send(Method::GET, &path, Body::Empty).await?;
            if bytes.len() as u64 != len {
                return Err(Failure::failed(format!("the node gave {} bytes instead of {len}", bytes.len())));
            }
            let written = blocking(move || write_data(&into, piece.start, &bytes)).await?;
            bar.add(len);
            Ok(written)
        }
    });
    writes.try_buffer_unordered(IN_FLIGHT).try_fold(0u64, |sum, written| async move { Ok(sum + written) }).await
}

/// The parts of a map that hold data, in pieces of one request, and where the next map begins.
fn pieces(map: &ExtentMap, from: u64, size: u64) -> Result<(Vec<Range<u64>>, u64)> {
    let mut at = from;
    let mut pieces = Vec::new();
    for extent in &map.extents {
        let end = at.checked_add(extent.len_bytes).filter(|end| *end <= size);
        let end = end.ok_or_else(|| Failure::failed("the node gave extents beyond the end of the volume"))?;
        while !extent.hole && at < end {
            let stop = ((at / PIECE + 1) * PIECE).min(end);
            pieces.push(at..stop);
            at = stop;
        }
        at = end;
    }
    if at == from {
        return Err(Failure::failed("the node gave no extents"));
    }
    Ok((pieces, at))
}

fn write_data(file: &File, offset: u64, bytes: &Bytes) -> Result<u64> {
    let mut written = 0;
    for run in sparse::data_runs(bytes) {
        written += run.len() as u64;
        let at = offset + run.start as u64;
        file.write_all_at(&bytes[run], at).map_err(|error| Failure::io("writing the image", &error))?;
    }
    Ok(written)
}
