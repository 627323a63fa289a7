// SPDX-License-Identifier: Apache-2.0
//! Messages of the handshake (fixed newstyle), byte by byte. Everything is big-endian.
//!
//! ```text
//! greeting (18)       "NBDMAGIC" 8 | "IHAVEOPT" 8 | handshake flags 2          client flags (4)
//! option (16)         "IHAVEOPT" 8 | option 4 | length 4 | data
//!   INFO, GO            name length 4 | name | count 2 | (information 2)…
//!   …_META_CONTEXT      name length 4 | name | count 4 | (query length 4 | query)…
//! option reply (20)   magic 8 | option 4 | type 4 | length 4 | data
//! EXPORT_NAME reply   size 8 | transmission flags 2 | zeroes 124, unless NO_ZEROES
//! ```
//!
//! Decoding is a pure function over the whole data of an option, whose length the handshake has bounded by [`MAX_OPTION_BYTES`].

use crate::wire::{MAX_BLOCK, MIN_BLOCK, PREFERRED_BLOCK};
use bytes::{BufMut, BytesMut};

/// First magic of the greeting.
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second magic of the greeting, and the magic of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Begins every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Bytes of the greeting.
pub const GREETING_BYTES: usize = 18;
/// Bytes of an option without its data.
pub const OPTION_BYTES: usize = 16;
/// Longest data of an option that is looked at.
pub const MAX_OPTION_BYTES: u32 = 16 << 10;
/// Longest name and query (the specification's limit of strings).
pub const MAX_STRING_BYTES: usize = 4096;

/// Handshake flags and, with the same values, client flags.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// No zeroes behind the reply to `EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Choose an export and go on to transmission; knows no error.
pub const OPT_EXPORT_NAME: u32 = 1;
/// Leave.
pub const OPT_ABORT: u32 = 2;
/// Name the exports.
pub const OPT_LIST: u32 = 3;
/// Go over to TLS.
pub const OPT_STARTTLS: u32 = 5;
/// Describe an export.
pub const OPT_INFO: u32 = 6;
/// Choose an export and go on to transmission.
pub const OPT_GO: u32 = 7;
/// Use structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// Name the metadata contexts.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Choose metadata contexts.
pub const OPT_SET_META_CONTEXT: u32 = 10;

/// Done.
pub const REP_ACK: u32 = 1;
/// The name of an export.
pub const REP_SERVER: u32 = 2;
/// A fact of an export.
pub const REP_INFO: u32 = 3;
/// The name of a metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// The option is not known.
pub const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
/// The server does not want it.
pub const REP_ERR_POLICY: u32 = (1 << 31) + 2;
/// The option is malformed.
pub const REP_ERR_INVALID: u32 = (1 << 31) + 3;
/// There is no such export.
pub const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
/// The server can not serve now.
pub const REP_ERR_SHUTDOWN: u32 = (1 << 31) + 7;
/// The option is too large.
pub const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

/// Information: size and flags.
pub const INFO_EXPORT: u16 = 0;
/// Information: the export's own name.
pub const INFO_NAME: u16 = 1;
/// Information: a text about the export.
pub const INFO_DESCRIPTION: u16 = 2;
/// Information: the sizes of blocks.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// The one metadata context that there is.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its number.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// An option that is not well formed, and what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// The head of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub option: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    /// The head at the beginning of `bytes`, or none if there are less than [`OPTION_BYTES`].
    ///
    /// # Errors
    /// When the magic is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut reader = Reader(bytes);
        let Some(magic) = reader.u64() else { return Ok(None) };
        if magic != OPTION_MAGIC {
            return Err(Malformed("an option does not begin with its magic"));
        }
        let (Some(option), Some(length)) = (reader.u32(), reader.u32()) else { return Ok(None) };
        Ok(Some(Self { option, length }))
    }

    /// Appends the head as a client sends it.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u64(OPTION_MAGIC);
        out.put_u32(self.option);
        out.put_u32(self.length);
    }
}

/// The data of INFO and GO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export's name; empty is the default export.
    pub name: &'a str,
    /// What the client wants to know beside size and flags (`INFO_…`).
    pub wanted: Vec<u16>,
}

impl<'a> InfoRequest<'a> {
    /// The request that `data` is, all of it.
    ///
    /// # Errors
    /// When it is not well formed.
    pub fn decode(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(data);
        let name = reader.string("the name of the export")?;
        let count = reader.u16().ok_or(Malformed("the number of information requests is missing"))?;
        if reader.0.len() != usize::from(count) * 2 {
            return Err(Malformed("the information requests are not as many as was said"));
        }
        let wanted = reader.0.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        Ok(Self { name, wanted })
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaRequest<'a> {
    /// The export's name.
    pub name: &'a str,
    /// What contexts the client wants.
    pub queries: Vec<&'a str>,
}

impl<'a> MetaRequest<'a> {
    /// The request that `data` is, all of it.
    ///
    /// # Errors
    /// When it is not well formed.
    pub fn decode(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(data);
        let name = reader.string("the name of the export")?;
        let count = reader.u32().ok_or(Malformed("the number of queries is missing"))? as usize;
        if count > reader.0.len() / 4 {
            return Err(Malformed("there are less queries than was said"));
        }
        let mut queries = Vec::with_capacity(count);
        for _ in 0..count {
            queries.push(reader.string("a query")?);
        }
        if !reader.0.is_empty() {
            return Err(Malformed("there is more behind the last query"));
        }
        Ok(Self { name, queries })
    }

    /// Whether `base:allocation` is among what is asked: to be listed, where a namespace or no query at all asks for everything, or to be
    /// set, where only its name does.
    #[must_use]
    pub fn asks_for_allocation(&self, to_list: bool) -> bool {
        let named = |query: &&str| *query == BASE_ALLOCATION || (to_list && *query == "base:");
        self.queries.iter().any(named) || (to_list && self.queries.is_empty())
    }
}

/// The text that is the whole data of an option (`EXPORT_NAME`).
///
/// # Errors
/// When it is no text or too long.
pub fn decode_name(data: &[u8]) -> Result<&str, Malformed> {
    text(data)
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > MAX_STRING_BYTES {
        return Err(Malformed("a text is longer than 4,096 bytes"));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(Malformed("a text is not UTF-8, or has a NUL in it")),
    }
}

/// What is not yet decoded.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
    /// A text behind its length.
    fn string(&mut self, what: &'static str) -> Result<&'a str, Malformed> {
        let length = self.u32().ok_or(Malformed(what))? as usize;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed(what))?;
        self.0 = rest;
        text(bytes)
    }
}

/// Appends the greeting.
pub fn put_greeting(out: &mut BytesMut) {
    out.put_u64(NBD_MAGIC);
    out.put_u64(OPTION_MAGIC);
    out.put_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
}

/// Appends a reply to `option`.
pub fn put_reply(out: &mut BytesMut, option: u32, kind: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
}

/// Appends a reply that names an export. The name has at most [`MAX_STRING_BYTES`] bytes.
pub fn put_server(out: &mut BytesMut, name: &str) {
    let mut data = BytesMut::with_capacity(4 + name.len());
    data.put_u32(name.len() as u32);
    data.put_slice(name.as_bytes());
    put_reply(out, OPT_LIST, REP_SERVER, &data);
}

/// Appends a reply that names a metadata context.
pub fn put_meta_context(out: &mut BytesMut, option: u32, id: u32, name: &str) {
    let mut data = BytesMut::with_capacity(4 + name.len());
    data.put_u32(id);
    data.put_slice(name.as_bytes());
    put_reply(out, option, REP_META_CONTEXT, &data);
}

/// Appends the reply with size and flags.
pub fn put_info_export(out: &mut BytesMut, option: u32, size: u64, flags: u16) {
    let mut data = BytesMut::with_capacity(12);
    data.put_u16(INFO_EXPORT);
    data.put_u64(size);
    data.put_u16(flags);
    put_reply(out, option, REP_INFO, &data);
}

/// Appends the reply with the sizes of blocks.
pub fn put_info_block_size(out: &mut BytesMut, option: u32) {
    let mut data = BytesMut::with_capacity(14);
    data.put_u16(INFO_BLOCK_SIZE);
    data.put_u32(MIN_BLOCK);
    data.put_u32(PREFERRED_BLOCK);
    data.put_u32(MAX_BLOCK);
    put_reply(out, option, REP_INFO, &data);
}

/// Appends a reply with a text of the export: its name or a description.
pub fn put_info_text(out: &mut BytesMut, option: u32, information: u16, text: &str) {
    let mut data = BytesMut::with_capacity(2 + text.len());
    data.put_u16(information);
    data.put_slice(text.as_bytes());
    put_reply(out, option, REP_INFO, &data);
}

/// Appends the reply to `EXPORT_NAME`.
pub fn put_export(out: &mut BytesMut, size: u64, flags: u16, no_zeroes: bool) {
    out.put_u64(size);
    out.put_u16(flags);
    if !no_zeroes {
        out.put_bytes(0, 124);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &[u8], wanted: &[u16]) -> Vec<u8> {
        let mut data = BytesMut::new();
        data.put_u32(name.len() as u32);
        data.put_slice(name);
        data.put_u16(wanted.len() as u16);
        wanted.iter().for_each(|w| data.put_u16(*w));
        data.to_vec()
    }

    fn meta(name: &[u8], queries: &[&str]) -> Vec<u8> {
        let mut data = BytesMut::new();
        data.put_u32(name.len() as u32);
        data.put_slice(name);
        data.put_u32(queries.len() as u32);
        for query in queries {
            data.put_u32(query.len() as u32);
            data.put_slice(query.as_bytes());
        }
        data.to_vec()
    }

    #[test]
    fn the_head_of_an_option_is_decoded_or_waited_for() {
        let mut bytes = BytesMut::new();
        let head = OptionHeader { option: OPT_GO, length: u32::MAX };
        head.encode(&mut bytes);
        assert_eq!(bytes.len(), OPTION_BYTES);
        assert_eq!(OptionHeader::decode(&bytes), Ok(Some(head)));
        for length in 0..OPTION_BYTES {
            assert_eq!(OptionHeader::decode(&bytes[..length]), Ok(None));
        }
        bytes[7] ^= 1;
        assert!(OptionHeader::decode(&bytes).is_err());
    }

    #[test]
    fn truncated_or_padded_data_is_malformed_and_never_more() {
        let whole = info(b"volume", &[INFO_BLOCK_SIZE, INFO_NAME]);
        let request = InfoRequest::decode(&whole).unwrap();
        assert_eq!((request.name, &request.wanted[..]), ("volume", &[INFO_BLOCK_SIZE, INFO_NAME][..]));
        (0..whole.len()).for_each(|n| assert!(InfoRequest::decode(&whole[..n]).is_err(), "{n}"));
        assert!(InfoRequest::decode(&[whole, vec![0]].concat()).is_err());

        let whole = meta(b"volume", &["base:allocation", "x:y"]);
        let request = MetaRequest::decode(&whole).unwrap();
        assert_eq!((request.name, &request.queries[..]), ("volume", &["base:allocation", "x:y"][..]));
        (0..whole.len()).for_each(|n| assert!(MetaRequest::decode(&whole[..n]).is_err(), "{n}"));
        assert!(MetaRequest::decode(&[whole, vec![0]].concat()).is_err());
    }

    #[test]
    fn lengths_that_lie_are_refused_before_anything_is_allocated() {
        let mut data = info(b"volume", &[]);
        data[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(InfoRequest::decode(&data).is_err());
        let mut data = meta(b"volume", &[]);
        data[10..].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(MetaRequest::decode(&data).is_err());
    }

    #[test]
    fn names_are_texts_of_a_bounded_length() {
        assert!(decode_name(b"").is_ok());
        assert!(decode_name(&[b'a'; MAX_STRING_BYTES]).is_ok());
        for bad in [&[b'a'; MAX_STRING_BYTES + 1][..], b"a\0b", b"\xff"] {
            assert!(decode_name(bad).is_err());
            assert!(InfoRequest::decode(&info(bad, &[])).is_err());
            assert!(MetaRequest::decode(&meta(bad, &[])).is_err());
        }
    }

    #[test]
    fn a_wildcard_lists_but_does_not_set() {
        let asks =
            |queries: &[&str], to_list| MetaRequest::decode(&meta(b"", queries)).unwrap().asks_for_allocation(to_list);
        assert!(asks(&[], true) && !asks(&[], false));
        assert!(asks(&["base:"], true) && !asks(&["base:"], false));
        assert!(asks(&["x:", "base:allocation"], true) && asks(&["x:", "base:allocation"], false));
        assert!(!asks(&["base:other", "qemu:dirty-bitmap:a", "base"], true));
    }

    #[test]
    fn replies_have_the_bytes_of_the_specification() {
        let mut out = BytesMut::new();
        put_greeting(&mut out);
        assert_eq!(&out[..], b"NBDMAGICIHAVEOPT\0\x03");
        out.clear();
        put_reply(&mut out, OPT_GO, REP_ERR_UNKNOWN, b"no");
        assert_eq!(&out[..], b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\x80\0\0\x06\0\0\0\x02no");
        out.clear();
        put_info_export(&mut out, OPT_GO, 512, 0x102);
        assert_eq!(&out[16..], b"\0\0\0\x0c\0\0\0\0\0\0\0\0\x02\0\x01\x02");
        out.clear();
        put_export(&mut out, 512, 1, false);
        assert_eq!(out.len(), 134);
        out.clear();
        put_export(&mut out, 512, 1, true);
        assert_eq!(&out[..], b"\0\0\0\0\0\0\x02\0\0\x01");
    }
}
