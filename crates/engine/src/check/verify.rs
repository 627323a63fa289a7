// SPDX-License-Identifier: Apache-2.0
//! Every object that the table and the manifest of a timeline name, proved, one after the other.

use super::{CheckReport, Progress, Subject};
use crate::Result;
use crate::pace::Pace;
use crate::proof::{Prover, page_objects, proved};
use crate::timeline::Timeline;
use std::cell::Cell;
use std::collections::BTreeMap;
use varve_format::ObjectName;
use varve_format::table::TableEntry;
use varve_types::Ordinal;

/// Verifies everything that the table and the manifest name.
pub(super) async fn verify(
    timeline: &Timeline,
    subject: &Subject,
    report: &mut CheckReport,
    progress: Progress<'_>,
) -> Result<()> {
    let no_bound = Cell::new(0);
    let pace = Pace { env: &*timeline.context.env, rate: &no_bound };
    let prover = Prover { store: &*timeline.pool.store, pace };
    let total: u64 = subject.table.values().map(|entry| entry.bytes).sum();
    let mut done = 0;
    let mut objects: BTreeMap<ObjectName, Vec<(Ordinal, &TableEntry)>> = BTreeMap::new();
    for (ordinal, entry) in &subject.table {
        objects.entry(subject.segment(*ordinal, entry)).or_default().push((*ordinal, entry));
    }
    for (name, entries) in objects {
        if let Some(found) = report.note(name, proved(async || prover.data(&name, &entries).await).await)? {
            report.proved(found);
        }
        done += entries.iter().map(|(_, entry)| entry.bytes).sum::<u64>();
        progress(done, total);
    }
    for (name, bytes, records) in page_objects(&subject.manifest) {
        let Some(name) = report.note(subject.manifest.object_name(), name)? else { continue };
        if let Some(found) = report.note(name, proved(async || prover.pages(&name, bytes, records).await).await)? {
            report.proved(found);
        }
    }
    Ok(())
}
