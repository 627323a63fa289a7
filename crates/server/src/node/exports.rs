// SPDX-License-Identifier: Apache-2.0
//! The NBD exports: each volume under its name, and each of its snapshots as
//! `NAME@SNAPSHOT`.
//!
//! Asked by negotiations on the control runtime, answered on the shard's thread. Nothing is
//! opened here. The empty name stands for the only volume, where there is only one.

use super::connections::check_free;
use super::local::Local;
use super::thread::ShardHandle;
use crate::api::ControlError;
use crate::api::model::Target;
use std::future::Future;
use varve_engine::EngineError;
use varve_nbd::{ExportInfo, Exports};
use varve_types::ErrorKind;

/// Names that are listed; a list of more would be of no use to anybody.
const MOST_LISTED: usize = 10_000;

/// See the module.
pub(super) struct ShardExports {
    pub(super) shard: ShardHandle,
}

/// An error of the node as the NBD server takes it.
fn engine_error(error: ControlError) -> EngineError {
    EngineError::new(error.kind, error.message)
}

impl Exports for ShardExports {
    fn list(&self) -> impl Future<Output = Result<Vec<String>, EngineError>> + Send {
        let names = self.shard.call(|local| Box::pin(async move { Ok(list(&local).await) }));
        async move { names.await.map_err(engine_error) }
    }

    fn find(&self, name: &str) -> impl Future<Output = Result<ExportInfo, EngineError>> + Send {
        let name = name.to_owned();
        let found = self.shard.call(move |local| Box::pin(async move { Ok(find(&local, &name).await?) }));
        async move { found.await.map_err(engine_error) }
    }
}

async fn list(local: &Local) -> Vec<String> {
    let mut names = Vec::new();
    for volume in local.shard.volumes() {
        let name = volume.name();
        names.push(name.to_string());
        match volume.snapshots().await {
            Ok(snapshots) => {
                let shown = snapshots.iter().filter(|snapshot| !snapshot.hidden);
                names.extend(shown.map(|snapshot| format!("{name}@{}", snapshot.name)));
            }
            Err(error) => tracing::warn!(volume = %name, %error, "the snapshots of a volume can not be listed"),
        }
        if names.len() >= MOST_LISTED {
            names.truncate(MOST_LISTED);
            break;
        }
    }
    names
}

async fn find(local: &Local, name: &str) -> Result<ExportInfo, EngineError> {
    if name.is_empty() {
        let volumes = local.shard.volumes();
        let [volume] = volumes.as_slice() else {
            let message = "there is no default export: name one of the volumes";
            return Err(EngineError::new(ErrorKind::NotFound, message));
        };
        let read_only = volume.record().template;
        return Ok(ExportInfo { name: volume.name().to_string(), size: volume.size(), read_only });
    }
    let target: Target =
        name.parse().map_err(|_| EngineError::new(ErrorKind::NotFound, format!("there is no export {name:?}")))?;
    let volume = local.find(&target.volume).await?;
    if let Some(error) = volume.stopped() {
        return Err(error);
    }
    let (size, read_only) = match &target.snapshot {
        Some(snapshot) => (volume.find_snapshot(snapshot).await?.size, true),
        None => {
            check_free(&volume)?;
            (volume.size(), volume.record().template)
        }
    };
    Ok(ExportInfo { name: target.to_string(), size, read_only })
}
