// SPDX-License-Identifier: Apache-2.0
//! The connection that is in use, and the way to the next one: the endpoints in turn, one caller at a time, with a rest between rounds that failed.
//!
//! There is a link for requests and one for watches, so that watches, which may stand still for as long as their readers like, never hold up a
//! request, and a flood of requests never starves a watch.
//!
//! Whoever finds no connection dials; the others wait for it. After a round in which no endpoint answered everybody is told so at once until the rest
//! is over, which grows with each such round up to [`MAX_REST`]. What people are told is a change of state, never a try.

use crate::dial::Windows;
use crate::fault::Fault;
use crate::member::{Connection, Members};
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Between two rounds of dialling, at first and at most.
const FIRST_REST: Duration = Duration::from_millis(50);
const MAX_REST: Duration = Duration::from_secs(1);

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(crate) struct Unreachable {
    /// Each endpoint and what it said.
    pub(crate) reason: String,
    /// Whether a person has to mend something, for all of them.
    pub(crate) misconfigured: bool,
    /// When it is worth asking again.
    pub(crate) until: Instant,
}

pub(crate) struct Link {
    /// What it is for, for people.
    purpose: &'static str,
    members: Arc<Members>,
    windows: Windows,
    state: Mutex<State>,
    health: Lock<Health>,
}

struct State {
    connection: Option<Arc<Connection>>,
    /// The endpoint that is dialled next.
    next: usize,
    failed: Option<Unreachable>,
    rest: Duration,
}

impl Link {
    pub(crate) fn new(purpose: &'static str, members: Arc<Members>, windows: Windows) -> Self {
        let state = State { connection: None, next: 0, failed: None, rest: FIRST_REST };
        Self { purpose, members, windows, state: Mutex::new(state), health: Lock::new(Health::Unknown) }
    }

    /// The connection in use, or a new one.
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, Unreachable> {
        let mut state = self.state.lock().await;
        if let Some(connection) = state.connection.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(Arc::clone(connection));
        }
        if let Some(failed) = state.failed.as_ref().filter(|failed| Instant::now() < failed.until) {
            return Err(failed.clone());
        }
        state.connection = None;
        let mut faults = Vec::new();
        for _ in 0..self.members.count() {
            let index = state.next;
            // Moved on before the wait: a caller that gives up does not leave the next one with the same endpoint.
            state.next = (index + 1) % self.members.count();
            match self.members.connect(index, self.windows).await {
                Ok(connection) => {
                    let connection = Arc::new(connection);
                    (state.connection, state.failed, state.rest) = (Some(Arc::clone(&connection)), None, FIRST_REST);
                    return Ok(connection);
                }
                Err(fault) => faults.push((index, fault)),
            }
        }
        let failed = self.describe(&faults, Instant::now() + state.rest);
        state.rest = (state.rest * 2).min(MAX_REST);
        state.failed = Some(failed.clone());
        drop(state);
        self.lost(&failed.reason);
        Err(failed)
    }

    fn describe(&self, faults: &[(usize, Fault)], until: Instant) -> Unreachable {
        let words = faults.iter().map(|(index, fault)| format!("{}: {fault}", self.members.name(*index)));
        let misconfigured = faults.iter().all(|(_, fault)| matches!(fault, Fault::Misconfigured(_)));
        Unreachable { reason: words.collect::<Vec<_>>().join("; "), misconfigured, until }
    }

    /// Uses this connection no more; the next one is to another endpoint, where there is one.
    pub(crate) async fn leave(&self, connection: &Connection) {
        let mut state = self.state.lock().await;
        if state.connection.as_ref().is_some_and(|current| current.id == connection.id) {
            (state.connection, state.next) = (None, (connection.index + 1) % self.members.count());
        }
    }

    /// Notes that a request was done through this connection.
    pub(crate) fn answered(&self, connection: &Connection) {
        let endpoint = || self.members.name(connection.index);
        match self.health().answered(connection.index) {
            None => {}
            Some(News::Reached) => tracing::info!(endpoint = endpoint(), purpose = self.purpose, "etcd is reached"),
            Some(News::Moved) => tracing::info!(
                endpoint = endpoint(),
                purpose = self.purpose,
                "etcd is reached through another endpoint"
            ),
            Some(News::Back) => tracing::info!(endpoint = endpoint(), purpose = self.purpose, "etcd is back"),
        }
    }

    /// Notes that etcd is away.
    pub(crate) fn lost(&self, reason: &str) {
        if self.health().lost() {
            tracing::warn!(reason, purpose = self.purpose, "etcd is away");
        }
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What people were told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Unknown,
    /// It answers, through this endpoint.
    At(usize),
    Away,
}

/// What people are to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Reached,
    Moved,
    Back,
}

impl Health {
    fn answered(&mut self, index: usize) -> Option<News> {
        let news = match *self {
            Self::At(known) if known == index => return None,
            Self::Unknown => News::Reached,
            Self::At(_) => News::Moved,
            Self::Away => News::Back,
        };
        *self = Self::At(index);
        Some(news)
    }

    /// Whether that is news.
    fn lost(&mut self) -> bool {
        std::mem::replace(self, Self::Away) != Self::Away
    }
}

#[cfg(test)]
mod tests {
    use super::{Health, News};

    #[test]
    fn each_change_is_told_once() {
        let mut health = Health::Unknown;
        assert_eq!([health.answered(0), health.answered(0)], [Some(News::Reached), None]);
        assert_eq!([health.answered(2), health.answered(2)], [Some(News::Moved), None]);
        assert_eq!([health.lost(), health.lost()], [true, false]);
        assert_eq!([health.answered(2), health.answered(2)], [Some(News::Back), None]);
        assert!(health.lost());
        let mut never = Health::Unknown;
        assert_eq!([never.lost(), never.lost()], [true, false]);
    }
}
