// SPDX-License-Identifier: Apache-2.0
//! The embedded form on a disk that fails: a commit whose fsync fails, one that is cut off, a file of a later format.

use super::file::{FORMAT, File};
use super::*;
use redb::backends::FileBackend;
use redb::{ReadableDatabase, StorageBackend, TableDefinition};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use varve_types::ErrorKind;

/// A file that fails when told to.
#[derive(Debug)]
struct Failing {
    file: FileBackend,
    fail_sync: Arc<AtomicBool>,
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.fail_sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is gone"));
        }
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }
}

async fn put(coord: &Embedded, key: &str) -> Result<Outcome> {
    coord.transact(vec![], vec![Change::put(key, "x")]).await
}

#[tokio::test]
async fn a_failed_fsync_is_unknown_and_nothing_goes_until_it_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coord");
    drop(Embedded::open(&path).unwrap());
    let fail_sync = Arc::new(AtomicBool::new(false));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let backend = Failing { file: FileBackend::new(file).unwrap(), fail_sync: Arc::clone(&fail_sync) };
    let coord = Embedded::start(File::with_backend(&path, backend, false).unwrap()).unwrap();
    put(&coord, "before").await.unwrap();
    let mut watch = coord.watch("", 0).await.unwrap();

    fail_sync.store(true, Ordering::SeqCst);
    let error = put(&coord, "lost").await.unwrap_err();
    assert!(error.is_unknown(), "{error}");
    assert!(error.to_string().contains("the disk is gone"), "{error}");
    fail_sync.store(false, Ordering::SeqCst);
    for error in [put(&coord, "after").await.unwrap_err(), coord.get("before").await.unwrap_err()] {
        assert!(!error.is_unknown() && error.kind() == ErrorKind::Unavailable, "{error}");
    }
    assert_eq!(watch.next().await.unwrap_err().kind(), ErrorKind::Unavailable);
    drop(coord);

    let coord = Embedded::open(&path).unwrap();
    assert!(coord.get("before").await.unwrap().is_some());
    assert_eq!(coord.get("after").await.unwrap(), None);
    put(&coord, "again").await.unwrap();
}

#[test]
fn an_unknown_format_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coord");
    drop(Embedded::open(&path).unwrap());
    {
        let database = redb::Database::open(&path).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", FORMAT + 8).unwrap();
        // A later format may have given up other things.
        write.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap().remove("opening").unwrap();
        write.commit().unwrap();
    }
    let error = Embedded::open(&path).err().unwrap();
    assert!(matches!(error, CoordError::Version { found: 9, known: FORMAT, .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn a_database_of_something_else_is_refused_and_left_as_it_is() {
    const OTHER: TableDefinition<'_, &str, &str> = TableDefinition::new("other");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coord");
    {
        let database = redb::Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(OTHER).unwrap().insert("a", "b").unwrap();
        write.commit().unwrap();
    }
    let error = Embedded::open(&path).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let database = redb::Database::open(&path).unwrap();
    let read = database.begin_read().unwrap();
    assert_eq!(read.open_table(OTHER).unwrap().get("a").unwrap().unwrap().value(), "b");
    assert_eq!(read.list_tables().unwrap().count(), 1);
}

#[tokio::test]
async fn an_entry_that_breaks_the_rules_is_corrupt_under_its_key() {
    const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coord");
    put(&Embedded::open(&path).unwrap(), "good").await.unwrap();
    let from_the_future = [9_u64.to_le_bytes(), 0_u64.to_le_bytes()].concat();
    for bytes in [&b"short"[..], &from_the_future] {
        {
            let database = redb::Database::open(&path).unwrap();
            let write = database.begin_write().unwrap();
            write.open_table(ENTRIES).unwrap().insert("bad/key", bytes).unwrap();
            write.commit().unwrap();
        }
        let error = Embedded::open(&path).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("bad/key"), "{error}");
    }
}

#[tokio::test]
async fn a_full_disk_is_a_refusal_that_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coord");
    put(&Embedded::open(&path).unwrap(), "before").await.unwrap();
    let (mut file, loaded) = File::open(&path).unwrap();
    file.reserve_bytes = u64::MAX;
    let coord = Embedded::start((file, loaded)).unwrap();
    for key in ["one", "two"] {
        let error = put(&coord, key).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert!(!error.is_unknown() && error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert!(coord.get("before").await.unwrap().is_some());
    drop(coord);
    let coord = Embedded::open(&path).unwrap();
    assert_eq!(coord.get("one").await.unwrap(), None);
    put(&coord, "again").await.unwrap();
}
