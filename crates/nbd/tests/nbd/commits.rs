// SPDX-License-Identifier: Apache-2.0
//! Commits that have to wait: nothing is answered before its commit completed, everything of the batch is then, and all else goes on meanwhile.

use super::raw::{Raw, Reply, good_client};
use super::server::{DEADLINE, Server};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::SeqCst;
use varve_lab::process::wait_until;
use varve_nbd::wire::{self, Command};

/// A server whose commits wait to be ended, and a client of it.
fn start() -> (Server, Raw) {
    let server = Server::start();
    server.control.later_commits.store(true, SeqCst);
    let raw = Raw::attached(&server, "disk");
    (server, raw)
}

/// Requests that change something, with the cookies from `first`, sent as one burst.
fn burst(raw: &mut Raw, first: u64, count: u64) {
    let mut burst = Vec::new();
    for cookie in first..first + count {
        let command = [Command::Trim, Command::WriteZeroes, Command::Write][cookie as usize % 3];
        burst.extend(Raw::request(command, 0, cookie, 512 * cookie, 512));
        burst.extend([1; 512].iter().filter(|_| command == Command::Write));
    }
    raw.send(&burst);
}

fn wait_for_commits(server: &Server, count: u64) {
    wait_until(DEADLINE, "the commits", || Ok(server.control.commits.load(SeqCst) == count)).unwrap();
}

/// The cookies of the next replies, each of which has this error.
fn cookies(raw: &mut Raw, count: usize, error: u32) -> BTreeSet<u64> {
    let replies = (0..count).map(|_| raw.reply(0));
    replies.inspect(|reply| assert_eq!(reply.error, error, "request {}", reply.cookie)).map(|r| r.cookie).collect()
}

/// Reads, and asserts that this is what is answered next.
fn read_is_next(raw: &mut Raw, cookie: u64) {
    raw.ask(Command::Read, cookie, 1 << 20, 512);
    assert_eq!(raw.reply(512), Reply { cookie, error: 0, data: vec![0; 512] }, "nothing else is answered before");
}

#[test]
fn a_batch_is_answered_when_its_commit_completed_and_not_before() {
    let (server, mut raw) = start();
    burst(&mut raw, 1, 20);
    wait_for_commits(&server, 1);
    (100..120).for_each(|cookie| read_is_next(&mut raw, cookie));
    assert_eq!(server.control.unanswered.load(SeqCst), 20, "one commit for all of them");
    server.control.end_commit(1, true);
    assert_eq!(cookies(&mut raw, 20, 0), (1..21).collect());
    assert_eq!((server.stats.counts().errors, server.control.commits.load(SeqCst)), (0, 1));
    // The list of that batch serves the next.
    burst(&mut raw, 1, 20);
    wait_for_commits(&server, 2);
    read_is_next(&mut raw, 100);
    server.control.end_commit(2, true);
    assert_eq!(cookies(&mut raw, 20, 0), (1..21).collect());
}

#[test]
fn a_commit_that_fails_later_fails_all_of_its_batch_and_nothing_else() {
    let (server, mut raw) = start();
    burst(&mut raw, 1, 20);
    wait_for_commits(&server, 1);
    burst(&mut raw, 21, 3);
    wait_for_commits(&server, 2);
    server.control.end_commit(1, false);
    assert_eq!(cookies(&mut raw, 20, 5), (1..21).collect());
    read_is_next(&mut raw, 100);
    server.control.end_commit(2, true);
    assert_eq!(cookies(&mut raw, 3, 0), (21..24).collect());
    assert_eq!(server.stats.counts().errors, 20);
}

#[test]
fn commits_under_way_together_complete_in_any_order() {
    let (server, mut raw) = start();
    for commit in 1..6 {
        burst(&mut raw, 10 * commit, commit);
        wait_for_commits(&server, commit);
    }
    for commit in [2, 5, 1, 4, 3] {
        read_is_next(&mut raw, 100 + commit);
        server.control.end_commit(commit, commit != 4);
        let error = if commit == 4 { 5 } else { 0 };
        assert_eq!(cookies(&mut raw, commit as usize, error), (10 * commit..11 * commit).collect());
    }
    server.control.later_commits.store(false, SeqCst);
    burst(&mut raw, 1, 5);
    assert_eq!(cookies(&mut raw, 5, 0), (1..6).collect(), "and one that is done at once is answered at once");
}

#[test]
fn a_write_with_fua_waits_for_its_commit_and_a_flush_is_asked_for_behind_it() {
    let (server, mut raw) = start();
    let mut burst = Raw::request(Command::Write, wire::CMD_FLAG_FUA, 1, 0, 512);
    burst.extend([1; 512]);
    burst.extend(Raw::request(Command::Trim, 0, 2, 512, 512));
    burst.extend(Raw::request(Command::Flush, 0, 3, 0, 0));
    burst.extend(Raw::request(Command::Trim, 0, 4, 1024, 512));
    raw.send(&burst);
    // That no flush came over uncommitted writes is asserted by the server when it ends.
    assert_eq!(raw.reply(0), Reply { cookie: 3, error: 0, data: Vec::new() }, "the device orders it, nobody waits");
    wait_for_commits(&server, 2);
    assert_eq!((server.control.fua.load(SeqCst), server.control.flushes.load(SeqCst)), (1, 1));
    server.control.end_commit(2, true);
    assert_eq!(cookies(&mut raw, 1, 0), BTreeSet::from([4]));
    server.control.end_commit(1, true);
    assert_eq!(cookies(&mut raw, 2, 0), BTreeSet::from([1, 2]));
}

#[test]
fn requests_that_wait_for_a_commit_are_bounded() {
    let (server, mut raw) = start();
    let trims: Vec<u8> = (0..3000).flat_map(|cookie| Raw::request(Command::Trim, 0, cookie, 0, 512)).collect();
    raw.send(&trims);
    wait_until(DEADLINE, "as many as may wait", || Ok(server.control.unanswered.load(SeqCst) == 1024)).unwrap();
    // All commits that there will be: one may cover a single request.
    (1..=3000).for_each(|number| server.control.end_commit(number, true));
    assert_eq!(cookies(&mut raw, 3000, 0), (0..3000).collect());
    assert_eq!(server.control.most_unanswered.load(SeqCst), 1024);
}

#[test]
fn a_client_that_vanishes_meanwhile_leaves_nothing() {
    let (server, mut raw) = start();
    burst(&mut raw, 1, 20);
    wait_for_commits(&server, 1);
    burst(&mut raw, 21, 20);
    wait_for_commits(&server, 2);
    drop(raw);
    server.wait_until_idle(4096);
    assert_eq!((server.control.dropped_commits.load(SeqCst), server.control.unanswered.load(SeqCst)), (2, 0));
    server.control.later_commits.store(false, SeqCst);
    good_client(&server);
}

#[test]
fn a_disconnect_waits_for_the_commits() {
    let (server, mut raw) = start();
    burst(&mut raw, 1, 20);
    raw.ask(Command::Disconnect, 99, 0, 0);
    wait_until(DEADLINE, "the writes", || Ok(server.control.writes.load(SeqCst) == 20)).unwrap();
    assert_eq!(server.stats.counts().connections, 1, "the client is waited for");
    // The good-bye may have come in a turn of its own, but no commit with it.
    (1..=20).for_each(|number| server.control.end_commit(number, true));
    assert_eq!(raw.until_hung_up().len(), 20 * 16);
    assert_eq!(server.control.dropped_commits.load(SeqCst), 0);
}
