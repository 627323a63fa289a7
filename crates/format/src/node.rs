// SPDX-License-Identifier: Apache-2.0
//! Nodes of the map: what a node's bytes mean, in the store and in RAM alike.
//!
//! A leaf holds the pointers of 512 blocks (2 MiB of the volume), an interior node those of 512 children. The first
//! byte of a node is its tag, `[level 4][form 4]`: level 0 is a leaf, 1 to 3 are interior, so a node can not be
//! taken for one of another level. The forms are
//!
//! - *empty* (leaf only, never stored by the map: a node without entries does not exist),
//! - *runs* (leaf only): stretches of consecutive blocks of one segment,
//! - *full* and *sparse*: entries packed into as few bits as their range needs, without or with a bitmap of which
//!   are there.
//!
//! Which form a node takes depends on its entries alone (the smallest; runs when equal), so equal entries give
//! equal bytes. A leaf is looked up in place, as it came from the store. Decoders check every length, range and
//! order, and the unused bits; whether the bytes are those that were written is proved by the CRC of the record
//! around them, which is not part of the node.

use crate::node_packed::{self, Blocks, Nodes};
use crate::{FormatError, NodePointer, Pointer};

/// Entries of a node: blocks of a leaf, children of an interior node.
pub const NODE_ENTRIES: usize = 512;

pub(crate) const WHAT: &str = "map node";
pub(crate) const TAG_EMPTY: u8 = 0;
pub(crate) const FORM_RUNS: u8 = 1;
pub(crate) const FORM_FULL: u8 = 2;
pub(crate) const FORM_SPARSE: u8 = 3;

/// Largest level of an interior node.
pub(crate) const MAX_LEVEL: u8 = 3;

pub(crate) fn corrupt(reason: impl Into<String>) -> FormatError {
    FormatError::new(WHAT, reason)
}

/// The bytes of an interior node of `level` (1 to 3) with these children, at least one of which is there.
#[must_use]
pub fn encode_interior(level: u8, children: &[NodePointer; NODE_ENTRIES]) -> Vec<u8> {
    assert!((1..=MAX_LEVEL).contains(&level), "interior nodes are of level 1 to 3");
    let raws = children.iter().map(|child| child.raw());
    let plan = node_packed::plan::<Nodes>(raws.clone());
    plan.expect("a node without children does not exist, so it is not written").encode(level << 4, raws)
}

/// Reads the bytes of an interior node of `level` into `children`; absent ones become [`NodePointer::absent`].
///
/// # Errors
/// When the bytes are not such a node. What is in `children` then is of no meaning.
pub fn decode_interior(bytes: &[u8], level: u8, children: &mut [NodePointer; NODE_ENTRIES]) -> Result<(), FormatError> {
    if !(1..=MAX_LEVEL).contains(&level) || bytes.first().is_none_or(|tag| tag >> 4 != level) {
        return Err(corrupt(format!("not an interior node of level {level}")));
    }
    node_packed::check::<Nodes>(bytes)?;
    let mut raws = [0; NODE_ENTRIES];
    node_packed::unpack::<Nodes, _>(bytes, &mut raws, |raw| raw);
    for (child, raw) in children.iter_mut().zip(raws) {
        *child = NodePointer::from_raw(raw)?;
    }
    Ok(())
}

/// Bytes that a leaf holds without an allocation.
const INLINE: usize = 22;

/// The pointers of 512 blocks, encoded. Takes 24 bytes, and an allocation unless it is empty or a single run. Holds data and absence only.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf(Repr);

#[derive(Clone, PartialEq, Eq)]
enum Repr {
    Inline { len: u8, bytes: [u8; INLINE] },
    Heap(Box<[u8]>),
}

/// Bytes of a run: start u16, length u16, pointer of its first block u64.
const RUN: usize = 12;

/// A run of the runs form: blocks `start..start + len`, the first at `first`.
#[derive(Clone, Copy)]
struct Run {
    start: u16,
    len: u16,
    first: u64,
}

impl Run {
    fn read(bytes: &[u8], at: usize) -> Self {
        let run: &[u8; RUN] =
            bytes[1 + at * RUN..].first_chunk().expect("the length of the runs form was checked when it was made");
        let [s0, s1, l0, l1, first @ ..] = *run;
        Self {
            start: u16::from_le_bytes([s0, s1]),
            len: u16::from_le_bytes([l0, l1]),
            first: u64::from_le_bytes(first),
        }
    }
    fn end(self) -> usize {
        usize::from(self.start) + usize::from(self.len)
    }
}

impl Leaf {
    /// The leaf without entries.
    #[must_use]
    pub fn empty() -> Self {
        Self::copied(&[TAG_EMPTY])
    }

    /// The leaf of these entries, each of them data or absent; the same entries always give the same bytes.
    #[must_use]
    pub fn encode(entries: &[Pointer; NODE_ENTRIES]) -> Self {
        let raws = entries.iter().map(|entry| entry.raw());
        let Some(plan) = node_packed::plan::<Blocks>(raws.clone()) else { return Self::empty() };
        let (mut follow, mut all, mut previous) = (0, 0, Pointer::ABSENT);
        for entry in entries {
            follow += usize::from(entry.follows(previous));
            all |= entry.raw();
            previous = *entry;
        }
        assert!(all & Pointer::HOLE_BIT == 0, "a leaf stores no holes: they are absence once merged");
        let runs_len = 1 + (plan.count() - follow) * RUN;
        if plan.len() < runs_len { Self::owned(plan.encode(0, raws)) } else { Self::encode_runs(entries, runs_len) }
    }

    fn encode_runs(entries: &[Pointer; NODE_ENTRIES], len: usize) -> Self {
        let mut out = Vec::with_capacity(len);
        out.push(FORM_RUNS);
        let mut at = 0;
        while at < NODE_ENTRIES {
            if entries[at].is_absent() {
                at += 1;
                continue;
            }
            let start = at;
            at += 1;
            while at < NODE_ENTRIES && entries[at].follows(entries[at - 1]) {
                at += 1;
            }
            out.extend_from_slice(&(start as u16).to_le_bytes());
            out.extend_from_slice(&((at - start) as u16).to_le_bytes());
            out.extend_from_slice(&entries[start].raw().to_le_bytes());
        }
        Self::owned(out)
    }

    /// The leaf whose stored form is `bytes`.
    ///
    /// # Errors
    /// When the bytes are not such a leaf.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        match bytes.first() {
            Some(&TAG_EMPTY) if bytes.len() == 1 => {}
            Some(&FORM_RUNS) => check_runs(bytes)?,
            Some(&(FORM_FULL | FORM_SPARSE)) => node_packed::check::<Blocks>(bytes)?,
            _ => return Err(corrupt("not a leaf")),
        }
        Ok(Self::copied(bytes))
    }

    fn copied(bytes: &[u8]) -> Self {
        match inline(bytes) {
            Some(repr) => Self(repr),
            None => Self(Repr::Heap(bytes.into())),
        }
    }

    fn owned(bytes: Vec<u8>) -> Self {
        Self(inline(&bytes).unwrap_or_else(|| Repr::Heap(bytes.into_boxed_slice())))
    }

    /// The stored form.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Heap(bytes) => bytes,
        }
    }

    /// Bytes of its allocation: 0 when it has none.
    #[must_use]
    pub fn heap_len(&self) -> usize {
        match &self.0 {
            Repr::Inline { .. } => 0,
            Repr::Heap(bytes) => bytes.len(),
        }
    }

    /// Whether no block has a pointer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.as_bytes()[0] == TAG_EMPTY
    }

    /// The pointer of block `at` of the leaf; `at` is below 512.
    #[must_use]
    pub fn get(&self, at: usize) -> Pointer {
        assert!(at < NODE_ENTRIES, "a leaf has 512 blocks");
        let bytes = self.as_bytes();
        let raw = match bytes[0] {
            TAG_EMPTY => 0,
            FORM_RUNS => {
                let run = Run::read(bytes, run_not_before(bytes, at).unwrap_or(0));
                let start = usize::from(run.start);
                if (start..run.end()).contains(&at) { Pointer::step(run.first, at - start) } else { 0 }
            }
            _ => node_packed::get::<Blocks>(bytes, at),
        };
        Pointer::known(raw)
    }

    /// What block `at` holds and for how many blocks from there on it goes on so, at most `most` (at least 1) and not beyond the leaf: data
    /// with consecutive pointers, or absence.
    #[must_use]
    pub fn run_at(&self, at: usize, most: usize) -> (Pointer, usize) {
        assert!(at < NODE_ENTRIES && most > 0, "a run has a block, and a leaf has 512");
        let end = at.saturating_add(most).min(NODE_ENTRIES);
        let bytes = self.as_bytes();
        match bytes[0] {
            TAG_EMPTY => (Pointer::ABSENT, end - at),
            FORM_RUNS => {
                let Some(found) = run_not_before(bytes, at) else { return (Pointer::ABSENT, end - at) };
                let run = Run::read(bytes, found);
                let start = usize::from(run.start);
                if at < start {
                    (Pointer::ABSENT, start.min(end) - at)
                } else {
                    (Pointer::known(Pointer::step(run.first, at - start)), run.end().min(end) - at)
                }
            }
            _ => {
                let (first, len) = node_packed::run_at(bytes, at, end);
                (Pointer::known(first), len)
            }
        }
    }

    /// Reads all pointers of the leaf.
    pub fn decode_into(&self, entries: &mut [Pointer; NODE_ENTRIES]) {
        let bytes = self.as_bytes();
        match bytes[0] {
            TAG_EMPTY => entries.fill(Pointer::ABSENT),
            FORM_RUNS => {
                entries.fill(Pointer::ABSENT);
                for (start, len, first) in self.runs() {
                    for (at, entry) in entries[start..start + len].iter_mut().enumerate() {
                        *entry = Pointer::known(Pointer::step(first.raw(), at));
                    }
                }
            }
            _ => {
                node_packed::unpack::<Blocks, _>(bytes, entries, Pointer::known);
            }
        }
    }

    /// The stretches of consecutive pointers, in order: first block within the leaf, blocks, pointer of the first.
    pub fn runs(&self) -> impl Iterator<Item = (usize, usize, Pointer)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < NODE_ENTRIES {
                let (pointer, len) = self.run_at(at, NODE_ENTRIES);
                let start = at;
                at += len;
                if pointer.is_data() {
                    return Some((start, len, pointer));
                }
            }
            None
        })
    }
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.runs()).finish()
    }
}

fn inline(bytes: &[u8]) -> Option<Repr> {
    let mut room = [0; INLINE];
    room.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(Repr::Inline { len: bytes.len() as u8, bytes: room })
}

/// Index of the first run that ends behind block `at`: the one that holds it, or the next.
fn run_not_before(bytes: &[u8], at: usize) -> Option<usize> {
    let (mut low, mut high) = (0, bytes.len() / RUN);
    let count = high;
    while low < high {
        let middle = low.midpoint(high);
        if Run::read(bytes, middle).end() <= at {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    (low < count).then_some(low)
}

fn check_runs(bytes: &[u8]) -> Result<(), FormatError> {
    if bytes.len() < 1 + RUN || bytes.len() % RUN != 1 || bytes.len() > 1 + NODE_ENTRIES * RUN {
        return Err(corrupt(format!("a list of runs has {} bytes", bytes.len())));
    }
    let mut free = 0;
    for at in 0..bytes.len() / RUN {
        let run = Run::read(bytes, at);
        let first = Pointer::from_raw(run.first)?;
        if !first.is_data() {
            return Err(corrupt("a run is not of data"));
        }
        if run.len == 0 || usize::from(run.start) < free || run.end() > NODE_ENTRIES {
            return Err(corrupt(format!("run {at} is out of order or reaches beyond the leaf")));
        }
        if usize::from(first.block()) + usize::from(run.len) > 1 << 16 {
            return Err(corrupt(format!("run {at} reaches beyond its segment")));
        }
        free = run.end();
    }
    Ok(())
}
