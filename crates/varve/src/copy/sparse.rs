// SPDX-License-Identifier: Apache-2.0
//! Where the data is: the parts of a file that are no holes, and the parts of a buffer that are not zero.

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use varve_types::SECTOR;

/// Zeroes shorter than this are sent with the data around them: a request more would cost more.
const SHORTEST_GAP: usize = 32 << 10;
/// Zeroes are looked for in pieces of this size.
const GRAIN: usize = 4096;

/// The next part of the file at or after `from` that is no hole, widened to whole sectors; nothing when only a hole is left.
///
/// A file system or device that knows nothing of holes has one part, to the end.
pub fn next_data(file: &File, from: u64, end: u64) -> std::io::Result<Option<Range<u64>>> {
    if from >= end {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(from)) {
        Ok(start) => start.min(end),
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(from..end)),
        Err(error) => return Err(error.into()),
    };
    if start >= end {
        return Ok(None);
    }
    let stop = match seek(file, SeekFrom::Hole(start)) {
        Ok(stop) => stop.clamp(start, end),
        // The file was cut meanwhile: reading it will tell.
        Err(Errno::NXIO) => end,
        Err(error) => return Err(error.into()),
    };
    let start = (start - start % SECTOR).max(from);
    Ok(Some(start..stop.next_multiple_of(SECTOR).min(end)))
}

/// The parts of a buffer that are not zero, as ranges of whole grains (but for the end of the buffer).
pub fn data_runs(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (index, grain) in bytes.chunks(GRAIN).enumerate() {
        if is_zero(grain) {
            continue;
        }
        let start = index * GRAIN;
        match runs.last_mut() {
            Some(last) if start - last.end < SHORTEST_GAP => last.end = start + grain.len(),
            _ => runs.push(start..start + grain.len()),
        }
    }
    runs
}

/// Whether all is zero; eight bytes at a time.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<32>();
    words.iter().all(|word| *word == [0; 32]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn zeroes_are_left_out_when_it_pays() {
        let mut bytes = vec![0u8; 1 << 20];
        assert!(data_runs(&bytes).is_empty());
        bytes[5000] = 1;
        bytes[20_000] = 1;
        bytes[500_000] = 1;
        bytes[(1 << 20) - 1] = 1;
        assert_eq!(data_runs(&bytes), [4096..20_480, 499_712..503_808, (1 << 20) - 4096..1 << 20]);
        assert_eq!(data_runs(&[0, 0, 7]), vec![0..3; 1]);
    }

    #[test]
    fn holes_of_a_file_are_passed_over() {
        let file = tempfile::tempfile().unwrap();
        let size = 64 << 20;
        file.set_len(size).unwrap();
        assert_eq!(next_data(&file, 0, size).unwrap(), None);
        file.write_all_at(&[1; 4096], 16 << 20).unwrap();
        file.write_all_at(&[1; 100], size - 100).unwrap();
        let first = next_data(&file, 0, size).unwrap().unwrap();
        assert!(first.contains(&(16 << 20)) && first.end - first.start <= 1 << 20, "{first:?}");
        let second = next_data(&file, first.end, size).unwrap().unwrap();
        assert!(second.end == size && second.start > 32 << 20, "{second:?}");
        assert_eq!(next_data(&file, second.end, size).unwrap(), None);
    }
}
