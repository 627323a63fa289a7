// SPDX-License-Identifier: Apache-2.0
//! How an owner talks to the node that keeps the copy of its tails.
//!
//! ```text
//! frame (48)  magic 4 "VMIR" | kind 1 | status 1 | 0 2 | id 8 | meta length 4 | data length 8 | crc of meta 4 | 0 12 | crc of the header before it 4 | meta | data
//! ```
//!
//! `meta` says what is asked or answered; `data` are the blocks of the writes in it, one behind the other, each proved by its checksum in `meta`. Requests are
//! done in the order in which they come, and answered in it, all but releases, which are not answered, and syncs, which are when they are done. An answer has the id of
//! its request; its status is 0, or the number of an error kind, with the reason as its meta.

use crate::greeting::{Kind, frame};
use crate::{Result, WireError, kinds};
use bytes::Bytes;
use varve_format::codec::{Decoder, Encoder};
use varve_format::crc::crc;
use varve_format::journal::{Body, MAX_RECORD_BLOCKS};
use varve_format::mark::Mark;
use varve_types::{
    BLOCK, ClusterId, Epoch, ErrorKind, IncarnationId, MirrorMedium, NodeId, Sequence, TimelineId, VolumeId,
};

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 48;
/// Most bytes of a frame's meta.
pub const MAX_META: u32 = 4 << 20;
/// Most bytes of a frame's data.
pub const MAX_DATA: u64 = 64 << 20;
/// Longest token.
pub const MAX_TOKEN: usize = 1024;

const MAGIC: u32 = u32::from_le_bytes(*b"VMIR");
const FRAME: &str = "frame of a mirror";
const RECORD: &str = "change for a mirror";

/// A node asks another one to keep copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorHello {
    /// What proves that it is of the cluster.
    pub token: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// Who asks.
    pub node: NodeId,
}

/// It does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorWelcome {
    /// The version that is spoken from here on.
    pub version: u16,
    /// Who answers.
    pub node: NodeId,
}

impl MirrorHello {
    /// The greeting.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut e = Encoder::new();
        e.blob(&self.token.as_bytes()[..self.token.len().min(MAX_TOKEN)]);
        e.raw(&self.cluster.to_bytes());
        e.raw(&self.node.to_bytes());
        frame(Kind::MirrorHello, &e.finish())
    }

    /// Reads the body of one.
    ///
    /// # Errors
    /// `Senseless`.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut d = Decoder::new("greeting of a node", body);
        let token = d.text(MAX_TOKEN)?.to_owned();
        let this = Self { token, cluster: ClusterId::from_bytes(d.array()?), node: NodeId::from_bytes(d.array()?) };
        d.end()?;
        Ok(this)
    }
}

impl MirrorWelcome {
    /// The greeting.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut e = Encoder::new();
        e.u32(self.version.into());
        e.raw(&self.node.to_bytes());
        frame(Kind::MirrorWelcome, &e.finish())
    }

    /// Reads the body of one.
    ///
    /// # Errors
    /// `Senseless`.
    pub fn decode(body: &[u8]) -> Result<Self> {
        const WHAT: &str = "answer of a mirror";
        let mut d = Decoder::new(WHAT, body);
        let version = u16::try_from(d.u32()?).map_err(|_| WireError::senseless(WHAT, "its version"))?;
        let this = Self { version, node: NodeId::from_bytes(d.array()?) };
        d.end()?;
        Ok(this)
    }
}

/// A change, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The epoch that it was made in.
    pub epoch: Epoch,
    /// Its place in the stream.
    pub sequence: Sequence,
    /// Every change up to this one was on stable media when it was made.
    pub flushed_through: Sequence,
    /// A write, a hole or a mark.
    pub body: Body,
    /// The blocks of a write.
    pub data: Bytes,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Begin a copy: changes behind `base` will follow.
    Begin {
        /// The volume.
        volume: VolumeId,
        /// Its timeline.
        timeline: TimelineId,
        /// The epoch of its owner.
        epoch: Epoch,
        /// See there.
        base: Sequence,
        /// Where it is to be kept.
        medium: MirrorMedium,
    },
    /// Take these changes in.
    Deliver {
        /// The timeline.
        timeline: TimelineId,
        /// The epoch of its owner.
        epoch: Epoch,
        /// The change before the first of them.
        previous: Sequence,
        /// The changes.
        changes: Vec<Change>,
    },
    /// The store has all up to `through`. Not answered.
    Release {
        /// The timeline.
        timeline: TimelineId,
        /// The epoch of its owner.
        epoch: Epoch,
        /// See there.
        through: Sequence,
        /// Credits that are given back.
        back: u64,
    },
    /// Bring what was delivered to stable media, up to `through` at least: of a copy on disk.
    Sync {
        /// The timeline.
        timeline: TimelineId,
        /// The epoch of its owner.
        epoch: Epoch,
        /// See there.
        through: Sequence,
    },
    /// Give what there is, and take nothing of lower epochs any more.
    Fetch {
        /// The timeline.
        timeline: TimelineId,
        /// The epoch of who asks.
        epoch: Epoch,
        /// The incarnation of the copy that is looked for.
        named: IncarnationId,
    },
    /// Promise not to serve it yourself for 550 ms: the owner answers plain clients for 500 ms from when it asked.
    Lease {
        /// The timeline.
        timeline: TimelineId,
        /// The epoch of its owner.
        epoch: Epoch,
    },
    /// Answer to a begin: so many bytes may be there.
    Begun {
        /// See there.
        credits: u64,
        /// What the copy lives and dies with.
        incarnation: IncarnationId,
    },
    /// Answer to a delivery: so many bytes more may be there.
    Taken {
        /// See there.
        more: u64,
    },
    /// Answer to a sync, and to who asks for a lease.
    Done,
    /// Answer to a fetch; `more` follow in the next frame.
    Fetched {
        /// The changes.
        changes: Vec<Change>,
        /// See there.
        more: bool,
        /// Whether this is all of the copy that was looked for, and not what is left of another one.
        whole: bool,
    },
    /// What was asked has failed.
    Failed {
        /// What kind of error it was.
        kind: ErrorKind,
        /// Why, for people.
        reason: String,
    },
}

/// A header that was proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    kind: u8,
    status: u8,
    /// The id of the request.
    pub id: u64,
    /// Bytes of the meta.
    pub meta: u32,
    /// Bytes of the data.
    pub data: u64,
    meta_crc: u32,
}

impl Header {
    /// Reads one.
    ///
    /// # Errors
    /// `NotVarve`, `Damaged`, `TooLong`.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        let four = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let eight = |at: usize| u64::from(four(at)) | u64::from(four(at + 4)) << 32;
        if four(0) != MAGIC {
            return Err(WireError::NotVarve { what: FRAME, found: four(0).to_le_bytes() });
        }
        if four(44) != crc(&bytes[..44]) {
            return Err(WireError::Damaged { what: FRAME });
        }
        let this = Self {
            kind: bytes[4],
            status: bytes[5],
            id: eight(8),
            meta: four(16),
            data: eight(20),
            meta_crc: four(28),
        };
        if this.meta > MAX_META {
            return Err(WireError::TooLong { what: FRAME, length: this.meta.into(), most: MAX_META.into() });
        }
        if this.data > MAX_DATA {
            return Err(WireError::TooLong { what: FRAME, length: this.data, most: MAX_DATA });
        }
        Ok(this)
    }

    /// Reads what is said.
    ///
    /// # Errors
    /// `Damaged`, `Senseless`.
    pub fn message(&self, meta: &[u8], data: &Bytes) -> Result<Message> {
        if meta.len() != self.meta as usize || data.len() as u64 != self.data || crc(meta) != self.meta_crc {
            return Err(WireError::Damaged { what: FRAME });
        }
        if self.status != 0 {
            let reason = String::from_utf8_lossy(meta).into_owned();
            return Ok(Message::Failed { kind: kinds::kind(self.status), reason });
        }
        let mut d = Decoder::new(FRAME, meta);
        let mut rest = data.clone();
        let message = decode(self.kind, &mut d, &mut rest)?;
        d.end()?;
        if !rest.is_empty() {
            return Err(WireError::senseless(FRAME, format!("{} bytes of data are nobody's", rest.len())));
        }
        Ok(message)
    }
}

impl Message {
    const fn number(&self) -> u8 {
        match self {
            Self::Begin { .. } => 1,
            Self::Deliver { .. } => 2,
            Self::Release { .. } => 3,
            Self::Fetch { .. } => 4,
            Self::Begun { .. } => 5,
            Self::Taken { .. } => 6,
            Self::Fetched { .. } => 7,
            Self::Failed { .. } => 8,
            Self::Lease { .. } => 9,
            Self::Sync { .. } => 10,
            Self::Done => 11,
        }
    }

    /// The frame: header and meta, and the data that are to be sent behind them.
    #[must_use]
    pub fn encode(&self, id: u64) -> (Bytes, Vec<Bytes>) {
        let mut e = Encoder::new();
        let (mut data, mut status) = (Vec::new(), 0);
        match self {
            Self::Begin { volume, timeline, epoch, base, medium } => {
                e.raw(&volume.to_bytes());
                e.timeline(*timeline);
                e.varint(epoch.0);
                e.varint(base.0);
                e.u8(u8::from(*medium == MirrorMedium::Disk));
            }
            Self::Deliver { timeline, epoch, previous, changes } => {
                e.timeline(*timeline);
                e.varint(epoch.0);
                e.varint(previous.0);
                put_changes(&mut e, changes, &mut data);
            }
            Self::Release { timeline, epoch, through, back } => {
                e.timeline(*timeline);
                e.varint(epoch.0);
                e.varint(through.0);
                e.varint(*back);
            }
            Self::Sync { timeline, epoch, through } => {
                e.timeline(*timeline);
                e.varint(epoch.0);
                e.varint(through.0);
            }
            Self::Fetch { timeline, epoch, named } => {
                e.timeline(*timeline);
                e.varint(epoch.0);
                e.raw(&named.to_bytes());
            }
            Self::Lease { timeline, epoch } => {
                e.timeline(*timeline);
                e.varint(epoch.0);
            }
            Self::Begun { credits, incarnation } => {
                e.varint(*credits);
                e.raw(&incarnation.to_bytes());
            }
            Self::Taken { more } => e.varint(*more),
            Self::Done => {}
            Self::Fetched { changes, more, whole } => {
                e.u8(u8::from(*more));
                e.u8(u8::from(*whole));
                put_changes(&mut e, changes, &mut data);
            }
            Self::Failed { kind, reason } => {
                status = kinds::number(*kind);
                e.raw(&reason.as_bytes()[..reason.floor_char_boundary(crate::transmission::MAX_TEXT)]);
            }
        }
        let meta = e.finish();
        let length: u64 = data.iter().map(|bytes| bytes.len() as u64).sum();
        debug_assert!(meta.len() <= MAX_META as usize && length <= MAX_DATA, "what is sent was bounded");
        let mut out = Vec::with_capacity(HEADER_BYTES + meta.len());
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&[self.number(), status, 0, 0]);
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&(meta.len() as u32).to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&crc(&meta).to_le_bytes());
        out.extend_from_slice(&[0; 12]);
        let own = crc(&out);
        out.extend_from_slice(&own.to_le_bytes());
        out.extend_from_slice(&meta);
        (out.into(), data)
    }
}

fn decode(kind: u8, d: &mut Decoder<'_>, data: &mut Bytes) -> Result<Message> {
    Ok(match kind {
        1 => Message::Begin {
            volume: VolumeId::from_bytes(d.array()?),
            timeline: d.timeline()?,
            epoch: Epoch(d.varint()?),
            base: d.sequence()?,
            medium: if d.flag()? { MirrorMedium::Disk } else { MirrorMedium::Ram },
        },
        2 => Message::Deliver {
            timeline: d.timeline()?,
            epoch: Epoch(d.varint()?),
            previous: d.sequence()?,
            changes: get_changes(d, data)?,
        },
        3 => Message::Release {
            timeline: d.timeline()?,
            epoch: Epoch(d.varint()?),
            through: Sequence(d.varint()?),
            back: d.varint()?,
        },
        4 => Message::Fetch {
            timeline: d.timeline()?,
            epoch: Epoch(d.varint()?),
            named: IncarnationId::from_bytes(d.array()?),
        },
        5 => Message::Begun { credits: d.varint()?, incarnation: IncarnationId::from_bytes(d.array()?) },
        6 => Message::Taken { more: d.varint()? },
        7 => Message::Fetched { more: d.flag()?, whole: d.flag()?, changes: get_changes(d, data)? },
        9 => Message::Lease { timeline: d.timeline()?, epoch: Epoch(d.varint()?) },
        10 => Message::Sync { timeline: d.timeline()?, epoch: Epoch(d.varint()?), through: Sequence(d.varint()?) },
        11 => Message::Done,
        other => return Err(WireError::senseless(FRAME, format!("{other} is no kind of it"))),
    })
}

const WRITE: u8 = 1;
const HOLE: u8 = 2;
const MARK: u8 = 3;

fn put_changes(e: &mut Encoder, changes: &[Change], data: &mut Vec<Bytes>) {
    e.list(changes, |e, change| {
        e.varint(change.epoch.0);
        e.varint(change.sequence.0);
        e.varint(change.flushed_through.0);
        match &change.body {
            Body::Write { start, crcs } => {
                e.u8(WRITE);
                e.varint(*start);
                e.list(crcs, |e, sum| e.u32(*sum));
                data.push(change.data.clone());
            }
            Body::Hole { start, blocks } => {
                e.u8(HOLE);
                e.varint(*start);
                e.varint(*blocks);
            }
            Body::Mark(mark) => {
                e.u8(MARK);
                mark.encode(e);
            }
            Body::Pad | Body::Counted => debug_assert!(false, "these are the journal's own"),
        }
    });
}

fn get_changes(d: &mut Decoder<'_>, data: &mut Bytes) -> Result<Vec<Change>> {
    // What is wrong with the data of a change is told behind the list.
    let mut lacks = false;
    let changes = d.list(|d| {
        let (epoch, sequence, flushed_through) = (Epoch(d.varint()?), d.sequence()?, d.sequence()?);
        let mut own = Bytes::new();
        let body = match d.u8()? {
            WRITE => {
                let (start, crcs) = (d.varint()?, d.list(|d| d.u32())?);
                let length = crcs.len() * BLOCK as usize;
                if crcs.is_empty() || crcs.len() > MAX_RECORD_BLOCKS as usize || length > data.len() {
                    lacks = true;
                } else {
                    own = data.split_to(length);
                }
                Body::Write { start, crcs }
            }
            HOLE => Body::Hole { start: d.varint()?, blocks: d.varint()? },
            MARK => Body::Mark(Mark::decode(d)?),
            other => return Err(d.corrupt(format!("{other} is no kind of change"))),
        };
        Ok(Change { epoch, sequence, flushed_through, body, data: own })
    })?;
    if lacks {
        return Err(WireError::senseless(RECORD, "it lacks data"));
    }
    for change in &changes {
        let Body::Write { crcs, .. } = &change.body else { continue };
        let (blocks, _) = change.data.as_chunks::<{ BLOCK as usize }>();
        if blocks.iter().zip(crcs).any(|(block, sum)| crc(block) != *sum) {
            return Err(WireError::Damaged { what: RECORD });
        }
    }
    Ok(changes)
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;
