// SPDX-License-Identifier: Apache-2.0
//! A worker with a node that is a script, and a store in a directory.

use super::*;
use varve_env::Payload;
use varve_types::ClusterId;

/// A node that offers one job, and remembers what it is told.
struct Script {
    job: RefCell<Option<CleaningJob>>,
    told: RefCell<Vec<String>>,
    /// Errors that the next answers are.
    errors: RefCell<Vec<ControlError>>,
}

impl Script {
    fn new(job: Option<CleaningJob>) -> Self {
        Self { job: RefCell::new(job), told: RefCell::default(), errors: RefCell::default() }
    }

    fn answer<T: 'static>(&self, what: String, answer: T) -> NodeAnswer<'_, T> {
        self.told.borrow_mut().push(what);
        let answer = self.errors.borrow_mut().pop().map_or(Ok(answer), Err);
        Box::pin(async move { answer })
    }
}

impl Jobs for Script {
    fn ask(&self, ask: AskCleaningJob) -> NodeAnswer<'_, CleaningOffer> {
        let job = if self.errors.borrow().is_empty() { self.job.borrow_mut().take() } else { None };
        self.answer(format!("ask {}", ask.worker), CleaningOffer { job })
    }
    fn renew(&self, _job: LeaseId, _progress: CleaningProgress) -> NodeAnswer<'_, CleaningTerms> {
        self.answer("renew".to_owned(), CleaningTerms { lease_ms: 1000, rate_bytes: None })
    }
    fn complete(&self, _job: LeaseId, done: CleaningDone) -> NodeAnswer<'_, CleaningTaken> {
        self.answer(format!("complete {}", done.shares), CleaningTaken { segments: done.shares })
    }
    fn fail(&self, _job: LeaseId, failure: CleaningFailure) -> NodeAnswer<'_, ()> {
        self.answer(format!("fail {} {}", failure.given_back, failure.message), ())
    }
}

fn options() -> WorkerOptions {
    WorkerOptions { name: "w".parse().unwrap(), rate_bytes: 0, most_jobs: None, until_idle: true }
}

fn job(store: String) -> CleaningJob {
    let timeline = "07070707-0707-0707-0707-070707070707";
    let source = crate::api::model::CleaningSource {
        ordinal: 4,
        object: format!("{timeline}/seg/0000000000000004.00-1-0000000000000009"),
        live: vec![0, 3],
        history: false,
    };
    CleaningJob {
        id: LeaseId::from_bytes([1; 16]),
        pool: "default".parse().unwrap(),
        store,
        cluster: ClusterId::from_bytes([1; 16]),
        owner_number: 1,
        bundle: format!("{timeline}/bun/0000000000000001.00-1-0000000000000009"),
        codec: crate::api::model::CleaningCodec::Raw,
        made_ms: 5,
        sources: vec![source],
        terms: CleaningTerms { lease_ms: 1000, rate_bytes: None },
    }
}

#[tokio::test]
async fn a_directory_that_is_not_the_pools_is_neither_used_nor_made() {
    let dir = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("file://{}/{name}", dir.path().display());
    let node = Script::new(Some(job(url("none"))));
    let report = work(&node, &options(), std::future::pending()).await.unwrap();
    assert_eq!((report.jobs, report.failed_jobs), (0, 1));
    let told = node.told.take();
    assert!(told[1].starts_with("fail false") && told[1].contains("not on this machine"), "{told:?}");
    assert!(!dir.path().join("none").exists());

    // The directory of another cluster, by the same path.
    let handle = tokio::runtime::Handle::current();
    let store = varve_store::open(&StoreUrl::parse(&url("s")).unwrap(), StoreLimits::default(), is_bulk, handle).await;
    let store = store.unwrap();
    let owner = varve_format::owner::OwnerRecord { number: 1, cluster: ClusterId::from_bytes([2; 16]), created_ms: 0 };
    let payload = Payload::from(bytes::Bytes::from(owner.encode()));
    store.put(&varve_format::owner::OwnerRecord::name(1), payload).await.unwrap();
    let node = Script::new(Some(job(url("s"))));
    work(&node, &options(), std::future::pending()).await.unwrap();
    let told = node.told.take();
    assert!(told[1].starts_with("fail false") && told[1].contains("another cluster's"), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_is_asked_again_and_one_that_refuses_is_not() {
    let away = ControlError::new(ErrorKind::Unavailable, "away");
    let node = Script::new(None);
    node.errors.borrow_mut().extend([away.clone(), away]);
    let began = tokio::time::Instant::now();
    work(&node, &options(), std::future::pending()).await.unwrap();
    assert_eq!(node.told.borrow().len(), 3);
    assert_eq!(began.elapsed(), FIRST_PAUSE * 3);
    node.errors.borrow_mut().push(ControlError::invalid("no"));
    assert_eq!(work(&node, &options(), std::future::pending()).await.unwrap_err().kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn who_ends_gives_its_job_back() {
    // A server that takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let credentials = dir.path().join("credentials");
    std::fs::write(&credentials, "[default]\naws_access_key_id = K\naws_secret_access_key = S\n").unwrap();
    let (address, credentials) = (silent.local_addr().unwrap(), credentials.display());
    let node = Script::new(Some(job(format!("s3://bucket/p?endpoint=http://{address}&credentials={credentials}"))));
    let stop = async {
        while node.told.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let report = work(&node, &options(), stop).await.unwrap();
    assert_eq!(report, WorkerReport::default());
    assert_eq!(*node.told.borrow(), ["ask w", "fail true the worker ends"]);
}

#[tokio::test]
async fn nothing_is_put_once_a_lease_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let url = StoreUrl::parse(&format!("file://{}/s", dir.path().display())).unwrap();
    let handle = tokio::runtime::Handle::current();
    let store = varve_store::open(&url, StoreLimits::default(), is_bulk, handle).await.unwrap();
    let lease = Arc::new(Lease::new(Instant::now(), Duration::from_secs(60)));
    let leased = LeasedStore::new(Arc::clone(&store), Arc::clone(&lease));
    leased.put("a", Payload::default()).await.unwrap();
    assert!(leased.delete("a").await.is_err(), "a worker deletes nothing");
    lease.renew(Instant::now(), Duration::ZERO);
    assert!(lease.is_over() && leased.put("b", Payload::default()).await.is_err());
    assert!(leased.head("a").await.is_ok() && leased.head("b").await.is_err());
    lease.renew(Instant::now(), Duration::from_secs(60));
    leased.put("b", Payload::default()).await.unwrap();
}

#[test]
fn pauses_grow_up_to_a_bound() {
    assert_eq!([1, 2, 3].map(pause), [1, 2, 4].map(|times| FIRST_PAUSE * times));
    assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
}
