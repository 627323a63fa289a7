// SPDX-License-Identifier: Apache-2.0
//! The head of a region of a cache device.

use crate::dump::{Field, Form, field};
use crate::journal::TIMELINE;
use crate::{Golden, PLAIN};
use varve_format::region::{Entry, HEAD, RegionHead};
use varve_types::Ordinal;

fn head() -> RegionHead {
    let entry = Entry { timeline: TIMELINE, ordinal: Ordinal(77), block: 3, sum: 0x1234_5678 };
    RegionHead { number: 2, sequence: 41, main: true, entries: vec![Some(entry), None] }
}

fn fields() -> Vec<Field> {
    vec![
        field("magic", Form::Text(8)),
        field("version", Form::U32),
        field("checksum", Form::Sum),
        field("region", Form::U32),
        field("entries", Form::U32),
        field("sequence", Form::U64),
        field("main", Form::U32),
        field("zero", Form::Zero(28)),
        field("timeline", Form::Bytes(16)),
        field("ordinal", Form::U64),
        field("block", Form::U32),
        field("checksum of the block", Form::Sum),
        field("no block", Form::Zero(32)),
        field("zero", Form::Zero(HEAD as usize - 128)),
    ]
}

pub fn goldens() -> Vec<Golden> {
    vec![Golden {
        file: "cache-region",
        encode: || head().encode(),
        read: |bytes| RegionHead::decode(bytes, 2).map(|found| found == head()),
        version: Some(8),
        fields,
        ..PLAIN
    }]
}
