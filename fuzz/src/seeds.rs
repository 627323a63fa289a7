// SPDX-License-Identifier: Apache-2.0
//! The inputs that the corpus began with: what the real encoders make of the [`samples`], a list of texts that people might write, and
//! NBD clients that behave.
//!
//! Each seed carries the byte that chooses the decoder of its target. The fuzzer finds its own way from here. Where a target makes values up, its seeds are noise: any bytes are a value.
//! A test runs every seed through its target, so that a seed that an encoder no longer makes right is seen without a fuzzer.

use crate::journal::JOURNAL;
use crate::{nbd, owner, samples};
use varve_format::page::PageBuilder;
use varve_format::region::{Entry, RegionHead};
use varve_format::table::{Kill, LiveBits, NodeKill, Place, TableEntry, encode_kills, encode_node_kills, encode_page};
use varve_format::{Leaf, Lineage, NODE_ENTRIES, NodePointer, ObjectKind, ObjectName, Pointer, encode_interior};
use varve_nbd::option::{self, OptionHeader};
use varve_nbd::wire::{self, Command, Request};
use varve_types::{ClusterId, Epoch, ErrorKind, Ordinal, RootNumber, Sequence, TimelineId, VolumeId};
use varve_wire::attach::{Attached, Refused};
use varve_wire::transmission::{Reply, Told, payload_crc};

/// A target and an input for it.
pub type Seed = (&'static str, Vec<u8>);

/// All seeds.
#[must_use]
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    journal(&mut seeds);
    segment(&mut seeds);
    bundle(&mut seeds);
    page(&mut seeds);
    node(&mut seeds);
    manifest(&mut seeds);
    texts(&mut seeds);
    configurations(&mut seeds);
    coordination(&mut seeds);
    clients(&mut seeds);
    journals(&mut seeds);
    nodes(&mut seeds);
    seeds
}

fn input(choice: u8, bytes: &[u8]) -> Vec<u8> {
    [&[choice], bytes].concat()
}

/// The same bytes for two choices: as they are, and mended.
fn both(seeds: &mut Vec<Seed>, target: &'static str, choice: u8, bytes: &[u8]) {
    seeds.push((target, input(choice, bytes)));
    seeds.push((target, input(choice + 1, bytes)));
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn made_up(seeds: &mut Vec<Seed>, target: &'static str, choice: Option<u8>) {
    for (seed, len) in [16, 64, 256, 1024].into_iter().enumerate() {
        let bytes = noise(len, seed as u64 + 1);
        seeds.push((target, choice.map_or(bytes.clone(), |choice| input(choice, &bytes))));
    }
}

fn journal(seeds: &mut Vec<Seed>) {
    let block = samples::superblock().encode();
    seeds.push(("journal", input(0, &block)));
    seeds.push(("journal", input(1, &block[..64])));
    for record in samples::journal_records() {
        let mut bytes = Vec::new();
        record.encode(JOURNAL, &mut bytes);
        both(seeds, "journal", 2, &bytes);
    }
    made_up(seeds, "journal", Some(4));
    let entry = Entry { timeline: TimelineId::from_bytes([4; 16]), ordinal: Ordinal(9), block: 7, sum: 1 };
    let head = RegionHead { number: 3, sequence: 8, main: false, entries: vec![Some(entry), None] };
    seeds.push(("journal", input(6, &head.encode()[..160])));
}

fn segment(seeds: &mut Vec<Seed>) {
    for head in samples::segment_heads() {
        both(seeds, "segment", 0, &head);
    }
    let raw = [7; 4096].repeat(3);
    for (codec, packed) in [(1, lz4(&raw)), (2, zstd(&raw))] {
        let mut chunk = vec![codec, 2, 0, 0, 0, 0, 3, 0, 0, 0];
        for block in raw.chunks(4096) {
            chunk.extend_from_slice(&varve_format::crc::crc(block).to_le_bytes());
        }
        chunk.extend_from_slice(&packed);
        both(seeds, "segment", 2, &chunk);
    }
    made_up(seeds, "segment", Some(4));
    made_up(seeds, "segment", Some(5));
}

fn bundle(seeds: &mut Vec<Seed>) {
    for head in samples::bundle_heads() {
        both(seeds, "bundle", 0, &head);
    }
    made_up(seeds, "bundle", Some(2));
    made_up(seeds, "bundle", Some(3));
}

/// A run of sevens as an LZ4 block: a literal, a match of distance 1, five literals at the end.
fn lz4(raw: &[u8]) -> Vec<u8> {
    let matched = raw.len() - 1 - 5;
    let mut block = vec![0x1f, 7, 1, 0];
    let mut rest = matched - 4 - 15;
    while rest >= 255 {
        block.push(255);
        rest -= 255;
    }
    block.push(rest as u8);
    block.extend_from_slice(&[0x50, 7, 7, 7, 7, 7]);
    block
}

/// A run of sevens as a Zstandard frame: one block of run-length kind.
fn zstd(raw: &[u8]) -> Vec<u8> {
    let len = raw.len() as u32;
    let header = len << 3 | 1 << 1 | 1;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&header.to_le_bytes()[..3]);
    frame.push(7);
    frame
}

fn page(seeds: &mut Vec<Seed>) {
    let (timeline, epoch, writer) = owner();
    for kind in [ObjectKind::Map, ObjectKind::Table] {
        let mut builder = PageBuilder::new(ObjectName { timeline, kind, number: 4, part: 1, epoch, writer });
        for record in [&b"first"[..], b"", b"the third"] {
            builder.push(record);
        }
        both(seeds, "page", 0, &builder.finish().1.concat());
    }
    let (mut some, mut none) = (LiveBits::all(100), LiveBits::all(2));
    some.clear(99);
    none.clear(0);
    none.clear(1);
    let entry = |live| TableEntry { place: Place::Own, epoch, writer, bytes: 3, last: Sequence(4), sealed_ms: 5, live };
    let entries = [(Ordinal(128), LiveBits::all(65_536)), (Ordinal(130), some), (Ordinal(191), none)];
    let entries: Vec<_> = entries.into_iter().map(|(ordinal, live)| (ordinal, entry(live))).collect();
    let entries: Vec<_> = entries.iter().map(|(ordinal, entry)| (*ordinal, entry)).collect();
    seeds.push(("page", input(3, &[&2u32.to_le_bytes()[..], &encode_page(2, &entries)].concat())));
    let bundled = |number, live: u32, blocks| TableEntry {
        place: Place::Bundle { number, blocks },
        ..entry(LiveBits::all(live))
    };
    let entries = [(Ordinal(128), bundled(3, 9, 9)), (Ordinal(129), bundled(u64::MAX, 0, 0))];
    let entries: Vec<_> = entries.iter().map(|(ordinal, entry)| (*ordinal, entry)).collect();
    seeds.push(("page", input(3, &[&2u32.to_le_bytes()[..], &encode_page(2, &entries)].concat())));
    let kill = |(ordinal, block, death)| Kill { ordinal: Ordinal(ordinal), block, death: Ordinal(death) };
    let kills: Vec<Kill> = [(3, 7, 6), (3, 9, 4), (6, 0, 70_000)].into_iter().map(kill).collect();
    seeds.push(("page", input(5, &encode_kills(&kills))));
    let node = NodePointer::new(Lineage(1), RootNumber(3), 9);
    seeds.push(("page", input(7, &encode_node_kills(&[NodeKill { node, death: RootNumber(4) }]))));
    [2, 4, 6].into_iter().for_each(|choice| made_up(seeds, "page", Some(choice)));
}

fn node(seeds: &mut Vec<Seed>) {
    let data = |lineage, ordinal, block| Pointer::data(Lineage(lineage), Ordinal(ordinal), block);
    let mut entries = [Pointer::ABSENT; NODE_ENTRIES];
    let leaf = |entries: &[Pointer; NODE_ENTRIES]| input(0, Leaf::encode(entries).as_bytes());
    seeds.push(("node", leaf(&entries)));
    entries[3] = data(0, 7, 9);
    seeds.push(("node", leaf(&entries)));
    for at in (0..NODE_ENTRIES).step_by(3) {
        entries[at] = data((at % 2) as u8, at as u64 * 11, (at * 7) as u16);
    }
    seeds.push(("node", leaf(&entries)));
    entries = std::array::from_fn(|at| data(1, 4 + at as u64 % 5, 60_000 + at as u16));
    seeds.push(("node", leaf(&entries)));
    entries = std::array::from_fn(|at| data(1, 4, at as u16));
    seeds.push(("node", leaf(&entries)));
    let mut children = [NodePointer::absent(); NODE_ENTRIES];
    for level in 1..=3 {
        for at in (0..NODE_ENTRIES).step_by(usize::from(level)) {
            children[at] = NodePointer::new(Lineage(level), RootNumber(at as u32), at as u32 * 8000);
        }
        seeds.push(("node", input(1, &encode_interior(level, &children))));
    }
    made_up(seeds, "node", Some(2));
    made_up(seeds, "node", Some(3));
}

fn manifest(seeds: &mut Vec<Seed>) {
    both(seeds, "manifest", 0, &samples::manifest().encode());
    let mut bundled = samples::manifest();
    bundled.bundles = true;
    both(seeds, "manifest", 0, &bundled.encode());
    let (timeline, epoch, writer) = owner();
    let (volume, name) = (samples::manifest().volume, samples::manifest().name);
    both(seeds, "manifest", 0, &varve_format::manifest::Manifest::new(volume, timeline, name, epoch, writer).encode());
    let record = varve_format::owner::OwnerRecord { number: 2, cluster: ClusterId::from_bytes([5; 16]), created_ms: 6 };
    both(seeds, "manifest", 2, &record.encode());
}

fn texts(seeds: &mut Vec<Seed>) {
    let (timeline, epoch, writer) = owner();
    let name = ObjectName { timeline, kind: ObjectKind::Map, number: 77, part: 3, epoch, writer };
    let (object, id) = (name.to_string(), timeline.to_string());
    let all: [(u8, &[&str]); 6] = [
        (0, &[&object, "owner/1", "a/../b"]),
        (1, &["a", "vm-1.root_disk", "-a", "a b"]),
        (2, &["512", "64K", "1.5TiB", "10g", "0.5m", "99999999999T"]),
        (3, &["ack=ram\ncompression=zstd\nsegment-size=8M\nseal-age=1500ms\nundelete-window=2d", "ack=default"]),
        (
            4,
            &[
                "file:///var/lib/varve",
                "file:///a%20b/c%3F",
                "s3://bucket/a/b?endpoint=http://127.0.0.1:8333&region=eu-1&path-style=false&credentials=/k",
                "s3://bucket",
            ],
        ),
        (5, &[&id, "00000000deadbeef", "no-space"]),
    ];
    for (choice, texts) in all {
        seeds.extend(texts.iter().map(|text| ("text", input(choice, text.as_bytes()))));
    }
}

fn configurations(seeds: &mut Vec<Seed>) {
    let whole = "data = '/d'\nstore = 'file:///s'\nvolumes = ['a:1G', 'b:512']\nnbd-listen = '127.0.0.1:10809'\napi-listen = 'none'\n\
                 journal-size = '1G'\nram-cache = '1G'\nlayer-ram = '64M'\nundelete-window = '2d'\nlog-level = 'info'\nlog-format = 'json'\n";
    let wrong =
        ["journal-siz = '2G'\n", "volumes = ['a:1G', 'a:2G']\n", "api-listen = '0.0.0.0:1'\n", "data = \n", "[a"];
    seeds.extend([whole].into_iter().chain(wrong).map(|text| ("config", text.as_bytes().to_vec())));
}

fn coordination(seeds: &mut Vec<Seed>) {
    for (choice, (key, value)) in samples::records().into_iter().enumerate() {
        seeds.push(("coord", input(choice as u8, &[key.as_bytes(), b"\0", &value].concat())));
    }
    made_up(seeds, "coord_file", None);
}

/// A journal in which one field after the other, of superblocks and of records, is the largest or the smallest number there is.
fn journals(seeds: &mut Vec<Seed>) {
    use crate::replay::Change;
    seeds.push(("replay", Vec::new()));
    for (kind, fields) in [(0, &[32, 40, 48][..]), (1, &[8, 16, 40, 48, 56, 64, 72])] {
        for at in fields {
            for bytes in [0, u64::MAX, u64::MAX - 4095, 1 << 44].map(u64::to_le_bytes) {
                // Both superblocks, so that the start has no other to take; one record of each sort at most.
                let change = |which| Change { kind, at: *at, len: 7, mend: true, which, bytes };
                seeds.push(("replay", [change(0).encode(), change(1).encode()].concat()));
                seeds.push(("replay", change(3).encode()));
            }
        }
    }
    made_up(seeds, "replay", None);
}

fn option(which: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    OptionHeader { option: which, length: data.len() as u32 }.encode(&mut bytes);
    [&bytes[..], data].concat()
}

fn name_and(name: &str, rest: &[u8]) -> Vec<u8> {
    [&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), rest].concat()
}

fn requests() -> Vec<u8> {
    let all = [
        (Command::Write, wire::CMD_FLAG_FUA, 512, 1024),
        (Command::Read, 0, 0, 4096),
        (Command::Flush, 0, 0, 0),
        (Command::Trim, 0, 0, 512),
        (Command::WriteZeroes, wire::CMD_FLAG_NO_HOLE, 512, 512),
        (Command::Cache, 0, 0, 512),
        (Command::BlockStatus, wire::CMD_FLAG_REQ_ONE, 0, 4096),
        (Command::BlockStatus, 0, 0, 16 << 10),
        (Command::Read, wire::CMD_FLAG_DF, 0, 2 << 20),
        (Command::Read, 0, 0, 5 << 19),
        (Command::Write, 0, 1 << 40, 512),
        (Command::Disconnect, 0, 0, 0),
    ];
    let mut bytes = Vec::new();
    for (cookie, (command, flags, offset, length)) in all.into_iter().enumerate() {
        let request = Request { flags, command, cookie: cookie as u64, offset, length };
        bytes.extend(nbd::encoded(&request));
        if command == Command::Write {
            bytes.extend(noise(length as usize, 1));
        }
    }
    bytes
}

/// Clients that behave: every option and every command, over every sort of connection and device.
fn clients(seeds: &mut Vec<Seed>) {
    let query = name_and("base:allocation", &[]);
    let meta = name_and("disk", &[&1u32.to_be_bytes()[..], &query].concat());
    let info = name_and("disk", &[0, 3, 0, 1, 0, 2, 0, 3]);
    let polite = [
        vec![0, 0, 0, 3],
        option(option::OPT_LIST, &[]),
        option(option::OPT_STARTTLS, &[]),
        option(option::OPT_STRUCTURED_REPLY, &[]),
        option(option::OPT_LIST_META_CONTEXT, &meta),
        option(option::OPT_SET_META_CONTEXT, &meta),
        option(option::OPT_INFO, &info),
    ]
    .concat();
    let ways = [
        [option(option::OPT_GO, &name_and("disk", &[0, 0])), requests()].concat(),
        [option(option::OPT_EXPORT_NAME, b"disk@monday"), requests()].concat(),
        option(option::OPT_ABORT, &[]),
        [option(option::OPT_GO, &name_and("away", &[0, 0])), option(99, b"what"), vec![1]].concat(),
    ];
    for (n, way) in ways.iter().enumerate() {
        seeds.push(("nbd", [&[0, 2, n as u8][..], &polite, way].concat()));
    }
    for kind in [2, 64, 64 | 8, 64 | 16 | 8, 32, 1 | 64, 1 | 8, 128 | 2, 128 | 64 | 16] {
        seeds.push(("nbd", [&[1, kind, kind / 3][..], &requests()].concat()));
    }
}

/// What an edge hears: a refusal, an attach with a reply behind it, and histories of sessions.
fn nodes(seeds: &mut Vec<Seed>) {
    let refused = Refused::new(ErrorKind::Busy, "later").encode();
    let attached = Attached {
        version: 1,
        cluster: ClusterId::from_bytes([1; 16]),
        volume: VolumeId::from_bytes([2; 16]),
        timeline: TimelineId::from_bytes([3; 16]),
        epoch: Epoch(4),
        size: 1 << 30,
        read_only: false,
        window: 256,
        sequence: Sequence(9),
        safe: Sequence(7),
        cuts: vec![Sequence(5)],
    };
    let data = noise(512, 3);
    let reply = Reply {
        told: Told::Done,
        id: 1 << 32 | 1,
        sequence: Sequence(9),
        safe: Sequence(8),
        length: data.len() as u32,
        payload_crc: payload_crc(&data),
    };
    seeds.push(("edge", input(0, &refused)));
    seeds.push(("edge", input(0, &[&attached.encode()[..], &reply.to_bytes(), &data].concat())));
    // Attached; a write, a read, a flush; answers; a loss; attached again with less; answers.
    let history = [
        [5, 0, 0, 1, 0, 0, 0, 20],
        [0, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
        [2, 1, 0, 3, 0, 1, 0, 0],
        [2, 1, 0, 3, 1, 1, 0, 1],
        [7, 1, 0, 0, 0, 0, 0, 0],
        [5, 1, 0, 2, 0, 0, 1, 20],
        [2, 1, 0, 3, 0, 1, 1, 0],
    ];
    seeds.push(("edge", input(1, &history.concat())));
    for seed in 0..4 {
        seeds.push(("edge", input(1, &noise(512, 40 + seed))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(target: &str, bytes: &[u8]) {
        match target {
            "journal" => crate::journal::check(bytes),
            "segment" => crate::segment::check(bytes),
            "bundle" => crate::bundle::check(bytes),
            "page" => crate::page::check(bytes),
            "node" => crate::node::check(bytes),
            "manifest" => crate::manifest::check(bytes),
            "text" => crate::text::check(bytes),
            "config" => crate::config::check(bytes),
            "coord" => crate::coord::check(bytes),
            "coord_file" => crate::coord::check_file(bytes),
            "nbd" => nbd::check(bytes),
            "edge" => crate::edge::check(bytes),
            "replay" => crate::replay::check(bytes),
            other => panic!("there is no target {other}"),
        }
    }

    #[test]
    fn every_seed_is_taken_by_its_target() {
        let broken = |(number, (target, bytes)): &(usize, Seed)| {
            let outcome = std::panic::catch_unwind(|| run(target, bytes));
            outcome.is_err().then(|| format!("seed {number}, of {target}: {bytes:02x?}"))
        };
        let broken: Vec<String> = all().into_iter().enumerate().filter_map(|seed| broken(&seed)).collect();
        assert!(broken.is_empty(), "{}", broken.join("\n"));
    }
}
