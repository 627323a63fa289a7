// SPDX-License-Identifier: Apache-2.0
//! The full and sparse forms of a node: entries as differences from a base, in as few bits as the largest
//! difference needs.
//!
//! ```text
//! 0        tag: [level 4][form 4]
//! 1..4     widths in bits of the three fields, the most significant field first
//! 4..12    base: an entry with the smallest value of each field
//! 12..76   sparse form only: bitmap of the entries that are there, bit i of byte i / 8 first
//! then     entry after entry without gaps, the least significant bit first: [field 0][field 1][field 2] above the base, field 2 lowest
//! ```
//!
//! Entry k of those that are there begins at bit k × (sum of the widths). The bits after the last entry are zero. A
//! lookup counts the bits of the bitmap below the entry and extracts one number: no allocation and no decoding of
//! the rest. Everything but [`check`] relies on bytes that [`check`] passed or [`Plan::encode`] made.

use crate::node::{FORM_FULL, FORM_SPARSE, NODE_ENTRIES, corrupt};
use crate::{FormatError, Pointer};

/// How an entry is made of three fields above a constant kind.
pub(crate) trait Layout {
    /// Lowest bit of each field.
    const SHIFT: [u32; 3];
    /// Bits of each field.
    const BITS: [u32; 3];
    /// The kind of every entry that is there.
    const KIND: u64 = 1;
}

/// Entries of a leaf: lineage, ordinal, block.
pub(crate) struct Blocks;
impl Layout for Blocks {
    const SHIFT: [u32; 3] = [56, 20, 4];
    const BITS: [u32; 3] = [8, 36, 16];
}

/// Entries of an interior node: lineage, root number, index.
pub(crate) struct Nodes;
impl Layout for Nodes {
    const SHIFT: [u32; 3] = [56, 24, 2];
    const BITS: [u32; 3] = [8, 32, 22];
}

const HEADER: usize = 12;
const BITMAP: usize = NODE_ENTRIES / 8;

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

fn field<L: Layout>(raw: u64, at: usize) -> u64 {
    raw >> L::SHIFT[at] & mask(L::BITS[at])
}

/// How entries will be packed.
pub(crate) struct Plan<L> {
    widths: [u32; 3],
    base: [u64; 3],
    count: usize,
    layout: std::marker::PhantomData<L>,
}

/// The plan for these 512 entries (0 = absent); `None` when there are none.
pub(crate) fn plan<L: Layout>(raws: impl Iterator<Item = u64> + Clone) -> Option<Plan<L>> {
    // The last field is compared with the fields above it shifted out. Less 1, absence is larger than any entry, and an entry loses its kind.
    let top = u64::BITS - L::SHIFT[2] - L::BITS[2];
    let (mut low, mut low_last, mut high, mut high_last, mut count) = (u64::MAX, u64::MAX, 0, 0, 0);
    for raw in raws.clone() {
        count += usize::from(raw != 0);
        low = low.min(raw.wrapping_sub(1));
        low_last = low_last.min(raw.wrapping_sub(1) << top);
        high = high.max(raw);
        high_last = high_last.max(raw << top);
    }
    if count == 0 {
        return None;
    }
    let last = u64::BITS - L::BITS[2];
    let mut least = [field::<L>(low, 0), u64::MAX, low_last >> last];
    let mut most = [field::<L>(high, 0), 0, high_last >> last];
    if least[0] == most[0] {
        // One lineage, so the order of the entries is that of the next field.
        (least[1], most[1]) = (field::<L>(low, 1), field::<L>(high, 1));
    } else {
        for raw in raws.filter(|raw| *raw != 0) {
            least[1] = least[1].min(field::<L>(raw, 1));
            most[1] = most[1].max(field::<L>(raw, 1));
        }
    }
    let widths = std::array::from_fn(|at| u64::BITS - (most[at] - least[at]).leading_zeros());
    Some(Plan { widths, base: least, count, layout: std::marker::PhantomData })
}

impl<L: Layout> Plan<L> {
    /// Entries that are there.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the node.
    pub(crate) fn len(&self) -> usize {
        body_start(self.count == NODE_ENTRIES) + (self.count * self.width()).div_ceil(8)
    }

    fn width(&self) -> usize {
        self.widths.iter().sum::<u32>() as usize
    }

    /// The bytes of the node, given the entries that the plan was made for; `level` stands in the upper half of the tag.
    pub(crate) fn encode(&self, level: u8, raws: impl Iterator<Item = u64> + Clone) -> Vec<u8> {
        let full = self.count == NODE_ENTRIES;
        let mut out = vec![0; self.len()];
        let (head, body) = out.split_at_mut(body_start(full));
        head[0] = level | if full { FORM_FULL } else { FORM_SPARSE };
        for (there, width) in head[1..4].iter_mut().zip(self.widths) {
            *there = width as u8;
        }
        let base = (0..3).fold(L::KIND, |raw, at| raw | self.base[at] << L::SHIFT[at]);
        head[4..HEADER].copy_from_slice(&base.to_le_bytes());
        if !full {
            for (at, raw) in raws.clone().enumerate() {
                head[HEADER + at / 8] |= u8::from(raw != 0) << (at % 8);
            }
        }
        self.pack(base, raws, body);
        out
    }

    fn pack(&self, base: u64, raws: impl Iterator<Item = u64>, body: &mut [u8]) {
        let [_, middle, low] = self.widths;
        let width = self.width() as u32;
        let (words, tail) = body.as_chunks_mut::<8>();
        let mut words = words.iter_mut();
        // `filled` bits of `word` wait to be written. An entry has at most 62 bits, so it reaches into at most one word more.
        let (mut word, mut filled) = (0_u64, 0);
        for raw in raws.filter(|raw| *raw != 0) {
            // No field is below the base's, so the difference borrows from none.
            let above = raw - base;
            let value = field::<L>(above, 0) << (middle + low) | field::<L>(above, 1) << low | field::<L>(above, 2);
            word |= value << filled;
            filled += width;
            if filled >= 64 {
                let next = words.next().expect("the body has the bits of all entries");
                *next = word.to_le_bytes();
                filled -= 64;
                word = value >> (width - filled);
            }
        }
        // What is left fills the last bytes: fewer than eight, or eight whose highest bits are unused.
        match words.next() {
            Some(last) => *last = word.to_le_bytes(),
            None => tail.iter_mut().zip(word.to_le_bytes()).for_each(|(there, byte)| *there = byte),
        }
    }
}

const fn body_start(full: bool) -> usize {
    if full { HEADER } else { HEADER + BITMAP }
}

/// A packed node, its header read.
#[derive(Clone, Copy)]
struct View<'a> {
    bytes: &'a [u8],
    widths: [u32; 3],
    base: u64,
    full: bool,
}

impl<'a> View<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let header: &[u8; HEADER] =
            bytes.first_chunk().expect("the length of a packed node was checked when it was made");
        let [tag, w0, w1, w2, base @ ..] = *header;
        Self {
            bytes,
            widths: [w0.into(), w1.into(), w2.into()],
            base: u64::from_le_bytes(base),
            full: tag & 0xF == FORM_FULL,
        }
    }

    fn width(&self) -> usize {
        self.widths.iter().sum::<u32>() as usize
    }

    /// Word `at` of the bitmap, 64 entries each.
    fn present(&self, at: usize) -> u64 {
        if self.full {
            return u64::MAX;
        }
        let word = self.bytes[HEADER + at * 8..].first_chunk().expect("the bitmap of a sparse node has 64 bytes");
        u64::from_le_bytes(*word)
    }

    fn is_present(&self, at: usize) -> bool {
        self.full || self.bytes[HEADER + at / 8] >> (at % 8) & 1 != 0
    }

    /// How many entries before `at` are there.
    fn rank(&self, at: usize) -> usize {
        if self.full {
            return at;
        }
        let below = |word: usize| self.present(word).count_ones() as usize;
        (0..at / 64).map(below).sum::<usize>() + (self.present(at / 64) & mask((at % 64) as u32)).count_ones() as usize
    }

    /// Entry `rank` of those that are there.
    fn entry<L: Layout>(&self, rank: usize) -> u64 {
        self.place::<L>(self.value(rank, self.width()))
    }

    /// The entry that lies so far above the base.
    fn place<L: Layout>(&self, value: u64) -> u64 {
        let [_, middle, low] = self.widths;
        let fields = [value >> (middle + low), value >> low & mask(middle), value & mask(low)];
        (0..3).fold(self.base, |raw, at| raw + (fields[at] << L::SHIFT[at]))
    }

    /// The difference of entry `rank` from the base, as it is stored.
    fn value(&self, rank: usize, width: usize) -> u64 {
        if width == 0 {
            return 0;
        }
        let bit = body_start(self.full) * 8 + rank * width;
        let (byte, shift) = (bit / 8, bit % 8);
        let word = |at: usize| {
            let eight =
                self.bytes[at..].first_chunk().expect("the length of a packed node was checked when it was made");
            u64::from_le_bytes(*eight)
        };
        // Less than eight bytes from the end, the last eight are read instead: a node has more than eight.
        let last = self.bytes.len() - 8;
        let mut value = if byte <= last { word(byte) >> shift } else { word(last) >> ((byte - last) * 8 + shift) };
        if shift + width > 64 {
            value |= u64::from(self.bytes[byte + 8]) << (64 - shift);
        }
        value & mask(width as u32)
    }
}

/// Entry `at`, 0 when it is absent.
pub(crate) fn get<L: Layout>(bytes: &[u8], at: usize) -> u64 {
    let view = View::new(bytes);
    if view.is_present(at) { view.entry::<L>(view.rank(at)) } else { 0 }
}

/// Block `at` of a leaf and how many blocks from there on, up to `end`, are absent too or follow it.
pub(crate) fn run_at(bytes: &[u8], at: usize, end: usize) -> (u64, usize) {
    let view = View::new(bytes);
    let mut next = at + 1;
    if !view.is_present(at) {
        while next < end && !view.is_present(next) {
            next += 1;
        }
        return (0, next - at);
    }
    let rank = view.rank(at);
    let first = view.entry::<Blocks>(rank);
    let mut previous = Pointer::known(first);
    while next < end && view.is_present(next) {
        let pointer = Pointer::known(view.entry::<Blocks>(rank + next - at));
        if !pointer.follows(previous) {
            break;
        }
        previous = pointer;
        next += 1;
    }
    (first, next - at)
}

/// Reads all entries; `make` turns a raw entry, 0 when absent, into what is wanted.
pub(crate) fn unpack<L: Layout, T>(bytes: &[u8], out: &mut [T; NODE_ENTRIES], make: impl Fn(u64) -> T) {
    let view = View::new(bytes);
    let width = view.width() as u32;
    let (words, tail) = bytes[body_start(view.full)..].as_chunks::<8>();
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    let mut words = words.iter().chain([&last]).map(|word| u64::from_le_bytes(*word));
    // `left` bits of the last word read are still to be used; they are the lowest of `word`.
    let (mut word, mut left) = (0_u64, 0);
    for (at, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let present = view.present(at);
        for (bit, out) in out.iter_mut().enumerate() {
            if present >> bit & 1 == 0 {
                *out = make(0);
                continue;
            }
            let mut value = word & mask(width);
            if left >= width {
                word >>= width;
                left -= width;
            } else {
                let next = words.next().unwrap_or(0);
                value = (word | next << left) & mask(width);
                word = next >> (width - left);
                left += 64 - width;
            }
            *out = make(view.place::<L>(value));
        }
    }
}

/// Checks all that the other functions rely on: the tag's form, lengths, widths, the bitmap, every entry, and the bits after the last one.
pub(crate) fn check<L: Layout>(bytes: &[u8]) -> Result<(), FormatError> {
    if bytes.len() < HEADER || !matches!(bytes[0] & 0xF, FORM_FULL | FORM_SPARSE) {
        return Err(corrupt("not a packed node"));
    }
    let view = View::new(bytes);
    let body = body_start(view.full);
    if bytes.len() < body {
        return Err(corrupt("the bitmap is cut off"));
    }
    if (0..3).any(|at| view.widths[at] > L::BITS[at]) {
        return Err(corrupt(format!("a field is wider than it can be: {:?}", view.widths)));
    }
    let kind_bits = L::SHIFT[2];
    if view.base & mask(kind_bits) != L::KIND {
        return Err(corrupt(format!("the base {:#018x} is of no known kind", view.base)));
    }
    let count: usize = (0..NODE_ENTRIES / 64).map(|word| view.present(word).count_ones() as usize).sum();
    if count == 0 || (count == NODE_ENTRIES) != view.full {
        return Err(corrupt(format!("a bitmap of {count} entries")));
    }
    let bits = count * view.width();
    if bytes.len() != body + bits.div_ceil(8) {
        return Err(corrupt(format!("{} bytes for {count} entries of {} bits", bytes.len(), view.width())));
    }
    if !bits.is_multiple_of(8) && bytes[bytes.len() - 1] >> (bits % 8) != 0 {
        return Err(corrupt("bits are set after the last entry"));
    }
    check_entries::<L>(&view, count)
}

/// Checks that no field of an entry grows beyond its bits.
fn check_entries<L: Layout>(view: &View<'_>, count: usize) -> Result<(), FormatError> {
    let base: [u64; 3] = std::array::from_fn(|at| field::<L>(view.base, at));
    if (0..3).all(|at| base[at] + mask(view.widths[at]) <= mask(L::BITS[at])) {
        return Ok(());
    }
    let [_, middle, low] = view.widths;
    for rank in 0..count {
        let value = view.value(rank, view.width());
        let above = [value >> (middle + low), value >> low & mask(middle), value & mask(low)];
        if (0..3).any(|at| base[at] + above[at] > mask(L::BITS[at])) {
            return Err(corrupt(format!("entry {rank} is out of range")));
        }
    }
    Ok(())
}
