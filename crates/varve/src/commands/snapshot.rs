// SPDX-License-Identifier: Apache-2.0
//! Commands of snapshots.
//!
//! A rollback first asks the node what it would hide, shows that, and asks the person; nobody is asked with `--yes`, and nothing is done where
//! nobody can be asked.

use crate::client::{Body, Client};
use crate::confirm::confirm;
use crate::failure::Result;
use crate::out::{self, Table};
use clap::Subcommand;
use hyper::Method;
use varve_server::api::model::{NewSnapshot, Rollback, RollbackReport, Snapshot, Volume};
use varve_types::{Name, format_size};

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot
    Create {
        /// The volume
        volume: Name,
        /// Name of the snapshot
        name: Name,
    },
    /// List the snapshots of a volume, oldest first
    List {
        /// The volume
        volume: Name,
    },
    /// Delete a snapshot
    Delete {
        /// The volume
        volume: Name,
        /// The snapshot
        name: Name,
    },
    /// Make a volume show a snapshot again, hiding what came later; or undo that
    Rollback {
        /// The volume
        volume: Name,
        /// The snapshot
        #[arg(required_unless_present = "undo", conflicts_with = "undo")]
        name: Option<Name>,
        /// Do not ask
        #[arg(long, conflicts_with = "undo")]
        yes: bool,
        /// Undo the last rollback
        #[arg(long)]
        undo: bool,
    },
}

/// Does it.
pub async fn run(command: SnapshotCommand, client: &Client, json: bool) -> Result<()> {
    match command {
        SnapshotCommand::Create { volume, name } => {
            let body = Body::json(&NewSnapshot { name })?;
            let snapshot: Snapshot = client.ask(Method::POST, &format!("/v1/volumes/{volume}/snapshots"), body).await?;
            out::show(json, &snapshot, |snapshot| format!("took snapshot {volume}@{}\n", snapshot.name))
        }
        SnapshotCommand::List { volume } => {
            let snapshots: Vec<Snapshot> = client.get(&format!("/v1/volumes/{volume}/snapshots")).await?;
            out::show(json, &snapshots, |snapshots| match snapshots.is_empty() {
                true => format!("{volume} has no snapshots\n"),
                false => table(snapshots, ""),
            })
        }
        SnapshotCommand::Delete { volume, name } => {
            let path = format!("/v1/volumes/{volume}/snapshots/{name}");
            let snapshot: Snapshot = client.ask(Method::DELETE, &path, Body::Empty).await?;
            out::show(json, &snapshot, |snapshot| format!("deleted snapshot {volume}@{}\n", snapshot.name))
        }
        SnapshotCommand::Rollback { volume, name: Some(name), yes, .. } => {
            rollback(&volume, &name, yes, client, json).await
        }
        SnapshotCommand::Rollback { volume, name: None, .. } => {
            let path = format!("/v1/volumes/{volume}/rollback/undo");
            let volume: Volume = client.ask(Method::POST, &path, Body::Empty).await?;
            out::show(json, &volume, |volume| {
                format!("{} shows again what it showed before the rollback\n", volume.name)
            })
        }
    }
}

async fn rollback(volume: &Name, snapshot: &Name, yes: bool, client: &Client, json: bool) -> Result<()> {
    let path = format!("/v1/volumes/{volume}/rollback");
    let body = |dry_run| Body::json(&Rollback { snapshot: snapshot.clone(), dry_run });
    if !yes {
        let preview: RollbackReport = client.ask(Method::POST, &path, body(true)?).await?;
        confirm_rollback(volume, snapshot, &preview)?;
    }
    let report: RollbackReport = client.ask(Method::POST, &path, body(false)?).await?;
    out::show(json, &report, |report| {
        let mut text = format!("{volume} shows {snapshot} now\n");
        if !report.hides.is_empty() {
            text.push_str(&format!("hidden:\n{}", table(&report.hides, "  ")));
        }
        if let Some(until) = report.undo_until_ms {
            let until = out::moment(until);
            text.push_str(&format!("`varve snapshot rollback {volume} --undo` undoes it until {until}\n"));
        }
        text
    })
}

/// Shows what would be hidden, and asks.
fn confirm_rollback(volume: &Name, snapshot: &Name, preview: &RollbackReport) -> Result<()> {
    let mut text = format!("Rolling {volume} back to {snapshot} hides what was written since");
    if preview.hides.is_empty() {
        text.push_str("; no later snapshots.\n");
    } else {
        text.push_str(&format!(", and these snapshots:\n{}", table(&preview.hides, "  ")));
    }
    confirm(&text, "roll back")
}

fn table(snapshots: &[Snapshot], indent: &str) -> String {
    let mut table = Table::new(&["NAME", "TAKEN", "SIZE", "STATE"]).right(&[2]);
    for snapshot in snapshots {
        table.row(vec![
            snapshot.name.to_string(),
            out::moment(snapshot.created_ms),
            format_size(snapshot.size_bytes),
            if snapshot.hidden { "hidden" } else { "shown" }.to_owned(),
        ]);
    }
    table.render(indent)
}
