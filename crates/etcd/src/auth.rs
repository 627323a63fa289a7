// SPDX-License-Identifier: Apache-2.0
//! The token that stands for the user and password in every request.
//!
//! One is had by `Authenticate` before the first request, is kept for all connections, and is renewed when etcd says that it is over: it has a time to
//! live, and ends when users or roles are changed. Whoever finds it over first renews it, the others wait and take the new one. An etcd that has
//! authentication disabled is served without, and that is told once.

use crate::config::User;
use crate::fault::{Code, Fault};
use crate::grpc::Caller;
use crate::proto::{AUTHENTICATE, AuthenticateRequest, AuthenticateResponse};
use hyper::header::HeaderValue;
use std::path::Path;
use std::time::Duration;
use tokio::sync::Mutex;

/// Largest file of a password that is read.
const MAX_PASSWORD_BYTES: u64 = 4096;

pub(crate) struct Auth {
    user: Option<User>,
    current: Mutex<Current>,
}

/// What is known of the token.
enum Current {
    NeverAsked,
    Token(HeaderValue),
    /// Authentication is disabled.
    Off,
}

impl Current {
    fn token(&self) -> Option<&HeaderValue> {
        match self {
            Self::Token(token) => Some(token),
            Self::NeverAsked | Self::Off => None,
        }
    }
}

impl Auth {
    pub(crate) fn new(user: Option<User>) -> Self {
        Self { user, current: Mutex::new(Current::NeverAsked) }
    }

    /// Whether there is a user, so that a token can be had.
    pub(crate) fn is_used(&self) -> bool {
        self.user.is_some()
    }

    /// The token for a request on this connection; `None` without a user, and where authentication is disabled.
    pub(crate) async fn token(&self, caller: &Caller, timeout: Duration) -> Result<Option<HeaderValue>, Fault> {
        let Some(user) = &self.user else { return Ok(None) };
        let mut current = self.current.lock().await;
        if matches!(*current, Current::NeverAsked) {
            *current = authenticate(user, caller, timeout).await?;
        }
        Ok(current.token().cloned())
    }

    /// Another token than `old`, which etcd no longer takes.
    pub(crate) async fn renew(
        &self,
        caller: &Caller,
        old: Option<&HeaderValue>,
        timeout: Duration,
    ) -> Result<Option<HeaderValue>, Fault> {
        let Some(user) = &self.user else { return Ok(None) };
        let mut current = self.current.lock().await;
        if current.token() == old {
            *current = authenticate(user, caller, timeout).await?;
        }
        Ok(current.token().cloned())
    }
}

async fn authenticate(user: &User, caller: &Caller, timeout: Duration) -> Result<Current, Fault> {
    let file = user.password_file.clone();
    let password = tokio::task::spawn_blocking(move || read_password(&file)).await;
    let password = password.map_err(|ended| Fault::NotSent(format!("reading the password ended early: {ended}")))??;
    let request = AuthenticateRequest { name: user.name.clone(), password };
    let answer: Result<AuthenticateResponse, Fault> = caller.unary(AUTHENTICATE, None, &request, timeout).await;
    match answer {
        Ok(answer) => HeaderValue::from_str(&answer.token)
            .map(|mut token| {
                token.set_sensitive(true);
                Current::Token(token)
            })
            .map_err(|_| Fault::Foreign("its token is no text".to_owned())),
        Err(Fault::Status(status)) if status.message.contains("authentication is not enabled") => {
            tracing::warn!(user = %user.name, "etcd has authentication disabled: whoever reaches it reads and changes everything");
            Ok(Current::Off)
        }
        Err(Fault::Status(status)) if matches!(status.code, Code::InvalidArgument | Code::Unauthenticated) => {
            Err(Fault::Misconfigured(format!(
                "it does not take the user {} with the password in {} ({status})",
                user.name,
                user.password_file.display()
            )))
        }
        Err(fault) => Err(fault),
    }
}

/// The first line of the file.
fn read_password(file: &Path) -> Result<String, Fault> {
    let wrong =
        |reason: &dyn std::fmt::Display| Fault::Misconfigured(format!("password file {}: {reason}", file.display()));
    let size = std::fs::metadata(file).map_err(|error| wrong(&error))?.len();
    if size > MAX_PASSWORD_BYTES {
        return Err(wrong(&"it is too large for what it should be"));
    }
    let text = std::fs::read_to_string(file).map_err(|error| wrong(&error))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(wrong(&"its first line is empty")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            read_password(&file)
        };
        assert_eq!(read("pass word\n").unwrap(), "pass word");
        assert_eq!(read("secret\r\nmore").unwrap(), "secret");
        for wrong in ["", "\nsecret", &"x".repeat(5000)] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("password") && !error.contains("secret"), "{error}");
        }
        assert!(matches!(read_password(Path::new("/no/such/file")), Err(Fault::Misconfigured(_))));
    }
}
