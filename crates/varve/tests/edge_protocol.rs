// SPDX-License-Identifier: Apache-2.0
//! The edge protocol of a real node, word by word: what it does, whom it refuses, and that nobody else notices those who do not keep to it.

#![allow(clippy::unwrap_used)]

mod raw_edge;
mod real;

use raw_edge::{RawEdge, again, attach};
use real::Node;
use std::io::{Read, Write};
use varve_lab::process::free_port;
use varve_types::{ErrorKind, Sequence};
use varve_wire::attach::{Attach, Mode};
use varve_wire::transmission::{Ask, Told, get_extents};

const MIB: u64 = 1 << 20;

fn node() -> Node {
    Node::start(&["--volume", "disk:64M"])
}

#[test]
fn a_volume_is_read_and_written() {
    let node = node();
    let mut edge = RawEdge::unix(&node);
    let start = edge.attach(&attach("disk", 1)).unwrap();
    assert_eq!((start.size, start.read_only, start.version), (64 * MIB, false, 1));
    let data = real::noise(8192, 5);
    let (written, _) = edge.ask(Ask::Write, 4096, 8192, &data);
    assert_eq!(written.told, Told::Done);
    assert!(written.sequence > start.sequence && written.safe < written.sequence);
    let (flushed, _) = edge.ask(Ask::Flush, 0, 0, &[]);
    assert!(flushed.safe >= written.sequence, "a flush makes it safe");
    assert_eq!(edge.ask(Ask::Read, 4096, 8192, &[]).1, data);
    assert_eq!(edge.ask(Ask::Discard, 4096, 4096, &[]).0.told, Told::Done);
    assert_eq!(edge.ask(Ask::WriteZeroes, 1 << 20, 4096, &[]).0.told, Told::Done);
    assert_eq!(edge.ask(Ask::Read, 4096, 8192, &[]).1, [&[0; 4096], &data[4096..]].concat());
    let extents = get_extents(&edge.ask(Ask::Status, 0, 16384, &[]).1).unwrap();
    let shape: Vec<_> = extents.iter().map(|extent| (extent.length, extent.hole)).collect();
    assert_eq!(shape, [(8192, true), (4096, false), (4096, true)]);
    assert_eq!(edge.ask(Ask::Prefetch, 0, 16384, &[]).0.told, Told::Done);
    assert_eq!(edge.ask(Ask::Ping, 0, 0, &[]).0.told, Told::Done);
    let (beyond, why) = edge.ask(Ask::Write, 64 * MIB, 512, &[0; 512]);
    assert_eq!(beyond.told, Told::Failed(ErrorKind::Invalid));
    assert!(String::from_utf8(why).unwrap().contains("beyond"));
    assert_eq!(edge.ask(Ask::Detach, 0, 0, &[]).0.told, Told::Done);
    assert!(edge.reply().is_err(), "it hangs up");
    assert_eq!(node.varve(&["--json", "volume", "show", "disk"]).json()["holder"], serde_json::Value::Null);
}

#[test]
fn a_size_that_changes_is_told() {
    let node = node();
    let mut edge = RawEdge::unix(&node);
    edge.attach(&attach("disk", 1)).unwrap();
    node.varve(&["volume", "resize", "disk", "128M"]).ok();
    edge.send(Ask::Ping, 0, 0, &[]).unwrap();
    let (mut told, mut size) = edge.reply().unwrap();
    if told.told != Told::Size {
        (told, size) = edge.reply().unwrap();
    }
    assert_eq!((told.told, size), (Told::Size, (128 * MIB).to_le_bytes().to_vec()));
}

#[test]
fn a_volume_has_one_holder() {
    let mut node = node();
    let mut first = RawEdge::unix(&node);
    let start = first.attach(&attach("disk", 1)).unwrap();
    let refused = RawEdge::unix(&node).attach(&attach("disk", 2)).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert!(refused.holder.unwrap().edge.contains("host-1"));
    let nbd = real::nbdsh_command(&node.uri("disk"), "print(h.get_size())").output().unwrap();
    assert!(!nbd.status.success(), "{nbd:?}");
    let shown = node.varve(&["volume", "show", "disk"]).ok();
    assert!(shown.contains("held by") && shown.contains("host-1"), "{shown}");
    // Also when the edge is not there, and behind a restart.
    drop(first);
    node.kill();
    node.up();
    assert_eq!(RawEdge::unix(&node).attach(&attach("disk", 2)).unwrap_err().kind, ErrorKind::Conflict);
    let refused = node.varve(&["volume", "delete", "disk"]).fails(4);
    assert!(refused.contains("host-1"), "{refused}");
    let mut second = RawEdge::unix(&node);
    second.attach(&Attach { steal: true, ..attach("disk", 2) }).unwrap();
    let fenced = RawEdge::unix(&node).attach(&again("disk", 1, 2, &start, Sequence(0))).unwrap_err();
    assert_eq!(fenced.kind, ErrorKind::Fenced);
    // A person may end it too.
    node.varve(&["volume", "detach", "disk"]).fails(2);
    node.varve(&["volume", "detach", "disk", "--yes"]).ok();
    assert!(second.reply().is_err(), "it is hung up on");
    node.qemu_io("disk", &["write -P 1 0 1M"]);
    // And a client of another kind keeps an edge out.
    let mut script = real::nbdsh_command(&node.uri("disk"), "import sys; print('in', flush=True); sys.stdin.read()");
    let mut other = script.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut said = [0; 2];
    other.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    let refused = RawEdge::unix(&node).attach(&attach("disk", 3)).unwrap_err();
    assert_eq!((refused.kind, refused.holder.is_some()), (ErrorKind::Conflict, true), "{}", refused.message);
    drop(other.stdin.take());
    other.wait().unwrap();
}

#[test]
fn a_session_goes_on_over_connections_and_processes() {
    let mut node = node();
    let mut edge = RawEdge::unix(&node);
    let start = edge.attach(&attach("disk", 1)).unwrap();
    let written = edge.ask(Ask::Write, 0, 4096, &[1; 4096]).0;
    // A newer connection ends the older one, and an older one is not let in again.
    let mut newer = RawEdge::unix(&node);
    let seen = newer.attach(&again("disk", 1, 2, &start, written.safe)).unwrap();
    assert_eq!((seen.epoch, &seen.cuts[..]), (start.epoch, &[written.sequence][..]));
    assert!(edge.reply().is_err(), "it is hung up on");
    let late = RawEdge::unix(&node).attach(&again("disk", 1, 2, &start, written.safe)).unwrap_err();
    assert_eq!(late.kind, ErrorKind::Unavailable);
    assert_eq!(newer.ask(Ask::Read, 0, 4096, &[]).1, [1; 4096]);
    let last = newer.ask(Ask::Write, 4096, 4096, &[2; 4096]).0;
    node.kill();
    node.up();
    let mut edge = RawEdge::unix(&node);
    let seen = edge.attach(&again("disk", 1, 3, &seen, last.safe)).unwrap();
    assert!(seen.epoch > start.epoch);
    assert_eq!(seen.cuts, [last.sequence], "the kernel had it when the process died");
    assert_eq!(edge.ask(Ask::Read, 4096, 4096, &[]).1, [2; 4096]);
    let broken = again("disk", 1, 4, &seen, Sequence(last.sequence.0 + 100));
    assert_eq!(RawEdge::unix(&node).attach(&broken).unwrap_err().kind, ErrorKind::Corrupt);
}

#[test]
fn readers_share_and_snapshots_are_read() {
    let node = node();
    let shared = |volume, session| Attach { mode: Mode::Shared, ..attach(volume, session) };
    node.qemu_io("disk", &["write -P 7 0 1M"]);
    node.varve(&["snapshot", "create", "disk", "now"]).ok();
    let (mut one, mut two) = (RawEdge::unix(&node), RawEdge::unix(&node));
    assert!(one.attach(&shared("disk", 1)).unwrap().read_only);
    two.attach(&shared("disk", 2)).unwrap();
    assert_eq!(one.ask(Ask::Write, 0, 512, &[0; 512]).0.told, Told::Failed(ErrorKind::Conflict));
    assert_eq!(two.ask(Ask::Read, 0, 512, &[]).1, [7; 512]);
    assert_eq!(RawEdge::unix(&node).attach(&attach("disk", 3)).unwrap_err().kind, ErrorKind::Conflict);
    let mut snapshot = RawEdge::unix(&node);
    snapshot.attach(&shared("disk@now", 4)).unwrap();
    assert_eq!(snapshot.ask(Ask::Read, 0, 512, &[]).1, [7; 512]);
    assert_eq!(RawEdge::unix(&node).attach(&attach("disk@now", 5)).unwrap_err().kind, ErrorKind::Conflict);
    for nothing in ["none", "disk@none", "", "a/b", "disk@"] {
        assert_eq!(
            RawEdge::unix(&node).attach(&shared(nothing, 6)).unwrap_err().kind,
            ErrorKind::NotFound,
            "{nothing:?}"
        );
    }
}

#[test]
fn whoever_does_not_keep_to_it_is_told_once_and_nobody_else_notices() {
    let port = free_port().unwrap();
    let node =
        Node::start(&["--volume", "disk:64M", "--volume", "other:64M", "--edge-listen", &format!("127.0.0.1:{port}")]);
    let mut good = RawEdge::unix(&node);
    good.attach(&attach("disk", 1)).unwrap();
    let token = std::fs::read_to_string(node.data().join("edge-token")).unwrap();
    for wrong in ["", "0000", &"0".repeat(64)] {
        let asked = Attach { token: wrong.to_owned(), ..attach("other", 2) };
        let refused = RawEdge::tcp(port).attach(&asked).unwrap_err();
        assert!(refused.message.contains("token"), "{}", refused.message);
    }
    let asked = Attach { token: token.trim().to_owned(), ..attach("other", 2) };
    RawEdge::tcp(port).attach(&asked).unwrap();
    // Greetings that are none.
    let whole = attach("other", 3).encode().unwrap();
    let mut damaged = whole.to_vec();
    damaged[40] ^= 1;
    for garbage in [&b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"[..], &[0xff; 4096], &damaged, &whole[..40]] {
        let mut edge = RawEdge::unix(&node);
        edge.stream.write_all(garbage).unwrap();
        if garbage.len() > 40 {
            let refused = edge.greeting().unwrap().unwrap_err();
            assert!(refused.message.contains("Varve") || refused.message.contains("damaged"), "{}", refused.message);
        }
    }
    // Requests that are none.
    let mut edge = RawEdge::unix(&node);
    edge.attach(&Attach { steal: true, ..attach("other", 4) }).unwrap();
    edge.stream.write_all(&[0x55; 64]).unwrap();
    assert!(edge.reply().is_err(), "it is hung up on");
    // One that floods and never reads: it is not read from any more, and so stands still.
    let mut flood = RawEdge::unix(&node);
    flood.attach(&Attach { steal: true, ..attach("other", 5) }).unwrap();
    let flooding =
        std::thread::spawn(move || (0..200_000).take_while(|_| flood.send(Ask::Read, 0, MIB, &[]).is_ok()).count());
    for round in 0..50_u8 {
        assert_eq!(good.ask(Ask::Write, 0, 4096, &[round; 4096]).0.told, Told::Done);
        assert_eq!(good.ask(Ask::Read, 0, 4096, &[]).1, [round; 4096]);
    }
    node.varve(&["volume", "detach", "other", "--yes"]).ok();
    assert!(flooding.join().unwrap() < 200_000, "it stood still until it was hung up on");
    let log = node.log();
    // Of one host and one reason once, however often it came.
    assert_eq!(log.matches("the token is not that of this node's edges").count(), 1, "{log}");
    assert!(log.contains("broke the protocol"), "{log}");
}
