// SPDX-License-Identifier: Apache-2.0
//! A chain of processes that do nothing but pass requests on: what the way from a guest over an edge and a node to a mirror costs by itself.
//!
//! The first process is a server of NBD on a unix socket, as the edge is, so that the same load runs on it. A write goes with its payload over TCP to the
//! second and from there to the third, which answers, and the answers come back. They block, one thread a connection, and keep nothing. Between them
//! requests look as NBD's do, too.
//!
//! Only what fio needs is spoken: the fixed newstyle handshake, simple replies, writes and flushes; anything else is answered with an error.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// The hidden subcommand that runs one of them.
pub const SUBCOMMAND: &str = "bench-echo";

const REQUEST: usize = 28;
const REPLY: usize = 16;
/// Longest payload of a request, and of an option.
const PAYLOAD_MAX: usize = 1 << 20;
/// Most options before the export is chosen.
const OPTIONS_MAX: u32 = 32;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const EINVAL: u32 = 22;

#[derive(clap::Args)]
pub struct Options {
    /// Serve NBD on this socket.
    #[arg(long, conflicts_with = "listen")]
    socket: Option<PathBuf>,
    /// Serve another one of the chain here.
    #[arg(long)]
    listen: Option<String>,
    /// The next of the chain.
    #[arg(long)]
    to: Option<String>,
    /// Bytes that the export is said to have.
    #[arg(long, default_value_t = 1 << 30)]
    size: u64,
}

/// Serves until it is killed.
pub fn serve(options: &Options) -> Result<bool> {
    if let Some(path) = &options.socket {
        let listener = UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
        for client in listener.incoming() {
            let (client, next, size) = (client?, connect(options)?, options.size);
            std::thread::spawn(move || ended(greet(&client, size).and_then(|()| relay(&client, next.as_ref()))));
        }
    }
    let address = options.listen.as_deref().context("--socket or --listen")?;
    for client in TcpListener::bind(address).with_context(|| format!("listening on {address}"))?.incoming() {
        let (client, next) = (client?, connect(options)?);
        client.set_nodelay(true)?;
        std::thread::spawn(move || ended(relay(&client, next.as_ref())));
    }
    Ok(true)
}

fn connect(options: &Options) -> Result<Option<TcpStream>> {
    let Some(address) = &options.to else { return Ok(None) };
    let next = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    next.set_nodelay(true)?;
    Ok(Some(next))
}

fn ended(how: Result<()>) {
    if let Err(error) = how {
        eprintln!("a connection ended: {error:#}");
    }
}

/// The handshake, up to the choice of the export.
fn greet(mut client: &UnixStream, size: u64) -> Result<()> {
    client.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    client.read_exact(&mut [0; 4])?;
    for _ in 0..OPTIONS_MAX {
        let mut head = [0; 16];
        client.read_exact(&mut head)?;
        let option = word(&head[8..]);
        let mut data = vec![0; bounded(word(&head[12..]))?];
        client.read_exact(&mut data)?;
        let answer = |kind: u32, data: &[u8]| -> std::io::Result<()> {
            let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
            let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
            for word in [option, kind, len] {
                bytes.extend(word.to_be_bytes());
            }
            bytes.extend(data);
            let mut client = client;
            client.write_all(&bytes)
        };
        match option {
            2 => bail!("the client gave up"),
            6 | 7 => {
                // The export: its size; it has flags, and flushes.
                let info = [&[0, 0][..], &size.to_be_bytes(), &[0, 5]].concat();
                answer(3, &info)?;
                answer(1, &[])?;
                if option == 7 {
                    return Ok(());
                }
            }
            // Not known here.
            _ => answer((1 << 31) + 1, &[])?,
        }
    }
    bail!("the client never chose an export")
}

/// Passes writes on and answers back, until the client goes.
fn relay<S>(client: &S, next: Option<&TcpStream>) -> Result<()>
where
    for<'a> &'a S: Read + Write,
{
    let (mut client, mut next) = (client, next);
    let mut frame = vec![0; REQUEST + PAYLOAD_MAX];
    loop {
        if client.read_exact(&mut frame[..REQUEST]).is_err() {
            return Ok(());
        }
        ensure!(word(&frame) == REQUEST_MAGIC, "that is no request");
        let mut reply = [0; REPLY];
        reply[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
        reply[8..].copy_from_slice(&frame[8..16]);
        match u16::from_be_bytes([frame[6], frame[7]]) {
            WRITE => {
                let end = REQUEST + bounded(word(&frame[24..]))?;
                client.read_exact(&mut frame[REQUEST..end])?;
                if let Some(next) = &mut next {
                    next.write_all(&frame[..end])?;
                    next.read_exact(&mut reply)?;
                }
            }
            FLUSH => {}
            DISCONNECT => return Ok(()),
            _ => reply[4..8].copy_from_slice(&EINVAL.to_be_bytes()),
        }
        client.write_all(&reply)?;
    }
}

/// The first four bytes as a number.
fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn bounded(len: u32) -> Result<usize> {
    let len = len as usize;
    ensure!(len <= PAYLOAD_MAX, "{len} bytes are more than anybody needs");
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_goes_to_the_end_of_the_chain_and_its_answer_comes_back() {
        let last = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = last.local_addr().unwrap();
        std::thread::spawn(move || relay(&last.accept().unwrap().0, None).unwrap());
        let (mut guest, first) = UnixStream::pair().unwrap();
        let chain = std::thread::spawn(move || relay(&first, Some(&TcpStream::connect(address).unwrap())).unwrap());
        let mut request =
            [&REQUEST_MAGIC.to_be_bytes()[..], &[0, 0, 0, 1], b"cookie!!", &[0; 8], &[0, 0, 16, 0]].concat();
        request.resize(REQUEST + 4096, 7);
        guest.write_all(&request).unwrap();
        let mut reply = [1; REPLY];
        guest.read_exact(&mut reply).unwrap();
        assert_eq!((word(&reply), word(&reply[4..]), &reply[8..]), (REPLY_MAGIC, 0, &b"cookie!!"[..]));
        // A read is refused.
        request[7] = 0;
        guest.write_all(&request[..REQUEST]).unwrap();
        guest.read_exact(&mut reply).unwrap();
        assert_eq!(word(&reply[4..]), EINVAL);
        drop(guest);
        chain.join().unwrap();
    }
}
