// SPDX-License-Identifier: Apache-2.0
//! Bytes shown field by field, as the examples in `docs/formats.md` are.
//!
//! A [`Field`] is a name and a form of the document's notation. Bytes are taken apart with the forms alone, without the decoders of the product, so
//! the document, the encoders and this reading of it must agree.

use std::fmt::Write;

/// A field: its name and how it is stored.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: String,
    pub form: Form,
}

/// The forms of fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// So many bytes of text.
    Text(usize),
    /// One byte, a number.
    U8,
    /// Four bytes, a number.
    U32,
    /// Eight bytes, a number.
    U64,
    /// Four bytes, shown as they are: checksums.
    Sum,
    /// LEB128.
    Varint,
    /// A varint length and so many bytes of text.
    Name,
    /// So many bytes without a meaning as a number.
    Bytes(usize),
    /// So many bytes, all zero.
    Zero(usize),
}

/// Makes a field.
pub fn field(name: impl Into<String>, form: Form) -> Field {
    Field { name: name.into(), form }
}

/// Where a field stands and what it says.
#[derive(Debug)]
pub struct Found {
    pub at: usize,
    pub len: usize,
    pub name: String,
    /// For people: the number or the text.
    pub value: String,
}

/// LEB128 at the beginning: its length and its value.
fn varint(bytes: &[u8]) -> (usize, u64) {
    let len = 1 + bytes.iter().take_while(|byte| **byte >= 0x80).count();
    (len, bytes[..len].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f)))
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn take(form: Form, rest: &[u8]) -> (usize, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    match form {
        Form::Text(len) => (len, text(&rest[..len])),
        Form::U8 => (1, rest[0].to_string()),
        Form::U32 => (4, number(&rest[..4]).to_string()),
        Form::U64 => (8, number(&rest[..8]).to_string()),
        Form::Varint => {
            let (len, value) = varint(rest);
            (len, value.to_string())
        }
        Form::Name => {
            let (len, chars) = varint(rest);
            let end = len + usize::try_from(chars).unwrap();
            (end, text(&rest[len..end]))
        }
        Form::Sum => (4, String::new()),
        Form::Bytes(len) => (len, String::new()),
        Form::Zero(len) => {
            assert!(rest[..len].iter().all(|byte| *byte == 0), "zeroes are expected");
            (len, String::new())
        }
    }
}

/// Takes bytes apart; the fields fill them exactly.
pub fn apart(bytes: &[u8], fields: &[Field]) -> Vec<Found> {
    let mut at = 0;
    let mut found = Vec::with_capacity(fields.len());
    for Field { name, form } in fields {
        let (len, value) = take(*form, &bytes[at..]);
        found.push(Found { at, len, name: name.clone(), value });
        at += len;
    }
    assert_eq!(at, bytes.len(), "the fields do not fill the bytes; the last is {:?}", fields.last());
    found
}

/// One field a line: offset, bytes (the first sixteen of many), name, value.
pub fn dump(bytes: &[u8], fields: &[Field]) -> String {
    let mut text = String::new();
    for Found { at, len, name, value } in apart(bytes, fields) {
        let shown = &bytes[at..at + len.min(16)];
        let hex = shown.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        let more = if len > 16 { format!(" … {len} bytes") } else { String::new() };
        let line = format!("{at:>5}  {:<47}  {name} {value}", hex + "");
        writeln!(text, "{}{more}", line.trim_end()).unwrap();
    }
    text
}
