// SPDX-License-Identifier: Apache-2.0
//! Images in and out: sparse on both ways, raw and qcow2, whole or not at all.

#![allow(clippy::unwrap_used)]

mod common;

use common::fake::name;
use common::{Node, Run};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use varve_lab::process::wait_until;

const MIB: u64 = 1 << 20;

/// Bytes that do not repeat within a page and do not compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::from_fn(|| Some(next())).flatten().take(len).collect()
}

/// A file of 200 MiB and 100 bytes with data here and there, and written zeroes that are no hole.
fn sparse_file(path: &Path) -> u64 {
    let len = 200 * MIB + 100;
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    file.write_all_at(&noise(10 * MIB as usize + 5, 1), 3 * MIB + 1000).unwrap();
    file.write_all_at(&vec![0; 20 * MIB as usize], 60 * MIB).unwrap();
    file.write_all_at(b"one byte and a little", 150 * MIB + 7).unwrap();
    file.write_all_at(b"the end", len - 7).unwrap();
    len
}

fn same(left: &Path, right: &Path) -> bool {
    let (left, right) = (File::open(left).unwrap(), File::open(right).unwrap());
    let len = left.metadata().unwrap().len();
    let mut buffers = (vec![0; MIB as usize], vec![0; MIB as usize]);
    right.metadata().unwrap().len() == len
        && (0..len.div_ceil(MIB)).all(|piece| {
            let here = (len - piece * MIB).min(MIB) as usize;
            left.read_exact_at(&mut buffers.0[..here], piece * MIB).unwrap();
            right.read_exact_at(&mut buffers.1[..here], piece * MIB).unwrap();
            buffers.0[..here] == buffers.1[..here]
        })
}

fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().expect("qemu-img is installed (Debian: qemu-utils)");
    assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn leftovers(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

#[test]
fn a_raw_image_goes_in_and_comes_out_the_same_and_sparse() {
    let node = Node::start();
    let (image, back) = (node.path("image.raw"), node.path("back.raw"));
    let len = sparse_file(&image);
    let done = node.run(&["import", "image.raw", "v", "--json"]).json();
    assert_eq!(done["volume"]["size_bytes"], len.next_multiple_of(512));
    let (data, live) = (done["data_bytes"].as_u64().unwrap(), done["volume"]["space"]["live_bytes"].as_u64().unwrap());
    assert!((10 * MIB..11 * MIB).contains(&data) && (10 * MIB..11 * MIB).contains(&live), "{done}");
    assert_eq!(node.fake.state().volumes[&name("v")].flushes, 1);

    node.run(&["snapshot", "create", "v", "s"]).ok();
    node.fake.state().volumes.get_mut(&name("v")).unwrap().blocks.clear();
    let done = node.run(&["export", "v@s", "back.raw"]).ok();
    assert!(done.starts_with("exported v@s to back.raw: 200 MiB\n10 MiB of data in "), "{done}");
    OpenOptions::new().write(true).open(&image).unwrap().set_len(len.next_multiple_of(512)).unwrap();
    assert!(same(&image, &back));
    assert!(allocated(&back) < 12 * MIB, "{}", allocated(&back));

    let done = node.run(&["export", "v", "empty.raw", "--json"]).json();
    assert_eq!((done["data_bytes"].as_u64(), allocated(&node.path("empty.raw"))), (Some(0), 0));
    assert_eq!(leftovers(node.dir.path()), Vec::<String>::new());
}

#[test]
fn qcow2_goes_through_qemu_img_both_ways() {
    let node = Node::start();
    let image = node.path("image.raw");
    sparse_file(&image);
    OpenOptions::new().write(true).open(&image).unwrap().set_len(200 * MIB).unwrap();
    let paths: Vec<_> = ["image.raw", "image.img", "back.qcow2"].map(|name| node.path(name)).into_iter().collect();
    let [raw, odd, back] = [0, 1, 2].map(|index: usize| paths[index].to_str().unwrap());
    // The name says nothing of the format: the first bytes do.
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw, odd]);
    node.run(&["import", "image.img", "v"]).ok();
    let done = node.run(&["export", "v", "back.qcow2", "--json"]).json();
    assert_eq!(done["format"], "qcow2");
    qemu_img(&["check", "-f", "qcow2", back]);
    qemu_img(&["compare", "-f", "raw", "-F", "qcow2", raw, back]);
    assert!(allocated(&paths[2]) < 12 * MIB);
    // A format given goes before what name and content say.
    node.run(&["import", "image.img", "bytes", "--format", "raw"]).ok();
    node.run(&["export", "bytes", "again.qcow2", "--format", "raw"]).ok();
    assert!(same(&paths[1], &node.path("again.qcow2")));
    assert!(node.run(&["import", "image.raw", "w", "--format", "qcow2"]).fails(1).contains("qemu-img failed"));
    assert_eq!(leftovers(node.dir.path()), Vec::<String>::new());
}

#[test]
fn without_qemu_img_only_raw_works() {
    let node = Node::start();
    std::fs::write(node.path("image"), b"QFI\xfb\0\0\0\x03").unwrap();
    let output = node.varve().args(["import", "image", "v"]).env("PATH", "/nonexistent").output().unwrap();
    assert!(Run::from(output).fails(1).contains("qcow2 needs the program qemu-img"));
    assert!(node.fake.state().volumes.is_empty());
    node.fake.add("v", MIB, b"x");
    let output = node.varve().args(["export", "v", "out.qcow2"]).env("PATH", "/nonexistent").output().unwrap();
    assert!(Run::from(output).fails(1).contains("qcow2 needs the program qemu-img"));
    assert!(!node.path("out.qcow2").exists());
    assert_eq!(leftovers(node.dir.path()), Vec::<String>::new());
}

#[test]
fn an_export_overwrites_only_when_told_and_only_files() {
    let node = Node::start();
    node.fake.add("v", MIB, b"new");
    std::fs::write(node.path("out"), "old").unwrap();
    assert!(node.run(&["export", "v", "out"]).fails(4).contains("--force"));
    assert_eq!(std::fs::read(node.path("out")).unwrap(), b"old");
    node.run(&["export", "v", "out", "--force"]).ok();
    assert!(std::fs::read(node.path("out")).unwrap().starts_with(b"new\0"));
    let mode = node.path("out").metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode & 0o600, 0o600, "{mode:o}");
    std::fs::create_dir(node.path("dir")).unwrap();
    assert!(node.run(&["export", "v", "dir", "--force"]).fails(4).contains("no regular file"));
    node.run(&["export", "none", "other"]).fails(3);
    node.run(&["export", "v@none", "other"]).fails(3);
    assert!(node.run(&["export", "v", "nowhere/out"]).fails(3).contains("nowhere"));
    assert!(!node.path("other").exists());
    assert_eq!(leftovers(node.dir.path()), Vec::<String>::new());
}

#[test]
fn an_import_that_fails_leaves_no_volume() {
    let node = Node::start();
    std::fs::write(node.path("image"), noise(16 * MIB as usize, 2)).unwrap();
    let complaint = node.run(&["import", "image", "full"]).fails(1);
    assert!(complaint.contains("the store is full; the unfinished volume was deleted"), "{complaint}");
    assert_eq!(node.run(&["volume", "list", "--json"]).json()[0]["state"], "deleted");
    node.fake.add("there", MIB, b"mine");
    assert!(node.run(&["import", "image", "there"]).fails(4).contains("there is a volume there already"));
    assert_eq!(node.run(&["volume", "show", "there", "--json"]).json()["state"], "ready");
    node.run(&["import", "image", "v", "--pool", "none"]).fails(3);
    assert!(node.run(&["import", "nothing", "v"]).fails(3).contains("nothing"));
    std::fs::write(node.path("empty"), "").unwrap();
    assert!(node.run(&["import", "empty", "v"]).fails(2).contains("is empty"));
    assert!(node.run(&["import", ".", "v"]).fails(2).contains("directory"));
}

fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

#[test]
fn a_copy_that_is_interrupted_leaves_nothing() {
    let node = Node::start();
    let patience = Duration::from_secs(20);
    let spawn = |args: &[&str]| node.varve().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::fs::write(node.path("image"), noise(MIB as usize, 3)).unwrap();
    let stuck = |count: fn(&common::fake::FakeVolume) -> u64| {
        let state = node.fake.state();
        state.volumes.get(&name("stuck")).is_some_and(|volume| count(volume) > 0)
    };
    let import = spawn(&["import", "image", "stuck"]);
    wait_until(patience, "a write", || Ok(stuck(|volume| volume.writes))).unwrap();
    interrupt(&import);
    let complaint = Run::from(import.wait_with_output().unwrap()).fails(1);
    assert!(complaint.contains("interrupted; the unfinished volume was deleted"), "{complaint}");

    node.run(&["volume", "undelete", "stuck"]).ok();
    let export = spawn(&["export", "stuck", "out"]);
    wait_until(patience, "a read", || Ok(stuck(|volume| volume.reads))).unwrap();
    assert_eq!(leftovers(node.dir.path()).len(), 1);
    interrupt(&export);
    assert!(Run::from(export.wait_with_output().unwrap()).fails(1).contains("interrupted"));
    assert!(!node.path("out").exists());
    assert_eq!(leftovers(node.dir.path()), Vec::<String>::new());
}
