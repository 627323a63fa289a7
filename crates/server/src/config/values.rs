// SPDX-License-Identifier: Apache-2.0
//! The values of the configuration that have a text form of their own: sizes, durations, addresses, volumes.
//!
//! Each is parsed by one [`FromStr`], which the file and the flags share, and refuses what it does not take with what it would.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;
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

/// How is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}
