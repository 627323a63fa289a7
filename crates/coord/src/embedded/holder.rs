// SPDX-License-Identifier: Apache-2.0
//! Who has a file locked, as the kernel tells in `/proc/locks`: for the error message alone, never for a decision.
//!
//! Nothing of our own is kept for it, so nothing can be stale: a holder that died holds no lock.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Most bytes of the table that are looked at.
const MOST: u64 = 4 << 20;

/// The process that has a whole-file lock on the file, if the kernel tells us.
pub(super) fn pid(path: &Path) -> Option<u32> {
    let file = std::fs::metadata(path).ok()?;
    let mut table = String::new();
    std::fs::File::open("/proc/locks").ok()?.take(MOST).read_to_string(&mut table).ok()?;
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    find(&table, &format!("{major:02x}:{minor:02x}:{}", file.ino()))
}

/// `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`: the process of the line about `file`. A waiting lock has `->` behind its number.
fn find(table: &str, file: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        if words.next()? != "FLOCK" {
            return None; // Locks of byte ranges belong to open files, which have no process.
        }
        let pid = words.nth(2)?.parse().ok()?;
        (words.next()? == file && pid != 0).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn finds_the_holder_of_the_file_asked_for() {
        let table = "1: OFDLCK ADVISORY  WRITE -1 08:01:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 41 08:01:78 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 43 08:01:77 0 EOF\n3: FLOCK  ADVISORY  WRITE 42 08:01:77 0 EOF\nnonsense\n";
        assert_eq!(find(table, "08:01:77"), Some(42));
        assert_eq!(find(table, "08:01:78"), Some(41));
        assert_eq!(find(table, "08:02:77"), None);
        assert_eq!(find("1: FLOCK  ADVISORY  WRITE 0 08:01:77 0 EOF", "08:01:77"), None);
    }
}
