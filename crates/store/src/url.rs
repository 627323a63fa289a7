// SPDX-License-Identifier: Apache-2.0
//! The address of a store, as people write it and as it is recorded.
//!
//! Two forms: `file:///absolute/dir`, and `s3://bucket/prefix?endpoint=http://host:port&region=R&path-style=true&credentials=FILE`, where
//! all after the bucket may be left out. Spaces and the like are written `%20`. A secret never stands in it (user names and passwords
//! are refused), so an address can be shown, logged and recorded; [`Display`](fmt::Display) gives the form that [`StoreUrl::parse`]
//! reads back to the same value.

use crate::{error, invalid};
use std::fmt;
use std::path::{Path, PathBuf};
use varve_env::{StoreError, StoreErrorKind};

/// Where a pool's objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// A directory.
    File {
        /// Its absolute path, without `.` and `..`.
        path: PathBuf,
    },
    /// A bucket, or a part of one.
    S3(S3Url),
}

/// Where in S3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Url {
    /// The bucket's name.
    pub bucket: String,
    /// What the names of all objects begin with, without `/` at either end; may be empty.
    pub prefix: String,
    /// The server, `http://host:port` or `https://…`; without it, that of Amazon for the region.
    pub endpoint: Option<String>,
    /// The region; without it, `AWS_REGION`, `AWS_DEFAULT_REGION`, else `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket stands in the path (`host/bucket`) rather than in the host's name (`bucket.host`).
    pub path_style: bool,
    /// A credentials file (the ini form of Amazon's tools), used instead of the environment.
    pub credentials: Option<PathBuf>,
}

impl StoreUrl {
    /// Reads an address.
    ///
    /// # Errors
    /// `Invalid`, saying what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let parsed = match text.split_once("://") {
            Some(("file", rest)) => parse_file(rest),
            Some(("s3", rest)) => parse_s3(rest),
            Some((scheme, _)) => {
                Err(format!("`{scheme}` is no kind of store; there are file:///dir and s3://bucket/prefix"))
            }
            None => Err("an address begins with file:/// or s3://".to_owned()),
        };
        parsed.map_err(|message| invalid("open", shown(text), message))
    }
}

/// The address without what may be a password, for an error about it.
fn shown(text: &str) -> String {
    text.split_once('@').map_or_else(|| text.to_owned(), |(_, rest)| format!("…@{rest}"))
}

fn parse_file(rest: &str) -> Result<StoreUrl, String> {
    if rest.contains(['?', '#']) {
        return Err("a directory has no options (write %3F for a question mark, %23 for #)".to_owned());
    }
    if !rest.starts_with('/') {
        return Err("the path must be absolute: three slashes, as in file:///var/lib/varve".to_owned());
    }
    let path = decode(rest)?;
    if path.contains('\0') || path.split('/').any(|part| matches!(part, "." | "..")) {
        return Err("the path must not contain `.` or `..` parts or zero bytes".to_owned());
    }
    // Joined from its parts, so that two ways to write one path are equal.
    let parts = path.split('/').filter(|part| !part.is_empty());
    let path = parts.fold(PathBuf::from("/"), |path, part| path.join(part));
    if path == Path::new("/") {
        return Err("the root directory cannot be a store".to_owned());
    }
    Ok(StoreUrl::File { path })
}

fn parse_s3(rest: &str) -> Result<StoreUrl, String> {
    if rest.contains('#') {
        return Err("an address has no part after `#`".to_owned());
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    check_bucket(bucket)?;
    let prefix = prefix.trim_end_matches('/');
    let legal = |part: &str| {
        let byte = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        !matches!(part, "" | "." | "..") && part.bytes().all(byte)
    };
    if prefix.len() > 256 || !(prefix.is_empty() || prefix.split('/').all(legal)) {
        return Err("a prefix is made of letters, digits, `-`, `.`, `_` and single `/`, at most 256 bytes".to_owned());
    }
    let mut url = S3Url {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: None,
        region: None,
        path_style: false,
        credentials: None,
    };
    let mut path_style = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("`{pair}` has no value"))?;
        let value = decode(value)?;
        let twice = match key {
            "endpoint" => url.endpoint.replace(check_endpoint(&value)?).is_some(),
            "region" => url.region.replace(check_region(value)?).is_some(),
            "path-style" => path_style.replace(parse_bool(&value)?).is_some(),
            "credentials" => url.credentials.replace(check_credentials(value)?).is_some(),
            _ => return Err(format!("`{key}` is no option; there are endpoint, region, path-style and credentials")),
        };
        if twice {
            return Err(format!("`{key}` is given twice"));
        }
    }
    // A server of one's own seldom has a name for each bucket.
    url.path_style = path_style.unwrap_or(url.endpoint.is_some());
    Ok(StoreUrl::S3(url))
}

fn check_bucket(bucket: &str) -> Result<(), String> {
    if bucket.is_empty() {
        return Err("the bucket is missing: s3://bucket/prefix".to_owned());
    }
    if bucket.contains(['@', ':']) {
        return Err(
            "credentials and ports do not belong here: use the environment (or credentials=FILE) and endpoint=…"
                .to_owned(),
        );
    }
    let byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(byte) || bucket.contains("..") {
        return Err(format!("`{bucket}` cannot be a bucket: 3 to 63 of a-z, 0-9, `-` and `.`"));
    }
    Ok(())
}

fn check_endpoint(value: &str) -> Result<String, String> {
    let rest = value.strip_prefix("http://").or_else(|| value.strip_prefix("https://"));
    let Some(rest) = rest else {
        return Err(format!("the endpoint `{}` must begin with http:// or https://", shown(value)));
    };
    let byte = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]/".contains(&b);
    let rest = rest.trim_end_matches('/');
    if rest.contains('@') {
        return Err("credentials do not belong into the endpoint: use the environment or credentials=FILE".to_owned());
    }
    if rest.is_empty() || rest.starts_with(['/', ':']) || !rest.bytes().all(byte) {
        return Err(format!("the endpoint `{value}` is not http://host:port"));
    }
    Ok(value.trim_end_matches('/').to_owned())
}

fn check_region(value: String) -> Result<String, String> {
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
        return Err(format!("`{value}` cannot be a region"));
    }
    Ok(value)
}

fn check_credentials(value: String) -> Result<PathBuf, String> {
    if !value.starts_with('/') || value.contains('\0') {
        return Err(format!("the credentials file `{value}` must have an absolute path"));
    }
    Ok(PathBuf::from(value))
}

fn parse_bool(value: &str) -> Result<bool, String> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("path-style is true or false, not `{value}`")),
    }
}

/// Undoes `%XX`.
fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |digit: Option<u8>| digit.and_then(|digit| char::from(digit).to_digit(16));
        let value = digit(rest.next()).zip(digit(rest.next())).map(|(high, low)| high * 16 + low);
        let value = value.and_then(|value| u8::try_from(value).ok());
        bytes.push(value.ok_or_else(|| format!("in `{text}`, % is not followed by two hexadecimal digits"))?);
    }
    String::from_utf8(bytes).map_err(|_| format!("`{text}` is not UTF-8"))
}

/// Writes `text` so that [`decode`] gives it back and no separator of an address is left in it.
fn encode(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:[]".contains(&byte) {
            write!(f, "{}", char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path } => {
                f.write_str("file://")?;
                encode(f, &path.to_string_lossy())
            }
            Self::S3(url) => write!(f, "{url}"),
        }
    }
}

impl fmt::Display for S3Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        let mut mark = '?';
        let mut option = |f: &mut fmt::Formatter<'_>, key: &str, value: &str| {
            write!(f, "{}{key}=", std::mem::replace(&mut mark, '&'))?;
            encode(f, value)
        };
        if let Some(endpoint) = &self.endpoint {
            option(f, "endpoint", endpoint)?;
        }
        if let Some(region) = &self.region {
            option(f, "region", region)?;
        }
        if self.path_style != self.endpoint.is_some() {
            option(f, "path-style", if self.path_style { "true" } else { "false" })?;
        }
        if let Some(path) = &self.credentials {
            option(f, "credentials", &path.to_string_lossy())?;
        }
        Ok(())
    }
}

impl std::str::FromStr for StoreUrl {
    type Err = StoreError;
    fn from_str(text: &str) -> Result<Self, StoreError> {
        Self::parse(text)
    }
}

impl TryFrom<&Path> for StoreUrl {
    type Error = StoreError;
    /// The address of a directory, whose path must be absolute and UTF-8.
    fn try_from(path: &Path) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        let Some(text) = path.to_str() else {
            return Err(error(StoreErrorKind::Invalid, "open", shown, "the path is not UTF-8"));
        };
        parse_file(&text.replace('%', "%25").replace('?', "%3F").replace('#', "%23"))
            .map_err(|message| invalid("open", shown, message))
    }
}

#[cfg(test)]
#[path = "url_tests.rs"]
mod tests;
