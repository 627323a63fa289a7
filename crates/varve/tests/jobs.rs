// SPDX-License-Identifier: Apache-2.0
//! The long operations of a real node: checks with and without it, flattening, the import of its pool by another one; and its metrics.

#![allow(clippy::unwrap_used)]

mod real;

use real::{DEADLINE, Node, varve};
use varve_lab::process::wait_until;

#[test]
fn a_check_finds_nothing_wrong_and_then_what_was_broken() {
    let mut node = Node::start(&["--volume", "disk:256M"]);
    node.varve(&["volume", "set", "disk", "segment-size=4M", "compression=none"]).ok();
    node.qemu_io("disk", &["write -P 1 0 8M", "write -P 2 4M 8M"]);
    node.varve(&["snapshot", "create", "disk", "s"]).ok();
    node.qemu_io("disk", &["write -P 3 0 2M"]);
    node.varve(&["clone", "disk@s", "copy"]).ok();
    node.qemu_io("copy", &["write -P 4 1M 1M"]);
    let report = node.varve(&["check", "--json"]).json();
    let volumes = report["volumes"].as_array().unwrap();
    assert_eq!(volumes.len(), 2, "{report}");
    for volume in volumes {
        assert_eq!(volume["errors_total"], 0, "{report}");
        assert!(volume["blocks_verified"].as_u64().unwrap() > 0, "{report}");
    }
    assert!(node.varve(&["check", "disk"]).ok().contains("no errors"));
    node.varve(&["check", "none"]).fails(3);

    let offline = || varve().arg("check").arg("--data").arg(node.data()).arg("--json").output().unwrap();
    let busy: real::Run = offline().into();
    assert!(busy.fails(4).contains("in use by process"));
    node.stop();
    let offline =
        || -> real::Run { varve().arg("check").arg("--data").arg(node.data()).arg("--json").output().unwrap().into() };
    assert_eq!(offline().json()["volumes"].as_array().unwrap().len(), 2);

    let spoilt = spoil_block_of(&node.data().join("store"), 2);
    let broken = offline();
    assert_eq!(broken.code, 1, "{broken:?}");
    let name = spoilt.file_name().unwrap().to_str().unwrap();
    assert!(broken.out.contains(name), "{name}: {broken:?}");
    node.up();
    let online = node.varve(&["check"]);
    assert!(online.code == 1 && online.out.contains(name), "{online:?}");
    // Scrubbing comes to it too, by itself, and tells of it.
    assert_eq!(node.varve(&["scrub", "--now", "--rate", "1G", "--json"]).json()["rate_bytes"], 1 << 30);
    let found = || node.varve(&["scrub", "--json"]).json()["findings"].as_array().is_some_and(|all| !all.is_empty());
    wait_until(DEADLINE, "scrubbing finds it", || Ok(found())).unwrap();
    let told = node.varve(&["scrub"]).ok();
    assert!(told.contains(name) && told.contains("damaged") && told.contains("volume disk"), "{told}");
    assert!(node.metrics().contains("varve_scrub_findings 1\n"));
}

/// Flips one bit of one block in the store that holds nothing but `fill`; says in which object. The block must be a live one: nobody
/// reads what was overwritten, and where that lies depends on which writes shared a layer.
fn spoil_block_of(store: &std::path::Path, fill: u8) -> std::path::PathBuf {
    let mut objects = Vec::new();
    find_files(store, &mut objects);
    for path in objects {
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(start) = bytes.windows(4096).position(|block| block.iter().all(|byte| *byte == fill)) {
            bytes[start + 2048] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            return path;
        }
    }
    panic!("no object under {} holds a block of {fill}s", store.display());
}

fn find_files(dir: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            find_files(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

#[test]
fn a_flattened_clone_needs_its_origin_no_more() {
    let node = Node::start(&["--volume", "golden:64M"]);
    node.qemu_io("golden", &["write -P 7 0 8M"]);
    node.varve(&["snapshot", "create", "golden", "base"]).ok();
    node.varve(&["clone", "golden@base", "vm"]).ok();
    node.qemu_io("vm", &["write -P 8 1M 1M"]);
    node.varve(&["flatten", "vm"]).ok();
    assert_eq!(node.varve(&["volume", "show", "vm", "--json"]).json()["origin"], serde_json::Value::Null);
    node.varve(&["volume", "delete", "golden"]).ok();
    node.qemu_io("vm", &["read -P 7 0 1M", "read -P 8 1M 1M", "read -P 7 2M 6M", "read -P 0 8M 8M"]);
    assert!(node.varve(&["check", "vm"]).ok().contains("no errors"));
}

#[test]
fn another_node_takes_the_pool_over_from_its_store_alone() {
    let mut old = Node::start(&["--volume", "disk:64M", "--volume", "other:64M"]);
    old.qemu_io("disk", &["write -P 1 0 4M"]);
    old.varve(&["snapshot", "create", "disk", "s"]).ok();
    old.qemu_io("disk", &["write -P 2 0 1M"]);
    old.varve(&["volume", "set", "disk", "compression=zstd"]).ok();
    // The last client has left: the layer goes to the store.
    old.until_status("everything to be in the store", |status| {
        status["volumes"].as_array().unwrap().iter().all(|volume| volume["dirty_bytes"] == 0)
    });
    let store = format!("file://{}", old.data().join("store").display());
    let new = Node::start(&["--volume", "other:32M"]);
    let error = new.varve(&["pool", "create", "p", "--store", &store]).fails(4);
    assert!(error.contains("varve pool import"), "{error}");
    new.varve(&["pool", "import", "--store", &format!("file://{}/empty", new.dir.path().display())]).fails(3);
    let imported = new.varve(&["pool", "import", "--store", &store, "--json"]).json();
    assert_eq!(imported["pool"]["volumes"].as_array().unwrap().len(), 2, "{imported}");
    assert!(imported["warnings"][0].as_str().unwrap().contains("other"), "{imported}");
    new.qemu_io("disk", &["read -P 2 0 1M", "read -P 1 1M 3M", "write -P 3 2M 1M"]);
    new.qemu_io("disk@s", &["read -P 1 0 4M"]);
    assert!(new.varve(&["check"]).ok().contains("no errors"));

    old.until_status("the old node to notice", |status| status["pools"][0]["state"] == "lost");
    old.until_status("its volumes to be stopped", |status| status["volumes"][0]["state"] == "failed");
    let refused = real::run("nbdinfo", "libnbd-bin", &[&old.uri("disk")]);
    assert!(refused.code != 0, "{refused:?}");
    let refused = old.varve(&["snapshot", "create", "disk", "late"]).fails(4);
    assert!(refused.contains("imported by cluster"), "{refused}");
    old.kill();
    let run: real::Run = old.command(&old.data()).output().unwrap().into();
    assert!(run.fails(4).contains("belongs to cluster"));
}

#[test]
fn metrics_count_what_is_done() {
    let node = Node::start(&["--volume", "disk:64M"]);
    node.qemu_io("disk", &["write -P 1 0 1M", "flush", "read -P 1 0 1M"]);
    let text = node.metrics();
    for line in [
        "varve_volume_written_bytes_total{volume=\"disk\",pool=\"default\"} 1048576\n",
        "varve_volume_size_bytes{volume=\"disk\",pool=\"default\"} 67108864\n",
        "varve_volume_ready{volume=\"disk\",pool=\"default\"} 1\n",
        "varve_journal_failed 0\n",
        "varve_volumes 1\n",
        "varve_store_ok{pool=\"default\"} 1\n",
        "# EOF\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
}
