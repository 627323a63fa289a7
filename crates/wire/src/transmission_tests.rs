// SPDX-License-Identifier: Apache-2.0
//! Requests and replies: what was said is what is heard, whatever was damaged is told, and lengths have bounds.

use super::*;
use proptest::prelude::*;

fn request(ask: Ask, length: u64) -> Request {
    Request { ask, flags: FLAG_FUA, id: 7, offset: 4096, length, payload_crc: payload_crc(b"data") }
}

fn reply(told: Told) -> Reply {
    let id = if matches!(told, Told::Size | Told::Leave) { 0 } else { 9 };
    Reply { told, id, sequence: Sequence(12), safe: Sequence(11), length: 4, payload_crc: payload_crc(b"data") }
}

fn bytes(request: &Request) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    bytes
}

#[test]
fn requests_are_read_back() {
    for ask in ASKS {
        let request = request(ask, 4);
        let bytes = bytes(&request);
        assert_eq!(Request::decode(&bytes), Ok(Some(request)));
        assert_eq!(request.payload(), if ask == Ask::Write { 4 } else { 0 });
        for length in 0..REQUEST_BYTES {
            assert_eq!(Request::decode(&bytes[..length]), Ok(None));
        }
    }
}

#[test]
fn replies_are_read_back() {
    let errors = varve_types::ALL_KINDS.map(Told::Failed);
    for told in [Told::Done, Told::Size, Told::Leave].into_iter().chain(errors) {
        let reply = reply(told);
        assert_eq!(Reply::decode(&reply.to_bytes()), Ok(Some(reply)));
        assert_eq!(Reply::decode(&reply.to_bytes()[..REPLY_BYTES - 1]), Ok(None));
    }
}

#[test]
fn a_header_can_be_finished_once_its_payload_is_there() {
    let mut head = Reply { length: 0, payload_crc: payload_crc(b""), ..reply(Told::Done) }.to_bytes();
    Reply::finish(&mut head, b"data");
    assert_eq!(head, reply(Told::Done).to_bytes());
}

#[test]
fn every_flipped_bit_is_told() {
    let (request, reply) = (bytes(&request(Ask::Write, 4)), reply(Told::Done).to_bytes());
    for bit in 0..REQUEST_BYTES * 8 {
        let mut damaged = request.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Request::decode(&damaged).is_err(), "bit {bit} of a request");
    }
    for bit in 0..REPLY_BYTES * 8 {
        let mut damaged = reply;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Reply::decode(&damaged).is_err(), "bit {bit} of a reply");
    }
}

#[test]
fn payloads_are_proved() {
    assert_eq!(request(Ask::Write, 4).verify(b"data"), Ok(()));
    assert!(matches!(request(Ask::Write, 4).verify(b"dabo"), Err(WireError::Damaged { .. })));
    assert!(matches!(reply(Told::Done).verify(b"date"), Err(WireError::Damaged { .. })));
}

#[test]
fn lengths_have_bounds() {
    for ask in [Ask::Read, Ask::Write] {
        assert!(Request::decode(&bytes(&request(ask, MAX_DATA))).is_ok());
        assert!(matches!(Request::decode(&bytes(&request(ask, MAX_DATA + 1))), Err(WireError::TooLong { .. })));
    }
    assert!(Request::decode(&bytes(&request(Ask::Discard, 64 << 40))).is_ok());
    assert!(Request::decode(&bytes(&request(Ask::Discard, u64::MAX))).is_err());
    let long = Reply { length: MAX_TEXT as u32 + 1, ..reply(Told::Failed(ErrorKind::Busy)) };
    assert!(matches!(Reply::decode(&long.to_bytes()), Err(WireError::TooLong { .. })));
}

#[test]
fn numbers_that_do_not_fit_are_told() {
    assert!(Request::decode(&bytes(&Request { id: 0, ..request(Ask::Read, 4) })).is_err());
    assert!(Reply::decode(&Reply { id: 0, ..reply(Told::Done) }.to_bytes()).is_err());
    assert!(Reply::decode(&Reply { id: 1, ..reply(Told::Leave) }.to_bytes()).is_err());
    assert!(Reply::decode(&Reply { safe: Sequence(13), ..reply(Told::Done) }.to_bytes()).is_err());
}

#[test]
fn extents_are_read_back() {
    let extents = [Extent { length: 4096, hole: true }, Extent { length: 1 << 40, hole: false }];
    let mut bytes = Vec::new();
    put_extents(&extents, &mut bytes);
    assert_eq!(get_extents(&bytes).unwrap(), extents);
    assert!(get_extents(&bytes[1..]).is_err() && get_extents(&[]).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
        let _ = Request::decode(&bytes);
        let _ = Reply::decode(&bytes);
        let _ = get_extents(&bytes);
        let _ = crate::attach::Attach::decode(&bytes);
        let _ = crate::attach::Attached::decode(&bytes);
        let _ = crate::attach::Refused::decode(&bytes);
        if let Some(head) = bytes.first_chunk() {
            let _ = crate::greeting::Header::decode(head);
        }
    }
}
