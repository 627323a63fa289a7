// SPDX-License-Identifier: Apache-2.0
//! Reads and writes of files on the thread of a shard, through io_uring (`man 7 io_uring`).
//!
//! A read on another thread costs a shard two changes of threads, 35 to 80 µs each, which is what a good SSD takes for the read itself. A [`Ring`]
//! has no thread: its operations go to the kernel together, once the tasks that asked for them have had their turn, and a task of the shard's
//! own is woken when some are done.
//!
//! Always holds: what the kernel was given the address of, and the file, stay where they are until the kernel has said that it is done, whoever
//! has lost interest meanwhile. No more operations are under way than the ring has entries; further ones wait for their turn.

mod kernel;

use bytes::{Bytes, BytesMut};
use kernel::{Buffer, Done, Kernel, Watched};
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore};

/// How long it waits when the kernel takes nothing, for want of memory.
const PAUSE: Duration = Duration::from_millis(1);

/// See the crate. Operations that are under way when it is dropped end by themselves.
pub struct Ring {
    shared: Rc<Shared>,
}

struct Shared {
    kernel: Rc<Kernel>,
    /// That something is to be submitted, or the ring has been dropped.
    changed: Notify,
    room: Arc<Semaphore>,
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.shared.room.close();
        self.shared.changed.notify_one();
    }
}

impl Ring {
    /// A ring for `entries` operations at once, 1 to 4096.
    ///
    /// # Errors
    /// When the kernel has no io_uring, or keeps it from this process.
    ///
    /// # Panics
    /// Outside a `LocalSet` of a tokio runtime with I/O and time.
    pub fn new(entries: u16) -> io::Result<Self> {
        let kernel = Rc::new(Kernel::new(entries)?);
        let watched = Rc::clone(&kernel).watch()?;
        let room = Arc::new(Semaphore::new(usize::from(entries)));
        let shared = Rc::new(Shared { kernel, changed: Notify::new(), room });
        drop(tokio::task::spawn_local(drive(Rc::clone(&shared), watched)));
        Ok(Self { shared })
    }

    /// Fills `buffer` with what is at `offset`. The future asks for nothing before it is polled; when it is dropped later the read goes on, for nobody.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file ends before; what the kernel says.
    pub async fn read(&self, file: &Arc<File>, offset: u64, buffer: BytesMut) -> io::Result<BytesMut> {
        match self.all(file, offset, Buffer::Fill(buffer)).await? {
            Buffer::Fill(buffer) => Ok(buffer),
            Buffer::Take(_) => unreachable!("a buffer comes back as what it was"),
        }
    }

    /// Writes all of `data` at `offset`. As with a read, a future that is dropped takes nothing back.
    ///
    /// # Errors
    /// `WriteZero` where the file takes nothing; what the kernel says.
    pub async fn write(&self, file: &Arc<File>, offset: u64, data: Bytes) -> io::Result<()> {
        self.all(file, offset, Buffer::Take(data)).await.map(drop)
    }

    /// One operation after the other, until all of the buffer has had its turn: the kernel may do less than it is asked for.
    async fn all(&self, file: &Arc<File>, offset: u64, mut buffer: Buffer) -> io::Result<Buffer> {
        let mut done = 0;
        while done < buffer.len() {
            let ended = || io::Error::other("the ring has been dropped");
            let place = Arc::clone(&self.shared.room).acquire_owned().await.map_err(|_| ended())?;
            let told = self.shared.kernel.push(file, offset + done as u64, buffer, done, place);
            self.shared.changed.notify_one();
            let Done { result, buffer: back } = told.await.map_err(|_| ended())?;
            buffer = back;
            match result {
                Ok(0) => return Err(buffer.cut_short()),
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(buffer)
    }
}

/// Gives the kernel what was asked for, and tells those who asked of what is done, until the ring has been dropped and nothing is under way.
async fn drive(shared: Rc<Shared>, watched: AsyncFd<Watched>) {
    loop {
        if let Err(error) = shared.kernel.submit() {
            tracing::debug!(%error, "the kernel takes no operation for now");
            tokio::time::sleep(PAUSE).await;
            shared.changed.notify_one();
        }
        shared.kernel.reap();
        if shared.room.is_closed() && shared.kernel.is_idle() {
            return;
        }
        tokio::select! {
            () = shared.changed.notified() => {}
            ready = watched.readable() => match ready {
                // Before they are told of: what comes from here on is noticed anew.
                Ok(mut ready) => ready.clear_ready(),
                // The runtime ends.
                Err(_) => return,
            },
        }
    }
}

#[cfg(test)]
mod tests;
