// SPDX-License-Identifier: Apache-2.0
//! What was made of files that are renewed now and then: made anew once a minute at most, when it is asked for. Where that can not be done the last good one stays.

use crate::error::Result;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How old what was read of the files may become.
const AGE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Renewed<T>(Mutex<(Instant, Arc<T>)>);

impl<T> Renewed<T> {
    pub(super) fn new(made: T) -> Self {
        Self(Mutex::new((Instant::now(), Arc::new(made))))
    }

    /// What there is, or what `make` makes where that is too old.
    pub(super) fn get(&self, make: impl FnOnce() -> Result<T>) -> Arc<T> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0.elapsed() >= AGE {
            known.0 = Instant::now();
            match make() {
                Ok(made) => known.1 = Arc::new(made),
                Err(error) => tracing::warn!(%error, "TLS goes on with what the files held before"),
            }
        }
        Arc::clone(&known.1)
    }

    #[cfg(test)]
    pub(super) fn grow_old(&self) {
        let mut known = self.0.lock().unwrap();
        known.0 = known.0.checked_sub(AGE).expect("the machine runs for a minute");
    }
}
