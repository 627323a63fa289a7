// SPDX-License-Identifier: Apache-2.0
//! A real file system's image, in by every way there is and out by every way there is: what comes out is what went in,
//! before and after the server was killed, and `e2fsck` finds nothing.

#![allow(clippy::unwrap_used)]

mod real;

use real::{Node, noise, run};
use std::path::Path;

const SIZE: u64 = 160 << 20;

/// An ext4 image with a few hundred files, on a sparse file.
fn make_image(node: &Node) -> String {
    let tree = node.path("tree");
    for dir in 0..10_u64 {
        let dir_path = tree.join(format!("dir{dir}"));
        std::fs::create_dir_all(&dir_path).unwrap();
        for file in 0..30_u64 {
            let bytes = noise(1 + (file * file * 300) as usize, dir << 8 | file);
            std::fs::write(dir_path.join(format!("file{file}")), bytes).unwrap();
        }
    }
    std::fs::write(tree.join("text"), "the same line\n".repeat(200_000)).unwrap();
    let image = node.path("image.raw");
    std::fs::File::create_new(&image).unwrap().set_len(SIZE).unwrap();
    let image = image.to_str().unwrap().to_owned();
    run("mkfs.ext4", "e2fsprogs", &["-q", "-d", tree.to_str().unwrap(), &image]).ok();
    image
}

fn qemu_img(args: &[&str]) {
    run("qemu-img", "qemu-utils", args).ok();
}

/// The file is the image, by `qemu-img`'s word.
fn compare(image: &str, format: &str, other: &str) {
    qemu_img(&["compare", "-f", "raw", "-F", format, image, other]);
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_ext4_image_comes_out_as_it_went_in() {
    let mut node = Node::start(&["--volume", &format!("copied:{SIZE}")]);
    node.varve(&["volume", "set", "copied", "segment-size=4M"]).ok();
    let image = make_image(&node);
    let qcow2 = node.path("image.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &image, text(&qcow2)]);

    qemu_img(&["convert", "-n", "-f", "raw", "-O", "raw", &image, &node.uri("copied")]);
    node.varve(&["import", &image, "raw"]).ok();
    node.varve(&["import", text(&qcow2), "qcow2"]).ok();
    for volume in ["copied", "raw", "qcow2"] {
        compare(&image, "raw", &node.uri(volume));
    }
    node.kill();
    node.up();
    for volume in ["copied", "raw", "qcow2"] {
        compare(&image, "raw", &node.uri(volume));
        let (out, out_qcow2, converted) = (node.path("out.raw"), node.path("out.qcow2"), node.path("out2.raw"));
        node.varve(&["export", volume, text(&out)]).ok();
        node.varve(&["export", volume, text(&out_qcow2)]).ok();
        qemu_img(&["convert", "-f", "raw", "-O", "raw", &node.uri(volume), text(&converted)]);
        compare(&image, "raw", text(&out));
        compare(&image, "qcow2", text(&out_qcow2));
        compare(&image, "raw", text(&converted));
        run("e2fsck", "e2fsprogs", &["-f", "-n", text(&out)]).ok();
        for file in [out, out_qcow2, converted] {
            std::fs::remove_file(file).unwrap();
        }
    }
    // Holes went in as holes: the image is sparse, and so is the volume.
    let live = node.varve(&["volume", "show", "raw", "--json"]).json()["space"]["live_bytes"].as_u64().unwrap();
    assert!(live < SIZE / 2, "{live}");
    node.stop();
}
