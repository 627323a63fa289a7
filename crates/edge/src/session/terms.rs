// SPDX-License-Identifier: Apache-2.0
//! What can be set about a session, and what a person says at an attach.

use std::time::Duration;
use varve_types::SessionId;
use varve_wire::attach::Mode;

/// Times and bounds of a session.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long a request may go without an answer before it is answered with an error; none is for ever.
    pub io_timeout: Option<Duration>,
    /// How long the first attach is tried; none is for ever.
    pub attach_timeout: Option<Duration>,
    /// How long a connection may take to come about.
    pub connect: Duration,
    /// How long a node may take to answer an attach. One that has to take the volume over goes on with that when it is left, and answers at once when it is asked
    /// again; one that was stopped never answers, and this is how long the guest waits for that.
    pub greeting: Duration,
    /// Between two pings while anything is under way.
    pub ping_busy: Duration,
    /// The same while nothing is.
    pub ping_idle: Duration,
    /// How long nothing may be heard before the connection is taken for lost.
    pub silence: Duration,
    /// How many pings have to be without an answer for that.
    pub pings: u32,
    /// The pause before the second attempt to connect; it doubles with each one.
    pub pause_least: Duration,
    /// The longest pause.
    pub pause_most: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            io_timeout: None,
            attach_timeout: Some(Duration::from_secs(30)),
            connect: Duration::from_secs(1),
            greeting: Duration::from_secs(2),
            ping_busy: Duration::from_millis(300),
            ping_idle: Duration::from_secs(5),
            silence: Duration::from_secs(1),
            pings: 3,
            pause_least: Duration::from_millis(50),
            pause_most: Duration::from_secs(1),
        }
    }
}

/// What is asked of a node at every connect.
#[derive(Clone)]
pub struct Wanted {
    /// `NAME` or `NAME@SNAPSHOT`.
    pub volume: String,
    /// What proves that it may be had.
    pub token: String,
    /// Who asks, for people.
    pub edge: String,
    /// The session.
    pub session: SessionId,
    /// How.
    pub mode: Mode,
    /// Whoever has the volume at the first attach is to lose it.
    pub steal: bool,
}

impl std::fmt::Debug for Wanted {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wanted({} as {} in {:?}, {})", self.volume, self.edge, self.mode, self.session)
    }
}
