// SPDX-License-Identifier: Apache-2.0
//! The ring on real files, and on a pipe, which answers when it is told to.

use super::*;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use tokio::task::LocalSet;

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { tokio::time::timeout(Duration::from_secs(30), test).await.unwrap() })
}

fn file(bytes: &[u8]) -> Arc<File> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    Arc::new(file)
}

/// The end of a pipe that is read, and the one that is written.
fn pipe() -> (Arc<File>, File) {
    let (read, write) = std::io::pipe().unwrap();
    (Arc::new(File::from(OwnedFd::from(read))), File::from(OwnedFd::from(write)))
}

#[test]
fn more_operations_than_entries_all_have_their_turn() {
    let bytes: Vec<u8> = (0..64 * 512).map(|at| (at / 512) as u8).collect();
    let file = file(&bytes);
    run(async {
        let ring = Rc::new(Ring::new(4).unwrap());
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..64_u8 {
            let (ring, file) = (Rc::clone(&ring), Arc::clone(&file));
            tasks.spawn_local(async move {
                let at = u64::from(number) * 512;
                let read = ring.read(&file, at, BytesMut::zeroed(512)).await.unwrap();
                assert!(read.iter().all(|byte| *byte == number), "{number}");
                ring.write(&file, at, Bytes::from(vec![!number; 512])).await.unwrap();
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
        assert!(ring.shared.kernel.is_idle());
    });
    let mut now = vec![0; bytes.len()];
    file.read_exact_at(&mut now, 0).unwrap();
    assert!(now.iter().zip(&bytes).all(|(now, before)| *now == !*before));
}

#[test]
fn a_file_that_ends_is_no_success_and_errors_are_told() {
    let file = file(&[7; 100]);
    run(async {
        let ring = Ring::new(4).unwrap();
        let short = ring.read(&file, 50, BytesMut::zeroed(100)).await.unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        let read_only = Arc::new(File::open("/proc/self/exe").unwrap());
        let refused = ring.write(&read_only, 0, Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(9), "{refused}");
        assert_eq!(ring.read(&file, 0, BytesMut::new()).await.unwrap().len(), 0);
    });
}

#[test]
fn memory_of_a_read_that_nobody_awaits_stays_until_the_kernel_is_done() {
    let (read, mut write) = pipe();
    run(async {
        let ring = Ring::new(2).unwrap();
        {
            let mut lost = Box::pin(ring.read(&read, 0, BytesMut::zeroed(4)));
            tokio::select! {
                biased;
                _ = &mut lost => panic!("there is nothing to read yet"),
                () = until(|| ring.shared.kernel.is_submitted()) => {}
            }
        }
        assert!(!ring.shared.kernel.is_idle(), "the kernel may still write to it");
        write.write_all(b"abcdefgh").unwrap();
        until(|| ring.shared.kernel.is_idle()).await;
        // The one that was lost took its bytes; the next one has those behind, and both places are free.
        assert_eq!(&ring.read(&read, 0, BytesMut::zeroed(4)).await.unwrap()[..], b"efgh");
        assert_eq!(ring.shared.room.available_permits(), 2);
    });
}

#[test]
fn a_ring_that_is_dropped_ends_its_task_when_the_last_operation_has_ended() {
    let (read, mut write) = pipe();
    run(async {
        let ring = Ring::new(2).unwrap();
        let shared = Rc::downgrade(&ring.shared);
        {
            let mut lost = Box::pin(ring.read(&read, 0, BytesMut::zeroed(4)));
            tokio::select! {
                biased;
                _ = &mut lost => panic!("there is nothing to read yet"),
                () = until(|| ring.shared.kernel.is_submitted()) => {}
            }
        }
        drop(ring);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(shared.upgrade().is_some(), "the memory is still the kernel's");
        write.write_all(b"abcd").unwrap();
        until(|| shared.upgrade().is_none()).await;
    });
}

async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}
