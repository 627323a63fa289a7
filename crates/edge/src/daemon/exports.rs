// SPDX-License-Identifier: Apache-2.0
//! What the NBD listener tells of the volumes: a copy that negotiations can read, kept up to date by the registry.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use varve_block::{BlockError, Result};
use varve_nbd::{ExportInfo, Exports};
use varve_types::ErrorKind;

/// The exports, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown(Arc<Mutex<BTreeMap<String, ExportInfo>>>);

impl Shown {
    pub(crate) fn put(&self, name: &str, size: u64, read_only: bool) {
        let info = ExportInfo { name: name.to_owned(), size, read_only };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), info);
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    pub(crate) fn remove(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

impl Exports for Shown {
    async fn list(&self) -> Result<Vec<String>> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect())
    }

    /// The empty name stands for the one volume, where there is one.
    async fn find(&self, name: &str) -> Result<ExportInfo> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let only = if name.is_empty() && all.len() == 1 { all.values().next() } else { None };
        only.or_else(|| all.get(name)).cloned().ok_or_else(|| {
            let message = if name.is_empty() {
                "a volume has to be named".to_owned()
            } else {
                format!("there is no volume {name:?} attached here")
            };
            BlockError::new(ErrorKind::NotFound, message)
        })
    }
}
