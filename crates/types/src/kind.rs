// SPDX-License-Identifier: Apache-2.0
//! The kinds of error: each tells the caller what to do, and maps to what each protocol can say.

use std::fmt;

/// What the caller of a failed operation should do. Every error type of Varve has a `kind()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong and will always be: mend it.
    Invalid,
    /// The thing named is not there.
    NotFound,
    /// The state of the thing does not allow it (it exists, is attached, has dependants): change that first.
    Conflict,
    /// Somebody else owns it now: find the owner.
    Fenced,
    /// A part that is needed does not answer: try later.
    Unavailable,
    /// Too much at once: try again at once, or slower.
    Busy,
    /// Bytes were read that are not what was written. A person is needed; nothing of it was used.
    Corrupt,
    /// A disk, a store or a quota is full.
    NoSpace,
    /// A defect of Varve itself.
    Internal,
}

/// Every kind, for tables and tests.
pub const ALL: [ErrorKind; 9] = [
    ErrorKind::Invalid,
    ErrorKind::NotFound,
    ErrorKind::Conflict,
    ErrorKind::Fenced,
    ErrorKind::Unavailable,
    ErrorKind::Busy,
    ErrorKind::Corrupt,
    ErrorKind::NoSpace,
    ErrorKind::Internal,
];

struct Row {
    text: &'static str,
    nbd: u32,
    http: u16,
    exit: u8,
}

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ESHUTDOWN: u32 = 108;

impl ErrorKind {
    const fn row(self) -> Row {
        const fn row(text: &'static str, nbd: u32, http: u16, exit: u8) -> Row {
            Row { text, nbd, http, exit }
        }
        match self {
            Self::Invalid => row("invalid", EINVAL, 400, 2),
            Self::NotFound => row("not-found", EINVAL, 404, 3),
            Self::Conflict => row("conflict", EPERM, 409, 4),
            Self::Fenced => row("fenced", ESHUTDOWN, 421, 4),
            Self::Unavailable => row("unavailable", EIO, 503, 5),
            Self::Busy => row("busy", EIO, 429, 5),
            Self::Corrupt => row("corrupt", EIO, 500, 1),
            Self::NoSpace => row("no-space", ENOSPC, 507, 1),
            Self::Internal => row("internal", EIO, 500, 1),
        }
    }
    /// The word for it in JSON and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.row().text
    }
    /// The kind whose word is `text`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        ALL.into_iter().find(|kind| kind.as_str() == text)
    }
    /// The error number of the NBD protocol ("Error values" in its specification; they equal Linux's errno).
    #[must_use]
    pub const fn nbd(self) -> u32 {
        self.row().nbd
    }
    /// The status code of the HTTP API.
    #[must_use]
    pub const fn http(self) -> u16 {
        self.row().http
    }
    /// The exit code of the command line.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        self.row().exit
    }
}

/// An error of a part of Varve that the parts above pass on, with its kind, in errors of their own.
pub trait Kinded: std::error::Error + Send + Sync + 'static {
    /// What the caller should do.
    fn kind(&self) -> ErrorKind;
    /// Its text for those who do not know which part it comes from.
    fn passed_on(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_says_what_each_protocol_can_say() {
        let rows: Vec<_> = ALL.iter().map(|k| (k.as_str(), k.nbd(), k.http(), k.exit_code())).collect();
        assert_eq!(
            rows,
            [
                ("invalid", 22, 400, 2),
                ("not-found", 22, 404, 3),
                ("conflict", 1, 409, 4),
                ("fenced", 108, 421, 4),
                ("unavailable", 5, 503, 5),
                ("busy", 5, 429, 5),
                ("corrupt", 5, 500, 1),
                ("no-space", 28, 507, 1),
                ("internal", 5, 500, 1),
            ]
        );
        assert!(ALL.iter().all(|k| ErrorKind::parse(k.as_str()) == Some(*k)));
    }
}
