// SPDX-License-Identifier: Apache-2.0
//! How an edge gets a volume: what it asks, and what it is told.
//!
//! A **session** is one edge's use of one volume, from its first attach to its detach; it outlives connections, owners and their processes. Each connect
//! raises its **generation**. An edge names what it was promised: for each epoch that it had answers from, the highest change that was told to be safe. The
//! owner answers with the last change of each that counts. What the edge knows to be above it, it sends again.

use crate::greeting::{Kind, frame};
use crate::{Result, WireError, kinds};
use bytes::Bytes;
use varve_format::codec::{Decoder, Encoder};
use varve_types::{ClusterId, Epoch, ErrorKind, Sequence, SessionId, TimelineId, VolumeId};

/// Most epochs that an edge names.
pub const MAX_EPOCHS: usize = 64;
/// Longest name, token, address.
pub const MAX_TEXT: usize = 1024;
/// Longest text of a refusal.
pub const MAX_MESSAGE: usize = 4096;

/// How a volume is to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nobody else has it.
    Exclusive,
    /// Read only, beside others that do the same.
    Shared,
}

/// What an edge knows of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The epoch.
    pub epoch: Epoch,
    /// The highest change that the owner of this epoch has told to be safe.
    pub safe: Sequence,
}

/// An edge asks for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// What proves that it may.
    pub token: String,
    /// Who it is, for people.
    pub edge: String,
    /// `NAME` or `NAME@SNAPSHOT`.
    pub volume: String,
    /// The session.
    pub session: SessionId,
    /// Grows with each connect of the session.
    pub generation: u64,
    /// How.
    pub mode: Mode,
    /// Whoever has it is to lose it.
    pub steal: bool,
    /// The timeline that it has seen; none at the first connect.
    pub timeline: Option<TimelineId>,
    /// What it was promised of that, by epoch, growing.
    pub promises: Vec<Promise>,
}

/// The edge has the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The version that is spoken from here on.
    pub version: u16,
    /// Whose volume it is.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// The timeline that it shows.
    pub timeline: TimelineId,
    /// The epoch of its owner.
    pub epoch: Epoch,
    /// Size in bytes.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Requests that may be under way.
    pub window: u32,
    /// The last change.
    pub sequence: Sequence,
    /// Up to which change nothing can be lost.
    pub safe: Sequence,
    /// Of each epoch that was named the last change that counts, in the order in which they were.
    pub cuts: Vec<Sequence>,
}

/// Who has a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Who, for people.
    pub edge: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// What was asked is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What the edge should do.
    pub kind: ErrorKind,
    /// Why, for people.
    pub message: String,
    /// The address of the node to ask instead.
    pub elsewhere: Option<String>,
    /// Who has the volume.
    pub holder: Option<Holder>,
}

const ATTACH: &str = "request to attach";
const ATTACHED: &str = "answer to an attach";
const REFUSED: &str = "refusal";

impl Attach {
    /// The greeting.
    ///
    /// # Errors
    /// `TooLong` for a text or a list that is.
    pub fn encode(&self) -> Result<Bytes> {
        let mut e = Encoder::new();
        for text in [&self.token, &self.edge, &self.volume] {
            put_text(&mut e, ATTACH, text)?;
        }
        e.raw(&self.session.to_bytes());
        e.u64(self.generation);
        e.u8(match self.mode {
            Mode::Exclusive => 0,
            Mode::Shared => 1,
        });
        e.u8(u8::from(self.steal));
        e.option(self.timeline, Encoder::timeline);
        bounded(ATTACH, self.promises.len(), MAX_EPOCHS)?;
        e.list(&self.promises, |e, promise| {
            e.varint(promise.epoch.0);
            e.varint(promise.safe.0);
        });
        Ok(frame(Kind::Attach, &e.finish()))
    }

    /// Reads the body of one.
    ///
    /// # Errors
    /// `Senseless`.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(ATTACH, body);
        let (token, edge, volume) = (text(&mut d)?, text(&mut d)?, text(&mut d)?);
        let session = SessionId::from_bytes(d.array()?);
        let generation = d.u64()?;
        let mode = match d.u8()? {
            0 => Mode::Exclusive,
            1 => Mode::Shared,
            other => return Err(WireError::senseless(ATTACH, format!("{other} is no way to attach"))),
        };
        let steal = d.flag()?;
        let timeline = d.option(|d| d.timeline())?;
        let promises = d.list(|d| Ok(Promise { epoch: Epoch(d.varint()?), safe: d.sequence()? }))?;
        let grow = promises.windows(2).all(|two| two[0].epoch < two[1].epoch);
        if promises.len() > MAX_EPOCHS || !grow {
            return Err(WireError::senseless(ATTACH, "its epochs are too many, or not in order"));
        }
        d.end()?;
        Ok(Self { token, edge, volume, session, generation, mode, steal, timeline, promises })
    }
}

impl Attached {
    /// The greeting.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut e = Encoder::new();
        e.u32(self.version.into());
        e.raw(&self.cluster.to_bytes());
        e.raw(&self.volume.to_bytes());
        e.timeline(self.timeline);
        e.varint(self.epoch.0);
        e.varint(self.size);
        e.u8(u8::from(self.read_only));
        e.u32(self.window);
        e.varint(self.sequence.0);
        e.varint(self.safe.0);
        e.list(&self.cuts, |e, cut| e.varint(cut.0));
        frame(Kind::Attached, &e.finish())
    }

    /// Reads the body of one.
    ///
    /// # Errors
    /// `Senseless`.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(ATTACHED, body);
        let version = u16::try_from(d.u32()?).map_err(|_| WireError::senseless(ATTACHED, "its version"))?;
        let this = Self {
            version,
            cluster: ClusterId::from_bytes(d.array()?),
            volume: VolumeId::from_bytes(d.array()?),
            timeline: d.timeline()?,
            epoch: Epoch(d.varint()?),
            size: d.varint()?,
            read_only: d.flag()?,
            window: d.u32()?,
            sequence: d.sequence()?,
            safe: d.sequence()?,
            cuts: d.list(|d| d.sequence())?,
        };
        if this.cuts.len() > MAX_EPOCHS || this.window == 0 || this.safe > this.sequence {
            return Err(WireError::senseless(ATTACHED, "its numbers do not fit each other"));
        }
        d.end()?;
        Ok(this)
    }
}

impl Refused {
    /// A refusal of a kind; a message that is too long is cut.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        Self { kind, message, elsewhere: None, holder: None }
    }

    /// The greeting. Texts that are too long are left out.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut e = Encoder::new();
        e.u8(kinds::number(self.kind));
        let fits = |text: &&String| text.len() <= MAX_TEXT;
        e.blob(self.message.as_bytes());
        e.option(self.elsewhere.as_ref().filter(fits), |e, address| e.blob(address.as_bytes()));
        e.option(self.holder.as_ref().filter(|holder| fits(&&holder.edge)), |e, holder| {
            e.blob(holder.edge.as_bytes());
            e.varint(holder.since_ms);
        });
        frame(Kind::Refused, &e.finish())
    }

    /// Reads the body of one.
    ///
    /// # Errors
    /// `Senseless`.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut d = Decoder::new(REFUSED, body);
        let kind = kinds::kind(d.u8()?);
        let message = d.text(MAX_MESSAGE)?.to_owned();
        let elsewhere = d.option(|d| Ok(d.text(MAX_TEXT)?.to_owned()))?;
        let holder = d.option(|d| Ok(Holder { edge: d.text(MAX_TEXT)?.to_owned(), since_ms: d.varint()? }))?;
        d.end()?;
        Ok(Self { kind, message, elsewhere, holder })
    }
}

fn put_text(e: &mut Encoder, what: &'static str, text: &str) -> Result<()> {
    bounded(what, text.len(), MAX_TEXT)?;
    e.blob(text.as_bytes());
    Ok(())
}

fn text(d: &mut Decoder<'_>) -> Result<String> {
    Ok(d.text(MAX_TEXT)?.to_owned())
}

fn bounded(what: &'static str, length: usize, most: usize) -> Result<()> {
    if length > most {
        return Err(WireError::TooLong { what, length: length as u64, most: most as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::greeting::{HEADER_BYTES, Header};

    fn attach() -> Attach {
        Attach {
            token: "secret".into(),
            edge: "host-1".into(),
            volume: "disk".into(),
            session: SessionId::from_random([7; 16]),
            generation: 3,
            mode: Mode::Exclusive,
            steal: false,
            timeline: Some(TimelineId::from_random([9; 16])),
            promises: vec![
                Promise { epoch: Epoch(4), safe: Sequence(100) },
                Promise { epoch: Epoch(6), safe: Sequence(90) },
            ],
        }
    }

    fn attached() -> Attached {
        Attached {
            version: 1,
            cluster: ClusterId::from_random([1; 16]),
            volume: VolumeId::from_random([2; 16]),
            timeline: TimelineId::from_random([3; 16]),
            epoch: Epoch(7),
            size: 10 << 30,
            read_only: false,
            window: 256,
            sequence: Sequence(1000),
            safe: Sequence(900),
            cuts: vec![Sequence(100), Sequence(95)],
        }
    }

    fn body(frame: &[u8]) -> &[u8] {
        let header = Header::decode(frame[..HEADER_BYTES].try_into().unwrap()).unwrap();
        header.verify(&frame[HEADER_BYTES..]).unwrap();
        &frame[HEADER_BYTES..]
    }

    #[test]
    fn what_was_said_is_what_is_heard() {
        assert_eq!(Attach::decode(body(&attach().encode().unwrap())).unwrap(), attach());
        let first = Attach { timeline: None, promises: Vec::new(), mode: Mode::Shared, steal: true, ..attach() };
        assert_eq!(Attach::decode(body(&first.encode().unwrap())).unwrap(), first);
        assert_eq!(Attached::decode(body(&attached().encode())).unwrap(), attached());
        let mut refused = Refused::new(ErrorKind::Conflict, "somebody has it");
        refused.holder = Some(Holder { edge: "host-2".into(), since_ms: 5 });
        refused.elsewhere = Some("node-2:7700".into());
        assert_eq!(Refused::decode(body(&refused.encode())).unwrap(), refused);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let long = Attach { edge: "x".repeat(MAX_TEXT + 1), ..attach() };
        assert!(matches!(long.encode(), Err(WireError::TooLong { .. })));
        let back = Attach { promises: vec![attach().promises[1], attach().promises[0]], ..attach() };
        assert!(Attach::decode(body(&back.encode().unwrap())).is_err());
        let beyond = Attached { safe: Sequence(1001), ..attached() };
        assert!(Attached::decode(body(&beyond.encode())).is_err());
        let cut = Refused::new(ErrorKind::Internal, "é".repeat(MAX_MESSAGE));
        assert!(cut.message.len() <= MAX_MESSAGE && Refused::decode(body(&cut.encode())).is_ok());
    }

    #[test]
    fn a_body_that_was_cut_or_lengthened_is_told() {
        type Reads = fn(&[u8]) -> bool;
        let all: [(Bytes, Reads); 3] = [
            (attach().encode().unwrap(), |bytes| Attach::decode(bytes).is_ok()),
            (attached().encode(), |bytes| Attached::decode(bytes).is_ok()),
            (Refused::new(ErrorKind::Busy, "later").encode(), |bytes| Refused::decode(bytes).is_ok()),
        ];
        for (whole, reads) in all {
            let whole = body(&whole);
            let mut longer = whole.to_vec();
            longer.push(0);
            assert!(reads(whole) && !reads(&longer));
            for length in 0..whole.len() {
                assert!(!reads(&whole[..length]), "{length}");
            }
        }
    }
}
