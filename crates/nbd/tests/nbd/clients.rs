// SPDX-License-Identifier: Apache-2.0
//! Programs that people use: what they are told about an export, and whether data comes back as it went in.

use super::server::Server;
use super::tools::{run, try_run};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// 24 MiB with holes of several sizes, none of it alike.
fn image(server: &Server) -> String {
    let mut bytes = vec![0u8; 24 << 20];
    let mut state = 1u64;
    for (number, block) in bytes.chunks_mut(64 << 10).enumerate() {
        if number % 3 != 1 && !(100..200).contains(&number) {
            for word in block.chunks_mut(8) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                word.copy_from_slice(&state.to_be_bytes());
            }
        }
    }
    let path = server.directory().join("image.raw");
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn nbdinfo_tells_what_an_export_can_do() {
    let server = Server::start();
    for uri in [server.unix("disk"), server.tcp("disk")] {
        let told = json(&run(&server, "nbdinfo", &["--json", &uri]));
        assert_eq!(told["protocol"], "newstyle-fixed");
        assert_eq!(told["structured"], true);
        let export = &told["exports"][0];
        assert_eq!(export["export-name"], "disk");
        assert_eq!(export["export-size"], 64 << 20);
        for can in
            ["can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"]
        {
            assert_eq!(export[can], true, "{can}: {export}");
        }
        assert_eq!(export["is_read_only"], false);
        assert_eq!(export["contexts"], json("[\"base:allocation\"]"));
        let sizes =
            ["block_size_minimum", "block_size_preferred", "block_size_maximum"].map(|key| export[key].as_u64());
        assert_eq!(sizes, [Some(512), Some(4096), Some(32 << 20)]);
    }
    let told = json(&run(&server, "nbdinfo", &["--json", &server.unix("disk@monday")]));
    assert_eq!(told["exports"][0]["is_read_only"], true);
    assert_eq!(run(&server, "nbdinfo", &["--size", &server.tcp("")]).trim(), (64 << 20).to_string(), "the default");
}

#[test]
fn nbdinfo_lists_the_exports_and_refusals_have_their_reason() {
    let server = Server::start();
    // One of the exports can not be had; the list names it all the same.
    let (_, text) = try_run(&server, "nbdinfo", &["--list", "--no-content", &server.unix("")]);
    for name in ["disk", "other", "disk@monday", "away"] {
        let (here, refused) = (format!("export=\"{name}\":"), format!("for export: {name}"));
        assert!(text.contains(if name == "away" { &refused } else { &here }), "{name} in {text}");
    }
    for (name, error, reason) in [
        ("none", "No such file or directory", "there is no volume"),
        ("away", "transport endpoint shutdown", "its store does not answer"),
    ] {
        let (success, text) = try_run(&server, "nbdinfo", &[&server.unix(name)]);
        assert!(!success && text.contains(error), "{text}");
        let (success, text) = try_run(&server, "qemu-img", &["info", "-f", "raw", &server.tcp(name)]);
        assert!(!success && text.contains(reason), "{text}");
    }
    server.wait_until_idle(4096);
}

#[test]
fn nbdinfo_shows_the_holes() {
    let server = Server::start();
    let write = ["-f", "raw", "-c", "write -P 7 1M 64k", "-c", "write -P 8 1088k 4k"];
    run(&server, "qemu-io", &[&write[..], &[&server.unix("disk")]].concat());
    let map = json(&run(&server, "nbdinfo", &["--map", "--json", &server.unix("disk")]));
    let extents: Vec<_> =
        map.as_array().unwrap().iter().map(|e| ["offset", "length", "type"].map(|k| e[k].as_u64())).collect();
    let expected = [[0, 1 << 20, 3], [1 << 20, 68 << 10, 0], [(1 << 20) + (68 << 10), (63 << 20) - (68 << 10), 3]];
    assert_eq!(extents, expected.map(|extent| extent.map(Some)));
}

#[test]
fn nbdcopy_brings_data_in_and_out() {
    for later in [false, true] {
        let server = Server::start();
        server.control.later.store(later, std::sync::atomic::Ordering::SeqCst);
        let image = image(&server);
        run(&server, "nbdcopy", &["--flush", &image, &server.unix("disk")]);
        let out = server.directory().join("out.raw");
        std::fs::File::create(&out).unwrap().set_len(64 << 20).unwrap();
        run(&server, "nbdcopy", &["--connections=3", &server.tcp("disk"), out.to_str().unwrap()]);
        let (image, out) = (std::fs::read(image).unwrap(), std::fs::read(out).unwrap());
        assert!(out.starts_with(&image), "later: {later}");
        assert!(out[image.len()..].iter().all(|byte| *byte == 0));
        assert!(server.control.flushes.load(std::sync::atomic::Ordering::SeqCst) > 0);
    }
}

#[test]
fn qemu_img_converts_and_compares() {
    for later in [false, true] {
        let server = Server::start();
        server.control.later.store(later, std::sync::atomic::Ordering::SeqCst);
        let image = image(&server);
        std::fs::File::options().write(true).open(&image).unwrap().set_len(64 << 20).unwrap();
        let disk = server.unix("disk");
        run(&server, "qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &image, &disk]);
        run(&server, "qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &disk]);
        run(
            &server,
            "qemu-img",
            &["convert", "-W", "-m", "8", "-f", "raw", "-O", "qcow2", &server.tcp("disk"), "out.qcow2"],
        );
        run(&server, "qemu-img", &["compare", "-f", "qcow2", "-F", "raw", "out.qcow2", &image]);
        let map = json(&run(&server, "qemu-img", &["map", "--output=json", "-f", "raw", &disk]));
        assert!(map.as_array().unwrap().iter().any(|extent| extent["data"] == false), "{map}");
    }
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    let server = Server::start();
    let script = "write -P 1 0 1M; write -z -u 64k 64k; write -z 128k 64k; discard 256k 64k; write -f -P 2 320k 512; flush; \
                  read -P 1 0 64k; read -P 0 64k 128k; read -P 1 192k 64k; read -P 0 256k 64k; read -P 2 320k 512; \
                  read -P 1 327k 1k; writev -P 3 2M 4k 8k 512; readv -P 3 2M 512 12k; aio_write -P 4 8M 2M; aio_flush; read -P 4 8M 2M";
    for uri in [server.unix("disk"), server.tcp("other")] {
        let mut arguments = vec!["-f", "raw", "-t", "writeback"];
        script.split(';').for_each(|command| arguments.extend(["-c", command.trim()]));
        arguments.push(&uri);
        let text = run(&server, "qemu-io", &arguments);
        assert!(!text.contains("failed") && !text.contains("rror"), "{text}");
    }
    let (_, text) = try_run(&server, "qemu-io", &["-f", "raw", "-c", "write 0 4k", &server.unix("disk@monday")]);
    assert!(text.contains("Permission denied"), "{text}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    for (later, uri) in [(false, 0), (true, 0), (false, 1)] {
        let server = Server::start();
        server.control.later.store(later, std::sync::atomic::Ordering::SeqCst);
        let uri = format!("--uri={}", [server.unix("disk"), server.tcp("disk")][uri]);
        let common = ["--name=verify", "--ioengine=nbd", &uri, "--size=16m", "--verify=crc32c", "--verify_fatal=1"];
        let sizes = ["--rw=randwrite", "--bsrange=512-256k", "--iodepth=32", "--randseed=7"];
        run(&server, "fio", &[&common[..], &sizes[..]].concat());
        let counts = server.stats.counts();
        assert!(counts.write_bytes >= 16 << 20 && counts.read_bytes >= 16 << 20, "{counts:?}");
        assert_eq!(counts.errors, 0);
        if !later {
            assert!(server.control.commits.load(std::sync::atomic::Ordering::SeqCst) <= counts.batches);
        }
    }
}
