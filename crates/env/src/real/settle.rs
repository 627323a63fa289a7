// SPDX-License-Identifier: Apache-2.0
//! What memory shows of a file, against what its device holds.
//!
//! When writing pages back fails, Linux tells it once, to those who have the file open, and takes the pages for clean: reads go on showing them, no later
//! sync writes them, and the loss of power loses them (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). A process that
//! starts behind such a failure cannot ask for it. So it compares: a read through the page cache gives what memory has, a direct read what the
//! device has once everything dirty is written back. Where the two differ, what memory shows is written again, which makes it dirty.
//!
//! Nothing else is written: what lies on the device already is not put at risk. Where direct reads are refused (a file system in RAM), all of it is.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// What is compared and written: a page, to whose multiples direct reads are bound too.
const PAGE: usize = 4096;
/// Bytes read at a time.
const WINDOW: usize = 1 << 20;

/// Writes again what memory shows of the ranges of a file of `len` bytes and the device does not hold. Gives how many bytes that was. The caller syncs.
pub(super) fn settle(file: &File, len: u64, ranges: &[Range<u64>]) -> io::Result<u64> {
    let direct = open_direct(file);
    let device =
        |buffer: &mut [u8], at| direct.as_ref().and_then(|direct| direct.read_at(buffer, at).ok()).unwrap_or(0);
    settle_with(file, len, ranges, device)
}

/// The same file, past the page cache; `None` where that is refused.
fn open_direct(file: &File) -> Option<File> {
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

/// `device` reads into an aligned buffer what the device holds at an aligned place, and tells how many bytes it got.
fn settle_with(
    file: &File,
    len: u64,
    ranges: &[Range<u64>],
    device: impl Fn(&mut [u8], u64) -> usize,
) -> io::Result<u64> {
    let (mut shown, mut held) = (vec![0; WINDOW], vec![0; WINDOW + PAGE]);
    let aligned = held.as_ptr().align_offset(PAGE);
    let held = &mut held[aligned..aligned + WINDOW];
    let mut written = 0;
    for range in ranges {
        let mut at = range.start / PAGE as u64 * PAGE as u64;
        let end = range.end.next_multiple_of(PAGE as u64).min(len);
        while at < end {
            let shown = &mut shown[..WINDOW.min((end - at) as usize)];
            file.read_exact_at(shown, at)?;
            // First through memory: a page that was not there is then as the device has it.
            let held = &mut held[..shown.len().next_multiple_of(PAGE)];
            let got = device(held, at).min(shown.len());
            for (n, page) in shown.chunks(PAGE).enumerate() {
                let place = n * PAGE;
                if place + page.len() > got || page != &held[place..place + page.len()] {
                    file.write_all_at(page, at + place as u64)?;
                    written += page.len() as u64;
                }
            }
            at += shown.len() as u64;
        }
    }
    Ok(written)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of ranges may have one")]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn file(dir: &std::path::Path, bytes: &[u8]) -> File {
        let path = dir.join("file");
        std::fs::write(&path, bytes).unwrap();
        OpenOptions::new().read(true).write(true).open(path).unwrap()
    }

    /// Reads of another file, which stands for the device, and the places that were asked for.
    fn differing(len: usize, change: impl Fn(&mut [u8]), ranges: &[Range<u64>]) -> (u64, Vec<u64>) {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..len).map(|i| (i / 512) as u8).collect();
        let file = file(dir.path(), &bytes);
        let mut device = bytes.clone();
        change(&mut device);
        let asked = RefCell::new(Vec::new());
        let written = settle_with(&file, len as u64, ranges, |buffer, at| {
            assert!(buffer.as_ptr().align_offset(PAGE) == 0 && buffer.len().is_multiple_of(PAGE), "it is aligned");
            assert!(at.is_multiple_of(PAGE as u64), "and so is its place");
            asked.borrow_mut().push(at);
            let part = &device[at as usize..(at as usize + buffer.len()).min(len)];
            buffer[..part.len()].copy_from_slice(part);
            part.len()
        });
        (written.unwrap(), asked.into_inner())
    }

    #[test]
    fn pages_that_differ_are_written_again_and_no_others() {
        let len = (2 << 20) + 1536;
        assert_eq!(differing(len, |_| {}, &[0..len as u64]), (0, vec![0, 1 << 20, 2 << 20]));
        assert_eq!(differing(len, |device| device[4095] ^= 1, &[0..len as u64]).0, 4096);
        assert_eq!(differing(len, |device| device[4096] ^= 1, &[0..4096, 8192..9000]), (0, vec![0, 8192]));
        assert_eq!(
            differing(len, |device| device[len - 1] ^= 1, &[len as u64 - 10..len as u64]),
            (1536, vec![2 << 20])
        );
        assert_eq!(differing(len, |device| device.fill(255), &[5000..10_000]), (8192, vec![4096]));
    }

    #[test]
    fn what_no_direct_read_gives_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path(), &[7; 10_000]);
        assert_eq!(settle_with(&file, 10_000, &[0..10_000], |_, _| 0).unwrap(), 10_000);
        assert_eq!(settle_with(&file, 10_000, &[0..10_000], |_, _| 4096).unwrap(), 10_000, "it is all zeroes there");
    }

    #[test]
    fn on_a_real_file_nothing_differs() {
        let dir = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
        let file = file(dir.path(), &[7; 3_000_000]);
        // Dirty as yet: a direct read has it written back before it looks.
        file.write_all_at(&[8; 5000], 70_000).unwrap();
        assert!(open_direct(&file).is_some(), "the tests lie on a file system that knows direct reads");
        assert_eq!(settle(&file, 3_000_000, &[0..3_000_000]).unwrap(), 0);
        let mut bytes = vec![0; 5000];
        file.read_exact_at(&mut bytes, 70_000).unwrap();
        assert_eq!(bytes, [8; 5000]);
    }
}
