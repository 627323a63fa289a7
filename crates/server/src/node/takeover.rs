// SPDX-License-Identifier: Apache-2.0
//! Volumes of other nodes that are asked for here: edges are sent on to the owner, and a person may make this node the owner.
//!
//! What a person forces is told first, with what may be lost by it: everything that the old owner acknowledged and that is not in the store. Nothing here finds
//! out whether the old owner is really dead; that is asked.
//!
//! A volume whose mirror this node is, and in sync, is taken over when an edge asks for it and its owner does not answer: nothing is lost by that, and an owner
//! that lives all the same is fenced by the copy and by the epoch.
//!
//! Always holds: no volume is taken over without a person's word but by the copy that coordination names.

use super::cluster::patiently;
use super::control::Node;
use super::local::Local;
use super::ownership::{self, Foreign};
use super::{coord_error, describe};
use crate::api::ControlError;
use crate::api::model::Volume;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use varve_coord::{NodeRecord, VolumeRecord};
use varve_engine::Volume as Open;
use varve_types::{ErrorKind, Name, Settings};
use varve_wire::attach::{Attach, Refused};

/// How long a take-over waits until this node has let go of what it ran itself before.
const LET_GO_TIME: Duration = Duration::from_secs(30);
/// Between two looks at that.
const LOOK_TIME: Duration = Duration::from_millis(20);
/// How often a volume is opened without its mirror while this node tries to open it with it.
const FORCE_TRIES: u32 = 3;

type Answer<T> = Result<T, ControlError>;

/// What becomes of an edge that asks this node for a volume of another one: it is sent on to the owner, where that is alive, or to the mirror; or it gets the
/// volume, which this node has taken over.
///
/// # Errors
/// What the edge is told.
pub(super) async fn answer(local: &Rc<Local>, foreign: &Foreign, attach: &Attach) -> Result<Rc<Open>, Refused> {
    let Some(mirroring) = local.mirroring.clone() else { return Err(sent_on(local, foreign, attach).await) };
    if !mirroring.has_copy(&foreign.volume) || !mirroring.is_owner_gone(foreign, attach).await {
        return Err(sent_on(local, foreign, attach).await);
    }
    let id = foreign.volume.id;
    let _turn = local.attaching.turn(id).lock_owned().await;
    if let Some(open) = local.shard.volumes().into_iter().find(|open| open.id() == id && open.stopped().is_none()) {
        // For another edge, a moment ago.
        return Ok(open);
    }
    let taken = take_here(local, foreign, local.shard.take_over_as_mirror(id), "its owner does not answer").await;
    taken.map_err(|error| Refused::new(ErrorKind::Unavailable, error.message))
}

/// Whom an edge has to ask instead: the owner. Its mirror, where the owner is dead; or where the edge was served before and is not any more: the mirror finds out
/// what is with the owner, and sends the edge on if that is well.
async fn sent_on(local: &Local, foreign: &Foreign, attach: &Attach) -> Refused {
    let message = foreign.error().to_string();
    let owner = foreign.node.clone().filter(|_| foreign.alive.is_some());
    let was_served = attach.promises.iter().any(|promise| promise.epoch == foreign.volume.epoch);
    let mirror = if was_served || owner.is_none() { mirror_elsewhere(local, foreign).await } else { None };
    let elsewhere = mirror.or(owner).and_then(|node| node.edge.first().cloned());
    Refused { elsewhere, ..Refused::new(ErrorKind::Unavailable, message) }
}

/// The mirror of a volume, if it is another node, and alive.
async fn mirror_elsewhere(local: &Local, foreign: &Foreign) -> Option<NodeRecord> {
    let own = local.member.as_ref().map(|member| member.id());
    let mirror = foreign.volume.counting_mirror().filter(|mirror| Some(mirror.node) != own)?;
    let records = local.records();
    let known = async { Ok((records.alive(mirror.node).await?, records.load_node(mirror.node).await?.0)) };
    patiently(known).await.ok().and_then(|(alive, node)| alive.map(|_| node))
}

/// How long what is written may wait until it is put into the store, as people write it.
async fn seal_age(node: &Node, foreign: &Foreign) -> Answer<String> {
    let (pool, _) = node.pools.records().load_pool(&foreign.volume.pool).await.map_err(coord_error)?;
    let settings = Settings::describe(&foreign.volume.settings, &pool.settings);
    let found = settings.into_iter().find(|(key, _, _)| *key == "seal-age");
    Ok(found.map(|(_, value, _)| value).unwrap_or_default())
}

/// What making this node the owner of a volume may lose, for people.
fn losses(foreign: &Foreign, seal_age: &str) -> String {
    let (name, owner) = (&foreign.volume.name, foreign.owner());
    if foreign.volume.owner.is_none() {
        return format!(
            "volume {name} is run by nobody. Whatever is in its store is all that there is of it: nothing is lost"
        );
    }
    let lost = format!(
        "everything that {owner} acknowledged since the volume's last segment was put into the store is lost, unless an edge still has it: that is sent again. While its store answered, that was at most the last {seal_age} (its seal-age) and what was being put"
    );
    let holder = foreign.volume.holder.as_ref().map_or_else(
        || "No edge holds the volume".to_owned(),
        |holder| format!("The edge {} holds the volume", holder.edge),
    );
    match &foreign.alive {
        Some(_) => format!(
            "volume {name} is run by {owner}, which is ALIVE. If this node takes it, {lost}. {holder}. {owner} may go on acknowledging writes until it \
             hears of it: stop it first, if it can be stopped"
        ),
        None => format!(
            "volume {name} is run by {owner}, of which nothing is heard. If this node takes it, {lost}. {holder}. Is {owner} really dead? If it only can not \
             reach etcd, it may go on acknowledging writes, which are lost too"
        ),
    }
}

/// Makes this node the owner of a volume that another one runs; without `force` only tells what may be lost by that.
pub(super) async fn take(node: &Node, name: Name, force: bool) -> Answer<Volume> {
    let Some(member) = &node.member else {
        return Err(ControlError::conflict("this node is a cluster by itself: nobody else runs volumes of it"));
    };
    let records = node.pools.records();
    let foreign = Foreign::find(records, member.id(), &name).await.map_err(coord_error)?;
    let Some(foreign) = foreign else {
        return node.on_shard(move |local| Box::pin(async move { ours(&local, &name, force).await })).await;
    };
    if !force {
        return Err(ControlError::conflict(losses(&foreign, &seal_age(node, &foreign).await?)));
    }
    // Its pool may be so new that this node has not heard of it.
    ownership::take_pools(node, &mut BTreeMap::new()).await?;
    let taken = node.on_shard(move |local| {
        Box::pin(async move {
            let (id, epoch) = (foreign.volume.id, foreign.volume.epoch);
            let has_copy = local.mirroring.as_ref().is_some_and(|mirroring| mirroring.has_copy(&foreign.volume));
            let take = async {
                if has_copy {
                    // With that nothing is lost.
                    local.shard.take_over_as_mirror(id).await
                } else {
                    local.shard.take_over(id, epoch).await
                }
            };
            let open = take_here(&local, &foreign, take, "a person says so").await?;
            describe::volume(&local, &open).await
        })
    });
    taken.await
}

/// A volume that this node is the owner of already. One that waits for its mirror is opened without it, if that is forced.
async fn ours(local: &Rc<Local>, name: &Name, force: bool) -> Answer<Volume> {
    let refused = match local.find(name).await {
        Ok(open) => return describe::volume(local, &open).await,
        Err(error) => error,
    };
    let record = patiently(local.records().find_by_name(name)).await.map_err(coord_error)?.0;
    let me = local.member.as_ref().map(|member| member.id());
    if record.counting_mirror().is_none_or(|mirror| Some(mirror.node) == me) {
        return Err(refused.into());
    }
    if !force {
        let message = format!(
            "{refused}. It opens as soon as that node is back. If it is opened without it, what this node acknowledged and had not on stable media when it \
             ended is lost, unless an edge still has it"
        );
        return Err(ControlError::conflict(message));
    }
    let open = open_alone(local, record).await?;
    describe::volume(local, &open).await
}

/// Opens a volume of this node without its mirror.
async fn open_alone(local: &Rc<Local>, mut record: VolumeRecord) -> Answer<Rc<Open>> {
    tracing::warn!(volume = %record.name, epoch = %record.epoch, "a volume is opened without its mirror, as a person says so");
    for _ in 0..FORCE_TRIES {
        match local.shard.take_over(record.id, record.epoch).await {
            Ok(open) => {
                local.forget_unopened(record.id);
                return Ok(open);
            }
            // This node has just tried it by itself once more, in an epoch of its own.
            Err(error) if error.kind() == ErrorKind::Fenced => {
                record = patiently(local.records().load_volume(record.id)).await.map_err(coord_error)?.0;
                if !local.is_ours(&record) {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(ControlError::new(ErrorKind::Busy, format!("volume {}: this node is opening it at the moment", record.name)))
}

/// Has a volume taken over by `take`.
async fn take_here(
    local: &Rc<Local>,
    foreign: &Foreign,
    take: impl Future<Output = varve_engine::Result<Rc<Open>>>,
    why: &str,
) -> Answer<Rc<Open>> {
    let record = &foreign.volume;
    local.check_pool(&record.pool)?;
    // Of a volume that this node ran once, what is left must be gone before.
    ownership::lost(local, record).await;
    let let_go = async {
        while local.is_lost(record.id) {
            tokio::time::sleep(LOOK_TIME).await;
        }
    };
    if tokio::time::timeout(LET_GO_TIME, let_go).await.is_err() {
        let message = format!("volume {}: this node has not yet let go of what it ran of it before", record.name);
        return Err(ControlError::new(ErrorKind::Busy, message));
    }
    let (owner, epoch) = (foreign.owner(), record.epoch);
    tracing::warn!(volume = %record.name, %owner, %epoch, why, "a volume is taken over");
    match take.await {
        Ok(open) => {
            tracing::info!(volume = %record.name, epoch = %open.record().epoch, "this node runs the volume now");
            Ok(open)
        }
        Err(error) => {
            tracing::warn!(volume = %record.name, %error, "a volume could not be taken over");
            // It may be ours by now, and open later.
            local.look_after(record.id).await;
            Err(error.into())
        }
    }
}
