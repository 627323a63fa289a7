// SPDX-License-Identifier: Apache-2.0
//! The two queues that are shared with the kernel, and the operations that it has been told of: all of what is `unsafe`.
//!
//! [`Kernel`] owns, for each operation from before it is pushed until its completion has been seen, the memory that it reads into or writes from, and the
//! file. Who waits for it has a channel and no more. A kernel that is dropped while operations are under way leaks what they use:
//! closing the ring does not wait for them.

use bytes::{Bytes, BytesMut};
use io_uring::{IoUring, opcode, types::Fd};
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Most bytes of one operation: what the kernel takes at once, and a multiple of any block.
const MOST: usize = 1 << 30;

/// Memory of an operation.
#[derive(Debug)]
pub(crate) enum Buffer {
    /// To be filled.
    Fill(BytesMut),
    /// To be written.
    Take(Bytes),
}

impl Buffer {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Fill(bytes) => bytes.len(),
            Self::Take(bytes) => bytes.len(),
        }
    }

    /// What it means that an operation did nothing.
    pub(crate) fn cut_short(&self) -> io::Error {
        match self {
            Self::Fill(_) => io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before"),
            Self::Take(_) => io::Error::new(io::ErrorKind::WriteZero, "nothing was written"),
        }
    }
}

/// An operation that has ended: how many bytes, and the memory.
pub(crate) struct Done {
    pub(crate) result: io::Result<usize>,
    pub(crate) buffer: Buffer,
}

struct Operation {
    buffer: Buffer,
    _file: Arc<File>,
    _place: OwnedSemaphorePermit,
    tell: oneshot::Sender<Done>,
}

/// See the module.
pub(crate) struct Kernel {
    state: RefCell<State>,
    fd: RawFd,
}

/// The ring's descriptor.
pub(crate) struct Watched(Rc<Kernel>);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd
    }
}

struct State {
    ring: IoUring,
    /// By the number that the kernel knows them by.
    operations: Vec<Option<Operation>>,
    free: Vec<usize>,
}

impl Kernel {
    pub(crate) fn new(entries: u16) -> io::Result<Self> {
        // Completions wait until this thread is in the kernel anyway, instead of interrupting it.
        let ring = IoUring::builder().dontfork().setup_coop_taskrun().build(u32::from(entries))?;
        let fd = ring.as_raw_fd();
        let places = usize::from(entries);
        let operations = std::iter::repeat_with(|| None).take(places).collect();
        Ok(Self { state: RefCell::new(State { ring, operations, free: (0..places).collect() }), fd })
    }

    /// For the runtime to look at: it is readable when something is done.
    #[expect(unsafe_code, reason = "the runtime keeps the number of a descriptor")]
    pub(crate) fn watch(self: Rc<Self>) -> io::Result<AsyncFd<Watched>> {
        // SAFETY: the descriptor is that of the ring, which `Watched` keeps open and which nothing replaces.
        let watched = unsafe { AsyncFd::register_with_interest(Watched(self), Interest::READABLE) };
        watched.map_err(io::Error::from)
    }

    /// Whether the kernel has all that it was given back.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state.borrow();
        state.free.len() == state.operations.len()
    }

    /// Whether the kernel knows of all that was entered.
    #[cfg(test)]
    pub(crate) fn is_submitted(&self) -> bool {
        self.state.borrow_mut().ring.submission().is_empty()
    }

    /// Enters an operation on `buffer` behind its first `skip` bytes, which are fewer than it has. `place` is one of as many as the ring has entries, so there is room.
    #[expect(unsafe_code, reason = "the kernel is given an address")]
    pub(crate) fn push(
        &self,
        file: &Arc<File>,
        offset: u64,
        mut buffer: Buffer,
        skip: usize,
        place: OwnedSemaphorePermit,
    ) -> oneshot::Receiver<Done> {
        let (tell, told) = oneshot::channel();
        let fd = Fd(file.as_raw_fd());
        let len = u32::try_from((buffer.len() - skip).min(MOST)).expect("a GiB fits");
        let entry = match &mut buffer {
            Buffer::Fill(bytes) => opcode::Read::new(fd, bytes[skip..].as_mut_ptr(), len).offset(offset).build(),
            Buffer::Take(bytes) => opcode::Write::new(fd, bytes[skip..].as_ptr(), len).offset(offset).build(),
        };
        let state = &mut *self.state.borrow_mut();
        let number = state.free.pop().expect("whoever has a place finds one");
        state.operations[number] = Some(Operation { buffer, _file: Arc::clone(file), _place: place, tell });
        let entry = entry.user_data(number as u64);
        // SAFETY: the memory that `entry` points to is the heap memory of `buffer`, which does not move with it, and the descriptor is that of `file`. Both are in
        // `operations`, which lets go of them in `reap` only, when the completion with this number has come; a `Kernel` that is dropped before leaks them. Nobody
        // else has the memory: a `BytesMut` is the only one of its range, and of `Bytes` the kernel reads only.
        unsafe { state.ring.submission().push(&entry) }.expect("there are as many places as entries");
        told
    }

    /// Hands the kernel what was entered.
    ///
    /// # Errors
    /// When it takes nothing now. What was entered stays so.
    pub(crate) fn submit(&self) -> io::Result<()> {
        let state = &mut *self.state.borrow_mut();
        if state.ring.submission().is_empty() {
            return Ok(());
        }
        state.ring.submit().map(drop)
    }

    /// Tells of all that is done.
    pub(crate) fn reap(&self) {
        let state = &mut *self.state.borrow_mut();
        for completion in state.ring.completion() {
            let number = usize::try_from(completion.user_data()).expect("it is ours");
            let operation = state.operations[number].take().expect("the kernel tells of each operation once");
            state.free.push(number);
            let result = match completion.result() {
                error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
                bytes => Ok(bytes.unsigned_abs() as usize),
            };
            // Nobody may wait any more.
            drop(operation.tell.send(Done { result, buffer: operation.buffer }));
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.reap();
        let mut left: Vec<_> = self.state.get_mut().operations.drain(..).flatten().collect();
        if !left.is_empty() {
            tracing::debug!(operations = left.len(), "a ring is closed while operations are under way");
            left.drain(..).for_each(std::mem::forget);
        }
    }
}
