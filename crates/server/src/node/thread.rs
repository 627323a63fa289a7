// SPDX-License-Identifier: Apache-2.0
//! The thread of the shard, and the handle by which other threads have things done there.
//!
//! Everything of the engine is bound to its thread. A [`ShardHandle`] sends it functions, which run there as tasks
//! beside the connections; their results come back. A function that was taken is run to its end even when nobody
//! waits for its result any more.
//!
//! Bounds: at most [`MOST_CALLS`] functions are on their way or running; whoever comes then waits. The thread ends
//! when it is told to stop, and not before; where it ends by a defect, every caller gets `Unavailable` and the node
//! stops.

use super::local::Local;
use crate::api::ControlError;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::LocalSet;
use varve_env::LocalFuture;
use varve_types::ErrorKind;

/// Functions under way at once.
const MOST_CALLS: usize = 512;
/// How long the end of the connections and calls under way may take.
const STOP_TIME: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce(Rc<Local>) -> LocalFuture<()> + Send>;
type Answer<T> = Result<T, ControlError>;

enum Message {
    Call(Job),
    Stop(oneshot::Sender<Answer<()>>),
}

/// Has things done on the thread of a shard.
#[derive(Clone)]
pub(super) struct ShardHandle {
    messages: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
}

fn gone() -> ControlError {
    ControlError::new(ErrorKind::Unavailable, "the shard has stopped")
}

impl ShardHandle {
    /// Runs `work` on the shard's thread and gives its result.
    pub(super) fn call<T, F>(&self, work: F) -> impl Future<Output = Answer<T>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Local>) -> LocalFuture<Answer<T>> + Send + 'static,
    {
        let (messages, room) = (self.messages.clone(), Arc::clone(&self.room));
        async move {
            let place = room.acquire_owned().await.map_err(|_| gone())?;
            let (give, take) = oneshot::channel();
            let job: Job = Box::new(move |local| {
                let work = work(local);
                Box::pin(async move {
                    let result = work.await;
                    drop(place);
                    // Nobody may wait for it any more.
                    let _ = give.send(result);
                })
            });
            messages.send(Message::Call(job)).await.map_err(|_| gone())?;
            take.await.unwrap_or_else(|_| Err(gone()))
        }
    }

    /// Ends connections and calls, makes everything durable, and ends the thread.
    pub(super) async fn stop(&self) -> Answer<()> {
        let (give, take) = oneshot::channel();
        self.messages.send(Message::Stop(give)).await.map_err(|_| gone())?;
        take.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// The thread, and word of its end.
pub(super) struct ShardThread {
    thread: JoinHandle<()>,
    /// Completes when the thread ends, however it does.
    pub(super) ended: oneshot::Receiver<()>,
}

impl ShardThread {
    /// Waits for its end.
    pub(super) fn join(self) -> Answer<()> {
        self.thread.join().map_err(|_| ControlError::new(ErrorKind::Internal, "the thread of the shard panicked"))
    }
}

/// Starts the thread of a shard. `open` makes what it owns, on the thread; the handle works once that has succeeded.
///
/// # Errors
/// Those of `open`, and of the system.
pub(super) async fn start<F>(open: F) -> Answer<(ShardHandle, ShardThread)>
where
    F: FnOnce() -> LocalFuture<Answer<Rc<Local>>> + Send + 'static,
{
    let (messages, queue) = mpsc::channel(MOST_CALLS);
    let (opened, result) = oneshot::channel();
    let (ends, ended) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("varve-shard-0".to_owned()).spawn(move || {
        let _ends = ends;
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = opened.send(Err(super::directory::io_error("a runtime", &error)));
                return;
            }
        };
        LocalSet::new().block_on(&runtime, async {
            match open().await {
                Ok(local) => {
                    let _ = opened.send(Ok(()));
                    run(local, queue).await;
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        });
    });
    let thread = thread.map_err(|error| super::directory::io_error("the thread of a shard", &error))?;
    match result.await {
        Ok(Ok(())) => {
            Ok((ShardHandle { messages, room: Arc::new(Semaphore::new(MOST_CALLS)) }, ShardThread { thread, ended }))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ControlError::new(ErrorKind::Internal, "the thread of the shard panicked while it started")),
    }
}

/// Takes messages until one says to stop.
async fn run(local: Rc<Local>, mut queue: mpsc::Receiver<Message>) {
    while let Some(message) = queue.recv().await {
        match message {
            Message::Call(job) => drop(tokio::task::spawn_local(job(Rc::clone(&local)))),
            Message::Stop(answer) => {
                // Calls that are still queued, and those that come now, are told that the shard has stopped.
                queue.close();
                local.end_clients(STOP_TIME).await;
                let result = local.shard.stop().await.map_err(ControlError::from);
                let _ = answer.send(result);
                return;
            }
        }
    }
}
