// SPDX-License-Identifier: Apache-2.0
//! Ballast: room in a store with a quota that is kept so that a full one can be emptied.
//!
//! To delete something, a manifest that no longer needs it has to be put first. In a bucket that takes nothing any more nothing could ever go. So a few objects
//! without meaning, `reserve/N`, take a part of it, and are deleted one by one when something does not fit. What they gave is not for *bulk*, the objects that guests' data come in: bulk
//! waits until the ballast is whole again, and while something is missing each put of bulk first tries, now and then, to put that back. A directory keeps a file for the same
//! purpose.
//!
//! All nodes of a pool share the ballast: puts of it are conditional, and whoever finds a name taken is content. A store that is too small to begin with is told of, and has none.
//!
//! Always holds: a put that is no bulk is tried once more for each object that was given, and no more often.

use crate::error;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use varve_env::{ObjectInfo, ObjectStore, Payload, PutOutcome, SendFuture, StoreError, StoreErrorKind};

/// Objects of the ballast, and bytes of each: a checkpoint of a large map puts objects of 32 MiB.
const OBJECTS: u32 = 4;
const OBJECT_BYTES: usize = 16 << 20;
/// Between two tries to put back what is missing.
const EVERY: Duration = Duration::from_secs(5);

/// A store with ballast. See the module.
pub(crate) struct Ballast<S> {
    store: S,
    /// Tells by its name what the ballast is not for.
    is_bulk: fn(&str) -> bool,
    object_bytes: usize,
    state: Mutex<State>,
}

/// What is known of the ballast.
struct State {
    /// The objects from this number on are not there, as far as is known.
    held: u32,
    /// When it was tried last to put some back.
    tried: Option<Instant>,
}

fn name_of(number: u32) -> String {
    format!("reserve/{number}")
}

impl<S: ObjectStore> Ballast<S> {
    /// A store that has no ballast yet: [`fill`](Self::fill) puts it.
    pub(crate) const fn new(store: S, is_bulk: fn(&str) -> bool) -> Self {
        Self { store, is_bulk, object_bytes: OBJECT_BYTES, state: Mutex::new(State { held: 0, tried: None }) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what is missing of the ballast.
    ///
    /// # Errors
    /// That of the first put that fails: what was put before stays.
    pub(crate) async fn fill(&self) -> Result<(), StoreError> {
        loop {
            let number = self.state().held;
            if number >= OBJECTS {
                return Ok(());
            }
            let zeroes = Payload::from(Bytes::from(vec![0; self.object_bytes]));
            self.store.put(&name_of(number), zeroes).await?;
            let mut state = self.state();
            state.held = state.held.max(number + 1);
        }
    }

    /// Gives up one object; tells whether there was one.
    async fn give(&self) -> bool {
        let number = {
            let mut state = self.state();
            if state.held == 0 {
                return false;
            }
            state.held -= 1;
            state.held
        };
        let given = self.store.delete(&name_of(number)).await;
        match given {
            Ok(()) => {
                tracing::warn!(store = %self.store.url(), left = number, "the store is full: its reserve gives way")
            }
            Err(ref failure) => {
                tracing::warn!(store = %self.store.url(), %failure, "the store is full, and its reserve can not be given up");
            }
        }
        given.is_ok()
    }

    /// Whether bulk may be put: all of the ballast is there, or is again.
    async fn admits(&self) -> bool {
        {
            let mut state = self.state();
            if state.held >= OBJECTS {
                return true;
            }
            if state.tried.is_some_and(|tried| tried.elapsed() < EVERY) {
                return false;
            }
            state.tried = Some(Instant::now());
        }
        match self.fill().await {
            Ok(()) => true,
            // Whatever else is wrong the put itself will tell.
            Err(failure) => failure.kind != StoreErrorKind::NoSpace,
        }
    }

    async fn put_with_ballast(&self, name: &str, payload: Payload) -> Result<PutOutcome, StoreError> {
        let is_bulk = (self.is_bulk)(name);
        if is_bulk && !self.admits().await {
            return Err(error(StoreErrorKind::NoSpace, "put", name, "the store is full: what is left is its reserve"));
        }
        loop {
            match self.store.put(name, payload.clone()).await {
                // What was given is missing from now on, so bulk waits.
                Err(failure) if failure.kind == StoreErrorKind::NoSpace && !is_bulk && self.give().await => {}
                done => return done,
            }
        }
    }
}

impl<S: ObjectStore> ObjectStore for Ballast<S> {
    fn put<'a>(&'a self, name: &'a str, payload: Payload) -> SendFuture<'a, Result<PutOutcome, StoreError>> {
        Box::pin(self.put_with_ballast(name, payload))
    }

    fn get<'a>(&'a self, name: &'a str, range: Range<u64>) -> SendFuture<'a, Result<Bytes, StoreError>> {
        self.store.get(name, range)
    }

    fn get_head<'a>(&'a self, name: &'a str, most: u64) -> SendFuture<'a, Result<Bytes, StoreError>> {
        self.store.get_head(name, most)
    }

    fn head<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<ObjectInfo, StoreError>> {
        self.store.head(name)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> SendFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
        self.store.list(prefix, after)
    }

    fn delete<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<(), StoreError>> {
        self.store.delete(name)
    }

    fn url(&self) -> String {
        self.store.url()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A store that takes so many bytes.
    struct Full {
        objects: Mutex<BTreeMap<String, u64>>,
        room: u64,
    }

    impl Full {
        fn used(&self) -> u64 {
            self.objects.lock().expect("nobody panics with it").values().sum()
        }

        fn fits(&self, bytes: u64) -> bool {
            self.used() + bytes <= self.room
        }
    }

    impl ObjectStore for Full {
        fn put<'a>(&'a self, name: &'a str, payload: Payload) -> SendFuture<'a, Result<PutOutcome, StoreError>> {
            Box::pin(async move {
                if !self.fits(payload.len()) {
                    return Err(error(StoreErrorKind::NoSpace, "put", name, "full"));
                }
                let before = self.objects.lock().expect("nobody panics with it").insert(name.to_owned(), payload.len());
                Ok(if before.is_some() { PutOutcome::Exists } else { PutOutcome::Created })
            })
        }
        fn get<'a>(&'a self, name: &'a str, _: Range<u64>) -> SendFuture<'a, Result<Bytes, StoreError>> {
            Box::pin(async move { Err(error(StoreErrorKind::NotFound, "get", name, "not kept")) })
        }
        fn get_head<'a>(&'a self, name: &'a str, _: u64) -> SendFuture<'a, Result<Bytes, StoreError>> {
            self.get(name, 0..0)
        }
        fn head<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<ObjectInfo, StoreError>> {
            Box::pin(async move { Err(error(StoreErrorKind::NotFound, "head", name, "not kept")) })
        }
        fn list<'a>(&'a self, _: &'a str, _: Option<&'a str>) -> SendFuture<'a, Result<Vec<ObjectInfo>, StoreError>> {
            Box::pin(async { Ok(Vec::new()) })
        }
        fn delete<'a>(&'a self, name: &'a str) -> SendFuture<'a, Result<(), StoreError>> {
            self.objects.lock().expect("nobody panics with it").remove(name);
            Box::pin(async { Ok(()) })
        }
        fn url(&self) -> String {
            "full".to_owned()
        }
    }

    fn store(room: u64) -> Ballast<Full> {
        let full = Full { objects: Mutex::default(), room };
        Ballast { object_bytes: 10, ..Ballast::new(full, |name| name.starts_with("bulk")) }
    }

    fn bytes(len: usize) -> Payload {
        Payload::from(Bytes::from(vec![1; len]))
    }

    /// Lets the next put of bulk try to put the ballast back.
    fn wait(store: &Ballast<Full>) {
        store.state().tried = None;
    }

    #[tokio::test]
    async fn what_bulk_has_filled_can_be_emptied() {
        let store = store(100);
        store.fill().await.expect("it fits");
        assert_eq!(store.store.used(), 40);
        for number in 0..6 {
            store.put(&format!("bulk/{number}"), bytes(10)).await.expect("it fits");
        }
        let full = store.put("bulk/6", bytes(10)).await.expect_err("it is full");
        assert_eq!(full.kind, StoreErrorKind::NoSpace);
        assert_eq!(store.store.used(), 100, "bulk never takes the ballast");
        store.put("manifest/1", bytes(15)).await.expect("two objects give way");
        assert!(store.store.used() == 95 && store.state().held == 2);
        // What is left free is not for bulk.
        wait(&store);
        assert_eq!(store.put("bulk/6", bytes(1)).await.expect_err("it is the reserve").kind, StoreErrorKind::NoSpace);
        for number in 0..4 {
            store.delete(&format!("bulk/{number}")).await.expect("it goes");
        }
        assert_eq!(store.put("bulk/6", bytes(1)).await.expect_err("not so soon").kind, StoreErrorKind::NoSpace);
        wait(&store);
        store.put("bulk/6", bytes(1)).await.expect("there is room again, and the ballast is whole");
        assert_eq!(store.state().held, OBJECTS);
    }

    #[tokio::test]
    async fn a_put_that_nothing_makes_room_for_ends() {
        let store = store(45);
        store.fill().await.expect("it fits");
        let failure = store.put("manifest/1", bytes(46)).await.expect_err("it never fits");
        assert_eq!((failure.kind, store.state().held), (StoreErrorKind::NoSpace, 0));
        let small = self::store(25);
        assert_eq!(small.fill().await.expect_err("it is too small").kind, StoreErrorKind::NoSpace);
        assert_eq!(small.state().held, 2);
    }
}
