// SPDX-License-Identifier: Apache-2.0
//! Marks: changes of a timeline that are no data. They stand in the journal as records and in a segment's index.

use crate::FormatError;
use crate::codec::{Decoder, Encoder};
use varve_types::{Name, Sequence, SnapshotId};

/// A change of a timeline that is no data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A snapshot was taken here. It closes its layer: nothing follows it in its segment.
    Snapshot {
        /// Its place in the stream.
        sequence: Sequence,
        /// Its id.
        id: SnapshotId,
        /// Its name.
        name: Name,
        /// When, in milliseconds since 1970.
        created_ms: u64,
        /// Size of the volume then, in bytes.
        size: u64,
        /// Whether it is left out of listings (taken for a clone of the present).
        hidden: bool,
    },
    /// The volume has this size from here on. What a shrink cuts is a hole of its own.
    Size {
        /// Its place in the stream.
        sequence: Sequence,
        /// Size in bytes.
        size: u64,
    },
}

const SNAPSHOT: u8 = 1;
const SIZE: u8 = 2;

impl Mark {
    /// Its place in the stream.
    #[must_use]
    pub const fn sequence(&self) -> Sequence {
        match self {
            Self::Snapshot { sequence, .. } | Self::Size { sequence, .. } => *sequence,
        }
    }

    /// Writes it.
    pub fn encode(&self, encoder: &mut Encoder) {
        match self {
            Self::Snapshot { sequence, id, name, created_ms, size, hidden } => {
                encoder.u8(SNAPSHOT);
                encoder.varint(sequence.0);
                encoder.raw(&id.to_bytes());
                encoder.blob(name.as_str().as_bytes());
                encoder.varint(*created_ms);
                encoder.varint(*size);
                encoder.u8(u8::from(*hidden));
            }
            Self::Size { sequence, size } => {
                encoder.u8(SIZE);
                encoder.varint(sequence.0);
                encoder.varint(*size);
            }
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is no mark that this version knows.
    pub fn decode(decoder: &mut Decoder<'_>) -> Result<Self, FormatError> {
        match decoder.u8()? {
            SNAPSHOT => Ok(Self::Snapshot {
                sequence: decoder.sequence()?,
                id: SnapshotId::from_bytes(decoder.array()?),
                name: decode_name(decoder)?,
                created_ms: decoder.varint()?,
                size: decoder.varint()?,
                hidden: decoder.flag()?,
            }),
            SIZE => Ok(Self::Size { sequence: decoder.sequence()?, size: decoder.varint()? }),
            other => Err(decoder.corrupt(format!("{other} is no kind of mark"))),
        }
    }
}

/// Reads a name and checks that it is one.
pub(crate) fn decode_name(decoder: &mut Decoder<'_>) -> Result<Name, FormatError> {
    let text = decoder.text(63)?;
    text.parse().map_err(|error: varve_types::NameError| decoder.corrupt(error.to_string()))
}
