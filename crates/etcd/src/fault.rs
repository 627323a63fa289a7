// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with one call to one member, and what follows from it.
//!
//! The question is always the same: can it have been done? A change is tried on another member only where it certainly was not. etcd itself leaves
//! that open more often than its codes suggest: a request that timed out, a leader that changed and a server that stops may all come behind the
//! proposal; and a change that finds the database full may have been applied and be answered with an error all the same. So the few answers that
//! prove that nothing was done are listed here, and everything else is [`Verdict::Doubt`].

use std::error::Error;
use std::fmt;

/// A status code of gRPC, as far as they are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Ok,
    InvalidArgument,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    OutOfRange,
    Unimplemented,
    Unavailable,
    Unauthenticated,
    Other(u32),
}

impl From<u32> for Code {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::Ok,
            3 => Self::InvalidArgument,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            14 => Self::Unavailable,
            16 => Self::Unauthenticated,
            other => Self::Other(other),
        }
    }
}

/// How a server says that a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: Code,
    pub(crate) message: String,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing of it reached the server.
    NotSent(String),
    /// It may have reached the server; the answer did not come, or not whole.
    Lost(String),
    /// What answered is no etcd.
    Foreign(String),
    /// The answer has so many bytes, more than are taken.
    TooLarge(usize),
    /// The server's own answer.
    Status(Status),
    /// It was not even tried, or would always fail: something a person has to mend.
    Misconfigured(String),
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    /// Nothing that could not be done twice.
    Read,
    /// Something that must not be done twice.
    Change,
}

/// What follows from a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was not done, or may be done again; another member may do it.
    Elsewhere,
    /// It was not done, and no member will do it.
    Final,
    /// Nobody knows whether it was done.
    Doubt,
}

/// Answers with the code `Unavailable` that are given before anything is done.
const NOT_BEGUN: [&str; 3] =
    ["etcdserver: no leader", "etcdserver: not capable", "etcdserver: rpc not supported for learner"];
/// Parts of answers that ask for a new token, given before anything is done.
const OLD_TOKEN: [&str; 4] =
    ["invalid auth token", "revision of auth store is old", "revision in header is old", "user name is empty"];
/// Part of the answer of a database that is full.
const FULL: &str = "space exceeded";

impl Status {
    /// Whether the database is full.
    pub(crate) fn is_full(&self) -> bool {
        self.code == Code::ResourceExhausted && self.message.contains(FULL)
    }
}

impl Fault {
    /// What follows for a request of this nature.
    pub(crate) fn verdict(&self, nature: Nature) -> Verdict {
        let doubt = if nature == Nature::Change { Verdict::Doubt } else { Verdict::Elsewhere };
        match self {
            Self::NotSent(_) => Verdict::Elsewhere,
            Self::Lost(_) | Self::Foreign(_) => doubt,
            Self::TooLarge(_) if nature == Nature::Change => Verdict::Doubt,
            Self::TooLarge(_) | Self::Misconfigured(_) => Verdict::Final,
            Self::Status(status) => match status.code {
                Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::PermissionDenied
                | Code::FailedPrecondition
                | Code::OutOfRange
                | Code::Unimplemented
                | Code::Unauthenticated => Verdict::Final,
                Code::ResourceExhausted if status.is_full() && nature == Nature::Change => Verdict::Doubt,
                Code::ResourceExhausted => Verdict::Final,
                Code::Unavailable if NOT_BEGUN.contains(&status.message.as_str()) => Verdict::Elsewhere,
                _ if self.wants_token() => Verdict::Final,
                _ => doubt,
            },
        }
    }

    /// Whether the server takes the call with a new token. It has done nothing then.
    pub(crate) fn wants_token(&self) -> bool {
        matches!(self, Self::Status(status) if OLD_TOKEN.iter().any(|part| status.message.contains(part)))
    }

    /// Whether it depends on who asks.
    pub(crate) fn is_about_the_user(&self) -> bool {
        let by_code = |status: &Status| matches!(status.code, Code::PermissionDenied | Code::Unauthenticated);
        self.wants_token() || matches!(self, Self::Status(status) if by_code(status))
    }

    /// The same fault of a call that goes before another one: of that other nothing was sent.
    pub(crate) fn before(self) -> Self {
        match self {
            Self::Lost(reason) | Self::Foreign(reason) => Self::NotSent(reason),
            Self::Status(status) if Self::Status(status.clone()).verdict(Nature::Read) == Verdict::Elsewhere => {
                Self::NotSent(status.to_string())
            }
            other => other,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() { write!(f, "{:?}", self.code) } else { f.write_str(&self.message) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(reason) | Self::Lost(reason) | Self::Misconfigured(reason) => f.write_str(reason),
            Self::Foreign(reason) => write!(f, "{reason}: is it an etcd?"),
            Self::TooLarge(bytes) => write!(f, "its answer has {bytes} bytes"),
            Self::Status(status) => status.fmt(f),
        }
    }
}

/// An error with those underneath, each said once.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u32, message: &str) -> Fault {
        Fault::Status(Status { code: Code::from(code), message: message.to_owned() })
    }

    #[test]
    fn a_change_is_tried_again_only_where_nothing_was_done() {
        let done_or_not = [
            Fault::Lost("cut".to_owned()),
            Fault::Foreign("HTTP 502".to_owned()),
            Fault::TooLarge(1 << 30),
            status(14, "etcdserver: request timed out"),
            status(14, "etcdserver: leader changed"),
            status(14, "etcdserver: server stopped"),
            status(14, "etcdserver: no leader, or so"),
            status(4, "context deadline exceeded"),
            status(1, ""),
            status(2, "raft: stopped"),
            status(8, "etcdserver: mvcc: database space exceeded"),
            status(77, "what nobody knows"),
        ];
        for fault in done_or_not {
            assert_eq!(fault.verdict(Nature::Change), Verdict::Doubt, "{fault}");
        }
        for fault in [
            Fault::NotSent("closed".to_owned()),
            status(14, "etcdserver: no leader"),
            status(14, "etcdserver: not capable"),
        ] {
            assert_eq!(fault.verdict(Nature::Change), Verdict::Elsewhere, "{fault}");
        }
        let refused = [
            status(3, "etcdserver: request is too large"),
            status(5, "etcdserver: requested lease not found"),
            status(7, "etcdserver: permission denied"),
            status(8, "etcdserver: too many requests"),
            status(16, "etcdserver: invalid auth token"),
            Fault::Misconfigured("password".to_owned()),
        ];
        for fault in refused {
            assert_eq!(fault.verdict(Nature::Change), Verdict::Final, "{fault}");
        }
    }

    #[test]
    fn a_read_goes_on_wherever_it_makes_sense() {
        for fault in [
            Fault::Lost("cut".to_owned()),
            Fault::NotSent("closed".to_owned()),
            Fault::Foreign("HTTP 502".to_owned()),
            status(14, "etcdserver: leader changed"),
            status(4, ""),
            status(2, "raft: stopped"),
        ] {
            assert_eq!(fault.verdict(Nature::Read), Verdict::Elsewhere, "{fault}");
        }
        for fault in [
            Fault::TooLarge(1 << 30),
            status(11, "etcdserver: mvcc: required revision has been compacted"),
            status(7, ""),
        ] {
            assert_eq!(fault.verdict(Nature::Read), Verdict::Final, "{fault}");
        }
    }

    #[test]
    fn old_tokens_are_told_from_other_refusals() {
        assert!(status(16, "etcdserver: invalid auth token").wants_token());
        assert!(status(3, "etcdserver: revision of auth store is old").wants_token());
        assert!(status(2, "auth: revision in header is old").wants_token());
        assert!(!status(7, "etcdserver: permission denied").wants_token());
        // One that old servers give an uncertain code is certain all the same.
        assert_eq!(status(2, "auth: revision in header is old").verdict(Nature::Change), Verdict::Final);
    }

    #[test]
    fn what_goes_before_a_change_leaves_it_unsent() {
        for fault in [Fault::Lost("cut".to_owned()), status(14, "etcdserver: leader changed")] {
            assert_eq!(fault.before().verdict(Nature::Change), Verdict::Elsewhere);
        }
        assert_eq!(status(7, "etcdserver: permission denied").before().verdict(Nature::Change), Verdict::Final);
    }
}
