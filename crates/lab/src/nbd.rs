// SPDX-License-Identifier: Apache-2.0
//! A small blocking NBD client for loads that have to know what was answered: fixed newstyle, simple replies, many
//! requests in flight, on a unix socket or over TCP.
//!
//! It keeps apart what a load must keep apart: an answer with an error is [`Answer::error`], a connection that ended is
//! an `io::Error`, and what was sent and has no answer is the caller's to know.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const FLAG_FUA: u16 = 1;

trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

/// A command that has no data in its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Write data.
    Write {
        /// Answered only once it is on stable media.
        fua: bool,
    },
    /// Answered once everything that was answered is on stable media.
    Flush,
    /// The data are of no use any more.
    Trim,
    /// They are zeroes from now on.
    WriteZeroes,
}

/// The answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What [`Client::send`] returned.
    pub handle: u64,
    /// 0, or the error's number.
    pub error: u32,
}

/// A connection to an export.
pub struct Client {
    stream: Box<dyn Stream>,
    next: u64,
    /// Size of the export, bytes.
    pub size: u64,
}

fn bad(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, what.into())
}

impl Client {
    /// Connects over a unix socket.
    pub fn unix(socket: &Path, export: &str) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Self::open(Box::new(stream), export)
    }

    /// Connects over TCP.
    pub fn tcp(address: SocketAddr, export: &str) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Self::open(Box::new(stream), export)
    }

    fn open(stream: Box<dyn Stream>, export: &str) -> Result<Self> {
        let mut client = Self { stream, next: 0, size: 0 };
        let hello: [u8; 18] = client.take()?;
        if &hello[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(bad("this is no NBD server"));
        }
        let name = export.as_bytes();
        let name_len = u32::try_from(name.len()).map_err(|_| bad("a name too long"))?;
        // Fixed newstyle, no zeroes; then "go" with the name and no questions.
        let mut out = 3_u32.to_be_bytes().to_vec();
        out.extend(OPTION_MAGIC.to_be_bytes());
        out.extend(OPT_GO.to_be_bytes());
        out.extend((name_len + 6).to_be_bytes());
        out.extend(name_len.to_be_bytes());
        out.extend(name);
        out.extend(0_u16.to_be_bytes());
        client.stream.write_all(&out)?;
        loop {
            let head: [u8; 20] = client.take()?;
            let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            if head[..8] != OPTION_REPLY_MAGIC.to_be_bytes() || word(16) > 4096 {
                return Err(bad("this is no reply to an option"));
            }
            let mut body = vec![0; word(16) as usize];
            client.stream.read_exact(&mut body)?;
            match word(12) {
                REP_ACK => return Ok(client),
                REP_INFO if body.len() == 12 && body[..2] == [0, 0] => {
                    client.size = body[2..10].iter().fold(0, |size, byte| size << 8 | u64::from(*byte));
                }
                REP_INFO => {}
                _ => return Err(Error::new(ErrorKind::NotFound, String::from_utf8_lossy(&body).into_owned())),
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn request(&mut self, flags: u16, kind: u16, offset: u64, len: u32, data: &[u8]) -> Result<u64> {
        let handle = self.next;
        self.next += 1;
        let mut out = Vec::with_capacity(28 + data.len());
        out.extend(REQUEST_MAGIC.to_be_bytes());
        out.extend(flags.to_be_bytes());
        out.extend(kind.to_be_bytes());
        out.extend(handle.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(len.to_be_bytes());
        out.extend(data);
        self.stream.write_all(&out)?;
        Ok(handle)
    }

    /// Sends a command and gives its handle. `len` is the length of `data` for a write, and 0 for a flush.
    pub fn send(&mut self, command: Command, offset: u64, len: u32, data: &[u8]) -> Result<u64> {
        let (kind, flags) = match command {
            Command::Write { fua } => (1, if fua { FLAG_FUA } else { 0 }),
            Command::Flush => (3, 0),
            Command::Trim => (4, 0),
            Command::WriteZeroes => (6, 0),
        };
        self.request(flags, kind, offset, len, data)
    }

    /// Receives the next answer to what was sent.
    pub fn receive(&mut self) -> Result<Answer> {
        let head: [u8; 16] = self.take()?;
        if head[..4] != SIMPLE_REPLY_MAGIC.to_be_bytes() {
            return Err(bad("this is no simple reply"));
        }
        let error = head[4..8].iter().fold(0, |error, byte| error << 8 | u32::from(*byte));
        Ok(Answer { handle: head[8..].iter().fold(0, |handle, byte| handle << 8 | u64::from(*byte)), error })
    }

    /// Sends a command and waits for its answer, with nothing else in flight. An error of the server is an error.
    pub fn run(&mut self, command: Command, offset: u64, len: u32, data: &[u8]) -> Result<()> {
        let handle = self.send(command, offset, len, data)?;
        self.success(handle)
    }

    fn success(&mut self, handle: u64) -> Result<()> {
        match self.receive()? {
            answer if answer.handle != handle => Err(bad("an answer to something else")),
            Answer { error: 0, .. } => Ok(()),
            Answer { error, .. } => Err(Error::other(format!("the server answers with error {error}"))),
        }
    }

    /// Reads, with nothing else in flight.
    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>> {
        let handle = self.request(0, 0, offset, len, &[])?;
        self.success(handle)?;
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }
}
