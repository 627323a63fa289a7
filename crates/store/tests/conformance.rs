// SPDX-License-Identifier: Apache-2.0
//! One suite of what the engine relies on, run on every store: a directory, and S3 as SeaweedFS serves it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

mod suite;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle, Runtime};
use varve_env::{ObjectStore, Payload, StoreError, StoreErrorKind};
use varve_lab::seaweedfs::SeaweedFs;
use varve_store::{StoreLimits, StoreUrl, open};

const BUCKET: &str = "varve-test";

/// A runtime of its own thread, as a server has one for its control plane. The tests' own thread has none.
struct Control {
    handle: Handle,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Control {
    fn start() -> Self {
        let runtime: Runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let _stopped = runtime.block_on(stopped);
        });
        Self { handle, stop: Some(stop), thread: Some(thread) }
    }

    fn open(&self, url: &str, limits: StoreLimits) -> Result<Arc<dyn ObjectStore>, StoreError> {
        let url = StoreUrl::parse(url).unwrap();
        suite::block_on(open(&url, limits, |_| false, self.handle.clone()))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn write_keys(dir: &Path, key: &str, secret: &str) -> String {
    let path = dir.join(format!("{key}-{}", secret.len()));
    std::fs::write(&path, format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_directory_keeps_the_promises() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start();
    let url = format!("file://{}/store", dir.path().display());
    let store = control.open(&url, StoreLimits::default()).unwrap();
    assert_eq!(store.url(), url);
    suite::all(&*store);
}

#[test]
fn s3_keeps_the_promises_and_tells_what_is_wrong() {
    let mut server = SeaweedFs::start().unwrap();
    server.make_bucket(BUCKET).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let keys = write_keys(dir.path(), SeaweedFs::ACCESS_KEY, SeaweedFs::SECRET_KEY);
    let control = Control::start();
    let url = |bucket: &str, keys: &str| format!("s3://{bucket}?endpoint={}&credentials={keys}", server.endpoint());
    let good = url(BUCKET, &keys);

    let whole = control.open(&good, StoreLimits::default()).unwrap();
    let part_url = good.replace(BUCKET, &format!("{BUCKET}/some/part"));
    let part = control.open(&part_url, StoreLimits::default()).unwrap();
    assert_eq!(part.url(), part_url);
    suite::all(&*whole);
    suite::clear(&*whole);
    suite::all(&*part);
    suite::prefixes_are_apart(&*whole, &*part, "some/part");
    assert_eq!(suite::block_on(whole.list("probe/", None)).unwrap(), [], "opening leaves nothing behind");

    let refused = |url: &str, word: &str| {
        let error = control.open(url, StoreLimits::default()).err().unwrap();
        assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
        assert!(error.message.contains(word), "{error}");
        assert!(!error.to_string().contains(SeaweedFs::SECRET_KEY), "{error}");
    };
    refused(&url(BUCKET, &write_keys(dir.path(), SeaweedFs::ACCESS_KEY, "wrong")), "AWS_SECRET_ACCESS_KEY");
    refused(&url(BUCKET, &write_keys(dir.path(), "unknown", "wrong")), "AWS_ACCESS_KEY_ID");
    refused(&url("no-such-bucket", &keys), "no bucket `no-such-bucket`");
    refused(&url(BUCKET, "/no/such/file"), "/no/such/file");

    goes_and_comes_back(&mut server, &control, &good, &*whole);
}

fn goes_and_comes_back(server: &mut SeaweedFs, control: &Control, url: &str, store: &dyn ObjectStore) {
    suite::put(store, "away/kept", b"kept");
    server.stop().unwrap();
    let start = Instant::now();
    let errors = [
        control.open(url, StoreLimits::default()).err().unwrap(),
        suite::block_on(store.get("away/kept", 0..4)).unwrap_err(),
        suite::block_on(store.put("away/b", Payload::default())).unwrap_err(),
        suite::block_on(store.head("away/none")).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
        assert!(error.message.contains("does not answer"), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(20), "four requests gave up only after {:?}", start.elapsed());
    server.start_again().unwrap();
    let mut bytes = Err(StoreErrorKind::Unavailable);
    varve_lab::process::wait_until(Duration::from_secs(60), "the store to answer again", || {
        bytes = suite::block_on(store.get("away/kept", 0..4)).map_err(|error| error.kind);
        Ok(bytes != Err(StoreErrorKind::Unavailable))
    })
    .unwrap();
    assert_eq!(bytes.unwrap(), "kept");
}

/// A server that accepts connections and never says a word.
#[test]
fn a_silent_server_is_unavailable_within_its_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let keys = write_keys(dir.path(), "k", "s");
    let control = Control::start();
    let limits = StoreLimits { tries: 2, timeout: Duration::from_millis(300), ..StoreLimits::default() };
    let url = format!("s3://bucket?endpoint=http://{}&credentials={keys}", listener.local_addr().unwrap());
    let start = Instant::now();
    let error = control.open(&url, limits).err().unwrap();
    assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    assert!(error.message.contains("tried 2 times"), "{error}");
    // Two tries of 0.3 s, and one for the bytes of a listing, and a pause.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
