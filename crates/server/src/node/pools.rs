// SPDX-License-Identifier: Apache-2.0
//! The pools of the node: their stores, whom they belong to, and how they are.
//!
//! A pool belongs to one cluster: the one named by the highest `owner/N` in its store. A record is put once,
//! conditionally, so of two clusters that want an empty store one gets it. A store that belongs to another cluster
//! is refused, by the name of the cluster, and nothing is written to it; taking it over is an import. A store that
//! has lost the record of our ownership (a directory that is not mounted, a bucket that was emptied) is not taken
//! for an empty one.
//!
//! A pool whose store can not be reached at the start is tried again and again; the others serve meanwhile.

use super::watched::{Health, Waiting, Watched};
use super::{coord_error, store_error};
use crate::api::ControlError;
use crate::api::model::StoreState;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use varve_coord::{Coord, PoolRecord, Record, Records};
use varve_env::{ObjectStore, Payload, PutOutcome, StoreErrorKind};
use varve_format::owner::OwnerRecord;
use varve_format::{ObjectKind, ObjectName};
use varve_store::{StoreLimits, StoreUrl};
use varve_types::{ClusterId, ErrorKind, Name, Overrides};

/// Most records of a chain of owners.
const MOST_OWNERS: u64 = 1 << 20;
/// Bytes of a record, with room for later versions.
const OWNER_BYTES: u64 = 4096;
/// How long a pool's store may take to open at the start before the node goes on without it.
pub(super) const OPEN_TIME: Duration = Duration::from_secs(20);

/// A pool at work.
#[derive(Clone)]
struct Entry {
    url: String,
    /// Its store, once it is open.
    store: Option<Arc<Watched>>,
    /// Why it is not served.
    trouble: Option<(StoreState, String)>,
}

/// See the module.
pub(super) struct Pools {
    coord: Arc<dyn Coord>,
    cluster: ClusterId,
    entries: Mutex<BTreeMap<Name, Entry>>,
}

/// A pool that is open.
pub(super) struct Opened {
    pub(super) store: Arc<Watched>,
    /// Number of the owner record that is ours.
    pub(super) owner: u64,
}

/// Whether an object by this name holds data that guests wrote. Bundles are none: they make room.
pub(crate) fn is_bulk(name: &str) -> bool {
    ObjectName::parse(name).is_some_and(|name| name.kind == ObjectKind::Segment)
}

/// Milliseconds since 1970, for people.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Opens a store.
pub(super) async fn open_store(url: &str) -> Result<Arc<Watched>, ControlError> {
    let url = StoreUrl::parse(url).map_err(store_error)?;
    let handle = tokio::runtime::Handle::current();
    Ok(Watched::new(varve_store::open(&url, StoreLimits::default(), is_bulk, handle).await.map_err(store_error)?))
}

/// The owner record with this number.
async fn owner(store: &dyn ObjectStore, number: u64) -> Result<Option<OwnerRecord>, ControlError> {
    let name = OwnerRecord::name(number);
    match store.get_head(&name, OWNER_BYTES).await {
        Ok(bytes) => {
            let record = OwnerRecord::decode(&bytes);
            let record =
                record.map_err(|error| ControlError::new(error.kind(), format!("{}: {name}: {error}", store.url())))?;
            if record.number != number {
                let message = format!("{}: {name}: it is the record number {}", store.url(), record.number);
                return Err(ControlError::new(ErrorKind::Corrupt, message));
            }
            Ok(Some(record))
        }
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(store_error(error)),
    }
}

/// The newest record of the chain, looked for from `from` on, which is there.
async fn newest_owner(store: &dyn ObjectStore, from: OwnerRecord) -> Result<OwnerRecord, ControlError> {
    let mut newest = from;
    for number in from.number + 1..from.number + MOST_OWNERS {
        match owner(store, number).await? {
            Some(record) => newest = record,
            None => return Ok(newest),
        }
    }
    Err(ControlError::new(ErrorKind::Corrupt, format!("{}: its chain of owners has no end", store.url())))
}

/// Refuses a store that belongs to another cluster.
fn check_owner(store: &dyn ObjectStore, found: OwnerRecord, cluster: ClusterId) -> Result<u64, ControlError> {
    if found.cluster == cluster {
        return Ok(found.number);
    }
    let url = store.url();
    let message = format!(
        "the pool in {url} belongs to cluster {}, and this node is cluster {cluster}: `varve pool import --store '{url}'` takes it over, \
         once no other node uses it",
        found.cluster
    );
    Err(ControlError::conflict(message))
}

/// Sees that a store is the pool of a cluster, by the record with this number, which is the newest.
///
/// # Errors
/// `Conflict` when it is not; those of the store.
pub(crate) async fn check_owner_record(
    store: &dyn ObjectStore,
    number: u64,
    cluster: ClusterId,
) -> Result<(), ControlError> {
    let (ours, next) = (owner(store, number).await?, owner(store, number.saturating_add(1)).await?);
    if next.is_some() || ours.is_none_or(|record| record.cluster != cluster) {
        let message =
            format!("{} is not the pool of cluster {cluster}: it is another cluster's, or another store", store.url());
        return Err(ControlError::conflict(message));
    }
    Ok(())
}

/// Makes an empty store ours, or finds that it is.
async fn claim(store: &dyn ObjectStore, cluster: ClusterId) -> Result<u64, ControlError> {
    let ours = OwnerRecord { number: 1, cluster, created_ms: now_ms() };
    if owner(store, 1).await?.is_none() {
        let payload = Payload::from(bytes::Bytes::from(ours.encode()));
        let put = store.put(&OwnerRecord::name(1), payload).await.map_err(store_error)?;
        if put == PutOutcome::Created {
            return Ok(1);
        }
    }
    let Some(first) = owner(store, 1).await? else {
        let message = format!("{}: owner/1 is there and can not be read", store.url());
        return Err(ControlError::new(ErrorKind::Unavailable, message));
    };
    check_owner(store, newest_owner(store, first).await?, cluster)
}

impl Pools {
    pub(super) fn new(coord: Arc<dyn Coord>, cluster: ClusterId) -> Self {
        Self { coord, cluster, entries: Mutex::default() }
    }

    /// The cluster that this node is.
    pub(super) const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Coordination.
    pub(super) fn coord(&self) -> &dyn Coord {
        &*self.coord
    }

    /// The pools that are known here.
    pub(super) fn names(&self) -> BTreeSet<Name> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn records(&self) -> Records<'_> {
        Records::new(&*self.coord)
    }

    /// Makes a pool on a store that is empty, or ours without a pool.
    ///
    /// # Errors
    /// `Conflict` when the name or the store is taken, or the store belongs to another cluster; those of the store.
    pub(super) async fn create(
        &self,
        name: &Name,
        url: &str,
        settings: Overrides,
    ) -> Result<(PoolRecord, Opened), ControlError> {
        let url = StoreUrl::parse(url).map_err(store_error)?.to_string();
        for (pool, _) in self.records().list_pools().await.map_err(coord_error)? {
            if pool.name == *name {
                return Err(ControlError::conflict(format!("there is a pool {name} already, on {}", pool.store)));
            }
            if pool.store == url {
                return Err(ControlError::conflict(format!(
                    "the store {url} is that of the pool {} already",
                    pool.name
                )));
            }
        }
        let store = open_store(&url).await?;
        let owner_number = claim(&*store, self.cluster).await?;
        let (name, created_ms) = (name.clone(), now_ms());
        let record = PoolRecord { version: PoolRecord::VERSION, name, store: url, owner_number, settings, created_ms };
        self.records().create_pool(&record).await.map_err(coord_error)?;
        self.enter(&record.name, &record.store, Ok(&store));
        Ok((record, Opened { store, owner: owner_number }))
    }

    /// Opens the store of a pool that is recorded. What came of it is noted for the state.
    ///
    /// # Errors
    /// `Conflict` when it belongs to another cluster now; `Unavailable` when it can not be reached, or the record of our ownership is not in it.
    pub(super) async fn open(&self, record: &PoolRecord) -> Result<Opened, ControlError> {
        let opened = self.try_open(record).await;
        self.enter(&record.name, &record.store, opened.as_ref().map(|opened| &opened.store));
        opened
    }

    async fn try_open(&self, record: &PoolRecord) -> Result<Opened, ControlError> {
        let opening = async {
            let store = open_store(&record.store).await?;
            let Some(ours) = owner(&*store, record.owner_number).await? else {
                let name = OwnerRecord::name(record.owner_number);
                let message =
                    format!("{} does not hold {name} any more: is it mounted, and the right one?", record.store);
                return Err(ControlError::new(ErrorKind::Unavailable, message));
            };
            let owner = check_owner(&*store, newest_owner(&*store, ours).await?, self.cluster)?;
            Ok(Opened { store, owner })
        };
        match tokio::time::timeout(OPEN_TIME, opening).await {
            Ok(result) => result,
            Err(_) => {
                let message = format!("{} gave no answer within {} s", record.store, OPEN_TIME.as_secs());
                Err(ControlError::new(ErrorKind::Unavailable, message))
            }
        }
    }

    fn enter(&self, name: &Name, url: &str, result: Result<&Arc<Watched>, &ControlError>) {
        let (store, trouble) = match result {
            Ok(store) => (Some(Arc::clone(store)), None),
            Err(error) if error.kind == ErrorKind::Conflict => (None, Some((StoreState::Lost, error.message.clone()))),
            Err(error) if error.kind == ErrorKind::NoSpace => (None, Some((StoreState::Full, error.message.clone()))),
            Err(error) => (None, Some((StoreState::Unavailable, error.message.clone()))),
        };
        self.lock().insert(name.clone(), Entry { url: url.to_owned(), store, trouble });
    }

    /// Forgets a pool.
    pub(super) fn remove(&self, name: &Name) {
        self.lock().remove(name);
    }

    /// The pools that are not served, and why.
    pub(super) fn away(&self) -> BTreeMap<Name, String> {
        let entries = self.lock();
        entries.iter().filter_map(|(name, entry)| Some((name.clone(), entry.trouble.as_ref()?.1.clone()))).collect()
    }

    /// How a pool's store is, and what it said last when it is not well.
    pub(super) fn state(&self, name: &Name) -> (StoreState, Option<String>) {
        let entries = self.lock();
        let Some(entry) = entries.get(name) else { return (StoreState::Unavailable, None) };
        if let Some((state, why)) = &entry.trouble {
            return (*state, Some(why.clone()));
        }
        match entry.store.as_ref().map(|store| store.health()) {
            Some(Health::Ok) => (StoreState::Ok, None),
            Some(Health::Full(why)) => (StoreState::Full, Some(why)),
            Some(Health::Unavailable(why)) => (StoreState::Unavailable, Some(why)),
            None => (StoreState::Unavailable, None),
        }
    }

    /// The stores that are open, by pool.
    pub(super) fn stores(&self) -> Vec<(Name, Arc<Watched>)> {
        let entries = self.lock();
        entries.iter().filter_map(|(name, entry)| Some((name.clone(), Arc::clone(entry.store.as_ref()?)))).collect()
    }

    /// Looks at every open store, so that the state is not older than the period of these looks. Gives the pools that
    /// another cluster has taken over since, and why.
    pub(super) async fn look(&self) -> Vec<(Name, String)> {
        let records = self.records().list_pools().await.unwrap_or_default();
        // Beside each other: one that does not answer keeps no look at the others waiting.
        let looks = records.into_iter().map(|(record, _)| self.look_at(record));
        futures_util::future::join_all(looks).await.into_iter().flatten().collect()
    }

    async fn look_at(&self, record: PoolRecord) -> Option<(Name, String)> {
        let store = self.lock().get(&record.name).and_then(|entry| entry.store.clone())?;
        // What the store answers is noted on the way.
        let next = owner(&*store, record.owner_number + 1).await.ok()??;
        if next.cluster == self.cluster {
            return None;
        }
        let why = format!("the pool {} was imported by cluster {}", record.name, next.cluster);
        tracing::error!(pool = %record.name, %why, "a pool is lost");
        let entry = Entry { url: record.store, store: None, trouble: Some((StoreState::Lost, why.clone())) };
        self.lock().insert(record.name.clone(), entry);
        Some((record.name, why))
    }

    /// Looks which stores take requests and answer none; to be asked every second.
    pub(super) fn look_for_silence(&self) {
        for (_, store) in self.stores() {
            store.look();
        }
    }

    /// What is under way at a pool's store.
    pub(super) fn waiting(&self, name: &Name) -> Waiting {
        self.lock().get(name).and_then(|entry| entry.store.as_ref()).map(|store| store.waiting()).unwrap_or_default()
    }

    /// The address of a pool's store.
    pub(super) fn url(&self, name: &Name) -> Option<String> {
        self.lock().get(name).map(|entry| entry.url.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_coord::Memory;

    fn pools(coord: &Arc<Memory>, cluster: u8) -> Pools {
        Pools::new(Arc::clone(coord) as Arc<dyn Coord>, ClusterId::from_bytes([cluster; 16]))
    }

    #[tokio::test]
    async fn a_store_has_one_owner_and_tells_who() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/s", dir.path().display());
        let name: Name = "default".parse().unwrap();
        let (here, there) = (Arc::new(Memory::new()), Arc::new(Memory::new()));
        let (first, second) = (pools(&here, 1), pools(&there, 2));
        let (record, opened) = first.create(&name, &url, Overrides::default()).await.unwrap();
        assert_eq!((record.owner_number, opened.owner), (1, 1));
        let error = second.create(&name, &url, Overrides::default()).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Conflict);
        let id = ClusterId::from_bytes([1; 16]).to_string();
        assert!(error.message.contains(&id) && error.message.contains("varve pool import"), "{error}");
        assert_eq!(first.open(&record).await.unwrap().owner, 1);
        let twice = first.create(&"other".parse().unwrap(), &url, Overrides::default()).await.err().unwrap();
        assert!(twice.message.contains("that of the pool default"), "{twice}");

        let next = OwnerRecord { number: 2, cluster: ClusterId::from_bytes([2; 16]), created_ms: 0 };
        opened.store.put(&OwnerRecord::name(2), Payload::from(bytes::Bytes::from(next.encode()))).await.unwrap();
        assert_eq!(first.look().await.len(), 1);
        assert_eq!(first.look().await, [], "it is told once");
        assert_eq!(first.state(&name).0, StoreState::Lost);
        assert_eq!(first.open(&record).await.err().unwrap().kind, ErrorKind::Conflict);
        let ours = PoolRecord { owner_number: 2, ..record };
        assert_eq!(second.open(&ours).await.unwrap().owner, 2);
    }

    #[tokio::test]
    async fn a_store_that_lost_its_owner_is_not_taken_for_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/s", dir.path().display());
        let name: Name = "p".parse().unwrap();
        let pools = pools(&Arc::new(Memory::new()), 1);
        let (record, opened) = pools.create(&name, &url, Overrides::default()).await.unwrap();
        opened.store.delete("owner/1").await.unwrap();
        assert_eq!(pools.open(&record).await.err().unwrap().kind, ErrorKind::Unavailable);
        assert_eq!(pools.state(&name).0, StoreState::Unavailable);
        assert!(pools.away()[&name].contains("owner/1"));
        assert_eq!(opened.store.list("owner/", None).await.unwrap(), []);
    }
}
