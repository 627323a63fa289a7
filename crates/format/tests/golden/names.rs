// SPDX-License-Identifier: Apache-2.0
//! Names of objects, and the pool's owner record.
//!
//! A name has no checksum: one with a flipped bit is no name, or that of another object, and each object says itself which one it is.

use crate::dump::{Field, Form, field};
use crate::journal::TIMELINE;
use crate::{Golden, PLAIN};
use varve_format::owner::OwnerRecord;
use varve_format::{FormatError, ObjectKind, ObjectName};
use varve_types::{ClusterId, Epoch, WriterId};

const OWNER: OwnerRecord =
    OwnerRecord { number: 2, cluster: ClusterId::from_bytes(*b"cluster-id-v1-00"), created_ms: 1_700_000_000_123 };

fn names() -> [ObjectName; 5] {
    let name = |kind, number, part, epoch, writer| ObjectName {
        timeline: TIMELINE,
        kind,
        number,
        part,
        epoch: Epoch(epoch),
        writer: WriterId(writer),
    };
    [
        name(ObjectKind::Segment, 77, 0, 1, 0xfeed),
        name(ObjectKind::Map, 3, 63, 12, 0xdead_beef),
        name(ObjectKind::Table, 65_536, 0, 0xabcd, 1),
        name(ObjectKind::Manifest, 4, 0, 3, u64::MAX),
        name(ObjectKind::Segment, (1 << 36) - 1, 0, u64::MAX, 0),
    ]
}

fn written() -> Vec<u8> {
    let mut lines = names().map(|name| format!("{name}\n")).concat();
    lines.push_str(&format!("{}\n", OwnerRecord::name(11)));
    lines.into_bytes()
}

fn read(bytes: &[u8]) -> Result<bool, FormatError> {
    let wrong = || FormatError::new("name", "it is not one of ours");
    let text = std::str::from_utf8(bytes).map_err(|_| wrong())?;
    let mut lines = text.strip_suffix('\n').ok_or_else(wrong)?.split('\n').collect::<Vec<_>>();
    let owner = lines.pop().ok_or_else(wrong)?;
    let found = lines.into_iter().map(ObjectName::parse).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
    let prefixes = names().iter().zip(text.lines()).all(|(name, line)| {
        let prefix = ObjectName::prefix(name.timeline, name.kind);
        line.starts_with(&prefix)
    });
    Ok(found == names() && prefixes && owner == OwnerRecord::name(11))
}

fn owner_fields() -> Vec<Field> {
    vec![
        field("magic", Form::Text(8)),
        field("version", Form::U32),
        field("number", Form::U64),
        field("cluster", Form::Bytes(16)),
        field("created at", Form::U64),
        field("checksum", Form::Sum),
    ]
}

pub fn goldens() -> Vec<Golden> {
    vec![
        Golden {
            file: "owner",
            encode: || OWNER.encode(),
            read: |bytes| OwnerRecord::decode(bytes).map(|found| found == OWNER),
            version: Some(8),
            fields: owner_fields,
            ..PLAIN
        },
        Golden { file: "names", encode: written, read, sealed: false, ..PLAIN },
    ]
}
