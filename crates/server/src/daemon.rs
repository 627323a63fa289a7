// SPDX-License-Identifier: Apache-2.0
//! What every long-lived process of Varve does the same way: how it logs, how it is told to stop, and what it tells systemd.
//!
//! systemd starts a service with the path of a socket in `NOTIFY_SOCKET` and takes datagrams there (`sd_notify(3)`): `READY=1`, `STOPPING=1`, and, where it
//! wants them, `WATCHDOG=1` at least every `WATCHDOG_USEC` microseconds, or it kills the service. Without these variables nothing is told to anybody.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use varve_config::LogFormat;
pub use varve_serve::stopped;

/// Logs to standard error.
///
/// # Errors
/// What is wrong with the level, for people.
pub fn log(level: &str, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::try_new(level).map_err(|error| format!("log-level {level:?}: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = match format {
        LogFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(colours).try_init()
        }
        LogFormat::Json => builder.json().try_init(),
    };
    set.map_err(|error| format!("logging can not be set up: {error}"))
}

/// The way to systemd, where it started this process.
#[derive(Debug)]
pub struct Systemd {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

impl Systemd {
    /// What the environment says of it; none where it says nothing.
    ///
    /// # Errors
    /// When there is something and it can not be used.
    pub fn from_env() -> std::io::Result<Option<Self>> {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return Ok(None) };
        let is_for_us = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let watchdog = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        let watchdog = watchdog.filter(|micros| is_for_us && *micros > 0).map(Duration::from_micros);
        Self::open(path.as_bytes(), watchdog).map(Some)
    }

    fn open(path: &[u8], watchdog: Option<Duration>) -> std::io::Result<Self> {
        let address = match path.split_first() {
            Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(std::path::Path::new(std::ffi::OsStr::from_bytes(path)))?,
        };
        Ok(Self { socket: UnixDatagram::unbound()?, address, watchdog })
    }

    /// How often it wants to hear that the process works.
    #[must_use]
    pub const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Tells it something. What it does not take is logged: the service goes on.
    pub fn tell(&self, state: &str) {
        if let Err(error) = self.socket.send_to_addr(state.as_bytes(), &self.address) {
            tracing::warn!(%error, state, "systemd can not be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    #[test]
    fn systemd_hears_what_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let systemd = Systemd::open(path.as_os_str().as_bytes(), Some(Duration::from_secs(1))).unwrap();
        systemd.tell("READY=1");
        assert_eq!(heard(&socket), "READY=1");
        // A name that is no path.
        let name = format!("varve-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Systemd::open(format!("@{name}").as_bytes(), None).unwrap().tell("STOPPING=1");
        assert_eq!(heard(&socket), "STOPPING=1");
    }
}
