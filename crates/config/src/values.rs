// SPDX-License-Identifier: Apache-2.0
//! The values of the configuration that have a text form of their own: sizes, durations, addresses, volumes, cache devices, journals.
//!
//! Each is parsed by one [`FromStr`], which the file and the flags share, and refuses what it does not take with what it would.
//!
//! What is parsed is a good value by itself; how values go together is checked with the whole configuration.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use varve_types::{Name, Overrides, Settings, format_size, parse_size, parse_volume_size};

macro_rules! text_form {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}

/// A size, such as `256M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Bytes(pub u64);

text_form!(Bytes);
impl FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse_size(text).map(Self).map_err(|error| error.to_string())
    }
}
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_size(self.0))
    }
}

/// A duration in milliseconds, written such as `10s`, `5m`, `1h`, `2d`. Parsed as the setting `undelete-window`, whose value it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Duration(pub u64);

text_form!(Duration);
impl FromStr for Duration {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut settings = Overrides::default();
        settings.set("undelete-window", text).map_err(|error| error.to_string())?;
        Ok(Self(settings.undelete_window_ms.unwrap_or(Settings::default().undelete_window_ms)))
    }
}
impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

/// Where to listen: an address with a port, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Listen(pub Option<SocketAddr>);

text_form!(Listen);
impl FromStr for Listen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let address =
            text.parse().map_err(|_| format!("{text:?} is not ADDRESS:PORT, such as 127.0.0.1:7420, or none"));
        address.map(|address| Self(Some(address)))
    }
}
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// A volume to be there: `NAME:SIZE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct VolumeSpec {
    /// Its name.
    pub name: Name,
    /// Its size, by the rules of volumes.
    pub size_bytes: u64,
}

text_form!(VolumeSpec);
impl FromStr for VolumeSpec {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, size) =
            text.split_once(':').ok_or_else(|| format!("{text:?} is not NAME:SIZE, such as disk1:10G"))?;
        let name = name.parse().map_err(|error: varve_types::NameError| error.to_string())?;
        let size_bytes = parse_volume_size(size).map_err(|error| error.to_string())?;
        Ok(Self { name, size_bytes })
    }
}
impl fmt::Display for VolumeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.size_bytes)
    }
}

/// A journal: `PATH:SIZE` for a file, `PATH` for a block device, or a file that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct JournalSpec {
    /// The file or block device.
    pub path: PathBuf,
    /// The size of the file, where it is made.
    pub size_bytes: Option<u64>,
}

/// Least and most bytes of a journal.
const JOURNAL: std::ops::RangeInclusive<u64> = 64 << 20..=1 << 40;

text_form!(JournalSpec);
impl FromStr for JournalSpec {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, size_bytes) = path_and_size(text, "/ssd/varve.journal:8G")?;
        if size_bytes.is_some_and(|size| !JOURNAL.contains(&size)) {
            return Err(format!("{text:?}: a journal has 64 MiB to 1 TiB"));
        }
        Ok(Self { path, size_bytes })
    }
}
impl fmt::Display for JournalSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.size_bytes.map_or(Ok(()), |size| write!(f, ":{size}"))
    }
}

/// An absolute path, and the size behind it.
fn path_and_size(text: &str, example: &str) -> Result<(PathBuf, Option<u64>), String> {
    let (path, size) = match text.rsplit_once(':') {
        Some((path, size)) => (path, Some(varve_types::parse_size(size).map_err(|error| error.to_string())?)),
        None => (text, None),
    };
    if !path.starts_with('/') || path.contains(char::is_control) {
        return Err(format!("{text:?} is not an absolute PATH:SIZE, such as {example}"));
    }
    Ok((PathBuf::from(path), size))
}

/// A device of the read cache: `PATH:SIZE` for a file, `PATH` for a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CacheSpec {
    /// The file or block device.
    pub path: PathBuf,
    /// The size of the file; `None` for a block device.
    pub size_bytes: Option<u64>,
}

/// Least and most bytes of the file of a cache.
const CACHE_FILE: std::ops::RangeInclusive<u64> = 64 << 20..=16 << 40;

text_form!(CacheSpec);
impl FromStr for CacheSpec {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, size_bytes) = path_and_size(text, "/var/cache/varve:100G")?;
        if size_bytes.is_some_and(|size| !CACHE_FILE.contains(&size)) {
            return Err(format!("{text:?}: the file of a cache has 64 MiB to 16 TiB"));
        }
        Ok(Self { path, size_bytes })
    }
}
impl fmt::Display for CacheSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.size_bytes.map_or(Ok(()), |size| write!(f, ":{size}"))
    }
}

/// How is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}
