// SPDX-License-Identifier: Apache-2.0
//! Who may speak to the API on its TCP port: whoever has the token, and asks under a loopback name.
//!
//! The unix socket has mode 0600 and needs no more. The port is open to every user of the machine and, through their browsers, to every web page
//! that they look at; so each request must carry the token (`Authorization: Bearer …`), and its `Host` must be a loopback name, which a page that
//! rebinds its own name to 127.0.0.1 can not claim. The token lies in a file of mode 0600, made at the first start and never logged.

use super::control::ControlError;
use super::extract::ApiError;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use varve_types::ErrorKind;

const TOKEN_BYTES: usize = 32;

/// The secret of a node's API. Does not print itself.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Reads the token of the file, or makes file and token when there is none.
    ///
    /// # Errors
    /// When the file can not be read or made, others may read it, or what is in it is no token.
    pub fn open(path: &Path) -> Result<Self, ControlError> {
        let fail = |error: std::io::Error| {
            ControlError::new(ErrorKind::Unavailable, format!("the API token {}: {error}", path.display()))
        };
        match path.try_exists() {
            Ok(true) => Self::read(path),
            Ok(false) => Self::create(path).map_err(fail),
            Err(error) => Err(fail(error)),
        }
    }

    /// Under another name first, so that a crash never leaves a file without a token. One process owns the directory.
    fn create(path: &Path) -> std::io::Result<Self> {
        Self::write(path, Self::fresh()?)
    }

    /// The text of a new one.
    pub(crate) fn fresh() -> std::io::Result<String> {
        let mut bytes = [0u8; TOKEN_BYTES];
        getrandom::fill(&mut bytes).map_err(std::io::Error::from)?;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The one of this text.
    pub(crate) fn of(text: &str) -> Self {
        Self(text.into())
    }

    fn write(path: &Path, text: String) -> std::io::Result<Self> {
        let new = path.with_extension("new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != IoKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        Ok(Self(text.into()))
    }

    fn read(path: &Path) -> Result<Self, ControlError> {
        let at = path.display();
        let fail = |error| ControlError::new(ErrorKind::Unavailable, format!("the API token {at}: {error}"));
        let file = File::open(path).map_err(fail)?;
        let mode = file.metadata().map_err(fail)?.permissions().mode();
        if mode & 0o077 != 0 {
            let mode = mode & 0o777;
            return Err(ControlError::invalid(format!("the API token {at} has mode {mode:o}; make it 600")));
        }
        let mut text = String::new();
        file.take(1024).read_to_string(&mut text).map_err(fail)?;
        let text = text.trim_end();
        if !is_token(text) {
            let message = format!("{at} holds no API token (64 hexadecimal digits); delete it and a new one is made");
            return Err(ControlError::invalid(message));
        }
        Ok(Self(text.into()))
    }

    /// Keeps another token in the file, and gives it.
    ///
    /// # Errors
    /// When it is no token, or the file can not be written.
    pub(crate) fn replace(path: &Path, text: &str) -> Result<Self, ControlError> {
        if !is_token(text) {
            return Err(ControlError::new(
                ErrorKind::Corrupt,
                "what is to be the token is none (64 hexadecimal digits)",
            ));
        }
        let fail = |error| ControlError::new(ErrorKind::Unavailable, format!("the token {}: {error}", path.display()));
        Self::write(path, text.to_owned()).map_err(fail)
    }

    /// The secret itself.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// Compares in a time that does not depend on where the two differ.
    pub(crate) fn is(&self, given: &str) -> bool {
        let (own, given) = (self.0.as_bytes(), given.as_bytes());
        if own.len() != given.len() {
            return false;
        }
        let difference = own.iter().zip(given).fold(0u8, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
        difference == 0
    }
}

fn is_token(text: &str) -> bool {
    text.len() == 2 * TOKEN_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether the `Host` of a request is a name of this machine for itself, with any port or none.
fn is_loopback_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) if port.is_empty() || port.starts_with(':') => name,
            _ => return false,
        },
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn check(token: &Token, headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or("");
    if !is_loopback_host(host) {
        let message = format!("the API is asked for under the name {host:?}; it answers to localhost alone");
        return Err(ApiError::with_status(StatusCode::FORBIDDEN, ErrorKind::Invalid, message));
    }
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given =
        given.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match given {
        Some((_, given)) if token.is(given.trim()) => Ok(()),
        Some(_) => Err(unauthorized("the token is not that of this server")),
        None => Err(unauthorized("a token is needed: it is in the file `token` of the server's data directory")),
    }
}

fn unauthorized(message: &str) -> ApiError {
    ApiError::with_status(StatusCode::UNAUTHORIZED, ErrorKind::Invalid, message)
}

/// Lets a request pass that has the token and a loopback name.
pub(super) async fn guard(State(token): State<Token>, request: Request, next: Next) -> Response {
    match check(&token, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => {
            let mut response = error.into_response();
            if response.status() == StatusCode::UNAUTHORIZED {
                let scheme = header::HeaderValue::from_static("Bearer");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            }
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_for_itself_pass() {
        for good in ["localhost", "LocalHost:7420", "127.0.0.1", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:7420"] {
            assert!(is_loopback_host(good), "{good}");
        }
        for bad in
            ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", "[::1", "[::1]x"]
        {
            assert!(!is_loopback_host(bad), "{bad}");
        }
    }

    #[test]
    fn the_token_is_made_once_and_kept_to_oneself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let token = Token::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Token::open(&path).unwrap();
        assert!(token.is(&again.0) && again.0.len() == 64);
        assert!(!token.is("") && !token.is(&"0".repeat(64)));
        assert!(!format!("{token:?}").contains(&*token.0));

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(Token::open(&path).unwrap_err().kind, ErrorKind::Invalid);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "short").unwrap();
        assert_eq!(Token::open(&path).unwrap_err().kind, ErrorKind::Invalid);
    }
}
