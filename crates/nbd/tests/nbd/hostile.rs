// SPDX-License-Identifier: Apache-2.0
//! Clients that do what they must not. Each is turned away or left alone, harms nobody, and a good client is served after it.

use super::raw::{Raw, good_client};
use super::server::{DEADLINE, Server, Wish};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use varve_lab::process::wait_until;
use varve_nbd::option::{self, OptionHeader};
use varve_nbd::wire::{Command, REQUEST_BYTES};
use varve_serve::raise_open_file_limit;

#[test]
fn a_client_of_another_protocol_is_hung_up_on() {
    let server = Server::start();
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 4096], b"\0\0\0\x03garbage garbage garbage"] {
        let mut raw = Raw::connect(&server);
        raw.send(garbage);
        raw.until_hung_up();
        let mut tcp = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        tcp.set_read_timeout(Some(DEADLINE)).unwrap();
        tcp.write_all(garbage).unwrap();
        let end = tcp.read_to_end(&mut Vec::new());
        assert!(end.is_ok() || end.is_err_and(|e| e.kind() == IoKind::ConnectionReset));
        good_client(&server);
    }
    server.wait_until_idle(4096);
}

#[test]
fn an_export_that_is_not_there_ends_the_old_way_to_choose() {
    let server = Server::start();
    for name in [&b"none"[..], b"away", b"\xff\xfe", &[b'x'; 5000], b"a\0b"] {
        let mut raw = Raw::greeted(&server);
        raw.option(option::OPT_EXPORT_NAME, name);
        assert!(raw.until_hung_up().is_empty());
    }
    good_client(&server);
}

#[test]
fn garbage_after_the_handshake_is_hung_up_on() {
    let server = Server::start();
    for garbage in
        [vec![0; 28], vec![0xff; 100_000], b"IHAVEOPT\0\0\0\x01\0\0\0\0".to_vec(), vec![0x25, 0x60, 0x95, 0x14]]
    {
        let mut raw = Raw::attached(&server, "disk");
        raw.send(&garbage);
        assert!(raw.until_hung_up().is_empty());
        good_client(&server);
    }
    // What came before the garbage is answered.
    let mut raw = Raw::attached(&server, "disk");
    let mut bytes = Raw::request(Command::Trim, 0, 1, 0, 512);
    bytes.extend([0; 28]);
    raw.send(&bytes);
    raw.until_hung_up();
    wait_until(DEADLINE, "the trim", || Ok(server.control.commits.load(SeqCst) > 0)).unwrap();
    server.wait_until_idle(4096);
}

#[test]
fn a_request_that_never_ends_harms_nobody() {
    let server = Server::start();
    let whole = Raw::request(Command::Write, 0, 1, 0, 1 << 20);
    for length in [1, 4, 27, REQUEST_BYTES, REQUEST_BYTES + 1, REQUEST_BYTES + 500_000] {
        let mut bytes = whole.clone();
        bytes.resize(length, 7);
        bytes.truncate(length);
        let mut raw = Raw::attached(&server, "disk");
        raw.send(&bytes);
        good_client(&server);
        drop(raw);
        good_client(&server);
    }
    server.wait_until_idle(4096);
    let mut raw = Raw::attached(&server, "disk");
    raw.ask(Command::Read, 1, 0, 512);
    assert_eq!(raw.reply(512).data, [0; 512], "nothing of a half write is written");
}

#[test]
fn lengths_that_can_not_be_meant_are_refused_at_once() {
    let server = Server::start();
    let mut raw = Raw::attached(&server, "disk");
    raw.ask(Command::Write, 1, 0, u32::MAX);
    assert!(raw.until_hung_up().is_empty());
    good_client(&server);

    let mut raw = Raw::attached(&server, "disk");
    for (cookie, command) in (1..).zip([Command::Read, Command::Trim, Command::WriteZeroes, Command::Cache]) {
        raw.ask(command, cookie, 0, u32::MAX - 511);
        let reply = raw.reply(0);
        assert_eq!((reply.cookie, reply.error), (cookie, if command == Command::WriteZeroes { 28 } else { 22 }));
    }

    let mut raw = Raw::greeted(&server);
    let mut bytes = bytes::BytesMut::new();
    OptionHeader { option: option::OPT_GO, length: u32::MAX }.encode(&mut bytes);
    raw.send(&bytes);
    raw.until_hung_up();
    good_client(&server);
}

#[test]
fn options_that_are_too_large_or_malformed_are_answered_and_passed() {
    let server = Server::start();
    let mut raw = Raw::greeted(&server);
    for (which, data, expected) in [
        (option::OPT_GO, vec![0; 20_000], option::REP_ERR_TOO_BIG),
        (12345, vec![0; 500_000], option::REP_ERR_TOO_BIG),
        (12345, vec![0; 5_000], option::REP_ERR_UNSUP),
        (option::OPT_GO, vec![], option::REP_ERR_INVALID),
        (option::OPT_INFO, vec![0xff; 100], option::REP_ERR_INVALID),
        (option::OPT_LIST, vec![0], option::REP_ERR_INVALID),
        (option::OPT_STRUCTURED_REPLY, vec![0], option::REP_ERR_INVALID),
        (option::OPT_SET_META_CONTEXT, vec![0; 8], option::REP_ERR_INVALID),
        (option::OPT_STARTTLS, vec![], option::REP_ERR_POLICY),
        (option::OPT_STRUCTURED_REPLY, vec![], option::REP_ACK),
        (option::OPT_SET_META_CONTEXT, vec![0xff; 12], option::REP_ERR_INVALID),
        (option::OPT_SET_META_CONTEXT, [&[0u8; 4][..], &[0xff; 4]].concat(), option::REP_ERR_INVALID),
    ] {
        raw.option(which, &data);
        let (kind, _) = raw.option_reply();
        assert_eq!(kind, expected, "option {which} with {} bytes", data.len());
    }
    raw.option(option::OPT_ABORT, b"bye");
    assert_eq!(raw.option_reply().0, option::REP_ACK);
    assert!(raw.until_hung_up().is_empty());
    good_client(&server);
}

#[test]
fn a_flood_of_options_ends() {
    let server = Server::start();
    let raw = Raw::greeted(&server);
    let mut flood = bytes::BytesMut::new();
    (0..20_000u32).for_each(|n| OptionHeader { option: 1000 + n, length: 0 }.encode(&mut flood));
    let mut writer = raw.0.try_clone().unwrap();
    let sender = std::thread::spawn(move || drop(writer.write_all(&flood)));
    let replies = raw.until_hung_up();
    sender.join().unwrap();
    assert!(replies.len() <= 1000 * 100, "{}", replies.len());
    good_client(&server);
}

#[test]
fn a_client_that_says_nothing_is_not_waited_for() {
    let server = Server::with(Wish { handshake: Duration::from_millis(200), ..Wish::default() });
    let silent = Raw::connect(&server);
    let half = Raw::greeted(&server);
    let mut dripping = Raw::greeted(&server);
    dripping.send(b"IHAVE");
    for raw in [silent, half, dripping] {
        raw.until_hung_up();
    }
    good_client(&server);
    server.wait_until_idle(4096);
}

#[test]
fn a_client_that_reads_no_replies_stops_being_read() {
    for (later, command) in
        [(false, Command::Read), (true, Command::Read), (false, Command::Cache), (true, Command::Cache)]
    {
        let server = Server::with(Wish { size: 1 << 20, ..Wish::default() });
        server.control.later.store(later, SeqCst);
        let raw = Raw::attached(&server, "disk");
        let length = if command == Command::Read { 1 << 20 } else { 512 };
        let requests = Raw::request(command, 0, 1, 0, length).repeat(4096);
        raw.0.set_nonblocking(true).unwrap();
        // The replies of this many are more than all bounded buffers between the two hold.
        let enough = if command == Command::Read { 200 } else { 200_000 };
        let acted_on = || server.stats.counts().reads + server.stats.counts().others;
        let mut sent = 0;
        let deadline = Instant::now() + Duration::from_secs(3);
        while acted_on() < enough && Instant::now() < deadline {
            match (&raw.0).write(&requests[sent % REQUEST_BYTES..]) {
                Ok(now) => sent += now,
                Err(error) if error.kind() == IoKind::WouldBlock => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(acted_on() > 0 && acted_on() < enough, "{} requests of a client that reads nothing", acted_on());
        assert!(sent < 64 << 20, "{sent}");
        good_client(&server);
        drop(raw);
        server.wait_until_idle(4096);
    }
}

#[test]
fn a_client_that_vanishes_with_requests_under_way_leaves_nothing() {
    let server = Server::start();
    server.control.later.store(true, SeqCst);
    server.control.hold.store(true, SeqCst);
    let mut raw = Raw::attached(&server, "disk");
    (0..1100).for_each(|cookie| raw.write(cookie, 0, &[1; 512]));
    wait_until(DEADLINE, "as many as may wait", || Ok(server.control.writes.load(SeqCst) == 1024)).unwrap();
    drop(raw);
    server.control.hold.store(false, SeqCst);
    server.wait_until_idle(4096);
    good_client(&server);
}

#[test]
fn a_thousand_clients_at_once_are_served() {
    assert!(raise_open_file_limit(8192).unwrap() >= 4096, "the limit of open descriptors is too low for this test");
    let server = Server::start();
    let mut clients: Vec<Raw> = (0..1000).map(|_| Raw::connect(&server)).collect();
    for raw in &mut clients {
        assert_eq!(raw.take(option::GREETING_BYTES).len(), option::GREETING_BYTES);
        raw.send(&3u32.to_be_bytes());
        raw.option(option::OPT_EXPORT_NAME, b"disk");
    }
    for (cookie, raw) in (0..).zip(&mut clients) {
        raw.take(10);
        raw.write(cookie, 512 * cookie, &[cookie as u8; 512]);
    }
    wait_until(DEADLINE, "a thousand connections", || Ok(server.stats.counts().connections == 1000)).unwrap();
    for (cookie, raw) in (0..).zip(&mut clients) {
        assert_eq!(raw.reply(0).cookie, cookie);
        raw.ask(Command::Read, cookie, 512 * cookie, 512);
    }
    for (cookie, raw) in (0..).zip(&mut clients) {
        assert_eq!(raw.reply(512).data, [cookie as u8; 512]);
    }
    drop(clients);
    server.wait_until_idle(4096);
    good_client(&server);
}

#[test]
fn a_client_too_many_is_hung_up_on_until_another_leaves() {
    let server = Server::with(Wish { most: 3, ..Wish::default() });
    let mut held: Vec<Raw> = (0..3).map(|_| Raw::attached(&server, "disk")).collect();
    for _ in 0..50 {
        let stream = UnixStream::connect(server.socket()).unwrap();
        assert!(Raw(stream).until_hung_up().is_empty());
    }
    held.pop();
    wait_until(DEADLINE, "a free place", || Ok(server.slots.free() == 1)).unwrap();
    good_client(&server);
    held[0].ask(Command::Read, 1, 0, 512);
    assert_eq!(held[0].reply(512).error, 0, "those that were there are not disturbed");
}
