// SPDX-License-Identifier: Apache-2.0
//! Nodes of the map in every form: leaves of one run, of runs, sparse, full; interior nodes sparse and full, of every level.

use crate::dump::{Field, Form, field};
use varve_format::{FormatError, Leaf, Lineage, NODE_ENTRIES, NodePointer, Pointer, decode_interior, encode_interior};
use varve_types::{Ordinal, RootNumber};

/// A node's value.
enum Node {
    Leaf([Pointer; NODE_ENTRIES]),
    Interior(u8, [NodePointer; NODE_ENTRIES]),
}

fn leaf(entry: impl Fn(u64) -> Option<(u8, u64, u16)>) -> Node {
    Node::Leaf(std::array::from_fn(|at| {
        entry(at as u64).map_or(Pointer::ABSENT, |(lineage, ordinal, block)| {
            Pointer::data(Lineage(lineage), Ordinal(ordinal), block)
        })
    }))
}

fn interior(level: u8, entry: impl Fn(u32) -> Option<(u8, u32, u32)>) -> Node {
    let child = |at: usize| {
        entry(at as u32).map_or(NodePointer::absent(), |(lineage, root, index)| {
            NodePointer::new(Lineage(lineage), RootNumber(root), index)
        })
    };
    Node::Interior(level, std::array::from_fn(child))
}

/// The nodes, and the tag that each must have: level << 4 | form.
fn nodes() -> Vec<(u8, Node)> {
    vec![
        // One run: what was written in sequence.
        (0x01, leaf(|at| Some((1, 65_541, 1_000 + at as u16)))),
        // Three runs of two lineages, with gaps.
        (
            0x01,
            leaf(|at| match at {
                0..=9 => Some((0, 7, 90 + at as u16)),
                10..=12 => Some((1, (1 << 36) - 1, 65_533 + (at - 10) as u16)),
                511 => Some((1, 0, 0)),
                _ => None,
            }),
        ),
        // Every seventh block, far apart.
        (0x03, leaf(|at| at.is_multiple_of(7).then(|| (1, 1_000 + at * at, (at * 31 % 9_973) as u16)))),
        // Every block, in disorder, in three lineages.
        (0x02, leaf(|at| Some(((at % 3) as u8, 500 + at * 37 % 211, (at * 12_289 % 16_381) as u16)))),
        // All in one segment, in disorder: the widths of lineage and ordinal are 0.
        (0x02, leaf(|at| Some((2, 77, (511 - at) as u16 * 2)))),
        // Interior nodes, from below to above.
        (0x12, interior(1, |at| Some((0, 4 + at % 5, at * 3)))),
        (0x13, interior(1, |at| at.is_multiple_of(100).then_some((0, 9, 0x05_0000 + at)))),
        (0x23, interior(2, |at| (at == 511).then_some((255, u32::MAX, (1 << 22) - 1)))),
        (0x33, interior(3, |at| (at < 2).then_some((0, 9, 0x05_0006 + at)))),
    ]
}

/// Their stored forms.
pub fn records() -> Vec<Vec<u8>> {
    let bytes = |node: &Node| match node {
        Node::Leaf(entries) => Leaf::encode(entries).as_bytes().to_vec(),
        Node::Interior(level, children) => encode_interior(*level, children),
    };
    nodes().iter().map(|(_, node)| bytes(node)).collect()
}

/// Whether these records are the nodes.
pub fn read(records: &[Vec<u8>]) -> Result<bool, FormatError> {
    let nodes = nodes();
    let mut same = records.len() == nodes.len();
    for (bytes, (tag, node)) in records.iter().zip(&nodes) {
        same &= bytes.first() == Some(tag);
        match node {
            Node::Leaf(expected) => {
                let leaf = Leaf::from_bytes(bytes)?;
                let mut found = [Pointer::ABSENT; NODE_ENTRIES];
                leaf.decode_into(&mut found);
                same &= found == *expected && (0..NODE_ENTRIES).all(|at| leaf.get(at) == expected[at]);
            }
            Node::Interior(level, expected) => {
                let mut found = [NodePointer::absent(); NODE_ENTRIES];
                decode_interior(bytes, *level, &mut found)?;
                same &= found == *expected;
            }
        }
    }
    Ok(same)
}

/// The fields of a node, from its tag alone.
pub fn fields(number: usize, bytes: &[u8]) -> Vec<Field> {
    let (level, form) = (bytes[0] >> 4, bytes[0] & 15);
    let mut fields = vec![field(format!("node {number}, level {level}, form {form}: tag"), Form::U8)];
    if form == 1 {
        for run in 0..bytes.len() / 12 {
            fields.push(field(format!("run {run}: start, length"), Form::Bytes(4)));
            fields.push(field("pointer", Form::Bytes(8)));
        }
        return fields;
    }
    fields.extend(["w0", "w1", "w2"].map(|name| field(name, Form::U8)));
    fields.push(field("base", Form::Bytes(8)));
    let mut packed = bytes.len() - 12;
    if form == 3 {
        fields.push(field("bitmap", Form::Bytes(64)));
        packed -= 64;
    }
    fields.push(field("entries", Form::Bytes(packed)));
    fields
}

#[test]
fn a_damaged_node_is_refused_or_read_as_another_but_never_ends_the_program() {
    for ((_, node), mut bytes) in nodes().into_iter().zip(records()) {
        let decode = |bytes: &[u8]| match &node {
            Node::Leaf(_) => {
                // Every entry is looked at: what was taken must be readable to the end.
                let mut entries = [Pointer::ABSENT; NODE_ENTRIES];
                Leaf::from_bytes(bytes).inspect(|leaf| leaf.decode_into(&mut entries)).is_ok()
            }
            Node::Interior(level, _) => {
                decode_interior(bytes, *level, &mut [NodePointer::absent(); NODE_ENTRIES]).is_ok()
            }
        };
        assert!(decode(&bytes));
        for cut in 0..bytes.len() {
            // A list of runs goes to the end of the node; that it is cut is told by the table of the object around.
            assert!(!decode(&bytes[..cut]) || bytes[0] == 1 && cut % 12 == 1, "cut after {cut} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            decode(&bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
