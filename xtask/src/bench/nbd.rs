// SPDX-License-Identifier: Apache-2.0
//! Just enough of an NBD client to know when a server serves: the handshake, and one read.
//!
//! A start is timed to the first answered read, in milliseconds, so no program may have to start in between. The protocol is
//! that of the NBD project's `proto.md`: fixed newstyle, `NBD_OPT_GO`, simple replies. What the server says is checked and bounded.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const CMD_DISC: u16 = 2;
/// Replies to one option, at most.
const REPLIES: usize = 64;
/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(1);

/// Waits until one block of the export can be read, and gives the time at which it could.
pub fn first_read(
    socket: &Path,
    export: &str,
    deadline: Instant,
    mut alive: impl FnMut() -> Result<()>,
) -> Result<Instant> {
    loop {
        alive()?;
        let error = match read_block(socket, export, deadline) {
            Ok(()) => return Ok(Instant::now()),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(error.context(format!("no read of {export:?} was answered in time at {}", socket.display())));
        }
        std::thread::sleep(RETRY);
    }
}

fn read_block(socket: &Path, export: &str, deadline: Instant) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("connecting")?;
    let left = deadline.saturating_duration_since(Instant::now()).max(RETRY);
    stream.set_read_timeout(Some(left)).context("setting a timeout")?;
    stream.set_write_timeout(Some(left)).context("setting a timeout")?;
    go(&mut stream, export)?;
    stream.write_all(&request(0, 0, 4096)).context("sending a read")?;
    ensure!(u32::from_be_bytes(take(&mut stream)?) == SIMPLE_REPLY_MAGIC, "that is no simple reply");
    let error = u32::from_be_bytes(take(&mut stream)?);
    let _cookie: [u8; 8] = take(&mut stream)?;
    ensure!(error == 0, "the read failed with error {error}");
    let _block: [u8; 4096] = take(&mut stream)?;
    // The server may well have hung up first.
    drop(stream.write_all(&request(CMD_DISC, 0, 0)));
    Ok(())
}

/// The handshake up to the transmission phase.
fn go(stream: &mut UnixStream, export: &str) -> Result<()> {
    ensure!(u64::from_be_bytes(take(stream)?) == MAGIC, "that is no NBD server");
    ensure!(u64::from_be_bytes(take(stream)?) == OPTION_MAGIC, "that server does not speak newstyle");
    let flags = u16::from_be_bytes(take(stream)?);
    ensure!(flags & 1 == 1, "that server does not speak fixed newstyle");
    let name = export.as_bytes();
    let mut message = u32::from(flags & 3).to_be_bytes().to_vec();
    message.extend(OPTION_MAGIC.to_be_bytes());
    message.extend(OPT_GO.to_be_bytes());
    message.extend((u32::try_from(name.len())? + 6).to_be_bytes());
    message.extend(u32::try_from(name.len())?.to_be_bytes());
    message.extend(name);
    message.extend([0, 0]);
    stream.write_all(&message).context("asking for the export")?;
    for _ in 0..REPLIES {
        ensure!(u64::from_be_bytes(take(stream)?) == REPLY_MAGIC, "that is no reply to an option");
        let _option: [u8; 4] = take(stream)?;
        let kind = u32::from_be_bytes(take(stream)?);
        let length = u32::from_be_bytes(take(stream)?);
        ensure!(length <= 65536, "a reply of {length} bytes");
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data).context("reading a reply")?;
        match kind {
            REP_ACK => return Ok(()),
            REP_INFO => {}
            _ => bail!("the server refused export {export:?} ({kind:#x}): {}", String::from_utf8_lossy(&data)),
        }
    }
    bail!("more than {REPLIES} replies to one option")
}

fn request(command: u16, offset: u64, length: u32) -> Vec<u8> {
    let mut message = REQUEST_MAGIC.to_be_bytes().to_vec();
    message.extend(0_u16.to_be_bytes());
    message.extend(command.to_be_bytes());
    message.extend(7_u64.to_be_bytes());
    message.extend(offset.to_be_bytes());
    message.extend(length.to_be_bytes());
    message
}

fn take<const N: usize>(stream: &mut UnixStream) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).context("reading from the server")?;
    Ok(bytes)
}
