// SPDX-License-Identifier: Apache-2.0
//! A client of a few lines, for what well-behaved ones never send. Its sockets block, with the deadline of the tests.

use super::server::{DEADLINE, Server};
use bytes::BytesMut;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use varve_nbd::option::{self, OptionHeader};
use varve_nbd::wire::{self, Command, Request};

/// A connection.
pub struct Raw(pub UnixStream);

/// A reply: its cookie, its error (0 is success) and its data.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub cookie: u64,
    pub error: u32,
    pub data: Vec<u8>,
}

impl Raw {
    /// Connects and does nothing more.
    pub fn connect(server: &Server) -> Self {
        let stream = UnixStream::connect(server.socket()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self(stream)
    }

    /// Connects and exchanges flags.
    pub fn greeted(server: &Server) -> Self {
        let mut raw = Self::connect(server);
        assert_eq!(raw.take(option::GREETING_BYTES), b"NBDMAGICIHAVEOPT\0\x03");
        raw.send(&3u32.to_be_bytes());
        raw
    }

    /// Connects to an export, with simple replies.
    pub fn attached(server: &Server, export: &str) -> Self {
        let mut raw = Self::greeted(server);
        raw.option(option::OPT_EXPORT_NAME, export.as_bytes());
        raw.take(10);
        raw
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = BytesMut::new();
        OptionHeader { option, length: data.len() as u32 }.encode(&mut bytes);
        bytes.extend_from_slice(data);
        self.send(&bytes);
    }

    /// The reply to an option: its type and data.
    pub fn option_reply(&mut self) -> (u32, Vec<u8>) {
        let head = self.take(20);
        assert_eq!(head[..8], option::OPTION_REPLY_MAGIC.to_be_bytes());
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        (word(12), self.take(word(16) as usize))
    }

    /// The bytes of a request.
    pub fn request(command: Command, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        Request { flags, command, cookie, offset, length }.encode(&mut bytes);
        bytes.to_vec()
    }

    pub fn ask(&mut self, command: Command, cookie: u64, offset: u64, length: u32) {
        self.send(&Self::request(command, 0, cookie, offset, length));
    }

    pub fn write(&mut self, cookie: u64, offset: u64, data: &[u8]) {
        let mut bytes = Self::request(Command::Write, 0, cookie, offset, data.len() as u32);
        bytes.extend_from_slice(data);
        self.send(&bytes);
    }

    /// A simple reply, with `data` bytes if it is a success.
    pub fn reply(&mut self, data: usize) -> Reply {
        let head = self.take(wire::SIMPLE_REPLY_BYTES);
        assert_eq!(head[..4], wire::SIMPLE_REPLY_MAGIC.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
        Reply { cookie, error, data: self.take(if error == 0 { data } else { 0 }) }
    }

    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Waits for the server to hang up; gives what it sent before.
    pub fn until_hung_up(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Ok(_) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => bytes,
            Err(error) => panic!("the server did not hang up: {error}"),
        }
    }
}

/// A good client: writes, reads and leaves.
pub fn good_client(server: &Server) {
    let mut raw = Raw::attached(server, "other");
    let data: Vec<u8> = (0..8192u32).map(|n| (n % 251) as u8).collect();
    raw.write(1, 4096, &data);
    assert_eq!(raw.reply(0), Reply { cookie: 1, error: 0, data: Vec::new() });
    raw.ask(Command::Read, 2, 4096, 8192);
    assert_eq!(raw.reply(8192), Reply { cookie: 2, error: 0, data });
    raw.ask(Command::Disconnect, 3, 0, 0);
    assert!(raw.until_hung_up().is_empty());
}
