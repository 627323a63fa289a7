// SPDX-License-Identifier: Apache-2.0
//! What a name of an object may look like.
//!
//! A name is one or more parts joined by `/`; a part is made of `a-z 0-9 - .` and is neither empty nor `.` nor `..`. So a name cannot
//! leave the directory it is joined to, needs no escaping in a URL, means the same on a file system without regard to case, and can
//! never be that of the directory store's area for temporary files, which begins with `_`. Every store checks every name and prefix it
//! is given before it does anything with it.

use crate::invalid;
use varve_env::StoreError;

/// The longest name, in bytes. With a pool's prefix it stays below the 1,024 of S3.
pub const NAME_MAX_BYTES: usize = 512;
/// The longest part of a name between two `/`, in bytes. File systems allow 255.
const PART_MAX_BYTES: usize = 200;
/// The most parts a name has; bounds how deep directories are walked.
pub(crate) const PARTS_MAX: usize = 16;
/// The most objects a listing returns in one call.
pub const LIST_MAX: usize = 1000;

/// Checks a name of an object.
///
/// # Errors
/// `Invalid`, naming `operation`, when it is none.
pub fn check_name(operation: &'static str, name: &str) -> Result<(), StoreError> {
    if is_name(name) { Ok(()) } else { Err(invalid(operation, name, "this is not a name of an object")) }
}

/// Checks the beginning of names: nothing, or a name whose last part may be unfinished or missing.
///
/// # Errors
/// `Invalid`, naming `operation`, when no name can begin so.
pub fn check_prefix(operation: &'static str, prefix: &str) -> Result<(), StoreError> {
    let (dir, part) = prefix.rsplit_once('/').map_or((None, prefix), |(dir, part)| (Some(dir), part));
    let legal = dir.is_none_or(is_name) && part.len() <= PART_MAX_BYTES && part.bytes().all(is_legal);
    if legal { Ok(()) } else { Err(invalid(operation, prefix, "no object's name can begin like this")) }
}

pub(crate) fn is_name(name: &str) -> bool {
    name.len() <= NAME_MAX_BYTES && name.split('/').count() <= PARTS_MAX && name.split('/').all(is_part)
}

/// Whether it can stand between two `/`.
pub(crate) fn is_part(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && part.len() <= PART_MAX_BYTES && part.bytes().all(is_legal)
}

const fn is_legal(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_directory() {
        for name in ["a", "a/b", "0/1-2.3", "...", "a/.b"] {
            assert!(check_name("get", name).is_ok(), "{name}");
        }
        let (long, deep, wide) = ("a".repeat(201), vec!["a"; 17].join("/"), vec!["a".repeat(60); 9].join("/"));
        for name in [
            "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "A", "a_b", "a b", "a\0", "ä", "a%2fb", &long,
            &deep, &wide,
        ] {
            assert!(check_name("get", name).is_err(), "{name}");
        }
    }

    #[test]
    fn prefixes_may_end_anywhere() {
        for prefix in ["", "a", "a/", "a/b", "a/b/", "."] {
            assert!(check_prefix("list", prefix).is_ok(), "{prefix}");
        }
        for prefix in ["/", "/a", "a//", "../", "a/../", "A", "a/_"] {
            assert!(check_prefix("list", prefix).is_err(), "{prefix}");
        }
    }
}
