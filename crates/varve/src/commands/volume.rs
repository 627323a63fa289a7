// SPDX-License-Identifier: Apache-2.0
//! Commands of volumes: make, list, show, resize, rename, delete and bring back, template, settings; clone and flatten.
//!
//! Each is one request, whose answer is the volume as it then is: that is what `--json` prints, and what the sentence for people is made of. A
//! volume that is made or brought back is shown with the NBD URI to attach it at. Sizes, names and settings were checked with the arguments, and
//! are checked again by the node, since not only this program asks it.

use super::{job, settings_table};
use crate::args;
use crate::client::{Body, Client};
use crate::confirm::confirm;
use crate::failure::Result;
use crate::out::{self, Table};
use clap::Subcommand;
use hyper::Method;
use std::collections::BTreeMap;
use varve_server::api::model::{
    CloneVolume, Job, JobResult, Mirror, MirrorState, NewVolume, Origin, Owner, Rename, Resize, SetSettings,
    TakeVolume, Target, TimelineState, Volume, VolumeState,
};
use varve_types::{ErrorKind, MirrorMedium, Name, format_size};

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create {
        /// Its name
        name: Name,
        /// Its size, such as 10G: a multiple of 512 bytes, at most 64T
        #[arg(long, value_parser = args::volume_size)]
        size: u64,
        /// The pool that is to keep it
        #[arg(long, default_value = "default")]
        pool: Name,
        /// Size at which its segments are sealed: 4M to 128M
        #[arg(long, value_name = "SIZE", value_parser = args::segment_size)]
        segment_size: Option<String>,
        /// How its segments are compressed: lz4, zstd or none
        #[arg(long, value_name = "lz4|zstd|none", value_parser = args::compression)]
        compression: Option<String>,
    },
    /// List all volumes, deleted ones that can be brought back among them
    List,
    /// Show a volume: its settings with their source, its clients, its space
    Show {
        /// The volume
        name: Name,
    },
    /// Change the size of a volume, while it is in use or not
    Resize {
        /// The volume
        name: Name,
        /// Its new size
        #[arg(value_parser = args::volume_size)]
        size: u64,
        /// Cut off data that lies beyond the new end
        #[arg(long)]
        force: bool,
    },
    /// Give a volume another name
    Rename {
        /// The volume
        old: Name,
        /// Its new name
        new: Name,
    },
    /// Delete a volume; it can be brought back for a while
    Delete {
        /// The volume
        name: Name,
    },
    /// Take a volume from the edge that has it for itself, though that has not detached it: its host is gone, say
    Detach {
        /// The volume
        name: Name,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Have a volume run on this node that another one runs: that is dead, say. What only the other one has is lost. One of this node opens without its mirror
    Take {
        /// The volume
        name: Name,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Make a volume a template: read-only, to clone from
    Template {
        /// The volume
        name: Name,
    },
    /// Change settings of a volume, while it is in use or not
    Set {
        /// The volume
        name: Name,
        /// New values; `default` gives a setting back to the pool
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = args::setting)]
        settings: Vec<(String, String)>,
    },
    /// Bring a deleted volume back
    Undelete {
        /// The volume
        name: Name,
    },
}

/// Does it.
pub async fn run(command: VolumeCommand, client: &Client, json: bool) -> Result<()> {
    match command {
        VolumeCommand::Create { name, size, pool, segment_size, compression } => {
            let given = [("segment-size", segment_size), ("compression", compression)];
            let settings = given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
            let volume = create(client, NewVolume { name, size_bytes: size, pool: Some(pool), settings }).await?;
            out::show(json, &volume, |volume| made("made", volume))
        }
        VolumeCommand::List => {
            let volumes: Vec<Volume> = client.get("/v1/volumes").await?;
            out::show(json, &volumes, |volumes| list(volumes))
        }
        VolumeCommand::Show { name } => {
            let volume: Volume = client.get(&format!("/v1/volumes/{name}")).await?;
            out::show(json, &volume, show)
        }
        VolumeCommand::Resize { name, size, force } => {
            let body = Body::json(&Resize { size_bytes: size, force })?;
            let volume = change(client, Method::POST, &name, "/resize", body).await?;
            out::show(json, &volume, |volume| format!("{} has {} now\n", volume.name, format_size(volume.size_bytes)))
        }
        VolumeCommand::Rename { old, new } => {
            let volume = change(client, Method::POST, &old, "/rename", Body::json(&Rename { name: new })?).await?;
            out::show(json, &volume, |volume| format!("{old} is {} now\n", volume.name))
        }
        VolumeCommand::Delete { name } => {
            let volume = delete(client, &name).await?;
            out::show(json, &volume, deleted)
        }
        VolumeCommand::Detach { name, yes } => {
            let shown: Volume = client.get(&format!("/v1/volumes/{name}")).await?;
            let Some(holder) = &shown.holder else {
                return out::show(json, &shown, |volume| format!("{}: no edge has it\n", volume.name));
            };
            if !yes {
                let is = if holder.connected { "is connected" } else { "is not connected" };
                let lost = "What was acknowledged there, and only it still has, is lost.";
                confirm(&format!("{name} is held by {}, which {is}. {lost}\n", holder.edge), "take it from there")?;
            }
            let volume = change(client, Method::POST, &name, "/detach", Body::Empty).await?;
            out::show(json, &volume, |volume| format!("{} is free now\n", volume.name))
        }
        VolumeCommand::Take { name, yes } => {
            let volume = take(client, &name, yes).await?;
            out::show(json, &volume, |volume| made("this node runs", volume))
        }
        VolumeCommand::Template { name } => {
            let volume = change(client, Method::POST, &name, "/template", Body::Empty).await?;
            out::show(json, &volume, |volume| format!("{} is a template now\n", volume.name))
        }
        VolumeCommand::Set { name, settings } => {
            let body = Body::json(&SetSettings { settings: settings.into_iter().collect::<BTreeMap<_, _>>() })?;
            let volume = change(client, Method::PATCH, &name, "/settings", body).await?;
            out::show(json, &volume, |volume| settings_table(&volume.settings))
        }
        VolumeCommand::Undelete { name } => {
            let volume = change(client, Method::POST, &name, "/undelete", Body::Empty).await?;
            out::show(json, &volume, |volume| made("brought back", volume))
        }
    }
}

/// Makes the node the owner of a volume; a person is asked once it is known what may be lost.
async fn take(client: &Client, name: &Name, yes: bool) -> Result<Volume> {
    if !yes {
        let told = change(client, Method::POST, name, "/take", Body::json(&TakeVolume { force: false })?).await;
        match told {
            Err(failure) if failure.kind == Some(ErrorKind::Conflict) => {
                confirm(&format!("{}.\n", failure.message.trim_end_matches('.')), "take it")?;
            }
            // It runs there already, or it is not to be had at all.
            told => return told,
        }
    }
    change(client, Method::POST, name, "/take", Body::json(&TakeVolume { force: true })?).await
}

/// Makes a clone.
pub async fn clone(origin: Target, new: Name, client: &Client, json: bool) -> Result<()> {
    let body = Body::json(&CloneVolume { name: new, snapshot: origin.snapshot })?;
    let volume = change(client, Method::POST, &origin.volume, "/clone", body).await?;
    out::show(json, &volume, |volume| made("cloned", volume))
}

/// Makes a clone independent.
pub async fn flatten(volume: &Name, client: &Client, json: bool) -> Result<()> {
    let begun: Job = client.ask(Method::POST, &format!("/v1/volumes/{volume}/flatten"), Body::Empty).await?;
    match job::wait(client, &format!("flattening {volume}"), begun).await? {
        JobResult::Flatten(volume) => {
            out::show(json, &volume, |volume| format!("{} needs its origin no more\n", volume.name))
        }
        _ => Err(job::unexpected()),
    }
}

/// Makes a volume.
pub async fn create(client: &Client, new: NewVolume) -> Result<Volume> {
    client.ask(Method::POST, "/v1/volumes", Body::json(&new)?).await
}

/// Deletes a volume.
pub async fn delete(client: &Client, name: &Name) -> Result<Volume> {
    change(client, Method::DELETE, name, "", Body::Empty).await
}

async fn change(client: &Client, method: Method, name: &Name, path: &str, body: Body) -> Result<Volume> {
    client.ask(method, &format!("/v1/volumes/{name}{path}"), body).await
}

/// A line that says what became of a volume, and one that says how to attach it.
pub fn made(what: &str, volume: &Volume) -> String {
    let mut text = format!("{what} {}: {}\n", volume.name, format_size(volume.size_bytes));
    if let Some(uri) = &volume.nbd_uri {
        text.push_str(&format!("attach it at {uri}\n"));
    }
    text
}

fn deleted(volume: &Volume) -> String {
    match volume.undelete_until_ms {
        Some(until) => format!(
            "deleted {0}; `varve volume undelete {0}` brings it back until {1}\n",
            volume.name,
            out::moment(until)
        ),
        None => format!("deleted {}\n", volume.name),
    }
}

/// The word for the state of a volume.
pub const fn state(state: VolumeState) -> &'static str {
    match state {
        VolumeState::Ready => "ready",
        VolumeState::Recovering => "recovering",
        VolumeState::Degraded => "degraded",
        VolumeState::Elsewhere => "elsewhere",
        VolumeState::Failed => "failed",
        VolumeState::Deleted => "deleted",
    }
}

fn list(volumes: &[Volume]) -> String {
    if volumes.is_empty() {
        return "there are no volumes; `varve volume create NAME --size SIZE` makes one\n".to_owned();
    }
    let mut titles = vec!["NAME", "SIZE", "USED", "POOL", "SNAPSHOTS", "CLIENTS", "STATE"];
    let in_cluster = volumes.iter().any(|volume| volume.owner.is_some());
    if in_cluster {
        titles.push("NODE");
    }
    let mut table = Table::new(&titles).right(&[1, 2, 4, 5]);
    for volume in volumes {
        let template = if volume.template { ", template" } else { "" };
        let mut row = vec![
            volume.name.to_string(),
            format_size(volume.size_bytes),
            format_size(volume.space.live_bytes),
            volume.pool.to_string(),
            volume.snapshots.to_string(),
            volume.attached.len().to_string(),
            format!("{}{template}", state(volume.state)),
        ];
        if in_cluster {
            row.push(volume.owner.as_ref().map_or("nobody".to_owned(), owner));
        }
        table.row(row);
    }
    table.render("")
}

fn owner(owner: &Owner) -> String {
    let name = owner.name.as_ref().map_or_else(|| owner.id.to_string(), Name::to_string);
    if owner.alive { name } else { format!("{name} (dead)") }
}

fn origin(origin: &Origin) -> String {
    let volume = origin.volume.as_ref().map_or("a volume that is gone", Name::as_str);
    match &origin.snapshot {
        Some(snapshot) => format!("{volume}@{snapshot}"),
        None => volume.to_owned(),
    }
}

/// How the mirror of a volume is.
fn mirror_text(mirror: &Mirror) -> String {
    let state = match mirror.state {
        MirrorState::Off | MirrorState::Alone => "none: what is written is on this node alone until it is in the store",
        MirrorState::Joining => "being brought in sync",
        MirrorState::InSync => "in sync",
        MirrorState::Parting => "lost, writes wait until that is recorded",
    };
    let medium = match mirror.medium {
        Some(MirrorMedium::Disk) => "on disk of",
        Some(MirrorMedium::Ram) | None => "on",
    };
    let node = mirror.node.map_or(String::new(), |node| format!(", {medium} node {node}"));
    format!("{state}{node}")
}

fn show(volume: &Volume) -> String {
    let mut table = Table::default();
    table.pair("name", volume.name.as_str());
    table.pair("id", volume.id.to_string());
    table.pair("pool", volume.pool.as_str());
    table.pair("size", format!("{} ({} bytes)", format_size(volume.size_bytes), volume.size_bytes));
    table.pair(
        "state",
        match &volume.state_message {
            Some(message) => format!("{}: {message}", state(volume.state)),
            None => state(volume.state).to_owned(),
        },
    );
    if let Some(node) = &volume.owner {
        table.pair("node", owner(node));
    }
    if let Some(until) = volume.undelete_until_ms {
        table.pair("undelete until", out::moment(until));
    }
    table.pair("template", if volume.template { "yes" } else { "no" });
    table.pair("created", out::moment(volume.created_ms));
    if let Some(from) = &volume.origin {
        table.pair("cloned from", origin(from));
    }
    table.pair("snapshots", volume.snapshots.to_string());
    let space = &volume.space;
    table.pair("data", format_size(space.live_bytes));
    table.pair(
        "in the store",
        format!("{} in {}", format_size(space.stored_bytes), out::count(space.segments, "segment")),
    );
    table.pair("not in the store yet", format_size(space.dirty_bytes));
    if space.rewind_bytes > 0 {
        table.pair("of it for rewinding", format_size(space.rewind_bytes));
    }
    if space.reclaim_bytes > 0 {
        table.pair("discarded, not freed yet", format!("up to {}", format_size(space.reclaim_bytes)));
    }
    for timeline in volume.timelines.iter().filter(|timeline| timeline.state != TimelineState::Shown) {
        let until =
            timeline.hidden_until_ms.map_or("kept for others".to_owned(), |ms| format!("until {}", out::moment(ms)));
        table.pair("hidden history", format!("{}, {until}", timeline.id));
    }
    for client in &volume.attached {
        let since = out::moment(client.since_ms);
        let connections = out::count(u64::from(client.connections), "connection");
        table.pair("client", format!("{}, since {since}, {connections}", client.peer));
    }
    if let Some(mirror) = volume.mirror.as_ref().filter(|mirror| mirror.state != MirrorState::Off) {
        table.pair("mirror", mirror_text(mirror));
    }
    if let Some(holder) = &volume.holder {
        let is_elsewhere = volume.state == VolumeState::Elsewhere;
        let connected = if holder.connected || is_elsewhere { "" } else { ", not connected" };
        table.pair("held by", format!("{}, since {}{connected}", holder.edge, out::moment(holder.since_ms)));
    }
    if let Some(uri) = &volume.nbd_uri {
        table.pair("attach at", uri.as_str());
    }
    format!("{}\n{}", table.render(""), settings_table(&volume.settings))
}
