// SPDX-License-Identifier: Apache-2.0
//! Who is at the other end of a connection: for lists of who is attached, and for the warning when a second client comes to a volume.
//!
//! One client may open several connections, so what makes two connections the same client is wider than a connection: on a unix socket the
//! process group of the peer (credentials that the kernel vouches for, taken when it connected), on TCP the address without its port. This
//! tells clients apart for people; it grants nothing.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// What makes connections the same client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Client {
    /// A process group of this host.
    ProcessGroup(i32),
    /// A host.
    Host(IpAddr),
    /// Not known: a process that the kernel can not name here.
    Unknown,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    client: Client,
    /// The process of a unix peer and the name of its program, as far as they are known.
    process: Option<(i32, String)>,
    /// The address of a TCP peer.
    address: Option<SocketAddr>,
}

impl Peer {
    /// The peer of a TCP connection.
    #[must_use]
    pub fn tcp(address: SocketAddr) -> Self {
        let ip = address.ip().to_canonical();
        Self { client: Client::Host(ip), process: None, address: Some(SocketAddr::new(ip, address.port())) }
    }

    /// The peer of a unix connection, from the process id in its credentials. A process that is gone by now is a group of its own.
    #[must_use]
    pub fn unix(pid: Option<i32>) -> Self {
        let Some(pid) = pid.filter(|pid| *pid > 0) else {
            return Self { client: Client::Unknown, process: None, address: None };
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let (program, group) = parse_stat(&stat).unwrap_or(("", pid));
        let program = program.chars().flat_map(char::escape_default).collect();
        Self { client: Client::ProcessGroup(group), process: Some((pid, program)), address: None }
    }

    /// Which client this is.
    #[must_use]
    pub const fn client(&self) -> Client {
        self.client
    }

    /// The address of a TCP peer.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

/// The program's name and its process group, of `/proc/PID/stat`: `pid (name) state parent group …`, where the name may hold anything.
fn parse_stat(stat: &str) -> Option<(&str, i32)> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let group = tail.split_ascii_whitespace().nth(2)?.parse().ok()?;
    Some((name, group))
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProcessGroup(group) => write!(f, "process group {group}"),
            Self::Host(ip) => write!(f, "{ip}"),
            Self::Unknown => f.write_str("a process not known"),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.process, self.address) {
            (Some((pid, program)), _) if program.is_empty() => write!(f, "process {pid}, {}", self.client),
            (Some((pid, program)), _) => write!(f, "{program} (process {pid}, {})", self.client),
            (None, Some(address)) => write!(f, "{address}"),
            (None, None) => write!(f, "{}", self.client),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        assert_eq!(parse_stat("12 (fio) S 1 77 5 0"), Some(("fio", 77)));
        assert_eq!(parse_stat("12 (a) b (c) S 1 77 5 0"), Some(("a) b (c", 77)));
        for bad in ["", "12", "12 (fio", "12 (fio) S 1", "12 (fio) S 1 x"] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_process_is_found_and_one_that_is_gone_is_still_a_client() {
        let pid = std::process::id() as i32;
        let peer = Peer::unix(Some(pid));
        let group = rustix::process::getpgrp().as_raw_nonzero().get();
        assert_eq!(peer.client(), Client::ProcessGroup(group));
        assert!(peer.to_string().contains(&format!("(process {pid}, process group {group})")), "{peer}");
        assert_eq!(Peer::unix(Some(i32::MAX)).client(), Client::ProcessGroup(i32::MAX));
        assert_eq!(Peer::unix(None).client(), Client::Unknown);
    }

    #[test]
    fn a_host_is_the_same_client_from_every_port() {
        let (a, b) = (Peer::tcp("10.0.0.1:5".parse().unwrap()), Peer::tcp("[::ffff:10.0.0.1]:6".parse().unwrap()));
        assert_eq!(a.client(), b.client());
        assert_eq!((a.to_string(), b.to_string()), ("10.0.0.1:5".to_owned(), "10.0.0.1:6".to_owned()));
    }
}
