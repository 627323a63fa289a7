// SPDX-License-Identifier: Apache-2.0
//! What users of the library see: volumes that are opened, used and closed, on one thread.
//!
//! A [`Volume`] is a handle: all of its clones, and the [`BlockDevice`] of it, are of one session. A request is an `async` call that completes when the owner has answered;
//! dropping its future stops nothing, and the change may happen. Many may be out at once; of two that overlap the one that was asked first happens first.
//!
//! While there is no owner requests wait, for ever or for the volume's I/O timeout. Only what a person has to look at ends a volume: then every call answers with the error.

use crate::device::{Device, Pending};
use crate::drive::{Driven, run};
use crate::error;
use crate::session::{Budget, Session, Stalls, Standing, Terms, Wanted};
use crate::stats::Stats;
use crate::transport::{Sockets, Transport};
use bytes::Bytes;
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};
use varve_block::{BlockDevice, BlockError, Result, StatusExtent};
use varve_types::{ErrorKind, SessionId};
use varve_wire::attach::Mode;
use varve_wire::transmission::{Ask, MAX_DATA};

/// How a volume is to be opened.
#[derive(Clone)]
pub struct Options {
    /// `NAME`, or `NAME@SNAPSHOT`.
    pub volume: String,
    /// Addresses of nodes: `HOST:PORT` or `unix:PATH`. Any of them knows who the owner is.
    pub nodes: Vec<String>,
    /// What proves that the volume may be had.
    pub token: String,
    /// Who asks, for people.
    pub edge: String,
    /// Read only, beside others.
    pub shared: bool,
    /// Take it from whoever has it.
    pub steal: bool,
    /// Times and bounds.
    pub terms: Terms,
    /// How nodes are reached.
    pub transport: Rc<dyn Transport>,
}

impl Options {
    /// Of a volume, with everything else as it is by default.
    #[must_use]
    pub fn new(volume: impl Into<String>, nodes: Vec<String>) -> Self {
        Self {
            volume: volume.into(),
            nodes,
            token: String::new(),
            edge: "edge".into(),
            shared: false,
            steal: false,
            terms: Terms::default(),
            transport: Rc::new(Sockets::default()),
        }
    }
}

/// An edge: volumes of one process, which share the memory for what is not safe yet. Needs a [`LocalSet`](tokio::task::LocalSet) with time and sockets.
///
/// ```no_run
/// use bytes::Bytes;
/// use varve_edge::{Edge, Options};
///
/// # async fn example() -> varve_block::Result<()> {
/// let edge = Edge::default();
/// let volume = edge.open(Options::new("disk1", vec!["node-1:7700".into(), "node-2:7700".into()])).await?;
/// volume.write(4096, Bytes::from_static(&[7; 512])).await?;
/// volume.flush().await?;
/// assert_eq!(volume.read(4096, 512).await?[..], [7; 512]);
/// volume.close().await
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Edge {
    budget: Budget,
}

impl Edge {
    /// An edge whose volumes keep at most so many bytes of changes that are not safe.
    #[must_use]
    pub fn new(kept_bytes: u64) -> Self {
        Self { budget: Budget::new(kept_bytes) }
    }

    /// Bytes of changes that are under way or not safe, of all volumes.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.budget.used()
    }

    /// Attaches a volume.
    ///
    /// # Errors
    /// When it is refused, or no node answers within the time for it.
    ///
    /// # Panics
    /// Outside of a `LocalSet`.
    pub async fn open(&self, options: Options) -> Result<Volume> {
        if options.nodes.is_empty() {
            return Err(error::invalid(format!("volume {}: no address of a node is given", options.volume)));
        }
        for node in &options.nodes {
            options.transport.check(node).map_err(error::invalid)?;
        }
        let mut random = [0; 16];
        #[allow(clippy::disallowed_methods, reason = "an id that no other edge draws")]
        getrandom::fill(&mut random)
            .map_err(|why| BlockError::new(ErrorKind::Internal, format!("no random numbers: {why}")))?;
        let wanted = Wanted {
            volume: options.volume.clone(),
            token: options.token,
            edge: options.edge,
            session: SessionId::from_random(random),
            mode: if options.shared { Mode::Shared } else { Mode::Exclusive },
            steal: options.steal,
        };
        #[allow(clippy::disallowed_methods, reason = "this is where the session's time begins")]
        let base = Instant::now();
        let session = Session::new(wanted, options.terms, options.nodes, self.budget.clone(), Duration::ZERO);
        let driven = Driven::new(options.volume.clone(), session, options.transport, base);
        let driven = Rc::new(RefCell::new(driven));
        #[allow(clippy::disallowed_methods, reason = "a volume is one task")]
        drop(tokio::task::spawn_local(run(Rc::clone(&driven))));
        let volume = Volume { name: options.volume, device: Rc::new(Device::new(driven)) };
        volume.attached().await?;
        Ok(volume)
    }
}

/// A volume that is attached. Dropping the last handle of it leaves it without a detach: its owner keeps the session until it is attached again, or stolen.
#[derive(Clone)]
pub struct Volume {
    name: String,
    device: Rc<Device>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({})", self.name)
    }
}

/// How a volume is.
#[derive(Clone, Debug)]
pub struct Stat {
    /// Size in bytes.
    pub size: u64,
    /// Whether changes are refused.
    pub read_only: bool,
    /// Whether there is an owner, and who; since when is told by the volume's own time.
    pub standing: Standing,
    /// The volume's own time: how long ago it was opened.
    pub now: Duration,
    /// Why the owner was not found, at the last attempt.
    pub trouble: String,
    /// Why it has failed, if it has.
    pub failure: Option<BlockError>,
    /// Bytes of changes that are acknowledged and not safe.
    pub kept_bytes: u64,
    /// How often and how long there was no owner.
    pub stalls: Stalls,
    /// What was asked.
    pub stats: Stats,
}

impl Volume {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The volume as front ends see it.
    #[must_use]
    pub fn device(&self) -> Rc<dyn BlockDevice> {
        Rc::clone(&self.device) as Rc<dyn BlockDevice>
    }

    async fn attached(&self) -> Result<()> {
        poll_fn(|cx| {
            let mut driven = self.device.driven.borrow_mut();
            if let Some(error) = driven.session.failure() {
                return Poll::Ready(Err(error.clone()));
            }
            if driven.session.is_attached() {
                return Poll::Ready(Ok(()));
            }
            driven.watch(cx);
            Poll::Pending
        })
        .await
    }

    async fn ask(&self, ask: Ask, flags: u8, offset: u64, length: u64, data: Bytes) -> Result<Pending> {
        Pending::new(&self.device.driven, ask, flags, offset, length, data)
    }

    /// Reads at most 32 MiB.
    ///
    /// # Errors
    /// When the range is wrong, or the device has failed.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        self.ask(Ask::Read, 0, offset, length.into(), Bytes::new()).await?.data().await
    }

    /// Writes at most 32 MiB. When it is done every later read sees it, and nothing but the loss of this process together with the owner's can lose it.
    ///
    /// # Errors
    /// When the range is wrong, or the device has failed.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.ask(Ask::Write, 0, offset, data.len() as u64, data).await?.done().await
    }

    /// Writes several pieces, one behind the other, as requests of their own; done when all are.
    ///
    /// # Errors
    /// Of the first that fails.
    pub async fn writev(&self, offset: u64, pieces: impl IntoIterator<Item = Bytes>) -> Result<()> {
        let (mut at, mut all) = (offset, Vec::new());
        for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
            let length = piece.len() as u64;
            if length > MAX_DATA {
                return Err(error::invalid("a piece of more than 32 MiB"));
            }
            all.push(self.ask(Ask::Write, 0, at, length, piece).await?);
            at += length;
        }
        for pending in all {
            pending.done().await?;
        }
        Ok(())
    }

    /// Everything that was done before is on stable media when it completes.
    ///
    /// # Errors
    /// When the owner can not, or the device has failed.
    pub async fn flush(&self) -> Result<()> {
        self.ask(Ask::Flush, 0, 0, 0, Bytes::new()).await?.done().await
    }

    /// Frees a range; it reads as zeroes afterwards.
    ///
    /// # Errors
    /// When the range is wrong, or the device has failed.
    pub async fn discard(&self, offset: u64, length: u64) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.ask(Ask::Discard, 0, offset, length, Bytes::new()).await?.done().await
    }

    /// What a range holds.
    ///
    /// # Errors
    /// When the range is wrong, or the device has failed.
    pub async fn extents(&self, offset: u64, length: u64) -> Result<Vec<StatusExtent>> {
        self.ask(Ask::Status, 0, offset, length, Bytes::new()).await?.extents().await
    }

    /// How it is.
    #[must_use]
    pub fn stat(&self) -> Stat {
        let driven = self.device.driven.borrow();
        let session = &driven.session;
        Stat {
            size: session.size(),
            read_only: session.read_only(),
            standing: session.standing(),
            now: driven.now(),
            trouble: session.trouble().to_owned(),
            failure: session.failure().cloned(),
            kept_bytes: session.kept_bytes(),
            stalls: session.stalls(),
            stats: driven.stats.clone(),
        }
    }

    /// Completes when the volume has changed its state: its size, its owner, whether it has failed.
    pub async fn changed(&self) {
        let mut is_watched = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut is_watched, true) {
                return Poll::Ready(());
            }
            self.device.driven.borrow_mut().watch(cx);
            Poll::Pending
        })
        .await;
    }

    /// Gives the volume up, once everything that was asked is answered and stable. Waits as long as that takes; dropping the future stops nothing.
    ///
    /// # Errors
    /// When the device has failed before.
    pub async fn close(&self) -> Result<()> {
        self.device.driven.borrow_mut().detach();
        poll_fn(|cx| {
            let mut driven = self.device.driven.borrow_mut();
            match driven.session.standing() {
                Standing::Detached(_) => Poll::Ready(Ok(())),
                Standing::Failed(_) => Poll::Ready(driven.session.failure().cloned().map_or(Ok(()), Err)),
                Standing::Looking(_) | Standing::Connected(..) => {
                    driven.watch(cx);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Ends the device at once: whatever waits is answered with an error, and what is kept is given up.
    pub fn abandon(&self) {
        let error = BlockError::new(ErrorKind::Unavailable, format!("volume {}: it was given up here", self.name));
        self.device.driven.borrow_mut().abandon(error);
    }
}
