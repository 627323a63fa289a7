// SPDX-License-Identifier: Apache-2.0
//! The contents of a disk, in pages that copies share until one of them writes.
//!
//! A medium keeps two: what the platters hold, and what a reader sees. They differ by a few pages, and a crash makes one the
//! other, so copies must cost next to nothing. A page never written reads as zeroes and takes no memory.

use bytes::Bytes;
use std::rc::Rc;

const PAGE: usize = 4096;
/// What a range that was never written reads as.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// Bytes of a disk. Ranges must lie inside it: the callers check.
#[derive(Clone)]
pub(crate) struct Image {
    pages: Vec<Option<Rc<[u8; PAGE]>>>,
}

impl Image {
    pub(crate) fn zeroes(len: u64) -> Self {
        let pages = usize::try_from(len.div_ceil(PAGE as u64)).expect("a disk in memory fits the address space");
        Self { pages: vec![None; pages] }
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len);
        let mut at = offset as usize;
        while out.len() < len {
            let start = at % PAGE;
            let part = (PAGE - start).min(len - out.len());
            match &self.pages[at / PAGE] {
                Some(page) => out.extend_from_slice(&page[start..start + part]),
                None => out.resize(out.len() + part, 0),
            }
            at += part;
        }
        out
    }

    /// The same for who keeps it: a range that was never written, which is most of what a start looks at, costs nothing.
    pub(crate) fn shared(&self, offset: u64, len: usize) -> Bytes {
        let pages = offset as usize / PAGE..(offset as usize + len).div_ceil(PAGE);
        match ZEROES.get(..len) {
            Some(zeroes) if self.pages[pages].iter().all(Option::is_none) => Bytes::from_static(zeroes),
            _ => self.read(offset, len).into(),
        }
    }

    pub(crate) fn write(&mut self, offset: u64, mut bytes: &[u8]) {
        let mut at = offset as usize;
        while !bytes.is_empty() {
            let start = at % PAGE;
            let (part, rest) = bytes.split_at((PAGE - start).min(bytes.len()));
            let page = &mut self.pages[at / PAGE];
            if let Ok(whole) = <&[u8; PAGE]>::try_from(part) {
                *page = Some(Rc::new(*whole));
            } else {
                let page = page.get_or_insert_with(|| Rc::new([0; PAGE]));
                Rc::make_mut(page)[start..start + part.len()].copy_from_slice(part);
            }
            at += part.len();
            bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_it_was_and_writes_cross_pages() {
        let mut image = Image::zeroes(3 * 4096);
        image.write(4000, &[7; 5000]);
        let copy = image.clone();
        image.write(4095, &[1, 2]);
        assert_eq!(copy.read(3999, 5002), [vec![0], vec![7; 5000], vec![0]].concat());
        assert_eq!(image.read(4094, 4), [7, 1, 2, 7]);
        assert_eq!(image.shared(4094, 4)[..], [7, 1, 2, 7]);
        assert!(Image::zeroes(8192).shared(1, 8190)[..] == [0; 8190] && image.shared(12_000, 288)[..] == [0; 288]);
    }
}
