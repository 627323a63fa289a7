// SPDX-License-Identifier: Apache-2.0
//! The pool `default`: made at the first start of a cluster, and held to its store at every other.
//!
//! A node by itself has it in its data directory unless another store is given, and takes it along where the directory goes. In a cluster it is where all
//! nodes reach it, and the first node makes it.

use super::coord_error;
use super::directory::Directory;
use super::membership::{parse_store, shared_store};
use super::pools::{Opened, Pools};
use super::volume_control::default_pool;
use crate::api::ControlError;
use varve_config::UpConfig;
use varve_coord::{CoordError, PoolRecord};
use varve_store::StoreUrl;
use varve_types::{ErrorKind, Overrides};

type Answer<T> = Result<T, ControlError>;

/// The pool `default`: made at the first start, held to its store at every other.
pub(super) async fn ready(
    config: &UpConfig,
    directory: &Directory,
    pools: &Pools,
) -> Answer<(PoolRecord, Answer<Opened>)> {
    let own = StoreUrl::try_from(directory.path().join("store").as_path()).map_err(super::store_error)?;
    let given = config.store.as_deref().map(parse_store).transpose()?;
    let is_shared = config.cluster.is_some();
    let name = default_pool();
    let (mut record, revision) = match pools.records().load_pool(&name).await {
        Ok(found) => found,
        Err(CoordError::NotFound(_)) => {
            let settings = Overrides { undelete_window_ms: config.undelete_window_ms, ..Overrides::default() };
            let store =
                if is_shared { shared_store(given.as_ref(), &own)? } else { given.clone().unwrap_or(own.clone()) };
            match pools.create(&name, &store.to_string(), settings).await {
                Ok((record, opened)) => return Ok((record, Ok(opened))),
                // Another node has made it meanwhile.
                Err(error) if is_shared && error.kind == ErrorKind::Conflict => {
                    pools.records().load_pool(&name).await.map_err(|_| error)?
                }
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(coord_error(error)),
    };
    if let Some(given) = &given
        && given.to_string() != record.store
    {
        let (has, data) = (&record.store, directory.path().display());
        if is_shared {
            let message = format!("the pool default of the cluster is in {has}, not in {given}: leave --store out");
            return Err(ControlError::conflict(message));
        }
        let message = format!(
            "the pool default of the data directory {data} is in {has}, not in {given}: leave --store out, or use another data directory"
        );
        return Err(ControlError::conflict(message));
    }
    // A store within the data directory goes where that goes, also where it was copied and the first one is still there: two nodes on one store would
    // delete each other's objects.
    let has_own = directory.path().join("store").join("owner").exists();
    if given.is_none() && has_own && !is_shared && record.store != own.to_string() {
        record.store = own.to_string();
        let opened = pools.open(&record).await?;
        pools.records().update_pool(revision, &record).await.map_err(coord_error)?;
        return Ok((record, Ok(opened)));
    }
    match pools.open(&record).await {
        Err(error) if error.kind == ErrorKind::Conflict => Err(error),
        opened => Ok((record, opened)),
    }
}
