// SPDX-License-Identifier: Apache-2.0
//! Page objects: many records in one object, each of which can be read and proved alone.
//!
//! Map objects hold the nodes of one root, table objects hold pages of the segment table and runs of kills. A
//! record is known by (timeline, number, part, index).
//! ```text
//! 0    header, 96 bytes
//! 96   for each record: u32 its end, counted from the records' beginning; u32 checksum, bound to what it is
//! ...  the records, one behind the other
//! ```
//! The table has a checksum of its own in the header: once it is cached, one get reads a record and proves that it
//! is the right one.

use crate::FormatError;
use crate::codec::{Decoder, Encoder};
use crate::crc::{Domain, Identity, crc, is_whole};
use crate::name::{ObjectKind, ObjectName};
use std::ops::Range;
use varve_types::{Epoch, TimelineId, WriterId};

const MAGIC: &[u8; 8] = b"VARVEPGS";
const VERSION: u32 = 1;
/// Bytes of the header.
pub const PAGE_HEADER: usize = 96;
/// Most records of an object.
pub const MAX_RECORDS: usize = 65_536;
/// Most bytes of all records together.
pub const MAX_BYTES: u64 = 1 << 30;
/// Records are gathered in pieces of so many bytes: one that grew would be copied again and again.
const PIECE: usize = 1 << 20;

fn identity(name: &ObjectName, index: u32) -> Identity {
    let place = u64::from(name.part) << 32 | u64::from(index);
    Identity::new(Domain::Page, name.timeline.to_bytes(), name.number, place | (name.kind as u64) << 56)
}

/// Gathers records for one object.
#[derive(Debug)]
pub struct PageBuilder {
    name: ObjectName,
    table: Vec<u8>,
    records: Vec<Vec<u8>>,
    /// Bytes of the records so far.
    len: usize,
}

impl PageBuilder {
    /// For the object of this name.
    #[must_use]
    pub const fn new(name: ObjectName) -> Self {
        Self { name, table: Vec::new(), records: Vec::new(), len: 0 }
    }
    /// Records so far: the index of the next one.
    #[must_use]
    pub fn count(&self) -> u32 {
        (self.table.len() / 8) as u32
    }
    /// Bytes of the records so far.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.len
    }
    /// Whether there is no record yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
    /// Appends a record and gives its index.
    pub fn push(&mut self, record: &[u8]) -> u32 {
        let index = self.count();
        assert!((index as usize) < MAX_RECORDS, "a part is closed before it has more records than an index can name");
        if self.records.last().is_none_or(|piece| piece.capacity() - piece.len() < record.len()) {
            self.records.push(Vec::with_capacity(record.len().max(PIECE)));
        }
        self.records.last_mut().expect("there is one with room").extend_from_slice(record);
        self.len += record.len();
        self.table.extend_from_slice(&(self.len as u32).to_le_bytes());
        self.table.extend_from_slice(&identity(&self.name, index).bind(crc(record)).to_le_bytes());
        index
    }
    /// Its name and its bytes, in pieces: the header with the table, and behind it the records, which may be long and are not copied.
    #[must_use]
    pub fn finish(self) -> (ObjectName, Vec<Vec<u8>>) {
        let mut e = Encoder::new();
        e.raw(MAGIC);
        e.u32(VERSION);
        e.u32(0);
        e.timeline(self.name.timeline);
        e.raw(&[self.name.kind as u8, self.name.part, 0, 0, 0, 0, 0, 0]);
        for number in [self.name.number, self.name.epoch.0, self.name.writer.0, self.len as u64] {
            e.u64(number);
        }
        e.u32(self.count());
        e.u32(crc(&self.table));
        let mut bytes = e.finish();
        bytes.resize(PAGE_HEADER, 0);
        let sum = crc(&bytes);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(&self.table);
        let mut pieces = self.records;
        pieces.insert(0, bytes);
        (self.name, pieces)
    }
}

/// Header and table of a page object: says where each record is and proves it.
#[derive(Clone, Debug)]
pub struct PageTable {
    name: ObjectName,
    entries: Vec<(u32, u32)>,
}

/// Bytes of header and table of an object with so many records: what a first get should ask for at least.
#[must_use]
pub const fn table_len(records: u32) -> u64 {
    PAGE_HEADER as u64 + 8 * records as u64
}

impl PageTable {
    /// Reads the header, and tells how many records the table has.
    ///
    /// # Errors
    /// When it is damaged, of an unknown version, or not the header of `name`.
    pub fn decode_header(name: &ObjectName, bytes: &[u8]) -> Result<u32, FormatError> {
        decode_header(name, bytes).map(|header| header.count)
    }

    /// Reads header and table; `bytes` begin with them and may be longer.
    ///
    /// # Errors
    /// When it is damaged, of an unknown version, or not what `name` says.
    pub fn decode(name: &ObjectName, bytes: &[u8]) -> Result<Self, FormatError> {
        let header = decode_header(name, bytes)?;
        let corrupt = |reason: &str| FormatError::new("page table", format!("{name}: {reason}"));
        let end = table_len(header.count) as usize;
        let table = bytes.get(PAGE_HEADER..end).ok_or_else(|| corrupt("it is too short"))?;
        if crc(table) != header.table_crc {
            return Err(corrupt("its checksum does not match"));
        }
        let mut d = Decoder::new("page table", table);
        let mut before = 0;
        let mut entries = Vec::with_capacity(header.count as usize);
        for _ in 0..header.count {
            let (end, sum) = (d.u32()?, d.u32()?);
            if end < before {
                return Err(corrupt("its records overlap"));
            }
            before = end;
            entries.push((end, sum));
        }
        if u64::from(before) != header.records_len {
            return Err(corrupt("its records do not fill it"));
        }
        Ok(Self { name: *name, entries })
    }

    /// Number of records.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Place of a record in the object.
    ///
    /// # Errors
    /// When there is no such record.
    pub fn range(&self, index: u32) -> Result<Range<u64>, FormatError> {
        let at = index as usize;
        let Some((end, _)) = self.entries.get(at) else {
            return Err(FormatError::new("page object", format!("{} has no record {index}", self.name)));
        };
        let begin = if at == 0 { 0 } else { self.entries[at - 1].0 };
        let base = table_len(self.count());
        Ok(base + u64::from(begin)..base + u64::from(*end))
    }

    /// Proves that `bytes` are the record.
    ///
    /// # Errors
    /// When they are not.
    pub fn verify(&self, index: u32, bytes: &[u8]) -> Result<(), FormatError> {
        let range = self.range(index)?;
        let sum = self.entries[index as usize].1;
        if range.end - range.start != bytes.len() as u64 || identity(&self.name, index).bind(crc(bytes)) != sum {
            let reason = format!("record {index} of {}: its checksum does not match", self.name);
            return Err(FormatError::new("page", reason));
        }
        Ok(())
    }
}

struct Header {
    records_len: u64,
    count: u32,
    table_crc: u32,
}

fn decode_header(name: &ObjectName, bytes: &[u8]) -> Result<Header, FormatError> {
    let mut d = Decoder::new("page object", bytes);
    if &d.array::<8>()? != MAGIC {
        return Err(d.corrupt(format!("{name} does not begin with VARVEPGS")));
    }
    let found = d.u32()?;
    let sum = d.u32()?;
    let is_whole = bytes.get(..PAGE_HEADER).map(|bytes| is_whole(bytes, VERSION, sum));
    if found != VERSION {
        return Err(FormatError::version("a page object", found, VERSION, is_whole == Some(true)));
    }
    if !is_whole.ok_or_else(|| d.corrupt("it is too short"))? {
        return Err(d.corrupt(format!("{name}: its header's checksum does not match")));
    }
    let timeline: TimelineId = d.timeline()?;
    let place = d.array::<8>()?;
    let (number, epoch, writer, records_len) = (d.u64()?, Epoch(d.u64()?), WriterId(d.u64()?), d.u64()?);
    let (count, table_crc) = (d.u32()?, d.u32()?);
    let kind = ObjectKind::from_raw(place[0]);
    let found = kind.map(|kind| ObjectName { timeline, kind, number, part: place[1], epoch, writer });
    if found != Some(*name) {
        return Err(d.corrupt(format!("{name} says that it is another object")));
    }
    if count as usize > MAX_RECORDS || records_len > MAX_BYTES {
        return Err(d.corrupt(format!("{name}: its numbers make no sense")));
    }
    Ok(Header { records_len, count, table_crc })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_any_flipped_bit_is_seen() {
        let name = ObjectName {
            timeline: TimelineId::from_bytes([2; 16]),
            kind: ObjectKind::Map,
            number: 4,
            part: 1,
            epoch: Epoch(3),
            writer: WriterId(9),
        };
        let mut builder = PageBuilder::new(name);
        let records: [&[u8]; 3] = [b"first", b"", b"the third"];
        for (i, record) in records.iter().enumerate() {
            assert_eq!(builder.push(record), i as u32);
        }
        let (_, parts) = builder.finish();
        let bytes = parts.concat();
        let check = |bytes: &[u8]| -> Result<(), FormatError> {
            let table = PageTable::decode(&name, bytes)?;
            for (i, record) in records.iter().enumerate() {
                let range = table.range(i as u32)?;
                let found = &bytes[range.start as usize..range.end as usize];
                table.verify(i as u32, found)?;
                assert_eq!(found, *record);
            }
            Ok(())
        };
        check(&bytes).unwrap();
        assert!(PageTable::decode(&ObjectName { part: 2, ..name }, &bytes).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut copy = bytes.clone();
            copy[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&copy).is_err(), "bit {bit}");
        }
    }
}
