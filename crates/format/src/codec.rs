// SPDX-License-Identifier: Apache-2.0
//! Little-endian reading and writing of structures whose size is not fixed.
//!
//! The reader never goes beyond its bytes, and a count is believed only as far as the bytes that
//! are left could hold it: so no damaged length makes it allocate more than a small multiple of its
//! input.

use crate::FormatError;
use varve_types::{Epoch, Ordinal, RootNumber, Sequence, TimelineId, WriterId};

/// Writes fields one behind the other.
#[derive(Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }
    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// LEB128: seven bits a byte, lowest first, one to ten bytes.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push((value as u8) | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
    /// Bytes as they are; their number is known to the reader.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
    /// A length and so many bytes.
    pub fn blob(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.raw(bytes);
    }
    /// A flag: one byte, then the value if there is one.
    pub fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            put(self, value);
        }
    }
    /// A count and so many items.
    pub fn list<T>(&mut self, items: &[T], mut put: impl FnMut(&mut Self, &T)) {
        self.varint(items.len() as u64);
        for item in items {
            put(self, item);
        }
    }
    /// A timeline.
    pub fn timeline(&mut self, id: TimelineId) {
        self.raw(&id.to_bytes());
    }
    /// An epoch and its writer.
    pub fn owner(&mut self, epoch: Epoch, writer: WriterId) {
        self.varint(epoch.0);
        self.u64(writer.0);
    }
    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
    /// What was written.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads fields one behind the other.
#[derive(Debug)]
pub struct Decoder<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Over the bytes of a `what`, which errors name.
    #[must_use]
    pub const fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }
    /// An error about this structure.
    pub fn corrupt(&self, reason: impl Into<String>) -> FormatError {
        FormatError::new(self.what, reason)
    }
    /// Bytes not yet read.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }
    /// So many bytes as they are.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        if len > self.rest.len() {
            return Err(self.corrupt(format!("{len} bytes expected, {} left", self.rest.len())));
        }
        let (head, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(head)
    }
    /// So many bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.raw(N)?);
        Ok(array)
    }
    /// One byte.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }
    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// LEB128, shortest form or not, up to 64 bits.
    pub fn varint(&mut self) -> Result<u64, FormatError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.corrupt("a number has more than 64 bits"))
    }
    /// A number of at most 32 bits.
    pub fn varint32(&mut self) -> Result<u32, FormatError> {
        let value = self.varint()?;
        u32::try_from(value).map_err(|_| self.corrupt(format!("{value} has more than 32 bits")))
    }
    /// A flag: 0 or 1.
    pub fn flag(&mut self) -> Result<bool, FormatError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.corrupt(format!("{other} is not a flag"))),
        }
    }
    /// A length of at most `most` and so many bytes.
    pub fn blob(&mut self, most: usize) -> Result<&'a [u8], FormatError> {
        let len = self.varint()?;
        match usize::try_from(len) {
            Ok(len) if len <= most => self.raw(len),
            _ => Err(self.corrupt(format!("a length of {len} where at most {most} may be"))),
        }
    }
    /// A text of at most `most` bytes.
    pub fn text(&mut self, most: usize) -> Result<&'a str, FormatError> {
        let bytes = self.blob(most)?;
        std::str::from_utf8(bytes).map_err(|_| self.corrupt("a text is not UTF-8"))
    }
    /// A value behind its flag.
    pub fn option<T>(
        &mut self,
        get: impl FnOnce(&mut Self) -> Result<T, FormatError>,
    ) -> Result<Option<T>, FormatError> {
        if self.flag()? { get(self).map(Some) } else { Ok(None) }
    }
    /// A count and so many items, each of at least one byte.
    pub fn list<T>(&mut self, mut get: impl FnMut(&mut Self) -> Result<T, FormatError>) -> Result<Vec<T>, FormatError> {
        let count = self.varint()?;
        if count > self.rest.len() as u64 {
            return Err(self.corrupt(format!("a list of {count} items in {} bytes", self.rest.len())));
        }
        (0..count).map(|_| get(self)).collect()
    }
    /// A timeline.
    pub fn timeline(&mut self) -> Result<TimelineId, FormatError> {
        Ok(TimelineId::from_bytes(self.array()?))
    }
    /// An epoch and its writer.
    pub fn owner(&mut self) -> Result<(Epoch, WriterId), FormatError> {
        Ok((Epoch(self.varint()?), WriterId(self.u64()?)))
    }
    /// An ordinal: 36 bits.
    pub fn ordinal(&mut self) -> Result<Ordinal, FormatError> {
        let value = self.varint()?;
        if value >> 36 != 0 {
            return Err(self.corrupt(format!("{value} has more bits than an ordinal")));
        }
        Ok(Ordinal(value))
    }
    /// A sequence number.
    pub fn sequence(&mut self) -> Result<Sequence, FormatError> {
        Ok(Sequence(self.varint()?))
    }
    /// A root number.
    pub fn root_number(&mut self) -> Result<RootNumber, FormatError> {
        Ok(RootNumber(self.varint32()?))
    }
    /// The end: nothing may be left.
    pub fn end(self) -> Result<(), FormatError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.corrupt(format!("{} bytes too many", self.rest.len()))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_long_ones_are_refused() {
        let mut encoder = Encoder::new();
        let numbers = [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX];
        encoder.list(&numbers, |e, n| e.varint(*n));
        let bytes = encoder.finish();
        let mut decoder = Decoder::new("test", &bytes);
        assert_eq!(decoder.list(Decoder::varint).unwrap(), numbers);
        decoder.end().unwrap();
        assert!(Decoder::new("test", &[0xff; 11]).varint().is_err());
        assert!(Decoder::new("test", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]).varint().is_err());
    }

    #[test]
    fn counts_beyond_the_bytes_are_refused_before_allocation() {
        let mut encoder = Encoder::new();
        encoder.varint(u64::MAX);
        let bytes = encoder.finish();
        assert!(Decoder::new("test", &bytes).list(Decoder::varint).is_err());
        assert!(Decoder::new("test", &bytes).blob(usize::MAX).is_err());
    }
}
