// SPDX-License-Identifier: Apache-2.0
//! One volume of an import: its timelines become a record.
//!
//! The timeline shown is the one with the highest show number. The row behind its manifest is walked and cut, as
//! recovery does it, but without a journal: nothing that only the old node's journal had is counted on any more.
//! Hidden timelines were put whole before they were hidden, so their manifests stay as they are.

use super::choose::Found;
use super::{Imported, ImportedVolume, PoolImport};
use crate::lineage::row_name;
use crate::manifests::{put_manifest, reference};
use crate::read::load_segment_head;
use crate::recover::missing_is_corrupt;
use crate::timeline::NUMBER_GAP;
use crate::{EngineError, Result};
use std::sync::Arc;
use varve_coord::{CoordError, Deleted, Record, Records, TimelineRecord, TimelineState as RecordState, VolumeRecord};
use varve_env::ObjectStore;
use varve_format::ObjectName;
use varve_format::manifest::{Cut, Manifest, TimelineState};
use varve_types::branch::{Branch, reached_if};
use varve_types::mutant::{Mutant, planted};
use varve_types::{Epoch, ErrorKind, Name, Ordinal, Sequence, Settings, VolumeId, WriterId};

/// Names that are tried for a volume whose own is taken.
const MAX_NAMES: u32 = 1000;
/// Longest name of a volume, in bytes.
const NAME_BYTES: usize = 63;

/// Imports a volume, and tells of it in `done`.
pub(super) async fn import_volume(
    import: &PoolImport<'_>,
    id: VolumeId,
    mut timelines: Vec<Found>,
    done: &mut Imported,
) -> Result<()> {
    let records = Records::new(import.coord);
    match records.load_volume(id).await {
        Ok(_) => {
            done.known.push(id);
            return Ok(());
        }
        Err(CoordError::NotFound(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let epoch = timelines.iter().map(|found| found.epoch).max().unwrap_or_default().next();
    timelines.sort_by_key(|found| (found.manifest.show_number, found.epoch, found.manifest.number));
    if planted(Mutant::ImportShowsLowest) {
        timelines.reverse();
    }
    // A volume is deleted for good timeline by timeline; what is left of it then is at the end of its window. One that is shown goes on when a
    // hidden one of it has ended.
    let is_shown = |found: &Found| found.manifest.state == TimelineState::Shown;
    let ended = timelines.iter().any(Found::is_gone) && !timelines.last().is_some_and(is_shown);
    timelines.retain(|found| !found.is_gone());
    let Some(shown) = timelines.pop() else { return Ok(()) };
    if matches!(shown.manifest.state, TimelineState::Held { .. }) && !ended {
        let what = format!(
            "volume {}: what it shows is lost; its history {} is not whole",
            shown.manifest.name, shown.manifest.timeline
        );
        return Err(EngineError::corrupt(what));
    }
    let (end, newest_ms) = probe(&import.store, &shown.manifest).await?;
    let mut writer = [0; 8];
    import.env.random(&mut writer);
    let writer = WriterId(u64::from_le_bytes(writer));
    let mut manifest = cut_manifest(import, &shown, end, epoch, writer);
    let mut record = record_of(import, &manifest, &timelines, ended);
    let deleted = record.deleted.is_some();
    if !deleted {
        record.name = free_name(&records, &record.name).await?;
    }
    let name = record.name.clone();
    let was = (manifest.name != name).then(|| std::mem::replace(&mut manifest.name, name.clone()));
    put_manifest(&*import.store, &manifest).await?;
    records.create_volume(&record, Vec::new()).await?;
    done.volumes.push(ImportedVolume { id, name, was, epoch, deleted, newest_ms });
    Ok(())
}

/// What says that somebody has a volume: a later sign is a stronger one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SignOfUse {
    /// Nothing was ever done with it, and it began empty.
    None,
    /// Nothing was ever done with it, but it holds what it was cloned from.
    Cloned,
    /// It was written to, opened again, or changed.
    Changed,
}

/// What was done with a volume after it was made.
pub(super) async fn sign_of_use(store: &Arc<dyn ObjectStore>, timelines: &[Found]) -> Result<SignOfUse> {
    let [Found { manifest, epoch: Epoch(1), number: 1 }] = timelines else { return Ok(SignOfUse::Changed) };
    match store.head(&row_name(manifest, manifest.first_ordinal).to_string()).await {
        Ok(_) => Ok(SignOfUse::Changed),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        Err(_) if manifest.birth.is_some() => Ok(SignOfUse::Cloned),
        Err(_) => Ok(SignOfUse::None),
    }
}

/// Where a row of segments ends.
struct RowEnd {
    end: Ordinal,
    last: Sequence,
}

/// Walks the segments behind a manifest's boundary: rows of earlier writers whole, that of its own as far as it goes. Gives the end, and when the newest was sealed.
async fn probe(store: &Arc<dyn ObjectStore>, manifest: &Manifest) -> Result<(RowEnd, u64)> {
    let mut row = RowEnd { end: manifest.first_ordinal, last: manifest.merged };
    let mut newest_ms = manifest.written_ms;
    let closed = manifest.cuts.iter().filter(|cut| cut.end > manifest.boundary);
    for ordinal in closed.flat_map(|cut| cut.first.max(manifest.boundary).0..cut.end.0) {
        let name = row_name(manifest, Ordinal(ordinal));
        let (last, sealed_ms) = look(store, &name, row.last).await.map_err(missing_is_corrupt)?;
        row.last = last;
        newest_ms = newest_ms.max(sealed_ms);
    }
    let first = manifest.first_ordinal.max(manifest.boundary);
    row.end = first;
    for ordinal in first.0..first.0 + NUMBER_GAP {
        match look(store, &row_name(manifest, Ordinal(ordinal)), row.last).await {
            Ok((last, sealed_ms)) => {
                row = RowEnd { end: Ordinal(ordinal + 1), last };
                newest_ms = newest_ms.max(sealed_ms);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    Ok((row, newest_ms))
}

/// Looks at a segment that has to begin behind change `before`. Gives its last change and when it was sealed.
async fn look(store: &Arc<dyn ObjectStore>, name: &ObjectName, before: Sequence) -> Result<(Sequence, u64)> {
    let (header, _) = load_segment_head(&**store, name).await?;
    let size = store.head(&name.to_string()).await?.size;
    if size != header.object_len() || header.first != before.next() {
        let what = format!(
            "{name}: it has {size} bytes and begins with change {}, not {} bytes and change {}",
            header.first,
            header.object_len(),
            before.next()
        );
        return Err(EngineError::corrupt(what));
    }
    Ok((header.last, header.sealed_ms))
}

/// The manifest that ends the epoch which was found: what is behind `end` never counts.
fn cut_manifest(import: &PoolImport<'_>, shown: &Found, end: RowEnd, epoch: Epoch, writer: WriterId) -> Manifest {
    let old = &shown.manifest;
    let mut cuts = old.cuts.clone();
    // A cut may count on changes that were in the journal; there is no journal here.
    for cut in cuts.iter_mut().filter(|_| !planted(Mutant::ImportKeepsPromises)) {
        reached_if(cut.last > end.last, Branch::ImportBreaksPromise);
        cut.last = cut.last.min(end.last);
    }
    cuts.retain(|cut| cut.end > old.boundary || cut.last > old.merged);
    let first = old.first_ordinal.max(old.boundary).min(end.end);
    cuts.push(Cut { epoch: old.epoch, writer: old.writer, first, end: end.end, last: end.last });
    Manifest {
        number: shown.number + 1,
        epoch,
        writer,
        written_ms: import.env.wall_ms(),
        first_ordinal: Ordinal(end.end.0 + NUMBER_GAP),
        cuts,
        ..old.clone()
    }
}

fn record_of(import: &PoolImport<'_>, shown: &Manifest, hidden: &[Found], ended: bool) -> VolumeRecord {
    let now = import.env.wall_ms();
    let entry = |manifest: &Manifest, state| TimelineRecord {
        id: manifest.timeline,
        state,
        manifest: Some(reference(manifest)),
        parent: manifest.birth.map(|birth| birth.origin),
    };
    let window = Settings::resolve(&shown.settings, &import.settings).undelete_window_ms;
    let mut timelines = vec![entry(shown, RecordState::Shown)];
    timelines.extend(hidden.iter().map(|found| {
        if let TimelineState::Held { .. } = found.manifest.state {
            return entry(&found.manifest, RecordState::Held);
        }
        let until_ms = match found.manifest.state {
            TimelineState::Hidden { until_ms } => until_ms,
            // It was to be hidden, and the manifest that says so was not put any more; or it was never shown.
            TimelineState::Shown | TimelineState::Held { .. } | TimelineState::Tombstone => {
                found.manifest.written_ms.saturating_add(window)
            }
        };
        entry(&found.manifest, RecordState::Hidden { until_ms })
    }));
    let deleted = match shown.state {
        _ if ended => Some(Deleted { at_ms: now, until_ms: now }),
        TimelineState::Hidden { until_ms } => Some(Deleted { at_ms: until_ms.saturating_sub(window), until_ms }),
        TimelineState::Shown | TimelineState::Held { .. } | TimelineState::Tombstone => None,
    };
    VolumeRecord {
        version: VolumeRecord::VERSION,
        id: shown.volume,
        name: shown.name.clone(),
        pool: import.pool.clone(),
        epoch: shown.epoch,
        writer: shown.writer,
        shown: shown.timeline,
        show_number: shown.show_number,
        template: shown.template,
        settings: shown.settings,
        deleted,
        timelines,
        owner: None,
        mirror: None,
        forced: false,
        holder: None,
        ends: Vec::new(),
    }
}

/// The name, or one like it where it is taken.
async fn free_name(records: &Records<'_>, wanted: &Name) -> Result<Name> {
    let mut name = wanted.clone();
    for number in 1..=MAX_NAMES {
        match records.find_by_name(&name).await {
            Ok(_) => name = numbered(wanted, number)?,
            Err(CoordError::NotFound(_)) => return Ok(name),
            Err(error) => return Err(error.into()),
        }
    }
    let text = format!("volume {wanted}: its name and {MAX_NAMES} like it are taken");
    Err(EngineError::new(ErrorKind::Conflict, text))
}

/// `name-imported`, `name-imported-2`, …, shortened where that is too long.
fn numbered(name: &Name, number: u32) -> Result<Name> {
    let suffix = if number == 1 { "-imported".to_owned() } else { format!("-imported-{number}") };
    let text = name.as_str();
    let text = format!("{}{suffix}", &text[..text.len().min(NAME_BYTES - suffix.len())]);
    text.parse().map_err(|error| EngineError::caused(ErrorKind::Internal, "a name for an imported volume", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_name_is_never_too_long() {
        let short: Name = "disk".parse().unwrap();
        assert_eq!(numbered(&short, 1).unwrap().as_str(), "disk-imported");
        assert_eq!(numbered(&short, 7).unwrap().as_str(), "disk-imported-7");
        let long: Name = "x".repeat(63).parse().unwrap();
        assert_eq!(numbered(&long, 1000).unwrap().as_str().len(), 63);
    }
}
