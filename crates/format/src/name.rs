// SPDX-License-Identifier: Apache-2.0
//! Names of objects in the store: `timeline/kind/number[.part]-epoch-writer`.
//!
//! Every opening of a volume draws a random writer, and within one opening a number is used once: so no name is
//! ever put with two contents by processes that follow the rules, and one that does not (a writer that was fenced
//! and does not know yet) puts under names of its own.

use std::fmt;
use varve_types::{Epoch, TimelineId, WriterId};

/// What an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    /// A segment; the number is its ordinal.
    Segment = 1,
    /// Map nodes of one root; the number is the root's, the part counts from 0.
    Map = 2,
    /// Pages of the segment table and runs of kills; the number is the manifest's.
    Table = 3,
    /// A manifest, by number.
    Manifest = 4,
    /// What lives of several segments; numbers of each opening of its own.
    Bundle = 5,
}

impl ObjectKind {
    /// Its part of a name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Segment => "seg",
            Self::Map => "map",
            Self::Table => "tab",
            Self::Manifest => "man",
            Self::Bundle => "bun",
        }
    }
    /// The kind whose stored form is `raw`.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::Segment),
            2 => Some(Self::Map),
            3 => Some(Self::Table),
            4 => Some(Self::Manifest),
            5 => Some(Self::Bundle),
            _ => None,
        }
    }
}

/// The name of an object, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Whose it is.
    pub timeline: TimelineId,
    /// What it holds.
    pub kind: ObjectKind,
    /// Its number among its kind.
    pub number: u64,
    /// Its part; 0 except for maps.
    pub part: u8,
    /// The epoch in which it was put.
    pub epoch: Epoch,
    /// The opening that put it.
    pub writer: WriterId,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeline, kind, number, part, epoch, writer } = self;
        write!(f, "{timeline}/{}/{number:016x}.{part:02x}-{:x}-{writer}", kind.as_str(), epoch.0)
    }
}

impl ObjectName {
    /// Takes a name apart. `None` for a name that is not one of ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let timeline = parts.next()?.parse().ok()?;
        let kind = match parts.next()? {
            "seg" => ObjectKind::Segment,
            "map" => ObjectKind::Map,
            "tab" => ObjectKind::Table,
            "man" => ObjectKind::Manifest,
            "bun" => ObjectKind::Bundle,
            _ => return None,
        };
        let mut fields = parts.next()?.split('-');
        let (number, part) = fields.next()?.split_once('.')?;
        let name = Self {
            timeline,
            kind,
            number: u64::from_str_radix(number, 16).ok()?,
            part: u8::from_str_radix(part, 16).ok()?,
            epoch: Epoch(u64::from_str_radix(fields.next()?, 16).ok()?),
            writer: WriterId(u64::from_str_radix(fields.next()?, 16).ok()?),
        };
        // Only the exact text counts: no other spelling names the same object.
        (name.to_string() == text).then_some(name)
    }

    /// The prefix of all objects of a kind of a timeline.
    #[must_use]
    pub fn prefix(timeline: TimelineId, kind: ObjectKind) -> String {
        format!("{timeline}/{}/", kind.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_others_are_refused() {
        let name = ObjectName {
            timeline: TimelineId::from_bytes([9; 16]),
            kind: ObjectKind::Map,
            number: 77,
            part: 3,
            epoch: Epoch(12),
            writer: WriterId(0xdead_beef),
        };
        let text = name.to_string();
        assert_eq!(text, "09090909-0909-0909-0909-090909090909/map/000000000000004d.03-c-00000000deadbeef");
        assert_eq!(ObjectName::parse(&text), Some(name));
        for bad in
            ["", "owner/1", &text[1..], &text.replace("map", "mop"), &text.replace("4d", "4D"), &format!("{text}/x")]
        {
            assert_eq!(ObjectName::parse(bad), None, "{bad}");
        }
    }
}
