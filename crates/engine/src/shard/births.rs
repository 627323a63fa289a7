// SPDX-License-Identifier: Apache-2.0
//! Volumes that are made or ended, and imports of their pools: never both at the same time.
//!
//! An import lists what a store has and records what coordination does not know. A clone whose first manifest is put
//! and whose record is not, or a volume whose record goes while its objects do, would be taken for something that
//! was found. So while a pool is imported nothing is made in it: whoever wants to is told so. Whatever was begun
//! before, an import waits for.
//!
//! All of it is in RAM, as an import ends with its process: it is begun again then.

use super::Shard;
use crate::signal::Signal;
use crate::{EngineError, Result};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use varve_types::{ErrorKind, Name};

/// See the module.
#[derive(Default)]
pub(super) struct Births {
    /// How many volumes are being made or ended, by pool.
    under_way: RefCell<BTreeMap<Name, u32>>,
    importing: RefCell<BTreeSet<Name>>,
    ended: Signal,
}

/// A volume of a pool is being made or ended while this lives.
pub(super) struct Making<'a> {
    births: &'a Births,
    pool: Name,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.births.under_way.borrow_mut().get_mut(&self.pool) {
            *count -= 1;
        }
        self.births.ended.ring();
    }
}

/// A pool is being imported while this lives.
pub struct Importing<'a> {
    births: &'a Births,
    pool: Name,
}

impl Drop for Importing<'_> {
    fn drop(&mut self) {
        self.births.importing.borrow_mut().remove(&self.pool);
    }
}

impl Shard {
    /// Notes that a volume of the pool is being made or ended.
    pub(super) fn begin_making(&self, pool: &Name) -> Result<Making<'_>> {
        if self.births.importing.borrow().contains(pool) {
            let what = format!("the pool {pool} is being imported: try again once that is done");
            return Err(EngineError::new(ErrorKind::Busy, what));
        }
        *self.births.under_way.borrow_mut().entry(pool.clone()).or_default() += 1;
        Ok(Making { births: &self.births, pool: pool.clone() })
    }

    /// Begins an import of a pool: until what this gives is dropped, no volume is made in it, and none of it ends.
    ///
    /// # Errors
    /// `Busy` while it is imported already.
    pub async fn begin_import(&self, pool: &Name) -> Result<Importing<'_>> {
        let births = &self.births;
        if !births.importing.borrow_mut().insert(pool.clone()) {
            let what = format!("the pool {pool} is being imported already");
            return Err(EngineError::new(ErrorKind::Busy, what));
        }
        let importing = Importing { births, pool: pool.clone() };
        births.ended.until(|| births.under_way.borrow().get(pool).is_none_or(|count| *count == 0).then_some(())).await;
        Ok(importing)
    }
}
