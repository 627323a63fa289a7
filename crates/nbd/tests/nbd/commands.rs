// SPDX-License-Identifier: Apache-2.0
//! Every command and flag: by nbdsh, which can be told to send what the protocol forbids, and by a raw client where the device misbehaves.

use super::ram::KINDS;
use super::raw::{Raw, Reply, good_client};
use super::server::{DEADLINE, Server};
use super::tools::nbdsh;
use std::sync::atomic::Ordering::SeqCst;
use varve_lab::process::wait_until;
use varve_nbd::option;
use varve_nbd::wire::{self, Command};
use varve_serve::Operation;
use varve_types::ErrorKind;

const EVERY_COMMAND: &str = r#"
def everything(uri, structured):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    if structured:
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    assert h.get_structured_replies_negotiated() == structured
    assert h.get_size() == 64 << 20 and not h.is_read_only()
    a, b = bytes(range(256)) * 16, b'b' * 512
    h.pwrite(a, 0)
    h.pwrite(b, 1024, nbd.CMD_FLAG_FUA)
    assert h.pread(4096, 0) == a[:1024] + b + a[1536:]
    assert h.pread(512, 1024, nbd.CMD_FLAG_FUA) == b, 'FUA is for every command'
    if structured:
        assert h.pread(1024, 512, nbd.CMD_FLAG_DF) == a[512:1024] + b
    h.flush()
    h.zero(512, 0)
    h.zero(512, 512, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(1536, 0) == bytes(1024) + b
    h.trim(512, 1024)
    h.trim(512, 1536, nbd.CMD_FLAG_FUA)
    assert h.pread(4096, 0) == bytes(2048) + a[2048:]
    h.cache(1 << 20, 0)
    h.zero(64 << 20, 0)
    h.trim(64 << 20, 0)
    assert h.pread(32 << 20, 0) == bytes(32 << 20)
    big = bytes(range(256)) * (32 << 12)
    h.pwrite(big, 32 << 20)
    assert h.pread(32 << 20, 32 << 20) == big
    if structured:
        assert h.pread(32 << 20, 32 << 20, nbd.CMD_FLAG_DF) == big
        chunks = []
        def note(data, offset, status, error):
            chunks.append((offset, bytes(data), status))
        h.pread_structured(4 << 20, 33 << 20, note)
        assert len(chunks) > 1 and all(s == nbd.READ_DATA for _, _, s in chunks)
        assert b''.join(d for _, d, _ in sorted(chunks)) == big[1 << 20:5 << 20]
        chunks.clear()
        h.pread_structured(4 << 20, 33 << 20, note, nbd.CMD_FLAG_DF)
        assert len(chunks) == 1
    h.trim(64 << 20, 0)
    h.shutdown()
everything(unix, True)
everything(tcp, True)
everything(unix, False)
everything(tcp, False)
"#;

#[test]
fn every_command_and_flag_does_what_it_says() {
    for later in [false, true] {
        let server = Server::start();
        server.control.later.store(later, SeqCst);
        nbdsh(&server, EVERY_COMMAND);
        assert_eq!(server.control.flushes.load(SeqCst), 4);
        assert_eq!(server.control.prefetches.load(SeqCst), 4);
        assert_eq!(server.control.fua.load(SeqCst), 4 * 3);
        let counts = server.stats.counts();
        assert_eq!((counts.flushes, counts.errors), (4, 0));
        server.wait_until_idle(4096);
        // Large reads are answered in pieces, and are one request all the same.
        let counts = server.stats.counts();
        let timed = Operation::ALL.map(|operation| server.stats.latency(operation).count());
        assert_eq!(timed, [counts.reads, counts.writes, counts.flushes, counts.discards]);
    }
}

#[test]
fn block_status_merges_and_stops_where_it_is_told() {
    let server = Server::start();
    let script = r#"
for uri in (unix, tcp):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.trim(64 << 20, 0)
    h.pwrite(bytes(4096), 8192)
    def status(count, offset, flags=0):
        found = []
        h.block_status(count, offset, lambda context, at, entries, error: found.append((context, at, list(entries))), flags)
        (context, at, entries), = found
        assert context == nbd.CONTEXT_BASE_ALLOCATION and at == offset
        return entries
    hole = nbd.STATE_HOLE | nbd.STATE_ZERO
    assert status(64 << 20, 0) == [8192, hole, 4096, 0, (64 << 20) - 12288, hole]
    assert status(64 << 20, 0, nbd.CMD_FLAG_REQ_ONE) == [8192, hole]
    assert status(9216, 0) == [8192, hole, 1024, 0]
    assert status(512, 8704) == [512, 0]
    assert status((64 << 20) - 8192, 8192, nbd.CMD_FLAG_REQ_ONE) == [4096, 0]
    expect(errno.EINVAL, h.block_status, 1024, (64 << 20) - 512, lambda *a: 0)
    h.shutdown()
"#;
    nbdsh(&server, script);
}

#[test]
fn what_is_wrong_is_refused_and_the_connection_goes_on() {
    let server = Server::start();
    let script = r#"
for uri in (unix, tcp):
    for structured in (True, False):
        h = nbd.NBD()
        h.set_strict_mode(0)
        h.set_request_structured_replies(structured)
        h.connect_uri(uri)
        end = h.get_size()
        expect(errno.EINVAL, h.pread, 511, 0)
        expect(errno.EINVAL, h.pread, 512, 1)
        expect(errno.EINVAL, h.pwrite, b'x' * 100, 512)
        expect(errno.EINVAL, h.pwrite, b'x' * 512, 100)
        expect(errno.EINVAL, h.trim, 100, 0)
        expect(errno.EINVAL, h.zero, 512, 3)
        expect(errno.EINVAL, h.cache, 512, 3)
        expect(errno.EINVAL, h.pread, 1024, end - 512)
        expect(errno.EINVAL, h.pread, 512, end)
        expect(errno.EINVAL, h.trim, 1024, end - 512)
        expect(errno.EINVAL, h.cache, 1024, end - 512)
        expect(errno.ENOSPC, h.pwrite, b'x' * 1024, end - 512)
        expect(errno.ENOSPC, h.zero, 1024, end - 512)
        expect(errno.EINVAL, h.pread, (32 << 20) + 512, 0)
        expect(errno.EINVAL, h.pwrite, bytes((32 << 20) + 512), 0)
        expect(errno.EINVAL, h.pwrite, bytes(64 << 20), 0)
        expect(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_REQ_ONE)
        expect(errno.EINVAL, h.pwrite, bytes(512), 0, nbd.CMD_FLAG_FAST_ZERO)
        assert h.pread(512, 0) == bytes(512), 'the connection goes on'
        assert h.pwrite(b'', 0) is None and h.zero(0, 0) is None
        h.shutdown()
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(readonly)
assert h.is_read_only()
for function in (h.pwrite, h.trim, h.zero):
    expect(errno.EPERM, function, b'x' * 512 if function == h.pwrite else 512, 0)
assert h.pread(512, 0) == bytes(512)
h.flush()
h.shutdown()
"#;
    nbdsh(&server, script);
    assert_eq!(server.control.writes.load(SeqCst), 0);
}

#[test]
fn options_are_answered_as_the_specification_says() {
    let server = Server::start();
    let script = r#"
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(unix)
assert h.get_protocol() == 'newstyle-fixed'
names = []
h.opt_list(lambda name, text: names.append(name))
assert names == ['disk', 'other', 'disk@monday', 'away'], names
def contexts(*queries):
    found = []
    h.clear_meta_contexts()
    for query in queries:
        h.add_meta_context(query)
    h.opt_list_meta_context(lambda name: found.append(name))
    h.clear_meta_contexts()
    return found
assert contexts() == ['base:allocation']
assert contexts('base:') == ['base:allocation']
assert contexts('qemu:', 'base:allocation') == ['base:allocation']
assert contexts('base:none', 'x:y') == []
h.set_export_name('none')
expect(errno.ENOENT, h.opt_info)
expect(errno.ENOENT, h.opt_go)
h.set_export_name('away')
expect(errno.ESHUTDOWN, h.opt_info)
h.set_export_name('disk@monday')
h.set_full_info(True)
h.opt_info()
assert h.get_size() == 64 << 20 and h.is_read_only()
assert h.get_canonical_export_name() == 'disk@monday'
assert h.get_export_description() == 'a Varve snapshot'
h.set_export_name('')
h.opt_go()
assert h.get_canonical_export_name() == 'disk'
assert h.pread(512, 0) == bytes(512)
h.shutdown()

h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(unix)
h.opt_abort()
"#;
    nbdsh(&server, script);
    server.wait_until_idle(4096);
}

#[test]
fn connections_of_one_client_see_each_other() {
    let server = Server::start();
    let script = r#"
handles = [nbd.NBD() for _ in range(4)]
for number, h in enumerate(handles):
    h.connect_uri(unix if number % 2 else tcp)
    assert h.can_multi_conn()
for number, h in enumerate(handles):
    h.pwrite(bytes([number + 1]) * 512, number * 512)
handles[0].flush()
for h in handles:
    assert h.pread(2048, 0) == b''.join(bytes([n + 1]) * 512 for n in range(4))
    h.shutdown()
"#;
    nbdsh(&server, script);
}

#[test]
fn a_device_that_grew_can_be_used_at_once() {
    let server = Server::start();
    let mut raw = Raw::attached(&server, "disk");
    raw.write(1, 64 << 20, &[7; 512]);
    assert_eq!(raw.reply(0).error, 28);
    server.control.size.store((64 << 20) + 512, SeqCst);
    raw.write(2, 64 << 20, &[7; 512]);
    assert_eq!(raw.reply(0).error, 0);
    raw.ask(Command::Read, 3, 64 << 20, 512);
    assert_eq!(raw.reply(512), Reply { cookie: 3, error: 0, data: vec![7; 512] });
}

#[test]
fn a_failed_commit_fails_every_write_of_its_batch_and_no_read() {
    let server = Server::start();
    let mut raw = Raw::attached(&server, "disk");
    server.control.fail_commit.store(true, SeqCst);
    let mut burst = Vec::new();
    for cookie in 0..10 {
        let command = [Command::Trim, Command::WriteZeroes, Command::Read][cookie as usize % 3];
        burst.extend(Raw::request(command, 0, cookie, 512 * cookie, 512));
    }
    raw.send(&burst);
    for _ in 0..10 {
        // A read that succeeds has data, so its cookie has to be looked at first.
        let head = raw.take(16);
        let (error, cookie) = (head[7], u64::from(head[15]));
        assert_eq!(error, if cookie % 3 == 2 { 0 } else { 5 }, "request {cookie}");
        raw.take(if error == 0 { 512 } else { 0 });
    }
    server.control.fail_commit.store(false, SeqCst);
    raw.ask(Command::Trim, 11, 0, 512);
    assert_eq!(raw.reply(0), Reply { cookie: 11, error: 0, data: Vec::new() });
    assert!(server.control.commits.load(SeqCst) >= 2);
}

#[test]
fn each_kind_of_error_has_its_number() {
    for later in [false, true] {
        let server = Server::start();
        server.control.later.store(later, SeqCst);
        let mut raw = Raw::attached(&server, "disk");
        for (number, kind) in KINDS.iter().enumerate() {
            server.control.fail.store(number as u64 + 1, SeqCst);
            let expected = ErrorKind::parse(kind).unwrap().nbd();
            for command in [Command::Read, Command::Flush, Command::Trim, Command::WriteZeroes, Command::Cache] {
                raw.ask(command, 9, 0, if command == Command::Flush { 0 } else { 512 });
                assert_eq!(raw.reply(512).error, expected, "{kind} {command:?}");
            }
            raw.write(9, 0, &[1; 512]);
            assert_eq!(raw.reply(0).error, expected, "{kind}");
        }
        server.control.fail.store(0, SeqCst);
        raw.write(9, 0, &[1; 512]);
        assert_eq!(raw.reply(0).error, 0, "the connection goes on");
        assert_eq!(server.stats.counts().errors, 6 * KINDS.len() as u64);
    }
}

#[test]
fn a_large_read_that_fails_says_so_once_and_ends() {
    for later in [false, true] {
        let server = Server::start();
        server.control.later.store(later, SeqCst);
        server.control.fail.store(7, SeqCst);
        let script = r#"
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(unix)
for _ in range(3):
    expect(errno.EIO, h.pread, 5 << 20, 0)
    expect(errno.EIO, h.pread, 5 << 20, 0, nbd.CMD_FLAG_DF)
h.shutdown()
"#;
        nbdsh(&server, script);
        server.wait_until_idle(4096);
    }
}

#[test]
fn a_flush_waits_for_the_writes_before_it() {
    let server = Server::start();
    let mut raw = Raw::attached(&server, "disk");
    server.control.later.store(true, SeqCst);
    server.control.hold.store(true, SeqCst);
    raw.write(1, 0, &[1; 512]);
    raw.ask(Command::Flush, 2, 0, 0);
    raw.ask(Command::Cache, 3, 0, 512);
    wait_until(DEADLINE, "the request behind the flush", || Ok(server.control.prefetches.load(SeqCst) == 1)).unwrap();
    assert_eq!(server.control.flushes.load(SeqCst), 0, "the write is not through");
    server.control.hold.store(false, SeqCst);
    let mut cookies: Vec<u64> = (0..3).map(|_| raw.reply(0).cookie).collect();
    assert_eq!(server.control.flushes.load(SeqCst), 1);
    let place = |cookie| cookies.iter().position(|c| *c == cookie).unwrap();
    assert!(place(1) < place(2), "{cookies:?}");
    cookies.sort_unstable();
    assert_eq!(cookies, [1, 2, 3]);
}

#[test]
fn a_disconnect_waits_for_what_was_asked() {
    let server = Server::start();
    let mut raw = Raw::attached(&server, "disk");
    server.control.later.store(true, SeqCst);
    server.control.hold.store(true, SeqCst);
    (0..20).for_each(|cookie| raw.write(cookie, 512 * cookie, &[1; 512]));
    raw.ask(Command::Disconnect, 99, 0, 0);
    wait_until(DEADLINE, "the writes", || Ok(server.control.writes.load(SeqCst) == 20)).unwrap();
    assert_eq!(server.stats.counts().connections, 1, "the client is waited for");
    server.control.hold.store(false, SeqCst);
    let replies = raw.until_hung_up();
    assert_eq!(replies.len(), 20 * 16);
    server.control.later.store(false, SeqCst);
    good_client(&server);
}

#[test]
fn an_unknown_command_is_refused_and_nothing_else_happens() {
    let server = Server::start();
    let mut raw = Raw::attached(&server, "disk");
    for number in [8, 9, 100, u16::MAX] {
        raw.ask(Command::from_number(number), u64::from(number), 0, 512);
        assert_eq!(raw.reply(0), Reply { cookie: u64::from(number), error: 22, data: Vec::new() });
    }
    raw.ask(Command::BlockStatus, 5, 0, 512);
    assert_eq!(raw.reply(0).error, 22, "not agreed");
    raw.ask(Command::Flush, 6, 512, 512);
    assert_eq!(raw.reply(0).error, 22);
    raw.ask(Command::Read, 7, u64::MAX - 511, 512);
    assert_eq!(raw.reply(512).error, 22);
    assert_eq!(server.stats.counts().errors, 7);
}

/// The data of an option about metadata contexts.
fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
    let count = (queries.len() as u32).to_be_bytes().to_vec();
    [vec![text(name), count], queries.iter().map(|query| text(query)).collect()].concat().concat()
}

#[test]
fn metadata_contexts_are_of_the_export_that_they_were_chosen_for() {
    let server = Server::start();
    for (choices, expected) in [
        (&[("disk", &["base:allocation"][..])][..], true),
        (&[("disk", &["x:y", "base:allocation"])], true),
        (&[("disk", &["base:"])], false),
        (&[("disk", &[])], false),
        (&[("other", &["base:allocation"])], false),
        (&[("disk", &["base:allocation"]), ("disk", &[])], false),
        (&[("disk", &["base:allocation"]), ("none", &["base:allocation"])], false),
    ] {
        let mut raw = Raw::greeted(&server);
        raw.option(option::OPT_STRUCTURED_REPLY, &[]);
        assert_eq!(raw.option_reply().0, option::REP_ACK);
        for (name, queries) in choices {
            raw.option(option::OPT_SET_META_CONTEXT, &contexts(name, queries));
            while raw.option_reply().0 == option::REP_META_CONTEXT {}
        }
        raw.option(option::OPT_GO, &[&4u32.to_be_bytes()[..], b"disk", &[0, 0]].concat());
        while raw.option_reply().0 == option::REP_INFO {}
        raw.ask(Command::BlockStatus, 7, 0, 512);
        let head = raw.take(wire::CHUNK_BYTES);
        let kind = u16::from_be_bytes([head[6], head[7]]);
        let wanted = if expected { wire::REPLY_TYPE_BLOCK_STATUS } else { wire::REPLY_TYPE_ERROR };
        assert_eq!(kind, wanted, "{choices:?}");
    }
}
