// SPDX-License-Identifier: Apache-2.0
//! Map nodes for a check: whole map objects are read once and kept while there is room.
//!
//! A walk in the order of blocks meets the objects of many roots again and again, and a get for each node would
//! take for ever. The bound is a number of bytes; the object that was read first goes first. Every record is proved
//! when it is given out. Nothing here outlives the check, and nothing is written.

use crate::Result;
use crate::context::damaged;
use crate::manifests::PoolStore;
use crate::proof::{proved, record_of};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use varve_format::ObjectName;
use varve_format::page::PageTable;

/// Bytes of objects that are kept.
const KEPT_BYTES: u64 = 64 << 20;
/// Longest object that is read.
const MAX_OBJECT: u64 = 2 << 30;

/// See the module.
pub(super) struct Objects {
    pool: Rc<PoolStore>,
    held: BTreeMap<ObjectName, Rc<(PageTable, Bytes)>>,
    order: VecDeque<ObjectName>,
    bytes: u64,
}

impl Objects {
    pub fn new(pool: Rc<PoolStore>) -> Self {
        Self { pool, held: BTreeMap::new(), order: VecDeque::new(), bytes: 0 }
    }

    /// Table and bytes of a page object.
    pub async fn object(&mut self, name: &ObjectName) -> Result<Rc<(PageTable, Bytes)>> {
        if let Some(held) = self.held.get(name) {
            return Ok(Rc::clone(held));
        }
        let text = name.to_string();
        let bytes = self.pool.store.get_head(&text, MAX_OBJECT).await?;
        let table = PageTable::decode(name, &bytes).map_err(damaged(&text))?;
        self.bytes += bytes.len() as u64;
        let object = Rc::new((table, bytes));
        self.held.insert(*name, Rc::clone(&object));
        self.order.push_back(*name);
        while self.bytes > KEPT_BYTES
            && self.order.len() > 1
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.held.remove(&oldest).map_or(0, |object| object.1.len() as u64);
        }
        Ok(object)
    }

    /// A record of a page object, proved.
    pub async fn record(&mut self, name: &ObjectName, index: u32) -> Result<Bytes> {
        let ask = async || {
            let object = self.object(name).await?;
            record_of(name, &object.0, &object.1, index).inspect_err(|_| self.forget(name))
        };
        proved(ask).await
    }

    /// Forgets an object of which a record does not prove: the next look asks for it anew.
    fn forget(&mut self, name: &ObjectName) {
        self.bytes -= self.held.remove(name).map_or(0, |object| object.1.len() as u64);
        self.order.retain(|held| held != name);
    }
}
