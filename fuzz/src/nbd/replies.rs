// SPDX-License-Identifier: Apache-2.0
//! What a client understands: its own requests, cut as the protocol says, and the server's replies to them.
//!
//! Written from the specification and not from the server's code, so that both would have to be wrong in the same way. Replies come in no
//! order, and a request is known by its cookie alone: where two requests have the same one nobody can say which
//! was answered, so [`number`] gives each its own.

use super::Setting;
use super::device::pattern;
use crate::array;
use std::collections::BTreeMap;
use varve_nbd::Negotiated;
use varve_nbd::wire::{
    self, Command, REPLY_FLAG_DONE, REPLY_TYPE_BLOCK_STATUS, REPLY_TYPE_ERROR, REPLY_TYPE_ERROR_OFFSET,
    REPLY_TYPE_NONE, REPLY_TYPE_OFFSET_DATA, REQUEST_BYTES, Request, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};

/// A payload so long is not skipped by any server.
const MOST_SKIPPED: u32 = 64 << 20;

/// A request whose payload came whole.
pub struct SentRequest {
    /// The request.
    pub request: Request,
    /// Where in the input its payload begins.
    pub payload: usize,
}

/// What the client sent, and how it ended.
pub struct Sent {
    pub(super) setting: Setting,
    pub(super) negotiated: Negotiated,
    pub(super) requests: Vec<SentRequest>,
    /// The server saw the client's good-bye and ended well.
    pub(super) said_good_bye: bool,
}

impl SentRequest {
    /// Whether range and flags are such that a device of this size must take the request.
    #[must_use]
    pub fn is_in_order(&self, size: u64) -> bool {
        let Request { flags, offset, length, command, .. } = self.request;
        let carried = !matches!(command, Command::Read | Command::Write) || length <= wire::MAX_BLOCK;
        let aligned = offset % 512 == 0 && length % 512 == 0;
        flags & !wire::CMD_FLAG_FUA == 0
            && carried
            && aligned
            && offset.checked_add(length.into()).is_some_and(|e| e <= size)
    }
}

/// The requests in the bytes, and whether the last thing in them is a good-bye.
#[must_use]
pub fn requests(bytes: &[u8]) -> (Vec<SentRequest>, bool) {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Ok(Some(request)) = Request::decode(&bytes[at..]) {
        at += REQUEST_BYTES;
        let payload = at;
        if request.command == Command::Disconnect {
            return (found, true);
        }
        if request.command == Command::Write {
            if request.length > MOST_SKIPPED || request.length as usize > bytes.len() - at {
                break;
            }
            at += request.length as usize;
        }
        found.push(SentRequest { request, payload });
    }
    (found, false)
}

/// Gives every request in the bytes a cookie of its own.
pub fn number(bytes: &mut [u8]) {
    for (number, sent) in requests(bytes).0.iter().enumerate() {
        let cookie = sent.payload - REQUEST_BYTES + 8;
        bytes[cookie..cookie + 8].copy_from_slice(&(number as u64).to_be_bytes());
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// A greeting, replies to options, and where an export was chosen without one, its description.
pub fn check_handshake(output: &[u8], negotiated: Option<&Negotiated>) {
    let rest = output.strip_prefix(b"NBDMAGICIHAVEOPT\0\x03").expect("a server greets");
    let mut rest = rest;
    let mut accepted = false;
    while rest.starts_with(&0x0003_e889_0455_65a9_u64.to_be_bytes()) {
        assert!(rest.len() >= 20, "a reply is cut off");
        let (option, kind, len) = (u32_at(rest, 8), u32_at(rest, 12), u32_at(rest, 16) as usize);
        assert!(len <= 8192, "a reply of {len} bytes");
        let data = rest.get(20..20 + len).expect("a reply has the data that it says");
        match kind {
            1 => assert!(data.is_empty(), "an acknowledgement has no data"),
            2 => assert!(u32_at(data, 0) as usize == len - 4, "the name of an export fills its reply"),
            3 => assert!(matches!(array::<2>(data, 0), [0, 0..=3])),
            4 => assert_eq!(&data[4..], b"base:allocation"),
            error => assert!(error >> 31 == 1 && std::str::from_utf8(data).is_ok(), "a reply of type {error:#x}"),
        }
        accepted = option == 7 && kind == 1;
        rest = &rest[20 + len..];
    }
    match negotiated {
        Some(negotiated) if !accepted => {
            assert!(matches!(rest.len(), 10 | 134), "{} bytes describe an export", rest.len());
            assert_eq!(u64_at(rest, 0), negotiated.export.size);
            assert_eq!(u16::from_be_bytes(array(rest, 8)), negotiated.flags());
        }
        _ => assert!(rest.is_empty(), "{} bytes behind the replies", rest.len()),
    }
}

/// What came of a request so far.
#[derive(Default)]
struct Answer {
    /// Bytes of data, by offset.
    data: BTreeMap<u64, u64>,
    error: Option<u32>,
    done: bool,
}

/// Holds the replies against the requests. Where two requests have one cookie nobody can tell their replies apart; then nothing is held.
pub fn check_transmission(output: &[u8], sent: &Sent) {
    let by_cookie: BTreeMap<u64, &SentRequest> = sent.requests.iter().map(|sent| (sent.request.cookie, sent)).collect();
    if by_cookie.len() != sent.requests.len() {
        return;
    }
    let mut answers: BTreeMap<u64, Answer> = BTreeMap::new();
    let mut rest = output;
    while !rest.is_empty() {
        let cookie = u64_at(rest, 8);
        if rest.len() < 16 && !sent.said_good_bye {
            break;
        }
        let request = by_cookie.get(&cookie).expect("a reply is to a request");
        if rest.len() < len_of(rest, &request.request) {
            // A connection that breaks may end within a reply; then nothing is behind it.
            assert!(!sent.said_good_bye, "the last reply is cut off");
            break;
        }
        let answer = answers.entry(cookie).or_default();
        assert!(!answer.done, "a request is answered twice");
        rest = match u32_at(rest, 0) {
            SIMPLE_REPLY_MAGIC => simple(rest, &request.request, answer, sent.negotiated.structured),
            STRUCTURED_REPLY_MAGIC if sent.negotiated.structured => chunk(rest, &request.request, answer),
            other => panic!("a reply begins with {other:#x}"),
        };
    }
    for (cookie, request) in &by_cookie {
        match answers.get(cookie).filter(|answer| answer.done) {
            Some(answer) => check_answer(request, answer, sent),
            None => assert!(!sent.said_good_bye, "{:?} was not answered", request.request),
        }
    }
}

/// Bytes of the message that begins here, as far as its head is there to tell.
fn len_of(rest: &[u8], request: &Request) -> usize {
    match u32_at(rest, 0) {
        SIMPLE_REPLY_MAGIC if request.command == Command::Read && u32_at(rest, 4) == 0 => 16 + request.length as usize,
        SIMPLE_REPLY_MAGIC => 16,
        _ => 20 + u32_at(rest, 16) as usize,
    }
}

fn simple<'a>(rest: &'a [u8], request: &Request, answer: &mut Answer, structured: bool) -> &'a [u8] {
    assert!(rest.len() >= 16, "a reply is cut off");
    assert!(request.command != Command::Read || !structured, "a read is answered in chunks, as was agreed");
    let error = u32_at(rest, 4);
    answer.done = true;
    let mut len = 0;
    if error != 0 {
        answer.error = Some(error);
    } else if request.command == Command::Read {
        len = request.length as usize;
        data(rest.get(16..16 + len).expect("the data that was asked"), request.offset, answer);
    }
    &rest[16 + len..]
}

fn data(bytes: &[u8], offset: u64, answer: &mut Answer) {
    let fine = (offset..).zip(bytes).all(|(at, byte)| pattern(at) == *byte);
    assert!(fine, "a read gives other bytes than lie at {offset}");
    assert!(answer.data.insert(offset, bytes.len() as u64).is_none(), "the same data twice");
}

fn chunk<'a>(rest: &'a [u8], request: &Request, answer: &mut Answer) -> &'a [u8] {
    assert!(rest.len() >= 20, "a chunk is cut off");
    let (flags, kind) = (u16::from_be_bytes(array(rest, 4)), u16::from_be_bytes(array(rest, 6)));
    let len = u32_at(rest, 16) as usize;
    let body = rest.get(20..20 + len).expect("a chunk has the payload that it says");
    assert!(flags & !REPLY_FLAG_DONE == 0);
    answer.done = flags & REPLY_FLAG_DONE != 0;
    match kind {
        REPLY_TYPE_NONE => assert!(body.is_empty() && answer.done),
        REPLY_TYPE_OFFSET_DATA => {
            assert!(request.command == Command::Read && len > 8, "data of a {:?}", request.command);
            data(&body[8..], u64_at(body, 0), answer);
        }
        REPLY_TYPE_BLOCK_STATUS => {
            assert!(request.command == Command::BlockStatus && len >= 12 && len % 8 == 4 && u32_at(body, 0) == 1);
            let lengths: Vec<u64> = body[4..].chunks_exact(8).map(|extent| u64::from(u32_at(extent, 0))).collect();
            assert!(lengths.iter().all(|len| *len > 0) && lengths.iter().sum::<u64>() <= u64::from(request.length));
            assert!(request.flags & wire::CMD_FLAG_REQ_ONE == 0 || lengths.len() == 1);
        }
        REPLY_TYPE_ERROR | REPLY_TYPE_ERROR_OFFSET => {
            let text = usize::from(u16::from_be_bytes(array(body, 4)));
            let tail = if kind == REPLY_TYPE_ERROR { 0 } else { 8 };
            assert!(len == 6 + text + tail && std::str::from_utf8(&body[6..6 + text]).is_ok());
            assert!(u32_at(body, 0) != 0, "an error that is none");
            answer.error = Some(u32_at(body, 0));
        }
        other => panic!("a chunk of type {other:#x}"),
    }
    &rest[20 + len..]
}

fn check_answer(sent: &SentRequest, answer: &Answer, all: &Sent) {
    let request = &sent.request;
    let Setting { size, fail, .. } = all.setting;
    if request.command == Command::Read && answer.error.is_none() {
        let mut end = request.offset;
        for (offset, len) in &answer.data {
            assert_eq!(*offset, end, "a hole in the data");
            end += len;
        }
        assert_eq!(end, request.offset + u64::from(request.length));
    }
    let moves = matches!(request.command, Command::Read | Command::Write | Command::Trim | Command::WriteZeroes);
    if !moves {
        return;
    }
    let forbidden = all.negotiated.export.read_only && request.command != Command::Read;
    let in_order = sent.is_in_order(size);
    if in_order && !forbidden && fail == 0 {
        assert_eq!(answer.error, None, "{request:?} is in order");
    }
    // The flags of some commands are more than FUA; a range beyond the end is wrong whatever they are.
    let beyond = request.offset.checked_add(request.length.into()).is_none_or(|end| end > size);
    assert!(!(beyond || forbidden) || answer.error.is_some(), "{request:?} went well");
}
