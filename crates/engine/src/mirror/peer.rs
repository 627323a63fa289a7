// SPDX-License-Identifier: Apache-2.0
//! What an owner and the keeper of its copies say to each other, whatever carries it.
//!
//! Always holds: the bytes that an owner has at a keeper are never more than the credits that it was given and has not given back; so a keeper that has no room
//! for more slows an owner down, and never has to refuse what it sends.

use crate::Result;
use bytes::Bytes;
use std::rc::Rc;
use varve_env::LocalFuture;
use varve_format::journal::{Body, Record};
use varve_types::{Epoch, IncarnationId, MirrorMedium, NodeId, Sequence, TimelineId, VolumeId};

/// What a change is counted as, beside its data.
const RECORD_COST: u64 = 256;

/// A change of a timeline, as another node keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailRecord {
    /// The epoch that it was made in.
    pub epoch: Epoch,
    /// Its place in the stream.
    pub sequence: Sequence,
    /// Every change up to this one was on stable media when it was made.
    pub flushed_through: Sequence,
    /// What it is: a write, a hole or a mark.
    pub body: Body,
    /// The blocks of a write.
    pub data: Bytes,
}

impl TailRecord {
    /// Bytes that it is counted as.
    #[must_use]
    pub fn cost(&self) -> u64 {
        RECORD_COST + self.data.len() as u64
    }
}

/// Bytes that a record of a journal is counted as, where it is a copy.
pub(super) fn cost(record: &Record) -> u64 {
    RECORD_COST + record.payload_len()
}

/// Asks for a copy to be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeginCopy {
    /// The volume.
    pub volume: VolumeId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The epoch of the owner.
    pub epoch: Epoch,
    /// Changes behind this one will follow.
    pub base: Sequence,
    /// Where it is to be kept.
    pub medium: MirrorMedium,
}

/// A copy was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// What the copy lives and dies with: the process that keeps it, or what that and those before it have on their disk.
    pub incarnation: IncarnationId,
    /// Bytes that may be there at once.
    pub credits: u64,
}

/// Changes for a copy, in order and without a gap.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The timeline.
    pub timeline: TimelineId,
    /// The epoch of the owner.
    pub epoch: Epoch,
    /// The change before the first of them.
    pub previous: Sequence,
    /// The changes.
    pub records: Vec<TailRecord>,
}

/// What the store has by now of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The timeline.
    pub timeline: TimelineId,
    /// The epoch of the owner.
    pub epoch: Epoch,
    /// All changes up to this one.
    pub through: Sequence,
    /// Credits that the owner gives back: it will not use them.
    pub back: u64,
}

/// What a mirror has of a timeline, for who opens it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Whether this is all that the copy of that incarnation ever took and the store does not have; else it is what is left of some copy, which may lack anything.
    pub is_whole: bool,
    /// The changes, of which all may be in the store.
    pub records: Vec<TailRecord>,
}

/// Another node, as the keeper of copies. What is asked in one order comes there in that order, or not at all.
pub trait MirrorPeer {
    /// Which node it is.
    fn node(&self) -> NodeId;
    /// Whether it is known to answer nothing any more.
    fn is_broken(&self) -> bool;
    /// Begins a copy in the place of whatever it had of the timeline. `Fenced` where it knows a higher epoch, `NoSpace` where it has no room for another one.
    fn begin(&self, begin: BeginCopy) -> LocalFuture<Result<Begun>>;
    /// Completes once the copy has all of the changes, where its process can not lose them by ending. Gives further credits. `Fenced` where it knows a higher
    /// epoch.
    fn deliver(&self, delivery: Delivery) -> LocalFuture<Result<u64>>;
    /// Completes once all changes up to one, which were delivered before, are on stable media there: of a copy on disk. `Fenced` where it knows a higher epoch.
    fn sync(&self, timeline: TimelineId, epoch: Epoch, through: Sequence) -> LocalFuture<Result<()>>;
    /// Says what the store has.
    fn release(&self, release: Release);
    /// Gives what there is of a timeline, and takes nothing of lower epochs from then on. `named` is the incarnation of the copy that is looked for. `NotFound` where
    /// that is this very process, and it does not know the copy.
    fn fetch(&self, timeline: TimelineId, epoch: Epoch, named: IncarnationId) -> LocalFuture<Result<Fetched>>;
    /// Promises not to serve a timeline itself for a while. `Fenced` where it knows a higher epoch.
    fn lease(&self, timeline: TimelineId, epoch: Epoch) -> LocalFuture<Result<()>>;
}

/// The nodes that may keep copies.
pub trait MirrorNodes {
    /// One for a volume, if there is one now.
    fn choose(&self, volume: VolumeId) -> Option<Rc<dyn MirrorPeer>>;
    /// One by its id, if it can be reached now.
    fn find(&self, node: NodeId) -> Option<Rc<dyn MirrorPeer>>;
    /// One has no room for another copy: it is not to be chosen for a while.
    fn is_full(&self, node: NodeId);
}
