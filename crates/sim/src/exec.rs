// SPDX-License-Identifier: Apache-2.0
//! The executor of a world.
//!
//! A world runs the tasks of all its processes in one thread, one poll at a time, in the order in which they were woken or in an order
//! that the seed shuffles. When no task can run, time jumps to the next event: a sleep that ends, a job that is done, a put that
//! lands. When there is none either, the world is stuck, and says who still waits.
//!
//! A process that dies, at a crash point or by [`SimWorld::kill`], loses its tasks before another one is polled. What the world
//! has scheduled for others (requests that a store has taken) goes on. Each run is bounded in steps, so that a task that spins ends in
//! an error and not in a hang.

use crate::core::{Core, Event, Sleep};
use crate::process::SimEnv;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;
use varve_env::LocalFuture;
use varve_types::ErrorKind;

/// Names of waiting tasks that an error lists at most.
const PENDING_LISTED: usize = 20;

/// How a world behaves.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// All chance comes from it.
    pub seed: u64,
    /// Whether the seed shuffles the order of tasks that can run.
    pub shuffle: bool,
    /// Polls and events that one run may take.
    pub most_steps: u64,
    /// Wall-clock time at the start, milliseconds since 1970.
    pub wall_ms: u64,
    /// Virtual time that a job takes, at most; each takes a random part of it, but at least a nanosecond.
    pub job_time: Duration,
    /// Whether the trace is kept as text too, for [`SimWorld::log`].
    pub log: bool,
}

impl SimOptions {
    /// The usual world of a seed.
    #[must_use]
    pub const fn seed(seed: u64) -> Self {
        Self {
            seed,
            shuffle: true,
            most_steps: 2_000_000,
            wall_ms: 1_800_000_000_000,
            job_time: Duration::from_micros(200),
            log: false,
        }
    }
}

/// Why a run ended before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The process died; its tasks are dropped.
    #[error("{process} died {death}")]
    Dead {
        /// The process.
        process: String,
        /// Where.
        death: String,
    },
    /// Nothing can ever run again, and it is not done.
    #[error("nothing can run any more; waiting: {pending:?}")]
    Stuck {
        /// The tasks that wait.
        pending: Vec<String>,
    },
    /// It took more steps than a run may.
    #[error("not done after {steps} steps, at {now:?}; waiting: {pending:?}")]
    TooLong {
        /// Steps taken.
        steps: u64,
        /// Virtual time reached.
        now: Duration,
        /// The tasks that wait.
        pending: Vec<String>,
    },
}

impl RunError {
    /// What the caller should do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Dead { .. } => ErrorKind::Unavailable,
            Self::Stuck { .. } | Self::TooLong { .. } => ErrorKind::Internal,
        }
    }
}

/// A world: its time, its processes, its tasks. Clones are the same world.
#[derive(Clone)]
pub struct SimWorld {
    executor: Rc<Executor>,
}

pub(crate) struct Executor {
    pub(crate) core: Arc<Core>,
    pub(crate) options: SimOptions,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    tasks: BTreeMap<u64, Task>,
    next_task: u64,
    next_process: u32,
    /// Processes that are paused, and their tasks that could run.
    paused: BTreeMap<u32, Vec<u64>>,
}

struct Task {
    process: Rc<SimEnv>,
    /// Absent while it is being polled.
    future: Option<LocalFuture<()>>,
    waker: Arc<TaskWaker>,
}

struct TaskWaker {
    core: std::sync::Weak<Core>,
    task: u64,
    /// Whether it is in the queue already.
    queued: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed)
            && let Some(core) = self.core.upgrade()
        {
            core.make_ready(self.task);
        }
    }
}

/// What one turn of the executor did.
enum Turn {
    Polled,
    Advanced,
    Idle,
}

impl SimWorld {
    /// A new world, at time zero and without processes.
    #[must_use]
    pub fn new(options: SimOptions) -> Self {
        let core = Arc::new(Core::new(options.seed, options.wall_ms, options.log));
        Self { executor: Rc::new(Executor { core, options, state: RefCell::default() }) }
    }

    /// Starts a process. A process that died is started again as a new one of the same name.
    #[must_use]
    pub fn process(&self, name: &str) -> Rc<SimEnv> {
        let mut state = self.executor.state.borrow_mut();
        let number = state.next_process;
        state.next_process += 1;
        self.executor.core.note(&[1, u64::from(number)], name, || format!("{name}: process {number} starts"));
        SimEnv::start(&self.executor, name, number)
    }

    /// Ends a process now and drops its tasks.
    pub fn kill(&self, process: &SimEnv) {
        process.points().die("by a kill");
        self.executor.drop_tasks(process);
    }

    /// Virtual time.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.executor.core.now()
    }

    /// Completes after `duration` of virtual time.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> Sleep {
        Sleep::new(&self.executor.core, duration)
    }

    /// Moves the wall clock, and it alone.
    pub fn jump_wall(&self, by_ms: i64) {
        self.executor.core.jump_wall(by_ms);
    }

    /// Whether the trace is kept as text too.
    #[must_use]
    pub fn is_logged(&self) -> bool {
        self.executor.options.log
    }

    /// Stops a process, as SIGSTOP does: none of its tasks runs until it is resumed. Its requests that are under way go on.
    pub fn pause(&self, process: &SimEnv) {
        self.executor.state.borrow_mut().paused.entry(process.number()).or_default();
    }

    /// Lets a process run again that was paused.
    pub fn resume(&self, process: &SimEnv) {
        let tasks = self.executor.state.borrow_mut().paused.remove(&process.number());
        for task in tasks.unwrap_or_default() {
            self.executor.core.make_ready(task);
        }
    }

    /// Adds a note of the test to the trace.
    pub fn note(&self, text: &str) {
        self.executor.core.note(&[2], text, || text.to_owned());
    }

    /// Hash of all that has happened so far; see the crate's rules.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.executor.core.trace()
    }

    /// The last million lines of the trace, where [`SimOptions::log`] is set.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.executor.core.log()
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.executor.core
    }

    /// Runs `future` as a task of `process` until it completes, and everything else of the world with it.
    ///
    /// # Errors
    /// When the process dies, when the world is stuck, or when it takes too many steps.
    pub fn block_on<T: 'static>(
        &self,
        process: &Rc<SimEnv>,
        future: impl Future<Output = T> + 'static,
    ) -> Result<T, RunError> {
        let slot = Rc::new(RefCell::new(None));
        let target = Rc::clone(&slot);
        let task: LocalFuture<()> = Box::pin(async move {
            let value = future.await;
            *target.borrow_mut() = Some(value);
        });
        self.executor.add(process, task);
        for _ in 0..self.executor.options.most_steps {
            // A process that died in the very poll that completed the future has died: nobody can have seen the result.
            if process.is_dead()
                && let Some(death) = process.points().death()
            {
                self.executor.drop_tasks(process);
                return Err(RunError::Dead { process: process.name().to_owned(), death });
            }
            if let Some(value) = slot.borrow_mut().take() {
                return Ok(value);
            }
            if matches!(self.executor.turn(None), Turn::Idle) {
                return Err(RunError::Stuck { pending: self.executor.pending() });
            }
        }
        Err(self.executor.too_long())
    }

    /// Runs until nothing is left to run and nothing is scheduled. Tasks that wait for something that never comes stay.
    ///
    /// # Errors
    /// When it takes too many steps, as it does where a task sleeps again and again.
    pub fn run_until_idle(&self) -> Result<(), RunError> {
        for _ in 0..self.executor.options.most_steps {
            if matches!(self.executor.turn(None), Turn::Idle) {
                return Ok(());
            }
        }
        Err(self.executor.too_long())
    }

    /// Runs for `duration` of virtual time.
    ///
    /// # Errors
    /// When it takes too many steps.
    pub fn run_for(&self, duration: Duration) -> Result<(), RunError> {
        let until = self.now().saturating_add(duration);
        for _ in 0..self.executor.options.most_steps {
            if matches!(self.executor.turn(Some(until)), Turn::Idle) {
                self.executor.core.pass_time(until);
                return Ok(());
            }
        }
        Err(self.executor.too_long())
    }

    /// Tasks that have not completed.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.executor.state.borrow().tasks.len()
    }
}

impl Executor {
    pub(crate) fn add(&self, process: &Rc<SimEnv>, future: LocalFuture<()>) {
        let mut state = self.state.borrow_mut();
        let number = state.next_task;
        state.next_task += 1;
        let waker =
            Arc::new(TaskWaker { core: Arc::downgrade(&self.core), task: number, queued: AtomicBool::new(true) });
        state.tasks.insert(number, Task { process: Rc::clone(process), future: Some(future), waker });
        self.core.make_ready(number);
    }

    /// Polls one task, or fires one event.
    fn turn(&self, until: Option<Duration>) -> Turn {
        if let Some(number) = self.core.next_ready(self.options.shuffle) {
            self.poll(number);
            return Turn::Polled;
        }
        match self.core.advance(until) {
            Some(Event::Wake(waker)) => waker.wake(),
            Some(Event::Run(run)) => run(),
            None => return Turn::Idle,
        }
        Turn::Advanced
    }

    fn poll(&self, number: u64) {
        let (process, waker, mut future) = {
            let mut state = self.state.borrow_mut();
            let State { tasks, paused, .. } = &mut *state;
            let Some(task) = tasks.get_mut(&number) else { return };
            if let Some(stalled) = paused.get_mut(&task.process.number()) {
                stalled.push(number);
                return;
            }
            let Some(future) = task.future.take() else { return };
            task.waker.queued.store(false, Ordering::Relaxed);
            (Rc::clone(&task.process), Waker::from(Arc::clone(&task.waker)), future)
        };
        if process.is_dead() {
            drop(future);
            self.drop_tasks(&process);
            return;
        }
        self.core.note(&[3, number], "", || format!("{}: poll task {number}", process.name()));
        let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        process.points().polled();
        let mut left = Some(future);
        let ended = {
            let mut state = self.state.borrow_mut();
            if done {
                state.tasks.remove(&number)
            } else {
                if let Some(task) = state.tasks.get_mut(&number) {
                    task.future = left.take();
                }
                None
            }
        };
        // Dropped with nothing borrowed: what a task drops may spawn or wake.
        drop((left, ended));
        if process.is_dead() {
            self.core.note(&[4, number], process.name(), || {
                format!("{}: dies {}", process.name(), process.points().death().unwrap_or_default())
            });
            self.drop_tasks(&process);
        }
    }

    fn drop_tasks(&self, process: &SimEnv) {
        let dropped: Vec<Task> = {
            let mut state = self.state.borrow_mut();
            let (gone, kept) = std::mem::take(&mut state.tasks)
                .into_iter()
                .partition(|(_, task)| task.process.number() == process.number());
            state.tasks = kept;
            let gone: BTreeMap<u64, Task> = gone;
            gone.into_values().collect()
        };
        drop(dropped);
    }

    fn pending(&self) -> Vec<String> {
        let state = self.state.borrow();
        let name = |(number, task): (&u64, &Task)| format!("{} task {number}", task.process.name());
        state.tasks.iter().take(PENDING_LISTED).map(name).collect()
    }

    fn too_long(&self) -> RunError {
        RunError::TooLong { steps: self.options.most_steps, now: self.core.now(), pending: self.pending() }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let tasks = std::mem::take(&mut self.state.borrow_mut().tasks);
        drop(tasks);
        // Events hold wakers and closures that hold the world's parts: without this the world would keep itself alive.
        self.core.clear_events();
    }
}
