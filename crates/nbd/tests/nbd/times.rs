// SPDX-License-Identifier: Apache-2.0
//! How long requests took, as the server counts it: every request once, and no shorter than it was.

use super::raw::Raw;
use super::server::{DEADLINE, Server};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use varve_lab::process::wait_until;
use varve_nbd::wire::Command;
use varve_serve::Operation;

/// Waits until so many of each operation were counted; the last ones are counted a moment after their answers came.
fn wait_for(server: &Server, wanted: [u64; 4]) {
    let counted = || Operation::ALL.map(|operation| server.stats.latency(operation).count());
    wait_until(DEADLINE, "the counts", || Ok(counted() == wanted)).unwrap_or_else(|_| panic!("{:?}", counted()));
}

#[test]
fn each_request_that_was_acted_on_is_counted_once() {
    for later in [false, true] {
        let server = Server::start();
        server.control.later.store(later, SeqCst);
        let mut raw = Raw::attached(&server, "disk");
        // One burst: a turn of many requests, and answers that are sent together.
        let mut burst = Vec::new();
        for cookie in 0..50 {
            burst.extend(Raw::request(Command::Trim, 0, cookie, 0, 512));
            burst.extend(Raw::request(Command::Flush, 0, cookie, 0, 0));
            burst.extend(Raw::request(Command::Cache, 0, cookie, 0, 512));
        }
        // This one is refused: it never was at work.
        burst.extend(Raw::request(Command::Read, 0, 99, u64::MAX - 511, 512));
        raw.send(&burst);
        (0..151).for_each(|_| drop(raw.reply(0)));
        for cookie in 0..3 {
            raw.write(cookie, 0, &[1; 512]);
            assert_eq!(raw.reply(0).error, 0);
            raw.ask(Command::Read, cookie, 0, 512);
            assert_eq!(raw.reply(512).error, 0);
        }
        server.control.fail.store(1, SeqCst);
        raw.ask(Command::Read, 9, 0, 512);
        assert!(raw.reply(512).error != 0, "a failure is an answer too");
        wait_for(&server, [4, 3, 50, 50]);
    }
}

#[test]
fn a_request_takes_as_long_as_what_holds_it() {
    const HELD: Duration = Duration::from_millis(20);
    let server = Server::start();
    let mut raw = Raw::attached(&server, "disk");
    raw.ask(Command::Read, 1, 0, 512);
    raw.reply(512);
    server.control.later.store(true, SeqCst);
    server.control.hold.store(true, SeqCst);
    raw.write(2, 0, &[1; 512]);
    raw.ask(Command::Flush, 3, 0, 0);
    wait_until(DEADLINE, "the write", || Ok(server.control.writes.load(SeqCst) == 1)).unwrap();
    let since = Instant::now();
    wait_until(DEADLINE, "time to pass", || Ok(since.elapsed() >= HELD)).unwrap();
    server.control.hold.store(false, SeqCst);
    assert_eq!([raw.reply(0).cookie, raw.reply(0).cookie], [2, 3]);
    wait_for(&server, [1, 1, 1, 0]);
    let sum = |operation| server.stats.latency(operation).sum();
    assert!(sum(Operation::Write) >= HELD, "{:?}", sum(Operation::Write));
    // The flush was read in the same turn or a later one, and waits for the write.
    assert!(sum(Operation::Flush) > Duration::ZERO && sum(Operation::Read) > Duration::ZERO);
}
