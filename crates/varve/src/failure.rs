// SPDX-License-Identifier: Apache-2.0
//! Why a command failed: one sentence or two for the person, and the exit code for the script.

use varve_server::api::ControlError;
use varve_server::api::model::ErrorBody;
use varve_types::ErrorKind;

/// Result of a command.
pub type Result<T> = std::result::Result<T, Failure>;

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// What the process exits with.
    pub exit_code: u8,
    /// What kind it is, where it is one of Varve's.
    pub kind: Option<ErrorKind>,
    /// What was tried, why it failed, and what to do.
    pub message: String,
}

impl Failure {
    /// By its kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { exit_code: kind.exit_code(), kind: Some(kind), message: message.into() }
    }
    /// It was tried and failed here, on the client's side.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { exit_code: 1, kind: None, message: message.into() }
    }
    /// The command was called wrongly.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }
    /// A file or a terminal failed.
    pub fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::StorageFull => ErrorKind::NoSpace,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, format!("{what}: {error}"))
    }
    /// The same, with more said.
    #[must_use]
    pub fn and(mut self, more: &str) -> Self {
        self.message = format!("{}; {more}", self.message);
        self
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::new(error.kind, error.message)
    }
}

impl From<ErrorBody> for Failure {
    /// A kind that this client does not know yet is a plain failure.
    fn from(body: ErrorBody) -> Self {
        match ErrorKind::parse(&body.kind) {
            Some(kind) => Self::new(kind, body.message),
            None => Self::failed(body.message),
        }
    }
}
