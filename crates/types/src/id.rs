// SPDX-License-Identifier: Apache-2.0
//! Ids. Each is a newtype, so that a timeline can not be taken for a volume, and has one text form.
//!
//! What has to be unique for ever, also between clusters that know nothing of each other, is a UUID that somebody drew at random: nodes, volumes, their
//! timelines, sessions of edges. What is counted within one of these is a number: epochs, sequences, ordinals. Both have the bytes in stores and on wires
//! that they have here, and their text form is that of logs, commands and the API.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The id made of 16 random bytes (a version 4 uuid).
            #[must_use]
            pub fn from_random(bytes: [u8; 16]) -> Self {
                Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
            }
            /// The id whose stored form is `bytes`.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
            /// The stored form.
            #[must_use]
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_id!(
    /// A volume: the thing with a name.
    VolumeId
);
uuid_id!(
    /// A timeline: one append-only history. Never used twice.
    TimelineId
);
uuid_id!(
    /// A snapshot.
    SnapshotId
);
uuid_id!(
    /// A journal file.
    JournalId
);
uuid_id!(
    /// A cluster: what owns pools. One node with embedded coordination is a cluster too.
    ClusterId
);

uuid_id!(
    /// A job of cleaning that was handed to another process.
    LeaseId
);

uuid_id!(
    /// A session: one edge's use of one volume, from its first attach to its detach.
    SessionId
);

uuid_id!(
    /// A node of a cluster.
    NodeId
);

uuid_id!(
    /// One process of a node, from its start to its end: what it has in RAM is of this one alone.
    IncarnationId
);

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl $name {
            /// The number that follows.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

number_id!(
    /// Fencing number of a volume's ownership; grows at every change of owner.
    Epoch, u64
);
number_id!(
    /// Number of a change of a timeline. The first change is 1; 0 means "none yet".
    Sequence, u64
);
number_id!(
    /// Number of a segment in its timeline; 36 bits.
    Ordinal, u64
);
number_id!(
    /// Number of a root of a timeline's map. The first root is 1; 0 means "none".
    RootNumber, u32
);

/// Random id of one opening of a volume. Text form: 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct WriterId(pub u64);

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Debug for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriterId({self})")
    }
}
impl From<WriterId> for String {
    fn from(id: WriterId) -> Self {
        id.to_string()
    }
}
impl TryFrom<String> for WriterId {
    type Error = std::num::ParseIntError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self)
    }
}
