// SPDX-License-Identifier: Apache-2.0
//! Names of volumes, snapshots and pools.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest name, in bytes.
const MAX_NAME: usize = 63;

/// A valid name: 1–63 of a–z, A–Z, 0–9, `.`, `_`, `-`, beginning with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Name(String);

/// A text that is not a name, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a name: {reason}")]
pub struct NameError {
    text: String,
    reason: &'static str,
}

impl Name {
    /// The text of the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let fail = |reason| Err(NameError { text: text.chars().take(80).collect(), reason });
        if text.is_empty() {
            return fail("it is empty");
        }
        if text.len() > MAX_NAME {
            return fail("it is longer than 63 bytes");
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return fail("it must begin with a letter or a digit");
        }
        if !text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')) {
            return fail("only a-z, A-Z, 0-9, '.', '_' and '-' may stand in it");
        }
        Ok(Self(text.to_owned()))
    }
}
impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}
impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_good_names_and_refuses_odd_ones() {
        for good in ["a", "9", "vm-1.root_disk", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "a@b", "é", "a\0", "a\n", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }
}
