// SPDX-License-Identifier: Apache-2.0
//! Requests are found wherever the bytes are split, and what is sent costs no more memory than it may.

use super::*;
use crate::dialect::{Command, Failed, Request};
use tokio::io::AsyncWriteExt;
use varve_block::{BlockDevice, Position};
use varve_types::ErrorKind;

/// A protocol of requests alone: command 1 | length 4 | payload of a write, which has no 0xff.
struct Toy;

const READ: u8 = 0;
const WRITE: u8 = 1;

impl Dialect for Toy {
    type Head = (u8, u32);
    const HEAD_BYTES: usize = 5;

    fn decode(&self, bytes: &[u8]) -> Result<Option<(u8, u32)>, String> {
        let Some([command, length @ ..]) = bytes.first_chunk::<5>() else { return Ok(None) };
        if *command > WRITE {
            return Err(format!("{command} is no command"));
        }
        Ok(Some((*command, u32::from_le_bytes(*length))))
    }
    fn payload(&self, head: &(u8, u32)) -> u64 {
        if head.0 == WRITE { head.1.into() } else { 0 }
    }
    fn check(&self, _: &(u8, u32), _: &dyn BlockDevice) -> Result<(), Refusal> {
        Ok(())
    }
    fn prove(&self, _: &(u8, u32), payload: &[u8]) -> Result<(), String> {
        if payload.contains(&0xff) { Err("damaged".to_owned()) } else { Ok(()) }
    }
    fn request(&self, head: &(u8, u32)) -> Request {
        let command = if head.0 == WRITE { Command::Write } else { Command::Read };
        Request { command, cookie: 0, offset: 0, length: head.1.into(), fua: false, one: false }
    }
    fn name(&self) -> &'static str {
        "toy"
    }
    fn pieces(&self) -> bool {
        false
    }
    fn data_head_bytes(&self) -> usize {
        0
    }
    fn put_done(&self, _: &mut BytesMut, _: u64, _: Position) {}
    fn put_failed(&self, _: &mut BytesMut, _: u64, _: Failed<'_>, _: Position) {}
    fn put_data_head(&self, _: &mut BytesMut, _: u64, _: u64, _: u32, _: bool, _: Position) {}
    fn put_status(&self, _: &mut BytesMut, _: u64, _: &[(u64, bool)], _: Position) {}
}

fn input(bytes: &[u8]) -> Input<Toy> {
    Input::new(BytesMut::from(bytes))
}

fn request(command: u8, length: u32) -> Vec<u8> {
    let mut bytes = vec![command];
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes
}

fn allow(_: &(u8, u32)) -> Result<(), Refusal> {
    Ok(())
}

fn forbid_writes(head: &(u8, u32)) -> Result<(), Refusal> {
    if head.0 == WRITE { Err(Refusal { kind: ErrorKind::Conflict, text: "no" }) } else { Ok(()) }
}

#[test]
fn requests_are_cut_wherever_the_bytes_are_split() {
    let mut stream = request(WRITE, 5);
    stream.extend_from_slice(b"hello");
    stream.extend_from_slice(&request(READ, 9));
    for split in 0..stream.len() {
        let mut input = input(&stream[..split]);
        let mut found = Vec::new();
        for rest in [&stream[split..], &[]] {
            while let Next::Request(head, payload) = input.next(&Toy, allow).unwrap() {
                found.push((head, payload.to_vec()));
            }
            input.bytes.extend_from_slice(rest);
        }
        assert_eq!(found, [((WRITE, 5), b"hello".to_vec()), ((READ, 9), Vec::new())], "split at {split}");
        assert!(!input.is_within_request());
    }
}

#[test]
fn a_refused_payload_is_skipped_to_the_next_request() {
    let mut stream = request(WRITE, 1000);
    stream.extend_from_slice(&[WRITE; 1000]);
    stream.extend_from_slice(&request(READ, 7));
    for split in 0..stream.len() {
        let mut input = input(&stream[..split]);
        let mut found = Vec::new();
        for rest in [&stream[split..], &[]] {
            loop {
                match input.next(&Toy, forbid_writes).unwrap() {
                    Next::Request(head, _) => found.push((head.0, None)),
                    Next::Refused(head, refusal) => found.push((head.0, Some(refusal.kind))),
                    Next::More => break,
                }
            }
            input.bytes.extend_from_slice(rest);
        }
        assert_eq!(found, [(WRITE, Some(ErrorKind::Conflict)), (READ, None)], "split at {split}");
        assert!(!input.is_within_request());
    }
}

#[test]
fn a_length_that_can_not_be_meant_ends_it() {
    let most = MOST_SKIPPED as u32;
    for (length, fine) in [(most, true), (most + 1, false), (u32::MAX, false)] {
        assert_eq!(input(&request(WRITE, length)).next(&Toy, forbid_writes).is_ok(), fine, "{length}");
        let read = input(&request(READ, length)).next(&Toy, allow);
        assert!(matches!(read, Ok(Next::Request(..))), "no payload, no bound");
    }
}

#[test]
fn what_is_no_request_or_was_damaged_ends_it() {
    assert!(input(&request(9, 0)).next(&Toy, allow).is_err());
    let mut damaged = request(WRITE, 1);
    damaged.push(0xff);
    assert!(input(&damaged).next(&Toy, allow).is_err());
}

#[tokio::test]
async fn a_large_payload_has_a_buffer_of_its_own_size() {
    let (mut here, mut there) = tokio::io::duplex(1 << 20);
    let length = 8 << 20;
    let sender = tokio::spawn(async move {
        for _ in 0..2 {
            there.write_all(&request(WRITE, length)).await.unwrap();
            there.write_all(&vec![7; length as usize]).await.unwrap();
        }
    });
    let mut input = input(&[]);
    for _ in 0..2 {
        let payload = loop {
            match input.next(&Toy, allow).unwrap() {
                Next::Request(_, payload) => break payload,
                Next::Refused(..) => unreachable!(),
                Next::More => {}
            }
            let received = std::future::poll_fn(|cx| input.poll_receive(&mut here, cx)).await.unwrap();
            assert!(received > 0);
            assert!(input.bytes.capacity() <= length as usize + 2 * LARGEST, "{}", input.bytes.capacity());
        };
        assert_eq!(payload.len(), length as usize);
        assert!(payload.iter().all(|byte| *byte == 7));
    }
    sender.await.unwrap();
}
