// SPDX-License-Identifier: Apache-2.0
//! The archive that a kernel unpacks as its first root: cpio in the "newc" form.
//!
//! The format is in the kernel's `driver-api/early-userspace/buffer-format`: for each entry a header of "070701" and thirteen
//! numbers of eight hex digits, the name with a NUL, the contents; name and contents are padded to four bytes each,
//! and an entry named `TRAILER!!!` ends the archive. The kernel makes no parent directories, so the writer does,
//! before the first entry that needs them. Everything belongs to root and was made at time 0, so that the same
//! entries give the same bytes. Written once, to a file of a test; a half-written one is never used.

use std::collections::BTreeSet;
use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// Writes entries to `out`. [`Archive::finish`] has to be called at the end, or the archive has no trailer.
pub(super) struct Archive<W> {
    out: W,
    /// The number of the last entry; every entry gets its own, so that none looks like a hard link of another.
    inode: u32,
    /// Names that are in the archive; a second entry of one name is refused.
    names: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub(super) fn new(out: W) -> Self {
        Self { out, inode: 0, names: BTreeSet::new() }
    }

    /// True when there is an entry of that name already.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.names.contains(clean(name))
    }

    /// A directory with its parents; nothing when it is there.
    pub(super) fn directory(&mut self, name: &str) -> io::Result<()> {
        let name = clean(name);
        if name.is_empty() || self.names.contains(name) {
            return Ok(());
        }
        self.parents(name)?;
        self.entry(name, DIRECTORY | 0o755, &[])
    }

    /// A regular file with its parents; `mode` is the permission bits.
    pub(super) fn file(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.parents(clean(name))?;
        self.entry(clean(name), FILE | (mode & 0o7777), contents)
    }

    /// Writes the trailer and gives the writer back.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, name: &str) -> io::Result<()> {
        match name.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        if name.is_empty() || !self.names.insert(name.to_owned()) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name:?} is in the archive already")));
        }
        let size = u32::try_from(contents.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{name}: over 4 GiB")))?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        self.inode += 1;
        // inode, mode, uid, gid, links, mtime, size, device major and minor, special file's major and minor, name size, check.
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        // The header is 110 bytes, so the name is padded to a multiple of four from there.
        let header_size = 110 + name.len() + 1;
        self.out.write_all(&[0; 4][..1 + header_size.next_multiple_of(4) - header_size])?;
        self.out.write_all(contents)?;
        self.out.write_all(&[0; 4][..contents.len().next_multiple_of(4) - contents.len()])
    }
}

/// Names in the archive have no leading slash.
fn clean(name: &str) -> &str {
    name.trim_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_have_their_parents() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/etc/lab/name", 0o644, b"12345").unwrap();
        archive.file("/bin/sh", 0o755, b"").unwrap();
        assert!(archive.contains("etc/lab") && archive.contains("/bin"));
        let bytes = archive.finish().unwrap();
        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let hex = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                usize::from_str_radix(hex, 16).unwrap()
            };
            let name = &bytes[at + 110..at + 110 + field(11) - 1];
            names.push(String::from_utf8(name.to_vec()).unwrap());
            let contents = (at + 110 + field(11)).next_multiple_of(4);
            if names.last().unwrap() == "etc/lab/name" {
                assert_eq!(&bytes[contents..contents + field(6)], b"12345");
            }
            at = (contents + field(6)).next_multiple_of(4);
        }
        assert_eq!(names, ["etc", "etc/lab", "etc/lab/name", "bin", "bin/sh", "TRAILER!!!"]);
    }

    #[test]
    fn a_name_is_taken_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file("a", 0o644, b"1").unwrap();
        assert_eq!(archive.file("/a", 0o644, b"2").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
