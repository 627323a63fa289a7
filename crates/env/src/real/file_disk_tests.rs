// SPDX-License-Identifier: Apache-2.0
//! A file as a disk: what is kept, what is refused, and
//! where syncs are done.

use super::*;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, ThreadId};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

const PATIENCE: Duration = Duration::from_secs(60);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    (dir, path)
}

fn write(disk: &FileDisk, offset: u64, bytes: &[u8]) {
    disk.write_at(offset, &[IoSlice::new(bytes)]).unwrap();
}

/// A disk whose sync is `call`.
fn faked(tuning: SyncTuning, call: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> (TempDir, FileDisk) {
    let (dir, path) = place();
    let file = create::create(&path, 1 << 16).unwrap();
    let disk = FileDisk::over(file, &path, 1 << 16, tuning, Box::new(move |_| call())).unwrap();
    (dir, disk)
}

#[test]
fn a_new_disk_is_zeroes_that_lie_on_the_device_and_keeps_what_is_written() {
    let (dir, path) = place();
    let runtime = runtime();
    let len = (2 << 20) + 512;
    let disk = FileDisk::create(&path, len).unwrap();
    assert_eq!(disk.len(), len);
    let file = std::fs::metadata(&path).unwrap();
    assert!(file.blocks() * 512 >= len, "every block is allocated");
    assert_eq!(file.mode() & 0o777, 0o600);
    assert_eq!(runtime.block_on(disk.read_at(0, len as usize)).unwrap(), vec![0; len as usize]);
    disk.write_at(len - 4, &[IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cd")]).unwrap();
    runtime.block_on(disk.sync()).unwrap();
    drop(disk);

    let error = FileDisk::create(&path, 512).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    let disk = FileDisk::open(&path).unwrap();
    assert_eq!(disk.len(), len);
    assert_eq!(runtime.block_on(disk.read_at(len - 4, 4)).unwrap(), "abcd");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_second_opener_is_refused_until_the_first_has_gone() {
    let (_dir, path) = place();
    let disk = FileDisk::create(&path, 4096).unwrap();
    let error = FileDisk::open(&path).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    assert!(error.to_string().contains("journal: lock: another process"), "{error}");
    let clone = disk.clone();
    drop(disk);
    assert!(FileDisk::open(&path).is_err(), "a clone is the same opening");
    drop(clone);
    let disk = FileDisk::open(&path).unwrap();
    let sync = disk.sync();
    drop(disk);
    assert!(FileDisk::open(&path).is_err(), "a future holds it open");
    drop(sync);
    FileDisk::open(&path).unwrap();
}

#[test]
fn a_file_half_made_is_made_anew_unless_somebody_makes_it() {
    let (_dir, path) = place();
    let new = path.with_file_name("journal.new");
    std::fs::write(&new, [7; 9000]).unwrap();
    let other = create::open(&new).unwrap();
    assert_eq!(FileDisk::create(&path, 4096).err().unwrap().kind(), io::ErrorKind::ResourceBusy);
    drop(other);
    let disk = FileDisk::create(&path, 4096).unwrap();
    assert_eq!(runtime().block_on(disk.read_at(0, 4096)).unwrap(), vec![0; 4096]);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
}

#[test]
fn what_can_not_be_a_disk_is_refused() {
    let (dir, path) = place();
    assert_eq!(FileDisk::open(&path).err().unwrap().kind(), io::ErrorKind::NotFound);
    assert!(FileDisk::open(dir.path()).is_err());
    assert_eq!(FileDisk::open(Path::new("/dev/null")).err().unwrap().kind(), io::ErrorKind::InvalidInput);
    assert!(FileDisk::create(&path, 1 << 60).is_err(), "more than any disk holds");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left of it");
}

#[test]
fn writes_and_reads_beyond_the_end_are_refused_whole() {
    let (_dir, path) = place();
    let disk = FileDisk::create(&path, 4096).unwrap();
    for (offset, len) in [(4095, 2), (4097, 0), (u64::MAX, 2)] {
        let error = disk.write_at(offset, &[IoSlice::new(&[7; 2][..len])]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = runtime().block_on(disk.read_at(offset, len)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("journal: read"), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), [0; 4096]);
}

#[test]
fn many_parts_are_written_in_order() {
    let (_dir, path) = place();
    let disk = FileDisk::create(&path, 1 << 20).unwrap();
    let parts: Vec<Vec<u8>> = (0..3000usize).map(|part| vec![part as u8; part % 7]).collect();
    let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    disk.write_at(100, &slices).unwrap();
    let expected = parts.concat();
    assert_eq!(runtime().block_on(disk.read_at(100, expected.len())).unwrap(), expected);
}

#[test]
fn a_write_that_takes_less_than_it_was_given_goes_on() {
    let parts: Vec<Vec<u8>> = (0..2000usize).map(|part| vec![part as u8; 1 + part % 3]).collect();
    let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut written = Vec::new();
    write_whole(10, &slices, |offset, parts| {
        assert_eq!(offset, 10 + written.len() as u64);
        assert!(parts.len() <= MOST_PARTS);
        let given: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        let taken = given.len().min(if written.is_empty() { 1 } else { 997 });
        written.extend_from_slice(&given[..taken]);
        Ok(taken)
    })
    .unwrap();
    assert_eq!(written, parts.concat());
    let mut calls = 0;
    let failed = write_whole(0, &slices, |_, _| {
        calls += 1;
        if calls == 3 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(5) }
    });
    assert_eq!((failed.unwrap_err().kind(), calls), (io::ErrorKind::StorageFull, 3));
}

/// Where each sync was done.
fn where_synced(tuning: SyncTuning) -> (TempDir, FileDisk, Arc<Mutex<Vec<ThreadId>>>) {
    let threads: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
    let own = Arc::clone(&threads);
    let (dir, disk) = faked(tuning, move || {
        own.lock().unwrap().push(thread::current().id());
        Ok(())
    });
    (dir, disk, threads)
}

#[test]
fn syncs_are_done_in_place_or_on_the_thread_as_tuned() {
    let here = thread::current().id();
    for (tuning, in_place) in [(SyncTuning::INLINE, true), (SyncTuning::THREAD, false)] {
        let (_dir, disk, threads) = where_synced(tuning);
        for _ in 0..20 {
            write(&disk, 0, b"x");
            runtime().block_on(disk.sync()).unwrap();
        }
        let threads = threads.lock().unwrap();
        assert_eq!(threads.len(), 20);
        assert!(threads.iter().all(|thread| (*thread == here) == in_place));
        let (inline, threaded) = if in_place { (20, 0) } else { (0, 20) };
        assert_eq!(disk.sync_counts(), SyncCounts { inline, threaded, needless: 0 });
    }
}

#[test]
fn a_sync_with_nothing_new_is_needless_but_never_the_first() {
    let (_dir, disk, threads) = where_synced(SyncTuning::INLINE);
    runtime().block_on(async {
        disk.sync().await.unwrap();
        assert_eq!(threads.lock().unwrap().len(), 1, "what the file held may be in the page cache only");
        disk.sync().await.unwrap();
        write(&disk, 0, b"x");
        let (first, second) = (disk.sync(), disk.sync());
        write(&disk, 1, b"y");
        let third = disk.sync();
        first.await.unwrap();
        second.await.unwrap();
        third.await.unwrap();
    });
    assert_eq!(threads.lock().unwrap().len(), 2, "one sync answers all who asked before it began");
    assert_eq!(disk.sync_counts(), SyncCounts { inline: 2, threaded: 0, needless: 3 });
}

#[test]
fn a_slow_sync_does_not_hold_up_the_shard_and_one_answers_all_that_wait() {
    let (go, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let calls = Arc::new(AtomicU64::new(0));
    let own = Arc::clone(&calls);
    let (_dir, disk) = faked(SyncTuning::THREAD, move || {
        own.fetch_add(1, Ordering::SeqCst);
        gate.lock().unwrap().recv_timeout(PATIENCE).map_err(io::Error::other)
    });
    runtime().block_on(async {
        let first = disk.sync();
        let others = async {
            // The first is under way. Those who come now need another, and share it.
            let deadline = std::time::Instant::now() + PATIENCE;
            while calls.load(Ordering::SeqCst) == 0 {
                assert!(std::time::Instant::now() < deadline);
                tokio::task::yield_now().await;
            }
            write(&disk, 0, b"x");
            let waiting = (disk.sync(), disk.sync(), disk.sync());
            let open = async {
                go.send(()).unwrap();
                go.send(()).unwrap();
            };
            let (a, b, c, ()) = tokio::join!(waiting.0, waiting.1, waiting.2, open);
            [a, b, c].into_iter().collect::<io::Result<Vec<()>>>().unwrap();
        };
        let (first, ()) = tokio::join!(first, others);
        first.unwrap();
    });
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    assert_eq!(disk.sync_counts().threaded, 4);
}

#[test]
fn a_stall_moves_syncs_to_the_thread_and_calm_moves_them_back() {
    let slow = Arc::new(AtomicBool::new(false));
    let own = Arc::clone(&slow);
    let tuning = SyncTuning { inline_below: Duration::from_millis(50), inline_bytes: 4096, calm_syncs: 3 };
    let (_dir, disk) = faked(tuning, move || {
        if own.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(250));
        }
        Ok(())
    });
    let runtime = runtime();
    let sync = |bytes: usize| {
        let before = disk.sync_counts().inline;
        write(&disk, 0, &vec![1; bytes]);
        runtime.block_on(disk.sync()).unwrap();
        disk.sync_counts().inline > before
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    let calm = || {
        while !sync(10) {
            assert!(std::time::Instant::now() < deadline, "it never came in place");
        }
    };
    calm();
    assert!(!sync(4097), "large ones go to the thread in any case");
    slow.store(true, Ordering::SeqCst);
    assert!(sync(10), "the one that stalls is the last in place");
    assert!(!sync(10));
    slow.store(false, Ordering::SeqCst);
    calm();
}

#[test]
fn a_failed_sync_is_final_until_the_disk_is_opened_again() {
    for tuning in [SyncTuning::INLINE, SyncTuning::THREAD] {
        let failing = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&failing);
        let (dir, disk) = faked(tuning, move || match own.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(()),
        });
        let runtime = runtime();
        runtime.block_on(disk.sync()).unwrap();
        write(&disk, 0, b"x");
        failing.store(true, Ordering::SeqCst);
        let error = runtime.block_on(disk.sync()).unwrap_err();
        assert!(error.to_string().contains("journal: a sync failed"), "{error}");
        failing.store(false, Ordering::SeqCst);
        for _ in 0..3 {
            write(&disk, 0, b"x");
            assert!(runtime.block_on(disk.sync()).is_err());
        }
        drop(disk);
        let disk = FileDisk::open(&dir.path().join("journal")).unwrap();
        runtime.block_on(disk.sync()).unwrap();
    }
}

#[test]
fn a_failure_that_nobody_waited_for_is_kept() {
    let (told, tell) = mpsc::channel();
    let (go, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let (_dir, disk) = faked(SyncTuning::THREAD, move || {
        gate.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        told.send(()).unwrap();
        Err(io::ErrorKind::Other.into())
    });
    let mut sync = disk.sync();
    let polled = sync.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    assert!(polled.is_pending());
    drop(sync);
    go.send(()).unwrap();
    tell.recv_timeout(PATIENCE).unwrap();
    // The next one asks the thread, or is told at once; neither may reach the device again.
    assert!(runtime().block_on(disk.sync()).is_err());
    assert!(tell.try_recv().is_err());
}

#[test]
fn early_writeback_takes_any_range_and_changes_nothing() {
    let (_dir, path) = place();
    let disk = FileDisk::create(&path, 4 << 20).unwrap();
    let bytes: Vec<u8> = (0..3 << 20).map(|place: u32| (place >> 8) as u8).collect();
    write(&disk, 512, &bytes);
    for hint in [(512, 100_000), (100_512, 3 << 20), (5 << 20, 10), (0, u64::MAX), (u64::MAX, u64::MAX), (7, 0)] {
        disk.start_writeback(hint.0, hint.1);
    }
    let runtime = runtime();
    runtime.block_on(disk.sync()).unwrap();
    assert_eq!(runtime.block_on(disk.read_at(512, bytes.len())).unwrap(), bytes);
}
