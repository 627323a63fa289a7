// SPDX-License-Identifier: Apache-2.0
//! What only a directory has: leftovers of a crash, two openings, a full file system, foreign files, empty directories.

use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn payload(bytes: &'static [u8]) -> Payload {
    Payload::from(Bytes::from_static(bytes))
}

fn temporary_files(dir: &Path) -> usize {
    fs::read_dir(dir.join("_tmp"))
        .unwrap()
        .filter(|entry| !["lock", "reserve"].iter().any(|own| entry.as_ref().unwrap().file_name() == *own))
        .count()
}

#[test]
fn opening_makes_the_directory_but_not_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    drop(DirStore::open(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    let store = DirStore::open(&path).unwrap();
    assert_eq!(store.url(), format!("file://{}", path.display()));
    assert_eq!(temporary_files(&path), 0, "the proof that it may be written is gone");

    fs::write(dir.path().join("file"), "").unwrap();
    for (path, word) in [("none/store", "parent"), ("file", "no directory"), ("file/store", "")] {
        let error = DirStore::open(&dir.path().join(path)).unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Invalid);
        assert!(error.message.contains(word), "{error}");
    }
    assert!(DirStore::open(Path::new("relative")).is_err());
}

#[test]
fn leftovers_of_a_crash_go_at_the_next_opening_and_names_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    block_on(store.put("a/b", payload(b"whole"))).unwrap();
    fs::write(dir.path().join("_tmp/0123-4"), "half writ").unwrap();
    // While another process has it open, its files in the making are not touched.
    let second = DirStore::open(dir.path()).unwrap();
    assert_eq!(temporary_files(dir.path()), 1);
    drop((store, second));
    let store = DirStore::open(dir.path()).unwrap();
    assert_eq!(temporary_files(dir.path()), 0);
    assert_eq!(block_on(store.get("a/b", 0..5)).unwrap(), "whole");
    let names: Vec<_> = block_on(store.list("", None)).unwrap().into_iter().map(|object| object.name).collect();
    assert_eq!(names, ["a/b"]);
}

#[test]
fn two_openings_of_one_directory_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (DirStore::open(dir.path()).unwrap(), DirStore::open(dir.path()).unwrap());
    assert_eq!(block_on(one.put("x/a", payload(b"1"))).unwrap(), PutOutcome::Created);
    assert_eq!(block_on(two.put("x/a", payload(b"22"))).unwrap(), PutOutcome::Exists);
    assert_eq!(block_on(two.get("x/a", 0..1)).unwrap(), "1");
    // The other removes the directory, too; the first believes that it is there.
    block_on(two.delete("x/a")).unwrap();
    assert!(!dir.path().join("x").exists());
    assert_eq!(block_on(one.put("x/b", payload(b"3"))).unwrap(), PutOutcome::Created);
    assert_eq!(block_on(two.get("x/b", 0..1)).unwrap(), "3");
}

#[test]
fn deleting_frees_the_space_and_empty_directories() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    for name in ["a/b/c", "a/b/d", "a/e"] {
        block_on(store.put(name, payload(b"x"))).unwrap();
    }
    block_on(store.get("a/b/c", 0..1)).unwrap();
    block_on(store.delete("a/b/c")).unwrap();
    assert!(store.inner.files.read_cached("a/b/c", &(0..1)).is_none(), "the open file is forgotten");
    assert!(dir.path().join("a/b").exists());
    block_on(store.delete("a/b/d")).unwrap();
    assert!(!dir.path().join("a/b").exists());
    assert!(dir.path().join("a").exists());
    block_on(store.delete("a/e")).unwrap();
    block_on(store.delete("a/e")).unwrap();
    assert!(!dir.path().join("a").exists());
    block_on(store.delete("a")).unwrap();
    assert_eq!(block_on(store.put("a/b/c", payload(b"y"))).unwrap(), PutOutcome::Created);
    assert_eq!(block_on(store.get("a/b/c", 0..1)).unwrap(), "y");
}

#[test]
fn a_second_read_is_answered_on_the_callers_thread() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    block_on(store.put("a", payload(b"0123456789"))).unwrap();
    assert!(store.inner.files.read_cached("a", &(0..4)).is_none(), "not open yet");
    assert_eq!(block_on(store.get("a", 2..4)).unwrap(), "23");
    assert_eq!(store.inner.files.read_cached("a", &(2..10)).unwrap(), "23456789");
    assert!(store.inner.files.read_cached("a", &(2..11)).is_none());
}

#[test]
fn files_of_others_are_neither_listed_nor_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    fs::write(dir.path().join("README"), "").unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    block_on(store.put("a", payload(b""))).unwrap();
    let names: Vec<_> = block_on(store.list("", None)).unwrap().into_iter().map(|object| object.name).collect();
    assert_eq!(names, ["a", "file"]);
    assert_eq!(block_on(store.head("empty")).unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(block_on(store.get("empty", 0..0)).unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(block_on(store.head("file/x")).unwrap_err().kind, StoreErrorKind::NotFound);
    // A name cannot be below an object here, nor be that of a directory.
    assert_eq!(block_on(store.put("file/x", payload(b""))).unwrap_err().kind, StoreErrorKind::Invalid);
    assert_eq!(block_on(store.put("empty", payload(b""))).unwrap_err().kind, StoreErrorKind::Invalid);
    assert_eq!(temporary_files(dir.path()), 0);
}

#[test]
fn a_large_directory_is_listed_in_passes() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for n in 0..50 {
        let name = format!("d{n:02}");
        // Empty directories fill a pass with nothing, `-` sorts before `/`.
        fs::create_dir(dir.path().join(&name)).unwrap();
        if n % 5 == 0 {
            fs::write(dir.path().join(format!("{name}/x")), "").unwrap();
            fs::write(dir.path().join(format!("{name}-y")), "").unwrap();
            expected.extend([format!("{name}-y"), format!("{name}/x")]);
        }
    }
    let names = |after: &str| -> Vec<String> {
        list::list(dir.path(), "", after, 3).unwrap().into_iter().map(|object| object.name).collect()
    };
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let page = names(&after);
        let Some(last) = page.last() else { break };
        after.clone_from(last);
        all.extend(page);
    }
    assert_eq!(all, expected);
}

/// A file system of a few MiB, unmounted when dropped.
struct SmallFs(tempfile::TempDir);

impl SmallFs {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "varve-test"]).arg(dir.path()).status();
        assert!(mounted.unwrap().success(), "this test mounts a tmpfs and so needs to be root");
        Self(dir)
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_full_file_system_is_no_space_and_heals() {
    let small = SmallFs::mount();
    let store = DirStore::open(small.0.path()).unwrap();
    let megabyte = |count| Payload::new(vec![Bytes::from(vec![7; 1 << 20]); count]);
    block_on(store.put("a/kept", megabyte(2))).unwrap();
    for _ in 0..3 {
        let error = block_on(store.put("a/large", megabyte(3))).unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::NoSpace, "{error}");
    }
    assert_eq!(temporary_files(small.0.path()), 0, "what was written of it is gone");
    assert_eq!(block_on(store.head("a/large")).unwrap_err().kind, StoreErrorKind::NotFound);
    block_on(store.delete("a/kept")).unwrap();
    assert_eq!(block_on(store.put("a/large", megabyte(3))).unwrap(), PutOutcome::Created);
}

#[test]
fn a_directory_that_vanished_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = DirStore::open(&path).unwrap();
    block_on(store.put("a", payload(b"x"))).unwrap();
    fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    let error = block_on(store.put("b", payload(b"x"))).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
    assert!(error.message.contains("gone"), "{error}");
}
