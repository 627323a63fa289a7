// SPDX-License-Identifier: Apache-2.0
//! The negotiation of a connection: fixed newstyle, over any stream, on the control runtime.
//!
//! The client asks with options until it chooses an export (`GO`, or the old `EXPORT_NAME` that knows no error) or leaves. What was agreed
//! comes out as [`Negotiated`], with the bytes that the client already sent behind its choice.
//!
//! Everything that a client can stretch is bounded: the time of the whole, the number of options, the size of one, the bytes of all. An
//! option that is too large is skipped and answered so; what goes beyond the bounds of the whole is hung up on. A refusal is logged with its
//! reason, and told to the client wherever the protocol has room for it.
//!
//! Nothing is opened here: [`Exports`] is only asked what it has, maybe several times in a negotiation. A crash loses nothing.

use crate::option::{self, InfoRequest, Malformed, MetaRequest, OptionHeader};
use crate::wire;
use bytes::{Buf, BytesMut};
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tracing::{debug, warn};
use varve_block::BlockError;
use varve_serve::{Greeter, Peer, Result, ServeError, Socket, socket};
use varve_types::ErrorKind;

/// Bounds of a negotiation.
#[derive(Clone, Copy, Debug)]
pub struct HandshakeLimits {
    /// Time for all of it.
    pub time: Duration,
    /// Most options.
    pub options: u32,
    /// Most bytes that the client may send.
    pub bytes: u64,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self { time: Duration::from_secs(10), options: 1000, bytes: 1 << 20 }
    }
}

/// What a client is told of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its own name, which the client's may stand for.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Whether it takes no writes.
    pub read_only: bool,
}

/// Where the exports are looked up. An error of the kind `NotFound` is a name that there is none of.
pub trait Exports: Send + Sync + 'static {
    /// The names of all exports.
    fn list(&self) -> impl Future<Output = Result<Vec<String>, BlockError>> + Send;

    /// The export of a name (`NAME`, `NAME@SNAPSHOT`, empty for the default one). Asked several times in one negotiation, and opens nothing.
    fn find(&self, name: &str) -> impl Future<Output = Result<ExportInfo, BlockError>> + Send;
}

/// What was agreed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The export chosen, as it was when it was chosen.
    pub export: ExportInfo,
    /// Whether reads and errors are answered in chunks.
    pub structured: bool,
    /// Whether `BLOCK_STATUS` may be asked (for `base:allocation`).
    pub block_status: bool,
}

impl Negotiated {
    /// The transmission flags of the export.
    #[must_use]
    pub fn flags(&self) -> u16 {
        flags(&self.export, self.structured)
    }
}

/// How a negotiation ended well.
#[derive(Debug)]
pub enum Outcome {
    /// The transmission begins; the bytes are what the client sent already.
    Transmission(Negotiated, BytesMut),
    /// The client left, as it may.
    Left,
}

fn flags(export: &ExportInfo, structured: bool) -> u16 {
    let always = wire::FLAG_HAS_FLAGS
        | wire::FLAG_SEND_FLUSH
        | wire::FLAG_SEND_FUA
        | wire::FLAG_SEND_TRIM
        | wire::FLAG_SEND_WRITE_ZEROES
        | wire::FLAG_CAN_MULTI_CONN
        | wire::FLAG_SEND_CACHE
        | wire::FLAG_SEND_FAST_ZERO;
    always | if export.read_only { wire::FLAG_READ_ONLY } else { 0 } | if structured { wire::FLAG_SEND_DF } else { 0 }
}

/// How an error of a look-up is told: the client may come again after `SHUTDOWN`, `UNKNOWN` is a wrong name, all else is `POLICY`.
fn reply_of(kind: ErrorKind) -> u32 {
    match kind {
        ErrorKind::NotFound | ErrorKind::Invalid => option::REP_ERR_UNKNOWN,
        ErrorKind::Unavailable | ErrorKind::Busy | ErrorKind::Fenced => option::REP_ERR_SHUTDOWN,
        ErrorKind::Conflict | ErrorKind::NoSpace | ErrorKind::Corrupt | ErrorKind::Internal => option::REP_ERR_POLICY,
    }
}

/// Negotiates with the client at the other end of `stream`.
///
/// # Errors
/// When the client breaks the protocol or a bound, vanishes, or chooses by `EXPORT_NAME` what it can not have. The stream is then of no more use.
pub async fn negotiate<S, E>(stream: &mut S, peer: &Peer, exports: &E, limits: HandshakeLimits) -> Result<Outcome>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    E: Exports,
{
    let mut handshake = Handshake {
        stream,
        peer,
        exports,
        input: BytesMut::with_capacity(1024),
        output: BytesMut::with_capacity(1024),
        bytes_left: limits.bytes,
        structured: false,
        meta_for: None,
    };
    match tokio::time::timeout(limits.time, handshake.run(limits.options)).await {
        Ok(result) => result,
        Err(_) => Err(ServeError::TooSlow(limits.time)),
    }
}

/// The handshake of NBD, for a [`varve_serve::Listener`].
pub struct NbdGreeter<E> {
    exports: E,
    limits: HandshakeLimits,
}

impl<E: Exports> NbdGreeter<E> {
    /// Offers `exports`.
    pub fn new(exports: E, limits: HandshakeLimits) -> Self {
        Self { exports, limits }
    }
}

impl<E: Exports> Greeter for NbdGreeter<E> {
    type Agreed = Negotiated;

    fn protocol(&self) -> &'static str {
        "NBD"
    }

    async fn greet(&self, socket: &mut Socket, peer: &Peer) -> Result<Option<(Negotiated, BytesMut)>> {
        Ok(match negotiate(socket, peer, &self.exports, self.limits).await? {
            Outcome::Left => None,
            Outcome::Transmission(negotiated, leftover) => {
                debug!(%peer, export = negotiated.export.name, "an NBD client chose its export");
                Some((negotiated, leftover))
            }
        })
    }
}

struct Handshake<'a, S, E> {
    stream: &'a mut S,
    peer: &'a Peer,
    exports: &'a E,
    /// Received and not yet used.
    input: BytesMut,
    /// Replies not yet sent.
    output: BytesMut,
    /// What the client may still send.
    bytes_left: u64,
    /// Structured replies were agreed.
    structured: bool,
    /// `base:allocation` was chosen, for this name of an export.
    meta_for: Option<String>,
}

/// What an option led to.
enum Step {
    /// The next option, after the replies in the output.
    Next,
    /// The transmission of an export, after the replies in the output.
    Go(ExportInfo, String),
    /// The end, after the replies in the output.
    Leave,
}

impl<S, E> Handshake<'_, S, E>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    E: Exports,
{
    async fn run(&mut self, most_options: u32) -> Result<Outcome> {
        option::put_greeting(&mut self.output);
        self.send().await?;
        self.fill(4, "before its flags").await?;
        let client = self.input.get_u32();
        if client & !u32::from(option::FLAG_FIXED_NEWSTYLE | option::FLAG_NO_ZEROES) != 0 {
            return Err(ServeError::Protocol(format!("unknown client flags {client:#x}")));
        }
        let no_zeroes = client & u32::from(option::FLAG_NO_ZEROES) != 0;
        for _ in 0..most_options {
            if self.input.is_empty() && self.receive().await? == 0 {
                return Ok(Outcome::Left);
            }
            self.fill(option::OPTION_BYTES, "within an option").await?;
            let header = OptionHeader::decode(&self.input).map_err(|e| ServeError::Protocol(e.to_string()))?;
            let header = header.ok_or(ServeError::Vanished { at: "within an option" })?;
            self.input.advance(option::OPTION_BYTES);
            let step = if header.length > option::MAX_OPTION_BYTES {
                self.skip(header).await?
            } else {
                self.fill(header.length as usize, "within an option").await?;
                let data = self.input.split_to(header.length as usize);
                self.step(header.option, &data, no_zeroes).await?
            };
            self.send().await?;
            match step {
                Step::Next => {}
                Step::Leave => return Ok(Outcome::Left),
                Step::Go(export, name) => {
                    let block_status = self.meta_for.as_ref() == Some(&name);
                    let negotiated = Negotiated { export, structured: self.structured, block_status };
                    return Ok(Outcome::Transmission(negotiated, std::mem::take(&mut self.input)));
                }
            }
        }
        Err(ServeError::Protocol(format!("more than {most_options} options")))
    }

    async fn step(&mut self, which: u32, data: &[u8], no_zeroes: bool) -> Result<Step> {
        match which {
            option::OPT_EXPORT_NAME => return self.export_name(data, no_zeroes).await,
            option::OPT_ABORT => {
                self.reply(which, option::REP_ACK, "");
                return Ok(Step::Leave);
            }
            option::OPT_INFO | option::OPT_GO => return self.info(which, data).await,
            option::OPT_LIST if data.is_empty() => self.list().await,
            option::OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(which, option::REP_ACK, "");
            }
            option::OPT_LIST | option::OPT_STRUCTURED_REPLY => {
                self.refuse(which, option::REP_ERR_INVALID, "the option takes no data");
            }
            option::OPT_LIST_META_CONTEXT | option::OPT_SET_META_CONTEXT => self.meta(which, data).await,
            option::OPT_STARTTLS => self.refuse(which, option::REP_ERR_POLICY, "TLS is not configured here"),
            other => self.refuse(which, option::REP_ERR_UNSUP, &format!("option {other} is not known here")),
        }
        Ok(Step::Next)
    }

    /// The old way to choose. Its only refusal is to hang up.
    async fn export_name(&mut self, data: &[u8], no_zeroes: bool) -> Result<Step> {
        let name = option::decode_name(data).map_err(|e| ServeError::Protocol(e.to_string()))?;
        let export = self.exports.find(name).await.map_err(|error| ServeError::Refused {
            name: printable(name),
            reason: error.to_string(),
            kind: error.kind(),
        })?;
        option::put_export(&mut self.output, export.size, flags(&export, self.structured), no_zeroes);
        Ok(Step::Go(export, name.to_owned()))
    }

    /// Describes an export, and chooses it if the option is GO.
    async fn info(&mut self, which: u32, data: &[u8]) -> Result<Step> {
        let request = match InfoRequest::decode(data) {
            Ok(request) => request,
            Err(error) => {
                self.malformed(which, error);
                return Ok(Step::Next);
            }
        };
        let export = match self.exports.find(request.name).await {
            Ok(export) => export,
            Err(error) => {
                self.refuse_export(which, request.name, &error);
                return Ok(Step::Next);
            }
        };
        option::put_info_export(&mut self.output, which, export.size, flags(&export, self.structured));
        option::put_info_block_size(&mut self.output, which);
        if request.wanted.contains(&option::INFO_NAME) {
            option::put_info_text(&mut self.output, which, option::INFO_NAME, &export.name);
        }
        if request.wanted.contains(&option::INFO_DESCRIPTION) {
            let text = if export.name.contains('@') { "a Varve snapshot" } else { "a Varve volume" };
            option::put_info_text(&mut self.output, which, option::INFO_DESCRIPTION, text);
        }
        self.reply(which, option::REP_ACK, "");
        Ok(if which == option::OPT_GO { Step::Go(export, request.name.to_owned()) } else { Step::Next })
    }

    async fn list(&mut self) {
        match self.exports.list().await {
            Ok(names) => {
                for name in names.iter().filter(|name| name.len() <= option::MAX_STRING_BYTES) {
                    option::put_server(&mut self.output, name);
                }
                self.reply(option::OPT_LIST, option::REP_ACK, "");
            }
            Err(error) => self.refuse(option::OPT_LIST, reply_of(error.kind()), &error.to_string()),
        }
    }

    /// Lists or chooses metadata contexts. A choice replaces the one before, also if it fails.
    async fn meta(&mut self, which: u32, data: &[u8]) {
        let to_list = which == option::OPT_LIST_META_CONTEXT;
        if !to_list {
            self.meta_for = None;
        }
        if !self.structured {
            return self.refuse(which, option::REP_ERR_INVALID, "structured replies have to be agreed first");
        }
        let request = match MetaRequest::decode(data) {
            Ok(request) => request,
            Err(error) => return self.malformed(which, error),
        };
        if let Err(error) = self.exports.find(request.name).await {
            return self.refuse_export(which, request.name, &error);
        }
        if request.asks_for_allocation(to_list) {
            let id = if to_list { 0 } else { option::BASE_ALLOCATION_ID };
            option::put_meta_context(&mut self.output, which, id, option::BASE_ALLOCATION);
            if !to_list {
                self.meta_for = Some(request.name.to_owned());
            }
        }
        self.reply(which, option::REP_ACK, "");
    }

    /// Skips the data of an option that is too large to be looked at.
    async fn skip(&mut self, header: OptionHeader) -> Result<Step> {
        let mut left = u64::from(header.length);
        if header.option == option::OPT_EXPORT_NAME || left > self.bytes_left {
            return Err(ServeError::Protocol(format!("option {} with {left} bytes of data", header.option)));
        }
        loop {
            let now = left.min(self.input.len() as u64);
            self.input.advance(now as usize);
            left -= now;
            if left == 0 {
                break;
            }
            if self.receive().await? == 0 {
                return Err(ServeError::Vanished { at: "within an option" });
            }
        }
        if header.option == option::OPT_SET_META_CONTEXT {
            self.meta_for = None;
        }
        self.refuse(header.option, option::REP_ERR_TOO_BIG, "the option has too much data");
        Ok(Step::Next)
    }

    fn reply(&mut self, which: u32, kind: u32, text: &str) {
        option::put_reply(&mut self.output, which, kind, text.as_bytes());
    }

    fn refuse(&mut self, which: u32, kind: u32, text: &str) {
        debug!(peer = %self.peer, option = which, reason = text, "an NBD option was refused");
        self.reply(which, kind, &text[..text.floor_char_boundary(wire::MAX_ERROR_TEXT)]);
    }

    fn malformed(&mut self, which: u32, error: Malformed) {
        self.refuse(which, option::REP_ERR_INVALID, error.0);
    }

    fn refuse_export(&mut self, which: u32, name: &str, error: &BlockError) {
        warn!(peer = %self.peer, export = %printable(name), reason = %error, "an NBD client asked for an export that it can not have");
        let text = error.to_string();
        self.reply(which, reply_of(error.kind()), &text[..text.floor_char_boundary(wire::MAX_ERROR_TEXT)]);
    }

    /// Receives until at least `length` bytes are there. The length is bounded by the caller.
    async fn fill(&mut self, length: usize, at: &'static str) -> Result<()> {
        while self.input.len() < length {
            if self.receive().await? == 0 {
                return Err(ServeError::Vanished { at });
            }
        }
        Ok(())
    }

    /// Receives what is there, and at most what the client may still send. 0 is the end.
    async fn receive(&mut self) -> Result<usize> {
        if self.bytes_left == 0 {
            return Err(ServeError::Protocol("too many bytes before an export was chosen".to_owned()));
        }
        self.input.reserve(1024);
        let received = self.stream.read_buf(&mut self.input).await.map_err(socket("negotiating"))?;
        self.bytes_left = self.bytes_left.saturating_sub(received as u64);
        Ok(received)
    }

    async fn send(&mut self) -> Result<()> {
        self.stream.write_all(&self.output).await.map_err(socket("negotiating"))?;
        self.output.clear();
        Ok(())
    }
}

/// A name that came from a client, as it may stand in a log.
fn printable(name: &str) -> String {
    name.chars().take(160).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_an_error_reply() {
        for name in
            ["invalid", "not-found", "conflict", "fenced", "unavailable", "busy", "corrupt", "no-space", "internal"]
        {
            let kind = ErrorKind::parse(name).unwrap();
            assert!(reply_of(kind) & (1 << 31) != 0, "{name}");
        }
        assert_eq!(reply_of(ErrorKind::NotFound), option::REP_ERR_UNKNOWN);
        assert_eq!(reply_of(ErrorKind::Unavailable), option::REP_ERR_SHUTDOWN);
    }

    #[test]
    fn flags_say_what_the_export_takes() {
        let mut export = ExportInfo { name: "a".to_owned(), size: 512, read_only: false };
        assert_eq!(flags(&export, false), 0b1101_0110_1101);
        export.read_only = true;
        assert_eq!(flags(&export, true), 0b1101_1110_1111);
    }

    #[test]
    fn names_of_clients_can_not_write_into_the_log() {
        assert_eq!(printable("a\n\u{1b}[2J"), "a\\n\\u{1b}[2J");
        assert!(printable(&"é".repeat(4000)).len() < 2000);
    }
}
